from __future__ import annotations

import math
import time

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import oracles
from longtail.losses import (
    balanced_contrastive_loss,
    balanced_masked_contrastive_loss,
    masked_contrastive_loss,
    supervised_contrastive_loss,
)
from longtail.rng import generator


def unit(*shape: int, seed: int, name: str = "features") -> Tensor:
    return F.normalize(torch.randn(*shape, generator=generator(seed, name), dtype=torch.float64), dim=-1)


def ids(count: int, classes: int, seed: int, name: str = "labels") -> Tensor:
    return torch.randint(classes, (count,), generator=generator(seed, name))


sizes = st.tuples(
    st.integers(0, 10**6), st.integers(1, 7), st.integers(1, 3), st.integers(1, 6), st.sampled_from([0.07, 0.1, 0.5])
)


@settings(deadline=None, max_examples=40)
@given(sizes)
def test_balanced_contrastive_loss_is_the_slow_loop(size: tuple[int, int, int, int, float]) -> None:
    seed, batch, views, classes, temperature = size
    features, labels, centers = (
        unit(batch, views, 4, seed=seed),
        ids(batch, classes, seed),
        unit(classes, 4, seed=-seed),
    )
    fast = balanced_contrastive_loss(features, labels, centers, temperature=temperature)
    slow = oracles.balanced_contrastive(features.tolist(), labels.tolist(), centers.tolist(), temperature)
    assert float(fast) == pytest.approx(slow, rel=1e-11, abs=1e-12)


@settings(deadline=None, max_examples=40)
@given(sizes)
def test_supervised_contrastive_loss_is_the_slow_loop(size: tuple[int, int, int, int, float]) -> None:
    seed, batch, views, classes, temperature = size
    features, labels = unit(batch, views, 4, seed=seed), ids(batch, classes, seed)
    fast = supervised_contrastive_loss(features, labels, temperature=temperature)
    slow = oracles.supervised_contrastive(features.tolist(), labels.tolist(), temperature)
    assert float(fast) == pytest.approx(slow, rel=1e-11, abs=1e-12)


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 10**6),
    st.integers(0, 6),
    st.integers(0, 8),
    st.integers(1, 6),
    st.booleans(),
    st.booleans(),
)
def test_masked_contrastive_loss_is_the_slow_loop(
    seed: int, count: int, number_of_keys: int, classes: int, with_self: bool, with_weight: bool
) -> None:
    anchors, keys = unit(count, 4, seed=seed), unit(number_of_keys, 4, seed=seed, name="keys")
    labels, key_labels = ids(count, classes, seed), ids(number_of_keys, classes, seed, "key labels")
    own = ids(count, number_of_keys, seed, "self") if with_self and number_of_keys else None
    weight = torch.rand(count, generator=generator(seed, "weight"), dtype=torch.float64) if with_weight else None
    fast = masked_contrastive_loss(
        anchors, labels, keys, key_labels, temperature=0.1, self_index=own, row_weight=weight
    )
    slow = oracles.masked_contrastive(
        anchors.tolist(),
        labels.tolist(),
        keys.tolist(),
        key_labels.tolist(),
        0.1,
        None if own is None else own.tolist(),
        None if weight is None else weight.tolist(),
    )
    assert float(fast) == pytest.approx(slow, rel=1e-11, abs=1e-12)


@settings(deadline=None, max_examples=40)
@given(sizes, st.integers(1, 5))
def test_balanced_masked_contrastive_loss_is_the_slow_loop(
    size: tuple[int, int, int, int, float], number_of_anchors: int
) -> None:
    seed, batch, views, classes, temperature = size
    anchors, features = unit(number_of_anchors, 4, seed=seed, name="anchors"), unit(batch, views, 4, seed=seed)
    centers = unit(classes, 4, seed=seed, name="centers")
    labels, key_labels = ids(number_of_anchors, classes, seed, "anchor labels"), ids(batch, classes, seed)
    fast = balanced_masked_contrastive_loss(anchors, labels, features, key_labels, centers, temperature=temperature)
    slow = oracles.balanced_masked_contrastive(
        anchors.tolist(), labels.tolist(), features.tolist(), key_labels.tolist(), centers.tolist(), temperature
    )
    assert float(fast) == pytest.approx(slow, rel=1e-11, abs=1e-12)


