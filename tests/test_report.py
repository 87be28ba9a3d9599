"""The report: its pictures and pages, from run folders made here."""

from __future__ import annotations

import csv
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from longtail.data import class_counts
from longtail.metrics import compute_metrics, group_labels, per_class_accuracy
from longtail.rng import numpy_generator


def fake_run(
    path: Path,
    *,
    counts: Sequence[int] | None = None,
    names: Sequence[str] | None = None,
    epochs: int = 20,
    seed: int = 1,
    method: str = "concutmix",
    skill: float = 0.0,
    tested: int = 40,
    untested: Sequence[int] = (),
    selected_on: str = "test",
) -> Path:
    """A finished run folder as the contract describes it: accuracy falls with the training images, with noise."""
    counts = list(counts) if counts is not None else class_counts(500, 100, 100)
    classes = len(counts)
    names = list(names) if names is not None else [f"class {k}" for k in range(classes)]
    rng = numpy_generator(seed, "fake-run", method)
    targets = np.repeat([k for k in range(classes) if k not in untested], tested)
    chance = np.clip(0.05 + 0.13 * np.log(counts) + skill + rng.normal(0, 0.08, classes), 0.02, 0.97)
    wrong = rng.choice(classes, size=targets.size, p=np.array(counts) / sum(counts))
    predicted = np.where(rng.uniform(size=targets.size) < chance[targets], targets, wrong)
    confidence = rng.uniform(0.4, 1.0, size=targets.size)
    table = np.full((targets.size, classes), 0.0)
    table += ((1 - confidence) / classes)[:, None]
    table[np.arange(targets.size), predicted] = confidence
    last = {"epoch": epochs - 1, **compute_metrics(table, targets, counts).as_dict()}
    groups = group_labels(counts)

    (path / "checkpoints").mkdir(parents=True)
    command = ["longtail", "train", f"cifar100/{method}", "data.path=my images.npz", f"seed={seed}"]
    run = {
        "schema": 1, "status": "finished", "command": shlex.join(command), "seed": seed,
        "versions": {"python": "3.11.2", "torch": "2.15.0", "longtail": "0.1.0"}, "threads": 2,
        "data": {"name": "cifar100", "fingerprint": "0f" * 16, "class_names": names, "notes": []},
        "class_counts": counts, "groups": [100, 20], "normalization": {"mean": [0.5] * 3, "std": [0.2] * 3},
        "schedule": {
            "optim": {"warmup_epochs": 1, "milestones": [16, 18]}, "method": {"rectify_start": 0.5, "alpha": 2.0}
        },
        "timings": {"train_seconds": 61.5 * epochs},
    }  # fmt: skip
    (path / "run.json").write_text(json.dumps(run))
    config = {"seed": seed, "data": {"name": "cifar100"}, "method": {"name": method}, "optim": {"epochs": epochs}}
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in _history(last, epochs, method)))
    results: dict[str, Any] = {
        "schema": 1, "version": "0.1.0", "numbers_version": 1, "config_key": "ab12", "dataset": "cifar100",
        "method": method, "model": "resnet32", "seed": seed, "subset_seed": 0, "epochs": epochs, "imbalance": 100,
        "class_counts": counts, "test_counts": [0 if k in untested else tested for k in range(classes)],
        "image_passes": sum(counts) * epochs * (3 if method == "concutmix" else 1), "parameters": 466_000,
        "train_seconds": 61.5 * epochs, "evaluated_on": selected_on, "last": last,
        "best": {**last, "epoch": max(0, epochs - 2), "top1": last["top1"] + 0.004, "selected_on": selected_on},
    }  # fmt: skip
    (path / "results.json").write_text(json.dumps(results))
    recalls = per_class_accuracy(predicted, targets, classes)
    _write_csv(
        path / "per_class.csv",
        ("class", "train_count", "group", "test_count", "accuracy"),
        [
            (names[k], counts[k], groups[k], results["test_counts"][k], "" if np.isnan(recalls[k]) else recalls[k])
            for k in range(classes)
        ],
    )
    _write_csv(
        path / "predictions.csv",
        ("index", "id", "target", "predicted", "probability", "correct"),
        [(i, f"test/{i}", t, p, c, int(t == p)) for i, (t, p, c) in enumerate(zip(targets, predicted, confidence))],
    )
    return path


def _history(last: dict[str, Any], epochs: int, method: str) -> list[dict[str, Any]]:
    rows = []
    for epoch in range(epochs):
        part = (epoch + 1) / epochs
        row: dict[str, Any] = {"step": 43 * (epoch + 1), "epoch": epoch, "lr": 0.1}
        classification = 4.6 - 2.4 * part**0.5
        row |= {"loss": classification, "classification": classification}
        if method == "concutmix":
            row |= {"contrastive": 6 - part, "gamma": 0.4, "loss": 2 * classification + 0.6 * (6 - part)}
        row |= {k: None if last[k] is None else last[k] * part**0.4 for k in ("top1", "many", "medium", "few")}
        rows.append(row | {"img_per_s": 410.0})
    return rows


def _write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])
