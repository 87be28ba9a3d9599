"""Geometry on a batch: crops, flips and affine maps with one draw per image, which carry points and masks along.

A *point* is (row, column) in pixels, the center of the upper left pixel being (0, 0). Where it leaves the frame it is
moved to the nearest pixel of the frame. A *mask* is (B, H, W) of any kind; what comes from outside is 0.
"""

from __future__ import annotations

import dataclasses
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from longtail.data.views.augment import Params, as_float
from longtail.errors import DataError


def uniform(count: tuple[int, ...], low: float, high: float, generator: torch.Generator) -> Tensor:
    """Uniform draws in [low, high), float64: products with an image side must not round up to the side."""
    return torch.rand(count, generator=generator, dtype=torch.float64) * (high - low) + low


def clamp_points(points: Tensor, last: Tensor | int) -> Tensor:
    """Points (B, 2) moved into a frame whose last row and column are ``last``."""
    return torch.minimum(points.clamp(min=0), torch.as_tensor(last, dtype=points.dtype, device=points.device))


def crop(images: Tensor, top: Tensor, left: Tensor, size: int) -> Tensor:
    """Cut windows of ``size`` at (top, left), each (B,), out of (B, C, H, W), all inside the images."""
    # Windows are a view of the batch; indexing it copies each window once, with neither a grid nor a loop.
    windows = images.unfold(2, size, 1).unfold(3, size, 1)
    image = torch.arange(images.shape[0], device=images.device)
    return windows[image, :, top.to(images.device), left.to(images.device)]


def resampling_matrix(start: Tensor, length: Tensor, side: int, size: int) -> Tensor:
    """Weights (B, size, side) that resample the stretch [start, start + length) of a line of ``side`` pixels.

    Linear with antialiasing: with scale = length / size, output i is centered at c = scale (i + 1/2), and pixel j of
    the stretch weighs max(0, 1 - |j + 1/2 - c| / max(scale, 1)), normalized over the stretch. This is what
    torchvision's ``resized_crop`` computes for float images.
    """
    start, length = start.to(torch.float32).view(-1, 1, 1), length.to(torch.float32).view(-1, 1, 1)
    scale = length / size
    center = scale * (torch.arange(size, device=start.device) + 0.5).view(1, -1, 1)
    pixel = torch.arange(side, device=start.device).view(1, 1, -1) - start
    weight = (1.0 - (pixel + 0.5 - center).abs() / scale.clamp(min=1.0)).clamp_(min=0.0)
    weight = weight * ((pixel >= 0) & (pixel < length))
    return weight / weight.sum(dim=2, keepdim=True)


def warp(images: Tensor, matrix: Tensor, fill: Tensor) -> Tensor:
    """Take for each pixel of the result the nearest pixel of (B, C, H, W) at ``matrix`` (B, 2, 3) times (x, y, 1).

    x and y are the column and row of the result counted from the image's center; ``fill`` (C,) stands where the source
    lies outside. Rounds halves to even, like torchvision's nearest interpolation.
    """
    height, width = images.shape[-2:]
    matrix = matrix.to(images.device)
    x = torch.arange(width, device=images.device) - (width - 1) / 2
    y = (torch.arange(height, device=images.device) - (height - 1) / 2).unsqueeze(1)
    a, b, c, d, e, f = (value.view(-1, 1, 1) for value in matrix.flatten(1).unbind(1))
    column = (a * x + b * y + c + (width - 1) / 2).round_()
    row = (d * x + e * y + f + (height - 1) / 2).round_()
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    source = (row.clamp_(0, height - 1) * width + column.clamp_(0, width - 1)).to(torch.int64)
    moved = images.flatten(2).gather(2, source.flatten(1).unsqueeze(1).expand(-1, images.shape[1], -1))
    fill = fill.to(device=images.device, dtype=images.dtype).view(1, -1, 1, 1)
    return torch.where(inside.unsqueeze(1), moved.view_as(images), fill)


@dataclasses.dataclass(frozen=True)
class Crop:
    """A window of ``size`` at a uniform place in the image padded by ``padding`` black pixels on each side.

    Black before normalization, as torchvision's ``RandomCrop(size, padding)``. Keeps the kind of the pixels.
    """

    size: int
    padding: int
    carries = True

    def draw(self, sizes: Tensor, generator: torch.Generator) -> Params:
        """``corner`` (B, 2): the upper left corner of the window in the padded image."""
        room = sizes + 2 * self.padding - self.size + 1
        if bool((room < 1).any()):
            least = self.size - 2 * self.padding
            raise DataError(
                f"A crop of {self.size} pixels with padding {self.padding} needs images of at least {least} pixels.",
                hint="Lower data.size, or choose the view 'resized-crop'.",
            )
        return {"corner": (uniform((len(sizes), 2), 0.0, 1.0, generator) * room).to(torch.int64)}

    def apply(self, images: Tensor, params: Params) -> Tensor:
        """(B, 3, H, W) to (B, 3, size, size)."""
        padded = F.pad(images, [self.padding] * 4)
        return crop(padded, params["corner"][:, 0], params["corner"][:, 1], self.size)

    def carry_points(self, points: Tensor, params: Params) -> Tensor:
        """Points (B, 2) in the window."""
        return clamp_points(points + self.padding - params["corner"].to(points.device), self.size - 1)

    def carry_masks(self, masks: Tensor, params: Params) -> Tensor:
        """Masks (B, H, W) in the window."""
        return self.apply(masks.unsqueeze(1), params).squeeze(1)


