"""Stochastic gradient descent and its schedules, which are functions of the step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import nn

from longtail.config import OptimSettings


def lr_at(settings: OptimSettings, step: int, steps_per_epoch: int) -> float:
    """The learning rate of a step (steps and epochs count from 0), in units of ``settings.lr``'s own scale.

    With w warm-up epochs, E epochs, e = step // steps_per_epoch:

    - e < w: lr (e + 1) / w
    - step: lr * decay^(number of milestones m with e >= m)
    - cosine: lr * 0.5 (1 + cos(pi (e - w + 1) / (E - w + 1)))
    - onecycle: per step, linearly up over the first 30 % of all steps, then a half cosine down to 0 (no warm-up)

    Source: the ConCutMix authors' program for step and cosine; Smith and Topin, arXiv 1708.07120, for onecycle.
    """
    epoch = step // steps_per_epoch
    if settings.schedule == "onecycle":
        total = settings.epochs * steps_per_epoch
        rise = max(1, round(0.3 * total))
        if step < rise:
            return settings.lr * (step + 1) / rise
        return settings.lr * 0.5 * (1 + math.cos(math.pi * (step - rise + 1) / max(1, total - rise)))
    times = settings.resolved()
    warmup: int = times["warmup_epochs"]
    if epoch < warmup:
        return settings.lr * (epoch + 1) / warmup
    if settings.schedule == "cosine":
        return settings.lr * 0.5 * (1 + math.cos(math.pi * (epoch - warmup + 1) / (settings.epochs - warmup + 1)))
    passed = sum(epoch >= milestone for milestone in times["milestones"])
    return float(settings.lr * settings.decay**passed)


def build_optimizer(
    module: nn.Module, settings: OptimSettings, rates: Mapping[str, float] = MappingProxyType({})
) -> torch.optim.SGD:
    """SGD with momentum over all parameters that want a gradient: weight decay falls on biases and batch-norm too.

    Authors' program: the same. The rate is set by the loop before every step, times ``rates`` for the parameters whose
    names begin so: a group for each multiple, which holds it as ``rate``.
    """
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            rate = next((rate for beginning, rate in rates.items() if name.startswith(beginning)), 1.0)
            groups.setdefault(rate, []).append(parameter)
    return torch.optim.SGD(
        [{"params": parameters, "rate": rate} for rate, parameters in groups.items()],
        lr=settings.lr,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        nesterov=settings.nesterov,
    )
