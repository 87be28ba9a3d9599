"""Classes by rank as columns of a chart, and the running mean over them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from longtail.report.folder import GROUPS, ClassRow

MOST_COLUMNS = 200


def running_mean(values: Sequence[float | None], window: int) -> NDArray[np.float64]:
    """The centered mean over ``window`` neighbors, fewer at the ends; None is left out, NaN where all are None."""
    known = np.array([np.nan if v is None else v for v in values], dtype=np.float64)
    there = ~np.isnan(known)
    places, half = np.arange(known.size), window // 2
    low, high = np.maximum(places - half, 0), np.minimum(places + half + 1, known.size)
    total = np.concatenate([[0.0], np.cumsum(np.where(there, known, 0.0))])
    number = np.concatenate([[0], np.cumsum(there)])
    inside = number[high] - number[low]
    mean: NDArray[np.float64] = np.full(known.size, np.nan)
    np.divide(total[high] - total[low], inside, out=mean, where=inside > 0)
    return mean


def smoothing_window(classes: int) -> int:
    """About a tenth of the classes, odd, at least three."""
    return max(3, classes // 10 // 2 * 2 + 1)


@dataclass(frozen=True)
class Column:
    """Neighboring classes of one group: their middle rank and number, mean training images, accuracy, test images.

    ``accuracy`` is None where none of them has an evaluated image.
    """

    center: float
    width: int
    count: float
    accuracy: float | None
    group: str
    tested: int


def classes_per_column(classes: int) -> int:
    """How many neighboring classes share a column: one, up to 200 classes."""
    return -(-classes // MOST_COLUMNS)


def columns_of(ranked: Sequence[ClassRow]) -> list[Column]:
    """The columns of classes in the order given; none holds classes of two groups."""
    size = classes_per_column(len(ranked))
    made = []
    for group in GROUPS:
        places = [i for i, row in enumerate(ranked) if row.group == group]
        for start in range(0, len(places), size):
            part = places[start : start + size]
            known = [a for i in part if (a := ranked[i].accuracy) is not None]
            count = float(np.mean([ranked[i].train_count for i in part]))
            accuracy = float(np.mean(known)) if known else None
            tested = sum(ranked[i].test_count for i in part)
            made.append(Column(float(np.mean(part)), len(part), count, accuracy, group, tested))
    return made
