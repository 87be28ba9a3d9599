"""How the pictures in plots/ look: colors, axes, and text that is safe to draw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from longtail.report.folder import GROUPS, ClassRow

GROUP_COLORS = {"many": "#3b6ba5", "medium": "#55a08c", "few": "#d1623c"}
"""One color a group, in every picture and on the page."""
LINE_COLORS = ("#8a63b5", "#c4912c", "#2f8fb3", "#b8446a", "#7d8f45", "#94725c", "#6b6fc2", "#8c8c8c")
"""For runs and loss terms: none of them is a group's."""
MOST_NAMES = 24
FONT = "DejaVu Sans"
"""Matplotlib ships it, so a picture is the same on every machine."""


@dataclass(frozen=True)
class Look:
    """Colors of a picture: ``ink`` for what counts, ``muted`` for axes; ``band`` and ``bar`` are opacities."""

    surface: str
    ink: str
    muted: str
    grid: str
    band: float
    bar: float


LIGHT = Look(surface="#ffffff", ink="#1a1f2b", muted="#667085", grid="#e3e3e0", band=0.07, bar=0.62)


def figure_of(width: float, height: float) -> Figure:
    """An empty figure of this size in inches."""
    return Figure(figsize=(width, height), layout="constrained", facecolor=LIGHT.surface)


def line_colors(number: int) -> list[str]:
    """Colors for so many lines, repeated after eight."""
    return [LINE_COLORS[i % len(LINE_COLORS)] for i in range(number)]


def drawable(text: str, longest: int, instead: str) -> str:
    """``text`` on one line, cut to ``longest`` letters; ``instead`` if it is empty or the font lacks a letter of it."""
    line = "".join(c for c in " ".join(text.split()) if c.isprintable())
    font = get_font(findfont(FONT))
    if not line or any(font.get_char_index(ord(c)) == 0 for c in line):
        return instead
    return line if len(line) <= longest else line[: longest - 1].rstrip() + "…"


def style_axes(axes: Axes, look: Look, title: str = "", note: str = "") -> None:
    """Bold title on the left, muted note on the right, horizontal grid lines, no frame."""
    axes.set_facecolor(look.surface)
    axes.set_title(title, loc="left", color=look.ink, fontsize=10, fontweight="bold", fontfamily=FONT)
    axes.set_title(note, loc="right", color=look.muted, fontsize=8.5, fontfamily=FONT)
    axes.grid(visible=True, axis="y", color=look.grid, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", colors=look.muted, length=0, labelsize=9, labelfontfamily=FONT)
    for spine in axes.spines.values():
        spine.set_visible(False)


def label_epochs(axes: Axes, look: Look, epochs: Sequence[int], events: Sequence[float]) -> None:
    """Whole epochs from the first to the last, events as dotted lines."""
    first, last = epochs[0], epochs[-1]
    axes.set_xlim(*((first - 0.5, last + 0.5) if first == last else (first, last)))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6, min_n_ticks=1))
    axes.set_xlabel("epoch (the first is 0)", color=look.muted, fontsize=9, fontfamily=FONT)
    for at in events:
        axes.axvline(at, color=look.muted, linewidth=0.9, linestyle=":", zorder=1)


def percent_axis(axes: Axes) -> None:
    """0 to 100 %, in quarters, whatever the data, so that pictures can be compared."""
    axes.set_ylim(0, 102)
    axes.set_yticks([0, 25, 50, 75, 100])
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f}%"))


def count_axis(axes: Axes, most: int) -> None:
    """Logarithmic, from one image to the largest class, with room for the groups' names above it."""
    axes.set_yscale("log", nonpositive="clip")
    axes.set_ylim(0.7, 0.7 * (most / 0.7) ** 1.25)
    powers = [10**power for power in range(len(str(most)))]
    axes.set_yticks([*powers, most] if most >= 3 * powers[-1] else powers)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.yaxis.set_minor_locator(NullLocator())


def group_bands(panels: Sequence[Axes], ranked: Sequence[ClassRow], look: Look) -> None:
    """Tint the columns of each group in all panels and name the groups at the top of the first, where they fit."""
    classes = len(ranked)
    letters = 100 / classes  # of the label's font, per column
    spans = []
    for group in GROUPS:
        places = [i for i, row in enumerate(ranked) if row.group == group]
        if places:
            spans.append((group, places[0], len(places)))
            for axes in panels:
                color, alpha = GROUP_COLORS[group], look.band
                axes.axvspan(places[0] - 0.5, places[-1] + 0.5, color=color, alpha=alpha, linewidth=0, zorder=0)
    texts = [f"{group} · {size} {'class' if size == 1 else 'classes'}" for group, _, size in spans]
    if any(len(text) > size * letters for text, (_, _, size) in zip(texts, spans, strict=True)):
        texts = [group if len(group) <= size * letters else "" for group, _, size in spans]
    top = panels[0]
    for (group, left, _), text in zip(spans, texts, strict=True):
        top.text(
            left - 0.5 + 0.008 * classes, 0.97, text, transform=top.get_xaxis_transform(), va="top",
            color=GROUP_COLORS[group], fontsize=9, fontweight="bold", fontfamily=FONT,
        )  # fmt: skip
    for axes in panels:
        axes.set_xlim(-0.5, classes - 0.5)


def class_axis(axes: Axes, ranked: Sequence[ClassRow], look: Look) -> None:
    """Name the classes if they are few; else number their ranks from 0."""
    if len(ranked) <= MOST_NAMES:
        names = [drawable(row.name, 14, f"class {row.index}") for row in ranked]
        tilted = max(map(len, names)) * len(names) > 108
        axes.set_xticks(range(len(names)), names, rotation=45 if tilted else 0, ha="right" if tilted else "center")
        for text in axes.get_xticklabels():
            text.set_parse_math(False)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        axes.set_xlabel("classes by rank, most training images first", color=look.muted, fontsize=9, fontfamily=FONT)


def legend_above(axes: Axes, look: Look, title: str, columns: int) -> None:
    """The title and under it the legend, over the picture instead of in it."""
    legend = axes.legend(
        handles=axes.get_legend_handles_labels()[0],  # without it, Matplotlib warns of a picture with no lines
        title=title, loc="lower left", bbox_to_anchor=(0, 1.0), borderaxespad=0.1, alignment="left", ncols=columns,
        frameon=False, labelcolor=look.ink, handlelength=1.2, columnspacing=1.3, borderpad=0.1,
        prop={"family": FONT, "size": 9}, title_fontproperties={"family": FONT, "size": 10, "weight": "bold"},
    )  # fmt: skip
    legend.get_title().set_color(look.ink)
    for text in (legend.get_title(), *legend.get_texts()):
        text.set_parse_math(False)