def test_a_masked_anchor_of_a_class_that_is_not_in_the_batch_is_pulled_to_its_center() -> None:
    anchors, centers = unit(1, 4, seed=0).requires_grad_(), unit(3, 4, seed=1)
    loss = balanced_masked_contrastive_loss(
        anchors, torch.tensor([2]), unit(2, 2, 4, seed=2), torch.tensor([0, 1]), centers, temperature=0.5
    )
    loss.backward()
    assert anchors.grad is not None
    nearer = F.normalize(anchors.detach() - 0.1 * anchors.grad, dim=1)
    assert float(nearer @ centers[2]) > float(anchors.detach() @ centers[2])


def test_without_an_anchor_the_masked_loss_is_zero_with_a_graph() -> None:
    anchors = torch.zeros(0, 4, dtype=torch.float64, requires_grad=True)
    none = torch.zeros(0, dtype=torch.long)
    loss = balanced_masked_contrastive_loss(
        anchors, none, unit(2, 2, 4, seed=2), torch.tensor([0, 1]), unit(3, 4, seed=1), temperature=0.5
    )
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert anchors.grad is not None


def test_contrastive_gradients_are_right_to_finite_differences() -> None:
    features, centers = unit(4, 2, 3, seed=0).requires_grad_(), unit(5, 3, seed=1).requires_grad_()
    labels = torch.tensor([0, 0, 3, 1])
    assert torch.autograd.gradcheck(
        lambda f, c: balanced_contrastive_loss(f, labels, c, temperature=0.5), (features, centers)
    )
    single = unit(5, 1, 3, seed=2).requires_grad_()
    partly_alone = torch.tensor([0, 0, 3, 1, 1])
    assert torch.autograd.gradcheck(lambda f: supervised_contrastive_loss(f, partly_alone, temperature=0.5), single)
    anchors, keys = unit(3, 3, seed=3).requires_grad_(), unit(4, 3, seed=4).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda a, k: masked_contrastive_loss(
            a,
            torch.tensor([0, 1, 9]),
            k,
            torch.tensor([0, 0, 1, 2]),
            temperature=0.5,
            self_index=torch.tensor([0, 3, 1]),
        ),
        (anchors, keys),
    )


def test_centers_receive_a_gradient_even_of_absent_classes() -> None:
    centers = unit(6, 8, seed=0).requires_grad_()
    balanced_contrastive_loss(unit(3, 2, 8, seed=1), torch.tensor([0, 0, 4]), centers, temperature=0.1).backward()
    assert centers.grad is not None
    assert (centers.grad.norm(dim=1) > 0).all()


def test_a_single_image_has_its_other_view_and_its_center_as_positives() -> None:
    features, centers = unit(1, 2, 4, seed=0), unit(3, 4, seed=1)
    loss = balanced_contrastive_loss(features, torch.tensor([2]), centers, temperature=0.5)
    total = 0.0
    for row in range(2):
        other = float(features[0, row] @ features[0, 1 - row]) / 0.5
        to_center = [float(features[0, row] @ center) / 0.5 for center in centers]
        # n = 3 for class 2 (two views and the center), so 3 - 1 for its positives; absent classes have n = 1.
        z = (math.exp(other) + math.exp(to_center[2])) / 2 + math.exp(to_center[0]) + math.exp(to_center[1])
        total += math.log(z) - (other + to_center[2]) / 2
    assert float(loss) == pytest.approx(total / 2, rel=1e-12)


