"""Samplers: what they may draw, how often, and that the plan of an epoch covers it."""

import time
from collections.abc import Iterator
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from longtail.data import class_counts, effective_number_probabilities, sampling
from longtail.data.sampling import SAMPLERS, effective_number, effective_number_per_sample, epoch_plan, sampler_named
from longtail.errors import ConfigError, DataError
from longtail.rng import generator

# Class 1 and the classes from 4 on have no image; labels are not sorted.
COUNTS = [40, 0, 10, 2]
LABELS = torch.tensor([0] * 20 + [3, 2] + [0] * 20 + [2] * 9 + [3])

some_labels = st.lists(st.integers(0, 8), min_size=1, max_size=60).map(torch.tensor)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Two threads on a busy machine wait for each other and measure the scheduler."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def class_share(indices: Tensor, labels: Tensor = LABELS) -> Tensor:
    return torch.bincount(labels[indices], minlength=4).double() / len(indices)


@pytest.mark.parametrize("name", SAMPLERS)
@given(labels=some_labels, seed=st.integers(0, 1000))
def test_every_sampler_draws_n_valid_indices_and_repeats_with_its_key(name: str, labels: Tensor, seed: int) -> None:
    n = len(labels)
    first, again = (SAMPLERS[name](labels, n, generator(seed, name)) for _ in range(2))
    assert first.shape == (n,)
    assert first.dtype == torch.int64
    assert 0 <= int(first.min()) <= int(first.max()) < n
    assert torch.equal(first, again)


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_draws_differently_under_another_key(name: str) -> None:
    one, other = (SAMPLERS[name](LABELS, len(LABELS), generator(0, name, epoch)) for epoch in (0, 1))
    assert not torch.equal(one, other)


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_refuses_an_empty_set_or_draws_nothing(name: str) -> None:
    empty = torch.empty(0, dtype=torch.int64)
    if name == "shuffle":
        assert len(SAMPLERS[name](empty, 0, generator(0))) == 0
    else:
        with pytest.raises(DataError):
            SAMPLERS[name](empty, 3, generator(0))


@given(labels=some_labels, seed=st.integers(0, 1000))
def test_a_full_shuffle_is_a_permutation(labels: Tensor, seed: int) -> None:
    drawn = SAMPLERS["shuffle"](labels, len(labels), generator(seed))
    assert sorted(drawn.tolist()) == list(range(len(labels)))


def test_a_shuffle_of_more_images_than_there_are_is_refused() -> None:
    with pytest.raises(ConfigError):
        SAMPLERS["shuffle"](LABELS, len(LABELS) + 1, generator(0))


def expected_share(name: str) -> Tensor:
    n = torch.tensor(COUNTS, dtype=torch.float64)
    there = (n > 0).double()
    effective = [(1 - 0.9999**c) / (1 - 0.9999) if c else float("inf") for c in COUNTS]
    inverse = torch.tensor([1 / e for e in effective], dtype=torch.float64)
    weights = {
        "shuffle": n,
        "class_balanced": there,
        "effective_number": inverse,
        "effective_number_per_sample": n * inverse,
        "reversed": torch.tensor([40 / c if c else 0 for c in COUNTS], dtype=torch.float64),
    }[name]
    return weights / weights.sum()


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name != "shuffle"])
def test_class_shares_match_the_equation_within_four_standard_errors(name: str) -> None:
    n = 200_000
    expected = expected_share(name)
    error = (expected * (1 - expected) / n).sqrt()
    assert bool(((class_share(SAMPLERS[name](LABELS, n, generator(1, name))) - expected).abs() <= 4 * error).all())


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name != "shuffle"])
def test_images_of_one_class_are_equally_likely(name: str) -> None:
    drawn = SAMPLERS[name](LABELS, 200_000, generator(2, name))
    for k in (0, 2, 3):
        mine = torch.nonzero(LABELS.eq(k)).flatten()
        times = torch.bincount(drawn, minlength=len(LABELS))[mine].double()
        share = 1 / len(mine)
        spread = (times.sum() * share * (1 - share)).sqrt()
        assert bool(((times - times.sum() * share).abs() <= 4.5 * spread).all()), k


