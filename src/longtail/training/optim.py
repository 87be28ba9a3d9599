"""Stochastic gradient descent and its schedules, which are functions of the step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import nn

from longtail.config import OptimSettings
from longtail.models.blocks import blocks_of, layers_of


def lr_at(settings: OptimSettings, step: int, steps_per_epoch: int) -> float:
    """The learning rate of a step (steps and epochs count from 0), in units of ``settings.lr``'s own scale.

    With w warm-up epochs, E epochs, or those before ``swa_start``, and e = step // steps_per_epoch:

    - e < w: lr (e + 1) / w
    - step: lr * decay^(number of milestones m with e >= m)
    - cosine: low + (lr - low) * 0.5 (1 + cos(pi (e - w + 1) / (E - w + 1)))
    - onecycle: per step, linearly up over the first 30 % of those steps, then a half cosine down to low (no warm-up)
    - e >= E: low

    low is 0, or ``swa_lr`` with a ``swa_start``. Source: the ConCutMix authors' program for step and cosine; Smith and
    Topin, arXiv 1708.07120, for onecycle; Izmailov et al., arXiv 1803.05407, for the constant rate at the end.
    """
    epoch, epochs, low = step // steps_per_epoch, settings.schedule_epochs, settings.lowest_lr
    if epoch >= epochs:
        return low
    if settings.schedule == "onecycle":
        total = epochs * steps_per_epoch
        rise = max(1, round(0.3 * total))
        if step < rise:
            return settings.lr * (step + 1) / rise
        return low + (settings.lr - low) * 0.5 * (1 + math.cos(math.pi * (step - rise + 1) / max(1, total - rise)))
    times = settings.resolved()
    warmup: int = times["warmup_epochs"]
    if epoch < warmup:
        return settings.lr * (epoch + 1) / warmup
    if settings.schedule == "cosine":
        return low + (settings.lr - low) * 0.5 * (1 + math.cos(math.pi * (epoch - warmup + 1) / (epochs - warmup + 1)))
    passed = sum(epoch >= milestone for milestone in times["milestones"])
    return float(settings.lr * settings.decay**passed)


def build_optimizer(
    module: nn.Module, settings: OptimSettings, rates: Mapping[str, float] = MappingProxyType({})
) -> torch.optim.SGD:
    """SGD with momentum over all parameters that want a gradient: weight decay falls on biases and batch-norm too.

    Authors' program: the same. The rate is set by the loop before every step, times ``rates`` for the parameters whose
    names begin so, and times what ``layer_decay`` gives their layer: a group for each multiple, which holds it as
    ``rate``.
    """
    by_layer = {} if settings.layer_decay is None else layer_rates(module, settings.layer_decay)
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            rate = next((rate for beginning, rate in rates.items() if name.startswith(beginning)), 1.0)
            groups.setdefault(rate * by_layer.get(name, 1.0), []).append(parameter)
    return torch.optim.SGD(
        [{"params": parameters, "rate": rate} for rate, parameters in groups.items()],
        lr=settings.lr,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        nesterov=settings.nesterov,
    )


def layer_rates(method: nn.Module, decay: float) -> dict[str, float]:
    """decay^(L - l) for each parameter of layer l of ``network.backbone``, by name: the later a layer, the faster.

    Layer 0 is the stem, 1 to L - 1 are the blocks, L is what comes after them
    (:func:`longtail.models.blocks.layers_of`), at the full rate like the heads, which are not in the result.

    Clark et al., "ELECTRA", arXiv 2003.10555; Bao et al., "BEiT", arXiv 2106.08254, for vision transformers.
    """
    backbone = method.get_submodule("network.backbone")
    layers = layers_of(backbone)
    last = len(blocks_of(backbone)) + 1
    return {
        f"network.backbone.{name}": decay ** (last - layers[name.rpartition(".")[0]])
        for name, _ in backbone.named_parameters()
    }
