"""What the page says in words and tables: derived from a finished run, nothing measured anew."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from longtail.data.prepare import images_of
from longtail.evaluation.intervals import wilson_interval
from longtail.evaluation.metrics import expected_calibration_error, thirds
from longtail.report.folder import GROUPS, ClassRow, FinishedRun
from longtail.report.svg import shortened
from longtail.settings import resolve_time

EVENT_ENDINGS = ("milestones", "_epochs", "_start", "_stop", "_from")
"""How the keys of run.json's schedule end that are points in the run: epochs, or fractions of it."""

NOTHING_HAPPENS: dict[str, Callable[[Mapping[str, Any]], bool]] = {
    "drw_start": lambda own: not str(own.get("criterion")).endswith("-drw"),
    "mask_start": lambda own: own.get("mask_probability") == 0,
    "mix_start": lambda own: own.get("mixing") == "none" or own.get("mix_probability") == 0,
    "mix_stop": lambda own: own.get("mixing") == "none" or own.get("mix_probability") == 0,
    "contrast_start": lambda own: own.get("contrast") == "none",
    "contrast_stop": lambda own: own.get("contrast") == "none",
    "contrastive_from": lambda own: own.get("mu") == 0,
    "rectify_start": lambda own: own.get("omega") == 0 or own.get("mix_probability") == 0,
}
"""For points in a run, whether the other settings beside them make nothing of it."""

SCARCE = 50
"""Evaluated images below which a group is named: the 95 % interval of one half is 14 points to each side, or more."""


@dataclass(frozen=True)
class Confusion:
    """``images`` of the ``tested`` evaluated images of class ``target`` were taken for class ``predicted``."""

    target: ClassRow
    predicted: ClassRow
    images: int
    tested: int

    @property
    def share(self) -> float:
        """The fraction of the target's evaluated images."""
        return self.images / self.tested


@dataclass(frozen=True)
class Flow:
    """Where the evaluated images of one group go: the fraction called a class of each group."""

    group: str
    shares: Mapping[str, float]


def percent(value: float | None, digits: int = 1) -> str:
    """A fraction in percent, an absent one as a dash."""
    return "-" if value is None else f"{100 * value:.{digits}f}%"


def points(difference: float) -> str:
    """A difference of fractions in percentage points, signed."""
    return f"{100 * difference:+.1f}".replace("-", "\N{MINUS SIGN}")


def split_of(run: FinishedRun) -> str:
    """The set that a run's results are of."""
    return str(run.results.get("evaluated_on", "test"))


def groups_sentence(run: FinishedRun) -> str:
    """What the groups are, and which of their numbers rest on few images."""
    many, few = run.description["groups"]
    said = f"Many: classes of more than {many} training images; medium: {few} to {many}; few: fewer than {few}. "
    said += "The number of a group is the mean over its classes."
    tested = {name: sum(row.test_count for row in run.classes if row.group == name) for name in run.group_sizes()}
    scarce = [f"{name} on {images}" for name, images in tested.items() if images < SCARCE]
    if scarce:
        what = images_of(split_of(run))
        said += f" It rests on few {what}: {', '.join(scarce)}."
    return said


def subject(run: FinishedRun) -> str:
    """What was trained on: the data set, and of images of one's own the name of their folder or file."""
    dataset, data = str(run.results["dataset"]), run.description.get("data")
    name = data.get("name") if isinstance(data, Mapping) else None
    return dataset if not isinstance(name, str) or name in ("", dataset) else f"{shortened(name, 60)} ({dataset})"


def thirds_of(run: FinishedRun) -> dict[str, float | None]:
    """The accuracy of the head, middle and tail third of the classes by rank."""
    recalls = [np.nan if row.accuracy is None else row.accuracy for row in run.classes]
    return thirds(recalls, [row.train_count for row in run.classes])


