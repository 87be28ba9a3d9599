"""Schedules as functions of the step, and the optimizer."""

import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from longtail.config import OptimSettings
from longtail.methods import METHODS, Progress
from longtail.methods.concutmix import ConCutMix
from longtail.recipes import load_config
from longtail.recipes.presets import TUNED
from longtail.training.optim import build_optimizer, lr_at
from longtail.training.state import build_method


def rates(settings: OptimSettings, steps_per_epoch: int = 1) -> list[float]:
    return [lr_at(settings, step, steps_per_epoch) for step in range(settings.epochs * steps_per_epoch)]


def authors_rate(epoch: int) -> float:
    """The curve of the authors' 200-epoch CIFAR runs, as it stands in their logs."""
    if epoch < 5:
        return (0.03, 0.06, 0.09, 0.12, 0.15)[epoch]
    return 0.15 if epoch < 160 else 0.015 if epoch < 180 else 0.0015


def test_two_hundred_epochs_follow_the_authors_curve() -> None:
    settings = load_config("cifar100/concutmix").optim
    expected = [authors_rate(epoch) for epoch in range(200)]
    torch.testing.assert_close(rates(settings), expected, rtol=1e-12, atol=0)


def test_every_method_of_a_cifar_set_without_a_protocol_of_its_own_has_the_same_curve() -> None:
    """A comparison of methods is then not one of schedules."""
    for data in ("cifar10", "cifar100"):
        own = {name for name in METHODS if f"{data}/{name}" in TUNED and "optim" in TUNED[f"{data}/{name}"].settings}
        own |= {name for name, entry in METHODS.items() if entry.optim}
        assert own == {"smcl", "crt", "lws", "mislas"}
        curves = [rates(load_config(f"{data}/{method}").optim) for method in METHODS if method not in own]
        assert all(curve == curves[0] for curve in curves)


def test_twenty_epochs_are_the_same_curve_shortened() -> None:
    settings = load_config("cifar100/concutmix", ["optim.epochs=20"]).optim
    expected = [0.15] * 16 + [0.015] * 2 + [0.0015] * 2  # the warm-up of one epoch is at full rate
    torch.testing.assert_close(rates(settings), expected, rtol=1e-12, atol=0)


def test_twenty_epochs_rectify_in_epochs_11_to_19() -> None:
    config = load_config("cifar100/concutmix", ["optim.epochs=20", "model.backbone=resnet20"])
    method = build_method(config, [5] * 100, 8)
    assert isinstance(method, ConCutMix)
    assert [e for e in range(20) if method.rectifies(Progress(e, e, 20, 0))] == list(range(11, 20))
    assert [e for e in range(200) if method.rectifies(Progress(e, e, 200, 0))] == list(range(101, 200))


@pytest.mark.parametrize(("epochs", "warmup"), [(30, 0), (30, 1), (30, 5), (90, 0.05), (1, 0), (1, 1), (3, 3)])
def test_cosine_follows_the_formula(epochs: int, warmup: float) -> None:
    settings = OptimSettings(epochs=epochs, lr=0.2, schedule="cosine", warmup_epochs=warmup)
    w: int = settings.resolved()["warmup_epochs"]
    for e, rate in enumerate(rates(settings)):
        expected = 0.2 * (e + 1) / w if e < w else 0.2 * 0.5 * (1 + math.cos(math.pi * (e - w + 1) / (epochs - w + 1)))
        assert rate == pytest.approx(expected, rel=1e-12)


def test_onecycle_rises_for_three_tenths_of_the_steps_and_ends_at_zero() -> None:
    curve = rates(OptimSettings(epochs=10, lr=0.5, schedule="onecycle"), steps_per_epoch=10)
    assert curve[29] == max(curve) == 0.5
    assert curve[:30] == pytest.approx([0.5 * (i + 1) / 30 for i in range(30)])
    assert all(later < earlier for earlier, later in itertools.pairwise(curve[29:]))
    assert curve[-1] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("schedule", ["step", "cosine"])
def test_the_rate_is_set_once_an_epoch(schedule: Any) -> None:
    settings = OptimSettings(epochs=20, schedule=schedule)
    assert rates(settings, 7) == [rate for rate in rates(settings) for _ in range(7)]


@given(
    schedule=st.sampled_from(["step", "cosine", "onecycle"]),
    epochs=st.integers(1, 40),
    steps=st.integers(1, 5),
    warmup=st.integers(0, 50) | st.floats(0, 1),
    milestones=st.lists(st.integers(0, 50) | st.floats(0, 1), max_size=3),
)
def test_every_rate_lies_between_zero_and_the_peak(
    schedule: Any, epochs: int, steps: int, warmup: float, milestones: list[float]
) -> None:
    settings = OptimSettings(
        epochs=epochs, lr=0.7, schedule=schedule, warmup_epochs=warmup, milestones=tuple(milestones)
    )
    curve = rates(settings, steps)
    assert all(0 <= rate <= 0.7 * (1 + 1e-12) for rate in curve)
    assert len(curve) == epochs * steps


def test_a_milestone_takes_effect_in_its_own_epoch() -> None:
    settings = OptimSettings(epochs=10, lr=1.0, warmup_epochs=0, milestones=(4, 0.8))
    assert rates(settings) == pytest.approx([1.0] * 4 + [0.1] * 4 + [0.01] * 2)


def test_weight_decay_and_momentum_fall_on_every_parameter_in_one_group() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))
    optimizer = build_optimizer(module, OptimSettings(lr=0.3, momentum=0.8, weight_decay=0.02, nesterov=True))
    (group,) = optimizer.param_groups
    assert {id(p) for p in group["params"]} == {id(p) for p in module.parameters()}
    assert (group["lr"], group["momentum"], group["weight_decay"], group["nesterov"]) == (0.3, 0.8, 0.02, True)
    assert group["dampening"] == 0


def test_one_step_is_that_of_the_equation() -> None:
    """v = m v + (g + decay w), w = w - lr v."""
    weight = nn.Parameter(torch.tensor([2.0]))
    module = nn.Module()
    module.weight = weight
    optimizer = build_optimizer(module, OptimSettings(lr=0.1, momentum=0.5, weight_decay=0.25))
    w, v = 2.0, 0.0
    for gradient in (1.0, -3.0):
        weight.grad = torch.tensor([gradient])
        optimizer.step()
        v = 0.5 * v + gradient + 0.25 * w
        w -= 0.1 * v
        assert float(weight.detach()) == pytest.approx(w, rel=1e-6)
