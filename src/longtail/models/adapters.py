"""Low-rank adapters: what a frozen linear layer learns is a product of two thin matrices.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", arXiv 2106.09685. With adapters on a frozen vision
transformer and a loss that knows the class counts, fine-tuning is that of Shi et al. (LIFT), arXiv 2309.10019;
docs/large-backbones.md says what was taken from there.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from longtail.errors import ConfigError
from longtail.models.blocks import blocks_of
from longtail.rng import generator

Placement = Literal["attention", "mlp", "all"]

ADAPTED = ("lora_a", "lora_b")
"""How the names of an adapter's tensors end: A (r, in) and B (out, r), beside the weight (out, in) of their layer."""


class AdaptedLinear(nn.Linear):
    """y = (W + s B A) x + b with W frozen; ``weight`` is the sum, which is what code that asks for it computes with.

    The state holds W under its old name, ``lora_a`` and ``lora_b``. The sum is not formed for a forward pass: with
    s B (A x) the gradient of a full matrix is never computed.
    """

    lora_a: nn.Parameter
    lora_b: nn.Parameter
    lora_scale: float

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        return _moved(self, "weight")

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  the name that nn.Linear gives it
        out = F.linear(input, _own(self, "weight"), self.bias)
        thin = F.linear(input, self.lora_a)
        # In one pass over the rows, because beside thin matrices what costs is going over the wide ones again.
        rows, thin_rows = (wide.reshape(-1, wide.shape[-1]) for wide in (out, thin))
        return torch.addmm(rows, thin_rows, self.lora_b.T, alpha=self.lora_scale).view_as(out)


class AdaptedAttention(nn.MultiheadAttention):
    """Attention whose packed query, key and value weights are W + s B A; ``out_proj`` is an adapted layer of its own.

    PyTorch's attention takes weights and not layers, so the sum is formed in each pass.
    """

    lora_a: nn.Parameter
    lora_b: nn.Parameter
    lora_scale: float

    @property
    def in_proj_weight(self) -> Tensor:  # type: ignore[override]
        return _moved(self, "in_proj_weight")


def _own(module: nn.Module, name: str) -> Tensor:
    """W itself, which the property of the same name hides."""
    held: Any = module._parameters.get(name)
    if held is None:
        held = module._buffers.get(name)
    if held is None:
        raise AttributeError(name)
    own: Tensor = held
    return own


def _moved(module: Any, name: str) -> Tensor:
    """W + s B A."""
    moved: Tensor = _own(module, name) + module.lora_scale * (module.lora_b @ module.lora_a)
    return moved


_ADAPTED: dict[type[nn.Module], tuple[type[nn.Module], str]] = {
    nn.Linear: (AdaptedLinear, "weight"),
    NonDynamicallyQuantizableLinear: (AdaptedLinear, "weight"),
    nn.MultiheadAttention: (AdaptedAttention, "in_proj_weight"),
}
"""For each class of layers, its class with an adapter and the weight that the adapter moves."""

_PLAIN: dict[type[nn.Module], tuple[type[nn.Module], str]] = {
    AdaptedLinear: (nn.Linear, "weight"),
    AdaptedAttention: (nn.MultiheadAttention, "in_proj_weight"),
}


def add_adapters(
    backbone: nn.Module, rank: int, *, alpha: float | None = None, layers: Placement = "all", seed: int
) -> list[str]:
    """Put an adapter on each frozen linear layer in the blocks of ``backbone``; returns the layers' names.

    W + (alpha / rank) B A, with B = 0, so that the network is at first what it was, and A uniform within
    1 / sqrt(width) from (seed, "init", "adapter", the layer's name). Only what learns is moved: W keeps its name and
    takes no gradient. Layers are ``nn.Linear`` and what ``nn.MultiheadAttention`` holds; those of classes derived from
    them are left alone, because what they do with their weights is not known.

    Paper: alpha is set to the first rank that is tried. LIFT's program: alpha = 1. Here: ``alpha`` None is the rank, so
    that the factor is 1 whatever the rank.

    Args:
        backbone: changed in place.
        rank: r, at least 1 and at most the smaller side of the smallest weight.
        alpha: the numerator of the factor.
        layers: "attention" for those within a module whose class is called so, "mlp" for the others, or "all".
        seed: of the run.

    Raises:
        ConfigError: where no layer takes an adapter, or a rank that is no lower than that of a weight.
    """
    taken = [
        (name, module)
        for name, module in _linear_layers(backbone, layers)
        if not _own(module, _ADAPTED[type(module)][1]).requires_grad
    ]
    if not taken:
        raise ConfigError(
            f"model.adapter_rank={rank}: the backbone has no frozen linear layers"
            f"{'' if layers == 'all' else f' of its {layers}'} in its blocks.",
            hint="Adapters are for vision transformers and the like, e.g. model.backbone=vit-small-patch4.",
        )
    for name, module in taken:
        kind, weight = _ADAPTED[type(module)]
        own = _own(module, weight)
        if rank > min(own.shape):
            raise ConfigError(
                f"model.adapter_rank={rank}: the weight of {name} is {own.shape[0]} x {own.shape[1]}, and has no "
                "higher rank than its smaller side."
            )
        drawn = 2 * torch.rand(rank, own.shape[1], generator=generator(seed, "init", "adapter", name)) - 1
        module.register_parameter("lora_a", nn.Parameter(drawn.to(own) / own.shape[1] ** 0.5))
        module.register_parameter("lora_b", nn.Parameter(own.new_zeros(own.shape[0], rank)))
        module.lora_scale = 1.0 if alpha is None else alpha / rank
        module.__class__ = kind
    return [name for name, _ in taken]


def _linear_layers(backbone: nn.Module, layers: Placement) -> list[tuple[str, Any]]:
    found = []
    for block, whole in blocks_of(backbone).items():
        attention = {
            inner for part in whole.modules() if part is not whole and _is_attention(part) for inner in part.modules()
        }
        for name, module in whole.named_modules():
            if type(module) in _ADAPTED and layers in ("all", "attention" if module in attention else "mlp"):
                found.append((f"{block}.{name}", module))
    return found


def _is_attention(module: nn.Module) -> bool:
    return "attention" in type(module).__name__.lower()


@torch.no_grad()
def merge_adapters(module: nn.Module) -> int:
    """Add every adapter in ``module`` to its weight, W := W + s B A, and take it away; returns how many there were."""
    merged = 0
    for part in module.modules():
        if type(part) in _PLAIN:
            plain, weight = _PLAIN[type(part)]
            _own(part, weight).copy_(_moved(part, weight))
            del part.lora_a, part.lora_b, part.lora_scale
            part.__class__ = plain
            merged += 1
    return merged
