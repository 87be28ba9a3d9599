"""Keyed randomness: the same key gives the same numbers everywhere, another key gives others."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from longtail.rng import generator, key, keyed_global_rng, numpy_generator

PARTS = st.lists(st.integers() | st.text(max_size=6), max_size=4)


def draws(*parts: str | int) -> list[float]:
    return [float(number) for number in torch.rand(4, generator=generator(*parts))]


def test_the_numbers_of_a_key_never_change_from_process_to_process() -> None:
    """Published results stand on these: a change here moves every number there is."""
    assert key(0, "mix", 17) == 2920370910197044031
    assert key() == 6510301506637419378
    assert int(torch.randint(2**31, (), generator=generator(0, "mix", 17))) == 1390119407
    assert int(numpy_generator(0, "mix", 17).integers(2**31)) == 1632810414


@given(PARTS, PARTS)
def test_two_keys_are_equal_only_if_their_parts_are(one: list[str | int], other: list[str | int]) -> None:
    assert (key(*one) == key(*other)) == (one == other)


def test_a_number_is_not_its_digits_and_two_words_are_not_one() -> None:
    assert len({key(1), key("1"), key("i1"), key("s1")}) == 4
    assert len({key("ab"), key("a", "b"), key("a", "", "b"), key("", "ab")}) == 4
    assert key(1, "a") != key("a", 1)


@given(PARTS)
def test_a_key_fits_the_generators(parts: list[str | int]) -> None:
    assert 0 <= key(*parts) < 2**63
    generator(*parts)
    numpy_generator(*parts)


def test_equal_keys_draw_equal_numbers_whatever_was_drawn_before() -> None:
    first = draws(7, "view", 0, 3)
    torch.rand(100)
    generator(7, "view", 0, 3)
    assert draws(7, "view", 0, 3) == first
    assert draws(7, "view", 1, 3) != first
    assert draws(8, "view", 0, 3) != first


def test_neighboring_keys_are_not_correlated() -> None:
    """Seeds that differ by one bit may give related first numbers; hashed keys do not."""
    numbers = torch.tensor([draws(0, "mix", step) for step in range(2000)], dtype=torch.float64)
    correlation = torch.corrcoef(torch.cat([numbers[:-1], numbers[1:]], dim=1).T)
    off_diagonal = correlation - torch.eye(len(correlation))
    assert float(off_diagonal.abs().max()) < 5 / 2000**0.5
    assert abs(float(numbers.mean()) - 0.5) < 5 * (1 / 12 / numbers.numel()) ** 0.5


def test_the_global_stream_inside_the_fence_depends_on_the_key_alone() -> None:
    def inside(*parts: str | int) -> list[float]:
        with keyed_global_rng(*parts):
            return [float(number) for number in torch.rand(3)]

    first = inside(0, "step", 1)
    torch.rand(5)
    assert inside(0, "step", 1) == first
    assert inside(0, "step", 2) != first


def test_the_global_stream_outside_the_fence_is_as_if_nothing_was_drawn() -> None:
    before = torch.get_rng_state()
    with keyed_global_rng(0, "step", 1):
        torch.rand(10)
    assert torch.equal(torch.get_rng_state(), before)


def test_an_accelerator_is_fenced_too(monkeypatch: pytest.MonkeyPatch) -> None:
    with keyed_global_rng(0, "dropout", 3):
        alone = torch.rand(3)
    seeded: list[int] = []
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(
        torch, "manual_seed", lambda seed: (seeded.append(seed), torch.default_generator.manual_seed(seed))
    )
    with keyed_global_rng(0, "dropout", 3):
        beside = torch.rand(3)
    assert seeded == [key(0, "dropout", 3)]
    assert torch.equal(alone, beside)
