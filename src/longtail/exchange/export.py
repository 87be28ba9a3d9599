"""A trained network for other programs: ONNX, an exported program of PyTorch, or a folder of plain weights."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import hashlib
import importlib
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as serialize_tensors
from torch import Tensor, nn

import longtail
from longtail.errors import ConfigError, ResourceError, RunError, unknown_name
from longtail.exchange.card import model_card
from longtail.files import disk_error, write_atomic
from longtail.losses import logit_adjustment
from longtail.methods import Method
from longtail.models.adapters import merge_adapters
from longtail.prediction.predict import Model, training_only
from longtail.rng import generator
from longtail.runs.exported import ABOUT, CARD, EXPORT_SCHEMA, WEIGHTS, portable_command, without_paths

CHECKED = 256
"""Images on which what was exported has to agree with the network."""
TOLERANCE = 1e-4
_PART = 60
"""Of them at a time, so that the last part is of another size: the number of images must be free."""

ENDINGS = {"onnx": ".onnx", "exported-program": ".pt2", "safetensors": ""}
"""Formats, and how the names of their files end; safetensors makes a folder."""

Run = Callable[[Tensor], tuple[Tensor, Tensor]]


class Answering(nn.Module):
    """uint8 images (B, 3, S, S) of the training size to logits and probabilities (B, C), as the run answers.

    Normalization is inside, and so is what ``test.*`` says: flip, tau, tau_norm, temperature.
    """

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.method, self.scoring = without_training_parts(model.method), model.scoring
        self.register_buffer("mean", torch.tensor(model.view.mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(model.view.std).view(3, 1, 1))
        self.register_buffer("log_prior", logit_adjustment(model.class_counts, 1.0))
        self.mean: Tensor
        self.std: Tensor
        self.log_prior: Tensor

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, 3, S, S) uint8 to logits and probabilities."""
        normalized = (images.float() / 255 - self.mean) / self.std
        logits = self.scoring.logits(self.method, normalized, self.log_prior)
        return logits, torch.softmax(logits, dim=1)


def without_training_parts(method: Method) -> Method:
    """A copy without what serves training alone: heads, key encoder, queue, gradients; adapters are in the weights."""
    copied = copy.deepcopy(method).requires_grad_(False)
    for name, module in list(copied.named_modules()):
        for inner in [*module._modules, *module._buffers]:
            if training_only(f"{name}.{inner}".removeprefix(".")):
                setattr(module, inner, None)
    merge_adapters(copied)
    return copied


def export(model: Model, form: str, out: Path | None = None) -> tuple[Path, str]:
    """Write ``model`` in a format of ``ENDINGS``; returns the path and what was checked.

    ``out`` is by default ``RUN/export/model-WHICH`` with the format's ending; what is there is replaced. An exported
    graph is accepted when on CHECKED images its logits (as shares of the largest) and probabilities are within
    TOLERANCE of the network's and every argmax is equal. Raises ConfigError for another format and where the packages
    of the extra ``onnx`` are not there, RunError where the graph cannot be made or does not agree.
    """
    if form not in ENDINGS:
        raise unknown_name("format", form, ENDINGS)
    path = out or model.folder / "export" / f"model-{model.which}{ENDINGS[form]}"
    if form == "safetensors":
        return path, write_folder(model, path)
    if path.is_dir():
        raise ConfigError(f"--out {path} is a folder; {form} is one file.")
    if form == "exported-program" and path.suffix != ".pt2":
        raise ConfigError(f"--out {path}: an exported program is a .pt2 file.")
    answering = Answering(model).eval()
    _make_folder(path.parent)
    # PyTorch's savers look at the ending.
    temporary = path.with_name(f".tmp-{path.name}")
    try:
        with _quiet():
            program = _program(answering, model.size)
            write = _write_onnx if form == "onnx" else _write_program
            run = write(program, temporary, described(model))
            difference = check_agreement(answering, run, model.size)
        temporary.replace(path)
    except OSError as error:
        raise disk_error(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)
    return path, f"checked on {CHECKED} images: largest difference {difference:.1e}, every argmax equal"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' warnings about themselves: what they made is checked, which says more."""
    levels = {name: logging.getLogger(name).level for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for name in levels:
                logging.getLogger(name).setLevel(logging.ERROR)
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)


