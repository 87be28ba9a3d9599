"""``data.*``: which images, and which long tail is cut from them."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from longtail.settings import Settings

DATA_NAMES = ("scenes", "cifar10", "cifar100", "fashion-mnist", "npz", "arrays")


class DataSettings(Settings):
    """``data.*``: which images, and which long tail is cut from them."""

    name: str
    path: str | None = None
    imbalance: float | None = Field(None, ge=1)
    profile: Literal["exp", "step"] = "exp"
    subset_seed: int = Field(0, ge=0, lt=2**32)
    val: int = Field(0, ge=0)
    groups: tuple[int, int] = (100, 20)
    download: bool = False
    allow_empty: bool = False

    @field_validator("path")
    @classmethod
    def _from_anywhere(cls, value: str | None) -> str | None:
        # A run's config.yaml repeats it from any working directory.
        return None if value is None else str(Path(value).expanduser().absolute())

    @field_validator("groups")
    @classmethod
    def _ordered(cls, value: tuple[int, int]) -> tuple[int, int]:
        if not value[0] >= value[1] >= 0:
            raise ValueError("must be [many above this count, few below this count], e.g. [100, 20]")
        return value
