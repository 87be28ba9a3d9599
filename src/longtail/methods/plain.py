"""Criterion x mixing x contrast: most of the field is a named point of this space."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from longtail.methods.base import Batch, DataNeeds, Method, Progress, StepOutput
from longtail.methods.contrasting import CONTRASTS, ContrastTimes
from longtail.methods.criteria import CriterionSettings, build_criterion
from longtail.methods.mixings import MixingSettings, build_mixing, soft_target
from longtail.models.network import ModelSettings, Network, ProjectionSettings, stack_views


class PlainSettings(CriterionSettings, MixingSettings, ContrastTimes):
    """``method.*`` of the composed methods."""

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
    """alpha * criterion(mixing(view 0)) + beta * contrast(views 1, 2), the latter where ``contrasts`` says so."""

    def __init__(
        self, settings: PlainSettings, model: ModelSettings, counts: Sequence[int], *, size: int, seed: int
    ) -> None:
        super().__init__()
        self.settings = settings
        self.classes = len(counts)
        contrasted = settings.contrast != "none"
        self.leaves_unused = contrasted and not settings.throughout
        if contrasted:
            settings.refuse_never()
        self.network = Network(
            model,
            self.classes,
            seed=seed,
            size=size,
            projection=ProjectionSettings(hidden=settings.hidden, dim=settings.dim) if contrasted else None,
            centers=settings.contrast == "balanced",
        )
        self.criterion = build_criterion(settings, counts)
        self.answers_for = self.criterion.answers_for
        self.contrast = CONTRASTS[settings.contrast] if contrasted else None
        self.mixing = build_mixing(settings, size, counts, settings.grid(self.network, size))
        self.needs = DataNeeds(
            views=("classification", "contrastive", "contrastive") if contrasted else ("classification",),
            partner_views=() if settings.mixing == "none" else ("classification",),
            partner_sampler=settings.partner_sampler,
            detector=self.mixing.detector(self.network),
            saliency_maps=settings.saliency_maps,
            ties=settings.ties,
        )

    def needs_partner(self, at: Progress) -> bool:
        return self.settings.mixes(at) and self.mixing.wants_partner(at)

    def views_at(self, at: Progress) -> tuple[str, ...]:
        return self.needs.views if self.settings.contrasts(at) else self.needs.views[:1]

    def stacks(self) -> tuple[int, ...]:
        return (len(self.needs.views), 1) if self.leaves_unused else (len(self.needs.views),)

    def forward(self, batch: Batch, at: Progress) -> StepOutput:
        images = batch.target.shape[0]
        partner = batch.partner if self.settings.mixes(at) else None
        target = soft_target(batch.target, self.classes)
        mixed = self.mixing(batch.views[0], target, partner, at, self.network)
        others = batch.views[1 : len(self.views_at(at))]
        features = self.network.features_of(mixed.images, *others, shares=batch.shares)
        classification = self.criterion(self.network.classifier(features[:images]), mixed.target, at)
        loss = self.settings.alpha * classification
        logs = {"classification": classification.detach()}
        if self.contrast is not None and others:
            # All views go through the head, as in BCL's program, so that its batch-norm sees what ConCutMix's sees.
            projected = self.network.project(features)[images:]
            views = stack_views(projected, len(others))
            contrastive = self.contrast(views, batch.target, self.network, self.settings.temperature)
            loss = loss + self.settings.beta * contrastive
            logs["contrastive"] = contrastive.detach()
        return StepOutput(loss, logs, len(features) + mixed.forwarded)
