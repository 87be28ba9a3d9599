"""From ``data.*`` to the images of a run."""

from __future__ import annotations

from longtail.data.prepare import Prepared, prepare
from longtail.data.scenes import load_scenes
from longtail.data.settings import DataSettings
from longtail.data.sources import load_source


def open_data(settings: DataSettings) -> Prepared:
    """Read the source, cut its long tail and settle the splits.

    The scenes cut their own tail, since the tail and its backgrounds are planted together.
    """
    if settings.name == "scenes":
        source = load_scenes(seed=settings.subset_seed, imbalance=settings.imbalance, profile=settings.profile)
        return prepare(source, imbalance=None, val=settings.val, allow_empty=settings.allow_empty)
    source = load_source(settings.name, settings.path, download=settings.download)
    return prepare(
        source,
        imbalance=settings.imbalance,
        profile=settings.profile,
        subset_seed=settings.subset_seed,
        val=settings.val,
        allow_empty=settings.allow_empty,
    )
