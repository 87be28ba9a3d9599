"""Saliency detectors, uint8 images (B, 3, H, W) to maps (B, H, W) in [0, 1], and the peaks of maps."""

from longtail.saliency.image import fine_grained, spectral_residual
from longtail.saliency.learned import SmallDetector, scenes_detector, train_detector
from longtail.saliency.model import attention_rollout, grad_cam, input_gradient
from longtail.saliency.opencv import opencv_fine_grained, opencv_spectral_residual
from longtail.saliency.peaks import image_centers, maps_from_masks, mask_centers, peak, random_centers

__all__ = [
    "SmallDetector",
    "attention_rollout",
    "fine_grained",
    "grad_cam",
    "image_centers",
    "input_gradient",
    "maps_from_masks",
    "mask_centers",
    "opencv_fine_grained",
    "opencv_spectral_residual",
    "peak",
    "random_centers",
    "scenes_detector",
    "spectral_residual",
    "train_detector",
]
