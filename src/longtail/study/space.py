"""The space of a search: for each setting a range or a list of choices, and how a drawn parameter becomes its value."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import yaml

from longtail.errors import nearest
from longtail.study.located import Entry, LocatedYaml

RANGE_KEYS = ("low", "high", "step", "log", "int")
NOT_SEARCHED = {
    "data": "it would change the val images that the trials are compared on",
    "run": "it says how a run is computed, not what comes of it",
}
EXAMPLE = "Example:\nspace:\n  optim.lr: {low: 0.01, high: 0.5, log: true}\n  method.topk: [3, 5, 10]"
DIGITS = 6
"""Of a real parameter: more would only make commands longer."""


@dataclass(frozen=True)
class Range:
    """A setting between ``low`` and ``high``, both included: real or whole, even or on a log scale, maybe in steps."""

    key: str
    line: int
    low: float
    high: float
    step: float | None = None
    log: bool = False
    whole: bool = False

    def value(self, parameter: Any) -> float | int:
        """The value of the setting: a whole number, or a real one of six digits that stays within the range."""
        if self.whole:
            return int(parameter)
        return min(max(float(f"{parameter:.{DIGITS}g}"), self.low), self.high)

    def samples(self) -> list[float | int]:
        """Values that must all be settings: both ends, and one between that is not whole unless the range is."""
        if self.whole:
            return [int(self.low), int(self.high)]
        between = self.low + (self.step or 0.4142 * (self.high - self.low))
        return [self.low, self.value(between), self.high]

    def described(self) -> dict[str, Any]:
        """As it is compared when a search goes on."""
        return {"low": self.low, "high": self.high, "step": self.step, "log": self.log, "int": self.whole}


@dataclass(frozen=True)
class Choice:
    """A setting that is one of some values, without order. A parameter is the JSON of a value: lists are values too."""

    key: str
    line: int
    choices: tuple[str, ...]

    def value(self, parameter: Any) -> Any:
        """The value that a parameter stands for."""
        return json.loads(parameter)

    def samples(self) -> list[Any]:
        """Values that must all be settings: every one."""
        return [json.loads(choice) for choice in self.choices]

    def described(self) -> dict[str, Any]:
        """As it is compared when a search goes on."""
        return {"choices": list(self.choices)}


Axis = Range | Choice


def read_space(document: LocatedYaml, entry: Entry) -> tuple[Axis, ...]:
    """The axes in their order, from nested or dotted keys; raises ConfigError with line and key."""
    axes: list[Axis] = []
    for one in document.entries(entry.node, "space"):
        if "." in one.key:
            axes.append(_axis(document, one.key, one))
        elif isinstance(one.node, yaml.MappingNode):
            inner = document.entries(one.node, f"'{one.key}' of space")
            axes += [_axis(document, f"{one.key}.{below.key}", below) for below in inner]
        else:
            raise document.refusal(one.line, f"'{one.key}' cannot be searched: keys are like optim.lr.", EXAMPLE)
    if not axes:
        raise document.refusal(entry.line, "'space' is empty.", EXAMPLE)
    for position, axis in enumerate(axes):
        if any(axis.key == other.key for other in axes[:position]):
            raise document.refusal(axis.line, f"'{axis.key}' stands twice in space.")
    return tuple(axes)


def _axis(document: LocatedYaml, key: str, entry: Entry) -> Axis:
    reason = NOT_SEARCHED.get(key.partition(".")[0])
    if reason is not None:
        raise document.refusal(entry.line, f"'{key}' cannot be searched: {reason}.", "Set it in settings.")
    if isinstance(entry.node, yaml.SequenceNode):
        return _choice(document, key, entry)
    if not isinstance(entry.node, yaml.MappingNode):
        given = document.plain(entry.node)
        raise document.refusal(entry.line, f"{key}={given!r}: must be a range or a list of choices.", EXAMPLE)
    return _range(document, key, entry)


def _choice(document: LocatedYaml, key: str, entry: Entry) -> Choice:
    try:
        choices = [json.dumps(value, allow_nan=False) for value in document.plain(entry.node)]
    except (TypeError, ValueError):
        said = f"{key}: a choice must be a number, a text, true, false, null or a list of these."
        raise document.refusal(entry.line, said, "Quote it if it is meant as text.") from None
    if len(set(choices)) < max(2, len(choices)):
        what = "a choice stands twice" if len(choices) > 1 else "must be two choices or more"
        raise document.refusal(entry.line, f"{key}: {what}.", EXAMPLE)
    return Choice(key, entry.line, tuple(choices))


def _range(document: LocatedYaml, key: str, entry: Entry) -> Range:
    given: dict[str, Any] = {}
    for one in document.entries(entry.node, f"'{key}'"):
        if one.key not in RANGE_KEYS:
            match = nearest(one.key, RANGE_KEYS)
            hint = f"Did you mean '{match}'?" if match else f"A range has the keys {', '.join(RANGE_KEYS)}."
            raise document.refusal(one.line, f"{key}: Unknown key '{one.key}'.", hint)
        given[one.key] = document.plain(one.node)

    def refuse(said: str) -> Exception:
        return document.refusal(entry.line, f"{key}: {said}", EXAMPLE)

    for name in ("low", "high"):
        if name not in given:
            raise refuse(f"the range has no '{name}'.")
    log, whole = given.get("log", False), given.get("int", False)
    for name, value in (("log", log), ("int", whole)):
        if not isinstance(value, bool):
            raise refuse(f"{name}={value!r}: must be true or false.")
    numbers = {name: _number(given[name]) for name in ("low", "high", "step") if name in given}
    for name, number in numbers.items():
        if number is None or (whole and not number.is_integer()):
            raise refuse(f"{name}={given[name]!r}: must be a {'whole ' if whole else ''}number.")
    low, high, step = (numbers.get(name) for name in ("low", "high", "step"))
    assert low is not None
    assert high is not None
    if not low < high:
        raise refuse(f"low={given['low']} must be below high={given['high']}.")
    if log and low <= 0:
        raise refuse(f"low={given['low']} must be above 0 on a log scale.")
    if step is not None:
        if log:
            raise refuse("log and step exclude each other.")
        if not 0 < step <= high - low:
            raise refuse(f"step={given['step']} must be above 0 and at most high - low.")
        high = _last_step(low, high, step)
    return Range(key, entry.line, low, high, step, log, whole)


def _number(given: Any) -> float | None:
    """A finite number; YAML takes 1e-4 for text, which is read as the configuration reads it."""
    try:
        number = math.nan if isinstance(given, bool) else float(given)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _last_step(low: float, high: float, step: float) -> float:
    """The last of low, low + step, ... that is not above ``high``, counted in decimals as they were written."""
    first, each = Decimal(str(low)), Decimal(str(step))
    return float(first + (Decimal(str(high)) - first) // each * each)
