"""From ``data.*`` to the images of a run."""

from __future__ import annotations

import dataclasses

from longtail.data.files import Say, load_files
from longtail.data.images import Source
from longtail.data.prepare import Prepared, prepare
from longtail.data.settings import FILES, DataSettings, check_complete
from longtail.data.sources import load_source
from longtail.data.sources.scenes import load_scenes
from longtail.errors import ConfigError


def open_data(settings: DataSettings, source: Source | None = None, say: Say | None = None) -> Prepared:
    """Read the source, or take the one given from Python, cut its long tail and settle the splits.

    The scenes cut their own tail, since the tail and its backgrounds are planted together. ``say`` hears how far the
    reading of image files is. Raises ConfigError where ``data.name`` is "arrays" and no source is given, or the other
    way round.
    """
    return cut(open_source(settings, source, say), settings)


def open_source(settings: DataSettings, source: Source | None = None, say: Say | None = None) -> Source:
    """The images that ``data.*`` names before a tail is cut, but for the scenes; as :func:`open_data` otherwise."""
    check_complete(settings)
    if (settings.name == "arrays") != (source is not None):
        raise ConfigError(
            "The data set 'arrays' is images passed from Python, and only that.",
            hint="longtail.train('arrays/METHOD', source=longtail.data.from_arrays(images, labels))",
        )
    if source is not None:
        return source
    if settings.name == "scenes":
        return load_scenes(
            seed=settings.subset_seed,
            imbalance=settings.imbalance,
            profile=settings.profile,
            overlap=settings.overlap,
        )
    if settings.name in FILES:
        return load_files(settings, say)
    return load_source(settings.name, settings.path, download=settings.download, size=settings.size)


def cut(source: Source, settings: DataSettings) -> Prepared:
    """Cut the long tail that ``data.*`` asks for from ``source``, and settle the splits."""
    already = settings.name == "scenes"  # their tail is planted with them
    prepared = prepare(
        source,
        imbalance=None if already else settings.imbalance,
        profile=settings.profile,
        subset_seed=0 if already else settings.subset_seed,
        val=settings.val,
        held_out=settings.held_out,
        allow_empty=settings.allow_empty,
    )
    return dataclasses.replace(prepared, test_profile=settings.test_profile)
