"""An average of the weights, kept beside those that are trained: exponential moving, or stochastic weight averaging."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from longtail.config import OptimSettings
from longtail.data.loader import Loader
from longtail.methods import Method
from longtail.processes.sharing import ALONE, Sharing
from longtail.training.updating import forwarded, pieces, wants_partner

Share = Callable[[int], float]
"""The share of the weights that a step left in the average after it, by the step's number from 0."""


def decay_at(decay: float, step: int) -> float:
    """d_t = min(decay, (1 + t) / (10 + t)) for the update after step t, counted from 0.

    Without the second term the initial weights would keep a share decay^t for thousands of steps. Source: the
    ``num_updates`` of TensorFlow's ExponentialMovingAverage, which most programs follow.
    """
    return min(decay, (1 + step) / (10 + step))


def moving(decay: float) -> Share:
    """The exponential moving average: 1 - d_t (Polyak and Juditsky 1992 for the idea)."""
    return lambda step: 1 - decay_at(decay, step)


def equal(settings: OptimSettings, steps_per_epoch: int) -> Share:
    """Stochastic weight averaging: the mean of the weights before ``swa_start`` and after each epoch from there.

    1 until then, so that the average is the weights; after the n-th epoch 1 / (n + 1); 0 within one. Izmailov et al.,
    "Averaging Weights Leads to Wider Optima and Better Generalization", arXiv 1803.05407, algorithm 1 with c = 1 epoch.
    """
    start = settings.schedule_epochs * steps_per_epoch

    def share(step: int) -> float:
        if step < start:
            return 1.0
        epochs, rest = divmod(step + 1 - start, steps_per_epoch)
        return 0.0 if rest else 1 / (epochs + 1)

    return share


def average_of(method: nn.Module, settings: OptimSettings, steps_per_epoch: int) -> Average | None:
    """The average that ``optim.ema`` or ``optim.swa_start`` asks for."""
    if settings.swa_start is not None:
        return Average(method, equal(settings, steps_per_epoch))
    return None if settings.ema is None else Average(method, moving(settings.ema))


class Average:
    """a := (1 - s_t) a + s_t w after every step t, from a = w before the first; ``share`` gives s_t.

    ``tensors`` has the name and shape of every entry of the module's state. Batch-norm's running statistics are
    averaged as the weights are: those of the last weights would be of activations that the averaged weights do not
    make. Integers (batch counts) are copied. The share depends on the step alone, so there is nothing else to save.
    """

    def __init__(self, module: nn.Module, share: Share) -> None:
        self.share = share
        self.tensors = {name: value.detach().clone() for name, value in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Move toward the weights after step ``step``."""
        share = self.share(step)
        if share == 0:
            return
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


def renew_statistics(
    method: Method, average: Average, loader: Loader, step: int, settings: OptimSettings, sharing: Sharing = ALONE
) -> None:
    """Give the mean of ``swa_start`` the running statistics of batch-norm that its own activations have.

    Weights that lie far apart have a mean with other activations than any of them, and the mean of their statistics is
    not its own. So the latest batches before ``step`` go through it as they went through the weights that were trained,
    as many as it takes for the statistics from before to weigh less than 1 in 200: 51 with the usual momentum of 0.1,
    a forward pass each. Nothing happens before ``swa_start``, when the mean is the weights, or without batch-norm.
    Izmailov et al., arXiv 1803.05407, section 3.2, take all training images instead.
    """
    norms = [module for module in method.modules() if isinstance(module, _BatchNorm) and module.training]
    momenta = [norm.momentum for norm in norms if norm.momentum and norm.running_mean is not None]
    if not momenta or step <= settings.schedule_epochs * loader.steps_per_epoch:
        return
    enough = math.ceil(math.log(1 / 200) / math.log(1 - min(momenta))) if min(momenta) < 1 else 1
    first = max(0, step - enough)
    statistics = {name for name, _ in method.named_buffers() if name.endswith(("running_mean", "running_var"))}
    with averaged(method, average):
        batches = loader.iterate(first, step, wants_partner(method, settings.accumulate), method.views_at)
        for number, batch in enumerate(batches, first):
            # With gradients, which nobody takes: compiled code is of that kind.
            for here, part in pieces(method, batch, loader.progress(number), settings, sharing):
                forwarded(method, part, here)
        for name, value in method.state_dict().items():
            if name in statistics:
                average.tensors[name].copy_(value)
    method.forget_step()
    method.take_saved_passes()
