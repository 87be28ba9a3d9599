"""Losses of long-tailed recognition as pure functions: no config, no state, any device."""

from longtail.losses.classification import class_balanced_weights, cross_entropy, logit_adjustment
from longtail.losses.contrastive import (
    balanced_contrastive_loss,
    balanced_masked_contrastive_loss,
    masked_contrastive_loss,
    supervised_contrastive_loss,
)
from longtail.losses.margins import focal_loss, ldam_margins, margin_cross_entropy
from longtail.losses.parametric import parametric_contrastive_loss
from longtail.losses.smoothing import label_aware_smoothing, smooth_labels, smoothed_cross_entropy

__all__ = [
    "balanced_contrastive_loss",
    "balanced_masked_contrastive_loss",
    "class_balanced_weights",
    "cross_entropy",
    "focal_loss",
    "label_aware_smoothing",
    "ldam_margins",
    "logit_adjustment",
    "margin_cross_entropy",
    "masked_contrastive_loss",
    "parametric_contrastive_loss",
    "smooth_labels",
    "smoothed_cross_entropy",
    "supervised_contrastive_loss",
]
