"""``data.*``: which images, and which long tail is cut from them."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import Field, field_validator

from longtail.errors import ConfigError
from longtail.settings import AbsolutePath, Settings

BIG = ("imagenet-lt", "places-lt", "inat18")
"""Data sets whose public lists are known, of more images than fit into memory."""

FILES = ("folder", "list", "csv", *BIG)
"""Data sets of image files."""

DATA_NAMES = ("scenes", "cifar10", "cifar100", "fashion-mnist", "npz", "arrays", *FILES)

_RATIOS = (50, 25, 10, 5, 2)
ALL_PROFILES = (*(f"forward-{ratio}" for ratio in _RATIOS), "uniform", *(f"backward-{r}" for r in reversed(_RATIOS)))
"""The test distributions of LADE and SADE (arXiv 2012.00321, 2107.09249), from like training to the opposite."""

KINDS = {".csv": "csv", ".txt": "list", ".lst": "list", ".list": "list", ".npz": "npz"}
"""What a file of images is taken for by its name; ``data.name`` says otherwise."""

WITHOUT_PATH = ("scenes", "arrays")

HELD_OUT = 0.2
"""Share of each class that is held out and reported where a source has neither test nor val."""


class DataSettings(Settings):
    """``data.*``: which images, and which long tail is cut from them."""

    name: str
    """Which data set: one of the presets."""
    path: AbsolutePath | None = None
    """The file or folder with the images."""
    root: AbsolutePath | None = None
    """The folder that paths of a list or CSV file are relative to; null is the file's own."""
    val_path: AbsolutePath | None = None
    """A list or CSV file of val images."""
    test_path: AbsolutePath | None = None
    """A list or CSV file of test images."""
    image_column: str = "image"
    """The column of a CSV file that has the paths."""
    label_column: str = "label"
    """The column of a CSV file that has the labels."""
    split_column: str | None = None
    """The column of a CSV file that says train, val or test; null is that all rows are training images."""
    on_error: Literal["stop", "skip"] = "stop"
    """What to do with image files that cannot be read: refuse to start, or leave them out."""
    imbalance: float | None = Field(None, ge=1)
    """Images of the largest over those of the smallest class, to be cut; null keeps what is there."""
    profile: Literal["exp", "step"] = "exp"
    """How class counts fall: exponentially, or a first half at full size and a second at the smallest."""
    subset_seed: int = Field(0, ge=0, lt=2**32)
    """Which images the long tail keeps; apart from the seed of training."""
    overlap: float = Field(0.0, ge=0, lt=1)
    """Share of a digit of another class in every image of the scenes."""
    val: int = Field(0, ge=0)
    """Images a class kept from training to select on."""
    held_out: float = Field(HELD_OUT, ge=0, lt=1)
    """Share of each class held out and reported where there is neither test nor val; 0 reports the training images."""
    groups: tuple[int, int] = (100, 20)
    """Many-shot above the first count of training images, few-shot below the second."""
    test_profile: tuple[str, ...] = ()
    """Test distributions to report accuracy under: uniform, forward-R, backward-R (R: 1 or more), or all."""
    size: int | None = Field(None, ge=8, le=1024)
    """Resize the images to this many pixels; null keeps their own."""
    stream: Literal["auto"] | bool = "auto"
    """Read image files when they are needed, not all at the start: auto does where they would take more than 4 GB."""
    decoding: Literal["whole", "scaled"] = "whole"
    """Of streamed files, for crops in training: whole; or a JPEG no larger than needed, faster, with other pixels."""
    center_crop: float = Field(1.0, gt=0, le=1)
    """Of streamed files: the middle square that is evaluated, as a share of the short side: 0.875 is 224 of 256."""
    download: bool = False
    """Fetch the data set into data.path if it is not there."""
    allow_empty: bool = False
    """Accept classes without a training image."""

    @field_validator("groups")
    @classmethod
    def _ordered(cls, value: tuple[int, int]) -> tuple[int, int]:
        if not value[0] >= value[1] >= 0:
            raise ValueError("must be [many above this count, few below this count], e.g. [100, 20]")
        return value

    @field_validator("test_profile", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        if value == "all":
            return ALL_PROFILES
        return (value,) if isinstance(value, str) else value

    @field_validator("test_profile")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            direction, dash, ratio = name.partition("-")
            ratio_fits = bool(re.fullmatch(r"[0-9]{1,9}(\.[0-9]+)?", ratio)) and float(ratio) >= 1
            if name != "uniform" and not (direction in ("forward", "backward") and dash and ratio_fits):
                raise ValueError(
                    "must be uniform, forward-R or backward-R with R of 1 or more, or all: e.g. forward-50"
                )
        return value


def check_complete(settings: DataSettings) -> None:
    """Raise ConfigError where there is no ``data.path`` to read from, or a key that the data set has no use for."""
    if settings.path is None and settings.name not in WITHOUT_PATH:
        raise ConfigError(
            f"'{settings.name}' needs data.path.", hint="Say where the images are: data.path=FILE_OR_FOLDER"
        )
    if settings.size is not None and settings.name in WITHOUT_PATH:
        raise ConfigError(f"data.size resizes images that are read; those of '{settings.name}' have their size.")
    _check_files(settings)
    if settings.overlap and settings.name != "scenes":
        raise ConfigError(
            f"data.overlap blends the digits of the scenes; '{settings.name}' has none.",
            hint="Leave it out, or take data.name=scenes.",
        )


_OF_TABLES = ("root", "val_path", "test_path")
_OF_CSV = ("image_column", "label_column", "split_column")


def _check_files(settings: DataSettings) -> None:
    """Raise ConfigError for keys of files that the data set has no use for, or a set of files without a size."""
    of_files = ("on_error", "stream", "center_crop", "decoding")
    for keys, names in ((of_files, FILES), (_OF_TABLES, ("list", "csv", *BIG)), (_OF_CSV, ("csv",))):
        given = [key for key in keys if getattr(settings, key) != DataSettings.model_fields[key].default]
        if given and settings.name not in names:
            raise ConfigError(f"data.{given[0]} is for data.name={' or '.join(names)}, not '{settings.name}'.")
    if settings.name not in FILES:
        return
    if settings.size is None:
        raise ConfigError("Image files differ in size, so data.size is needed.", hint="The presets have one.")
    if settings.stream is False and settings.center_crop != 1:
        raise ConfigError("data.center_crop is for files that are read when they are needed, and data.stream is false.")
    if settings.stream is False and settings.decoding != "whole":
        raise ConfigError("data.decoding is for files that are read when they are needed, and data.stream is false.")
    if settings.download:
        raise ConfigError("data.download: images of your own have no place to be downloaded from.")
    if settings.split_column is not None and (settings.val_path or settings.test_path):
        raise ConfigError("data.split_column and data.val_path or data.test_path exclude each other.")
