"""The table of a study as one HTML file, with a picture: no script, nothing from the network."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from longtail.study.statistics import Spread
from longtail.study.table import StudyResults, TableRow

PANELS = (("top1", "top-1"), ("few", "few-shot"))
LABEL_WIDTH, PANEL_WIDTH, GAP, LINE_HEIGHT = 220, 300, 40, 26

STYLE = """
:root { color-scheme: light dark; --ink: #1a1f2b; --muted: #5f6878; --line: #dcdcd8; --page: #faf9f7; --mark: #2a6fbb; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #eef0f4; --muted: #9aa3b2; --line: #353c49; --page: #12151b; --mark: #7db5f0; }
}
body { margin: 0 auto; max-width: 1200px; padding: 28px 24px; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 14px; }
th, td { padding: 5px 12px 5px 0; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th { color: var(--muted); font-weight: 400; white-space: normal; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; }
p { color: var(--muted); max-width: 75ch; }
svg { max-width: 100%; height: auto; margin: 18px 0; }
svg text { fill: var(--ink); font-size: 13px; } svg .muted { fill: var(--muted); font-size: 12px; }
svg .grid { stroke: var(--line); } svg .bar { stroke: var(--mark); stroke-width: 2; } svg circle { fill: var(--mark); }
svg .base { stroke: var(--muted); stroke-dasharray: 4 3; }
"""


def page(results: StudyResults, header: Sequence[str], body: Sequence[Sequence[str]], remarks: Sequence[str]) -> str:
    """The page; every text is escaped."""
    names = "".join(f'<th scope="col">{escape(name)}</th>' for name in header)
    lines = "\n".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in line)}</tr>" for line in body)
    said = "\n".join(f"<p>{escape(remark)}</p>" for remark in remarks)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{escape(results.name)}</title>
<style>{STYLE}</style>
</head>
<body>
<h1>{escape(results.name)}</h1>
{picture(results)}
<div class="scroll">
<table>
<thead><tr>{names}</tr></thead>
<tbody>
{lines}
</tbody>
</table>
</div>
{said}
</body>
</html>
"""


def picture(results: StudyResults) -> str:
    """Top-1 and few-shot accuracy of every row: a dot at the mean, a bar of one standard deviation to either side."""
    rows = results.rows
    height = (len(rows) + 2) * LINE_HEIGHT + 10
    width = LABEL_WIDTH + len(PANELS) * (PANEL_WIDTH + GAP)
    parts = [
        f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
        f'aria-label="Top-1 and few-shot accuracy of every row, in percent">'
    ]
    for number, row in enumerate(rows):
        label = row.label if len(row.label) <= 30 else f"{row.label[:29]}…"
        parts.append(f'<text x="{LABEL_WIDTH - 14}" y="{_middle(number) + 4}" text-anchor="end">{escape(label)}</text>')
    for number, (metric, title) in enumerate(PANELS):
        left = LABEL_WIDTH + number * (PANEL_WIDTH + GAP)
        parts += _panel(rows, metric, title, left, results.baseline)
    return "\n".join([*parts, "</svg>"])


def _middle(number: int) -> float:
    return (number + 1.5) * LINE_HEIGHT


def _panel(rows: Sequence[TableRow], metric: str, title: str, left: int, baseline: str | None) -> list[str]:
    low, high, step = _axis([row.last[metric] for row in rows])
    bottom = _middle(len(rows)) - LINE_HEIGHT / 2

    def across(percent: float) -> float:
        return round(left + PANEL_WIDTH * (percent - low) / (high - low), 1)

    parts = [f'<text x="{left}" y="14">{title}, %</text>']
    for tick in range(low, high + 1, step):
        x = across(tick)
        parts.append(f'<line class="grid" x1="{x}" x2="{x}" y1="{LINE_HEIGHT}" y2="{bottom}"/>')
        parts.append(f'<text class="muted" x="{x}" y="{bottom + 16}" text-anchor="middle">{tick}</text>')
    for number, row in enumerate(rows):
        value, y = row.last[metric], _middle(number)
        if value is None:
            parts.append(f'<text class="muted" x="{left}" y="{y + 4}">-</text>')
            continue
        mean, deviation = 100 * value.mean, 100 * (value.deviation or 0)
        if row.label == baseline:
            parts.append(
                f'<line class="base" x1="{across(mean)}" x2="{across(mean)}" y1="{LINE_HEIGHT}" y2="{bottom}"/>'
            )
        ends = across(max(mean - deviation, low)), across(min(mean + deviation, high))
        parts.append(f'<line class="bar" x1="{ends[0]}" x2="{ends[1]}" y1="{y}" y2="{y}"/>')
        parts.append(f'<circle cx="{across(mean)}" cy="{y}" r="4.5"/>')
    return parts


def _axis(values: Sequence[Spread | None]) -> tuple[int, int, int]:
    """Ends of the axis and distance of its ticks, in percent, around all means and their deviations."""
    known = [value for value in values if value is not None]
    if not known:
        return 0, 100, 20
    low = max(0.0, min(100 * (value.mean - (value.deviation or 0)) for value in known))
    high = min(100.0, max(100 * (value.mean + (value.deviation or 0)) for value in known))
    step = next((step for step in (1, 2, 5, 10, 20) if (high - low) / step <= 6), 20)
    first = int(low // step) * step
    last = int(-(-high // step)) * step
    return first, max(last, first + step), step
