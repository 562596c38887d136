"""Notebook 04: ranks go in; recall, intervals, tests and breakdowns come out."""

from trsllava_utils.evaluation.results import require_reference_captions
from trsllava_utils.evaluation.recall import (
    chance,
    recall_table,
    metrics,
    recall_at_k,
    chance_ranks,
    expected_rank,
)
from trsllava_utils.evaluation import statistics, breakdown, experiments
from trsllava_utils.evaluation.results import (
    results_path,
    write_results,
    read_results,
    export,
    published,
    summary,
    record_figures,
)
