"""What a run does about values that are not finite: skip the step, go back, and at last end with a report.

A step whose loss or gradient is not finite changes nothing but the step count. Three of them in a row, an evaluation or
weights that are not finite take the run back to the beginning of the epoch, at half the rate. A fourth return within
one epoch is not made: the run ends. All of this depends on the values alone and not on when checkpoints were written,
so that a resumed run does what the unbroken one does.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from longtail.config import Config
from longtail.data.prepare import Prepared
from longtail.errors import DivergedError, RunError
from longtail.files import write_json
from longtail.methods import Batch, Method, Progress
from longtail.processes.distributed import from_first
from longtail.processes.sharing import ALONE, Sharing
from longtail.runs.rundir import RunDir
from longtail.training.averaging import Average
from longtail.training.listeners import Listener
from longtail.training.state import RunState, initial_model, load_model, restore, snapshot
from longtail.training.updating import Update, update

IN_A_ROW = 3
"""Skipped steps after which the run goes back; fewer where an epoch has fewer."""

MOST_RETURNS = 3
"""To the beginning of one epoch: the last try is at an eighth of the rate."""

SAID = 5
"""Skipped steps that are told one by one; later ones every hundred."""


class Guard:
    """Takes the steps of a run and keeps count in its ``state`` of those that failed."""

    def __init__(
        self,
        run: RunDir,
        config: Config,
        data: Prepared,
        method: Method,
        optimizer: torch.optim.Optimizer,
        average: Average | None,
        state: RunState,
        steps_per_epoch: int,
        listener: Listener,
        sharing: Sharing = ALONE,
        replica: nn.Module | None = None,
    ) -> None:
        self.run, self.config, self.data, self.listener = run, config, data, listener
        self.method, self.optimizer, self.average, self.state = method, optimizer, average, state
        self.steps_per_epoch, self.sharing, self.replica = steps_per_epoch, sharing, replica
        self.enough = min(IN_A_ROW, steps_per_epoch)
        self._buffers = list(method.buffers())
        self._kept = [buffer.clone() for buffer in self._buffers]
        self._skipped: DivergedError | None = None

    @property
    def epoch_start(self) -> int:
        """The step that the epoch under way began with: where the run goes back to."""
        return self.state.epochs_done * self.steps_per_epoch

    def update(self, batch: Batch, at: Progress, lr: float) -> Update | None:
        """:func:`~longtail.training.updating.update`, or None, with nothing changed, at a value that is not finite.

        The forward pass moves buffers (batch-norm's statistics, queues, key encoders) before its loss is known, so they
        are copied first and put back.
        """
        self.keep_buffers()
        try:
            done = update(self.method, self.optimizer, batch, at, lr, self.config.optim, self.sharing, self.replica)
        except DivergedError as error:
            if self._buffers:
                with torch.no_grad():
                    torch._foreach_copy_(self._buffers, self._kept)
            self.optimizer.zero_grad(set_to_none=True)
            self._note(error, batch, at, lr)
            return None
        self.state.in_a_row = 0
        return done

    @torch.no_grad()
    def keep_buffers(self) -> None:
        """Copy the buffers, into the same memory every step."""
        if self._buffers:
            torch._foreach_copy_(self._kept, self._buffers)

    def _note(self, error: DivergedError, batch: Batch, at: Progress, lr: float) -> None:
        state = self.state
        state.skipped += 1
        state.in_a_row += 1
        known: dict[str, Any] = {"step": at.step, "epoch": at.epoch, "lr": lr, "images": batch.index.tolist()}
        error.report = known | error.report
        # The images went through the network, whatever came out.
        state.image_passes += int(error.report.pop("forwarded", len(batch.views) * len(batch.target)))
        state.saved_passes += float(error.report.pop("saved", 0.0))
        self._skipped = error
        if state.skipped <= SAID or state.skipped % 100 == 0:
            self.listener.said(f"Skipped a step, {state.skipped} so far. {error.message}")

    @property
    def fails(self) -> bool:
        """Whether so many steps in a row were skipped that the run should go back."""
        return self.state.in_a_row >= self.enough

    @property
    def spoiled(self) -> bool:
        """Whether weights, buffers, averages or momentum are not finite: the last step shows in no further loss."""
        held = [*self.method.state_dict().values(), *(self.average.tensors.values() if self.average else ())]
        held += [value for kept in self.optimizer.state.values() for value in kept.values() if torch.is_tensor(value)]
        return not all(bool(torch.isfinite(value).all()) for value in held if value.is_floating_point())

    def go_back(self, error: DivergedError | None = None) -> int:
        """Put everything back to the beginning of the epoch, halve the rate, and return the step to go on from.

        ``error`` is what there is to say where no skipped step came before. Raises DivergedError after
        :data:`MOST_RETURNS`, with the report in ``divergence.json``.
        """
        if self._skipped is not None and self.state.in_a_row:
            error = self._skipped
        elif error is None:
            error = DivergedError("The weights are no longer finite.", hint="Lower optim.lr.")
        state, step = self.state, self.epoch_start
        if state.returns_here >= MOST_RETURNS:
            raise self._give_up(error)
        try:
            self._restore(step)
        except RunError as damaged:
            raise DivergedError(
                f"{error.message}\nThe run cannot go back: {damaged.message}", hint=error.hint
            ) from None
        state.sums, state.counted, state.in_a_row = {}, {}, 0
        state.returns, state.returns_here = state.returns + 1, state.returns_here + 1
        state.rate_scale /= 2
        # The same tensors under the same name: at any moment of this the folder holds a valid checkpoint of the step.
        self.run.save_checkpoint(snapshot(step, self.method, self.optimizer, state, self.average))
        self.listener.said(
            f"{error.message} Back at step {step}, the beginning of epoch {state.epochs_done}, with "
            f"{state.rate_scale:g} of the learning rate."
        )
        return step

    def _restore(self, step: int) -> None:
        self.optimizer.state.clear()
        self.method.forget_step()
        checkpoint = self.run.load_step(step)
        if checkpoint is not None:
            restore(checkpoint, self.method, self.optimizer, self.average)
        elif step == 0:
            size = int(self.data.train.images.shape[-1])
            load_model(self.method, initial_model(self.config, self.data.stats.counts, size).state_dict())
            if self.average is not None:
                for name, value in self.method.state_dict().items():
                    self.average.tensors[name].copy_(value)
        else:
            raise RunError(f"{self.run.path} has no checkpoint of step {step}.")

    def _give_up(self, error: DivergedError) -> DivergedError:
        state = self.state
        report = error.report | {
            "message": error.message,
            "rate_scale": state.rate_scale,
            "weight_norm": _norm([parameter.detach() for parameter in self.method.parameters()]),
            "skipped_steps": state.skipped,
            "returns": state.returns,
        }
        report["ids"] = [self._id(place) for place in report.get("images", ())]
        written = {name: _plain(value) for name, value in report.items()}
        from_first(lambda: write_json(self.run.path / "divergence.json", written))
        return DivergedError(
            f"{error.message}\nSo it did after {state.returns_here} returns to step {self.epoch_start}, the last at "
            f"{state.rate_scale:g} of the rate; {state.skipped} steps were skipped in all. "
            f"{self.run.path / 'divergence.json'} has rate, norms and images.",
            hint=error.hint,
            report=report,
        )

    def _id(self, place: int) -> str | int:
        train = self.data.train
        return int(train.source_index[place]) if train.ids is None else train.ids[place]


def _norm(tensors: list[Tensor]) -> float:
    return float(torch.nn.utils.get_total_norm(tensors))


def _plain(value: Any) -> Any:
    """JSON has no infinities: they are written as text."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
