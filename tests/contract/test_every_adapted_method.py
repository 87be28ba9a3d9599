"""Every method with adapters on a frozen vision transformer. A new row of METHODS falls under these by itself."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from longtail.config import METHOD_SETTINGS, OptimSettings
from longtail.methods import METHODS, Batch, Method, Progress, StepOutput
from longtail.models.adapters import merge_adapters
from longtail.models.network import ModelSettings
from longtail.models.recomputing import recompute_blocks
from longtail.rng import generator, keyed_global_rng
from longtail.training.optim import build_optimizer
from tiny import settings_of

COUNTS, IMAGES, SIZE = (40, 12, 5, 2), 6, 8

POINTS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in METHODS},
    "concutmix on patches": ("concutmix", {"patch": "auto", "mix_probability": 1.0, "rectify_start": 0}),
    "smcl-concutmix on patches": ("smcl-concutmix", {"patch": "auto", "mix_probability": 1.0}),
    "smcl, masked by attention": (
        "smcl",
        {"mask_probability": 1.0, "mask_start": 0, "detector": "attention-rollout", "patch": "auto"},
    ),
    "smcl, masked by gradient": ("smcl", {"mask_probability": 1.0, "mask_start": 0, "detector": "input-gradient"}),
    "saliencymix by attention": ("saliencymix", {"detector": "attention-rollout", "mix_probability": 1.0}),
}
"""Every named method, and points at which a vision transformer is asked for its attention or its patches."""

every_point = pytest.mark.parametrize("point", list(POINTS))
pytestmark = pytest.mark.usefixtures("tiny_vit")


def build(point: str, **model: Any) -> Method:
    name, settings = POINTS[point]
    chosen = METHOD_SETTINGS[name].model_validate({"name": name, **settings_of(name)["method"], **settings})
    own = {"backbone": "tiny-vit", "freeze": "backbone", "adapter_rank": 2} | model
    return METHODS[name].build(chosen, ModelSettings(**own), list(COUNTS), size=SIZE, seed=0)


def batch_for(method: Method, at: Progress) -> Batch:
    def pictures(key: str, count: int) -> tuple[Tensor, ...]:
        return tuple(
            torch.randn(IMAGES, 3, SIZE, SIZE, generator=generator("adapted", key, number)) for number in range(count)
        )

    def labels(key: str) -> Tensor:
        return torch.randint(len(COUNTS), (IMAGES,), generator=generator("adapted labels", key))

    peaks = None
    if method.needs.detector is not None:
        peaks = torch.randint(SIZE, (IMAGES, 2), generator=generator("adapted peaks"))
    index, partner = torch.arange(IMAGES), None
    if method.needs_partner(at):
        partner = Batch(pictures("partner", len(method.needs.partner_views)), labels("partner"), index, peaks=peaks)
    return Batch(pictures("own", len(method.needs.views)), labels("own"), index, partner, peaks)


def step(method: Method, number: int) -> StepOutput:
    at = Progress(number, 9, 10, 0)
    with keyed_global_rng(0, "step", number):
        output: StepOutput = method(batch_for(method, at), at)
    output.loss.backward()
    return output


def trained(point: str, steps: int = 4) -> Method:
    method = build(point)
    optimizer = build_optimizer(method, OptimSettings(lr=0.05, layer_decay=0.8), method.rates)
    for number in range(steps):
        optimizer.zero_grad()
        step(method, number)
        optimizer.step()
    return method


def is_adapter(name: str) -> bool:
    return name.endswith(("lora_a", "lora_b"))


@every_point
def test_the_first_loss_is_that_of_the_network_without_adapters(point: str) -> None:
    losses = [float(step(build(point, adapter_rank=rank), 0).loss.detach()) for rank in (None, 2)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@every_point
def test_adapters_learn_and_the_trunk_stays_bit_for_bit(point: str) -> None:
    start, end = build(point), trained(point)
    stays = bool(start.from_init)  # a second stage freezes adapters too
    before = {name: value for name, value in start.state_dict().items() if name.startswith("network.backbone.")}
    for name, value in before.items():
        same = torch.equal(end.state_dict()[name], value)
        assert same != (is_adapter(name) and not stays), name
    assert len([name for name in before if is_adapter(name)]) == 16


@every_point
def test_with_its_blocks_recomputed_a_step_has_the_same_gradients_bit_for_bit(point: str) -> None:
    keeping, recomputing = trained(point, 2), trained(point, 2)
    recompute_blocks(recomputing.network)
    for method in (keeping, recomputing):
        method.zero_grad()
        step(method, 2)
    for (name, one), other in zip(keeping.named_parameters(), recomputing.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None), name
        assert one.grad is None or other.grad is None or torch.equal(one.grad, other.grad), name
    buffers = zip(keeping.named_buffers(), recomputing.buffers(), strict=True)
    assert all(torch.equal(one, other) for (_, one), other in buffers)


@every_point
def test_merged_it_answers_the_same_under_the_names_of_a_plain_network(point: str) -> None:
    method = trained(point).eval()
    merged = copy.deepcopy(method)
    assert merge_adapters(merged.network) == 8
    plain = build(point, adapter_rank=None, freeze="none").network
    assert list(merged.network.state_dict()) == list(plain.state_dict())
    images = torch.randn(IMAGES, 3, SIZE, SIZE, generator=generator("adapted", "test"))
    with torch.no_grad():
        torch.testing.assert_close(merged.logits(images), method.logits(images), rtol=0, atol=1e-5)


@every_point
def test_a_state_read_back_gives_the_same_next_step(point: str) -> None:
    method, again = trained(point), build(point)
    again.load_state_dict(method.state_dict())
    assert torch.equal(step(copy.deepcopy(again), 7).loss, step(method, 7).loss)
