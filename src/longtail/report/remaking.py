"""A finished run's batches made again, and the pictures and labels that are shown of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from longtail.data.batch import Batch, Progress
from longtail.data.loader import Loader
from longtail.data.prepare import Prepared
from longtail.errors import RunError
from longtail.files import read_json
from longtail.prediction.predict import Model
from longtail.report.folder import GROUPS, ClassRow
from longtail.report.images import Edges, Shot, visible
from longtail.training.detection import digest
from longtail.training.feeding import build_loader, build_views, find_peaks
from longtail.training.listeners import Silent
from longtail.training.updating import split_up

EXAMPLES = 6
LOOKED_AT = 2000
"""Steps that are looked at for one that mixes, from the last one back; before them one an epoch is."""


@dataclass(frozen=True)
class Bars:
    """A label as bars: a title, and the classes with their weights, largest first; ``rest`` is of all others."""

    title: str
    rows: list[tuple[ClassRow, float]]
    rest: float = 0.0


@dataclass(frozen=True)
class Example:
    """One image's way through a step: pictures and labels."""

    shots: list[Shot]
    bars: list[Bars] = field(default_factory=list)


@dataclass(frozen=True)
class Shown:
    """What was done, in a sentence, and the examples of it."""

    sentence: str
    examples: list[Example]


@dataclass(frozen=True)
class Remade:
    """A finished run's network, images and classes, and its batches."""

    model: Model
    data: Prepared
    classes: list[ClassRow]
    loader: Loader

    def late_steps(self) -> Iterator[Progress]:
        """The places of the run from the last one back: each of the latest, before them the first of each epoch."""
        last = self.loader.steps_per_epoch * self.model.epochs
        closely = max(0, last - LOOKED_AT)
        before = (closely - 1) // self.loader.steps_per_epoch * self.loader.steps_per_epoch
        for step in (*range(last - 1, closely - 1, -1), *range(before, -1, -self.loader.steps_per_epoch)):
            yield self.loader.progress(step)

    def batch(self, at: Progress, *, with_partner: bool) -> Batch:
        """The batch of a step, or the first of its micro-batches: that has the draws of the step."""
        whole = self.loader.batch(at.step, with_partner=with_partner)
        return split_up(whole, self.model.config.optim)[0]

    def shot(self, normalized: Tensor, caption: str, alt: str, box: Edges | None = None) -> Shot:
        """A normalized image (3, H, W) as a picture."""
        return Shot(visible(normalized[None], self.model.view)[0], caption, alt, box)

    def original(self, position: int) -> Shot:
        """A training image before any view."""
        row = self.classes[int(self.data.train.labels[position])]
        return Shot(self.data.train.images[position], row.name, f"Training image of class {row.name}")

    def telling_first(self, batch: Batch) -> list[int]:
        """Positions in the batch for the examples: own class frequent and partner's rare before the others."""
        number = [GROUPS.index(row.group) for row in self.classes]
        own = batch.target.tolist()
        other = own if batch.partner is None else batch.partner.target.tolist()
        keys = [(own[i] == other[i], number[own[i]] - number[other[i]], i) for i in range(len(own))]
        return [i for _, _, i in sorted(keys)][:EXAMPLES]


def remake(model: Model, data: Prepared, classes: list[ClassRow]) -> Remade:
    """The batches of a finished run; RunError where its saliency maps came from outside or differ."""
    config, method = model.config, model.method
    views = build_views(config, data)
    described = read_json(model.folder / "run.json")
    if "saliency" in described:
        raise RunError(f"The salient peaks came from {described['saliency']}, which the folder does not keep.")
    peaks = find_peaks(config, data, method, views, None, Silent())
    if digest(peaks) != described.get("peaks"):
        raise RunError("The salient peaks that are found now are not those of the run.")
    device = next(method.parameters()).device
    train = data.train.to(device)
    loader = build_loader(config, train, method, views, peaks=peaks)
    return Remade(model, data, classes, loader)


def label_bars(title: str, label: Tensor, classes: list[ClassRow], most: int = 4) -> Bars:
    """The largest weights of a label (C,)."""
    weights = label.double().cpu()
    order = torch.argsort(weights, descending=True, stable=True)[:most].tolist()
    rows = [(classes[k], float(weights[k])) for k in order if float(weights[k]) >= 0.005]
    return Bars(title, rows, max(0.0, 1 - sum(weight for _, weight in rows)))
