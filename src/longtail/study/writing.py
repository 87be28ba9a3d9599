"""The table of a study as Markdown, CSV and LaTeX. CSV has fractions, the others percent."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable
from pathlib import Path

from longtail.data.prepare import images_of
from longtail.evaluation.intervals import Interval
from longtail.files import as_cell, write_atomic
from longtail.study.page import page
from longtail.study.statistics import Spread
from longtail.study.table import ENOUGH_SEEDS, METRICS, StudyResults, TableRow

TABLES = ("study.md", "study.csv", "study.tex", "study.html")


def write_tables(out: Path, results: StudyResults) -> None:
    """Write ``study.md``, ``.csv``, ``.tex`` and ``.html`` into the folder of a study."""
    texts = (
        markdown(results),
        comma_separated(results),
        latex(results),
        page(results, header(results), body(results), remarks(results)),
    )
    for name, text in zip(TABLES, texts, strict=True):
        write_atomic(out / name, text.encode())


# What the tables for people share ---------------------------------------------------------------------------------


def header(results: StudyResults) -> list[str]:
    """The names of the columns."""
    names = ["row", "seeds", *(METRICS[metric] for metric in results.metrics), "best top-1 (selected on)"]
    if results.baseline is not None:
        names += [f"top-1 minus {results.baseline}", f"few minus {results.baseline}"]
    return [*names, "image passes", *(["at full size"] if sizes_differ(results) else []), "train s"]


def sizes_differ(results: StudyResults) -> bool:
    """Whether some row forwarded images of fewer pixels than the data's."""
    return any(row.full_size_passes != row.image_passes for row in results.rows)


def body(results: StudyResults) -> list[list[str]]:
    """The cells as text, a list for each row; whoever writes them escapes them."""
    lines = []
    for row in results.rows:
        best = percents(row.best) + (f" ({row.selected_on})" if row.best is not None else "")
        line = [row.label, seeds(row), *(percents(row.last[metric]) for metric in results.metrics), best]
        if results.baseline is not None:
            same = row.label == results.baseline
            differences = (row.top1_difference, row.few_difference)
            line += ["baseline" if same else interval(difference) for difference in differences]
        counted = [row.image_passes, *([row.full_size_passes] if sizes_differ(results) else [])]
        line += ["-" if passes is None else f"{passes.mean:,.0f}" for passes in counted]
        lines.append([*line, "-" if row.seconds is None else f"{row.seconds.mean:.0f}"])
    return lines


def seeds(row: TableRow) -> str:
    """The number of seeds; marked where they are too few for a claim or fewer than wanted."""
    marked = f" (n={row.n})" if row.n < ENOUGH_SEEDS else ""
    return (str(row.n) if row.n == row.wanted else f"{row.n} of {row.wanted}") + marked


def percents(value: Spread | None) -> str:
    """``62.08 ± 1.23``, the mean alone for one value, a dash for none."""
    if value is None:
        return "-"
    return f"{100 * value.mean:.2f}" + ("" if value.deviation is None else f" ± {100 * value.deviation:.2f}")


def interval(value: Interval | None) -> str:
    """``+1.20 [0.31, 2.09]`` in points of a percent."""
    if value is None:
        return "-"
    return f"{100 * value.difference:+.2f} [{100 * value.low:.2f}, {100 * value.high:.2f}]"


