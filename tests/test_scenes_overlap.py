"""Class overlap in the embedded set: a second digit is blended into every object, and nothing else changes.

``python -m pytest tests/test_scenes_overlap.py -s`` prints the numbers that docs/scenes.md quotes.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from longtail.config import build_config
from longtail.data.images import ImageSet, Source
from longtail.data.longtail import class_counts
from longtail.data.open import open_data
from longtail.data.settings import DataSettings, check_complete
from longtail.data.sources.scene_rendering import FAINTEST, Material, Scene, background, load_material, opacity, render
from longtail.data.sources.scenes import (
    IMBALANCE,
    N_MAX,
    families_seen,
    load_scenes,
    plan_balanced,
    plan_train,
    split_digits,
)
from longtail.errors import ConfigError

CLASSES = 10
COUNTS = class_counts(N_MAX, CLASSES, IMBALANCE)
OVERLAP = 0.3
FROZEN = {
    "train": "13082432311e6afca781da06a367e580",
    "val": "d63cb7375e23e072f5d3daca7019a9b2",
    "test": "ff13056b80e64c720589835262d3401a",
}


@pytest.fixture(scope="module")
def material() -> Material:
    return load_material()


@pytest.fixture(scope="module")
def plans(material: Material) -> dict[str, list[Scene]]:
    train = plan_train(material, COUNTS, families_seen(COUNTS, 0), 0)
    return {"train": train, "val": plan_balanced(material, "val"), "test": plan_balanced(material, "test")}


@pytest.fixture(scope="module")
def plain() -> dict[str, ImageSet]:
    return splits(load_scenes())


@pytest.fixture(scope="module")
def blended() -> dict[str, ImageSet]:
    return splits(load_scenes(overlap=OVERLAP))


def splits(source: Source) -> dict[str, ImageSet]:
    assert source.val is not None
    assert source.test is not None
    return {"train": source.train, "val": source.val, "test": source.test}


def swapped(scene: Scene) -> Scene:
    """The scene with its two digits exchanged: its opacity at 0 is that of the other digit."""
    return scene._replace(digit=scene.other, other=scene.digit)


def sharp_loop(digit: NDArray[np.int64], size: int, row: int, column: int) -> list[list[float]]:
    """Opacity (32, 32) in [0, 1] of one digit before faint pixels are left out, in plain floats."""
    canvas = [[0.0] * 32 for _ in range(32)]
    for i in range(size):
        for j in range(size):
            y = min(max((i + 0.5) * 8 / size - 0.5, 0.0), 7.0)
            x = min(max((j + 0.5) * 8 / size - 0.5, 0.0), 7.0)
            top, left = int(y), int(x)
            bottom, right = min(top + 1, 7), min(left + 1, 7)
            upper = digit[top][left] * (1 - x + left) + digit[top][right] * (x - left)
            lower = digit[bottom][left] * (1 - x + left) + digit[bottom][right] * (x - left)
            value = (upper * (1 - y + top) + lower * (y - top)) / 16
            canvas[row + i][column + j] = min(max(2 * float(value) - 0.5, 0.0), 1.0)
    return canvas


# ---- the blend


@pytest.mark.parametrize("r", [0.0, 0.15, 0.3, 0.5, 0.9])
def test_the_opacity_is_the_two_digits_in_their_shares(
    r: float, plans: dict[str, list[Scene]], material: Material
) -> None:
    for scene in plans["val"][::40]:
        own = sharp_loop(material.digits[scene.digit], scene.size, scene.row, scene.column)
        other = sharp_loop(material.digits[scene.other], scene.size, scene.row, scene.column)
        drawn = opacity(scene, material, r)
        for y in range(32):
            for x in range(32):
                expected = 256 * ((1 - r) * own[y][x] + r * other[y][x])
                if drawn[y, x]:
                    assert abs(drawn[y, x] - expected) <= 2
                else:
                    assert expected < FAINTEST + 2
        assert not ((drawn > 0) & (drawn < FAINTEST)).any()


def test_without_overlap_the_other_digit_does_not_matter(plans: dict[str, list[Scene]], material: Material) -> None:
    for scenes in plans.values():
        for scene in scenes[::20]:
            image, mask = render(scene, material, overlap=0.0)
            again, same = render(scene._replace(other=(scene.other + 900) % 1797), material)
            assert np.array_equal(image, again)
            assert np.array_equal(mask, same)


def test_at_a_half_it_does_not_matter_which_digit_is_the_own(plans: dict[str, list[Scene]], material: Material) -> None:
    for scene in plans["test"][::10]:
        assert np.array_equal(opacity(scene, material, 0.5), opacity(swapped(scene), material, 0.5))


def test_close_to_one_the_other_digit_is_all_there_is(plans: dict[str, list[Scene]], material: Material) -> None:
    for scene in plans["test"][::10]:
        nearly = opacity(scene, material, math.nextafter(1, 0))
        other = opacity(swapped(scene), material)
        # A pixel exactly at the threshold may fall below it.
        assert (np.abs(nearly - other)[other > FAINTEST] <= 1).all()
        assert not nearly[other == 0].any()


@given(r=st.floats(0, 1, exclude_max=True), position=st.integers(0, 799))
def test_an_overlap_makes_no_pixel_more_opaque_than_the_stronger_digit(
    plans: dict[str, list[Scene]], material: Material, r: float, position: int
) -> None:
    scene = plans["test"][position]
    own, other = opacity(scene, material), opacity(swapped(scene), material)
    drawn = opacity(scene, material, r)
    assert (drawn <= np.maximum(own, other)).all()
    both = np.minimum(own, other)
    assert (drawn >= both)[both > 0].all()


# ---- the set


def test_pixels_and_masks_change_only_where_one_of_the_two_digits_is(
    plain: dict[str, ImageSet], blended: dict[str, ImageSet], plans: dict[str, list[Scene]], material: Material
) -> None:
    for name, scenes in plans.items():
        before, after = plain[name], blended[name]
        assert before.masks is not None
        assert after.masks is not None
        for i, scene in enumerate(scenes):
            either = torch.from_numpy((opacity(scene, material) > 0) | (opacity(swapped(scene), material) > 0))
            assert bool(((before.images[i] != after.images[i]).any(0) <= either).all())
            assert bool(((before.masks[i] | after.masks[i]) <= either).all())
            ground = torch.from_numpy(background(scene, material)).permute(2, 0, 1)
            assert torch.equal(after.images[i][:, ~after.masks[i]], ground[:, ~after.masks[i]])


def test_the_blended_object_has_the_color_of_the_plain_one(
    plain: dict[str, ImageSet], blended: dict[str, ImageSet], plans: dict[str, list[Scene]], material: Material
) -> None:
    """Where both digits are opaque, the blend is, and shows the ink itself."""
    compared = 0
    for name, scenes in plans.items():
        for i, scene in enumerate(scenes):
            both = torch.from_numpy((opacity(scene, material) == 256) & (opacity(swapped(scene), material) == 256))
            assert torch.equal(plain[name].images[i][:, both], blended[name].images[i][:, both])
            compared += bool(both.any())
    assert compared > 1500


def test_an_overlap_leaves_labels_backgrounds_and_names_alone(
    plain: dict[str, ImageSet], blended: dict[str, ImageSet]
) -> None:
    for name in plain:
        assert torch.equal(plain[name].labels, blended[name].labels)
        assert plain[name].backgrounds is not None
        assert blended[name].backgrounds is not None
        assert torch.equal(plain[name].backgrounds, blended[name].backgrounds)
        assert plain[name].ids == blended[name].ids
        assert bool((plain[name].images != blended[name].images).flatten(1).any(1).all()), "an image without a blend"


def test_the_overlapping_set_is_the_frozen_one(blended: dict[str, ImageSet]) -> None:
    """As for the plain set in test_scenes.py: a change here is a change of NUMBERS_VERSION."""
    assert {name: images.fingerprint() for name, images in blended.items()} == FROZEN


def test_the_same_overlap_gives_the_same_set_and_another_one_another(blended: dict[str, ImageSet]) -> None:
    again, other = splits(load_scenes(overlap=OVERLAP)), splits(load_scenes(overlap=0.31))
    for name, images in blended.items():
        assert again[name].fingerprint() == images.fingerprint() != other[name].fingerprint()
        assert again[name].masks is not None
        assert images.masks is not None
        assert torch.equal(again[name].masks, images.masks)


def test_val_and_test_overlap_alike_for_every_seed_imbalance_and_profile(blended: dict[str, ImageSet]) -> None:
    there = splits(load_scenes(seed=4, imbalance=10, profile="step", overlap=OVERLAP))
    assert there["val"].fingerprint() == blended["val"].fingerprint()
    assert there["test"].fingerprint() == blended["test"].fingerprint()


def test_the_seed_chooses_the_other_digits_of_training_and_the_imbalance_does_not(material: Material) -> None:
    def first_partners(counts: Sequence[int], seed: int) -> list[int]:
        scenes = plan_train(material, counts, families_seen(counts, seed), seed)
        return [next(scene.other for scene in scenes if scene.label == label) for label in range(CLASSES)]

    assert first_partners(COUNTS, 0) == first_partners(class_counts(N_MAX, CLASSES, 5), 0)
    assert first_partners(COUNTS, 0) != first_partners(COUNTS, 1)


def test_the_other_digit_is_of_another_class_and_of_the_same_split(
    plans: dict[str, list[Scene]], material: Material
) -> None:
    for name, scenes in plans.items():
        allowed = {digit for label in range(CLASSES) for digit in split_digits(material, label)[name]}  # type: ignore[index]
        assert all(scene.other in allowed for scene in scenes)
        assert all(material.labels[scene.other] != scene.label for scene in scenes)


def test_all_other_classes_are_blended_in_equally_often(material: Material) -> None:
    counts = [N_MAX] * CLASSES
    scenes = plan_train(material, counts, families_seen(counts, 0), 0) + plan_balanced(material, "test")
    pairs = Counter((scene.label, int(material.labels[scene.other])) for scene in scenes)
    expected = len(scenes) / 90
    assert len(pairs) == 90
    chi_square = sum((seen - expected) ** 2 / expected for seen in pairs.values())
    assert chi_square < 80 + 4 * math.sqrt(2 * 80)
    assert len({scene.other for scene in scenes}) > 1000, "few digits are used again and again"


# ---- what it does


def test_classes_are_harder_to_tell_apart_the_more_they_overlap(
    plans: dict[str, list[Scene]], material: Material
) -> None:
    """A logistic regression that sees the object alone, cut out and brought to one size, and no background."""

    def features(scenes: Sequence[Scene], r: float) -> NDArray[np.float64]:
        rows = []
        for scene in scenes:
            at = np.arange(20) * scene.size // 20
            rows.append(opacity(scene, material, r)[np.ix_(scene.row + at, scene.column + at)].ravel() / 256)
        return np.stack(rows)

    def accuracies(r: float) -> tuple[float, float]:
        train, test = features(plans["train"], r), features(plans["test"], r)
        labels = [scene.label for scene in plans["train"]]
        truth = np.array([scene.label for scene in plans["test"]])
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, class_weight="balanced", max_iter=2000))
        by_opacity = model.fit(train, labels).predict(test)
        by_mask = model.fit(train > 0, labels).predict(test > 0)
        return float((by_opacity == truth).mean()), float((by_mask == truth).mean())

    with threadpool_limits(1):
        measured = {r: accuracies(r) for r in (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)}
    for r, (by_opacity, by_mask) in measured.items():
        print(f"overlap {r}: opacity {by_opacity:.2f}, mask {by_mask:.2f}")
    assert measured[0.0][0] > 0.85
    for column in (0, 1):
        values = [measured[r][column] for r in (0.0, 0.2, 0.3, 0.4, 0.5)]
        assert all(later < earlier - 0.02 for earlier, later in itertools.pairwise(values)), values
        assert values[-1] < 0.5


# ---- the setting


@pytest.mark.parametrize("r", [-0.1, 1.0, 1.5, math.nan, math.inf])
def test_an_overlap_that_is_no_share_is_refused(r: float) -> None:
    with pytest.raises(ConfigError, match="overlap"):
        load_scenes(overlap=r)
    with pytest.raises(ConfigError, match=r"data\.overlap"):
        build_config({"data": {"name": "scenes", "overlap": r}, "method": {"name": "ce"}})


@pytest.mark.parametrize("name", ["cifar10", "npz", "arrays"])
def test_only_the_scenes_overlap(name: str) -> None:
    path = None if name == "arrays" else "images.npz"
    check_complete(DataSettings(name=name, path=path))
    with pytest.raises(ConfigError, match=r"data\.overlap"):
        check_complete(DataSettings(name=name, path=path, overlap=0.2))


def test_the_setting_reaches_the_images(blended: dict[str, ImageSet]) -> None:
    opened = open_data(DataSettings(name="scenes", overlap=OVERLAP))
    assert opened.val is not None
    assert [opened.train.fingerprint(), opened.val.fingerprint(), opened.evaluation.fingerprint()] == [
        blended[name].fingerprint() for name in ("train", "val", "test")
    ]
