"""The embedded set: what is disjoint, what is balanced, what is frozen and what the mask says."""

from __future__ import annotations

import hashlib
from collections import Counter

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from longtail.data.images import ImageSet, Source
from longtail.data.longtail import ClassStats, class_counts
from longtail.data.sources.scene_rendering import CONTRAST, Material, Scene, background, load_material, opacity, render
from longtail.data.sources.scenes import (
    FAMILIES,
    IMBALANCE,
    N_MAX,
    REGIONS,
    families_seen,
    load_scenes,
    plan_balanced,
    plan_train,
    seen_backgrounds,
    split_digits,
)
from longtail.errors import ConfigError, DataError

CLASSES = 10
COUNTS = [250, 161, 104, 67, 43, 28, 18, 11, 7, 5]
PHOTOGRAPHS = "d5d413f9c236ff023cc499cc7b04d7c4"
DIGITS = "70faefc8440cec5411af6ec7a365bf10"
FROZEN = {
    "train": "3e48cbfe6eda533aa96cbf8edb5c2648",
    "val": "3a710da881dc730f0573d5853ccc9ab1",
    "test": "1b62b0409b18a925818758c4121c5b46",
}


@pytest.fixture(scope="module")
def material() -> Material:
    return load_material()


@pytest.fixture(scope="module")
def source() -> Source:
    return load_scenes()


@pytest.fixture(scope="module")
def plans(material: Material) -> dict[str, list[Scene]]:
    train = plan_train(material, COUNTS, families_seen(COUNTS, 0), 0)
    return {"train": train, "val": plan_balanced(material, "val"), "test": plan_balanced(material, "test")}


def splits(source: Source) -> dict[str, ImageSet]:
    assert source.val is not None
    assert source.test is not None
    return {"train": source.train, "val": source.val, "test": source.test}


def cells(images: ImageSet) -> torch.Tensor:
    """Images per class and family (C, F)."""
    assert images.backgrounds is not None
    flat = images.labels * len(FAMILIES) + images.backgrounds
    return torch.bincount(flat, minlength=CLASSES * len(FAMILIES)).view(CLASSES, len(FAMILIES))


def digest(array: NDArray[np.generic]) -> str:
    return hashlib.blake2b(np.ascontiguousarray(array).tobytes(), digest_size=16).hexdigest()


# ---- frozen


def test_photographs_and_digits_are_decoded_to_the_frozen_pixels(material: Material) -> None:
    """Fails alone with another JPEG decoder or another scikit-learn; then the sets below differ for that reason."""
    assert digest(np.stack([material.photos["china"], material.photos["flower"]])) == PHOTOGRAPHS
    assert digest(material.digits.astype(np.uint8)) == DIGITS


def test_the_default_set_is_the_frozen_one(source: Source) -> None:
    """Published numbers stand on exactly these pixels: a change here is a change of NUMBERS_VERSION."""
    assert {name: images.fingerprint() for name, images in splits(source).items()} == FROZEN


def test_making_it_again_gives_the_same_set(source: Source) -> None:
    again = splits(load_scenes(seed=0, imbalance=IMBALANCE))
    for name, images in splits(source).items():
        assert again[name].fingerprint() == images.fingerprint()
        assert again[name].masks is not None
        assert torch.equal(again[name].masks, images.masks)


def test_the_seed_changes_training_and_nothing_else(source: Source) -> None:
    here, there = splits(source), splits(load_scenes(seed=1, imbalance=10))
    assert here["train"].fingerprint() != splits(load_scenes(seed=1))["train"].fingerprint()
    assert here["val"].fingerprint() == there["val"].fingerprint()
    assert here["test"].fingerprint() == there["test"].fingerprint()


# ---- shape of the set


def test_training_counts_follow_the_profile_and_all_three_groups_exist(source: Source) -> None:
    counts = source.train.counts(CLASSES)
    assert counts == COUNTS == class_counts(N_MAX, CLASSES, IMBALANCE)
    groups = ClassStats(counts).groups()
    assert [len(groups[name]) for name in ("many", "medium", "few")] == [3, 3, 4]


@pytest.mark.parametrize(("imbalance", "profile"), [(1, "exp"), (10, "exp"), (100, "exp"), (20, "step")])
def test_imbalance_and_profile_can_be_set(imbalance: float, profile: str) -> None:
    train = load_scenes(seed=3, imbalance=imbalance, profile=profile).train
    assert train.counts(CLASSES) == class_counts(N_MAX, CLASSES, imbalance, profile)


def test_an_imbalance_below_one_or_an_unknown_profile_is_refused() -> None:
    with pytest.raises(ConfigError):
        load_scenes(imbalance=0.5)
    with pytest.raises(ConfigError):
        load_scenes(profile="pareto")


def test_every_split_has_small_color_images_with_masks_and_families(source: Source) -> None:
    for images in splits(source).values():
        n = len(images)
        assert images.images.shape == (n, 3, 32, 32)
        assert images.images.dtype == torch.uint8
        assert images.masks is not None
        assert images.backgrounds is not None
        assert images.ids is not None
        assert images.masks.shape == (n, 32, 32)
        assert images.masks.dtype == torch.bool
        assert bool((images.masks.sum((1, 2)) >= 40).all())
        assert images.backgrounds.dtype == images.labels.dtype == torch.int64
        assert len(set(images.ids)) == n
    assert source.background_names == FAMILIES


def test_val_and_test_show_every_class_on_every_family_equally_often(source: Source) -> None:
    of = splits(source)
    assert (cells(of["val"]) == 4).all()
    assert (cells(of["test"]) == 10).all()


