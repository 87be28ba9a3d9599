"""Blends of labels and of whole images by lambda, as pure functions."""

from __future__ import annotations

from torch import Tensor

from longtail.mixing.boxes import check_pair


def mix_labels(background: Tensor, foreground: Tensor, lam: float | Tensor) -> Tensor:
    """lam * background + (1 - lam) * foreground for labels (B, C); ``lam`` is one number or (B,)."""
    return _blend("labels", background, foreground, lam)


def mixup(images: Tensor, foreground: Tensor, lam: float | Tensor) -> Tensor:
    """lam * images + (1 - lam) * foreground for (B, channels, H, W); mixup, Zhang et al., arXiv 1710.09412."""
    return _blend("images", images, foreground, lam)


def _blend(kind: str, background: Tensor, foreground: Tensor, lam: float | Tensor) -> Tensor:
    check_pair(f"foreground {kind}", foreground, background)
    if isinstance(lam, Tensor) and lam.ndim > 0:
        if lam.shape != background.shape[:1]:
            raise ValueError(f"lam must be one number or ({background.shape[0]},), not {tuple(lam.shape)}.")
        lam = lam.to(background).reshape(-1, *(1,) * (background.ndim - 1))
    return lam * background + (1.0 - lam) * foreground
