"""The losses with thousands of classes beside the same equations written out on whole matrices.

python benchmarks/losses.py [--repeats 5] [--quick]

Seconds are of value and gradients, ours and the reference in turn in one process, medians. Peak memory is what a
process of its own takes beyond its inputs at the first step, after a small one that loads what is loaded once (Linux).
A table is printed and saved to runs/bench/losses.json.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from longtail.losses import balanced_contrastive_loss, supervised_contrastive_loss
from longtail.mixing import rectify_labels
from longtail.rng import generator

OUT = Path("runs/bench/losses.json")
TEMPERATURE, SCALE, TOPK = 0.1, 6.4, 30

DEFINITIONS = {
    "seconds, reference_seconds": "median of value and gradients (rectification: value), the two taken in turn",
    "ratio": "reference_seconds over seconds",
    "peak_mib, reference_peak_mib": "peak of resident memory beyond the inputs in the first step of a fresh process",
    "largest_difference": "of the values, relative to the largest of the reference",
    "reference": "the equations on whole matrices (float masks, one-hot rows for the counts, exp and log); "
    "rectification: a loop over the images",
}


class Size(NamedTuple):
    """Classes, images (two views each for the contrastive losses) and width of the features."""

    classes: int
    images: int
    width: int


SIZES = (Size(100, 256, 128), Size(8142, 512, 128), Size(8142, 512, 1024))
QUICK = (Size(100, 64, 32), Size(1200, 128, 64))
WARM = Size(1000, 64, 128)

Inputs = dict[str, Tensor]


def make_inputs(size: Size) -> Inputs:
    """Random unit vectors and labels, keyed."""
    draw = generator("bench losses", *size)
    return {
        "features": F.normalize(torch.randn(size.images, 2, size.width, generator=draw), dim=2).requires_grad_(),
        "centers": F.normalize(torch.randn(size.classes, size.width, generator=draw), dim=1).requires_grad_(),
        "labels": torch.randint(size.classes, (size.images,), generator=draw),
        "soft": torch.randn(size.images, size.classes, generator=draw).mul_(4).softmax(1),
        "counts": torch.arange(size.classes, 0, -1).float(),
    }


def with_gradients(loss: Callable[[Inputs], Tensor], *wanted: str) -> Callable[[Inputs], Tensor]:
    """The loss and, behind it, the gradients by the inputs of these names as one vector."""

    def both(given: Inputs) -> Tensor:
        value = loss(given)
        gradients = torch.autograd.grad(value, [given[name] for name in wanted])
        return torch.cat([value.detach().view(1), *(g.flatten() for g in gradients)])

    return both


def balanced_reference(given: Inputs) -> Tensor:
    """Zhu et al., eq. 5-6, on matrices rows x columns."""
    rows, centers = given["features"].flatten(0, 1), given["centers"]
    labels = given["labels"].repeat_interleave(2)
    classes = len(centers)
    columns = torch.cat((rows, centers))
    column_labels = torch.cat((labels, torch.arange(classes)))
    same = (labels[:, None] == column_labels[None, :]).float()
    others = 1 - torch.eye(len(rows), len(columns))
    positives = same * others
    sizes = (F.one_hot(labels, classes).float().sum(0) + 1)[column_labels]
    similarity = rows @ columns.T / TEMPERATURE
    similarity = similarity - similarity.max(1, keepdim=True).values.detach()
    total = (similarity.exp() * others / (sizes[None, :] - positives)).sum(1, keepdim=True)
    return -((positives * (similarity - total.log())).sum(1) / positives.sum(1)).mean()


def supervised_reference(given: Inputs) -> Tensor:
    """Khosla et al., eq. 2, on matrices rows x rows."""
    rows, labels = given["features"].flatten(0, 1), given["labels"].repeat_interleave(2)
    others = 1 - torch.eye(len(rows))
    positives = (labels[:, None] == labels[None, :]).float() * others
    similarity = rows @ rows.T / TEMPERATURE
    similarity = similarity - similarity.max(1, keepdim=True).values.detach()
    total = (similarity.exp() * others).sum(1, keepdim=True)
    return -((positives * (similarity - total.log())).sum(1) / positives.sum(1)).mean()


@torch.no_grad()
def rectification_reference(given: Inputs) -> Tensor:
    """Pan et al.: the label of one image after the other."""
    features, centers, labels, counts = given["features"][:, 0], given["centers"], given["soft"], given["counts"]
    rectified = torch.empty_like(labels)
    for i, feature in enumerate(features):
        closeness = 1 / (centers - feature).norm(dim=1).clamp_min(1e-12)
        near, ids = closeness.topk(min(TOPK, len(centers)))
        semantic = torch.zeros_like(closeness)
        semantic[ids] = near / near.sum()
        gamma = (SCALE * (counts * labels[i]).sum().log() / counts.log().sum()).clamp(0, 1)
        rectified[i] = gamma * semantic + (1 - gamma) * labels[i]
    return rectified


LOSSES: dict[str, dict[str, Callable[[Inputs], Tensor]]] = {
    "balanced contrastive": {
        "ours": with_gradients(
            lambda x: balanced_contrastive_loss(x["features"], x["labels"], x["centers"], temperature=TEMPERATURE),
            "features",
            "centers",
        ),
        "reference": with_gradients(balanced_reference, "features", "centers"),
    },
    "supervised contrastive": {
        "ours": with_gradients(
            lambda x: supervised_contrastive_loss(x["features"], x["labels"], temperature=TEMPERATURE), "features"
        ),
        "reference": with_gradients(supervised_reference, "features"),
    },
    "rectification": {
        "ours": lambda x: rectify_labels(
            x["features"][:, 0], x["centers"], x["soft"], x["counts"], scale=SCALE, topk=TOPK
        ),
        "reference": rectification_reference,
    },
}


def compare(name: str, size: Size, repeats: int) -> dict[str, Any]:
    """Median seconds of both, in turn, and how far the values are apart."""
    given, both = make_inputs(size), LOSSES[name]
    values = {who: action(given) for who, action in both.items()}  # the first calls are not timed
    apart = float((values["ours"] - values["reference"]).abs().max() / values["reference"].abs().max())
    took: dict[str, list[float]] = {who: [] for who in both}
    for _ in range(repeats):
        for who, action in both.items():
            began = time.perf_counter()
            action(given)
            took[who].append(time.perf_counter() - began)
    ours, reference = (statistics.median(took[who]) for who in ("ours", "reference"))
    return {
        "seconds": round(ours, 5),
        "reference_seconds": round(reference, 5),
        "ratio": round(reference / ours, 3),
        "largest_difference": float(f"{apart:.1e}"),
    }


def resident(kind: str) -> float:
    """MiB of this process: VmRSS now, VmHWM at most since the peak was last cleared."""
    found = re.search(kind + r":\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def measure_peak(name: str, who: str, size: Size) -> float:
    """MiB beyond the inputs in the first step of this process."""
    action = LOSSES[name][who]
    action(make_inputs(WARM))
    given = make_inputs(size)
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    action(given)
    return round(resident("VmHWM") - before, 1)


def peak_in_a_process(name: str, who: str, size: Size) -> float | None:
    """:func:`measure_peak` in a process of its own; None where the system does not tell."""
    if not Path("/proc/self/clear_refs").is_file():
        return None
    words = [sys.executable, __file__, "--peak", name, who, *map(str, size)]
    said = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    return float(said.split()[-1])


def main() -> None:
    """Print the table and save it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it works")
    parser.add_argument("--peak", nargs=5, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak:
        name, who, *numbers = arguments.peak
        print(measure_peak(name, who, Size(*map(int, numbers))))
        return
    rows = []
    print("| loss | classes | images | width | seconds | reference | ratio | peak MiB | reference |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name in LOSSES:
        for size in QUICK if arguments.quick else SIZES:
            row = {"loss": name, **size._asdict(), **compare(name, size, arguments.repeats)}
            row |= {"peak_mib": peak_in_a_process(name, "ours", size)}
            row |= {"reference_peak_mib": peak_in_a_process(name, "reference", size)}
            rows.append(row)
            shown = ("seconds", "reference_seconds", "ratio", "peak_mib", "reference_peak_mib")
            print("|", " | ".join(str(x) for x in (name, *size, *(row[key] for key in shown))), "|", flush=True)
    machine = {"cores": os.cpu_count(), "threads": torch.get_num_threads(), "torch": torch.__version__}
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps({"definitions": DEFINITIONS, "machine": machine, "rows": rows}, indent=1) + "\n")
    print(f"saved {OUT}")


if __name__ == "__main__":
    main()