def _program(answering: Answering, size: int) -> torch.export.ExportedProgram:
    images = torch.zeros(2, 3, size, size, dtype=torch.uint8)
    try:
        with torch.no_grad():
            return torch.export.export(answering, (images,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    except Exception as error:  # whatever a tracer raises
        raise RunError(f"This network cannot be exported: {_first_line(error)}") from error


def _write_program(program: torch.export.ExportedProgram, path: Path, about: Mapping[str, Any]) -> Run:
    torch.export.save(program, path, extra_files={"longtail.json": json.dumps(about)})
    loaded: Run = torch.export.load(path).module()
    return loaded


def _write_onnx(program: torch.export.ExportedProgram, path: Path, about: Mapping[str, Any]) -> Run:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ConfigError(
                f"--format onnx needs the package {name}, which cannot be imported: {error}",
                hint="Install the extra: pip install 'longtail[onnx]'. The other formats do without.",
            ) from None
    try:
        graph = torch.onnx.export(
            program, dynamo=True, input_names=["images"], output_names=["logits", "probabilities"], verbose=False
        )
        assert graph is not None, "the exporter that takes a program returns a graph"
        for name, value in about.items():
            graph.model.metadata_props[name] = value if isinstance(value, str) else json.dumps(value)
        graph.save(path, external_data=False)
    except OSError:
        raise
    except Exception as error:  # whatever an exporter raises
        raise RunError(f"This network cannot be written as ONNX: {_first_line(error)}") from error
    session = importlib.import_module("onnxruntime").InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> tuple[Tensor, Tensor]:
        logits, probabilities = session.run(["logits", "probabilities"], {"images": images.numpy()})
        return torch.from_numpy(logits), torch.from_numpy(probabilities)

    return run


def check_agreement(answering: Answering, run: Run, size: int) -> float:
    """The largest difference in logits and probabilities between the network and ``run`` on CHECKED images.

    A difference of logits is taken as a share of the largest logit of the batch where that is above 1: float32 has so
    many digits and no more. The images are patches of color with noise, drawn under a key of their own. Raises RunError
    where a difference is above TOLERANCE or not a number, or an argmax differs.
    """
    largest, moved = 0.0, 0
    with torch.no_grad():
        for images in torch.split(check_images(size), _PART):
            for ours, theirs in zip(answering(images), run(images), strict=True):
                # max() would pass over a NaN that a number stands before.
                apart = (ours - theirs).abs() / ours.abs().max().clamp_min(1)
                largest = max(largest, float(apart.nan_to_num(float("inf")).max()))
                moved += int((ours.argmax(dim=1) != theirs.argmax(dim=1)).sum())
    if largest > TOLERANCE or moved:
        raise RunError(
            f"What was exported does not agree with the network on {CHECKED} images: the largest difference is "
            f"{largest:.1e} ({TOLERANCE:g} is allowed), and {moved} argmaxes differ. It was not kept.",
            hint="Try another format.",
        )
    return largest


def check_images(size: int) -> Tensor:
    """Images (CHECKED, 3, size, size) uint8 that differ in color, in coarse patches and in noise."""
    draw = generator(0, "export check")
    coarse = torch.rand(CHECKED, 3, 4, 4, generator=draw)
    patches = nn.functional.interpolate(coarse, size=(size, size), mode="bilinear", align_corners=False)
    noise = 0.2 * (torch.rand(CHECKED, 3, size, size, generator=draw) - 0.5)
    return ((patches + noise).clamp(0, 1) * 255).round().to(torch.uint8)


# The folder -----------------------------------------------------------------------------------------------------------


def described(model: Model) -> dict[str, Any]:
    """What a program that has only the export has to know: what goes in, what comes out, and for which classes."""
    return {
        "longtail": longtail.__version__,
        "weights": model.which,
        "recipe": model.config.recipe,
        "input": f"uint8 (batch, 3, {model.size}, {model.size}), RGB, 0..255, not normalized",
        "class_names": model.class_names,
        "class_counts": model.class_counts,
        "answers_for": model.answers_for,
    }


def write_folder(model: Model, path: Path) -> str:
    """``model.safetensors`` (what answering needs), ``config.json``, ``README.md``; returns what was written.

    Adapters are added to the weights that they move, and the config has none: the names are those of the backbone.
    Raises ConfigError for a place where something else is.
    """
    if path.exists() and (not path.is_dir() or {part.name for part in path.iterdir()} - {WEIGHTS, ABOUT, CARD}):
        raise ConfigError(f"--out {path} exists and holds something else, so it is left alone.")
    tensors = {
        name: value.detach().cpu().contiguous()
        for name, value in without_training_parts(model.method).state_dict().items()
    }
    content = serialize_tensors(tensors, metadata={"format": "pt"})
    config = without_paths(model.config.plain())
    config["model"] |= {"adapter_rank": None, "adapter_alpha": None}
    config["test"] = dataclasses.asdict(model.scoring)
    numbers = model.recorded
    known = model.described
    about = {
        "format": "longtail",
        "schema": EXPORT_SCHEMA,
        **described(model),
        "sha256": hashlib.sha256(content).hexdigest(),
        "command": portable_command(known.get("command", "")),
        "config": config,
        "image_size": model.size,
        "normalization": {"mean": list(model.view.mean), "std": list(model.view.std)},
        "groups": list(model.config.data.groups),
        "results": None if numbers is None else {k: v for k, v in numbers.items() if k != "evaluated_on"},
        "evaluated_on": None if numbers is None else numbers["evaluated_on"],
        # What has to be the same for the same numbers: images, versions, threads.
        "fingerprint": known["data"].get("fingerprint"),
        "versions": known.get("versions", {}),
        "threads": known.get("threads"),
    }
    _make_folder(path)
    write_atomic(path / WEIGHTS, content)
    write_atomic(path / ABOUT, (json.dumps(about, indent=1, ensure_ascii=False) + "\n").encode())
    write_atomic(path / CARD, model_card(about, model.config).encode())
    size = sum(value.numel() for value in tensors.values())
    return f"{len(tensors)} tensors, {size:,} numbers, with config.json and a model card"


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResourceError(f"The folder {path} cannot be made: {error.strerror}.") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
