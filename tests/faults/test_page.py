"""The page in docs/ is what `make faults` last wrote."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.faults.conftest import COLLECTED, table
from trsllava_utils.files import PROJECT_ROOT


def test_the_page_counts_these_faults(request):
    files = {Path(item.fspath).name for item in request.session.items}
    all_of_them = {path.name for path in Path(__file__).parent.glob("test_*.py")}
    if not all_of_them <= files or request.config.option.keyword or "FAULT_TABLE" in os.environ:
        pytest.skip("not all faults are collected, or the page is being written")
    assert sum(map(len, COLLECTED.values())) >= 80
    assert (PROJECT_ROOT / "docs" / "reliability.md").read_text() == table(COLLECTED, set())
