"""A backbone with what the methods of this field put on it: classifier, projection head, class centers."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
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
from longtail.models.normalization import RunningStatistics, batch_norms, synchronize
from longtail.processes.distributed import gather_rows
from longtail.processes.sharing import Shares
from longtail.rng import keyed_global_rng
from longtail.settings import AbsolutePath, Settings

M = TypeVar("M", bound=nn.Module)


class ModelSettings(Settings):
    """``model.*``: the backbone by name and the kind of classifier on it."""

    backbone: str = "resnet32"
    """The network without its classifier."""
    classifier: Literal["linear", "cosine"] = "linear"
    """linear: W h + b; cosine: 30 times the cosine of h and W."""
    weights: AbsolutePath | None = None
    """A local safetensors file that the backbone begins with, as far as its tensors fit."""
    bn: Literal["batch", "sync"] = "batch"
    """The backbone's batch-norm with several processes: over the images of each apart, or over all of them."""
    bn_shards: int | None = Field(None, ge=1)
    """Shards of a batch that the backbone's batch-norm sees apart; null is one a process. For bn=batch only."""
    freeze: Freeze = "none"
    """What of the backbone does not learn: none, backbone (all of it), all-but-N (all but its last N blocks)."""
    adapter_rank: int | None = Field(None, ge=1)
    """Rank of the adapters on frozen linear layers, which learn in their place; null has none."""
    adapter_alpha: float | None = Field(None, gt=0)
    """Adapters count this over their rank; null is the rank, a factor of 1."""
    adapter_layers: Placement = "all"
    """Which frozen linear layers have adapters: attention, mlp (the others of a block), or all."""

    @field_validator("bn_shards")
    @classmethod
    def _not_of_the_whole(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and value > 1 and info.data.get("bn") == "sync":
            raise ValueError("contradicts model.bn=sync, which is over the whole batch")
        return value

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
        self.synced = model.bn == "sync"
        if self.synced:
            synchronize(self.backbone)
        self.width = width = int(self.backbone.feature_dim)
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
        self.size, self.seen_at = size, size
        self._saved_passes = 0.0
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

    def features_of(self, *views: Tensor, shares: Shares | None = None) -> Tensor:
        """h of each view (B_v, 3, H_v, W_v), one under the other: views of one size go through together.

        In training none of them has more than ``seen_at`` pixels a side: larger ones are resampled.
        Views of another size than the first go alone, and leave batch-norm's running statistics as they are:
        those are for evaluation, of images of the first one's size. With ``shares`` the views hold the images of this
        process alone, and the features are those of the whole batch: each shard goes through the backbone apart, and
        what follows on it is computed alike in every process.
        """
        views = self._brought_to_size(views, None if shares is None else sum(shares.counts))
        return self._features_of(views) if shares is None else self._features_in_shards(views, shares)

    def _brought_to_size(self, views: tuple[Tensor, ...], images: int | None) -> tuple[Tensor, ...]:
        """Views of at most ``seen_at`` pixels a side in training, and note what that and small views save.

        ``images`` is how many images of the whole batch each view has, where it holds a part of them.
        """
        if not self.training:
            return views
        if self.seen_at < self.size:
            views = tuple(shrunk(view, self.seen_at) for view in views)
        for view in views:
            share = view.shape[-2] * view.shape[-1] / self.size**2
            self._saved_passes += (len(view) if images is None else images) * (1 - share)
        return views

    def take_saved_passes(self) -> float:
        """How many passes of full images were saved in training since this was last asked, by images of fewer pixels.

        An image of half the side is a quarter of a pass: three quarters are saved.
        """
        saved, self._saved_passes = self._saved_passes, 0.0
        return saved

    def _features_of(self, views: tuple[Tensor, ...]) -> Tensor:
        sizes = dict.fromkeys(view.shape[-2:] for view in views)
        if len(sizes) == 1:
            return self.features(views[0] if len(views) == 1 else torch.cat(views))
        found: dict[int, Tensor] = {}
        for size in sizes:
            numbers = [number for number, view in enumerate(views) if view.shape[-2:] == size]
            stacked = torch.cat([views[number] for number in numbers])
            with contextlib.nullcontext() if size == views[0].shape[-2:] else running_statistics_kept(self.backbone):
                features = self.features(stacked)
            parts = torch.split(features, [len(views[number]) for number in numbers])
            found |= dict(zip(numbers, parts, strict=True))
        return torch.cat([found[number] for number in range(len(views))])

    def _features_in_shards(self, views: tuple[Tensor, ...], shares: Shares) -> Tensor:
        statistics = RunningStatistics(self.backbone)
        # What a backbone draws (dropout) is keyed by the shard, whichever process has it.
        drawn = int(torch.randint(2**62, ()))
        made, first, images = [], 0, sum(shares.sizes)
        for shard in shares.own:
            size = shares.sizes[shard]
            own = [view[first : first + size] for view in views]
            first += size
            if size == 0 and not self.synced:
                made.append(self._no_features(own[0]))
                continue
            with keyed_global_rng(drawn, "shard", shard):
                made.append(self._features_of(tuple(own)))
            statistics.add(size / images)
        statistics.settle()
        rows = gather_rows(torch.cat(made), [len(views) * count for count in shares.counts])
        if len(views) == 1:
            return rows
        parts = torch.split(rows, [len(views) * size for size in shares.sizes])
        by_view = [part.view(len(views), size, self.width) for part, size in zip(parts, shares.sizes, strict=True)]
        return torch.cat(by_view, dim=1).flatten(0, 1)

    def _no_features(self, images: Tensor) -> Tensor:
        """Features (0, width) of no image, with a gradient of 0 for every weight: the other processes wait for it."""
        weights = [weight.sum() for weight in self.backbone.parameters() if weight.requires_grad]
        nothing = images.new_zeros(0, self.width)
        return nothing + 0 * torch.stack(weights).sum() if weights and torch.is_grad_enabled() else nothing

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


def shrunk(images: Tensor, side: int) -> Tensor:
    """Images (B, 3, H, W) of more than ``side`` pixels a side resampled to it, bilinearly with antialiasing."""
    if max(images.shape[-2:]) <= side:
        return images
    return F.interpolate(images, size=(side, side), mode="bilinear", antialias=True)


@contextlib.contextmanager
def running_statistics_kept(module: nn.Module) -> Iterator[None]:
    """Batch-norm normalizes by its batch and does not remember it within the block."""
    norms = batch_norms(module)
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


def stack_views(projected: Tensor, views: int) -> Tensor:
    """Normalize projections of ``views`` stacked batches (V B, D) and arrange them as (B, V, D)."""
    batch = projected.shape[0] // views
    return F.normalize(projected, dim=1).view(views, batch, -1).transpose(0, 1)
