"""The long tail: counts, the field's subset, validation from what is left over, statistics of the counts."""

import itertools
import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from longtail.data import ClassStats, class_counts, effective_number_probabilities, subsample
from longtail.data.longtail import hold_out_validation
from longtail.errors import ConfigError, DataError

TOTALS = {
    (100, 500): {10: 19573, 20: 15907, 50: 12608, 100: 10847, 200: 9502},
    (10, 5000): {10: 20431, 20: 17023, 50: 13996, 100: 12406, 200: 11203},
}
GROUPS = {
    (100, 500): {10: (69, 31, 0), 20: (53, 47, 0), 50: (41, 41, 18), 100: (35, 35, 30), 200: (30, 31, 39)},
    (10, 5000): {10: (10, 0, 0), 20: (10, 0, 0), 50: (9, 1, 0), 100: (8, 2, 0), 200: (7, 3, 0)},
}


@pytest.mark.parametrize(("classes", "n_max"), TOTALS)
@pytest.mark.parametrize("imbalance", [10, 20, 50, 100, 200])
def test_the_exponential_profile_has_the_published_totals(classes: int, n_max: int, imbalance: int) -> None:
    counts = class_counts(n_max, classes, imbalance)
    assert sum(counts) == TOTALS[classes, n_max][imbalance]
    assert counts[0] == n_max
    assert counts == sorted(counts, reverse=True)


@pytest.mark.parametrize(("classes", "n_max"), GROUPS)
@pytest.mark.parametrize("imbalance", [10, 20, 50, 100, 200])
def test_groups_have_the_published_sizes(classes: int, n_max: int, imbalance: int) -> None:
    groups = ClassStats(class_counts(n_max, classes, imbalance)).groups()
    assert tuple(len(ids) for ids in groups.values()) == GROUPS[classes, n_max][imbalance]


@pytest.mark.shared
def test_the_exponential_profile_equals_the_reference(shared: Path) -> None:
    with np.load(shared / "golden" / "concutmix_reference.npz") as golden:
        keys = [key for key in golden.files if key.startswith("exponential_profile/")]
        assert len(keys) == 10
        for key in keys:
            classes, imbalance = (int(part.lstrip("cif")) for part in key.split("/")[1].split("_"))
            assert class_counts(50000 // classes, classes, imbalance) == golden[key].tolist(), key


def test_the_step_profile_has_two_heights() -> None:
    assert class_counts(500, 6, 100, "step") == [500, 500, 500, 5, 5, 5]
    assert class_counts(500, 5, 3, "step") == [500, 500, 166, 166, 166]


def test_one_class_keeps_everything() -> None:
    assert class_counts(7, 1, 100) == [7]
    assert class_counts(7, 1, 100, "step") == [7]


def test_imbalance_one_keeps_every_image() -> None:
    assert class_counts(31, 7, 1) == [31] * 7
    assert class_counts(31, 7, 1, "step") == [31] * 7


@pytest.mark.parametrize("imbalance", [0.99, 0, -3, math.nan, math.inf])
def test_an_imbalance_below_one_or_not_finite_is_refused(imbalance: float) -> None:
    with pytest.raises(ConfigError, match="imbalance"):
        class_counts(500, 10, imbalance)


def test_an_unknown_profile_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match="'step'"):
        class_counts(500, 10, 10, "setp")


@pytest.mark.parametrize(("n_max", "classes"), [(500, 0), (500, -1), (-1, 10)])
def test_sizes_below_their_minimum_are_refused(n_max: int, classes: int) -> None:
    with pytest.raises(ConfigError):
        class_counts(n_max, classes, 10)


@pytest.mark.shared
@pytest.mark.parametrize("seed", [0, 10])
@pytest.mark.parametrize("imbalance", [10, 100])
def test_the_subset_equals_the_reference(shared: Path, seed: int, imbalance: int) -> None:
    with np.load(shared / "data" / "cifar100.npz") as archive:
        labels = archive["train_labels"]
    with np.load(shared / "golden" / "subset.npz") as golden:
        expected = golden[f"seed{seed}_if{imbalance}"]
    indices, unused = subsample(labels, class_counts(500, 100, imbalance), seed)
    assert indices.tolist() == expected.tolist()
    assert len(unused) == 50000 - len(indices)


