"""What passes between data and methods: a batch, what a method needs of it, and where training stands."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from longtail.processes.sharing import Shares
from longtail.rng import generator


@dataclass(frozen=True)
class Batch:
    """One step's images: ``views``, each (B, 3, H, W) float32 normalized; ``target`` (B,) int64; ``index`` (B,) int64,
    positions in the training set; ``partner``, a second batch of B images drawn by the method's partner sampler;
    ``peaks`` (B, 2) int64, row and column of each image's salient peak in ``views[0]``, where the method wants it.

    With ``shares`` the views are those of some of the B images, the share of this process; all else is of the batch.
    """

    views: tuple[Tensor, ...]
    target: Tensor
    index: Tensor
    partner: Batch | None = None
    peaks: Tensor | None = None
    shares: Shares | None = None

    def own(self, values: Tensor) -> Tensor:
        """Of values (B, ...) of the batch those of the images that are in ``views``, (b, ...)."""
        return values if self.shares is None else values[self.shares.rows]

    def in_full(self, values: Tensor) -> Tensor:
        """Values (b, ...) of the images in ``views`` as values (B, ...) of the batch."""
        return values if self.shares is None else self.shares.in_full(values)


@dataclass(frozen=True)
class DataNeeds:
    """The views a method wants of each image, by role (a key of ``views.*``), and how its partners are drawn.

    A method gets exactly this: a view that is not declared is not made. ``partner_labels`` asks for partners of which
    the labels alone are used, so that no view of theirs is made. ``detector`` names the saliency detector whose peaks
    are found once per data set, and follow the first view of an image and of its partner; ``saliency_maps`` is a file
    of maps in its place, ``ties`` says which of equal peaks counts. ``beta`` is that of the samplers by effective
    numbers.
    """

    views: tuple[str, ...] = ("classification",)
    sampler: str = "shuffle"
    partner_views: tuple[str, ...] = ()
    partner_sampler: str = "class_balanced"
    partner_labels: bool = False
    detector: str | None = None
    saliency_maps: str | None = None
    ties: str = "first"
    beta: float = 0.9999

    @property
    def partner(self) -> bool:
        """Whether any step uses partners."""
        return self.partner_labels or bool(self.partner_views)


@dataclass(frozen=True)
class Progress:
    """Where training stands: all that a schedule or a draw may depend on. Steps and epochs count from 0."""

    step: int
    epoch: int
    epochs: int
    seed: int

    def generator(self, purpose: str) -> torch.Generator:
        """A generator for one purpose in this step."""
        return generator(self.seed, purpose, self.step)
