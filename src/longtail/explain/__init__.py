"""What the two methods do, measured.

Of SMCL (Park et al., arXiv 2406.02223): whether a box hits the object, and whether the background stops voting;
``benchmarks/saliency_study.py`` asks. Of ConCutMix (Pan et al., arXiv 2407.04911): what rectification makes of a label;
``benchmarks/omega_study.py`` asks.
"""

from longtail.explain.backgrounds import background_neighbors, background_votes, group_votes, masked_backgrounds
from longtail.explain.labels import label_effect, rectification_effect
from longtail.explain.objects import mask_hits, object_boxes, object_removed, peak_hits, peaks_in_boxes, salient_peaks

__all__ = [
    "background_neighbors",
    "background_votes",
    "group_votes",
    "label_effect",
    "mask_hits",
    "masked_backgrounds",
    "object_boxes",
    "object_removed",
    "peak_hits",
    "peaks_in_boxes",
    "rectification_effect",
    "salient_peaks",
]
