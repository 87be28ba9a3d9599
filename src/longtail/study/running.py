"""Running what is missing, one cell after the other in this process or several at a time in processes of their own."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO

import torch

from longtail.api import run_config
from longtail.errors import EXIT_BUG, EXIT_INTERRUPT, EXIT_SIGTERM, LongtailError, ResourceError, StoppedError
from longtail.files import disk_error
from longtail.runs.interrupts import StopRequest, stop_signals
from longtail.study.cells import Cell, Finder
from longtail.study.watching import CellListener, StudyLines, last_epoch

POLL_SECONDS = 0.1
LOGS = "logs"


@dataclass(frozen=True)
class Failure:
    """A cell that did not end well: its exit code and its message."""

    cell: Cell
    code: int
    message: str


class _Asked(BaseException):
    """A signal between two trainings; no handler of errors on the way may take it for one."""

    def __init__(self, number: int) -> None:
        self.number = number


def run_cells(cells: Sequence[Cell], finder: Finder, watch: StudyLines, out: Path, jobs: int = 1) -> list[Failure]:
    """Run ``cells`` in their order, at most ``jobs`` at a time; what failed is returned, and the others go on.

    Raises StoppedError after SIGTERM or Ctrl-C, when every run has saved a checkpoint and ended.
    """
    if jobs == 1:
        return _one_by_one(cells, finder, watch)
    return _Pool(finder, watch, out, jobs).run(cells)


# In this process --------------------------------------------------------------------------------------------------


def _one_by_one(cells: Sequence[Cell], finder: Finder, watch: StudyLines) -> list[Failure]:
    failures: list[Failure] = []
    try:
        with _raising_signals():
            for cell in cells:
                if (failure := _blocked(cell, failures)) is None:
                    watch.started(cell)
                    failure = _train_here(cell, watch)
                _close(cell, failure, failures, finder, watch)
    except _Asked as asked:
        raise stopped(asked.number) from None
    except StoppedError as error:
        raise stopped(signal.SIGTERM if error.exit_code == EXIT_SIGTERM else signal.SIGINT) from None
    return failures


def _train_here(cell: Cell, watch: StudyLines) -> Failure | None:
    command = ["longtail", "train", *cell.words, f"--out={cell.folder}"]
    try:
        run_config(cell.config, resume=True, listener=CellListener(watch, cell), command=command)
    except StoppedError:
        raise
    except LongtailError as error:
        return Failure(cell, error.exit_code, error.message)
    except Exception as error:  # a bug of ours in one cell is no reason to lose the night's others
        return Failure(cell, EXIT_BUG, f"this is a bug of longtail: {type(error).__name__}: {error}")
    finally:
        if "torch._dynamo" in sys.modules:
            torch.compiler.reset()
    return None


@contextlib.contextmanager
def _raising_signals() -> Iterator[None]:
    """Where no training listens to them, SIGTERM and Ctrl-C end the study at once: nothing is half written there."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ask(number: int, frame: FrameType | None) -> None:
        raise _Asked(number)

    previous = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


# In processes of their own ----------------------------------------------------------------------------------------


class _Pool:
    """At most ``jobs`` children at a time, each ``longtail train`` in a session of its own.

    A terminal's Ctrl-C then reaches the study alone, which passes it on once: a second one ends a run without saving.
    """

    def __init__(self, finder: Finder, watch: StudyLines, out: Path, jobs: int) -> None:
        self.finder, self.watch, self.out, self.jobs = finder, watch, out, jobs
        self.children: dict[Cell, tuple[subprocess.Popen[bytes], IO[bytes]]] = {}
        self.failures: list[Failure] = []

    def run(self, cells: Sequence[Cell]) -> list[Failure]:
        waiting = list(cells)
        with stop_signals() as stop:
            try:
                while waiting or self.children:
                    if stop.requested:
                        self._stop(stop)
                    for cell in [one for one in waiting if self._may_start(one, waiting)]:
                        if len(self.children) < self.jobs:
                            waiting.remove(cell)
                            self._start(cell)
                    self._collect()
                    time.sleep(POLL_SECONDS)
            finally:
                self._end_all(signal.SIGTERM)
        if stop.requested:
            raise stopped(stop.signal or signal.SIGTERM)
        return self.failures

    def _may_start(self, cell: Cell, waiting: Sequence[Cell]) -> bool:
        return cell.start is None or (cell.start not in waiting and cell.start not in self.children)

    def _start(self, cell: Cell) -> None:
        failure = _blocked(cell, self.failures)
        if failure is not None:
            _close(cell, failure, self.failures, self.finder, self.watch)
            return
        self.watch.started(cell)
        path = self.out / LOGS / f"{cell.folder.name}.log"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            log = path.open("wb")
        except OSError as error:
            raise disk_error(path, error) from error
        words = [sys.executable, "-m", "longtail", "train", *cell.words, f"--out={cell.folder}", "--resume"]
        child = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        self.children[cell] = (child, log)

    def _collect(self) -> None:
        for cell, (child, log) in list(self.children.items()):
            code = child.poll()
            if code is None:
                self.watch.progressed(cell, last_epoch(cell.folder))
                continue
            log.close()
            del self.children[cell]
            failure = None if code == 0 else _failure_of(cell, code, Path(log.name))
            _close(cell, failure, self.failures, self.finder, self.watch)

    def _stop(self, stop: StopRequest) -> None:
        number = stop.signal or signal.SIGTERM
        self._end_all(number)
        raise stopped(number)

    def _end_all(self, number: int) -> None:
        for child, _ in self.children.values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(child.pid, number)
        for child, log in self.children.values():
            child.wait()
            log.close()
        self.children.clear()


def _failure_of(cell: Cell, code: int, log: Path) -> Failure:
    if code < 0:
        name = signal.Signals(-code).name
        memory = " (out of memory?)" if -code == signal.SIGKILL else ""
        killed = ResourceError.exit_code if -code == signal.SIGKILL else EXIT_BUG
        return Failure(cell, killed, f"ended by {name}{memory}; its output is in {log}")
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    said = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return Failure(cell, code, said[-1] if said else f"exit code {code}; its output is in {log}")


# For both ---------------------------------------------------------------------------------------------------------


def _blocked(cell: Cell, failures: Sequence[Failure]) -> Failure | None:
    """A cell that starts from another that failed cannot run."""
    for failure in failures:
        if failure.cell is cell.start:
            return Failure(cell, failure.code, f"it starts from {failure.cell.name}, which failed")
    return None


def _close(cell: Cell, failure: Failure | None, failures: list[Failure], finder: Finder, watch: StudyLines) -> None:
    if failure is None:
        finder.look(cell)
    else:
        failures.append(failure)
    watch.ended(cell, None if failure is None else failure.message)


def stopped(number: int) -> StoppedError:
    """What is raised when a signal ended the study and all has been saved."""
    name, code = ("SIGTERM", EXIT_SIGTERM) if number == signal.SIGTERM else ("Ctrl-C", EXIT_INTERRUPT)
    return StoppedError(f"The study was stopped by {name}.", exit_code=code, hint="The same command goes on with it.")
