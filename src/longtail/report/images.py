"""Pictures of images for the page: small, embedded, with boxes and peaks drawn by the style sheet over them."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from markupsafe import Markup
from PIL import Image
from torch import Tensor

from longtail.data.views import View

LARGEST = 96
"""Side in pixels above which an image is made smaller: a page holds some hundred."""

Edges = tuple[int, int, int, int]
"""Top, bottom, left, right in pixels, ends excluded."""


@dataclass(frozen=True)
class Shot:
    """An image (3, H, W) uint8 with what is said under it, and maybe a box and a peak (row, column) over it."""

    pixels: Tensor
    caption: str
    alt: str
    box: Edges | None = None
    peak: tuple[int, int] | None = None

    def markup(self) -> Markup:
        """The picture with its caption."""
        height, width = self.pixels.shape[-2:]
        over = Markup("")
        if self.box is not None:
            top, bottom, left, right = self.box
            over += Markup('<i class="box" style="top:{}%;height:{}%;left:{}%;width:{}%"></i>').format(
                *(f"{100 * part:.4g}" for part in (top / height, (bottom - top) / height)),
                *(f"{100 * part:.4g}" for part in (left / width, (right - left) / width)),
            )
        if self.peak is not None:
            row, column = self.peak
            over += Markup('<i class="peak" style="top:{}%;left:{}%"></i>').format(
                f"{100 * (row + 0.5) / height:.4g}", f"{100 * (column + 0.5) / width:.4g}"
            )
        return Markup('<figure class="shot"><span class="frame">{}{}</span>{}</figure>').format(
            picture(self.pixels, self.alt), over, Markup("<figcaption>{}</figcaption>").format(self.caption)
        )


def picture(pixels: Tensor, alt: str) -> Markup:
    """An img element that holds the image (3, H, W) uint8."""
    height, width = pixels.shape[-2:]
    return Markup('<img src="{}" width="{}" height="{}" alt="{}">').format(data_uri(pixels), width, height, alt)


def data_uri(pixels: Tensor) -> str:
    """The image (3, H, W) uint8 as a data: address: PNG, and JPEG where it has to be made smaller."""
    image = Image.fromarray(pixels.permute(1, 2, 0).contiguous().cpu().numpy())
    buffer, kind = io.BytesIO(), "png"
    if max(image.size) > LARGEST:
        image.thumbnail((LARGEST, LARGEST), Image.Resampling.LANCZOS)
        kind = "jpeg"
        image.save(buffer, format="JPEG", quality=85)
    else:
        image.save(buffer, format="PNG", optimize=True)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def visible(normalized: Tensor, view: View) -> Tensor:
    """Normalized images (B, 3, H, W) as uint8, by the inverse of the view's normalization."""
    mean = torch.tensor(view.mean, device=normalized.device).view(3, 1, 1)
    std = torch.tensor(view.std, device=normalized.device).view(3, 1, 1)
    return (255 * (normalized * std + mean)).round().clamp(0, 255).to(torch.uint8)


def gray(values: Tensor) -> Tensor:
    """A map (H, W) as a gray image (3, H, W) uint8, its smallest value black and its largest white."""
    shifted = values.float() - values.float().min()
    return (255 * shifted / shifted.max().clamp_min(1e-12)).round().to(torch.uint8).expand(3, -1, -1)


def edges_of(box: Sequence[int] | Tensor) -> Edges | None:
    """Four numbers as edges; None for a box without area."""
    top, bottom, left, right = (int(edge) for edge in box)
    return None if bottom <= top or right <= left else (top, bottom, left, right)
