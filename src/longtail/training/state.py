"""What a run carries from step to step, and its way into checkpoints and out of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from longtail.config import Config, build_config
from longtail.errors import ConfigError, DivergedError, RunError
from longtail.layers import merge
from longtail.methods import METHODS, Method
from longtail.models.adapters import ADAPTED
from longtail.models.weights import load_backbone
from longtail.runs.exported import is_exported, read_about, read_weights
from longtail.runs.rundir import Checkpoint, RunDir
from longtail.training.averaging import Average


@dataclasses.dataclass
class RunState:
    """What a run carries beside weights and momentum; it goes into every checkpoint.

    ``sums`` and ``counted`` are the loss terms of the epoch so far, ``epochs_done`` the epochs that have been
    evaluated and logged: after a stop within an evaluation it lags behind the step. ``unimproved`` counts evaluations
    since the best one. ``skipped`` counts the steps that were skipped for values that are not finite, ``in_a_row``
    those of them since the last good one; ``returns`` counts the times the run went back for them, ``returns_here``
    those in this epoch; every rate is ``rate_scale`` times the schedule's. ``saved_passes`` is what images of fewer
    pixels spared of ``image_passes``, in passes of full images.
    """

    epochs_done: int = 0
    sums: dict[str, float] = dataclasses.field(default_factory=dict)
    counted: dict[str, int] = dataclasses.field(default_factory=dict)
    best_epoch: int = -1
    best_score: float = -1.0
    best_numbers: dict[str, Any] = dataclasses.field(default_factory=dict)
    unimproved: int = 0
    image_passes: int = 0
    saved_passes: float = 0.0
    seconds: float = 0.0
    skipped: int = 0
    in_a_row: int = 0
    returns: int = 0
    returns_here: int = 0
    rate_scale: float = 1.0

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> RunState:
        """From a checkpoint, an older one included; raises RunError where a value is unknown or of another type."""
        state = cls()
        for name, value in values.items():
            wanted = type(vars(state).get(name))
            fits = isinstance(value, (int, float) if wanted is float else wanted) and not isinstance(value, bool)
            if name not in vars(state) or not fits:
                raise RunError(f"The checkpoint's state is of another version: {name} is {value!r:.80}.")
        return dataclasses.replace(state, **values)

    def add(self, logs: Mapping[str, float], image_passes: int, saved_passes: float = 0.0) -> None:
        """Count one step: its logged scalars and the images it sent through the network."""
        self.image_passes += image_passes
        self.saved_passes += saved_passes
        for name, value in logs.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
            self.counted[name] = self.counted.get(name, 0) + 1

    def means(self) -> dict[str, float]:
        """Mean of each scalar over the steps of this epoch that logged it."""
        return {name: total / self.counted[name] for name, total in self.sums.items()}

    def improves(self, epoch: int, numbers: dict[str, Any]) -> bool:
        """Whether this epoch is the best so far by balanced accuracy; the earlier of equals stays. Remembers it."""
        score = float(numbers["balanced_accuracy"])
        if score <= self.best_score:
            self.unimproved += 1
            return False
        self.unimproved, self.best_epoch, self.best_score, self.best_numbers = 0, epoch, score, numbers
        return True

    def close_epoch(self) -> None:
        """Count an epoch as evaluated and start the next one's sums."""
        self.epochs_done, self.sums, self.counted, self.returns_here = self.epochs_done + 1, {}, {}, 0


def build_method(config: Config, counts: Sequence[int], size: int) -> Method:
    """The method of a config for classes with these training counts and images of ``size`` pixels."""
    entry = METHODS[config.method_name]
    return entry.build(config.method, config.model, list(counts), size=size, seed=config.seed)


def stored_config(run: RunDir, moved: Mapping[str, Any] | None = None) -> Config:
    """The Config of a run folder, with the settings in ``moved`` laid over it; RunError where its file is not one."""
    values = run.read_config()
    try:
        stored = build_config(values)
    except ConfigError as error:
        version = run.description().get("versions", {}).get("longtail", "an unknown version")
        raise RunError(f"{run.path}/config.yaml (longtail {version}) is refused: {error}") from None
    return build_config(merge(values, moved)) if moved else stored


