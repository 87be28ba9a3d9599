"""The pictures in plots/, drawn by Matplotlib's objects alone: no pyplot, no global state.

Many, medium and few keep one color each through every picture and the page, whose own charts are in ``charts.py``.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from longtail.report.columns import classes_per_column, columns_of, running_mean, smoothing_window
from longtail.report.folder import ClassRow
from longtail.report.style import (
    GROUP_COLORS,
    LIGHT,
    MOST_NAMES,
    class_axis,
    count_axis,
    drawable,
    figure_of,
    group_bands,
    label_epochs,
    legend_above,
    line_colors,
    percent_axis,
    style_axes,
)
from longtail.runs.rundir import NOT_A_LOSS

DPI = 160


def png(figure: Figure) -> bytes:
    """The picture as a PNG file, without the date or Matplotlib's version in it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()


def loss_terms(history: Sequence[Mapping[str, Any]]) -> list[str]:
    """The loss terms among the keys of metrics.jsonl: ``loss``, the total, and what it is the sum of if not alone."""
    numbers = {name: None for row in history for name, value in row.items() if type(value) in (int, float)}
    parts = [name for name in numbers if name not in NOT_A_LOSS]
    return ["loss", *parts] if len(parts) > 1 else ["loss"]


def learning_curves(history: Sequence[Mapping[str, Any]], events: Sequence[float] = (), split: str = "test") -> Figure:
    """Loss terms (nats) and accuracies (%) over the epochs, counted from 0; ``events`` (epochs) are dotted lines."""
    look, figure = LIGHT, figure_of(9.6, 3.8)
    losses, accuracies = figure.subplots(1, 2)
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
        legend_above(axes, look, title, columns=4)
    return figure


def accuracy_by_count(rows: Sequence[ClassRow], split: str = "test") -> Figure:
    """Training images (log) above, accuracy (%) below, one column per class from the most to the fewest images.

    Above 200 classes a column is the mean of neighbors of one group. The line is the running mean.
    """
    look, figure = LIGHT, figure_of(9.6, 5.6)
    ranked = sorted(rows, key=lambda row: -row.train_count)
    columns = columns_of(ranked)
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
