"""Signals, locks and memory faults, turned into typed errors around the training loop."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from longtail.errors import EXIT_INTERRUPT, EXIT_SIGTERM, ResourceError, StoppedError
from longtail.processes.distributed import largest
from longtail.runs.ending import out_of_memory
from longtail.runs.rundir import RunDir


class StopRequest:
    """Set by SIGTERM or Ctrl-C; the loop looks at it after every step and every evaluated batch."""

    def __init__(self) -> None:
        self.signal: int | None = None

    @property
    def requested(self) -> bool:
        """Whether a stop was asked for."""
        return self.signal is not None

    def is_set(self) -> bool:
        """Whether a stop was asked for of any process of the job, all of which ask together."""
        self.agree()
        return self.requested

    def agree(self, *others: bool) -> list[bool]:
        """Let a stop that was asked of one process be one of all; so for other reasons, of which it returns as many."""
        number, *found = largest(self.signal or 0, *others)
        if number:
            self.signal = number
        return [bool(reason) for reason in found]

    def error(self, path: Path) -> StoppedError:
        """What is raised once a checkpoint is saved."""
        name, code = ("SIGTERM", EXIT_SIGTERM) if self.signal == signal.SIGTERM else ("Ctrl-C", EXIT_INTERRUPT)
        return StoppedError(
            f"Stopped by {name}; the checkpoint is in {path}.", exit_code=code, hint="Go on with --resume."
        )


def out_of_time(path: Path, minutes: float | None) -> StoppedError:
    """What is raised once a checkpoint is saved, after a start took its ``run.stop_after_minutes``."""
    return StoppedError(
        f"Stopped after {minutes:g} minutes (run.stop_after_minutes); the checkpoint is in {path}.",
        exit_code=EXIT_SIGTERM,
        hint="Go on with --resume.",
    )


@contextlib.contextmanager
def stop_signals() -> Iterator[StopRequest]:
    """Turn SIGTERM and SIGINT into a request for the time of the block (in the main thread; elsewhere do nothing)."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def ask(number: int, frame: FrameType | None) -> None:
        if request.requested and number == signal.SIGINT:
            sys.exit(EXIT_INTERRUPT)  # a second Ctrl-C does not wait for the step
        request.signal = number

    previous = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def locked(run: RunDir) -> Iterator[None]:
    """Hold the folder's lock for the time of the block."""
    run.lock()
    try:
        yield
    finally:
        run.unlock()


@contextlib.contextmanager
def memory_errors() -> Iterator[None]:
    """Turn an allocation that failed into ResourceError."""
    hint = "Lower optim.batch or the image size."
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if out_of_memory(error):
            raise ResourceError("Out of memory.", hint=hint) from error
        raise
