"""Saliency from the network in training, against slow loops, and the promise to leave the network as it was."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from longtail.errors import ConfigError
from longtail.models.adapters import add_adapters
from longtail.models.network import ModelSettings, Network
from longtail.rng import generator, keyed_global_rng
from longtail.saliency.model import attention_modules, attention_rollout, grad_cam, input_gradient

Detector = Callable[[Network, Tensor, Tensor], Tensor]
Grid = list[list[float]]

DETECTORS = [input_gradient, grad_cam, attention_rollout]
CASES = [
    (detector, backbone, size)
    for backbone, size in [
        ("resnet8", 8),
        ("resnet8", 32),
        ("torchvision/resnet18", 32),
        ("torchvision/resnet18", 64),
        ("vit-small-patch4", 16),
    ]
    for detector in DETECTORS
    if detector is not attention_rollout or backbone.startswith("vit")
]
BATCH = 3
LABELS = torch.tensor([0, 2, 1])


def network_of(backbone: str, size: int = 32) -> Network:
    """A network whose batch-norm has seen data and whose attention is far from uniform."""
    network = Network(ModelSettings(backbone=backbone), 3, seed=1, size=size)
    with torch.no_grad():
        for name, value in network.named_parameters():
            if name.endswith("in_proj_weight"):
                value.mul_(4)
        network.train()
        network.features(torch.randn(8, 3, size, size, generator=generator("warm")))
    return network


def images_of(size: int, count: int = BATCH) -> Tensor:
    return torch.randn(count, 3, size, size, generator=generator("images", size))


def with_backbone(backbone: nn.Module, width: int, classes: int = 3) -> Network:
    network = Network(ModelSettings(backbone="resnet8"), classes, seed=0)
    network.backbone = backbone  # type: ignore[assignment]
    network.classifier = nn.Linear(width, classes)  # type: ignore[assignment]
    with torch.no_grad():
        for name, value in network.named_parameters():
            value.copy_(torch.randn(value.shape, generator=generator("toy", name)))
    return network


class Convolutions(nn.Module):
    """mean over positions of tanh(conv(x)), of one stride."""

    def __init__(self, stride: int = 2) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=stride, padding=1)
        self.act = nn.Tanh()

    def forward(self, images: Tensor) -> Tensor:
        maps: Tensor = self.act(self.conv(images))
        return maps.mean(dim=(2, 3))


# The equations, slowly -----------------------------------------------------------------------------------------------


def enlarged(grid: Grid, height: int, width: int) -> Grid:
    """Bilinear with half-pixel centers: a pixel beyond the outermost centers takes the value of the nearest."""

    def around(position: int, small: int, large: int) -> tuple[int, int, float]:
        at = min(max((position + 0.5) * small / large - 0.5, 0.0), small - 1.0)
        low = math.floor(at)
        return low, min(low + 1, small - 1), at - low

    out = []
    for y in range(height):
        top, bottom, down = around(y, len(grid), height)
        row = []
        for x in range(width):
            left, right, along = around(x, len(grid[0]), width)
            upper = grid[top][left] * (1 - along) + grid[top][right] * along
            lower = grid[bottom][left] * (1 - along) + grid[bottom][right] * along
            row.append(upper * (1 - down) + lower * down)
        out.append(row)
    return out


def scaled(grid: Grid) -> Grid:
    largest = max(max(row) for row in grid)
    return [[value / largest if largest > 0 else value for value in row] for row in grid]


def softmax(row: list[float]) -> list[float]:
    top = max(row)
    total = math.fsum(math.exp(value - top) for value in row)
    return [math.exp(value - top) / total for value in row]


def rolled_out(queries: list[Tensor], keys: list[Tensor], scale: float, prefix: int) -> Grid:
    """The class token's row of M_L ... M_1 as a square; queries and keys (heads, N, d) of each layer, one image."""
    tokens = queries[0].shape[1]
    product = [[float(i == j) for j in range(tokens)] for i in range(tokens)]
    for query, key in zip(queries, keys, strict=True):
        heads = [
            [softmax([scale * float(q @ k) for k in of_head_k]) for q in of_head_q]
            for of_head_q, of_head_k in zip(query.double(), key.double(), strict=True)
        ]
        mixed = [
            [0.5 * math.fsum(head[i][j] for head in heads) / len(heads) + 0.5 * (i == j) for j in range(tokens)]
            for i in range(tokens)
        ]
        product = [
            [math.fsum(mixed[i][t] * product[t][j] for t in range(tokens)) for j in range(tokens)]
            for i in range(tokens)
        ]
    row = product[0][prefix:]
    side = math.isqrt(len(row))
    return [row[i * side : (i + 1) * side] for i in range(side)]


