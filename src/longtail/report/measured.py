"""What the page shows of a run's images and network: read again from the folder, and left out with a note where not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from longtail.data.prepare import Prepared
from longtail.errors import LongtailError
from longtail.evaluation.scoring import EVALUATION_BATCH, evaluating
from longtail.explain.backgrounds import finished_model
from longtail.prediction.predict import Model
from longtail.report.charts import Space
from longtail.report.findings import Confusion, hardest, split_of
from longtail.report.folder import FinishedRun
from longtail.report.images import Shot
from longtail.report.remaking import Shown, remake
from longtail.report.samples import show_method
from longtail.rng import generator

HARDEST = 12
SPACE_PIXELS = 600 * 32 * 32
"""Of the images that go through the network for the feature space: some tenths of a second of a small network."""
SPACE_IMAGES = (100, 600)

T = TypeVar("T")


@dataclass
class Measured:
    """Pictures of hard images and of confused pairs (by target and predicted class), what the method did, the feature
    space; and notes on what could not be made."""

    hard: list[Shot] = field(default_factory=list)
    pairs: dict[tuple[int, int], tuple[Shot, Shot]] = field(default_factory=dict)
    shown: Shown | None = None
    space: Space | None = None
    notes: list[str] = field(default_factory=list)

    def attempt(self, what: str, make: Callable[[], T]) -> T | None:
        """What ``make`` gives, or None and a note: a page without a picture is better than a run without a page."""
        try:
            return make()
        except LongtailError as error:
            reason = error.message
        except Exception as error:  # whatever images that changed or foreign networks raise
            reason = f"{type(error).__name__}: {error}"
        self.notes.append(f"{what} cannot be shown. {reason.splitlines()[0] if reason else ''}".strip())
        return None


def measure(run: FinishedRun, pairs: Sequence[Confusion]) -> Measured:
    """Everything that needs the run's images or weights; never raises."""
    made = Measured()
    if run.results.get("dataset") == "arrays":
        made.notes.append("The images came from Python and are not in the run folder: the page is without pictures.")
        return made
    opened = made.attempt("Images and feature space", lambda: finished_model(run.path))
    if opened is None:
        return made
    model, data = opened
    made.hard = made.attempt("The hardest images", lambda: hard_images(run, data)) or []
    made.pairs = made.attempt("Images of confused classes", lambda: pair_images(run, data, pairs)) or {}
    made.shown = made.attempt("What the method did", lambda: show_method(remake(model, data, run.classes)))
    made.space = made.attempt("The feature space", lambda: feature_space(model, data))
    return made


def hard_images(run: FinishedRun, data: Prepared) -> list[Shot]:
    """The wrong images that the network was surest of."""
    shots, split = [], split_of(run)
    for place in hardest(run, HARDEST):
        assert run.predictions is not None, "hardest is empty without"
        target, called = (run.classes[int(k[place])] for k in (run.predictions.targets, run.predictions.predicted))
        sure = f"{100 * run.predictions.confidence[place]:.0f}%"
        caption = f"{target.name} → {called.name}, {sure}"
        alt = f"{split.capitalize()} image of class {target.name}, called {called.name} with {sure}"
        shots.append(Shot(data.evaluation.images[place], caption, alt))
    return shots


def pair_images(
    run: FinishedRun, data: Prepared, pairs: Sequence[Confusion]
) -> dict[tuple[int, int], tuple[Shot, Shot]]:
    """For each confused pair the mistaken image that the network was surest of, and a training image of the class
    that it was taken for."""
    if run.predictions is None:
        return {}
    found, split = {}, split_of(run)
    for pair in pairs:
        target, called = pair.target, pair.predicted
        inside = (run.predictions.targets == target.index) & (run.predictions.predicted == called.index)
        test = int(np.argmax(np.where(inside, run.predictions.confidence, -1.0)))
        train = int((data.train.labels == called.index).nonzero()[0])
        found[target.index, called.index] = (
            Shot(
                data.evaluation.images[test],
                "",
                f"{split.capitalize()} image of class {target.name}, taken for {called.name}",
            ),
            Shot(data.train.images[train], "", f"Training image of class {called.name}"),
        )
    return found


def feature_space(model: Model, data: Prepared) -> Space:
    """The first two principal components of evaluated images in the network's feature space, with the class centers.

    Where the method learned centers, the space is that of its projections, u / |u|, and the centers are v / |v|;
    elsewhere it is the backbone's features, and a center is the mean of the shown images of its class.
    """
    network, images, labels = model.method.network, *_some(data)
    device = next(network.parameters()).device
    with evaluating(model.method):
        parts = [
            network.features(model.view.apply(part.to(device), ())) for part in torch.split(images, EVALUATION_BATCH)
        ]
        features = torch.cat(parts)
        learned = network.center_head is not None
        if learned:
            features, centers = F.normalize(network.project(features), dim=1), F.normalize(network.centers(), dim=1)
        else:
            centers = _means(features, labels.to(device), len(model.class_names))
    middle = features.mean(dim=0)
    _, spread, axes = torch.linalg.svd((features - middle).double(), full_matrices=False)
    axes = F.pad(axes[:2], (0, 0, 0, max(0, 2 - len(axes))))  # one image spans no second axis
    share = float((spread[:2] ** 2).sum() / (spread**2).sum().clamp_min(1e-12))
    return Space(
        places=((features - middle).double() @ axes.T).cpu().numpy(),
        labels=labels.cpu().numpy(),
        centers=((centers - middle).double() @ axes.T).cpu().numpy(),
        share=share,
        what="the projections that the contrastive loss compares" if learned else "the backbone's features",
        center="the center that the method learned for a class" if learned else "the mean of a class's images",
    )


def _some(data: Prepared) -> tuple[Tensor, Tensor]:
    """Some evaluated images and their labels, every class alike as far as that goes."""
    images, labels = data.evaluation.images, data.evaluation.labels.cpu()
    pixels = int(images.shape[-1] * images.shape[-2])
    most = min(max(SPACE_PIXELS // pixels, SPACE_IMAGES[0]), SPACE_IMAGES[1])
    order = torch.randperm(len(labels), generator=generator("report", "feature space"))
    # The n-th image of each class comes before the n + 1-th of any.
    seen: dict[int, int] = {}
    turn = []
    for label in labels[order].tolist():
        seen[label] = seen.get(label, 0) + 1
        turn.append(seen[label])
    chosen = order[torch.argsort(torch.tensor(turn), stable=True)[:most]].sort().values
    return images[chosen.to(images.device)], labels[chosen]


def _means(features: Tensor, labels: Tensor, classes: int) -> Tensor:
    """The mean feature (C, D) of each class; NaN where it has none."""
    sums = torch.zeros(classes, features.shape[1], dtype=features.dtype, device=features.device)
    sums.index_add_(0, labels, features)
    return sums / torch.bincount(labels, minlength=classes)[:, None]
