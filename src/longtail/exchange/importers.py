"""``longtail import``: the checkpoints that the public ConCutMix and BCL programs write, as run folders of ours.

Nothing in a foreign file is ever run: PyTorch's loader is told to take tensors and plain values alone, and refuses the
rest.
"""

from __future__ import annotations

import hashlib
import pickle
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from longtail.config import Config
from longtail.data.longtail import class_counts
from longtail.data.open import open_data
from longtail.data.prepare import Prepared
from longtail.data.settings import WITHOUT_PATH
from longtail.data.sources.cifar import MEAN, STD
from longtail.data.views import build_view
from longtail.errors import ConfigError, RunError
from longtail.evaluation.evaluate import Evaluation, evaluate, write_per_class, write_predictions
from longtail.files import write_json
from longtail.layers import merge
from longtail.methods import Method
from longtail.models.heads import CosineClassifier
from longtail.processes.device import resolve_device
from longtail.recipes import load_config
from longtail.report.page import write_report
from longtail.runs.interrupts import locked
from longtail.runs.rundir import Checkpoint, RunDir
from longtail.training.description import describe_run, describe_settings, summarize
from longtail.training.listeners import Silent
from longtail.training.starting import default_out, pin_threads, refuse_choice_without_val
from longtail.training.state import RunState, build_method, model_tensors

NAMES = {
    "encoder.": "network.backbone.",
    "head.": "network.projection.",
    "head_fc.": "network.center_head.",
    "fc.": "network.classifier.",
}
"""How names in public checkpoints begin, without ``module.``, and how ours do."""

UNUSED = ("encoder.linear.",)
"""Beginnings of what a public CIFAR network has and never uses: the classifier of the backbone that it was built on."""

_CIFAR = {"cifar10": (10, 5000), "cifar100": (100, 500)}
"""Classes and training images a class, with which a checkpoint can be described without the images."""


@dataclass(frozen=True)
class Imported:
    """The run folder, what is to be said of it, and its evaluation where the images were at hand."""

    run: RunDir
    notes: list[str]
    data: Prepared | None
    evaluation: Evaluation | None


def import_checkpoint(
    file: Path, recipe: str, settings: Mapping[str, Any] | None = None, out: str | None = None
) -> Imported:
    """Make a run folder of a foreign checkpoint, for the data and the method that ``recipe`` and ``settings`` name.

    With ``data.path`` the network is evaluated, and the folder is that of a finished run with a report. CIFAR needs no
    images: class counts follow from the profile, and ``eval`` is told where they are. Raises ConfigError for settings
    and an existing ``out``, DataError for the images, RunError for a file that cannot be read or does not fit, each
    before anything is written.
    """
    values = dict(settings or {}) | ({} if out is None else {"out": out})
    config = load_config(recipe, values)
    run = RunDir(config.out or f"{default_out(config)}-imported")
    run.refuse_unless_new()
    if config.init is not None:
        raise ConfigError("init and a file to import exclude each other: both are the weights.")
    tensors, epoch = read_checkpoint(file)
    notes = []
    if epoch is not None and "epochs" not in values.get("optim", {}):
        config = load_config(recipe, merge(values, {"optim": {"epochs": epoch}}))
    elif epoch is None:
        notes.append(f"the file does not say how many epochs it had; optim.epochs={config.optim.epochs} counts")
    config = config.model_copy(update={"out": str(run.path)})
    threads = pin_threads(config, {}, Silent())
    device = resolve_device(config.run.device)
    has_images = config.data.path is not None or config.data.name in WITHOUT_PATH
    data = open_data(config.data) if has_images else None
    about = _without_images(config) if data is None else {}
    counts = list(data.stats.counts) if data is not None else about["class_counts"]
    size = int(data.train.images.shape[-1]) if data is not None else about["image_size"]
    method = build_method(config, counts, size)
    notes += fill(method, tensors, file)
    config.test.check(method)
    evaluation = None
    if data is not None:
        refuse_choice_without_val(config, data, training=False)
        about = describe_run(config, data, method, threads, False, None)
        method.to(device)
        view = build_view("plain", size, data.mean, data.std)
        evaluation = evaluate(method, data.evaluation.to(device), data, view, config.data.groups, config.test)
    about |= {
        "command": f"longtail import {file} --recipe {recipe}",
        "imported": {"file": str(file), "sha256": hashlib.sha256(file.read_bytes()).hexdigest(), "epoch": epoch},
        "threads": threads,
    }
    _write(run, config, method, about, data, evaluation)
    return Imported(run, notes, data, evaluation)


