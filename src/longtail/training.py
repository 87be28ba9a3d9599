"""Training, read from top to bottom."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from longtail.config import Config
from longtail.data.images import Source
from longtail.data.loader import Loader
from longtail.data.open import open_data
from longtail.description import describe_run, summarize
from longtail.detection import digest
from longtail.device import resolve_device
from longtail.errors import ConfigError, DivergedError, RunError
from longtail.evaluate import Evaluation, EvaluationStoppedError, describe, evaluate, write_per_class, write_predictions
from longtail.files import read_json, write_json
from longtail.interrupts import locked, memory_errors, stop_signals
from longtail.listeners import Listener, Silent
from longtail.optim import build_optimizer, lr_at
from longtail.rng import keyed_global_rng
from longtail.rundir import Checkpoint, RunDir
from longtail.starting import build_views, default_out, find_peaks, pin_threads, refuse_other_config, should_compile
from longtail.state import RunState, build_method, load_initial_weights, load_model, model_tensors, restore, snapshot


def train(
    config: Config,
    *,
    resume: bool = False,
    overwrite: bool = False,
    listener: Listener | None = None,
    source: Source | None = None,
    saliency: Callable[[Tensor], Tensor] | None = None,
    command: list[str] | None = None,
) -> dict[str, Any]:
    """Train by ``config`` into its run folder and return the content of results.json.

    ``source`` is the images where ``data.name`` is "arrays"; ``saliency`` takes the place of the method's detector:
    uint8 (B, 3, H, W) to maps (B, H, W). ``resume`` goes on from the last checkpoint (from step 0
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
    peaks = find_peaks(config, data, method, views, saliency, listener)
    if resuming and described.get("peaks") != digest(peaks):
        raise RunError(f"The saliency maps are not those that {run.path} was trained with.")
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
        peaks=peaks,
    )
    steps = config.optim.epochs * loader.steps_per_epoch
    passes = config.optim.epochs * len(data.train) * method.stacks()[0]
    compiled = should_compile(config, device, passes, described, listener)
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
        about = describe_run(config, data, method, threads, compiled, command) | {"peaks": digest(peaks)}
        if resuming:
            about |= {"command": described["command"], "resumed_with": about["command"]}
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
                    whole = len(batch.views) * len(batch.target)
                    passes = whole if output.forwarded is None else output.forwarded
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


def diverged(step: int, epoch: int, loss: float, lr: float, index: Tensor) -> DivergedError:
    """The error for a loss that is not finite."""
    shown = ", ".join(str(int(i)) for i in index[:8])
    return DivergedError(
        f"The loss became {loss} in step {step} (epoch {epoch}, learning rate {lr:g}; training images {shown}, ...).",
        hint="Lower optim.lr or lengthen optim.warmup_epochs. The last checkpoint is intact.",
    )
