"""Vision transformers as backbones: made for one image size, without a head, unharmed by the network's layout."""

from __future__ import annotations

import pytest
import torch

from longtail.errors import ConfigError
from longtail.models import build_backbone
from longtail.models.network import ModelSettings, Network
from longtail.rng import generator, keyed_global_rng


@pytest.mark.parametrize(("size", "tokens"), [(8, 5), (32, 65)])
def test_a_small_transformer_has_a_token_for_each_patch_of_four_pixels_and_one_for_the_class(
    size: int, tokens: int
) -> None:
    network = Network(ModelSettings(backbone="vit-small-patch4"), 3, seed=0, size=size)
    assert network.backbone.encoder.pos_embedding.shape == (1, tokens, 192)
    assert network.backbone.feature_dim == 192
    assert not [name for name in network.backbone.state_dict() if name.startswith("heads")]
    logits = network.logits(torch.randn(2, 3, size, size, generator=generator("images")))
    assert logits.shape == (2, 3)
    logits.square().sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_a_small_transformer_has_six_layers_of_three_heads_and_no_dropout() -> None:
    backbone = build_backbone("vit-small-patch4", 16)
    layers = list(backbone.encoder.layers)
    assert len(layers) == 6
    assert {layer.self_attention.num_heads for layer in layers} == {3}
    assert {layer.mlp[0].out_features for layer in layers} == {384}
    assert {m.p for m in backbone.modules() if isinstance(m, torch.nn.Dropout)} == {0.0}
    assert {layer.self_attention.dropout for layer in layers} == {0.0}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size", "published", "patches"),
    [("torchvision/vit_b_16", 32, 86_567_656, 4), ("torchvision/vit_b_32", 64, 88_224_232, 4)],
)
def test_the_base_transformers_have_the_published_sizes(name: str, size: int, published: int, patches: int) -> None:
    backbone = build_backbone(name, size)
    assert backbone.feature_dim == 768
    head = 1000 * 768 + 1000
    at_224 = (224 // backbone.patch_size) ** 2
    positions = (at_224 - patches) * 768
    assert sum(p.numel() for p in backbone.parameters()) == published - head - positions
    assert backbone.eval()(torch.zeros(1, 3, size, size)).shape == (1, 768)


@pytest.mark.parametrize(
    ("name", "size", "patch"),
    [("vit-small-patch4", 30, 4), ("vit-small-patch4", 2, 4), ("torchvision/vit_b_16", 40, 16)],
)
def test_a_size_that_patches_do_not_fill_is_refused(name: str, size: int, patch: int) -> None:
    with pytest.raises(ConfigError, match=rf"'{name}'.*{patch} x {patch}(.|\n)*multiple of {patch}"):
        build_backbone(name, size)


def test_a_resnet_is_the_same_for_every_size() -> None:
    made = [Network(ModelSettings(backbone="resnet8"), 3, seed=0, size=size).state_dict() for size in (8, 64)]
    assert all(torch.equal(made[0][key], made[1][key]) for key in made[0])


def test_channels_last_does_not_change_what_a_transformer_computes() -> None:
    network = Network(ModelSettings(backbone="vit-small-patch4"), 3, seed=4, size=16).eval()
    with keyed_global_rng(4, "init", "backbone"):
        plain = build_backbone("vit-small-patch4", 16).eval()
    images = torch.randn(3, 3, 16, 16, generator=generator("images"))
    with torch.no_grad():
        torch.testing.assert_close(network.features(images), plain(images))
