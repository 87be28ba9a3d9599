"""What a person sees while a search goes on: numbers on val, never those that results.json has of the test images."""

from __future__ import annotations

import time

from rich.console import Console, Group
from rich.markup import escape
from rich.table import Table

from longtail.study.cells import Cell
from longtail.study.journal import Drawn
from longtail.study.search_file import METRICS
from longtail.study.search_plan import SearchPlan
from longtail.study.sweep_tables import best_first, shown
from longtail.study.watching import StudyLines, StudyTable, last_epoch
from longtail.training.display import clock

ROWS = 10
"""Of the live table: the best trials so far."""


class SearchLines(StudyLines):
    """Plain lines: those of a study, and one when a trial ends with what it came to."""

    def __init__(self, console: Console, plan: SearchPlan) -> None:
        self.plan = plan
        super().__init__(console)

    def begin(self) -> None:
        """Called once, before the first trial."""
        plan = self.plan
        ended = sum(trial.state != "open" for trial in plan.drawn)
        to_run = len(plan.open) + plan.missing
        self.say(f"{plan.search.trials} trials: {ended} ended, {to_run} to be run; chosen by {self._metric} on val")

    def compared(self, trial: Drawn) -> None:
        """A trial has ended."""
        if trial.state == "finished":
            best = self.plan.best
            so_far = "" if best is None else f"; best so far {100 * best.mean:.2f} % ({best.name})"
            self.say(f"{trial.name}: {self._metric} {100 * trial.mean:.2f} % on val{so_far}")

    @property
    def _metric(self) -> str:
        return METRICS[self.plan.search.metric]

    def _number(self, cell: Cell) -> str:
        position = int(cell.labels[0].rpartition(" ")[2]) + 1
        return f"{position}/{self.plan.search.trials}"

    def _came_to(self, cell: Cell) -> str:
        return f"{last_epoch(cell.folder)} on val"


class SearchTable(SearchLines, StudyTable):
    """The same on a terminal: the best trials in a table that is redrawn, and the running cells below it."""

    def begin(self) -> None:
        super().begin()
        if self.plan.open or self.plan.missing:
            self.live.start()

    def _picture(self) -> Group:
        search, drawn = self.plan.search, self.plan.drawn
        ended = best_first(drawn)
        said = f"{len(ended)} of {search.trials} trials ended; the best {ROWS} so far, {self._metric} on val, %"
        table = Table(box=None, pad_edge=False, caption=said, caption_justify="left")
        table.add_column("trial")
        for name in ("on val", *(axis.key for axis in search.space)):
            table.add_column(escape(name), justify="right")
        for trial in ended[:ROWS]:
            number = f"{100 * trial.mean:.2f}" if trial.state == "finished" else "failed"
            values = [escape(shown(value)) for value in search.drawn(trial.parameters).values()]
            table.add_row(str(trial.number), number, *values)
        now = time.monotonic()
        lines = [f"{cell.name}: {text}  ({clock(now - self.began[cell])})" for cell, text in self.running.items()]
        return Group(table, *(escape(line) for line in lines))


def search_watcher_for(console: Console, plan: SearchPlan) -> SearchLines:
    """A live table where the console is a terminal, lines where it is a file or a pipe."""
    return SearchTable(console, plan) if console.is_terminal else SearchLines(console, plan)
