"""Expected step times with several processes, from message sizes and step times measured here.

``python benchmarks/scaling.py cifar100/concutmix data.path=FILE.npz --processes 1 2 4 8 --bandwidth 10 --latency 50``

The backbone's part of a step is divided by the number of processes, what stands on it is computed in each of them, and
messages are added as if nothing overlapped (DistributedDataParallel sends most gradients while others are computed, so
the truth is better). Nothing here is a measurement of several processes.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from longtail.config import Config
from longtail.data.open import open_data
from longtail.layers import parse_assignments
from longtail.methods import Batch, Method, Progress
from longtail.recipes import load_config
from longtail.rng import generator
from longtail.training.state import build_method


@dataclass(frozen=True)
class Messages:
    """Bytes of a step: ``reduced`` are summed over the processes, ``gathered`` are the parts of all put together;
    ``rounds`` is how many collectives that takes."""

    reduced: int
    gathered: int
    rounds: int


BUCKET = 25 * 2**20
"""DistributedDataParallel sends gradients in pieces of at most so many bytes."""


def messages(method: Method, batch: int, *, synced: bool = False) -> Messages:
    """What a step of ``batch`` images sends: gradients, features of all views, statistics of batch-norm, stops."""
    gradients = 4 * sum(weight.numel() for weight in method.parameters() if weight.requires_grad)
    network = method.network
    norms = [part for part in network.backbone.modules() if isinstance(part, _BatchNorm)]
    channels = sum(part.num_features for part in norms)
    features = 4 * max(method.stacks()) * batch * network.width
    buckets = -(-gradients // BUCKET)
    if synced:  # every layer sends 2 C + 1 numbers forward, 2 C backward
        return Messages(gradients + 8 * channels, features + 8 * channels, buckets + 2 + 2 * len(norms))
    return Messages(gradients + 8 * channels, features, buckets + 3)


def expected_seconds(
    processes: int, backbone: float, rest: float, sent: Messages, *, bytes_per_second: float, latency: float
) -> float:
    """backbone / N + rest + messages, for a ring of N processes.

    A ring sums S bytes in 2 (N - 1) / N S / bandwidth and puts S bytes together in (N - 1) / N S / bandwidth; each of
    its collectives waits at most 2 (N - 1) times for a message to arrive. Patarasuk and Yuan, "Bandwidth Optimal
    All-reduce Algorithms for Clusters of Workstations", 2009.
    """
    share = (processes - 1) / processes
    moved = share * (2 * sent.reduced + sent.gathered) / bytes_per_second
    return backbone / processes + rest + moved + 2 * (processes - 1) * latency * sent.rounds


def measure(method: Method, config: Config, images: int, size: int, repeats: int) -> tuple[float, float]:
    """Median seconds of forward and backward of a step of ``images``: those of the backbone, and those of the rest."""
    batch = batch_of(method, images, size)
    stack = torch.randn(max(1, method.stacks()[0]) * images, 3, size, size, generator=generator("images"))
    at = Progress(10**6, config.optim.epochs - 1, config.optim.epochs, 0)
    method.train()

    def backbone() -> None:
        method.network.features(stack).sum().backward()

    def whole() -> None:
        method(batch, at).loss.backward()

    if not any(weight.requires_grad for weight in method.network.backbone.parameters()):

        def backbone() -> None:
            method.network.features(stack)

    seconds: dict[Callable[[], None], list[float]] = {backbone: [], whole: []}
    for _ in range(repeats + 1):  # the first of each warms up
        for run, times in seconds.items():
            began = time.perf_counter()
            run()
            times.append(time.perf_counter() - began)
    part, step = (statistics.median(times[1:]) for times in seconds.values())
    return min(part, step), max(step - part, 0.0)


def batch_of(method: Method, images: int, size: int) -> Batch:
    """Random views of random classes, as many as the method wants."""
    needs, classes = method.needs, method.network.classifier.weight.shape[0]

    def made(views: int, key: str, partner: Batch | None) -> Batch:
        drawn = generator("batch", key)
        pictures = tuple(torch.randn(images, 3, size, size, generator=drawn) for _ in range(views))
        peaks = torch.randint(size, (images, 2), generator=drawn) if needs.detector is not None else None
        labels = torch.randint(classes, (images,), generator=drawn)
        return Batch(pictures, labels, torch.arange(images), partner, peaks)

    partner = made(len(needs.partner_views), "partner", None) if needs.partner else None
    return made(len(needs.views), "own", partner)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("settings", nargs="*", metavar="key=value")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--bandwidth", type=float, default=10.0, help="between two machines, in Gbit/s (10)")
    parser.add_argument("--latency", type=float, default=50.0, help="of a message, in microseconds (50)")
    parser.add_argument("--images", type=int, help="measure with so many images a step, and take it as linear")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--step", type=float, help="seconds of a whole step measured elsewhere, for one process")
    parser.add_argument("--rest", type=float, default=0.0, help="of which so many are not the backbone's")
    given = parser.parse_args()

    config = load_config(given.recipe, parse_assignments(given.settings))
    data = open_data(config.data, None, lambda message: None)
    size, batch = int(data.train.images.shape[-1]), config.optim.batch
    method: Method = build_method(config, data.stats.counts, size)
    sent = messages(method, batch, synced=config.model.bn == "sync")
    if given.step is not None:
        backbone, rest = given.step - given.rest, given.rest
    else:
        images = given.images or batch
        backbone, rest = (batch / images * seconds for seconds in measure(method, config, images, size, given.repeats))
    print(f"{config.recipe}, {config.model.backbone}, batches of {batch}, images of {size} pixels")
    print(f"one process: backbone {1000 * backbone:.1f} ms, the rest {1000 * rest:.1f} ms a step")
    print(f"summed {sent.reduced / 1e6:.2f} MB, gathered {sent.gathered / 1e6:.2f} MB, {sent.rounds} collectives")
    print("processes  images each  ms a step  times faster  share of ideal")
    speed = given.bandwidth * 1e9 / 8
    for number in given.processes:
        after = expected_seconds(number, backbone, rest, sent, bytes_per_second=speed, latency=given.latency * 1e-6)
        faster = (backbone + rest) / after
        print(f"{number:9}  {batch / number:11.1f}  {1000 * after:9.1f}  {faster:12.2f}  {faster / number:14.2f}")


if __name__ == "__main__":
    main()
