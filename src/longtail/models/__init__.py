"""Backbones by name, and the heads on top of them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import cast

from torch import nn

from longtail.errors import ConfigError, unknown_name
from longtail.models.heads import CosineClassifier, LinearClassifier, MLPHead, build_classifier
from longtail.models.resnet_cifar import ResNetCIFAR

__all__ = [
    "BACKBONES",
    "Backbone",
    "CosineClassifier",
    "LinearClassifier",
    "MLPHead",
    "ResNetCIFAR",
    "build_backbone",
    "build_classifier",
]


class Backbone(nn.Module):
    """What build_backbone returns: a module images (B, 3, H, W) -> (B, feature_dim), for the type checker only."""

    feature_dim: int


def _torchvision(name: str) -> Backbone:
    """A ResNet of torchvision, from scratch, without its classifier.

    He normal fan-out, the last batch-norm of a block not zeroed, the stride of a bottleneck on its 3x3: torchvision's
    defaults. State-dict names are torchvision's.
    """
    try:
        from torchvision.models import get_model
    except (ImportError, RuntimeError) as error:  # a build for another torch fails with RuntimeError
        raise ConfigError(
            f"Backbone 'torchvision/{name}' needs torchvision, which cannot be imported: {error}",
            hint="Install the torchvision that belongs to this torch, or choose one of ours, e.g. resnet32.",
        ) from error
    model: Backbone = get_model(name, weights=None)
    model.feature_dim = cast(nn.Linear, model.fc).in_features
    model.fc = nn.Identity()
    return model


BACKBONES: dict[str, Callable[[], nn.Module]] = {
    "resnet8": partial(ResNetCIFAR, 8),
    "resnet20": partial(ResNetCIFAR, 20),
    "resnet32": partial(ResNetCIFAR, 32),
    "resnet44": partial(ResNetCIFAR, 44),
    "resnet56": partial(ResNetCIFAR, 56),
    "resnet32-w64": partial(ResNetCIFAR, 32, width=64),
    "torchvision/resnet18": partial(_torchvision, "resnet18"),
    "torchvision/resnet34": partial(_torchvision, "resnet34"),
    "torchvision/resnet50": partial(_torchvision, "resnet50"),
    "torchvision/resnext50_32x4d": partial(_torchvision, "resnext50_32x4d"),
}


def build_backbone(name: str) -> Backbone:
    """A freshly initialized backbone: images (B, 3, H, W) -> features (B, ``feature_dim``).

    It draws from PyTorch's global generator: build it inside ``longtail.rng.keyed_global_rng``.

    Raises:
        ConfigError: for a name that is not in BACKBONES, or a torchvision that cannot be imported.
    """
    if name not in BACKBONES:
        raise unknown_name("backbone", name, BACKBONES)
    return cast(Backbone, BACKBONES[name]())
