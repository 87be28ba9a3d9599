"""Stopped or killed at any moment and resumed, a run ends bit for bit where the unbroken run ends."""

import errno
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import longtail.evaluation.evaluate as evaluation
import longtail.evaluation.scoring as scoring
import longtail.training.loop as training
from amounts import NIGHTLY
from longtail.config import Config
from longtail.data.batch import Progress
from longtail.errors import ConfigError, ResourceError, RunError, StoppedError
from longtail.files import read_json
from longtail.layers import merge
from longtail.methods import METHODS
from longtail.methods.smcl import SMCL
from longtail.rng import numpy_generator
from longtail.runs.rundir import RunDir
from longtail.training.loop import train
from longtail.training.state import build_method
from processes import Command, Launcher, wait_until
from tiny import COUNTS, SIZE, STEPS, At, KilledError, Recorder, assignments, files_of, outcome, tiny_config, write_npz

MASKED: dict[str, tuple[str, dict[str, Any]]] = {
    "smcl, masked": ("smcl", {"method": {"mask_start": 0, "mask_probability": 0.5}}),
    "smcl, masked by grad-cam": (
        "smcl",
        {"method": {"mask_start": 0, "mask_probability": 0.5, "detector": "grad-cam", "fill": "noise"}},
    ),
    "smcl-concutmix, by gradient": ("smcl-concutmix", {"method": {"detector": "input-gradient"}}),
}
"""Both kinds of steps, on both sides of the fourth."""

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in METHODS},
    "ce, mixup": ("ce", {"method": {"mixing": "mixup", "partner_sampler": "reversed"}}),
    "balanced-softmax, cutmix": ("balanced-softmax", {"method": {"mixing": "cutmix"}}),
    "supervised": ("ce", {"method": {"contrast": "supervised", "hidden": 16, "dim": 8}}),
    "onecycle": ("ce", {"optim": {"schedule": "onecycle", "nesterov": True}}),
    "cosine classifier": ("concutmix", {"model": {"classifier": "cosine"}}),
    **MASKED,
}
"""Every method, and points of the composed space that have no name of their own."""

assert all(VARIANTS[name] == (name, {}) for name in METHODS), "no point has taken the name of a method"


def config_of(variant: str, archive: Path, folder: Path, /, **own: Any) -> Config:
    method, settings = VARIANTS[variant]
    return tiny_config(method, archive, folder, **merge(settings, own))


@pytest.fixture(scope="session")
def unbroken(tiny_npz: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Any]]:
    """What an unbroken run of a variant ends with; each is run once."""
    known: dict[str, dict[str, Any]] = {}

    def ends(variant: str) -> dict[str, Any]:
        if variant not in known:
            out = tmp_path_factory.mktemp("unbroken") / "run"
            train(config_of(variant, tiny_npz, out))
            known[variant] = outcome(out)
        return known[variant]

    return ends


Unbroken = Callable[[str], dict[str, Any]]


# Stopped --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("step", "workers"), [(1, 0), (2, 2), (3, 0), (3, 2), (4, 2), (5, 0), (6, 2)])
def test_a_run_stopped_after_any_step_goes_on_as_if_nothing_had_been(
    tiny_npz: Path, tmp_path: Path, unbroken: Unbroken, step: int, workers: int
) -> None:
    config = config_of("concutmix", tiny_npz, tmp_path / "run", run={"workers": workers})
    with pytest.raises(StoppedError):
        train(config, listener=At(step))
    stopped = RunDir(tmp_path / "run").load_checkpoint()
    assert stopped is not None
    assert stopped.step == step
    watched = Recorder()
    train(config, resume=True, listener=watched)
    assert watched.first_step == step
    assert watched.steps == list(range(step + 1, STEPS + 1))
    assert outcome(tmp_path / "run") == unbroken("concutmix")


@pytest.mark.parametrize("variant", [name for name in VARIANTS if name != "concutmix"])
def test_every_method_goes_on_in_the_middle_of_an_epoch(
    tiny_npz: Path, tmp_path: Path, unbroken: Unbroken, variant: str
) -> None:
    config = config_of(variant, tiny_npz, tmp_path / "run", run={"workers": 2})
    with pytest.raises(StoppedError):
        train(config, listener=At(4))
    train(config, resume=True)
    assert outcome(tmp_path / "run") == unbroken(variant)


