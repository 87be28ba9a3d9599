"""Low-rank adapters: what they compute, where they are, what they leave alone, and how they get into the weights."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import longtail
from longtail.api import run_config
from longtail.cli import main
from longtail.errors import ConfigError, RunError, StoppedError
from longtail.exchange.export import export
from longtail.models.adapters import AdaptedAttention, AdaptedLinear, add_adapters, merge_adapters
from longtail.models.network import ModelSettings, Network
from longtail.recipes import load_config
from longtail.rng import generator, keyed_global_rng
from longtail.training.loop import train
from tiny import At, outcome, read_test_images, tiny_config

RANK = 3


def draw(*shape: int, key: str = "values") -> Tensor:
    return torch.randn(*shape, generator=generator("adapters", key))


def network(backbone: str, *, adapted: bool = True, seed: int = 0, **model: Any) -> Network:
    own = {"freeze": "backbone", "adapter_rank": RANK if adapted else None, **model}
    return Network(ModelSettings(backbone=backbone, **own), 4, seed=seed, size=8)


def adapters(module: nn.Module) -> dict[str, Tensor]:
    return {name: value for name, value in module.named_parameters() if name.endswith(("lora_a", "lora_b"))}


def learned(module: nn.Module) -> nn.Module:
    """With adapters that are no longer zero."""
    for name, value in adapters(module).items():
        value.data.copy_(0.3 * draw(*value.shape, key=name))
    return module


class Block(nn.Module):
    """A linear layer and an attention, one after the other."""

    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 4, bias=bias)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True, bias=bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, 6) to (B, N, 4)."""
        tokens = self.linear(tokens)
        out: Tensor = self.attention(tokens, tokens, tokens, need_weights=False)[0]
        return out


def block(*, bias: bool = True, **own: Any) -> nn.Sequential:
    with keyed_global_rng("adapters", "block"):
        made = nn.Sequential(Block(bias)).requires_grad_(False)
    add_adapters(made, 2, seed=0, **own)
    return made


# What they compute ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("alpha", [None, 5.0])
def test_an_adapted_layer_is_that_of_the_equation(alpha: float | None, bias: bool) -> None:
    """y_i = sum_j (W_ij + (alpha / r) sum_k B_ik A_kj) x_j + b_i, in Python floats."""
    layer = learned(block(alpha=alpha, bias=bias))[0].linear
    assert isinstance(layer, AdaptedLinear)
    x = draw(6, key="x")
    state = {name: value.tolist() for name, value in layer.state_dict().items()}
    factor = 1.0 if alpha is None else alpha / 2
    expected = []
    for i in range(4):
        total = state["bias"][i] if bias else 0.0
        for j in range(6):
            product = sum(state["lora_b"][i][k] * state["lora_a"][k][j] for k in range(2))
            total += (state["weight"][i][j] + factor * product) * x[j].item()
        expected.append(total)
    assert layer(x).tolist() == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_adapted_attention_is_attention_with_moved_weights() -> None:
    adapted = learned(block(alpha=5.0))[0].attention
    assert isinstance(adapted, AdaptedAttention)
    plain = nn.MultiheadAttention(4, 2, batch_first=True)
    state = adapted.state_dict()
    with torch.no_grad():
        for prefix, weight in (("", "in_proj_weight"), ("out_proj.", "out_proj.weight")):
            moved = state[weight] + 2.5 * state[f"{prefix}lora_b"] @ state[f"{prefix}lora_a"]
            plain.get_parameter(weight).copy_(moved)
        plain.in_proj_bias.copy_(state["in_proj_bias"])
        plain.out_proj.bias.copy_(state["out_proj.bias"])
    tokens = draw(2, 5, 4, key="tokens")
    for training in (True, False):
        for weights in (True, False):
            one = adapted.train(training)(tokens, tokens, tokens, need_weights=weights)
            other = plain.train(training)(tokens, tokens, tokens, need_weights=weights)
            torch.testing.assert_close(one[0], other[0])
            if weights:
                torch.testing.assert_close(one[1], other[1])


@pytest.mark.parametrize("layers", ["attention", "mlp", "all"])
@pytest.mark.parametrize("grad", [True, False])
def test_the_first_forward_is_that_of_the_network_without_adapters_bit_for_bit(
    tiny_vit: str, layers: str, grad: bool
) -> None:
    plain, adapted = network(tiny_vit, adapted=False), network(tiny_vit, adapter_layers=layers)
    # PyTorch takes other kernels where nothing wants a gradient, so here everything does, or nothing.
    images = draw(5, 3, 8, 8).requires_grad_(grad)
    with torch.set_grad_enabled(grad):
        assert torch.equal(adapted.logits(images), plain.logits(images))
        assert torch.equal(adapted.eval().logits(images), plain.eval().logits(images))


