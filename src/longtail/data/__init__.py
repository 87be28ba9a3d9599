"""Data: sources, the long tail, sampling, views."""

from longtail.data.images import ImageSet, Source
from longtail.data.longtail import ClassStats, class_counts, effective_number_probabilities, subsample
from longtail.data.prepare import Prepared, prepare
from longtail.data.sources import SOURCES, load_source
from longtail.data.sources.arrays import from_arrays
from longtail.data.sources.scenes import load_scenes

__all__ = [
    "SOURCES",
    "ClassStats",
    "ImageSet",
    "Prepared",
    "Source",
    "class_counts",
    "effective_number_probabilities",
    "from_arrays",
    "load_scenes",
    "load_source",
    "prepare",
    "subsample",
]
