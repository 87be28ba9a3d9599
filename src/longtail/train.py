"""Training, read from top to bottom."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import platform
import shlex
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch
from torch import Tensor

import longtail
from longtail.config import NUMBERS_VERSION, Config, build_config, differences
from longtail.data.loader import Loader
from longtail.data.open import open_data
from longtail.data.prepare import Prepared
from longtail.data.views import View, build_view
from longtail.device import cpu_compiler, resolve_device
from longtail.errors import EXIT_INTERRUPT, EXIT_SIGTERM, ConfigError, DivergedError, ResourceError, RunError, StoppedError
from longtail.evaluate import Evaluation, EvaluationStoppedError, describe, evaluate, write_per_class, write_predictions
from longtail.methods import METHODS, Method
from longtail.optim import build_optimizer, lr_at
from longtail.rng import keyed_global_rng
from longtail.rundir import SCHEMA, Checkpoint, RunDir, read_json, write_json

COMPILE_PAYS_FROM = 600  # steps: compiling a ResNet-32 costs about as much as 60 to 100 eager steps save


class Listener(Protocol):
    """Who watches a run. Every call is made by the loop; none may change anything."""

    def started(self, config: Config, data: Prepared, steps: int, first_step: int) -> None: ...
    def stepped(self, step: int, logs: Mapping[str, float], images_per_second: float) -> None: ...
    def evaluated(self, row: Mapping[str, Any]) -> None: ...
    def said(self, message: str) -> None: ...
    def finished(self, results: Mapping[str, Any]) -> None: ...


class Silent:
    """Watches and says nothing."""

    def started(self, config: Config, data: Prepared, steps: int, first_step: int) -> None: ...
    def stepped(self, step: int, logs: Mapping[str, float], images_per_second: float) -> None: ...
    def evaluated(self, row: Mapping[str, Any]) -> None: ...
    def said(self, message: str) -> None: ...
    def finished(self, results: Mapping[str, Any]) -> None: ...


@dataclasses.dataclass
class RunState:
    """What a run carries from step to step beside weights and momentum; it goes into every checkpoint.

    ``sums`` and ``counted`` are the loss terms of the epoch so far, ``epochs_done`` the epochs that have been
    evaluated and logged: after a stop within an evaluation it lags behind the step.
    """

    epochs_done: int = 0
    sums: dict[str, float] = dataclasses.field(default_factory=dict)
    counted: dict[str, int] = dataclasses.field(default_factory=dict)
    best_epoch: int = -1
    best_score: float = -1.0
    best_numbers: dict[str, Any] = dataclasses.field(default_factory=dict)
    image_passes: int = 0
    seconds: float = 0.0

    def add(self, logs: Mapping[str, float]) -> None:
        """Count one step's logged scalars."""
        for name, value in logs.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
            self.counted[name] = self.counted.get(name, 0) + 1

    def means(self) -> dict[str, float]:
        """Mean of each scalar over the steps of this epoch that logged it."""
        return {name: total / self.counted[name] for name, total in self.sums.items()}


def build_method(config: Config, counts: list[int], size: int) -> Method:
    """The method of a config for classes with these training counts and images of ``size`` pixels."""
    entry = METHODS[config.method_name]
    return entry.build(config.method, config.model, counts, size=size, seed=config.seed)


def build_views(config: Config, data: Prepared) -> dict[str, View]:
    """The augmentation of each role, for images of the data's own size."""
    size = int(data.train.images.shape[-1])
    names = {**config.views.model_dump(), "plain": "plain"}
    return {role: build_view(name, size, data.mean, data.std) for role, name in names.items()}


