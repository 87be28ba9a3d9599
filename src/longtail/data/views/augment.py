"""Color operations on a batch, each with one parameter per image.

Pixels are a tensor (B, 3, H, W), either uint8 in 0..255 or float32 in [0, 1]; an operation keeps the kind it is given.
On uint8 the results are those of torchvision's kernels for single uint8 images, with their truncations; on float those
of its float kernels. Parameters are tensors (B,) on any device. Nothing is drawn here.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

Params = dict[str, Tensor]
"""What a stage drew: each tensor has the batch as its first dimension and lives on the CPU."""


def as_float(images: Tensor) -> Tensor:
    """Pixels as float32 in [0, 1]; float pixels are returned as they are."""
    return images if images.is_floating_point() else images.to(torch.float32).div_(255.0)


def as_bytes(images: Tensor) -> Tensor:
    """Pixels as uint8, rounded to the nearest; uint8 pixels are returned as they are."""
    return images.mul(255.0).round_().clamp_(0, 255).to(torch.uint8) if images.is_floating_point() else images


def per_image(values: Tensor, images: Tensor) -> Tensor:
    """Values (B,) shaped (B, 1, 1, 1) on the device of ``images``, to be broadcast over their pixels."""
    return values.to(images.device).view(-1, 1, 1, 1)


def _bound(images: Tensor) -> float:
    return 1.0 if images.is_floating_point() else 255.0


def luma(images: Tensor) -> Tensor:
    """Brightness of each pixel, 0.2989 R + 0.587 G + 0.114 B: (B, 1, H, W) float, of uint8 pixels a whole number."""
    red, green, blue = images.unbind(1)
    gray = red.mul(0.2989).add_(green, alpha=0.587).add_(blue, alpha=0.114).unsqueeze(1)
    return gray if images.is_floating_point() else gray.floor_()


def blend(images: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    """factor * images + (1 - factor) * other, cut to the range of the pixels; factor (B,) may exceed 1."""
    ratio = per_image(factor, images)
    mixed = images.mul(ratio).addcmul_(other, 1.0 - ratio).clamp_(0.0, _bound(images))
    return mixed.to(images.dtype)


def grayscale(images: Tensor) -> Tensor:
    """Three equal channels of :func:`luma`."""
    return luma(images).to(images.dtype).expand_as(images)


def adjust_brightness(images: Tensor, factor: Tensor) -> Tensor:
    """factor * images: a blend with black."""
    return images.mul(per_image(factor, images)).clamp_(0.0, _bound(images)).to(images.dtype)


def adjust_contrast(images: Tensor, factor: Tensor) -> Tensor:
    """A blend with the image's mean brightness."""
    return blend(images, luma(images).mean(dim=(1, 2, 3), keepdim=True), factor)


def adjust_saturation(images: Tensor, factor: Tensor) -> Tensor:
    """A blend with the gray image."""
    return blend(images, luma(images), factor)


def adjust_hue(images: Tensor, shift: Tensor) -> Tensor:
    """Turn the hue in HSV by ``shift`` (B,) turns, float pixels only.

    With value v = max, chroma c = max - min and hue h in sixths of a turn, the channel R, G, B is
    v - c * clip(2 - |k - 2|, 0, 1), k = (h + n) mod 6, n = 5, 3, 1. Gray pixels have c = 0 and stay.
    """
    red, green, blue = images.unbind(1)
    low, value = torch.aminmax(images, dim=1)
    chroma = value - low
    scale = chroma.clamp(min=1e-12).reciprocal_()
    hue = torch.where(
        value == red,
        (green - blue).mul_(scale),
        torch.where(value == green, (blue - red).mul_(scale).add_(2.0), (red - green).mul_(scale).add_(4.0)),
    )
    hue.add_(shift.to(images.device).view(-1, 1, 1), alpha=6.0)
    turned = torch.empty_like(images)
    for channel, offset in enumerate((5.0, 3.0, 1.0)):
        k = hue.add(offset).remainder_(6.0)
        weight = k.sub_(2.0).abs_().neg_().add_(2.0).clamp_(0.0, 1.0)
        torch.sub(value, weight.mul_(chroma), out=turned[:, channel])
    return turned.clamp_(0.0, 1.0)


def gaussian_blur(images: Tensor, sigma: Tensor, radius: int = 6) -> Tensor:
    """Blur float pixels by a Gaussian of ``sigma`` (B,) pixels, cut at ``radius`` and reflected at the border.

    Both passes are matrix products: row i of an image's matrix holds the weights exp(-d^2 / (2 sigma^2)), normalized,
    at the columns i + d reflected into the frame. ``radius`` is lowered to side - 1, the most a reflection allows.
    """
    rows = _blur_matrix(sigma.to(images.device), images.shape[-2], radius)
    columns = _blur_matrix(sigma.to(images.device), images.shape[-1], radius)
    return rows.unsqueeze(1) @ (images @ columns.transpose(1, 2).unsqueeze(1))


