"""Views: named chains of stages that turn uint8 images into normalized training images, a batch at a time.

A stage draws parameters for a whole batch and applies them; the two are apart so that every process can draw the
global batch from the same keyed generator and apply its own part, and so that points and masks can be moved by the
very draw that moved the pixels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from longtail.data.views.augment import Params, as_float
from longtail.data.views.color import ColorJitter, GaussianBlur, Grayscale
from longtail.data.views.geometry import Crop, Flip, ResizedCrop
from longtail.data.views.policies import AutoAugment, RandAugment
from longtail.errors import ConfigError, DataError, unknown_name

RGB = tuple[float, float, float]
ViewParams = tuple[Params, ...]
"""The draws of a view, one entry per stage."""


class Stage(Protocol):
    """One step of a view. Pixels are uint8 in 0..255 or float32 in [0, 1]; a stage may turn one into the other."""

    @property
    def carries(self) -> bool:
        """Whether points and masks can follow the pixels."""

    def draw(self, sizes: Tensor, generator: torch.Generator) -> Params:
        """Parameters for images of ``sizes`` (B, 2) (height, width), int64, on the CPU."""

    def apply(self, images: Tensor, params: Params) -> Tensor:
        """(B, 3, H, W) to (B, 3, S, S) on the same device."""

    def carry_points(self, points: Tensor, params: Params) -> Tensor:
        """Where points (B, 2) (row, column) of the input lie in the output, moved into the frame if outside."""

    def carry_masks(self, masks: Tensor, params: Params) -> Tensor:
        """Masks (B, H, W) of the input as masks (B, S, S) of the output."""


@dataclasses.dataclass(frozen=True)
class View:
    """A chain of stages and the normalization at its end, for square results of ``size`` pixels.

    ``mean`` and ``std`` are per channel, of pixels in [0, 1]: result = (x / 255 - mean) / std.
    """

    name: str
    stages: tuple[Stage, ...]
    size: int
    mean: RGB
    std: RGB

    def draw(self, sizes: Tensor, generator: torch.Generator) -> ViewParams:
        """Parameters for images of ``sizes`` (B, 2) (height, width), drawn on the CPU for the global batch."""
        params: list[Params] = []
        for stage in self.stages:
            params.append(stage.draw(sizes, generator))
            # The first stage brings the images to the view's size; a later one sees them there.
            sizes = torch.full_like(sizes, self.size)
        return tuple(params)

    def apply(self, images: Tensor, params: ViewParams, *, done: int = 0) -> Tensor:
        """uint8 (B, 3, H, W) to normalized float32 (B, 3, size, size), on the device of ``images``.

        The first ``done`` stages have been applied already. Raises DataError where a view without a crop meets images
        of another size.
        """
        for stage, drawn in list(zip(self.stages, params, strict=True))[done:]:
            images = stage.apply(images, drawn)
        height, width = images.shape[-2:]
        if (height, width) != (self.size, self.size):
            raise DataError(
                f"The view '{self.name}' gives images of {height} x {width} pixels where {self.size} x {self.size} are"
                " expected: it does not resize.",
                hint=f"Set data.size, or resize the images to {self.size} pixels first.",
            )
        mean = torch.tensor(self.mean, device=images.device).view(3, 1, 1)
        std = torch.tensor(self.std, device=images.device).view(3, 1, 1)
        return (as_float(images) - mean).div_(std)

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Draw for uint8 images (B, 3, H, W) and apply."""
        sizes = torch.tensor(images.shape[-2:]).expand(len(images), 2)
        return self.apply(images, self.draw(sizes, generator))

    def require_carry(self) -> None:
        """Raise ConfigError, naming the stage, if points and masks cannot follow this view."""
        for stage in self.stages:
            if not stage.carries:
                raise ConfigError(
                    f"The view '{self.name}' cannot move points and masks: its stage {type(stage).__name__} does not"
                    " say where pixels go.",
                    hint="Choose another view, or a method that needs no saliency peaks or masks.",
                )

    def carry_points(self, points: Tensor, params: ViewParams) -> Tensor:
        """Points (B, 2) (row, column) of the input images, in the result; moved into the frame if outside."""
        self.require_carry()
        for stage, drawn in zip(self.stages, params, strict=True):
            points = stage.carry_points(points, drawn)
        return points

    def carry_masks(self, masks: Tensor, params: ViewParams) -> Tensor:
        """Masks (B, H, W) of the input images, as masks (B, size, size) of the result; 0 outside."""
        self.require_carry()
        for stage, drawn in zip(self.stages, params, strict=True):
            masks = stage.carry_masks(masks, drawn)
        return masks


