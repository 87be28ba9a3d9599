"""The base of all settings, and times that are fractions of a run or epochs."""

from __future__ import annotations

import contextlib
import math
import os
import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict


class Settings(BaseModel):
    """Settings that refuse unknown keys and numbers without an end, and cannot change once made."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=(), use_attribute_docstrings=True
    )


def _from_anywhere(value: str) -> str:
    if re.match(r"[a-z][a-z0-9+.-]+://", value, re.IGNORECASE):
        raise ValueError("this is an address, and nothing is fetched: download it, unpack it, and give its path here")
    try:
        path = str(Path(value).expanduser().absolute())
    except RuntimeError as error:  # ~NAME of nobody
        raise ValueError(str(error).rstrip(".")) from None
    short = os.path.normpath(path)
    with contextlib.suppress(ValueError):  # a name that no file can have: who opens it says so
        if short != path and os.path.realpath(short) != os.path.realpath(path):
            return path  # a/.. is elsewhere where a is a link
    return short


AbsolutePath = Annotated[str, AfterValidator(_from_anywhere)]
"""A path that is made absolute, so that a run's config.yaml repeats it from any working directory. One file has one
spelling: ``a/../b`` and ``b`` are the same settings."""


def _check_time(value: int | float) -> int | float:
    if isinstance(value, bool) or not math.isfinite(value):
        raise ValueError("must be a fraction of the run (0.8) or a number of epochs (an integer)")
    if value < 0:
        raise ValueError("must not be negative")
    if isinstance(value, float) and value > 1:
        if not value.is_integer():
            raise ValueError("must be a fraction of the run between 0 and 1, or a whole number of epochs")
        return int(value)
    return value


Time = Annotated[int | float, AfterValidator(_check_time)]
"""A point in a run: a float in [0, 1] is a fraction of it, an integer >= 1 a number of epochs."""


def resolve_time(time: int | float, epochs: int, *, round_up: bool = False) -> int:
    """The epoch that ``time`` means in a run of ``epochs``, at most ``epochs``.

    A fraction is rounded to the nearest epoch (halves up), or up where ``round_up`` is set, as for warm-up: 5 epochs of
    200 stay one epoch of 20.
    """
    if isinstance(time, int):
        return min(time, epochs)
    exact = round(time * epochs, 9)
    return min(math.ceil(exact) if round_up else math.floor(exact + 0.5), epochs)


def leaves_none(time: int | float, epochs: int) -> bool:
    """Whether what begins at ``time`` never begins in a run of ``epochs``.

    A fraction below 1 that is rounded up to a short run's end is no mistake: the same recipe has epochs left when it is
    longer.
    """
    return time >= (epochs if isinstance(time, int) else 1)
