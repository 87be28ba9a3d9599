"""Backbones by name, and the heads on top of them."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import cast

from torch import nn

from longtail.errors import ConfigError, unknown_name
from longtail.models.heads import CosineClassifier, LinearClassifier, MLPHead, build_classifier
from longtail.models.resnet_cifar import ResNetCIFAR
from longtail.models.timm_models import PREFIX, build_timm, check_timm

__all__ = [
    "BACKBONES",
    "Backbone",
    "CosineClassifier",
    "LinearClassifier",
    "MLPHead",
    "ResNetCIFAR",
    "build_backbone",
    "build_classifier",
    "check_backbone",
]


class Backbone(nn.Module):
    """What build_backbone returns: a module images (B, 3, H, W) -> (B, feature_dim), for the type checker only."""

    feature_dim: int


def _cifar_resnet(_size: int, *, depth: int, width: int = 16) -> nn.Module:
    return ResNetCIFAR(depth, width)


def _torchvision_resnet(_size: int, *, name: str) -> nn.Module:
    """A ResNet of torchvision, from scratch, without its classifier.

    He normal fan-out, the last batch-norm of a block not zeroed, the stride of a bottleneck on its 3x3: torchvision's
    defaults. State-dict names are torchvision's.
    """
    model: Backbone = _torchvision_models(f"torchvision/{name}").get_model(name, weights=None)
    model.feature_dim = cast(nn.Linear, model.fc).in_features
    model.fc = nn.Identity()
    return model


def _vision_transformer(
    size: int, *, name: str, patch: int, layers: int, heads: int, hidden: int, mlp: int
) -> nn.Module:
    """torchvision's vision transformer for images of ``size`` pixels, without dropout; features are its class token.

    Dosovitskiy et al., "An Image is Worth 16x16 Words", arXiv 2010.11929. It is made for one image size, because each
    patch has a position embedding of its own. Initialization and state-dict names are torchvision's.
    """
    if size % patch:
        raise ConfigError(
            f"Backbone '{name}' cuts the image into patches of {patch} x {patch} pixels, which do not fill an image of "
            f"{size} x {size}.",
            hint=f"Choose a data.size that is a multiple of {patch}, or a convolutional backbone, e.g. resnet32.",
        )
    model: Backbone = _torchvision_models(name).VisionTransformer(size, patch, layers, heads, hidden, mlp)
    model.feature_dim = hidden
    model.heads = nn.Identity()
    return model


def _torchvision_models(backbone: str) -> ModuleType:
    try:
        return importlib.import_module("torchvision.models")
    except (ImportError, RuntimeError) as error:  # a build for another torch fails with RuntimeError
        raise ConfigError(
            f"Backbone '{backbone}' needs torchvision, which cannot be imported: {error}",
            hint="Install the torchvision that belongs to this torch, or choose one of ours, e.g. resnet32.",
        ) from error


_VIT_BASE = {"layers": 12, "heads": 12, "hidden": 768, "mlp": 3072}
_VIT_SMALL = {"layers": 6, "heads": 3, "hidden": 192, "mlp": 384}

BACKBONES: dict[str, Callable[[int], nn.Module]] = {
    "resnet8": partial(_cifar_resnet, depth=8),
    "resnet20": partial(_cifar_resnet, depth=20),
    "resnet32": partial(_cifar_resnet, depth=32),
    "resnet44": partial(_cifar_resnet, depth=44),
    "resnet56": partial(_cifar_resnet, depth=56),
    "resnet32-w64": partial(_cifar_resnet, depth=32, width=64),
    "vit-small-patch4": partial(_vision_transformer, name="vit-small-patch4", patch=4, **_VIT_SMALL),
    "torchvision/resnet18": partial(_torchvision_resnet, name="resnet18"),
    "torchvision/resnet34": partial(_torchvision_resnet, name="resnet34"),
    "torchvision/resnet50": partial(_torchvision_resnet, name="resnet50"),
    "torchvision/resnet101": partial(_torchvision_resnet, name="resnet101"),
    "torchvision/resnet152": partial(_torchvision_resnet, name="resnet152"),
    "torchvision/resnext50_32x4d": partial(_torchvision_resnet, name="resnext50_32x4d"),
    "torchvision/vit_b_16": partial(_vision_transformer, name="torchvision/vit_b_16", patch=16, **_VIT_BASE),
    "torchvision/vit_b_32": partial(_vision_transformer, name="torchvision/vit_b_32", patch=32, **_VIT_BASE),
}
"""Backbones by name, each built from the side of the image in pixels, which only the vision transformers need."""


def build_backbone(name: str, size: int = 32) -> Backbone:
    """A freshly initialized backbone: images (B, 3, ``size``, ``size``) -> features (B, ``feature_dim``).

    ``name`` is one of BACKBONES, or ``timm/NAME`` for any model of timm. The ResNets take any size. It draws from
    PyTorch's global generator: build it inside ``longtail.rng.keyed_global_rng``.

    Raises:
        ConfigError: for a name that there is not, a size that the backbone does not take, or a torchvision or timm that
            cannot be imported.
    """
    check_backbone(name)
    return cast(Backbone, build_timm(name, size) if name.startswith(PREFIX) else BACKBONES[name](size))


def check_backbone(name: str) -> None:
    """Raise ConfigError, with the nearest match, where there is no backbone of this name, or timm is not installed."""
    if name.startswith(PREFIX):
        check_timm(name)
    elif name not in BACKBONES:
        of_library = f"torchvision/{name}"
        if of_library in BACKBONES:
            raise ConfigError(f"Unknown backbone '{name}'.", hint=f"Did you mean '{of_library}'?")
        raise unknown_name("backbone", name, BACKBONES)