def schedule_events(run: FinishedRun) -> dict[str, list[int]]:
    """The points of run.json's schedule at which something happened, in epochs, by name: those inside the run."""
    found: dict[str, list[int]] = {}
    done = int(run.history[-1]["epoch"]) + 1

    def collect(values: Mapping[str, Any]) -> None:
        for name, value in values.items():
            if isinstance(value, Mapping):
                collect(value)
            elif name.endswith(EVENT_ENDINGS):
                times = value if isinstance(value, list) else [value]
                at = [resolve_time(time, run.planned_epochs) for time in times if type(time) in (int, float)]
                idle = name in NOTHING_HAPPENS and NOTHING_HAPPENS[name](values)
                if not idle and (inside := [epoch for epoch in at if 0 < epoch < done]):
                    found[name.replace("_", " ")] = inside

    schedule = run.description.get("schedule")
    collect(schedule if isinstance(schedule, Mapping) else {})
    return found


def tail_sentence(run: FinishedRun) -> str:
    """What to see in the picture of accuracy over training images."""
    known: dict[str, float] = {name: run.last[name] for name in GROUPS if run.last.get(name) is not None}
    if len(known) < 2:
        known = {f"the {name} third": value for name, value in thirds_of(run).items() if value is not None}
    if len(known) < 2:
        return "All tested classes are of one group."
    names = list(known)
    first, last = known[names[0]], known[names[-1]]
    verb = "falls" if last < first else "rises" if last > first else "stays"
    return f"From {names[0]} to {names[-1]} the mean accuracy {verb} from {percent(first)} to {percent(last)}."


def curves_sentence(run: FinishedRun) -> str:
    """What to see in the learning curves: how much still moves at the end."""
    rows = run.history
    if len(rows) < 2:
        return "One epoch was evaluated, so there are points instead of curves."
    start = rows[min(len(rows) - 2, int(0.8 * len(rows)))]
    moves = [
        f"{'top-1' if name == 'top1' else name} {points(rows[-1][name] - start[name])}"
        for name in ("top1", *GROUPS)
        if rows[-1].get(name) is not None and start.get(name) is not None
    ]
    if not moves:
        return "No accuracy was recorded along the way."
    return f"From epoch {start['epoch']} to the last, {rows[-1]['epoch']}, accuracy moved by {', '.join(moves)} points."


def image_flow(run: FinishedRun) -> list[Flow]:
    """For each group that has evaluated images, where they go; empty without predictions."""
    if run.predictions is None:
        return []
    group = np.array([GROUPS.index(row.group) for row in run.classes])
    targets, predicted = group[run.predictions.targets], group[run.predictions.predicted]
    flows = []
    for number, name in enumerate(GROUPS):
        there = predicted[targets == number]
        if there.size:
            shares = np.bincount(there, minlength=len(GROUPS)) / there.size
            flows.append(Flow(name, dict(zip(GROUPS, shares.tolist(), strict=True))))
    return flows


def flow_sentence(flows: Sequence[Flow], baseline: Sequence[Flow] = (), split: str = "test") -> str:
    """The finding of the flow: how much of the rarest group is called a frequent class, here and in the baseline."""
    first, last = flows[0].group, flows[-1].group
    beside = next((f" (baseline: {percent(flow.shares[first], 0)})" for flow in baseline if flow.group == last), "")
    share = percent(flows[-1].shares[first], 0)
    return f"{share} of {last}-shot {images_of(split)} are called a {first}-shot class{beside}."


@dataclass(frozen=True)
class Reliability:
    """The calibration of one set of images: its ``bins`` (mean confidence, accuracy, share of the images), its error
    (ECE, 15 bins), and the mean confidence minus the accuracy."""

    name: str
    bins: list[tuple[float, float, float]]
    ece: float
    surplus: float


