"""A run from its first to its last file: what is written, what is refused, what stays the same."""

import csv
import hashlib
import io
import json
import math
import re
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import longtail
import longtail.training.loop as training
import longtail.training.starting as starting
import longtail.training.updating as updating
from longtail.api import Run
from longtail.config import NUMBERS_VERSION, Config
from longtail.data.sources.npz import load_npz
from longtail.errors import ConfigError, DataError, DivergedError, ResourceError, RunError
from longtail.recipes import load_config
from longtail.runs.rundir import RunDir
from longtail.training.loop import train
from longtail.training.setup import set_up
from longtail.training.state import RunState
from tiny import COUNTS, STEPS, At, KilledError, Recorder, files_of, outcome, tiny_config, write_npz

NUMBERS = ["top1", "balanced_accuracy", "macro_f1", "many", "medium", "few"]
NUMBERS += ["worst_class", "worst_tenth", "g_mean", "h_mean", "ece"]


def read(run: Run, name: str) -> Any:
    return json.loads((run.path / name).read_text())


def rows(run: Run, name: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO((run.path / name).read_text())))


# What a run leaves ----------------------------------------------------------------------------------------------------


def test_a_run_folder_holds_what_the_contract_says_and_nothing_else(finished_run: Run) -> None:
    assert set(files_of(finished_run.path)) == {
        ".lock",
        "config.yaml",
        "run.json",
        "metrics.jsonl",
        "results.json",
        "per_class.csv",
        "predictions.csv",
        "report.html",
        "plots/learning_curves.png",
        "plots/accuracy_by_count.png",
        *(f"checkpoints/{name}.{kind}" for name in ("step-3", "step-6", "best") for kind in ("json", "safetensors")),
    }


def test_run_json_says_what_ran_on_what_and_with_what(finished_run: Run) -> None:
    described = read(finished_run, "run.json")
    assert described["schema"] == 1
    assert described["status"] == "finished"
    assert described["command"] == f"longtail train {finished_run.path}/config.yaml"
    assert described["recipe"] == "npz/concutmix"
    assert (described["seed"], described["threads"], described["compiled"], described["steps"]) == (0, 1, False, STEPS)
    assert described["versions"]["longtail"] == longtail.__version__
    assert described["versions"]["numbers"] == NUMBERS_VERSION
    assert described["versions"]["torch"] == torch.__version__
    assert set(described["versions"]) == {"longtail", "numbers", "python", "torch"}
    assert re.fullmatch(r".+, [1-9][0-9]* cores", described["processor"])
    assert described["class_counts"] == list(COUNTS)
    assert described["groups"] == [8, 3]
    assert described["data"]["class_names"] == ["0", "1", "2", "3"]
    assert len(described["data"]["fingerprint"]) == 32
    assert described["image_size"] == 8
    assert described["timings"]["train_seconds"] >= 0
    schedule = described["schedule"]
    assert schedule["optim"] == {"warmup_epochs": 1}
    assert (schedule["method"]["topk"], schedule["method"]["omega"]) == (1, 4 / 1275)


def test_the_normalization_is_that_of_the_training_images(finished_run: Run) -> None:
    normalization = read(finished_run, "run.json")["normalization"]
    path = read_config(finished_run)["data"]["path"]
    pixels = np.load(path)["train_images"].astype(np.float64) / 255
    assert normalization["mean"] == pytest.approx(pixels.mean((0, 1, 2)))
    assert normalization["std"] == pytest.approx(pixels.std((0, 1, 2)))


def read_config(run: Run) -> dict[str, Any]:
    return yaml.safe_load((run.path / "config.yaml").read_text())


def test_config_yaml_is_complete(finished_run: Run) -> None:
    values = read_config(finished_run)
    config = Config.model_validate(values)
    assert config.plain() == values
    assert values["out"] == str(finished_run.path)


