"""Sources from arrays in memory: checks on images and labels, resizing, pixel statistics."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.nn import functional as F

from longtail.data.images import ImageSet, Source
from longtail.data.reading.image_files import ImageFiles, Pixels, chunks
from longtail.data.reading.squares import fitting, middle_square, rows_within
from longtail.errors import ConfigError, DataError

SAMPLE = 2048
"""Image files of which mean and deviation of the pixels are taken."""

# Bounds the float copies of pixel_statistics and resize to some tens of megabytes.
_CHUNK = 1024
_PIXELS = _CHUNK * 32 * 32


def from_arrays(
    train_images: ArrayLike | Tensor,
    train_labels: ArrayLike | Tensor,
    *,
    val_images: ArrayLike | Tensor | None = None,
    val_labels: ArrayLike | Tensor | None = None,
    test_images: ArrayLike | Tensor | None = None,
    test_labels: ArrayLike | Tensor | None = None,
    class_names: Sequence[str] | None = None,
    name: str = "arrays",
) -> Source:
    """A source from uint8 images (N, H, W), (N, H, W, 1) or (N, H, W, 3) and labels (N,) or (N, 1).

    Gray is repeated to three channels. Without ``class_names`` the classes are 0..max(train labels). Images and
    labels are copied. Raises :class:`DataError` naming the split for anything else: another type or shape, no image,
    as many labels as images or not, labels negative, fractional, NaN or beyond the classes, several labels an image.
    """
    given: dict[str, tuple[Any, Any]] = {
        "train": (train_images, train_labels),
        "val": (val_images, val_labels),
        "test": (test_images, test_labels),
    }
    labels = {split: _labels(split, y, name) for split, (_, y) in given.items() if y is not None}
    names = _class_names(class_names, labels["train"], name)
    sets: dict[str, ImageSet] = {}
    for split, (x, y) in given.items():
        if (x is None) != (y is None):
            there, absent = ("labels", "images") if x is None else ("images", "labels")
            raise DataError(f"{name}: the {split} split has {there} but no {absent}.")
        if x is None:
            continue
        images = _images(split, x, name)
        if len(images) != len(labels[split]):
            raise DataError(f"{name}: {split} has {len(images)} images but {len(labels[split])} labels.")
        _check_range(split, labels[split], len(names), name, named=class_names is not None)
        sets[split] = ImageSet(images, torch.from_numpy(labels[split]), torch.arange(len(images)))
    sides = {split: tuple(part.images.shape[2:]) for split, part in sets.items()}
    if len(set(sides.values())) > 1:
        raise DataError(
            f"{name}: the splits differ in size: {', '.join(f'{s} {h}x{w}' for s, (h, w) in sides.items())}."
        )
    return Source(name, names, sets["train"], sets.get("val"), sets.get("test"))


def pixel_statistics(images: Pixels) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and standard deviation of each channel of ``images`` (N, 3, H, W) uint8, for pixels in [0, 1].

    Sums of integers in float64 are exact here, so neither chunks nor threads change the result. A channel without
    variance gets deviation 1: it normalizes to 0 instead of NaN. Of images in files at most SAMPLE are read, evenly
    spread over them.
    """
    if isinstance(images, ImageFiles) and len(images) > SAMPLE:
        images = images.subset(torch.arange(SAMPLE) * len(images) // SAMPLE)
    total, squares = torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    for chunk in chunks(images, rows_within(_PIXELS, *images.shape[2:])):
        values = chunk.to(torch.float64)
        total += values.sum((0, 2, 3)).cpu()
        squares += values.square().sum((0, 2, 3)).cpu()
    pixels = math.prod(images.shape) // 3
    if pixels == 0:
        raise DataError("There is no pixel to take mean and deviation of.")
    mean = total / pixels
    variance = (squares / pixels - mean.square()).clamp(min=0)
    # Half a gray level squared over all pixels is the least a channel with one differing pixel can show.
    std = torch.where(variance * pixels > 0.25, variance.sqrt() / 255, 1.0)
    m, s = (mean / 255).tolist(), std.tolist()
    return (m[0], m[1], m[2]), (s[0], s[1], s[2])


def resize(source: Source, size: int) -> Source:
    """``source`` with every image brought to ``size`` x ``size``: short side by antialiased bilinear, center crop.

    Masks follow by nearest neighbor. A source that has the size already is returned as it is.
    """
    if size < 1:
        raise ConfigError(f"data.size is {size}, but an image has at least one pixel.")

    def fit(part: ImageSet | None) -> ImageSet | None:
        return None if part is None else _resized(part, size)

    if tuple(source.train.images.shape[2:]) == (size, size):
        return source
    return Source(
        source.name,
        source.class_names,
        _resized(source.train, size),
        fit(source.val),
        fit(source.test),
        source.mean,
        source.std,
        source.background_names,
        source.notes,
    )


def _resized(part: ImageSet, size: int) -> ImageSet:
    height, width = part.images.shape[2:]
    shape, window = fitting(height, width, size)

    def mask(chunk: Tensor) -> Tensor:
        return F.interpolate(chunk[:, None].float(), shape, mode="nearest-exact")[window][:, 0] > 0.5

    images = middle_square(part.stacked, size)
    masks = None if part.masks is None else torch.cat([mask(chunk) for chunk in torch.split(part.masks, _CHUNK)])
    return ImageSet(images, part.labels, part.source_index, masks, part.backgrounds, part.ids)


def _as_array(given: Any, where: str) -> NDArray[Any]:
    try:
        return given.cpu().numpy() if isinstance(given, Tensor) else np.asarray(given)
    except (TypeError, ValueError) as error:
        raise DataError(f"{where} is no array: {error}", hint="All images of a set have one size.") from error


def _images(split: str, given: Any, name: str) -> Tensor:
    where = f"{name}: {split}_images"
    array = _as_array(given, where)
    if array.dtype != np.uint8:
        raise DataError(
            f"{where} has type {array.dtype}, not uint8.", hint="Store pixels as integers 0..255 (numpy uint8)."
        )
    if array.ndim == 3:
        array = array[..., None]
    if array.ndim != 4 or array.shape[-1] not in (1, 3):
        hint = "Expected (N, H, W) gray or (N, H, W, 3) RGB, channels last."
        raise DataError(f"{where} has shape {tuple(array.shape)}.", hint=hint)
    if 0 in array.shape:
        raise DataError(f"{where} is empty: shape {tuple(array.shape)}.")
    n, height, width, _ = array.shape
    planes = np.empty((n, 3, height, width), dtype=np.uint8)
    planes[...] = array.transpose(0, 3, 1, 2)
    return torch.from_numpy(planes)


def _labels(split: str, given: Any, name: str) -> NDArray[np.int64]:
    where = f"{name}: {split}_labels"
    array = _as_array(given, where)
    if array.ndim == 2 and array.shape[1] > 1:
        raise DataError(
            f"{where} has {array.shape[1]} columns: several labels an image (or one-hot rows) are not supported.",
            hint="Give one class number an image: shape (N,) or (N, 1).",
        )
    if array.ndim not in (1, 2):
        raise DataError(f"{where} has shape {tuple(array.shape)}.", hint="Expected (N,) or (N, 1).")
    array = array.reshape(-1)
    if len(array) == 0:
        raise DataError(f"{where} is empty.")
    if array.dtype.kind == "f":
        bad = ~np.isfinite(array) | (array != np.trunc(array))
        if bad.any():
            at = int(np.flatnonzero(bad)[0])
            raise DataError(f"{where}[{at}] is {array[at]}, not a class number.")
    elif array.dtype.kind not in "iub":
        raise DataError(
            f"{where} has type {array.dtype}, not integers.", hint="Number the classes from 0 and give class_names."
        )
    if array.min() < 0:
        at = int(array.argmin())
        raise DataError(f"{where}[{at}] is {array[at]}: classes are numbered from 0.")
    if float(array.max()) > np.iinfo(np.int32).max:
        raise DataError(f"{where}[{int(array.argmax())}] is {array.max()}, not a class number.")
    return array.astype(np.int64)


def _class_names(given: Sequence[str] | None, train: NDArray[np.int64], name: str) -> list[str]:
    if given is None:
        classes = int(train.max()) + 1
        # One stray label would otherwise make thousands of classes, each with weights and a table row.
        if classes > len(train):
            raise DataError(
                f"{name}: train_labels reach {classes - 1} with only {len(train)} images.",
                hint="Number the classes 0, 1, 2, ... without gaps, or give class_names.",
            )
        return [str(k) for k in range(classes)]
    names = [str(n) for n in given]
    repeated = [n for n, times in Counter(names).items() if times > 1]
    if repeated:
        raise DataError(f"{name}: class_names has '{repeated[0]}' twice.")
    if not names:
        raise DataError(f"{name}: class_names is empty.")
    return names


def _check_range(split: str, labels: NDArray[np.int64], classes: int, name: str, *, named: bool) -> None:
    if labels.max() < classes:
        return
    at = int(np.flatnonzero(labels >= classes)[0])
    known = f"class_names has {classes} names" if named else f"the training labels end at {classes - 1}"
    raise DataError(
        f"{name}: {split}_labels[{at}] is {labels[at]}, but {known}.",
        hint=None if named else "If a class has no training images, give class_names.",
    )
