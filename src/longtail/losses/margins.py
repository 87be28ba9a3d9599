"""Losses that treat classes of an image by its odds: focal loss, margins by class; and LDAM's margins from counts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from longtail.losses.classification import check_counts, prepare_logits, reduce_losses


def focal_loss(
    logits: Tensor, target: Tensor, *, gamma: float, offset: Tensor | None = None, weight: Tensor | None = None
) -> Tensor:
    """Focal loss on the softmax: cross-entropy in which images that are already right weigh less.

    With p_i = softmax(logits_i + offset) and t the one-hot or soft target::

        loss = sum_ik w_k t_ik (1 - p_ik)^gamma * -log p_ik / sum_ik w_k t_ik     with weight, without it / B

    gamma = 0 is :func:`cross_entropy`; 1 - p is computed without cancellation, and its gradient is finite for every
    gamma.

    Lin et al., "Focal Loss for Dense Object Detection", arXiv 1708.02002. Paper: a sigmoid for each class, summed and
    divided by the number of objects. Programs of the field (LDAM-DRW): the softmax, for one class an image. Here: the
    softmax, and on a soft target the mean of the losses of its classes. The weight stands outside of p (LDAM-DRW's
    program puts it inside, p = exp(-w l), which is no probability).

    Args:
        logits: (B, C) of any floating type; float16 and bfloat16 are computed in float32.
        target: (B,) integer class ids, or (B, C) floating labels.
        gamma: at least 0.
        offset: (C,) added to the logits.
        weight: (C,) non-negative.

    Returns:
        A scalar.

    Raises:
        ValueError: as :func:`cross_entropy`, and on a negative gamma.
    """
    if not gamma >= 0:
        raise ValueError(f"gamma must be at least 0, not {gamma}.")
    odds = _log_odds(prepare_logits(logits, offset=offset, weight=weight))
    # As an exponential of a logarithm: a power would have an infinite gradient at p = 1 for gamma below 1.
    modulation = (gamma * F.logsigmoid(-odds)).exp()
    return reduce_losses(modulation * -F.logsigmoid(odds), target, weight)


def margin_cross_entropy(
    logits: Tensor, target: Tensor, *, margins: Tensor, offset: Tensor | None = None, weight: Tensor | None = None
) -> Tensor:
    """Cross-entropy in which a class must win by its margin.

    With z = logits + offset, the loss of class k and its mean over the target t::

        l_ik = -log( e^{z_ik - m_k} / (e^{z_ik - m_k} + sum_{j != k} e^{z_ij}) )
        loss = sum_ik w_k t_ik l_ik / sum_ik w_k t_ik     with weight, without it / B

    Margins 0 are :func:`cross_entropy`. Each class of a soft target is judged with its own margin alone; O(B C).

    Cao et al., "Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss", arXiv 1906.07413, eq. 13.
    Paper and authors' program: one class an image, z = 30 cosines and m = 30 times :func:`ldam_margins`. Here: any
    logits, margins in their units, and soft targets.

    Args:
        logits: (B, C) of any floating type; float16 and bfloat16 are computed in float32.
        target: (B,) integer class ids, or (B, C) floating labels.
        margins: (C,), what is taken from the logit of a class where it is the label.
        offset: (C,) added to the logits.
        weight: (C,) non-negative.

    Returns:
        A scalar, exact to rounding also where one class dominates.

    Raises:
        ValueError: as :func:`cross_entropy`, and on margins of another shape.
    """
    odds = _log_odds(prepare_logits(logits, offset=offset, weight=weight, margins=margins))
    return reduce_losses(-F.logsigmoid(odds - margins.to(odds)), target, weight)


def ldam_margins(counts: Sequence[int] | Sequence[float] | Tensor, max_margin: float = 0.5) -> Tensor:
    """Margins that grow as classes get rarer: m_k = max_margin * (min_j N_j / N_k)^(1/4), (C,) float32.

    Cao et al., arXiv 1906.07413, eq. 9 and 13, where m_k = C / N_k^(1/4); in the authors' program C sets the largest
    to 0.5, in units of the cosine. A class without images counts as one image, as in :func:`logit_adjustment`.

    Raises ValueError for counts that are not one vector, negative, not finite or all zero, or a negative max_margin.
    """
    if not max_margin >= 0:
        raise ValueError(f"max_margin must be at least 0, not {max_margin}.")
    values = check_counts(counts)
    margins = max_margin * (values.min() / values) ** 0.25
    return margins.to(counts.device if isinstance(counts, Tensor) else "cpu", torch.float32)


def _log_odds(logits: Tensor) -> Tensor:
    """log p_k - log(1 - p_k) of the softmax, (B, C): z_k - log sum_{j != k} e^{z_j}; of one class the largest float."""
    top, best = logits.max(dim=1, keepdim=True)
    # scatter, not masked addition: where there is no other class logsumexp has NaN as gradient, and scatter drops it.
    without_best = logits.scatter(1, best, float("-inf")).logsumexp(dim=1, keepdim=True)
    exponentials = (logits - top.detach()).exp()
    # For all but the best class the rest holds the best one: at least half of the sum, so the subtraction is exact to
    # rounding. For the best it could cancel to nothing; any value serves there, as scatter puts the right one.
    rest = exponentials.sum(dim=1, keepdim=True) - exponentials.scatter(1, best, 0.0)
    log_rest = (rest.log() + top.detach()).scatter(1, best, without_best)
    # Without another class the odds are infinite, and gamma = 0 would make 0 * inf of them.
    return (logits - log_rest).clamp_max(torch.finfo(logits.dtype).max)