def test_the_subset_is_one_stream_over_the_classes_in_label_order() -> None:
    labels = [2, 0, 1, 0, 2, 1, 0, 2, 1, 0]
    stream = np.random.RandomState(3)
    expected = []
    for label, count in enumerate([3, 2, 1]):
        mine = np.array([i for i, y in enumerate(labels) if y == label])
        stream.shuffle(mine)
        expected += mine.tolist()[:count]
    assert subsample(labels, [3, 2, 1], 3)[0].tolist() == expected


@st.composite
def labels_and_counts(draw: st.DrawFn) -> tuple[list[int], list[int]]:
    present = draw(st.lists(st.integers(0, 12), min_size=1, max_size=6))
    counts = [draw(st.integers(0, n)) for n in present]
    labels = draw(st.permutations([k for k, n in enumerate(present) for _ in range(n)]))
    return list(labels), counts


@given(labels_and_counts(), st.integers(0, 2**32 - 1))
def test_a_subset_and_its_rest_are_a_partition_with_the_asked_counts(
    case: tuple[list[int], list[int]], seed: int
) -> None:
    labels, counts = case
    indices, unused = subsample(labels, counts, seed)
    assert sorted(indices.tolist() + unused.tolist()) == list(range(len(labels)))
    assert [[labels[i] for i in indices].count(k) for k in range(len(counts))] == counts


