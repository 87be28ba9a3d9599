"""Where tensors live. The only file that names an accelerator."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch

from longtail.errors import ConfigError


def resolve_device(name: str, number: int | None = None) -> torch.device:
    """The device of ``run.device``: ``auto`` takes CUDA, then MPS, then the CPU.

    ``number`` picks one of several of a kind, for the process with this place on its machine. Raises ConfigError for a
    name that PyTorch does not know or a device that is not there.
    """
    if name == "auto":
        mps = torch.backends.mps.is_available() and number is None
        name = "cuda" if torch.cuda.is_available() else "mps" if mps else "cpu"
    try:
        device = torch.device(name)
        if device.type == "cuda" and number is not None:
            device = torch.device("cuda", number)
            torch.cuda.set_device(device)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        if reason.startswith("Expected one of"):  # two dozen kinds, most of them nobody's
            raise ConfigError(f"Unknown device run.device={name}.", hint="Use auto, cpu, cuda or mps.") from None
        raise ConfigError(f"run.device={name} cannot be used: {reason}", hint="Use auto or cpu.") from None
    return device


def processor() -> str:
    """What computes where there is no accelerator, by its maker's name: ``AMD EPYC 7763, 2 cores``."""
    name = platform.processor() or platform.machine()
    try:  # Linux tells the architecture alone
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    except OSError:
        pass
    return f"{name}, {len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()} cores"


def cpu_compiler() -> str | None:
    """The C++ compiler that torch.compile needs on a CPU, or None."""
    return shutil.which(os.environ.get("CXX", "")) or next(filter(None, map(shutil.which, ("g++", "clang++"))), None)


def worth_compiling(device: torch.device) -> bool:
    """Where torch.compile is known to be faster, or made for: elsewhere only ``run.compile=true`` compiles."""
    return device.type in ("cpu", "cuda")


@contextlib.contextmanager
def threads_kept() -> Iterator[None]:
    """Leave PyTorch's thread count as it was: ``run.threads`` is of one run, and the next may ask for none."""
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
