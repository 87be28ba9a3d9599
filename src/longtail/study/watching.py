"""What a person sees while a study goes on: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from longtail.evaluation.evaluate import describe
from longtail.study.cells import Cell
from longtail.training.display import clock, percent
from longtail.training.listeners import Silent

SECONDS_BETWEEN_LINES = 60.0


class StudyLines:
    """Plain lines: one when a cell starts, one when it ends, and at most once a minute how far it is."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.cells: Sequence[Cell] = ()
        self.running: dict[Cell, str] = {}
        self.failed: dict[Cell, str] = {}
        self.began: dict[Cell, float] = {}
        self._said: dict[Cell, tuple[float, str]] = {}

    def planned(self, cells: Sequence[Cell], todo: Sequence[Cell]) -> None:
        """Called once, before the first cell."""
        self.cells = cells
        done = sum(cell.finished is not None for cell in cells)
        self.say(f"{len(cells)} runs: {done} finished, {len(todo)} to be run")
        for cell in cells:
            for note in cell.notes:
                self.say(f"note: {cell.name}: {note}")

    def started(self, cell: Cell) -> None:
        """A cell starts, or goes on."""
        self.running[cell] = ""
        self.began[cell] = time.monotonic()
        self._said[cell] = self.began[cell], ""
        verb = "goes on" if cell.status == "stopped" else "starts"
        self.say(f"[{self._number(cell)}] {cell.name}: {verb} in {_shown(cell.folder)}")

    def progressed(self, cell: Cell, text: str) -> None:
        """A cell has something to show."""
        self.running[cell] = text
        then, said = self._said[cell]
        if text not in ("", said) and time.monotonic() - then > SECONDS_BETWEEN_LINES:
            self._said[cell] = time.monotonic(), text
            self.say(f"[{self._number(cell)}] {cell.name}: {text}")

    def ended(self, cell: Cell, error: str | None) -> None:
        """A cell is finished, or failed with a message."""
        self.running.pop(cell, None)
        if error is not None or cell.finished is None:
            self.failed[cell] = error or "stopped"
            self.say(f"[{self._number(cell)}] {cell.name}: failed: {self.failed[cell]}")
            return
        took = clock(time.monotonic() - self.began[cell])
        self.say(f"[{self._number(cell)}] {cell.name}: {self._came_to(cell)}, {took}")

    def say(self, line: str) -> None:
        """Print one line as it is."""
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Nothing more will come."""

    def _number(self, cell: Cell) -> str:
        return f"{list(self.cells).index(cell) + 1}/{len(self.cells)}"

    def _came_to(self, cell: Cell) -> str:
        assert cell.finished is not None
        return describe(cell.finished.results["last"])


class StudyTable(StudyLines):
    """The same on a terminal: the rows so far in a table that is redrawn, and the running cells below it."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self.live = Live(console=console, refresh_per_second=2, get_renderable=self._picture)

    def planned(self, cells: Sequence[Cell], todo: Sequence[Cell]) -> None:
        super().planned(cells, todo)
        if todo:
            self.live.start()

    def started(self, cell: Cell) -> None:
        self.running[cell] = "goes on" if cell.status == "stopped" else "starts"
        self.began[cell] = time.monotonic()

    def progressed(self, cell: Cell, text: str) -> None:
        self.running[cell] = text or self.running.get(cell, "")

    def close(self) -> None:
        self.live.stop()

    def _picture(self) -> Group:
        table = Table(box=None, pad_edge=False, caption="means so far, last epoch, %", caption_justify="left")
        for name in ("row", "finished", "failed", "top-1", "many", "medium", "few"):
            table.add_column(name, justify="left" if name == "row" else "right")
        for label in dict.fromkeys(label for cell in self.cells for label in cell.labels):
            cells = [cell for cell in self.cells if label in cell.labels]
            last = [cell.finished.results["last"] for cell in cells if cell.finished is not None]
            failed = sum(cell in self.failed for cell in cells)
            means = [mean_percent([row[name] for row in last]) for name in ("top1", "many", "medium", "few")]
            table.add_row(escape(label), f"{len(last)}/{len(cells)}", str(failed) if failed else "", *means)
        now = time.monotonic()
        lines = [f"{cell.name}: {text}  ({clock(now - self.began[cell])})" for cell, text in self.running.items()]
        return Group(table, *(escape(line) for line in lines))


class CellListener(Silent):
    """Passes on how far a cell is that trains in this process."""

    def __init__(self, watch: StudyLines, cell: Cell) -> None:
        self.watch, self.cell = watch, cell
        self.steps = 0
        self.last = ""

    def started(self, config: Any, data: Any, steps: int, first_step: int) -> None:
        self.steps = steps

    def stepped(self, step: int, logs: Mapping[str, float], images_per_second: float) -> None:
        self.watch.progressed(self.cell, f"step {step} of {self.steps}, {images_per_second:.0f} images/s{self.last}")

    def evaluated(self, row: Mapping[str, Any]) -> None:
        self.last = "; " + epoch_line(row)


def epoch_line(row: Mapping[str, Any]) -> str:
    """A line of metrics.jsonl for people."""
    return f"epoch {row['epoch']}: {describe(row)}"


def last_epoch(folder: Path) -> str:
    """The newest line of a running cell's metrics.jsonl for people; empty where there is none yet."""
    try:
        lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        return epoch_line(json.loads(lines[-1]))
    except (OSError, ValueError, LookupError):
        return ""


def mean_percent(values: Sequence[float | None]) -> str:
    """The mean of fractions in percent; a dash where there is none."""
    known = [value for value in values if value is not None]
    return percent(statistics.mean(known) if known else None)


def _shown(folder: Path) -> str:
    try:
        return str(folder.relative_to(Path.cwd()))
    except ValueError:
        return str(folder)


def watcher_for(console: Console) -> StudyLines:
    """A live table where the console is a terminal, lines where it is a file or a pipe."""
    return StudyTable(console) if console.is_terminal else StudyLines(console)
