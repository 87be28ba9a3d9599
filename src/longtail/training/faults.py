"""Faults on purpose, for tests of what a run does about them: ``LONGTAIL_FAULT=nan-loss@12 longtail train ...``."""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from longtail.errors import ConfigError
from longtail.methods import Batch, Method, Progress, StepOutput

VARIABLE = "LONGTAIL_FAULT"

_FORM = re.compile(r"(nan|inf)-(images|loss|gradient)@([0-9]{1,12})(?:-([0-9]{1,12}))?(?:x([0-9]{1,6}))?", re.ASCII)


@dataclasses.dataclass(frozen=True)
class Fault:
    """``value`` in ``place`` in the steps ``first`` to ``last``, in the first ``times`` passes over them.

    A run that goes back passes over its steps again.
    """

    value: float
    place: str
    first: int
    last: int
    times: int = 1

    def __str__(self) -> str:
        return f"{self.value}-{self.place}@{self.first}-{self.last}x{self.times}"

    def strikes(self, step: int, returns: int) -> bool:
        """Whether it is due in a step of a run that has gone back ``returns`` times."""
        return self.first <= step <= self.last and returns < self.times


def planned_faults() -> tuple[Fault, ...]:
    """What the environment variable asks for: ``VALUE-PLACE@FIRST[-LAST][xTIMES]``, several with commas between them.

    VALUE is nan or inf; PLACE is images (the first view, before the forward pass), loss (before the backward pass) or
    gradient (of the first parameter). Raises ConfigError for anything else.
    """
    text = os.environ.get(VARIABLE, "").strip()
    faults = []
    for word in text.split(",") if text else ():
        found = _FORM.fullmatch(word.strip())
        if found is None:
            raise ConfigError(
                f"{VARIABLE}={text}: '{word}' is no fault.",
                hint="The form is nan-loss@12, inf-gradient@3-5 or nan-images@0-9x2 (twice, after going back too).",
            )
        value, place, first, last, times = found.groups()
        faults.append(Fault(float(value), place, int(first), int(last or first), int(times or 1)))
    return tuple(faults)


def inflict(faults: Sequence[Fault], method: Method, returns: Callable[[], int]) -> None:
    """Let the faults happen in the passes of ``method``; ``returns`` says how often the run has gone back.

    They are hooks on the real passes: the network sees the spoiled pixels, the optimizer the spoiled gradients.
    """
    due: set[tuple[str, float]] = set()

    def before(module: nn.Module, given: tuple[Batch, Progress]) -> tuple[Batch, Progress]:
        batch, at = given
        due.clear()
        due.update((fault.place, fault.value) for fault in faults if fault.strikes(at.step, returns()))
        for place, value in due:
            if place == "images":
                batch = dataclasses.replace(batch, views=(batch.views[0] + value, *batch.views[1:]))
        return batch, at

    def after(module: nn.Module, given: object, output: StepOutput) -> StepOutput:
        for place, value in due:
            if place == "loss":
                output = dataclasses.replace(output, loss=output.loss * value)
        return output

    def spoil(gradient: Tensor) -> Tensor:
        values = [value for place, value in due if place == "gradient"]
        return gradient if not values else torch.full_like(gradient, math.prod(values))

    method.register_forward_pre_hook(before)
    method.register_forward_hook(after)
    trained = next(parameter for parameter in method.parameters() if parameter.requires_grad)
    trained.register_hook(spoil)  # type: ignore[no-untyped-call]
