"""One image file as RGB pixels: what is refused, how modes become RGB, which way is up."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import stat
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from longtail.data.reading.members import DamagedMemberError, Member, Place, bytes_of
from longtail.data.reading.squares import middle_square

DECODING_VERSION = 1
"""Raised when the same file gives other pixels: what older versions kept is then decoded anew."""

MAX_PIXELS = 89_478_485
"""An image of more pixels is refused before it is decoded: 256 MiB of RGB, the count from which Pillow warns."""

FORMATS = ("JPEG", "MPO", "PNG", "BMP", "DIB", "GIF", "WEBP", "TIFF", "PPM", "JPEG2000", "AVIF")
"""What is opened. Pillow knows more, some of them (EPS) run other programs."""

_LARGE = 16_000_000
_ONE_LARGE_AT_A_TIME = threading.Lock()

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATION = 0x0112


class BrokenImageError(Exception):
    """An image that cannot be read; its text is the reason, in one line."""


@contextlib.contextmanager
def quiet_pillow() -> Iterator[None]:
    """Within it Pillow's warnings (damaged EXIF and the like) are not shown. Enter it in the main thread."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def read_square(path: Path | Place, size: int, share: float = 1.0) -> Tensor:
    """The image at ``path`` as (3, size, size) uint8: :func:`~longtail.data.reading.squares.middle_square`.

    Raises :class:`BrokenImageError`.
    """
    with opened(path) as image, one_large_at_a_time(image):
        return square_of(to_rgb(image), size, share)


def square_of(image: Image.Image, size: int, share: float = 1.0) -> Tensor:
    """The middle square (3, size, size) uint8 of an RGB image."""
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    return middle_square(pixels[None], size, share)[0]


def one_large_at_a_time(image: Image.Image) -> contextlib.AbstractContextManager[object]:
    """Within it no other thread resizes a large image, which takes 12 bytes a pixel."""
    return _ONE_LARGE_AT_A_TIME if image.width * image.height > _LARGE else contextlib.nullcontext()


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Height and width of an opened image once it is upright, from its header alone."""
    turned = 5 <= orientation(image) <= 8 and image.format != "TIFF"  # of which Pillow turns the header's size too
    return (image.width, image.height) if turned else (image.height, image.width)


@contextlib.contextmanager
def opened(source: Path | Place | bytes) -> Iterator[Image.Image]:
    """An image from its file, member of a tar file, or bytes, its header read.

    Whatever goes wrong within becomes a BrokenImageError.
    """
    try:
        with (
            _stream(source) as file,
            Image.open(file, formats=_formats()) as image,
        ):
            pixels = image.width * image.height
            if pixels > MAX_PIXELS:
                raise BrokenImageError(f"{image.width} x {image.height} pixels are more than {MAX_PIXELS:,}")
            yield image
    except BrokenImageError:
        raise
    except FileNotFoundError:
        raise BrokenImageError("there is no such file") from None
    except DamagedMemberError as error:
        raise BrokenImageError(str(error)) from None
    except UnidentifiedImageError:
        raise BrokenImageError("no image of a kind that is read") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise BrokenImageError(f"more than {MAX_PIXELS:,} pixels") from None
    except OSError as error:
        raise BrokenImageError(error.strerror or _line(error)) from None
    except Exception as error:  # decoders of damaged files raise all kinds of errors
        raise BrokenImageError(_line(error)) from None


def read_pixels(image: Image.Image) -> NDArray[np.uint8]:
    """Upright RGB pixels (H, W, 3) uint8 of an opened image: :func:`to_rgb`."""
    image.load()
    return np.array(to_rgb(image))


def to_rgb(image: Image.Image) -> Image.Image:
    """The first frame of ``image``, upright by its EXIF orientation, in RGB.

    Gray is repeated; 16-bit gray v becomes round(v / 257); a transparent pixel is laid over white; palette, CMYK and
    YCbCr are converted by Pillow without color profiles, and of 16-bit color the high byte is kept. Raises
    :class:`BrokenImageError` for floating-point pixels and gray values beyond 16 bits.
    """
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.min(initial=0) < 0 or values.max(initial=0) > 65535:
            raise BrokenImageError("gray values beyond 16 bits")
        flat = Image.fromarray(((values + 128) // 257).astype(np.uint8)).convert("RGB")
    elif image.mode == "F":
        raise BrokenImageError("floating-point pixels, whose range is not known")
    elif "transparency" in image.info or image.mode in ("LA", "La", "PA", "RGBA", "RGBa"):
        over = image.convert("RGBA")
        flat = Image.alpha_composite(Image.new("RGBA", over.size, "white"), over).convert("RGB")
    else:
        flat = image.convert("RGB")
    turn = _TURNS.get(orientation(image))
    return flat if turn is None else flat.transpose(turn)


def orientation(image: Image.Image) -> int:
    """Which way the stored pixels lie, 1 to 8 by EXIF: 1 is upright, from 5 on rows and columns are exchanged."""
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # a damaged EXIF block says nothing of the pixels
        return 1


@functools.cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _stream(source: Path | Place | bytes) -> contextlib.AbstractContextManager[BinaryIO]:
    if isinstance(source, Member):
        return io.BytesIO(bytes_of(source))
    return io.BytesIO(source) if isinstance(source, bytes) else _regular(source)


@contextlib.contextmanager
def _regular(path: Path | str) -> Iterator[BinaryIO]:
    """A regular file that is not empty, opened: a pipe or a device would keep its reader waiting."""
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        raise BrokenImageError("a folder" if stat.S_ISDIR(found.st_mode) else "not a regular file")
    if found.st_size == 0:
        raise BrokenImageError("an empty file")
    with Path(path).open("rb") as file:
        yield file


def _line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text[:120] or type(error).__name__
