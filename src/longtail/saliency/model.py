"""Saliency as the network sees it while it is being trained: gradients, class activations, attention.

Each function takes normalized float images (B, 3, H, W) and labels (B,) and gives float32 maps (B, H, W) in [0, 1],
every map divided by its own maximum (a map of zeros stays one; what is not finite is passed on as it is). They may be
called within a training step: modes, buffers and gradients of the network are as before afterwards, nothing is drawn.
The network judges in evaluation mode, so that a map does not depend on the other images of the batch.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longtail.errors import ConfigError
from longtail.models.network import Network


def input_gradient(network: Network, images: Tensor, labels: Tensor) -> Tensor:
    """How strongly each pixel moves the logit of the image's label: S(y, x) = max_c |d logit_label / d image(c, y, x)|.

    Simonyan et al., "Deep Inside Convolutional Networks", arXiv 1312.6034, section 3.1.

    Args:
        network: any network; its training mode does not matter.
        images: float (B, 3, H, W), normalized as in training.
        labels: int64 (B,), the class whose logit is asked about.

    Returns:
        float32 (B, H, W) in [0, 1] on the device of ``images``, without a graph.

    Raises:
        ValueError: on another type or shape.
    """
    with _undisturbed(network, images, labels) as (pixels, classes):
        (gradient,) = torch.autograd.grad(_label_logits(network, pixels, classes), pixels)
    return _scaled(gradient.abs().amax(dim=1))


def grad_cam(network: Network, images: Tensor, labels: Tensor) -> Tensor:
    """Where the backbone's last spatial map speaks for the label: relu(sum_k w_k A_k), enlarged to the image.

    A (K, h, w) is the last output of a module of the backbone that has more than one position, and
    w_k = mean over its positions of d logit_label / d A_k. Enlarged bilinearly with half-pixel centers, so the outer
    half of a border cell is constant: a peak there is tied, over H / 2h x W / 2w pixels in a corner. A vision
    transformer's only spatial map is its patch embedding; :func:`attention_rollout` looks deeper.

    Selvaraju et al., "Grad-CAM", arXiv 1610.02391. Paper: enlarged bilinearly, without a word on the corners. Here:
    half-pixel centers, because with aligned corners a border cell's maximum would always lie on the frame.

    Args:
        network: any network; its training mode does not matter.
        images: float (B, 3, H, W), normalized as in training.
        labels: int64 (B,), the class whose logit is asked about.

    Returns:
        float32 (B, H, W) in [0, 1] on the device of ``images``, without a graph.

    Raises:
        ConfigError: for a backbone that leaves one position from its first layer on.
        ValueError: on another type or shape.
    """
    with _undisturbed(network, images, labels) as (pixels, classes):
        with _spatial_maps(network.backbone, len(pixels)) as seen:
            logits = _label_logits(network, pixels, classes)
        if not seen:
            raise ConfigError(
                f"Grad-CAM needs a map of more than one position, and backbone '{network.backbone_name}' makes none "
                f"of images of {images.shape[2]} x {images.shape[3]} pixels.",
                hint="Choose larger images (data.size), another backbone, or method.detector=input-gradient.",
            )
        (gradient,) = torch.autograd.grad(logits, seen[-1])
        weights = gradient.mean(dim=(2, 3), keepdim=True)
        coarse = (weights * seen[-1].detach()).sum(dim=1).relu()
    return _scaled(_enlarged(coarse, images))


def attention_rollout(network: Network, images: Tensor, labels: Tensor) -> Tensor:
    """How much of each patch reaches the class token through all layers of a vision transformer.

    With A_l (N, N) the attention of layer l, averaged over its heads, R = M_L ... M_1 with M_l = (A_l + I) / 2: the
    class token's row of R, its patches as a square, enlarged bilinearly. It is the same for every label.

    Abnar and Zuidema, "Quantifying Attention Flow in Transformers", arXiv 2005.00928, section 3.

    Args:
        network: one whose backbone holds the modules of :func:`attention_modules`.
        images: float (B, 3, H, W), normalized as in training.
        labels: int64 (B,); not used.

    Returns:
        float32 (B, H, W) in [0, 1] on the device of ``images``, without a graph.

    Raises:
        ConfigError: for a backbone without attention, or whose attention is not that of one class token over a square.
        ValueError: on another type or shape.
    """
    with _undisturbed(network, images, labels) as (pixels, _), torch.no_grad():
        if len(pixels) == 0:  # for which PyTorch's fused attention makes no weights
            return pixels[:, 0].detach()
        with _attention_weights(network) as layers:
            network.features(pixels)
        prefix = int(getattr(network.backbone, "num_prefix_tokens", 1))
        tokens = layers[0].shape[-1]
        side = math.isqrt(max(tokens - prefix, 0))
        if prefix < 1 or side**2 + prefix != tokens or any(a.shape != (len(pixels), tokens, tokens) for a in layers):
            raise _no_rollout(network, "has attention, but not of a class token over one square of patches")
        # The class token's row alone, from the last layer down: N^2 operations a layer instead of N^3.
        row = pixels.new_zeros(len(pixels), 1, tokens)
        row[:, :, 0] = 1
        for attention in reversed(layers):
            row = (row @ attention + row) / 2
    return _scaled(_enlarged(row[:, 0, prefix:].reshape(-1, side, side), images))


def attention_modules(network: Network) -> list[nn.Module]:
    """The modules whose attention :func:`attention_rollout` can read: nn.MultiheadAttention, and timm's by its parts.

    Raises ConfigError for a network without any: called at the start of a run, it refuses before the first masked step.
    """
    found = [module for module in network.backbone.modules() if _is_attention(module)]
    if not found:
        raise _no_rollout(network, "has no attention that can be read")
    return found


def _no_rollout(network: Network, what: str) -> ConfigError:
    return ConfigError(
        f"Attention rollout cannot be used: backbone '{network.backbone_name}' {what}.",
        hint="Choose a vision transformer, e.g. model.backbone=vit-small-patch4, or method.detector=grad-cam.",
    )


@contextlib.contextmanager
def _undisturbed(network: Network, images: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Images that take a gradient and labels, for a network in evaluation mode that is as before at the end."""
    if images.ndim != 4 or not images.is_floating_point():
        raise ValueError(f"images must be floating (B, 3, H, W), not {images.dtype} {tuple(images.shape)}.")
    if labels.shape != images.shape[:1] or labels.dtype != torch.int64:
        raise ValueError(f"labels must be int64 ({len(images)},), not {labels.dtype} {tuple(labels.shape)}.")
    modes = [(module, module.training) for module in network.modules()]
    try:
        # One by one and not by eval(): a module that overrides train() would do more than change its mode.
        for module, _ in modes:
            module.training = False
        # float32 whatever the step computes in: half precision loses small gradients without a loss scale. The copies
        # are for callers in inference mode, whose tensors take no part in a graph.
        autocast = torch.autocast(images.device.type, enabled=False)
        with torch.inference_mode(False), torch.enable_grad(), autocast:
            yield images.detach().clone().float().requires_grad_(), labels.clone()
    finally:
        for module, mode in modes:
            module.training = mode


