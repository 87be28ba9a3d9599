"""A search: trials drawn by Optuna, trained like the rows of a study, compared on val and on nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from longtail.data.open import open_data
from longtail.errors import ConfigError, DataError, DivergedError, RunError
from longtail.evaluation.metrics import group_labels
from longtail.files import disk_error
from longtail.runs.interrupts import locked, stop_signals
from longtail.runs.rundir import RunDir
from longtail.study import CellsFailedError
from longtail.study.cells import Cell, Finder
from longtail.study.journal import Drawn, Journal
from longtail.study.running import Failure, run_cells, stopped
from longtail.study.search_file import METRICS, Search, read_search
from longtail.study.search_plan import SearchPlan
from longtail.study.sweep_watching import SearchLines

FAILED_BY_SETTINGS = (ConfigError.exit_code, DivergedError.exit_code)
"""Exit codes of a run that its settings are to blame for. Others end the search, and the trial stays open."""


def plan_search(path: str | Path, overrides: Mapping[str, Any] | None = None, *, out: Path | None = None) -> SearchPlan:
    """Read a search and what there is of it; nothing is written.

    Raises ConfigError for whatever is wrong with the file, where Optuna is missing, and where the folder is of another
    search; DataError where the images have no val split or none for the metric.
    """
    search = read_search(path, overrides)
    out = out or Path("runs") / "studies" / search.study.name
    plan = SearchPlan(search, out, Journal(out, search).look())
    if plan.open or plan.missing:
        plan.images = _check_images(search)
    return plan


def _check_images(search: Search) -> str:
    """The digest of the images, if there are val images apart from training and the metric has a number on them."""
    settings = search.first.data
    data = open_data(settings)
    if data.selected_on != "val":
        raise DataError(
            f"{search.study.path}: a search chooses on val, and {settings.path} has no val images: "
            f"they would be {data.selected_on} images.",
            hint="Keep some from training with data.val in settings: a number of images a class, e.g. data.val: 5",
        )
    groups = group_labels(data.stats.counts, settings.groups)
    if search.metric in ("many", "medium", "few") and search.metric not in groups:
        raise DataError(
            f"{search.study.path}: metric={search.metric}: no class is {search.metric}-shot with data.groups="
            f"{list(settings.groups)}.",
            hint="Take another metric, or set data.groups.",
        )
    return data.fingerprint


def run_search(plan: SearchPlan, watch: SearchLines, jobs: int = 1) -> None:
    """Run the trials that are missing and write the tables, also when stopped.

    With ``jobs`` above the number of seeds, so many trials are drawn at once that all jobs have a run; the next ones
    are drawn when these have ended. Raises StoppedError after a signal, CellsFailedError for a failure that is not one
    of the settings, DivergedError where no trial ended well.
    """
    watch.begin()
    if plan.open or plan.missing:
        try:
            plan.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise disk_error(plan.out, error) from error
        with locked(RunDir(plan.out)):
            _Searching(plan, watch, jobs).run()
    else:
        watch.close()
        plan.write_tables()
    if plan.best is None:
        last = plan.drawn[-1]
        raise DivergedError(
            f"None of {len(plan.drawn)} trials ended well. {last.name}: {last.message}",
            hint="Narrow the space, and choose another --out DIR.",
        )


class _Searching:
    """Draws, trains, compares, until there are as many trials as wanted."""

    def __init__(self, plan: SearchPlan, watch: SearchLines, jobs: int) -> None:
        self.plan, self.watch, self.jobs = plan, watch, jobs
        self.journal = Journal(plan.out, plan.search)
        self.finder = Finder(plan.out / "kept", "none")  # kept results have no numbers on val: none are looked for

    def run(self) -> None:
        plan = self.plan
        self.journal.open(plan.images)
        plan.drawn = self.journal.trials()
        with stop_signals() as stop:  # a training listens for itself; in between nothing is left half written
            try:
                while batch := self._next():
                    self._train(batch)
                    if stop.signal is not None:
                        raise stopped(stop.signal)
            finally:
                self.watch.close()
                plan.write_tables()

    def _next(self) -> list[Drawn]:
        """As many trials as give every job a run: those that were begun, then new ones."""
        size = -(-self.jobs // len(self.plan.search.study.seeds))
        batch = self.plan.open[:size]
        while len(batch) < size and self.plan.missing:
            batch.append(self.journal.draw())
            self.plan.drawn.append(batch[-1])
        return batch

    def _train(self, batch: Sequence[Drawn]) -> None:
        cells = {trial.number: self._prepared(trial) for trial in batch}
        failures: list[Failure] = []
        todo = [cell for number in cells for cell in cells[number] if cell.finished is None]
        for part in [[cell] for cell in todo] if self.jobs == 1 else [todo]:
            # One after the other, a trial of which one seed failed is not trained with the next.
            failures += run_cells(part, self.finder, self.watch, self.plan.out, self.jobs)
            if failures:
                break
        by_trial = {number: [one for one in failures if one.cell in own] for number, own in cells.items()}
        for trial in batch:
            failed, own = by_trial[trial.number], cells[trial.number]
            if failed and all(map(_of_the_settings, failed)):
                self._fail(trial, f"seed {failed[0].cell.seed}: {failed[0].message.splitlines()[0]}")
            elif own and not failed:
                self._finish(trial, [on_val(cell, self.plan.search.metric) for cell in own])
        others = [failure for failure in failures if not _of_the_settings(failure)]
        if others:
            raise CellsFailedError(others)

    def _prepared(self, trial: Drawn) -> list[Cell]:
        """The runs of a trial with what is finished of them; none where that already tells how it ends."""
        search = self.plan.search
        settings = search.drawn(trial.parameters)
        for other in self.plan.drawn:
            if other.state != "open" and search.drawn(other.parameters) == settings:
                self.watch.say(f"{trial.name} has the settings of {other.name}, and so its numbers")
                if other.state == "finished":
                    self._finish(trial, other.values)
                else:
                    self._fail(trial, other.message)
                return []
        try:
            cells = self.plan.cells(trial)
        except ConfigError as error:
            self.watch.say(f"{trial.name}: failed: {error.message}")
            self._fail(trial, error.message.splitlines()[0])
            return []
        for cell in cells:
            self.finder.look(cell)
        return cells

    def _finish(self, trial: Drawn, values: Sequence[float]) -> None:
        self.journal.finish(trial.number, values)
        self.plan.drawn = self.journal.trials()
        self.watch.compared(self.plan.drawn[trial.number])

    def _fail(self, trial: Drawn, message: str) -> None:
        self.journal.fail(trial.number, message)
        self.plan.drawn = self.journal.trials()
        self.watch.compared(self.plan.drawn[trial.number])


def _of_the_settings(failure: Failure) -> bool:
    """Whether a run failed by its settings, so that another trial may do better; a network may be too large for it."""
    return failure.code in FAILED_BY_SETTINGS or failure.message.startswith("Out of memory")


def on_val(cell: Cell, metric: str) -> float:
    """The metric of the last evaluated epoch on val, from metrics.jsonl: what results.json has is of the test images.

    Raises RunError where the line is not of val, or has no such number.
    """
    rows = RunDir(cell.folder).read_metrics()
    row = rows[-1] if rows else {}
    value = row.get(metric)
    if row.get("evaluated_on") != "val" or value is None:
        raise RunError(
            f"{cell.folder / 'metrics.jsonl'}: its last line has no {METRICS[metric]} on val.",
            hint=f"Delete {cell.folder}, and the same command makes it anew.",
        )
    return float(value)
