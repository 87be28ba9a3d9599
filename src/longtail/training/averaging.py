"""An average of the weights, kept beside those that are trained: exponential moving, or stochastic weight averaging."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

import torch
from torch import nn

from longtail.config import OptimSettings
from longtail.data.loader import Loader
from longtail.methods import Method
from longtail.models.normalization import batch_norms
from longtail.processes.sharing import ALONE, Sharing
from longtail.training.updating import forwarded, pieces, wants_partner


def decay_at(decay: float, step: int) -> float:
    """d_t = min(decay, (1 + t) / (10 + t)) for the update after step t, counted from 0.

    Without the second term the initial weights would keep a share decay^t for thousands of steps. Source: the
    ``num_updates`` of TensorFlow's ExponentialMovingAverage, which most programs follow.
    """
    return min(decay, (1 + step) / (10 + step))


class Average:
    """What is evaluated, kept as best and predicted with in place of the weights.

    ``tensors`` has the name and shape of every entry of the module's state, and is the state before the first step.
    What moves it depends on the step alone, so there is nothing else to save.
    """

    def __init__(self, module: nn.Module) -> None:
        self.tensors = {name: value.detach().clone() for name, value in module.state_dict().items()}

    def stepped(self, module: nn.Module, step: int) -> None:
        """The module has what ``step`` left; a skipped step leaves nothing."""

    def epoch_ended(self, module: nn.Module, epoch: int) -> None:
        """The module has what ``epoch`` left."""

    @torch.no_grad()
    def _approach(self, module: nn.Module, share: float) -> None:
        """a := (1 - share) a + share w. Integers (batch counts) are copied."""
        for name, value in module.state_dict().items():
            if value.is_floating_point():
                self.tensors[name].lerp_(value, share)
            else:
                self.tensors[name].copy_(value)


class Moving(Average):
    """The exponential moving average: share 1 - d_t after every step t (Polyak and Juditsky 1992 for the idea).

    Batch-norm's running statistics are averaged as the weights are: those of the last weights would be of activations
    that the averaged weights do not make.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        super().__init__(module)
        self.decay = decay

    def stepped(self, module: nn.Module, step: int) -> None:
        self._approach(module, 1 - decay_at(self.decay, step))


class Mean(Average):
    """Stochastic weight averaging: the mean of the weights before epoch ``start`` and after each epoch from there.

    Until then it is the weights after the last epoch. Batch-norm's statistics are to be made anew before it is used:
    :func:`renew_statistics`. Izmailov et al., "Averaging Weights Leads to Wider Optima and Better Generalization",
    arXiv 1803.05407, algorithm 1 with c = 1 epoch.
    """

    def __init__(self, module: nn.Module, start: int) -> None:
        super().__init__(module)
        self.start = start

    def epoch_ended(self, module: nn.Module, epoch: int) -> None:
        self._approach(module, 1 / (1 + max(0, epoch + 1 - self.start)))


def average_of(module: nn.Module, settings: OptimSettings) -> Average | None:
    """The average that ``optim.ema`` or ``optim.swa_start`` asks for."""
    if settings.averages:
        return Mean(module, settings.schedule_epochs)
    return None if settings.ema is None else Moving(module, settings.ema)


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


def renew_statistics(
    method: Method, mean: Mean, loader: Loader, step: int, settings: OptimSettings, sharing: Sharing = ALONE
) -> None:
    """Give the mean the running statistics of batch-norm that its own activations have; ``step`` steps are done.

    Weights that lie far apart have a mean with other activations than any of them, and the mean of their statistics is
    not its own. So the latest batches go through it as they went through the weights that were trained, as many as it
    takes for the statistics from before to weigh less than 1 in 200: 51 with the usual momentum of 0.1, a forward pass
    each. Nothing happens while the mean is the weights, or without batch-norm. Izmailov et al., arXiv 1803.05407,
    section 3.2, take all training images instead.
    """
    momenta = [norm.momentum for norm in batch_norms(method) if norm.training and norm.momentum]
    if not momenta or loader.progress(step - 1).epoch < mean.start:
        return
    enough = math.ceil(math.log(1 / 200) / math.log(1 - min(momenta))) if min(momenta) < 1 else 1
    first = max(0, step - enough)
    method.forget_step()
    with averaged(method, mean):
        batches = loader.iterate(first, step, wants_partner(method, settings.accumulate), method.views_at)
        for number, batch in enumerate(batches, first):
            # With gradients, which nobody takes: compiled code is of that kind.
            for here, part in pieces(method, batch, loader.progress(number), settings, sharing):
                forwarded(method, part, here)
        for name, value in method.state_dict().items():
            if name.endswith(("running_mean", "running_var")):
                mean.tensors[name].copy_(value)
