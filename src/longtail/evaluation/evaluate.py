"""From a trained network to numbers: probabilities, metrics, and the tables of a run folder."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from longtail.data.images import ImageSet
from longtail.data.prepare import Prepared
from longtail.data.reading.image_files import Pixels
from longtail.data.sources.scenes import seen_backgrounds
from longtail.data.views import View
from longtail.errors import DivergedError
from longtail.evaluation.metrics import (
    Metrics,
    background_accuracy,
    compute_metrics,
    group_labels,
    per_class_accuracy,
    thirds,
)
from longtail.evaluation.profiles import under_profiles
from longtail.evaluation.scoring import AS_TRAINED, Scoring, ScoringSettings, choose_scoring, score
from longtail.files import as_cell, write_atomic
from longtail.losses import logit_adjustment
from longtail.methods import Method

UNCHANGED = ScoringSettings()


@dataclass(frozen=True)
class Evaluation:
    """Probabilities (N, C) float32 without the training offset, targets (N,), and what they amount to."""

    probabilities: NDArray[np.float32]
    targets: NDArray[np.int64]
    metrics: Metrics
    backgrounds: dict[str, float | None] | None
    thirds: dict[str, float | None]
    scoring: Scoring = AS_TRAINED
    profiles: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)

    @property
    def predicted(self) -> NDArray[np.int64]:
        """The class of the largest probability, (N,)."""
        found: NDArray[np.int64] = self.probabilities.argmax(axis=1)
        return found

    def numbers(self) -> dict[str, Any]:
        """The metrics by name; head/middle/tail thirds where a group is empty; backgrounds where they are known; other
        test distributions where they were asked for; and what ``test.*`` came to where it is not the default."""
        numbers: dict[str, Any] = dict(self.metrics.as_dict())
        if None in (self.metrics.many, self.metrics.medium, self.metrics.few):
            numbers["thirds"] = self.thirds
        if self.backgrounds is not None:
            numbers["backgrounds"] = self.backgrounds
        if self.profiles:
            numbers["test_profiles"] = self.profiles
        if self.scoring != AS_TRAINED:
            numbers["test"] = self.scoring.described()
        return numbers


def predict_probabilities(
    method: Method,
    images: Pixels,
    plain: View,
    counts: Sequence[int] | Tensor,
    scoring: Scoring = AS_TRAINED,
    stopped: Callable[[], bool] = lambda: False,
) -> Tensor:
    """softmax of the logits without the training offset, (N, C) float32 on the CPU, for images (N, 3, H, W) uint8.

    ``counts`` are the training images per class. Raises EvaluationStoppedError between two batches when ``stopped()``
    says so.
    """
    return torch.softmax(score(method, images, plain, scoring, logit_adjustment(counts, 1.0), stopped), dim=1)


def evaluate(
    method: Method,
    images: ImageSet,
    data: Prepared,
    plain: View,
    groups: tuple[int, int],
    scoring: ScoringSettings = UNCHANGED,
    stopped: Callable[[], bool] = lambda: False,
) -> Evaluation:
    """Evaluate on one split, with what ``scoring`` leaves to be chosen chosen on val; raises DivergedError where a
    probability is not finite."""
    val = data.val.to(images.labels.device) if data.val is not None and scoring.chooses else None
    chosen = choose_scoring(scoring, method, val, plain, data.stats.counts, stopped)
    probabilities = predict_probabilities(method, images.images, plain, data.stats.counts, chosen, stopped).numpy()
    if not np.isfinite(probabilities).all():
        raise DivergedError("The network's probabilities are not finite.", hint="Lower optim.lr.")
    found = evaluation_of(probabilities, images, data, groups)
    answers_for = chosen.answers_for(method.answers_for)
    profiles = under_profiles(data.test_profile, probabilities, found.targets, data.stats.counts, answers_for)
    return dataclasses.replace(found, scoring=chosen, profiles=profiles)


def evaluation_of(
    probabilities: NDArray[np.float32], images: ImageSet, data: Prepared, groups: tuple[int, int]
) -> Evaluation:
    """Metrics of given probabilities (N, C) on a split."""
    counts = data.stats.counts
    targets: NDArray[np.int64] = images.labels.cpu().numpy()
    predicted = probabilities.argmax(axis=1)
    backgrounds = None
    if images.backgrounds is not None and data.train.backgrounds is not None:
        seen = seen_backgrounds(data.train, len(counts))
        backgrounds = background_accuracy(predicted, targets, images.backgrounds, seen)
    recalls = per_class_accuracy(predicted, targets, len(counts))
    metrics = compute_metrics(probabilities, targets, counts, groups)
    return Evaluation(probabilities, targets, metrics, backgrounds, thirds(recalls, counts))


def write_per_class(path: Path, evaluation: Evaluation, data: Prepared, groups: tuple[int, int]) -> None:
    """per_class.csv: class, train_count, group, test_count, accuracy (empty where the class has no test image)."""
    counts = data.stats.counts
    recalls = per_class_accuracy(evaluation.predicted, evaluation.targets, len(counts))
    tested = np.bincount(evaluation.targets, minlength=len(counts))
    rows = [
        [as_cell(name), int(count), group, int(images), "" if np.isnan(recall) else float(recall)]
        for name, count, group, images, recall in zip(
            data.class_names, counts, group_labels(counts, groups), tested, recalls, strict=True
        )
    ]
    _write_csv(path, ["class", "train_count", "group", "test_count", "accuracy"], rows)


def write_predictions(path: Path, evaluation: Evaluation, images: ImageSet) -> None:
    """predictions.csv: index, id, target, predicted, probability, correct, a line for each image."""
    predicted = evaluation.predicted
    rows = [
        [
            position,
            as_cell(images.ids[position]) if images.ids is not None else int(images.source_index[position]),
            int(target),
            int(predicted[position]),
            round(float(evaluation.probabilities[position, predicted[position]]), 6),
            int(target == predicted[position]),
        ]
        for position, target in enumerate(evaluation.targets)
    ]
    _write_csv(path, ["index", "id", "target", "predicted", "probability", "correct"], rows)


def _write_csv(path: Path, header: list[str], rows: list[list[Any]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    write_atomic(path, text.getvalue().encode())


def describe(numbers: Mapping[str, Any]) -> str:
    """One line for people: ``top-1 20.5 %, many 30.0, medium 15.8, few 14.8``."""
    groups = ", ".join(f"{name} {_percent(numbers[name])}" for name in ("many", "medium", "few"))
    return f"top-1 {_percent(numbers['top1'])} %, {groups}"


REPEATED = {"top1": "top-1", "many": "many", "medium": "medium", "few": "few"}
"""The numbers that are compared with those of a run or a card, and their names for people."""


def compare_numbers(here: Mapping[str, Any], there: Mapping[str, Any], images: int, whose: str) -> str:
    """Whether the numbers of an evaluation are those that were written down, in a sentence.

    Top-1 counts images and the groups are means of such counts, so equal means to the image. Another processor or
    another number of threads adds in another order, and may turn an image whose two best classes are nearly level.
    """
    names = [shown for name, shown in REPEATED.items() if here[name] is not None]
    other = [
        name
        for name in REPEATED
        if (here[name] is None) != (there[name] is None) or not _equal(here[name], there[name])
    ]
    if not other:
        return f"{', '.join(names[:-1])} and {names[-1]} equal those of {whose}, to the image."
    moved = round(images * abs(here["top1"] - there["top1"]))
    said = ", ".join(
        f"{REPEATED[name]} {_percent(there[name])} there and {_percent(here[name])} here" for name in other
    )
    return f"Not the numbers of {whose}: {said}; {moved} of {images} images more or fewer are right."


def _equal(here: float | None, there: float | None) -> bool:
    return here is None or there is None or abs(here - there) < 1e-9


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"
