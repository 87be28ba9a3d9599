"""Runs set against each other: the table of a comparison, and differences with their intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from longtail.evaluation.intervals import Interval, paired_bootstrap
from longtail.report import findings
from longtail.report.findings import split_of
from longtail.report.folder import GROUPS, FinishedRun
from longtail.report.svg import shortened
from longtail.training.description import differing


@dataclass(frozen=True)
class ComparisonRow:
    """One run of a comparison: numbers of the last epoch, fractions 0..1, None where a group is empty.

    ``head``, ``middle`` and ``tail`` are set if one of the compared runs has an empty group. ``difference`` is top-1
    minus that of the first run with its 95 % interval (paired bootstrap over images), None for the first and
    where the images are not the same.
    """

    run: str
    label: str
    dataset: str
    method: str
    model: str
    epochs: int | None
    seed: int | None
    evaluated_on: str
    top1: float
    many: float | None
    medium: float | None
    few: float | None
    head: float | None
    middle: float | None
    tail: float | None
    worst_tenth: float | None
    ece: float | None
    image_passes: int | None
    seconds: float | None
    difference: Interval | None


def rows_of(runs: Sequence[FinishedRun]) -> list[ComparisonRow]:
    """The table, one row per run in the order given; differences are against the first."""
    with_thirds = any(len(run.group_sizes()) < len(GROUPS) for run in runs)
    rows = []
    for run, label in zip(runs, labels_of(runs), strict=True):
        results, last = run.results, run.last
        parts = findings.thirds_of(run) if with_thirds else {}
        rows.append(
            ComparisonRow(
                run=str(run.path),
                label=label,
                dataset=str(results.get("dataset", "")),
                method=str(results["method"]),
                model=str(results.get("model", "")),
                epochs=results.get("epochs"),
                seed=results.get("seed"),
                evaluated_on=split_of(run),
                top1=last["top1"],
                **{name: last.get(name) for name in (*GROUPS, "worst_tenth", "ece")},
                **{name: parts.get(name) for name in ("head", "middle", "tail")},
                image_passes=results.get("image_passes"),
                seconds=results.get("train_seconds"),
                difference=None if run is runs[0] else differences(run, runs[0]).get("top1"),
            )
        )
    return rows


def labels_of(runs: Sequence[FinishedRun]) -> list[str]:
    """The shortest names that tell the runs apart: method, with seed, with folder, with path."""
    methods = [str(run.results["method"]) for run in runs]
    seeds = [f"{m}, seed {run.results.get('seed')}" for m, run in zip(methods, runs, strict=True)]
    folders = [f"{m} ({run.path.name})" for m, run in zip(methods, runs, strict=True)]
    paths = [f"{m} ({run.path})" for m, run in zip(methods, runs, strict=True)]
    return next((names for names in (methods, seeds, folders) if len(set(names)) == len(runs)), paths)


def same_images(run: FinishedRun, baseline: FinishedRun) -> bool:
    """Whether both were evaluated on the same images of the same classes, in the same order.

    An overlap of classes draws the images anew, under the same numbers.
    """
    if run.overlap != baseline.overlap:
        return False
    ours, theirs = run.predictions, baseline.predictions
    if ours is None or theirs is None or ours.ids != theirs.ids or not np.array_equal(ours.targets, theirs.targets):
        return False
    return [row.name for row in run.classes] == [row.name for row in baseline.classes]


def differences(run: FinishedRun, baseline: FinishedRun) -> dict[str, Interval]:
    """Top-1 and the accuracy of each group minus the baseline's, with 95 % intervals of a paired bootstrap over
    images; empty where the images are not the same.

    The accuracy of a group is the mean over its classes, so its images are resampled class by class, as in the tables
    of a study.
    """
    if not same_images(run, baseline):
        return {}
    ours, theirs = run.predictions, baseline.predictions
    assert ours is not None, "same_images asks for them"
    assert theirs is not None, "same_images asks for them"
    found = {"top1": paired_bootstrap(ours.correct, theirs.correct)}
    for group in GROUPS:
        inside = np.isin(ours.targets, [row.index for row in run.classes if row.group == group])
        if inside.any():
            found[group] = paired_bootstrap(ours.correct[inside], theirs.correct[inside], strata=ours.targets[inside])
    return found


def notes_on(runs: Sequence[FinishedRun], rows: Sequence[ComparisonRow]) -> list[str]:
    """What keeps the rows from being comparable, in sentences."""
    notes = []
    data = [run.description.get("data") for run in runs]
    prints = {entry.get("fingerprint") for entry in data if isinstance(entry, Mapping)}
    if len({row.dataset for row in rows}) > 1:
        notes.append("The runs are on different data sets.")
    elif len(prints) > 1:
        notes.append("The runs were trained on different images of the same data set.")
    if len({run.results.get("numbers_version") for run in runs}) > 1:
        notes.append("The runs are of versions of longtail whose numbers do not compare: see its changelog.")
    if len({row.evaluated_on for row in rows}) > 1:
        notes.append("The runs are not all evaluated on the same split.")
    if len({row.epochs for row in rows}) > 1:
        notes.append("The runs are of different length.")
    if len({row.image_passes for row in rows}) > 1:
        notes.append(
            "Image passes differ: some methods forward several images for every training image, so equal epochs are "
            "not equal work."
        )
    if unlike := differing(run.description for run in runs):
        notes.append(f"Seconds do not compare: the runs differ in {'; '.join(unlike)}.")
    return notes


def same_order(runs: Sequence[FinishedRun]) -> bool:
    """Whether the runs have the same classes in the same order of training images."""
    order = [row.name for row in runs[0].ranked()]
    return all([row.name for row in run.ranked()] == order for run in runs)


def rarest_sentence(runs: Sequence[FinishedRun], rows: Sequence[ComparisonRow]) -> str:
    """Which run does best on the rarest classes; nothing to say on different data, on one run, or
    where a run has no evaluated image of them."""
    if len(runs) < 2 or not same_order(runs):
        return ""
    measured = [findings.thirds_of(run)["tail"] for run in runs]
    tails = [tail for tail in measured if tail is not None]
    if len(tails) < len(runs):  # no evaluated image of these classes
        return ""
    best, worst = int(np.argmax(tails)), int(np.argmin(tails))
    if tails[best] == tails[worst]:
        return (
            "On the third of the classes with the fewest training images, all runs have the same mean accuracy, "
            f"{findings.percent(tails[best])}."
        )
    return (
        f"On the third of the classes with the fewest training images, {shortened(rows[best].label, 60)} has the "
        f"highest mean accuracy, {findings.percent(tails[best])}, {shortened(rows[worst].label, 60)} the lowest, "
        f"{findings.percent(tails[worst])}."
    )
