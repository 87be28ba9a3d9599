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


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Within it SIGTERM and Ctrl-C end the command by :class:`StoppedError`, while PyTorch is imported too.

    Training has its own way, which saves a checkpoint first.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        raise _stopped("SIGTERM", EXIT_SIGTERM)

    main = threading.current_thread() is threading.main_thread()
    previous = signal.signal(signal.SIGTERM, stop) if main else None
    try:
        yield
    except KeyboardInterrupt:
        raise _stopped("Ctrl-C", EXIT_INTERRUPT) from None
    finally:
        if main:
            signal.signal(signal.SIGTERM, previous)


def _stopped(name: str, code: int) -> StoppedError:
    return StoppedError(f"Stopped by {name} outside of training; nothing was lost.", exit_code=code)


def untyped(error: Exception) -> LongtailError | None:
    """The typed error for one of Python's own that is nobody's mistake, or None for a bug of ours."""
    if isinstance(error, MemoryError):
        return ResourceError(
            "Out of memory.", hint="Take fewer or smaller images (data.size), or close other programs."
        )
    if isinstance(error, OSError) and error.errno in DISK_FAULTS:
        place = "" if error.filename is None else f"{error.filename}: "
        return ResourceError(f"{place}{error.strerror}.", hint="Free some space or choose another place.")
    return None
