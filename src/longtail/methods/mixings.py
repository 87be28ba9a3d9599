"""Mixings by name: each takes (images, soft target, partner) and returns what the network sees.

Methods are made by composing them with criteria (``criteria.py``) and contrasts (``contrasting.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from longtail.errors import ConfigError
from longtail.methods.base import Batch, Progress
from longtail.methods.locating import Locator
from longtail.methods.patches import PatchSettings
from longtail.mixing import (
    Box,
    align_box,
    align_boxes,
    boxes_around,
    draw_beta,
    draw_cutmix,
    draw_lambda,
    mix_labels,
    mixup,
    paste,
    remix_factor,
    visible_fraction,
)
from longtail.models.network import Network
from longtail.settings import AbsolutePath, Time, resolve_time

PartnerSampler = Literal["shuffle", "class_balanced", "effective_number", "effective_number_per_sample", "reversed"]
"""Names of SAMPLERS, by which partners may be drawn."""


class MixingSettings(PatchSettings):
    """The keys of ``method.*`` that choose how the classified view is mixed with a partner."""

    mixing: Literal["none", "mixup", "remix", "cutmix", "cmo", "saliencymix"] = "none"
    """How the classified view is mixed with a partner, a key of MIXINGS."""
    mix_probability: float = Field(0.5, ge=0, le=1)
    """Probability of mixing a batch."""
    mix_alpha: float = Field(1.0, gt=0)
    """lambda ~ Beta(this, this)."""
    mix_start: Time = 0
    """Batches are mixed from this epoch on: a fraction of the run or an epoch."""
    mix_stop: Time = 1.0
    """Batches are no longer mixed from this epoch on: a fraction of the run (1.0: to the end) or an epoch."""
    remix_kappa: float = Field(3.0, ge=1)
    """How many times more images make a class the majority in remix."""
    remix_tau: float = Field(0.5, ge=0, le=1)
    """Share of the image below which the majority loses its label in remix."""
    detector: str = "fine-grained"
    """What finds the partner's salient peak in saliencymix: see longtail detectors."""
    saliency_maps: AbsolutePath | None = None
    """An npz with maps (N, H, W) of the training images made elsewhere, instead of the detector."""
    ties: Literal["first", "random"] = "first"
    """Which of equal peaks of a map counts: the first in raster order, or a random one."""
    partner_sampler: PartnerSampler = "shuffle"
    """How partners are drawn."""

    def mixes(self, at: Progress) -> bool:
        """Whether batches of this epoch may be mixed (start 0.02, stop 0.985 of 200: epochs 4..196)."""
        start, stop = (resolve_time(time, at.epochs) for time in (self.mix_start, self.mix_stop))
        return start <= at.epoch < stop


@dataclass(frozen=True)
class Mixed:
    """What a mixing made: images (B, 3, H, W), soft target (B, C), what was pasted (one box, or boxes (B, 4)), lam
    (share of the first image, one number or (B,); 1 where nothing was mixed), and how many images a detector forwarded.
    """

    images: Tensor
    target: Tensor
    box: Box | Tensor | None
    lam: float | Tensor
    forwarded: int = 0


class Mixing(Protocol):
    """Mixes a view with its partner, or leaves it."""

    def detector(self, network: Network) -> str | None:
        """The detector whose peaks batches have to bring (DataNeeds.detector), or None; ConfigError if it cannot be
        had of this network."""

    def wants_partner(self, at: Progress) -> bool:
        """Whether this step mixes: known before any image is made."""

    def __call__(
        self, images: Tensor, target: Tensor, partner: Batch | None, at: Progress, network: Network | None = None
    ) -> Mixed:
        """Images (B, 3, H, W) and soft target (B, C), mixed or untouched; some detectors ask the network."""


class NoMixing:
    """Leave images and labels alone."""

    def detector(self, network: Network) -> str | None:
        return None

    def wants_partner(self, at: Progress) -> bool:
        return False

    def __call__(
        self, images: Tensor, target: Tensor, partner: Batch | None, at: Progress, network: Network | None = None
    ) -> Mixed:
        return Mixed(images, target, None, 1.0)


@dataclass(frozen=True)
class CutMix:
    """Paste one box of the partner into the image, with ``probability`` per batch (Yun et al., arXiv 1905.04899).

    lambda ~ Beta(alpha, alpha), box side ratio sqrt(1 - lambda); the label is mixed by the area left after clipping.
    One box per batch, keyed by (seed, "mix", step), its edges on multiples of ``patch``.
    """

    size: int
    alpha: float = 1.0
    probability: float = 0.5
    patch: int = 1

    def detector(self, network: Network) -> str | None:
        return None

    def draw(self, at: Progress) -> Box | None:
        """The box of this step, one for the batch; None where the coin says not to mix."""
        box = draw_cutmix(self.size, at.generator("mix"), alpha=self.alpha, probability=self.probability)
        return None if box is None else align_box(box, self.patch)

    def wants_partner(self, at: Progress) -> bool:
        return self.draw(at) is not None

    def __call__(
        self, images: Tensor, target: Tensor, partner: Batch | None, at: Progress, network: Network | None = None
    ) -> Mixed:
        box = self.draw(at)
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

    def detector(self, network: Network) -> str | None:
        return None

    def wants_partner(self, at: Progress) -> bool:
        return float(torch.rand((), generator=at.generator("mix coin"))) < self.probability

    def __call__(
        self, images: Tensor, target: Tensor, partner: Batch | None, at: Progress, network: Network | None = None
    ) -> Mixed:
        if partner is None:
            return Mixed(images, target, None, 1.0)
        lam = float(draw_beta(1, self.alpha, at.generator("mix")))
        partner_target = soft_target(partner.target, target.shape[1])
        return Mixed(mixup(images, partner.views[0], lam), mix_labels(target, partner_target, lam), None, lam)


