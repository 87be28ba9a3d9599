"""Studies: a grid of runs that is finished piece by piece, and the tables that come of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longtail.errors import ConfigError, LongtailError, nearest
from longtail.files import disk_error
from longtail.runs.interrupts import stop_signals
from longtail.study.cells import Cell, Finder, chosen, study_cells
from longtail.study.file import Study, read_study
from longtail.study.running import Failure, run_cells
from longtail.study.table import study_results
from longtail.study.writing import write_tables

if TYPE_CHECKING:
    from longtail.study.watching import StudyLines

__all__ = ["CellsFailedError", "Plan", "Study", "plan_study", "read_study", "run_study"]


class CellsFailedError(LongtailError):
    """Some cells failed; the exit code is that of a diverged one if there is one, else of the first."""

    def __init__(self, failures: Sequence[Failure]) -> None:
        lines = [f"{failure.cell.name}: {failure.message.splitlines()[0]}" for failure in failures]
        super().__init__(
            "\n".join([f"{len(failures)} runs failed:", *lines]), hint="The same command tries them again."
        )
        codes = [failure.code for failure in failures]
        self.exit_code = 5 if 5 in codes else codes[0]


class Plan:
    """A study, its cells with what was found of them, and what is to be run."""

    def __init__(self, study: Study, out: Path, only: Sequence[str] = ()) -> None:
        self.study, self.out = study, out
        labels = [row.label for row in study.rows]
        for label in only:
            if label not in labels:
                match = nearest(label, labels)
                hint = f"Did you mean '{match}'?" if match else f"Rows: {', '.join(labels)}."
                raise ConfigError(f"{study.path} has no row '{label}'.", hint=hint)
        self.finder = Finder(Path("results"), study.name)
        self.cells = study_cells(study, out)
        for cell in self.cells:
            self.finder.look(cell)
        self.todo: list[Cell] = chosen(self.cells, only)

    def write_tables(self, failed: Mapping[Cell, str] | None = None) -> None:
        """Write the tables of what is finished, with a line for each cell that failed."""
        sentences = [f"{cell.name}: {message}" for cell, message in (failed or {}).items()]
        labels = [row.label for row in self.study.rows]
        results = study_results(self.study.name, labels, self.study.baseline, self.cells, sentences)
        try:
            self.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise disk_error(self.out, error) from error
        write_tables(self.out, results)


def plan_study(
    path: str | Path,
    overrides: Mapping[str, Any] | None = None,
    *,
    out: Path | None = None,
    only: Sequence[str] = (),
) -> Plan:
    """Read a study and find what is finished; nothing is written. Raises ConfigError for whatever is wrong."""
    study = read_study(path, overrides)
    return Plan(study, out or Path("runs") / "studies" / study.name, only)


def run_study(plan: Plan, watch: StudyLines, jobs: int = 1) -> None:
    """Run what is missing and write the tables, also when stopped.

    Raises StoppedError after a signal, and CellsFailedError at the end if cells failed.
    """
    watch.planned(plan.cells, plan.todo)
    try:
        failures = run_cells(plan.todo, plan.finder, watch, plan.out, jobs)
    finally:
        watch.close()
        with stop_signals():  # a moment; a signal now would leave the tables behind the runs
            plan.write_tables(watch.failed)
    if failures:
        raise CellsFailedError(failures)
