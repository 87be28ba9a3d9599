"""From image files to the pixels that a step needs of them: each file is decoded once for all of its views.

This is what worker processes do. They get the names of files and the keys of the draws, and give bytes back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from longtail.data.reading.decoding import (
    BrokenImageError,
    one_large_at_a_time,
    opened,
    square_of,
    to_rgb,
    upright_size,
)
from longtail.data.reading.jpeg import Window, read_windows, windows_of
from longtail.data.reading.members import Place, fetched
from longtail.data.views.geometry import ResizedCrop
from longtail.rng import Part as Key
from longtail.rng import generator

Pixels = NDArray[np.uint8]


Square = tuple[int, float]
"""The middle square: its side, and its share of the short side (:func:`~.squares.middle_square`)."""


class Draw(NamedTuple):
    """The first stage of a view and the key of its draws."""

    stage: ResizedCrop
    key: tuple[Key, ...]


class Part(NamedTuple):
    """Some images of a batch: their files, their places in it and its size, and what is cut of each.

    ``cuts`` has a :class:`Draw` for a window that is drawn, and the :data:`Square` for the middle one; ``scaled`` is
    that of :func:`read_squares`.
    """

    files: Sequence[Place]
    places: Sequence[int]
    batch: int
    cuts: tuple[Draw | Square, ...]
    scaled: bool = False


class Cut(NamedTuple):
    """What was made of a :class:`Part`: sizes (n, 2) of the upright images, and for each cut pixels (n, 3, S, S).

    ``broken`` are the places within the part of files that could not be read, and why; what stands there is no image.
    """

    sizes: NDArray[np.int64]
    pixels: tuple[Pixels, ...]
    broken: dict[int, str]


def cut(part: Part) -> Cut:
    """Read the files of a part; nothing is raised for one that cannot be read.

    A window depends on the size of its image, which is known only once the file is opened. A row of a draw depends on
    the size in that row alone, and a keyed draw can be made again: so the whole batch is drawn here with the sizes of
    this part in their rows, and these rows are those that the main process draws once it knows all sizes.
    """
    files = [fetched(place) for place in part.files]
    sizes, broken = sizes_of(files)
    drawn = [_windows(one, part, sizes) if isinstance(one, Draw) else [one] * len(part.files) for one in part.cuts]
    made = tuple(np.zeros((len(part.files), 3, side, side), np.uint8) for side in map(_side, part.cuts))
    for row, file in enumerate(files):
        if row in broken:
            continue
        try:
            squares = read_squares(file, [places[row] for places in drawn], scaled=part.scaled)
        except BrokenImageError as error:
            broken[row] = str(error)
            continue
        for stack, square in zip(made, squares, strict=True):
            stack[row] = square
    return Cut(sizes, made, broken)


def read_squares(file: Place | bytes, places: Sequence[Window | Square], *, scaled: bool = False) -> list[Pixels]:
    """The squares (3, S, S) uint8 at ``places`` of one image file, which is decoded once.

    A window is resized bilinearly with antialiasing, by Pillow: what :meth:`ResizedCrop.apply` has, rounded to whole
    numbers twice. ``scaled`` reads a file of which windows alone are wanted by
    :func:`~longtail.data.reading.jpeg.read_windows`: in less time, to other pixels. Raises :class:`BrokenImageError`.
    """
    windows = [place for place in places if isinstance(place, Window)]
    if scaled and len(windows) == len(places) > 0:
        return [square.numpy() for square in read_windows(file, lambda height, width: windows)]
    with opened(file) as image, one_large_at_a_time(image):
        upright = to_rgb(image)
        made: dict[Window | Square, Pixels] = {}
        for place in places:
            if place not in made:
                made[place] = _window(upright, place) if isinstance(place, Window) else _square(upright, place)
        return [made[place] for place in places]


def _window(upright: Image.Image, place: Window) -> Pixels:
    box = (place.left, place.top, place.left + place.width, place.top + place.height)
    resized = upright.crop(box).resize((place.side, place.side), Image.Resampling.BILINEAR)
    return np.asarray(resized).transpose(2, 0, 1)


def _square(upright: Image.Image, place: Square) -> Pixels:
    return square_of(upright, *place).numpy()


def _side(one: Draw | Square) -> int:
    return one.stage.size if isinstance(one, Draw) else one[0]


def sizes_of(files: Sequence[Place | bytes]) -> tuple[NDArray[np.int64], dict[int, str]]:
    """Sizes (n, 2) of the upright images by the headers of their files, 1 x 1 for those that cannot be read."""
    sizes, broken = np.ones((len(files), 2), np.int64), dict[int, str]()
    for row, file in enumerate(files):
        try:
            with opened(file) as image:
                sizes[row] = upright_size(image)
        except BrokenImageError as error:
            broken[row] = str(error)
    return sizes, broken


def _windows(draw: Draw, part: Part, sizes: NDArray[np.int64]) -> list[Window]:
    whole, rows = torch.ones(part.batch, 2, dtype=torch.int64), torch.tensor(part.places)
    whole[rows] = torch.from_numpy(sizes)
    params = draw.stage.draw(whole, generator(*draw.key))
    return windows_of({name: params[name][rows] for name in ("corner", "extent")}, draw.stage.size)


class Whole(NamedTuple):
    """Files of which the whole image is wanted: its short side at ``short`` pixels, the long one at most ``most``."""

    files: Sequence[Place]
    short: int
    most: int


def whole(asked: Whole) -> list[Pixels | str]:
    """Whole upright images (3, H, W) uint8, for detectors of saliency; for a file that cannot be read, why."""
    return [_whole(file, asked.short, asked.most) for file in asked.files]


def _whole(file: Place, short: int, most: int) -> Pixels | str:
    try:
        with opened(file) as image, one_large_at_a_time(image):
            upright = to_rgb(image)
            scale = min(short / min(upright.size), most / max(upright.size))
            width, height = (max(1, round(side * scale)) for side in upright.size)
            return np.asarray(upright.resize((width, height), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    except BrokenImageError as error:
        return str(error)


def undecodable(files: Sequence[Place]) -> dict[int, str]:
    """Which of some images cannot be decoded, by their rows, and why."""
    broken: dict[int, str] = {}
    for row, file in enumerate(files):
        try:
            with opened(file) as image, one_large_at_a_time(image):
                to_rgb(image)
        except BrokenImageError as error:
            broken[row] = str(error)
    return broken


def tensor(pixels: Pixels) -> Tensor:
    """Pixels as a tensor that owns them, without a copy where they can be written to."""
    return torch.from_numpy(np.require(pixels, requirements=["C", "W"]))
