"""Inline SVG for the page: escaped elements, and a frame with scales, grid lines and labels.

Colors are classes of the page's style sheet, so that one drawing serves a light and a dark page.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from markupsafe import Markup


def number(value: float) -> str:
    """A coordinate with at most one decimal."""
    text = f"{value:.1f}"
    return text.removesuffix(".0")


def element(tag: str, text: str | Markup | None = None, **attributes: str | float | None) -> Markup:
    """One element: ``class_`` and ``stroke_width`` become ``class`` and ``stroke-width``, None is left out."""
    made = Markup("").join(
        Markup(' {}="{}"').format(
            name.rstrip("_").replace("_", "-"), value if isinstance(value, str) else number(float(value))
        )
        for name, value in attributes.items()
        if value is not None
    )
    if text is None:
        return Markup("<{0}{1}/>").format(Markup(tag), made)
    return Markup("<{0}{1}>{2}</{0}>").format(Markup(tag), made, text)


def shortened(text: str, longest: int) -> str:
    """``text`` on one line, cut to ``longest`` letters; a dash where nothing of it can be seen."""
    line = "".join(letter for letter in " ".join(text.split()) if letter.isprintable())
    if not line:
        return "\N{EN DASH}"
    return line if len(line) <= longest else line[: longest - 1].rstrip() + "…"


@dataclass
class Drawing:
    """An SVG under construction; coordinates are those of its view box."""

    width: float
    height: float
    alt: str
    kind: str = ""
    data: dict[str, str | float] = field(default_factory=dict)
    parts: list[Markup] = field(default_factory=list)

    def add(self, tag: str, text: str | Markup | None = None, **attributes: str | float | None) -> None:
        """Append one element."""
        self.parts.append(element(tag, text, **attributes))

    def path(self, points: Sequence[tuple[float, float] | None], class_: str) -> None:
        """A line through the points; it is interrupted where one is None."""
        steps, pen_up = [], True
        for point in points:
            if point is not None:
                steps.append(f"{'M' if pen_up else 'L'}{number(point[0])} {number(point[1])}")
            pen_up = point is None
        if steps:
            self.add("path", d="".join(steps), class_=f"line {class_}")

    def markup(self) -> Markup:
        """The whole element, with its text alternative."""
        opening = Markup('<svg class="{}" viewBox="0 0 {} {}" role="img" aria-label="{}"').format(
            f"chart {self.kind}".strip(), number(self.width), number(self.height), self.alt
        )
        own = Markup("").join(Markup(' data-{}="{}"').format(name, value) for name, value in self.data.items())
        return opening + own + Markup(">") + Markup("\n").join(self.parts) + Markup("</svg>")


@dataclass(frozen=True)
class Scale:
    """Maps ``low``..``high`` linearly to ``start``..``end``."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        span = self.high - self.low
        share = (value - self.low) / span if span else 0.5
        return self.start + share * (self.end - self.start)


def percent_grid(drawing: Drawing, scale: Scale, left: float, right: float) -> None:
    """Grid lines and labels at 0, 25, ..., 100 %."""
    for quarter in range(5):
        level_line(drawing, scale(quarter / 4), left, right, f"{25 * quarter}%")


def level_line(drawing: Drawing, y: float, left: float, right: float, label: str) -> None:
    """A horizontal grid line with its label on the left."""
    drawing.add("line", x1=left, x2=right, y1=y, y2=y, class_="grid")
    drawing.add("text", label, x=left - 6, y=y + 4, text_anchor="end", class_="tick")


def round_ticks(low: float, high: float, wanted: int = 4) -> list[float]:
    """Round numbers from ``low`` to ``high``, about ``wanted`` of them, by steps of 1, 2 or 5 times a power of ten."""
    span = high - low
    if span <= 0:
        return [low]
    step = 10.0 ** (len(str(int(span / wanted))) - 1) if span >= wanted else 1.0
    while step > span / wanted:
        step /= 10
    for factor in (1, 2, 5, 10):
        if step * factor >= span / wanted:
            step *= factor
            break
    first = int(-(-low // step))
    return [k * step for k in range(first, int(high // step) + 1)]
