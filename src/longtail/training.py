"""Training, read from top to bottom."""

from __future__ import annotations

import math
import platform
import shlex
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

import longtail
from longtail.config import NUMBERS_VERSION, Config, build_config, differences
from longtail.data.images import Source
from longtail.data.loader import Loader
from longtail.data.open import open_data
from longtail.data.prepare import Prepared
from longtail.data.views import View, build_view
from longtail.device import cpu_compiler, resolve_device
from longtail.errors import ConfigError, DataError, DivergedError, RunError
from longtail.evaluate import Evaluation, EvaluationStoppedError, describe, evaluate, write_per_class, write_predictions
from longtail.interrupts import locked, memory_errors, stop_signals
from longtail.methods import Method
from longtail.optim import build_optimizer, lr_at
from longtail.rng import keyed_global_rng
from longtail.rundir import SCHEMA, Checkpoint, RunDir, read_json, write_json
from longtail.state import RunState, build_method, load_initial_weights, load_model, model_tensors, restore, snapshot

COMPILE_PAYS_FROM = 600
"""Steps. Compiling takes 15 to 40 s, and a compiled step of 768 images saves about half a second on 2 cores."""


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


def build_views(config: Config, data: Prepared) -> dict[str, View]:
    """The augmentation of each role, for images of the data's own size; raises DataError where they are not square."""
    height, size = (int(side) for side in data.train.images.shape[-2:])
    if height != size:
        raise DataError(
            f"The images of {data.name} are {height} x {size} pixels; only square ones can be trained on.",
            hint="Crop or pad them to a square first.",
        )
    names = {**config.views.model_dump(), "plain": "plain"}
    return {role: build_view(name, size, data.mean, data.std) for role, name in names.items()}