def reliability(run: FinishedRun, bins: int = 15) -> list[Reliability]:
    """Calibration of all evaluated images and of each group's, from predictions.csv; empty without it.

    Bins are those of :func:`longtail.evaluation.metrics.expected_calibration_error`; the line leaves out bins of fewer
    than five images, the error does not.
    """
    if run.predictions is None or not len(run.predictions.targets):
        return []
    sure, right = run.predictions.confidence, run.predictions.correct.astype(np.float64)
    group = np.array([GROUPS.index(row.group) for row in run.classes])[run.predictions.targets]
    found = []
    for name, rows in (("all", group >= 0), *((name, group == k) for k, name in enumerate(GROUPS))):
        if not rows.any():
            continue
        own, hit = sure[rows], right[rows]
        where = np.searchsorted(np.arange(1, bins) / bins, own, side="left")
        shown = [k for k in range(bins) if (where == k).sum() >= 5]
        points = [
            (float(own[where == k].mean()), float(hit[where == k].mean()), float((where == k).mean())) for k in shown
        ]
        error = expected_calibration_error(own, hit, bins)
        found.append(Reliability(name, points, error, float(own.mean() - hit.mean())))
    return found


def reliability_sentence(found: Sequence[Reliability]) -> str:
    """Whether the network is too sure of itself, over all and where most."""
    whole, worst = found[0], max(found[1:], key=lambda entry: entry.ece)
    side = "above" if whole.surplus > 0 else "below"
    return (
        f"On average the probability of the answer is {100 * abs(whole.surplus):.1f} points {side} the share that is "
        f"right; the calibration error is {percent(whole.ece)} over all images and largest on {worst.name}-shot "
        f"classes, {percent(worst.ece)}."
    )


def hardest(run: FinishedRun, most: int) -> list[int]:
    """Positions of the wrong images that the network was surest of, surest first."""
    if run.predictions is None:
        return []
    wrong = np.flatnonzero(~run.predictions.correct)
    order = np.argsort(-run.predictions.confidence[wrong], kind="stable")
    chosen: list[int] = wrong[order][:most].tolist()
    return chosen


def confusions(run: FinishedRun) -> list[Confusion]:
    """Every pair of classes that is confused, the largest share of the true class first, rare classes first."""
    if run.predictions is None:
        return []
    targets, predicted, classes = run.predictions.targets, run.predictions.predicted, len(run.classes)
    tested = np.bincount(targets, minlength=classes)
    pairs, times = np.unique((targets * classes + predicted)[targets != predicted], return_counts=True)
    found = [
        Confusion(run.classes[pair // classes], run.classes[pair % classes], images, int(tested[pair // classes]))
        for pair, images in zip(pairs.tolist(), times.tolist(), strict=True)
    ]
    return sorted(found, key=lambda c: (-c.share, c.target.train_count, c.target.index, c.predicted.index))


def confusion_sentence(pairs: Sequence[Confusion]) -> str:
    """The finding of the confused pairs: whether they go to the more frequent class."""
    upward = sum(pair.predicted.train_count > pair.target.train_count for pair in pairs)
    if len(pairs) == 1:
        return f"The one pair {'ends' if upward else 'does not end'} at a class with more training images."
    return f"{upward} of these {len(pairs)} pairs end at a class with more training images."


def class_table(run: FinishedRun, found: Sequence[Confusion]) -> list[dict[str, Any]]:
    """One row per class by rank: the row itself, the 95 % interval of its accuracy, what it is mostly taken for."""
    worst: dict[int, Confusion] = {}
    for pair in found:
        worst.setdefault(pair.target.index, pair)
    return [
        {
            "row": row,
            "interval": None if row.accuracy is None else wilson_interval(row.accuracy, row.test_count),
            "taken_for": worst.get(row.index),
        }
        for row in run.ranked()
    ]


def flattened(values: Mapping[str, Any], leave_out: Sequence[str], prefix: str = "") -> list[tuple[str, str]]:
    """Nested values as (dotted name, text), without the names in ``leave_out`` and without what is empty."""
    rows: list[tuple[str, str]] = []
    for key, value in values.items():
        name = f"{prefix}{key}"
        if name in leave_out or value is None or value in ([], {}, ""):
            continue
        if isinstance(value, Mapping):
            rows += flattened(value, leave_out, f"{name}.")
        else:
            text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
            rows.append((name, text))
    return rows
