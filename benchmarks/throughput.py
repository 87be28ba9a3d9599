"""The real training step beside the bare network, from one run: ``make bench``.

A run of each method goes through ``longtail.train`` on random CIFAR-size images with the counts of CIFAR-100-LT. After
every step of it the bare network does forward and backward over as many images, on the same threads: eager, channels
last and compiled are timed first and the fastest is kept. Step and bare network alternate, so that whatever else the
machine does falls on both; medians are printed and saved to runs/bench/throughput.json.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from longtail.config import Config
from longtail.data import class_counts
from longtail.data.loader import Loader
from longtail.data.open import open_data
from longtail.data.prepare import Prepared
from longtail.listeners import Silent
from longtail.models import build_backbone
from longtail.recipes import load_config
from longtail.rng import generator, numpy_generator
from longtail.starting import build_views, find_peaks
from longtail.state import build_method
from longtail.training import train

METHODS: dict[str, dict[str, Any]] = {
    "ce": {},
    "bcl": {},
    "concutmix": {},
    "smcl": {"mask_probability": 0.0},
    "smcl-masked": {"mask_probability": 1.0, "mask_start": 0},
}
"""The rows, each a method with settings: smcl forwards two images for one of the batch, three where it is masked."""

OUT = Path("runs/bench/throughput.json")


def bare_variants(backbone: str, images: torch.Tensor) -> dict[str, Callable[[], None]]:
    """Forward and backward of the network alone, in each way PyTorch offers on a CPU."""

    def step(network: Callable[[torch.Tensor], torch.Tensor], given: torch.Tensor, owner: nn.Module) -> None:
        owner.zero_grad(set_to_none=True)
        network(given).sum().backward()

    eager = build_backbone(backbone).train()
    last = copy.deepcopy(eager).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images_last = images.contiguous(memory_format=torch.channels_last)
    compiled = torch.compile(last, dynamic=False)
    return {
        "eager": lambda: step(eager, images, eager),
        "channels-last": lambda: step(last, images_last, last),
        "compiled": lambda: step(compiled, images_last, last),
    }


def seconds(action: Callable[[], None]) -> float:
    """Wall time of one call."""
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


class Interleaver(Silent):
    """Times the loop's steps, and the bare network between them."""

    def __init__(self, bare: Callable[[], None], skip: int) -> None:
        self.bare, self.skip = bare, skip
        self.steps: list[float] = []
        self.bares: list[float] = []
        self.left_at = 0.0

    def started(self, config: Config, data: Prepared, steps: int, first_step: int) -> None:
        self.left_at = time.perf_counter()

    def stepped(self, step: int, logs: Mapping[str, float], images_per_second: float) -> None:
        took = time.perf_counter() - self.left_at
        if step > self.skip:
            self.steps.append(took)
            self.bares.append(seconds(self.bare))
        self.left_at = time.perf_counter()


def write_images(path: Path, images: int) -> None:
    """Random images with the counts of CIFAR-100-LT, scaled to about ``images`` (drawn once, keyed)."""
    counts = [max(1, round(count * images / 10847)) for count in class_counts(500, 100, 100)]
    labels = np.repeat(np.arange(100), counts)
    draw = numpy_generator("bench")
    pixels = draw.integers(0, 256, (len(labels), 32, 32, 3), dtype=np.uint8)
    np.savez(
        path, train_images=pixels, train_labels=labels, test_images=pixels[:100], test_labels=np.arange(100),
        class_names=np.array([str(number) for number in range(100)]),
    )  # fmt: skip


def bench(method: str, steps: int, folder: Path) -> dict[str, Any]:
    """One method: median seconds of its step and of the bare network over as many images, and the shares between."""
    images = folder / "images.npz"
    if not images.is_file():
        write_images(images, 256 * (steps + 1))
    config = load_config(
        "npz/" + method.removesuffix("-masked"),
        {
            "method": METHODS[method],
            "data": {"path": str(images), "imbalance": None},
            "views": {"classification": "autoaugment"},
            "optim": {"epochs": 1, "batch": 256, "lr": 0.01},
            "run": {"compile": True, "checkpoint_minutes": 1000},
            "out": str(folder / method),
        },
    )
    data = open_data(config.data)
    made = build_method(config, data.stats.counts, 32)
    forwarded = made.stacks()[-1] * config.optim.batch
    given = torch.randn(forwarded, 3, 32, 32, generator=generator("bench", "images"))
    variants = bare_variants(config.model.backbone, given)
    timed = {}
    for name, action in variants.items():
        action()  # compilation and caches
        timed[name] = statistics.median(seconds(action) for _ in range(3))
    best = min(timed, key=lambda name: timed[name])

    views = build_views(config, data)
    peaks = find_peaks(config, data, made, views, None, Silent())
    loader = Loader(data.train, made.needs, views, 256, 1, 0, peaks=peaks)
    making = statistics.median(
        seconds(lambda step=step: loader.batch(step, with_partner=made.needs_partner(loader.progress(step))))  # type: ignore[misc]
        for step in range(min(10, loader.steps_per_epoch - 1))
    )
    watch = Interleaver(variants[best], skip=2)
    train(config, overwrite=True, listener=watch)
    real, bare = statistics.median(watch.steps[:-1]), statistics.median(watch.bares[:-1])
    return {
        "images_per_step": forwarded,
        "images_per_s": round(forwarded / real, 1),
        "bare_images_per_s": round(forwarded / bare, 1),
        "bare_variant": best,
        "bare_seconds_by_variant": {name: round(value, 4) for name, value in timed.items()},
        "ratio": round(real / bare, 4),
        "augment_share": round(making / real, 4),
        "steps_timed": len(watch.steps) - 1,
    }


def main() -> None:
    """Print a line a method and save all of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("methods", nargs="*", default=METHODS)
    parser.add_argument("--steps", type=int, default=30)
    arguments = parser.parse_args()
    logging.getLogger("torch").setLevel(logging.ERROR)
    found: dict[str, Any] = {
        "machine": {
            "system": platform.system(),
            "processor": platform.machine(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        }
    }
    with tempfile.TemporaryDirectory() as folder:
        for method in arguments.methods:
            found[method] = bench(method, arguments.steps, Path(folder))
            row = found[method]
            print(
                f"{method}: step {row['images_per_s']} images/s, bare network ({row['bare_variant']}) "
                f"{row['bare_images_per_s']} images/s, step over bare {row['ratio']:.3f}, making the batch "
                f"{100 * row['augment_share']:.1f} % of the step ({row['steps_timed']} steps, medians)",
                flush=True,
            )
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps(found, indent=1) + "\n")
    print(f"saved {OUT}")


if __name__ == "__main__":
    main()
