"""What a long-tailed classifier is judged by: pure functions of probabilities or predictions and targets.

Every per-class mean leaves out classes without test images. A group without any such class is None, never 0 or NaN, so
that "this data set has no few-shot class" cannot be read as "0 % on few-shot classes". Fractions are 0..1.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from longtail.data.longtail import ClassStats

Array = NDArray[Any]
Values = ArrayLike | torch.Tensor


@dataclasses.dataclass(frozen=True)
class Metrics:
    """The numbers of one evaluation, fractions 0..1; a group of which no class has test images is None."""

    top1: float
    balanced_accuracy: float
    macro_f1: float
    many: float | None
    medium: float | None
    few: float | None
    worst_class: float
    worst_tenth: float
    g_mean: float
    h_mean: float
    ece: float

    def as_dict(self) -> dict[str, float | None]:
        """The numbers by name, in the order of ``results.json``."""
        return dataclasses.asdict(self)


def compute_metrics(
    probabilities: Values, targets: Values, train_counts: Values, groups: tuple[int, int] = (100, 20)
) -> Metrics:
    """All numbers of one evaluation, from what the model says and what is true.

    With recall_c = accuracy on the test images of class c and P classes that have test images: balanced accuracy is
    mean_c recall_c; many, medium and few are the same mean over the classes of one group (:func:`group_labels`); worst
    class is min_c recall_c; worst tenth is the mean of the ceil(P / 10) lowest recalls; G-mean is
    (prod_c recall_c)^(1/P) and H-mean is P / sum_c (1 / recall_c), both 0 where a recall is 0 (Kubat & Matwin 1997 for
    the first). Macro-F1 is mean_c 2 TP_c / (2 TP_c + FP_c + FN_c) over the P classes: scikit-learn's
    ``f1_score(targets, predicted, labels=unique(targets), average="macro", zero_division=0)``. (Its default ``labels``
    would add a 0 for each class that is predicted and never true; with a test image in every class the two agree.)
    For the calibration error see :func:`expected_calibration_error`.

    ``probabilities`` (N, C) in [0, 1]; ``targets`` (N,) integers in [0, C); ``train_counts`` (C,) training images;
    ``groups`` (many above, few below). Of equal probabilities the class of the lowest index is the prediction. Raises
    ValueError for shapes that do not fit, no image, labels out of range, and probabilities that are NaN or outside
    [0, 1] (logits, for example).
    """
    table, truth = _checked_probabilities(probabilities), _array(targets)
    images, classes = table.shape
    counts = _array(train_counts)
    if counts.shape != (classes,):
        raise ValueError(f"train_counts has shape {counts.shape}, but the probabilities are of {classes} classes.")
    truth = _checked_labels(truth, images, classes, "targets")
    predicted = table.argmax(axis=1)
    recalls = per_class_accuracy(predicted, truth, classes)
    ordered = np.sort(recalls[~np.isnan(recalls)])
    hit = predicted == truth
    positive = bool(ordered[0] > 0)
    return Metrics(
        top1=float(hit.mean()),
        balanced_accuracy=float(ordered.mean()),
        macro_f1=_macro_f1(predicted, truth, classes),
        **group_accuracies(recalls, counts, groups),
        worst_class=float(ordered[0]),
        worst_tenth=float(ordered[: -(-ordered.size // 10)].mean()),
        g_mean=float(np.exp(np.log(ordered).mean())) if positive else 0.0,
        h_mean=float(ordered.size / (1.0 / ordered).sum()) if positive else 0.0,
        ece=expected_calibration_error(table.max(axis=1), hit),
    )


def per_class_accuracy(predicted: Values, targets: Values, classes: int) -> Array:
    """The accuracy on the test images of each class, (C,) float64; NaN marks a class without test images."""
    truth, guess = _checked_pair(predicted, targets, classes)
    tested = np.bincount(truth, minlength=classes)
    right = np.bincount(truth[guess == truth], minlength=classes)
    accuracy: Array = np.divide(right, tested, out=np.full(classes, np.nan), where=tested > 0)
    return accuracy


def confusion(targets: Values, predicted: Values, classes: int) -> Array:
    """How many test images of class r were taken for class c, (C, C) int64: rows are the truth."""
    truth, guess = _checked_pair(predicted, targets, classes)
    return np.bincount(truth * classes + guess, minlength=classes * classes).reshape(classes, classes)


def group_labels(train_counts: Values, groups: tuple[int, int] = (100, 20)) -> list[str]:
    """The group of each class by its training images: many (> ``groups[0]``), few (< ``groups[1]``), else medium."""
    named = {k: name for name, ids in ClassStats(_array(train_counts)).groups(*groups).items() for k in ids}
    return [named[k] for k in range(len(named))]


def group_accuracies(
    recalls: Values, train_counts: Values, groups: tuple[int, int] = (100, 20)
) -> dict[str, float | None]:
    """The mean accuracy of the classes of each group, from per-class accuracies (C,) with NaN where untested."""
    values = _array(recalls)
    return {
        name: _mean_of_tested(values[ids]) for name, ids in ClassStats(_array(train_counts)).groups(*groups).items()
    }


def thirds(recalls: Values, train_counts: Values) -> dict[str, float | None]:
    """The mean accuracy of the head, middle and tail third of the classes, ranked by training images.

    For data sets in which one of many, medium and few is empty; see :meth:`longtail.data.longtail.ClassStats.thirds`.
    ``recalls`` (C,) has NaN where a class has no test image.
    """
    values = _array(recalls)
    return {name: _mean_of_tested(values[ids]) for name, ids in ClassStats(_array(train_counts)).thirds().items()}


def expected_calibration_error(confidence: Values, correct: Values, bins: int = 15) -> float:
    """How far confidence is from accuracy: sum_b |B_b| / N * |accuracy(B_b) - confidence(B_b)|.

    ``confidence`` (N,) in [0, 1] is the probability of the predicted class, ``correct`` (N,) bool. Bins of equal width,
    bin b holds (b / bins, (b + 1) / bins], the first also 0. Guo et al. 2017, arXiv:1706.04599, equation 3.
    """
    level = _array(confidence).astype(np.float64)
    hit = _array(correct).astype(np.float64)
    inner_edges = np.arange(1, bins) / bins
    where = np.searchsorted(inner_edges, level, side="left")
    gaps = np.bincount(where, weights=hit - level, minlength=bins)
    return float(np.abs(gaps).sum() / level.size)


def background_accuracy(
    predicted: Values, targets: Values, backgrounds: Values, seen: Values
) -> dict[str, float | None]:
    """Accuracy on backgrounds that a class had in training, and on those that it never had.

    ``seen`` (C, F) bool: class c had background family f in a training image; ``backgrounds`` (N,) in [0, F). Each
    number is the mean of per-class accuracies over the classes with test images of that kind; None if there is none.
    """
    had = _array(seen).astype(bool)
    classes, families = had.shape
    truth, guess = _checked_pair(predicted, targets, classes)
    family = _checked_labels(_array(backgrounds), truth.size, families, "backgrounds")
    known = had[truth, family]
    return {
        name: _mean_of_tested(per_class_accuracy(guess[rows], truth[rows], classes))
        for name, rows in (("seen", known), ("unseen", ~known))
    }


def _macro_f1(predicted: Array, truth: Array, classes: int) -> float:
    tested = np.bincount(truth, minlength=classes)
    said = np.bincount(predicted, minlength=classes)
    right = np.bincount(truth[predicted == truth], minlength=classes)
    present = tested > 0
    return float((2 * right[present] / (tested[present] + said[present])).mean())


def _mean_of_tested(recalls: Array) -> float | None:
    tested = recalls[~np.isnan(recalls)]
    return float(tested.mean()) if tested.size else None


def _array(values: Values) -> Array:
    if isinstance(values, torch.Tensor):
        on_cpu = values.detach().cpu()
        # NumPy has no bfloat16; float32 holds each of its values exactly.
        return np.asarray((on_cpu.float() if on_cpu.dtype == torch.bfloat16 else on_cpu).numpy())
    return np.asarray(values)


def _checked_probabilities(probabilities: Values) -> Array:
    table = _array(probabilities)
    if table.ndim != 2 or 0 in table.shape:
        raise ValueError(f"Need probabilities (images, classes), at least one of each; got shape {table.shape}.")
    low, high = float(table.min()), float(table.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        broken = np.flatnonzero(~np.isfinite(table).all(axis=1))
        raise ValueError(f"Probabilities of {broken.size} of {len(table)} images are not finite, first: {broken[0]}.")
    if low < -1e-3 or high > 1 + 1e-3:
        raise ValueError(f"Probabilities lie in [0, 1], these go from {low:.4g} to {high:.4g}: are they logits?")
    return table


def _checked_labels(labels: Array, images: int, classes: int, name: str) -> Array:
    if labels.shape != (images,):
        raise ValueError(f"{name} has shape {labels.shape}, expected ({images},).")
    whole = labels.astype(np.int64)
    if (whole != labels).any() or (images and (whole.min() < 0 or whole.max() >= classes)):
        raise ValueError(f"{name} must be integers in [0, {classes}).")
    return whole


def _checked_pair(predicted: Values, targets: Values, classes: int) -> tuple[Array, Array]:
    truth = _array(targets)
    if truth.ndim != 1:
        raise ValueError(f"targets has shape {truth.shape}, expected one label per image.")
    return (
        _checked_labels(truth, truth.size, classes, "targets"),
        _checked_labels(_array(predicted), truth.size, classes, "predicted"),
    )
