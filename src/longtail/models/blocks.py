"""A backbone as a sequence of layers: its stem, its blocks, and what comes after them."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn


def blocks_of(backbone: nn.Module) -> dict[str, nn.Module]:
    """The blocks of a backbone by name, from the images to the features.

    A block is a member of an ``nn.Sequential`` or ``nn.ModuleList`` that is made of layers with parameters and holds no
    such member itself: the residual blocks of a ResNet, the encoder blocks of a vision transformer. Where there is none
    (RegNet), the parts of the backbone that are made of layers stand for them.
    """
    found = dict(_blocks_within("", backbone))
    return found or {name: part for name, part in backbone.named_children() if _has_layers(part)}


def _blocks_within(prefix: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, child in module.named_children():
        deeper = list(_blocks_within(f"{prefix}{name}.", child))
        if deeper:
            yield from deeper
        elif isinstance(module, nn.Sequential | nn.ModuleList) and _has_layers(child):
            yield f"{prefix}{name}", child


def _has_layers(module: nn.Module) -> bool:
    return any(True for part in module.modules() if part is not module for _ in part.parameters(recurse=False))


def layers_of(backbone: nn.Module) -> dict[str, int]:
    """The layer of each module of a backbone, by name; a module's own parameters are of its layer.

    With n blocks: 0 is the stem, all that is registered before the first block (position embedding and class token
    included); l is block l, with what stands between block l - 1 and it; n + 1 is what comes after the last.
    """
    blocks = list(blocks_of(backbone))
    layers: dict[str, int] = {}
    passed = 0
    for name, _ in backbone.named_modules():
        within = next((number for number, block in enumerate(blocks, 1) if f"{name}.".startswith(f"{block}.")), None)
        if within is not None:
            passed = within
        between = 0 if passed == 0 else passed + 1
        layers[name] = between if within is None else within
    return layers


def patch_of(backbone: nn.Module) -> int | None:
    """The side in pixels of the square patches that a vision transformer cuts images into; None for other backbones."""
    holder = getattr(backbone, "patch_embed", backbone)
    size = getattr(holder, "patch_size", None)
    sides = {size} if isinstance(size, int) else set(size or ())
    return int(sides.pop()) if len(sides) == 1 else None
