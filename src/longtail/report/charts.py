"""The charts of the page as inline SVG: the long tail, lines over epochs or rank, reliability, feature space."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from longtail.evaluation.intervals import wilson_interval
from longtail.report.columns import Column, columns_of, running_mean, smoothing_window
from longtail.report.folder import GROUPS, ClassRow
from longtail.report.svg import Drawing, Scale, element, level_line, percent_grid, round_ticks, shortened

WIDE, NARROW = 1000, 360
HALF, HALF_HEIGHT = 440, 280
LEFT, RIGHT = 46, 8
MOST_NAMES = 24
LONGEST_NAME, LONGEST_TILTED = 12, 8


@dataclass(frozen=True)
class Line:
    """A line of a chart: its name, the class that colors it, its points; None interrupts it."""

    name: str
    color: str
    points: Sequence[tuple[float, float] | None]


def both_widths(wide: Drawing, narrow: Drawing) -> Markup:
    """A chart twice: for a screen, and for a phone; the style sheet shows one of them."""
    return Markup("\n").join((wide.markup(), narrow.markup()))


def long_tail(classes: Sequence[ClassRow], baseline: Sequence[ClassRow] | None, split: str) -> Markup:
    """Training images of every class by rank (log), its accuracy below, with the running mean and the baseline's."""
    return both_widths(*(_long_tail(classes, baseline, split, width) for width in (WIDE, NARROW)))


def _long_tail(classes: Sequence[ClassRow], baseline: Sequence[ClassRow] | None, split: str, width: int) -> Drawing:
    ranked = sorted(classes, key=lambda row: -row.train_count)
    columns = columns_of(ranked)
    alt = f"Training images of {len(ranked)} classes by rank, and their accuracy on {split}"
    top, middle, low, bottom = 8.0, 144.0, 176.0, 356.0
    at = Scale(-0.5, len(ranked) - 0.5, LEFT, width - RIGHT)
    drawing = _over_classes(ranked, at, width, bottom, alt)
    most = max(1, ranked[0].train_count)
    images = Scale(0, math.log10(max(2, most)), middle, top + 24)
    accuracy = Scale(0, 1, bottom, low)
    _bands(drawing, ranked, at, (top, middle), (low, bottom))
    for count in (*(10**k for k in range(len(str(most)))), most):
        if count == most or images(math.log10(count)) - images(math.log10(most)) > 13:
            level_line(drawing, images(math.log10(count)), LEFT, width - RIGHT, f"{count:,}")
    percent_grid(drawing, accuracy, LEFT, width - RIGHT)
    drawing.add("rect", x=LEFT, y=top, width=0, height=bottom - top, class_="cursor")
    for column in columns:
        _column(drawing, column, at, images, accuracy, spread=len(columns) <= 60)
    if baseline is not None:
        drawing.path(_mean_line(columns_of(_in_order(baseline, ranked)), at, accuracy), "base")
    drawing.path(_mean_line(columns, at, accuracy), "ink")
    _class_axis(drawing, ranked, at, bottom)
    return drawing


def _over_classes(ranked: Sequence[ClassRow], at: Scale, width: int, bottom: float, alt: str) -> Drawing:
    """An empty drawing over the classes, with what the page's script has to know of it."""
    height = bottom + (58 if _tilted(ranked, at) else 26)
    drawing = Drawing(width, height, alt, "wide" if width == WIDE else "narrow")
    drawing.data = {"left": at.start, "right": at.end, "classes": len(ranked)}
    return drawing


def _tilted(ranked: Sequence[ClassRow], at: Scale) -> bool:
    """Whether the names of the classes are written, and too long for a line."""
    longest = max(len(shortened(row.name, LONGEST_NAME)) for row in ranked)
    return len(ranked) <= MOST_NAMES and 7.0 * longest > at(1) - at(0)


def _in_order(rows: Sequence[ClassRow], ranked: Sequence[ClassRow]) -> list[ClassRow]:
    """The same classes in the order of another run's, under its training images and groups."""
    own = {row.name: row.accuracy for row in rows}
    return [
        ClassRow(row.index, row.name, row.train_count, row.group, row.test_count, own.get(row.name)) for row in ranked
    ]


def _bands(drawing: Drawing, ranked: Sequence[ClassRow], at: Scale, *panels: tuple[float, float]) -> None:
    spans = []
    for group in GROUPS:
        places = [place for place, row in enumerate(ranked) if row.group == group]
        if places:
            start, end = at(places[0] - 0.5), at(places[-1] + 0.5)
            spans.append((group, start, end, len(places)))
            for upper, lower in panels:
                drawing.add("rect", x=start, y=upper, width=end - start, height=lower - upper, class_=f"band {group}")
    texts = [f"{group} · {n} {'class' if n == 1 else 'classes'}" for group, _, _, n in spans]
    if any(8.0 * len(text) > end - start for text, (_, start, end, _) in zip(texts, spans, strict=True)):
        texts = [group if 8.0 * len(group) <= end - start else "" for group, start, end, _ in spans]
    for (group, start, _, _), text in zip(spans, texts, strict=True):
        if text:
            drawing.add("text", text, x=start + 5, y=panels[0][0] + 12, class_=f"name {group}")


