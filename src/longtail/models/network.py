"""A backbone with what the methods of this field put on it: classifier, projection head, class centers."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Literal, Self, TypeVar

import torch
import torch.nn.functional as F
from pydantic import Field, ValidationInfo, field_validator
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from longtail.models import build_backbone
from longtail.models.adapters import Placement, add_adapters
from longtail.models.freezing import Freeze, freeze
from longtail.models.heads import CosineClassifier, LinearClassifier, MLPHead, build_classifier
from longtail.rng import keyed_global_rng
from longtail.settings import Settings

M = TypeVar("M", bound=nn.Module)


class ModelSettings(Settings):
    """``model.*``: the backbone by name and the kind of classifier on it."""

    backbone: str = "resnet32"
    """The network without its classifier."""
    classifier: Literal["linear", "cosine"] = "linear"
    """linear: W h + b; cosine: 30 times the cosine of h and W."""
    freeze: Freeze = "none"
    """What of the backbone does not learn: none, backbone (all of it), all-but-N (all but its last N blocks)."""
    adapter_rank: int | None = Field(None, ge=1)
    """Rank of the adapters on frozen linear layers, which learn in their place; null has none."""
    adapter_alpha: float | None = Field(None, gt=0, allow_inf_nan=False)
    """Adapters count this over their rank; null is the rank, a factor of 1."""
    adapter_layers: Placement = "all"
    """Which frozen linear layers have adapters: attention, mlp (the others of a block), or all."""

    @field_validator("adapter_rank")
    @classmethod
    def _beside_frozen_weights(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and info.data.get("freeze") == "none":
            raise ValueError("needs model.freeze=backbone or all-but-N: an adapter stands for a weight that is frozen")
        return value


class ProjectionSettings(Settings):
    """Sizes of the projection and center MLPs: width -> ``hidden`` -> ``dim``."""

    hidden: int
    dim: int


class Network(nn.Module):
    """Backbone h = f(x), classifier W h + b, and for contrastive methods u = g(h) and centers v_k = q(W_k).

    Each part is initialized from (seed, "init", its name) alone, so that adding a head does not move the backbone.
    ``size`` is the side of the images in pixels, which a vision transformer has to know.
    ``projection`` is None unless its sizes are given, ``center_head`` unless ``centers`` is set beside them.
    """

    def __init__(
        self,
        model: ModelSettings,
        classes: int,
        *,
        seed: int,
        size: int = 32,
        projection: ProjectionSettings | None = None,
        centers: bool = False,
    ) -> None:
        super().__init__()

        def initialized(name: str, build: Callable[[], M]) -> M:
            with keyed_global_rng(seed, "init", name):
                return build()

        self.backbone_name = model.backbone
        self.backbone = initialized("backbone", lambda: build_backbone(model.backbone, size))
        # Channels last: the faster layout for convolutions on a CPU, and the one of the reference vectors, whose
        # batch-norm sums differ from the other layout's in the last bits.
        self.backbone.to(memory_format=torch.channels_last)
        width = int(self.backbone.feature_dim)
        self.classifier: LinearClassifier | CosineClassifier = initialized(
            "classifier", lambda: build_classifier(model.classifier, width, classes)
        )
        self.projection: MLPHead | None = None
        self.center_head: MLPHead | None = None
        if projection is not None:
            sizes = (width, projection.hidden, projection.dim)
            self.projection = initialized("projection", lambda: MLPHead(*sizes))
            if centers:
                self.center_head = initialized("center_head", lambda: MLPHead(*sizes))
        self._compiled: tuple[Callable[[Tensor], Tensor], frozenset[torch.Size]] | None = None
        self._resting: tuple[nn.Module, ...] = ()
        self._shifts = False
        self.freeze(model.freeze)
        if model.adapter_rank is not None:
            own, placed = model.adapter_alpha, model.adapter_layers
            add_adapters(self.backbone, model.adapter_rank, alpha=own, layers=placed, seed=seed)

    def freeze(self, what: Freeze, *, shift: bool = False) -> None:
        """Freeze what of the backbone, adapters included: no gradient, and evaluation mode in training too.

        With ``shift`` its batch-norm alone stays in training mode. Without a parameter that wants a gradient no graph
        is built: nothing else saves the memory.
        """
        self._resting, self._shifts = freeze(self.backbone, what), shift
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """Training mode, which frozen modules do not take."""
        super().train(mode)
        for module in self._resting:
            module.training = mode and self._shifts and isinstance(module, _BatchNorm)
        return self

    def compile_for(self, *shapes: torch.Size) -> None:
        """Use a compiled backbone for training batches of exactly these shapes; every other shape stays eager.

        A compilation for each shape and no more: the short last batch of an epoch must not set off another.
        """
        # Where a CUDA toolkit lies about without a device, the compiler's first import warns of it on every run.
        logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
        self._compiled = (torch.compile(self.backbone, dynamic=False), frozenset(shapes))

    def features(self, images: Tensor) -> Tensor:
        """h = f(x): images (B, 3, H, W) to (B, width)."""
        images = images.contiguous(memory_format=torch.channels_last)
        if self._compiled is not None and self.training and images.shape in self._compiled[1]:
            return self._compiled[0](images)
        out: Tensor = self.backbone(images)
        return out

    def logits(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) to logits (B, C), without any training offset."""
        out: Tensor = self.classifier(self.features(images))
        return out

    def project(self, features: Tensor) -> Tensor:
        """u = g(h), not normalized: (B, width) to (B, D)."""
        assert self.projection is not None, "this network was built without a projection head"
        out: Tensor = self.projection(features)
        return out

    def centers(self) -> Tensor:
        """v_k = q(W_k) from the raw classifier rows, not normalized: (C, D)."""
        assert self.center_head is not None, "this network was built without class centers"
        out: Tensor = self.center_head(self.classifier.weight)
        return out


def stack_views(projected: Tensor, views: int) -> Tensor:
    """Normalize projections of ``views`` stacked batches (V B, D) and arrange them as (B, V, D)."""
    batch = projected.shape[0] // views
    return F.normalize(projected, dim=1).view(views, batch, -1).transpose(0, 1)
