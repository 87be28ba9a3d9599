"""Test distributions other than that of the test set: its images weighted, class by class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from longtail.evaluation.metrics import per_class_accuracy
from longtail.evaluation.priors import move_prior
from longtail.methods.base import Answers


def profile_prior(name: str, class_counts: Sequence[int]) -> Tensor:
    """The class prior q (C,) float64 of a test distribution, which sums to 1.

    ``forward-R``: q_k proportional to R^(-rank_k / (C - 1)), rank 0 the class with the most training images (of equals
    the one of the lower label), so that the largest class is R times as frequent as the smallest; ``backward-R``: the
    ranks the other way around; ``uniform``: 1 / C. Hong et al., "Disentangling Label Distribution for Long-tailed
    Visual Recognition", arXiv 2012.00321 (LADE), whose program ranks by label, as counts do there.
    """
    classes = len(class_counts)
    if name == "uniform" or classes == 1:
        return torch.full((classes,), 1 / classes, dtype=torch.float64)
    direction, _, ratio = name.partition("-")
    rank = np.empty(classes)
    rank[np.argsort(-np.asarray(class_counts), kind="stable")] = np.arange(classes)
    if direction == "backward":
        rank = classes - 1 - rank
    shares = torch.from_numpy(float(ratio) ** (-rank / (classes - 1)))
    return shares / shares.sum()


def under_profiles(
    names: Sequence[str],
    probabilities: NDArray[np.float32],
    targets: NDArray[np.int64],
    class_counts: Sequence[int],
    answers_for: Answers,
) -> dict[str, dict[str, float]]:
    """Accuracy under each test distribution q: ``top1`` as the network answers, ``prior_known`` once it is told q.

    top1 = sum_k q_k recall_k over the classes that have test images, with q scaled to sum to 1 over them: what a test
    set of those shares would give on average. ``prior_known`` moves the probabilities to q first
    (:func:`longtail.evaluation.priors.move_prior`): LADE's PC softmax. ``probabilities`` (N, C) are softmax of the
    logits, for the prior ``answers_for``.
    """
    found: dict[str, dict[str, float]] = {}
    if not names:
        return found  # without the logits, which are half a gigabyte for as many images and classes as iNaturalist has
    logits = torch.from_numpy(probabilities).to(torch.float64, copy=True).clamp_min_(1e-30).log_()
    for name in names:
        prior = profile_prior(name, class_counts)
        told = move_prior(logits, answers_for, prior, class_counts).argmax(dim=1).numpy()
        found[name] = {
            "top1": _expected(probabilities.argmax(axis=1), targets, prior.numpy()),
            "prior_known": _expected(told, targets, prior.numpy()),
        }
    return found


def _expected(predicted: NDArray[Any], targets: NDArray[np.int64], prior: NDArray[np.float64]) -> float:
    recalls = per_class_accuracy(predicted, targets, len(prior))
    tested = ~np.isnan(recalls)
    return float((prior[tested] * recalls[tested]).sum() / prior[tested].sum())
