"""The class prior that probabilities are for: named, counted or given class by class, and moved to another."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from longtail.data.reading.tables import is_number
from longtail.errors import ConfigError, unknown_name
from longtail.losses import logit_adjustment
from longtail.methods.base import Answers

Prior = Any
"""``"training"``, ``"uniform"``, shares by class name, or one share a class, (C,)."""


def class_prior(asked: Prior, class_names: Sequence[str], class_counts: Sequence[int]) -> Tensor:
    """The prior ``asked`` for as shares (C,) float64 that sum to 1.

    ``"training"`` is N_k / sum N of the training images, ``"uniform"`` 1 / C. A mapping gives shares of some classes by
    name, and the others have equal parts of what is left of 1; one of all classes, and a vector (C,), is divided by its
    sum, so that counts will do. Raises ConfigError for anything else, negative or not finite shares, or none above 0.
    """
    classes = len(class_counts)
    if isinstance(asked, str) and asked == "training":
        return _shares(class_counts, classes)
    if isinstance(asked, str) and asked == "uniform":
        return _shares([1] * classes, classes)
    if isinstance(asked, str):
        raise unknown_name("prior", asked, ("training", "uniform"))
    return _shares(_filled(asked, class_names) if isinstance(asked, Mapping) else asked, classes)


def _filled(given: Mapping[str, Any], class_names: Sequence[str]) -> list[float]:
    for name in given:
        if name not in class_names:
            raise unknown_name("class in the prior", str(name), class_names)
    left = [name for name in class_names if name not in given]
    try:
        known = {name: float(share) for name, share in given.items()}
    except (TypeError, ValueError):
        raise ConfigError("Shares of classes in a prior are numbers.", hint="Example: cat=0.3,dog=0.1") from None
    total = sum(known.values())
    if left and not 0 <= total <= 1:
        raise ConfigError(
            f"The shares of {len(known)} of {len(class_names)} classes sum to {total:g}, but there is 1 to share.",
            hint="Give shares between 0 and 1, or a number for every class.",
        )
    rest = (1 - total) / len(left) if left else 0.0
    return [known.get(name, rest) for name in class_names]


def _shares(given: Any, classes: int) -> Tensor:
    try:
        shares = torch.as_tensor(given, dtype=torch.float64).cpu()
    except (TypeError, ValueError, RuntimeError):
        raise ConfigError(
            "A prior is 'training', 'uniform', shares by class name, or a number for every class.",
        ) from None
    if shares.shape != (classes,):
        raise ConfigError(f"The prior has shape {tuple(shares.shape)}, but there are {classes} classes.")
    if not bool(((shares >= 0) & shares.isfinite()).all()) or float(shares.sum()) == 0:
        raise ConfigError("A prior is numbers of at least 0, one of them above it.")
    return shares / shares.sum()


def move_prior(logits: Tensor, own: Answers, wanted: Tensor, class_counts: Sequence[int]) -> Tensor:
    """Probabilities (N, C) float32 for the prior ``wanted`` (C,), of logits (N, C) whose softmax is for ``own``.

    p_k proportional to softmax(logits)_k wanted_k / own_k, in float64 and logarithms. A class without training images
    counts as one image in ``own``, as in training. Saerens et al., "Adjusting the Outputs of a Classifier to New a
    Priori Probabilities", Neural Computation 2002.
    """
    log_own = logit_adjustment(class_counts, 1.0).double() if own == "training" else torch.zeros(len(class_counts))
    moved = torch.log_softmax(logits.double().cpu(), dim=1) + wanted.double().log() - log_own
    return torch.softmax(moved, dim=1).float()


def parse_prior(text: str) -> Prior:
    """A prior from the command line: ``training``, ``uniform``, ``cat=0.3,dog=0.1``, or a .json or .csv file.

    The JSON is an object of shares by class name, or a list; the CSV has a class and its share (or count) in the first
    two columns of each line, with or without a header. Raises ConfigError for what is none of these.
    """
    if text.endswith((".json", ".csv")):
        return _from_file(Path(text))
    if "=" in text:
        pairs = [part.rpartition("=") for part in text.split(",")]
        return {name.strip(): _number(share, text) for name, _, share in pairs}
    return text


def _from_file(path: Path) -> Prior:
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix == ".json":
            found = json.loads(text)
        else:
            rows = [row for row in csv.reader(text.splitlines()) if row]
            if rows and not is_number(rows[0][1]):
                rows = rows[1:]
            found = {row[0]: _number(row[1], str(path)) for row in rows}
    except OSError as error:
        raise ConfigError(f"The prior {path} cannot be read: {error.strerror}.") from None
    except (ValueError, IndexError, csv.Error) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"The prior {path} cannot be read: {error}") from None
    if not isinstance(found, dict | list) or not found:
        raise ConfigError(f"The prior {path} holds no shares.", hint="A line for each class: name,share")
    return found


def _number(text: str, where: str) -> float:
    if not is_number(text):
        raise ConfigError(f"'{text}' in the prior {where} is no number.", hint="Example: cat=0.3,dog=0.1")
    return float(text)