def test_effective_number_is_over_classes_and_the_per_sample_reading_is_almost_uniform() -> None:
    over_classes = class_share(effective_number(LABELS, 100_000, generator(3)))
    over_samples = class_share(effective_number_per_sample(LABELS, 100_000, generator(3)))
    assert over_classes[3] > 0.75, "the rarest class of 2 images among 40 and 10"
    torch.testing.assert_close(over_samples[[0, 2, 3]], torch.full((3,), 1 / 3, dtype=torch.float64), atol=0.01, rtol=0)


def test_beta_reaches_the_sampler() -> None:
    shares = class_share(partial(effective_number, beta=0.5)(LABELS, 100_000, generator(4)))
    expected = effective_number_probabilities(COUNTS, 0.5)
    torch.testing.assert_close(shares, expected, atol=0.01, rtol=0)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sampler_by_name_takes_beta_where_it_is_one_of_effective_numbers(name: str) -> None:
    def drawn(beta: float) -> Tensor:
        return sampler_named(name, beta)(LABELS, len(LABELS), generator(4, name))

    assert torch.equal(sampler_named(name)(LABELS, len(LABELS), generator(4, name)), drawn(0.9999))
    assert torch.equal(SAMPLERS[name](LABELS, len(LABELS), generator(4, name)), drawn(0.9999))
    assert torch.equal(drawn(0.0), drawn(0.9999)) == (not name.startswith("effective_number"))


def test_with_beta_zero_every_class_that_has_images_is_drawn_alike() -> None:
    shares = class_share(sampler_named("effective_number", 0.0)(LABELS, 100_000, generator(4)))
    expected = torch.tensor([1 / 3, 0, 1 / 3, 1 / 3], dtype=torch.float64)
    torch.testing.assert_close(shares, expected, atol=0.01, rtol=0)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.usefixtures("one_thread")
def test_sampling_an_epoch_of_cifar100_takes_less_than_five_milliseconds(name: str) -> None:
    labels = torch.arange(100).repeat_interleave(torch.tensor(class_counts(500, 100, 100)))
    times = []
    for repeat in range(9):
        start = time.perf_counter()
        SAMPLERS[name](labels, len(labels), generator(5, repeat))
        times.append(time.perf_counter() - start)
    # The fastest of several, since other work on the machine only ever adds time.
    assert min(times) < 0.005


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name != "shuffle"])
@pytest.mark.parametrize(("value", "expected"), [(0.0, 0), (1 - 2**-53, 4)])
def test_the_least_and_the_greatest_draw_stay_inside(
    name: str, value: float, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "_uniform", lambda n, _: torch.full((n,), value, dtype=torch.float64))
    labels = torch.tensor([1, 1, 3, 3, 3])
    assert SAMPLERS[name](labels, 3, generator(0)).tolist() == [expected] * 3


@given(n=st.integers(1, 70), batch=st.integers(1, 20), seed=st.integers(0, 99))
def test_an_epoch_plan_shows_every_image_once_and_keeps_the_short_batch(n: int, batch: int, seed: int) -> None:
    plan = epoch_plan(torch.zeros(n, dtype=torch.int64), batch, generator(seed))
    assert sorted(torch.cat(plan).tolist()) == list(range(n))
    assert all(len(part) == batch for part in plan[:-1])
    assert len(plan[-1]) <= batch + (batch > 1)
    if n > 1 and batch > 1:
        assert all(len(part) > 1 for part in plan)


def test_a_last_batch_of_one_image_joins_the_one_before() -> None:
    sizes = [len(part) for part in epoch_plan(torch.zeros(17, dtype=torch.int64), 8, generator(0))]
    assert sizes == [8, 9]
    assert [len(part) for part in epoch_plan(torch.zeros(18, dtype=torch.int64), 8, generator(0))] == [8, 8, 2]


def test_cifar100_at_imbalance_100_has_43_steps() -> None:
    plan = epoch_plan(torch.zeros(10847, dtype=torch.int64), 256, generator(0))
    assert len(plan) == 43
    assert len(plan[-1]) == 95


def test_an_epoch_plan_takes_any_sampler() -> None:
    plan = epoch_plan(LABELS, 16, generator(6), sampler=SAMPLERS["class_balanced"])
    assert torch.equal(torch.cat(plan), SAMPLERS["class_balanced"](LABELS, len(LABELS), generator(6)))


def test_a_batch_below_one_is_refused() -> None:
    with pytest.raises(ConfigError):
        epoch_plan(LABELS, 0, generator(0))