def test_b_begins_at_zero_and_a_within_one_over_the_root_of_the_width_by_a_key_of_its_own(tiny_vit: str) -> None:
    all_of_them = adapters(network(tiny_vit))
    some = adapters(network(tiny_vit, adapter_layers="mlp"))
    other = adapters(network(tiny_vit, seed=1))
    assert 0 < len(some) < len(all_of_them)
    first, second = (f"backbone.encoder.layers.encoder_layer_{number}.mlp.0.lora_a" for number in (0, 1))
    assert not torch.equal(all_of_them[first], all_of_them[second])
    for name, value in all_of_them.items():
        if name.endswith("lora_b"):
            assert not value.any()
            continue
        bound = value.shape[1] ** -0.5
        assert 0.5 * bound < float(value.detach().abs().max()) <= bound
        assert not torch.equal(value, other[name])
        assert torch.equal(value, some.get(name, value)), "another choice of layers moves no other adapter"


def test_building_adapters_draws_nothing_from_the_global_stream(tiny_vit: str) -> None:
    before = torch.get_rng_state()
    network(tiny_vit)
    assert torch.equal(torch.get_rng_state(), before)


# Where they are -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ("attention", {"self_attention.", "self_attention.out_proj."}),
        ("mlp", {"mlp.0.", "mlp.3."}),
        ("all", {"self_attention.", "self_attention.out_proj.", "mlp.0.", "mlp.3."}),
    ],
)
def test_adapters_are_on_the_linear_layers_of_the_blocks_that_are_asked_for(
    tiny_vit: str, layers: str, words: set[str]
) -> None:
    names = adapters(network(tiny_vit, adapter_layers=layers))
    blocks = [f"backbone.encoder.layers.encoder_layer_{number}." for number in (0, 1)]
    assert names.keys() == {f"{block}{word}{end}" for block in blocks for word in words for end in ("lora_a", "lora_b")}


def test_a_block_that_learns_itself_has_no_adapter(tiny_vit: str) -> None:
    names = adapters(network(tiny_vit, freeze="all-but-1"))
    assert names
    assert not [name for name in names if "encoder_layer_1" in name]


@pytest.mark.parametrize("layers", ["attention", "mlp"])
def test_a_transformer_of_timm_takes_adapters_too(layers: str) -> None:
    timm = pytest.importorskip("timm")
    backbone = timm.create_model("vit_tiny_patch16_224", img_size=8, patch_size=4, depth=2, num_classes=0)
    images = draw(2, 3, 8, 8)
    backbone.requires_grad_(False)
    before = backbone(images)
    names = add_adapters(backbone, RANK, layers=layers, seed=0)
    words = ("attn.qkv", "attn.proj") if layers == "attention" else ("mlp.fc1", "mlp.fc2")
    assert names == [f"blocks.{number}.{word}" for number in (0, 1) for word in words]
    with torch.no_grad():
        assert torch.equal(backbone(images), before)
        after = learned(backbone)(images)
        assert not torch.allclose(after, before)
        assert merge_adapters(backbone) == 4
        torch.testing.assert_close(backbone(images), after, rtol=1e-4, atol=1e-4)  # a sum of products in another order


def test_a_network_without_linear_layers_and_a_rank_that_is_not_low_are_refused(tiny_vit: str) -> None:
    with pytest.raises(ConfigError, match=r"adapter_rank=3: the backbone has no frozen linear layers"):
        network("resnet8")
    with pytest.raises(ConfigError, match=r"adapter_rank=17: the weight of encoder.*no higher rank"):
        network(tiny_vit, adapter_rank=17)
    network(tiny_vit, adapter_rank=16)


def test_adapters_beside_weights_that_learn_are_refused_with_what_to_set() -> None:
    with pytest.raises(ConfigError, match=r"model.adapter_rank=4: needs model.freeze=backbone"):
        load_config("scenes/ce", ["model.backbone=vit-small-patch4", "model.adapter_rank=4"])


def test_the_rank_counts_in_the_key() -> None:
    words = ["model.backbone=vit-small-patch4", "model.freeze=backbone"]
    keys = {load_config("scenes/ce", [*words, f"model.adapter_rank={rank}"]).key() for rank in ("null", 2, 4)}
    assert len(keys) == 3


# What learns ----------------------------------------------------------------------------------------------------------


