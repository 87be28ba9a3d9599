"""What a table of several seeds says of a difference: pure functions of what was right and what was wrong."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from longtail.rng import numpy_generator

RESAMPLES = 2000


class Spread(NamedTuple):
    """Mean and sample standard deviation (None for a single value) of ``n`` values."""

    mean: float
    deviation: float | None
    n: int


class Interval(NamedTuple):
    """A difference and the interval around it."""

    difference: float
    low: float
    high: float


def spread(values: Sequence[float | None]) -> Spread | None:
    """Mean and sample standard deviation of the values that are there; None where none is (an empty group)."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    deviation = statistics.stdev(known) if len(known) > 1 else None
    return Spread(statistics.fmean(known), deviation, len(known))


def paired_bootstrap(
    correct_a: ArrayLike,
    correct_b: ArrayLike,
    *,
    seed: int = 0,
    strata: ArrayLike | None = None,
    samples: int = RESAMPLES,
    level: float = 0.95,
) -> Interval:
    """Accuracy of a minus accuracy of b over the same test images and seeds, with a bootstrap interval over the images.

    d_i = mean_s (a_si - b_si), the difference on image i averaged over the S seeds. Without ``strata`` the interval
    holds the middle ``level`` of mean_i d*_i over ``samples`` resamples of the N images. With ``strata`` (the class of
    each image) the statistic is the mean over classes of the class means of d, as group accuracy is, and images are
    resampled within their class, so that no class is ever empty. Efron & Tibshirani 1993, chapters 8 and 13.

    It speaks of the choice of test images for these trained networks; how much another seed would move the result is
    what the standard deviation says. As in :func:`longtail.evaluation.metrics.paired_bootstrap`, a resample is drawn by
    how often each of the few distinct values of d comes, which is multinomial: the distribution is that of drawing
    images.

    ``correct_a``, ``correct_b`` (S, N) bool, rows of equal seed, images in the same order; ``strata`` (N,) integers.
    Raises ValueError for shapes that do not fit and for no image.
    """
    a, b = np.asarray(correct_a, dtype=bool), np.asarray(correct_b, dtype=bool)
    if a.shape != b.shape or a.ndim != 2 or 0 in a.shape:
        raise ValueError(f"Need two tables (seeds, images) of equal shape; got {a.shape} and {b.shape}.")
    groups = np.zeros(a.shape[1], dtype=np.int64) if strata is None else np.asarray(strata)
    if groups.shape != (a.shape[1],):
        raise ValueError(f"strata has shape {groups.shape}, expected ({a.shape[1]},).")
    # Whole numbers until the end: in fractions, equal differences would come out as unequal values.
    won = a.sum(axis=0, dtype=np.int64) - b.sum(axis=0, dtype=np.int64)
    rng = numpy_generator(seed, "study-bootstrap")
    present = np.unique(groups)
    difference, drawn = 0.0, np.zeros(samples)
    for group in present:
        mean, means = _resampled(won[groups == group], samples, rng)
        difference += mean / (a.shape[0] * present.size)
        drawn += means / (a.shape[0] * present.size)
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Interval(difference, float(low), float(high))


def _resampled(won: NDArray[np.int64], samples: int, rng: np.random.Generator) -> tuple[float, NDArray[Any]]:
    """The mean of whole numbers, and their means in ``samples`` resamples."""
    values, times = np.unique(won, return_counts=True)
    drawn = rng.multinomial(won.size, times / won.size, size=samples)
    return float(won.mean()), drawn @ values / won.size
