"""A contrastive loss row by row: similarities to all columns, at once or for some rows at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

WHOLE_ENTRIES = 2**20
"""Rows times columns up to which all rows are taken at once unless a caller says otherwise: matrices of 4 MiB."""

CHUNK_ENTRIES = 2**19
"""Rows times columns of a chunk where that is exceeded: 2 MiB a matrix. Larger ones are no faster."""

OfRows = Callable[[Tensor, slice], tuple[Tensor, Tensor]]
"""Similarities (r, K) of the rows that the slice names, to the loss of each (r,) and whether it counts (r,)."""


def mean_over_rows(
    rows: Tensor,
    columns: Tensor,
    of_rows: OfRows,
    *,
    temperature: float,
    chunk: int | None,
    weight: Tensor | None = None,
) -> Tensor:
    """sum_i w_i l_i over the number of rows that count, l from ``of_rows`` of rows . columns / temperature.

    ``chunk`` rows at a time, all of them at once where that is no fewer; None takes all where R K is within
    WHOLE_ENTRIES, and else as many as keep chunk * K within CHUNK_ENTRIES. Memory is O(chunk K + (R + K) D). In more
    than one chunk each is differentiated as soon as it is made, and the gradients of rows (R, D) and columns (K, D) are
    kept in place of the graph: values and gradients are those of one chunk up to rounding, at no second pass, but
    cannot be differentiated again.
    """
    taken = chunk_rows(len(rows), len(columns), chunk)
    if taken >= len(rows):
        losses, counts = of_rows(similarity(rows, columns, temperature), slice(0, len(rows)))
        if weight is not None:
            losses = losses * weight.to(losses)
        return losses.sum() / counts.sum().clamp_min(1)
    kind = similarity_type(rows, columns)
    given = (rows.to(kind) / temperature, columns.to(kind), None if weight is None else weight.to(kind))
    differentiated = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in given)
    total, count = _SumInChunks.apply(*given, of_rows, taken, differentiated)
    mean: Tensor = total / count.clamp_min(1)
    return mean


def chunk_rows(rows: int, columns: int, chunk: int | None) -> int:
    """How many rows to take at once; ValueError for a ``chunk`` below 1."""
    if chunk is None:
        return rows if rows * columns <= WHOLE_ENTRIES else max(1, CHUNK_ENTRIES // columns)
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1 row, not {chunk}.")
    return chunk


class _SumInChunks(torch.autograd.Function):
    """sum_i w_i l_i and the number of rows that count, with the gradients taken chunk by chunk in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, columns: Tensor, weight: Tensor | None, of_rows: OfRows, chunk: int, keep: bool
    ) -> tuple[Tensor, Tensor]:
        total, count = rows.new_zeros(()), torch.zeros((), dtype=torch.int64, device=rows.device)
        to_rows, to_columns = (torch.empty_like(rows), torch.zeros_like(columns)) if keep else (None, None)
        every = rows.new_empty(len(rows))

        def add(taken: slice) -> None:
            # A function, so that nothing of one chunk is alive in the next.
            near = (rows[taken] @ columns.T).requires_grad_(keep)
            with torch.set_grad_enabled(keep):
                losses, counts = of_rows(near, taken)
            own = torch.ones_like(losses) if weight is None else weight[taken]
            every[taken] = losses.detach()
            total.add_((own * every[taken]).sum())
            count.add_(counts.sum())
            if to_rows is not None and to_columns is not None:
                (slope,) = torch.autograd.grad(losses, near, own)
                torch.mm(slope, columns, out=to_rows[taken])
                to_columns.addmm_(slope.T, rows[taken])

        with full_precision(rows.device.type):
            for first in range(0, len(rows), chunk):
                add(slice(first, min(first + chunk, len(rows))))
        ctx.save_for_backward(to_rows, to_columns, None if weight is None else every)
        ctx.mark_non_differentiable(count)
        return total, count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        scaled = (None if kept is None else slope * kept for kept in ctx.saved_tensors)
        return (*scaled, None, None, None)


def row_losses(
    similarities: Tensor, positives: Tensor, itself: Tensor | None, log_weight: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Each row's log sum_j exp(s_ij - log_weight_ij) - mean_{p} s_ip, 0 without a positive; and who has a positive.

    ``similarities`` and ``positives`` are (R, K), ``log_weight`` is or broadcasts to it; ``itself`` (R, 1) names each
    row's excluded column.
    """
    if itself is not None:
        positives = positives.scatter(1, itself, False)
    number = positives.sum(1)
    has_positive = number > 0
    attraction = similarities.masked_fill(~positives, 0.0).sum(1) / number.clamp_min(1)
    exponent = similarities if log_weight is None else similarities - log_weight
    if itself is not None:
        # scatter, not masked addition: where a row has no other column, logsumexp gives its gradient as NaN, and only
        # scatter drops it.
        exponent = exponent.scatter(1, itself, float("-inf"))
    losses = torch.logsumexp(exponent, dim=1) - attraction
    return losses.masked_fill(~has_positive, 0.0), has_positive


def similarity(rows: Tensor, columns: Tensor, temperature: float) -> Tensor:
    """rows . columns / temperature, (R, K), never below float32, under autocast neither."""
    kind = similarity_type(rows, columns)
    with full_precision(rows.device.type):
        return (rows.to(kind) / temperature) @ columns.to(kind).T


def similarity_type(rows: Tensor, columns: Tensor) -> torch.dtype:
    """The type that similarities are computed in: that of the inputs, but never below float32."""
    return torch.promote_types(torch.promote_types(rows.dtype, columns.dtype), torch.float32)


def full_precision(device: str) -> contextlib.AbstractContextManager[Any]:
    """No autocast within it."""
    if not torch.amp.is_autocast_available(device):
        return contextlib.nullcontext()
    return torch.autocast(device, enabled=False)


def check_temperature(temperature: float) -> None:
    """Raise ValueError unless ``temperature`` is above 0."""
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, not {temperature}.")
