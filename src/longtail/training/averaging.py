"""An exponential moving average of the weights, kept beside those that are trained."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn


def decay_at(decay: float, step: int) -> float:
    """d_t = min(decay, (1 + t) / (10 + t)) for the update after step t, counted from 0.

    Without the second term the initial weights would keep a share decay^t for thousands of steps. Source: the
    ``num_updates`` of TensorFlow's ExponentialMovingAverage, which most programs follow.
    """
    return min(decay, (1 + step) / (10 + step))


class Average:
    """a := d_t a + (1 - d_t) w after every step, from a = w before the first (Polyak and Juditsky 1992 for the idea).

    ``tensors`` has the name and shape of every entry of the module's state. Batch-norm's running statistics are
    averaged as the weights are: those of the last weights would be of activations that the averaged weights do not
    make. Integers (batch counts) are copied. The decay depends on the step alone, so there is nothing else to save.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.tensors = {name: value.detach().clone() for name, value in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Move toward the weights after step ``step``."""
        share = 1 - decay_at(self.decay, step)
        for name, value in module.state_dict().items():
            if value.is_floating_point():
                self.tensors[name].lerp_(value, share)
            else:
                self.tensors[name].copy_(value)


@contextlib.contextmanager
def averaged(module: nn.Module, average: Average | None) -> Iterator[None]:
    """Within the block the module has the averaged weights and buffers, after it its own; None does nothing."""
    if average is None:
        yield
        return
    own = {name: value.detach().clone() for name, value in module.state_dict().items()}
    module.load_state_dict(average.tensors)
    try:
        yield
    finally:
        module.load_state_dict(own)