def test_metrics_have_one_object_for_each_epoch(finished_run: Run) -> None:
    lines = finished_run.metrics()
    assert [row["epoch"] for row in lines] == [0, 1]
    assert [row["step"] for row in lines] == [3, 6]
    for row in lines:
        loss_terms = {"loss", "classification", "contrastive"}
        assert set(row) - {"gamma"} == loss_terms | {
            *("step", "epoch", "lr", "top1", "balanced_accuracy", "many", "medium", "few", "evaluated_on", "img_per_s")
        }
        assert all(math.isfinite(row[name]) for name in loss_terms)
        assert row["evaluated_on"] == "test"
        assert row["img_per_s"] > 0
    assert [row["lr"] for row in lines] == pytest.approx([0.05, 0.025])


def test_the_loss_of_an_epoch_is_the_mean_over_its_steps(tiny_npz: Path, tmp_path: Path) -> None:
    watched = Recorder()
    train(tiny_config("bcl", tiny_npz, tmp_path / "run"), listener=watched)
    assert watched.steps == list(range(1, STEPS + 1))
    for epoch, row in enumerate(watched.rows):
        mine = watched.logs[3 * epoch : 3 * epoch + 3]
        for name in ("loss", "classification", "contrastive"):
            assert row[name] == pytest.approx(sum(logs[name] for logs in mine) / 3, rel=1e-12)
        for logs in mine:
            assert logs["loss"] == pytest.approx(2.0 * logs["classification"] + 0.6 * logs["contrastive"], rel=1e-5)


def test_results_json_has_the_schema_of_the_contract(finished_run: Run) -> None:
    results = read(finished_run, "results.json")
    last, best = results.pop("last"), results.pop("best")
    assert results.pop("train_seconds") >= 0
    assert results.pop("config_key") == Config.model_validate(read_config(finished_run)).key()
    parameters = sum(p.numel() for p in finished_run.model().method.parameters())
    assert results == {
        "schema": 1,
        "version": longtail.__version__,
        "numbers_version": NUMBERS_VERSION,
        "dataset": "npz",
        "method": "concutmix",
        "model": "resnet8",
        "seed": 0,
        "subset_seed": 0,
        "epochs": 2,
        "imbalance": None,
        "class_counts": list(COUNTS),
        "test_counts": [3, 3, 3, 3],
        "image_passes": 3 * 21 * 2,
        "full_size_passes": 3 * 21 * 2,
        "parameters": parameters,
        "skipped_steps": 0,
        "rate_scale": 1.0,
        "evaluated_on": "test",
    }
    assert list(last) == ["epoch", *NUMBERS]
    assert list(best) == ["epoch", *NUMBERS, "selected_on"]
    assert last["epoch"] == 1
    assert best["selected_on"] == "test"
    for numbers in (last, best):
        assert all(0 <= numbers[name] <= 1 for name in NUMBERS)
    assert best["balanced_accuracy"] == max(row["balanced_accuracy"] for row in finished_run.metrics())
    assert last["top1"] == finished_run.metrics()[-1]["top1"]


def test_an_empty_group_is_null_and_thirds_stand_in_for_it(tiny_npz: Path, tmp_path: Path) -> None:
    results = train(tiny_config("ce", tiny_npz, tmp_path / "run", data={"groups": [100, 20]}))
    stored = json.loads((tmp_path / "run" / "results.json").read_text())
    assert stored == results
    assert stored["last"]["many"] is None
    assert stored["last"]["medium"] is None
    assert stored["last"]["few"] == pytest.approx(stored["last"]["balanced_accuracy"])
    assert set(stored["last"]["thirds"]) == {"head", "middle", "tail"}
    assert json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])["many"] is None
    with (tmp_path / "run" / "per_class.csv").open() as file:
        assert {row["group"] for row in csv.DictReader(file)} == {"few"}


