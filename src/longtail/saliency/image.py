"""Saliency of an image by its pixels alone, as OpenCV computes it: no network, no training, batched, on any device."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

WINDOWS = (12, 24, 48, 28, 56, 112)
"""Reach in pixels of the surrounds of :func:`fine_grained`."""

SPECTRUM_SIDE = 64
"""Side in pixels of the image whose spectrum :func:`spectral_residual` takes."""

# Rounding leaves up to 0.02 of a coefficient that is 0 (float32, 64 x 64 bytes); of those of photographs that are not
# 0, about two in a million are smaller than this (CIFAR-100).
NO_AMPLITUDE = 0.05

CHUNK_BYTES = 2**28


def fine_grained(images: Tensor) -> Tensor:
    """Contrast of each pixel with its surround, summed over six window sizes, in integer arithmetic.

    g is the gray image, smoothed twice by [1 2 1] / 4 along both axes (mirrored at the frame without repeating its
    pixels). W is the window of rows y - n + 1 to y + n and columns x - n + 1 to x + n, cut at the frame, for each reach
    n in :data:`WINDOWS`::

        d_n = g - (sum of g over W without the pixel itself) / (|W| - 1)
        on  = sum_n floor(max(d_n, 0)),   off = sum_n floor(max(-d_n, 0))
        map = min(floor(255 on / max on) + floor(255 off / max off), 255) / 255

    The brightest and the darkest spot both reach 1, so they tie for the peak. A constant image has a map of zeros.

    Montabone and Soto, "Human detection using a mobile platform and novel features derived from a visual saliency
    mechanism", Image and Vision Computing 28(3), 2010, which has no arXiv number, in the form of OpenCV's
    ``StaticSaliencyFineGrained``. OpenCV (5.0, by comparison): where the two parts together exceed 255 they start again
    from 0, and where the gray values of an image exceed 2^23 in sum (65,536 pixels of medium gray) its sums are
    rounded. Here: they stay at 255, because a pixel that stands out both ways is not the least salient one, and sums
    are exact. Otherwise equal bit for bit.

    Args:
        images: uint8 (B, 3, H, W) RGB as read, neither normalized nor padded.

    Returns:
        float32 (B, H, W) in [0, 1] on the device of ``images``.

    Raises:
        ValueError: on another type or shape.
    """
    height, width = image_size(images)
    # Some ten tensors of the image's size are alive at once, of four or eight bytes a pixel.
    return _in_chunks(_fine_grained, images, bytes_per_image=64 * height * width)


def spectral_residual(images: Tensor) -> Tensor:
    """The part of the log amplitude spectrum that its neighborhood does not explain, taken back to the image.

    F is the Fourier transform of the gray image resized to 64 x 64, h a mean over 3 x 3 and G a Gaussian of 5 x 5 taps
    and sigma 8, both mirrored at the frame without repeating its pixels::

        R   = log(1 + |F|) - h * log(1 + |F|)
        m   = (G * |inverse transform of exp(R) F / |F||)^2
        map = m / max m, resized to H x W

    A constant image has a map of zeros.

    Hou and Zhang, "Saliency Detection: A Spectral Residual Approach", CVPR 2007, which has no arXiv number, in the form
    of OpenCV's ``StaticSaliencySpectralResidual``. Paper: log |F|, and the square before G. OpenCV: as above, but a
    coefficient of 0 takes the phase of its rounding error. Here: it adds nothing, because rounding is not the same on
    every device and a flat drawing has many zeros. Where no coefficient is 0 the maps agree to 1e-4 (CIFAR-100: 97 %
    of the images, and all of 20,000 to 2e-3).

    Args:
        images: uint8 (B, 3, H, W) RGB as read, neither normalized nor padded.

    Returns:
        float32 (B, H, W) in [0, 1] on the device of ``images``.

    Raises:
        ValueError: on another type or shape.
    """
    height, width = image_size(images)
    return _in_chunks(_spectral_residual, images, bytes_per_image=24 * height * width + 64 * SPECTRUM_SIDE**2)


def image_size(images: Tensor) -> tuple[int, int]:
    """Height and width of uint8 images (B, 3, H, W); ValueError where they are anything else."""
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(
            f"images must be uint8 (B, 3, H, W) in RGB, as read and not normalized, "
            f"not {str(images.dtype).removeprefix('torch.')} {tuple(images.shape)}."
        )
    height, width = images.shape[2:]
    if height < 1 or width < 1:
        raise ValueError(f"images of {height} x {width} pixels have no saliency.")
    return height, width


def _fine_grained(images: Tensor) -> Tensor:
    height, width = images.shape[2:]
    gray = _gray(images)
    for _ in range(2):
        gray = (_filtered(gray, (1, 2, 1)) + 8) >> 4
    # int64: eight million bright pixels would overflow int32, in which everything else has room.
    integral = F.pad(gray.cumsum(1).cumsum(2), (1, 0, 1, 0))
    on, off = torch.zeros_like(gray), torch.zeros_like(gray)
    for reach in WINDOWS:
        top, bottom = _window(height, reach, images.device)
        left, right = _window(width, reach, images.device)
        strip = integral.index_select(1, bottom) - integral.index_select(1, top)
        total = (strip.index_select(2, right) - strip.index_select(2, left)).to(gray.dtype)
        area = ((bottom - top)[:, None] * (right - left)).to(gray.dtype)
        # d_n = (|W| g - sum of W) / (|W| - 1), and for the one pixel of a 1 x 1 image 0 / 1 instead of 0 / 0.
        # Rounding toward zero is the floor of both parts, of which one is 0.
        difference = torch.div(gray * area - total, (area - 1).clamp_min(1), rounding_mode="trunc")
        on += difference.clamp_min(0)
        off -= difference.clamp_max(0)
    return (_scaled(on) + _scaled(off)).clamp_max(255).to(torch.float32) * (1 / 255)


def _spectral_residual(images: Tensor) -> Tensor:
    gray = _gray(images).to(torch.float32)
    small = (_resized(gray, (SPECTRUM_SIDE, SPECTRUM_SIDE)) + 0.5).floor()
    spectrum = torch.fft.fft2(small)
    amplitude = spectrum.abs()
    log_amplitude = amplitude.log1p()
    residual = log_amplitude - _filtered(log_amplitude, (1 / 3, 1 / 3, 1 / 3))
    gain = torch.where(amplitude > NO_AMPLITUDE, residual.exp() / amplitude, 0.0)
    back = torch.fft.ifft2(spectrum * gain).abs()
    taps = [math.exp(-((k - 2) ** 2) / (2 * 8**2)) for k in range(5)]
    squared = _filtered(back, [tap / sum(taps) for tap in taps]) ** 2
    # The constant part alone would give a map of ones.
    constant = small.amax((1, 2), keepdim=True) == small.amin((1, 2), keepdim=True)
    scaled = torch.where(constant, 0.0, squared / squared.amax((1, 2), keepdim=True).clamp_min(1e-30))
    return _resized(scaled, (images.shape[2], images.shape[3])).clamp_(0.0, 1.0)


def _gray(images: Tensor) -> Tensor:
    """OpenCV's gray, int32 (B, H, W): 0.299 R + 0.587 G + 0.114 B with weights in units of 2^-15."""
    red, green, blue = (channel.to(torch.int32) for channel in images.unbind(1))
    return (9798 * red + 19235 * green + 3735 * blue + 2**14) >> 15