def test_head_classes_are_seen_on_all_families_evenly_and_few_shot_classes_on_one_or_two(source: Source) -> None:
    table = cells(source.train)
    seen = seen_backgrounds(source.train, CLASSES)
    assert torch.equal(seen, table > 0)
    assert seen.sum(1).tolist() == [8, 8, 8, 7, 4, 3, 2, 1, 1, 1]
    assert bool((table[:3].amax(1) - table[:3].amin(1) <= 3).all())
    assert bool((seen[6:].sum(0) <= 1).all()), "two few-shot classes share a family: it cannot say which class it is"


@pytest.mark.parametrize("seed", range(5))
def test_without_imbalance_every_class_is_seen_on_every_family(seed: int) -> None:
    assert all(sorted(families) == list(range(8)) for families in families_seen([250] * 10, seed))


def test_which_family_a_rare_class_is_seen_on_depends_on_the_seed() -> None:
    assert len({families_seen(COUNTS, seed)[9][0] for seed in range(12)}) >= 4


def test_a_set_without_families_cannot_say_which_were_seen(source: Source) -> None:
    bare = ImageSet(source.train.images, source.train.labels, source.train.source_index)
    with pytest.raises(DataError):
        seen_backgrounds(bare, CLASSES)


# ---- disjointness


def test_no_digit_is_in_two_splits(plans: dict[str, list[Scene]], material: Material) -> None:
    used = {name: {scene.digit for scene in scenes} for name, scenes in plans.items()}
    assert not used["train"] & used["val"]
    assert not used["train"] & used["test"]
    assert not used["val"] & used["test"]
    for scenes in plans.values():
        assert all(material.labels[scene.digit] == scene.label for scene in scenes)
    for label in range(CLASSES):
        shares = split_digits(material, label)
        dealt = [digit for share in shares.values() for digit in share]
        assert sorted(dealt) == np.flatnonzero(material.labels == label).tolist()


def test_no_background_pixel_is_in_two_splits_or_two_families(plans: dict[str, list[Scene]]) -> None:
    touched = {name: np.zeros((427, 640), dtype=np.int64) for name in ("china", "flower")}
    for number, name in enumerate(plans):
        for scene in plans[name]:
            owner = touched[scene.photo][scene.top : scene.top + 32, scene.left : scene.left + 32]
            assert owner.shape == (32, 32)
            mark = 1 + number * len(FAMILIES) + scene.family
            assert np.isin(owner, (0, mark)).all()
            owner[:] = mark


def test_the_regions_themselves_are_disjoint() -> None:
    """Every seed draws inside them, so no seed can mix the splits."""
    covered = {name: np.zeros((427, 640), dtype=np.int64) for name in ("china", "flower")}
    for areas in REGIONS.values():
        for rectangles in areas.values():
            for photo, top, left, bottom, right in rectangles:
                assert 0 <= top <= bottom - 32 <= 427 - 32
                assert 0 <= left <= right - 32 <= 640 - 32
                covered[photo][top:bottom, left:right] += 1
    assert max(int(count.max()) for count in covered.values()) == 1


def test_a_digit_is_drawn_again_only_where_a_class_has_more_images_than_digits(plans: dict[str, list[Scene]]) -> None:
    for label, count in enumerate(COUNTS):
        times = Counter(scene.digit for scene in plans["train"] if scene.label == label)
        assert max(times.values()) - min(times.values()) <= 1
        if count <= 100:
            assert max(times.values()) == 1
    for label in range(CLASSES):
        own = [scene for scene in plans["test"] if scene.label == label]
        assert max(Counter(scene.digit for scene in own).values()) == 2
        assert len({(scene.digit, scene.family) for scene in own}) == len(own)


# ---- pixels


def test_the_mask_marks_exactly_the_pixels_that_depend_on_the_object(
    source: Source, plans: dict[str, list[Scene]], material: Material
) -> None:
    test = splits(source)["test"]
    assert test.masks is not None
    for i, scene in enumerate(plans["test"]):
        black, white = render(scene, material, 0x000000)[0], render(scene, material, 0xFFFFFF)[0]
        mask = test.masks[i].numpy()
        assert np.array_equal((black != white).any(2), mask)
        image = test.images[i].permute(1, 2, 0).numpy()
        assert np.array_equal(image[~mask], background(scene, material)[~mask])
        assert (image != background(scene, material)).any(2)[mask].mean() > 0.9


def test_opacity_is_bilinear_interpolation_of_the_digit(plans: dict[str, list[Scene]], material: Material) -> None:
    """PyTorch's interpolation is the oracle."""
    for scene in plans["val"][::5]:
        digit = torch.from_numpy(material.digits[scene.digit]).double()[None, None] / 16
        large = torch.nn.functional.interpolate(digit, size=(scene.size,) * 2, mode="bilinear", align_corners=False)
        expected = (2 * large[0, 0] - 0.5).clamp(0, 1) * 256
        part = opacity(scene, material)[scene.row : scene.row + scene.size, scene.column : scene.column + scene.size]
        drawn = torch.from_numpy(part).double()
        assert bool(((drawn - expected).abs()[drawn > 0] <= 1).all())
        assert bool((expected[drawn == 0] <= 49).all())
        assert int(opacity(scene, material).sum()) == int(part.sum())


def test_a_digit_stands_out_from_what_is_under_it(source: Source, plans: dict[str, list[Scene]]) -> None:
    """Luma of the opaque pixels against the crop before: what makes the digit readable for a person."""
    luma = np.array([0.299, 0.587, 0.114])
    weak = 0
    material = load_material()
    for scene in plans["test"]:
        image, mask = render(scene, material)
        opaque = mask & (opacity(scene, material) == 256)
        difference = np.abs((image.astype(float) - background(scene, material)) @ luma)[opaque]
        weak += bool(np.quantile(difference, 0.2) < CONTRAST - 2)
    assert weak <= 0.02 * len(plans["test"])