def test_input_gradient_is_the_largest_finite_difference_of_the_logit_over_channels() -> None:
    network = with_backbone(Convolutions(), 4)
    images = images_of(5, 2)
    maps = input_gradient(network, images, LABELS[:2])
    exact = copy.deepcopy(network).double()
    for b in range(2):
        grid = []
        for y in range(5):
            row = []
            for x in range(5):
                slopes = []
                for c in range(3):
                    moved = []
                    for step in (1e-5, -1e-5):
                        image = images[b : b + 1].double().clone()
                        image[0, c, y, x] += step
                        with torch.no_grad():
                            moved.append(float(exact.logits(image)[0, LABELS[b]]))
                    slopes.append(abs(moved[0] - moved[1]) / 2e-5)
                row.append(max(slopes))
            grid.append(row)
        torch.testing.assert_close(maps[b], torch.tensor(scaled(grid)), rtol=1e-3, atol=1e-4)


def test_grad_cam_is_the_rectified_sum_of_maps_weighted_by_their_mean_gradient() -> None:
    network = with_backbone(Convolutions(), 4)
    images = images_of(8)
    found = grad_cam(network, images, LABELS)
    assert isinstance(network.backbone, Convolutions)
    with torch.no_grad():
        maps = network.backbone.conv(images).tanh().double()
    # After the mean over 16 positions, the gradient of logit k by every position of map c is W_kc / 16.
    for b in range(BATCH):
        weights = [float(w) / 16 for w in network.classifier.weight[LABELS[b]].tolist()]
        coarse = [
            [max(sum(weights[c] * float(maps[b, c, i, j]) for c in range(4)), 0.0) for j in range(4)] for i in range(4)
        ]
        assert 0 < sum(value > 0 for row in coarse for value in row) < 16, "a case that rectifies some and not all"
        torch.testing.assert_close(found[b], torch.tensor(scaled(enlarged(coarse, 8, 8))), rtol=1e-4, atol=1e-5)


def queries_and_keys(network: Network, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Of a torchvision transformer, each layer's (B, heads, N, d), by its modules one after another."""
    backbone = network.backbone
    queries, keys = [], []
    patches = backbone.conv_proj(images).flatten(2).transpose(1, 2)
    tokens = torch.cat([backbone.class_token.expand(len(images), -1, -1), patches], dim=1)
    tokens = tokens + backbone.encoder.pos_embedding
    for layer in backbone.encoder.layers:
        attention = layer.self_attention
        query, key, _ = nn.functional.linear(
            layer.ln_1(tokens), attention.in_proj_weight, attention.in_proj_bias
        ).chunk(3, dim=-1)
        for kept, value in ((queries, query), (keys, key)):
            kept.append(value.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2))
        tokens = layer(tokens)
    return queries, keys


def test_rollout_is_the_class_row_of_the_product_of_all_layers_mean_attention_and_identity() -> None:
    network = network_of("vit-small-patch4", 12).eval()
    images = images_of(12)
    found = attention_rollout(network, images, LABELS)
    with torch.no_grad():
        queries, keys = queries_and_keys(network, images)
    for b in range(BATCH):
        grid = rolled_out([q[b] for q in queries], [k[b] for k in keys], 64**-0.5, prefix=1)
        assert min(min(row) for row in grid) < 0.9 * max(max(row) for row in grid), "attention that is not uniform"
        torch.testing.assert_close(found[b], torch.tensor(scaled(enlarged(grid, 12, 12))), rtol=1e-4, atol=1e-5)