def _label_logits(network: Network, pixels: Tensor, classes: Tensor) -> Tensor:
    """The sum over images of the logit of each one's label; in evaluation mode no image moves another's logit."""
    return network.logits(pixels).gather(1, classes[:, None]).sum()


@contextlib.contextmanager
def _spatial_maps(backbone: nn.Module, count: int) -> Iterator[list[Tensor]]:
    """A list that will hold the last module output (``count``, K, h, w) with h w > 1."""
    seen: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: object, output: object) -> None:
        if isinstance(output, Tensor) and output.ndim == 4 and len(output) == count and output.shape[2:] != (1, 1):
            seen[:] = [output]

    # Within attention, tensors of four dimensions are heads by tokens, not channels by rows.
    inner = {part for module in backbone.modules() if _is_attention(module) for part in module.modules()}
    with contextlib.ExitStack() as hooks:
        for module in backbone.modules():
            if module not in inner:
                hooks.callback(module.register_forward_hook(keep).remove)
        yield seen


def _is_attention(module: nn.Module) -> bool:
    if isinstance(module, nn.MultiheadAttention):
        return True
    # A table of relative positions adds to the scores what queries and keys do not tell.
    parts = all(hasattr(module, part) for part in ("qkv", "num_heads", "scale"))
    return parts and getattr(module, "relative_position_bias_table", None) is None


@contextlib.contextmanager
def _attention_weights(network: Network) -> Iterator[list[Tensor]]:
    """A list that will hold, in the order of the layers, the attention (B, N, N) averaged over heads."""
    layers: list[Tensor] = []

    def ask(_module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, Any]:
        return inputs, {**named, "need_weights": True, "average_attn_weights": True}

    def keep(_module: nn.Module, _inputs: object, output: tuple[Tensor, Tensor]) -> None:
        layers.append(output[1])

    def compute(module: nn.Module, inputs: tuple[Tensor, ...], named: dict[str, Any]) -> None:
        if any(isinstance(value, Tensor) for value in (*inputs[1:], *named.values())):
            raise _no_rollout(network, "has attention that depends on more than the tokens (a mask, rotations)")
        layers.append(_attention(module, inputs[0]))

    with contextlib.ExitStack() as hooks:
        for module in attention_modules(network):
            if isinstance(module, nn.MultiheadAttention):
                hooks.callback(module.register_forward_pre_hook(ask, with_kwargs=True).remove)
                hooks.callback(module.register_forward_hook(keep).remove)
            else:
                hooks.callback(module.register_forward_pre_hook(compute, with_kwargs=True).remove)
        yield layers


def _attention(module: Any, tokens: Tensor) -> Tensor:
    """softmax(scale q k^T) averaged over heads, (B, N, N), of a module with timm's parts for tokens (B, N, D).

    timm's modules keep no weights: its fused kernel never makes them.
    """
    query, key, _ = module.qkv(tokens).unflatten(-1, (3, module.num_heads, -1)).unbind(dim=-3)
    query = getattr(module, "q_norm", nn.Identity())(query)
    key = getattr(module, "k_norm", nn.Identity())(key)
    scores: Tensor = module.scale * torch.einsum("...ihd,...jhd->...hij", query, key)
    return scores.softmax(dim=-1).mean(dim=-3)


def _enlarged(maps: Tensor, images: Tensor) -> Tensor:
    enlarged = F.interpolate(maps[:, None], size=images.shape[2:], mode="bilinear", align_corners=False)
    return enlarged[:, 0]


def _scaled(maps: Tensor) -> Tensor:
    """Each map (B, H, W) over its maximum; where that is 0 or not a number, as it is."""
    peak = maps.flatten(1).amax(dim=1)[:, None, None]
    return torch.where(peak > 0, maps / peak, maps).detach().contiguous()
