"""The small detector that learns object masks: that it learns, from its seed alone, and finds objects it never saw."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from longtail.data.sources.scenes import load_scenes
from longtail.errors import DataError
from longtail.rng import generator
from longtail.saliency import learned
from longtail.saliency.learned import SmallDetector, scenes_detector, train_detector

SIDE = 24


def squares(count: int, purpose: str) -> tuple[Tensor, Tensor]:
    """Gray noise with a bright red square of 8 pixels somewhere, (N, 3, 24, 24) uint8, and its mask."""
    drawn = generator("squares", purpose)
    images = torch.randint(60, 140, (count, 3, SIDE, SIDE), generator=drawn, dtype=torch.uint8)
    masks = torch.zeros(count, SIDE, SIDE, dtype=torch.bool)
    for i, (top, left) in enumerate(torch.randint(SIDE - 7, (count, 2), generator=drawn).tolist()):
        masks[i, top : top + 8, left : left + 8] = True
        images[i, 0, top : top + 8, left : left + 8] = 230
    return images, masks


def share_on_object(maps: Tensor, masks: Tensor) -> float:
    """Of the images, the share whose largest value lies on the mask."""
    places = maps.flatten(1).argmax(dim=1)
    return float(masks.flatten(1).gather(1, places[:, None]).float().mean())


@pytest.fixture(scope="module")
def of_squares() -> SmallDetector:
    return train_detector(*squares(64, "train"), seed=3, steps=30)


def test_it_finds_objects_in_images_it_never_saw(of_squares: SmallDetector) -> None:
    images, masks = squares(40, "new")
    maps = of_squares.maps(images)
    assert (maps.shape, maps.dtype) == (masks.shape, torch.float32)
    assert bool(((maps >= 0) & (maps <= 1)).all())
    assert share_on_object(maps, masks) >= 0.95
    center = torch.zeros_like(maps)
    center[:, SIDE // 2, SIDE // 2] = 1
    assert share_on_object(center, masks) < 0.5


def test_objects_at_the_right_are_found_after_training_on_the_left_alone() -> None:
    images, masks = squares(64, "train")
    left = ~masks[:, :, SIDE // 2 :].any(dim=(1, 2))
    detector = train_detector(images[left], masks[left], seed=3, steps=30)
    images, masks = squares(40, "new")
    right = ~masks[:, :, : SIDE // 2].any(dim=(1, 2))
    assert int(right.sum()) >= 5
    assert share_on_object(detector.maps(images[right]), masks[right]) >= 0.95


def test_half_of_a_batch_is_mirrored_and_its_masks_with_it() -> None:
    masks = torch.rand(64, 6, 6, generator=generator("masks")) < 0.5
    images = (masks[:, None] * 255).expand(-1, 3, -1, -1).to(torch.uint8)
    batch, target = learned._batch(images, masks, generator("batch"))
    assert torch.equal(batch[:, 0] == 255, target)
    as_given, as_mirrored = (
        [any(torch.equal(one, mask) for mask in known) for one in target] for known in (masks, masks.flip(2))
    )
    assert all(a != b for a, b in zip(as_given, as_mirrored, strict=True))
    assert 0.2 < sum(as_mirrored) / len(target) < 0.8


def test_every_step_draws_its_batch_from_the_seed_and_its_own_number(monkeypatch: pytest.MonkeyPatch) -> None:
    keys: list[tuple[object, ...]] = []

    def recorded(*parts: str | int) -> torch.Generator:
        keys.append(parts)
        return generator(*parts)

    monkeypatch.setattr(learned, "generator", recorded)
    train_detector(*squares(4, "train"), seed=7, steps=2)
    assert keys == [(7, "detector", 0), (7, "detector", 1)]


def test_training_depends_on_the_seed_alone_and_draws_from_no_global_stream() -> None:
    images, masks = squares(16, "train")
    before = torch.get_rng_state()
    first = train_detector(images, masks, seed=5, steps=3)
    assert torch.equal(torch.get_rng_state(), before)
    again, other = (train_detector(images, masks, seed=seed, steps=3).maps(images) for seed in (5, 6))
    assert torch.equal(first.maps(images), again)
    assert not torch.allclose(again, other, atol=1e-3)


def test_it_is_returned_in_evaluation_mode_without_gradients(of_squares: SmallDetector) -> None:
    assert not any(module.training for module in of_squares.modules())
    assert not any(parameter.requires_grad for parameter in of_squares.parameters())
    images = squares(4, "new")[0]
    torch.testing.assert_close(of_squares.maps(images)[:1], of_squares.maps(images[:1]), rtol=1e-4, atol=1e-5)


def test_it_is_small_and_a_position_sees_more_than_the_largest_object() -> None:
    detector = SmallDetector().eval()
    assert sum(parameter.numel() for parameter in detector.parameters()) == 35_545
    with torch.no_grad():
        for parameter in detector.parameters():
            parameter.fill_(1.0)  # all positive, so that no rectifier closes and no two paths cancel
    pixels = torch.full((1, 3, 64, 64), 0.5, requires_grad=True)
    detector.layers(pixels)[0, 0, 16, 16].backward()
    assert pixels.grad is not None
    rows = pixels.grad.abs().sum(dim=(0, 1, 3)).nonzero().flatten()
    assert int(rows.max() - rows.min()) + 1 == 39


@pytest.mark.parametrize("size", [(7, 7), (33, 20), (96, 64)])
def test_maps_are_of_the_images_size_whatever_it_is(of_squares: SmallDetector, size: tuple[int, int]) -> None:
    assert of_squares.maps(torch.zeros(2, 3, *size, dtype=torch.uint8)).shape == (2, *size)


def test_maps_are_the_mean_probability_of_the_neighborhood_inside_the_image(of_squares: SmallDetector) -> None:
    images = squares(1, "new")[0]
    with torch.no_grad():
        probability = of_squares(images).sigmoid()[0].tolist()
    found = of_squares.maps(images)[0]
    for y in range(SIDE):
        for x in range(SIDE):
            near = [
                probability[i][j]
                for i in range(max(y - 1, 0), min(y + 2, SIDE))
                for j in range(max(x - 1, 0), min(x + 2, SIDE))
            ]
            assert float(found[y, x]) == pytest.approx(sum(near) / len(near), abs=1e-6)


def test_what_it_cannot_learn_from_is_refused() -> None:
    images, masks = squares(4, "train")
    with pytest.raises(DataError, match="No mask holds a pixel"):
        train_detector(images, torch.zeros_like(masks), seed=0, steps=1)
    with pytest.raises(DataError, match="No mask holds a pixel"):
        train_detector(images[:0], masks[:0], seed=0, steps=1)
    with pytest.raises(ValueError, match="images must be uint8"):
        train_detector(images.float(), masks, seed=0, steps=1)
    with pytest.raises(ValueError, match="masks must be bool"):
        train_detector(images, masks[:, :-1], seed=0, steps=1)
    with pytest.raises(ValueError, match="images must be uint8"):
        SmallDetector().eval().maps(images.float())


def test_the_detector_of_scenes_is_trained_once_a_seed_on_balanced_training_masks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trained: list[tuple[int, Tensor]] = []

    def instead(images: Tensor, masks: Tensor, *, seed: int) -> nn.Module:
        trained.append((seed, images))
        assert masks.shape == (len(images), 32, 32)
        return nn.Identity()

    monkeypatch.setattr(learned, "train_detector", instead)
    learned._scenes_detector.cache_clear()
    try:
        assert scenes_detector() is scenes_detector(0) is scenes_detector(seed=0)
        assert [seed for seed, _ in trained] == [0]
        assert torch.equal(trained[0][1], load_scenes(seed=0, imbalance=1).train.images)
        scenes_detector(1)
        assert [seed for seed, _ in trained] == [0, 1]
        assert not torch.equal(trained[0][1], trained[1][1])
    finally:
        learned._scenes_detector.cache_clear()


@pytest.mark.slow
def test_on_scenes_it_beats_the_middle_of_the_image_by_far() -> None:
    val = load_scenes().val
    assert val.masks is not None
    center = torch.zeros(val.masks.shape)
    center[:, 16, 16] = 1
    assert share_on_object(center, val.masks) < 0.75
    assert share_on_object(scenes_detector().maps(val.images), val.masks) >= 0.97
