"""The statistics of a study against slow loops, and their limits."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longtail.evaluation.intervals import paired_bootstrap
from longtail.rng import numpy_generator
from longtail.study.statistics import spread


def answers(*key: str | int, seeds: int = 3, images: int = 60, rate: float = 0.6) -> np.ndarray:
    return numpy_generator("study", *key).random((seeds, images)) < rate


def by_loop(a: np.ndarray, b: np.ndarray, strata: list[int], samples: int) -> tuple[float, float, float]:
    """The statistic in plain Python, resampling by drawing images one by one."""
    seeds, images = a.shape
    d = [sum(float(a[s, i]) - float(b[s, i]) for s in range(seeds)) / seeds for i in range(images)]
    members = {k: [i for i in range(images) if strata[i] == k] for k in sorted(set(strata))}

    def statistic(of_class: dict[int, list[int]]) -> float:
        return sum(sum(d[i] for i in drawn) / len(drawn) for drawn in of_class.values()) / len(of_class)

    rng = numpy_generator("by loop")
    found = sorted(
        statistic({k: [own[rng.integers(len(own))] for _ in own] for k, own in members.items()}) for _ in range(samples)
    )
    return statistic(members), found[round(0.025 * (samples - 1))], found[round(0.975 * (samples - 1))]


@pytest.mark.parametrize("strata", [None, [0] * 30 + [1] * 20 + [4] * 10])
def test_the_interval_is_that_of_drawing_images_one_by_one(strata: list[int] | None) -> None:
    a, b = answers("a"), answers("b", rate=0.45)
    found = paired_bootstrap(a, b, strata=strata, samples=20_000)
    difference, low, high = by_loop(a, b, strata or [0] * 60, 4000)
    assert found.difference == pytest.approx(difference, abs=1e-12)
    width = high - low
    assert found.low == pytest.approx(low, abs=0.06 * width)
    assert found.high == pytest.approx(high, abs=0.06 * width)


def test_the_interval_is_that_of_the_resamples_that_were_drawn() -> None:
    """The same draws, spelled out: how often each value of d comes in each resample of each class."""
    a, b, strata = answers("a", images=12), answers("b", images=12), np.array([0] * 5 + [2] * 7)
    rng, samples = numpy_generator(5, "study-bootstrap"), 50
    means = [0.0] * samples
    for k in (0, 2):
        own = [i for i in range(12) if strata[i] == k]
        won = sorted(sum(int(a[s, i]) - int(b[s, i]) for s in range(3)) for i in own)
        values = sorted(set(won))
        drawn = rng.multinomial(len(own), [won.count(value) / len(own) for value in values], size=samples)
        for sample in range(samples):
            spelled = [value for value, times in zip(values, drawn[sample], strict=True) for _ in range(times)]
            means[sample] += sum(spelled) / len(own) / 3 / 2
    found = paired_bootstrap(a, b, seed=5, strata=strata, samples=samples)
    assert found.low == pytest.approx(np.quantile(means, 0.025), abs=1e-12)
    assert found.high == pytest.approx(np.quantile(means, 0.975), abs=1e-12)


def test_equal_answers_differ_by_nothing() -> None:
    assert paired_bootstrap(answers("a"), answers("a")) == (0.0, 0.0, 0.0)


def test_always_right_against_always_wrong_is_one_without_doubt() -> None:
    assert paired_bootstrap(np.ones((2, 9)), np.zeros((2, 9))) == (1.0, 1.0, 1.0)


def test_two_runs_are_two_tables_of_one_seed() -> None:
    a, b = answers("a", seeds=1, images=400), answers("b", seeds=1, images=400, rate=0.5)
    assert paired_bootstrap(a, b) == paired_bootstrap(a[0], b[0])


def test_the_same_call_gives_the_same_interval_and_another_seed_another() -> None:
    a, b = answers("a"), answers("b")
    assert paired_bootstrap(a, b, seed=1) == paired_bootstrap(a, b, seed=1)
    assert paired_bootstrap(a, b, seed=1) != paired_bootstrap(a, b, seed=2)


def test_a_class_counts_once_however_many_images_it_has() -> None:
    a, b = np.array([[1, 1, 1, 1, 0]]), np.zeros((1, 5))
    assert paired_bootstrap(a, b).difference == pytest.approx(0.8)
    assert paired_bootstrap(a, b, strata=[0, 0, 0, 0, 7]).difference == pytest.approx(0.5)


def test_more_images_make_the_interval_narrower_by_their_root() -> None:
    few, many = (paired_bootstrap(answers("a", images=n), answers("b", images=n)) for n in (100, 10_000))
    assert (few.high - few.low) / (many.high - many.low) == pytest.approx(10, rel=0.25)


@given(st.integers(1, 4), st.integers(1, 40), st.integers(0, 1000))
def test_the_interval_turns_around_with_its_sides_and_holds_the_difference(seeds: int, images: int, key: int) -> None:
    a, b = answers("a", key, seeds=seeds, images=images), answers("b", key, seeds=seeds, images=images)
    there, back = paired_bootstrap(a, b, samples=200), paired_bootstrap(b, a, samples=200)
    assert there.difference == pytest.approx(a.mean() - b.mean(), abs=1e-12)
    assert there.difference == -back.difference
    for one in (there, back):
        assert -1 <= one.low <= one.high <= 1
        assert one.low - 1e-12 <= one.difference <= one.high + 1e-12 or images < 10


@pytest.mark.parametrize(
    ("a", "b", "strata"),
    [
        (np.ones((2, 3)), np.ones((2, 4)), None),
        (np.ones(3), np.ones(4), None),
        (np.ones((1, 2, 3)), np.ones((1, 2, 3)), None),
        (np.ones((2, 0)), np.ones((2, 0)), None),
        (np.ones((0, 3)), np.ones((0, 3)), None),
        (np.ones((2, 3)), np.ones((2, 3)), [0, 1]),
    ],
)
def test_shapes_that_do_not_fit_are_refused(a: np.ndarray, b: np.ndarray, strata: list[int] | None) -> None:
    with pytest.raises(ValueError, match="shape"):
        paired_bootstrap(a, b, strata=strata)


def test_the_deviation_is_the_sample_deviation_and_empty_groups_are_left_out() -> None:
    values = [0.1, 0.4, None, 0.7]
    found = spread(values)
    assert found is not None
    mean = (0.1 + 0.4 + 0.7) / 3
    assert found.mean == pytest.approx(mean)
    assert found.deviation == pytest.approx(math.sqrt(sum((v - mean) ** 2 for v in (0.1, 0.4, 0.7)) / 2))
    assert found.n == 3
    assert spread([0.3]) == (0.3, None, 1)
    assert spread([None]) is None
    assert spread([]) is None
