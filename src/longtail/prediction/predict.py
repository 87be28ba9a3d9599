"""A trained network as something that takes images and gives probabilities."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from longtail.config import Config, build_config
from longtail.data.reading.decoding import BrokenImageError, opened, quiet_pillow, read_pixels
from longtail.data.reading.squares import middle_square
from longtail.data.views import build_view
from longtail.errors import ConfigError, DataError, RunError
from longtail.evaluation.priors import Prior, class_prior, move_prior
from longtail.evaluation.scoring import Scoring, score
from longtail.files import read_json
from longtail.losses import logit_adjustment
from longtail.methods import Method
from longtail.methods.base import Answers
from longtail.processes.device import resolve_device
from longtail.runs.exported import exported_config, is_exported, read_about, read_weights
from longtail.runs.rundir import RunDir
from longtail.training.state import build_method, load_model, model_part, stored_config

Images = NDArray[Any] | Tensor | Sequence[Any]

TRAINING_ONLY = ("network.projection", "network.center_head", "key_encoder", "queue")
"""Beginnings of the names of tensors that no answer depends on."""


class Model:
    """The network of a run, with the size and normalization that it was trained with."""

    def __init__(self, method: Method, config: Config, described: Mapping[str, Any], which: str, folder: Path) -> None:
        self.method, self.config, self.which, self.folder = method.eval(), config, which, folder
        self.described = dict(described)
        self.class_names: list[str] = list(described["data"]["class_names"])
        self.class_counts: list[int] = list(described["class_counts"])
        self.size, self.share = int(described["image_size"]), config.data.center_crop
        mean, std = described["normalization"]["mean"], described["normalization"]["std"]
        self.view = build_view("plain", self.size, (mean[0], mean[1], mean[2]), (std[0], std[1], std[2]))

    @functools.cached_property
    def scoring(self) -> Scoring:
        """How the run answers (``test.*``), with what it chose on val for these weights; RunError if it has not yet."""
        asked = self.config.test
        if not asked.chooses:
            return Scoring(**dict(asked))
        results = self.folder / "results.json"
        if not results.is_file():
            raise RunError(f"{self.folder} has not finished, and has not chosen {', '.join(asked.chooses)} on val yet.")
        return Scoring(**read_json(results)[self.which].get("test", {}))

    @property
    def recorded(self) -> dict[str, Any] | None:
        """The numbers of these weights as the run wrote them, and ``evaluated_on``; None where it has not finished."""
        if is_exported(self.folder):
            numbers, split = self.described.get("results"), self.described.get("evaluated_on")
        elif (self.folder / "results.json").is_file():
            results = read_json(self.folder / "results.json")
            numbers, split = results[self.which], results["evaluated_on"]
        else:
            return None
        return None if numbers is None else {**numbers, "evaluated_on": split}

    @property
    def epochs(self) -> int:
        """How many epochs the finished run trained: fewer than ``optim.epochs`` where ``optim.patience`` ended it."""
        return int(read_json(self.folder / "results.json")["epochs"])

    @property
    def answers_for(self) -> Answers:
        """The class prior that the probabilities are for where none is asked for: :meth:`Scoring.answers_for`."""
        return self.scoring.answers_for(self.method.answers_for)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled whole, with the weights that answers depend on, so that it lives without its folder."""
        needed = {name: self.described[name] for name in ("class_counts", "image_size", "normalization")}
        described = needed | {"data": {"class_names": self.class_names}}
        state = self.method.state_dict()
        tensors = {name: value.to("cpu", copy=True) for name, value in state.items() if not training_only(name)}
        return _restored, (self.config.plain(), described, tensors, self.which, str(self.folder), self.scoring)

    def predict(self, images: Images, prior: Prior | None = None) -> NDArray[np.float32]:
        """Probabilities (N, C): softmax of the logits without the training offset, as the run's ``test.*`` have it.

        They are for the prior in ``answers_for``: uniform where the method adjusts its logits or weighs its classes,
        that of the training images where it does neither. ``prior`` moves them, p_k proportional to softmax_k prior_k /
        answers_for_k: ``"training"``, ``"uniform"``, shares by class name, or an array (C,) of shares or counts.

        ``images``: uint8 (N, H, W, 3), (N, 3, H, W) or (N, H, W), floats in [0, 1] of those shapes, or a list of PIL
        images or paths. Another size is brought to that of the training images as ``data.size`` would: the short side
        by antialiased bilinear, then the center. Raises DataError for anything else, ConfigError for a prior that is
        none.
        """
        wanted = None if prior is None else class_prior(prior, self.class_names, self.class_counts)
        device = next(self.method.parameters()).device
        stacked = as_uint8(images, self.size, self.share).to(device)
        logits = score(self.method, stacked, self.view, self.scoring, logit_adjustment(self.class_counts, 1.0))
        if wanted is None:
            probabilities = torch.softmax(logits, dim=1)
        else:
            probabilities = move_prior(logits, self.answers_for, wanted, self.class_counts)
        found: NDArray[np.float32] = probabilities.numpy()
        return found


