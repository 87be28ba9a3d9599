"""What a run says of itself: run.json before the first step, results.json after the last."""

from __future__ import annotations

import platform
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

import longtail
from longtail.config import NUMBERS_VERSION, Config
from longtail.data.prepare import Prepared
from longtail.evaluation.evaluate import Evaluation, write_per_class, write_predictions
from longtail.files import write_json
from longtail.methods import Method
from longtail.processes.device import processor
from longtail.processes.distributed import world_size
from longtail.runs.rundir import SCHEMA
from longtail.training.state import RunState


def describe_run(
    config: Config, data: Prepared, method: Method, threads: int, compiled: bool, command: list[str] | None
) -> dict[str, Any]:
    """The part of run.json that is known before the first step."""
    resolved: dict[str, Any] = {"optim": config.optim.resolved()}
    if times := config.views.resolved(config.optim.epochs):
        resolved["views"] = times
    own = getattr(method, "settings", None)
    if own is not None:
        resolved["method"] = own.model_dump(mode="json")
    return {
        "command": shlex.join(command or ["longtail", "train", f"{config.out}/config.yaml"]),
        **describe_settings(config),
        "threads": threads,
        "processes": world_size(),
        "compiled": compiled,
        "data": {
            "name": data.name,
            "fingerprint": data.fingerprint,
            "class_names": list(data.class_names),
            "notes": list(data.notes),
        },
        "class_counts": list(data.stats.counts),
        "groups": list(config.data.groups),
        "normalization": {"mean": list(data.mean), "std": list(data.std)},
        "schedule": resolved,
        "image_size": int(data.train.images.shape[-1]),
    }


def describe_settings(config: Config) -> dict[str, Any]:
    """The part of run.json that neither data nor network has a say in."""
    return {
        "recipe": config.recipe,
        "config_key": config.key(),
        "seed": config.seed,
        "versions": {
            "longtail": longtail.__version__,
            "numbers": NUMBERS_VERSION,
            "python": platform.python_version(),
            "torch": torch.__version__,
        },
        "platform": f"{platform.system()} {platform.machine()}",
        "processor": processor(),
    }


def differing(described: Iterable[Mapping[str, Any]]) -> list[str]:
    """What the seconds of runs depend on beside their settings, where their run.json differ in it: ``threads 1, 2``.

    What an older run.json does not say is not known, and no difference.
    """
    found: dict[str, set[str]] = {name: set() for name in ("processor", "processes", "threads", "compiled", "torch")}
    for about in described:
        of_run = {**about, "torch": about.get("versions", {}).get("torch")}
        for name, values in found.items():
            if of_run.get(name) is not None:
                values.add(str(of_run[name]))
    return [f"{name} {' / '.join(sorted(values))}" for name, values in found.items() if len(values) > 1]


def summarize(
    config: Config,
    data: Prepared,
    method: Method,
    state: RunState,
    evaluation: Evaluation,
    best_numbers: Mapping[str, Any],
    key: str,
) -> dict[str, Any]:
    """The content of results.json; ``key`` is the configuration's when the run began."""
    return {
        "schema": SCHEMA,
        "version": longtail.__version__,
        "numbers_version": NUMBERS_VERSION,
        "config_key": key,
        "dataset": config.data.name,
        "method": config.method_name,
        "model": config.model.backbone,
        "seed": config.seed,
        "subset_seed": config.data.subset_seed,
        "epochs": state.epochs_done,
        "imbalance": config.data.imbalance,
        "class_counts": list(data.stats.counts),
        "test_counts": data.evaluation.counts(len(data.class_names)),
        "image_passes": state.image_passes,
        "full_size_passes": round(state.image_passes - state.saved_passes),
        "parameters": sum(parameter.numel() for parameter in method.parameters()),
        "train_seconds": round(state.seconds, 1),
        "skipped_steps": state.skipped,
        "rate_scale": state.rate_scale,
        "evaluated_on": data.evaluated_on,
        "last": {"epoch": state.epochs_done - 1, **evaluation.numbers()},
        "best": {
            "epoch": state.best_epoch,
            **best_numbers,
            "selected_on": data.selected_on,
        },
    }


def write_results(
    folder: Path, results: dict[str, Any], evaluation: Evaluation, data: Prepared, groups: tuple[int, int]
) -> None:
    """The tables of a run that is over, and results.json last: with it the run counts as finished."""
    write_per_class(folder / "per_class.csv", evaluation, data, groups)
    write_predictions(folder / "predictions.csv", evaluation, data.evaluation)
    write_json(folder / "results.json", results)
