"""The embedded set ``scenes``: handwritten digits on crops of two photographs, with a bias planted in the backgrounds.

scikit-learn ships 1797 real handwritten digits (8x8, UCI optdigits) and two photographs. A scene is one digit drawn in
one color on a 32x32 crop of one of eight regions, the *background families*. Frequent classes are seen on every
family, rare ones on one or two, while validation and test show every class on every family equally often: the bias
that SMCL (arXiv 2406.02223) speaks of, with the object mask and the family of every image known.

All arithmetic is on integers and all draws are raw words of PCG64, a stream that NumPy guarantees (NEP 19); it does not
guarantee those of ``Generator.integers`` or ``shuffle``. What is left to chance between machines is the JPEG decoder.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from longtail.data.images import ImageSet, Source
from longtail.data.longtail import class_counts
from longtail.data.sources.scene_rendering import SIDE, Material, Scene, load_material, render
from longtail.errors import ConfigError, DataError
from longtail.rng import numpy_generator

Split = Literal["train", "val", "test"]
Rectangle = tuple[str, int, int, int, int]

CLASS_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
N_MAX = 250
IMBALANCE = 50.0
PER_CELL: dict[Split, int] = {"val": 4, "test": 10}
"""Images of one class on one family in the balanced splits."""
IMAGES_PER_FAMILY = 9
"""A class is seen on one family for every nine of its training images, on one at least and on all at most."""
DIGIT_SHARES = (60, 15)
"""Percent of a class's digits that belong to train and to val; the rest is test's."""

SIZES = (20, 28)
"""Side of a drawn digit in pixels, from and up to but excluding."""
GAINS = (216, 281)
"""Brightness factor of a crop in 256ths, likewise."""
CANDIDATES = 24
"""Random colors a scene may choose from."""

# (photograph, top, left, bottom, right), end excluded. Every crop lies inside one rectangle and no two rectangles touch
# the same pixel. The three parts of a family are chosen to look alike, where possible as mirror images: a family that
# looked different in test would measure a shift of texture instead of the planted bias.
REGIONS: dict[str, dict[Split, tuple[Rectangle, ...]]] = {
    "sky": {
        "train": (("china", 0, 0, 96, 92), ("china", 0, 300, 64, 424)),
        "val": (("china", 0, 232, 60, 298),),
        "test": (("china", 0, 94, 58, 182), ("china", 0, 426, 64, 530)),
    },
    "lake": {
        "train": (("china", 205, 350, 300, 430),),
        "val": (("china", 205, 500, 268, 546),),
        "test": (("china", 205, 432, 286, 498),),
    },
    "roof": {
        "train": (("china", 240, 66, 286, 136), ("china", 240, 208, 286, 278), ("china", 158, 92, 191, 206)),
        "val": (("china", 82, 118, 126, 200), ("china", 350, 210, 386, 300)),
        "test": (("china", 240, 138, 286, 206), ("china", 240, 280, 286, 348), ("china", 158, 210, 191, 326)),
    },
    "wall": {
        "train": (("china", 287, 84, 340, 144), ("china", 287, 272, 340, 340), ("china", 191, 154, 240, 264)),
        "val": (("china", 126, 122, 158, 294),),
        "test": (
            ("china", 287, 146, 340, 270),
            ("china", 191, 98, 240, 152),
            ("china", 191, 266, 240, 324),
        ),
    },
    "bush": {
        "train": (("china", 336, 346, 427, 444), ("china", 345, 0, 427, 90)),
        "val": (("china", 320, 524, 427, 560),),
        "test": (("china", 330, 446, 427, 522), ("china", 350, 92, 427, 172)),
    },
    "petal": {
        "train": (("flower", 124, 186, 222, 306), ("flower", 224, 308, 324, 424)),
        "val": (("flower", 224, 190, 324, 306),),
        "test": (("flower", 124, 308, 222, 426),),
    },
    "leaf": {
        "train": (("flower", 90, 0, 190, 130),),
        "val": (("flower", 262, 0, 310, 84),),
        "test": (("flower", 192, 0, 260, 110),),
    },
    "shade": {
        "train": (("flower", 346, 96, 427, 190),),
        "val": (("flower", 311, 84, 345, 160),),
        "test": (("flower", 0, 146, 84, 206),),
    },
}
FAMILIES = tuple(REGIONS)


def load_scenes(*, seed: int = 0, imbalance: float | None = None, profile: str = "exp", overlap: float = 0.0) -> Source:
    """The set ``scenes``: 32x32 color images of ten digits, long-tailed in train, balanced in val and test.

    n_i = int(250 * imbalance^(-i/9)) training images of digit i, ``imbalance`` 50 unless given; 32 for val and 80 for
    test of every class, 4 and 10 on each of the 8 background families. Class i is seen in training on n_i // 9
    families (1 to 8), so imbalance 1 is the control without a planted bias. Digits and background pixels of the three
    splits are disjoint. ``seed`` (``data.subset_seed``) chooses the training images and which families a rare class is
    seen on; val and test are the same for every seed, imbalance and profile.

    ``overlap`` r in [0, 1) lets the classes overlap in appearance, in every split: the opacity of every object is
    (1 - r) * own digit + r * a digit of the same split and one of the other nine classes, all equally likely. Labels,
    places, colors and backgrounds are those of r = 0.

    Masks are true on the pixels that the object was drawn on. Raises ``ConfigError`` for an imbalance below 1, an
    unknown profile or an overlap outside [0, 1), ``DataError`` if scikit-learn's material is not as expected.
    """
    if not 0 <= overlap < 1:
        raise ConfigError(
            f"The overlap of the scenes is {overlap}; it must be in [0, 1).",
            hint="0 shows one digit, 0.5 both equally.",
        )
    counts = class_counts(N_MAX, len(CLASS_NAMES), IMBALANCE if imbalance is None else imbalance, profile)
    material = load_material()
    train = plan_train(material, counts, families_seen(counts, seed), seed)
    return Source(
        name="scenes",
        class_names=CLASS_NAMES,
        train=_image_set(train, material, overlap),
        val=_image_set(plan_balanced(material, "val"), material, overlap),
        test=_image_set(plan_balanced(material, "test"), material, overlap),
        background_names=FAMILIES,
    )


def seen_backgrounds(train: ImageSet, classes: int, families: int = len(FAMILIES)) -> Tensor:
    """(classes, families) bool: on which background families each class has at least one training image.

    Accuracy on unseen backgrounds is that of the test images i with ``not seen[labels[i], backgrounds[i]]``.
    Raises ``DataError`` if the set does not know its backgrounds.
    """
    if train.backgrounds is None:
        raise DataError("These images do not know their background family.", hint="Only the set 'scenes' has families.")
    seen = torch.zeros(classes, families, dtype=torch.bool)
    seen[train.labels.cpu(), train.backgrounds.cpu()] = True
    return seen


def families_seen(counts: Sequence[int], seed: int) -> list[list[int]]:
    """The families each class is seen on in training: n // 9 of them (1 to 8).

    Dealt from the rarest class up, in one cyclic order chosen by the seed, so that the rare classes share as little as
    possible and a rare class's family says which class it is.
    """
    order = _shuffled(numpy_generator(seed, "scenes", "families"), len(FAMILIES))
    seen: list[list[int]] = [[] for _ in counts]
    dealt = 0
    for label in sorted(range(len(counts)), key=lambda c: (counts[c], -c)):
        share = min(len(FAMILIES), max(1, counts[label] // IMAGES_PER_FAMILY))
        seen[label] = [order[(dealt + i) % len(FAMILIES)] for i in range(share)]
        dealt += share
    return seen


def plan_train(
    material: Material, counts: Sequence[int], seen: Sequence[Sequence[int]], seed: int, area: Split = "train"
) -> list[Scene]:
    """The long-tailed training scenes, evenly over the families ``seen`` (C lists) of each class.

    A class with more images than digits draws a digit again, on another family where it has one. ``area`` takes the
    background pixels of another split: the same bias on pixels that training never showed.
    """
    scenes: list[Scene] = []
    pools = [split_digits(material, label)["train"] for label in range(len(CLASS_NAMES))]
    for label, count in enumerate(counts):
        rng = numpy_generator(seed, "scenes", "train", label)
        # A stream of their own: the scenes are the same whether or not a second digit is drawn into them.
        others = numpy_generator(seed, "scenes", "overlap", "train", label)
        digits = pools[label]
        order = _shuffled(rng, len(digits))
        for j in range(count):
            lap, position = divmod(j, len(digits))
            family = seen[label][(j + lap) % len(seen[label])]
            scenes.append(_draw(rng, label, digits[order[position]], family, area, _other_digit(others, pools, label)))
    return scenes


def plan_balanced(material: Material, split: Literal["val", "test"]) -> list[Scene]:
    """The scenes of a balanced split: every class on every family, ``PER_CELL[split]`` times."""
    scenes: list[Scene] = []
    pools = [split_digits(material, label)[split] for label in range(len(CLASS_NAMES))]
    for label, digits in enumerate(pools):
        rng = numpy_generator("scenes", split, label)
        others = numpy_generator("scenes", "overlap", split, label)
        cells = [family for family in range(len(FAMILIES)) for _ in range(PER_CELL[split])]
        scenes += [
            _draw(rng, label, digits[j % len(digits)], family, split, _other_digit(others, pools, label))
            for j, family in enumerate(cells)
        ]
    return scenes


def split_digits(material: Material, label: int) -> dict[Split, list[int]]:
    """The digits of one class (indices in load_digits), dealt 60 : 15 : 25 to the splits, for every seed alike."""
    own = np.flatnonzero(material.labels == label)
    shuffled = [int(own[i]) for i in _shuffled(numpy_generator("scenes", "digits", label), len(own))]
    first = len(own) * DIGIT_SHARES[0] // 100
    second = first + len(own) * DIGIT_SHARES[1] // 100
    return {"train": shuffled[:first], "val": shuffled[first:second], "test": shuffled[second:]}


def _image_set(scenes: Sequence[Scene], material: Material, overlap: float) -> ImageSet:
    drawn = [render(scene, material, overlap=overlap) for scene in scenes]
    images = np.stack([image for image, _ in drawn]).transpose(0, 3, 1, 2)
    return ImageSet(
        images=torch.from_numpy(np.ascontiguousarray(images)),
        labels=torch.tensor([scene.label for scene in scenes], dtype=torch.int64),
        source_index=torch.arange(len(scenes)),
        masks=torch.from_numpy(np.stack([mask for _, mask in drawn])),
        backgrounds=torch.tensor([scene.family for scene in scenes], dtype=torch.int64),
        ids=[f"digit{s.digit:04d}-{FAMILIES[s.family]}-{s.top}-{s.left}-{i}" for i, s in enumerate(scenes)],
    )


def _other_digit(rng: np.random.Generator, pools: Sequence[Sequence[int]], label: int) -> int:
    """A digit of one of the other classes, each equally likely; ``pools`` are the digits of a split by class."""
    words = (int(word) >> 32 for word in rng.bit_generator.random_raw(2))
    step = _pick(words, 1, len(pools))
    pool = pools[(label + step) % len(pools)]
    return pool[_pick(words, 0, len(pool))]


def _draw(rng: np.random.Generator, label: int, digit: int, family: int, area: Split, other: int) -> Scene:
    words = (int(word) >> 32 for word in rng.bit_generator.random_raw(6 + CANDIDATES))
    photo, top, left = _place(REGIONS[FAMILIES[family]][area], words)
    flip, gain, size = bool(_pick(words, 0, 2)), _pick(words, *GAINS), _pick(words, *SIZES)
    row, column = _pick(words, 0, SIDE - size + 1), _pick(words, 0, SIDE - size + 1)
    colors = tuple(word >> 8 for word in words)
    return Scene(label, digit, family, photo, top, left, flip, gain, size, row, column, other, colors)


def _pick(words: Iterator[int], low: int, high: int) -> int:
    """An integer in [low, high) from the next 32-bit word; uneven by less than 1e-5 for the ranges here."""
    return low + (next(words) * (high - low) >> 32)


def _place(rectangles: Sequence[Rectangle], words: Iterator[int]) -> tuple[str, int, int]:
    """A crop position, each one in the rectangles equally likely."""
    grids = [(bottom - top - SIDE + 1, right - left - SIDE + 1) for _, top, left, bottom, right in rectangles]
    position = _pick(words, 0, sum(rows * columns for rows, columns in grids))
    for (photo, top, left, _, _), (rows, columns) in zip(rectangles, grids, strict=True):
        if position < rows * columns:
            return photo, top + position // columns, left + position % columns
        position -= rows * columns
    raise AssertionError("a position beyond the last rectangle")


def _shuffled(rng: np.random.Generator, n: int) -> list[int]:
    return [int(i) for i in np.argsort(rng.bit_generator.random_raw(n), kind="stable")]