def test_adapters_and_heads_learn_and_nothing_else_of_the_network_wants_a_gradient(tiny_vit: str) -> None:
    made = network(tiny_vit)
    wanting = {name for name, parameter in made.named_parameters() if parameter.requires_grad}
    assert wanting == adapters(made).keys() | {"classifier.weight", "classifier.bias"}


def test_freezing_all_freezes_adapters_too(tiny_vit: str) -> None:
    made = network(tiny_vit)
    made.freeze("backbone")
    assert {name for name, p in made.named_parameters() if p.requires_grad} == {"classifier.weight", "classifier.bias"}


def test_gradients_are_those_of_the_moved_weight(tiny_vit: str) -> None:
    """dL/dB = s (dL/dW) A^T and dL/dA = s B^T (dL/dW), with dL/dW of a layer without an adapter."""
    adapted = learned(block(alpha=5.0))
    plain = copy.deepcopy(adapted)
    merge_adapters(plain)
    plain.requires_grad_(True)
    tokens = draw(3, 5, 6, key="tokens")
    for module in (adapted, plain):
        module(tokens).square().sum().backward()
    own = dict(adapted.named_parameters())
    for layer, weight in (("linear", "weight"), ("attention", "in_proj_weight"), ("attention.out_proj", "weight")):
        gradient = plain.get_parameter(f"0.{layer}.{weight}").grad
        a, b = own[f"0.{layer}.lora_a"], own[f"0.{layer}.lora_b"]
        assert gradient is not None
        torch.testing.assert_close(b.grad, 2.5 * gradient @ a.detach().T)
        torch.testing.assert_close(a.grad, 2.5 * b.detach().T @ gradient)
        assert own[f"0.{layer}.{weight}"].grad is None


@pytest.mark.slow
def test_compiled_adapters_compute_the_same(tiny_vit: str) -> None:
    made = learned(network(tiny_vit))
    assert isinstance(made, Network)
    images = draw(4, 3, 8, 8)
    eager = made.features(images)
    made.compile_for(images.shape)
    compiled = made.features(images)
    torch.testing.assert_close(compiled, eager, rtol=1e-4, atol=1e-5)
    compiled.sum().backward()
    assert all(value.grad is not None for value in adapters(made).values())


# Into the weights -----------------------------------------------------------------------------------------------------


def test_merged_a_network_is_the_plain_one_with_the_same_answers(tiny_vit: str) -> None:
    made, plain = learned(network(tiny_vit, adapter_alpha=7.0)).eval(), network(tiny_vit, adapted=False).eval()
    images = draw(5, 3, 8, 8)
    merged = copy.deepcopy(made)
    assert merge_adapters(merged) == 8
    assert merge_adapters(merged) == 0
    assert list(merged.state_dict()) == list(plain.state_dict())
    assert not any(isinstance(module, AdaptedLinear | AdaptedAttention) for module in merged.modules())
    plain.load_state_dict(merged.state_dict())
    with torch.no_grad():
        before = made.logits(images)
        assert not torch.allclose(network(tiny_vit).eval().logits(images), before, atol=1e-2)
        for other in (plain, merged):
            assert float((other.logits(images) - before).abs().max()) < 1e-5
    assert len(adapters(made)) == 16, "the copy was merged, not the network"


ADAPTED: dict[str, Any] = {
    "model": {"backbone": "tiny-vit", "freeze": "backbone", "adapter_rank": RANK, "adapter_alpha": 30.0},
    "optim": {"lr": 0.2, "batch": 8, "epochs": 2},
}


