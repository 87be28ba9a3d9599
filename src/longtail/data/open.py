"""From ``data.*`` to the images of a run."""

from __future__ import annotations

from longtail.data.images import Source
from longtail.data.prepare import Prepared, prepare
from longtail.data.scenes import load_scenes
from longtail.data.settings import DataSettings, check_complete
from longtail.data.sources import load_source
from longtail.errors import ConfigError


def open_data(settings: DataSettings, source: Source | None = None) -> Prepared:
    """Read the source, or take the one given from Python, cut its long tail and settle the splits.

    The scenes cut their own tail, since the tail and its backgrounds are planted together. Raises ConfigError where
    ``data.name`` is "arrays" and no source is given, or the other way round.
    """
    check_complete(settings)
    if (settings.name == "arrays") != (source is not None):
        raise ConfigError(
            "The data set 'arrays' is images passed from Python, and only that.",
            hint="longtail.train('arrays/METHOD', source=longtail.data.from_arrays(images, labels))",
        )
    if settings.name == "scenes":
        scenes = load_scenes(
            seed=settings.subset_seed,
            imbalance=settings.imbalance,
            profile=settings.profile,
            overlap=settings.overlap,
        )
        return prepare(scenes, imbalance=None, val=settings.val, allow_empty=settings.allow_empty)
    if source is None:
        source = load_source(settings.name, settings.path, download=settings.download, size=settings.size)
    return prepare(
        source,
        imbalance=settings.imbalance,
        profile=settings.profile,
        subset_seed=settings.subset_seed,
        val=settings.val,
        allow_empty=settings.allow_empty,
    )
