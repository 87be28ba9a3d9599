"""What masking does, measured: whether a box hits the object, and whether the background stops voting.

The two questions that SMCL (Park et al., arXiv 2406.02223) leaves open; ``benchmarks/saliency_study.py`` asks them.
"""

from longtail.explain.backgrounds import background_neighbors, background_votes, group_votes, masked_backgrounds
from longtail.explain.objects import mask_hits, object_boxes, object_removed, peak_hits, peaks_in_boxes, salient_peaks

__all__ = [
    "background_neighbors",
    "background_votes",
    "group_votes",
    "mask_hits",
    "masked_backgrounds",
    "object_boxes",
    "object_removed",
    "peak_hits",
    "peaks_in_boxes",
    "salient_peaks",
]
