from __future__ import annotations

import math
import sys

import pytest
import torch
from torch import Tensor, nn

from longtail.errors import ConfigError
from longtail.models import (
    BACKBONES,
    CosineClassifier,
    MLPHead,
    ResNetCIFAR,
    build_backbone,
    build_classifier,
    check_backbone,
)
from longtail.models.resnet_cifar import BasicBlock
from longtail.rng import generator, keyed_global_rng


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def built(name: str, size: int = 32) -> nn.Module:
    with keyed_global_rng(0, "init", name):
        return build_backbone(name, size)


def images(count: int, side: int) -> Tensor:
    return torch.randn(count, 3, side, side, generator=generator(count, side, "images"))


@pytest.mark.parametrize("name", sorted(BACKBONES))
def test_every_backbone_gives_features_of_the_width_it_names(name: str) -> None:
    side = 64 if name.startswith("torchvision/") else 32
    backbone = built(name, side).eval()
    with torch.no_grad():
        features = backbone(images(2, side))
    assert features.shape == (2, backbone.feature_dim)
    assert torch.isfinite(features).all()


@pytest.mark.parametrize(
    ("name", "count"), [("resnet20", 269_722), ("resnet32", 464_154), ("resnet44", 658_586), ("resnet56", 853_018)]
)
def test_cifar_resnets_have_the_published_number_of_parameters(name: str, count: int) -> None:
    backbone = built(name)
    assert parameters(backbone) + parameters(build_classifier("linear", 64, 10)) == count


def test_the_wide_resnet_has_four_times_the_channels() -> None:
    wide = built("resnet32-w64")
    assert isinstance(wide, ResNetCIFAR)
    assert wide.feature_dim == 256
    assert [wide.conv1.out_channels, wide.layer2[0].conv1.out_channels, wide.layer3[4].conv2.out_channels] == [
        64,
        128,
        256,
    ]


@pytest.mark.parametrize(("name", "dim"), [("resnet18", 512), ("resnet50", 2048), ("resnext50_32x4d", 2048)])
def test_torchvision_backbones_have_no_classifier_left(name: str, dim: int) -> None:
    backbone = built(f"torchvision/{name}")
    assert backbone.feature_dim == dim
    assert not [key for key in backbone.state_dict() if key.startswith("fc")]
    # Last batch-norm of a block not zeroed, He normal by fan-out.
    last = [module for key, module in backbone.named_modules() if key.endswith(("layer4.1.bn2", "layer4.1.bn3"))][-1]
    assert isinstance(last, nn.BatchNorm2d)
    assert (last.weight == 1).all()
    stem = backbone.conv1
    assert isinstance(stem, nn.Conv2d)
    assert float(stem.weight.detach().std()) == pytest.approx(math.sqrt(2 / (64 * 49)), rel=0.05)


def test_shortcut_skips_pixels_and_puts_zero_channels_on_both_sides() -> None:
    x = images(2, 8)[:, :2]
    shortcut = BasicBlock(2, 4, stride=2).shortcut(x)
    assert shortcut.shape == (2, 4, 4, 4)
    assert torch.equal(shortcut[:, 1:3], x[:, :, ::2, ::2])
    assert (shortcut[:, [0, 3]] == 0).all()
    same = BasicBlock(2, 2, stride=1)
    assert same.shortcut(x) is x


def test_a_block_is_relu_of_branch_plus_shortcut() -> None:
    with keyed_global_rng(0, "init", "block"):
        block = BasicBlock(4, 4, stride=1).eval()
    x = torch.randn(2, 4, 6, 6, generator=generator(0, "block"))
    with torch.no_grad():
        hidden = block.bn1(block.conv1(x)).clamp_min(0)
        expected = (block.bn2(block.conv2(hidden)) + x).clamp_min(0)
        torch.testing.assert_close(block(x), expected)


def test_strides_leave_eight_by_eight_maps_of_a_32_pixel_image() -> None:
    net = built("resnet20")
    assert isinstance(net, ResNetCIFAR)
    seen: list[tuple[int, ...]] = []
    for stage in (net.layer1, net.layer2, net.layer3):
        stage.register_forward_hook(lambda _m, _i, out: seen.append(tuple(out.shape[1:])))
    net(images(2, 32))
    assert seen == [(16, 32, 32), (32, 16, 16), (64, 8, 8)]


def test_odd_sizes_pass_through_the_cifar_resnet() -> None:
    assert built("resnet20")(images(2, 29)).shape == (2, 64)


