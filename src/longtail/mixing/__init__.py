"""Boxes, pasting, erasing, label mixing, and the label rectification of ConCutMix, as pure functions."""

from longtail.mixing.boxes import (
    Box,
    align_box,
    align_boxes,
    boxes_around,
    boxes_like,
    boxes_to_mask,
    cutmix_box,
    draw_beta,
    draw_cutmix,
    draw_lambda,
    erase,
    paste,
    transplant,
    visible_fraction,
)
from longtail.mixing.labels import mix_labels, mixup, remix_factor
from longtail.mixing.rectification import (
    MINIMUM_DISTANCE,
    Confidence,
    moved_labels,
    rectification_confidence,
    rectify_labels,
    semantic_labels,
)

__all__ = [
    "MINIMUM_DISTANCE",
    "Box",
    "Confidence",
    "align_box",
    "align_boxes",
    "boxes_around",
    "boxes_like",
    "boxes_to_mask",
    "cutmix_box",
    "draw_beta",
    "draw_cutmix",
    "draw_lambda",
    "erase",
    "mix_labels",
    "mixup",
    "moved_labels",
    "paste",
    "rectification_confidence",
    "rectify_labels",
    "remix_factor",
    "semantic_labels",
    "transplant",
    "visible_fraction",
]