def _column(drawing: Drawing, column: Column, at: Scale, images: Scale, accuracy: Scale, spread: bool) -> None:
    start, end = at(column.center - column.width / 2), at(column.center + column.width / 2)
    gap = min(2.0, 0.12 * (end - start))
    height = images(0) - images(math.log10(max(1.0, column.count))) + 1
    drawing.add(
        "rect", x=start + gap / 2, y=images(0) - height, width=end - start - gap, height=height,
        class_=f"bar {column.group}",
    )  # fmt: skip
    if column.accuracy is None:
        return
    x = at(column.center)
    if spread and column.tested:
        low, high = wilson_interval(column.accuracy, column.tested)
        drawing.add("line", x1=x, x2=x, y1=accuracy(low), y2=accuracy(high), class_=f"spread {column.group}")
    drawing.add("circle", cx=x, cy=accuracy(column.accuracy), r=4 if spread else 2.6, class_=f"dot {column.group}")


def _mean_line(columns: Sequence[Column], at: Scale, accuracy: Scale) -> list[tuple[float, float] | None]:
    means = running_mean([column.accuracy for column in columns], smoothing_window(len(columns)))
    return [
        None if np.isnan(mean) else (at(column.center), accuracy(float(mean)))
        for column, mean in zip(columns, means, strict=True)
    ]


