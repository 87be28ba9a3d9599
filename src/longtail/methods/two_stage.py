"""The second of two stages: a backbone that another run trained is frozen, and its classifier learns in balance.

Kang et al., "Decoupling Representation and Classifier for Long-Tailed Recognition" (cRT and LWS), arXiv 1910.09217;
Zhong et al., "Improving Calibration for Long-Tailed Recognition" (MiSLAS), arXiv 2104.00466. The first stage is any
run, and comes by ``init``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from longtail.errors import ConfigError
from longtail.methods.base import Batch, DataNeeds, Method, Progress, StepOutput
from longtail.methods.criteria import CriterionSettings, build_criterion
from longtail.methods.mixings import soft_target
from longtail.models.network import ModelSettings, Network

BACKBONE, CLASSIFIER, SCALES = "network.backbone.", "network.classifier.", "scales"


class TwoStageSettings(CriterionSettings):
    """``method.*`` of the second stages."""

    classifier: Literal["anew", "continued", "frozen"] = "anew"
    """anew: a fresh one is learned; continued: that of init learns on; frozen: that of init stays."""
    scales: bool = False
    """Learn a factor per class, from 1, that each logit is multiplied by."""
    shift: bool = False
    """Batch-norm normalizes by the batch, and its running statistics move toward those of the balanced draws."""
    classifier_rate: float = Field(1.0, gt=0)
    """The classifier's learning rate, as a multiple of optim.lr; the scales have optim.lr."""
    sampler: Literal["class_balanced", "effective_number", "effective_number_per_sample", "reversed", "shuffle"] = (
        "class_balanced"
    )
    """How training images are drawn."""


class TwoStage(Method):
    """criterion(f * (W h + b), y) of images drawn in balance; h comes from a frozen backbone, f is 1 without scales.

    W and b are learned from fresh ones (cRT), learned on (MiSLAS) or kept while f is learned (LWS). Paper of LWS:
    f_k w_k, the bias left out of account. Authors' program: f_k (w_k h + b_k). Here: as the program, so that f = 1 is
    the first stage. Frozen is without gradient and decay, and without moving batch-norm unless ``shift``. Paper of cRT:
    "fixed". Authors' program: no gradient, but batch-norm goes on as in training. Here: as the paper, because ``shift``
    is a choice of its own.

    Raises ConfigError where nothing would learn.
    """

    def __init__(
        self, settings: TwoStageSettings, model: ModelSettings, counts: Sequence[int], *, size: int, seed: int
    ) -> None:
        super().__init__()
        if settings.classifier == "frozen" and not settings.scales:
            raise ConfigError(
                "method.classifier=frozen with method.scales=false leaves nothing to learn.",
                hint="Set method.scales=true, or method.classifier=anew or continued.",
            )
        self.settings, self.classes = settings, len(counts)
        self.network = Network(model, self.classes, seed=seed, size=size)
        self.criterion = build_criterion(settings, counts)
        self.answers_for = self.criterion.answers_for if settings.sampler == "shuffle" else "uniform"
        self.scales = nn.Parameter(torch.ones(self.classes)) if settings.scales else None
        self.network.freeze("backbone", shift=settings.shift)
        self.network.classifier.requires_grad_(settings.classifier != "frozen")
        self.needs = DataNeeds(sampler=settings.sampler)
        fresh = settings.classifier == "anew"
        self.from_init = (BACKBONE,) if fresh else (BACKBONE, CLASSIFIER)
        self.never_from_init = (CLASSIFIER, SCALES) if fresh else (SCALES,)
        self.rates = {CLASSIFIER: settings.classifier_rate}

    def scaled(self, logits: Tensor) -> Tensor:
        """f_k x_k of logits (B, C)."""
        return logits if self.scales is None else self.scales * logits

    def forward(self, batch: Batch, at: Progress) -> StepOutput:
        features = self.network.features_of(batch.views[0], shares=batch.shares)
        logits = self.scaled(self.network.classifier(features))
        loss = self.criterion(logits, soft_target(batch.target, self.classes), at)
        return StepOutput(loss, {"classification": loss.detach()})

    def logits(self, images: Tensor) -> Tensor:
        """Normalized images (B, 3, H, W) to the scaled logits (B, C), without the training offset."""
        return self.scaled(self.network.logits(images))
