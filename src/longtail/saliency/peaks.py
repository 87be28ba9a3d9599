"""From a map to the pixel a box is put around: peaks, and the centers that stand in for them in an ablation."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from longtail.errors import DataError


def peak(maps: Tensor, *, generator: torch.Generator | None = None, drawn: Tensor | None = None) -> Tensor:
    """Row and column of the largest value of each map: the first in raster order, or one of the equals at random.

    The brightest and the darkest spot of an image always tie in a map of
    :func:`longtail.saliency.fine_grained`; raster order then prefers the upper one.

    Args:
        maps: (B, H, W), finite.
        generator: CPU generator for a uniform choice among the largest, one draw a map; none for the first.
        drawn: (B,) int64 from 0 to 2^62 - 1, in the place of what the generator would draw.

    Returns:
        (B, 2) int64 row and column on the device of ``maps``.

    Raises:
        ValueError: on another shape.
        DataError: where a map has NaN or infinite values, or no pixels.
    """
    _check_maps(maps)
    count, height, width = maps.shape
    flat = maps.flatten(1)
    if count == 0:
        return torch.zeros(0, 2, dtype=torch.int64, device=maps.device)
    largest = flat == flat.amax(1, keepdim=True)
    nth = torch.zeros(count, dtype=torch.int64)
    if generator is not None:
        # An integer, because not every device has the float64 that a fraction of many ties needs.
        nth = torch.randint(2**62, (count,), generator=generator)
    if drawn is not None:
        nth = drawn
    nth = nth.to(maps.device).remainder(largest.sum(1))[:, None]
    position = torch.arange(height * width, device=maps.device)
    chosen = largest & (largest.cumsum(1) == nth + 1)
    found = torch.where(chosen, position, 0).sum(1)
    return _row_column(found, width)


def random_centers(count: int, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """``count`` pixels drawn uniformly from an image of ``size`` (H, W): (count, 2) int64 row and column on the CPU."""
    height, width = _check_size(size)
    return _row_column(torch.randint(height * width, (count,), generator=generator), width)


def image_centers(count: int, size: tuple[int, int]) -> Tensor:
    """The pixel (H // 2, W // 2) of images of ``size`` (H, W), ``count`` times: (count, 2) int64 on the CPU."""
    height, width = _check_size(size)
    return torch.tensor([height // 2, width // 2]).repeat(count, 1)


def mask_centers(masks: Tensor) -> Tensor:
    """Centroid of the true pixels of each mask, rounded to the nearest pixel (halves up).

    It may lie off the object where that is hollow or in parts. A mask without a true pixel has the image's center.

    Args:
        masks: bool (B, H, W).

    Returns:
        (B, 2) int64 row and column on the device of ``masks``.

    Raises:
        ValueError: on another type or shape, or masks without pixels.
    """
    if masks.dtype != torch.bool or masks.ndim != 3:
        kind = str(masks.dtype).removeprefix("torch.")
        raise ValueError(f"masks must be bool (B, H, W), not {kind} {tuple(masks.shape)}.")
    height, width = _check_size((masks.shape[1], masks.shape[2]))
    area = masks.sum((1, 2))
    moments = [
        (masks.sum(2) * torch.arange(height, device=masks.device)).sum(1),
        (masks.sum(1) * torch.arange(width, device=masks.device)).sum(1),
    ]
    # floor(moment / area + 1/2) in integers.
    centers = [torch.div(2 * moment + area, 2 * area.clamp_min(1), rounding_mode="floor") for moment in moments]
    middle = image_centers(len(masks), (height, width)).to(masks.device)
    return torch.where(area[:, None] > 0, torch.stack(centers, dim=1), middle)


def maps_from_masks(masks: Tensor) -> Tensor:
    """Maps that fall with the distance from the center of each mask, so that :func:`peak` is :func:`mask_centers`.

    ::

        map = 1 - |pixel - center| / sqrt(H^2 + W^2)

    Args:
        masks: bool (B, H, W).

    Returns:
        float32 (B, H, W) in [0, 1] on the device of ``masks``.

    Raises:
        ValueError: on another type or shape, or masks without pixels.
    """
    row, column = mask_centers(masks)[:, :, None].unbind(1)
    height, width = masks.shape[1:]
    rows = (torch.arange(height, device=masks.device) - row).to(torch.float32)
    columns = (torch.arange(width, device=masks.device) - column).to(torch.float32)
    return 1.0 - torch.hypot(rows[:, :, None], columns[:, None, :]) / math.hypot(height, width)


def _row_column(position: Tensor, width: int) -> Tensor:
    return torch.stack((torch.div(position, width, rounding_mode="floor"), position.remainder(width)), dim=1)


def _check_size(size: tuple[int, int]) -> tuple[int, int]:
    height, width = size
    if height < 1 or width < 1:
        raise ValueError(f"an image of {height} x {width} pixels has no center.")
    return height, width


def _check_maps(maps: Tensor) -> None:
    if maps.ndim != 3:
        raise ValueError(f"maps must be (B, H, W), not {tuple(maps.shape)}.")
    count, height, width = maps.shape
    where = f"of a batch of {count} (counted from 0)"
    if count and not height * width:
        raise DataError(
            f"Saliency map 0 {where} has no pixels: {height} x {width}.",
            hint="Give one value per pixel of the image, maps (B, H, W).",
        )
    wrong = ~torch.isfinite(maps)
    if not bool(wrong.any()):
        return
    row = int(wrong.flatten(1).any(1).nonzero()[0])
    what = "NaN" if bool(maps[row].isnan().any()) else "infinite"
    raise DataError(
        f"Saliency map {row} {where} has {what} values, {int(wrong[row].sum())} of {height * width}.",
        hint="Mend the file or the function the maps come from; maps of a network are not finite once its weights are "
        "not. fine_grained and spectral_residual need no network.",
    )