def select(params: ViewParams, rows: slice | Tensor) -> ViewParams:
    """The draws of some images of the batch: a slice (a rank's part) or indices (n,) on the CPU."""
    return tuple({name: values[rows] for name, values in drawn.items()} for drawn in params)


@dataclasses.dataclass(frozen=True)
class ViewSpec:
    """A row of :data:`VIEWS`: what it is, and its stages for a size and a mean color."""

    summary: str
    stages: Callable[[int, RGB], tuple[Stage, ...]]


def _mean_color(mean: RGB) -> RGB:
    return (255 * mean[0], 255 * mean[1], 255 * mean[2])


VIEWS: dict[str, ViewSpec] = {
    "plain": ViewSpec(
        "normalize only (evaluation)",
        lambda size, mean: (),
    ),
    "crop": ViewSpec(
        "crop after padding by 4 (where a mirrored image is another class)",
        lambda size, mean: (Crop(size, padding=4),),
    ),
    "crop-flip": ViewSpec(
        "crop after padding by 4, flip",
        lambda size, mean: (Crop(size, padding=4), Flip()),
    ),
    "autoaugment": ViewSpec(
        "crop-flip, then AutoAugment's CIFAR-10 policy (ConCutMix, classification)",
        lambda size, mean: (Crop(size, padding=4), Flip(), AutoAugment()),
    ),
    "randaugment": ViewSpec(
        "crop-flip, then RandAugment n 2, m 10, mstd 0.5",
        lambda size, mean: (Crop(size, padding=4), Flip(), RandAugment(_mean_color(mean))),
    ),
    "contrastive": ViewSpec(
        "resized crop of 0.2 to 1 of the area, flip, color jitter, gray, blur (ConCutMix, contrastive)",
        lambda size, mean: (
            ResizedCrop(size, scale=(0.2, 1.0)),
            Flip(),
            ColorJitter(0.4, 0.4, 0.4, 0.1, probability=0.8),
            Grayscale(0.2),
            GaussianBlur(0.5),
        ),
    ),
    "resized-crop": ViewSpec(
        "resized crop of 0.08 to 1 of the area, flip",
        lambda size, mean: (ResizedCrop(size, scale=(0.08, 1.0)), Flip()),
    ),
    "resized-crop-jitter": ViewSpec(
        "resized-crop, color jitter without hue (the usual one at ImageNet size)",
        lambda size, mean: (
            ResizedCrop(size, scale=(0.08, 1.0)),
            Flip(),
            ColorJitter(0.4, 0.4, 0.4, 0.0),
        ),
    ),
    "imagenet-classification": ViewSpec(
        "resized-crop, color jitter without hue, RandAugment (ConCutMix at ImageNet size, classification)",
        lambda size, mean: (
            ResizedCrop(size, scale=(0.08, 1.0)),
            Flip(),
            ColorJitter(0.4, 0.4, 0.4, 0.0),
            RandAugment(_mean_color(mean)),
        ),
    ),
    "imagenet-contrastive": ViewSpec(
        "resized-crop, color jitter, gray, no blur (ConCutMix at ImageNet size, contrastive)",
        lambda size, mean: (
            ResizedCrop(size, scale=(0.08, 1.0)),
            Flip(),
            ColorJitter(0.4, 0.4, 0.4, 0.1, probability=0.8),
            Grayscale(0.2),
        ),
    ),
}


def build_view(name: str, size: int, mean: RGB, std: RGB) -> View:
    """The view ``name`` of :data:`VIEWS` for results of ``size`` pixels; ConfigError if there is none."""
    if name not in VIEWS:
        raise unknown_name("view", name, VIEWS)
    return View(name, VIEWS[name].stages(size, mean), size, mean, std)
