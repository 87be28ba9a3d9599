"""Mixings and contrasts under one shape each, so that methods are made by composing them.

A mixing takes (images, soft target, partner) and returns what the network sees; a contrast takes normalized features
(B, V, D), labels (B,) and the network, and returns a scalar. Criteria are in ``criteria.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from longtail.losses import balanced_contrastive_loss, supervised_contrastive_loss
from longtail.methods.base import Batch, Progress
from longtail.mixing import Box, draw_beta, draw_cutmix, mix_labels, mixup, paste
from longtail.models.network import Network


@dataclass(frozen=True)
class Mixed:
    """What a mixing made: images (B, 3, H, W), soft target (B, C), the box if one was pasted, lam (share of the
    first image; 1 where nothing was mixed)."""

    images: Tensor
    target: Tensor
    box: Box | None
    lam: float


class Mixing(Protocol):
    """Mixes a view with its partner, or leaves it."""

    def wants_partner(self, at: Progress) -> bool:
        """Whether this step mixes: known before any image is made."""

    def __call__(self, images: Tensor, target: Tensor, partner: Batch | None, at: Progress) -> Mixed:
        """Images (B, 3, H, W) and soft target (B, C), mixed or untouched."""


class NoMixing:
    """Leave images and labels alone."""

    def wants_partner(self, at: Progress) -> bool:
        return False

    def __call__(self, images: Tensor, target: Tensor, partner: Batch | None, at: Progress) -> Mixed:
        return Mixed(images, target, None, 1.0)


@dataclass(frozen=True)
class CutMix:
    """Paste one box of the partner into the image, with ``probability`` per batch (Yun et al., arXiv 1905.04899).

    lambda ~ Beta(alpha, alpha), box side ratio sqrt(1 - lambda); the label is mixed by the area left after clipping.
    One box per batch, keyed by (seed, "mix", step).
    """

    size: int
    alpha: float = 1.0
    probability: float = 0.5

    def _draw(self, at: Progress) -> Box | None:
        return draw_cutmix(self.size, at.generator("mix"), alpha=self.alpha, probability=self.probability)

    def wants_partner(self, at: Progress) -> bool:
        return self._draw(at) is not None

    def __call__(self, images: Tensor, target: Tensor, partner: Batch | None, at: Progress) -> Mixed:
        box = self._draw(at)
        if box is None or partner is None:
            return Mixed(images, target, None, 1.0)
        partner_target = soft_target(partner.target, target.shape[1])
        mixed_target = mix_labels(target, partner_target, box.lam)
        return Mixed(paste(images, partner.views[0], box), mixed_target, box, box.lam)


@dataclass(frozen=True)
class Mixup:
    """Blend image and partner by lambda ~ Beta(alpha, alpha), with ``probability`` per batch (arXiv 1710.09412)."""

    alpha: float = 1.0
    probability: float = 1.0

    def wants_partner(self, at: Progress) -> bool:
        return float(torch.rand((), generator=at.generator("mix coin"))) < self.probability

    def __call__(self, images: Tensor, target: Tensor, partner: Batch | None, at: Progress) -> Mixed:
        if partner is None:
            return Mixed(images, target, None, 1.0)
        lam = float(draw_beta(1, self.alpha, at.generator("mix")))
        partner_target = soft_target(partner.target, target.shape[1])
        return Mixed(mixup(images, partner.views[0], lam), mix_labels(target, partner_target, lam), None, lam)


def _supervised(features: Tensor, labels: Tensor, network: Network, temperature: float) -> Tensor:
    return supervised_contrastive_loss(features, labels, temperature=temperature)


def _balanced(features: Tensor, labels: Tensor, network: Network, temperature: float) -> Tensor:
    centers = F.normalize(network.centers(), dim=1)
    return balanced_contrastive_loss(features, labels, centers, temperature=temperature)


Contrast = Callable[[Tensor, Tensor, Network, float], Tensor]

CONTRASTS: dict[str, Contrast] = {"supervised": _supervised, "balanced": _balanced}
"""Contrastive terms by name; ``none`` is the absence of one."""


def soft_target(labels: Tensor, classes: int) -> Tensor:
    """Labels (B,) int64 as one-hot rows (B, C) float32."""
    return F.one_hot(labels, classes).float()
