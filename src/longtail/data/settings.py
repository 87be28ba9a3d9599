"""``data.*``: which images, and which long tail is cut from them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from longtail.errors import ConfigError
from longtail.settings import AbsolutePath, Settings

DATA_NAMES = ("scenes", "cifar10", "cifar100", "fashion-mnist", "npz", "arrays")


WITHOUT_PATH = ("scenes", "arrays")


class DataSettings(Settings):
    """``data.*``: which images, and which long tail is cut from them."""

    name: str
    """Which data set: one of the presets."""
    path: AbsolutePath | None = None
    """The file or folder with the images."""
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
    groups: tuple[int, int] = (100, 20)
    """Many-shot above the first count of training images, few-shot below the second."""
    size: int | None = Field(None, ge=8, le=1024)
    """Resize the images to this many pixels; null keeps their own."""
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


def check_complete(settings: DataSettings) -> None:
    """Raise ConfigError where there is no ``data.path`` to read from, or a key that the data set has no use for."""
    if settings.path is None and settings.name not in WITHOUT_PATH:
        raise ConfigError(
            f"'{settings.name}' needs data.path.", hint="Say where the images are: data.path=FILE_OR_FOLDER"
        )
    if settings.size is not None and settings.name in WITHOUT_PATH:
        raise ConfigError(f"data.size resizes images that are read; those of '{settings.name}' have their size.")
    if settings.overlap and settings.name != "scenes":
        raise ConfigError(
            f"data.overlap blends the digits of the scenes; '{settings.name}' has none.",
            hint="Leave it out, or take data.name=scenes.",
        )
