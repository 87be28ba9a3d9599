"""How far a number that was measured on some test images may be from that of all such images."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from longtail.rng import numpy_generator

RESAMPLES = 2000


class Interval(NamedTuple):
    """A difference and the interval around it."""

    difference: float
    low: float
    high: float


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
    what the standard deviation says. Here: d has few distinct values, and how often each is drawn in a resample is
    multinomial, so that a resample costs that many numbers instead of N indices; the distribution is that of drawing
    images.

    ``correct_a``, ``correct_b`` (S, N) bool, rows of equal seed, images in the same order, or (N,) of one run;
    ``strata`` (N,) integers. Raises ValueError for shapes that do not fit and for no image.
    """
    a, b = (np.atleast_2d(np.asarray(correct, dtype=bool)) for correct in (correct_a, correct_b))
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


def wilson_interval(accuracy: float, images: int, z: float = 1.959964) -> tuple[float, float]:
    """The 95 % interval of an accuracy measured on ``images`` test images; it stays in [0, 1] for few images.

    (p + z^2 / 2n ± z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n). Wilson 1927.
    """
    scale = 1 + z * z / images
    center = accuracy + z * z / (2 * images)
    half = z * math.sqrt(accuracy * (1 - accuracy) / images + z * z / (4 * images * images))
    return max(0.0, (center - half) / scale), min(1.0, (center + half) / scale)
