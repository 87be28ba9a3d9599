"""SMCL: erase the salient part of an image, and pull the background that is left toward minority classes.

Park, Hwang, So, "SMCL: Saliency Masked Contrastive Learning for Long-tailed Recognition", ICASSP 2023,
arXiv 2406.02223. There is no public program: docs/methods/smcl.md marks what the paper states and what is our reading.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from longtail.losses import masked_contrastive_loss, supervised_contrastive_loss
from longtail.methods.base import Batch, DataNeeds, Method, Progress, StepOutput
from longtail.methods.criteria import CriterionSettings, build_criterion
from longtail.methods.locating import Locator
from longtail.methods.mixings import PartnerSampler, soft_target
from longtail.methods.patches import PatchSettings
from longtail.mixing import align_boxes, boxes_around, draw_beta, erase, mix_labels, visible_fraction
from longtail.models.network import ModelSettings, Network, ProjectionSettings
from longtail.settings import AbsolutePath, Time, resolve_time

Fill = Literal["mean", "image-mean", "noise"]


class SMCLSettings(CriterionSettings, PatchSettings):
    """``method.*`` of SMCL."""

    mu: float = Field(0.3, ge=0)
    """Weight of the contrastive loss."""
    mask_probability: float = Field(0.2, ge=0, le=1)
    """Probability of masking a batch, one coin per batch."""
    mask_start: Time = 0.8
    """Masking starts in this epoch: a fraction of the run or an epoch."""
    mask_alpha: float = Field(1.0, gt=0)
    """lambda ~ Beta(this, this), one per image."""
    variant: Literal["A", "B", "C"] = "A"
    """A: lambda mixes y and y' in both losses; B: y' alone in both; C: y' alone in the contrastive loss."""
    detector: str = "fine-grained"
    """What finds the salient peak: see longtail detectors."""
    saliency_maps: AbsolutePath | None = None
    """An npz with maps (N, H, W) of the training images made elsewhere, instead of the detector."""
    ties: Literal["first", "random"] = "first"
    """Which of equal peaks of a map counts: the first in raster order, or a random one."""
    at_edge: Literal["clip", "shift"] = "clip"
    """A box at the frame is clipped, or moved inside so that its area is that of any other place."""
    fill: Fill = "mean"
    """What the box is filled with: the data set's mean color, the image's own, or Gaussian noise."""
    partner_sampler: PartnerSampler = "effective_number"
    """How the target classes y' and their images are drawn."""
    effective_beta: float = Field(0.9999, ge=0, lt=1)
    """beta of the effective number of images, of that draw."""
    contrastive_from: Time = 0
    """The contrastive loss starts in this epoch: a fraction of the run or an epoch."""
    forward_partner: bool = False
    """Forward the partner images even where no loss needs them: the control for what they do to batch-norm."""
    temperature: float = Field(0.1, gt=0)
    """Of the contrastive loss."""
    hidden: int = Field(512, ge=1)
    """Hidden width of the projection MLP."""
    dim: int = Field(128, ge=1)
    """Width of the projections."""


@dataclass(frozen=True)
class Masked:
    """Images with their salient box erased, (B, 3, S, S); lam (B,), the visible fraction; y' (B,); and how many images
    the detector forwarded."""

    images: Tensor
    lam: Tensor
    toward: Tensor
    forwarded: int


