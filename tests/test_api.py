"""The Python entry."""

import json
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import longtail
from longtail.api import evaluate_run
from longtail.data import from_arrays
from longtail.errors import ConfigError, DataError
from longtail.evaluation.evaluate import compare_numbers
from longtail.training.loop import train
from tiny import KilledError, Recorder, outcome, settings_of, tiny_config, write_npz


@pytest.fixture(autouse=True)
def _without_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than these runs."""
    monkeypatch.setattr("longtail.api.write_report", lambda out: (out / "report.html").write_text("a page"))


def test_training_by_name_gives_a_run(tiny_npz: Path, tmp_path: Path) -> None:
    own = settings_of("ce", data={"path": str(tiny_npz)}, optim={"epochs": 2})
    watched = Recorder()
    run = longtail.train("npz/ce", out=str(tmp_path / "run"), listener=watched, **own)
    assert isinstance(run, longtail.Run)
    assert run.path == tmp_path / "run"
    assert run.results["method"] == "ce"
    assert run.report == tmp_path / "run" / "report.html"
    assert run.report.is_file()
    assert [row["epoch"] for row in run.metrics()] == [0, 1]
    assert watched.results == run.results
    assert f"top1={run.results['last']['top1']:.4f}" in repr(run)
    assert run.model().predict(np.zeros((2, 8, 8, 3), np.uint8)).shape == (2, 4)
    assert longtail.load(run.path).class_counts == [9, 6, 4, 2]


def test_the_threads_of_one_run_are_not_those_of_the_next(tiny_npz: Path, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    own = settings_of("ce", data={"path": str(tiny_npz)}) | {"run": {"threads": before + 1, "compile": False}}
    run = longtail.train("npz/ce", out=tmp_path / "run", **own)
    assert json.loads((run.path / "run.json").read_text())["threads"] == before + 1
    assert torch.get_num_threads() == before
    evaluate_run(run.path)
    assert torch.get_num_threads() == before


def test_python_and_the_command_line_train_the_same(tiny_npz: Path, tmp_path: Path) -> None:
    longtail.train("npz/ce", out=tmp_path / "one", **settings_of("ce", data={"path": tiny_npz}))
    train(tiny_config("ce", tiny_npz, tmp_path / "other"))
    assert outcome(tmp_path / "one") == outcome(tmp_path / "other")


def test_a_run_is_repeated_from_its_file(tiny_npz: Path, tmp_path: Path) -> None:
    run = longtail.train("npz/ce", out=tmp_path / "one", **settings_of("ce", data={"path": tiny_npz}))
    longtail.train(run.path / "config.yaml", out=tmp_path / "two")
    assert outcome(tmp_path / "one") == outcome(tmp_path / "two")


def test_training_in_a_thread_works_without_signals(tiny_npz: Path, tmp_path: Path) -> None:
    made: list[Any] = []
    own = settings_of("ce", data={"path": tiny_npz})
    thread = threading.Thread(target=lambda: made.append(longtail.train("npz/ce", out=tmp_path / "run", **own)))
    thread.start()
    thread.join()
    assert made
    assert made[0].results["epochs"] == 2


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"epochs": 3}, "optim.epochs"),
        ({"optim": {"epoch": 3}}, "optim.epochs"),
        ({"optim": {"epochs": 0}}, "optim.epochs=0"),
        ({"optim": 3}, "group of keys"),
    ],
)
def test_wrong_settings_are_refused_in_the_same_words(tmp_path: Path, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        longtail.train("scenes/ce", out=tmp_path / "run", **settings)
    assert words in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_arrays_are_trained_on_from_python_and_nowhere_else(tiny_npz: Path, tmp_path: Path) -> None:
    with np.load(tiny_npz) as archive:
        arrays = dict(archive)
    test = {"test_images": arrays["test_images"], "test_labels": arrays["test_labels"]}
    source = from_arrays(arrays["train_images"], arrays["train_labels"], **test)
    run = longtail.train("arrays/ce", source=source, out=tmp_path / "arrays", **settings_of("ce"))
    train(tiny_config("ce", tiny_npz, tmp_path / "npz"))
    one, other = outcome(tmp_path / "arrays"), outcome(tmp_path / "npz")
    assert one["last"] == other["last"]
    assert run.results["dataset"] == "arrays"
    with pytest.raises(ConfigError, match="from Python"):
        longtail.train("arrays/ce", out=tmp_path / "run", **settings_of("ce"))
    with pytest.raises(ConfigError, match="from Python"):
        longtail.train("npz/ce", source=source, out=tmp_path / "run", **settings_of("ce", data={"path": tiny_npz}))
    assert not (tmp_path / "run").exists()


def test_evaluating_gives_the_data_the_numbers_and_no_note(finished_run: longtail.Run) -> None:
    found = evaluate_run(finished_run.path)
    assert found.notes == []
    assert found.data.evaluated_on == "test"
    assert found.evaluation.numbers() == {k: v for k, v in finished_run.results["last"].items() if k != "epoch"}
    assert found.evaluation.probabilities.shape == (12, 4)
    assert found.verdict == "top-1, many, medium and few equal those of the run, to the image."


def test_numbers_that_are_not_those_of_the_run_are_told_with_the_images_between(
    finished_run: longtail.Run, tmp_path: Path
) -> None:
    shutil.copytree(finished_run.path, tmp_path / "run")
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    results["last"]["top1"] += 2 / 12
    results["last"]["few"] = None
    (tmp_path / "run" / "results.json").write_text(json.dumps(results))
    verdict = evaluate_run(tmp_path / "run").verdict
    here, there = (100 * run["last"]["top1"] for run in (finished_run.results, results))
    assert f"top-1 {there:.2f} there and {here:.2f} here" in verdict
    assert "few - there" in verdict
    assert "2 of 12 images" in verdict
    assert "many" not in verdict, "it is equal"
    assert "equal" in evaluate_run(tmp_path / "run", "best").verdict


def test_a_group_without_classes_is_not_said_to_be_equal() -> None:
    numbers = {"top1": 0.25, "many": None, "medium": 0.5, "few": 0.0}
    assert (
        compare_numbers(numbers, numbers, 8, "the run") == "top-1, medium and few equal those of the run, to the image."
    )


def test_other_images_are_noted_and_compared_with_nothing(finished_run: longtail.Run, tmp_path: Path) -> None:
    other = write_npz(tmp_path / "other.npz", test=4)
    found = evaluate_run(finished_run.path, settings={"data": {"path": str(other)}})
    assert "not the images" in found.notes[0]
    assert found.verdict == ""


def test_a_missing_archive_is_a_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent\.npz"):
        longtail.train("npz/ce", data={"path": tmp_path / "absent.npz"}, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_killed_before_its_report_gets_it_when_resumed(
    tiny_npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(out: Path) -> None:
        raise KilledError

    own = settings_of("ce", data={"path": tiny_npz})
    with monkeypatch.context() as patch:
        patch.setattr("longtail.api.write_report", die)
        with pytest.raises(KilledError):
            longtail.train("npz/ce", out=tmp_path / "run", **own)
    assert longtail.train("npz/ce", out=tmp_path / "run", resume=True, **own).report.is_file()