def train(
    config: Config,
    *,
    resume: bool = False,
    overwrite: bool = False,
    listener: Listener | None = None,
    command: list[str] | None = None,
) -> dict[str, Any]:
    """Train by ``config`` into its run folder and return the content of results.json.

    ``resume`` goes on from the last checkpoint (from step 0 where there is none, and returns the result of a finished
    run); ``overwrite`` deletes an existing run folder first. Raises ConfigError for a folder that exists otherwise or
    holds another config, DataError, RunError, DivergedError, ResourceError, and StoppedError after SIGTERM or Ctrl-C.
    """
    listener = listener or Silent()
    run = RunDir(config.out or default_out(config))
    config = config.model_copy(update={"out": str(run.path)})

    # Everything that can be refused is refused before anything is written.
    resuming = resume and run.is_run
    if resuming:
        refuse_other_config(config, run)
        if (run.path / "results.json").is_file() and run.description().get("status") == "finished":
            results: dict[str, Any] = read_json(run.path / "results.json")
            listener.said(f"{run.path} is finished: {describe(results['last'])} (last epoch)")
            return results
    elif not overwrite:
        run.refuse_unless_new()
    device = resolve_device(config.run.device)
    threads = pin_threads(config, run.description() if resuming else {}, listener)
    data = open_data(config.data)
    size = int(data.train.images.shape[-1])
    groups = config.data.groups
    method = build_method(config, data.stats.counts, size)
    views = build_views(config, data)
    if config.init is not None and not resuming:
        listener.said(load_initial_weights(method, Path(config.init)))
    method.to(device)
    train_images = data.train.to(device)
    selection = (data.val or data.evaluation).to(device)
    evaluation_images = data.evaluation.to(device)
    optimizer = build_optimizer(method, config.optim)
    loader = Loader(
        train_images,
        method.needs,
        views,
        batch=config.optim.batch,
        epochs=config.optim.epochs,
        seed=config.seed,
        workers=config.run.workers,
    )
    steps = config.optim.epochs * loader.steps_per_epoch
    compiled = should_compile(config, device, steps, run.description() if resuming else {}, listener)
    if compiled:
        method.compile_for(min(config.optim.batch, len(data.train)), size)

    if overwrite:
        run.delete()
    run.create()
    run.lock()
    state, step = RunState(), 0
    if resuming:
        if run.description()["data"]["fingerprint"] != data.fingerprint:
            raise RunError(f"The images are not those that {run.path} was trained on.")
        checkpoint = run.load_checkpoint()
        for warning in run.warnings:
            listener.said(warning)
        if checkpoint is not None:
            state, step = restore(checkpoint, method, optimizer)
        run.cut_metrics(step if state.epochs_done * loader.steps_per_epoch >= step else step - 1)
    run.write_config(config.plain())
    run.update_description(
        **describe_run(config, data, method, threads, compiled, command), status="running", steps=steps
    )

    listener.started(config, data, steps, step)
    last_save = last_mark = time.monotonic()
    evaluation: Evaluation | None = None
    method.train()

    def save() -> None:
        nonlocal last_save, last_mark
        now = time.monotonic()
        state.seconds += now - last_mark
        last_save = last_mark = now
        run.save_checkpoint(snapshot(step, method, optimizer, state))

    with stop_signals() as stop, locked(run), memory_errors():
        try:
            for epoch in range(state.epochs_done, config.optim.epochs):
                epoch_started, images_seen = time.monotonic(), 0
                for batch in loader.iterate(step, (epoch + 1) * loader.steps_per_epoch, method.needs_partner):
                    at = loader.progress(step)
                    for group in optimizer.param_groups:
                        group["lr"] = lr_at(config.optim, step, loader.steps_per_epoch)
                    optimizer.zero_grad(set_to_none=True)
                    with keyed_global_rng(config.seed, "step", step):
                        output = method(batch, at)
                    loss = float(output.loss.detach())
                    if not math.isfinite(loss):
                        raise diverged(step, epoch, loss, optimizer.param_groups[0]["lr"], batch.index)
                    output.loss.backward()
                    optimizer.step()
                    step += 1

                    logs = {"loss": loss, **{name: float(value) for name, value in output.logs.items()}}
                    state.add(logs)
                    state.image_passes += len(batch.views) * len(batch.target)
                    images_seen += len(batch.views) * len(batch.target)
                    listener.stepped(step, logs, images_seen / (time.monotonic() - epoch_started))
                    if stop.requested:
                        save()
                        raise stop.error(run.path)
                    if time.monotonic() - last_save > 60 * config.run.checkpoint_minutes:
                        save()

                rate = images_seen / max(time.monotonic() - epoch_started, 1e-9)
                if (epoch + 1) % config.run.evaluate_every == 0 or epoch + 1 == config.optim.epochs:
                    try:
                        evaluation = evaluate(method, selection, data, views["plain"], groups, stop.is_set)
                    except EvaluationStoppedError:
                        save()
                        raise stop.error(run.path) from None
                    numbers = evaluation.numbers()
                    row = {
                        "step": step,
                        "epoch": epoch,
                        "lr": lr_at(config.optim, step - 1, loader.steps_per_epoch),
                        **state.means(),
                        **{name: numbers[name] for name in ("top1", "balanced_accuracy", "many", "medium", "few")},
                        "evaluated_on": "val" if data.val is not None else data.evaluated_on,
                        "img_per_s": round(rate, 1),
                    }
                    run.append_metrics(row)
                    if numbers["balanced_accuracy"] > state.best_score:
                        state.best_score, state.best_epoch, state.best_numbers = (
                            numbers["balanced_accuracy"],
                            epoch,
                            numbers,
                        )
                        run.save_best(Checkpoint(step, model_tensors(method), {"epoch": epoch}))
                    listener.evaluated(row)
                state.epochs_done, state.sums, state.counted = epoch + 1, {}, {}
                save()
                if stop.requested:
                    raise stop.error(run.path)

            # Reported once, on the set that selected nothing where a val set did.
            best_numbers = state.best_numbers
            try:
                if data.val is not None or evaluation is None:
                    evaluation = evaluate(method, evaluation_images, data, views["plain"], groups, stop.is_set)
                if data.val is not None:
                    best = build_method(config, data.stats.counts, size).to(device)
                    load_model(best, run.load_best().tensors)
                    best_numbers = evaluate(
                        best, evaluation_images, data, views["plain"], groups, stop.is_set
                    ).numbers()
            except EvaluationStoppedError:
                raise stop.error(run.path) from None
            results = summarize(config, data, method, state, evaluation, best_numbers)
            write_per_class(run.path / "per_class.csv", evaluation, data, groups)
            write_predictions(run.path / "predictions.csv", evaluation, data.evaluation)
            write_json(run.path / "results.json", results)
            run.update_description(status="finished", timings={"train_seconds": results["train_seconds"]})
        except StoppedError:
            run.update_description(status="stopped")
            raise
        except DivergedError:
            run.update_description(status="diverged")
            raise
    listener.finished(results)
    return results


