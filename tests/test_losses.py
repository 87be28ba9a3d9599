from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import family_oracles
import oracles
from longtail.data.longtail import effective_number_probabilities
from longtail.losses import (
    class_balanced_weights,
    cross_entropy,
    focal_loss,
    label_aware_smoothing,
    ldam_margins,
    logit_adjustment,
    margin_cross_entropy,
    smoothed_cross_entropy,
)
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
    for derived in (logit_adjustment, ldam_margins, lambda n: class_balanced_weights(n, 0.9)):
        with pytest.raises(ValueError) as caught:
            derived(counts)
        assert says in str(caught.value)


# Focal loss and margins -----------------------------------------------------------------------------------------------

MARGINS = torch.tensor([0.5, 1.0, 3.0, 7.0, 15.0], dtype=torch.float64)
EXTREME = [[80.0, -80.0, 0.0], [80.0, 79.5, -80.0], [-80.0, -80.0, -80.0], [0.0, 1e-3, 80.0], [-80.0, 0.0, 20.0]]


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.integers(1, 9), st.integers(2, 7), st.booleans(), st.booleans(), st.booleans())
def test_focal_and_margin_losses_are_the_slow_loops(
    seed: int, size: int, classes: int, soft: bool, with_offset: bool, with_weight: bool
) -> None:
    logits, ids, shares = batch(seed, size, classes)
    g = generator(seed, "vectors")
    offset = torch.randn(classes, generator=g, dtype=torch.float64) if with_offset else None
    weight = torch.rand(classes, generator=g, dtype=torch.float64) + 0.1 if with_weight else None
    margins = 4 * torch.rand(classes, generator=g, dtype=torch.float64)
    gamma = 3 * float(torch.rand((), generator=g))
    target = shares if soft else ids
    vectors = (None if offset is None else offset.tolist(), None if weight is None else weight.tolist())
    slow_focal = oracles.focal(logits.tolist(), target.tolist(), gamma, *vectors)
    slow_margin = oracles.margin_cross_entropy(logits.tolist(), target.tolist(), margins.tolist(), *vectors)
    focal = focal_loss(logits, target, gamma=gamma, offset=offset, weight=weight)
    margin = margin_cross_entropy(logits, target, margins=margins, offset=offset, weight=weight)
    assert float(focal) == pytest.approx(slow_focal, rel=1e-11, abs=0)
    assert float(margin) == pytest.approx(slow_margin, rel=1e-11, abs=0)


@pytest.mark.parametrize("weight", [None, torch.tensor([0.2, 1.0, 3.0, 0.5, 2.0], dtype=torch.float64)])
def test_gamma_zero_and_margins_zero_are_cross_entropy(weight: Tensor | None) -> None:
    logits, ids, soft = batch(9, 16, 5)
    offset = logit_adjustment([40, 20, 10, 5, 1])
    for target in (ids, soft):
        expected = cross_entropy(logits, target, offset=offset, weight=weight)
        focal = focal_loss(logits, target, gamma=0, offset=offset, weight=weight)
        margin = margin_cross_entropy(logits, target, margins=torch.zeros(5), offset=offset, weight=weight)
        torch.testing.assert_close(focal, expected)
        torch.testing.assert_close(margin, expected)


def test_a_margin_is_taken_from_the_logit_of_the_label_alone() -> None:
    logits, ids, _ = batch(10, 16, 5)
    lowered = logits - F.one_hot(ids, 5) * MARGINS
    torch.testing.assert_close(margin_cross_entropy(logits, ids, margins=MARGINS), cross_entropy(lowered, ids))


def test_focal_loss_and_margins_of_one_hot_soft_targets_give_the_hard_value_and_gradient() -> None:
    logits, ids, _ = batch(11, 16, 5)
    weight = torch.tensor([0.2, 1.0, 3.0, 0.5, 2.0])
    for loss in (
        lambda x, t: focal_loss(x, t, gamma=1.5, weight=weight),
        lambda x, t: margin_cross_entropy(x, t, margins=MARGINS, weight=weight),
    ):
        hard, soft = logits.clone().requires_grad_(), logits.clone().requires_grad_()
        a, b = loss(hard, ids), loss(soft, F.one_hot(ids, 5).double())
        a.backward()
        b.backward()
        torch.testing.assert_close(a, b)
        torch.testing.assert_close(hard.grad, soft.grad)