def test_per_class_csv_counts_images_and_accuracy(finished_run: Run) -> None:
    table = rows(finished_run, "per_class.csv")
    assert list(table[0]) == ["class", "train_count", "group", "test_count", "accuracy"]
    assert [int(row["train_count"]) for row in table] == list(COUNTS)
    assert [row["group"] for row in table] == ["many", "medium", "medium", "few"]
    assert [int(row["test_count"]) for row in table] == [3, 3, 3, 3]
    predictions = rows(finished_run, "predictions.csv")
    for label, row in enumerate(table):
        mine = [int(line["correct"]) for line in predictions if int(line["target"]) == label]
        assert float(row["accuracy"]) == pytest.approx(sum(mine) / len(mine))


def test_predictions_csv_is_of_the_last_epoch(finished_run: Run) -> None:
    table = rows(finished_run, "predictions.csv")
    assert list(table[0]) == ["index", "id", "target", "predicted", "probability", "correct"]
    assert [int(row["index"]) for row in table] == list(range(12))
    assert [int(row["target"]) for row in table] == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    correct = [int(row["correct"]) for row in table]
    assert correct == [int(row["target"] == row["predicted"]) for row in table]
    assert sum(correct) / 12 == pytest.approx(finished_run.results["last"]["top1"])


def test_a_class_without_test_images_has_no_accuracy(tmp_path: Path) -> None:
    data = write_npz(tmp_path / "data.npz", test_labels=np.repeat([0, 1, 2], 4))
    results = train(tiny_config("ce", data, tmp_path / "run"))
    assert results["test_counts"] == [4, 4, 4, 0]
    assert results["last"]["few"] is None
    with (tmp_path / "run" / "per_class.csv").open() as file:
        assert [row["accuracy"] == "" for row in csv.DictReader(file)] == [False, False, False, True]


def test_the_best_checkpoint_is_that_of_the_best_epoch(finished_run: Run) -> None:
    best = RunDir(finished_run.path).load_best()
    assert best.step == 3 * (finished_run.results["best"]["epoch"] + 1)
    assert not any(name.startswith("momentum/") for name in best.tensors)


def test_a_checkpoint_carries_weights_buffers_and_momentum(finished_run: Run) -> None:
    last = RunDir(finished_run.path).load_checkpoint()
    assert last is not None
    names = set(last.tensors)
    method = finished_run.model().method
    assert {name for name in names if name.startswith("model/")} == {f"model/{n}" for n in method.state_dict()}
    assert {name for name in names if name.startswith("momentum/")} == {
        f"momentum/{n}" for n, _ in method.named_parameters()
    }
    assert any("running_var" in name for name in names)
    assert int(last.tensors["model/network.backbone.bn1.num_batches_tracked"]) == STEPS


# The same again -------------------------------------------------------------------------------------------------------


def test_config_yaml_repeats_the_run_bit_for_bit(finished_run: Run, tmp_path: Path) -> None:
    torch.rand(7)  # whatever was drawn before
    config = load_config(finished_run.path / "config.yaml", {"out": str(tmp_path / "again")})
    train(config)
    assert outcome(tmp_path / "again") == outcome(finished_run.path)


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_do_not_change_the_run(finished_run: Run, tmp_path: Path, workers: int) -> None:
    config = load_config(
        finished_run.path / "config.yaml", {"out": str(tmp_path / "again"), "run": {"workers": workers}}
    )
    train(config)
    assert outcome(tmp_path / "again") == outcome(finished_run.path)


