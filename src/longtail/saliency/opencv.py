"""The detectors of OpenCV itself, image by image: what papers ran, and what our own are checked with.

OpenCV is optional and imported at the first call.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor

from longtail.errors import ConfigError
from longtail.saliency.image import image_size


def opencv_fine_grained(images: Tensor) -> Tensor:
    """OpenCV's ``StaticSaliencyFineGrained``; :func:`longtail.saliency.fine_grained` says what it computes.

    Args:
        images: uint8 (B, 3, H, W) RGB.

    Returns:
        float32 (B, H, W) in [0, 1] on the device of ``images``.

    Raises:
        ConfigError: where OpenCV or its contrib modules are not installed.
        ValueError: on another type or shape.
    """
    return _maps("StaticSaliencyFineGrained", images)


def opencv_spectral_residual(images: Tensor) -> Tensor:
    """OpenCV's ``StaticSaliencySpectralResidual``; :func:`longtail.saliency.spectral_residual` says what it computes.

    A constant image has a map near 1, not of zeros as there.

    Args:
        images: uint8 (B, 3, H, W) RGB.

    Returns:
        float32 (B, H, W) in [0, 1] on the device of ``images``.

    Raises:
        ConfigError: where OpenCV or its contrib modules are not installed.
        ValueError: on another type or shape.
    """
    return _maps("StaticSaliencySpectralResidual", images)


def _maps(name: str, images: Tensor) -> Tensor:
    size = image_size(images)
    detector = getattr(_saliency_module(), f"{name}_create")()
    maps = torch.empty(len(images), *size)
    # OpenCV's channels are blue, green, red.
    for i, image in enumerate(images.flip(1).permute(0, 2, 3, 1).cpu().contiguous().numpy()):
        found, values = detector.computeSaliency(image)
        if not found:
            raise ValueError(f"OpenCV's {name} gave no map for image {i} of {size[0]} x {size[1]} pixels.")
        maps[i] = torch.from_numpy(values).reshape(size)
    return maps.to(images.device)


def _saliency_module() -> Any:
    install = 'pip install "longtail[opencv]"'
    try:
        cv2 = importlib.import_module("cv2")
    except ImportError as error:
        raise ConfigError(
            f"This saliency detector is OpenCV's, which cannot be imported ({error}).",
            hint=f"Install it: {install}. fine_grained and spectral_residual of longtail.saliency need no OpenCV.",
        ) from error
    if not hasattr(cv2, "saliency"):
        raise ConfigError(
            "This saliency detector is in OpenCV's contrib modules, and the OpenCV that is installed lacks them.",
            hint=f"Uninstall opencv-python and opencv-python-headless, then: {install}.",
        )
    return cv2.saliency