def _blur_matrix(sigma: Tensor, side: int, radius: int) -> Tensor:
    radius = min(radius, side - 1)
    distance = torch.arange(-radius, radius + 1, device=sigma.device)
    weights = torch.softmax(distance.square() / (-2.0 * sigma.unsqueeze(1).square()), dim=1)
    source = (torch.arange(side, device=sigma.device) + distance.unsqueeze(1)).abs()
    source = (side - 1) - ((side - 1) - source).abs()
    shifts = F.one_hot(source, side).to(weights.dtype)
    return (weights @ shifts.flatten(1)).view(-1, side, side)


def adjust_sharpness(images: Tensor, factor: Tensor) -> Tensor:
    """A blend with the image smoothed by (1 1 1; 1 5 1; 1 1 1) / 13; the outermost pixels stay."""
    if min(images.shape[-2:]) <= 2:
        return images
    kernel = torch.full((1, 1, 3, 3), 1.0 / 13.0, device=images.device)
    kernel[0, 0, 1, 1] = 5.0 / 13.0
    sharp = images.to(torch.float32, copy=True)
    smooth = F.conv2d(sharp.flatten(0, 1).unsqueeze(1), kernel).view(
        *images.shape[:2], *(n - 2 for n in images.shape[2:])
    )
    if not images.is_floating_point():
        smooth = smooth.round_()
    inner = sharp[..., 1:-1, 1:-1]
    inner.addcmul_(smooth.sub_(inner), 1.0 - per_image(factor, images))
    return sharp.clamp_(0.0, _bound(images)).to(images.dtype)


def invert(images: Tensor) -> Tensor:
    """White minus the pixel."""
    return 1.0 - images if images.is_floating_point() else images.bitwise_not()


def posterize(images: Tensor, bits: Tensor) -> Tensor:
    """Keep the ``bits`` (B,) highest bits of uint8 pixels; 8 and more keep all."""
    shift = (8 - per_image(bits.to(torch.int64), images)).clamp(0, 8)
    return images & (255 - (2**shift - 1)).to(torch.uint8)


def solarize(images: Tensor, threshold: Tensor) -> Tensor:
    """Invert the uint8 pixels that are at least ``threshold`` (B,), in 0..256."""
    return torch.where(images >= per_image(threshold, images), invert(images), images)


def solarize_add(images: Tensor, addend: Tensor) -> Tensor:
    """Add ``addend`` (B,) to the uint8 pixels below 128, up to white."""
    brighter = images.to(torch.int16).add_(per_image(addend.to(torch.int16), images)).clamp_(0, 255).to(torch.uint8)
    return torch.where(images < 128, brighter, images)


def autocontrast(images: Tensor) -> Tensor:
    """Stretch each channel to the whole range; a constant channel stays."""
    pixels = images.to(torch.float32)
    low = pixels.amin(dim=(2, 3), keepdim=True)
    span = pixels.amax(dim=(2, 3), keepdim=True) - low
    constant = span == 0
    scale = (span * (1.0 / _bound(images))).masked_fill_(constant, 1.0)
    stretched = pixels.sub(low.masked_fill_(constant, 0.0)).div_(scale).clamp_(0.0, _bound(images))
    return stretched.to(images.dtype)


def equalize(images: Tensor) -> Tensor:
    """Flatten the histogram of each channel of uint8 pixels, by the table of PIL's ImageOps.equalize.

    With step = (pixels - pixels of the highest value) // 255, a value v becomes (pixels below v + step // 2) // step,
    at most 255; a channel with step 0 stays.
    """
    channels = images.shape[0] * images.shape[1]
    flat = images.reshape(channels, -1).to(torch.int64)
    offset = torch.arange(channels, device=images.device).unsqueeze(1) * 256
    histogram = torch.bincount((flat + offset).flatten(), minlength=channels * 256).view(channels, 256)
    highest = histogram.gather(1, flat.amax(dim=1, keepdim=True))
    step = (flat.shape[1] - highest) // 255
    below = histogram.cumsum(1) - histogram
    table = ((below + step // 2) // step.clamp(min=1)).clamp_(0, 255)
    table = torch.where(step == 0, torch.arange(256, device=images.device), table).to(torch.uint8)
    return table.gather(1, flat).view_as(images)
