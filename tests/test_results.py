"""docs/results.md is what results/ says."""

from __future__ import annotations

import runpy
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_results_page_is_what_make_results_writes() -> None:
    made = runpy.run_path(str(ROOT / "benchmarks" / "results.py"))["page"]()
    assert (ROOT / "docs" / "results.md").read_text() == made, "run `make results` and commit docs/results.md"


def test_committed_results_name_no_place_on_a_disk() -> None:
    for path in (ROOT / "results").rglob("*"):
        if path.suffix in (".yaml", ".json", ".txt", ".csv", ".jsonl"):
            text = path.read_text()
            assert "=/" not in text, path
            assert ": /" not in text, path
            assert "../" not in text, path