def load(run: str | Path, which: str = "last", device: str = "auto") -> Model:
    """The model of a run folder, from its last or its best checkpoint, or of a folder that was exported.

    A damaged last checkpoint is passed over with a warning. Raises RunError where there is no such run or no good
    checkpoint, ConfigError for another ``which``.
    """
    if which not in ("last", "best"):
        raise ConfigError(f"which={which!r}: there are 'last' and 'best'.")
    folder = RunDir(run)
    if is_exported(folder.path):
        return _load_exported(folder.path, which, device)
    described = folder.description()
    config = stored_config(folder)
    if which == "best":
        tensors = dict(folder.load_best().tensors)
    else:
        checkpoint = folder.load_checkpoint()
        if checkpoint is None:
            raise RunError(f"{run} has no checkpoint yet.")
        tensors = model_part(checkpoint)
    for warning in folder.warnings:
        warnings.warn(warning, stacklevel=2)
    method = build_method(config, described["class_counts"], int(described["image_size"]))
    load_model(method, tensors)
    method.to(resolve_device(device))
    return Model(method, config, described, which, folder.path)


def _restored(
    config: dict[str, Any],
    described: dict[str, Any],
    tensors: dict[str, Tensor],
    which: str,
    folder: str,
    scored: Scoring,
) -> Model:
    """A model out of a pickle, on the device that ``auto`` takes where it is unpickled."""
    built = build_config(config)
    method = build_method(built, described["class_counts"], int(described["image_size"]))
    method.load_state_dict(tensors, strict=False)
    model = Model(method.to(resolve_device("auto")), built, described, which, Path(folder))
    model.scoring = scored
    return model


def training_only(name: str) -> bool:
    """Whether a tensor of this name serves training alone, so that an export leaves it out."""
    return name.startswith(TRAINING_ONLY)


def _load_exported(folder: Path, which: str, device: str) -> Model:
    about = read_about(folder)
    if which == "best" != about["weights"]:
        raise RunError(f"{folder} holds the {about['weights']} weights alone.")
    config, tensors = exported_config(folder, about), read_weights(folder, about)
    try:
        method = build_method(config, about["class_counts"], int(about["image_size"]))
        found = method.load_state_dict(tensors, strict=False)
    except (RuntimeError, KeyError) as error:
        raise RunError(f"{folder} cannot be loaded: {error}") from None
    lacking = [name for name in found.missing_keys if not training_only(name)]
    if lacking or found.unexpected_keys:
        other = [*lacking, *found.unexpected_keys]
        raise RunError(f"{folder}/model.safetensors is of another model: {len(other)} names differ, {other[0]} first.")
    method.to(resolve_device(device))
    return Model(method, config, about | {"data": about}, about["weights"], folder)


