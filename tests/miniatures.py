"""Miniatures of the large lists: their layouts and class counts, with a few tiny JPEG files of mixed sizes a class."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from longtail.rng import numpy_generator
from pictures import lines

CLASSES = {"imagenet-lt": 1000, "places-lt": 365, "inat18": 8142}
SIDES = ((40, 52), (52, 40), (36, 36), (48, 90))
"""Heights and widths, in turn."""

_REALMS = ("Plantae", "Insecta", "Aves", "Fungi")


def names(data: str, k: int) -> dict[str, str]:
    """How the public lists name the image ``{n}`` of class ``k``, by split."""
    if data == "imagenet-lt":
        folder = f"n{1440764 + 7 * k:08d}"
        own = f"train/{folder}/{folder}_{{n}}.JPEG"
        return {"train": own, "val": own, "test": f"val/{folder}/ILSVRC2012_val_{k:05d}{{n:03d}}.JPEG"}
    if data == "places-lt":
        own = f"train/scene_{k:03d}/{{n:08d}}.jpg"
        return {"train": own, "val": own, "test": f"val/scene_{k:03d}/Places365_val_{k:05d}{{n:03d}}.jpg"}
    own = f"train_val2018/{_REALMS[k % len(_REALMS)]}/{k}/{{n:032x}}.jpg"
    return {"train": own, "val": own}


def list_name(data: str, split: str) -> str:
    stem = {"imagenet-lt": "ImageNet_LT", "places-lt": "Places_LT", "inat18": "iNaturalist18"}[data]
    return f"{stem}_{split}.txt"


def counts(classes: int, most: int) -> list[int]:
    """Two training images a class, and up to ``most`` of the first ones."""
    return [max(2, most - k) for k in range(classes)]


def miniature(root: Path, data: str, *, classes: int | None = None, most: int = 6, as_json: bool = False) -> Path:
    """Write lists and images; one image a class for val and, where the set has a test list, for test."""
    classes = CLASSES[data] if classes is None else classes
    rows: dict[str, list[tuple[str, int]]] = {}
    for split, label, name in _images(data, counts(classes, most)):
        rows.setdefault(split, []).append((name, label))
        _picture(root / name, 10 * len(rows[split]) + list(names(data, 0)).index(split), label)
    for split, listed in rows.items():
        if as_json:
            _write_json(root / f"{split}2018.json", listed, classes)
        else:
            lines(root / list_name(data, split), [f"{name} {label}" for name, label in listed])
    return root


def _images(data: str, amounts: list[int]) -> Iterator[tuple[str, int, str]]:
    for k, amount in enumerate(amounts):
        first = {"train": 0, "val": amount, "test": 0}
        for split, name in names(data, k).items():
            for n in range(amount if split == "train" else 1):
                yield split, k, name.format(n=first[split] + n)


def _picture(file: Path, seed: int, label: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    draw = numpy_generator(seed, "miniature")
    height, width = SIDES[seed % len(SIDES)]
    small = draw.integers(0, 200, (5, 5, 3)) + np.array([label % 56, label // 56 % 56, label % 13 * 4])
    Image.fromarray(small.astype(np.uint8)).resize((width, height)).save(file, "JPEG", quality=80)


def _write_json(file: Path, listed: list[tuple[str, int]], classes: int) -> None:
    content = {
        "images": [{"id": i, "file_name": name, "width": 1, "height": 1} for i, (name, _) in enumerate(listed)],
        "annotations": [{"id": i, "image_id": i, "category_id": label} for i, (_, label) in enumerate(listed)],
        "categories": [{"id": k, "name": f"species {k}"} for k in range(classes)],
    }
    file.write_text(json.dumps(content))
