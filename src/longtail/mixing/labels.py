"""Blends of labels and of whole images by lambda, as pure functions."""

from __future__ import annotations

import torch
from torch import Tensor

from longtail.mixing.boxes import check_pair


def mix_labels(background: Tensor, foreground: Tensor, lam: float | Tensor) -> Tensor:
    """lam * background + (1 - lam) * foreground for labels (B, C); ``lam`` is one number or (B,)."""
    return _blend("labels", background, foreground, lam)


def mixup(images: Tensor, foreground: Tensor, lam: float | Tensor) -> Tensor:
    """lam * images + (1 - lam) * foreground for (B, channels, H, W); mixup, Zhang et al., arXiv 1710.09412."""
    return _blend("images", images, foreground, lam)


def remix_factor(
    lam: float | Tensor, counts: Tensor, foreground_counts: Tensor, *, kappa: float = 3.0, tau: float = 0.5
) -> Tensor:
    """Remix's share of the first label: all of the label goes to the rarer class where its image is not too faint.

    With n the images of the class of the first image and n' those of the class of the other::

        lam_y = 0     if n / n' >= kappa    and lam < tau
                1     if n / n' <= 1 / kappa and 1 - lam < tau
                lam   otherwise

    Where both hold, the first counts. tau = 0 is :func:`mixup`'s label. Chou et al., "Remix: Rebalanced Mixup", arXiv
    2007.03943, eq. 10. Paper: n > 0. Here: 0 counts as one image, as in ``longtail.losses.logit_adjustment``.

    Args:
        lam: share of the first image in [0, 1], one number or (B,).
        counts: (B,) training images of the class of each first image.
        foreground_counts: (B,) those of the class of its partner.
        kappa: at least 1, how many times more images make a class the majority.
        tau: in [0, 1], the share below which the majority loses its label.

    Returns:
        (B,) shares for :func:`mix_labels`.

    Raises:
        ValueError: on shapes that do not fit, kappa below 1, or tau outside [0, 1].
    """
    if counts.ndim != 1 or foreground_counts.shape != counts.shape:
        raise ValueError(
            f"counts must be (B,) for both images, not {tuple(counts.shape)} and {tuple(foreground_counts.shape)}."
        )
    if isinstance(lam, Tensor) and lam.ndim > 0 and lam.shape != counts.shape:
        raise ValueError(f"lam must be one number or ({len(counts)},), not {tuple(lam.shape)}.")
    if not kappa >= 1:
        raise ValueError(f"kappa must be at least 1, not {kappa}.")
    if not 0 <= tau <= 1:
        raise ValueError(f"tau must be in [0, 1], not {tau}.")
    own, other = counts.clamp_min(1), foreground_counts.clamp_min(1)
    to_foreground = (own >= kappa * other) & (lam < tau)
    to_background = (other >= kappa * own) & (1 - lam < tau)
    return torch.where(to_foreground, 0.0, torch.where(to_background, 1.0, lam))


def _blend(kind: str, background: Tensor, foreground: Tensor, lam: float | Tensor) -> Tensor:
    check_pair(f"foreground {kind}", foreground, background)
    if isinstance(lam, Tensor) and lam.ndim > 0:
        if lam.shape != background.shape[:1]:
            raise ValueError(f"lam must be one number or ({background.shape[0]},), not {tuple(lam.shape)}.")
        lam = lam.to(background).reshape(-1, *(1,) * (background.ndim - 1))
    return lam * background + (1.0 - lam) * foreground
