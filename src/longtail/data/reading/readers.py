"""Who reads image files while a run goes on: processes of their own, or threads of this one."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection, wait
from typing import Generic, TypeVar

import torch

from longtail.data.reading.decoding import quiet_pillow
from longtail.errors import ResourceError

A = TypeVar("A")
R = TypeVar("R")


class _Processes:
    """The processes there are: none until they are wanted, and then the same ones until another number is."""

    def __init__(self) -> None:
        self.count = 0
        self.pool: ProcessPoolExecutor | None = None
        self.lifeline: Connection | None = None

    def started(self) -> ProcessPoolExecutor:
        if self.pool is None:
            context = _context()
            watched, self.lifeline = context.Pipe(duplex=False)
            self.pool = ProcessPoolExecutor(self.count, mp_context=context, initializer=_begin, initargs=(watched,))
        return self.pool

    def ended(self) -> None:
        """Forget the pool. A process that is left ends by itself: it ignores signals, and may wait for a dead one."""
        self.pool = None
        if self.lifeline is not None:
            self.lifeline.close()


_PROCESSES = _Processes()


def read_by(processes: int) -> None:
    """Have so many processes read image files from now on; 0 takes threads of this process.

    Results do not depend on it. The processes start when the first files are asked for, and stay for the next run.
    """
    if processes != _PROCESSES.count:
        close_readers()
        _PROCESSES.count = processes


def close_readers() -> None:
    """End the processes that read image files; they start again when they are needed."""
    if _PROCESSES.pool is not None:
        _PROCESSES.pool.shutdown(wait=True, cancel_futures=True)
    _PROCESSES.ended()


class Asked(Generic[R]):
    """What was asked of the readers: they work on it while this process does something else.

    Without processes nothing is done before :meth:`take`.
    """

    def __init__(self, task: Callable[[A], R], given: Sequence[A]) -> None:
        self._given = [(task, one) for one in given]
        self._futures: list[Future[R]] | None = None
        if _PROCESSES.count:
            with _clear():
                pool = _PROCESSES.started()
                self._futures = [pool.submit(task, one) for one in given]

    def take(self) -> list[R]:
        """The results, in the order in which they were asked for; ResourceError where a process has died."""
        if self._futures is not None:
            with _clear():
                return [future.result() for future in self._futures]
        with quiet_pillow(), ThreadPoolExecutor(torch.get_num_threads()) as pool:
            return list(pool.map(lambda pair: pair[0](pair[1]), self._given))

    def drop(self) -> None:
        """Nobody will take it."""
        for future in self._futures or ():
            future.cancel()


def read(task: Callable[[A], R], given: Sequence[A]) -> list[R]:
    """``task`` of each, by the readers."""
    return Asked(task, given).take()


def in_turn(task: Callable[[A], R], groups: Iterable[Sequence[A]]) -> Iterator[list[R]]:
    """The results of one group after the other; the readers work on the next one while one is used."""
    ahead: Asked[R] | None = None
    try:
        for group in groups:
            asked = Asked(task, group)
            if ahead is not None:
                now, ahead = ahead, asked
                yield now.take()
            ahead = asked
        if ahead is not None:
            yield ahead.take()
    finally:
        if ahead is not None:
            ahead.drop()


@contextlib.contextmanager
def _clear() -> Iterator[None]:
    try:
        yield
    except BrokenProcessPool:
        _PROCESSES.ended()
        raise ResourceError(
            "A process that reads images has died: it was killed, or the machine is out of memory.",
            hint="Lower run.workers (0 reads in this process). A script of your own has to start training below "
            'if __name__ == "__main__".',
        ) from None


def _context() -> multiprocessing.context.BaseContext:
    """Processes that are made of a small one that has PyTorch loaded: a fork of this one might inherit held locks."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["longtail.data.reading.cutting"])
    return context


def _begin(lifeline: Connection) -> None:
    """What a process does first. Signals to the whole group are for the main process, which ends its readers."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # Pillow's, of damaged EXIF and the like
    threading.Thread(target=_end_with_parent, args=(lifeline,), daemon=True).start()


def _end_with_parent(lifeline: Connection) -> None:
    parent = multiprocessing.parent_process()
    wait([lifeline, *([] if parent is None else [parent.sentinel])])
    os._exit(1)
