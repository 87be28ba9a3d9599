"""ConCutMix: class-balanced CutMix whose labels are rectified in a contrastive feature space.

Pan, Guo, Yu, Chen, "Enhanced Long-Tailed Recognition with Contrastive CutMix Augmentation", IEEE TIP 2024,
arXiv 2407.04911. docs/methods/concutmix.md sets paper, authors' program and this file side by side.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from longtail.losses import balanced_contrastive_loss, cross_entropy, logit_adjustment
from longtail.methods.base import Batch, DataNeeds, Method, Progress, StepOutput
from longtail.methods.contrasting import ContrastTimes
from longtail.methods.criteria import LabelSettings, answers_for
from longtail.methods.mixings import CutMix, PartnerSampler, soft_target
from longtail.methods.patches import PatchSettings
from longtail.mixing import Confidence, moved_labels, rectification_confidence, semantic_labels
from longtail.models.network import ModelSettings, Network, ProjectionSettings, stack_views
from longtail.settings import Time, resolve_time


class ConCutMixSettings(LabelSettings, PatchSettings, ContrastTimes):
    """``method.*`` of ConCutMix; ``omega`` and ``topk`` default to C / 1275 and min(30, round(0.3 C))."""

    alpha: float = Field(2.0, ge=0)
    """Weight of the classification loss."""
    beta: float = Field(0.6, ge=0)
    """Weight of the contrastive loss."""
    temperature: float = Field(0.1, gt=0)
    """Of the contrastive loss."""
    tau: float = Field(1.0, ge=0)
    """Strength of logit adjustment."""
    omega: float | None = Field(None, ge=0)
    """Scale of the confidence gamma in the semantic label; null is C / 1275."""
    topk: int | None = Field(None, ge=1)
    """Centers that a semantic label keeps; null is min(30, round(0.3 C))."""
    confidence: Confidence = "frequency"
    """What gamma depends on: the paper's "frequency", or ours: "constant", "mixedness", "agreement"."""
    rectify_start: Time = 0.5
    """Labels are rectified in the epochs after this one, where there is contrast: a fraction of the run or an epoch."""
    mix_probability: float = Field(0.5, ge=0, le=1)
    """Probability of mixing a batch."""
    mix_alpha: float = Field(1.0, gt=0)
    """lambda ~ Beta(this, this)."""
    partner_sampler: PartnerSampler = "class_balanced"
    """How the pasted images are drawn."""
    hidden: int = Field(512, ge=1)
    """Hidden width of the projection and center MLPs."""
    dim: int = Field(128, ge=1)
    """Width of projections and centers."""

    def with_classes(self, classes: int) -> Self:
        """The same settings with ``omega`` and ``topk`` filled in for ``classes`` classes (topk never above it)."""
        topk = self.topk if self.topk is not None else min(30, max(1, round(0.3 * classes)))
        omega = self.omega if self.omega is not None else classes / 1275
        return self.model_copy(update={"topk": min(topk, classes), "omega": omega})


class ConCutMix(Method):
    """alpha * soft-target logit-adjusted cross-entropy of the mixed view + beta * balanced contrastive loss."""

    def __init__(
        self, settings: ConCutMixSettings, model: ModelSettings, counts: Sequence[int], *, size: int, seed: int
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
        self.needs = DataNeeds(
            views=("classification", "contrastive", "contrastive"),
            partner_views=("classification",),
            partner_sampler=settings.partner_sampler,
        )
        self.mixing = CutMix(size, settings.mix_alpha, settings.mix_probability, settings.grid(self.network, size))
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
        return (3, 1) if self.leaves_unused else (3,)

    def rectifies(self, at: Progress) -> bool:
        """Labels of mixed batches are rectified after epoch ``rectify_start`` (start 10 of 20: epochs 11..19).

        And only in epochs with a contrastive loss: it is its space that they are rectified in.
        """
        return at.epoch > resolve_time(self.settings.rectify_start, at.epochs) and self.settings.contrasts(at)

    def forward(self, batch: Batch, at: Progress) -> StepOutput:
        own, images = self.settings, batch.target.shape[0]
        mixed = self.mixing(batch.views[0], soft_target(batch.target, len(self.counts)), batch.partner, at)
        others = batch.views[1 : len(self.views_at(at))]
        features = self.network.features_of(mixed.images, *others, shares=batch.shares)
        if not others:
            classification = self.classify(features, mixed.target)
            logs = {"classification": classification.detach()}
            return StepOutput(own.alpha * classification, logs, len(features))
        projected, centers = self.network.project(features), self.network.centers()

        target, logs = mixed.target, {}
        if mixed.box is not None and self.rectifies(at):
            target, logs["gamma"] = rectified(mixed.target, projected[:images], centers, self.counts, own)

        classification = self.classify(features[:images], target)
        contrastive = balanced_contrastive_loss(
            stack_views(projected[images:], len(others)),
            batch.target,
            F.normalize(centers, dim=1),
            temperature=own.temperature,
        )
        logs |= {"classification": classification.detach(), "contrastive": contrastive.detach()}
        return StepOutput(own.alpha * classification + own.beta * contrastive, logs, len(features))

    def classify(self, features: Tensor, target: Tensor) -> Tensor:
        """The logit-adjusted cross-entropy of features (B, width) on soft labels (B, C)."""
        return cross_entropy(self.network.classifier(features), self.settings.smoothed(target), offset=self.offset)


def rectified(
    target: Tensor, projected: Tensor, centers: Tensor, counts: Tensor, own: ConCutMixSettings
) -> tuple[Tensor, Tensor]:
    """The rectified label (B, C) of mixed images, and the mean of gamma."""
    assert own.omega is not None, "filled in by with_classes"
    assert own.topk is not None, "filled in by with_classes"
    semantic = semantic_labels(projected, centers, own.topk)
    gamma = rectification_confidence(target, counts, own.omega, kind=own.confidence, semantic=semantic)
    return moved_labels(target, semantic, gamma), gamma.mean()
