"""Typed errors: what is wrong, where, what to do, and the exit code that goes with it.

Everything a user can cause is a :class:`LongtailError`; anything else that reaches the command line is a bug of ours.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

EXIT_BUG = 1
EXIT_SIGTERM = 75
EXIT_INTERRUPT = 130


class LongtailError(Exception):
    """An error with an exit code and, where there is one, a way out.

    ``message`` says what is wrong and where; ``hint`` says what to do.
    """

    exit_code = EXIT_BUG
    said = False
    """Whether another process of the same job says it."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message}\n{self.hint}"


class ConfigError(LongtailError, ValueError):
    """Refused by the command line or the configuration alone (exit 2)."""

    exit_code = 2


class DataError(LongtailError, ValueError):
    """Refused after looking at the data: absent, unreadable, too few images, labels out of range (exit 3)."""

    exit_code = 3


class RunError(LongtailError):
    """A run folder, checkpoint or model file that cannot be used (exit 4)."""

    exit_code = 4


class DivergedError(LongtailError):
    """Training produced a value that is not finite (exit 5).

    ``report`` holds what is known of the step as built-in types: step, epoch, rate, loss, norm, images.
    """

    exit_code = 5

    def __init__(self, message: str, *, hint: str | None = None, report: Mapping[str, Any] | None = None) -> None:
        super().__init__(message, hint=hint)
        self.report = dict(report or {})


class ResourceError(LongtailError):
    """Out of memory or disk (exit 6)."""

    exit_code = 6


class LostProcessError(ResourceError):
    """Another process of the same job is gone (exit 6)."""


class StoppedError(LongtailError):
    """Training was asked to stop by a signal and saved a checkpoint first (exit 75 for SIGTERM, 130 for Ctrl-C)."""

    def __init__(self, message: str, *, exit_code: int, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.exit_code = exit_code


def nearest(name: str, known: Iterable[str], cutoff: float = 0.5) -> str | None:
    """The known name most similar to ``name``, or None if nothing comes near (difflib's ratio, 1 for equal names)."""
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return found[0] if found else None


def unknown_name(kind: str, name: str, known: Iterable[str]) -> ConfigError:
    """The error for a name that is not in a table: it gives the nearest match, or the whole list if nothing is near."""
    names = sorted(known)
    match = nearest(name, names)
    hint = f"Did you mean '{match}'?" if match else f"Known: {', '.join(names)}."
    return ConfigError(f"Unknown {kind} '{name}'.", hint=hint)
