"""The layers of a backbone, which of them learn, and how fast."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from longtail.config import OptimSettings
from longtail.errors import ConfigError
from longtail.methods import METHODS, Batch, Method, Progress
from longtail.models import build_backbone
from longtail.models.blocks import blocks_of, layers_of, patch_of
from longtail.models.network import ModelSettings, Network
from longtail.recipes import load_config
from longtail.rng import generator
from longtail.training.optim import build_optimizer
from longtail.training.state import begin, build_method

COUNTS = [9, 6, 4, 2]


def method_of(name: str, **model: Any) -> Method:
    config = load_config(f"npz/{name}", {"model": {"backbone": "resnet8", **model}})
    return build_method(config, COUNTS, 8)


def images(*key: str | int, count: int = 6) -> torch.Tensor:
    return torch.randn(count, 3, 8, 8, generator=generator("images", *key))


def learn(method: Method, steps: int = 2, **optim: Any) -> None:
    """Some steps on noise, with weight decay and momentum."""
    optimizer = build_optimizer(method, OptimSettings(lr=0.1, **optim), method.rates)
    method.train()
    for step in range(steps):
        views = tuple(images(step, view) for view in range(len(method.needs.views)))
        batch = Batch(views, torch.arange(6) % 4, torch.arange(6))
        optimizer.zero_grad()
        method(batch, Progress(step, 0, 1, 0)).loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = 0.1 * group["rate"]
        optimizer.step()


def moved(method: Method) -> set[str]:
    """Names in the state, below the network, that some steps change."""
    before = copy.deepcopy(method.state_dict())
    learn(method)
    changed = {name for name, value in method.state_dict().items() if not torch.equal(value, before[name])}
    return {name.removeprefix("network.") for name in changed}


# Layers ---------------------------------------------------------------------------------------------------------------


def test_blocks_are_residual_blocks_and_encoder_blocks_from_the_images_on(tiny_vit: str) -> None:
    expected = {
        "resnet8": ["layer1.0", "layer2.0", "layer3.0"],
        "torchvision/resnet18": [f"layer{stage}.{block}" for stage in (1, 2, 3, 4) for block in (0, 1)],
        tiny_vit: ["encoder.layers.encoder_layer_0", "encoder.layers.encoder_layer_1"],
    }
    for name, blocks in expected.items():
        assert list(blocks_of(build_backbone(name, 8))) == blocks


def test_a_backbone_without_a_sequence_of_blocks_is_made_of_its_parts() -> None:
    backbone = nn.Module()
    backbone.stem = nn.Conv2d(3, 4, 3)
    backbone.first = nn.Module()
    backbone.first.conv = nn.Conv2d(4, 4, 3)
    backbone.second = nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU())
    assert list(blocks_of(backbone)) == ["first", "second"]
    assert layers_of(backbone) == {
        "": 0, "stem": 0, "first": 1, "first.conv": 1, "second": 2, "second.0": 2, "second.1": 2,
    }  # fmt: skip


def test_what_stands_between_two_blocks_is_of_the_layer_of_the_second() -> None:
    def stage() -> nn.Module:
        made = nn.Module()
        made.downsample = nn.Conv2d(4, 4, 2)
        made.blocks = nn.Sequential(nn.Sequential(nn.Conv2d(4, 4, 1)), nn.Sequential(nn.Conv2d(4, 4, 1)))
        return made

    backbone = nn.Sequential(stage(), stage(), nn.LayerNorm(4))
    layers = layers_of(backbone)
    assert [layers[name] for name in ("0.downsample", "0.blocks.0", "0.blocks.1.0")] == [0, 1, 2]
    assert [layers[name] for name in ("1.downsample", "1.blocks.0", "1.blocks.1", "2")] == [3, 3, 4, 5]


def layer_by_name(name: str) -> int:
    """Of a tiny vision transformer or a resnet8, from the words of a parameter's name."""
    if "encoder_layer_" in name:
        return int(name.split("encoder_layer_")[1][0]) + 1
    if name.startswith("layer"):
        return int(name[5])
    return 3 if "encoder.ln" in name else 0


@pytest.mark.parametrize("timm", [False, True])
def test_the_class_token_and_the_positions_are_of_the_stem_and_the_last_norm_of_the_end(
    tiny_vit: str, timm: bool
) -> None:
    if timm:
        module = pytest.importorskip("timm")
        backbone = module.create_model("vit_tiny_patch16_224", img_size=8, patch_size=4, depth=2, num_classes=0)
        at = {"cls_token": 0, "pos_embed": 0, "patch_embed.proj.weight": 0, "blocks.1.mlp.fc1.bias": 2, "norm.bias": 3}
    else:
        backbone = build_backbone(tiny_vit, 8)
        at = {name: layer_by_name(name) for name, _ in backbone.named_parameters()}
        assert {at["class_token"], at["encoder.pos_embedding"]} == {0}
        assert set(at.values()) == {0, 1, 2, 3}
    layers = layers_of(backbone)
    assert {name: layers[name.rpartition(".")[0]] for name in at} == at


