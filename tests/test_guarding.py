"""Values that are not finite: a step is skipped, three take the run back, and what stays ends it with a report."""

from __future__ import annotations

import json
import math
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import longtail.training.loop as training
from longtail.config import Config
from longtail.errors import ConfigError, DivergedError, StoppedError
from longtail.methods import METHODS
from longtail.runs.rundir import Checkpoint, RunDir
from longtail.training.faults import VARIABLE, Fault, planned_faults
from longtail.training.guarding import IN_A_ROW, MOST_RETURNS
from longtail.training.loop import train
from tiny import COUNTS, At, KilledError, Recorder, digest, outcome, tiny_config, write_npz

EPOCHS = 4
"""Of three steps each."""

OFTEN: dict[str, Any] = {"run": {"checkpoint_minutes": 1e-9}}


def config_of(method: str, archive: Path, folder: Path, /, **own: Any) -> Config:
    values: dict[str, Any] = {"optim": {"epochs": EPOCHS}} | OFTEN | own
    values["optim"] = {"epochs": EPOCHS} | values["optim"]
    return tiny_config(method, archive, folder, **values)


def last_of(folder: Path) -> Checkpoint:
    found = RunDir(folder).load_checkpoint()
    assert found is not None
    return found


def results_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return found


class Watched(Recorder):
    """Keeps the checkpoint after every step; the loop writes it before the next one."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder, self.kept = folder, dict[int, Checkpoint]()

    def stepped(self, step: int, logs: Mapping[str, float], images_per_second: float) -> None:
        super().stepped(step, logs, images_per_second)
        if RunDir(self.folder).has_checkpoint:
            found = last_of(self.folder)
            self.kept[found.step] = found


def tensors_of(checkpoint: Checkpoint) -> dict[str, Any]:
    return {name: value for name, value in digest(checkpoint).items() if name != "step"}


# Skipping -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["images", "loss", "gradient"])
@pytest.mark.parametrize("value", ["nan", "inf"])
def test_a_single_value_that_is_not_finite_skips_its_step_and_changes_nothing_else(
    tiny_npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str, place: str
) -> None:
    """Weights, momentum and batch-norm's statistics after the step are bit for bit those before it."""
    monkeypatch.setenv(VARIABLE, f"{value}-{place}@4")
    watched = Watched(tmp_path / "run")
    train(config_of("ce", tiny_npz, tmp_path / "run"), listener=watched)
    assert tensors_of(watched.kept[5]) == tensors_of(watched.kept[4])
    assert tensors_of(watched.kept[4]) != tensors_of(watched.kept[3])
    assert [math.isnan(logs["loss"]) for logs in watched.logs] == [step == 4 for step in range(3 * EPOCHS)]
    said = [message for message in watched.messages if "Skipped a step" in message]
    assert len(said) == 1
    assert "in step 4 (epoch 1, learning rate" in said[0]
    results = results_of(tmp_path / "run")
    assert (results["skipped_steps"], results["rate_scale"]) == (1, 1.0)
    assert results["image_passes"] == EPOCHS * sum(COUNTS)
    assert all(math.isfinite(row["loss"]) for row in RunDir(tmp_path / "run").read_metrics())


