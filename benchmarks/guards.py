"""What the guards of a step cost: ``python benchmarks/guards.py [--batch N] [--backbone NAME] [--steps N]``.

Guards are the copies of the buffers before the forward pass and the norm of the gradients after the backward pass. They
are done again after each step and set against it, so that a busy machine slows both alike: the difference between steps
with and without them would drown in its noise. Beside them stands what a checkpoint takes, with its digest.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from longtail.config import Config
from longtail.data.batch import Batch, Progress
from longtail.data.open import open_data
from longtail.methods import Method
from longtail.recipes import load_config
from longtail.rng import generator
from longtail.runs.rundir import RunDir
from longtail.training.guarding import Guard
from longtail.training.listeners import Silent
from longtail.training.optim import build_optimizer
from longtail.training.state import RunState, build_method, snapshot
from longtail.training.updating import gradient_norm

CLASSES, PIXELS = 100, 32


def made(name: str, batch: int, backbone: str) -> tuple[Config, Method, Batch]:
    """A method for CIFAR-100's shapes and a batch of noise for it."""
    config = load_config(
        f"cifar100/{name}", {"data": {"path": "unused"}, "model": {"backbone": backbone}, "optim": {"batch": batch}}
    )
    method = build_method(config, [100] * CLASSES, PIXELS)

    def images(count: int, what: str) -> tuple[torch.Tensor, ...]:
        return tuple(
            torch.randn(batch, 3, PIXELS, PIXELS, generator=generator(0, what, number)) for number in range(count)
        )

    labels = torch.arange(batch) % CLASSES
    partner = Batch(images(len(method.needs.partner_views), "partner"), labels, torch.arange(batch))
    given = None if not method.needs.partner else partner
    peaks = None if method.needs.detector is None else torch.full((batch, 2), PIXELS // 2)
    return config, method, Batch(images(len(method.needs.views), "own"), labels, torch.arange(batch), given, peaks)


def archive(folder: Path) -> Path:
    """Data for the report that a run would end with: none of them is trained on here."""
    images, labels = np.zeros((4, 8, 8, 3), np.uint8), np.arange(4) % 2
    np.savez(folder / "few.npz", train_images=images, train_labels=labels, test_images=images, test_labels=labels)
    return folder / "few.npz"


def measure(name: str, batch: int, backbone: str, steps: int) -> tuple[float, float, float]:
    """The median seconds of a step, of its guards, and of one checkpoint."""
    config, method, images = made(name, batch, backbone)
    optimizer = build_optimizer(method, config.optim, method.rates)
    with tempfile.TemporaryDirectory() as folder:
        run = RunDir(f"{folder}/run")
        run.create()
        data = open_data(load_config("npz/ce", {"data": {"path": str(archive(Path(folder)))}}).data)
        guard = Guard(run, config, data, method, optimizer, None, RunState(), 1000, Silent())
        taken, guards = [], []
        for step in range(1, steps + 2):
            at = Progress(step, 0, config.optim.epochs, 0)
            began = time.perf_counter()
            guard.update(images, at, 1e-3)
            after = time.perf_counter()
            for _ in range(5):  # the gradients are still there
                guard.keep_buffers()
                float(gradient_norm(method))
            taken.append(after - began)
            guards.append((time.perf_counter() - after) / 5)
        saving = []
        for _ in range(5):
            began = time.perf_counter()
            run.save_checkpoint(snapshot(1, method, optimizer, RunState()))
            saving.append(time.perf_counter() - began)
    return statistics.median(taken[1:]), statistics.median(guards[1:]), statistics.median(saving)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--backbone", default="resnet32")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("methods", nargs="*", default=["ce", "concutmix", "paco"])
    given = parser.parse_args()
    for name in given.methods:
        step, guards, saving = measure(name, given.batch, given.backbone, given.steps)
        print(
            f"{name}, {given.backbone}, batch {given.batch}: a step takes {1000 * step:.0f} ms, its guards "
            f"{1000 * guards:.2f} ms or {100 * guards / step:.2f} %; a checkpoint {1000 * saving:.0f} ms"
        )


if __name__ == "__main__":
    main()
