"""How one scene is put together: the digit enlarged, colored and laid over its crop, in integers throughout."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from longtail.errors import DataError

UInt8 = npt.NDArray[np.uint8]
Int64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]

SIDE = 32
"""Side of an image in pixels."""
CONTRAST, MERGED = 64, 12
"""A color stands out if its luma is at least 64 of 255 away from that of all but 12 % of the pixels it is drawn on."""
WHOLE = 1 << 16
"""The digits' shares of an overlap are in 65536ths: a power of two, so that no float is rounded on the way."""
FAINTEST = 48
"""Opacity in 256ths below which a pixel of the object is not drawn, so that the mask has a sharp meaning."""


class Scene(NamedTuple):
    """All that one image is made of: which digit, which pixels of which photograph, and how they are put together."""

    label: int
    digit: int  # index in scikit-learn's load_digits
    family: int
    photo: str
    top: int
    left: int
    flip: bool
    gain: int
    size: int
    row: int
    column: int
    other: int  # a digit of another class, drawn into the own one where the set overlaps
    colors: tuple[int, ...]  # candidates, 0xRRGGBB


class Material(NamedTuple):
    """What scikit-learn ships: digits (1797, 8, 8) int64 in 0..16, their labels (1797,), the photographs by name."""

    digits: Int64
    labels: Int64
    photos: dict[str, UInt8]


@functools.cache
def load_material() -> Material:
    """Digits and photographs as scikit-learn ships them; nothing is downloaded."""
    from sklearn.datasets import load_digits, load_sample_images  # half a second to import

    digits = load_digits()
    bunch = load_sample_images()
    names = [str(name).replace("\\", "/").rsplit("/", 1)[-1].removesuffix(".jpg") for name in bunch.filenames]
    photos = {name: np.asarray(image, dtype=np.uint8) for name, image in zip(names, bunch.images, strict=True)}
    for name in ("china", "flower"):
        if name not in photos or photos[name].shape != (427, 640, 3):
            raise DataError(
                f"scikit-learn's photograph '{name}.jpg' is absent or not 427x640.",
                hint="Install scikit-learn from its wheel; the scenes are cut from the photographs in it.",
            )
    return Material(digits.images.astype(np.int64), digits.target.astype(np.int64), photos)


def background(scene: Scene, material: Material) -> UInt8:
    """The crop (32, 32, 3) before the digit is drawn."""
    crop = material.photos[scene.photo][scene.top : scene.top + SIDE, scene.left : scene.left + SIDE].astype(np.int64)
    crop = crop[:, ::-1] if scene.flip else crop
    brightened: Int64 = np.minimum(crop * scene.gain + 128 >> 8, 255)
    return brightened.astype(np.uint8)


def opacity(scene: Scene, material: Material, overlap: float = 0.0) -> Int64:
    """The object's opacity (32, 32) in 0..256: that of the own digit, of which another takes the share ``overlap``.

    (1 - r) o_own + r o_other, and 0 where that is below ``FAINTEST``. A digit's o = 2 v - 1/2, clipped to [0, 1], for
    its intensity v in [0, 1], enlarged bilinearly (half-pixel centers). Both stand at the scene's place and size.
    """
    weights = _bilinear(scene.size)
    enlarged = weights @ material.digits[[scene.digit, scene.other]] @ weights.T
    full = 16 * (2 * scene.size) ** 2
    own, other = np.clip(512 * enlarged // full - 128, 0, 256)
    share = int(overlap * WHOLE)
    blended = (WHOLE - share) * own + share * other + WHOLE // 2 >> 16
    canvas = np.zeros((SIDE, SIDE), dtype=np.int64)
    canvas[scene.row : scene.row + scene.size, scene.column : scene.column + scene.size] = blended
    canvas[canvas < FAINTEST] = 0
    return canvas


def render(scene: Scene, material: Material, color: int | None = None, overlap: float = 0.0) -> tuple[UInt8, Bool]:
    """The image (32, 32, 3) and its object mask (32, 32); ``color`` 0xRRGGBB replaces the one the scene would take.

    That one is chosen under the own digit alone, so that ``overlap`` changes no color.
    """
    ground = background(scene, material).astype(np.int64)
    alpha = opacity(scene, material, overlap)
    mask = alpha > 0
    ink = _channels([legible(scene.colors, ground[opacity(scene, material) > 0]) if color is None else color])[0]
    blended = ground + ((ink - ground) * alpha[:, :, None] + 128 >> 8)
    return blended.astype(np.uint8), mask


@functools.cache
def _bilinear(size: int) -> Int64:
    """(size, 8) weights in units of 1/(2 size): source position ((2 i + 1) 8 - size) / (2 size), edges repeated."""
    weights = np.zeros((size, 8), dtype=np.int64)
    for i in range(size):
        left, right_weight = divmod((2 * i + 1) * 8 - size, 2 * size)
        weights[i, max(left, 0)] += 2 * size - right_weight
        weights[i, min(left + 1, 7)] += right_weight
    return weights


def _channels(colors: Sequence[int]) -> Int64:
    return np.array([(color >> 16, color >> 8 & 255, color & 255) for color in colors], dtype=np.int64)


def legible(colors: Sequence[int], under: Int64) -> int:
    """The first color that stands out from the pixels ``under`` (P, 3) it is drawn on, else the one that does it best.

    White and black stand at the end of the list, for crops on which no random color can be read.
    """
    luma = np.array([77, 150, 29], dtype=np.int64)
    pool = [*colors, 0xFFFFFF, 0x000000]
    distance = np.sort(np.abs((_channels(pool) @ luma)[:, None] - (under @ luma)[None, :]), axis=1)
    worst = distance[:, under.shape[0] * MERGED // 100]
    enough = np.flatnonzero(worst >= CONTRAST * 256)
    return pool[int(enough[0] if enough.size else np.argmax(worst))]