def test_one_image_one_view_one_class_costs_nothing() -> None:
    features, centers = unit(1, 1, 4, seed=0).requires_grad_(), unit(1, 4, seed=1).requires_grad_()
    loss = balanced_contrastive_loss(features, torch.tensor([0]), centers, temperature=0.1)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0.0, abs=1e-12)
    assert features.grad is not None
    assert torch.isfinite(features.grad).all()


def test_balanced_loss_with_equal_columns_is_log_of_the_class_count() -> None:
    same = torch.ones(6, 2, 4, dtype=torch.float64) / 2
    centers = torch.ones(10, 4, dtype=torch.float64) / 2
    loss = balanced_contrastive_loss(same, torch.tensor([0, 0, 0, 0, 7, 3]), centers, temperature=0.1)
    assert float(loss) == pytest.approx(math.log(10), rel=1e-12)


def test_balanced_loss_of_a_batch_with_equal_counts_differs_from_supervised_by_the_log_of_the_class_size() -> None:
    # With centers equal to a view, V = 1 and every class once, all columns of a class weigh n - [positive]:
    # sum over others exp(s) / 2 + own positive / 1.
    features, labels = unit(4, 1, 5, seed=0), torch.arange(4)
    balanced = balanced_contrastive_loss(features, labels, features[:, 0], temperature=0.5)
    similarity = features[:, 0] @ features[:, 0].T / 0.5
    own = similarity.diagonal()
    others = (similarity.exp().sum(1) - own.exp()) * 2 / 2
    torch.testing.assert_close(balanced, ((own.exp() + others).log() - own).mean())


@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_images_and_views_does_not_matter(seed: int) -> None:
    features, labels, centers = unit(7, 3, 4, seed=seed), ids(7, 4, seed), unit(4, 4, seed=seed, name="centers")
    order = torch.randperm(7, generator=generator(seed, "order"))
    moved = features[order].flip(1)
    torch.testing.assert_close(
        balanced_contrastive_loss(moved, labels[order], centers, temperature=0.1),
        balanced_contrastive_loss(features, labels, centers, temperature=0.1),
    )
    torch.testing.assert_close(
        supervised_contrastive_loss(moved, labels[order], temperature=0.1),
        supervised_contrastive_loss(features, labels, temperature=0.1),
    )


def test_renaming_the_classes_does_not_matter() -> None:
    features, labels, centers = unit(7, 2, 4, seed=0), ids(7, 4, 0), unit(4, 4, seed=1)
    renamed = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(
        balanced_contrastive_loss(features, renamed[labels], centers[renamed.argsort()], temperature=0.1),
        balanced_contrastive_loss(features, labels, centers, temperature=0.1),
    )


def test_supervised_loss_over_one_class_is_at_least_log_of_the_others() -> None:
    features = unit(5, 2, 4, seed=0)
    one_class = supervised_contrastive_loss(features, torch.zeros(5, dtype=torch.long), temperature=0.5)
    assert float(one_class) >= math.log(9)
    collapsed = torch.ones(5, 2, 4, dtype=torch.float64) / 2
    loss = supervised_contrastive_loss(collapsed, torch.zeros(5, dtype=torch.long), temperature=0.5)
    assert float(loss) == pytest.approx(math.log(9))


def test_rows_without_a_positive_are_left_out_of_the_mean() -> None:
    anchors, keys = unit(3, 4, seed=0), unit(5, 4, seed=1)
    labels, key_labels = torch.tensor([0, 8, 1]), torch.tensor([0, 1, 1, 2, 2])
    with_lonely = masked_contrastive_loss(anchors, labels, keys, key_labels, temperature=0.1)
    without = masked_contrastive_loss(anchors[[0, 2]], labels[[0, 2]], keys, key_labels, temperature=0.1)
    torch.testing.assert_close(with_lonely, without)


