"""The bias planted in the embedded set, measured: backgrounds tell the class in training and nothing in test.

``python -m pytest tests/test_scenes_bias.py -s`` prints the numbers that docs/scenes.md quotes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from longtail.data.images import ImageSet
from longtail.data.longtail import class_counts
from longtail.data.sources.scene_rendering import Material, Scene, background, load_material
from longtail.data.sources.scenes import IMBALANCE, N_MAX, families_seen, load_scenes, plan_balanced, plan_train

CLASSES = 10
COUNTS = class_counts(N_MAX, CLASSES, IMBALANCE)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """A logistic regression this small waits for its threads twenty times as long as it computes."""
    with threadpool_limits(1):
        yield


@pytest.fixture(scope="module")
def material() -> Material:
    return load_material()


def background_features(scenes: Sequence[Scene], material: Material) -> NDArray[np.float64]:
    """Mean and deviation of the crop, before the digit is drawn, in 4x4 blocks of 8x8 pixels: (N, 96)."""
    crops = np.stack([background(scene, material) for scene in scenes]).astype(np.float64) / 255
    blocks = crops.reshape(len(crops), 4, 8, 4, 8, 3)
    return np.concatenate([blocks.mean((2, 4)), blocks.std((2, 4))], axis=3).reshape(len(crops), -1)


def linear_model() -> Pipeline:
    return make_pipeline(StandardScaler(), LogisticRegression(C=0.01, class_weight="balanced", max_iter=2000))


def balanced_accuracy_from_backgrounds(counts: list[int], seed: int, material: Material) -> dict[str, float]:
    """Class-balanced accuracy (chance: 0.1) of a class-weighted logistic regression that sees no digit.

    ``fresh`` has as many images of a class as test and is drawn on the same pixels, but shows each class on its
    training families only: it differs from ``test`` in nothing else.
    """
    seen = families_seen(counts, seed)
    train = plan_train(material, counts, seen, seed)
    model = linear_model()
    model.fit(background_features(train, material), [scene.label for scene in train])
    judged = {
        "train": train,
        "fresh": plan_train(material, [80] * CLASSES, seen, seed, area="test"),
        "test": plan_balanced(material, "test"),
    }
    return {
        name: float(
            balanced_accuracy_score([s.label for s in scenes], model.predict(background_features(scenes, material)))
        )
        for name, scenes in judged.items()
    }


def test_a_linear_model_tells_the_families_apart_on_pixels_it_never_saw(
    material: Material,
) -> None:
    """What the bias needs, and a check that a family's three parts look alike."""
    train, test = plan_train(material, COUNTS, families_seen(COUNTS, 0), 0), plan_balanced(material, "test")
    model = linear_model().fit(background_features(train, material), [scene.family for scene in train])
    accuracy = np.mean(model.predict(background_features(test, material)) == [scene.family for scene in test])
    print(f"families {accuracy:.3f}")
    assert accuracy > 0.85


@pytest.mark.parametrize("seed", range(3))
def test_backgrounds_alone_tell_the_class_in_training_and_nothing_in_test(seed: int, material: Material) -> None:
    measured = balanced_accuracy_from_backgrounds(COUNTS, seed, material)
    print(seed, measured)
    assert measured["train"] > 0.40
    assert measured["fresh"] > 0.28
    assert abs(measured["test"] - 0.1) < 0.03


def test_without_imbalance_backgrounds_alone_tell_nothing(material: Material) -> None:
    """The control: the bias comes from the long tail of families, not from the way scenes are drawn."""
    measured = balanced_accuracy_from_backgrounds([N_MAX] * CLASSES, 0, material)
    print(measured)
    assert abs(measured["fresh"] - 0.1) < 0.03
    assert abs(measured["test"] - 0.1) < 0.03


def test_pixels_outside_the_published_masks_carry_the_same_bias() -> None:
    """The same from the set as a user has it: six numbers an image, mean and deviation of the color off the object."""

    def features(images: ImageSet) -> NDArray[np.float64]:
        assert images.masks is not None
        rows = []
        for image, mask in zip(images.images.numpy(), images.masks.numpy(), strict=True):
            off = image[:, ~mask].astype(np.float64)
            rows.append(np.concatenate([off.mean(1), off.std(1)]))
        return np.stack(rows)

    source = load_scenes()
    assert source.val is not None
    assert source.test is not None
    of = {"train": source.train, "val": source.val, "test": source.test}
    model = linear_model()
    model.fit(features(of["train"]), of["train"].labels.numpy())
    measured = {
        name: balanced_accuracy_score(of[name].labels.numpy(), model.predict(features(of[name]))) for name in of
    }
    print(measured)
    assert measured["train"] > 0.30
    assert abs(measured["val"] - 0.1) < 0.04
    assert abs(measured["test"] - 0.1) < 0.03
