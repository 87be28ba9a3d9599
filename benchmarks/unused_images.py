"""Strength of logit adjustment and the flipped image, tried on training images that the long tail left unused.

python benchmarks/unused_images.py RUN ... --path cifar100.npz [--a-class 100] [--imbalance 100]

A long-tailed subset of CIFAR leaves tens of thousands of images that no run of it has seen: a val set five times as
large as a run would spare. Of each class up to ``--a-class`` of them are scored with each RUN (a run folder, or what
export made), and every row moves the logits by ``shift`` times the log of the training frequencies: what training with
a ``method.tau`` smaller by so much would have moved them. The largest classes have few unused images or none; accuracy
is the mean over the classes that have some. A run whose own ``test.flip`` is on has the flipped image in both halves of
the table. Test images are not read.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

import longtail
from longtail.data.longtail import class_counts, subsample

SHIFTS = (-0.6, -0.5, -0.4, -0.3, -0.2, -0.1, 0.0, 0.1, 0.2, 0.3, 0.4)
MANY, FEW = 100, 20


def unused_images(path: Path, imbalance: float, subset_seed: int, a_class: int) -> tuple[Any, Any, Any]:
    """(images, labels, training images of each class): up to ``a_class`` images that the subset did not take."""
    with np.load(path) as stored:
        images, labels = stored["train_images"], stored["train_labels"].reshape(-1).astype(np.int64)
    counts = class_counts(int(np.bincount(labels).max()), int(labels.max()) + 1, imbalance)
    left = subsample(labels, counts, subset_seed)[1].numpy()
    picked = np.concatenate([left[labels[left] == k][:a_class] for k in range(len(counts))])
    return images[picked], labels[picked], np.array(counts)


def accuracy(logits: Any, labels: Any, counts: Any) -> list[float]:
    """Mean over classes, then that of the many, medium and few, in percent."""
    present = np.unique(labels)
    of_class = np.array([(logits[labels == k].argmax(1) == k).mean() for k in present])
    size = counts[present]
    groups = (size >= 0, size > MANY, (size >= FEW) & (size <= MANY), size < FEW)
    return [100 * float(of_class[group].mean()) for group in groups]


def main() -> None:
    """Print a table for each run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--path", type=Path, required=True)
    parser.add_argument("--a-class", type=int, default=100)
    parser.add_argument("--imbalance", type=float, default=100)
    given = parser.parse_args()
    for run in given.runs:
        model = longtail.load(run)
        seed = model.config.data.subset_seed
        images, labels, counts = unused_images(given.path, given.imbalance, seed, given.a_class)
        once = model.predict(images, prior="uniform")
        both = (once + model.predict(images[:, :, ::-1].copy(), prior="uniform")) / 2
        prior = np.log(counts / counts.sum())
        print(f"{run}: {len(labels)} images that subset {seed} left unused")
        print("| shift | top-1 | many | medium | few | with the flipped image | many | medium | few |")
        print("|---|---|---|---|---|---|---|---|---|")
        for shift in SHIFTS:
            found = [*(accuracy(np.log(scores + 1e-30) + shift * prior, labels, counts) for scores in (once, both))]
            print(f"| {shift:+.1f} |", " | ".join(f"{value:.2f}" for row in found for value in row), "|")


if __name__ == "__main__":
    main()