class SMCL(Method):
    """criterion(masked view, lam y + (1 - lam) y') + mu * (lam sc(z^M; y) + (1 - lam) sc(z^M; y')).

    A step that is not masked has lam = 1: the criterion of the clean view, and the supervised contrastive loss over the
    clean and the partner images.
    """

    def __init__(
        self, settings: SMCLSettings, model: ModelSettings, counts: Sequence[int], *, size: int, seed: int
    ) -> None:
        super().__init__()
        self.settings, self.classes = settings, len(counts)
        sizes = ProjectionSettings(hidden=settings.hidden, dim=settings.dim) if settings.mu > 0 else None
        self.network = Network(model, self.classes, seed=seed, size=size, projection=sizes)
        self.patch = settings.grid(self.network, size)
        self.criterion = build_criterion(settings, counts)
        self.answers_for = self.criterion.answers_for
        self.locate = Locator(settings.detector, given=settings.saliency_maps is not None)
        self.locate.check(self.network)
        self.leaves_unused = settings.mu > 0 and settings.contrastive_from != 0
        masking = settings.mask_probability > 0
        forwards_partner = settings.mu > 0 or settings.forward_partner
        self.needs = DataNeeds(
            views=("classification",),
            partner_views=("classification",) if forwards_partner else (),
            partner_sampler=settings.partner_sampler,
            partner_labels=masking,
            detector=self.locate.wanted if masking else None,
            saliency_maps=settings.saliency_maps,
            ties=settings.ties,
            beta=settings.effective_beta,
        )

    def masks(self, at: Progress) -> bool:
        """Whether this step's batch is masked (start 160 of 200: epochs 160..199)."""
        if at.epoch < resolve_time(self.settings.mask_start, at.epochs):
            return False
        coin = torch.rand((), generator=at.generator("mask coin"), dtype=torch.float64)
        return float(coin) < self.settings.mask_probability

    def contrasts(self, at: Progress) -> bool:
        """Whether this step has a contrastive loss."""
        return self.settings.mu > 0 and at.epoch >= resolve_time(self.settings.contrastive_from, at.epochs)

    def needs_partner(self, at: Progress) -> bool:
        return self.contrasts(at) or self.settings.forward_partner or self.masks(at)

    def stacks(self) -> tuple[int, ...]:
        if not self.needs.partner_views:
            return (1,)
        return (2, 3) if self.settings.mask_probability > 0 else (2,)

    def mask(self, batch: Batch, at: Progress) -> Masked:
        """x^M: a box of side ratio sqrt(1 - lambda) around the salient peak is erased; lambda := what stays visible."""
        assert batch.partner is not None, "a masked step wants a partner"
        images = batch.views[0]
        size = (images.shape[-2], images.shape[-1])
        located = self.locate(self.network, batch, at)
        drawn = draw_beta(len(batch.target), self.settings.mask_alpha, at.generator("mask")).float()
        boxes = align_boxes(boxes_around(located.peaks, drawn, size, at_edge=self.settings.at_edge), self.patch)
        erased = erase(images, batch.own(boxes), fill_color(self.settings.fill, batch, at))
        return Masked(erased, visible_fraction(boxes, size), batch.partner.target, located.forwarded)

    def forward(self, batch: Batch, at: Progress) -> StepOutput:
        own, labels, count = self.settings, batch.target, len(batch.target)
        masked = self.mask(batch, at) if self.masks(at) else None
        beside = self.needs.partner_views and (self.contrasts(at) or own.forward_partner)
        views = [batch.views[0]] if masked is None else [masked.images]
        if beside:
            assert batch.partner is not None, "needs_partner asks for it"
            views += ([] if masked is None else [batch.views[0]]) + [batch.partner.views[0]]
        features = self.network.features_of(*views, shares=batch.shares)

        target = soft_target(labels, self.classes)
        if masked is not None:
            toward = soft_target(masked.toward, self.classes)
            target = toward if own.variant == "B" else mix_labels(target, toward, masked.lam)
        classification = self.criterion(self.network.classifier(features[:count]), target, at)
        loss, logs = classification, {"classification": classification.detach()}

        if self.contrasts(at):
            assert batch.partner is not None, "needs_partner asks for it"
            projected = F.normalize(self.network.project(features), dim=1)
            known = torch.cat((labels, batch.partner.target))
            if masked is None:
                contrastive = supervised_contrastive_loss(projected[:, None], known, temperature=own.temperature)
            else:
                contrastive = self.pull(projected[:count], labels, masked, projected[count:], known)
            loss = loss + own.mu * contrastive
            logs["contrastive"] = contrastive.detach()
        return StepOutput(loss, logs, len(features) + (0 if masked is None else masked.forwarded))

    def pull(self, anchors: Tensor, labels: Tensor, masked: Masked, keys: Tensor, known: Tensor) -> Tensor:
        """lam sc(z^M; y) + (1 - lam) sc(z^M; y') over the clean and the partner images (variant A), or sc(z^M; y')."""
        temperature = self.settings.temperature
        if self.settings.variant != "A":
            return masked_contrastive_loss(anchors, masked.toward, keys, known, temperature=temperature)
        stay = masked_contrastive_loss(anchors, labels, keys, known, temperature=temperature, row_weight=masked.lam)
        move = masked_contrastive_loss(
            anchors, masked.toward, keys, known, temperature=temperature, row_weight=1 - masked.lam
        )
        return stay + move


def fill_color(fill: Fill, batch: Batch, at: Progress) -> Tensor:
    """What stands in an erased box of view 0: a value for all, or a tensor (B, 3, 1, 1) or (B, 3, H, W)."""
    images = batch.views[0]
    if fill == "image-mean":
        return images.mean(dim=(2, 3), keepdim=True)
    if fill == "noise":
        shape = (len(batch.target), *images.shape[1:])
        return batch.own(torch.randn(shape, generator=at.generator("mask fill"))).to(images)
    return torch.zeros((), dtype=images.dtype, device=images.device)
