"""Losses of long-tailed recognition as pure functions: no config, no state, any device."""

from longtail.losses.classification import cross_entropy, logit_adjustment
from longtail.losses.contrastive import (
    balanced_contrastive_loss,
    masked_contrastive_loss,
    supervised_contrastive_loss,
)

__all__ = [
    "balanced_contrastive_loss",
    "cross_entropy",
    "logit_adjustment",
    "masked_contrastive_loss",
    "supervised_contrastive_loss",
]