def test_the_folder_one_stands_in_does_not_change_the_run(
    finished_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config_file = finished_run.path / "config.yaml"
    monkeypatch.chdir(tmp_path)
    train(load_config(config_file, {"out": "here"}))
    assert outcome(tmp_path / "here") == outcome(finished_run.path)


def test_another_seed_is_another_run_on_the_same_images(finished_run: Run, tmp_path: Path) -> None:
    train(load_config(finished_run.path / "config.yaml", {"out": str(tmp_path / "other"), "seed": 1}))
    one, other = outcome(finished_run.path), outcome(tmp_path / "other")
    assert one["last"] != other["last"]
    assert one["metrics"] != other["metrics"]
    assert one["described"]["data"] == other["described"]["data"]
    assert one["results"]["config_key"] != other["results"]["config_key"]


def test_who_watches_does_not_change_the_run(finished_run: Run, tmp_path: Path) -> None:
    class Drawing(Recorder):
        def stepped(self, step: int, logs: Mapping[str, float], images_per_second: float) -> None:
            torch.rand(3)
            np.random.rand(3)  # noqa: NPY002

    train(load_config(finished_run.path / "config.yaml", {"out": str(tmp_path / "again")}), listener=Drawing())
    assert outcome(tmp_path / "again") == outcome(finished_run.path)


def test_evaluating_every_second_epoch_changes_no_weight(finished_run: Run, tmp_path: Path) -> None:
    settings = {"out": str(tmp_path / "again"), "run": {"evaluate_every": 2}}
    train(load_config(finished_run.path / "config.yaml", settings))
    assert outcome(tmp_path / "again")["last"] == outcome(finished_run.path)["last"]
    assert [row["epoch"] for row in RunDir(tmp_path / "again").read_metrics()] == [1]


def test_the_last_epoch_is_evaluated_even_off_the_beat(tiny_npz: Path, tmp_path: Path) -> None:
    config = tiny_config("ce", tiny_npz, tmp_path / "run", optim={"epochs": 3}, run={"evaluate_every": 2})
    train(config)
    assert [row["epoch"] for row in RunDir(tmp_path / "run").read_metrics()] == [1, 2]


def test_the_network_learns_what_the_color_tells(tmp_path: Path) -> None:
    labels = np.repeat(np.arange(4), [40, 20, 10, 5])
    tests = np.repeat(np.arange(4), 10)
    images = {
        "train_images": (np.ones((75, 8, 8, 3)) * (30 + 60 * labels)[:, None, None, None]).astype(np.uint8),
        "train_labels": labels,
        "test_images": (np.ones((40, 8, 8, 3)) * (31 + 60 * tests)[:, None, None, None]).astype(np.uint8),
        "test_labels": tests,
    }
    data = tmp_path / "data.npz"
    np.savez(data, **images)
    optim = {"epochs": 8, "batch": 16, "lr": 0.1, "schedule": "cosine", "warmup_epochs": 1}
    own = {"optim": optim, "views": {"classification": "plain"}}
    results = train(tiny_config("balanced-softmax", data, tmp_path / "run", **own))
    assert results["last"]["balanced_accuracy"] >= 0.9


def test_the_rate_of_the_schedule_is_the_one_that_moves_the_weights(tiny_npz: Path, tmp_path: Path) -> None:
    """After a milestone that takes the rate to nothing the weights stand still, but for the statistics."""
    optim = {"schedule": "step", "warmup_epochs": 0, "milestones": [1], "decay": 1e-30, "lr": 0.1}
    train(tiny_config("bcl", tiny_npz, tmp_path / "run", optim=optim))
    before, after = (load_file(tmp_path / "run" / "checkpoints" / f"step-{step}.safetensors") for step in (3, 6))
    moved = {name for name in before if name.startswith("model/") and not torch.equal(before[name], after[name])}
    assert moved
    assert all("running_" in name or "num_batches" in name for name in moved)


# Splits ---------------------------------------------------------------------------------------------------------------


def test_val_selects_and_test_is_reported(tmp_path: Path) -> None:
    data = write_npz(tmp_path / "data.npz", val=5, test=4)
    results = train(tiny_config("ce", data, tmp_path / "run", optim={"lr": 0.3}))
    run = RunDir(tmp_path / "run")
    assert results["evaluated_on"] == "test"
    assert results["best"]["selected_on"] == "val"
    assert results["test_counts"] == [4, 4, 4, 4]
    assert {row["evaluated_on"] for row in run.read_metrics()} == {"val"}
    model = longtail.load(run.path, which="best")
    test = load_npz(data).test
    assert test is not None
    predicted = model.predict(test.images).argmax(axis=1)
    assert results["best"]["top1"] == pytest.approx(float((predicted == test.labels.numpy()).mean()))
    predicted = longtail.load(run.path).predict(test.images).argmax(axis=1)
    assert results["last"]["top1"] == pytest.approx(float((predicted == test.labels.numpy()).mean()))
    val = load_npz(data).val
    assert val is not None
    for row, which in ((run.read_metrics()[-1], "last"), (run.read_metrics()[results["best"]["epoch"]], "best")):
        predicted = longtail.load(run.path, which=which).predict(val.images).argmax(axis=1)
        assert row["top1"] == pytest.approx(float((predicted == val.labels.numpy()).mean()))


def test_of_equally_good_epochs_the_first_is_the_best() -> None:
    state = RunState()
    improved = [state.improves(epoch, {"balanced_accuracy": score}) for epoch, score in enumerate((0.0, 0.5, 0.5, 0.4))]
    assert improved == [True, True, False, False]
    assert (state.best_epoch, state.best_numbers) == (1, {"balanced_accuracy": 0.5})


def test_what_is_kept_for_val_is_not_trained_on(tiny_npz: Path, tmp_path: Path) -> None:
    results = train(tiny_config("ce", tiny_npz, tmp_path / "run", data={"val": 1}))
    assert results["class_counts"] == [8, 5, 3, 1]
    assert results["best"]["selected_on"] == "val"
    assert results["image_passes"] == 2 * (21 - 4)


@pytest.mark.parametrize(("splits", "named"), [({"test": 0, "val": 2}, "val"), ({"test": 0}, "held-out")])
def test_what_is_reported_is_called_what_it_is(tmp_path: Path, splits: dict[str, int], named: str) -> None:
    data = write_npz(tmp_path / "data.npz", **splits)
    results = train(tiny_config("ce", data, tmp_path / "run"))
    assert results["evaluated_on"] == results["best"]["selected_on"] == named
    assert {row["evaluated_on"] for row in RunDir(tmp_path / "run").read_metrics()} == {named}


def test_a_tail_is_cut_by_the_imbalance(tmp_path: Path) -> None:
    data = write_npz(tmp_path / "data.npz", (16, 16, 16))
    results = train(tiny_config("ce", data, tmp_path / "run", data={"imbalance": 4}))
    assert results["class_counts"] == [16, 8, 4]
    assert results["imbalance"] == 4


# Refusals -------------------------------------------------------------------------------------------------------------


def test_the_size_that_the_refusal_of_wide_images_names_can_be_trained_on(tmp_path: Path) -> None:
    data = write_npz(tmp_path / "data.npz", shape=(8, 10, 3))
    with pytest.raises(DataError) as caught:
        train(tiny_config("ce", data, tmp_path / "run"))
    assert str(caught.value.hint).startswith("data.size=8 ")
    train(tiny_config("ce", data, tmp_path / "run", data={"size": 8}))
    assert longtail.load(tmp_path / "run").size == 8


def test_an_existing_run_is_refused_and_left_as_it_is(finished_run: Run) -> None:
    before = files_of(finished_run.path)
    with pytest.raises(ConfigError, match="exists already"):
        train(load_config(finished_run.path / "config.yaml"))
    assert files_of(finished_run.path) == before


@pytest.mark.parametrize("how", ["nothing", "resume", "overwrite"])
def test_a_folder_that_is_no_run_is_refused_and_left_as_it_is(tiny_npz: Path, tmp_path: Path, how: str) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match=r"not a run folder|exists already"):
        train(tiny_config("ce", tiny_npz, tmp_path / "thesis"), resume=how == "resume", overwrite=how == "overwrite")
    assert files_of(tmp_path / "thesis") == {"thesis.tex": b"years of work"}