def test_a_run_stopped_after_every_single_step_ends_the_same(
    tiny_npz: Path, tmp_path: Path, unbroken: Unbroken
) -> None:
    config = config_of("bcl", tiny_npz, tmp_path / "run")
    for step in range(1, STEPS + 1):
        with pytest.raises(StoppedError):
            train(config, resume=True, listener=At(step))
    train(config, resume=True)
    assert outcome(tmp_path / "run") == unbroken("bcl")


@pytest.mark.parametrize(("number", "code", "word"), [(signal.SIGTERM, 75, "SIGTERM"), (signal.SIGINT, 130, "Ctrl-C")])
def test_a_stop_says_by_what_and_how_to_go_on(
    tiny_npz: Path, tmp_path: Path, number: signal.Signals, code: int, word: str
) -> None:
    with pytest.raises(StoppedError) as caught:
        train(config_of("ce", tiny_npz, tmp_path / "run"), listener=At(2, number))
    assert caught.value.exit_code == code
    assert caught.value.message.startswith(f"Stopped by {word};")
    assert str(tmp_path / "run") in caught.value.message
    assert "--resume" in str(caught.value.hint)
    assert RunDir(tmp_path / "run").description()["status"] == "stopped"


def test_a_second_ctrl_c_does_not_wait(tiny_npz: Path, tmp_path: Path, unbroken: Unbroken) -> None:
    class Twice(At):
        def stepped(self, step: int, logs: Mapping[str, float], images_per_second: float) -> None:
            super().stepped(step, logs, images_per_second)
            super().stepped(step, logs, images_per_second)

    config = config_of("ce", tiny_npz, tmp_path / "run")
    with pytest.raises(SystemExit) as caught:
        train(config, listener=Twice(4, signal.SIGINT))
    assert caught.value.code == 130
    train(config, resume=True)
    assert outcome(tmp_path / "run") == unbroken("ce")


class StopIn:
    """Sends SIGTERM in the n-th evaluation, after ``batches`` of its batches."""

    def __init__(self, number: int, batches: int) -> None:
        self.number, self.batches, self.evaluations = number, batches, 0
        self.real = evaluation.evaluate

    def __call__(self, *given: Any) -> Any:
        *others, stopped = given
        self.evaluations += 1
        looked = 0

        def look() -> bool:
            nonlocal looked
            looked += 1
            if self.evaluations == self.number and looked == self.batches + 1:
                signal.raise_signal(signal.SIGTERM)
            return stopped()

        return self.real(*others, look)


