"""The real training step beside the bare network and beside an ordinary pipeline, from one run: ``make bench``.

python benchmarks/throughput.py [ce bcl concutmix smcl smcl-masked] [--steps 30] [--blocks 5] [--quick]

A run of each method goes through ``longtail.train`` on random CIFAR-size images with the counts of CIFAR-100-LT. After
every step of it the bare network does forward and backward over as many images, on the same threads: eager, channels
last and compiled are timed first and the fastest is kept. Every few steps a second copy of the method trains from PIL
images, torchvision's transforms and a DataLoader. All take turns, so that whatever else the machine does falls on all;
medians are printed and saved to runs/bench/throughput.json, with what each number means under "definitions".
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
import yaml
from torch import nn

from breakdown import PARTS, Stopwatch
from longtail.config import Config
from longtail.data import class_counts
from longtail.data.loader import Loader
from longtail.data.open import open_data
from longtail.data.prepare import Prepared
from longtail.models import build_backbone
from longtail.recipes import load_config
from longtail.rng import generator, numpy_generator
from longtail.training.feeding import build_views, find_peaks
from longtail.training.listeners import Silent
from longtail.training.loop import train
from longtail.training.state import build_method
from ordinary import OrdinaryRun
from startup import first_steps, seconds_of_help

METHODS: dict[str, dict[str, Any]] = {
    "ce": {},
    "bcl": {},
    "concutmix": {},
    "smcl": {"mask_probability": 0.0},
    "smcl-masked": {"mask_probability": 1.0, "mask_start": 0},
}
"""The rows, each a method with settings: smcl forwards two images for one of the batch, three where it is masked."""

OUT = Path("runs/bench/throughput.json")

EPOCH_STEPS, EPOCH_TEST_IMAGES = 43, 10_000
"""An epoch of CIFAR-100-LT, imbalance 100, in batches of 256, and the images it is evaluated on."""

STEPS_OF_A_BLOCK = 3

DEFINITIONS = {
    "images_per_s": "images that a step forwards, over the median seconds of the step in longtail.train, all included",
    "bare_images_per_s": "as many images over the median seconds of forward and backward of the backbone alone, in the "
    "fastest of eager, channels-last and compiled",
    "ratio": "seconds of the step over seconds of the bare network",
    "augment_share": "seconds of making the batch over seconds of the step",
    "breakdown_s": {**PARTS, "note": "medians of seconds in a step, part by part"},
    "evaluation_images_per_s": "images in the evaluation at the end of the run, over its seconds",
    "evaluation_share": f"of an epoch of CIFAR-100-LT: {EPOCH_TEST_IMAGES} images evaluated after {EPOCH_STEPS} steps",
    "pil_step_s": "median seconds of the same update (method, compiled network, optimizer) fed by PIL images, the same "
    "views by torchvision's transforms on one image at a time, and a DataLoader, waiting included; by worker processes",
    "pil_pipeline_ratio": "the least of pil_step_s over the median seconds of the step in longtail.train: same images "
    "and partners in the same order, steps without a partner make none; salient peaks are handed over ready",
    "first_step_s": "from the start of Python to the end of the first step, data and compilation (cached) included",
    "peak_memory_mib": "peak resident memory of that process after a few steps",
    "help_s": "median seconds of longtail --help",
}


def bare_variants(backbone: str, images: torch.Tensor, *, compiles: bool) -> dict[str, Callable[[], None]]:
    """Forward and backward of the network alone, in each way PyTorch offers on a CPU."""

    def step(network: Callable[[torch.Tensor], torch.Tensor], given: torch.Tensor, owner: nn.Module) -> None:
        owner.zero_grad(set_to_none=True)
        network(given).sum().backward()

    eager = build_backbone(backbone).train()
    last = copy.deepcopy(eager).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images_last = images.contiguous(memory_format=torch.channels_last)
    variants = {
        "eager": lambda: step(eager, images, eager),
        "channels-last": lambda: step(last, images_last, last),
    }
    if compiles:
        compiled = torch.compile(last, dynamic=False)
        variants["compiled"] = lambda: step(compiled, images_last, last)
    return variants


def seconds(action: Callable[[], None]) -> float:
    """Wall time of one call."""
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


class Interleaver(Silent):
    """Times the loop's steps, and between them the bare network and, ``blocks`` times, the ordinary pipeline."""

    def __init__(
        self,
        bare: Callable[[], None],
        ordinary: list[OrdinaryRun],
        watch: Stopwatch,
        *,
        skip: int,
        steps: int,
        blocks: int,
    ) -> None:
        self.bare, self.ordinary, self.watch, self.skip = bare, ordinary, watch, skip
        self.every = max(1, (steps - skip) // max(1, blocks))
        self.steps: list[float] = []
        self.bares: list[float] = []
        self.others: dict[int, list[float]] = {one.workers: [] for one in ordinary}
        self.left_at = 0.0

    def started(self, config: Config, data: Prepared, steps: int, first_step: int) -> None:
        self.left_at = time.perf_counter()

    def stepped(self, step: int, logs: Mapping[str, float], images_per_second: float) -> None:
        took = time.perf_counter() - self.left_at
        self.watch.lap(took)
        if step > self.skip:
            self.steps.append(took)
            self.bares.append(seconds(self.bare))
            if (step - self.skip) % self.every == 0:
                for one in self.ordinary:
                    self.others[one.workers].append(one.seconds(STEPS_OF_A_BLOCK))
            self.watch.now.clear()  # the ordinary pipeline goes through the same functions
        self.left_at = time.perf_counter()


def write_images(path: Path, images: int) -> None:
    """Random images with the counts of CIFAR-100-LT, scaled to about ``images`` (drawn once, keyed)."""
    counts = [max(1, round(count * images / 10847)) for count in class_counts(500, 100, 100)]
    labels = np.repeat(np.arange(100), counts)
    draw = numpy_generator("bench")
    pixels = draw.integers(0, 256, (len(labels), 32, 32, 3), dtype=np.uint8)
    tests = draw.integers(0, 256, (1024, 32, 32, 3), dtype=np.uint8)
    np.savez(
        path, train_images=pixels, train_labels=labels, test_images=tests, test_labels=np.arange(1024) % 100,
        class_names=np.array([str(number) for number in range(100)]),
    )  # fmt: skip


def fastest_bare(backbone: str, images: int, *, compiles: bool) -> tuple[str, Callable[[], None], dict[str, float]]:
    """The fastest way to run the bare network on so many images: its name, itself, and the seconds of all."""
    given = torch.randn(images, 3, 32, 32, generator=generator("bench", "images"))
    variants = bare_variants(backbone, given, compiles=compiles)
    timed = {}
    for name, action in variants.items():
        action()  # compilation and caches
        timed[name] = round(statistics.median(seconds(action) for _ in range(3)), 4)
    best = min(timed, key=lambda name: timed[name])
    return best, variants[best], timed


def bench(method: str, steps: int, blocks: int, folder: Path, *, quick: bool = False) -> dict[str, Any]:
    """One method: its step, the bare network, the ordinary pipeline, and what the step is made of.

    ``quick`` takes smaller batches and compiles nothing; without ``blocks`` there are step and bare network alone.
    """
    batch = 32 if quick else 256
    images = folder / "images.npz"
    if not images.is_file():
        write_images(images, batch * (steps + 1))
    config = load_config(
        "npz/" + method.removesuffix("-masked"),
        {
            "method": METHODS[method],
            "data": {"path": str(images), "imbalance": None},
            "views": {"classification": "autoaugment"},
            "optim": {"epochs": 1, "batch": batch, "lr": 0.01},
            "run": {"compile": not quick, "checkpoint_minutes": 1000},
            "out": str(folder / method),
        },
    )
    data = open_data(config.data)
    made = build_method(config, data.stats.counts, 32)
    forwarded = made.stacks()[-1] * config.optim.batch
    best, bare, variants = fastest_bare(config.model.backbone, forwarded, compiles=not quick)
    views = build_views(config, data)
    peaks = find_peaks(config, data, made, views, None, Silent())
    loader = Loader(data.train, made.needs, views, batch, 1, 0, peaks=peaks)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    ordinary = [OrdinaryRun(config, data, loader, workers) for workers in (0, cores) if blocks]
    watch = Stopwatch()
    taking = Interleaver(bare, ordinary, watch, skip=2, steps=steps, blocks=blocks)
    with watch.attached():
        train(config, overwrite=True, listener=taking)
    real, bare_seconds = statistics.median(taking.steps[:-1]), statistics.median(taking.bares[:-1])
    parts = watch.medians(taking.skip)
    by_workers = {workers: statistics.median(took) for workers, took in taking.others.items()}
    evaluated, took = watch.evaluations[-1]
    evaluation = EPOCH_TEST_IMAGES * took / evaluated
    row = {
        "images_per_step": forwarded,
        "images_per_s": round(forwarded / real, 1),
        "bare_images_per_s": round(forwarded / bare_seconds, 1),
        "bare_variant": best,
        "bare_seconds_by_variant": variants,
        "ratio": round(real / bare_seconds, 4),
        "augment_share": round(parts["augment"] / real, 4),
        "breakdown_s": {part: round(value, 5) for part, value in parts.items()},
        "evaluation_images_per_s": round(evaluated / took, 1),
        "evaluation_share": round(evaluation / (evaluation + EPOCH_STEPS * real), 4),
        "steps_timed": len(taking.steps) - 1,
    }
    if not blocks:
        return row
    (folder / "config.yaml").write_text(yaml.safe_dump(config.plain() | {"out": str(folder / "first")}))
    return row | {
        "pil_step_s": {f"{workers} workers": round(value, 4) for workers, value in by_workers.items()},
        "pil_pipeline_ratio": round(min(by_workers.values()) / real, 4),
        "pil_blocks": blocks,
        **first_steps(folder / "config.yaml", 4),
    }


def describe(method: str, row: Mapping[str, Any]) -> str:
    """What is printed of a method."""
    parts = row["breakdown_s"]
    shares = ", ".join(f"{part} {100 * value / sum(parts.values()):.1f} %" for part, value in parts.items())
    return (
        f"{method}: step {row['images_per_s']} images/s, bare network ({row['bare_variant']}) "
        f"{row['bare_images_per_s']} images/s, step over bare {row['ratio']:.3f}; ordinary pipeline over step "
        f"{row['pil_pipeline_ratio']:.3f} ({row['steps_timed']} steps, {row['pil_blocks']} blocks, medians)\n"
        f"    {shares}; evaluation {100 * row['evaluation_share']:.1f} % of an epoch\n"
        f"    first step after {row['first_step_s']} s, peak memory {row['peak_memory_mib']} MiB"
    )


def main() -> None:
    """Print what was found of each method and save all of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="*", default=list(METHODS))
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--blocks", type=int, default=5, help="of the ordinary pipeline, among the steps")
    parser.add_argument(
        "--quick", action="store_true", help="few small steps without compilation, to see that it works"
    )
    arguments = parser.parse_args()
    unknown = set(arguments.methods) - set(METHODS)
    if unknown:
        parser.error(f"no row {', '.join(sorted(unknown))}; there are {', '.join(METHODS)}")
    if arguments.blocks < 1 or arguments.steps < 4:
        parser.error("--blocks is at least 1, --steps at least 4")
    steps, blocks = (5, 1) if arguments.quick else (arguments.steps, arguments.blocks)
    logging.getLogger("torch").setLevel(logging.ERROR)
    found: dict[str, Any] = {
        "definitions": DEFINITIONS,
        "machine": {
            "system": platform.system(),
            "processor": platform.machine(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        },
        "help_s": seconds_of_help(2 if arguments.quick else 7),
    }
    print(f"longtail --help: {found['help_s']} s", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for method in arguments.methods:
            found[method] = bench(method, steps, blocks, Path(folder), quick=arguments.quick)
            print(describe(method, found[method]), flush=True)
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps(found, indent=1) + "\n")
    print(f"saved {OUT}")


if __name__ == "__main__":
    main()
