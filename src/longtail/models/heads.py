"""Classifiers and the projection head that stand on a backbone's features."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longtail.errors import unknown_name


class LinearClassifier(nn.Linear):
    """logits = W h + b, with W (C, dim) and PyTorch's default initialization."""

    def __init__(self, dim: int, classes: int) -> None:
        super().__init__(dim, classes)


class CosineClassifier(nn.Module):
    """logits = scale * normalize(h) . normalize(W_k), with W (C, dim) and no bias.

    W starts uniform in (-1, 1), each row scaled to length 1. ``scale`` is fixed: 30 in ConCutMix's ImageNet-size runs
    (arXiv 2407.04911). Its program stores W as (dim, C); here it is (C, dim) like that of the linear classifier.
    """

    def __init__(self, dim: int, classes: int, scale: float = 30.0) -> None:
        super().__init__()
        self.scale = scale
        self.weight = nn.Parameter(torch.empty(classes, dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw W anew from PyTorch's global generator."""
        with torch.no_grad():
            self.weight.uniform_(-1.0, 1.0)
            self.weight.copy_(F.normalize(self.weight, dim=1))

    def forward(self, features: Tensor) -> Tensor:
        """Features (B, dim) -> logits (B, C) within [-scale, scale]."""
        return self.scale * F.linear(F.normalize(features, dim=1), F.normalize(self.weight, dim=1))

    def extra_repr(self) -> str:
        """Sizes and scale, for printing a model."""
        classes, dim = self.weight.shape
        return f"dim={dim}, classes={classes}, scale={self.scale}"


class MLPHead(nn.Sequential):
    """Linear -> BatchNorm -> ReLU -> Linear: (N, dim_in) -> (N, dim_out), not normalized; parameters 0, 1 and 3.

    The projection and the center MLP of balanced contrastive learning (arXiv 2207.09052). In training mode batch-norm
    needs N >= 2.
    """

    def __init__(self, dim_in: int, hidden: int, dim_out: int) -> None:
        super().__init__(
            nn.Linear(dim_in, hidden), nn.BatchNorm1d(hidden), nn.ReLU(inplace=True), nn.Linear(hidden, dim_out)
        )


Classifier = LinearClassifier | CosineClassifier

CLASSIFIERS: dict[str, Callable[[int, int], Classifier]] = {
    "linear": LinearClassifier,
    "cosine": CosineClassifier,
}


def build_classifier(kind: str, dim: int, classes: int) -> Classifier:
    """The classifier ``kind`` (a key of CLASSIFIERS): features (B, dim) -> logits (B, classes); ``.weight`` (C, dim).

    Raises ConfigError, with the nearest match, for an unknown kind.
    """
    if kind not in CLASSIFIERS:
        raise unknown_name("classifier", kind, CLASSIFIERS)
    return CLASSIFIERS[kind](dim, classes)