def test_overwriting_starts_anew(tiny_npz: Path, tmp_path: Path) -> None:
    train(tiny_config("ce", tiny_npz, tmp_path / "run", optim={"epochs": 3}))
    (tmp_path / "run" / "notes.txt").write_text("of the old run")
    train(tiny_config("balanced-softmax", tiny_npz, tmp_path / "run"), overwrite=True)
    assert not (tmp_path / "run" / "notes.txt").exists()
    assert json.loads((tmp_path / "run" / "results.json").read_text())["method"] == "balanced-softmax"
    assert len(RunDir(tmp_path / "run").read_metrics()) == 2


def test_overwriting_where_nothing_is_starts(tiny_npz: Path, tmp_path: Path) -> None:
    train(tiny_config("ce", tiny_npz, tmp_path / "run"), overwrite=True)
    assert (tmp_path / "run" / "results.json").is_file()


def test_a_start_that_is_refused_does_not_overwrite(tiny_npz: Path, tmp_path: Path) -> None:
    train(tiny_config("ce", tiny_npz, tmp_path / "run"))
    before = files_of(tmp_path / "run")
    with pytest.raises(DataError):
        train(tiny_config("ce", tmp_path / "absent.npz", tmp_path / "run"), overwrite=True)
    assert files_of(tmp_path / "run") == before


