"""Label smoothing, one share for all classes or, more for classes with many images, one for each."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from longtail.losses.classification import check_counts, prepare_logits, reduce_losses


def smoothed_cross_entropy(
    logits: Tensor, target: Tensor, *, smoothing: Tensor, offset: Tensor | None = None, weight: Tensor | None = None
) -> Tensor:
    """Cross-entropy in which a label gives up a share of itself, by its class, to all classes alike.

    With log p = log softmax(logits + offset), eps_k the smoothing of class k and t the one-hot or soft target::

        l_ik = -(1 - eps_k) log p_ik - eps_k / C sum_j log p_ij
        loss = sum_ik w_k t_ik l_ik / sum_ik w_k t_ik     with weight, without it / B

    Smoothing 0 is :func:`cross_entropy`. A soft target is smoothed class by class, with the eps of each; O(B C).

    Zhong et al., "Improving Calibration for Long-Tailed Recognition" (MiSLAS), arXiv 2104.00466. Paper: the share goes
    to the other classes, eps_k / (C - 1) each. Authors' program: to all classes, eps_k / C each. Here: as the program,
    because the published numbers were made with it, and one class is then no division by zero.

    Args:
        logits: (B, C) of any floating type; float16 and bfloat16 are computed in float32.
        target: (B,) integer class ids, or (B, C) floating labels.
        smoothing: (C,) in [0, 1], e.g. :func:`label_aware_smoothing`.
        offset: (C,) added to the logits.
        weight: (C,) non-negative.

    Returns:
        A scalar.

    Raises:
        ValueError: as :func:`cross_entropy`, and on smoothing of another shape.
    """
    shifted = prepare_logits(logits, offset=offset, weight=weight, smoothing=smoothing)
    log_p = F.log_softmax(shifted, dim=1)
    share = smoothing.to(log_p)
    losses = -(1 - share) * log_p - share * log_p.mean(dim=1, keepdim=True)
    return reduce_losses(losses, target, weight)


def smooth_labels(target: Tensor, share: float) -> Tensor:
    """Soft labels of which ``share`` goes to all C classes alike: t' = (1 - share) t + share / C, (B, C).

    Szegedy et al., "Rethinking the Inception Architecture", arXiv 1512.00567, section 7. Raises ValueError for a share
    outside [0, 1].
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share must be in [0, 1], not {share}.")
    return (1 - share) * target + share / target.shape[1]


def label_aware_smoothing(
    counts: Sequence[int] | Sequence[float] | Tensor, head: float = 0.4, tail: float = 0.1
) -> Tensor:
    """Smoothing that grows with the count, from ``tail`` for the rarest class to ``head`` for the largest.

    eps_k = tail + (head - tail) sin(pi / 2 * (N_k - N_min) / (N_max - N_min)), (C,) float32: the concave form, which
    rises fast for classes of medium size. Zhong et al., arXiv 2104.00466. Paper and authors' program: N_max > N_min.
    Here: equal counts have ``tail``, because no class is then a head that is to be held back. A class without images
    counts as one image, as in :func:`logit_adjustment`.

    Raises ValueError for counts that are not one vector, negative, not finite or all zero, or shares outside [0, 1].
    """
    for name, share in (("head", head), ("tail", tail)):
        if not 0 <= share <= 1:
            raise ValueError(f"{name} must be in [0, 1], not {share}.")
    values = check_counts(counts)
    span = values.max() - values.min()
    place = (values - values.min()) / span if float(span) > 0 else torch.zeros_like(values)
    smoothing = tail + (head - tail) * (math.pi / 2 * place).sin()
    return smoothing.to(counts.device if isinstance(counts, Tensor) else "cpu", torch.float32)