def test_focal_loss_and_margins_of_a_mixed_label_are_the_mix_of_two_losses() -> None:
    logits, ids, _ = batch(12, 12, 5)
    partner = ids.roll(1)
    mixed = 0.3 * F.one_hot(ids, 5).double() + 0.7 * F.one_hot(partner, 5).double()
    for loss in (
        lambda t: focal_loss(logits, t, gamma=2.0),
        lambda t: margin_cross_entropy(logits, t, margins=MARGINS),
    ):
        torch.testing.assert_close(loss(mixed), 0.3 * loss(ids) + 0.7 * loss(partner))


@pytest.mark.parametrize("row", EXTREME)
@pytest.mark.parametrize("k", [0, 1, 2])
def test_single_precision_keeps_its_digits_where_a_class_dominates(row: list[float], k: int) -> None:
    """A loss of 1e-30 counts, too: subtracting the label from the sum of all would leave 0 of it."""
    logits, label = torch.tensor([row]), torch.tensor([k])
    margins = [0.5, 2.0, 15.0]
    margin = margin_cross_entropy(logits, label, margins=torch.tensor(margins))
    row = logits.double().tolist()[0]
    exact = oracles.margin_cross_entropy([row], [k], margins)
    assert float(margin) == pytest.approx(exact, rel=2e-5, abs=1e-37)
    focal = focal_loss(logits, label, gamma=0.5)
    assert float(focal) == pytest.approx(
        math.exp(-0.5 * oracles.softplus(oracles.log_odds(row, k))) * oracles.softplus(-oracles.log_odds(row, k)),
        rel=2e-5,
        abs=1e-37,
    )


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_gradients_of_focal_loss_and_margins_stay_finite_at_any_logits(gamma: float) -> None:
    logits = torch.tensor([*EXTREME, [1000.0, -1000.0, 0.0], [-1000.0, 1000.0, 0.0]])
    for target in (torch.zeros(7, dtype=torch.long), torch.full((7, 3), 1 / 3)):
        for loss in (
            lambda x, t: focal_loss(x, t, gamma=gamma),
            lambda x, t: margin_cross_entropy(x, t, margins=torch.tensor([15.0, 1.0, 0.0])),
        ):
            given = logits.clone().requires_grad_()
            value = loss(given, target)
            value.backward()
            assert bool(torch.isfinite(value))
            assert given.grad is not None
            assert bool(torch.isfinite(given.grad).all())


def test_one_class_costs_nothing_under_focal_loss_and_margins_either() -> None:
    for target in (torch.zeros(5, dtype=torch.long), torch.ones(5, 1)):
        for gamma in (0.0, 0.5, 2.0):
            logits = torch.randn(5, 1, generator=generator(0, "one class")).requires_grad_()
            loss = focal_loss(logits, target, gamma=gamma) + margin_cross_entropy(
                logits, target, margins=torch.tensor([15.0])
            )
            loss.backward()
            assert float(loss.detach()) == 0.0
            assert logits.grad is not None
            assert bool((logits.grad == 0).all())


def test_focal_loss_weighs_a_sure_image_less_and_a_lost_one_as_before() -> None:
    label = torch.tensor([0])
    sure, lost = torch.tensor([[3.0, 0.0]]), torch.tensor([[-30.0, 0.0]])
    shares = [float(focal_loss(sure, label, gamma=g) / cross_entropy(sure, label)) for g in (0.5, 1, 2)]
    p = 1 / (1 + math.exp(-3.0))
    assert shares == pytest.approx([(1 - p) ** g for g in (0.5, 1, 2)], rel=1e-5)
    torch.testing.assert_close(focal_loss(lost, label, gamma=2.0), cross_entropy(lost, label))