class Remix(nn.Module):
    """Mixup's images, whose label goes to the rarer class where its image is not too faint (arXiv 2007.03943).

    lambda is that of :class:`Mixup` under the same key; the share of the label is
    :func:`longtail.mixing.remix_factor`, pair by pair. The counts are a buffer that no checkpoint holds.
    """

    def __init__(self, blend: Mixup, counts: Sequence[int], kappa: float, tau: float) -> None:
        super().__init__()
        self.blend, self.kappa, self.tau = blend, kappa, tau
        self.register_buffer("counts", torch.tensor(list(counts), dtype=torch.float32), persistent=False)
        self.counts: Tensor

    def detector(self, network: Network) -> str | None:
        return None

    def wants_partner(self, at: Progress) -> bool:
        return self.blend.wants_partner(at)

    def forward(
        self, images: Tensor, target: Tensor, partner: Batch | None, at: Progress, network: Network | None = None
    ) -> Mixed:
        mixed = self.blend(images, target, partner, at)
        if partner is None:
            return mixed
        partner_target = soft_target(partner.target, target.shape[1])
        own, other = ((labels * self.counts).sum(dim=1) for labels in (target, partner_target))
        factor = remix_factor(mixed.lam, own, other, kappa=self.kappa, tau=self.tau)
        return Mixed(mixed.images, mix_labels(target, partner_target, factor), None, mixed.lam)


@dataclass(frozen=True)
class SaliencyMix:
    """Paste the box around the partner's salient peak at the same place of the image (Uddin et al., arXiv 2006.01791).

    lambda ~ Beta(alpha, alpha) and the coin are :class:`CutMix`'s under the same key, one for the batch; the box has
    side ratio sqrt(1 - lambda), and the label is mixed by the area left after clipping. Paper: a box for each image.
    Authors' program: the peak of the batch's first partner, in normalized floats, for all. Here: as the paper, with
    peaks that were found in bytes and followed the view, because a map of floats is noise.
    """

    locate: Locator
    alpha: float = 1.0
    probability: float = 0.5
    patch: int = 1

    def detector(self, network: Network) -> str | None:
        self.locate.check(network)
        return self.locate.wanted if self.probability > 0 else None

    def _draw(self, at: Progress) -> float | None:
        return draw_lambda(at.generator("mix"), alpha=self.alpha, probability=self.probability)

    def wants_partner(self, at: Progress) -> bool:
        return self._draw(at) is not None

    def __call__(
        self, images: Tensor, target: Tensor, partner: Batch | None, at: Progress, network: Network | None = None
    ) -> Mixed:
        drawn = self._draw(at)
        if drawn is None or partner is None:
            return Mixed(images, target, None, 1.0)
        assert network is not None, "peaks may be asked of the network"
        size = (images.shape[-2], images.shape[-1])
        located = self.locate(network, partner, at, "partner saliency")
        boxes = align_boxes(boxes_around(located.peaks, torch.full((len(target),), drawn), size), self.patch)
        lam = visible_fraction(boxes, size)
        mixed_target = mix_labels(target, soft_target(partner.target, target.shape[1]), lam)
        pasted = paste(images, partner.views[0], partner.own(boxes))
        return Mixed(pasted, mixed_target, boxes, lam, located.forwarded)


def _cmo(own: MixingSettings, size: int, counts: Sequence[int], patch: int) -> Mixing:
    """CutMix whose foreground is drawn for its class (Park et al., arXiv 2112.00412); the draw is the partner's."""
    if own.partner_sampler == "shuffle":
        raise ConfigError(
            "method.mixing=cmo with method.partner_sampler=shuffle is cutmix: its foregrounds are not drawn by class.",
            hint="Set method.partner_sampler=class_balanced, or take the method cmo with the criterion of your choice.",
        )
    return CutMix(size, own.mix_alpha, own.mix_probability, patch)


MIXINGS: dict[str, Callable[[MixingSettings, int, Sequence[int], int], Mixing]] = {
    "none": lambda own, size, counts, patch: NoMixing(),
    "mixup": lambda own, size, counts, patch: Mixup(own.mix_alpha, own.mix_probability),
    "remix": lambda own, size, counts, patch: Remix(
        Mixup(own.mix_alpha, own.mix_probability), counts, own.remix_kappa, own.remix_tau
    ),
    "cutmix": lambda own, size, counts, patch: CutMix(size, own.mix_alpha, own.mix_probability, patch),
    "cmo": _cmo,
    "saliencymix": lambda own, size, counts, patch: SaliencyMix(
        Locator(own.detector, given=own.saliency_maps is not None), own.mix_alpha, own.mix_probability, patch
    ),
}
"""What builds each mixing from its settings, the side of an image, the training images per class and the patch."""


def build_mixing(settings: MixingSettings, size: int, counts: Sequence[int], patch: int = 1) -> Mixing:
    """The mixing that ``settings`` name; ConfigError where no epoch of any run would have it."""
    start, stop = settings.mix_start, settings.mix_stop
    if settings.mixing != "none" and type(start) is type(stop) and start >= stop:
        raise ConfigError(f"method.mix_start={start} is not before method.mix_stop={stop}: no batch would be mixed.")
    return MIXINGS[settings.mixing](settings, size, counts, patch)


def soft_target(labels: Tensor, classes: int) -> Tensor:
    """Labels (B,) int64 as one-hot rows (B, C) float32."""
    return F.one_hot(labels, classes).float()