def read_checkpoint(file: Path) -> tuple[dict[str, Tensor], int | None]:
    """The tensors by name in a checkpoint and the epochs it says it had; RunError where there are none to be read.

    A file is a dict with ``state_dict``, a dict of tensors, or safetensors.
    """
    try:
        if file.suffix == ".safetensors":
            return load_file(file), None
        with warnings.catch_warnings():  # of old formats; what cannot be read is an error
            warnings.simplefilter("ignore")
            content = torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise RunError(f"{file} cannot be read: {error.strerror or error}.") from None
    except pickle.UnpicklingError as error:
        reason = str(error).strip().splitlines()[0][:200]
        raise RunError(
            f"{file} holds more than tensors and plain values, or is no checkpoint, and is not read: {reason}",
            hint="Save the tensors alone: torch.save({'state_dict': model.state_dict()}, FILE).",
        ) from None
    except (SafetensorError, RuntimeError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        reason = "it is no file of PyTorch's" if isinstance(error, KeyError) else reason  # str(error) is a byte of it
        raise RunError(
            f"{file} cannot be read as a checkpoint: {reason}",
            hint="Give the .pth or .pth.tar file that the public program wrote, or a .safetensors file.",
        ) from None
    epoch = content.get("epoch") if isinstance(content, dict) else None
    found = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(found, dict) or not found or not all(isinstance(value, Tensor) for value in found.values()):
        raise RunError(f"{file} holds no weights: neither a 'state_dict' nor tensors by name.")
    return {str(name): value for name, value in found.items()}, epoch if type(epoch) is int and epoch > 0 else None


def translate(name: str) -> str | None:
    """Our name of a tensor in a public checkpoint; None for what is never used, the same for a name not known."""
    name = name.removeprefix("module.")
    if name.startswith(UNUSED):
        return None
    beginning = next((known for known in NAMES if name.startswith(known)), None)
    return name if beginning is None else NAMES[beginning] + name.removeprefix(beginning)


def fill(method: Method, tensors: Mapping[str, Tensor], file: Path) -> list[str]:
    """Give ``method`` the weights of a foreign file; returns what is to be said of them.

    A public cosine classifier is stored (width, C) and is turned. Raises RunError that names what is missing, left over
    or of another shape, and for weights that are not finite.
    """
    own = method.state_dict()
    given: dict[str, Tensor] = {}
    unused, wrong = [], []
    for name, value in tensors.items():
        ours = translate(name)
        if ours is None:
            unused.append(name)
            continue
        turned = isinstance(method.network.classifier, CosineClassifier) and name.removeprefix("module.") == "fc.weight"
        if turned and value.ndim == 2:
            value = value.T
        if ours in own and own[ours].shape != value.shape:
            wrong.append(f"{name} {tuple(value.shape)}, not {tuple(own[ours].shape)}")
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise RunError(f"The weights '{name}' in {file} are not finite.")
        given[ours] = value
    beside = [name for name in tensors if (ours := translate(name)) is not None and ours not in own]
    missing = [name for name in own if name not in given]
    if wrong or beside or missing:
        said = [
            f"{what}: {', '.join(names[:8])}{f' and {len(names) - 8} more' if len(names) > 8 else ''}"
            for what, names in (("missing", missing), ("left over", beside), ("of another shape", wrong))
            if names
        ]
        raise RunError(
            f"{file} does not fit this recipe.\n" + "\n".join(said),
            hint="Choose the method (concutmix, bcl) and set model.backbone, model.classifier, method.hidden and "
            "method.dim to those of the file, and data.* to its classes.",
        )
    method.load_state_dict(given)
    return [f"left out, because nothing uses them: {', '.join(unused)}"] if unused else []


def _without_images(config: Config) -> dict[str, Any]:
    """The part of run.json that describes CIFAR without its images; ConfigError for any other data."""
    if config.data.name not in _CIFAR or config.data.val or config.data.size or config.test.chooses:
        raise ConfigError(
            f"'{config.data.name}' with these settings can only be described from its images.",
            hint="Say where they are: data.path=FILE_OR_FOLDER",
        )
    classes, most = _CIFAR[config.data.name]
    imbalance = config.data.imbalance
    counts = [most] * classes if imbalance is None else class_counts(most, classes, imbalance, config.data.profile)
    return describe_settings(config) | {
        "data": {
            "name": config.data.name,
            "fingerprint": None,
            "class_names": [str(k) for k in range(classes)],
            "notes": ["imported without its images: counts are those of the profile, and classes have numbers"],
        },
        "class_counts": counts,
        "groups": list(config.data.groups),
        "normalization": {"mean": list(MEAN), "std": list(STD)},
        "image_size": 32,
    }


def _write(
    run: RunDir,
    config: Config,
    method: Method,
    about: dict[str, Any],
    data: Prepared | None,
    evaluation: Evaluation | None,
) -> None:
    epochs = config.optim.epochs
    tensors = model_tensors(method)
    run.create()
    with locked(run):
        run.write_config(config.plain())
        run.update_description(**about, status="imported")
        run.save_checkpoint(Checkpoint(0, {f"model/{name}": value for name, value in tensors.items()}, {}))
        run.save_best(Checkpoint(0, tensors, {"epoch": epochs - 1}))
        if data is None or evaluation is None:
            return
        numbers = evaluation.numbers()
        groups = config.data.groups
        shown = ("top1", "balanced_accuracy", "many", "medium", "few")
        row = {name: numbers[name] for name in shown} | {"evaluated_on": data.evaluated_on}
        run.append_metrics({"step": 0, "epoch": epochs - 1, **row})
        state = RunState(epochs_done=epochs, best_epoch=epochs - 1)
        results = summarize(config, data, method, state, evaluation, numbers, about["config_key"])
        # Nothing was trained here, and the file does not say what it took.
        results |= {"image_passes": None, "full_size_passes": None, "train_seconds": None}
        write_per_class(run.path / "per_class.csv", evaluation, data, groups)
        write_predictions(run.path / "predictions.csv", evaluation, data.evaluation)
        write_json(run.path / "results.json", results)
        run.update_description(status="finished")
    write_report(run.path)
