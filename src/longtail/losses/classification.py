"""Cross-entropy on hard or soft targets with an offset and weight by class, and those that follow from counts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def cross_entropy(
    logits: Tensor, target: Tensor, *, offset: Tensor | None = None, weight: Tensor | None = None
) -> Tensor:
    """Cross-entropy of ``logits + offset`` against class ids or soft labels, weighted by class.

    With l_ik = -log softmax(logits_i + offset)_k and t the one-hot or soft target::

        loss = sum_ik w_k t_ik l_ik / sum_ik w_k t_ik     with weight
        loss = sum_ik     t_ik l_ik / B                   without

    With weight, hard targets give what ``torch.nn.functional.cross_entropy`` gives. For soft targets that function
    divides by B; here by the weight that was applied, because a soft label that happens to be one-hot must give the
    value of the hard one. A batch whose applied weight is 0 gives 0.

    Args:
        logits: (B, C) of any floating type; float16 and bfloat16 are computed in float32.
        target: (B,) integer class ids in [0, C), or (B, C) floating labels, rows normally summing to 1.
        offset: (C,) added to the logits in training only, e.g. :func:`logit_adjustment`.
        weight: (C,) non-negative.

    Returns:
        A scalar.

    Raises:
        ValueError: on a shape or type that does not fit, or (on the CPU) an id outside [0, C).
    """
    log_probabilities = F.log_softmax(prepare_logits(logits, offset=offset, weight=weight), dim=1)
    return reduce_losses(-log_probabilities, target, weight)


def logit_adjustment(counts: Sequence[int] | Sequence[float] | Tensor, tau: float = 1.0) -> Tensor:
    """The offset tau * log pi_k with the training prior pi_k = N_k / sum N; tau = 1 is Balanced Softmax.

    Menon et al., arXiv 2007.07314; Ren et al., arXiv 2007.10740. Papers: pi_k > 0. Here: a class without images counts
    as one image (or the smallest positive count, if that is below one, so that a prior serves as well as counts),
    because log 0 would make every soft label that touches the class infinite.

    Args:
        counts: (C,) training images per class.
        tau: strength; 0 gives zeros.

    Returns:
        (C,) float32, on the device of ``counts``.

    Raises:
        ValueError: on counts that are not one vector, negative, not finite, or all zero.
    """
    values = check_counts(counts)
    total = torch.as_tensor(counts).detach().to("cpu", torch.float64).sum()
    offset = tau * (values.log() - total.log())
    return offset.to(counts.device if isinstance(counts, Tensor) else "cpu", torch.float32)


def class_balanced_weights(counts: Sequence[int] | Sequence[float] | Tensor, beta: float) -> Tensor:
    """Weights by the inverse effective number of images, summing to the number of classes, (C,) float32.

    E_k = (1 - beta^N_k) / (1 - beta), w_k = C / E_k / sum_j (1 / E_j). beta = 0 gives ones, beta = 1 the limit
    E_k = N_k. A class without images counts as one image, as in :func:`logit_adjustment`: a soft label or a partner may
    touch it. (:func:`longtail.data.effective_number_probabilities`, which draws images, gives it 0.)

    Cui et al., "Class-Balanced Loss Based on Effective Number of Samples", arXiv 1901.05555, eq. 10.

    Raises ValueError for counts that are not one vector, negative, not finite or all zero, or beta outside [0, 1].
    """
    if not 0 <= beta <= 1:
        raise ValueError(f"beta must be in [0, 1], not {beta}.")
    values = check_counts(counts)
    effective = values if beta == 1 else 1 - beta**values
    weights = len(values) / effective / (1 / effective).sum()
    return weights.to(counts.device if isinstance(counts, Tensor) else "cpu", torch.float32)


def prepare_logits(logits: Tensor, *, offset: Tensor | None, **vectors: Tensor | None) -> Tensor:
    """``logits + offset`` (B, C), at least float32; ValueError unless ``offset`` and ``vectors`` are (C,) or None."""
    if logits.ndim != 2 or not logits.is_floating_point():
        raise ValueError(f"logits must be a floating (B, C) tensor, not {_described(logits)}.")
    batch, classes = logits.shape
    if batch == 0:
        raise ValueError("logits of an empty batch have no mean loss.")
    for name, vector in {"offset": offset, **vectors}.items():
        if vector is not None and vector.shape != (classes,):
            raise ValueError(
                f"{name} must be ({classes},) as logits are {tuple(logits.shape)}, not {_described(vector)}."
            )
    logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    return logits if offset is None else logits + offset.to(logits)


def reduce_losses(losses: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
    """Losses (B, C), one for each class that the label could be, to their mean over ``target`` and ``weight``.

    ``sum_ik w_k t_ik l_ik`` over ``sum_ik w_k t_ik``, or over B without weight; ValueError on a target that does not
    fit.
    """
    batch, classes = losses.shape
    if weight is not None:
        weight = weight.to(losses)
    if target.is_floating_point():
        if target.shape != losses.shape:
            raise ValueError(f"a soft target must be {tuple(losses.shape)} like logits, not {_described(target)}.")
        applied = target.to(losses) if weight is None else target.to(losses) * weight
        total = (applied * losses).sum()
        return total / batch if weight is None else total / _positive(applied.sum())
    check_labels("target", target, batch, classes)
    ids = target.long()
    chosen = losses.gather(1, ids[:, None]).squeeze(1)
    if weight is None:
        return chosen.mean()
    applied = weight[ids]
    return (applied * chosen).sum() / _positive(applied.sum())


def check_counts(counts: Sequence[int] | Sequence[float] | Tensor) -> Tensor:
    """Counts (C,) in float64 on the CPU, all positive: a class without images counts as one image.

    Or as the smallest positive count, if that is below one, so that a prior serves as well as counts. ValueError on
    counts that are not one vector, negative, not finite, or all zero.
    """
    # On the CPU in float64, because not every device has float64; this runs once a run.
    values = torch.as_tensor(counts).detach().to("cpu", torch.float64)
    if values.ndim != 1:
        raise ValueError(f"counts must be (C,), not {tuple(values.shape)}.")
    if not bool(((values >= 0) & values.isfinite()).all()):
        raise ValueError("counts must be finite and not negative.")
    if not bool((values > 0).any()):
        raise ValueError("counts are all zero: nothing follows from them.")
    return torch.where(values > 0, values, values[values > 0].min().clamp(max=1.0))


def check_labels(name: str, labels: Tensor, length: int, classes: int | None = None) -> None:
    """Raise ValueError unless ``labels`` is an integer (length,) vector, within [0, classes) where that is cheap."""
    if labels.shape != (length,) or labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ValueError(f"{name} must be integer class ids of shape ({length},), not {_described(labels)}.")
    # Elsewhere the comparison would wait for the device in every step, and gather fails there on its own.
    if classes is None or length == 0 or labels.device.type != "cpu" or torch.compiler.is_compiling():
        return
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        raise ValueError(f"{name} holds ids from {low} to {high}; they must lie in [0, {classes}).")


def _positive(total: Tensor) -> Tensor:
    return total.clamp_min(torch.finfo(total.dtype).tiny)


def _described(values: Tensor) -> str:
    return f"{str(values.dtype).removeprefix('torch.')} {tuple(values.shape)}"
