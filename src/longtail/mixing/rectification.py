"""The label rectification of ConCutMix, as pure functions: a label moves toward the centers near its feature."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

# 1e-12 stands for a distance of 0: its inverse is finite in float32, and beside it every other center weighs nothing.
MINIMUM_DISTANCE = 1e-12

PRODUCTS_FROM = 2**27
"""B C D from which distances come from products in float64: below it differences take some hundredths of a second."""

_BLOCK = 2**19

Confidence = Literal["frequency", "constant", "mixedness", "agreement"]
"""What the confidence in a semantic label depends on."""


@torch.no_grad()
def rectify_labels(
    features: Tensor,
    centers: Tensor,
    labels: Tensor,
    counts: Sequence[int] | Tensor,
    *,
    scale: float,
    topk: int,
    confidence: Confidence = "frequency",
) -> Tensor:
    """Label rectification of ConCutMix: moves an area label toward the classes whose centers are near the feature.

    With q from :func:`semantic_labels` and gamma from :func:`rectification_confidence`; without a gradient::

        t_i := gamma_i q_i + (1 - gamma_i) t_i

    Pan et al., arXiv 2407.04911. Authors' program: gamma leaves [0, 1] for a large scale, and a feature equal to a
    center gives 1/0. Here: gamma is clamped and so is the distance, because the label must stay a distribution.

    Args:
        features: (B, D) not normalized.
        centers: (C, D) not normalized.
        labels: (B, C) area labels; rows sum to 1.
        counts: (C,) training images per class.
        scale: the config's omega, at least 0; the authors' values are 0.2 C / 255.
        topk: classes that keep a share in q; more than C means C.
        confidence: what gamma depends on; "frequency" is the paper's.

    Returns:
        (B, C) labels of the type of ``labels``; rows sum to 1.

    Raises:
        ValueError: on shapes that do not fit, topk < 1 or scale < 0.
    """
    if labels.shape != (features.shape[0], centers.shape[0]):
        raise ValueError(
            f"labels must be (B, C) = ({features.shape[0]}, {centers.shape[0]}), not {tuple(labels.shape)}."
        )
    semantic = semantic_labels(features, centers, topk)
    gamma = rectification_confidence(labels, counts, scale, kind=confidence, semantic=semantic)
    return moved_labels(labels, semantic, gamma)


@torch.no_grad()
def moved_labels(labels: Tensor, semantic: Tensor, gamma: Tensor) -> Tensor:
    """gamma q + (1 - gamma) t, (B, C) of the type of t ``labels``; overwrites q ``semantic``. gamma is (B,)."""
    gamma = gamma.to(semantic.dtype)[:, None]
    return (semantic.mul_(gamma) + (1.0 - gamma) * labels).to(labels.dtype)


@torch.no_grad()
def semantic_labels(features: Tensor, centers: Tensor, topk: int) -> Tensor:
    """The semantically consistent label: inverse distances to the topk nearest centers, scaled to sum to 1.

    ::

        s_ik = 1 / max(||u_i - v_k||_2, 1e-12),   q_ik = s_ik / sum of the topk largest s_i   (0 outside the topk)

    Args:
        features: u (B, D).
        centers: v (C, D).
        topk: at least 1; more than C means C.

    Returns:
        (B, C), float32 for float16 and bfloat16 inputs.
    """
    if features.ndim != 2 or centers.ndim != 2 or features.shape[1] != centers.shape[1]:
        raise ValueError(
            f"features and centers must be (B, D) and (C, D), not {tuple(features.shape)} and {tuple(centers.shape)}."
        )
    if topk < 1:
        raise ValueError(f"topk must be at least 1, not {topk}.")
    kind = torch.promote_types(torch.promote_types(features.dtype, centers.dtype), torch.float32)
    distance = _distances(features.to(kind), centers.to(kind)).clamp_min_(MINIMUM_DISTANCE)
    near, ids = distance.topk(min(topk, centers.shape[0]), dim=1, largest=False)
    # In units of the nearest distance the sum lies in [1, topk], so neither it nor its inverse can leave float32.
    closeness = near[:, :1] / near
    share = closeness / closeness.sum(1, keepdim=True)
    return distance.zero_().scatter_(1, ids, share)


def _distances(features: Tensor, centers: Tensor) -> Tensor:
    """||u_i - v_k||_2, (B, C): u (B, D), v (C, D), right to the rounding of their type also where it is small.

    From B C D = PRODUCTS_FROM on, float32 on a CPU goes by |u|^2 + |v|^2 - 2 u.v in float64, some centers at a time.
    That errs by less than D 2^-52 (|u|^2 + |v|^2); rows with a square so small that half a unit of float32 might be
    lost (below 2^-27 D of those norms) are computed again by differences, as all of them are elsewhere.
    """
    size = features.shape[0] * centers.shape[0] * features.shape[1]
    if size < PRODUCTS_FROM or features.dtype != torch.float32 or features.device.type != "cpu":
        return _differences(features, centers)
    wide = features.double()
    squares = wide.square().sum(1, keepdim=True)
    distance = features.new_empty(features.shape[0], centers.shape[0])
    again = torch.zeros(features.shape[0], dtype=torch.bool, device=features.device)
    block = max(1, _BLOCK // max(features.shape))
    for first in range(0, centers.shape[0], block):
        some = centers[first : first + block].double()
        norms = squares + some.square().sum(1)
        square = torch.addmm(norms, wide, some.T, alpha=-2.0)
        again |= (square < 2**-27 * features.shape[1] * norms).any(1)
        distance[:, first : first + block] = square.clamp_min_(0.0).sqrt_()
    if bool(again.any()):
        distance[again] = _differences(features[again], centers)
    return distance


def _differences(features: Tensor, centers: Tensor) -> Tensor:
    return torch.cdist(features, centers, compute_mode="donot_use_mm_for_euclid_dist")


@torch.no_grad()
def rectification_confidence(
    labels: Tensor,
    counts: Sequence[int] | Tensor,
    scale: float,
    *,
    kind: Confidence = "frequency",
    semantic: Tensor | None = None,
) -> Tensor:
    """The confidence gamma_i in the semantic label q_i, (B,) in [0, 1].

    ::

        frequency   gamma_i = clamp(scale * log(sum_k N_k t_ik) / sum_k log N_k, 0, 1)   (natural logarithms)
        constant    gamma_i = clamp(scale, 0, 1)
        mixedness   gamma_i = clamp(scale * 2 (1 - sum_k t_ik^2), 0, 1)     4 lambda (1 - lambda) for a mixed pair
        agreement   gamma_i = clamp(scale * sum_{k: t_ik > 0} q_ik, 0, 1)

    "frequency" is ConCutMix's (Pan et al., arXiv 2407.04911): larger for labels of frequent classes. log N_k of a class
    without images is taken as 0; sum_k log N_k = 0 gives gamma = 0. The others are ours: without any opinion; largest
    where the area label is least sure and 0 for a label of one class; as far as the semantic label believes in the
    classes that were mixed.

    Args:
        labels: t (B, C), the area labels.
        counts: N (C,).
        scale: the config's omega, at least 0.
        kind: one of the four.
        semantic: q (B, C), which "agreement" asks.

    Raises:
        ValueError: on shapes that do not fit, scale < 0, an unknown kind, "agreement" without q.
    """
    if not scale >= 0:
        raise ValueError(f"scale must be at least 0, not {scale}.")
    if labels.ndim != 2:
        raise ValueError(f"labels must be (B, C), not {tuple(labels.shape)}.")
    if kind not in _CONFIDENCES:
        raise ValueError(f"kind must be one of {', '.join(_CONFIDENCES)}, not {kind!r}.")
    wide = torch.promote_types(labels.dtype, torch.float32)
    number = torch.as_tensor(counts).to(labels.device, wide)
    if number.shape != (labels.shape[1],):
        raise ValueError(f"counts must be ({labels.shape[1]},) for these labels, not {tuple(number.shape)}.")
    if kind == "agreement" and (semantic is None or semantic.shape != labels.shape):
        raise ValueError("'agreement' needs the semantic labels, of the shape of the labels.")
    return _CONFIDENCES[kind](labels.to(wide), number, scale, semantic).clamp(0.0, 1.0)


def _frequency(labels: Tensor, number: Tensor, scale: float, semantic: Tensor | None) -> Tensor:
    total = number.clamp_min(1.0).log().sum()
    # A mass below one image would give a negative gamma, that is 0 after the clamp.
    mass = (labels @ number).clamp_min(1.0).log()
    # total is 0 only where no class has two images: then the mass is 0 as well.
    return scale * mass / torch.where(total > 0, total, 1.0)


def _constant(labels: Tensor, number: Tensor, scale: float, semantic: Tensor | None) -> Tensor:
    return labels.new_full((len(labels),), scale)


def _mixedness(labels: Tensor, number: Tensor, scale: float, semantic: Tensor | None) -> Tensor:
    return scale * 2.0 * (1.0 - labels.square().sum(1))


def _agreement(labels: Tensor, number: Tensor, scale: float, semantic: Tensor | None) -> Tensor:
    assert semantic is not None, "checked above"
    return scale * (semantic * (labels > 0)).sum(1).to(labels.dtype)


_CONFIDENCES: dict[Confidence, Callable[[Tensor, Tensor, float, Tensor | None], Tensor]] = {
    "frequency": _frequency,
    "constant": _constant,
    "mixedness": _mixedness,
    "agreement": _agreement,
}