def model_tensors(method: Method) -> dict[str, Tensor]:
    """Weights and buffers, copied to the CPU; raises DivergedError rather than hand out one that is not finite."""
    return finite_copies(method.state_dict())


def finite_copies(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies on the CPU; raises DivergedError where one is not finite."""
    tensors = {name: value.detach().to("cpu", copy=True) for name, value in state.items()}
    for name, value in tensors.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise DivergedError(f"The weights '{name}' are not finite, so they are not saved.", hint="Lower optim.lr.")
    return tensors


def shown_tensors(method: Method, average: Average | None) -> dict[str, Tensor]:
    """What is evaluated: the averaged weights and buffers, or the method's own where there is no average."""
    return model_tensors(method) if average is None else finite_copies(average.tensors)


def load_model(method: Method, tensors: Mapping[str, Tensor]) -> None:
    """Load weights and buffers; raises RunError when they are another model's."""
    try:
        method.load_state_dict(dict(tensors))
    except RuntimeError as error:
        raise RunError(f"The checkpoint is of another model: {error}") from None


def snapshot(
    step: int, method: Method, optimizer: torch.optim.Optimizer, state: RunState, average: Average | None = None
) -> Checkpoint:
    """Everything that the rest of the run depends on."""
    tensors = {f"model/{name}": value for name, value in model_tensors(method).items()}
    for name, parameter in method.named_parameters():
        momentum = optimizer.state[parameter].get("momentum_buffer") if parameter in optimizer.state else None
        if momentum is not None:
            tensors[f"momentum/{name}"] = momentum.detach().to("cpu", copy=True)
    if average is not None:
        tensors |= {f"average/{name}": value for name, value in finite_copies(average.tensors).items()}
    return Checkpoint(step, tensors, dataclasses.asdict(state))


def restore(
    checkpoint: Checkpoint, method: Method, optimizer: torch.optim.Optimizer, average: Average | None = None
) -> tuple[RunState, int]:
    """The inverse of :func:`snapshot`: the state and the number of finished steps."""
    load_model(method, _below("model/", checkpoint))
    if average is not None:
        for name, value in _below("average/", checkpoint).items():
            average.tensors[name].copy_(value)
    for name, parameter in method.named_parameters():
        if f"momentum/{name}" in checkpoint.tensors:
            kept = torch.empty_like(parameter).copy_(checkpoint.tensors[f"momentum/{name}"])
            optimizer.state[parameter]["momentum_buffer"] = kept
    return RunState.read(checkpoint.state), checkpoint.step


def initial_model(config: Config, counts: Sequence[int], size: int) -> Method:
    """The method as a run begins with it, initial weights included; raises RunError where those are gone."""
    method = build_method(config, counts, size)
    begin(method, config)
    return method


def model_part(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """The weights and buffers that are evaluated, by their names in the method: the average if there is one."""
    return _below("average/", checkpoint) or _below("model/", checkpoint)


def _below(prefix: str, checkpoint: Checkpoint) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in checkpoint.tensors.items() if name.startswith(prefix)}


def load_initial_weights(method: Method, source: Path) -> str:
    """Start from a run, an exported folder or a safetensors file: every tensor whose name and shape fit is taken.

    But for what the method begins anew. Returns a sentence that says how many; raises RunError where none fits, nothing
    can be read, or what the method has to find whole is not there.
    """
    if is_exported(source):
        tensors = read_weights(source, read_about(source))
    elif source.is_dir():
        checkpoint = RunDir(source).load_checkpoint()
        if checkpoint is None:
            raise RunError(f"{source} has no checkpoint to start from.")
        tensors = model_part(checkpoint)
    else:
        try:
            tensors = load_file(source)
        except (OSError, SafetensorError) as error:
            raise RunError(f"{source} cannot be read as safetensors: {error}") from None
    own = method.state_dict()
    wanted = {name: value for name, value in own.items() if not name.startswith(method.never_from_init)}
    fitting = {name: value for name, value in tensors.items() if name in wanted and own[name].shape == value.shape}
    if not fitting:
        raise RunError(f"Nothing in {source} fits this model.")
    refuse_unless_whole(method, tensors, source)
    refuse_other_adapters(own, tensors, source)
    method.load_state_dict(own | fitting)
    anew = sorted({".".join(name.split(".")[:2]) for name in own.keys() - wanted.keys()})
    said = f"; {' and '.join(anew)} begin{'s' if len(anew) == 1 else ''} anew" if anew else ""
    return f"Started from {source}: {len(fitting)} of {len(wanted)} tensors fit{said}."


def refuse_unless_whole(method: Method, tensors: Mapping[str, Tensor], source: Path) -> None:
    """Raise RunError unless ``tensors`` hold ``method.from_init`` whole and nothing beside, and are of as many classes.

    What is left over counts, because a shallow backbone fits into a deep one, and a classifier without a bias into one
    that has it.
    """
    own = method.state_dict()
    hint = "Set data.*, model.backbone and model.classifier to those of the run that the weights are of."
    last = "network.classifier.weight"
    if method.from_init and last in tensors and len(tensors[last]) != len(own[last]):
        raise RunError(f"{source} is of {len(tensors[last])} classes, and the data have {len(own[last])}.", hint=hint)
    for part in method.from_init:
        here = {name: value.shape for name, value in own.items() if name.startswith(part)}
        there = {name: value.shape for name, value in tensors.items() if name.startswith(part)}
        other = sorted(name for name in here.keys() | there.keys() if here.get(name) != there.get(name))
        if other:
            raise RunError(
                f"{source} holds another {part.removesuffix('.')} than this model has: {len(other)} of its tensors are "
                f"missing, left over or of another shape, beginning with {other[0]}.",
                hint=hint,
            )


def refuse_other_adapters(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor], source: Path) -> None:
    """Raise RunError for adapters in ``tensors`` that a model with the state ``own`` would leave out.

    The weights that fit are not what was trained without them.
    """
    given = {name: value.shape for name, value in tensors.items() if name.endswith(ADAPTED)}
    # A key encoder is one of the method; its backbone is a copy.
    other = sorted(
        name
        for name, shape in given.items()
        if name.startswith("network.") and (name not in own or own[name].shape != shape)
    )
    if other:
        raise RunError(
            f"{source} holds {len(other)} tensors of adapters that this model has not, beginning with {other[0]}.",
            hint="Set model.freeze and model.adapter_* to those of that run, or start from what longtail export RUN "
            "--format safetensors makes of it, in which they are part of the weights.",
        )