@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_method_survives_a_poisoned_forward_pass(
    tiny_npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """Queues, key encoders and running statistics are put back as well."""
    watched = Watched(tmp_path / "run")
    monkeypatch.setenv(VARIABLE, "nan-images@4")
    train(config_of(method, tiny_npz, tmp_path / "run", optim={"epochs": 2}), listener=watched)
    assert tensors_of(watched.kept[5]) == tensors_of(watched.kept[4])
    assert results_of(tmp_path / "run")["skipped_steps"] == 1


@pytest.mark.parametrize("own", [{"ema": 0.5}, {"sam": 0.05}, {"clip": 1.0}, {"accumulate": 2}])
def test_training_options_skip_a_step_whole(
    tiny_npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: dict[str, Any]
) -> None:
    watched = Watched(tmp_path / "run")
    monkeypatch.setenv(VARIABLE, "nan-images@4")
    train(config_of("bcl", tiny_npz, tmp_path / "run", optim={"epochs": 2, **own}), listener=watched)
    assert tensors_of(watched.kept[5]) == tensors_of(watched.kept[4])
    assert results_of(tmp_path / "run")["skipped_steps"] == 1


# Going back -----------------------------------------------------------------------------------------------------------


def test_a_first_step_that_is_skipped_leaves_paco_the_key_encoder_that_init_gave(
    tiny_npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(tiny_config("ce", tiny_npz, tmp_path / "first"))
    monkeypatch.setenv(VARIABLE, "nan-loss@0")
    own = {"init": str(tmp_path / "first"), "method": {"momentum": 1.0}, "seed": 1}
    train(tiny_config("paco", tiny_npz, tmp_path / "second", **own))
    given, kept = last_of(tmp_path / "first").tensors, last_of(tmp_path / "second").tensors
    name = "backbone.layer1.0.conv1.weight"
    assert torch.equal(kept[f"model/key_encoder.{name}"], given[f"model/network.{name}"])


@pytest.mark.parametrize("first", [0, 3])
def test_three_in_a_row_go_back_to_the_epochs_beginning_at_half_the_rate(
    tiny_npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: int
) -> None:
    """The whole run then is the one that had half the rate from there."""
    monkeypatch.setenv(VARIABLE, f"nan-loss@{first}-{first + IN_A_ROW - 1}")
    watched = Recorder()
    train(config_of("paco", tiny_npz, tmp_path / "run", optim={"ema": 0.5}), listener=watched)
    assert watched.steps == [*range(1, first + 4), *range(first + 1, 3 * EPOCHS + 1)]
    assert any(
        f"Back at step {first}," in message and "0.5 of the learning rate" in message for message in watched.messages
    )
    results = results_of(tmp_path / "run")
    assert (results["skipped_steps"], results["rate_scale"]) == (IN_A_ROW, 0.5)
    monkeypatch.delenv(VARIABLE)
    rate = training.lr_at
    halved = lambda optim, step, per: rate(optim, step, per) * (0.5 if step >= first else 1.0)  # noqa: E731
    monkeypatch.setattr(training, "lr_at", halved)
    train(config_of("paco", tiny_npz, tmp_path / "halved", optim={"ema": 0.5}))
    assert tensors_of(last_of(tmp_path / "run")) == tensors_of(last_of(tmp_path / "halved"))
    rows, expected = (RunDir(tmp_path / name).read_metrics() for name in ("run", "halved"))
    assert [row["lr"] for row in rows] == [row["lr"] for row in expected]
    assert [row["loss"] for row in rows] == [row["loss"] for row in expected]


def test_going_back_needs_neither_a_checkpoint_of_every_step_nor_its_time(
    tiny_npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "nan-images@3-5,inf-loss@9-11x2")
    train(config_of("bcl", tiny_npz, tmp_path / "often"))
    train(config_of("bcl", tiny_npz, tmp_path / "seldom", run={"checkpoint_minutes": 5.0}))
    often, seldom = outcome(tmp_path / "often"), outcome(tmp_path / "seldom")
    assert often == seldom
    assert often["results"]["rate_scale"] == 0.25


def test_a_step_that_is_bad_over_an_epochs_end_is_begun_anew_by_a_method_that_had_begun_it(
    tiny_npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run goes back to the very step that failed; PaCo keeps what it began a step with."""
    monkeypatch.setenv(VARIABLE, "nan-images@1-3")
    train(config_of("paco", tiny_npz, tmp_path / "run"))
    monkeypatch.setenv(VARIABLE, "nan-images@1-2")
    rate = training.lr_at
    monkeypatch.setattr(training, "lr_at", lambda *given: rate(*given) * (0.5 if given[1] >= 3 else 1.0))
    train(config_of("paco", tiny_npz, tmp_path / "halved"))
    assert tensors_of(last_of(tmp_path / "run")) == tensors_of(last_of(tmp_path / "halved"))


@pytest.mark.parametrize("last", [2, 5])
def test_weights_that_are_not_finite_after_an_epochs_last_step_take_the_run_back(
    tiny_npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: int
) -> None:
    """No further loss of the epoch would show them, and the heads are not in the evaluation."""
    rate, calls = training.lr_at, 0

    def once(optim: Any, step: int, per: int) -> float:
        nonlocal calls
        calls += step == last
        return math.inf if step == last and calls == 1 else rate(optim, step, per)

    monkeypatch.setattr(training, "lr_at", once)
    watched = Recorder()
    train(config_of("bcl", tiny_npz, tmp_path / "run"), listener=watched)
    back = f"weights are no longer finite. Back at step {last - 2}"
    assert any(back in message for message in watched.messages)
    assert results_of(tmp_path / "run")["rate_scale"] == 0.5
    monkeypatch.setattr(training, "lr_at", lambda *given: rate(*given) * (0.5 if given[1] >= last - 2 else 1.0))
    train(config_of("bcl", tiny_npz, tmp_path / "halved"))
    assert tensors_of(last_of(tmp_path / "run")) == tensors_of(last_of(tmp_path / "halved"))


def test_the_checkpoint_to_go_back_to_is_kept_while_newer_ones_come_and_go(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    run.create()
    for step, kept in ((3, 0), (6, 3), (7, 6), (8, 6), (9, 6), (10, 9), (11, 9)):
        run.save_checkpoint(Checkpoint(step, {"weight": torch.ones(1)}, {}), kept)
        steps = sorted(int(path.stem.removeprefix("step-")) for path in run.checkpoints.glob("*.json"))
        assert steps == {3: [3], 6: [3, 6], 7: [6, 7], 8: [6, 8], 9: [6, 9], 10: [9, 10], 11: [9, 11]}[step]


# Ending ---------------------------------------------------------------------------------------------------------------


def test_what_stays_not_finite_ends_the_run_with_a_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = write_npz(tmp_path / "data.npz")
    monkeypatch.setenv(VARIABLE, "nan-gradient@4-99x99")
    watched = Recorder()
    with pytest.raises(DivergedError) as caught:
        train(config_of("ce", archive, tmp_path / "run"), listener=watched)
    assert caught.value.exit_code == 5
    assert "norm of the gradients became" in caught.value.message
    assert "divergence.json" in caught.value.message
    assert RunDir(tmp_path / "run").description()["status"] == "diverged"
    assert last_of(tmp_path / "run").state["rate_scale"] == 0.5**MOST_RETURNS
    report = json.loads((tmp_path / "run" / "divergence.json").read_text())
    assert (report["step"], report["epoch"], report["returns"]) == (8, 2, MOST_RETURNS)
    assert report["skipped_steps"] == IN_A_ROW * (MOST_RETURNS + 1)
    assert report["gradient_norm"] == "nan"
    assert report["weight_norm"] > 0
    assert math.isfinite(report["loss"])
    assert report["lr"] == pytest.approx(0.05 * 0.5**MOST_RETURNS, rel=0.5)
    assert len(report["ids"]) == len(set(report["ids"])) == 5, "the last batch of an epoch"
    assert set(report["ids"]) <= set(range(sum(COUNTS)))


def test_a_run_that_diverged_ends_the_same_when_it_is_resumed(
    tiny_npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "inf-loss@7-99x99")
    said = []
    for resume in (False, True):
        with pytest.raises(DivergedError) as caught:
            train(config_of("ce", tiny_npz, tmp_path / "run"), resume=resume)
        said.append(caught.value.message)
    assert said[0] == said[1]


# Resuming -------------------------------------------------------------------------------------------------------------


FAULTY = "nan-images@1,nan-loss@3-5,inf-gradient@10x2"
"""A skip in the first epoch, a return to the beginning of the second, a skip in the last."""

PASSES = [*range(1, 7), *range(4, 3 * EPOCHS + 1)]
"""The steps that are taken: after the sixth, the run goes back to the third."""


@pytest.fixture(scope="module")
def unbroken(tiny_npz: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("unbroken") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, FAULTY)
        train(config_of("paco", tiny_npz, out))
    return outcome(out)


class AtCall(At):
    """Does it at the n-th call: step numbers come twice where a run goes back."""

    def __init__(self, call: int, number: int | None) -> None:
        super().__init__(call, number)
        self.calls = 0

    def stepped(self, step: int, logs: Mapping[str, float], images_per_second: float) -> None:
        self.calls += 1
        super().stepped(self.calls, logs, images_per_second)


EVERY_CALL = range(1, len(PASSES) + 1)


@pytest.mark.parametrize(
    ("number", "calls"),
    [
        (signal.SIGTERM, (2, 5, 7)),
        (None, (4, 7)),
        pytest.param(signal.SIGTERM, EVERY_CALL, marks=pytest.mark.slow),
        pytest.param(None, EVERY_CALL, marks=pytest.mark.slow),
    ],
)
def test_a_run_broken_after_any_step_around_a_skip_and_a_return_ends_bit_for_bit_the_same(
    tiny_npz: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    unbroken: dict[str, Any],
    number: int | None,
    calls: Sequence[int],
) -> None:
    monkeypatch.setenv(VARIABLE, FAULTY)
    assert unbroken["results"]["skipped_steps"] == 5
    for call in calls:
        folder = tmp_path / f"run-{call}"
        config = config_of("paco", tiny_npz, folder, run={"checkpoint_minutes": 1e-9 if call % 2 else 5.0})
        with pytest.raises((StoppedError, KilledError)):
            train(config, listener=AtCall(call, number))
        train(config, resume=True)
        assert outcome(folder) == unbroken, call


def test_a_run_killed_while_it_goes_back_ends_the_same(
    tiny_npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unbroken: dict[str, Any]
) -> None:
    monkeypatch.setenv(VARIABLE, FAULTY)
    real = RunDir._save
    for after in (False, True):
        config = config_of("paco", tiny_npz, tmp_path / f"run-{after}")

        def dying(run: RunDir, name: str, checkpoint: Checkpoint, _after: bool = after) -> None:
            going_back = checkpoint.state.get("returns") == 1
            if going_back and not _after:
                raise KilledError
            real(run, name, checkpoint)
            if going_back:
                raise KilledError

        with monkeypatch.context() as patch:
            patch.setattr(RunDir, "_save", dying)
            with pytest.raises(KilledError):
                train(config)
        train(config, resume=True)
        assert outcome(tmp_path / f"run-{after}") == unbroken


def test_a_checkpoint_from_before_skipped_steps_were_counted_can_be_gone_on_from(
    tiny_npz: Path, tmp_path: Path
) -> None:
    config = tiny_config("ce", tiny_npz, tmp_path / "run")
    train(tiny_config("ce", tiny_npz, tmp_path / "whole"))
    with pytest.raises(StoppedError):
        train(config, listener=At(4))
    run = RunDir(tmp_path / "run")
    found = last_of(run.path)
    for name in ("skipped", "in_a_row", "returns", "returns_here", "rate_scale"):
        del found.state[name]
    run.save_checkpoint(found)
    train(config, resume=True)
    assert outcome(run.path) == outcome(tmp_path / "whole")


# The faults themselves ------------------------------------------------------------------------------------------------


def test_faults_are_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert planned_faults() == ()
    monkeypatch.setenv(VARIABLE, "nan-loss@12, inf-gradient@3-5x2")
    one, other = planned_faults()
    assert (one.place, one.first, one.last, one.times) == ("loss", 12, 12, 1)
    assert math.isnan(one.value)
    assert other == Fault(math.inf, "gradient", 3, 5, 2)
    struck = [(step, returns) for step in range(8) for returns in range(4) if other.strikes(step, returns)]
    assert struck == [(step, returns) for step in (3, 4, 5) for returns in (0, 1)]


@pytest.mark.parametrize("text", ["nan", "nan-loss", "nan-loss@x", "zero-loss@1", "nan-weights@1", "nan-loss@1,"])
def test_a_fault_that_is_none_is_refused_before_anything_is_written(
    tiny_npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv(VARIABLE, text)
    with pytest.raises(ConfigError, match="is no fault"):
        train(tiny_config("ce", tiny_npz, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_run_with_faults_says_so(tiny_npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "nan-loss@1")
    train(tiny_config("ce", tiny_npz, tmp_path / "run"))
    assert RunDir(tmp_path / "run").description()["faults"] == ["nan-loss@1-1x1"]
