"""Boxes in images: where they lie, and what is pasted into them, moved there or erased; pure functions."""

from __future__ import annotations

import dataclasses
from typing import Literal

import torch
from torch import Tensor

Size = int | tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Box:
    """Rows [top, bottom) and columns [left, right) of an image of ``height`` x ``width`` pixels."""

    top: int
    bottom: int
    left: int
    right: int
    height: int
    width: int

    @property
    def area(self) -> int:
        """Pixels inside."""
        return (self.bottom - self.top) * (self.right - self.left)

    @property
    def lam(self) -> float:
        """The fraction of the image outside the box: the weight of the background's label."""
        return 1.0 - self.area / (self.height * self.width)


def draw_beta(count: int, alpha: float, generator: torch.Generator) -> Tensor:
    """``count`` draws from Beta(alpha, alpha), (count,) float64 on the CPU; alpha = 1 is uniform."""
    if not alpha > 0:
        raise ValueError(f"alpha of a Beta distribution must be above 0, not {alpha}.")
    if alpha == 1.0:
        return torch.rand(count, generator=generator, dtype=torch.float64)
    # torch.distributions.Beta takes no generator; this is the sampler beneath it.
    drawn: Tensor = torch._sample_dirichlet(torch.full((count, 2), alpha, dtype=torch.float64), generator=generator)
    return drawn[:, 0]


def draw_lambda(generator: torch.Generator, *, alpha: float = 1.0, probability: float = 0.5) -> float | None:
    """lambda ~ Beta(alpha, alpha) for one batch, then a coin: None where it says not to mix.

    Raises ValueError for a ``probability`` outside [0, 1].
    """
    if not 0 <= probability <= 1:
        raise ValueError(f"probability must lie in [0, 1], not {probability}.")
    lam = float(draw_beta(1, alpha, generator))
    coin = float(torch.rand((), generator=generator, dtype=torch.float64))
    return lam if coin < probability else None


def draw_cutmix(size: Size, generator: torch.Generator, *, alpha: float = 1.0, probability: float = 0.5) -> Box | None:
    """CutMix's draws for one batch: lambda ~ Beta(alpha, alpha), a coin, then the row and the column of the center.

    Returns None where the coin says not to mix. One box serves the whole batch.

    Yun et al., "CutMix", arXiv 1905.04899; order of the draws: authors' program of ConCutMix, arXiv 2407.04911.

    Args:
        size: image height and width in pixels (one number for a square).
        generator: CPU generator, keyed by the run's seed and the step.
        alpha: of the Beta distribution.
        probability: of mixing, in [0, 1].
    """
    height, width = _height_width(size)
    lam = draw_lambda(generator, alpha=alpha, probability=probability)
    if lam is None:
        return None
    row = int(torch.randint(height, (), generator=generator))
    column = int(torch.randint(width, (), generator=generator))
    return cutmix_box(size, lam, (row, column))


def cutmix_box(size: Size, lam: float, center: tuple[int, int]) -> Box:
    """The box of side ratio sqrt(1 - lam) around ``center`` (row, column), clipped to the image: see boxes_around."""
    box = boxes_around(torch.tensor([center]), torch.tensor([lam], dtype=torch.float64), size)
    top, bottom, left, right = (int(edge) for edge in box[0])
    return Box(top, bottom, left, right, *_height_width(size))


