"""The smallest run that is still a run: 21 images of 8 x 8 pixels in 4 classes, 2 epochs of 3 steps."""

from __future__ import annotations

import json
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models import VisionTransformer

from longtail.config import METHOD_SETTINGS, Config
from longtail.errors import StoppedError
from longtail.layers import merge
from longtail.recipes import load_config
from longtail.rng import numpy_generator
from longtail.runs.rundir import Checkpoint, RunDir
from longtail.training.listeners import Silent
from longtail.training.loop import train

COUNTS = (9, 6, 4, 2)
SIZE = 8
STEPS = 6
"""Of a whole run: batches of 8, 8 and 5 images, twice."""


def write_npz(
    path: Path,
    counts: tuple[int, ...] = COUNTS,
    *,
    test: int = 3,
    val: int = 0,
    shape: tuple[int, ...] = (SIZE, SIZE, 3),
    seed: int = 0,
    **more: Any,
) -> Path:
    """An archive of noise whose mean color tells the class; ``test`` and ``val`` images of each class."""
    arrays: dict[str, Any] = {}
    for split, amounts in (("train", counts), ("test", (test,) * len(counts)), ("val", (val,) * len(counts))):
        if sum(amounts):
            labels = np.repeat(np.arange(len(counts)), amounts)
            noise = numpy_generator(seed, "tiny", split).integers(0, 200, (len(labels), *shape))
            tint = (labels * 50 // len(counts)).reshape(-1, *[1] * len(shape))
            arrays |= {f"{split}_images": (noise + tint).astype(np.uint8), f"{split}_labels": labels}
    np.savez(path, **(arrays | more))
    return path


def settings_of(method: str, /, **own: Any) -> dict[str, Any]:
    """Nested values for a tiny run of ``method``; heads are as small as the rest where the method has any."""
    small = {"hidden": 16, "dim": 8} if "hidden" in METHOD_SETTINGS[method].model_fields else {}
    return merge(
        {
            "data": {"groups": [8, 3]},
            "model": {"backbone": "resnet8"},
            "method": small,
            "optim": {"epochs": 2, "batch": 8, "lr": 0.05},
            "run": {"compile": False, "threads": 1},
        },
        own,
    )


def tiny_config(method: str, archive: Path, folder: Path, /, **own: Any) -> Config:
    """The config of a tiny run over ``npz/METHOD``."""
    values = merge(settings_of(method), {"data": {"path": str(archive)}, "out": str(folder)}, own)
    return load_config(f"npz/{method}", values)


def tiny_transformer(size: int) -> nn.Module:
    """A vision transformer of two blocks of width 16 with two heads, for patches of 4 pixels."""
    backbone = VisionTransformer(size, 4, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=24)
    backbone.feature_dim = 16
    backbone.heads = nn.Identity()
    return backbone


def assignments(values: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Nested values as the words of a command line."""
    words: list[str] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            words += assignments(value, f"{prefix}{name}.")
        else:
            words.append(f"{prefix}{name}={json.dumps(value)}")
    return words


class KilledError(BaseException):
    """Stands for kill -9: nothing below catches it, so nothing is tidied up."""


class At(Silent):
    """A listener that does something after step ``step``: raises a signal, or dies."""

    def __init__(self, step: int, number: int | None = signal.SIGTERM) -> None:
        self.step, self.number = step, number

    def stepped(self, step: int, logs: Mapping[str, float], images_per_second: float) -> None:
        if step == self.step:
            if self.number is None:
                raise KilledError
            signal.raise_signal(self.number)


class Recorder(Silent):
    """A listener that keeps what it was told."""

    def __init__(self) -> None:
        self.first_step = -1
        self.steps: list[int] = []
        self.logs: list[dict[str, float]] = []
        self.rows: list[Mapping[str, Any]] = []
        self.messages: list[str] = []
        self.results: Mapping[str, Any] | None = None

    def started(self, config: Any, data: Any, steps: int, first_step: int) -> None:
        self.first_step = first_step

    def stepped(self, step: int, logs: Mapping[str, float], images_per_second: float) -> None:
        self.steps.append(step)
        self.logs.append(dict(logs))

    def evaluated(self, row: Mapping[str, Any]) -> None:
        self.rows.append(row)

    def said(self, message: str) -> None:
        self.messages.append(message)

    def finished(self, results: Mapping[str, Any]) -> None:
        self.results = results


def outcome(out: Path) -> dict[str, Any]:
    """All that two equal runs must share, bit for bit: everything in the folder but times and the folder's name."""
    run = RunDir(out)
    last, best = run.load_checkpoint(), run.load_best()
    assert last is not None
    results = json.loads((out / "results.json").read_text())
    results.pop("train_seconds")
    rows = run.read_metrics()
    for row in rows:
        row.pop("img_per_s")
    described = run.description()
    for name in ("command", "resumed_with", "timings"):
        described.pop(name, None)
    return {
        "last": digest(last),
        "best": digest(best),
        "state": {name: value for name, value in last.state.items() if name != "seconds"},
        "results": results,
        "metrics": rows,
        "described": described,
        "per_class": (out / "per_class.csv").read_text(),
        "predictions": (out / "predictions.csv").read_text(),
    }


def ends_as_unbroken(
    method: str, own: dict[str, Any], archive: Path, folder: Path, stops: tuple[int, ...]
) -> dict[str, Any]:
    """Assert that a run which is stopped after these steps ends bit for bit as the unbroken one; its results."""
    results = train(tiny_config(method, archive, folder / "whole", **own))
    config = tiny_config(method, archive, folder / "run", **own)
    for stop in stops:
        with pytest.raises(StoppedError):
            train(config, resume=True, listener=At(stop))
    train(config, resume=True)
    assert outcome(folder / "run") == outcome(folder / "whole")
    return results


def digest(checkpoint: Checkpoint) -> dict[str, bytes | int]:
    """Step and every tensor as bytes: momentum, weights, batch-norm buffers."""
    tensors: dict[str, bytes | int] = {
        name: value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        for name, value in checkpoint.tensors.items()
    }
    return {"step": checkpoint.step} | tensors


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file below ``folder`` by its name, with its bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def read_test_images(folder: Path) -> Any:
    """The test images that a run was evaluated on, uint8 (N, H, W, 3)."""
    path = RunDir(folder).read_config()["data"]["path"]
    with np.load(path) as archive:
        return archive["test_images"]