def test_resuming_and_overwriting_exclude_each_other(finished_run: Run) -> None:
    before = files_of(finished_run.path)
    with pytest.raises(ConfigError, match="exclude each other"):
        train(load_config(finished_run.path / "config.yaml"), resume=True, overwrite=True)
    assert files_of(finished_run.path) == before


@pytest.mark.parametrize(
    ("arrays", "settings", "words"),
    [
        ({"shape": (8, 10, 3)}, {}, "8 x 10"),
        ({"counts": (9,)}, {}, "only one class"),
        ({"counts": (9, 0, 3)}, {}, "without training images"),
        ({"test_labels": np.full(12, 4)}, {}, "test_labels"),
        ({"train_labels": np.zeros(20, dtype=int)}, {}, "21 images but 20 labels"),
        ({}, {"data": {"imbalance": 1000}}, "without training images|Too few"),
        ({}, {"data": {"val": 2}}, "Too few images for validation"),
    ],
)
def test_data_that_cannot_be_trained_on_is_refused_before_anything_is_written(
    tmp_path: Path, arrays: dict[str, Any], settings: dict[str, Any], words: str
) -> None:
    data = write_npz(tmp_path / "data.npz", **arrays)
    with pytest.raises(DataError, match=words):
        train(tiny_config("concutmix", data, tmp_path / "runs" / "run", **settings))
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"run": {"device": "abacus"}}, "run.device=abacus"), ({"data": {"path": None}}, "needs data.path")],
)
def test_settings_that_cannot_be_had_are_refused_before_anything_is_written(
    tiny_npz: Path, tmp_path: Path, settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        train(tiny_config("ce", tiny_npz, tmp_path / "runs" / "run", **settings))
    assert not (tmp_path / "runs").exists()


def test_a_run_that_another_process_holds_is_refused(finished_run: Run, tmp_path: Path, tiny_npz: Path) -> None:
    config = tiny_config("ce", tiny_npz, tmp_path / "run")
    with pytest.raises(KilledError):
        train(config, listener=At(4, None))
    other = RunDir(tmp_path / "run")
    other.lock()
    for how in ("resume", "overwrite"):
        with pytest.raises(RunError, match="Another process"):
            train(config, resume=how == "resume", overwrite=how == "overwrite")
    other.unlock()
    train(config, resume=True)


# Faults ---------------------------------------------------------------------------------------------------------------


def test_a_loss_that_stays_not_finite_ends_the_run_and_names_step_rate_and_images(
    tiny_npz: Path, tmp_path: Path
) -> None:
    with pytest.raises(DivergedError) as caught:
        train(tiny_config("ce", tiny_npz, tmp_path / "run", optim={"lr": 1e30}))
    assert caught.value.exit_code == 5
    for words in ("loss became", "step ", "epoch 0", "1.25e+29", "training images"):
        assert words in caught.value.message
    assert "optim.lr" in str(caught.value.hint)
    assert RunDir(tmp_path / "run").description()["status"] == "diverged"


def test_a_late_divergence_leaves_the_last_checkpoint_good(
    tiny_npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rate = training.lr_at
    monkeypatch.setattr(training, "lr_at", lambda optim, step, per: 1e30 if step >= 4 else rate(optim, step, per))
    config = tiny_config("ce", tiny_npz, tmp_path / "run", run={"checkpoint_minutes": 1e-9})
    with pytest.raises(DivergedError):
        train(config)
    found = RunDir(tmp_path / "run").load_checkpoint()
    assert found is not None
    assert all(bool(torch.isfinite(value.float()).all()) for value in found.tensors.values())
    assert len(RunDir(tmp_path / "run").read_metrics()) == 1
    assert longtail.load(tmp_path / "run").predict(np.zeros((1, 8, 8, 3), np.uint8)).shape == (1, 4)


def test_weights_that_are_not_finite_are_never_saved(
    tiny_npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last step of a run poisons the weights, and no further loss shows it."""
    rate = training.lr_at
    monkeypatch.setattr(training, "lr_at", lambda optim, step, per: math.inf if step == 5 else rate(optim, step, per))
    with pytest.raises(DivergedError):
        train(tiny_config("ce", tiny_npz, tmp_path / "run"))
    found = RunDir(tmp_path / "run").load_checkpoint()
    assert found is not None
    assert found.step == 3
    assert not (tmp_path / "run" / "results.json").exists()


@pytest.mark.parametrize("fault", [MemoryError(), torch.OutOfMemoryError("x"), RuntimeError("can't allocate memory")])
def test_memory_that_runs_out_says_what_to_lower(
    tiny_npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    def fail(*given: Any) -> None:
        raise fault

    monkeypatch.setattr(updating, "keyed_global_rng", fail)
    with pytest.raises(ResourceError, match="Out of memory") as caught:
        train(tiny_config("ce", tiny_npz, tmp_path / "run"))
    assert caught.value.exit_code == 6
    assert "optim.batch" in str(caught.value.hint)


def test_another_error_in_a_step_is_not_taken_for_memory(
    tiny_npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*given: Any) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(updating, "keyed_global_rng", fail)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        train(tiny_config("ce", tiny_npz, tmp_path / "run"))


@pytest.mark.parametrize(
    ("asked", "compiler", "recorded", "long", "expected"),
    [
        ("auto", "g++", None, True, True),
        ("auto", "g++", None, False, False),
        ("auto", None, None, True, False),
        ("auto", "g++", True, False, True),
        ("auto", "g++", False, True, False),
        ("auto", None, True, True, False),
        (True, "g++", None, False, True),
        (False, "g++", None, True, False),
        (True, "g++", False, False, True),
    ],
)
def test_the_network_is_compiled_where_it_pays_and_as_it_was_before_a_resume(
    monkeypatch: pytest.MonkeyPatch, asked: Any, compiler: str | None, recorded: bool | None, long: bool, expected: bool
) -> None:
    monkeypatch.setattr(starting, "cpu_compiler", lambda: compiler)
    monkeypatch.setattr(torch, "compile", lambda function, **settings: function)
    config = load_config("scenes/ce", {"run": {"compile": asked}})
    described = {} if recorded is None else {"compiled": recorded}
    passes, watched = starting.COMPILE_PAYS_FROM - (not long), Recorder()
    assert starting.should_compile(config, torch.device("cpu"), passes, described, watched) == expected
    assert any("no C++ compiler" in message for message in watched.messages) == (compiler is None)
    assert any("not bit-exact" in message for message in watched.messages) == (recorded is True and compiler is None)


def test_a_compiler_that_fails_is_found_before_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*given: Any, **settings: Any) -> None:
        raise RuntimeError("Python.h: No such file\nand a long tail")

    monkeypatch.setattr(torch, "compile", fail)
    monkeypatch.setattr(starting, "cpu_compiler", lambda: "g++")
    watched, many = Recorder(), starting.COMPILE_PAYS_FROM
    assert not starting.should_compile(load_config("scenes/ce"), torch.device("cpu"), many, {}, watched)
    assert watched.messages == ["The network is not compiled: RuntimeError: Python.h: No such file"]
    with pytest.raises(ConfigError, match=r"Python\.h"):
        starting.should_compile(load_config("scenes/ce", ["run.compile=true"]), torch.device("cpu"), 1, {}, Recorder())


def test_compiling_without_a_compiler_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(starting, "cpu_compiler", lambda: None)
    with pytest.raises(ConfigError, match=r"no C\+\+ compiler"):
        starting.should_compile(load_config("scenes/ce", ["run.compile=true"]), torch.device("cpu"), 1, {}, Recorder())


def test_signals_are_given_back_after_a_run(tiny_npz: Path, tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    train(tiny_config("ce", tiny_npz, tmp_path / "run"))
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


# Starting from weights ------------------------------------------------------------------------------------------------


def weights(path: Path) -> dict[str, bytes]:
    checkpoint = RunDir(path).load_checkpoint()
    assert checkpoint is not None
    return {name: hashlib.sha256(v.numpy().tobytes()).digest() for name, v in checkpoint.tensors.items()}


def test_a_run_starts_from_the_weights_of_another(finished_run: Run, tiny_npz: Path, tmp_path: Path) -> None:
    watched = Recorder()
    own = {"init": str(finished_run.path), "optim": {"lr": 1e-12, "momentum": 0, "weight_decay": 0, "epochs": 1}}
    train(tiny_config("ce", tiny_npz, tmp_path / "run", **own), listener=watched)
    assert any("Started from" in message and "tensors fit" in message for message in watched.messages)
    trained, started = weights(tmp_path / "run"), weights(finished_run.path)
    name = "model/network.backbone.layer1.0.conv1.weight"
    assert trained[name] == started[name]


def test_a_run_starts_from_a_file_of_weights(finished_run: Run, tiny_npz: Path, tmp_path: Path) -> None:
    own = {"init": str(finished_run.path / "checkpoints" / "best.safetensors")}
    train(tiny_config("concutmix", tiny_npz, tmp_path / "file", **own))
    train(tiny_config("concutmix", tiny_npz, tmp_path / "scratch"))
    assert weights(tmp_path / "file") != weights(tmp_path / "scratch")


@pytest.mark.parametrize("kind", ["absent", "text", "empty folder", "pickle", "other tensors"])
def test_weights_that_cannot_be_used_are_refused_before_anything_is_written(
    tiny_npz: Path, tmp_path: Path, kind: str
) -> None:
    source = tmp_path / "source"
    if kind == "text":
        source.write_text("no weights")
    elif kind == "empty folder":
        source.mkdir()
    elif kind == "pickle":
        torch.save({"network.classifier.weight": torch.zeros(4, 64)}, source)
    elif kind == "other tensors":
        save_file({"network.classifier.weight": torch.zeros(5, 64)}, source)
    with pytest.raises(RunError, match="source"):
        train(tiny_config("ce", tiny_npz, tmp_path / "runs" / "run", init=str(source)))
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("method", "own"),
    [
        ("ce", {}),
        ("bcl", {}),
        ("concutmix", {"method": {"contrast_start": 2, "contrast_stop": 4}}),
        ("bcl", {"method": {"contrast_stop": 1}, "optim": {"sam": 0.05, "sam_start": 3}}),
    ],
)
def test_passes_are_planned_as_they_are_made(
    method: str, own: dict[str, dict[str, Any]], tiny_npz: Path, tmp_path: Path
) -> None:
    optim = {"epochs": 5, "batch": 8, "lr": 0.05} | own.get("optim", {})
    config = tiny_config(method, tiny_npz, tmp_path / "run", **own | {"optim": optim})
    made = set_up(config, RunDir(tmp_path / "no"), {}, source=None, saliency=None, command=None, listener=Recorder())
    planned = starting.planned_passes(config, made.method, made.loader)
    assert planned == train(config)["image_passes"]
