"""Strength of logit adjustment and the flipped image, tried on training images that the long tail left unused.

python benchmarks/unused_images.py RUN ... --path cifar100.npz [--a-class 100] [--mean]

A long-tailed subset of CIFAR leaves tens of thousands of images that no run of it has seen: a val set five times as
large as a run would spare. Of each class up to ``--a-class`` of them are scored with each RUN (a run folder, or what
export made), and every row moves the logits by ``shift`` times the log of the training frequencies: what training with
a ``method.tau`` smaller by so much would have moved them. The largest classes have few unused images or none; accuracy
is the mean over the classes that have some. ``--mean`` scores, in place of the runs, the mean of their weights: of runs
from the same initial weights, with batch-norm's statistics made anew from the latest batches of the first. Test images
are not read.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import longtail
from longtail.data.longtail import ClassStats, class_counts, subsample
from longtail.data.open import open_data
from longtail.evaluation.metrics import per_class_accuracy
from longtail.evaluation.scoring import Scoring
from longtail.prediction.predict import Model
from longtail.training.averaging import Mean, renew_statistics
from longtail.training.feeding import build_loader, build_views

SHIFTS = (-0.6, -0.5, -0.4, -0.3, -0.2, -0.1, 0.0, 0.1, 0.2, 0.3, 0.4)


def unused_images(path: Path, imbalance: float, subset_seed: int, a_class: int) -> tuple[Any, Any, ClassStats]:
    """(images, labels, training images of each class): up to ``a_class`` images that the subset did not take."""
    with np.load(path) as stored:
        images, labels = stored["train_images"], stored["train_labels"].reshape(-1).astype(np.int64)
    counts = class_counts(int(np.bincount(labels).max()), int(labels.max()) + 1, imbalance)
    left = subsample(labels, counts, subset_seed)[1].numpy()
    picked = np.concatenate([left[labels[left] == k][:a_class] for k in range(len(counts))])
    return images[picked], labels[picked], ClassStats(counts)


def accuracy(logits: Any, labels: Any, stats: ClassStats, groups: tuple[int, int]) -> list[float]:
    """Mean over the classes that have images, then over the many, medium and few of them, in percent."""
    of_class = per_class_accuracy(logits.argmax(1), labels, len(stats))
    parts = [range(len(stats)), *stats.groups(*groups).values()]
    return [100 * float(np.nanmean(of_class[list(part)])) for part in parts]


def mean_of(runs: Sequence[str], path: Path) -> Model:
    """The first run with the mean of the tensors that all of them have."""
    model, *others = map(longtail.load, runs)
    method, config = model.method.train(), model.config
    mean = Mean(method, 0)
    for number, other in enumerate(others, 2):
        for name, value in other.method.state_dict().items():
            if name in mean.tensors and value.is_floating_point():
                mean.tensors[name].lerp_(value, 1 / number)
    data = open_data(config.data.model_copy(update={"path": str(path)}))
    loader = build_loader(config, data.train, method, build_views(config, data))
    steps = config.optim.epochs * loader.steps_per_epoch
    renew_statistics(method, mean, loader, steps, config.optim)
    method.load_state_dict(mean.tensors)
    method.eval()
    return model


def main() -> None:
    """Print a table for each run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--path", type=Path, required=True)
    parser.add_argument("--a-class", type=int, default=100)
    parser.add_argument("--mean", action="store_true")
    given = parser.parse_args()
    asked: dict[str, Callable[[], Model]] = {run: partial(longtail.load, run) for run in given.runs}
    if given.mean:
        asked = {" + ".join(given.runs): partial(mean_of, given.runs, given.path)}
    for run, load in asked.items():
        model = load()
        data = model.config.data
        seed = data.subset_seed
        images, labels, stats = unused_images(given.path, data.imbalance or 1, seed, given.a_class)
        answers = []
        for flip in (False, True):
            model.scoring = Scoring(flip=flip)
            answers.append(np.log(model.predict(images) + 1e-30))
        prior = stats.log_prior().numpy()
        print(f"{run}: {len(labels)} images that subset {seed} left unused")
        print("| shift | top-1 | many | medium | few | with the flipped image | many | medium | few |")
        print("|---|---|---|---|---|---|---|---|---|")
        for shift in SHIFTS:
            found = [accuracy(logits + shift * prior, labels, stats, data.groups) for logits in answers]
            print(f"| {shift:+.1f} |", " | ".join(f"{value:.2f}" for row in found for value in row), "|")


if __name__ == "__main__":
    main()