@pytest.mark.parametrize(("name", "patch"), [("tiny-vit", 4), ("vit-small-patch4", 4), ("resnet8", None)])
def test_a_vision_transformer_knows_the_side_of_its_patches(tiny_vit: str, name: str, patch: int | None) -> None:
    assert patch_of(build_backbone(name, 8)) == patch


@pytest.mark.slow
def test_convolutional_and_other_networks_of_timm_have_blocks() -> None:
    timm = pytest.importorskip("timm")
    counts = {"resnet18": 8, "convnext_atto": 12, "efficientnet_b0": 16, "swin_tiny_patch4_window7_224": 12,
              "regnetx_002": 5, "densenet121": 7, "mixer_s32_224": 8}  # fmt: skip
    assert {name: len(blocks_of(timm.create_model(name, num_classes=0))) for name in counts} == counts


# Rates ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backbone", ["resnet8", "tiny-vit"])
@pytest.mark.parametrize("name", ["concutmix", "ce"])
def test_a_layer_has_the_rate_of_the_next_times_the_decay_and_heads_have_the_full_one(
    tiny_vit: str, name: str, backbone: str
) -> None:
    method = method_of(name, backbone=backbone)
    optimizer = build_optimizer(method, OptimSettings(layer_decay=0.5), method.rates)
    found = {id(parameter): group["rate"] for group in optimizer.param_groups for parameter in group["params"]}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(found)
    last = {"resnet8": 3 + 1, "tiny-vit": 2 + 1}[backbone]
    for full, parameter in method.named_parameters():
        expected = 1.0
        if full.startswith("network.backbone."):
            for _ in range(last - layer_by_name(full.removeprefix("network.backbone."))):
                expected *= 0.5
        assert found[id(parameter)] == expected, full


def test_a_layers_rate_multiplies_that_of_the_method() -> None:
    method = method_of("ce")
    rates = {"network.backbone.layer3": 0.2, "network.classifier": 3.0}
    optimizer = build_optimizer(method, OptimSettings(layer_decay=0.5), rates)
    found = {id(parameter): group["rate"] for group in optimizer.param_groups for parameter in group["params"]}
    named = dict(method.named_parameters())
    assert found[id(named["network.backbone.layer3.0.conv1.weight"])] == pytest.approx(0.5 * 0.2)
    assert found[id(named["network.classifier.weight"])] == 3.0
    assert found[id(named["network.backbone.layer2.0.conv1.weight"])] == 0.25


def test_a_step_is_as_long_as_the_rate_of_its_layer() -> None:
    one, other = method_of("ce"), method_of("ce")
    before = {name: parameter.detach().clone() for name, parameter in one.named_parameters()}
    learn(one, steps=1)
    learn(other, steps=1, layer_decay=0.5)
    whole, decayed = dict(one.named_parameters()), dict(other.named_parameters())
    for name, rate in (
        ("backbone.conv1.weight", 0.5**4),
        ("backbone.layer3.0.conv1.weight", 0.5),
        ("classifier.bias", 1),
    ):
        full = f"network.{name}"
        torch.testing.assert_close(decayed[full] - before[full], rate * (whole[full] - before[full]))


# What learns ----------------------------------------------------------------------------------------------------------

HEAD = {"classifier.weight", "classifier.bias"}


def test_without_freezing_all_learns() -> None:
    assert moved(method_of("ce")) == {name.removeprefix("network.") for name in method_of("ce").state_dict()}


@pytest.mark.parametrize("backbone", ["resnet8", "tiny-vit"])
def test_a_frozen_backbone_stays_bit_for_bit_with_its_statistics(tiny_vit: str, backbone: str) -> None:
    assert moved(method_of("ce", backbone=backbone, freeze="backbone")) == HEAD


@pytest.mark.parametrize(("backbone", "blocks"), [("resnet8", 3), ("tiny-vit", 2)])
@pytest.mark.parametrize("last", [1, 2])
def test_of_the_last_blocks_and_what_follows_them_everything_learns_and_before_them_nothing(
    tiny_vit: str, backbone: str, blocks: int, last: int
) -> None:
    method = method_of("ce", backbone=backbone, freeze=f"all-but-{last}")
    names = [name.removeprefix("network.backbone.") for name in method.state_dict() if "backbone" in name]
    expected = {f"backbone.{name}" for name in names if layer_by_name(name) > blocks - last}
    assert moved(method) == expected | HEAD


