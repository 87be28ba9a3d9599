"""docs/results.md is what results/ says, and what is kept of runs is what they were."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest

from longtail.api import Run, evaluate_run
from longtail.recipes import load_config
from longtail.runs.rundir import RunDir

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def keeper() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "benchmarks" / "results.py"))


def test_results_page_is_what_make_results_writes(keeper: dict[str, Any]) -> None:
    made = keeper["page"]()
    assert (ROOT / "docs" / "results.md").read_text() == made, "run `make results` and commit docs/results.md"


def test_every_row_of_results_in_the_readme_is_one_of_the_results_page() -> None:
    text = (ROOT / "README.md").read_text().partition("<!-- result -->")[2].partition("<!-- end of result -->")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.strip().splitlines()]
    page = [
        [cell.strip() for cell in line.split("|")] for line in (ROOT / "docs" / "results.md").read_text().splitlines()
    ]
    assert len(rows) > 3
    for row in rows[2:]:
        assert any(cells[1:3] == row[:2] and set(row) <= set(cells) for cells in page), row


def test_committed_results_name_no_place_on_a_disk() -> None:
    for path in [*(ROOT / "results").rglob("*"), *(ROOT / "weights").rglob("*")]:
        if path.suffix in (".yaml", ".json", ".txt", ".csv", ".jsonl"):
            text = path.read_text()
            assert "=/" not in text, path
            assert ": /" not in text, path
            assert "../" not in text, path


def test_the_kept_files_of_a_run_say_what_it_was_and_not_where(
    keeper: dict[str, Any], finished_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, place in (("RESULTS", tmp_path), ("ROOT", tmp_path)):
        monkeypatch.setitem(keeper["collect"].__globals__, name, place)
    keeper["collect"]("of-no-study", [finished_run.path])
    (folder,) = (tmp_path / "of-no-study").iterdir()
    results = json.loads((folder / "results.json").read_text())
    assert results == finished_run.results
    assert folder.name == f"concutmix-s0-{results['config_key']}"
    config = load_config(folder / "config.yaml")
    assert config.key() == results["config_key"]
    assert not (folder / "predictions.csv").exists()
    text = "".join(path.read_text() for path in folder.iterdir())
    assert str(finished_run.path) not in text
    assert str(RunDir(finished_run.path).read_config()["data"]["path"]) not in text


WEIGHTS = sorted(path.parent for path in (ROOT / "weights").glob("*/README.md"))


@pytest.mark.parametrize("folder", WEIGHTS, ids=lambda folder: folder.name)
def test_committed_weights_load_and_repeat_their_number_where_the_images_are_at_hand(
    folder: Path, shared: Path
) -> None:
    about = json.loads((folder / "config.json").read_text())
    archive = shared / "data" / f"{about['config']['data']['name']}.npz"
    assert archive.is_file()
    found = evaluate_run(folder, settings={"data": {"path": str(archive)}})
    own = about["config"].get("test", {})
    words = [*(["test.flip=true"] if own.get("flip") else []), *([f"test.tau={own['tau']}"] if own.get("tau") else [])]
    assert found.notes == ([f"answers with {', '.join(words)}"] if words else [])
    assert "those of the card" in found.verdict
    # Another processor may round a logit the other way.
    assert found.evaluation.numbers()["top1"] == pytest.approx(about["results"]["top1"], abs=5e-4)
    assert sum(path.stat().st_size for path in folder.iterdir()) < 3e6
