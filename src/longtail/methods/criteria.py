"""Criteria by name: one classification loss with the offset, margins and weights that the class counts give it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from longtail.data.batch import Progress
from longtail.losses import (
    class_balanced_weights,
    cross_entropy,
    focal_loss,
    label_aware_smoothing,
    ldam_margins,
    logit_adjustment,
    margin_cross_entropy,
    smooth_labels,
    smoothed_cross_entropy,
)
from longtail.methods.base import Answers
from longtail.settings import Settings, Time, resolve_time


class LabelSettings(Settings):
    """The keys of ``method.*`` that any classification loss has."""

    label_smoothing: float = Field(0.0, ge=0, le=1)
    """Share of every label, mixed and rectified ones too, that goes to all classes alike."""

    def smoothed(self, target: Tensor) -> Tensor:
        """The soft labels (B, C) that the loss is given."""
        return smooth_labels(target, self.label_smoothing) if self.label_smoothing > 0 else target


class CriterionSettings(LabelSettings):
    """The keys of ``method.*`` that choose the classification loss."""

    criterion: Literal[
        "ce",
        "focal",
        "class-balanced",
        "class-balanced-focal",
        "balanced-softmax",
        "logit-adjustment",
        "ce-drw",
        "ldam-drw",
        "label-aware-smoothing",
    ] = "ce"
    """The classification loss, a key of CRITERIA."""
    tau: float = Field(1.0, ge=0)
    """Strength of logit-adjustment (balanced-softmax is its 1)."""
    focal_gamma: float = Field(1.0, ge=0)
    """Exponent of 1 - p in focal and class-balanced-focal."""
    drw_start: Time = 0.8
    """ce-drw and ldam-drw weigh classes from this epoch on: a fraction of the run or an epoch."""
    drw_beta: float = Field(0.9999, ge=0, le=1)
    """beta of the effective number of images, in the class weights of ce-drw, ldam-drw and class-balanced(-focal)."""
    max_margin: float = Field(0.5, ge=0)
    """Margin of the rarest class in ldam-drw, in units of the cosine."""
    margin_scale: float = Field(30.0, gt=0)
    """What ldam-drw multiplies margins by: the scale of the cosine classifier."""
    smooth_head: float = Field(0.4, ge=0, le=1)
    """Share that the label of the largest class gives up to all classes, in label-aware-smoothing."""
    smooth_tail: float = Field(0.1, ge=0, le=1)
    """Share that the label of the rarest class gives up to all classes, in label-aware-smoothing."""


class Criterion(nn.Module):
    """``criterion(logits (B, C), target (B, C), at) -> scalar``: a loss, and the vectors (C,) that it is given.

    ``relabel`` is done to labels before the loss. ``weight`` counts from epoch ``weight_start`` on; before it images
    weigh the same. The vectors are non-persistent buffers: they move with the module, and no checkpoint holds what
    counts decide.
    """

    def __init__(
        self,
        loss: Callable[..., Tensor] = cross_entropy,
        *,
        offset: Tensor | None = None,
        margins: Tensor | None = None,
        smoothing: Tensor | None = None,
        weight: Tensor | None = None,
        weight_start: Time = 0,
        relabel: Callable[[Tensor], Tensor] = lambda target: target,
    ) -> None:
        super().__init__()
        self.loss, self.relabel = loss, relabel
        self.weight_start = weight_start
        self.register_buffer("offset", offset, persistent=False)
        self.register_buffer("margins", margins, persistent=False)
        self.register_buffer("smoothing", smoothing, persistent=False)
        self.register_buffer("weight", weight, persistent=False)
        self.offset: Tensor | None
        self.weight: Tensor | None
        self.answers_for: Answers = "training"

    def weighs(self, at: Progress) -> bool:
        """Whether classes are weighed in this step (start 160 of 200: epochs 160..199)."""
        return self.weight is not None and at.epoch >= resolve_time(self.weight_start, at.epochs)

    def forward(self, logits: Tensor, target: Tensor, at: Progress) -> Tensor:
        vectors = dict(self.named_buffers())  # without those that are None
        if not self.weighs(at):
            vectors.pop("weight", None)
        return self.loss(logits, self.relabel(target), **vectors)


def _ce(own: CriterionSettings, counts: Sequence[int]) -> Criterion:
    return Criterion()


def _focal(own: CriterionSettings, counts: Sequence[int]) -> Criterion:
    return Criterion(partial(focal_loss, gamma=own.focal_gamma))


def _class_balanced(own: CriterionSettings, counts: Sequence[int]) -> Criterion:
    return Criterion(weight=class_balanced_weights(counts, own.drw_beta))


def _class_balanced_focal(own: CriterionSettings, counts: Sequence[int]) -> Criterion:
    weight = class_balanced_weights(counts, own.drw_beta)
    return Criterion(partial(focal_loss, gamma=own.focal_gamma), weight=weight)


def _balanced_softmax(own: CriterionSettings, counts: Sequence[int]) -> Criterion:
    return Criterion(offset=logit_adjustment(counts, 1.0))


def _logit_adjustment(own: CriterionSettings, counts: Sequence[int]) -> Criterion:
    return Criterion(offset=logit_adjustment(counts, own.tau))


def _ce_drw(own: CriterionSettings, counts: Sequence[int]) -> Criterion:
    return Criterion(weight=class_balanced_weights(counts, own.drw_beta), weight_start=own.drw_start)


def _ldam_drw(own: CriterionSettings, counts: Sequence[int]) -> Criterion:
    """Meant for ``model.classifier=cosine``, whose logits are 30 cosines; the linear one gets margins on raw logits.

    Paper: margins on normalized features and weights. Authors' program: s (cos - m) with s = 30. Here: logits - s m,
    which is the same for our cosine classifier, because criteria see logits and not what made them.
    """
    return Criterion(
        margin_cross_entropy,
        margins=own.margin_scale * ldam_margins(counts, own.max_margin),
        weight=class_balanced_weights(counts, own.drw_beta),
        weight_start=own.drw_start,
    )


def _label_aware_smoothing(own: CriterionSettings, counts: Sequence[int]) -> Criterion:
    """Paper: in a second stage, of the classifier alone. Here: of one stage, as every criterion."""
    return Criterion(smoothed_cross_entropy, smoothing=label_aware_smoothing(counts, own.smooth_head, own.smooth_tail))


CRITERIA: dict[str, Callable[[CriterionSettings, Sequence[int]], Criterion]] = {
    "ce": _ce,
    "focal": _focal,
    "class-balanced": _class_balanced,
    "class-balanced-focal": _class_balanced_focal,
    "balanced-softmax": _balanced_softmax,
    "logit-adjustment": _logit_adjustment,
    "ce-drw": _ce_drw,
    "ldam-drw": _ldam_drw,
    "label-aware-smoothing": _label_aware_smoothing,
}
"""What builds each criterion from its settings and the training images per class."""


def build_criterion(settings: CriterionSettings, counts: Sequence[int]) -> Criterion:
    """The criterion that ``settings`` name, for ``counts`` training images per class."""
    criterion = CRITERIA[settings.criterion](settings, counts)
    criterion.relabel = settings.smoothed
    never = isinstance(criterion.weight_start, float) and criterion.weight_start == 1  # the end of the run
    weight = None if never else criterion.weight
    criterion.answers_for = answers_for(counts, offset=criterion.offset, weight=weight)
    return criterion


def answers_for(counts: Sequence[int], *, offset: Tensor | None = None, weight: Tensor | None = None) -> Answers:
    """The prior that a loss leaves in the logits: at its optimum softmax(logits) is for shares pi_k w_k / exp(o_k).

    With logits + o in the loss and weights w this follows from the cross-entropy's optimum, softmax(logits + o)_k
    proportional to w_k p(k | x). In logarithms the shares are about a multiple of log pi (1 - tau for o = tau log pi):
    below a half they count as uniform. Menon et al., arXiv 2007.07314, section 4. Focal loss, margins and smoothed
    labels do not end in a probability at all; they are taken for the cross-entropy that they change.
    """
    prior = logit_adjustment(counts, 1.0).double()
    asked = prior if weight is None else prior + weight.double().log()
    asked = asked if offset is None else asked - offset.double()
    around = prior - prior.mean()
    return "uniform" if float(around @ asked) < 0.5 * float(around @ prior) else "training"
