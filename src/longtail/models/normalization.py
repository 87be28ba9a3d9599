"""Batch-norm where a batch is shared out: over all processes together, or apart with statistics that are averaged."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from longtail.processes.distributed import stacked, summed, world_size


class SyncedBatchNorm(_BatchNorm):
    """Batch-norm over the batch of all processes; in one process, and in evaluation, what it replaces.

    With n_r, m_r and s_r the number, mean and sum of squared deviations of the values of a channel in process r::

        n = sum_r n_r,  m = sum_r n_r m_r / n,  s = sum_r (s_r + n_r (m_r - m)^2)
        y = w (x - m) / sqrt(s / n + eps) + b

    and the running variance takes s / (n - 1). Deviations and not squares are added up, because a mean far from 0 would
    cost all digits of the variance. One message forward, of 2 C + 1 numbers, and one backward, of 2 C. A process may
    have no image. PyTorch's SyncBatchNorm refuses tensors on a CPU. Ioffe and Szegedy, arXiv 1502.03167.
    """

    def _check_input_dim(self, input: Tensor) -> None:  # noqa: A002
        """Any (N, C, ...)."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        if not self.training or world_size() == 1:
            return super().forward(input)
        weight = torch.ones(self.num_features, device=input.device) if self.weight is None else self.weight
        bias = torch.zeros(self.num_features, device=input.device) if self.bias is None else self.bias
        out, mean, variance, count = _Normalized.apply(input, weight, bias, self.eps)
        if self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
            with torch.no_grad():
                self.running_mean.lerp_(mean, share)
                self.running_var.lerp_(variance * (count / (count - 1).clamp_min(1)), share)
        normalized: Tensor = out
        return normalized


class _Normalized(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, given: Tensor, weight: Tensor, bias: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        values = given.float()
        over = [0, *range(2, values.ndim)]
        number = values.numel() // values.shape[1]
        mean = values.sum(over) / max(number, 1)
        squares = (values - _as(mean, values)).square().sum(over)
        every = stacked(torch.cat((mean.new_tensor([float(number)]), mean, squares)))
        channels = len(mean)
        numbers, means, deviations = every[:, :1], every[:, 1 : 1 + channels], every[:, 1 + channels :]
        count = numbers.sum()
        mean = (numbers * means).sum(0) / count
        variance = (deviations + numbers * (means - mean).square()).sum(0) / count
        scale = torch.rsqrt(variance + eps)
        ctx.save_for_backward(given, weight, mean, scale, count)
        ctx.mark_non_differentiable(mean, variance, count)
        out = (values - _as(mean, values)) * _as(scale * weight, values) + _as(bias, values)
        return out.to(given.dtype), mean, variance, count

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        given, weight, mean, scale, count = ctx.saved_tensors
        gradient, values = gradients[0].float(), given.float()
        over = [0, *range(2, values.ndim)]
        normal = (values - _as(mean, values)) * _as(scale, values)
        own = torch.cat((gradient.sum(over), (gradient * normal).sum(over)))
        of_bias, of_weight = own.clone().chunk(2)
        along, across = (summed(own) / count).chunk(2)
        moved = gradient - _as(along, values) - normal * _as(across, values)
        return (moved * _as(scale * weight, values)).to(given.dtype), of_weight, of_bias, None


def _as(vector: Tensor, values: Tensor) -> Tensor:
    """A value for each channel (C,), shaped for (N, C, ...)."""
    return vector.view(1, -1, *(1,) * (values.ndim - 2))


def synchronize(module: nn.Module) -> None:
    """Put SyncedBatchNorm in the place of every batch-norm below ``module``, with its weights and statistics."""
    for name, part in list(module.named_children()):
        if isinstance(part, _BatchNorm) and not isinstance(part, SyncedBatchNorm):
            made = SyncedBatchNorm(part.num_features, part.eps, part.momentum, part.affine, part.track_running_stats)
            made.load_state_dict(part.state_dict())
            setattr(module, name, made.train(part.training))
        else:
            synchronize(part)


def batch_norms(module: nn.Module) -> list[_BatchNorm]:
    """Every batch-norm in a module, synchronized or not."""
    return [part for part in module.modules() if isinstance(part, _BatchNorm)]


class RunningStatistics:
    """The running statistics of a backbone that a batch goes through in shards: each moves them from where they were.

    After the batch r := sum_i (n_i / n) r_i, the mean by images of what the shards i of all processes made of it, so
    that every image counts. A pass counts as one in ``num_batches_tracked``.
    """

    def __init__(self, backbone: nn.Module) -> None:
        # Only what a pass moves; SyncedBatchNorm's are the same everywhere.
        moving = [norm for norm in batch_norms(backbone) if norm.training and not isinstance(norm, SyncedBatchNorm)]
        found = [(part.running_mean, part.running_var) for part in moving]
        self.tensors = [tensor for pair in found for tensor in pair if tensor is not None]
        self.tracked = [part.num_batches_tracked for part in moving if part.num_batches_tracked is not None]
        self.before = [tensor.clone() for tensor in self.tensors]
        self.batches = [tensor.clone() for tensor in self.tracked]
        self.total = torch.cat([torch.zeros_like(tensor) for tensor in self.tensors]) if self.tensors else None

    def add(self, share: float) -> None:
        """Take what a shard of this ``share`` of the batch made, and be as before it."""
        if self.total is None:
            return
        self.total += share * torch.cat(self.tensors)
        self._set(self.before)

    def settle(self) -> None:
        """Be the mean over all shards."""
        if self.total is None:
            return
        lengths = [len(tensor) for tensor in self.tensors]
        self._set(list(torch.split(summed(self.total), lengths)))
        for tensor, value in zip(self.tracked, self.batches, strict=True):
            tensor.data.copy_(value + 1)

    def _set(self, values: list[Tensor]) -> None:
        # By data, past autograd's guard: the backward pass of a batch in training does not read them.
        for tensor, value in zip(self.tensors, values, strict=True):
            tensor.data.copy_(value)
