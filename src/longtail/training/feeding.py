"""What a run is fed with: its views and their sizes, the loader of its batches, the salient peaks."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from longtail.config import Config
from longtail.data.images import ImageSet
from longtail.data.loader import Loader
from longtail.data.prepare import Prepared
from longtail.data.stream_loader import loader_for
from longtail.data.views import VIEWS, View, build_view
from longtail.data.views.geometry import ResizedCrop
from longtail.errors import ConfigError, DataError
from longtail.methods import Method
from longtail.settings import resolve_time
from longtail.training.detection import training_peaks
from longtail.training.listeners import Listener


def build_views(config: Config, data: Prepared) -> dict[str, View]:
    """The augmentation of each role, for images of the data's own size; raises DataError where they are not square."""
    height, size = (int(side) for side in data.train.images.shape[-2:])
    if height != size:
        raise DataError(
            f"The images of {data.name} are {height} x {size} pixels; only square ones can be trained on.",
            hint=f"data.size={max(8, min(height, size))} takes the square in the middle.",
        )
    sizes = {"contrastive": contrastive_size(config, size)}
    names = config.views.names
    return {role: build_view(name, sizes.get(role, size), data.mean, data.std) for role, name in names.items()}


def build_loader(
    config: Config,
    train: ImageSet,
    method: Method,
    views: Mapping[str, View],
    *,
    workers: int = 0,
    peaks: Tensor | None = None,
    own: Callable[[int], Tensor] | None = None,
) -> Loader:
    """The batches of the run that ``config`` describes."""
    optim = config.optim
    return loader_for(train)(
        train,
        method.needs,
        views,
        optim.batch,
        optim.epochs,
        config.seed,
        workers=workers,
        peaks=peaks,
        own=own,
        refined_from=config.views.refined_from(optim.epochs),
    )


def contrastive_size(config: Config, size: int) -> int:
    """The side of contrastive views of images of ``size`` pixels; raises ConfigError where it cannot be had."""
    wanted = config.views.contrastive_size or size
    resizes = any(isinstance(stage, ResizedCrop) for stage in VIEWS[config.views.contrastive].stages(size, (0, 0, 0)))
    if wanted != size and not resizes:
        raise ConfigError(
            f"views.contrastive_size={wanted} needs a view that resizes, and '{config.views.contrastive}' does not.",
            hint="Choose views.contrastive=contrastive or resized-crop.",
        )
    if wanted > size:
        raise ConfigError(f"views.contrastive_size={wanted} is more than the images' {size} pixels.")
    return wanted


def progressive_size(config: Config, method: Method, size: int, contrastive: int) -> int | None:
    """The side that the network sees images at in the first part of the run; None where that is theirs throughout.

    Raises ConfigError where it is more than the images have, where there is no such part, and where the backbone does
    not take it, or contrastive views of ``contrastive`` pixels: a vision transformer is made for one size.
    """
    wanted, stop = config.views.progressive_size, config.views.progressive_stop
    if wanted is not None and wanted > size:
        raise ConfigError(f"views.progressive_size={wanted} is more than the images' {size} pixels.")
    if wanted is not None and resolve_time(stop, config.optim.epochs) == 0:
        raise ConfigError(f"views.progressive_stop={stop} leaves no epoch to views.progressive_size={wanted}.")
    for side, key in ((wanted, "progressive_size"), (contrastive, "contrastive_size")):
        if side is not None and side != size:
            _refuse_unless_taken(method, side, f"views.{key}={side}")
    return None if wanted == size else wanted


def _refuse_unless_taken(method: Method, side: int, setting: str) -> None:
    backbone = method.network.backbone
    place = next(backbone.parameters()).device
    modes = {module: module.training for module in backbone.modules()}
    try:
        with torch.no_grad():
            backbone.eval()(torch.zeros(1, 3, side, side, device=place))
    except (AssertionError, RuntimeError, ValueError) as error:
        said = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"{setting}: the backbone '{method.network.backbone_name}' does not take images of {side} pixels: {said}",
            hint="Leave it out, or choose a convolutional backbone, e.g. resnet32.",
        ) from None
    finally:
        for module, was in modes.items():
            module.training = was


def find_peaks(
    config: Config,
    data: Prepared,
    method: Method,
    views: Mapping[str, View],
    given: Callable[[Tensor], Tensor] | None,
    listener: Listener,
) -> Tensor | None:
    """The salient peaks (N, 2) of the training images where the method wants them, else None.

    Raises ConfigError, naming the view and its stage, if the peaks cannot follow the first view of an image.
    """
    needs = method.needs
    if needs.detector is None:
        if given is not None:
            raise ConfigError(f"'{config.method_name}' with these settings uses no saliency maps, and was given some.")
        return None
    first = {needs.views[0], *needs.partner_views[:1]}
    for role in sorted(first | {"refined"} if "classification" in first and "refined" in views else first):
        views[role].require_carry()
    return training_peaks(
        data.train,
        needs.detector,
        maps_file=needs.saliency_maps,
        given=given,
        ties=needs.ties,
        listener=listener,
    )
