"""SMCL meets ConCutMix: both ask what to do with a region of an image, and what to call the result.

ConCutMix (arXiv 2407.04911) pastes a random box at its own place; here the class-balanced partner is cut at its salient
peak and pasted over the salient peak of the image, so that the object is replaced and the background kept. SMCL
(arXiv 2406.02223) erases the object; here the erased view is one more anchor of the balanced contrastive loss, toward
the partner's class. A combination of ours; docs/methods/smcl-concutmix.md says what it was measured to do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from longtail.losses import (
    balanced_contrastive_loss,
    balanced_masked_contrastive_loss,
    cross_entropy,
    logit_adjustment,
)
from longtail.methods.base import Batch, DataNeeds, Method, Progress, StepOutput
from longtail.methods.concutmix import ConCutMixSettings, rectified
from longtail.methods.criteria import answers_for
from longtail.methods.locating import Locator
from longtail.methods.mixings import CutMix, soft_target
from longtail.mixing import Box, boxes_like, erase, mix_labels, paste, transplant
from longtail.models.network import ModelSettings, Network, ProjectionSettings, stack_views
from longtail.settings import AbsolutePath, resolve_time


class SMCLConCutMixSettings(ConCutMixSettings):
    """``method.*`` of smcl-concutmix: those of ConCutMix, and three switches (omega 0 is the third)."""

    place: Literal["salient", "random"] = "salient"
    """salient: from the partner's peak to the image's peak; random: ConCutMix's box, at one place in both."""
    mu: float = Field(0.3, ge=0)
    """Weight of the masked view as an anchor toward the partner's class; 0 makes no masked view."""
    detector: str = "fine-grained"
    """What finds the salient peak: see longtail detectors."""
    saliency_maps: AbsolutePath | None = None
    """An npz with maps (N, H, W) of the training images made elsewhere, instead of the detector."""
    ties: Literal["first", "random"] = "first"
    """Which of equal peaks of a map counts: the first in raster order, or a random one."""


@dataclass(frozen=True)
class Replaced:
    """What a mixed step makes of view 0: images with another object, their soft target, the view with its object
    erased (None without mu), and how many images the detector forwarded."""

    images: Tensor
    target: Tensor
    erased: Tensor | None
    forwarded: int


class SMCLConCutMix(Method):
    """ConCutMix with a placed box, + mu * balanced contrastive loss of the erased view toward the partner's class."""

    def __init__(
        self, settings: SMCLConCutMixSettings, model: ModelSettings, counts: Sequence[int], *, size: int, seed: int
    ) -> None:
        super().__init__()
        settings.refuse_never()
        self.leaves_unused = not settings.throughout
        self.settings = settings.with_classes(len(counts))
        self.network = Network(
            model,
            len(counts),
            seed=seed,
            size=size,
            projection=ProjectionSettings(hidden=settings.hidden, dim=settings.dim),
            centers=True,
        )
        self.patch = settings.grid(self.network, size)
        self.mixing = CutMix(size, settings.mix_alpha, settings.mix_probability, self.patch)
        self.locate = Locator(settings.detector, given=settings.saliency_maps is not None)
        self.locate.check(self.network)
        locates = (settings.place == "salient" or settings.mu > 0) and settings.mix_probability > 0
        self.needs = DataNeeds(
            views=("classification", "contrastive", "contrastive"),
            partner_views=("classification",),
            partner_sampler=settings.partner_sampler,
            detector=self.locate.wanted if locates else None,
            saliency_maps=settings.saliency_maps,
            ties=settings.ties,
        )
        self.register_buffer("offset", logit_adjustment(counts, settings.tau), persistent=False)
        self.answers_for = answers_for(counts, offset=logit_adjustment(counts, settings.tau))
        self.register_buffer("counts", torch.tensor(list(counts)), persistent=False)
        self.offset: Tensor
        self.counts: Tensor

    def needs_partner(self, at: Progress) -> bool:
        return self.mixing.wants_partner(at)

    def views_at(self, at: Progress) -> tuple[str, ...]:
        return self.needs.views if self.settings.contrasts(at) else self.needs.views[:1]

    def stacks(self) -> tuple[int, ...]:
        stacks = (3, 4) if self.settings.mu > 0 else (3,)
        return (*stacks, 1) if self.leaves_unused else stacks

    def replace(self, batch: Batch, box: Box, at: Progress) -> Replaced:
        """Paste the partner's object over the image's, and erase the image's, in boxes of the size that was drawn.

        They have the size of ConCutMix's box as it was clipped, so that lambda is the one it would have had.
        """
        own, partner, images = self.settings, batch.partner, batch.views[0]
        assert partner is not None, "a mixed step wants a partner"
        salient, erased, forwarded = None, None, 0
        erases = own.mu > 0 and own.contrasts(at)
        if own.place == "salient" or erases:
            located = self.locate(self.network, batch, at)
            salient, forwarded = boxes_like(box, located.peaks, self.patch), located.forwarded
            erased = erase(images, batch.own(salient)) if erases else None
        if own.place == "salient" and salient is not None:
            source = self.locate(self.network, partner, at, "partner saliency")
            places = partner.own(boxes_like(box, source.peaks, self.patch))
            mixed = transplant(images, partner.views[0], batch.own(salient), places)
            forwarded += source.forwarded
        else:
            mixed = paste(images, partner.views[0], box)
        classes = len(self.counts)
        target = mix_labels(soft_target(batch.target, classes), soft_target(partner.target, classes), box.lam)
        return Replaced(mixed, target, erased, forwarded)

    def forward(self, batch: Batch, at: Progress) -> StepOutput:
        own, count, box = self.settings, batch.target.shape[0], self.mixing.draw(at)
        made = None if box is None or batch.partner is None else self.replace(batch, box, at)
        contrasts = own.contrasts(at)
        views = [batch.views[0] if made is None else made.images, *(batch.views[1:] if contrasts else ())]
        if made is not None and made.erased is not None:
            views.append(made.erased)
        features = self.network.features_of(*views, shares=batch.shares)
        forwarded = len(features) + (0 if made is None else made.forwarded)
        target = soft_target(batch.target, len(self.counts)) if made is None else made.target
        if not contrasts:
            classification = self.classify(features, target)
            return StepOutput(own.alpha * classification, {"classification": classification.detach()}, forwarded)

        projected, centers = self.network.project(features), self.network.centers()
        logs: dict[str, Tensor] = {}
        if made is not None and at.epoch > resolve_time(own.rectify_start, at.epochs):
            target, logs["gamma"] = rectified(target, projected[:count], centers, self.counts, own)
        classification = self.classify(features[:count], target)
        directions = F.normalize(centers, dim=1)
        pairs = stack_views(projected[count : 3 * count], 2)
        contrastive = balanced_contrastive_loss(pairs, batch.target, directions, temperature=own.temperature)
        loss = own.alpha * classification + own.beta * contrastive
        logs |= {"classification": classification.detach(), "contrastive": contrastive.detach()}
        if made is not None and made.erased is not None:
            assert batch.partner is not None
            anchors = F.normalize(projected[3 * count :], dim=1)
            pull = balanced_masked_contrastive_loss(
                anchors, batch.partner.target, pairs, batch.target, directions, temperature=own.temperature
            )
            loss = loss + own.mu * pull
            logs["masked"] = pull.detach()
        return StepOutput(loss, logs, forwarded)

    def classify(self, features: Tensor, target: Tensor) -> Tensor:
        """The logit-adjusted cross-entropy of features (B, width) on soft labels (B, C)."""
        return cross_entropy(self.network.classifier(features), self.settings.smoothed(target), offset=self.offset)
