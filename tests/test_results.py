"""docs/results.md is what results/ says, and what is kept of runs is what they were."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest

from longtail import load
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


def test_published_weights_repeat_the_numbers_of_their_run(
    keeper: dict[str, Any], finished_run: Run, tiny_npz: Path, tmp_path: Path
) -> None:
    kept = keeper["publish"]("tiny", finished_run.path, tmp_path)
    _, evaluation, notes = evaluate_run(kept, settings={"data": {"path": str(tiny_npz)}})
    assert notes == []
    last = json.loads((kept / "results.json").read_text())["last"]
    assert evaluation.numbers() == {name: value for name, value in last.items() if name != "epoch"}
    mine, other = (load(folder).method.state_dict() for folder in (kept, finished_run.path))
    assert all(bool((value == other[name]).all()) for name, value in mine.items())
    whole = sum(path.stat().st_size for path in (finished_run.path / "checkpoints").glob("step-*.safetensors"))
    assert sum(path.stat().st_size for path in kept.rglob("*.safetensors")) < whole / 3, "no momentum, one checkpoint"
    card = (kept / "README.md").read_text()
    assert f"top1 {100 * last['top1']:.2f}" in card
    assert str(finished_run.path) not in card + (kept / "run.json").read_text() + (kept / "config.yaml").read_text()


WEIGHTS = sorted(path.parent for path in (ROOT / "weights").glob("*/run.json"))


@pytest.mark.parametrize("folder", WEIGHTS, ids=lambda folder: folder.name)
def test_committed_weights_load_and_repeat_their_number_where_the_images_are_at_hand(
    folder: Path, shared: Path
) -> None:
    data = json.loads((folder / "results.json").read_text())["dataset"]
    archive = shared / "data" / f"{data}.npz"
    assert archive.is_file()
    _, evaluation, _ = evaluate_run(folder, settings={"data": {"path": str(archive)}})
    last = json.loads((folder / "results.json").read_text())["last"]
    # Another processor may round a logit the other way.
    assert evaluation.numbers()["top1"] == pytest.approx(last["top1"], abs=5e-4)
