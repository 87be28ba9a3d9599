"""Contrasts by name, and when the contrastive loss is part of the loss.

A contrast takes normalized features (B, V, D), labels (B,), the network and a temperature, and returns a scalar.
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from longtail.data.batch import Progress
from longtail.errors import ConfigError
from longtail.losses import balanced_contrastive_loss, supervised_contrastive_loss
from longtail.models.network import Network
from longtail.settings import Settings, Time, resolve_time


class ContrastTimes(Settings):
    """The keys of ``method.*`` that say in which part of a run there is a contrastive loss."""

    contrast_start: Time = 0
    """The contrastive loss begins in this epoch: a fraction of the run or an epoch."""
    contrast_stop: Time = 1.0
    """It ends before this epoch: a fraction of the run (1.0: at its end) or an epoch."""

    def contrasts(self, at: Progress) -> bool:
        """Whether this epoch has a contrastive loss (start 0, stop 0.5 of 40: epochs 0..19).

        Where it has none, contrastive views are neither made nor forwarded, and the heads of the contrast rest.
        """
        start, stop = (resolve_time(time, at.epochs) for time in (self.contrast_start, self.contrast_stop))
        return start <= at.epoch < stop

    @property
    def throughout(self) -> bool:
        """Whether every epoch of any run has the contrastive loss."""
        return self.contrast_start == 0 and self.contrast_stop == 1.0 and isinstance(self.contrast_stop, float)

    def refuse_never(self) -> None:
        """Raise ConfigError where no epoch of any run would have the contrastive loss."""
        start, stop = self.contrast_start, self.contrast_stop
        if type(start) is type(stop) and start >= stop:
            raise ConfigError(
                f"method.contrast_start={start} is not before method.contrast_stop={stop}: there would be no contrast.",
                hint="Choose times that leave an epoch between them, or a method without a contrastive loss.",
            )


def _supervised(features: Tensor, labels: Tensor, network: Network, temperature: float) -> Tensor:
    return supervised_contrastive_loss(features, labels, temperature=temperature)


def _balanced(features: Tensor, labels: Tensor, network: Network, temperature: float) -> Tensor:
    centers = F.normalize(network.centers(), dim=1)
    return balanced_contrastive_loss(features, labels, centers, temperature=temperature)


Contrast = Callable[[Tensor, Tensor, Network, float], Tensor]

CONTRASTS: dict[str, Contrast] = {"supervised": _supervised, "balanced": _balanced}
"""Contrastive terms by name; ``none`` is the absence of one."""
