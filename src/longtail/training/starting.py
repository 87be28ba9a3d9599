"""What is settled before the first step: the folder, the threads, the processes, compilation."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from longtail.config import Config, differences
from longtail.data.loader import Loader
from longtail.data.prepare import Prepared
from longtail.errors import ConfigError, DataError
from longtail.methods import Method
from longtail.processes.device import cpu_compiler, worth_compiling
from longtail.processes.distributed import agreed, from_first, rank, world_size
from longtail.processes.sharing import Sharing
from longtail.runs.rundir import RunDir
from longtail.training.listeners import Listener
from longtail.training.state import stored_config

COMPILE_PAYS_FROM = 200_000
"""Images through the network in training. A ResNet-32 at 32 pixels takes 15 to 40 s to compile on 2 cores and is then
faster by a fifth to a quarter, which is half a second for 768 images."""


def default_out(config: Config) -> str:
    """``runs/DATASET-METHOD-sSEED``."""
    return f"runs/{config.data.name}-{config.method_name}-s{config.seed}"


def refuse_other_config(config: Config, run: RunDir) -> None:
    """Raise ConfigError naming the keys in which the folder's config differs."""
    stored = stored_config(run)
    keys = differences(stored, config)
    if keys:
        there, here = stored.plain(), config.plain()
        listed = ", ".join(f"{key} ({_value(there, key)} there, {_value(here, key)} here)" for key in keys)
        raise ConfigError(
            f"{run.path} was started with other settings: {listed}.",
            hint="Resume with the same settings, or choose another out=DIR.",
        )


def _value(values: Mapping[str, Any], key: str) -> str:
    group, _, name = key.rpartition(".")
    return reprlib.repr(values[group].get(name) if group else values[name])


def with_shards(config: Config, run: RunDir, resuming: bool) -> Config:
    """The config with the number of shards that batch-norm sees apart, which a run keeps: one a process unless set.

    Raises ConfigError where a new run's shards cannot be shared by its processes.
    """
    model, processes = config.model, world_size()
    shards = model.bn_shards
    if resuming:
        shards = stored_config(run).model.bn_shards if shards is None else shards
    elif model.bn == "batch" and processes > 1:
        shards = shards or processes
        if shards % processes:
            raise ConfigError(
                f"model.bn_shards={shards} cannot be shared evenly by {processes} processes.",
                hint=f"Set a multiple of {processes}, or leave it out: then it is {processes}.",
            )
    return config.model_copy(update={"model": model.model_copy(update={"bn_shards": shards})})


def share_out(config: Config, described: Mapping[str, Any], listener: Listener) -> Sharing:
    """How batches are shared out, and a word on what that means for a run that had another number of processes.

    Raises ConfigError where a batch is too small for its shards.
    """
    processes, shards = world_size(), config.model.bn_shards
    before = described.get("processes", processes)
    if before != processes:
        listener.said(f"Going on with {_number(processes)} instead of {_number(before)}: not bit-exact.")
    if config.model.bn == "sync":
        return Sharing(processes, processes, rank(), least=1)
    if processes > 1 and (shards is None or shards % processes):  # of a run that had another number of them
        listener.said(f"From here on batch-norm sees {processes} shards of a batch, and not {shards or 1}.")
        shards = processes
    shards = shards or 1
    smallest = config.optim.batch // config.optim.accumulate
    if shards > 1 and smallest < 2 * shards:
        raise ConfigError(
            f"optim.batch={config.optim.batch} in {_number(config.optim.accumulate, 'part')} is too small for {shards} "
            "shards of 2 images or more.",
            hint="Enlarge optim.batch, or take fewer processes, or a smaller model.bn_shards.",
        )
    return Sharing(shards, processes, rank())


def _number(count: int, what: str = "process") -> str:
    return f"{count} {what}" + ("" if count == 1 else "es" if what.endswith("s") else "s")


def refuse_other_images(data: Prepared) -> None:
    """Raise DataError where a process reads other images than the first one."""
    first = from_first(lambda: data.fingerprint)

    def compare() -> None:
        if data.fingerprint != first:
            raise DataError(f"Process {rank()} reads other images than process 0.", hint="Give all the same files.")

    agreed(compare)


