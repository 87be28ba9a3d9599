"""Keyed randomness: every draw comes from a generator made of what it is for, never from a running state.

``generator(seed, "mix", step)`` gives the same numbers whatever was drawn before, in whichever process, with however
many workers. Resuming a run therefore needs no generator state, and all ranks agree without talking.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator

import numpy as np
import torch

Part = str | int


def key(*parts: Part) -> int:
    """A 63-bit integer from a stable hash of ``parts``: the same in every process and Python version."""
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        kind, text = ("i", str(int(part))) if isinstance(part, int) else ("s", part)
        encoded = text.encode()
        digest.update(f"{kind}{len(encoded)}:".encode() + encoded)
    return int.from_bytes(digest.digest(), "little") >> 1


def generator(*parts: Part) -> torch.Generator:
    """A CPU generator whose stream depends on ``parts`` alone, e.g. ``generator(seed, "mix", step)``."""
    made = torch.Generator()
    made.manual_seed(key(*parts))
    return made


def numpy_generator(*parts: Part) -> np.random.Generator:
    """The NumPy counterpart of :func:`generator`."""
    return np.random.Generator(np.random.PCG64(key(*parts)))


@contextlib.contextmanager
def keyed_global_rng(*parts: Part) -> Iterator[None]:
    """Fence foreign code that draws from PyTorch's global generators (module initialization, dropout).

    Inside, their streams depend on ``parts`` alone, that of an accelerator too. Outside, the stream of the CPU is as if
    nothing had been drawn; an accelerator's is not, and nothing of ours draws from it there.
    """
    with torch.random.fork_rng(devices=[]):
        seed = key(*parts)
        if torch.accelerator.is_available():
            torch.manual_seed(seed)  # noqa: TID251 - of every device
        else:
            torch.default_generator.manual_seed(seed)
        yield
