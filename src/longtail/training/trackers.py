"""Programs that are shown a run while it goes on: TensorBoard, Weights & Biases, MLflow. Each is an extra.

They stand beside metrics.jsonl, never in its place, and a run does not depend on them: one that fails in mid-run is
left out. Nothing leaves the machine unless the user's environment says so (``WANDB_MODE``, ``MLFLOW_TRACKING_URI``).
"""

from __future__ import annotations

import importlib
import json
import os
import uuid
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from longtail.config import Config
from longtail.data.prepare import Prepared
from longtail.errors import ConfigError
from longtail.files import read_json, write_json
from longtail.runs.rundir import NOT_A_LOSS, RunDir

STEPS_SHOWN = 10
"""Steps of an epoch whose loss is shown, beside its end."""

KEPT = "trackers.json"
"""In the run folder: by what names the run is known to its trackers, so that they go on with it."""


class Tracker(Protocol):
    """What is shown a run. Any call may raise: the tracker is then left out."""

    def start(self, folder: Path, config: Mapping[str, Any], described: Mapping[str, Any], first: int) -> None:
        """The run begins, or goes on: what comes is of step ``first`` and later, whatever came before.

        ``config`` is that of config.yaml, ``described`` run.json.
        """

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers of one moment of the run; a step comes at most once."""

    def finish(self, results: Mapping[str, Any] | None) -> None:
        """The run has ended with this content of results.json, or has stopped or failed (None)."""


class Trackers:
    """A listener that passes the run on to trackers by name; as a context, it tells them of a run that breaks off.

    Raises ConfigError for one whose package is not installed.
    """

    def __init__(self, names: Iterable[str], said: Callable[[str], None]) -> None:
        self.trackers: dict[str, Tracker] = {name: TRACKERS[name]() for name in dict.fromkeys(names)}
        self.tell = said
        self.per_epoch = self.every = 1
        self.shown = 0

    def started(self, config: Config, data: Prepared, steps: int, first_step: int) -> None:
        self.per_epoch = steps // config.optim.epochs
        self.every = max(1, self.per_epoch // STEPS_SHOWN)
        if not self.trackers:
            return
        run = RunDir(str(config.out))
        rows = run.read_metrics()
        # After a kill between an epoch's last step and its line, the line of that step is still to come.
        line_is_due = first_step % self.per_epoch == 0 and not (rows and rows[-1]["step"] == first_step)
        first = first_step if line_is_due else first_step + 1
        plain, described = config.plain(), run.description()
        self._each(lambda tracker: tracker.start(run.path, plain, described, first))

    def stepped(self, step: int, logs: Mapping[str, float], images_per_second: float) -> None:
        in_epoch = step % self.per_epoch
        if in_epoch and in_epoch % self.every == 0 and step > self.shown:  # a run that goes back comes by again
            self.shown = step
            values = {f"step/{name}": value for name, value in logs.items()}
            self._each(lambda tracker: tracker.log(step, values))

    def evaluated(self, row: Mapping[str, Any]) -> None:
        values = shown_values(row)
        self._each(lambda tracker: tracker.log(int(row["step"]), values))

    def said(self, message: str) -> None: ...

    def finished(self, results: Mapping[str, Any]) -> None:
        self._each(lambda tracker: tracker.finish(results))

    def __enter__(self) -> Trackers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._each(lambda tracker: tracker.finish(None))

    def _each(self, tell: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self.trackers.items()):
            try:
                tell(tracker)
            except Exception as error:  # whatever a foreign program raises, the training goes on
                del self.trackers[name]
                reason = (str(error).strip().splitlines() or [""])[0]
                self.tell(f"{name} failed and is left out from here on: {type(error).__name__}: {reason}")


def shown_values(row: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a line of metrics.jsonl: losses below ``train/``, accuracies below the name of their set."""
    shown = {}
    for name, value in row.items():
        if isinstance(value, int | float) and name != "step":
            if name == "loss" or name not in NOT_A_LOSS:
                shown[f"train/{name}"] = float(value)
            elif name in ("epoch", "lr", "img_per_s", "gamma"):
                shown[name] = float(value)
            else:
                shown[f"{row['evaluated_on']}/{name}"] = float(value)
    return shown