def test_settings_of_focal_loss_and_margins_that_do_not_fit_are_refused_in_words() -> None:
    logits, ids = torch.zeros(4, 5), torch.zeros(4, dtype=torch.long)
    with pytest.raises(ValueError, match="gamma must be at least 0, not -1"):
        focal_loss(logits, ids, gamma=-1.0)
    with pytest.raises(ValueError, match=r"margins must be \(5,\)"):
        margin_cross_entropy(logits, ids, margins=torch.zeros(4))
    with pytest.raises(ValueError, match=r"soft target must be \(4, 5\)"):
        margin_cross_entropy(logits, torch.zeros(4), margins=torch.zeros(5))
    with pytest.raises(ValueError, match="max_margin must be at least 0"):
        ldam_margins([3, 1], -0.5)
    for beta in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match=r"beta must be in \[0, 1\]"):
            class_balanced_weights([3, 1], beta)


# What follows from counts ---------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(1, 3000), min_size=1, max_size=6), st.sampled_from([0.0, 0.5, 0.99, 0.9999, 1.0]))
def test_weights_and_margins_of_counts_are_the_slow_loops(counts: list[int], beta: float) -> None:
    weights, margins = class_balanced_weights(counts, beta), ldam_margins(counts, 0.5)
    assert weights.tolist() == pytest.approx(oracles.class_balanced_weights(counts, beta), rel=1e-6)
    assert margins.tolist() == pytest.approx(oracles.ldam_margins(counts, 0.5), rel=1e-6)
    assert weights.dtype == margins.dtype == torch.float32
    assert float(weights.sum()) == pytest.approx(len(counts), rel=1e-6)
    assert float(margins.max()) == 0.5
    drawn = effective_number_probabilities(counts, beta)
    torch.testing.assert_close(weights.double(), len(counts) * drawn, rtol=1e-6, atol=0)


def test_equal_counts_weigh_one_and_have_the_largest_margin() -> None:
    for beta in (0.0, 0.9999, 1.0):
        assert class_balanced_weights([17] * 4, beta).tolist() == pytest.approx([1.0] * 4)
    assert class_balanced_weights([1000, 10, 1], 0.0).tolist() == pytest.approx([1.0] * 3)
    assert ldam_margins([17] * 4, 0.3).tolist() == pytest.approx([0.3] * 4)


def test_weights_keep_their_digits_as_beta_comes_near_one() -> None:
    near, limit = class_balanced_weights([100, 10, 1], 1 - 1e-13), class_balanced_weights([100, 10, 1], 1.0)
    torch.testing.assert_close(near, limit)
    assert limit.tolist() == pytest.approx([3 * n / 111 for n in (1, 10, 100)], rel=1e-6)


def test_a_class_without_images_has_the_weight_and_margin_of_one_image() -> None:
    assert torch.equal(class_balanced_weights([10, 5, 0], 0.9), class_balanced_weights([10, 5, 1], 0.9))
    assert torch.equal(ldam_margins([10, 5, 0]), ldam_margins([10, 5, 1]))


def test_a_margin_falls_with_the_fourth_root_of_the_count() -> None:
    assert ldam_margins([10_000, 16, 1]).tolist() == pytest.approx([0.05, 0.25, 0.5])
    assert ldam_margins(torch.tensor([10_000, 16]), 1.0).tolist() == pytest.approx([0.2, 1.0])


# Smoothing by class ---------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.integers(1, 9), st.integers(1, 7), st.booleans(), st.booleans(), st.booleans())
def test_smoothed_cross_entropy_is_the_slow_loop(
    seed: int, size: int, classes: int, soft: bool, with_offset: bool, with_weight: bool
) -> None:
    logits, ids, shares = batch(seed, size, classes)
    g = generator(seed, "vectors")
    offset = torch.randn(classes, generator=g, dtype=torch.float64) if with_offset else None
    weight = torch.rand(classes, generator=g, dtype=torch.float64) + 0.1 if with_weight else None
    smoothing = torch.rand(classes, generator=g, dtype=torch.float64)
    target = shares if soft else ids
    vectors = (None if offset is None else offset.tolist(), None if weight is None else weight.tolist())
    slow = family_oracles.smoothed_cross_entropy(logits.tolist(), target.tolist(), smoothing.tolist(), *vectors)
    loss = smoothed_cross_entropy(logits, target, smoothing=smoothing, offset=offset, weight=weight)
    assert float(loss) == pytest.approx(slow, rel=1e-11, abs=1e-14)


