"""Saliency detectors, uint8 images (B, 3, H, W) to maps (B, H, W) in [0, 1], and the peaks of maps."""

from longtail.saliency.image import fine_grained, spectral_residual
from longtail.saliency.opencv import opencv_fine_grained, opencv_spectral_residual
from longtail.saliency.peaks import image_centers, maps_from_masks, mask_centers, peak, random_centers

__all__ = [
    "fine_grained",
    "image_centers",
    "maps_from_masks",
    "mask_centers",
    "opencv_fine_grained",
    "opencv_spectral_residual",
    "peak",
    "random_centers",
    "spectral_residual",
]