def test_seeds_give_different_subsets_and_one_seed_the_same() -> None:
    labels = torch.arange(10).repeat_interleave(50)
    counts = class_counts(50, 10, 10)
    first, again, other = (subsample(labels, counts, seed)[0] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_too_few_images_are_refused_by_class_name_and_numbers() -> None:
    with pytest.raises(DataError, match=r"class 1 \('owl'\) needs 3 and has 2"):
        subsample([0, 0, 0, 1, 1], [3, 3], 0, class_names=["fox", "owl"])


@pytest.mark.parametrize("labels", [[0, 1, 2], [0, -1, 1]])
def test_labels_outside_the_classes_are_refused(labels: list[int]) -> None:
    with pytest.raises(DataError, match=r"outside 0\.\.1"):
        subsample(labels, [1, 1], 0)


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_subset_seed_that_numpy_does_not_take_is_refused(seed: int) -> None:
    with pytest.raises(ConfigError, match="subset_seed"):
        subsample([0, 1], [1, 1], seed)


def test_validation_comes_from_the_images_the_profile_left_unused() -> None:
    labels = torch.arange(3).repeat_interleave(20)
    chosen, unused = subsample(labels, [15, 10, 5], 0)
    train, val, notes = hold_out_validation(labels, chosen, unused, 5, 0)
    assert torch.equal(train, chosen)
    assert set(val.tolist()) <= set(unused.tolist())
    assert torch.bincount(labels[val]).tolist() == [5, 5, 5]
    assert len(notes) == 1


def test_a_class_at_full_size_gives_its_own_images_and_is_named() -> None:
    labels = torch.arange(3).repeat_interleave(20)
    chosen, unused = subsample(labels, [20, 17, 5], 0)
    train, val, notes = hold_out_validation(labels, chosen, unused, 5, 0, class_names=["elk", "gnu", "yak"])
    assert torch.bincount(labels[val]).tolist() == [5, 5, 5]
    assert torch.bincount(labels[train]).tolist() == [15, 15, 5]
    assert set(unused[labels[unused] == 1].tolist()) <= set(val.tolist()), "unused images go first"
    assert "elk, gnu" in notes[1]
    assert "yak" not in notes[1]


@given(labels_and_counts(), st.integers(0, 3), st.integers(0, 99))
def test_train_and_validation_never_share_an_image(
    case: tuple[list[int], list[int]], per_class: int, seed: int
) -> None:
    labels, counts = case
    chosen, unused = subsample(labels, counts, 0)
    try:
        train, val, _ = hold_out_validation(labels, chosen, unused, per_class, seed)
    except DataError:
        # Refused only where some class that has images cannot give that many and keep one.
        assert any(labels.count(k) - per_class < 1 for k in set(labels))
        return
    assert not set(train.tolist()) & set(val.tolist())
    assert len(set(val.tolist())) == len(val) == per_class * len(set(labels))
    assert all(i in chosen.tolist() for i in train.tolist())
    assert set(chosen.tolist()) - set(train.tolist()) <= set(val.tolist())


def test_validation_that_takes_the_last_training_image_is_refused() -> None:
    labels = [0] * 10 + [1] * 3
    chosen, unused = subsample(labels, [10, 3], 0)
    with pytest.raises(DataError, match=r"class 1 \('1'\) has 3 images, 3 were asked for"):
        hold_out_validation(labels, chosen, unused, 3, 0)
    train, _, _ = hold_out_validation(labels, chosen, unused, 2, 0)
    assert len(train) == 9


def test_validation_depends_on_its_seed_alone() -> None:
    labels = torch.arange(4).repeat_interleave(30)
    chosen, unused = subsample(labels, [10, 10, 10, 10], 0)
    first, again, other = (hold_out_validation(labels, chosen, unused, 5, seed)[1] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_group_borders_belong_to_medium() -> None:
    groups = ClassStats([101, 100, 20, 19, 0]).groups()
    assert groups == {"many": [0], "medium": [1, 2], "few": [3, 4]}


def test_groups_that_overlap_are_refused() -> None:
    with pytest.raises(ConfigError, match="overlap"):
        ClassStats([5, 5]).groups(many=10, few=20)


def test_thirds_rank_by_count_and_share_the_remainder() -> None:
    thirds = ClassStats([1, 90, 30, 30, 7]).thirds()
    assert thirds == {"head": [1, 2], "middle": [3, 4], "tail": [0]}


def test_the_log_prior_is_the_log_of_the_shares() -> None:
    prior = ClassStats([6, 3, 1]).log_prior(torch.float64)
    torch.testing.assert_close(prior, torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64).log())
    assert ClassStats([6, 3, 1]).log_prior().dtype == torch.float32


def test_the_log_prior_of_an_empty_class_is_finite_and_that_of_one_image() -> None:
    assert torch.equal(ClassStats([6, 3, 0]).log_prior(), ClassStats([6, 3, 1]).log_prior())


def test_counts_may_be_tensors_and_arrays() -> None:
    assert ClassStats(torch.tensor([3, 2])).counts == ClassStats(np.array([3, 2])).counts == [3, 2]


def test_negative_counts_are_refused() -> None:
    with pytest.raises(DataError):
        ClassStats([3, -1])


def exact_probabilities(counts: list[int], beta: float) -> list[float]:
    """The equation in rational arithmetic, so that nothing cancels."""
    b = Fraction(beta)
    inverse = [(1 - b) / (1 - b**n) if n else Fraction(0) for n in counts]
    return [float(value / sum(inverse)) for value in inverse]


@pytest.mark.parametrize("beta", [0.5, 0.9, 0.999, 0.9999, 1 - 1e-7, 1 - 1e-10, 1 - 1e-13, 1 - 2**-53])
def test_effective_number_probabilities_equal_exact_arithmetic(beta: float) -> None:
    counts = [50, 20, 5, 0, 1]
    expected = torch.tensor(exact_probabilities(counts, beta), dtype=torch.float64)
    torch.testing.assert_close(effective_number_probabilities(counts, beta), expected, rtol=1e-12, atol=0)


def test_effective_number_limits_are_uniform_and_inverse_frequency() -> None:
    assert effective_number_probabilities([50, 0, 1], 0).tolist() == [0.5, 0, 0.5]
    assert effective_number_probabilities([3, 0, 1], 1).tolist() == [0.25, 0, 0.75]
    assert effective_number_probabilities([3, 1], 5e-324).tolist() == [0.5, 0.5]


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=30), st.floats(0, 1))
def test_effective_number_probabilities_sum_to_one_and_favor_rare_classes(counts: list[int], beta: float) -> None:
    if not any(counts):
        with pytest.raises(DataError):
            effective_number_probabilities(counts, beta)
        return
    p = effective_number_probabilities(counts, beta)
    assert math.isclose(float(p.sum()), 1, rel_tol=1e-12)
    assert [bool(v > 0) for v in p] == [n > 0 for n in counts]
    ranked = [float(p[k]) for k in sorted(range(len(counts)), key=counts.__getitem__) if counts[k]]
    assert all(rarer >= commoner for rarer, commoner in itertools.pairwise(ranked))


@pytest.mark.parametrize("beta", [-0.1, 1.1, math.nan])
def test_beta_outside_its_range_is_refused(beta: float) -> None:
    with pytest.raises(ConfigError, match="beta"):
        effective_number_probabilities([1, 2], beta)
