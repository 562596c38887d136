"""Notebook 04: ranks go in; recall, intervals, tests and breakdowns come out."""

from trsllava_utils.evaluation.results import require_human_captions
from trsllava_utils.evaluation.recall import (
    chance,
    chance_ranks,
    expected_rank,
    metrics,
    recall_at_k,
    recall_curve,
    recall_table,
)
from trsllava_utils.evaluation import breakdown, experiments, statistics
from trsllava_utils.evaluation.results import (
    record_figures,
    export,
    published,
    results_path,
    summary,
    write_results,
)