def pin_threads(config: Config, described: Mapping[str, Any], listener: Listener) -> int:
    """Set the thread count: the one asked for, or the one a resumed run had, or what PyTorch chose."""
    recorded = described.get("threads")
    wanted = config.run.threads or recorded or torch.get_num_threads()
    if recorded is not None and wanted != recorded:
        listener.said(f"Going on with {wanted} threads instead of {recorded}: not bit-exact.")
    torch.set_num_threads(wanted)
    return int(wanted)


def planned_passes(config: Config, method: Method, loader: Loader) -> int:
    """About how many images the run sends through the network; epochs without contrastive views or SAM take fewer."""
    optim, passes = config.optim, 0.0
    for epoch in range(optim.epochs):
        used = len(method.views_at(loader.progress(epoch * loader.steps_per_epoch))) / len(method.needs.views)
        passes += used * method.stacks()[0] * (1 + optim.sharpens(epoch, optim.epochs))
    return round(passes * len(loader.train))


def should_compile(
    config: Config, device: torch.device, image_passes: int, described: Mapping[str, Any], listener: Listener
) -> bool:
    """Whether the backbone is compiled: a resumed run keeps what it had; ``auto`` asks whether it can pay.

    Where it is wanted, a small function is compiled first: a compiler without Python's headers, or a cache that cannot
    be written, is found here and not in the first step. ``auto`` then goes on eagerly and says so; ``true`` raises
    ConfigError.
    """
    recorded, asked = described.get("compiled"), config.run.compile
    if asked == "auto":
        pays = worth_compiling(device) and image_passes >= COMPILE_PAYS_FROM
        wanted = pays if recorded is None else bool(recorded)
    else:
        wanted = asked
    reason: str | None = None
    if wanted and config.run.checkpointing:
        reason = "run.checkpointing computes its blocks one by one"
    elif wanted and config.model.bn == "sync" and world_size() > 1:
        reason = "model.bn=sync talks in every layer"
    elif wanted:
        reason = why_not_compiled(device)
    if not wanted or reason is None:
        return wanted
    if asked is True:
        raise ConfigError(f"run.compile=true cannot be had here: {reason}", hint="Leave run.compile out.")
    exact = ", which is not bit-exact with how the run began" if recorded else ""
    listener.said(f"The network is not compiled{exact}: {reason}")
    return False


def why_not_compiled(device: torch.device) -> str | None:
    """What keeps ``torch.compile`` from working here, in a line, or None: it compiles a small function to find out."""
    if device.type == "cpu" and cpu_compiler() is None:
        return "there is no C++ compiler (g++ or clang++)"
    try:
        torch.compile(lambda values: (values.sin() + 1).sum(), dynamic=False)(torch.ones(8, device=device))
    except Exception as error:  # whatever a foreign compiler raises
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200]}"
    return None


def use_bfloat16(method: Method, device: torch.device) -> None:
    """Let the backbone compute its training passes in bfloat16 where autocast does so, and give float32 features.

    Heads, centers and losses stay float32: they cost next to nothing, and a similarity over a temperature of 0.1 would
    lose what 8 bits cannot tell. Evaluation stays float32 too, so that a run's numbers are those that anyone gets from
    its weights. A frozen backbone is in evaluation mode in training too, so that the network's mode says which it is.
    """
    network, backbone = method.network, method.network.backbone
    exact = backbone.forward

    def forward(images: Tensor) -> Tensor:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=network.training):
            features: Tensor = exact(images)
        return features.float()

    backbone.forward = forward


def refuse_choice_without_val(config: Config, data: Prepared, *, training: bool = True) -> None:
    """Raise DataError for an answer, or an early end of ``training``, that would be chosen on the reported images."""
    chosen = [f"{key}=val" for key in config.test.chooses]
    if training and config.optim.patience is not None:
        chosen.append(f"optim.patience={config.optim.patience}")
    if chosen and data.val is None:
        raise DataError(
            f"{', '.join(chosen)} needs val images apart from the {data.evaluated_on} images: "
            "nothing is selected on what is reported.",
            hint=f"Keep some with data.val=IMAGES_A_CLASS, or leave {chosen[0].partition('=')[0]} out.",
        )
