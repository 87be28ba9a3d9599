"""Backbones of timm, by the extra ``timm``: from scratch, without their classifier. Nothing is fetched."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor, nn

from longtail.errors import ConfigError, unknown_name

PREFIX = "timm/"


def check_timm(backbone: str) -> None:
    """Raise ConfigError where timm is not installed, or has no model of this name, with the nearest match."""
    timm = _timm(backbone)
    name = backbone.removeprefix(PREFIX)
    # A name with a colon is a place on the internet to timm.
    if ":" in name or not timm.is_model(name):
        raise unknown_name("backbone", backbone, [PREFIX + known for known in timm.list_models()])


def build_timm(backbone: str, size: int) -> nn.Module:
    """The model ``timm/NAME`` without its classifier, for images of ``size`` pixels: (B, 3, size, size) to (B, width).

    Models that are made for one size of image (vision transformers) are made for this one. ``feature_dim`` is the
    width of what comes out. Initialization and state-dict names are timm's. Raises ConfigError for a size that the
    model does not take, or one that gives anything but a vector of features.
    """
    check_timm(backbone)
    name = backbone.removeprefix(PREFIX)
    published = _timm(backbone).models.get_pretrained_cfg(name)
    sized = {"img_size": size} if published is not None and published.fixed_input_size else {}
    try:
        made: nn.Module = _timm(backbone).create_model(name, pretrained=False, num_classes=0, **sized)
        features = _features(made, size)
    except Exception as error:  # whatever a foreign model raises
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise ConfigError(
            f"Backbone '{backbone}' cannot be made for images of {size} x {size} pixels: {reason}",
            hint="Choose another data.size (of a transformer, a multiple of its patch) or another backbone.",
        ) from None
    if features.ndim != 2:
        raise ConfigError(f"Backbone '{backbone}' gives features of shape {tuple(features.shape[1:])}, not a vector.")
    made.feature_dim = features.shape[1]  # type: ignore[assignment]
    return made


def _features(made: nn.Module, size: int) -> Tensor:
    """The features of one black image, in evaluation mode, which leaves the model as it was."""
    made.eval()
    try:
        with torch.no_grad():
            out: Tensor = made(torch.zeros(1, 3, size, size))
            return out
    finally:
        made.train()


def _timm(backbone: str) -> Any:
    try:
        return importlib.import_module("timm")
    except ImportError as error:
        raise ConfigError(
            f"Backbone '{backbone}' needs timm, which cannot be imported: {error}",
            hint="pip install 'longtail[timm]'",
        ) from None