def test_smoothing_of_zero_is_cross_entropy_and_of_one_forgets_the_label() -> None:
    logits, ids, soft = batch(20, 16, 5)
    weight = torch.tensor([0.2, 1.0, 3.0, 0.5, 2.0])
    for target in (ids, soft):
        none = smoothed_cross_entropy(logits, target, smoothing=torch.zeros(5), weight=weight)
        torch.testing.assert_close(none, cross_entropy(logits, target, weight=weight))
    everything = smoothed_cross_entropy(logits, ids, smoothing=torch.ones(5))
    torch.testing.assert_close(everything, cross_entropy(logits, torch.full((16, 5), 0.2)))


def test_equal_smoothing_is_label_smoothing_of_torch() -> None:
    logits, ids, _ = batch(21, 16, 5)
    expected = F.cross_entropy(logits, ids, label_smoothing=0.3)
    torch.testing.assert_close(smoothed_cross_entropy(logits, ids, smoothing=torch.full((5,), 0.3)), expected)


def test_smoothing_of_one_hot_soft_targets_gives_the_hard_value_and_of_mixed_ones_the_mix() -> None:
    logits, ids, _ = batch(22, 12, 5)
    smoothing, weight = torch.tensor([0.4, 0.3, 0.2, 0.1, 0.0]), torch.tensor([0.2, 1.0, 3.0, 0.5, 2.0])
    hard = smoothed_cross_entropy(logits, ids, smoothing=smoothing, weight=weight)
    soft = smoothed_cross_entropy(logits, F.one_hot(ids, 5).double(), smoothing=smoothing, weight=weight)
    torch.testing.assert_close(hard, soft)
    mixed = 0.3 * F.one_hot(ids, 5).double() + 0.7 * F.one_hot(ids.roll(1), 5).double()
    one, other, both = (smoothed_cross_entropy(logits, t, smoothing=smoothing) for t in (ids, ids.roll(1), mixed))
    torch.testing.assert_close(both, 0.3 * one + 0.7 * other)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(1, 3000), min_size=1, max_size=6), st.floats(0, 1), st.floats(0, 1))
def test_smoothing_of_counts_is_the_slow_loop(counts: list[int], head: float, tail: float) -> None:
    smoothing = label_aware_smoothing(counts, head, tail)
    expected = family_oracles.label_aware_smoothing(counts, head, tail)
    assert smoothing.tolist() == pytest.approx(expected, rel=1e-6, abs=1e-7)
    assert smoothing.dtype == torch.float32


def test_smoothing_of_counts_goes_from_tail_to_head_and_rises_fast_in_between() -> None:
    smoothing = label_aware_smoothing([101, 51, 1], 0.4, 0.1)
    assert smoothing.tolist() == pytest.approx([0.4, 0.1 + 0.3 * math.sin(math.pi / 4), 0.1])
    assert label_aware_smoothing([17] * 4, 0.4, 0.1).tolist() == pytest.approx([0.1] * 4)
    assert torch.equal(label_aware_smoothing([10, 5, 0]), label_aware_smoothing([10, 5, 1]))


def test_smoothing_that_does_not_fit_is_refused_in_words() -> None:
    logits, ids = torch.zeros(4, 5), torch.zeros(4, dtype=torch.long)
    with pytest.raises(ValueError, match=r"smoothing must be \(5,\)"):
        smoothed_cross_entropy(logits, ids, smoothing=torch.zeros(4))
    for share in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match=r"head must be in \[0, 1\]"):
            label_aware_smoothing([3, 1], share, 0.1)
        with pytest.raises(ValueError, match=r"tail must be in \[0, 1\]"):
            label_aware_smoothing([3, 1], 0.1, share)
