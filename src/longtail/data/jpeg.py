"""Windows of an image file at a fixed size, decoded no larger than the windows need."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from longtail.data.augment import Params
from longtail.data.decoding import opened, orientation, to_rgb

try:
    import simplejpeg
except ImportError:
    simplejpeg = None

REDUCTIONS = (8, 4, 2)
"""Whole divisors of the side that a JPEG decoder reaches by smaller inverse transforms, faster than by all pixels."""


class Window(NamedTuple):
    """A rectangle of the upright image, in its pixels."""

    top: int
    left: int
    height: int
    width: int


def windows_of(params: Params) -> list[Window]:
    """The windows that :class:`~longtail.data.geometry.ResizedCrop` drew, one for each image."""
    rows = torch.cat([params["corner"], params["extent"]], dim=1).tolist()
    return [Window(*row) for row in rows]


def read_windows(
    source: Path | bytes, windows: Callable[[int, int], Sequence[Window]], size: int, *, decoder: str | None = None
) -> Tensor:
    """Windows of one image, each resized to ``size`` by antialiased bilinear: (V, 3, size, size) uint8.

    The file is decoded once for all windows. A JPEG is decoded at 1/2, 1/4 or 1/8 of its side where every window keeps
    at least ``size`` pixels a side. Undiminished, the result is that of ``ResizedCrop.apply`` on the whole image to one
    level of 255. Diminished, the decoder has averaged blocks of pixels before; of a photograph rich in
    detail that changes a pixel by two levels in the mean.

    Args:
        source: the file or its bytes, of any format that :mod:`longtail.data.decoding` reads.
        windows: from height and width of the upright image to the windows, all inside it.
        size: side of the result.
        decoder: "pillow" or "simplejpeg", whose pixels are the same where both were built with libjpeg-turbo; None
            and "simplejpeg" take simplejpeg where it is installed (extra ``jpeg``), for JPEGs in color that lie
            upright, and Pillow for all else.

    Raises:
        BrokenImageError: for a file that cannot be read.
        ValueError: for a window that does not lie in the image, or another decoder.
    """
    if decoder not in (None, "pillow", "simplejpeg"):
        raise ValueError(f"decoder must be pillow or simplejpeg, not {decoder}.")
    with opened(source) as image:
        header = _Header.of(image)
        data = source if isinstance(source, bytes) else source.read_bytes()
    # Outside the block, which would take an error of the caller's for damage of the file.
    wanted = windows(header.height, header.width)
    for window in wanted:
        bottom, right = window.top + window.height, window.left + window.width
        if min(window) < 0 or min(window[2:]) < 1 or bottom > header.height or right > header.width:
            raise ValueError(f"{window} does not lie in an image of {header.height} x {header.width} pixels.")
    reduction = header.reduction(wanted, size)
    pixels = _decode(data, header, reduction, decoder)
    return torch.stack([_resized(pixels, window, reduction, size) for window in wanted])


class _Header(NamedTuple):
    """What an image's first bytes say: its sides upright, and how the pixels are kept."""

    height: int
    width: int
    orientation: int
    format: str | None
    mode: str

    @classmethod
    def of(cls, image: Image.Image) -> _Header:
        turned = orientation(image)
        height, width = image.size if turned >= 5 else image.size[::-1]
        return cls(height, width, turned, image.format, image.mode)

    def reduction(self, windows: Sequence[Window], size: int) -> int:
        """The largest reduction that leaves every window ``size`` pixels a side; 1 where there is none."""
        if self.format not in ("JPEG", "MPO"):
            return 1
        least = min(min(window.height, window.width) for window in windows)
        for reduction in REDUCTIONS:
            # A turned image is counted from its other edge, which lies between diminished pixels unless it divides.
            divides = not (self.width % reduction or self.height % reduction)
            if least >= reduction * size and (divides or self.orientation == 1):
                return reduction
        return 1


def _decode(data: bytes, header: _Header, reduction: int, decoder: str | None) -> NDArray[np.uint8]:
    """Upright RGB pixels (H, W, 3), the sides divided by ``reduction`` and rounded up."""
    plain = header.format == "JPEG" and header.mode == "RGB" and header.orientation == 1
    if plain and decoder != "pillow" and simplejpeg is not None:
        sides = {"min_height": -(-header.height // reduction), "min_width": -(-header.width // reduction)}
        try:
            found: NDArray[np.uint8] = simplejpeg.decode_jpeg(data, "RGB", **sides)
            return found
        except ValueError:
            pass  # Pillow reads some files that this one refuses, and says what is wrong with the others.
    with opened(data) as image:
        if reduction > 1:
            image.draft(None, (image.width // reduction, image.height // reduction))
        return np.array(to_rgb(image))


def _resized(pixels: NDArray[np.uint8], window: Window, reduction: int, size: int) -> Tensor:
    """The window (3, size, size) of pixels (H, W, 3) whose sides were divided by ``reduction``."""
    top, left = window.top // reduction, window.left // reduction
    bottom, right = -(-(window.top + window.height) // reduction), -(-(window.left + window.width) // reduction)
    inner = pixels[top:bottom, left:right]
    if reduction == 1:
        planes = torch.from_numpy(inner).permute(2, 0, 1)[None]
        return F.interpolate(planes, size=(size, size), mode="bilinear", antialias=True)[0]
    # The edges lie between two pixels, for which Pillow has a box; it is slower, but a small part of so large a file.
    corner = (window.left / reduction - left, window.top / reduction - top)
    box = (*corner, corner[0] + window.width / reduction, corner[1] + window.height / reduction)
    resized = Image.fromarray(inner).resize((size, size), Image.Resampling.BILINEAR, box=box)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1)
