"""Criterion x mixing x contrast: most of the field is a named point of this space."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field

from longtail.methods.base import Batch, DataNeeds, Method, Progress, StepOutput
from longtail.methods.composition import CONTRASTS, CutMix, Mixing, Mixup, NoMixing, soft_target
from longtail.methods.criteria import CriterionSettings, build_criterion
from longtail.models.network import ModelSettings, Network, ProjectionSettings, stack_views


class PlainSettings(CriterionSettings):
    """``method.*`` of the composed methods."""

    mixing: Literal["none", "mixup", "cutmix"] = "none"
    """How the classified view is mixed with a partner."""
    mix_probability: float = Field(0.5, ge=0, le=1)
    """Probability of mixing a batch."""
    mix_alpha: float = Field(1.0, gt=0)
    """lambda ~ Beta(this, this)."""
    partner_sampler: Literal["shuffle", "class_balanced", "effective_number", "reversed"] = "shuffle"
    """How partners are drawn."""
    contrast: Literal["none", "supervised", "balanced"] = "none"
    """The contrastive term."""
    alpha: float = Field(1.0, ge=0)
    """Weight of the classification loss."""
    beta: float = Field(1.0, ge=0)
    """Weight of the contrastive loss."""
    temperature: float = Field(0.1, gt=0)
    """Of the contrastive loss."""
    hidden: int = Field(512, ge=1)
    """Hidden width of the projection and center MLPs."""
    dim: int = Field(128, ge=1)
    """Width of projections and centers."""


class Plain(Method):
    """alpha * criterion(mixing(view 0)) + beta * contrast(views 1, 2)."""

    def __init__(
        self, settings: PlainSettings, model: ModelSettings, counts: Sequence[int], *, size: int, seed: int
    ) -> None:
        super().__init__()
        self.settings = settings
        self.classes = len(counts)
        contrasted = settings.contrast != "none"
        self.network = Network(
            model,
            self.classes,
            seed=seed,
            size=size,
            projection=ProjectionSettings(hidden=settings.hidden, dim=settings.dim) if contrasted else None,
            centers=settings.contrast == "balanced",
        )
        self.criterion = build_criterion(settings, counts)
        self.contrast = CONTRASTS[settings.contrast] if contrasted else None
        self.mixing = self._build_mixing(size)
        self.needs = DataNeeds(
            views=("classification", "contrastive", "contrastive") if contrasted else ("classification",),
            partner_views=() if settings.mixing == "none" else ("classification",),
            partner_sampler=settings.partner_sampler,
        )

    def _build_mixing(self, size: int) -> Mixing:
        if self.settings.mixing == "cutmix":
            return CutMix(size, self.settings.mix_alpha, self.settings.mix_probability)
        if self.settings.mixing == "mixup":
            return Mixup(self.settings.mix_alpha, self.settings.mix_probability)
        return NoMixing()

    def needs_partner(self, at: Progress) -> bool:
        return self.mixing.wants_partner(at)

    def forward(self, batch: Batch, at: Progress) -> StepOutput:
        images = batch.target.shape[0]
        mixed = self.mixing(batch.views[0], soft_target(batch.target, self.classes), batch.partner, at)
        features = self.network.features(torch.cat([mixed.images, *batch.views[1:]]))
        classification = self.criterion(self.network.classifier(features[:images]), mixed.target, at)
        loss = self.settings.alpha * classification
        logs = {"classification": classification.detach()}
        if self.contrast is not None:
            # All views go through the head, as in BCL's program, so that its batch-norm sees what ConCutMix's sees.
            projected = self.network.project(features)[images:]
            views = stack_views(projected, len(batch.views) - 1)
            contrastive = self.contrast(views, batch.target, self.network, self.settings.temperature)
            loss = loss + self.settings.beta * contrastive
            logs["contrastive"] = contrastive.detach()
        return StepOutput(loss, logs)