class TimmLikeAttention(nn.Module):
    """The parts that timm's attention is made of, with normalized queries and a kernel that keeps no weights."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.num_heads = heads
        self.scale = 0.7
        self.qkv = nn.Linear(dim, 3 * dim)
        self.q_norm = nn.LayerNorm(dim // heads)
        self.k_norm = nn.Identity()

    def forward(self, tokens: Tensor, rope: Tensor | None = None) -> Tensor:
        batch, count, dim = tokens.shape
        qkv = self.qkv(tokens).reshape(batch, count, 3, self.num_heads, dim // self.num_heads).permute(2, 0, 3, 1, 4)
        query, key, value = self.q_norm(qkv[0]), self.k_norm(qkv[1]), qkv[2]
        mixed = nn.functional.scaled_dot_product_attention(query, key, value, scale=self.scale)
        return mixed.transpose(1, 2).reshape(batch, count, dim)


class TimmLike(nn.Module):
    """Two layers over patches of 2 x 2 pixels, with a class token and one register before them."""

    num_prefix_tokens = 2

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 6, 2, stride=2)
        self.prefix = nn.Parameter(torch.zeros(1, 2, 6))
        self.layers = nn.ModuleList([TimmLikeAttention(6, 2) for _ in range(2)])
        self.rope: Tensor | None = None

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.embed(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.prefix.expand(len(images), -1, -1), tokens], dim=1)
        for layer in self.layers:
            tokens = tokens + layer(tokens, rope=self.rope)
        return tokens[:, 0]


def test_rollout_reads_the_attention_of_timms_modules_by_their_parts() -> None:
    network = with_backbone(TimmLike(), 6)
    images = images_of(6)
    found = attention_rollout(network, images, LABELS)
    queries: list[Tensor] = []
    keys: list[Tensor] = []
    assert isinstance(network.backbone, TimmLike)
    for layer in network.backbone.layers:
        layer.q_norm.register_forward_hook(lambda _m, _i, out: queries.append(out.detach()))
        layer.k_norm.register_forward_hook(lambda _m, _i, out: keys.append(out.detach()))
    network.features(images)
    for b in range(BATCH):
        grid = rolled_out([q[b] for q in queries], [k[b] for k in keys], 0.7, prefix=2)
        torch.testing.assert_close(found[b], torch.tensor(scaled(enlarged(grid, 6, 6))), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("adapted", [False, True])
def test_rollout_reads_the_attention_of_a_transformer_of_timm(adapted: bool) -> None:
    timm = pytest.importorskip("timm")
    backbone = timm.create_model("vit_tiny_patch16_224", img_size=12, patch_size=4, depth=2, num_classes=0)
    network = with_backbone(backbone, 192).eval()
    if adapted:
        backbone.requires_grad_(False)
        for name in add_adapters(backbone, 4, layers="attention", seed=0):
            layer = backbone.get_submodule(name)
            layer.lora_b.data.copy_(torch.randn(layer.lora_b.shape, generator=generator("rollout", name)))
    images = images_of(12)
    found = attention_rollout(network, images, LABELS)
    queries: list[Tensor] = []
    keys: list[Tensor] = []
    for block in backbone.blocks:
        block.attn.q_norm.register_forward_hook(lambda _m, _i, out: queries.append(out.detach()))
        block.attn.k_norm.register_forward_hook(lambda _m, _i, out: keys.append(out.detach()))
    network.features(images)
    for b in range(BATCH):
        grid = rolled_out([q[b] for q in queries], [k[b] for k in keys], 64**-0.5, prefix=1)
        torch.testing.assert_close(found[b], torch.tensor(scaled(enlarged(grid, 12, 12))), rtol=1e-4, atol=1e-5)


def test_grad_cam_does_not_take_heads_by_tokens_for_a_map() -> None:
    network = with_backbone(TimmLike(), 6)
    embedded: list[Tensor] = []
    network.backbone.embed.register_forward_hook(lambda _m, _i, out: embedded.append(out))
    found = grad_cam(network, images_of(6), LABELS)
    (gradient,) = torch.autograd.grad(
        network.logits(images_of(6)).gather(1, LABELS[:, None]).sum(), embedded[-1], retain_graph=True
    )
    coarse = (gradient.mean(dim=(2, 3), keepdim=True) * embedded[-1]).sum(dim=1).relu()
    for b in range(BATCH):
        torch.testing.assert_close(found[b], torch.tensor(scaled(enlarged(coarse[b].tolist(), 6, 6))))


# On every backbone ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("detector", "backbone", "size"), CASES)
def test_a_map_reaches_one_or_is_all_zeros(detector: Detector, backbone: str, size: int) -> None:
    maps = detector(network_of(backbone, size), images_of(size), LABELS)
    assert (maps.shape, maps.dtype) == ((BATCH, size, size), torch.float32)
    assert not maps.requires_grad
    assert bool((maps >= 0).all())
    assert set(maps.amax(dim=(1, 2)).tolist()) <= {0.0, 1.0}
    assert bool((maps > 0).any())


def snapshot(network: Network) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


@pytest.mark.parametrize(("detector", "backbone", "size"), CASES)
def test_the_network_is_left_as_it_was(detector: Detector, backbone: str, size: int) -> None:
    network = network_of(backbone, size).train()
    frozen = next(m for m in network.modules() if isinstance(m, nn.BatchNorm2d | nn.LayerNorm))
    frozen.eval()
    network.logits(images_of(size)).sum().backward()
    given = images_of(size).requires_grad_()
    gradients = [None if p.grad is None else p.grad.clone() for p in network.parameters()]
    state, modes, drawn = snapshot(network), [m.training for m in network.modules()], torch.get_rng_state()
    detector(network, given, LABELS)
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    assert [m.training for m in network.modules()] == modes
    assert network.training
    assert not frozen.training
    assert torch.equal(torch.get_rng_state(), drawn)
    assert given.grad is None
    for parameter, before in zip(network.parameters(), gradients, strict=True):
        assert parameter.requires_grad
        assert (parameter.grad is None) == (before is None)
        assert parameter.grad is None or torch.equal(parameter.grad, before)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())


@pytest.mark.parametrize("detector", DETECTORS)
def test_the_network_is_left_as_it_was_when_it_fails(detector: Detector) -> None:
    network = network_of("vit-small-patch4", 16).train()

    def fail(*_: object) -> None:
        raise RuntimeError("out of order")

    network.backbone.encoder.ln.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="out of order"):
        detector(network, images_of(16), LABELS)
    assert all(m.training for m in network.modules())
    hooked = [m for m in network.modules() if m._forward_hooks or m._forward_pre_hooks]
    assert hooked == [network.backbone.encoder.ln]


@pytest.mark.parametrize(("detector", "backbone", "size"), CASES)
def test_a_map_depends_on_neither_mode_nor_callers_gradient_mode_nor_the_other_images(
    detector: Detector, backbone: str, size: int
) -> None:
    network, images = network_of(backbone, size), images_of(size)
    expected = detector(network.train(), images, LABELS)
    assert torch.equal(detector(network.eval(), images, LABELS), expected), "mode, and a second time"
    for quiet in (torch.no_grad, torch.inference_mode):
        with quiet():
            found = detector(network, images + 0, LABELS + 0)
        torch.testing.assert_close(found.clone(), expected, msg=quiet.__name__)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(detector(network, images, LABELS), expected)
    network.requires_grad_(False)
    # Other kernels, and sharp attention: in float64 they agree, in float32 either is 1e-4 away from that.
    torch.testing.assert_close(detector(network, images, LABELS), expected, rtol=1e-3, atol=1e-3)
    alone = detector(network, images[1:2], LABELS[1:2])
    torch.testing.assert_close(alone, expected[1:2], rtol=1e-3, atol=1e-4)
    assert detector(network, images[:0], LABELS[:0]).shape == (0, size, size)


def test_the_label_asked_about_changes_gradient_and_class_activation_but_not_the_rollout() -> None:
    network, images = network_of("vit-small-patch4", 16), images_of(16)
    other = (LABELS + 1) % 3
    for detector in (input_gradient, grad_cam):
        assert not torch.allclose(detector(network, images, LABELS), detector(network, images, other), atol=1e-2)
    assert torch.equal(attention_rollout(network, images, LABELS), attention_rollout(network, images, other))


@pytest.mark.parametrize("detector", DETECTORS)
def test_dropout_draws_nothing_and_drops_nothing(detector: Detector) -> None:
    network, images = network_of("vit-small-patch4", 16).train(), images_of(16)
    expected = detector(network, images, LABELS)
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.5
        if isinstance(module, nn.MultiheadAttention):
            module.dropout = 0.5
    with keyed_global_rng(0, "drawn"):
        before = torch.get_rng_state()
        assert torch.equal(detector(network, images, LABELS), expected)
        assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("detector", [input_gradient, grad_cam])
def test_a_backbone_compiled_for_this_very_shape_is_asked_uncompiled(
    detector: Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusing(*_: object, **__: object) -> Callable[[Tensor], Tensor]:
        def refuse(_images: Tensor) -> Tensor:
            raise AssertionError("hooks and evaluation mode would set off a second compilation")

        return refuse

    network, images = network_of("resnet8", 8).train(), images_of(8)
    expected = detector(network, images, LABELS)
    monkeypatch.setattr(torch, "compile", refusing)
    network.compile_for(images.shape)
    with pytest.raises(AssertionError, match="second compilation"):
        network.features(images)
    assert torch.equal(detector(network, images, LABELS), expected)


def test_an_even_number_of_heads_gives_the_same_attention_in_pytorchs_fused_kernel() -> None:
    # PyTorch has its own kernel for evaluation without gradients, used for an even number of heads only.
    network = network_of("vit-small-patch4", 12)
    for module in attention_modules(network):
        assert isinstance(module, nn.MultiheadAttention)
        module.num_heads, module.head_dim = 2, 96
    found = attention_rollout(network, images_of(12), LABELS)
    with torch.no_grad():
        queries, keys = queries_and_keys(network.eval(), images_of(12))
    grid = rolled_out([q[0] for q in queries], [k[0] for k in keys], 96**-0.5, prefix=1)
    torch.testing.assert_close(found[0], torch.tensor(scaled(enlarged(grid, 12, 12))), rtol=1e-4, atol=1e-5)
    assert attention_rollout(network, images_of(12)[:0], LABELS[:0]).shape == (0, 12, 12)


# Which map Grad-CAM looks at -----------------------------------------------------------------------------------------


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, ...]]]:
    """The shapes of the tensors, other than images, that a gradient was asked of."""
    asked: list[tuple[int, ...]] = []
    real = torch.autograd.grad

    def grad(outputs: Tensor, inputs: Tensor) -> tuple[Tensor, ...]:
        asked.append(tuple(inputs.shape[1:]))
        return real(outputs, inputs)

    monkeypatch.setattr(torch.autograd, "grad", grad)
    return asked  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("backbone", "size", "shape"),
    [
        ("resnet8", 32, (64, 8, 8)),
        ("resnet8", 8, (64, 2, 2)),
        ("resnet8", 4, (32, 2, 2)),
        ("torchvision/resnet18", 64, (512, 2, 2)),
        ("torchvision/resnet18", 32, (256, 2, 2)),
        ("vit-small-patch4", 16, (192, 4, 4)),
    ],
)
def test_grad_cam_looks_at_the_last_map_of_more_than_one_position(
    backbone: str, size: int, shape: tuple[int, ...], watched: list[tuple[int, ...]]
) -> None:
    grad_cam(network_of(backbone, size), images_of(size), LABELS)
    assert watched == [shape]


# Limits and refusals -------------------------------------------------------------------------------------------------


def test_a_map_of_zeros_stays_zeros() -> None:
    network = with_backbone(Convolutions(), 4)
    with torch.no_grad():
        network.classifier.weight.zero_()
    for detector in (input_gradient, grad_cam):
        assert torch.equal(detector(network, images_of(8), LABELS), torch.zeros(BATCH, 8, 8))


@pytest.mark.parametrize("detector", DETECTORS)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_is_passed_on_and_spoils_no_other_image(detector: Detector, value: float) -> None:
    network, images = network_of("vit-small-patch4", 16), images_of(16)
    images[1, 0, 3, 3] = value
    maps = detector(network, images, LABELS)
    assert torch.isfinite(maps).flatten(1).all(dim=1).tolist() == [True, False, True]


def test_rollout_on_a_backbone_without_attention_names_it_and_what_to_choose() -> None:
    with pytest.raises(ConfigError, match=r"'resnet8' has no attention(.|\n)*vit-small-patch4(.|\n)*grad-cam"):
        attention_rollout(network_of("resnet8"), images_of(32), LABELS)
    with pytest.raises(ConfigError, match="'resnet8' has no attention"):
        attention_modules(network_of("resnet8"))


def test_rollout_refuses_attention_that_it_would_misread() -> None:
    network = with_backbone(TimmLike(), 6)
    network.backbone.rope = torch.ones(1)
    with pytest.raises(ConfigError, match="more than the tokens"):
        attention_rollout(network, images_of(6), LABELS)
    network.backbone.rope = None
    network.backbone.num_prefix_tokens = 1
    with pytest.raises(ConfigError, match="one square of patches"):
        attention_rollout(network, images_of(6), LABELS)
    for layer in network.backbone.layers:
        layer.relative_position_bias_table = nn.Parameter(torch.zeros(1))
    with pytest.raises(ConfigError, match="no attention that can be read"):
        attention_rollout(network, images_of(6), LABELS)


def test_grad_cam_refuses_a_backbone_that_makes_no_map() -> None:
    with pytest.raises(ConfigError, match=r"'resnet8' makes none(.|\n)*input-gradient"):
        grad_cam(with_backbone(Convolutions(stride=8), 4), images_of(8), LABELS)


@pytest.mark.parametrize("detector", DETECTORS)
def test_images_must_be_normalized_floats_and_labels_one_class_each(detector: Detector) -> None:
    network = network_of("vit-small-patch4", 16)
    with pytest.raises(ValueError, match="images must be floating"):
        detector(network, torch.zeros(3, 3, 16, 16, dtype=torch.uint8), LABELS)
    with pytest.raises(ValueError, match="labels must be int64"):
        detector(network, images_of(16), torch.zeros(3, 3))