def train(
    config: Config,
    *,
    resume: bool = False,
    overwrite: bool = False,
    listener: Listener | None = None,
    source: Source | None = None,
    command: list[str] | None = None,
) -> dict[str, Any]:
    """Train by ``config`` into its run folder and return the content of results.json.

    ``source`` is the images where ``data.name`` is "arrays". ``resume`` goes on from the last checkpoint (from step 0
    where there is none, and returns the result of a finished run); ``overwrite`` deletes an existing run folder first.
    Raises ConfigError for a folder that exists otherwise or holds another config, DataError, RunError, DivergedError,
    ResourceError, and StoppedError after SIGTERM or Ctrl-C.
    """
    if resume and overwrite:
        raise ConfigError("--resume and --overwrite exclude each other.")
    listener = listener or Silent()
    run = RunDir(config.out or default_out(config))
    config = config.model_copy(update={"out": str(run.path)})

    # Everything that can be refused is refused before anything is written.
    resuming = resume and run.has_started
    described = run.description() if resuming else {}
    if resuming:
        refuse_other_config(config, run)
        if described["status"] == "finished":
            results: dict[str, Any] = read_json(run.path / "results.json")
            listener.said(f"{run.path} is finished: {describe(results['last'])} (last epoch)")
            return results
    elif not (overwrite or (resume and run.is_run)):
        run.refuse_unless_new()
    device = resolve_device(config.run.device)
    threads = pin_threads(config, described, listener)
    data = open_data(config.data, source)
    if resuming and described["data"]["fingerprint"] != data.fingerprint:
        raise RunError(f"The images are not those that {run.path} was trained on.")
    size, groups = int(data.train.images.shape[-1]), config.data.groups
    method = build_method(config, data.stats.counts, size)
    views = build_views(config, data)
    if config.init is not None and not (resuming and run.has_checkpoint):
        listener.said(load_initial_weights(method, Path(config.init)))
    method.to(device)
    selection, reported = (data.val or data.evaluation).to(device), data.evaluation.to(device)
    optimizer = build_optimizer(method, config.optim)
    loader = Loader(
        data.train.to(device),
        method.needs,
        views,
        config.optim.batch,
        config.optim.epochs,
        config.seed,
        workers=config.run.workers,
    )
    steps = config.optim.epochs * loader.steps_per_epoch
    compiled = should_compile(config, device, steps, described, listener)
    if compiled:
        method.compile_for(min(config.optim.batch, len(data.train)), size)

    state, step = RunState(), 0
    if overwrite:
        run.delete()
    run.create()
    with locked(run), memory_errors(), stop_signals() as stop:
        if resuming:
            checkpoint = run.load_checkpoint()
            for warning in run.warnings:
                listener.said(warning)
            if checkpoint is not None:
                state, step = restore(checkpoint, method, optimizer)
        run.cut_metrics(state.epochs_done)
        run.write_config(config.plain())
        about = describe_run(config, data, method, threads, compiled, command)
        run.update_description(**about, status="running", steps=steps)
        listener.started(config, data, steps, step)
        evaluation: Evaluation | None = None
        last_save = time.monotonic()

        def save() -> None:
            nonlocal last_save
            state.seconds += time.monotonic() - last_save
            last_save = time.monotonic()
            run.save_checkpoint(snapshot(step, method, optimizer, state))

        def stop_if_asked() -> None:
            if stop.requested:
                save()
                run.update_description(status="stopped")
                raise stop.error(run.path)

        try:
            method.train()
            for epoch in range(state.epochs_done, config.optim.epochs):
                epoch_started, images_seen = time.monotonic(), 0
                for batch in loader.iterate(step, (epoch + 1) * loader.steps_per_epoch, method.needs_partner):
                    lr = lr_at(config.optim, step, loader.steps_per_epoch)
                    for group in optimizer.param_groups:
                        group["lr"] = lr
                    optimizer.zero_grad(set_to_none=True)
                    with keyed_global_rng(config.seed, "step", step):
                        output = method(batch, loader.progress(step))
                    loss = float(output.loss.detach())
                    if not math.isfinite(loss):
                        raise diverged(step, epoch, loss, lr, batch.index)
                    output.loss.backward()
                    optimizer.step()
                    step += 1

                    logs = {"loss": loss, **{name: float(value) for name, value in output.logs.items()}}
                    passes = len(batch.views) * len(batch.target)
                    state.add(logs, passes)
                    images_seen += passes
                    listener.stepped(step, logs, images_seen / (time.monotonic() - epoch_started))
                    stop_if_asked()
                    if time.monotonic() - last_save > 60 * config.run.checkpoint_minutes:
                        save()

                rate = images_seen / max(time.monotonic() - epoch_started, 1e-9)
                if (epoch + 1) % config.run.evaluate_every == 0 or epoch + 1 == config.optim.epochs:
                    evaluation = evaluate(method, selection, data, views["plain"], groups, stop.is_set)
                    numbers = evaluation.numbers()
                    row = {
                        "step": step,
                        "epoch": epoch,
                        "lr": lr_at(config.optim, step - 1, loader.steps_per_epoch),
                        **state.means(),
                        **{name: numbers[name] for name in ("top1", "balanced_accuracy", "many", "medium", "few")},
                        "evaluated_on": data.selected_on,
                        "img_per_s": round(rate, 1),
                    }
                    run.append_metrics(row)
                    if state.improves(epoch, numbers):
                        run.save_best(Checkpoint(step, model_tensors(method), {"epoch": epoch}))
                    listener.evaluated(row)
                state.close_epoch()
                save()
                stop_if_asked()

            # The set that results are reported on is read once more here, or for the first time where val selected.
            best_numbers = state.best_numbers
            if data.val is not None or evaluation is None:
                evaluation = evaluate(method, reported, data, views["plain"], groups, stop.is_set)
            if data.val is not None:
                last = model_tensors(method)
                load_model(method, run.load_best().tensors)
                try:
                    best_numbers = evaluate(method, reported, data, views["plain"], groups, stop.is_set).numbers()
                finally:
                    load_model(method, last)  # a stop in this evaluation saves a checkpoint, of the last weights
        except EvaluationStoppedError:
            stop_if_asked()
        except DivergedError:
            run.update_description(status="diverged")
            raise
        assert evaluation is not None, "the last epoch is always evaluated"
        results = summarize(config, data, method, state, evaluation, best_numbers)
        write_per_class(run.path / "per_class.csv", evaluation, data, groups)
        write_predictions(run.path / "predictions.csv", evaluation, data.evaluation)
        write_json(run.path / "results.json", results)
        run.update_description(status="finished", timings={"train_seconds": results["train_seconds"]})
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
            "selected_on": data.selected_on,
        },
    }
