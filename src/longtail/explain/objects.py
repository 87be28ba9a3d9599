"""Does a detector's box hit the object? Measured where the data set has object masks.

Masks and boxes are of the untouched images: training carries the same peaks through crop and flip.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from longtail.data.images import ImageSet
from longtail.data.views import View
from longtail.errors import ConfigError, DataError, unknown_name
from longtail.mixing.boxes import boxes_around, boxes_to_mask, draw_beta, visible_fraction
from longtail.models.network import Network
from longtail.rng import generator
from longtail.saliency import image_centers, mask_centers, peak, random_centers
from longtail.saliency.detectors import DETECTORS

CHUNK = 256
"""Images given to a detector at once."""

EDGES: tuple[Literal["clip", "shift"], ...] = ("clip", "shift")

Groups = Mapping[str, Sequence[int]]
"""Class ids by the name of their group."""


def object_boxes(masks: Tensor) -> Tensor:
    """The smallest box around each object: bool (B, H, W) to (B, 4) int64 top, bottom, left, right (ends excluded).

    Raises DataError for an image without an object, ValueError for another type or shape.
    """
    _check_masks(masks)
    edges = []
    for lines in (masks.any(2), masks.any(1)):
        first = lines.int().argmax(1)
        edges += [first, lines.shape[1] - lines.flip(1).int().argmax(1)]
    return torch.stack(edges, dim=1)


def peak_hits(peaks: Tensor, masks: Tensor) -> Tensor:
    """Whether each peak lies on its object: (B, 2) row and column, bool (B, H, W), to (B,) bool.

    Raises DataError for an image without an object, ValueError for shapes that do not fit.
    """
    _check_masks(masks)
    if peaks.shape != (len(masks), 2):
        raise ValueError(f"peaks must be ({len(masks)}, 2) row and column, not {tuple(peaks.shape)}.")
    row, column = peaks.to(masks.device).unbind(1)
    return masks[torch.arange(len(masks), device=masks.device), row, column]


def peaks_in_boxes(peaks: Tensor, boxes: Tensor) -> Tensor:
    """Whether each peak (B, 2) lies in its box (B, 4) top, bottom, left, right (ends excluded): (B,) bool."""
    if peaks.ndim != 2 or peaks.shape[1] != 2 or boxes.shape != (len(peaks), 4):
        raise ValueError(f"peaks and boxes must be (B, 2) and (B, 4), not {tuple(peaks.shape)}, {tuple(boxes.shape)}.")
    return ((peaks >= boxes[:, ::2]) & (peaks < boxes[:, 1::2])).all(1)


def object_removed(masks: Tensor, boxes: Tensor) -> Tensor:
    """The share of each object's pixels that its box covers: bool (B, H, W), (B, 4), to (B,) float32 in [0, 1].

    Raises DataError for an image without an object, ValueError for shapes that do not fit.
    """
    _check_masks(masks)
    if boxes.shape != (len(masks), 4):
        raise ValueError(f"boxes must be ({len(masks)}, 4), not {tuple(boxes.shape)}.")
    inside = boxes_to_mask(boxes.to(masks.device), (masks.shape[1], masks.shape[2]))
    return (masks & inside).sum((1, 2)).float() / masks.sum((1, 2)).float()


def salient_peaks(
    detector: str,
    images: ImageSet,
    *,
    draws: int = 1,
    network: Network | None = None,
    view: View | None = None,
    ties: str = "first",
) -> Tensor:
    """Peaks of a detector of DETECTORS, (draws, N, 2) int64 row and column on the CPU, as SMCL would find them.

    ``network`` and the plain ``view`` that normalizes for it are those of a trained run; they are asked about the
    images' own labels. Every draw is keyed by its number. It chooses the place of "random", and among equal peaks for
    networks (as in a training step) and for ``ties`` "random"; other detectors give the same peaks in each.
    Raises ConfigError for another name or a missing network, DataError for a set without the masks that are needed.
    """
    if detector not in DETECTORS:
        raise unknown_name("detector", detector, DETECTORS)
    entry, count, size = DETECTORS[detector], len(images), (images.images.shape[2], images.images.shape[3])
    if entry.kind == "masks":
        return mask_centers(_masks_of(images)).cpu().expand(draws, -1, -1)
    if detector == "center":
        return image_centers(count, size).expand(draws, -1, -1)
    drawn = [generator("explain", "peaks", detector, draw) for draw in range(draws)]
    if detector == "random":
        return torch.stack([random_centers(count, size, own) for own in drawn])
    if entry.kind == "network" and (network is None or view is None):
        raise ConfigError(f"The detector '{detector}' asks a network.", hint="Give the network of a finished run.")
    maps = []
    for pixels, labels in zip(torch.split(images.stacked, CHUNK), torch.split(images.labels, CHUNK), strict=True):
        if entry.maps is not None:
            maps.append(entry.maps(pixels))
        elif entry.network_maps is not None and network is not None and view is not None:
            maps.append(entry.network_maps(network, view.apply(pixels, ()), labels))
    chosen = entry.kind == "network" or ties == "random"
    return torch.stack([peak(torch.cat(maps), generator=own if chosen else None).cpu() for own in drawn])


def mask_hits(images: ImageSet, peaks: Tensor, groups: Groups, *, alpha: float = 1.0) -> dict[str, dict[str, Any]]:
    """How well boxes around ``peaks`` (draws, N, 2) hit the objects, for all images and for each group of classes.

    ``peak_on_object`` and ``peak_in_object_box`` are shares of peaks. For boxes of side ratio sqrt(1 - lambda),
    lambda ~ Beta(alpha, alpha), clipped at the frame and shifted inside: means of ``object_removed`` (of the object's
    pixels) and ``area_erased`` (of all pixels). lambda is keyed by the draw, so that every detector meets the same.
    Raises DataError for a set without masks.
    """
    masks = _masks_of(images).cpu()
    size = (masks.shape[1], masks.shape[2])
    around = object_boxes(masks)
    found: dict[str, list[Tensor]] = {}
    for draw, places in enumerate(peaks):
        lam = draw_beta(len(masks), alpha, generator("explain", "lambda", draw)).float()
        seen = {"peak_on_object": peak_hits(places, masks), "peak_in_object_box": peaks_in_boxes(places, around)}
        for edge in EDGES:
            boxes = boxes_around(places, lam, size, at_edge=edge)
            seen[f"{edge}/object_removed"] = object_removed(masks, boxes)
            seen[f"{edge}/area_erased"] = 1 - visible_fraction(boxes, size)
        for name, values in seen.items():
            found.setdefault(name, []).append(values.double())
    means = {name: torch.stack(values).mean(0) for name, values in found.items()}
    hits: dict[str, dict[str, Any]] = {}
    for group, classes in {"all": range(int(images.labels.max()) + 1), **groups}.items():
        rows = torch.isin(images.labels.cpu(), torch.tensor(list(classes), dtype=torch.int64))
        if bool(rows.any()):
            own: dict[str, Any] = {"images": int(rows.sum())}
            for name, values in means.items():
                placing, _, measure = name.rpartition("/")
                (own.setdefault(placing, {}) if placing else own)[measure] = float(values[rows].mean())
            hits[group] = own
    return hits


def _masks_of(images: ImageSet) -> Tensor:
    if images.masks is None:
        raise DataError("These images have no object masks.", hint="Only the set 'scenes' has masks.")
    return images.masks


def _check_masks(masks: Tensor) -> None:
    if masks.dtype != torch.bool or masks.ndim != 3:
        kind = str(masks.dtype).removeprefix("torch.")
        raise ValueError(f"masks must be bool (B, H, W), not {kind} {tuple(masks.shape)}.")
    empty = ~masks.flatten(1).any(1)
    if bool(empty.any()):
        raise DataError(
            f"The object mask of image {int(empty.nonzero()[0])} (counted from 0) is empty.",
            hint="Leave images without an object out.",
        )
