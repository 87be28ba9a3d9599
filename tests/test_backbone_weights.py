"""Backbones of timm, and backbones that begin with the tensors of a local file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from longtail.api import run_config
from longtail.config import build_config
from longtail.errors import ConfigError, RunError
from longtail.exchange.export import export
from longtail.layers import merge
from longtail.methods import METHODS
from longtail.models import build_backbone
from longtail.models.network import ModelSettings, Network
from longtail.models.weights import load_backbone
from longtail.prediction.predict import load
from longtail.recipes import load_config
from longtail.rng import generator
from longtail.saliency.model import attention_rollout
from tiny import Recorder, outcome, settings_of, write_npz

TIMM = {"timm/test_vit": 64, "timm/test_resnet": 96, "timm/mobilenetv3_small_050": 1024}
"""Small models and the width of their features."""


def network(backbone: str = "resnet8", size: int = 32, seed: int = 0, classes: int = 3) -> Network:
    return Network(ModelSettings(backbone=backbone), classes, seed=seed, size=size)


def images(size: int = 32) -> Tensor:
    return torch.randn(4, 3, size, size, generator=generator("images"))


# timm -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TIMM)
def test_a_model_of_timm_is_a_backbone_without_classifier(name: str) -> None:
    made = network(name)
    assert made.backbone.feature_dim == made.features(images()[:2]).shape[1] == TIMM[name]
    made.logits(images()).square().mean().backward()
    for parameter, value in made.named_parameters():
        assert value.grad is not None, parameter
    made.eval()
    with torch.no_grad():
        together = made.logits(images())
        torch.testing.assert_close(made.logits(images()[1:2]), together[1:2], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", TIMM)
def test_a_model_of_timm_starts_alike_under_its_key(name: str) -> None:
    one, same, other = (network(name, seed=seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert any(not torch.equal(one[key], other[key]) for key in one)


def test_making_a_model_of_timm_leaves_its_batch_norm_as_new() -> None:
    counted = {k: v for k, v in network("timm/test_resnet").state_dict().items() if k.endswith("num_batches_tracked")}
    assert counted
    assert not any(int(value) for value in counted.values())
    assert network("timm/test_resnet").backbone.training


def test_a_transformer_of_timm_is_made_for_the_size_of_the_images() -> None:
    small, large = network("timm/test_vit", 32), network("timm/test_vit", 64)
    assert small.backbone.pos_embed.shape[1] == 2 * 2 + 1
    assert large.backbone.pos_embed.shape[1] == 4 * 4 + 1
    assert attention_rollout(large, images(64), torch.zeros(4, dtype=torch.int64)).shape == (4, 64, 64)


def test_a_size_that_a_model_of_timm_does_not_take_is_refused() -> None:
    with pytest.raises(ConfigError, match="'timm/test_vit' cannot be made for images of 40 x 40"):
        build_backbone("timm/test_vit", 40)


def test_a_name_that_timm_does_not_have_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'timm/resnet50'"):
        load_config("cifar100/ce", ["model.backbone=timm/resnet5O"])
    with pytest.raises(ConfigError, match="Unknown backbone"):
        load_config("cifar100/ce", ["model.backbone=timm/hf-hub:timm/resnet50.a1_in1k"])


def test_without_timm_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ConfigError, match=r"longtail\[timm\]"):
        load_config("cifar100/ce", ["model.backbone=timm/resnet50"])


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_run_with_a_transformer_of_timm_repeats_bit_for_bit(tmp_path: Path, precision: str) -> None:
    archive = write_npz(tmp_path / "tiny.npz", shape=(32, 32, 3))
    kept = []
    for name in "ab":
        own = {"model": {"backbone": "timm/test_vit"}, "run": {"precision": precision}}
        values = settings_of("concutmix", data={"path": str(archive)}, out=str(tmp_path / name), **own)
        values = merge(values, {"run": {"precision": precision}})
        run_config(load_config("npz/concutmix", values), listener=Recorder())
        kept.append(outcome(tmp_path / name))
    assert kept[0] == kept[1]


# model.weights --------------------------------------------------------------------------------------------------------


def saved(path: Path, tensors: dict[str, Tensor]) -> Path:
    save_file({name: value.contiguous() for name, value in tensors.items()}, path)
    return path


@pytest.mark.parametrize("start", ["", "network.backbone.", "encoder.", "module."])
def test_a_backbone_begins_with_the_tensors_of_a_file_under_any_usual_name(tmp_path: Path, start: str) -> None:
    given, own = network(seed=1, classes=7).backbone.state_dict(), network(seed=2)
    tensors = {start + name: value for name, value in given.items()}
    said = load_backbone(own.backbone, saved(tmp_path / "x.safetensors", tensors | {"fc.weight": torch.ones(7, 64)}))
    assert all(torch.equal(value, given[name]) for name, value in own.backbone.state_dict().items())
    counted = sum(not name.endswith("num_batches_tracked") for name in given)
    assert said.startswith(f"{counted} of {counted} tensors of the backbone are from ")
    assert said.endswith("; 1 left out: fc.weight.")


def test_what_does_not_fit_or_is_not_there_begins_anew_and_is_named(tmp_path: Path) -> None:
    given, own = network("timm/test_vit", 64, seed=1).backbone.state_dict(), network("timm/test_vit", 32, seed=2)
    before = own.backbone.state_dict()["norm.weight"].clone()
    del given["norm.weight"]
    said = load_backbone(own.backbone, saved(tmp_path / "x.safetensors", given))
    assert "1 of another shape, and begun anew: pos_embed" in said
    assert "1 not in the file, and begun anew: norm.weight" in said
    assert torch.equal(own.backbone.state_dict()["norm.weight"], before)
    assert torch.equal(own.backbone.state_dict()["blocks.0.attn.qkv.weight"], given["blocks.0.attn.qkv.weight"])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot be read as safetensors"),
        ({"other": torch.ones(3)}, "Nothing in model.weights="),
        ({"conv1.weight": torch.full((16, 3, 3, 3), torch.nan)}, "not finite"),
    ],
)
def test_a_file_that_cannot_serve_is_refused(tmp_path: Path, content: dict[str, Tensor] | None, words: str) -> None:
    file = tmp_path / "x.safetensors"
    if content is not None:
        saved(file, content)
    with pytest.raises(RunError, match=words) as caught:
        load_backbone(network().backbone, file)
    assert caught.value.exit_code == 4


def test_a_run_begins_with_the_weights_says_so_and_counts_them_by_content(tiny_npz: Path, tmp_path: Path) -> None:
    first = network(seed=5).backbone.state_dict()
    file = saved(tmp_path / "x.safetensors", first)

    def config(**own: Any) -> Any:
        values = settings_of("ce", data={"path": str(tiny_npz)}, out=str(tmp_path / "run"))
        return load_config("npz/ce", merge(values, {"model": {"weights": str(file)}, "optim": {"lr": 1e-20}}, own))

    recorder = Recorder()
    run_config(config(), listener=recorder)
    assert any("tensors of the backbone are from" in line for line in recorder.messages)
    [*_, last] = sorted((tmp_path / "run" / "checkpoints").glob("step-*.safetensors"))
    kept = load_file(last)["model/network.backbone.conv1.weight"]
    torch.testing.assert_close(kept, first["conv1.weight"])
    key = config().key()
    file.rename(tmp_path / "y.safetensors")
    moved = config(model={"weights": str(tmp_path / "y.safetensors")})
    assert moved.key() == key
    saved(tmp_path / "y.safetensors", network(seed=6).backbone.state_dict())
    assert moved.key() != key
    assert config(model={"weights": None}).key() != key


def test_weights_and_init_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match="exclude each other"):
        build_config({"data": {"name": "scenes"}, "method": {"name": "ce"}, "init": "x", "model": {"weights": "y"}})


def test_every_method_takes_weights_for_its_backbone(tmp_path: Path) -> None:
    file = saved(tmp_path / "x.safetensors", network(seed=5).backbone.state_dict())
    for name in METHODS:
        assert load_config(f"scenes/{name}", {"model": {"weights": str(file), "backbone": "resnet8"}}).model.weights


def test_an_exported_network_gives_its_backbone(finished_run: Any, tmp_path: Path) -> None:
    export(load(finished_run.path), "safetensors", tmp_path / "out")
    own = network(seed=3)
    said = load_backbone(own.backbone, next((tmp_path / "out").glob("*.safetensors")))
    assert "not in the file" not in said