def default_out(config: Config) -> str:
    """``runs/DATASET-METHOD-sSEED``."""
    return f"runs/{config.data.name}-{config.method_name}-s{config.seed}"


def refuse_other_config(config: Config, run: RunDir) -> None:
    """Raise ConfigError naming the keys in which the folder's config differs."""
    stored = build_config(run.read_config())
    keys = differences(stored, config)
    if keys:
        raise ConfigError(
            f"{run.path} was started with other settings: {', '.join(keys)}.",
            hint="Resume with the same settings, or choose another out=DIR.",
        )


def pin_threads(config: Config, described: Mapping[str, Any], listener: Listener) -> int:
    """Set the thread count: the one asked for, or the one a resumed run had, or what PyTorch chose."""
    recorded = described.get("threads")
    wanted = config.run.threads or recorded or torch.get_num_threads()
    if recorded is not None and wanted != recorded:
        listener.said(f"Going on with {wanted} threads instead of {recorded}: not bit-exact.")
    torch.set_num_threads(wanted)
    return int(wanted)


def should_compile(
    config: Config, device: torch.device, steps: int, described: Mapping[str, Any], listener: Listener
) -> bool:
    """Whether the backbone is compiled: a resumed run keeps what it had; ``auto`` asks whether it can pay."""
    possible = device.type != "cpu" or cpu_compiler() is not None
    recorded = described.get("compiled")
    if recorded is not None and config.run.compile == "auto":
        if recorded and not possible:
            listener.said("The C++ compiler that this run was compiled with is gone: going on eagerly, not bit-exact.")
        return bool(recorded) and possible
    if config.run.compile == "auto":
        return possible and steps >= COMPILE_PAYS_FROM
    if config.run.compile and not possible:
        raise ConfigError("run.compile=true needs a C++ compiler (g++ or clang++), and there is none.")
    return bool(config.run.compile)


