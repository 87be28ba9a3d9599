from __future__ import annotations

import math
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import oracles
from longtail.mixing import (
    Box,
    Confidence,
    boxes_around,
    boxes_like,
    boxes_to_mask,
    cutmix_box,
    draw_beta,
    draw_cutmix,
    erase,
    mix_labels,
    mixup,
    paste,
    rectification_confidence,
    rectify_labels,
    semantic_labels,
    transplant,
    visible_fraction,
)
from longtail.rng import generator


@settings(deadline=None, max_examples=100)
@given(st.data(), st.integers(1, 40), st.integers(1, 40), st.floats(0, 1))
def test_cutmix_box_is_the_pixel_by_pixel_rule(data: st.DataObject, height: int, width: int, lam: float) -> None:
    row, column = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    box = cutmix_box((height, width), lam, (row, column))
    expected = torch.tensor(oracles.cutmix_mask(height, width, lam, row, column))
    filled = torch.zeros(height, width, dtype=torch.bool)
    filled[box.top : box.bottom, box.left : box.right] = True
    assert torch.equal(filled, expected)
    assert 0 <= box.top <= box.bottom <= height
    assert 0 <= box.left <= box.right <= width
    assert box.area == int(expected.sum())
    assert box.lam == 1 - box.area / (height * width)
    # Clipping and rounding only ever shrink the box.
    assert box.lam >= lam - 1e-12
    in_the_middle = height // 4 < row < height - height // 4 and width // 4 < column < width - width // 4
    if lam >= 0.75 and in_the_middle:
        assert (box.bottom - box.top) % 2 == 0
        assert (box.right - box.left) % 2 == 0


def test_a_box_of_side_one_is_empty() -> None:
    box = cutmix_box(32, 1 - (1.9 / 32) ** 2, (16, 16))
    assert box.area == 0
    assert box.lam == 1.0
    assert cutmix_box(32, 1 - (2.01 / 32) ** 2, (16, 16)).area == 4


def test_lambda_zero_at_the_center_covers_the_image() -> None:
    assert cutmix_box((32, 48), 0.0, (16, 24)) == Box(0, 32, 0, 48, 32, 48)
    assert cutmix_box((32, 48), 0.0, (16, 24)).lam == 0.0


def test_draw_cutmix_draws_lambda_coin_row_column_in_this_order() -> None:
    mixed = 0
    for seed in range(60):
        by_hand = generator(seed, "mix")
        lam = float(torch.rand(1, generator=by_hand, dtype=torch.float64))
        coin = float(torch.rand((), generator=by_hand, dtype=torch.float64))
        row = int(torch.randint(24, (), generator=by_hand))
        column = int(torch.randint(32, (), generator=by_hand))
        drawn = draw_cutmix((24, 32), generator(seed, "mix"))
        assert drawn == (cutmix_box((24, 32), lam, (row, column)) if coin < 0.5 else None)
        mixed += drawn is not None
    assert 15 < mixed < 45


def test_mean_lambda_of_mixed_batches_is_seven_tenths() -> None:
    g = generator(0, "mean lambda")
    boxes = [draw_cutmix(32, g, probability=1.0) for _ in range(1500)]
    lams = [box.lam for box in boxes if box is not None]
    assert len(lams) == 1500
    # The standard error is 0.007.
    assert sum(lams) / len(lams) == pytest.approx(0.70, abs=0.02)


