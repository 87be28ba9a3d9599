"""Memory and time of a training step by what of the backbone learns: benchmarks/large_backbones.py [BACKBONE SIZE].

Memory is the peak of the resident set above what it was before the first step, in a process of its own for each row.
Time is the fastest of ROUNDS steps, all rows taking turns in one process: on a shared machine only ratios mean much.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from longtail.models.network import ModelSettings, Network
from longtail.models.recomputing import recompute_blocks
from longtail.rng import generator

ADAPTED = {"freeze": "backbone", "adapter_rank": 8}
ROWS: dict[str, dict[str, Any]] = {
    "everything": {},
    "everything, with run.checkpointing": {"checkpointing": True},
    "the last two blocks (freeze=all-but-2)": {"freeze": "all-but-2"},
    "the classifier (freeze=backbone)": {"freeze": "backbone"},
    "adapters of rank 8": ADAPTED,
    "adapters of rank 8, with run.checkpointing": {**ADAPTED, "checkpointing": True},
}
ROUNDS, BATCH, CLASSES = 6, 64, 100


def prepared(row: str, backbone: str, size: int) -> tuple[int, Callable[[], None]]:
    """The number of parameters that learn in a row, and what takes a step."""
    own = dict(ROWS[row])
    recomputing = own.pop("checkpointing", False)
    network = Network(ModelSettings(backbone=backbone, **own), CLASSES, seed=0, size=size)
    if recomputing:
        recompute_blocks(network)
    learning = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(learning, lr=1e-3, momentum=0.9)
    images = torch.randn(BATCH, 3, size, size, generator=generator(0, "images"))

    def step() -> None:
        optimizer.zero_grad()
        network.logits(images).logsumexp(dim=1).mean().backward()
        optimizer.step()

    return sum(parameter.numel() for parameter in learning), step


def resident() -> float:
    """The peak of the resident set so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main(backbone: str = "vit-small-patch4", size: str = "32") -> None:
    """Measure every row and print them as a table, memory and time as multiples of the first row's."""
    memory = {}
    for row in ROWS:
        words = [sys.executable, __file__, "--memory", row, backbone, size]
        memory[row] = float(subprocess.run(words, check=True, capture_output=True, text=True).stdout)
    rows = {row: prepared(row, backbone, int(size)) for row in ROWS}
    seconds = dict.fromkeys(ROWS, float("inf"))
    for _ in range(ROUNDS):
        for row, (_, step) in rows.items():
            began = time.perf_counter()
            step()
            seconds[row] = min(seconds[row], time.perf_counter() - began)
    print(f"{backbone}, {size} pixels, {BATCH} images a step, {CLASSES} classes, {torch.get_num_threads()} threads")
    print("| what learns | parameters that learn | memory | time |\n|---|---|---|---|")
    first = next(iter(ROWS))
    for row, (parameters, _) in rows.items():
        print(f"| {row} | {parameters:,} | {memory[row] / memory[first]:.2f} | {seconds[row] / seconds[first]:.2f} |")
    print(f"1.00 is {memory[first]:.0f} MiB and {seconds[first]:.2f} s.")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--memory"]:
        _, take_step = prepared(sys.argv[2], sys.argv[3], int(sys.argv[4]))
        before = resident()
        for _ in range(3):
            take_step()
        print(resident() - before)
    else:
        main(*sys.argv[1:3])
