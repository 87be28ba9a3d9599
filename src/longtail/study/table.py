"""The rows of a study's table as data: means, deviations, differences; fractions 0..1, None where there is nothing."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longtail.config import NUMBERS_VERSION
from longtail.evaluation.intervals import Interval, paired_bootstrap
from longtail.evaluation.metrics import group_labels
from longtail.study.cells import Cell
from longtail.study.statistics import Spread, spread
from longtail.training.description import differing

METRICS = {
    "top1": "top-1",
    "many": "many",
    "medium": "medium",
    "few": "few",
    "thirds.head": "head third",
    "thirds.middle": "middle third",
    "thirds.tail": "tail third",
    "backgrounds.seen": "seen backgrounds",
    "backgrounds.unseen": "unseen backgrounds",
}
"""What of the last epoch stands in a table, by its place in results.json; the last five only where a run has them."""

ALWAYS = ("top1", "many", "medium", "few")
ENOUGH_SEEDS = 3


@dataclass(frozen=True)
class TableRow:
    """One row: ``n`` finished runs of ``wanted``. Differences are to the baseline, on the seeds that both have.

    ``full_size_passes`` counts an image of fewer pixels than the data's by its share of them.
    """

    label: str
    seeds: tuple[int, ...]
    wanted: int
    last: Mapping[str, Spread | None]
    best: Spread | None
    selected_on: str
    evaluated_on: str
    top1_difference: Interval | None
    few_difference: Interval | None
    image_passes: Spread | None
    full_size_passes: Spread | None
    seconds: Spread | None

    @property
    def n(self) -> int:
        """How many runs it is the mean of."""
        return len(self.seeds)


@dataclass(frozen=True)
class StudyResults:
    """All that the tables say. ``failed`` are sentences on cells that did not end well, ``differing`` what the seconds
    of the rows depend on and is not the same for all runs."""

    name: str
    baseline: str | None
    metrics: tuple[str, ...]
    rows: tuple[TableRow, ...]
    failed: tuple[str, ...]
    differing: tuple[str, ...] = ()


def study_results(
    name: str, labels: Sequence[str], baseline: str | None, cells: Sequence[Cell], failed: Sequence[str] = ()
) -> StudyResults:
    """The table of what is finished so far; results of another version of the numbers are left out."""
    by_label = {label: [cell for cell in cells if label in cell.labels] for label in labels}
    done = {label: [cell for cell in own if _counts(cell)] for label, own in by_label.items()}
    compared = done[baseline] if baseline is not None else []
    rows = tuple(
        _row(label, done[label], len(by_label[label]), compared if label != baseline else []) for label in labels
    )
    there = [metric for metric in METRICS if metric in ALWAYS or any(row.last[metric] is not None for row in rows)]
    trained = {
        cell.finished.folder: cell.finished for own in done.values() for cell in own if cell.finished is not None
    }
    unlike = differing(one.described for one in trained.values())
    return StudyResults(name, baseline, tuple(there), rows, tuple(failed), tuple(unlike))


def _counts(cell: Cell) -> bool:
    return cell.finished is not None and cell.finished.results.get("numbers_version") == NUMBERS_VERSION


def _row(label: str, cells: Sequence[Cell], wanted: int, baseline: Sequence[Cell]) -> TableRow:
    results = [cell.finished.results for cell in cells if cell.finished is not None]
    top1, few = _differences(cells, baseline)
    return TableRow(
        label=label,
        seeds=tuple(cell.seed for cell in cells),
        wanted=wanted,
        last={metric: spread([_number(result["last"], metric) for result in results]) for metric in METRICS},
        best=spread([result["best"]["top1"] for result in results]),
        selected_on=" / ".join(sorted({str(result["best"]["selected_on"]) for result in results})),
        evaluated_on=" / ".join(sorted({str(result["evaluated_on"]) for result in results})),
        top1_difference=top1,
        few_difference=few,
        image_passes=spread([result["image_passes"] for result in results]),
        full_size_passes=spread([result.get("full_size_passes", result["image_passes"]) for result in results]),
        seconds=spread([result["train_seconds"] for result in results]),
    )


def _number(numbers: Mapping[str, Any], metric: str) -> float | None:
    """``few`` or ``backgrounds.seen`` of results.json; None where the run has no such number."""
    value: Any = numbers
    for part in metric.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return None if value is None else float(value)


@dataclass(frozen=True)
class _Answers:
    """What a run answered: for each test image an id, its class (N,), and whether it was right (N,)."""

    ids: list[str]
    targets: NDArray[np.int64]
    correct: NDArray[np.bool_]


def _differences(cells: Sequence[Cell], baseline: Sequence[Cell]) -> tuple[Interval | None, Interval | None]:
    """Top-1 and few-shot accuracy minus the baseline's, over the seeds for which both have their predictions.

    None where the test images are others: an overlap of classes draws them anew, under the same numbers.
    """
    of_seed = {(cell.seed, cell.config.data.overlap): cell for cell in baseline}
    there = [(cell, of_seed.get((cell.seed, cell.config.data.overlap))) for cell in cells]
    pairs = [(cell, other) for cell, other in there if other is not None]
    answers = [(read_answers(one), read_answers(other)) for one, other in pairs]
    known = [(one, other) for one, other in answers if one is not None and other is not None]
    if not known:
        return None, None
    first = known[0][0]
    if not all(one.ids == first.ids and (one.targets == first.targets).all() for pair in known for one in pair):
        return None, None  # other test images: there is nothing to pair
    mine, theirs = (np.stack([pair[side].correct for pair in known]) for side in (0, 1))
    few = np.isin(first.targets, sorted(_few_classes(pairs)))
    return (
        paired_bootstrap(mine, theirs),
        paired_bootstrap(mine[:, few], theirs[:, few], strata=first.targets[few]) if few.any() else None,
    )


def _few_classes(pairs: Sequence[tuple[Cell, Cell]]) -> set[int]:
    """The few-shot classes, if they are the same in all runs; else none."""
    found = set()
    for cell in (cell for pair in pairs for cell in pair):
        assert cell.finished is not None
        groups = group_labels(cell.finished.results["class_counts"], cell.config.data.groups)
        found.add(frozenset(k for k, group in enumerate(groups) if group == "few"))
    return set(found.pop()) if len(found) == 1 else set()


def read_answers(cell: Cell) -> _Answers | None:
    """predictions.csv of a finished cell; None where it was not kept."""
    path = Path() if cell.finished is None else cell.finished.folder / "predictions.csv"
    if not path.is_file():
        return None
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    targets = np.array([int(row["target"]) for row in rows])
    return _Answers([row["id"] for row in rows], targets, np.array([row["correct"] == "1" for row in rows]))
