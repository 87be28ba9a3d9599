"""Accuracy on CIFAR-100-LT against time, of the kept runs under results/: what an hour of training is worth.

python benchmarks/against_time.py table
python benchmarks/against_time.py picture --out docs/pictures/against-time.png

Time is counted, and not the clock of the machines that the runs were trained on: the steps of a run times the median
step of its recipe, over 200 epochs of cifar100/concutmix, with the medians of results/speed/whole_recipes.json, which
benchmarks/whole_recipes.py took by turns on one machine. Accuracy is top-1 on test in the last epoch. Evaluation, start
and compilation do not count.
"""

from __future__ import annotations

import argparse
import json
import runpy
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TIMES = ROOT / "results" / "speed" / "whole_recipes.json"
HELPERS = runpy.run_path(str(ROOT / "benchmarks" / "results.py"))
GOAL, WHOLE, AT_MOST = 53.2, "cifar100/concutmix", 0.25
FAST = "cifar100/fast,run.precision=bfloat16"


@dataclass(frozen=True)
class Point:
    """Runs of one setting: their share of the time of 200 epochs of ConCutMix, and top-1 of each."""

    name: str
    epochs: int
    share: float
    top1: list[float]


NEAR = 0.06
"""Shares of the time that lie nearer than this have their names below one another."""


def recipe_of(study: str, method: str) -> str:
    """The words of whole_recipes.py whose step a run's step is."""
    if study == "fast-cifar100":
        return FAST
    return WHOLE if method == "concutmix" else f"cifar100/{method},optim.batch=256"


def points(times: Mapping[str, Any]) -> list[Point]:
    """The settings of the studies whose step was timed, by their share of the time."""
    whole = times[WHOLE]
    found: dict[tuple[str, int, float], list[float]] = {}
    for study in ("fast-cifar100", "family-cifar100"):
        for cell in HELPERS["cells_of_study"](study)[1]:
            recipe = recipe_of(study, cell.config.method.name)
            if cell.finished is None or recipe not in times:
                continue
            run = cell.finished.results
            steps = run["epochs"] * -(-sum(run["class_counts"]) // cell.config.optim.batch)
            share = steps * times[recipe]["step_s"] / (whole["steps"] * whole["step_s"])
            form = cell.labels[0].split(",")[0]  # of "first form, 140 epochs"
            named = "cifar100/fast" if form == "fast" else f"cifar100/fast, {form}"
            name = named if recipe == FAST else run["method"]
            found.setdefault((name, run["epochs"], share), []).append(run["last"]["top1"])
    rows = [Point(name, epochs, share, top1) for (name, epochs, share), top1 in found.items()]
    return sorted(rows, key=lambda row: row.share)


def table(times: Mapping[str, Any]) -> list[str]:
    """The points as Markdown."""
    lines = [
        "| run | epochs | share of the time of 200 epochs of ConCutMix | seeds | last top-1 |",
        "|---|---|---|---|---|",
    ]
    for row in points(times):
        few = "" if len(row.top1) >= 3 else f" (n={len(row.top1)})"
        top1 = HELPERS["spread"](row.top1)
        lines.append(f"| {row.name} | {row.epochs} | {row.share:.3f} | {len(row.top1)}{few} | {top1} |")
    return lines


def picture(times: Mapping[str, Any], out: Path) -> None:
    """Every run a dot, and the means of each form of the fast recipe joined."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(7, 4), layout="constrained")
    rows = points(times)
    fast = [row for row in rows if row.name.startswith("cifar100/fast")]
    for form in {row.name for row in fast}:
        same = [row for row in fast if row.name == form]
        means = [100 * statistics.mean(row.top1) for row in same]
        axis.plot([row.share for row in same], means, color="tab:blue", linewidth=1)
    for row in rows:
        color = "tab:blue" if row in fast else "tab:orange" if row.name == "concutmix" else "tab:gray"
        percent = [100 * value for value in row.top1]
        axis.scatter([row.share] * len(percent), percent, color=color, s=18, zorder=3)
        if row not in fast:
            axis.annotate(row.name, (row.share, max(percent)), (5, 4), textcoords="offset points", fontsize=8)
    for share in {row.share for row in fast}:  # below all of them, for the goal lies above
        near = [row for row in fast if abs(row.share - share) < NEAR]
        same = sorted((row for row in near if row.share == share), key=lambda row: -statistics.mean(row.top1))
        above = sum(row.share < share for row in near)
        axis.annotate(
            "\n".join(f"{row.name.removeprefix('cifar100/fast, ')}, {row.epochs}" for row in same),
            (share, 100 * min(min(row.top1) for row in near)),
            (4, -8 - 12 * above),
            textcoords="offset points",
            fontsize=8,
            horizontalalignment="right",
            verticalalignment="top",
            color="tab:blue",
        )
    axis.axhline(GOAL, color="black", linewidth=0.8, linestyle="--")
    axis.annotate(
        "200 epochs of ConCutMix, its authors (best epoch)",
        (0.002, GOAL),
        (0, 3),
        textcoords="offset points",
        fontsize=8,
    )
    axis.axvline(AT_MOST, color="black", linewidth=0.8, linestyle=":")
    axis.set(xlim=(0, 0.28), ylim=(15, 57), xlabel="share of the time of 200 epochs of cifar100/concutmix")
    axis.set_ylabel("last top-1, %")
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(out, dpi=120)


def main() -> None:
    """Do what the first word says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("table", "picture"))
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "pictures" / "against-time.png")
    given = parser.parse_args()
    times = json.loads(TIMES.read_text())["recipes"]
    if given.what == "table":
        print("\n".join(table(times)))
    else:
        picture(times, given.out)
        print(given.out)


if __name__ == "__main__":
    main()