@dataclasses.dataclass(frozen=True)
class ResizedCrop:
    """A window of random area and aspect ratio, resized to ``size`` bilinearly with antialiasing.

    Area uniform in ``scale`` of the image's area, log of width / height uniform in the log of ``ratio``, sides rounded
    and redrawn up to ten times until they fit, then a uniform place; where ten draws fail, the largest centered window
    of an allowed ratio. The distribution of torchvision's ``RandomResizedCrop`` (arXiv 1409.4842). The result is float.
    """

    size: int
    scale: tuple[float, float]
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    carries = True

    def draw(self, sizes: Tensor, generator: torch.Generator) -> Params:
        """``corner`` (B, 2) and ``extent`` (B, 2), both (row, column), in pixels of the image."""
        count, height, width = len(sizes), sizes[:, :1].to(torch.float64), sizes[:, 1:].to(torch.float64)
        area = height * width * uniform((count, 10), *self.scale, generator)
        aspect = uniform((count, 10), math.log(self.ratio[0]), math.log(self.ratio[1]), generator).exp()
        columns, rows = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()
        place = uniform((count, 2), 0.0, 1.0, generator)
        fits = (columns > 0) & (columns <= width) & (rows > 0) & (rows <= height)
        first = fits.to(torch.uint8).argmax(dim=1, keepdim=True)
        extent = torch.cat([rows.gather(1, first), columns.gather(1, first)], dim=1)
        corner = (place * (sizes - extent + 1)).floor()

        tallest = torch.minimum(height, (width / self.ratio[0]).round())
        widest = torch.minimum(width, (height * self.ratio[1]).round())
        fallback = torch.cat([tallest, widest], dim=1)
        none_fits = ~fits.any(dim=1, keepdim=True)
        extent = torch.where(none_fits, fallback, extent)
        corner = torch.where(none_fits, ((sizes - fallback) / 2).floor(), corner)
        return {"corner": corner.to(torch.int64), "extent": extent.to(torch.int64)}

    def apply(self, images: Tensor, params: Params) -> Tensor:
        """(B, 3, H, W) to float (B, 3, size, size) in [0, 1]."""
        corner, extent = params["corner"].to(images.device), params["extent"].to(images.device)
        rows = resampling_matrix(corner[:, 0], extent[:, 0], images.shape[2], self.size)
        columns = resampling_matrix(corner[:, 1], extent[:, 1], images.shape[3], self.size)
        narrow = as_float(images).flatten(1, 2) @ columns.transpose(1, 2)
        return rows.unsqueeze(1) @ narrow.view(*images.shape[:3], self.size)

    def carry_points(self, points: Tensor, params: Params) -> Tensor:
        """Points (B, 2) in the resized window."""
        corner, extent = params["corner"].to(points.device), params["extent"].to(points.device)
        return clamp_points((points + 0.5 - corner) * self.size / extent - 0.5, self.size - 1)

    def carry_masks(self, masks: Tensor, params: Params) -> Tensor:
        """Masks (B, H, W) at the pixel nearest to each output's center: a mask stays what it is, without gray rims."""
        corner, extent = params["corner"].to(masks.device), params["extent"].to(masks.device)
        steps = torch.arange(self.size, device=masks.device) * 2 + 1
        # floor((2 i + 1) extent / (2 size)) in whole numbers: float rounding would shift pixels at the boundaries.
        rows = corner[:, :1] + steps * extent[:, :1] // (2 * self.size)
        columns = corner[:, 1:] + steps * extent[:, 1:] // (2 * self.size)
        image = torch.arange(len(masks), device=masks.device).view(-1, 1, 1)
        return masks[image, rows.unsqueeze(2), columns.unsqueeze(1)]


@dataclasses.dataclass(frozen=True)
class Flip:
    """Mirror left and right with probability ``probability``. Keeps the kind of the pixels."""

    probability: float = 0.5
    carries = True

    def draw(self, sizes: Tensor, generator: torch.Generator) -> Params:
        """``flip`` (B,) bool and ``width`` (B,) of the images, which points need."""
        return {"flip": uniform((len(sizes),), 0.0, 1.0, generator) < self.probability, "width": sizes[:, 1].clone()}

    def apply(self, images: Tensor, params: Params) -> Tensor:
        """(B, 3, H, W) to the same shape."""
        flip = params["flip"].to(images.device).view(-1, *[1] * (images.ndim - 1))
        return torch.where(flip, images.flip(-1), images)

    def carry_points(self, points: Tensor, params: Params) -> Tensor:
        """Points (B, 2), mirrored where the image is."""
        flip, width = params["flip"].to(points.device), params["width"].to(points.device)
        return torch.stack([points[:, 0], torch.where(flip, width - 1 - points[:, 1], points[:, 1])], dim=1)

    def carry_masks(self, masks: Tensor, params: Params) -> Tensor:
        """Masks (B, H, W), mirrored where the image is."""
        return self.apply(masks, params)
