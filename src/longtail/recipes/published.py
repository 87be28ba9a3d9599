"""What papers report, from ``published.toml``: to stand beside, on their protocols."""

from __future__ import annotations

import functools
import tomllib
from dataclasses import dataclass
from importlib import resources
from typing import Any


@dataclass(frozen=True)
class Published:
    """Top-1 in percent by imbalance, a number or (low, high) where papers differ, and how it came about.

    ``epochs`` and ``reported`` (which epoch, on which images) are None where the source does not say.
    """

    method: str
    data: str
    top1: dict[int, float | tuple[float, float]]
    backbone: str = "resnet32"
    epochs: int | None = None
    reported: str | None = None
    note: str = ""

    def describe(self) -> str:
        """``cifar100 (resnet32, 200 epochs): imbalance 100 53.16, 50 57.40; best epoch on test``."""

        def shown(value: float | tuple[float, float]) -> str:
            return f"{value[0]:g} to {value[1]:g}" if isinstance(value, tuple) else f"{value:g}"

        how = self.backbone + (f", {self.epochs} epochs" if self.epochs else "")
        numbers = ", ".join(f"{imbalance} {shown(value)}" for imbalance, value in self.top1.items())
        said = "; ".join(part for part in (self.reported, self.note) if part)
        return f"{self.data} ({how}): imbalance {numbers}" + (f"; {said}" if said else "")


@functools.cache
def published() -> tuple[Published, ...]:
    """Every entry, in the order of the file."""
    text = resources.files("longtail.recipes").joinpath("published.toml").read_text(encoding="utf-8")
    return tuple(_entry(values) for values in tomllib.loads(text)["result"])


def _entry(values: dict[str, Any]) -> Published:
    top1 = {
        int(imbalance): (value[0], value[1]) if isinstance(value, list) else float(value)
        for imbalance, value in values.pop("top1").items()
    }
    return Published(top1=top1, **values)
