"""Trackers: each epoch once, whatever stopped the run; nothing leaves the machine; a failing one ends nothing."""

from __future__ import annotations

import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import longtail.training.trackers as trackers
from longtail.config import Config
from longtail.errors import ConfigError, StoppedError
from longtail.files import read_json
from longtail.recipes import load_config
from longtail.runs.rundir import RunDir
from longtail.training.loop import train
from processes import wait_until
from tiny import STEPS, At, KilledError, Recorder, outcome, tiny_config


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the trackers set is taken back, and what the user of this machine has set does not count."""
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    for name in ("WANDB_MODE", "WANDB_PROJECT", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)


class Kept:
    """A tracker that keeps what it was told, over several starts; it takes back what a start makes again."""

    def __init__(self) -> None:
        self.starts: list[int] = []
        self.logged: dict[int, list[Mapping[str, float]]] = {}
        self.ends: list[Mapping[str, Any] | None] = []
        self.config: Mapping[str, Any] = {}

    def start(self, folder: Path, config: Mapping[str, Any], described: Mapping[str, Any], first: int) -> None:
        self.starts.append(first)
        self.config = config
        assert described["status"] == "running"
        self.logged = {step: rows for step, rows in self.logged.items() if step < first}

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.logged.setdefault(step, []).append(values)

    def finish(self, results: Mapping[str, Any] | None) -> None:
        self.ends.append(results)

    def seen(self) -> dict[int, Mapping[str, float]]:
        """What was logged, each step once."""
        assert all(len(rows) == 1 for rows in self.logged.values()), "a step stands twice"
        return {step: {k: v for k, v in rows[0].items() if k != "img_per_s"} for step, rows in self.logged.items()}


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> Kept:
    """In place of TensorBoard."""
    made = Kept()
    monkeypatch.setitem(trackers.TRACKERS, "tensorboard", lambda: made)
    return made


def config_of(archive: Path, folder: Path, /, *names: str, **own: Any) -> Config:
    return tiny_config("ce", archive, folder, run={"trackers": list(names or ["tensorboard"])}, **own)


# What is shown --------------------------------------------------------------------------------------------------------


def test_a_tracker_is_shown_every_epoch_the_steps_between_and_the_end(
    tiny_npz: Path, tmp_path: Path, kept: Kept
) -> None:
    results = train(config_of(tiny_npz, tmp_path / "run"))
    assert kept.starts == [0]
    assert kept.ends == [results]
    assert kept.config == RunDir(tmp_path / "run").read_config()
    assert sorted(kept.logged) == list(range(1, STEPS + 1))
    assert {step for step, values in kept.seen().items() if "step/loss" in values} == {1, 2, 4, 5}
    for row in RunDir(tmp_path / "run").read_metrics():
        (values,) = kept.logged[row["step"]]
        assert values["train/loss"] == row["loss"]
        assert values["test/top1"] == row["top1"]
        assert (values["epoch"], values["lr"]) == (row["epoch"], row["lr"])
        assert "test/evaluated_on" not in values


def test_a_run_that_goes_back_shows_no_step_twice(
    tiny_npz: Path, tmp_path: Path, kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LONGTAIL_FAULT", "nan-loss@3-5")
    results = train(config_of(tiny_npz, tmp_path / "run"))
    assert results["rate_scale"] == 0.5, "it went back"
    assert sorted(kept.seen()) == list(range(1, STEPS + 1))


def test_a_long_epoch_shows_ten_of_its_steps(tmp_path: Path) -> None:
    watch = trackers.Trackers([], print)
    watch.started(load_config("scenes/ce", ["optim.epochs=2"]), None, 2 * 95, 0)  # type: ignore[arg-type]
    seen: list[int] = []
    fake: Any = types.SimpleNamespace(log=lambda step, values: seen.append(step))
    watch.trackers["fake"] = fake
    for step in range(1, 2 * 95 + 1):
        watch.stepped(step, {"loss": 1.0}, 1.0)
    assert seen == [*range(9, 95, 9), *range(95 + 9, 2 * 95, 9)]


def test_an_empty_group_is_not_shown_as_a_number() -> None:
    row = {"step": 3, "loss": 1, "bcl": 2.0, "gamma": 0.5, "few": None, "many": 0.25, "evaluated_on": "val"}
    assert trackers.shown_values(row) == {"train/loss": 1, "train/bcl": 2.0, "gamma": 0.5, "val/many": 0.25}
    numbers = {"epoch": 1, "top1": 0.5, "few": None, "thirds": {"head": 1.0}}
    assert trackers.final_values({"last": numbers, "best": {**numbers, "selected_on": "val"}}) == {
        "last/epoch": 1,
        "last/top1": 0.5,
        "best/epoch": 1,
        "best/top1": 0.5,
    }


def test_a_run_is_the_same_with_and_without_trackers(tiny_npz: Path, tmp_path: Path, kept: Kept) -> None:
    tracked = config_of(tiny_npz, tmp_path / "tracked")
    plain = tiny_config("ce", tiny_npz, tmp_path / "plain")
    assert tracked.key() == plain.key()
    train(tracked)
    train(plain)
    assert outcome(tmp_path / "tracked") == outcome(tmp_path / "plain")


@pytest.mark.parametrize("word", ["tensorboard,wandb", "[tensorboard, wandb]"])
def test_trackers_are_named_as_a_list_or_as_words(word: str) -> None:
    assert load_config("scenes/ce", [f"run.trackers={word}"]).run.trackers == ("tensorboard", "wandb")
    with pytest.raises(ConfigError, match=r"run\.trackers"):
        load_config("scenes/ce", ["run.trackers=tensorbord"])


# Resuming -------------------------------------------------------------------------------------------------------------


class DiesShowing(Recorder):
    """A kill after the first epoch's line is written and shown, before its checkpoint."""

    def evaluated(self, row: Mapping[str, Any]) -> None:
        raise KilledError


