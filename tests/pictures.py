"""Small image files, and folders, lists and CSV files of them."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from longtail.data.settings import DataSettings
from longtail.rng import numpy_generator

SIZE = 8


def picture(path: Path, seed: int = 0, *, height: int = 12, width: int = 10, **more: Any) -> Path:
    """An image of noise, of its own for every ``seed``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = numpy_generator(seed, "picture").integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path, **more)
    return path


def folder(root: Path, **splits: Sequence[int]) -> Path:
    """``root/SPLIT/CLASS/N.png`` with so many images of the classes a, b, c, ...; no two images are alike."""
    for split, counts in splits.items():
        for k, count in enumerate(counts):
            for n in range(count):
                seed = 1 + n + 100 * k + 10_000 * ("train", "val", "test").index(split)
                picture(root / split / "abcdefghij"[k] / f"{n}.png", seed)
    return root


def lines(path: Path, rows: Iterable[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
    return path


def table(path: Path, rows: Iterable[Sequence[object]], header: Sequence[str] = ("image", "label")) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def pictures(root: Path, count: int) -> list[str]:
    """``0.png``, ``1.png``, ... below ``root``."""
    return [picture(root / f"{n}.png", n).name for n in range(count)]


def settings(name: str, path: Path, **more: Any) -> DataSettings:
    return DataSettings(**({"name": name, "path": str(path), "size": SIZE} | more))
