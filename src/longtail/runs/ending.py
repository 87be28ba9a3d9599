"""How a command ends where no typed error says so: stopped outside of training, out of memory, out of disk."""

from __future__ import annotations

import contextlib
import errno
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from longtail.errors import EXIT_INTERRUPT, EXIT_SIGTERM, LongtailError, ResourceError, StoppedError

DISK_FAULTS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.EMFILE, errno.ENFILE})
"""What a disk or the system refuses, whoever asks; every other OSError that nobody caught is a bug."""


class _Stop(BaseException):
    """A signal; no handler of errors on the way may take it for one."""

    def __init__(self, number: int) -> None:
        self.number = number


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Within it SIGTERM and Ctrl-C end the command by StoppedError, while PyTorch is imported and images are read too.

    Training and studies have their own way within this one: they save first.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise _Stop(number)

    previous = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    except _Stop as caught:
        name, code = ("SIGTERM", EXIT_SIGTERM) if caught.number == signal.SIGTERM else ("Ctrl-C", EXIT_INTERRUPT)
        raise StoppedError(f"Stopped by {name} outside of training; nothing was lost.", exit_code=code) from None
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def out_of_memory(error: Exception) -> bool:
    """Whether it says that an allocation failed; PyTorch's on the CPU is a RuntimeError like any other."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    said = str(error)
    return isinstance(error, RuntimeError) and ("can't allocate memory" in said or "not enough memory" in said)


def untyped(error: Exception) -> LongtailError | None:
    """The typed error for one of Python's own that is nobody's mistake, or None for a bug of ours."""
    if out_of_memory(error):
        return ResourceError(
            "Out of memory.", hint="Take fewer or smaller images (data.size), or close other programs."
        )
    if isinstance(error, OSError) and error.errno in DISK_FAULTS:
        place = "" if error.filename is None else f"{error.filename}: "
        return ResourceError(f"{place}{error.strerror}.", hint="Free some space or choose another place.")
    return None
