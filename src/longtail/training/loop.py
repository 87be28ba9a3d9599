"""Training, read from top to bottom."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

from torch import Tensor

from longtail.config import Config
from longtail.data.images import ImageSet, Source
from longtail.errors import ConfigError, DivergedError
from longtail.evaluation.evaluate import Evaluation, describe, evaluate
from longtail.evaluation.scoring import EvaluationStoppedError
from longtail.files import read_json
from longtail.processes.distributed import agreed, from_first, is_first
from longtail.runs.interrupts import locked, memory_errors, out_of_time, stop_signals
from longtail.runs.jobdir import open_run_dir
from longtail.runs.rundir import Checkpoint
from longtail.training.averaging import Mean, averaged, renew_statistics
from longtail.training.description import summarize, write_results
from longtail.training.faults import inflict
from longtail.training.guarding import Guard
from longtail.training.listeners import Both, Listener, Silent
from longtail.training.optim import lr_at
from longtail.training.setup import set_up
from longtail.training.starting import (
    default_out,
    refuse_other_config,
    with_shards,
)
from longtail.training.state import (
    RunState,
    load_model,
    model_tensors,
    restore,
    shown_tensors,
    snapshot,
)
from longtail.training.trackers import Trackers
from longtail.training.updating import wants_partner


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
    ResourceError, and StoppedError after SIGTERM, Ctrl-C or ``run.stop_after_minutes``.

    Within :func:`longtail.processes.distributed.job` it is one of several processes that all call it: they go through
    every line together, and the first alone writes and speaks.
    """
    if resume and overwrite:
        raise ConfigError("--resume and --overwrite exclude each other.")
    began = time.monotonic()
    listener = listener if listener is not None and is_first() else Silent()
    said, names = listener.said, config.run.trackers if is_first() else ()
    trackers = agreed(lambda: Trackers(names, said))
    listener = Both(listener, trackers)
    run = open_run_dir(config.out or default_out(config))
    config = config.model_copy(update={"out": str(run.path)})

    # Everything that can be refused is refused before anything is written.
    resuming = resume and run.has_started
    described = run.description() if resuming else {}
    config = with_shards(config, run, resuming)
    if resuming:
        refuse_other_config(config, run)
        if described["status"] == "finished":
            results: dict[str, Any] = from_first(lambda: read_json(run.path / "results.json"))
            listener.said(f"{run.path} is finished: {describe(results['last'])} (last epoch)")
            return results
    elif not (overwrite or (resume and run.is_run)):
        run.refuse_unless_new()
    made = set_up(config, run, described, source=source, saliency=saliency, command=command, listener=listener)
    data, method, optimizer, average, loader = made.data, made.method, made.optimizer, made.average, made.loader
    per_epoch, groups = loader.steps_per_epoch, config.data.groups
    steps = config.optim.epochs * per_epoch

    state, step = RunState(), 0
    if overwrite:
        run.delete()
    run.create()
    with locked(run), memory_errors(), stop_signals() as stop, trackers:
        if resuming:
            checkpoint = run.load_checkpoint()
            for warning in run.warnings:
                listener.said(warning)
            if checkpoint is not None:
                state, step = restore(checkpoint, method, optimizer, average)
        run.cut_metrics(state.epochs_done)
        run.write_config(config.plain())
        if made.faults:
            inflict(made.faults, method, lambda: state.returns)
        run.update_description(**made.about, status="running", steps=steps)
        listener.started(config, data, steps, step)
        guard = Guard(
            run, config, data, method, optimizer, average, state, per_epoch, listener, made.sharing, made.replica
        )
        evaluation: Evaluation | None = None
        last_save = time.monotonic()

        def save() -> None:
            nonlocal last_save
            state.seconds += time.monotonic() - last_save
            last_save = time.monotonic()
            if not guard.spoiled:  # else the next loss shows it, and the checkpoints before this are good
                run.save_checkpoint(snapshot(step, method, optimizer, state, average), guard.epoch_start)

        def evaluated(images: ImageSet) -> Evaluation:
            return evaluate(method, images, data, made.views["plain"], groups, config.test, stop.is_set)

        def stop_if_asked() -> bool:
            """Stop where any process was asked to, and return whether any is due to save."""
            # A run past its last step needs less than a resume would. Evaluations go on: every start gets somewhere.
            late = step < steps and time.monotonic() - began > 60 * (config.run.stop_after_minutes or math.inf)
            due = time.monotonic() - last_save > 60 * config.run.checkpoint_minutes
            late, due = stop.agree(late, due)
            if stop.requested or late:
                save()
                run.update_description(status="stopped")
                raise stop.error(run.path) if stop.requested else out_of_time(run.path, config.run.stop_after_minutes)
            return due

        try:
            method.train()
            partners = wants_partner(method, config.optim.accumulate)
            while (epoch := state.epochs_done) < config.optim.epochs:
                if config.optim.patience is not None and state.unimproved >= config.optim.patience:
                    listener.said(f"Ended after epoch {epoch - 1}: on val, epoch {state.best_epoch} stays the best.")
                    break
                epoch_started, images_seen = time.monotonic(), 0
                method.see_at(config.views.side_at(epoch, config.optim.epochs))
                for batch in loader.iterate(step, (epoch + 1) * per_epoch, partners, method.views_at):
                    lr = state.rate_scale * lr_at(config.optim, step, per_epoch)
                    done = guard.update(batch, loader.progress(step), lr)
                    step += 1
                    logs = {"loss": math.nan}
                    if done is not None:
                        if average is not None:
                            average.stepped(method, step - 1)
                        logs = {"loss": done.loss, **done.logs}
                        state.add(logs, done.forwarded, done.saved)
                        images_seen += done.forwarded
                    listener.stepped(step, logs, images_seen / (time.monotonic() - epoch_started))
                    if guard.fails:
                        break
                    if stop_if_asked():
                        save()

                # Values that are not finite: everything is put back to the epoch's beginning.
                if guard.fails or guard.spoiled:
                    step = guard.go_back()
                    continue

                if average is not None:
                    average.epoch_ended(method, epoch)
                rate = images_seen / max(time.monotonic() - epoch_started, 1e-9)
                if (epoch + 1) % config.run.evaluate_every == 0 or epoch + 1 == config.optim.epochs:
                    try:
                        if isinstance(average, Mean):
                            renew_statistics(method, average, loader, step, config.optim, made.sharing)
                        with averaged(method, average):
                            evaluation = evaluated(made.selection)
                    except DivergedError as error:
                        step = guard.go_back(error)
                        continue
                    numbers = evaluation.numbers()
                    row = {
                        "step": step,
                        "epoch": epoch,
                        "lr": state.rate_scale * lr_at(config.optim, step - 1, per_epoch),
                        **state.means(),
                        **{name: numbers[name] for name in ("top1", "balanced_accuracy", "many", "medium", "few")},
                        "evaluated_on": data.selected_on,
                        "img_per_s": round(rate, 1),
                    }
                    run.append_metrics(row)
                    if state.improves(epoch, numbers):
                        run.save_best(Checkpoint(step, shown_tensors(method, average), {"epoch": epoch}))
                    listener.evaluated(row)
                state.close_epoch()
                save()
                stop_if_asked()

            # The set that results are reported on is read once more here, or for the first time where val selected.
            best_numbers = state.best_numbers
            if data.val is not None or evaluation is None:
                with averaged(method, average):
                    evaluation = evaluated(made.reported)
            if data.val is not None:
                last = model_tensors(method)
                load_model(method, run.load_best().tensors)
                try:
                    best_numbers = evaluated(made.reported).numbers()
                finally:
                    load_model(method, last)  # a stop in this evaluation saves a checkpoint, of the last weights
        except EvaluationStoppedError:
            stop_if_asked()
        except DivergedError:
            run.update_description(status="diverged")
            raise
        assert evaluation is not None, "the last epoch is always evaluated"
        results = summarize(config, data, method, state, evaluation, best_numbers, made.about["config_key"])
        from_first(lambda: write_results(run.path, results, evaluation, data, groups))
        run.update_description(status="finished", timings={"train_seconds": results["train_seconds"]})
        asked = stop.is_set()
    listener.finished(results)
    if asked:  # in the last moments, when all but the report was done
        raise stop.error(run.path)
    return results