def as_uint8(images: Images, size: int | None, share: float = 1.0) -> Tensor:
    """Any of the accepted kinds of images as one (N, 3, size, size) uint8 tensor.

    ``size`` None keeps their own, which then has to be one, and square; else the middle square is ``share`` of the
    short side. Raises DataError.
    """
    if not isinstance(images, list | tuple):
        return _fitted(_planes(images), size, share)
    if not images:
        raise DataError("There are no images.")
    parts = [_fitted(_planes(_one(image)), size, share) for image in images]
    if len({part.shape for part in parts}) > 1:
        raise DataError("The images differ in size.", hint="Say what to bring them to: size=32")
    return torch.cat(parts)


def _fitted(planes: Tensor, size: int | None, share: float) -> Tensor:
    height, width = planes.shape[2:]
    if size is not None:
        return middle_square(planes, size, share)
    if height != width:
        raise DataError(
            f"Images of {height} x {width} pixels are not square.",
            hint=f"size={min(height, width)} takes the square in the middle.",
        )
    return planes.contiguous()


def _planes(images: Any) -> Tensor:
    """An array or tensor of images as (N, 3, H, W) uint8."""
    stacked = _tensor(images)
    shape = tuple(stacked.shape)
    if 0 in shape:
        raise DataError(f"There are no pixels in images of shape {shape}.")
    # (H, W, 3) would pass for H gray images, each 3 pixels wide.
    single = stacked.ndim == 3 and stacked.shape[-1] in (1, 3)
    if stacked.ndim == 3:
        stacked = stacked[..., None]
    if single or stacked.ndim != 4 or (stacked.shape[1] not in (1, 3) and stacked.shape[-1] not in (1, 3)):
        raise DataError(
            f"Images must be (N, H, W, 3), (N, 3, H, W) or (N, H, W), not {shape}.",
            hint="A single image is a list of one.",
        )
    if stacked.shape[-1] in (1, 3):
        stacked = stacked.permute(0, 3, 1, 2)
    if stacked.is_floating_point():
        if not bool(((stacked >= 0) & (stacked <= 1)).all()):
            raise DataError("Float images must lie in [0, 1].", hint="Divide by 255, or pass uint8.")
        stacked = (stacked.float() * 255).round().to(torch.uint8)
    if stacked.dtype != torch.uint8:
        raise DataError(f"Images must be uint8 or float, not {str(stacked.dtype).removeprefix('torch.')}.")
    return stacked.expand(-1, 3, -1, -1)


def _tensor(images: Any) -> Tensor:
    if isinstance(images, Tensor):
        return images
    try:
        # PyTorch refuses arrays with negative strides, and warns of those that cannot be written to.
        return torch.from_numpy(np.require(images, requirements=["C", "W"]))
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{type(images).__name__} is not a kind of images: {error}", hint="A single image or path is a list of one."
        ) from None


def _one(image: Any) -> Tensor:
    """A PIL image, a path or an array of one image as a stack of one, (1, H, W) or (1, H, W, 3) or (1, 3, H, W)."""
    if isinstance(image, str | Path | Image.Image):
        image = _pixels(image)
    array = _tensor(image)
    if array.ndim not in (2, 3):
        raise DataError(f"An image in a list must be (H, W), (H, W, 3) or (3, H, W), not {tuple(array.shape)}.")
    return array[None]


def _pixels(image: str | Path | Image.Image) -> NDArray[np.uint8]:
    """An image file or a PIL image as RGB pixels (H, W, 3), read as files of training images are. Raises DataError."""
    shown = "The image" if isinstance(image, Image.Image) else str(image)
    try:
        if isinstance(image, Image.Image):
            return read_pixels(image)
        with quiet_pillow(), opened(Path(image)) as file:
            return read_pixels(file)
    except (BrokenImageError, OSError) as error:
        raise DataError(f"{shown} cannot be read as an image: {error}") from None
