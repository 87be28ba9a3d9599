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

from longtail.data.reading.decoding import opened, orientation, to_rgb, upright_size
from longtail.data.reading.members import Member, Place, bytes_of
from longtail.data.views.augment import Params

try:
    import simplejpeg
except ImportError:
    simplejpeg = None

REDUCTIONS = (8, 4, 2)
"""Whole divisors of the side that a JPEG decoder reaches by smaller inverse transforms, faster than by all pixels."""


class Window(NamedTuple):
    """A rectangle of an upright image, in its pixels, and the side of the square that it is resized to."""

    top: int
    left: int
    height: int
    width: int
    side: int


def windows_of(params: Params, side: int) -> list[Window]:
    """The windows that :class:`~longtail.data.views.geometry.ResizedCrop` drew, one an image, for squares of a side."""
    rows = torch.cat([params["corner"], params["extent"]], dim=1).tolist()
    return [Window(top, left, height, width, side) for top, left, height, width in rows]


def read_windows(
    source: Path | Place | bytes, windows: Callable[[int, int], Sequence[Window]], *, decoder: str | None = None
) -> list[Tensor]:
    """Windows of one image, each resized to its ``side`` by antialiased bilinear: (3, side, side) uint8.

    The file is decoded once for all windows. A JPEG is decoded at 1/2, 1/4 or 1/8 of its side where every window keeps
    at least its side in pixels. Undiminished, the result is that of ``ResizedCrop.apply`` on the whole image to one
    level of 255. Diminished, the decoder has averaged blocks of pixels before, and the edges of the window go to the
    nearest pixel of what is left, half a pixel of the result at most; of a photograph rich in detail that changes a
    pixel by a few levels in the mean.

    Args:
        source: the file, the member of a tar file or its bytes, of any format that
            :mod:`longtail.data.reading.decoding` reads.
        windows: from height and width of the upright image to the windows, all inside it.
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
        data = _content(source)
    # Outside the block, which would take an error of the caller's for damage of the file.
    wanted = windows(header.height, header.width)
    for window in wanted:
        bottom, right = window.top + window.height, window.left + window.width
        if min(window) < 0 or min(window[2:]) < 1 or bottom > header.height or right > header.width:
            raise ValueError(f"{window} does not lie in an image of {header.height} x {header.width} pixels.")
    reduction = header.reduction(wanted)
    pixels = _decode(data, header, reduction, decoder)
    return [_resized(pixels, window, reduction) for window in wanted]


def _content(source: Path | Place | bytes) -> bytes:
    if isinstance(source, bytes):
        return source
    return bytes_of(source) if isinstance(source, Member) else Path(source).read_bytes()


class _Header(NamedTuple):
    """What an image's first bytes say: its sides upright, and how the pixels are kept."""

    height: int
    width: int
    orientation: int
    format: str | None
    mode: str

    @classmethod
    def of(cls, image: Image.Image) -> _Header:
        return cls(*upright_size(image), orientation(image), image.format, image.mode)

    def reduction(self, windows: Sequence[Window]) -> int:
        """The largest reduction that leaves every window as many pixels as its square has; 1 where there is none."""
        if self.format not in ("JPEG", "MPO"):
            return 1
        most = min(min(window.height, window.width) / window.side for window in windows)
        for reduction in REDUCTIONS:
            # A turned image is counted from its other edge, which lies between diminished pixels unless it divides.
            divides = not (self.width % reduction or self.height % reduction)
            if most >= reduction and (divides or self.orientation == 1):
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


def _resized(pixels: NDArray[np.uint8], window: Window, reduction: int) -> Tensor:
    """The window (3, side, side) of pixels (H, W, 3) whose sides were divided by ``reduction``."""
    # Pillow resizes between pixels too, in four times the time.
    edges = (window.top, window.top + window.height, window.left, window.left + window.width)
    top, bottom, left, right = ((2 * edge + reduction) // (2 * reduction) for edge in edges)
    planes = torch.from_numpy(pixels[top:bottom, left:right]).permute(2, 0, 1)[None]
    return F.interpolate(planes, size=(window.side, window.side), mode="bilinear", antialias=True)[0]