def test_frozen_modules_are_in_evaluation_mode_in_training_and_those_that_learn_are_not(tiny_vit: str) -> None:
    method = method_of("ce", freeze="all-but-1")
    for again in (method, method.eval().train(), copy.deepcopy(method)):
        backbone = again.network.backbone
        modes = {
            name: module.training for name, module in backbone.named_modules() if isinstance(module, nn.BatchNorm2d)
        }
        assert modes == {name: name.startswith("layer3") for name in modes}
        assert again.network.training
        assert backbone.training, "it holds what learns"
    assert not any(module.training for module in method.eval().modules())
    vit = Network(ModelSettings(backbone=tiny_vit, freeze="all-but-1"), 4, seed=0, size=8).backbone
    dropouts = {name: module.training for name, module in vit.named_modules() if isinstance(module, nn.Dropout)}
    assert dropouts == {name: "encoder_layer_1" in name for name in dropouts}
    assert len(dropouts) > 2


def test_no_graph_is_built_in_what_is_frozen(tiny_vit: str) -> None:
    for backbone in ("resnet8", tiny_vit):
        frozen = Network(ModelSettings(backbone=backbone, freeze="backbone"), 4, seed=0, size=8)
        assert not frozen.features(images()).requires_grad
        partly = Network(ModelSettings(backbone=backbone, freeze="all-but-1"), 4, seed=0, size=8)
        first, last = list(blocks_of(partly.backbone).values())[:: 2 if backbone == "resnet8" else 1]
        wants: list[bool] = []
        for block in (first, last):
            block.register_forward_hook(lambda _m, _i, out, wants=wants: wants.append(out.requires_grad))
        partly.features(images())
        assert wants == [False, True]


@pytest.mark.parametrize("name", ["concutmix", "smcl", "paco"])
def test_freezing_leaves_the_start_of_all_weights_where_it_was(name: str) -> None:
    one, other = method_of(name), method_of(name, freeze="all-but-1")
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in one.state_dict().items())


@pytest.mark.parametrize("name", ["crt", "lws", "mislas"])
def test_a_second_stage_freezes_the_whole_backbone_whatever_is_asked(name: str) -> None:
    """With model.freeze or without: one mechanism, whose last word is the method's."""
    plain, asked = method_of(name), method_of(name, freeze="all-but-1")
    for method in (plain, asked):
        assert not any(parameter.requires_grad for parameter in method.network.backbone.parameters())
    shifting = [module.training for module in asked.network.backbone.modules() if isinstance(module, nn.BatchNorm2d)]
    assert set(shifting) == {name == "mislas"}


def test_more_blocks_than_there_are_is_refused_with_their_number() -> None:
    with pytest.raises(ConfigError, match=r"all-but-4: the backbone has 3 blocks"):
        method_of("ce", freeze="all-but-4")
    method_of("ce", freeze="all-but-3")


@pytest.mark.parametrize("value", ["some", "all-but-0", "all-but-", "all-but-1.5", "all", "All-but-1"])
def test_another_word_for_what_is_frozen_is_refused_with_those_there_are(value: str) -> None:
    with pytest.raises(ConfigError, match=rf"model.freeze='{value}': must be none, backbone, or all-but-N"):
        load_config("scenes/ce", [f"model.freeze={value}"])


def test_a_start_says_that_a_backbone_is_frozen_which_nobody_trained() -> None:
    config = load_config("npz/ce", {"model": {"backbone": "resnet8", "freeze": "backbone"}})
    said = begin(build_method(config, COUNTS, 8), config)
    assert said is not None
    assert "model.freeze=backbone" in said
    assert begin(method_of("ce"), load_config("npz/ce", {"model": {"backbone": "resnet8"}})) is None


@pytest.mark.parametrize("name", METHODS)
def test_spelling_out_that_nothing_of_this_is_wanted_leaves_the_key_as_it_was(name: str) -> None:
    plain = load_config(f"cifar100/{name}")
    spelled = {
        "model": {"freeze": "none", "adapter_rank": None, "adapter_alpha": None, "adapter_layers": "all"},
        "optim": {"layer_decay": None},
        "run": {"checkpointing": False},
    }
    assert load_config(f"cifar100/{name}", spelled).key() == plain.key()
    asked = [
        load_config(f"cifar100/{name}", given).key()
        for given in ({"model": {"freeze": "backbone"}}, {"optim": {"layer_decay": 0.5}})
    ]
    assert len({plain.key(), *asked}) == 3
    assert load_config(f"cifar100/{name}", {"run": {"checkpointing": True}}).key() == plain.key()