def model_tensors(method: Method) -> dict[str, Tensor]:
    """Weights and buffers, copied to the CPU; raises DivergedError rather than hand out one that is not finite."""
    tensors = {name: value.detach().to("cpu", copy=True) for name, value in method.state_dict().items()}
    for name, value in tensors.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise DivergedError(f"The weights '{name}' are not finite, so they are not saved.", hint="Lower optim.lr.")
    return tensors


def load_model(method: Method, tensors: Mapping[str, Tensor]) -> None:
    """Load weights and buffers; raises RunError when they are another model's."""
    try:
        method.load_state_dict(dict(tensors))
    except RuntimeError as error:
        raise RunError(f"The checkpoint is of another model: {error}") from None


def snapshot(step: int, method: Method, optimizer: torch.optim.Optimizer, state: RunState) -> Checkpoint:
    """Everything that the rest of the run depends on."""
    tensors = {f"model/{name}": value for name, value in model_tensors(method).items()}
    for name, parameter in method.named_parameters():
        momentum = optimizer.state[parameter].get("momentum_buffer") if parameter in optimizer.state else None
        if momentum is not None:
            tensors[f"momentum/{name}"] = momentum.detach().to("cpu", copy=True)
    return Checkpoint(step, tensors, dataclasses.asdict(state))


def restore(checkpoint: Checkpoint, method: Method, optimizer: torch.optim.Optimizer) -> tuple[RunState, int]:
    """The inverse of :func:`snapshot`."""
    tensors = checkpoint.tensors
    load_model(method, {name[6:]: value for name, value in tensors.items() if name.startswith("model/")})
    for name, parameter in method.named_parameters():
        if f"momentum/{name}" in tensors:
            optimizer.state[parameter]["momentum_buffer"] = tensors[f"momentum/{name}"].to(parameter.device)
    return RunState(**checkpoint.state), checkpoint.step