def remarks(results: StudyResults) -> list[str]:
    """What a reader must know of the table."""
    splits = " / ".join(sorted({row.evaluated_on for row in results.rows if row.evaluated_on}))
    said = [
        f"Last epoch{f' on {splits}' if splits else ''}, in percent: mean ± sample standard deviation over seeds. "
        f"Fewer than {ENOUGH_SEEDS} seeds are marked and support no claim. Best is the best epoch on the set named: "
        "where that is test it is no result.",
        "Image passes are what a run cost: compare rows of equal passes. Seconds are those of the machine that "
        "each run was trained on.",
    ]
    if results.differing:
        said[1] += f" They do not compare here: the runs differ in {'; '.join(results.differing)}."
    if sizes_differ(results):
        said[1] += " At full size, an image of half the side counts as a quarter of a pass."
    if results.baseline is not None:
        said.append(
            f"Differences to {results.baseline} in points, with the 95 % interval of a paired bootstrap over the "
            f"{images_of(splits or 'test')}, averaged over the seeds that both have; a dash where predictions were not "
            f"kept or the {images_of(splits or 'test')} are others. The interval is "
            "blind to what another seed would do: see the deviation."
        )
    return said + [f"Failed: {sentence}" for sentence in results.failed]


# The formats ------------------------------------------------------------------------------------------------------


def markdown(results: StudyResults) -> str:
    """The table for a page of Markdown."""
    names = header(results)
    lines = [f"# {markdown_text(results.name)}", "", _markdown_line(names), "|" + "---|" * len(names)]
    lines += [_markdown_line(line) for line in body(results)]
    for remark in remarks(results):
        lines += ["", markdown_text(remark)]
    return "\n".join(lines) + "\n"


def _markdown_line(cells: list[str]) -> str:
    return "| " + " | ".join(map(markdown_text, cells)) + " |"


def markdown_text(text: str) -> str:
    """Text in which nothing is taken for markup."""
    flat = " ".join(text.split())
    escaped = re.sub(r"([\\`*_|~]|\](?=[(\[]))", r"\\\1", flat)
    return escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
} | {sign: f"\\{sign}" for sign in "&%$#_{}"}


def latex_text(text: str) -> str:
    """Text in which nothing is taken for markup."""
    return "".join(LATEX.get(sign, sign) for sign in " ".join(text.split()))


def latex(results: StudyResults) -> str:
    """The table for a paper, with the rules of the package booktabs."""
    names = header(results)
    # A line that begins with a bracket would be an argument of the line break before it.
    lines = [" & ".join("{" + latex_text(cell) + "}" for cell in line) + r" \\" for line in body(results)]
    return "\n".join(
        [
            *(f"% {' '.join(remark.split())}" for remark in remarks(results)),
            rf"\begin{{tabular}}{{l{'r' * (len(names) - 1)}}}",
            r"\toprule",
            " & ".join(map(latex_text, names)) + r" \\",
            r"\midrule",
            *lines,
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )


def comma_separated(results: StudyResults) -> str:
    """The table for a program: fractions 0..1, empty where there is nothing."""
    spreads: dict[str, Callable[[TableRow], Spread | None]] = {
        metric.replace(".", "_"): lambda row, metric=metric: row.last[metric]  # type: ignore[misc]
        for metric in results.metrics
    }
    spreads |= {"best_top1": lambda row: row.best, "train_seconds": lambda row: row.seconds}
    intervals: dict[str, Callable[[TableRow], Interval | None]] = {
        "top1_difference": lambda row: row.top1_difference,
        "few_difference": lambda row: row.few_difference,
    }
    names = ["row", "n", "wanted", "seeds", "evaluated_on", "selected_on", "image_passes", "full_size_passes"]
    names += [f"{name}_{part}" for name in spreads for part in ("mean", "sd")]
    names += [f"{name}{part}" for name in intervals for part in ("", "_low", "_high")]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    for row in results.rows:
        given: list[str | float | None] = [as_cell(row.label), row.n, row.wanted, " ".join(map(str, row.seeds))]
        given += [row.evaluated_on, row.selected_on]
        given += [None if passes is None else round(passes.mean) for passes in (row.image_passes, row.full_size_passes)]
        for of_row in spreads.values():
            found = of_row(row)
            given += [None, None] if found is None else [found.mean, found.deviation]
        for of_interval in intervals.values():
            given += list(of_interval(row) or (None, None, None))
        writer.writerow([round(value, 6) if isinstance(value, float) else value for value in given])
    return text.getvalue()
