"""The long tail: how many images each class keeps, which ones, and what follows from the counts."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from longtail.errors import ConfigError, DataError, unknown_name
from longtail.rng import numpy_generator

PROFILES = ("exp", "step")

Labels = Tensor | NDArray[np.integer] | Sequence[int]
Counts = Tensor | NDArray[np.integer] | Sequence[int]


def class_counts(n_max: int, classes: int, imbalance: float, profile: str = "exp") -> list[int]:
    """Images per class of an artificial long tail, head class first.

    exp: n_i = int(n_max * IF^(-i / (C - 1))), i = 0..C-1; step: n_max for the first half, int(n_max / IF) for the rest
    (the first half is the smaller one if C is odd). ``int`` truncates, so an extreme ``imbalance`` can leave a class
    with no image. Raises :class:`ConfigError` for n_max < 0, classes < 1, imbalance < 1 or an unknown profile.

    Source: Cui et al., arXiv 1901.05555; Cao et al., arXiv 1906.07413 (both profiles).
    """
    if profile not in PROFILES:
        raise unknown_name("profile", profile, PROFILES)
    if classes < 1:
        raise ConfigError(f"A long tail needs at least one class, not {classes}.")
    if n_max < 0:
        raise ConfigError(f"The largest class cannot have {n_max} images.")
    if not (math.isfinite(imbalance) and imbalance >= 1):
        raise ConfigError(
            f"imbalance is {imbalance}, but it is the largest class over the smallest, so it starts at 1.",
            hint="Give data.imbalance=1 for a balanced set or, say, data.imbalance=100.",
        )
    if profile == "step":
        head = classes if classes == 1 else classes // 2
        return [n_max] * head + [int(n_max / imbalance)] * (classes - head)
    if classes == 1:
        return [n_max]
    return [int(n_max * imbalance ** (-i / (classes - 1.0))) for i in range(classes)]


def subsample(
    labels: Labels, counts: Sequence[int], seed: int, *, class_names: Sequence[str] | None = None
) -> tuple[Tensor, Tensor]:
    """The field's long-tailed subset: ``counts[k]`` images of class k.

    Returns (indices (n,), unused (N - n,)) int64, both class by class in ascending label order, in shuffled order
    within a class. Raises :class:`DataError` if a class has fewer images than asked for: images are never repeated.

    One legacy NumPy stream shuffles the classes one after the other, so the order of the classes matters. It is the
    one exception to keyed randomness: published numbers stand on exactly these subsets, and only this generator
    gives them. NumPy guarantees that its stream never changes. Subset: Cao et al., arXiv 1906.07413 (seed 0).
    """
    if not 0 <= seed < 2**32:
        raise ConfigError(f"data.subset_seed is {seed}; the field's generator takes 0..2^32 - 1.")
    array = _as_array(labels)
    present = _counts_of(array, len(counts))
    names = class_names or [str(k) for k in range(len(counts))]
    for k, (needed, available) in enumerate(zip(counts, present, strict=True)):
        if needed > available:
            raise DataError(
                f"Too few images for the profile: class {k} ('{names[k]}') needs {needed} and has {available}.",
                hint="Cut the tail from a balanced set, or leave data.imbalance out to train on the set as it is.",
            )
    stream = np.random.RandomState(seed)
    chosen: list[NDArray[np.int64]] = []
    unused: list[NDArray[np.int64]] = []
    for k, needed in enumerate(counts):
        mine = np.flatnonzero(array == k).astype(np.int64)
        stream.shuffle(mine)
        chosen.append(mine[:needed])
        unused.append(mine[needed:])
    return _concatenate(chosen), _concatenate(unused)


def hold_out_validation(
    labels: Labels,
    chosen: Tensor,
    unused: Tensor,
    per_class: int,
    seed: int,
    *,
    class_names: Sequence[str] | None = None,
) -> tuple[Tensor, Tensor, list[str]]:
    """Take ``per_class`` images a class for validation, from the images that the profile left unused where there are.

    ``labels`` (N,) are those of the whole training split, ``chosen`` and ``unused`` index into it. A class with too
    few unused images gives some of its own, and a note says which. Returns (train indices, val indices, notes); train
    keeps the order of ``chosen``. Class statistics are to be taken from the train indices that come back.
    Raises :class:`DataError` if a class would be left with no training image.
    """
    array = _as_array(labels)
    kept, spare = chosen.numpy(), unused.numpy()
    classes = int(array.max()) + 1 if len(array) else 0
    names = class_names or [str(k) for k in range(classes)]
    taken: list[NDArray[np.int64]] = []
    givers: list[str] = []
    for k in range(classes):
        own, free = kept[array[kept] == k], spare[array[spare] == k]
        if len(own) + len(free) == 0:
            continue
        stream = numpy_generator(seed, "val", k)
        from_own = max(0, per_class - len(free))
        if from_own >= max(1, len(own)):
            raise DataError(
                f"Too few images for validation: class {k} ('{names[k]}') has {len(own) + len(free)} images, "
                f"{per_class} were asked for, and training needs at least one.",
                hint="Ask for fewer images a class with data.val=K.",
            )
        taken.append(stream.permutation(free)[: per_class - from_own])
        if from_own:
            taken.append(stream.permutation(own)[:from_own])
            givers.append(names[k])
    val = _concatenate(taken)
    train = chosen[~torch.isin(chosen, val)]
    notes = [f"val: {per_class} images a class, taken from the training images that the profile left unused"]
    if givers:
        notes.append(
            f"val: {len(givers)} {'class has' if len(givers) == 1 else 'classes have'} too few unused images and "
            f"{'gives' if len(givers) == 1 else 'give'} training images: {', '.join(givers)}"
        )
    return train, val, notes


@dataclasses.dataclass(frozen=True)
class ClassStats:
    """Training images per class, and what the family derives from them. ``counts`` is a list of C integers."""

    counts: list[int]

    def __init__(self, counts: Counts) -> None:
        object.__setattr__(self, "counts", _as_counts(counts))

    def __len__(self) -> int:
        return len(self.counts)

    def log_prior(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """log(N_k / sum_j N_j), (C,).

        A class without images counts as having one (log N = 0, as in label rectification): minus infinity would turn
        a soft target's 0 * log p into NaN.
        """
        n = torch.tensor(self.counts, dtype=torch.float64).clamp(min=1)
        return (n.log() - n.sum().log()).to(dtype)

    def groups(self, many: int = 100, few: int = 20) -> dict[str, list[int]]:
        """Class ids by training count: many (> ``many``), medium (``few``..``many``), few (< ``few``).

        Source: Liu et al., arXiv 1904.05160.
        """
        if few > many + 1:
            raise ConfigError(f"Groups overlap: many is above {many} images, few is below {few}.")
        return {
            "many": [k for k, n in enumerate(self.counts) if n > many],
            "medium": [k for k, n in enumerate(self.counts) if few <= n <= many],
            "few": [k for k, n in enumerate(self.counts) if n < few],
        }

    def thirds(self) -> dict[str, list[int]]:
        """Class ids in three parts of equal size by rank (head, middle, tail); earlier parts take the remainder.

        Equal counts rank in label order. For sets where the groups by count are empty.
        """
        ranked = sorted(range(len(self.counts)), key=lambda k: -self.counts[k])
        parts = np.array_split(np.array(ranked, dtype=np.int64), 3)
        return {
            name: sorted(int(k) for k in part) for name, part in zip(("head", "middle", "tail"), parts, strict=True)
        }


def effective_number_probabilities(counts: Counts, beta: float) -> Tensor:
    """Probability of each class under the inverse effective number of images, (C,) float64, summing to 1.

    E_k = (1 - beta^N_k) / (1 - beta), p_k = (1 / E_k) / sum_j (1 / E_j). beta = 0 is uniform over the classes that
    have images; beta = 1 is the limit E_k = N_k. A class without images gets 0.
    Raises :class:`ConfigError` for beta outside [0, 1], :class:`DataError` if no class has an image.

    Source: Cui et al., arXiv 1901.05555, eq. 4; as a probability over classes: Park et al., arXiv 2406.02223, eq. 1.
    """
    if not 0 <= beta <= 1:
        raise ConfigError(f"beta is {beta}, but the effective number of images needs it in [0, 1].")
    n = torch.tensor(_as_counts(counts), dtype=torch.float64)
    if not bool((n > 0).any()):
        raise DataError("No class has an image, so there is no class to draw.")
    if beta == 1:
        effective = n
    elif beta == 0:
        effective = torch.ones_like(n)
    else:
        # 1 - beta^N by subtraction loses all digits as beta comes near 1; the factor 1 / (1 - beta) cancels in p.
        effective = -torch.expm1(n * math.log(beta))
    inverse = torch.where(n > 0, 1 / effective.clamp(min=torch.finfo(torch.float64).tiny), torch.zeros_like(n))
    return inverse / inverse.sum()


def _as_array(labels: Labels) -> NDArray[np.int64]:
    raw = labels.cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
    return raw.astype(np.int64).reshape(-1)


def _as_counts(counts: Counts) -> list[int]:
    values = [int(n) for n in _as_array(counts)]
    if any(n < 0 for n in values):
        raise DataError(f"A class cannot have {min(values)} images.")
    return values


def _counts_of(labels: NDArray[np.int64], classes: int) -> list[int]:
    if len(labels) and (labels.min() < 0 or labels.max() >= classes):
        raise DataError(f"Labels run from {labels.min()} to {labels.max()}, outside 0..{classes - 1}.")
    return [int(n) for n in np.bincount(labels, minlength=classes)]


def _concatenate(parts: list[NDArray[np.int64]]) -> Tensor:
    return torch.from_numpy(np.concatenate([np.empty(0, dtype=np.int64), *parts]))