@pytest.mark.parametrize("number_of_keys", [0, 1, 3])
def test_no_positive_at_all_is_zero_with_a_graph(number_of_keys: int) -> None:
    anchors, keys = unit(2, 4, seed=0).requires_grad_(), unit(number_of_keys, 4, seed=1).requires_grad_()
    loss = masked_contrastive_loss(
        anchors, torch.tensor([0, 1]), keys, torch.full((number_of_keys,), 5), temperature=0.1
    )
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert anchors.grad is not None
    assert keys.grad is not None
    assert (anchors.grad == 0).all()
    assert (keys.grad == 0).all()


def test_an_anchor_whose_only_key_is_itself_leaves_no_nan() -> None:
    anchors = unit(1, 4, seed=0).requires_grad_()
    loss = masked_contrastive_loss(
        anchors, torch.tensor([0]), anchors, torch.tensor([0]), temperature=0.1, self_index=torch.tensor([0])
    )
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert anchors.grad is not None
    assert (anchors.grad == 0).all()
    alone = unit(1, 1, 4, seed=0).requires_grad_()
    assert float(supervised_contrastive_loss(alone, torch.tensor([0]), temperature=0.1).detach()) == 0.0


def test_two_weighted_labels_add_up_to_the_mixed_loss() -> None:
    anchors, keys = unit(4, 4, seed=0), unit(8, 4, seed=1)
    mine, other, key_labels = torch.tensor([0, 1, 2, 0]), torch.tensor([3, 2, 3, 1]), torch.arange(8) % 4
    lam = torch.tensor([0.1, 0.9, 0.5, 1.0], dtype=torch.float64)

    def loss(labels: Tensor, weight: Tensor) -> Tensor:
        return masked_contrastive_loss(anchors, labels, keys, key_labels, temperature=0.1, row_weight=weight)

    per_image = torch.stack(
        [
            lam[i] * loss(mine, 4 * F.one_hot(torch.tensor(i), 4))
            + (1 - lam[i]) * loss(other, 4 * F.one_hot(torch.tensor(i), 4))
            for i in range(4)
        ]
    )
    torch.testing.assert_close(loss(mine, lam) + loss(other, 1 - lam), per_image.mean())


def all_losses(features: Tensor, centers: Tensor, temperature: float = 0.1) -> dict[str, Tensor]:
    labels = torch.arange(len(features), device=features.device) % len(centers)
    flat = features.flatten(0, 1)
    flat_labels = labels.repeat_interleave(features.shape[1])
    return {
        "balanced": balanced_contrastive_loss(features, labels, centers, temperature=temperature),
        "supervised": supervised_contrastive_loss(features, labels, temperature=temperature),
        "masked": masked_contrastive_loss(
            flat, flat_labels, centers, torch.arange(len(centers)), temperature=temperature
        ),
    }


def test_half_precision_features_are_computed_in_float32() -> None:
    for kind in (torch.bfloat16, torch.float16):
        features, centers = unit(8, 2, 16, seed=0).to(kind), unit(5, 16, seed=1).to(kind)
        exact = all_losses(features.double(), centers.double())
        for name, loss in all_losses(features, centers).items():
            assert loss.dtype == torch.float32
            torch.testing.assert_close(loss, exact[name].float(), rtol=1e-6, atol=0, msg=name)


def test_autocast_does_not_lower_the_precision_of_similarities() -> None:
    features, centers = unit(8, 2, 16, seed=0).float(), unit(5, 16, seed=1).float()
    outside = all_losses(features, centers)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = all_losses(features, centers)
    for name in outside:
        torch.testing.assert_close(inside[name], outside[name], rtol=1e-6, atol=0, msg=name)


def test_a_tiny_temperature_stays_finite() -> None:
    features, centers = unit(8, 2, 16, seed=0).float().requires_grad_(), unit(5, 16, seed=1).float().requires_grad_()
    for name, loss in all_losses(features, centers, temperature=1e-3).items():
        assert torch.isfinite(loss), name
        (gradient,) = torch.autograd.grad(loss, features, retain_graph=True)
        assert torch.isfinite(gradient).all(), name