def final_values(results: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of results.json that a run is judged by: ``last/top1``, ``best/few``, ..."""
    return {
        f"{which}/{name}": float(value)
        for which in ("last", "best")
        for name, value in results[which].items()
        if isinstance(value, int | float)
    }


def _package(tracker: str, module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(
            f"run.trackers: '{tracker}' cannot be used, because its package cannot be imported: {error}",
            hint=f"pip install 'longtail[{tracker}]', or pip install {package}",
        ) from None


def _kept(folder: Path, tracker: str) -> dict[str, Any]:
    path = folder / KEPT
    return dict(read_json(path).get(tracker, {})) if path.is_file() else {}


def _keep(folder: Path, tracker: str, **values: Any) -> None:
    path = folder / KEPT
    write_json(path, (read_json(path) if path.is_file() else {}) | {tracker: values})


class TensorBoard:
    """Event files in ``tensorboard/`` of the run folder. A resumed run hides what it is about to show again."""

    def __init__(self) -> None:
        self.writers = _package("tensorboard", "torch.utils.tensorboard", "tensorboard")

    def start(self, folder: Path, config: Mapping[str, Any], described: Mapping[str, Any], first: int) -> None:
        self.writer = self.writers.SummaryWriter(str(folder / "tensorboard"), purge_step=first)
        self.writer.add_text("config", _as_code(config), first)
        self.writer.add_text("run", _as_code(described), first)
        self.writer.flush()
        self.last = first

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()  # what a kill takes away is then younger than the checkpoint that the run goes on from
        self.last = step

    def finish(self, results: Mapping[str, Any] | None) -> None:
        if results is not None:
            self.writer.add_text("results", _as_code(results), self.last)
        self.writer.close()


def _as_code(values: Mapping[str, Any]) -> str:
    return "".join(f"    {line}\n" for line in json.dumps(values, indent=1, default=str).splitlines())


class WandB:
    """A run of Weights & Biases in ``wandb/`` of the run folder, offline unless ``WANDB_MODE`` says otherwise.

    What is logged cannot be taken back, so that steps that a resumed run makes again, with the same numbers, are left
    out. Offline, every start writes a folder of its own, all with the id of the run.
    """

    def __init__(self) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        self.wandb = _package("wandb", "wandb", "wandb")

    def start(self, folder: Path, config: Mapping[str, Any], described: Mapping[str, Any], first: int) -> None:
        kept = _kept(folder, "wandb")
        self.folder = folder
        self.id, self.logged = kept.get("id", uuid.uuid4().hex[:8]), int(kept.get("logged", 0))
        _keep(folder, "wandb", id=self.id, logged=self.logged)
        self.run = self.wandb.init(
            dir=str(folder),
            mode=os.environ.get("WANDB_MODE") or "offline",
            id=self.id,
            resume="allow",
            project=os.environ.get("WANDB_PROJECT", "longtail"),
            name=f"{described['recipe']}, seed {described['seed']}",
            config={**config, "run.json": dict(described)},
            settings=self.wandb.Settings(silent=True, console="off"),
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        if step > self.logged:
            self.run.log(dict(values), step=step)
            self.logged = step
            _keep(self.folder, "wandb", id=self.id, logged=step)

    def finish(self, results: Mapping[str, Any] | None) -> None:
        if results is not None:
            self.run.summary.update(final_values(results))
        self.run.finish(exit_code=0 if results is not None else 1)


class MLflow:
    """A run of MLflow in a file store, ``mlruns/`` of the run folder, or where ``MLFLOW_TRACKING_URI`` points to.

    What is logged cannot be taken back, so that a resumed run asks which steps are there and leaves them out.
    """

    def __init__(self) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        self.tracking = _package("mlflow", "mlflow.tracking", "mlflow-skinny")

    def start(self, folder: Path, config: Mapping[str, Any], described: Mapping[str, Any], first: int) -> None:
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        if not uri:
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # newer versions refuse file stores without it
            uri = (folder / "mlruns").absolute().as_uri()
        self.client = self.tracking.MlflowClient(tracking_uri=uri)
        self.known: dict[str, set[int]] = {}
        self.run = _kept(folder, "mlflow").get("run")
        if self.run is not None:
            self.client.update_run(self.run, status="RUNNING")
            for name in self.client.get_run(self.run).data.metrics:
                self.known[name] = {point.step for point in self.client.get_metric_history(self.run, name)}
            return
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "longtail")
        experiment = self.client.get_experiment_by_name(name)
        number = self.client.create_experiment(name) if experiment is None else experiment.experiment_id
        made = self.client.create_run(number, run_name=f"{described['recipe']}, seed {described['seed']}")
        self.run = made.info.run_id
        _keep(folder, "mlflow", run=self.run)
        for key, value in _flat(config).items():
            self.client.log_param(self.run, key, value)
        self.client.set_tag(self.run, "longtail.config_key", described["config_key"])

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            if step not in self.known.setdefault(name, set()):
                self.client.log_metric(self.run, name, value, step=step)
                self.known[name].add(step)

    def finish(self, results: Mapping[str, Any] | None) -> None:
        if results is not None:
            for name, value in final_values(results).items():
                self.client.log_metric(self.run, name, value)
        self.client.set_terminated(self.run, "KILLED" if results is None else "FINISHED")


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


TRACKERS: dict[str, Callable[[], Tracker]] = {"tensorboard": TensorBoard, "wandb": WandB, "mlflow": MLflow}
"""The trackers by their names in ``run.trackers``."""
