"""The run folder of a job of several processes: the first reads and writes, and all get what it read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from longtail.processes.distributed import from_first, is_first, world_size
from longtail.runs.rundir import Checkpoint, RunDir


def open_run_dir(path: Path | str) -> RunDir:
    """The folder of a run, for this process alone or for the job that it is one of."""
    return RunDir(path) if world_size() == 1 else JobDir(path)


class JobDir(RunDir):
    """A run folder of which every process makes the same calls in the same order.

    It has to be there for the first process only. What it raises, a full disk or a folder in use, all raise.
    """

    @property
    def is_run(self) -> bool:
        return from_first(lambda: self._alone.is_run)

    @property
    def has_started(self) -> bool:
        return from_first(lambda: self._alone.has_started)

    @property
    def has_checkpoint(self) -> bool:
        return from_first(lambda: self._alone.has_checkpoint)

    @property
    def _alone(self) -> RunDir:
        return RunDir(self.path)

    def refuse_unless_new(self) -> None:
        from_first(self._alone.refuse_unless_new)

    def delete(self) -> None:
        from_first(self._alone.delete)

    def create(self) -> None:
        from_first(self._alone.create)

    def lock(self) -> None:
        from_first(super().lock)

    def unlock(self) -> None:
        if is_first():  # on the way out of an error too, when nobody may be left to wait for
            super().unlock()

    def write_config(self, values: Mapping[str, Any]) -> None:
        from_first(lambda: self._alone.write_config(values))

    def read_config(self) -> dict[str, Any]:
        return from_first(self._alone.read_config)

    def update_description(self, **values: Any) -> None:
        from_first(lambda: self._alone.update_description(**values))

    def description(self) -> dict[str, Any]:
        return from_first(self._alone.description)

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        from_first(lambda: self._alone.append_metrics(row))

    def cut_metrics(self, epochs_done: int) -> None:
        from_first(lambda: self._alone.cut_metrics(epochs_done))

    def read_metrics(self) -> list[dict[str, Any]]:
        return from_first(self._alone.read_metrics)

    def save_checkpoint(self, checkpoint: Checkpoint, kept: int | None = None) -> None:
        from_first(lambda: self._alone.save_checkpoint(checkpoint, kept))

    def save_best(self, checkpoint: Checkpoint) -> None:
        from_first(lambda: self._alone.save_best(checkpoint))

    def load_checkpoint(self) -> Checkpoint | None:
        alone = self._alone
        found = from_first(alone.load_checkpoint)
        self.warnings += alone.warnings
        return found

    def load_step(self, step: int) -> Checkpoint | None:
        return from_first(lambda: self._alone.load_step(step))

    def load_best(self) -> Checkpoint:
        return from_first(self._alone.load_best)