def _filtered(images: Tensor, taps: Sequence[float]) -> Tensor:
    """(B, H, W) filtered by ``taps`` along both axes, mirrored at the frame without repeating its pixels."""
    for axis in (1, 2):
        length, reach = images.shape[axis], len(taps) // 2
        place = torch.arange(-reach, length + reach, device=images.device)
        # A mirrored line has the period 2 (length - 1). PyTorch's own padding refuses lines shorter than the taps.
        place = place.remainder(max(2 * (length - 1), 1))
        padded = images.index_select(axis, torch.where(place < length, place, 2 * (length - 1) - place))
        terms = [tap * padded.narrow(axis, k, length) for k, tap in enumerate(taps)]
        images = sum(terms[1:], terms[0])
    return images


def _window(length: int, reach: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """First position and the one after the last of the window around each of ``length`` positions."""
    position = torch.arange(length, device=device)
    return (position - reach + 1).clamp_(0, length), (position + reach + 1).clamp_(0, length)


def _scaled(values: Tensor) -> Tensor:
    """floor(255 v / max) of integers (B, H, W); 0 stays 0.

    OpenCV rounds v / max to float32 first. No value is different for that, as a test of all of them shows.
    """
    most = values.amax((1, 2), keepdim=True).clamp_min(1)
    return torch.div(255 * values, most, rounding_mode="floor")


def _resized(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Float (B, H, W) resized bilinearly between pixel centers, without antialiasing."""
    return F.interpolate(images[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]


def _in_chunks(detect: Callable[[Tensor], Tensor], images: Tensor, *, bytes_per_image: int) -> Tensor:
    """``detect`` on so many images at a time that what is alive in between stays near :data:`CHUNK_BYTES`."""
    step = max(1, CHUNK_BYTES // bytes_per_image)
    return torch.cat([detect(images[first : first + step]) for first in range(0, max(1, len(images)), step)])
