"""Train image classifiers when a few classes have most of the data and most classes have almost none."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from longtail.api import Run as Run
    from longtail.api import train as train
    from longtail.estimator import LongTailClassifier as LongTailClassifier
    from longtail.prediction.predict import Model as Model
    from longtail.prediction.predict import load as load

_PUBLIC = {
    "LongTailClassifier": "longtail.estimator",
    "Model": "longtail.prediction.predict",
    "Run": "longtail.api",
    "load": "longtail.prediction.predict",
    "train": "longtail.api",
}

__all__ = ["LongTailClassifier", "Model", "Run", "__version__", "load", "train"]


def __getattr__(name: str) -> Any:
    """Import the public names when they are first used: ``import longtail`` alone needs no PyTorch."""
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'longtail' has no attribute '{name}'")
