"""The run folder: what is written, so that it can be read again after anything.

Every file is written whole: to a temporary name, fsync, rename, fsync of the folder. A checkpoint is a safetensors
file of tensors and a JSON beside it with the digest of the first; the JSON is renamed last and makes the pair valid.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import yaml
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as serialize_tensors
from torch import Tensor

from longtail.errors import ConfigError, RunError
from longtail.files import disk_error, read_json, write_atomic, write_json
from longtail.layers import load_yaml
from longtail.runs.missing import no_run

SCHEMA = 1
KEPT_CHECKPOINTS = 2

NOT_A_LOSS = frozenset(
    {"step", "epoch", "lr", "loss", "top1", "many", "medium", "few", "img_per_s", "evaluated_on", "seconds"}
    | {"balanced_accuracy", "macro_f1", "worst_class", "worst_tenth", "g_mean", "h_mean", "ece", "gamma"}
)
"""Keys of a line of metrics.jsonl that are not terms of the loss; every other number is one."""


@dataclass(frozen=True)
class Checkpoint:
    """A state to go on from: tensors by name and a JSON-able ``state``, after ``step`` finished steps."""

    step: int
    tensors: dict[str, Tensor]
    state: dict[str, Any]


class RunDir:
    """One run's folder. Making the object touches nothing; :meth:`create` and :meth:`lock` do."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.checkpoints = self.path / "checkpoints"
        self.metrics = self.path / "metrics.jsonl"
        self.warnings: list[str] = []
        self._lock: IO[str] | None = None

    @property
    def is_run(self) -> bool:
        """Whether the folder holds a run of ours: only such a folder is ever deleted."""
        return (self.path / "run.json").is_file()

    @property
    def has_started(self) -> bool:
        """Whether the run got as far as describing itself, so that there is something to resume."""
        return self.is_run and (self.path / "config.yaml").is_file() and "data" in self.description()

    def refuse_unless_new(self) -> None:
        """Raise ConfigError if there is anything at the path."""
        if not self._is_free():
            hint = (
                "Use --resume to go on with it, --overwrite to start it anew, or another out=DIR."
                if self.is_run
                else "It is not a run folder, so it is left alone. Choose another out=DIR."
            )
            raise ConfigError(f"{self.path} exists already.", hint=hint)

    def _is_free(self) -> bool:
        """Whether there is nothing, or an empty folder, or one whose making a kill cut short."""
        if not self.path.is_dir():
            return not self.path.exists()
        return all(part.name == ".run.json.tmp" for part in self.path.iterdir())

    def delete(self) -> None:
        """Delete the folder, if it is a run's and nobody runs in it."""
        if self._is_free():
            return
        if not self.is_run:
            raise ConfigError(f"{self.path} has no run.json: not a run folder, so it is not deleted.")
        self.lock()
        self.unlock()
        # run.json goes last: a folder that a kill left half deleted is still known as a run.
        for part in sorted(self.path.iterdir(), key=lambda part: part.name == "run.json"):
            if part.is_dir() and not part.is_symlink():
                shutil.rmtree(part)
            else:
                part.unlink()
        if not self.path.is_symlink():
            self.path.rmdir()

    def create(self) -> None:
        """Make the folder and its parts."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if not self.is_run:  # before anything else: it makes the folder one that --resume takes
                self.update_description(status="starting")
            self.checkpoints.mkdir(exist_ok=True)
            (self.path / "plots").mkdir(exist_ok=True)
        except OSError as error:
            raise disk_error(self.path, error) from error

    def lock(self) -> None:
        """Hold the folder until :meth:`unlock` or the end of the process; raises RunError if another process does."""
        try:
            file = (self.path / ".lock").open("w")
        except OSError as error:
            raise disk_error(self.path / ".lock", error) from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            raise RunError(f"Another process is running in {self.path}.", hint="Wait for it, or stop it.") from None
        self._lock = file
        for leftover in (*self.path.glob(".*.tmp"), *self.checkpoints.glob(".*.tmp")):
            leftover.unlink(missing_ok=True)
        for tensors in self.checkpoints.glob("step-*.safetensors"):
            if not tensors.with_suffix(".json").is_file():  # a kill came before its JSON was written or after
                tensors.unlink(missing_ok=True)

    def unlock(self) -> None:
        """Let another process have the folder."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    # Configuration and description ------------------------------------------------------------------------------

    def write_config(self, values: Mapping[str, Any]) -> None:
        """``config.yaml``: complete, so that ``longtail train config.yaml`` repeats the run."""
        write_atomic(self.path / "config.yaml", yaml.safe_dump(dict(values), sort_keys=False).encode())

    def read_config(self) -> dict[str, Any]:
        """The nested values of ``config.yaml``; raises RunError."""
        try:
            values = load_yaml((self.path / "config.yaml").read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise RunError(f"{self.path / 'config.yaml'} cannot be read: {error}") from None
        if not isinstance(values, dict):
            raise RunError(f"{self.path / 'config.yaml'} is not a configuration.")
        return values

    def update_description(self, **values: Any) -> None:
        """Merge ``values`` into run.json."""
        path = self.path / "run.json"
        described = read_json(path) if path.is_file() else {"schema": SCHEMA}
        write_json(path, described | values)

    def description(self) -> dict[str, Any]:
        """run.json; raises RunError where there is none."""
        if not self.is_run:
            raise no_run(self.path)
        described: dict[str, Any] = read_json(self.path / "run.json")
        return described

    # Metrics ----------------------------------------------------------------------------------------------------

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        """Add one line to metrics.jsonl."""
        try:
            with self.metrics.open("a", encoding="utf-8") as file:
                file.write(json.dumps(dict(row), allow_nan=False) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise disk_error(self.metrics, error) from error

    def cut_metrics(self, epochs_done: int) -> None:
        """Keep the lines of the first ``epochs_done`` epochs, so that no epoch stands twice after a resume."""
        if not self.metrics.is_file():
            return
        kept = []
        for line in self.metrics.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                continue  # a line that a kill cut short
            if isinstance(row, dict) and isinstance(row.get("epoch"), int) and row["epoch"] < epochs_done:
                kept.append(line + "\n")
        write_atomic(self.metrics, "".join(kept).encode())

    def read_metrics(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl; raises RunError where a line is none."""
        if not self.metrics.is_file():
            return []
        try:
            lines = self.metrics.read_text(encoding="utf-8").splitlines()
            return [dict(json.loads(line)) for line in lines if line]
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise RunError(f"{self.metrics} cannot be read: {error}") from None

    # Checkpoints ------------------------------------------------------------------------------------------------

    def save_checkpoint(self, checkpoint: Checkpoint, kept: int | None = None) -> None:
        """Write ``checkpoints/step-N`` and keep it and one before it: that of step ``kept``, else the newest.

        Later ones are damaged, or the run went back to before them: it makes them anew.
        """
        self._save(f"step-{checkpoint.step}", checkpoint)
        steps = self._steps()
        before = [step for step, _ in steps if step < checkpoint.step]
        before.sort(key=lambda step: step != kept)  # stable: the newest stays first but for ``kept``
        wanted = {checkpoint.step, *before[: KEPT_CHECKPOINTS - 1]}
        for old in [name for step, name in steps if step not in wanted]:
            # The JSON goes first: without it the pair is not a checkpoint, whatever happens in between.
            (self.checkpoints / f"{old}.json").unlink(missing_ok=True)
            (self.checkpoints / f"{old}.safetensors").unlink(missing_ok=True)

    def save_best(self, checkpoint: Checkpoint) -> None:
        """Write ``checkpoints/best``."""
        self._save("best", checkpoint)

    def _save(self, name: str, checkpoint: Checkpoint) -> None:
        content = serialize_tensors({key: value.contiguous() for key, value in checkpoint.tensors.items()})
        described = {
            "schema": SCHEMA,
            "step": checkpoint.step,
            "sha256": hashlib.sha256(content).hexdigest(),
            "state": checkpoint.state,
        }
        # The old JSON's digest would not fit the new tensors: between the two renames there is no valid pair of this
        # name, and the reader falls back. Steps have names of their own; only best is ever replaced.
        write_atomic(self.checkpoints / f"{name}.safetensors", content)
        described["state_sha256"] = _digest_of(described)
        write_json(self.checkpoints / f"{name}.json", described)

    def _steps(self) -> list[tuple[int, str]]:
        found = []
        for path in self.checkpoints.glob("step-*.json"):
            match = re.fullmatch(r"step-(\d+)", path.stem)
            if match:
                found.append((int(match[1]), path.stem))
        return sorted(found, reverse=True)

    @property
    def has_checkpoint(self) -> bool:
        """Whether a checkpoint was ever written, good or damaged."""
        return bool(self._steps())

    def load_checkpoint(self) -> Checkpoint | None:
        """The newest good checkpoint, or None where there never was one.

        A damaged one is passed over with a line in ``warnings``; if all are damaged, RunError names each.
        """
        return self._first_good([name for _, name in self._steps()])

    def load_step(self, step: int) -> Checkpoint | None:
        """The checkpoint of that step, or None where there is none; raises RunError where it is damaged."""
        name = f"step-{step}"
        return self._first_good([name]) if (self.checkpoints / f"{name}.json").is_file() else None

    def load_best(self) -> Checkpoint:
        """The best checkpoint; raises RunError where there is none or it is damaged."""
        found = self._first_good(["best"]) if (self.checkpoints / "best.json").is_file() else None
        if found is None:
            raise RunError(f"{self.path} has no best checkpoint.", hint="Use which=last.")
        return found

    def _first_good(self, names: Sequence[str]) -> Checkpoint | None:
        failures = []
        for name in names:
            try:
                checkpoint = self._load(name)
            except (OSError, ValueError, LookupError, TypeError, SafetensorError, RecursionError) as error:
                failures.append(f"{self.checkpoints / name}.safetensors: {error}")
                continue
            self.warnings += [f"Damaged checkpoint passed over: {failure}" for failure in failures]
            return checkpoint
        if failures:
            raise RunError("No checkpoint can be read. Tried:\n" + "\n".join(failures))
        return None

    def _load(self, name: str) -> Checkpoint:
        described = dict(json.loads((self.checkpoints / f"{name}.json").read_text(encoding="utf-8")))
        claimed = described.pop("state_sha256")
        if _digest_of(described) != claimed:
            raise ValueError("its description does not have the digest it was written with")
        content = (self.checkpoints / f"{name}.safetensors").read_bytes()
        if hashlib.sha256(content).hexdigest() != described["sha256"]:
            raise ValueError("its tensors do not have the digest they were written with")
        step, state = described["step"], described["state"]
        if type(step) is not int or step < 0 or not isinstance(state, dict):
            raise ValueError(f"its step is {step!r} and its state {type(state).__name__}")
        return Checkpoint(step, load_tensors(content), state)


def _digest_of(described: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
