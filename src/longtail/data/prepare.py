"""From a source to what a run trains on: the tail is cut, splits are settled, statistics taken."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from longtail.data.images import ImageSet, Source
from longtail.data.longtail import ClassStats, class_counts, hold_out_validation, subsample
from longtail.data.settings import HELD_OUT
from longtail.data.sources.arrays import pixel_statistics
from longtail.errors import ConfigError, DataError
from longtail.rng import numpy_generator

EvaluatedOn = Literal["test", "val", "held-out", "train"]


def images_of(split: str) -> str:
    """What the images of a split are called in a sentence: ``test images``."""
    return "training images" if split == "train" else f"{split} images"


@dataclasses.dataclass(frozen=True)
class Prepared:
    """The data of a run.

    ``evaluation`` is what results are reported on and ``evaluated_on`` says what it is. ``val``, where there is one,
    is a set apart from it that selects. ``stats`` counts the training images that are left after every split.
    ``mean`` and ``std`` are 3 floats each, for pixels in [0, 1]. ``fingerprint`` digests all sets and class names.
    """

    name: str
    class_names: list[str]
    train: ImageSet
    val: ImageSet | None
    evaluation: ImageSet
    evaluated_on: EvaluatedOn
    stats: ClassStats
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    notes: list[str]
    fingerprint: str
    background_names: list[str] | None = None
    test_profile: tuple[str, ...] = ()
    """The test distributions that accuracy is reported under, beside that of the test set."""

    @property
    def selected_on(self) -> EvaluatedOn:
        """The set that the best epoch is chosen on: val where there is one apart from what is reported."""
        return "val" if self.val is not None else self.evaluated_on


def prepare(
    source: Source,
    *,
    imbalance: float | None,
    profile: str = "exp",
    subset_seed: int = 0,
    val: int = 0,
    held_out: float = HELD_OUT,
    allow_empty: bool = False,
) -> Prepared:
    """Cut the long tail and settle the splits.

    ``imbalance`` None keeps the source's own distribution; a number cuts ``profile`` down from the largest class.
    ``val`` takes that many images a class from training for selection. A test split is reported, and the source's
    own val then selects; with val only, it is reported as val; with neither, a stratified ``held_out`` of the training
    images is held out first, before the tail is cut, and reported as held-out. With ``held_out`` 0 nothing is, and the
    images that are trained on are reported, as train.
    Raises :class:`ConfigError` if ``val`` is negative or the source has a val split of its own, :class:`DataError`
    for too few images, or classes without a training image unless ``allow_empty``.
    """
    if val < 0:
        raise ConfigError(f"data.val is {val}; it is a number of images a class.")
    if val and source.val is not None:
        raise ConfigError(
            f"data.val={val} takes validation images from training, but {source.name} has a val split of its own.",
            hint="Leave data.val out: that split selects.",
        )
    names = list(source.class_names)
    notes = list(source.notes)
    pool = source.train
    evaluated_on: EvaluatedOn = "test"
    evaluation, selection = source.test, source.val
    if evaluation is None and source.val is not None:
        evaluation, evaluated_on, selection = source.val, "val", None
        notes.append(f"{source.name} has no test split: its val split is reported, as val")
    elif evaluation is None and held_out == 0:
        evaluated_on = "train"
        notes.append(f"{source.name} has neither test nor val, and none is held out: the training images are reported")
    elif evaluation is None:
        kept, held = _hold_out(pool, len(names), held_out, subset_seed)
        pool, evaluation, evaluated_on = pool.subset(kept), pool.subset(held), "held-out"
        notes.append(f"{source.name} has neither test nor val: {len(held)} training images are held out and reported")
    chosen, unused = _cut(pool, names, imbalance, profile, subset_seed)
    if val:
        chosen, taken, said = hold_out_validation(pool.labels, chosen, unused, val, subset_seed, class_names=names)
        selection = pool.subset(taken)
        notes += said
    # Most sources are used whole; indexing would copy them once more.
    train = pool if imbalance is None and not val else pool.subset(chosen)
    reported = train if evaluation is None else evaluation
    counts = train.counts(len(names))
    notes += check_classes(counts, names, allow_empty)
    mean, std = (
        pixel_statistics(train.images) if source.mean is None or source.std is None else (source.mean, source.std)
    )
    return Prepared(
        name=source.name,
        class_names=names,
        train=train,
        val=selection,
        evaluation=reported,
        evaluated_on=evaluated_on,
        stats=ClassStats(counts),
        mean=mean,
        std=std,
        notes=notes,
        fingerprint=_fingerprint(names, train, selection, reported),
        background_names=None if source.background_names is None else list(source.background_names),
    )


def check_classes(counts: Sequence[int], class_names: Sequence[str], allow_empty: bool) -> list[str]:
    """Refuse classes without training images (:class:`DataError`), or note them if ``allow_empty``."""
    empty = [name for name, n in zip(class_names, counts, strict=True) if n == 0]
    if len(empty) == len(counts):
        raise DataError("There is no training image at all.")
    if len(counts) < 2:
        raise DataError(
            f"There is only one class, '{class_names[0]}': nothing to classify.",
            hint="A folder for each class, or a label for each image, says which there are. Arrays take class_names.",
        )
    if not empty:
        return []
    listed = ", ".join(f"'{name}'" for name in empty[:5]) + (f" and {len(empty) - 5} more" if len(empty) > 5 else "")
    what = f"{'class' if len(empty) == 1 else 'classes'} without training images: {listed}"
    if allow_empty:
        return [f"{len(empty)} {what}"]
    raise DataError(
        f"There {'is' if len(empty) == 1 else 'are'} {len(empty)} {what}.",
        hint="Add images, take the class out, lower data.imbalance or data.val, or accept it: data.allow_empty=true.",
    )


def _cut(pool: ImageSet, names: list[str], imbalance: float | None, profile: str, seed: int) -> tuple[Tensor, Tensor]:
    if imbalance is None:
        return torch.arange(len(pool)), torch.empty(0, dtype=torch.int64)
    counts = class_counts(max(pool.counts(len(names))), len(names), imbalance, profile)
    return subsample(pool.labels, counts, seed, class_names=names)


def _hold_out(pool: ImageSet, classes: int, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """(kept, held) indices: a share of each class, at least one image held and one kept where there are two or more."""
    held = []
    for k in range(classes):
        mine = torch.nonzero(pool.labels == k).flatten()
        share = min(max(1, round(fraction * len(mine))), len(mine) - 1) if len(mine) > 1 else 0
        order = numpy_generator(seed, "held-out", k).permutation(len(mine))
        held.append(mine[torch.from_numpy(order[:share])])
    taken = torch.cat(held).sort().values
    if len(taken) == 0:
        raise DataError(
            "There is neither a test nor a val split, and no class has two images to hold one out.",
            hint="Add a test split.",
        )
    everything = torch.arange(len(pool))
    return everything[~torch.isin(everything, taken)], taken


def _fingerprint(names: list[str], *sets: ImageSet | None) -> str:
    digest = hashlib.blake2b(digest_size=16)
    digest.update("\0".join(names).encode())
    for part in sets:
        digest.update(b"-" if part is None else part.fingerprint().encode())
    return digest.hexdigest()