def test_cifar_resnet_starts_he_normal_by_fan_in_with_batch_norm_one_and_zero() -> None:
    net = built("resnet32")
    for name, module in net.named_modules():
        if isinstance(module, nn.Conv2d):
            assert module.bias is None
            expected = math.sqrt(2 / (module.in_channels * 9))
            # The standard error of a deviation of n normals is 1 / sqrt(2 n).
            assert float(module.weight.detach().std()) == pytest.approx(
                expected, rel=5 / math.sqrt(2 * module.weight.numel())
            ), name
        if isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all()
            assert (module.bias == 0).all()
            assert module.eps == 1e-5
            assert module.momentum == 0.1


def test_the_same_key_builds_the_same_weights_and_another_key_others() -> None:
    for name in ("resnet20", "torchvision/resnet18"):
        first, again = built(name).state_dict(), built(name).state_dict()
        assert all(torch.equal(first[key], again[key]) for key in first)
        with keyed_global_rng(1, "init", name):
            other = build_backbone(name).state_dict()
        assert not torch.equal(first["conv1.weight"], other["conv1.weight"])


def test_every_parameter_of_the_cifar_resnet_receives_a_gradient() -> None:
    net = built("resnet20")
    net(images(4, 32)).square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in net.parameters())


def test_an_unknown_backbone_or_classifier_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"Unknown backbone 'resnet23'") as caught:
        build_backbone("resnet23")
    assert caught.value.hint is not None
    assert "resnet" in caught.value.hint
    with pytest.raises(ConfigError, match=r"Unknown classifier 'cosin'(.|\n)*Did you mean 'cosine'"):
        build_classifier("cosin", 4, 2)


def test_a_depth_that_is_not_six_n_plus_two_is_refused() -> None:
    for depth in (2, 18, 33):
        with pytest.raises(ConfigError, match="depth of 6 n"):
            ResNetCIFAR(depth)
    with pytest.raises(ConfigError, match="width"):
        ResNetCIFAR(20, width=0)


def test_a_torchvision_that_cannot_be_imported_is_a_config_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision.models", None)
    with pytest.raises(ConfigError, match=r"'torchvision/resnet18' needs torchvision") as caught:
        build_backbone("torchvision/resnet18")
    assert caught.value.hint is not None
    assert "resnet32" in caught.value.hint


def test_linear_classifier_is_weight_times_features_plus_bias() -> None:
    with keyed_global_rng(0, "init", "linear"):
        classifier = build_classifier("linear", 6, 3)
    h = torch.randn(4, 6, generator=generator(0, "h"))
    assert set(classifier.state_dict()) == {"weight", "bias"}
    torch.testing.assert_close(classifier(h), h @ classifier.weight.T + classifier.bias)
    bound = 1 / math.sqrt(6)
    assert float(classifier.weight.detach().abs().max()) <= bound


def test_cosine_classifier_is_thirty_times_the_cosine() -> None:
    with keyed_global_rng(0, "init", "cosine"):
        classifier = build_classifier("cosine", 6, 3)
    h = torch.randn(4, 6, generator=generator(0, "h"))
    assert list(classifier.state_dict()) == ["weight"]
    torch.testing.assert_close(classifier.weight.norm(dim=1), torch.ones(3))
    expected = 30 * torch.cosine_similarity(h[:, None], classifier.weight[None], dim=2)
    torch.testing.assert_close(classifier(h), expected)
    with torch.no_grad():
        classifier.weight.mul_(7.0)
    torch.testing.assert_close(classifier(5 * h), expected)


def test_cosine_weights_start_uniform_before_they_are_scaled() -> None:
    with keyed_global_rng(0, "init", "cosine"):
        weight = CosineClassifier(200, 50).weight
    assert float((weight > 0).float().mean()) == pytest.approx(0.5, abs=0.02)
    # A uniform variable over its root mean square ends at sqrt 3; a normal one would go beyond.
    assert float(weight.detach().abs().max()) * math.sqrt(200) < 2.0


def test_mlp_head_has_the_parameter_names_of_public_checkpoints() -> None:
    with keyed_global_rng(0, "init", "projection"):
        head = MLPHead(64, 512, 128)
    names = {name for name, _ in head.named_parameters()}
    assert names == {f"{i}.{kind}" for i in (0, 1, 3) for kind in ("weight", "bias")}
    assert head(torch.randn(3, 64, generator=generator(0, "h"))).shape == (3, 128)
    assert [type(layer) for layer in head] == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear]


def test_a_backbone_of_torchvision_without_its_prefix_is_recognized() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'torchvision/resnet50'"):
        check_backbone("resnet50")
