"""What a run works with, made and checked before anything of it is written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from longtail.config import Config
from longtail.data.images import ImageSet, Source
from longtail.data.loader import Loader
from longtail.data.open import open_data
from longtail.data.prepare import Prepared
from longtail.data.reading.readers import read_by
from longtail.data.views import View
from longtail.errors import RunError
from longtail.methods import Method
from longtail.models.recomputing import recompute_blocks
from longtail.processes.device import resolve_device
from longtail.processes.distributed import agreed, from_first, in_turn, like_first, local_rank, replicated, world_size
from longtail.processes.sharing import Sharing
from longtail.runs.rundir import RunDir
from longtail.training.averaging import Average, average_of
from longtail.training.description import describe_run
from longtail.training.detection import digest
from longtail.training.faults import Fault, planned_faults
from longtail.training.feeding import build_loader, build_views, find_peaks, progressive_size
from longtail.training.listeners import Listener
from longtail.training.optim import build_optimizer
from longtail.training.starting import (
    pin_threads,
    planned_passes,
    refuse_choice_without_val,
    refuse_other_images,
    share_out,
    should_compile,
    use_bfloat16,
)
from longtail.training.state import begin, build_method
from longtail.training.updating import own_images, part_sizes


@dataclass(frozen=True)
class Setup:
    """What the loop works with: images and how they are shown, the method, and what moves it."""

    data: Prepared
    selection: ImageSet
    """The images that choose the best epoch: val, or the reported ones where there is no val."""
    reported: ImageSet
    views: Mapping[str, View]
    loader: Loader
    method: Method
    replica: nn.Module
    optimizer: torch.optim.Optimizer
    average: Average | None
    sharing: Sharing
    faults: Sequence[Fault]
    about: dict[str, Any]
    """What run.json says of the run before its first step."""


def set_up(
    config: Config,
    run: RunDir,
    described: Mapping[str, Any],
    *,
    source: Source | None,
    saliency: Callable[[Tensor], Tensor] | None,
    command: list[str] | None,
    listener: Listener,
) -> Setup:
    """Make it by ``config``; ``described`` is the run.json of a run that goes on, and empty for a new one.

    Nothing is written but the caches of decoded images, peaks and compiled code. Several processes go through every
    line together. Raises ConfigError, DataError and RunError for whatever cannot be trained, or not gone on with.
    """
    resuming = bool(described)
    sharing = share_out(config, described, listener)
    faults = planned_faults()
    device = agreed(lambda: resolve_device(config.run.device, local_rank() if world_size() > 1 else None))
    threads = pin_threads(config, described, listener)
    read_by(config.run.workers)

    data = in_turn(lambda: open_data(config.data, source, listener.said))
    refuse_other_images(data)
    if resuming and described["data"]["fingerprint"] != data.fingerprint:
        raise RunError(f"The images are not those that {run.path} was trained on.")
    refuse_choice_without_val(config, data)
    size = int(data.train.images.shape[-1])

    method = build_method(config, data.stats.counts, size)
    config.test.check(method)
    views = build_views(config, data)
    peaks = in_turn(lambda: find_peaks(config, data, method, views, saliency, listener))
    if resuming and described.get("peaks") != digest(peaks):
        raise RunError(f"The saliency maps are not those that {run.path} was trained with.")
    if not (resuming and run.has_checkpoint) and (said := from_first(lambda: begin(method, config))) is not None:
        listener.said(said)
    like_first(method)
    method.to(device)
    optimizer = build_optimizer(method, config.optim, method.rates)
    average = average_of(method, config.optim)
    loader = build_loader(
        config,
        data.train.to(device),
        method,
        views,
        workers=config.run.workers,
        peaks=peaks,
        own=own_images(config.optim, sharing),
    )
    small = agreed(lambda: progressive_size(config, method, size, views["contrastive"].size))
    compiled = should_compile(config, device, planned_passes(config, method, loader), described, listener)
    if config.run.checkpointing:
        recompute_blocks(method.network)
    if config.run.precision == "bfloat16":
        use_bfloat16(method, device)
    if compiled:
        part = part_sizes(min(config.optim.batch, len(data.train)), config.optim)[0]
        method.compile_for(sharing.largest(part), size, views["contrastive"].size, small)

    about = describe_run(config, data, method, threads, compiled, command) | {"peaks": digest(peaks)}
    if saliency is not None:
        about["saliency"] = f"the function {getattr(saliency, '__name__', type(saliency).__name__)} from Python"
    if resuming:
        # Initial weights count in the key by content, and may have been moved since.
        about |= {"resumed_with": about["command"], "command": described["command"]}
        about["config_key"] = described.get("config_key", about["config_key"])
    if faults:
        about["faults"] = [str(fault) for fault in faults]
    return Setup(
        data,
        (data.val or data.evaluation).to(device),
        data.evaluation.to(device),
        views,
        loader,
        method,
        replicated(method, leaves_unused=method.leaves_unused),
        optimizer,
        average,
        sharing,
        faults,
        about,
    )
