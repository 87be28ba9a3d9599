"""The square in the middle of an image, at the size that a run looks at."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

# Bounds the float copies to some tens of megabytes, whatever the size of the images.
_PIXELS = 1024 * 32 * 32


def middle_square(images: Tensor, size: int, share: float = 1.0) -> Tensor:
    """uint8 images (N, 3, H, W) as (N, 3, size, size): the short side by antialiased bilinear, then the center.

    The square is ``share`` of the short side: with 0.875 it is brought to 256 pixels and 224 of them are kept. Images
    that have the size already are taken as they are.
    """
    height, width = images.shape[2:]
    if (height, width) == (size, size):
        return images.contiguous()
    shape, window = fitting(height, width, size, share)

    def pixels(part: Tensor) -> Tensor:
        scaled = F.interpolate(part.float(), shape, mode="bilinear", antialias=True, align_corners=False)
        return scaled[window].round().clamp(0, 255).to(torch.uint8)

    return torch.cat([pixels(part) for part in torch.split(images, rows_within(_PIXELS, height, width))])


def fitting(height: int, width: int, size: int, share: float = 1.0) -> tuple[tuple[int, int], tuple[Any, ...]]:
    """The shape to scale to so that the short side is ``size / share``, and the middle window of ``size`` in it."""
    short = size if (height, width) == (size, size) else max(size, round(size / share))
    scale = short / min(height, width)
    shape = (max(short, round(height * scale)), max(short, round(width * scale)))
    rows, columns = ((side - size) // 2 for side in shape)
    return shape, (..., slice(rows, rows + size), slice(columns, columns + size))


def rows_within(pixels: int, height: int, width: int) -> int:
    """How many images of this size have about so many ``pixels``, at least one."""
    return max(1, pixels // (height * width))
