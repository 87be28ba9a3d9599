"""The pictures of a report, drawn by Matplotlib's objects alone: no pyplot, no global state.

Many, medium and few keep one color each through every picture and the page. Each picture can be drawn for a light or
a dark page, wide or narrow (:data:`longtail.report.style.LOOKS`).
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from longtail.report.folder import GROUPS, ClassRow
from longtail.report.style import (
    GROUP_COLORS,
    LIGHT,
    LINE_COLORS,
    MOST_NAMES,
    Look,
    class_axis,
    count_axis,
    drawable,
    figure_for,
    group_bands,
    label_epochs,
    legend_above,
    line_colors,
    percent_axis,
    style_axes,
)
from longtail.rundir import NOT_A_LOSS

DPI = 160
MOST_COLUMNS = 200


def png(figure: Figure) -> bytes:
    """The picture as a PNG file, without the date or Matplotlib's version in it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()


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


def loss_terms(history: Sequence[Mapping[str, Any]]) -> list[str]:
    """The loss terms among the keys of metrics.jsonl: ``loss``, the total, and what it is the sum of if not alone."""
    numbers = {name: None for row in history for name, value in row.items() if type(value) in (int, float)}
    parts = [name for name in numbers if name not in NOT_A_LOSS]
    return ["loss", *parts] if len(parts) > 1 else ["loss"]


def learning_curves(
    history: Sequence[Mapping[str, Any]], events: Sequence[float] = (), look: Look = LIGHT, split: str = "test"
) -> Figure:
    """Loss terms (nats) and accuracies (%) over the epochs, counted from 0; ``events`` (epochs) are dotted lines."""
    figure = figure_for(look, wide=(9.6, 3.8), narrow=(4.4, 6.4))
    losses, accuracies = figure.subplots(*((2, 1) if look.narrow else (1, 2)))
    epochs = [int(row["epoch"]) for row in history]
    marker = "o" if len(epochs) <= 12 else None

    def line(axes: Any, key: str, label: str, color: str, scale: float) -> None:
        values = [np.nan if row.get(key) is None else scale * row[key] for row in history]
        if not np.isnan(values).all():
            strong = key in ("loss", "top1")
            width, order = (2.2, 4) if strong else (1.6, 3)
            axes.plot(
                epochs, values, color=color, lw=width, marker=marker, ms=4, zorder=order, label=label, clip_on=False
            )

    terms = loss_terms(history)
    line(losses, "loss", "total" if len(terms) > 1 else "loss", look.ink, 1)
    for number, (term, color) in enumerate(zip(terms[1:], line_colors(len(terms) - 1), strict=True)):
        line(losses, term, drawable(term, 24, f"term {number}"), color, 1)
    line(accuracies, "top1", "top-1", look.ink, 100)
    for group, color in GROUP_COLORS.items():
        line(accuracies, group, group, color, 100)
    losses.set_ylim(bottom=min(0.0, losses.get_ylim()[0]))
    percent_axis(accuracies)
    for axes, title in ((losses, "Training loss, nats per image"), (accuracies, f"Accuracy on {split}")):
        style_axes(axes, look)
        label_epochs(axes, look, epochs, events)
        legend_above(axes, look, title, columns=3 if look.narrow and axes is losses else 4)
    return figure


def accuracy_by_count(rows: Sequence[ClassRow], look: Look = LIGHT, split: str = "test") -> Figure:
    """Training images (log) above, accuracy (%) below, one column per class from the most to the fewest images.

    Above 200 classes a column is the mean of neighbors of one group. The line is the running mean.
    """
    figure = figure_for(look, wide=(9.6, 5.6), narrow=(4.4, 5.4))
    ranked = sorted(rows, key=lambda row: -row.train_count)
    columns = _columns(ranked)
    many_columns = len(columns) > 60
    colors, centers = [GROUP_COLORS[c.group] for c in columns], [c.center for c in columns]
    counts, accuracies = figure.subplots(2, 1, sharex=True, height_ratios=(2, 3))
    widths = [c.width * (1.0 if len(columns) > 120 else 0.84) for c in columns]
    count_axis(counts, max(1, ranked[0].train_count))
    counts.bar(centers, [c.count for c in columns], widths, color=colors, alpha=look.bar, linewidth=0)
    percent = [None if c.accuracy is None else 100 * c.accuracy for c in columns]
    heights = [np.nan if p is None else p for p in percent]
    dot = 12 if many_columns else 22 if len(columns) > MOST_NAMES else 44
    accuracies.scatter(centers, heights, s=dot, c=colors, linewidth=0, zorder=3, clip_on=False)
    window = smoothing_window(len(columns))
    accuracies.plot(centers, running_mean(percent, window), color=look.ink, linewidth=1.9, zorder=4)
    size = classes_per_column(len(ranked))
    what = "a class" if size == 1 else f"{size} classes"
    style_axes(counts, look, "Training images, log scale")
    style_axes(accuracies, look, f"Accuracy on {split}", f"dot: {what} · line: mean of {window} dots")
    percent_axis(accuracies)
    group_bands((counts, accuracies), ranked, look)
    class_axis(accuracies, ranked, look)
    return figure


def accuracy_by_rank(runs: Sequence[tuple[str, Sequence[ClassRow]]], look: Look = LIGHT, split: str = "test") -> Figure:
    """The running mean of accuracy (%) over class rank, one line per run (label, classes)."""
    figure = figure_for(look, wide=(9.6, 4.6), narrow=(4.4, 4.6))
    axes = figure.subplots()
    orders = [sorted(rows, key=lambda row: -row.train_count) for _, rows in runs]
    for number, (ranked, color) in enumerate(zip(orders, line_colors(len(runs)), strict=True)):
        mean = 100 * running_mean([row.accuracy for row in ranked], smoothing_window(len(ranked)))
        dashes = ("-", "--", ":", "-.")[number // len(LINE_COLORS) % 4]
        label = drawable(runs[number][0], 40, f"run {number + 1}")
        axes.plot(range(len(ranked)), mean, dashes, color=color, linewidth=2.2, label=label)
    style_axes(axes, look)
    percent_axis(axes)
    longest = max(orders, key=len)
    if len({tuple(row.group for row in ranked) for ranked in orders}) == 1:
        group_bands((axes,), longest, look)
    class_axis(axes, longest, look, named=len({tuple(row.name for row in ranked) for ranked in orders}) == 1)
    longest_label = max(min(len(label), 40) for label, _ in runs)
    fitting = (50 if look.narrow else 116) // (longest_label + 7)
    legend_above(axes, look, f"Accuracy on {split}, running mean over classes", columns=max(1, min(fitting, len(runs))))
    return figure


@dataclass(frozen=True)
class _Column:
    center: float
    width: int
    count: float
    accuracy: float | None
    group: str


def classes_per_column(classes: int) -> int:
    """How many neighboring classes share a column of :func:`accuracy_by_count`: one, up to 200 classes."""
    return -(-classes // MOST_COLUMNS)


def _columns(ranked: Sequence[ClassRow]) -> list[_Column]:
    size = classes_per_column(len(ranked))
    made = []
    for group in GROUPS:
        places = [i for i, row in enumerate(ranked) if row.group == group]
        for start in range(0, len(places), size):
            part = places[start : start + size]
            known = [a for i in part if (a := ranked[i].accuracy) is not None]
            count = float(np.mean([ranked[i].train_count for i in part]))
            accuracy = float(np.mean(known)) if known else None
            made.append(_Column(float(np.mean(part)), len(part), count, accuracy, group))
    return made