def refuse_other_alpha(config: Config, source: Path) -> None:
    """Raise RunError where ``source`` is a run whose adapters were weighed by another ``model.adapter_alpha``."""
    is_run = source.is_dir() and not is_exported(source)  # what is exported has no adapters
    theirs = RunDir(source).read_config().get("model", {}) if is_run else {}
    ours = config.model
    if ours.adapter_rank is not None and theirs.get("adapter_rank") and theirs["adapter_alpha"] != ours.adapter_alpha:
        raise RunError(
            f"The adapters of {source} were trained with model.adapter_alpha={theirs['adapter_alpha']}, and weigh "
            f"otherwise with {ours.adapter_alpha}.",
            hint="Set model.adapter_alpha to that of the run.",
        )


def begin(method: Method, config: Config) -> str | None:
    """Give a new run its initial weights, if it has any; returns what is to be said of them.

    Raises RunError where they do not fit.
    """
    if config.init is not None:
        refuse_other_alpha(config, Path(config.init))
        said = load_initial_weights(method, Path(config.init))
        method.given_weights()
        return said
    if config.model.weights is not None:
        said = load_backbone(method.network.backbone, config.model.weights)
        method.given_weights()
        return said
    frozen = config.model.freeze != "none"
    if method.from_init or frozen:
        what = f"model.freeze={config.model.freeze}" if frozen else f"'{config.method_name}'"
        return (
            f"Without init=RUN {what} freezes a network that nobody trained, and learns on random "
            f"features. Train a first stage, e.g. {config.data.name}/ce, and give its folder as init."
        )
    return None