@pytest.fixture(scope="module")
def run(tiny_vit: str, tiny_npz: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of ConCutMix with adapters, to be looked at and left alone."""
    return run_config(tiny_config("concutmix", tiny_npz, tmp_path_factory.mktemp("adapted") / "run", **ADAPTED)).path


def pixels(folder: Path) -> Any:
    return np.ascontiguousarray(read_test_images(folder).transpose(0, 3, 1, 2))


def weights_of(folder: Path) -> dict[str, Tensor]:
    return longtail.load(folder, device="cpu").method.state_dict()


def test_a_run_keeps_the_trunk_bit_for_bit_and_its_adapters_have_moved(run: Path) -> None:
    start = Network(ModelSettings(**ADAPTED["model"]), 4, seed=0, size=8)
    trained = weights_of(run)
    for name, value in start.backbone.state_dict().items():
        same = torch.equal(trained[f"network.backbone.{name}"], value)
        assert same != name.endswith(("lora_a", "lora_b")), name


def test_an_exported_folder_has_merged_weights_that_answer_as_the_run_does(run: Path, tmp_path: Path) -> None:
    model = longtail.load(run, device="cpu")
    path, _ = export(model, "safetensors", tmp_path / "exported")
    names = load_file(path / "model.safetensors")
    assert not [name for name in names if "lora" in name]
    assert json.loads((path / "config.json").read_text())["config"]["model"]["adapter_rank"] is None
    again = longtail.load(path, device="cpu")
    assert not adapters(again.method)
    images = pixels(run)
    np.testing.assert_allclose(again.predict(images), model.predict(images), atol=1e-5, rtol=0)
    assert len(adapters(model.method)) == 16, "an export changes nothing of the model"


def test_an_exported_program_answers_as_the_run_does(run: Path, tmp_path: Path) -> None:
    model = longtail.load(run, device="cpu")
    path, _ = export(model, "exported-program", tmp_path / "model.pt2")
    images = pixels(run)
    _, probabilities = torch.export.load(path).module()(torch.from_numpy(images))
    np.testing.assert_allclose(probabilities.numpy(), model.predict(images), atol=1e-5, rtol=0)


def test_a_stopped_run_with_adapters_ends_as_the_unbroken_one(run: Path, tiny_npz: Path, tmp_path: Path) -> None:
    config = tiny_config("concutmix", tiny_npz, tmp_path / "stopped", **ADAPTED)
    with pytest.raises(StoppedError):
        train(config, listener=At(4))
    train(config, resume=True)
    assert outcome(tmp_path / "stopped") == outcome(run)


# From other weights ---------------------------------------------------------------------------------------------------


def started(archive: Path, folder: Path, init: Path, **model: Any) -> dict[str, Tensor]:
    """The weights after a run of rate next to nothing."""
    optim = {"optim": {"lr": 1e-12, "weight_decay": 0, "epochs": 1}}
    config = tiny_config("ce", archive, folder, init=str(init), model={"backbone": "tiny-vit", **model}, **optim)
    return weights_of(run_config(config).path)


def test_a_run_without_adapters_is_the_trunk_of_one_that_has_them(
    tiny_vit: str, tiny_npz: Path, tmp_path: Path
) -> None:
    plain = run_config(tiny_config("ce", tiny_npz, tmp_path / "plain", model={"backbone": tiny_vit})).path
    begun = started(tiny_npz, tmp_path / "adapted", plain, freeze="backbone", adapter_rank=RANK)
    for name, value in weights_of(plain).items():
        if name.startswith("network.backbone."):
            assert torch.equal(begun[name], value), name


def test_a_run_that_would_lose_the_adapters_of_its_init_is_refused_and_its_export_is_not(
    run: Path, tiny_npz: Path, tmp_path: Path
) -> None:
    for model in ({}, {"freeze": "backbone"}, {"freeze": "backbone", "adapter_rank": 2, "adapter_alpha": 30.0}):
        with pytest.raises(RunError, match=r"holds \d+ tensors of adapters that this model has not"):
            started(tiny_npz, tmp_path / "lost", run, **model)
    with pytest.raises(RunError, match=r"trained with model.adapter_alpha=30.0, and weigh otherwise with None"):
        started(tiny_npz, tmp_path / "lost", run, freeze="backbone", adapter_rank=RANK)
    assert not (tmp_path / "lost").exists()

    path, _ = export(longtail.load(run, device="cpu"), "safetensors", tmp_path / "exported")
    begun = started(tiny_npz, tmp_path / "merged", path / "model.safetensors")
    merged = longtail.load(path, device="cpu").method.state_dict()
    name = "network.backbone.encoder.layers.encoder_layer_0.mlp.0.weight"
    torch.testing.assert_close(begun[name], merged[name])
    assert not torch.allclose(merged[name], weights_of(run)[name])


def test_a_second_stage_takes_backbone_and_adapters_of_the_first(run: Path, tiny_npz: Path, tmp_path: Path) -> None:
    config = tiny_config("crt", tiny_npz, tmp_path / "second", init=str(run), **ADAPTED)
    second, first = weights_of(run_config(config).path), weights_of(run)
    names = [name for name in first if name.startswith("network.backbone.")]
    assert len([name for name in names if "lora" in name]) == 16
    assert all(torch.equal(second[name], first[name]) for name in names)


def test_the_command_line_trains_adapters(tiny_vit: str, tiny_npz: Path, tmp_path: Path) -> None:
    words = [f"data.path={tiny_npz}", "model.backbone=tiny-vit", "model.freeze=backbone", "model.adapter_rank=2"]
    with pytest.raises(SystemExit) as stop:
        main(["train", "npz/ce", *words, "optim.epochs=1", "optim.layer_decay=0.7", "--out", str(tmp_path / "run")])
    assert not stop.value.code
    assert adapters(longtail.load(tmp_path / "run", device="cpu").method)
