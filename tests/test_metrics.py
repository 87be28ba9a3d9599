"""Metrics against scikit-learn, slow loops and numbers worked out by hand."""

from __future__ import annotations

import math
from statistics import geometric_mean, harmonic_mean

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, confusion_matrix, f1_score

from longtail.evaluation.intervals import paired_bootstrap, wilson_interval
from longtail.evaluation.metrics import (
    background_accuracy,
    compute_metrics,
    confusion,
    expected_calibration_error,
    group_accuracies,
    group_labels,
    per_class_accuracy,
    thirds,
)
from longtail.rng import numpy_generator


def drawn(seed: int, images: int, classes: int, skill: float = 2.0) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities (images, classes) of a model of some skill, and the targets."""
    rng = numpy_generator(seed, "test-metrics")
    targets = rng.integers(0, classes, size=images)
    logits = rng.normal(size=(images, classes))
    logits[np.arange(images), targets] += skill * rng.uniform(size=images)
    exponent = np.exp(logits)
    return exponent / exponent.sum(axis=1, keepdims=True), targets


def certain(predicted: list[int], classes: int) -> np.ndarray:
    return np.eye(classes)[predicted]


@pytest.mark.parametrize(("seed", "images", "classes"), [(1, 400, 10), (2, 40, 30), (3, 7, 3), (4, 1, 5)])
def test_metrics_agree_with_scikit_learn_and_a_slow_loop(seed: int, images: int, classes: int) -> None:
    probabilities, targets = drawn(seed, images, classes)
    counts = np.geomspace(400, 3, classes).astype(int)
    found = compute_metrics(probabilities, targets, counts)
    predicted = [max(range(classes), key=lambda c, row=row: row[c]) for row in probabilities.tolist()]
    assert found.top1 == pytest.approx(np.mean([p == t for p, t in zip(predicted, targets, strict=True)]))
    recalls: dict[int, float] = {}
    for c in range(classes):
        hits = [p == c for p, t in zip(predicted, targets, strict=True) if t == c]
        if hits:
            recalls[c] = sum(hits) / len(hits)
    assert found.macro_f1 == pytest.approx(
        f1_score(targets, predicted, labels=np.unique(targets), average="macro", zero_division=0), abs=1e-12
    )
    assert found.balanced_accuracy == pytest.approx(np.mean(list(recalls.values())), abs=1e-12)
    for name, inside in (
        ("many", lambda n: n > 100),
        ("medium", lambda n: 20 <= n <= 100),
        ("few", lambda n: n < 20),
    ):
        members = [r for c, r in recalls.items() if inside(counts[c])]
        assert getattr(found, name) == (pytest.approx(sum(members) / len(members)) if members else None)
    lowest = sorted(recalls.values())
    assert found.worst_class == lowest[0]
    assert found.worst_tenth == pytest.approx(np.mean(lowest[: math.ceil(len(lowest) / 10)]))
    assert found.g_mean == pytest.approx(geometric_mean(lowest) if lowest[0] > 0 else 0.0)
    assert found.h_mean == pytest.approx(harmonic_mean(lowest) if lowest[0] > 0 else 0.0)


def test_balanced_accuracy_is_scikit_learns_where_every_class_is_tested() -> None:
    probabilities, targets = drawn(5, 500, 6)
    found = compute_metrics(probabilities, targets, [200] * 6)
    assert found.balanced_accuracy == pytest.approx(
        balanced_accuracy_score(targets, probabilities.argmax(1)), abs=1e-12
    )
    assert found.macro_f1 == pytest.approx(f1_score(targets, probabilities.argmax(1), average="macro"), abs=1e-12)


@pytest.mark.parametrize(("classes", "lowest"), [(9, 1), (10, 1), (11, 2), (30, 3), (31, 4)])
def test_worst_tenth_rounds_the_number_of_classes_up(classes: int, lowest: int) -> None:
    targets = np.repeat(np.arange(classes), 2)
    predicted = targets.copy()
    predicted[[0, 1, 2]] = classes - 1
    found = compute_metrics(certain(predicted.tolist(), classes), targets, [50] * classes)
    assert found.worst_tenth == pytest.approx(np.mean([0, 0.5, 1, 1][:lowest]))


def test_an_empty_group_is_none_and_neither_zero_nor_nan() -> None:
    found = compute_metrics(certain([0, 1, 1], 3), [0, 1, 2], [5000, 400, 101])
    assert (found.medium, found.few) == (None, None)
    assert found.many == pytest.approx(2 / 3)
    assert found.as_dict()["few"] is None


def test_a_group_whose_classes_have_no_test_image_is_none() -> None:
    found = compute_metrics(certain([0, 1], 3), [0, 1], [500, 50, 5])
    assert (found.many, found.medium, found.few) == (1.0, 1.0, None)


def test_a_class_without_test_images_is_left_out_of_every_mean() -> None:
    with_it = compute_metrics(certain([0, 1, 0, 1], 3), [0, 1, 1, 0], [500, 400, 300])
    without = compute_metrics(certain([0, 1, 0, 1], 2), [0, 1, 1, 0], [500, 400])
    assert with_it == without


def test_groups_have_their_limits_in_the_medium_group() -> None:
    assert group_labels([101, 100, 20, 19, 0]) == ["many", "medium", "medium", "few", "few"]
    assert group_labels([101, 100, 20, 19], groups=(50, 20)) == ["many", "many", "medium", "few"]


def test_group_accuracy_weighs_classes_not_images() -> None:
    targets = [0] * 9 + [1]
    recalls = per_class_accuracy([0] * 10, targets, 2)
    assert group_accuracies(recalls, [300, 200]) == {"many": 0.5, "medium": None, "few": None}


@pytest.mark.parametrize(
    ("profile", "expected"),
    [(100, {"many": 35, "medium": 35, "few": 30}), (10, {"many": 69, "medium": 31, "few": 0})],
)
def test_groups_of_long_tailed_cifar100_are_those_of_the_field(profile: int, expected: dict[str, int]) -> None:
    counts = [int(500 * profile ** (-i / 99)) for i in range(100)]
    labels = group_labels(counts)
    assert {name: labels.count(name) for name in expected} == expected


def test_thirds_rank_by_training_images_and_keep_label_order_on_ties() -> None:
    recalls = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7])
    found = thirds(recalls, [5, 9, 9, 1, 9, 5, 1])
    # Ranked: 1, 2, 4 | 0, 5 | 3, 6
    assert found == pytest.approx({"head": (0.2 + 0.3 + 0.5) / 3, "middle": 0.35, "tail": 0.55})


def test_thirds_of_two_classes_have_an_empty_tail() -> None:
    assert thirds([0.5, np.nan], [9, 8]) == {"head": 0.5, "middle": None, "tail": None}


def test_calibration_error_worked_out_by_hand() -> None:
    # Bins up to 1/3, 2/3, 1: {1/3, 0.0} with accuracy 1/2 and mean 1/6; {0.6} wrong; {0.9, 1.0} both right.
    confidence = [1 / 3, 0.0, 0.6, 0.9, 1.0]
    correct = [True, False, False, True, True]
    expected = 2 / 5 * abs(1 / 2 - 1 / 6) + 1 / 5 * 0.6 + 2 / 5 * abs(1 - 0.95)
    assert expected_calibration_error(confidence, correct, bins=3) == pytest.approx(expected, abs=1e-12)


def test_calibration_error_of_a_sure_and_wrong_model_is_one() -> None:
    assert compute_metrics(certain([1, 0], 2), [0, 1], [30, 30]).ece == 1.0
    assert compute_metrics(certain([0, 1], 2), [0, 1], [30, 30]).ece == 0.0


def test_calibration_error_of_fifteen_bins_is_that_of_a_slow_loop() -> None:
    probabilities, targets = drawn(6, 1000, 4)
    confidence, hit = probabilities.max(1), probabilities.argmax(1) == targets
    expected = 0.0
    for b in range(15):
        rows = [i for i, p in enumerate(confidence) if b / 15 < p <= (b + 1) / 15]
        if rows:
            gap = abs(np.mean([hit[i] for i in rows]) - np.mean([confidence[i] for i in rows]))
            expected += len(rows) / len(confidence) * gap
    assert compute_metrics(probabilities, targets, [9] * 4).ece == pytest.approx(expected, abs=1e-12)


def test_confusion_is_scikit_learns() -> None:
    probabilities, targets = drawn(7, 300, 8)
    predicted = probabilities.argmax(1)
    assert (confusion(targets, predicted, 8) == confusion_matrix(targets, predicted, labels=range(8))).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_tensors_of_every_float_type_are_taken(dtype: torch.dtype) -> None:
    probabilities, targets = drawn(8, 64, 5)
    table = torch.tensor(probabilities).to(dtype).requires_grad_()
    found = compute_metrics(table, torch.tensor(targets), torch.tensor([500, 60, 50, 9, 8]))
    expected = compute_metrics(probabilities, targets, [500, 60, 50, 9, 8])
    assert found.few == expected.few
    assert found.ece == pytest.approx(expected.ece, abs=0.02)
    assert all(type(value) is float for value in found.as_dict().values())


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_probabilities_that_are_not_finite_are_refused_with_the_image(broken: float) -> None:
    probabilities, targets = drawn(9, 20, 4)
    probabilities[13, 2] = broken
    with pytest.raises(ValueError, match="not finite, first: 13"):
        compute_metrics(probabilities, targets, [9] * 4)


@pytest.mark.parametrize(
    ("probabilities", "targets", "counts", "words"),
    [
        (np.array([[3.0, -1.0]]), [0], [5, 5], "logits"),
        (np.array([[0.5, 0.5]]), [2], [5, 5], r"integers in \[0, 2\)"),
        (np.array([[0.5, 0.5]]), [-1], [5, 5], r"integers in \[0, 2\)"),
        (np.array([[0.5, 0.5]]), [0.5], [5, 5], r"integers in \[0, 2\)"),
        (np.array([[0.5, 0.5]]), [0, 1], [5, 5], "targets has shape"),
        (np.array([[0.5, 0.5]]), [0], [5, 5, 5], "train_counts has shape"),
        (np.zeros((0, 2)), [], [5, 5], "at least one"),
        (np.array([0.5, 0.5]), [0, 1], [5, 5], "at least one"),
    ],
)
def test_input_that_does_not_fit_is_refused(probabilities, targets, counts, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        compute_metrics(probabilities, targets, counts)


def test_background_accuracy_is_that_of_a_slow_loop() -> None:
    rng = numpy_generator(10, "test-backgrounds")
    targets, predicted = rng.integers(0, 4, 200), rng.integers(0, 4, 200)
    backgrounds, seen = rng.integers(0, 3, 200), rng.uniform(size=(4, 3)) < 0.5
    seen[0] = True  # class 0 has no unseen background and is left out of that mean
    for name, wanted in (("seen", True), ("unseen", False)):
        means = []
        for c in range(4):
            hits = [predicted[i] == c for i in range(200) if targets[i] == c and seen[c, backgrounds[i]] == wanted]
            if hits:
                means.append(np.mean(hits))
        found = background_accuracy(predicted, targets, backgrounds, seen)[name]
        assert found == pytest.approx(np.mean(means), abs=1e-12)


def test_background_accuracy_without_unseen_backgrounds_is_none() -> None:
    assert background_accuracy([0, 1], [0, 0], [0, 0], np.ones((2, 1), bool)) == {"seen": 0.5, "unseen": None}


def test_paired_bootstrap_covers_the_true_difference_nineteen_times_in_twenty() -> None:
    rng = numpy_generator(11, "test-coverage")
    inside = 0
    for trial in range(400):
        shared = rng.uniform(size=300)  # the same image is hard for both
        a, b = shared < 0.6, np.where(rng.uniform(size=300) < 0.7, shared, rng.uniform(size=300)) < 0.5
        _, low, high = paired_bootstrap(a, b, seed=trial, samples=500)
        inside += low <= 0.1 <= high
    assert 0.92 <= inside / 400 <= 0.98


def test_paired_bootstrap_has_the_interval_of_resampled_images() -> None:
    rng = numpy_generator(12, "test-bootstrap")
    a, b = rng.uniform(size=500) < 0.7, rng.uniform(size=500) < 0.6
    difference, low, high = paired_bootstrap(a, b, seed=1, samples=20_000)
    gaps = a.astype(float) - b
    resampled = [gaps[rng.integers(0, 500, 500)].mean() for _ in range(5000)]
    assert difference == pytest.approx(a.mean() - b.mean())
    assert (low, high) == pytest.approx(np.quantile(resampled, [0.025, 0.975]), abs=0.006)


def test_paired_bootstrap_uses_the_pairing_and_is_keyed() -> None:
    rng = numpy_generator(13, "test-pairs")
    a = rng.uniform(size=1000) < 0.5
    b = a.copy()
    b[:10] = False
    paired = paired_bootstrap(a, b, seed=3)
    unpaired = rng.permutation(b)
    shuffled = paired_bootstrap(a, unpaired, seed=3)
    assert paired[2] - paired[1] < 0.3 * (shuffled[2] - shuffled[1])
    assert shuffled == paired_bootstrap(a, unpaired, seed=3) != paired_bootstrap(a, unpaired, seed=4)
    assert paired_bootstrap(a, a, seed=3) == (0.0, 0.0, 0.0)


def test_paired_bootstrap_refuses_lists_of_different_length() -> None:
    with pytest.raises(ValueError, match="equal shape"):
        paired_bootstrap([True], [True, False], seed=1)


def test_wilson_interval_is_the_published_one() -> None:
    # Newcombe 1998, table I: 81 of 263, 15 of 148, 0 of 20, 1 of 29.
    for hits, images, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0, 0.1611)):
        assert wilson_interval(hits / images, images) == pytest.approx((low, high), abs=5e-5)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 6), st.lists(st.integers(0, 10**6), min_size=1, max_size=40), st.integers(0, 10**6))
def test_metrics_are_fractions_in_the_order_that_their_definitions_give(
    classes: int, raw: list[int], seed: int
) -> None:
    targets = [r % classes for r in raw]
    probabilities = numpy_generator(seed, "fractions").dirichlet(np.ones(classes), size=len(raw))
    found = compute_metrics(probabilities, targets, [5 * 9**c for c in range(classes)])
    assert all(value is None or 0 <= value <= 1 for value in found.as_dict().values())
    eps = 1e-12
    assert found.worst_class <= found.worst_tenth + eps
    assert found.worst_class <= found.h_mean + eps or found.h_mean == 0
    assert found.h_mean <= found.g_mean + eps <= found.balanced_accuracy + 2 * eps