def test_integer_types_other_than_int64_serve_as_labels() -> None:
    features, labels, centers = unit(6, 2, 4, seed=0), ids(6, 3, 0), unit(3, 4, seed=1)
    expected = balanced_contrastive_loss(features, labels, centers, temperature=0.1)
    for kind in (torch.uint8, torch.int32):
        torch.testing.assert_close(
            balanced_contrastive_loss(features, labels.to(kind), centers, temperature=0.1), expected
        )


def test_balanced_loss_of_a_training_batch_takes_milliseconds() -> None:
    features = unit(256, 2, 128, seed=0).float().requires_grad_()
    centers, labels = unit(100, 128, seed=1).float().requires_grad_(), ids(256, 100, 0)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        balanced_contrastive_loss(features, labels, centers, temperature=0.1).backward()
        times.append(time.perf_counter() - start)
    # 5 ms on one core of 2024; a Python loop over the 512 rows would take hundreds.
    assert min(times) < 0.1


def test_shapes_that_do_not_fit_are_refused_in_words() -> None:
    features, labels, centers = unit(4, 2, 8, seed=0), torch.zeros(4, dtype=torch.long), unit(3, 8, seed=1)
    with pytest.raises(ValueError, match=r"features must be a floating \(B, V, D\) tensor, not .*\(8, 8\)"):
        balanced_contrastive_loss(features.flatten(0, 1), labels, centers, temperature=0.1)
    with pytest.raises(ValueError, match=r"centers must be \(C, 8\) .* not \(3, 7\)"):
        balanced_contrastive_loss(features, labels, centers[:, :7], temperature=0.1)
    with pytest.raises(ValueError, match=r"labels must be integer class ids of shape \(4,\), not int64 \(8,\)"):
        supervised_contrastive_loss(features, labels.repeat(2), temperature=0.1)
    with pytest.raises(ValueError, match=r"ids from 3 to 3; they must lie in \[0, 3\)"):
        balanced_contrastive_loss(features, labels + 3, centers, temperature=0.1)
    with pytest.raises(ValueError, match="no row to take the mean over"):
        supervised_contrastive_loss(features[:0], labels[:0], temperature=0.1)
    for temperature in (0.0, -0.1, math.nan):
        with pytest.raises(ValueError, match="temperature must be above 0"):
            supervised_contrastive_loss(features, labels, temperature=temperature)


def test_masked_shapes_that_do_not_fit_are_refused_in_words() -> None:
    anchors, keys = unit(4, 8, seed=0), unit(6, 8, seed=1)
    labels, key_labels = torch.zeros(4, dtype=torch.long), torch.zeros(6, dtype=torch.long)
    with pytest.raises(ValueError, match=r"anchors and keys must be \(A, D\) and \(K, D\)"):
        masked_contrastive_loss(anchors, labels, keys[:, :7], key_labels, temperature=0.1)
    with pytest.raises(ValueError, match=r"key_labels must be integer class ids of shape \(6,\)"):
        masked_contrastive_loss(anchors, labels, keys, labels, temperature=0.1)
    with pytest.raises(ValueError, match=r"self_index holds ids from 6 to 6"):
        masked_contrastive_loss(anchors, labels, keys, key_labels, temperature=0.1, self_index=labels + 6)
    with pytest.raises(ValueError, match=r"anchors must be \(\., 8\)"):
        balanced_masked_contrastive_loss(anchors[:, :7], labels, keys[:, None], key_labels, keys[:3], temperature=0.1)
    with pytest.raises(ValueError, match=r"ids from 3 to 3; they must lie in \[0, 3\)"):
        balanced_masked_contrastive_loss(anchors, labels + 3, keys[:, None], key_labels, keys[:3], temperature=0.1)
    with pytest.raises(ValueError, match=r"row_weight must be \(4,\)"):
        masked_contrastive_loss(anchors, labels, keys, key_labels, temperature=0.1, row_weight=torch.ones(6))
