"""A step in bfloat16 beside one in float32: ``python benchmarks/precision.py [METHOD ...] [--steps N] [--threads N]``.

Both are the same update (forward, losses, backward, optimizer) of the same method on the same noise of CIFAR's size,
compiled where a compiler is found. They take turns, medians are taken, and the ratio is printed and saved to
runs/bench/precision.json with the processor's instructions for bfloat16: without them bfloat16 is slower.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import torch

from guards import PIXELS, made
from longtail.data.batch import Progress
from longtail.processes.device import worth_compiling
from longtail.training.optim import build_optimizer
from longtail.training.starting import use_bfloat16
from longtail.training.updating import update

OUT = Path("runs/bench/precision.json")


def instructions() -> list[str]:
    """What the processor has for bfloat16, as far as the system says."""
    known = Path("/proc/cpuinfo")
    words = set(known.read_text().split()) if known.is_file() else set()
    return sorted(words & {"avx512_bf16", "amx_bf16", "bf16"})


def measure(name: str, batch: int, backbone: str, steps: int) -> dict[str, float]:
    """Median seconds of a step in each precision, and how many times as fast bfloat16 is."""
    cpu, timed = torch.device("cpu"), {"float32": [0.0], "bfloat16": [0.0]}
    parts = {}
    for precision in timed:
        config, method, images = made(name, batch, backbone)
        if precision == "bfloat16":
            use_bfloat16(method, cpu)
        if worth_compiling(cpu):
            method.compile_for(batch, PIXELS)
        parts[precision] = (config, method.train(), build_optimizer(method, config.optim, method.rates), images)
    for step in range(steps + 1):
        for precision, (config, method, optimizer, images) in parts.items():
            began = time.perf_counter()
            update(method, optimizer, images, Progress(step, 0, config.optim.epochs, 0), 1e-3, config.optim)
            timed[precision].append(time.perf_counter() - began)
    medians = {precision: statistics.median(seconds[2:]) for precision, seconds in timed.items()}  # the first compiles
    return {**medians, "times_as_fast": medians["float32"] / medians["bfloat16"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="*", default=["ce", "concutmix"])
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--backbone", default="resnet32")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    found = {name: measure(name, given.batch, given.backbone, given.steps) for name in given.methods}
    for name, row in found.items():
        print(
            f"{name}: a step takes {row['float32']:.3f} s in float32, {row['bfloat16']:.3f} s in bfloat16: "
            f"{row['times_as_fast']:.2f} times as fast"
        )
    OUT.parent.mkdir(parents=True, exist_ok=True)
    has = {"processor_has": instructions(), "threads": given.threads, "batch": given.batch, "backbone": given.backbone}
    OUT.write_text(json.dumps({**has, "steps": found}, indent=1) + "\n")
    print(OUT)


if __name__ == "__main__":
    main()