def _class_axis(drawing: Drawing, ranked: Sequence[ClassRow], at: Scale, y: float) -> None:
    if len(ranked) <= MOST_NAMES:
        tilted = _tilted(ranked, at)
        for place, row in enumerate(ranked):
            x = at(place)
            turn = f"rotate(-40 {x:.1f} {y + 12:.1f})" if tilted else None
            anchor = "end" if tilted else "middle"
            name = shortened(row.name, LONGEST_TILTED if tilted else LONGEST_NAME)
            drawing.add("text", name, x=x, y=y + 16, class_="tick", text_anchor=anchor, transform=turn)
        return
    parts = 2 if drawing.width < HALF else 4
    for place in sorted({len(ranked) * part // parts for part in range(parts)} | {len(ranked) - 1}):
        anchor = "start" if place == 0 else "end" if place == len(ranked) - 1 else "middle"
        drawing.add("text", f"rank {place}", x=at(place), y=y + 17, text_anchor=anchor, class_="tick")


def over_rank(lines: Sequence[tuple[str, Sequence[ClassRow]]], split: str) -> Markup:
    """The running mean of accuracy over class rank, a line a run (color, classes); the bands are the first run's."""
    drawings = []
    for width in (WIDE, NARROW):
        first = sorted(lines[0][1], key=lambda row: -row.train_count)
        alt = f"Accuracy on {split} over class rank, a line a run"
        top, bottom = 8.0, 252.0
        at = Scale(-0.5, len(first) - 0.5, LEFT, width - RIGHT)
        drawing = _over_classes(first, at, width, bottom, alt)
        accuracy = Scale(0, 1, bottom, top + 22)
        _bands(drawing, first, at, (top, bottom))
        percent_grid(drawing, accuracy, LEFT, width - RIGHT)
        drawing.add("rect", x=LEFT, y=top, width=0, height=bottom - top, class_="cursor")
        for color, rows in lines:
            ranked = sorted(rows, key=lambda row: -row.train_count)
            stretch = Scale(0, max(1, len(ranked) - 1), at(0), at(len(first) - 1))
            means = running_mean([row.accuracy for row in ranked], smoothing_window(len(ranked)))
            points = [None if np.isnan(m) else (stretch(k), accuracy(float(m))) for k, m in enumerate(means)]
            drawing.path(points, color)
        _class_axis(drawing, first, at, bottom)
        drawings.append(drawing)
    return both_widths(*drawings)


def line_chart(lines: Sequence[Line], alt: str, *, percent: bool, across: str, events: Sequence[float] = ()) -> Markup:
    """Lines over a whole number such as the epoch; ``percent`` fixes the height to 0..100 %."""
    known = [point for line in lines for point in line.points if point is not None]
    drawing = Drawing(HALF, HALF_HEIGHT, alt)
    if not known:
        return drawing.markup()
    xs, ys = [x for x, _ in known], [y for _, y in known]
    spread = 0.5 if min(xs) == max(xs) else 0.0
    at = Scale(min(xs) - spread, max(xs) + spread, LEFT, HALF - RIGHT - 6)
    high, low = (1.0, 0.0) if percent else (max(ys) * 1.05 or 1.0, min(0.0, *ys))
    up = Scale(low, high, HALF_HEIGHT - 40, 12)
    if percent:
        percent_grid(drawing, up, LEFT, HALF - RIGHT)
    else:
        for tick in round_ticks(low, high):
            level_line(drawing, up(tick), LEFT, HALF - RIGHT, f"{tick:g}")
    for event in events:
        drawing.add("line", x1=at(event), x2=at(event), y1=12, y2=HALF_HEIGHT - 40, class_="event")
    _whole_numbers(drawing, at, across)
    for line in lines:
        points = [None if point is None else (at(point[0]), up(point[1])) for point in line.points]
        drawing.path(points, line.color)
        there = [point for point in points if point is not None]
        if len(there) <= 12:
            for x, y in there:
                drawing.add("circle", cx=x, cy=y, r=3, class_=f"dot {line.color}")
    return drawing.markup()


def _whole_numbers(drawing: Drawing, at: Scale, across: str) -> None:
    ticks = [tick for tick in round_ticks(at.low, at.high) if tick == int(tick)]
    for tick in ticks:
        drawing.add("text", f"{tick:g}", x=at(tick), y=HALF_HEIGHT - 22, text_anchor="middle", class_="tick")
    drawing.add("text", across, x=HALF - RIGHT, y=HALF_HEIGHT - 5, text_anchor="end", class_="tick")


def reliability_chart(lines: Mapping[str, Sequence[tuple[float, float, float]]], alt: str) -> Markup:
    """Accuracy over confidence; a bin is (confidence, accuracy, share of the images). ``all`` has dots by share."""
    drawing = Drawing(HALF, 330, alt)
    at, up = Scale(0, 1, LEFT, HALF - 24), Scale(0, 1, 288, 12)
    percent_grid(drawing, up, LEFT, HALF - RIGHT)
    for quarter in range(5):
        x = at(quarter / 4)
        drawing.add("text", f"{25 * quarter}%", x=x, y=306, text_anchor="middle", class_="tick")
    drawing.add("text", "confidence", x=HALF - RIGHT, y=324, text_anchor="end", class_="tick")
    drawing.add("line", x1=at(0), y1=up(0), x2=at(1), y2=up(1), class_="event")
    for name, bins in lines.items():
        color = "ink" if name == "all" else name
        drawing.path([(at(sure), up(right)) for sure, right, _ in bins], color)
        for sure, right, share in bins:
            drawing.add(
                "circle", cx=at(sure), cy=up(right), r=2.5 + (9 * share**0.5 if name == "all" else 0),
                class_=f"dot {color}",
            )  # fmt: skip
    return drawing.markup()


@dataclass(frozen=True)
class Space:
    """Two-dimensional ``places`` (N, 2) of images with their ``labels`` (N,), the ``centers`` (C, 2) of the classes
    (NaN where a class has none), the ``share`` of the variance, and what the space and the centers are."""

    places: np.ndarray[tuple[int, ...], np.dtype[np.float64]]
    labels: np.ndarray[tuple[int, ...], np.dtype[np.int64]]
    centers: np.ndarray[tuple[int, ...], np.dtype[np.float64]]
    share: float
    what: str
    center: str


def space_chart(space: Space, classes: Sequence[ClassRow], alt: str) -> Markup:
    """Images as dots in their group's color, class centers as diamonds, named where there are few."""
    size = HALF
    drawing = Drawing(size, size - 40, alt, "space")
    there = space.centers[~np.isnan(space.centers).any(axis=1)]
    everything = np.concatenate([space.places, there])
    low, high = everything.min(axis=0), everything.max(axis=0)
    at, up = Scale(low[0], high[0], 14, size - 14), Scale(low[1], high[1], size - 54, 14)
    for (x, y), label in zip(space.places.tolist(), space.labels.tolist(), strict=True):
        drawing.add("circle", cx=at(x), cy=up(y), r=2.4, class_=f"dot {classes[label].group}", data_class=str(label))
    for label, (x, y) in enumerate(space.centers.tolist()):
        if math.isnan(x):
            continue
        row, a, b = classes[label], at(x), up(y)
        title = element("title", f"{shortened(row.name, 60)}, {row.train_count} training images")
        shape = f"M{a:.1f} {b - 6:.1f}l6 6l-6 6l-6 -6z"
        drawing.add("path", title, d=shape, class_=f"center {row.group}", data_class=str(label))
        if len(classes) <= MOST_NAMES:
            end = a > size - 80
            drawing.add(
                "text", shortened(row.name, 12), x=a - 9 if end else a + 9, y=b + 4,
                text_anchor="end" if end else "start", class_="label", data_class=str(label),
            )  # fmt: skip
    return drawing.markup()