def test_probability_zero_never_mixes_and_other_values_are_refused() -> None:
    g = generator(0, "never")
    assert all(draw_cutmix(8, g, probability=0.0) is None for _ in range(50))
    with pytest.raises(ValueError, match=r"probability must lie in \[0, 1\]"):
        draw_cutmix(8, g, probability=1.5)
    with pytest.raises(ValueError, match="no room for a box"):
        draw_cutmix((0, 8), g)


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_beta_draws_have_the_mean_and_variance_of_beta(alpha: float) -> None:
    drawn = draw_beta(20000, alpha, generator(0, "beta"))
    assert drawn.dtype == torch.float64
    assert float(drawn.min()) >= 0
    assert float(drawn.max()) <= 1
    variance = 1 / (4 * (2 * alpha + 1))
    assert float(drawn.mean()) == pytest.approx(0.5, abs=5 * math.sqrt(variance / 20000))
    assert float(drawn.var()) == pytest.approx(variance, rel=0.05)
    assert torch.equal(drawn, draw_beta(20000, alpha, generator(0, "beta")))
    with pytest.raises(ValueError, match="alpha"):
        draw_beta(1, 0.0, generator(0))


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.integers(1, 20), st.integers(1, 20))
def test_boxes_around_and_masks_agree_with_one_box_at_a_time(seed: int, height: int, width: int) -> None:
    g = generator(seed, "boxes")
    centers = torch.stack((torch.randint(height, (5,), generator=g), torch.randint(width, (5,), generator=g)), 1)
    lam = torch.rand(5, generator=g, dtype=torch.float64)
    boxes = boxes_around(centers, lam, (height, width))
    masks = boxes_to_mask(boxes, (height, width))
    for i in range(5):
        box = cutmix_box((height, width), float(lam[i]), (int(centers[i, 0]), int(centers[i, 1])))
        assert boxes[i].tolist() == [box.top, box.bottom, box.left, box.right]
        assert int(masks[i].sum()) == box.area
        assert bool(masks[i, box.top : box.bottom, box.left : box.right].all())
        assert float(visible_fraction(boxes, (height, width))[i]) == pytest.approx(box.lam, abs=1e-6)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.integers(1, 20), st.integers(1, 20))