def boxes_around(centers: Tensor, lam: Tensor, size: Size, *, at_edge: Literal["clip", "shift"] = "clip") -> Tensor:
    """Boxes of side ratio sqrt(1 - lam) around centers, one per image.

    Half a side is int(int(side * sqrt(1 - lam)) / 2), and the box is [center - half, center + half): even sides, and a
    side of one pixel is empty, as in the program of CutMix (arXiv 1905.04899).

    Args:
        centers: (B, 2) integer row and column.
        lam: (B,) in [0, 1], the wanted fraction outside.
        size: image height and width in pixels.
        at_edge: "clip" cuts a box at the frame; "shift" moves it inside, so that its area is that of any other center.

    Returns:
        (B, 4) int64 top, bottom, left, right.
    """
    if centers.ndim != 2 or centers.shape[1] != 2 or lam.shape != centers.shape[:1]:
        raise ValueError(f"centers and lam must be (B, 2) and (B,), not {tuple(centers.shape)} and {tuple(lam.shape)}.")
    sides = torch.tensor(_height_width(size), device=centers.device)
    kind = lam.dtype if lam.dtype == torch.float64 else torch.float32
    ratio = (1.0 - lam.to(centers.device, kind)).clamp(0.0, 1.0).sqrt()
    half = (ratio[:, None] * sides).long() // 2
    middle = centers.long()
    if at_edge == "shift":
        middle = torch.minimum(torch.maximum(middle, half), sides - half)
    low = torch.minimum((middle - half).clamp_min(0), sides)
    high = torch.minimum((middle + half).clamp_min(0), sides)
    return torch.stack((low[:, 0], high[:, 0], low[:, 1], high[:, 1]), dim=1)


