"""Where the seconds of a training step go: the program's own functions, timed from outside while it trains."""

from __future__ import annotations

import contextlib
import functools
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch

from longtail.data.loader import Loader
from longtail.methods import Method
from longtail.models.network import Network
from longtail.runs.rundir import RunDir
from longtail.training import loop, setup
from longtail.training.state import RunState

PARTS = {
    "augment": "making the batch: order, views, partner",
    "forward": "backbone, projection, class centers and classifier",
    "losses": "the rest of the method's forward pass: mixing, rectification, masks, losses",
    "backward": "gradients",
    "optimizer": "the optimizer's step",
    "logging": "adding up the logged scalars, writing metrics",
    "other": "what is left of the step: checks of the loss, counting, asking for signals",
}


class Stopwatch:
    """Seconds by part within the current step, and of all finished steps."""

    def __init__(self) -> None:
        self.now: dict[str, float] = defaultdict(float)
        self.steps: list[dict[str, float]] = []
        self.evaluations: list[tuple[int, float]] = []

    def timed(self, part: str, action: Callable[..., Any]) -> Callable[..., Any]:
        """``action``, its seconds added to ``part``."""

        @functools.wraps(action)
        def run(*given: Any, **named: Any) -> Any:
            began = time.perf_counter()
            try:
                return action(*given, **named)
            finally:
                self.now[part] += time.perf_counter() - began

        return run

    def watch(self, method: Method) -> Method:
        """Time the forward passes of the method and of its classifier, which are called as modules."""

        def enter(part: str) -> Callable[..., None]:
            return lambda *_: self.now.__setitem__(part, self.now[part] - time.perf_counter())

        def leave(part: str) -> Callable[..., None]:
            return lambda *_: self.now.__setitem__(part, self.now[part] + time.perf_counter())

        for part, module in (("method", method), ("forward", method.network.classifier)):
            module.register_forward_pre_hook(enter(part))
            module.register_forward_hook(leave(part))
        return method

    def lap(self, seconds: float) -> None:
        """End a step that took ``seconds``."""
        now, self.now = self.now, defaultdict(float)
        now["losses"] = now.pop("method", 0.0) - now["forward"]
        now["other"] = seconds - sum(now.values())
        self.steps.append(now)

    def medians(self, skip: int) -> dict[str, float]:
        """Median seconds of each part, over the steps after the first ``skip``."""
        return {part: statistics.median(step[part] for step in self.steps[skip:]) for part in PARTS}

    @contextlib.contextmanager
    def attached(self) -> Iterator[None]:
        """Within it the program's functions are timed."""
        build, evaluate = setup.build_method, loop.evaluate

        def evaluated(method: Method, images: Any, *more: Any) -> Any:
            began = time.perf_counter()
            found = evaluate(method, images, *more)
            self.evaluations.append((len(images), time.perf_counter() - began))
            return found

        places = [
            (Loader, "batch", "augment"),
            (Network, "features", "forward"),
            (Network, "project", "forward"),
            (Network, "centers", "forward"),
            (torch.autograd, "backward", "backward"),
            (torch.optim.SGD, "step", "optimizer"),
            (RunState, "add", "logging"),
            (RunDir, "append_metrics", "logging"),
        ]
        with contextlib.ExitStack() as stack:
            for owner, name, part in places:
                stack.enter_context(mock.patch.object(owner, name, self.timed(part, getattr(owner, name))))
            watching = mock.patch.object(setup, "build_method", lambda *given: self.watch(build(*given)))
            stack.enter_context(watching)
            stack.enter_context(mock.patch.object(loop, "evaluate", evaluated))
            yield
