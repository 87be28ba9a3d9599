from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import oracles
from longtail.losses import cross_entropy, logit_adjustment
from longtail.rng import generator


def batch(seed: int, size: int, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, class ids and soft targets."""
    g = generator(seed, "cross-entropy test")
    logits = 4 * torch.randn(size, classes, generator=g, dtype=torch.float64)
    soft = torch.rand(size, classes, generator=g, dtype=torch.float64)
    return logits, torch.randint(classes, (size,), generator=g), soft / soft.sum(1, keepdim=True)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.integers(1, 9), st.integers(1, 7), st.booleans(), st.booleans(), st.booleans())
def test_cross_entropy_is_the_slow_loop(
    seed: int, size: int, classes: int, soft: bool, with_offset: bool, with_weight: bool
) -> None:
    logits, ids, shares = batch(seed, size, classes)
    g = generator(seed, "vectors")
    offset = torch.randn(classes, generator=g, dtype=torch.float64) if with_offset else None
    weight = torch.rand(classes, generator=g, dtype=torch.float64) + 0.1 if with_weight else None
    target = shares if soft else ids
    fast = cross_entropy(logits, target, offset=offset, weight=weight)
    slow = oracles.cross_entropy(
        logits.tolist(),
        target.tolist(),
        None if offset is None else offset.tolist(),
        None if weight is None else weight.tolist(),
    )
    assert float(fast) == pytest.approx(slow, rel=1e-12, abs=1e-14)


def test_balanced_softmax_with_uniform_prior_is_cross_entropy() -> None:
    logits, ids, soft = batch(0, 16, 10)
    offset = logit_adjustment([50] * 10)
    for target in (ids, soft):
        torch.testing.assert_close(cross_entropy(logits, target, offset=offset), cross_entropy(logits, target))


def test_balanced_softmax_is_a_softmax_weighted_by_counts() -> None:
    logits, ids, _ = batch(1, 8, 4)
    counts = torch.tensor([100.0, 30.0, 7.0, 1.0], dtype=torch.float64)
    weighted = counts * logits.exp()
    expected = -(weighted.gather(1, ids[:, None]).squeeze(1) / weighted.sum(1)).log().mean()
    torch.testing.assert_close(cross_entropy(logits, ids, offset=logit_adjustment(counts)), expected, rtol=1e-6, atol=0)


def test_hard_targets_with_weight_agree_with_torch() -> None:
    logits, ids, _ = batch(2, 16, 5)
    weight = torch.tensor([0.2, 1.0, 3.0, 0.5, 2.0], dtype=torch.float64)
    torch.testing.assert_close(cross_entropy(logits, ids, weight=weight), F.cross_entropy(logits, ids, weight=weight))
    torch.testing.assert_close(cross_entropy(logits, ids), F.cross_entropy(logits, ids))


def test_soft_targets_without_weight_agree_with_torch() -> None:
    logits, _, soft = batch(3, 16, 5)
    torch.testing.assert_close(cross_entropy(logits, soft), F.cross_entropy(logits, soft))


@pytest.mark.parametrize("weight", [None, torch.tensor([0.2, 1.0, 3.0, 0.5, 2.0])])
def test_one_hot_soft_target_gives_the_hard_value_and_gradient(weight: Tensor | None) -> None:
    logits, ids, _ = batch(4, 16, 5)
    hard, soft = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    a = cross_entropy(hard, ids, weight=weight)
    b = cross_entropy(soft, F.one_hot(ids, 5).double(), weight=weight)
    a.backward()
    b.backward()
    torch.testing.assert_close(a, b)
    torch.testing.assert_close(hard.grad, soft.grad)


def test_mixed_label_is_the_mix_of_two_cross_entropies() -> None:
    logits, ids, _ = batch(5, 12, 6)
    partner = ids.roll(1)
    mixed = 0.3 * F.one_hot(ids, 6).double() + 0.7 * F.one_hot(partner, 6).double()
    expected = 0.3 * cross_entropy(logits, ids) + 0.7 * cross_entropy(logits, partner)
    torch.testing.assert_close(cross_entropy(logits, mixed), expected)


def test_cross_entropy_gradient_is_right_to_finite_differences() -> None:
    logits, ids, soft = batch(6, 4, 5)
    offset = logit_adjustment([40, 20, 10, 5, 1]).double()
    weight = torch.tensor([1.0, 2.0, 0.5, 3.0, 1.5], dtype=torch.float64)
    for target in (ids, soft):
        assert torch.autograd.gradcheck(
            lambda x, t=target: cross_entropy(x, t, offset=offset, weight=weight), logits.clone().requires_grad_()
        )


def test_cross_entropy_survives_logits_of_a_thousand() -> None:
    logits = torch.tensor([[1000.0, -1000.0], [-1000.0, 1000.0]], requires_grad=True)
    loss = cross_entropy(logits, torch.tensor([0, 0]))
    loss.backward()
    assert float(loss.detach()) == pytest.approx(1000.0)
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_one_class_costs_nothing() -> None:
    logits = torch.randn(5, 1, generator=generator(0, "one class"))
    assert float(cross_entropy(logits, torch.zeros(5, dtype=torch.long))) == 0.0
    assert float(cross_entropy(logits, torch.ones(5, 1), offset=logit_adjustment([7]))) == 0.0


def test_half_precision_logits_are_computed_in_float32() -> None:
    logits, ids, soft = batch(7, 32, 20)
    rounded = logits.bfloat16()
    for target in (ids, soft):
        loss = cross_entropy(rounded, target)
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, cross_entropy(rounded.double(), target).float())


def test_a_batch_without_applied_weight_costs_nothing() -> None:
    logits = torch.randn(3, 2, generator=generator(0, "no weight"), requires_grad=True)
    loss = cross_entropy(logits, torch.zeros(3, dtype=torch.long), weight=torch.tensor([0.0, 1.0]))
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize(
    ("target", "says"),
    [
        (torch.zeros(3, dtype=torch.long), r"target must be integer class ids of shape \(4,\), not int64 \(3,\)"),
        (torch.zeros(4), r"soft target must be \(4, 5\).*not float32 \(4,\)"),
        (torch.zeros(4, 6), r"soft target must be \(4, 5\).*not float32 \(4, 6\)"),
        (torch.zeros(4, 5, dtype=torch.long), r"target must be integer class ids"),
        (torch.zeros(4, dtype=torch.bool), r"target must be integer class ids"),
        (torch.tensor([0, 1, 2, 5]), r"ids from 0 to 5; they must lie in \[0, 5\)"),
        (torch.tensor([0, 1, 2, -100]), r"ids from -100 to 2"),
    ],
)
def test_a_target_that_does_not_fit_is_refused_in_words(target: Tensor, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        cross_entropy(torch.zeros(4, 5), target)


def test_offset_weight_and_logits_that_do_not_fit_are_refused_in_words() -> None:
    ids = torch.zeros(4, dtype=torch.long)
    with pytest.raises(ValueError, match=r"offset must be \(5,\)"):
        cross_entropy(torch.zeros(4, 5), ids, offset=torch.zeros(4))
    with pytest.raises(ValueError, match=r"weight must be \(5,\)"):
        cross_entropy(torch.zeros(4, 5), ids, weight=torch.zeros(4, 5))
    with pytest.raises(ValueError, match=r"logits must be a floating \(B, C\) tensor, not int64"):
        cross_entropy(torch.zeros(4, 5, dtype=torch.long), ids)
    with pytest.raises(ValueError, match="empty batch"):
        cross_entropy(torch.zeros(0, 5), torch.zeros(0, dtype=torch.long))


def test_integer_types_other_than_int64_serve_as_class_ids() -> None:
    logits, ids, _ = batch(8, 6, 5)
    for kind in (torch.uint8, torch.int16, torch.int32):
        torch.testing.assert_close(cross_entropy(logits, ids.to(kind)), cross_entropy(logits, ids))


def test_logit_adjustment_is_tau_times_the_log_prior() -> None:
    counts = [500, 50, 5]
    expected = [0.9 * math.log(n / 555) for n in counts]
    for given_as in (counts, tuple(counts), torch.tensor(counts), torch.tensor(counts) / 555):
        assert logit_adjustment(given_as, 0.9).tolist() == pytest.approx(expected, rel=1e-6)
    assert logit_adjustment(counts).tolist() == pytest.approx([math.log(n / 555) for n in counts], rel=1e-6)
    assert logit_adjustment(counts, 0.0).tolist() == [0.0, 0.0, 0.0]


def test_a_class_without_images_has_the_offset_of_one_image() -> None:
    assert logit_adjustment([10, 5, 0]).tolist() == pytest.approx([math.log(n / 15) for n in (10, 5, 1)], rel=1e-6)
    assert logit_adjustment([0.75, 0.25, 0.0]).tolist() == pytest.approx([math.log(p) for p in (0.75, 0.25, 0.25)])
    loss = cross_entropy(torch.zeros(1, 3), torch.tensor([[0.5, 0.0, 0.5]]), offset=logit_adjustment([10, 5, 0]))
    assert math.isfinite(float(loss))


@pytest.mark.parametrize(
    ("counts", "says"),
    [
        ([0, 0], "all zero"),
        ([], "all zero"),
        ([3, -1], "not negative"),
        ([3.0, math.inf], "finite"),
        ([[1, 2]], "be (C,)"),
    ],
)
def test_counts_without_a_prior_are_refused_in_words(counts: list[float], says: str) -> None:
    with pytest.raises(ValueError) as caught:
        logit_adjustment(counts)
    assert says in str(caught.value)
