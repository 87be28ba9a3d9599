"""Gradient checkpointing: less memory for the same numbers, bit for bit."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torchvision.models import VisionTransformer

from live_memory import bytes_alive
from longtail.config import differences
from longtail.errors import ConfigError
from longtail.models.blocks import blocks_of
from longtail.models.network import ModelSettings, Network
from longtail.models.recomputing import recompute_blocks
from longtail.processes.device import resolve_device
from longtail.recipes import load_config
from longtail.rng import generator, keyed_global_rng
from longtail.saliency.model import attention_rollout, grad_cam, input_gradient
from longtail.training.loop import train
from longtail.training.starting import should_compile
from tiny import Recorder, outcome, tiny_config


def draw(*shape: int, key: str = "images") -> Tensor:
    return torch.randn(*shape, generator=generator("recomputing", key))


def network(backbone: str, size: int = 8, **model: Any) -> Network:
    made = Network(ModelSettings(backbone=backbone, **model), 4, seed=0, size=size)
    if backbone == "tiny-vit":
        with keyed_global_rng("recomputing", "dropout"):
            dropping = VisionTransformer(size, 4, 2, 2, 16, 24, dropout=0.2, attention_dropout=0.2)
        dropping.heads = nn.Identity()
        made.backbone = dropping
    return made


def after_a_step(made: Network, *, bfloat16: bool = False) -> dict[str, Tensor]:
    """Output, gradients and buffers after one forward and one backward pass, and the state of the global stream."""
    with keyed_global_rng("step"):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bfloat16):
            features = made.features(draw(6, 3, 8, 8))
        out = made.classifier(features.float())
        out.square().sum().backward()
        found = {"stream": torch.get_rng_state(), "out": out.detach()}
    found |= {f"gradient {name}": p.grad for name, p in made.named_parameters() if p.grad is not None}
    return found | {f"buffer {name}": value.clone() for name, value in made.named_buffers()}


# The same numbers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backbone", "bfloat16"),
    # Not bfloat16 in the last: its gradients at one pixel differ from run to run without checkpointing too.
    [("resnet8", False), ("resnet8", True), ("tiny-vit", False), ("tiny-vit", True), ("torchvision/resnet18", False)],
)
def test_gradients_statistics_and_draws_are_those_of_a_network_that_keeps_everything(
    tiny_vit: str, backbone: str, bfloat16: bool
) -> None:
    keeping, recomputing = network(backbone), network(backbone)
    assert recompute_blocks(recomputing) == len(blocks_of(keeping.backbone))
    one, other = after_a_step(keeping, bfloat16=bfloat16), after_a_step(recomputing, bfloat16=bfloat16)
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []
    assert len([name for name in one if name.startswith("gradient")]) == len(list(keeping.parameters()))


def test_statistics_move_once_a_step_and_their_count_too() -> None:
    made = network("resnet8")
    recompute_blocks(made)
    after_a_step(made)
    after_a_step(made)
    counts = {int(value) for name, value in made.named_buffers() if name.endswith("num_batches_tracked")}
    assert counts == {2}


def test_each_block_is_computed_twice_in_a_training_step_and_once_without_a_graph_or_in_evaluation() -> None:
    made = network("resnet8")
    recompute_blocks(made)
    calls = []
    for block in blocks_of(made.backbone).values():
        block.conv1.register_forward_hook(lambda *_: calls.append(1))
    made.logits(draw(2, 3, 8, 8)).sum().backward()
    assert len(calls) == 2 * 3
    calls.clear()
    with torch.no_grad():
        made.logits(draw(2, 3, 8, 8))
    made.eval().logits(draw(2, 3, 8, 8)).sum().backward()
    assert len(calls) == 2 * 3


def test_a_frozen_trunk_with_adapters_is_recomputed_though_it_is_in_evaluation_mode(tiny_vit: str) -> None:
    made = Network(ModelSettings(backbone=tiny_vit, freeze="backbone", adapter_rank=2), 4, seed=0, size=8)
    calls = []
    blocks_of(made.backbone)["encoder.layers.encoder_layer_1"].ln_1.register_forward_hook(lambda *_: calls.append(1))
    recompute_blocks(made)
    kept = copy.deepcopy(made)
    for block in blocks_of(kept.backbone).values():
        del block.forward
    one, other = after_a_step(made), after_a_step(kept)
    assert [name for name in one if not torch.equal(one[name], other[name])] == []
    assert len(calls) == 3


def test_a_copy_computes_its_own_blocks() -> None:
    made = network("resnet8")
    recompute_blocks(made)
    other = copy.deepcopy(made)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert not other.features(draw(2, 3, 8, 8)).any()
    assert made.features(draw(2, 3, 8, 8)).any()


@pytest.mark.parametrize("detector", [input_gradient, grad_cam, attention_rollout])
def test_detectors_that_ask_the_network_see_what_they_saw(tiny_vit: str, detector: Any) -> None:
    made = network(tiny_vit if detector is attention_rollout else "resnet8", 16)
    images, labels = draw(3, 3, 16, 16), torch.tensor([0, 1, 2])
    before = detector(made, images, labels)
    recompute_blocks(made)
    assert torch.equal(detector(made, images, labels), before)


@pytest.mark.parametrize(
    ("method", "own"),
    [
        ("concutmix", {"optim": {"accumulate": 2, "sam": 0.05}}),
        ("smcl", {"method": {"mask_probability": 1.0, "mask_start": 0, "detector": "grad-cam"}}),
        ("paco", {"run": {"precision": "bfloat16"}}),
    ],
)
def test_a_run_is_the_same_bit_for_bit(
    method: str, own: Any, tiny_npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recomputed: list[str] = []

    def counted(*inputs: Any, **named: Any) -> Any:
        recomputed.append(name)
        return checkpoint(*inputs, **named)

    monkeypatch.setattr("longtail.models.recomputing.checkpoint", counted)
    for name, asked in (("kept", False), ("computed", True)):
        config = tiny_config(method, tiny_npz, tmp_path / name, **own)
        train(config.model_copy(update={"run": config.run.model_copy(update={"checkpointing": asked})}))
    assert outcome(tmp_path / "kept") == outcome(tmp_path / "computed")
    assert set(recomputed) == {"computed"}


def test_it_may_be_switched_on_to_resume_a_run_that_did_not_fit(tmp_path: Path) -> None:
    one, other = (load_config("scenes/ce", [f"run.checkpointing={asked}"]) for asked in ("false", "true"))
    assert differences(one, other) == []


def test_compilation_gives_way_and_says_so_where_it_is_asked_for(tiny_npz: Path, tmp_path: Path) -> None:
    def config(compiled: Any) -> Any:
        return tiny_config("ce", tiny_npz, tmp_path, run={"compile": compiled, "checkpointing": True})

    heard, cpu = Recorder(), resolve_device("cpu")
    assert not should_compile(config("auto"), cpu, 10**9, {"compiled": True}, heard)
    assert "run.checkpointing" in heard.messages[0]
    assert "not bit-exact" in heard.messages[0]
    with pytest.raises(ConfigError, match=r"run.compile=true cannot be had here: run.checkpointing"):
        should_compile(config(True), cpu, 10**9, {}, heard)
    assert not should_compile(config(False), cpu, 10**9, {}, heard)


# Less memory ----------------------------------------------------------------------------------------------------------


def peak(made: Network, images: Tensor) -> int:
    return bytes_alive(lambda: made.logits(images).sum().backward())[0]


@pytest.mark.parametrize("backbone", ["resnet32", "vit-small-patch4"])
def test_the_most_memory_of_a_step_is_less_than_half(backbone: str) -> None:
    size = 16
    images, made = draw(64, 3, size, size), network(backbone, size)
    keeping = peak(made, images)
    made.zero_grad()
    recompute_blocks(made)
    assert peak(made, images) < keeping / 2
