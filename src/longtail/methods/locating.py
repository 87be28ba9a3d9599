"""Where a batch's images are cut or erased: the peak of a saliency detector, by name."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from longtail.errors import DivergedError
from longtail.methods.base import Batch, Progress
from longtail.models.network import Network
from longtail.saliency import image_centers, peak, random_centers
from longtail.saliency.detectors import DETECTORS
from longtail.saliency.model import attention_modules


@dataclass(frozen=True)
class Located:
    """Peaks (B, 2) int64, row and column in the first view, and how many images were forwarded to find them."""

    peaks: Tensor
    forwarded: int = 0


@dataclass(frozen=True)
class Locator:
    """Finds the salient peak of each image of a batch by the detector's name.

    ``given`` says that the maps come from outside, whatever the detector is called. Detectors that depend on the image
    alone were run once per data set, and their peaks come with the batch; the others are asked here.
    """

    detector: str
    given: bool = False

    def check(self, network: Network) -> None:
        """Raise ConfigError if the detector cannot be had of this network: attention of one that has none."""
        if not self.given and self.detector == "attention-rollout":
            attention_modules(network)

    @property
    def wanted(self) -> str | None:
        """The detector whose peaks the batch has to bring along, or None (see DataNeeds.detector)."""
        if self.given:
            return "given"
        return self.detector if DETECTORS[self.detector].kind in ("image", "masks") else None

    def __call__(self, network: Network, batch: Batch, at: Progress, purpose: str = "saliency") -> Located:
        images = batch.views[0]
        count, size = len(batch.target), (images.shape[-2], images.shape[-1])
        if self.wanted is not None:
            assert batch.peaks is not None, "the loader brings the peaks that the method declares"
            return Located(batch.peaks.to(images.device))
        entry = DETECTORS[self.detector]
        if entry.network_maps is not None:
            maps = entry.network_maps(network, images, batch.own(batch.target))
            # Of the whole batch, so that a fault is one of every process.
            if not bool(batch.in_full(torch.isfinite(maps).flatten(1).all(dim=1).byte()).all()):
                raise DivergedError(
                    f"The saliency maps of '{self.detector}' are not finite in step {at.step}.", hint="Lower optim.lr."
                )
            # A random one of equal peaks: coarse maps tie over whole cells, and one of zeros would mean the corner.
            drawn = torch.randint(2**62, (count,), generator=at.generator(purpose))
            return Located(batch.in_full(peak(maps, drawn=batch.own(drawn))), count)
        if self.detector == "random":
            return Located(random_centers(count, size, at.generator(purpose)).to(images.device))
        return Located(image_centers(count, size).to(images.device))
