"""X and y as scikit-learn hands them over, turned into the images and labels of a run."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.utils import assert_all_finite, check_consistent_length, column_or_1d
from torch import Tensor

from longtail.errors import ConfigError, DataError
from longtail.prediction.predict import as_uint8


def are_pictures(X: Any) -> bool:
    """Whether X is a list of images, paths or single arrays, rather than one array."""
    first = X[0] if isinstance(X, list | tuple) and X else None
    return isinstance(first, str | Path | Image.Image | Tensor) or (isinstance(first, np.ndarray) and first.ndim > 1)


def holds_rows(X: Any, image_shape: Any) -> bool:
    """Whether X is to be checked as scikit-learn checks a table: rows of pixels, or what is no image at all."""
    if image_shape is None or are_pictures(X):
        return False
    return (X.ndim if hasattr(X, "ndim") else np.asarray(X).ndim) not in (3, 4)


def listed(X: Any) -> Any:
    """A vector of paths or PIL images, as cross-validation makes it, as a list; anything else as one array."""
    if isinstance(X, Tensor) or are_pictures(X):
        return X
    array = np.asarray(X)
    return array.tolist() if array.ndim == 1 and array.dtype.kind in "OU" else array


def checked_labels(X: Any, y: Any) -> NDArray[Any]:
    """y as a vector (N,) with a label for each of X; raises ValueError, as scikit-learn words it, for anything else."""
    if y is None:
        raise DataError("A classifier needs labels to learn from, but y is None.")
    labels: NDArray[Any] = column_or_1d(y, warn=True)
    assert_all_finite(labels, input_name="y")
    check_consistent_length(X, labels)
    return labels


def fitted_range(asked: Any, X: Any) -> tuple[float, float] | None:
    """``pixel_range`` as numbers, those of the training images where it is "training".

    Raises ConfigError for what is no range, DataError where X is no array that it could be the range of.
    """
    if asked is None:
        return None
    _refuse_range_of_pictures(X)
    if isinstance(asked, str) and asked == "training":
        low, high = float(X.min()), float(X.max())
        return low, high if high > low else low + 1
    try:
        low, high = (float(end) for end in asked)
    except (TypeError, ValueError):
        low = high = math.nan
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ConfigError(
            f"pixel_range={asked!r} is no range of values.",
            hint="(0, 16) for values from 0 to 16, 'training', or None.",
        )
    return low, high


def as_images(X: Any, size: int | None, shape: Any, pixel_range: tuple[float, float] | None) -> Tensor:
    """Any X that an estimator takes as uint8 images (N, 3, size, size); ``size`` None keeps their own.

    ``shape`` is the estimator's ``image_shape``. Values v become (v - low) / (high - low), cut to [0, 1], where there
    is a range. Raises DataError for what are no images.
    """
    if are_pictures(X):
        if pixel_range is not None:
            _refuse_range_of_pictures(X)
        return as_uint8(X, size)
    array = X
    if pixel_range is not None:
        low, high = pixel_range
        array = np.asarray(array, dtype=np.float64)
        if not np.isfinite(array).all():
            raise DataError("X holds values that are not finite.")
        array = np.clip((array - low) / (high - low), 0, 1)
    if array.ndim == 2:
        array = _unflattened(np.asarray(array), shape)
    return as_uint8(array, size)


def _refuse_range_of_pictures(X: Any) -> None:
    if are_pictures(X):
        raise DataError(
            "pixel_range is of arrays, and X is a list of images, which have 256 levels.", hint="Leave pixel_range out."
        )


def _unflattened(rows: NDArray[Any], shape: Any) -> NDArray[Any]:
    """Rows (N, F) as images (N, H, W, 1 or 3); raises DataError where they do not fill the shape."""
    many, values = rows.shape
    if shape is None:
        raise DataError(
            f"X is {many} rows of {values} numbers, not images (N, H, W, 3) or (N, H, W).",
            hint="If a row is an image, say of which shape: image_shape=(H, W) or (H, W, 3).",
        )
    if isinstance(shape, str) and shape == "square":
        side = math.isqrt(values - 1) + 1
        return np.pad(rows, ((0, 0), (0, side * side - values))).reshape(many, side, side, 1)
    sides = tuple(shape) if isinstance(shape, tuple | list) else ()
    if len(sides) not in (2, 3) or not all(isinstance(side, int | np.integer) and side > 0 for side in sides):
        raise ConfigError(f"image_shape={shape!r} is no shape.", hint="(H, W), (H, W, 3), 'square' or None.")
    if math.prod(sides) != values:
        raise DataError(f"A row of X has {values} values, but image_shape={shape} has {math.prod(sides)}.")
    return rows.reshape(many, *sides[:2], *(sides[2:] or (1,)))
