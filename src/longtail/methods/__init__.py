"""All methods by name. A named method is a class with its settings' defaults; nothing registers itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from longtail.methods.base import Batch, DataNeeds, Method, Progress, StepOutput
from longtail.methods.concutmix import ConCutMix, ConCutMixSettings
from longtail.methods.plain import Plain, PlainSettings
from longtail.models.network import ModelSettings
from longtail.settings import Settings

__all__ = ["METHODS", "Batch", "DataNeeds", "Method", "MethodEntry", "Progress", "StepOutput"]


class _Build(Protocol):
    def __call__(
        self, settings: Any, model: ModelSettings, counts: Sequence[int], *, size: int, seed: int
    ) -> Method: ...


@dataclass(frozen=True)
class MethodEntry:
    """A row of ``METHODS``: what builds it, its settings and the point in them that carries the name."""

    build: _Build
    settings: type[Settings]
    summary: str
    paper: str
    defaults: Mapping[str, Any] = field(default_factory=dict)


METHODS: dict[str, MethodEntry] = {
    "ce": MethodEntry(
        Plain,
        PlainSettings,
        "cross-entropy on the images as they come",
        "the baseline of every paper",
        {"criterion": "ce"},
    ),
    "balanced-softmax": MethodEntry(
        Plain,
        PlainSettings,
        "cross-entropy with the log class prior added to the logits",
        "Ren et al., NeurIPS 2020, arXiv 2007.10740",
        {"criterion": "balanced-softmax"},
    ),
    "logit-adjustment": MethodEntry(
        Plain,
        PlainSettings,
        "cross-entropy with tau times the log class prior added to the logits",
        "Menon et al., ICLR 2021, arXiv 2007.07314",
        {"criterion": "logit-adjustment"},
    ),
    "bcl": MethodEntry(
        Plain,
        PlainSettings,
        "logit-adjusted cross-entropy and balanced contrastive learning with class centers",
        "Zhu et al., CVPR 2022, arXiv 2207.09052",
        {"criterion": "logit-adjustment", "contrast": "balanced", "alpha": 2.0, "beta": 0.6},
    ),
    "concutmix": MethodEntry(
        ConCutMix,
        ConCutMixSettings,
        "bcl with class-balanced CutMix whose labels are rectified by similarity to the class centers",
        "Pan et al., IEEE TIP 2024, arXiv 2407.04911",
    ),
}