def align_boxes(boxes: Tensor, patch: int) -> Tensor:
    """Boxes whose edges lie on multiples of ``patch`` pixels: (B, 4) of the same type.

    edge := floor((edge + floor(patch / 2)) / patch) patch, the nearest multiple, of two equally near the higher. A box
    then holds whole patches of a vision transformer, or none of one, and its area is that of what was pasted. A box of
    less than half a patch may become empty. The side of the image has to be a multiple of ``patch``, or the last edge
    would leave it.
    """
    if patch < 1:
        raise ValueError(f"patch must be at least 1 pixel, not {patch}.")
    return torch.div(boxes + patch // 2, patch, rounding_mode="floor") * patch


def align_box(box: Box, patch: int) -> Box:
    """A :class:`Box` with its edges on multiples of ``patch`` pixels: see align_boxes.

    Raises ValueError for an image that is not filled by patches.
    """
    if patch < 1 or box.height % patch or box.width % patch:
        raise ValueError(f"patches of {patch} pixels do not fill an image of {box.height} x {box.width}.")
    edges = align_boxes(torch.tensor([box.top, box.bottom, box.left, box.right]), patch)
    top, bottom, left, right = (int(edge) for edge in edges)
    return Box(top, bottom, left, right, box.height, box.width)


def boxes_like(box: Box, centers: Tensor, patch: int = 1) -> Tensor:
    """Boxes of the size of ``box`` around centers (B, 2), moved inside the frame: (B, 4) int64.

    All have the area of ``box`` and so its lambda: they differ from it in nothing but the place. With ``patch`` they
    lie on its multiples, where ``box`` does.
    """
    if centers.ndim != 2 or centers.shape[1] != 2:
        raise ValueError(f"centers must be (B, 2), not {tuple(centers.shape)}.")
    sides = torch.tensor((box.bottom - box.top, box.right - box.left), device=centers.device)
    room = torch.tensor((box.height, box.width), device=centers.device) - sides
    low = torch.minimum(align_boxes(centers.long() - sides // 2, patch).clamp_min(0), room)
    high = low + sides
    return torch.stack((low[:, 0], high[:, 0], low[:, 1], high[:, 1]), dim=1)


def boxes_to_mask(boxes: Tensor, size: Size) -> Tensor:
    """True inside: (B, H, W) bool from (B, 4) top, bottom, left, right."""
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"boxes must be (B, 4), not {tuple(boxes.shape)}.")
    height, width = _height_width(size)
    top, bottom, left, right = boxes[:, :, None].unbind(1)
    rows, columns = torch.arange(height, device=boxes.device), torch.arange(width, device=boxes.device)
    in_rows = (rows >= top) & (rows < bottom)
    in_columns = (columns >= left) & (columns < right)
    return in_rows[:, :, None] & in_columns[:, None, :]


def visible_fraction(boxes: Tensor, size: Size) -> Tensor:
    """The fraction of each image outside its box, (B,) float32: lambda after clipping."""
    height, width = _height_width(size)
    area = (boxes[:, 1] - boxes[:, 0]).clamp_min(0) * (boxes[:, 3] - boxes[:, 2]).clamp_min(0)
    return 1.0 - area.float() / (height * width)


def paste(background: Tensor, foreground: Tensor, box: Box | Tensor) -> Tensor:
    """``background`` with the box filled from the same place of ``foreground``; a new tensor.

    Both (B, channels, H, W); ``box`` is one :class:`Box` for all images or (B, 4) one per image.
    """
    check_pair("foreground", foreground, background)
    if isinstance(box, Box):
        mixed = background.clone()
        inside = (..., slice(box.top, box.bottom), slice(box.left, box.right))
        mixed[inside] = foreground[inside].to(mixed.dtype)
        return mixed
    mask = _box_masks(box, background)
    return torch.where(mask, foreground.to(background.dtype), background)


def erase(images: Tensor, boxes: Tensor, value: float | Tensor = 0.0) -> Tensor:
    """``images`` (B, channels, H, W) with each one's box (B, 4) set to ``value``.

    ``value`` is one number, (channels,), or what broadcasts to the images, e.g. (B, channels, 1, 1).
    """
    mask = _box_masks(boxes, images)
    filled = torch.as_tensor(value, dtype=images.dtype, device=images.device)
    if filled.ndim == 1:
        filled = filled[:, None, None]
    return torch.where(mask, filled, images)


def transplant(background: Tensor, foreground: Tensor, boxes: Tensor, source_boxes: Tensor) -> Tensor:
    """``background`` with each one's box filled from *another* place of ``foreground``; a new tensor.

    Pixel (r, c) of box i is pixel (r - top_i + source_top_i, c - left_i + source_left_i) of foreground i. Where both
    boxes are equal this is :func:`paste`. Indexing by rows, then by columns: neither a grid nor a loop over images.

    Args:
        background: (B, channels, H, W).
        foreground: of the same shape.
        boxes: (B, 4) top, bottom, left, right in the background.
        source_boxes: (B, 4) in the foreground, each of the size of its partner in ``boxes``.

    Raises:
        ValueError: on shapes that do not fit; on boxes of different size (on the CPU).
    """
    check_pair("foreground", foreground, background)
    mask = _box_masks(boxes, background)
    boxes, source = boxes.to(background.device), source_boxes.to(background.device)
    if source.shape != boxes.shape:
        raise ValueError(f"source_boxes must be {tuple(boxes.shape)} like boxes, not {tuple(source.shape)}.")
    # Elsewhere the comparison would wait for the device in every step.
    if boxes.device.type == "cpu" and not torch.equal(boxes[:, 1::2] - boxes[:, ::2], source[:, 1::2] - source[:, ::2]):
        raise ValueError("source_boxes must have the sizes of boxes.")
    height, width = background.shape[2:]
    shift = source[:, ::2] - boxes[:, ::2]
    rows = (torch.arange(height, device=boxes.device) + shift[:, :1]).clamp(0, height - 1)
    columns = (torch.arange(width, device=boxes.device) + shift[:, 1:]).clamp(0, width - 1)
    image = torch.arange(len(boxes), device=boxes.device)[:, None, None]
    moved = foreground.permute(0, 2, 3, 1)[image, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    return torch.where(mask, moved.to(background.dtype), background)


def check_pair(name: str, foreground: Tensor, background: Tensor) -> None:
    """Raise ValueError unless ``foreground`` has the shape of ``background``."""
    if foreground.shape != background.shape:
        raise ValueError(
            f"{name} must be {tuple(background.shape)} like the background, not {tuple(foreground.shape)}."
        )


def _box_masks(boxes: Tensor, images: Tensor) -> Tensor:
    if images.ndim != 4 or boxes.shape != (images.shape[0], 4):
        raise ValueError(
            f"images {tuple(images.shape)} and boxes {tuple(boxes.shape)} must be (B, ., H, W) and (B, 4)."
        )
    return boxes_to_mask(boxes.to(images.device), (images.shape[2], images.shape[3]))[:, None]


def _height_width(size: Size) -> tuple[int, int]:
    height, width = (size, size) if isinstance(size, int) else size
    if height < 1 or width < 1:
        raise ValueError(f"an image of {height} x {width} pixels has no room for a box.")
    return height, width
