"""Boxes, pasting, erasing, label mixing, and the label rectification of ConCutMix, as pure functions."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

Size = int | tuple[int, int]

# 1e-12 stands for a distance of 0: its inverse is finite in float32, and beside it every other center weighs nothing.
MINIMUM_DISTANCE = 1e-12


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
    if not 0 <= probability <= 1:
        raise ValueError(f"probability must lie in [0, 1], not {probability}.")
    height, width = _height_width(size)
    lam = float(draw_beta(1, alpha, generator))
    coin = float(torch.rand((), generator=generator, dtype=torch.float64))
    if coin >= probability:
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
    _check_pair("foreground", foreground, background)
    if isinstance(box, Box):
        mixed = background.clone()
        inside = (..., slice(box.top, box.bottom), slice(box.left, box.right))
        mixed[inside] = foreground[inside].to(mixed.dtype)
        return mixed
    mask = _box_masks(box, background)
    return torch.where(mask, foreground.to(background.dtype), background)


def erase(images: Tensor, boxes: Tensor, value: float | Tensor = 0.0) -> Tensor:
    """``images`` (B, channels, H, W) with each one's box (B, 4) set to ``value`` (one number, or one per channel)."""
    mask = _box_masks(boxes, images)
    filled = torch.as_tensor(value, dtype=images.dtype, device=images.device)
    if filled.ndim == 1:
        filled = filled[:, None, None]
    return torch.where(mask, filled, images)


def mix_labels(background: Tensor, foreground: Tensor, lam: float | Tensor) -> Tensor:
    """lam * background + (1 - lam) * foreground for labels (B, C); ``lam`` is one number or (B,)."""
    return _blend("labels", background, foreground, lam)


def mixup(images: Tensor, foreground: Tensor, lam: float | Tensor) -> Tensor:
    """lam * images + (1 - lam) * foreground for (B, channels, H, W); mixup, Zhang et al., arXiv 1710.09412."""
    return _blend("images", images, foreground, lam)


@torch.no_grad()
def rectify_labels(
    features: Tensor,
    centers: Tensor,
    labels: Tensor,
    counts: Sequence[int] | Tensor,
    *,
    scale: float,
    topk: int,
) -> Tensor:
    """Label rectification of ConCutMix: moves an area label toward the classes whose centers are near the feature.

    With q from :func:`semantic_labels` and gamma from :func:`rectification_confidence`; without a gradient::

        t_i := gamma_i q_i + (1 - gamma_i) t_i

    Pan et al., arXiv 2407.04911. Authors' program: gamma leaves [0, 1] for a large scale, and a feature equal to a
    center gives 1/0. Here: gamma is clamped and so is the distance, because the label must stay a distribution.

    Args:
        features: (B, D) not normalized.
        centers: (C, D) not normalized.
        labels: (B, C) area labels; rows sum to 1.
        counts: (C,) training images per class.
        scale: the config's omega, at least 0; the authors' values are 0.2 C / 255.
        topk: classes that keep a share in q; more than C means C.

    Returns:
        (B, C) labels of the type of ``labels``; rows sum to 1.

    Raises:
        ValueError: on shapes that do not fit, topk < 1 or scale < 0.
    """
    if labels.shape != (features.shape[0], centers.shape[0]):
        raise ValueError(
            f"labels must be (B, C) = ({features.shape[0]}, {centers.shape[0]}), not {tuple(labels.shape)}."
        )
    semantic = semantic_labels(features, centers, topk)
    gamma = rectification_confidence(labels, counts, scale).to(semantic.dtype)[:, None]
    return (gamma * semantic + (1.0 - gamma) * labels).to(labels.dtype)


@torch.no_grad()
def semantic_labels(features: Tensor, centers: Tensor, topk: int) -> Tensor:
    """The semantically consistent label: inverse distances to the topk nearest centers, scaled to sum to 1.

    ::

        s_ik = 1 / max(||u_i - v_k||_2, 1e-12),   q_ik = s_ik / sum of the topk largest s_i   (0 outside the topk)

    Args:
        features: u (B, D).
        centers: v (C, D).
        topk: at least 1; more than C means C.

    Returns:
        (B, C), float32 for float16 and bfloat16 inputs.
    """
    if features.ndim != 2 or centers.ndim != 2 or features.shape[1] != centers.shape[1]:
        raise ValueError(
            f"features and centers must be (B, D) and (C, D), not {tuple(features.shape)} and {tuple(centers.shape)}."
        )
    if topk < 1:
        raise ValueError(f"topk must be at least 1, not {topk}.")
    kind = torch.promote_types(torch.promote_types(features.dtype, centers.dtype), torch.float32)
    # Differences, not |u|^2 + |v|^2 - 2 u.v: the latter loses the small distances, which weigh most here.
    distance = torch.cdist(features.to(kind), centers.to(kind), compute_mode="donot_use_mm_for_euclid_dist").clamp_min(
        MINIMUM_DISTANCE
    )
    near, ids = distance.topk(min(topk, centers.shape[0]), dim=1, largest=False)
    # In units of the nearest distance the sum lies in [1, topk], so neither it nor its inverse can leave float32.
    closeness = near[:, :1] / near
    share = closeness / closeness.sum(1, keepdim=True)
    return torch.zeros_like(distance).scatter(1, ids, share)


@torch.no_grad()
def rectification_confidence(labels: Tensor, counts: Sequence[int] | Tensor, scale: float) -> Tensor:
    """The confidence gamma_i in the semantic label, (B,) in [0, 1]: larger for labels of frequent classes.

    ::

        gamma_i = clamp(scale * log(sum_k N_k t_ik) / sum_k log N_k, 0, 1)      (natural logarithms)

    log N_k of a class without images is taken as 0; sum_k log N_k = 0 gives gamma = 0.

    Args:
        labels: t (B, C), the area labels.
        counts: N (C,).
        scale: the config's omega, at least 0.
    """
    if not scale >= 0:
        raise ValueError(f"scale must be at least 0, not {scale}.")
    if labels.ndim != 2:
        raise ValueError(f"labels must be (B, C), not {tuple(labels.shape)}.")
    kind = torch.promote_types(labels.dtype, torch.float32)
    number = torch.as_tensor(counts).to(labels.device, kind)
    if number.shape != (labels.shape[1],):
        raise ValueError(f"counts must be ({labels.shape[1]},) for these labels, not {tuple(number.shape)}.")
    total = number.clamp_min(1.0).log().sum()
    # A mass below one image would give a negative gamma, that is 0 after the clamp.
    mass = (labels.to(kind) @ number).clamp_min(1.0).log()
    # total is 0 only where no class has two images: then the mass is 0 as well.
    return (scale * mass / torch.where(total > 0, total, 1.0)).clamp(0.0, 1.0)


def _blend(kind: str, background: Tensor, foreground: Tensor, lam: float | Tensor) -> Tensor:
    _check_pair(f"foreground {kind}", foreground, background)
    if isinstance(lam, Tensor) and lam.ndim > 0:
        if lam.shape != background.shape[:1]:
            raise ValueError(f"lam must be one number or ({background.shape[0]},), not {tuple(lam.shape)}.")
        lam = lam.to(background).reshape(-1, *(1,) * (background.ndim - 1))
    return lam * background + (1.0 - lam) * foreground


def _check_pair(name: str, foreground: Tensor, background: Tensor) -> None:
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
