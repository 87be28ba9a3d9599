"""Slow loops of the family's one-stage methods, in plain Python floats from the equations."""

from __future__ import annotations

import math
from collections.abc import Sequence

import oracles
from oracles import Matrix


def label_aware_smoothing(counts: Sequence[int], head: float, tail: float) -> list[float]:
    known = [max(n, 1) for n in counts]
    span = max(known) - min(known)
    return [tail + (head - tail) * math.sin(math.pi * (n - min(known)) / (2 * span)) if span else tail for n in known]


def smoothed_cross_entropy(
    logits: Matrix,
    target: Sequence[int] | Matrix,
    smoothing: Sequence[float],
    offset: Sequence[float] | None = None,
    weight: Sequence[float] | None = None,
) -> float:
    """The loss of label k is the cross-entropy of 1 - eps_k on k, and eps_k / C on every class."""
    losses = []
    for row in logits:
        shifted = [row[k] + (offset[k] if offset is not None else 0.0) for k in range(len(row))]
        log_p, classes = oracles.log_softmax(shifted), len(row)
        losses.append(
            [
                -math.fsum(((1 - eps) * (j == k) + eps / classes) * log_p[j] for j in range(classes))
                for k, eps in enumerate(smoothing)
            ]
        )
    return oracles.weighted_mean(losses, target, weight)


def remix_factor(lam: float, own: int, other: int, kappa: float, tau: float) -> float:
    ratio = max(own, 1) / max(other, 1)
    if ratio >= kappa and lam < tau:
        return 0.0
    if ratio <= 1 / kappa and 1 - lam < tau:
        return 1.0
    return lam


def pasted_around_the_peak(
    image: Sequence[Matrix], partner: Sequence[Matrix], peak: tuple[int, int], lam: float
) -> tuple[list[list[list[float]]], float]:
    """SaliencyMix of one image (channels, rows, columns): pixel by pixel, and the share of pixels that stayed."""
    height, width = len(image[0]), len(image[0][0])
    inside = oracles.cutmix_mask(height, width, lam, *peak)
    made = [
        [[(other if inside[y][x] else own)[y][x] for x in range(width)] for y in range(height)]
        for own, other in zip(image, partner, strict=True)
    ]
    return made, 1 - sum(map(sum, inside)) / (height * width)