@pytest.mark.parametrize("stop", [*range(1, STEPS), "at the line"])
def test_a_resumed_run_shows_no_step_twice_and_leaves_none_out(
    tiny_npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int | str
) -> None:
    unbroken, broken = Kept(), Kept()
    monkeypatch.setitem(trackers.TRACKERS, "tensorboard", lambda: unbroken)
    train(config_of(tiny_npz, tmp_path / "unbroken"))
    monkeypatch.setitem(trackers.TRACKERS, "tensorboard", lambda: broken)
    config = config_of(tiny_npz, tmp_path / "broken")
    with monkeypatch.context() as patch:
        patch.setattr("longtail.training.trackers.Trackers.__exit__", lambda *_: None)
        with pytest.raises(KilledError):
            train(config, listener=At(stop, None) if isinstance(stop, int) else DiesShowing())
    train(config, resume=True)
    assert len(broken.starts) == 2
    assert broken.seen() == unbroken.seen()


class DiesAfterShowing(Kept):
    """A kill after the first epoch's line was shown, and before the checkpoint that counts it."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        super().log(step, values)
        if step == STEPS // 2 and len(self.starts) == 2:
            raise KilledError


def test_a_line_that_was_shown_before_the_kill_is_shown_again_and_not_twice(
    tiny_npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint is of the epoch's last step and from before its evaluation, so that the line is still to come."""
    shown = DiesAfterShowing()
    monkeypatch.setitem(trackers.TRACKERS, "tensorboard", lambda: shown)
    config = config_of(tiny_npz, tmp_path / "run")
    with pytest.raises(StoppedError):
        train(config, listener=At(STEPS // 2))
    with pytest.raises(KilledError):
        train(config, resume=True)
    assert shown.starts == [0, STEPS // 2]
    assert len(shown.logged[STEPS // 2]) == 1
    train(config, resume=True)
    assert shown.starts == [0, STEPS // 2, STEPS // 2]
    assert sorted(shown.seen()) == list(range(1, STEPS + 1))


def test_a_stopped_run_tells_its_trackers_that_it_broke_off(tiny_npz: Path, tmp_path: Path, kept: Kept) -> None:
    with pytest.raises(KilledError):
        train(config_of(tiny_npz, tmp_path / "run"), listener=At(2, None))
    assert kept.ends == [None]


def test_a_run_may_go_on_with_other_trackers(tiny_npz: Path, tmp_path: Path, kept: Kept) -> None:
    with pytest.raises(KilledError):
        train(tiny_config("ce", tiny_npz, tmp_path / "run"), listener=At(4, None))
    train(config_of(tiny_npz, tmp_path / "run"), resume=True)
    assert kept.starts == [STEPS // 2 + 1]


# Failing --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["start", "log", "finish"])
def test_a_tracker_that_fails_is_left_out_and_said_once(
    tiny_npz: Path, tmp_path: Path, kept: Kept, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    calls = 0

    class Broken(Kept):
        def fail(self, *_: Any) -> None:
            nonlocal calls
            calls += 1
            raise OSError("no route\nto host")

    monkeypatch.setattr(Broken, call, Broken.fail)
    monkeypatch.setitem(trackers.TRACKERS, "wandb", Broken)
    watched = Recorder()
    results = train(config_of(tiny_npz, tmp_path / "run", "wandb", "tensorboard"), listener=watched)
    assert watched.messages == ["wandb failed and is left out from here on: OSError: no route"]
    assert calls == 1
    assert kept.ends == [results], "the other tracker goes on"
    train(tiny_config("ce", tiny_npz, tmp_path / "plain"))
    assert outcome(tmp_path / "run") == outcome(tmp_path / "plain")


@pytest.mark.parametrize(
    ("name", "module", "line"),
    [
        ("tensorboard", "torch.utils.tensorboard", "pip install 'longtail[tensorboard]', or pip install tensorboard"),
        ("wandb", "wandb", "pip install 'longtail[wandb]', or pip install wandb"),
        ("mlflow", "mlflow.tracking", "pip install 'longtail[mlflow]', or pip install mlflow-skinny"),
    ],
)
def test_a_tracker_that_is_not_installed_is_refused_with_the_line_that_installs_it(
    tiny_npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, module: str, line: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=name) as caught:
        train(config_of(tiny_npz, tmp_path / "run", name))
    assert caught.value.exit_code == 2
    assert caught.value.hint == line
    assert not (tmp_path / "run").exists()


# The programs themselves ----------------------------------------------------------------------------------------------


def stopped_and_resumed(archive: Path, folder: Path, name: str) -> list[dict[str, Any]]:
    """A run that is killed in its second epoch and resumed; returns its metrics."""
    config = config_of(archive, folder, name, optim={"epochs": 3})
    with pytest.raises(KilledError):
        train(config, listener=At(5, None))
    watched = Recorder()
    train(config, resume=True, listener=watched)
    assert not [message for message in watched.messages if name in message]
    return RunDir(folder).read_metrics()


def test_tensorboard_shows_each_epoch_of_a_resumed_run_once(tiny_npz: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    rows = stopped_and_resumed(tiny_npz, tmp_path / "run", "tensorboard")
    assert len(list((tmp_path / "run" / "tensorboard").iterdir())) == 2
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [3, 6, 9]
    assert [event.value for event in events.Scalars("test/top1")] == pytest.approx([row["top1"] for row in rows])
    assert [event.step for event in events.Scalars("step/loss")] == [1, 2, 4, 5, 7, 8]
    assert "results/text_summary" in events.Tags()["tensors"]


@pytest.mark.filterwarnings("default")
def test_mlflow_keeps_each_epoch_of_a_resumed_run_once_in_the_run_folder(tiny_npz: Path, tmp_path: Path) -> None:
    tracking = pytest.importorskip("mlflow.tracking")
    rows = stopped_and_resumed(tiny_npz, tmp_path / "run", "mlflow")
    client = tracking.MlflowClient(tracking_uri=(tmp_path / "run" / "mlruns").as_uri())
    number = read_json(tmp_path / "run" / "trackers.json")["mlflow"]["run"]
    history = client.get_metric_history(number, "train/loss")
    assert [(point.step, point.value) for point in history] == [(row["step"], row["loss"]) for row in rows]
    assert [point.step for point in client.get_metric_history(number, "step/loss")] == [1, 2, 4, 5, 7, 8]
    run = client.get_run(number)
    assert run.info.status == "FINISHED"
    assert run.data.params["optim.epochs"] == "3"
    assert run.data.metrics["last/top1"] == rows[-1]["top1"]


@pytest.mark.filterwarnings("default")
def test_mlflow_goes_where_its_environment_says(
    tiny_npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow.tracking")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "all").as_uri())
    train(config_of(tiny_npz, tmp_path / "run", "mlflow"))
    assert (tmp_path / "all").is_dir()
    assert not (tmp_path / "run" / "mlruns").exists()


@pytest.mark.filterwarnings("default")
def test_wandb_writes_offline_into_the_run_folder(tiny_npz: Path, tmp_path: Path, capfd: Any) -> None:
    pytest.importorskip("wandb")
    watched = Recorder()
    train(config_of(tiny_npz, tmp_path / "run", "wandb"), listener=watched)
    assert watched.messages == []
    number = read_json(tmp_path / "run" / "trackers.json")["wandb"]["id"]
    (written,) = (tmp_path / "run" / "wandb").glob(f"offline-run-*-{number}/run-{number}.wandb")
    for name in (b"train/loss", b"test/top1", b"last/top1"):
        wait_until(lambda name=name: name in written.read_bytes())  # another process writes it
    assert capfd.readouterr() == ("", "")


class FakeMLflow(types.ModuleType):
    """As much of ``mlflow.tracking`` as is used; the module is its own client."""

    def __init__(self) -> None:
        super().__init__("mlflow.tracking")
        self.uris: list[str] = []
        self.made = 0
        self.points: dict[str, list[types.SimpleNamespace]] = {}
        self.params: dict[str, Any] = {}
        self.states: list[str] = []

    def MlflowClient(self, tracking_uri: str) -> FakeMLflow:  # noqa: N802
        self.uris.append(tracking_uri)
        return self

    def get_experiment_by_name(self, name: str) -> None: ...
    def set_tag(self, run: str, key: str, value: str) -> None: ...

    def create_experiment(self, name: str) -> str:
        return name

    def create_run(self, experiment: str, run_name: str) -> types.SimpleNamespace:
        self.made += 1
        return types.SimpleNamespace(info=types.SimpleNamespace(run_id=f"{experiment}-{self.made}"))

    def get_run(self, run: str) -> types.SimpleNamespace:
        return types.SimpleNamespace(data=types.SimpleNamespace(metrics=self.points))

    def get_metric_history(self, run: str, name: str) -> list[types.SimpleNamespace]:
        return self.points[name]

    def log_param(self, run: str, key: str, value: Any) -> None:
        assert key not in self.params, "a parameter is logged once"
        self.params[key] = value

    def log_metric(self, run: str, name: str, value: float, step: int = 0) -> None:
        assert run == "longtail-1"
        self.points.setdefault(name, []).append(types.SimpleNamespace(step=step, value=value))

    def update_run(self, run: str, status: str) -> None:
        self.states.append(status)

    def set_terminated(self, run: str, status: str) -> None:
        self.states.append(status)


def test_mlflow_goes_on_with_its_run_and_logs_no_step_twice(
    tiny_npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeMLflow()
    monkeypatch.setitem(sys.modules, "mlflow", types.ModuleType("mlflow"))
    monkeypatch.setitem(sys.modules, "mlflow.tracking", fake)
    rows = stopped_and_resumed(tiny_npz, tmp_path / "run", "mlflow")
    assert fake.uris == [(tmp_path / "run" / "mlruns").as_uri()] * 2
    assert fake.states == ["KILLED", "RUNNING", "FINISHED"]
    assert [point.step for point in fake.points["step/loss"]] == [1, 2, 4, 5, 7, 8]
    assert [point.value for point in fake.points["train/loss"]] == [row["loss"] for row in rows]
    assert fake.params["optim.epochs"] == 3


class FakeWandB(types.ModuleType):
    """Keeps what a run of Weights & Biases would be given."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.given: list[dict[str, Any]] = []
        self.logged: list[int] = []
        self.summary: dict[str, float] = {}
        self.codes: list[int] = []

    def Settings(self, **values: Any) -> dict[str, Any]:  # noqa: N802
        return values

    def init(self, **given: Any) -> FakeWandB:
        self.given.append(given)
        return self

    def log(self, values: dict[str, float], step: int) -> None:
        self.logged.append(step)

    def finish(self, exit_code: int) -> None:
        self.codes.append(exit_code)


def test_wandb_goes_on_with_its_run_and_logs_no_step_twice(
    tiny_npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeWandB()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    rows = stopped_and_resumed(tiny_npz, tmp_path / "run", "wandb")
    first, second = fake.given
    assert first["id"] == second["id"]
    assert first["mode"] == second["mode"] == "offline"
    assert fake.logged == list(range(1, 10))
    assert fake.codes == [1, 0]
    assert fake.summary["last/top1"] == rows[-1]["top1"]


@pytest.mark.parametrize(("set_to", "mode"), [("online", "online"), ("disabled", "disabled"), ("", "offline")])
def test_wandb_sends_only_where_the_environment_says_so(
    tiny_npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, set_to: str, mode: str
) -> None:
    fake = FakeWandB()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.setenv("WANDB_MODE", set_to)
    train(config_of(tiny_npz, tmp_path / "run", "wandb"))
    assert [given["mode"] for given in fake.given] == [mode]