def test_shifted_boxes_have_one_area_whatever_the_center(seed: int, height: int, width: int) -> None:
    g = generator(seed, "shift")
    centers = torch.stack((torch.randint(height, (6,), generator=g), torch.randint(width, (6,), generator=g)), 1)
    lam = torch.rand(1, generator=g, dtype=torch.float64)
    boxes = boxes_around(centers, lam.expand(6), (height, width), at_edge="shift")
    middle = cutmix_box((height, width), float(lam), (height // 2, width // 2))
    assert boxes.min() >= 0
    assert (boxes[:, 1] <= height).all()
    assert (boxes[:, 3] <= width).all()
    assert ((boxes[:, 1] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 2]) == middle.area).all()


def pictures(seed: int) -> Tensor:
    return torch.randn(4, 3, 8, 10, generator=generator(seed, "pictures"))


def test_paste_takes_the_box_from_the_foreground_and_leaves_its_input() -> None:
    background, foreground = pictures(0), pictures(1)
    kept = background.clone()
    mixed = paste(background, foreground, Box(2, 6, 1, 9, 8, 10))
    inside = torch.zeros(8, 10, dtype=torch.bool)
    inside[2:6, 1:9] = True
    assert torch.equal(mixed[:, :, inside], foreground[:, :, inside])
    assert torch.equal(mixed[:, :, ~inside], background[:, :, ~inside])
    assert torch.equal(background, kept)
    assert mixed.data_ptr() != background.data_ptr()


def test_paste_with_a_box_per_image_agrees_with_one_box_for_all() -> None:
    background, foreground = pictures(0), pictures(1)
    one = Box(2, 6, 1, 9, 8, 10)
    assert torch.equal(
        paste(background, foreground, torch.tensor([[2, 6, 1, 9]] * 4)), paste(background, foreground, one)
    )


def test_an_empty_box_pastes_nothing() -> None:
    assert torch.equal(paste(pictures(0), pictures(1), Box(3, 3, 2, 5, 8, 10)), pictures(0))


def test_erase_sets_each_images_own_box_to_the_value() -> None:
    images = pictures(0)
    boxes = torch.tensor([[0, 8, 0, 10], [0, 0, 0, 0], [1, 3, 2, 4], [7, 8, 9, 10]])
    for value in (0.0, torch.tensor([1.0, 2.0, 3.0])):
        erased = erase(images, boxes, value)
        for i, (top, bottom, left, right) in enumerate(boxes.tolist()):
            expected = images[i].clone()
            expected[:, top:bottom, left:right] = torch.as_tensor(value).reshape(-1, 1, 1)
            assert torch.equal(erased[i], expected)


@settings(deadline=None, max_examples=60)
@given(st.data(), st.integers(1, 12), st.integers(1, 12))
def test_boxes_like_a_box_have_its_size_and_lie_as_near_to_their_centers_as_the_frame_lets_them(
    data: st.DataObject, height: int, width: int
) -> None:
    top, left = data.draw(st.integers(0, height)), data.draw(st.integers(0, width))
    bottom, right = data.draw(st.integers(top, height)), data.draw(st.integers(left, width))
    box = Box(top, bottom, left, right, height, width)
    centers = [(row, column) for row in range(height) for column in range(width)]
    made = boxes_like(box, torch.tensor(centers))
    assert made.dtype == torch.int64
    for center, (low, high, first, last) in zip(centers, made.tolist(), strict=True):
        for place, start, end, side, whole in (
            (center[0], low, high, bottom - top, height),
            (center[1], first, last, right - left, width),
        ):
            assert end - start == side
            assert start == min(range(whole - side + 1), key=lambda i: abs(i + side // 2 - place))
            assert side == 0 or start <= place < end, "a center lies in its box wherever it is"
    assert visible_fraction(made, (height, width)).tolist() == pytest.approx([box.lam] * len(centers), abs=1e-6)


@settings(deadline=None, max_examples=60)
@given(st.data(), st.integers(0, 10**6))
def test_transplant_is_the_slow_loop(data: st.DataObject, seed: int) -> None:
    height, width = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9))
    down, across = data.draw(st.integers(0, height)), data.draw(st.integers(0, width))
    box = Box(0, down, 0, across, height, width)
    g = generator(seed, "transplant")
    background, foreground = (torch.randn(3, 2, height, width, generator=g, dtype=torch.float64) for _ in range(2))
    boxes, sources = (
        boxes_like(
            box, torch.stack((torch.randint(height, (3,), generator=g), torch.randint(width, (3,), generator=g)), dim=1)
        )
        for _ in range(2)
    )
    kept = background.clone()
    moved = transplant(background, foreground, boxes, sources)
    for i in range(3):
        slow = oracles.transplanted(
            background[i].tolist(), foreground[i].tolist(), boxes[i].tolist(), sources[i].tolist()
        )
        assert moved[i].tolist() == slow
    assert torch.equal(background, kept)
    assert torch.equal(transplant(background, foreground, boxes, boxes), paste(background, foreground, boxes))


def test_boxes_of_unequal_size_are_not_transplanted() -> None:
    boxes, larger = torch.tensor([[0, 2, 0, 3]] * 4), torch.tensor([[0, 2, 0, 4]] * 4)
    with pytest.raises(ValueError, match="source_boxes must have the sizes of boxes"):
        transplant(pictures(0), pictures(1), boxes, larger)
    with pytest.raises(ValueError, match=r"source_boxes must be \(4, 4\)"):
        transplant(pictures(0), pictures(1), boxes, boxes[:3])
    with pytest.raises(ValueError, match="like the background"):
        transplant(pictures(0), pictures(1)[:3], boxes, boxes)
    with pytest.raises(ValueError, match=r"centers must be \(B, 2\)"):
        boxes_like(Box(0, 2, 0, 3, 8, 10), torch.zeros(3, 4))


def test_lambda_one_keeps_the_background_and_lambda_zero_the_foreground() -> None:
    a, b = torch.eye(4)[[0, 1, 2]], torch.eye(4)[[3, 1, 0]]
    assert torch.equal(mix_labels(a, b, 1.0), a)
    assert torch.equal(mix_labels(a, b, 0.0), b)
    assert torch.equal(mixup(pictures(0), pictures(1), 1.0), pictures(0))
    assert torch.equal(mixup(pictures(0), pictures(1), 0.0), pictures(1))


def test_a_lambda_per_image_is_that_lambda_for_each_image() -> None:
    lam = torch.tensor([0.0, 0.25, 0.5, 1.0])
    a, b = torch.eye(4), torch.eye(4).flip(0)
    mixed, images = mix_labels(a, b, lam), mixup(pictures(0), pictures(1), lam)
    for i in range(4):
        torch.testing.assert_close(mixed[i], mix_labels(a, b, float(lam[i]))[i])
        torch.testing.assert_close(images[i], mixup(pictures(0), pictures(1), float(lam[i]))[i])
    torch.testing.assert_close(mixed.sum(1), torch.ones(4))


def test_mixing_shapes_that_do_not_fit_are_refused_in_words() -> None:
    with pytest.raises(ValueError, match="like the background"):
        paste(pictures(0), pictures(1)[:3], Box(0, 1, 0, 1, 8, 10))
    with pytest.raises(ValueError, match=r"boxes \(3, 4\)"):
        erase(pictures(0), torch.zeros(3, 4, dtype=torch.long))
    with pytest.raises(ValueError, match=r"lam must be one number or \(4,\)"):
        mixup(pictures(0), pictures(1), torch.ones(3))
    with pytest.raises(ValueError, match=r"centers and lam must be \(B, 2\) and \(B,\)"):
        boxes_around(torch.zeros(3, 2), torch.zeros(2), 8)
    with pytest.raises(ValueError, match=r"boxes must be \(B, 4\)"):
        boxes_to_mask(torch.zeros(3, 2), 8)


def rectification(seed: int, batch: int, classes: int, width: int = 6) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Features, centers, area labels and counts."""
    g = generator(seed, "rectification")
    features = torch.randn(batch, width, generator=g, dtype=torch.float64)
    centers = torch.randn(classes, width, generator=g, dtype=torch.float64)
    ids = torch.randint(classes, (2, batch), generator=g)
    labels = mix_labels(*F.one_hot(ids, classes).double(), torch.rand(batch, generator=g, dtype=torch.float64))
    return features, centers, labels, torch.randint(0, 500, (classes,), generator=g)


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 10**6),
    st.integers(1, 6),
    st.integers(1, 9),
    st.sampled_from([0.0, 0.05, 1.0, 10.0, 1e6]),
    st.integers(1, 12),
    st.sampled_from(get_args(Confidence)),
)
def test_rectify_labels_is_the_slow_loop(
    seed: int, batch: int, classes: int, scale: float, topk: int, confidence: Confidence
) -> None:
    features, centers, labels, counts = rectification(seed, batch, classes)
    fast = rectify_labels(features, centers, labels, counts, scale=scale, topk=topk, confidence=confidence)
    lists = (features.tolist(), centers.tolist(), labels.tolist(), counts.tolist())
    slow = oracles.rectified_labels(*lists, scale, topk, confidence)
    torch.testing.assert_close(fast, torch.tensor(slow, dtype=torch.float64), rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(fast.sum(1), torch.ones(batch, dtype=torch.float64))
    assert (fast >= 0).all()


def test_the_confidence_of_a_pure_and_of_an_even_label() -> None:
    labels = torch.tensor([[1.0, 0, 0], [0.5, 0, 0.5]])
    semantic = torch.tensor([[0.25, 0.5, 0.25], [0.25, 0.5, 0.25]])

    def confidence(kind: Confidence) -> list[float]:
        return rectification_confidence(labels, [9, 9, 9], 0.5, kind=kind, semantic=semantic).tolist()

    assert confidence("frequency") == pytest.approx([0.5 / 3, 0.5 / 3])
    assert confidence("constant") == [0.5, 0.5]
    assert confidence("mixedness") == [0.0, 0.5]
    assert confidence("agreement") == [0.125, 0.25]


def test_a_huge_scale_clamps_the_confidence_to_one() -> None:
    features, centers, labels, counts = rectification(0, 5, 8)
    assert torch.equal(rectification_confidence(labels, counts + 2, 1e9), torch.ones(5, dtype=torch.float64))
    torch.testing.assert_close(
        rectify_labels(features, centers, labels, counts + 2, scale=1e9, topk=3), semantic_labels(features, centers, 3)
    )


def test_scale_zero_leaves_the_area_label() -> None:
    features, centers, labels, counts = rectification(1, 5, 8)
    assert torch.equal(rectify_labels(features, centers, labels, counts, scale=0.0, topk=3), labels)
    assert torch.equal(rectify_labels(features, centers, labels, 0 * counts, scale=0.0, topk=3), labels)


def test_confidence_is_the_formula_on_hand_numbers() -> None:
    labels = torch.tensor([[0.25, 0.75, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    gamma = rectification_confidence(labels, [100, 20, 5], 0.5)
    total = math.log(100) + math.log(20) + math.log(5)
    assert gamma.tolist() == pytest.approx([0.5 * math.log(40) / total, 0.5 * math.log(5) / total])


@pytest.mark.parametrize("counts", [[1, 1, 1], [0, 0, 0], [0, 1, 0]])
def test_no_logarithm_at_all_gives_confidence_zero(counts: list[int]) -> None:
    assert rectification_confidence(torch.eye(3), counts, 5.0).tolist() == [0.0, 0.0, 0.0]


def test_a_class_without_images_counts_as_log_zero_of_zero() -> None:
    with_empty = rectification_confidence(torch.tensor([[0.5, 0.5, 0.0]]), [100, 20, 0], 0.5)
    without = rectification_confidence(torch.tensor([[0.5, 0.5]]), [100, 20], 0.5)
    torch.testing.assert_close(with_empty, without)
    for scale in (0.0, 0.5):
        assert rectification_confidence(torch.tensor([[0.0, 0.0, 1.0]]), [100, 20, 0], scale).tolist() == [0.0]


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_a_feature_equal_to_a_center_takes_that_class_and_stays_finite(kind: torch.dtype) -> None:
    centers = torch.randn(5, 4, generator=generator(0, "equal")).to(kind)
    q = semantic_labels(centers[[3, 0]], centers, 4)
    assert q.dtype == torch.float32
    torch.testing.assert_close(q, torch.eye(5)[[3, 0]], rtol=0, atol=1e-6)
    twins = centers[[1, 1, 2]]
    torch.testing.assert_close(
        semantic_labels(centers[[1]], twins, 3), torch.tensor([[0.5, 0.5, 0.0]]), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("unit", [1e-6, 1.0, 1e15])
def test_semantic_labels_do_not_depend_on_the_unit_of_length(unit: float) -> None:
    features, centers, _, _ = rectification(2, 5, 8)
    q = semantic_labels((unit * features).float(), (unit * centers).float(), 3)
    torch.testing.assert_close(q, semantic_labels(features, centers, 3).float(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(q.sum(1), torch.ones(5))


def test_small_distances_far_from_the_origin_keep_their_ratio() -> None:
    # |u|^2 + |v|^2 - 2 u.v in float32 would see no distance here at all.
    centers = torch.full((2, 4), 1000.0)
    centers[0, 0] += 0.5
    centers[1, 0] -= 0.25
    q = semantic_labels(torch.full((1, 4), 1000.0), centers, 2)
    torch.testing.assert_close(q, torch.tensor([[1 / 3, 2 / 3]]))


def test_only_the_topk_nearest_classes_keep_a_share() -> None:
    features, centers, _, _ = rectification(3, 6, 9)
    nearest = torch.cdist(features, centers).argsort(1)
    for topk in (1, 4, 9):
        q = semantic_labels(features, centers, topk)
        assert ((q > 0).sum(1) == topk).all()
        assert torch.equal(q.argsort(1, descending=True)[:, :topk], nearest[:, :topk])
    assert torch.equal(semantic_labels(features, centers, 50), semantic_labels(features, centers, 9))


def test_one_class_keeps_its_label() -> None:
    label = rectify_labels(torch.ones(2, 3), torch.ones(1, 3), torch.ones(2, 1), [9], scale=1.0, topk=30)
    assert torch.equal(label, torch.ones(2, 1))


def test_rectified_labels_carry_no_gradient() -> None:
    features, centers, labels, counts = rectification(4, 3, 5)
    out = rectify_labels(
        features.requires_grad_(), centers.requires_grad_(), labels.requires_grad_(), counts, scale=1.0, topk=2
    )
    assert not out.requires_grad
    assert torch.is_grad_enabled()


def test_rectification_shapes_and_settings_that_do_not_fit_are_refused_in_words() -> None:
    features, centers, labels, counts = rectification(5, 3, 5)
    with pytest.raises(ValueError, match=r"labels must be \(B, C\) = \(3, 5\)"):
        rectify_labels(features, centers, labels[:2], counts, scale=1.0, topk=2)
    with pytest.raises(ValueError, match=r"features and centers must be \(B, D\) and \(C, D\)"):
        rectify_labels(features[:, :2], centers, labels, counts, scale=1.0, topk=2)
    with pytest.raises(ValueError, match=r"counts must be \(5,\)"):
        rectify_labels(features, centers, labels, counts[:4], scale=1.0, topk=2)
    with pytest.raises(ValueError, match="topk must be at least 1"):
        rectify_labels(features, centers, labels, counts, scale=1.0, topk=0)
    for scale in (-1.0, math.nan):
        with pytest.raises(ValueError, match="scale must be at least 0"):
            rectify_labels(features, centers, labels, counts, scale=scale, topk=2)
    with pytest.raises(ValueError, match="kind must be one of frequency, constant, mixedness, agreement"):
        rectification_confidence(labels, counts, 1.0, kind="none")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'agreement' needs the semantic labels"):
        rectification_confidence(labels, counts, 1.0, kind="agreement")
