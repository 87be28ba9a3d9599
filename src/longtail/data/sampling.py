"""Index sampling: pure functions from labels to the indices of the images to show.

A sampler is ``(labels (N,), n, generator) -> indices (n,)``. It depends on its arguments alone: the caller keys the
generator by seed, purpose and epoch, so the plan is the same in every process and after every resume.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Generator, Tensor

from longtail.data.longtail import effective_number_probabilities
from longtail.errors import ConfigError, DataError

Sampler = Callable[[Tensor, int, Generator], Tensor]

DEFAULT_BETA = 0.9999


def shuffle(labels: Tensor, n: int, generator: Generator) -> Tensor:
    """``n`` different images in random order, n <= N: every image once if n = N."""
    if n > len(labels):
        raise ConfigError(f"A shuffle shows each image once: {n} asked for, {len(labels)} there.")
    return torch.randperm(len(labels), generator=generator)[:n]


def class_balanced(labels: Tensor, n: int, generator: Generator) -> Tensor:
    """A uniform class among those that have images, then a uniform image of it, with replacement.

    Source: Kang et al., arXiv 1910.09217, eq. 1 with q = 0.
    """
    counts = _counts(labels)
    return _draw(labels, counts, (counts > 0).double(), n, generator)


def effective_number(labels: Tensor, n: int, generator: Generator, *, beta: float = DEFAULT_BETA) -> Tensor:
    """A class drawn with p_k proportional to 1 / E_k, then a uniform image of it, with replacement.

    p is a probability over classes, so the rarest class is drawn most often, see
    :func:`longtail.data.effective_number_probabilities`. Source: Park et al., arXiv 2406.02223, eq. 1.
    """
    counts = _counts(labels)
    return _draw(labels, counts, effective_number_probabilities(counts, beta), n, generator)


def effective_number_per_sample(labels: Tensor, n: int, generator: Generator, *, beta: float = DEFAULT_BETA) -> Tensor:
    """Every image drawn with weight 1 / E of its class, with replacement: p_k proportional to N_k / E_k.

    The reading of a weighted sampler over images, as in CMO (Park et al., arXiv 2112.00412). While N (1 - beta) is
    small, E_k is nearly N_k and the classes come out almost uniform.
    """
    counts = _counts(labels)
    return _draw(labels, counts, counts.double() * effective_number_probabilities(counts, beta), n, generator)


def reversed_frequency(labels: Tensor, n: int, generator: Generator) -> Tensor:
    """A class drawn with p_k proportional to N_max / N_k, then a uniform image of it, with replacement.

    Source: Zhou et al. (BBN), arXiv 1912.02413, the reversed sampler.
    """
    counts = _counts(labels)
    weights = torch.where(counts > 0, counts.max().double() / counts.clamp(min=1), 0.0)
    return _draw(labels, counts, weights, n, generator)


SAMPLERS: dict[str, Sampler] = {
    "shuffle": shuffle,
    "class_balanced": class_balanced,
    "effective_number": effective_number,
    "effective_number_per_sample": effective_number_per_sample,
    "reversed": reversed_frequency,
}


def sampler_named(name: str, beta: float = DEFAULT_BETA) -> Sampler:
    """The sampler ``name`` of :data:`SAMPLERS`, with ``beta`` where it is one of effective numbers."""
    of_effective_numbers = {
        "effective_number": partial(effective_number, beta=beta),
        "effective_number_per_sample": partial(effective_number_per_sample, beta=beta),
    }
    return of_effective_numbers.get(name, SAMPLERS[name])


def epoch_plan(labels: Tensor, batch: int, generator: Generator, *, sampler: Sampler = shuffle) -> list[Tensor]:
    """One epoch as a list of index tensors: N images in batches of ``batch``.

    The last short batch is kept. A last batch of one image is merged into the one before, since batch normalization
    has no variance over one row.
    """
    if batch < 1:
        raise ConfigError(f"A batch has at least one image, not {batch}.")
    plan = list(torch.split(sampler(labels, len(labels), generator), batch))
    if len(plan) > 1 and len(plan[-1]) == 1 and batch > 1:
        plan[-2:] = [torch.cat(plan[-2:])]
    return plan


def _counts(labels: Tensor) -> Tensor:
    if len(labels) == 0:
        raise DataError("There is no image to draw from.")
    return torch.bincount(labels)


def _draw(labels: Tensor, counts: Tensor, weights: Tensor, n: int, generator: Generator) -> Tensor:
    """``n`` classes by ``weights`` (C,), then a uniform image of each; no loop over images."""
    cumulative = weights.cumsum(0)
    # Dividing by the last entry makes it exactly 1, above every draw; a class of weight 0 spans an empty interval.
    chosen = torch.searchsorted(cumulative / cumulative[-1], _uniform(n, generator), right=True)
    size = counts[chosen]
    within = torch.minimum((_uniform(n, generator) * size).long(), size - 1)
    by_class = torch.argsort(labels, stable=True)
    return by_class[(counts.cumsum(0) - counts)[chosen] + within]


def _uniform(n: int, generator: Generator) -> Tensor:
    return torch.rand(n, generator=generator, dtype=torch.float64)