@pytest.mark.parametrize("batches", [0, 1])
@pytest.mark.parametrize("number", [1, 2])
def test_a_stop_within_an_evaluation_throws_away_that_evaluation_only(
    tiny_npz: Path, tmp_path: Path, unbroken: Unbroken, monkeypatch: pytest.MonkeyPatch, number: int, batches: int
) -> None:
    config = config_of("concutmix", tiny_npz, tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(scoring, "EVALUATION_BATCH", 6)
        patch.setattr(training, "evaluate", StopIn(number, batches))
        with pytest.raises(StoppedError):
            train(config)
    stopped = RunDir(tmp_path / "run").load_checkpoint()
    assert stopped is not None
    assert (stopped.step, stopped.state["epochs_done"]) == (3 * number, number - 1)
    assert len(RunDir(tmp_path / "run").read_metrics()) == number - 1
    train(config, resume=True)
    assert outcome(tmp_path / "run") == unbroken("concutmix")


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_a_stop_in_the_evaluations_of_a_run_that_selects_on_val_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Two on val, then the last and the best weights on test: a stop in the fourth must not save the best as last."""
    data = write_npz(tmp_path / "data.npz", val=2)
    own = {"optim": {"lr": 0.5}}
    train(tiny_config("ce", data, tmp_path / "whole", **own))
    config = tiny_config("ce", data, tmp_path / "run", **own)
    with monkeypatch.context() as patch:
        patch.setattr(training, "evaluate", StopIn(number, 0))
        with pytest.raises(StoppedError):
            train(config)
    train(config, resume=True)
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")


# Killed ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "minutes"), [(2, 5.0), (4, 5.0), (6, 5.0), *((step, 1e-9) for step in range(1, STEPS + 1))]
)
def test_a_run_killed_after_any_step_goes_on_from_its_last_checkpoint(
    tiny_npz: Path, tmp_path: Path, unbroken: Unbroken, step: int, minutes: float
) -> None:
    config = config_of("concutmix", tiny_npz, tmp_path / "run", run={"checkpoint_minutes": minutes})
    with pytest.raises(KilledError):
        train(config, listener=At(step, None))
    watched = Recorder()
    train(config, resume=True, listener=watched)
    assert watched.first_step == (step - 1 if minutes < 1 else 3 * ((step - 1) // 3))
    assert outcome(tmp_path / "run") == unbroken("concutmix")


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("variant", [*MASKED, "smcl-concutmix"])
def test_a_run_with_masks_killed_in_the_middle_of_an_epoch_ends_the_same(
    tiny_npz: Path, tmp_path: Path, unbroken: Unbroken, variant: str, workers: int
) -> None:
    own = {"workers": workers, "checkpoint_minutes": 1e-9}
    config = config_of(variant, tiny_npz, tmp_path / "run", run=own)
    method = build_method(config, COUNTS, SIZE)
    wants = method.masks if isinstance(method, SMCL) else method.needs_partner
    kinds = [wants(Progress(step, step // 3, 2, 0)) for step in range(STEPS)]
    with pytest.raises(KilledError):
        train(config, listener=At(5, None))
    watched = Recorder()
    train(config, resume=True, listener=watched)
    assert watched.first_step == 4
    assert set(kinds[:4]) == set(kinds[4:]) == {True, False}
    assert outcome(tmp_path / "run") == unbroken(variant)


@pytest.mark.parametrize(
    "what", ["append_metrics", "save_best", "save_checkpoint", "update_description", "write_config"]
)
@pytest.mark.parametrize("after", [False, True])
def test_a_run_killed_around_anything_it_writes_ends_the_same(
    tiny_npz: Path, tmp_path: Path, unbroken: Unbroken, monkeypatch: pytest.MonkeyPatch, what: str, after: bool
) -> None:
    config = config_of("ce", tiny_npz, tmp_path / "run")
    real = getattr(RunDir, what)
    kills = 0
    for number in range(1, 6):
        calls = 0

        def dying(*given: Any, _number: int = number, **named: Any) -> None:
            nonlocal calls
            calls += 1
            if calls == _number and not after:
                raise KilledError
            real(*given, **named)
            if calls == _number:
                raise KilledError

        with monkeypatch.context() as patch:
            patch.setattr(RunDir, what, dying)
            try:
                train(config, resume=True)
            except KilledError:
                kills += 1
                continue
        break
    train(config, resume=True)
    assert kills > 0
    assert outcome(tmp_path / "run") == unbroken("ce")


@pytest.mark.parametrize("what", ["write_per_class", "write_predictions", "write_json"])
def test_a_run_killed_while_it_writes_its_results_ends_the_same(
    tiny_npz: Path, tmp_path: Path, unbroken: Unbroken, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    def die(*given: Any) -> None:
        raise KilledError

    config = config_of("ce", tiny_npz, tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(f"longtail.training.description.{what}", die)
        with pytest.raises(KilledError):
            train(config)
    train(config, resume=True)
    assert outcome(tmp_path / "run") == unbroken("ce")


def test_a_full_disk_ends_the_run_and_leaves_it_resumable(
    tiny_npz: Path, tmp_path: Path, unbroken: Unbroken, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = os.fsync, 0

    def full(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls > 25:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    config = config_of("ce", tiny_npz, tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(ResourceError, match="No space left"):
            train(config)
    train(config, resume=True)
    assert outcome(tmp_path / "run") == unbroken("ce")
    assert not [name for name in files_of(tmp_path / "run") if name.endswith(".tmp")]


# Damaged --------------------------------------------------------------------------------------------------------------


def stopped_run(config: Config, folder: Path) -> RunDir:
    """A run stopped after step 5, with checkpoints of steps 3 and 5."""
    with pytest.raises(StoppedError):
        train(config, listener=At(5))
    run = RunDir(folder)
    assert {path.stem for path in run.checkpoints.glob("step-*.json")} == {"step-3", "step-5"}
    return run


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "gone"])
def test_a_damaged_checkpoint_is_passed_over_said_and_made_good(
    tiny_npz: Path, tmp_path: Path, unbroken: Unbroken, damage: str
) -> None:
    config = config_of("concutmix", tiny_npz, tmp_path / "run")
    run = stopped_run(config, tmp_path / "run")
    path = run.checkpoints / "step-5.safetensors"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes({"flip": bytes(content), "cut": bytes(content[:-1]), "empty": b""}[damage])
    watched = Recorder()
    train(config, resume=True, listener=watched)
    assert watched.first_step == 3
    assert any("step-5" in message and "passed over" in message for message in watched.messages)
    assert outcome(tmp_path / "run") == unbroken("concutmix")


def test_without_a_good_checkpoint_resuming_is_refused_and_nothing_is_lost(tiny_npz: Path, tmp_path: Path) -> None:
    config = config_of("ce", tiny_npz, tmp_path / "run")
    run = stopped_run(config, tmp_path / "run")
    for path in run.checkpoints.glob("step-*.safetensors"):
        path.write_bytes(path.read_bytes()[:-1])
    before = files_of(run.path)
    with pytest.raises(RunError, match="No checkpoint can be read") as caught:
        train(config, resume=True)
    assert caught.value.exit_code == 4
    assert "step-3.safetensors" in caught.value.message
    assert "step-5.safetensors" in caught.value.message
    assert files_of(run.path) == before


def test_a_checkpoint_of_another_model_is_refused(tiny_npz: Path, tmp_path: Path) -> None:
    config = config_of("ce", tiny_npz, tmp_path / "run")
    run = stopped_run(config, tmp_path / "run")
    other = stopped_run(config_of("bcl", tiny_npz, tmp_path / "other"), tmp_path / "other")
    for path in other.checkpoints.glob("step-*"):
        (run.checkpoints / path.name).write_bytes(path.read_bytes())
    with pytest.raises(RunError, match="another model"):
        train(config, resume=True)


# What may be resumed, and with what -----------------------------------------------------------------------------------


def test_resuming_with_other_settings_is_refused_by_their_names(tiny_npz: Path, tmp_path: Path) -> None:
    run = stopped_run(config_of("concutmix", tiny_npz, tmp_path / "run"), tmp_path / "run")
    before = files_of(run.path)
    other = config_of("concutmix", tiny_npz, tmp_path / "run", optim={"lr": 0.1}, seed=4, method={"tau": 0.5})
    with pytest.raises(ConfigError) as caught:
        train(other, resume=True)
    assert caught.value.exit_code == 2
    for key in ("seed", "optim.lr", "method.tau"):
        assert key in caught.value.message
    assert "optim.epochs" not in caught.value.message
    with pytest.raises(ConfigError, match=r"method\.name"):
        train(config_of("ce", tiny_npz, tmp_path / "run"), resume=True)
    assert files_of(run.path) == before


def test_resuming_on_other_images_is_refused(tmp_path: Path) -> None:
    data = write_npz(tmp_path / "data.npz")
    config = config_of("ce", data, tmp_path / "run")
    run = stopped_run(config, tmp_path / "run")
    before = files_of(run.path)
    write_npz(data, seed=1)
    with pytest.raises(RunError, match="images are not those"):
        train(config, resume=True)
    assert files_of(run.path) == before


def test_workers_and_checkpoint_minutes_may_change_on_the_way(
    tiny_npz: Path, tmp_path: Path, unbroken: Unbroken
) -> None:
    stopped_run(config_of("concutmix", tiny_npz, tmp_path / "run"), tmp_path / "run")
    changed = {"run": {"workers": 2, "checkpoint_minutes": 1e-9}}
    train(config_of("concutmix", tiny_npz, tmp_path / "run", **changed), resume=True)
    assert outcome(tmp_path / "run") == unbroken("concutmix")


def test_another_number_of_threads_is_said_to_be_inexact(tiny_npz: Path, tmp_path: Path) -> None:
    stopped_run(config_of("ce", tiny_npz, tmp_path / "run"), tmp_path / "run")
    watched = Recorder()
    try:
        train(config_of("ce", tiny_npz, tmp_path / "run", run={"threads": 2}), resume=True, listener=watched)
    finally:
        torch.set_num_threads(1)
    assert any("2 threads instead of 1: not bit-exact" in message for message in watched.messages)


def test_a_resumed_run_takes_the_number_of_threads_it_had(tiny_npz: Path, tmp_path: Path) -> None:
    stopped_run(config_of("ce", tiny_npz, tmp_path / "run"), tmp_path / "run")
    watched = Recorder()
    torch.set_num_threads(2)
    try:
        train(config_of("ce", tiny_npz, tmp_path / "run", run={"threads": None}), resume=True, listener=watched)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(1)
    assert not any("exact" in message for message in watched.messages)


def test_resuming_where_nothing_is_starts_at_step_0(tiny_npz: Path, tmp_path: Path, unbroken: Unbroken) -> None:
    watched = Recorder()
    train(config_of("ce", tiny_npz, tmp_path / "run"), resume=True, listener=watched)
    assert watched.first_step == 0
    assert outcome(tmp_path / "run") == unbroken("ce")


def test_a_run_killed_before_its_first_checkpoint_starts_at_step_0(
    tiny_npz: Path, tmp_path: Path, unbroken: Unbroken
) -> None:
    config = config_of("ce", tiny_npz, tmp_path / "run")
    with pytest.raises(KilledError):
        train(config, listener=At(2, None))
    watched = Recorder()
    train(config, resume=True, listener=watched)
    assert watched.first_step == 0
    assert outcome(tmp_path / "run") == unbroken("ce")


def test_a_run_killed_before_its_first_checkpoint_does_not_forget_its_initial_weights(
    tiny_npz: Path, tmp_path: Path
) -> None:
    train(config_of("ce", tiny_npz, tmp_path / "first", seed=7))
    own = {"init": str(tmp_path / "first")}
    train(config_of("ce", tiny_npz, tmp_path / "whole", **own))
    config = config_of("ce", tiny_npz, tmp_path / "run", **own)
    with pytest.raises(KilledError):
        train(config, listener=At(2, None))
    train(config, resume=True)
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")


def test_initial_weights_are_not_needed_once_there_is_a_checkpoint(tiny_npz: Path, tmp_path: Path) -> None:
    train(config_of("ce", tiny_npz, tmp_path / "first", seed=7))
    own = {"init": str(tmp_path / "first")}
    train(config_of("ce", tiny_npz, tmp_path / "whole", **own))
    config = config_of("ce", tiny_npz, tmp_path / "run", **own)
    stopped_run(config, tmp_path / "run")
    (tmp_path / "first").rename(tmp_path / "moved")
    train(config, resume=True)
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")


def test_resuming_a_finished_run_tells_its_result_and_changes_nothing(tiny_npz: Path, tmp_path: Path) -> None:
    config = config_of("ce", tiny_npz, tmp_path / "run")
    results = train(config)
    before = files_of(tmp_path / "run")
    watched = Recorder()
    assert train(config, resume=True, listener=watched) == results
    assert watched.first_step == -1, "nothing was started"
    (message,) = watched.messages
    assert f"top-1 {100 * results['last']['top1']:.2f} %" in message
    assert files_of(tmp_path / "run") == before


def test_a_diverged_run_can_be_resumed_but_not_with_a_lower_rate(tiny_npz: Path, tmp_path: Path) -> None:
    with pytest.raises(Exception, match="loss became"):
        train(config_of("ce", tiny_npz, tmp_path / "run", optim={"lr": 1e30}))
    with pytest.raises(ConfigError, match=r"optim\.lr"):
        train(config_of("ce", tiny_npz, tmp_path / "run"), resume=True)


# In processes of their own --------------------------------------------------------------------------------------------


def words_of(config: Config, *more: str) -> list[str]:
    return ["train", *assignments({name: value for name, value in config.plain().items() if value is not None}), *more]


LONG: dict[str, Any] = {"optim": {"epochs": 6}}
"""Long enough to be hit in the middle."""

OFTEN: dict[str, Any] = {"run": {"checkpoint_minutes": 1e-9}}
"""A checkpoint after each step."""


@pytest.fixture(scope="module")
def long_run(tiny_npz: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a long run of ConCutMix ends with if nobody breaks it."""
    out = tmp_path_factory.mktemp("unbroken") / "long"
    train(config_of("concutmix", tiny_npz, out, **LONG))
    return outcome(out)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_ends_the_command_with_its_code_and_the_resumed_one_ends_the_same(
    tiny_npz: Path, tmp_path: Path, launch: Launcher, long_run: Any, number: signal.Signals, code: int
) -> None:
    config = config_of("concutmix", tiny_npz, tmp_path / "run", **LONG)
    command = launch(*words_of(config))
    wait_until(lambda: (tmp_path / "run" / "metrics.jsonl").exists())
    command.send(number)
    assert command.wait() == code
    assert command.stderr.startswith("error: Stopped by")
    assert "Traceback" not in command.stderr
    assert len(command.stderr.strip().splitlines()) == 2
    assert RunDir(tmp_path / "run").load_checkpoint() is not None
    train(config, resume=True)
    assert outcome(tmp_path / "run") == long_run


def kill_and_resume(launch: Launcher, configs: Sequence[Config], folder: Path, moments: Sequence[float]) -> list[int]:
    """Kill -9 after each of ``moments``; then go on to the end. Returns the steps of the checkpoints that were left.

    Moments are in seconds from the first step that a start finishes, but every fourth from the start itself. The starts
    take ``configs`` in turn.
    """
    left: list[int] = []
    for number, moment in enumerate(moments):
        before = checkpoints_of(folder)
        command = launch(*words_of(configs[number % len(configs)]), "--resume")

        def has_stepped(before: set[str] = before, command: Command = command) -> bool:
            return bool(checkpoints_of(folder) - before) or not command.is_running

        if number % 4 != 3:
            wait_until(has_stepped)
        time.sleep(moment)
        command.send(signal.SIGKILL)
        assert command.wait() == -signal.SIGKILL, command.stderr
        found = RunDir(folder).load_checkpoint()
        left.append(0 if found is None else found.step)
    train(configs[0], resume=True)
    return left


def checkpoints_of(folder: Path) -> set[str]:
    return {path.name for path in (folder / "checkpoints").glob("step-*.json")}


def test_kill_9_at_random_moments_and_resume_end_the_same(
    tiny_npz: Path, tmp_path: Path, launch: Launcher, long_run: Any
) -> None:
    config = config_of("concutmix", tiny_npz, tmp_path / "run", **merge(LONG, OFTEN, {"run": {"workers": 2}}))
    left = kill_and_resume(launch, [config], tmp_path / "run", [0.0, 0.05])
    assert 0 < left[0] < left[1] < 18
    assert outcome(tmp_path / "run") == long_run


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("night", range(NIGHTLY))
@pytest.mark.parametrize("variant", list(VARIANTS))
def test_kill_9_in_every_method_at_twenty_moments(
    tiny_npz: Path, tmp_path: Path, launch: Launcher, variant: str, night: int
) -> None:
    """Twenty kills, in starts with 0 and with 2 workers by turns."""
    longer = {"optim": {"epochs": 80}}
    began = time.monotonic()
    train(config_of(variant, tiny_npz, tmp_path / "whole", **longer))
    seconds = time.monotonic() - began
    configs = [
        config_of(variant, tiny_npz, tmp_path / "run", **merge(longer, OFTEN, {"run": {"workers": workers}}))
        for workers in (0, 2)
    ]
    moments = [float(moment) for moment in seconds / 20 * numpy_generator(night, "kill", variant).random(20)]
    left = kill_and_resume(launch, configs, tmp_path / "run", moments)
    print(f"{variant}: left at steps {left}")
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")
    assert left == sorted(left)
    assert left[-1] < 240, "it was running"
    assert len(set(left)) > 12
    assert any(step % 3 for step in left), "in the middle of an epoch: how many are is chance"


def test_a_resumed_result_is_that_of_the_unbroken_command(tiny_npz: Path, tmp_path: Path) -> None:
    config = config_of("ce", tiny_npz, tmp_path / "run")
    stopped_run(config, tmp_path / "run")
    results = train(config, resume=True)
    assert read_json(tmp_path / "run" / "results.json") == results
    assert RunDir(tmp_path / "run").description()["status"] == "finished"