def load_initial_weights(method: Method, source: Path) -> str:
    """Start from a run folder or a safetensors file: every tensor whose name and shape fit is taken.

    Returns a sentence that says how many; raises RunError where none fits or nothing can be read.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if source.is_dir():
        checkpoint = RunDir(source).load_checkpoint()
        if checkpoint is None:
            raise RunError(f"{source} has no checkpoint to start from.")
        tensors = {name[6:]: value for name, value in checkpoint.tensors.items() if name.startswith("model/")}
    else:
        try:
            tensors = load_file(source)
        except (OSError, SafetensorError) as error:
            raise RunError(f"{source} cannot be read as safetensors: {error}") from None
    own = method.state_dict()
    fitting = {name: value for name, value in tensors.items() if name in own and own[name].shape == value.shape}
    if not fitting:
        raise RunError(f"Nothing in {source} fits this model.")
    method.load_state_dict(own | fitting)
    return f"Started from {source}: {len(fitting)} of {len(own)} tensors fit."


def diverged(step: int, epoch: int, loss: float, lr: float, index: Tensor) -> DivergedError:
    """The error for a loss that is not finite."""
    shown = ", ".join(str(int(i)) for i in index[:8])
    return DivergedError(
        f"The loss became {loss} in step {step} (epoch {epoch}, learning rate {lr:g}; training images {shown}, ...).",
        hint="Lower optim.lr or lengthen optim.warmup_epochs. The last checkpoint is intact.",
    )


def describe_run(
    config: Config, data: Prepared, method: Method, threads: int, compiled: bool, command: list[str] | None
) -> dict[str, Any]:
    """The part of run.json that is known before the first step."""
    resolved: dict[str, Any] = {"optim": config.optim.resolved()}
    own = getattr(method, "settings", None)
    if own is not None:
        resolved["method"] = own.model_dump(mode="json")
    return {
        "command": shlex.join(command or ["longtail", "train", f"{config.out}/config.yaml"]),
        "recipe": config.recipe,
        "seed": config.seed,
        "versions": {
            "longtail": longtail.__version__,
            "numbers": NUMBERS_VERSION,
            "python": platform.python_version(),
            "torch": torch.__version__,
        },
        "platform": f"{platform.system()} {platform.machine()}",
        "threads": threads,
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


def summarize(
    config: Config,
    data: Prepared,
    method: Method,
    state: RunState,
    evaluation: Evaluation,
    best_numbers: Mapping[str, Any],
) -> dict[str, Any]:
    """The content of results.json."""
    return {
        "schema": SCHEMA,
        "version": longtail.__version__,
        "numbers_version": NUMBERS_VERSION,
        "config_key": config.key(),
        "dataset": config.data.name,
        "method": config.method_name,
        "model": config.model.backbone,
        "seed": config.seed,
        "subset_seed": config.data.subset_seed,
        "epochs": config.optim.epochs,
        "imbalance": config.data.imbalance,
        "class_counts": list(data.stats.counts),
        "test_counts": data.evaluation.counts(len(data.class_names)),
        "image_passes": state.image_passes,
        "parameters": sum(parameter.numel() for parameter in method.parameters()),
        "train_seconds": round(state.seconds, 1),
        "evaluated_on": data.evaluated_on,
        "last": {"epoch": config.optim.epochs - 1, **evaluation.numbers()},
        "best": {
            "epoch": state.best_epoch,
            **best_numbers,
            "selected_on": "val" if data.val is not None else data.evaluated_on,
        },
    }


class StopRequest:
    """Set by SIGTERM or Ctrl-C; the loop looks at it after every step and every evaluated batch."""

    def __init__(self) -> None:
        self.signal: int | None = None

    @property
    def requested(self) -> bool:
        """Whether a stop was asked for."""
        return self.signal is not None

    def is_set(self) -> bool:
        """The same as a function."""
        return self.requested

    def error(self, path: Path) -> StoppedError:
        """What is raised once a checkpoint is saved."""
        name, code = ("SIGTERM", EXIT_SIGTERM) if self.signal == signal.SIGTERM else ("Ctrl-C", EXIT_INTERRUPT)
        return StoppedError(f"StoppedError by {name}; the checkpoint is in {path}.", exit_code=code, hint="Go on with --resume.")


@contextlib.contextmanager
def stop_signals() -> Iterator[StopRequest]:
    """Turn SIGTERM and SIGINT into a request for the time of the block (in the main thread; elsewhere do nothing)."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def ask(number: int, frame: FrameType | None) -> None:
        if request.requested and number == signal.SIGINT:
            sys.exit(EXIT_INTERRUPT)  # a second Ctrl-C does not wait for the step
        request.signal = number

    previous = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def locked(run: RunDir) -> Iterator[None]:
    """Give the folder's lock back at the end."""
    try:
        yield
    finally:
        run.unlock()


@contextlib.contextmanager
def memory_errors() -> Iterator[None]:
    """Turn an allocation that failed into ResourceError."""
    hint = "Lower optim.batch or the image size."
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise ResourceError("Out of memory.", hint=hint) from error
    except RuntimeError as error:
        if "can't allocate memory" in str(error) or "not enough memory" in str(error):
            raise ResourceError("Out of memory.", hint=hint) from error
        raise
