"""A small detector that learns what an object is from masks: the upper bound that a pretrained one stands for."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longtail.data.sources.scenes import load_scenes
from longtail.errors import DataError
from longtail.rng import generator, keyed_global_rng

STEPS = 200
BATCH = 32
RATE = 1e-2
WIDTHS = (24, 32, 32, 32, 32)
DILATIONS = (1, 1, 2, 4, 2)


class SmallDetector(nn.Module):
    """Whether a pixel belongs to an object: five 3x3 convolutions at half the resolution, 35,545 parameters.

    sigmoid of the logits of a fully convolutional network with strides 2, 1, 1, 1, 1 and dilations 1, 1, 2, 4, 2: a
    position sees 39 x 39 pixels, more than an object of 27. The logits are enlarged bilinearly to the image.
    """

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width_in = 3
        for i, (width, dilation) in enumerate(zip(WIDTHS, DILATIONS, strict=True)):
            stride = 2 if i == 0 else 1
            layers += [
                nn.Conv2d(width_in, width, 3, stride=stride, padding=dilation, dilation=dilation, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
            ]
            width_in = width
        self.layers = nn.Sequential(*layers, nn.Conv2d(width_in, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Images uint8 (B, 3, H, W) -> logits float32 (B, H, W)."""
        logits = self.layers(images.float() / 127.5 - 1)
        return F.interpolate(logits, size=images.shape[2:], mode="bilinear", align_corners=False)[:, 0]

    @torch.no_grad()
    def maps(self, images: Tensor) -> Tensor:
        """Images uint8 (B, 3, H, W) of any size -> float32 (B, H, W) in [0, 1], on the device of ``images``.

        The probabilities, averaged over 3 x 3 pixels (fewer at the frame), so that the peak lies within an object and
        not on a lone pixel at its edge. Raises ValueError on another type or shape.
        """
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"images must be uint8 (B, 3, H, W), not {images.dtype} {tuple(images.shape)}.")
        device = next(self.parameters()).device
        probability = self(images.to(device)).sigmoid()
        smooth = F.avg_pool2d(probability[:, None], 3, stride=1, padding=1, count_include_pad=False)[:, 0]
        return smooth.to(images.device)


def train_detector(images: Tensor, masks: Tensor, *, seed: int, steps: int = STEPS) -> SmallDetector:
    """A detector that has learned the object masks of these images, in evaluation mode and without gradients.

    Binary cross-entropy of each pixel, ``steps`` batches of 32 images, half of them mirrored; Adam whose rate falls
    from 0.01 to 0 along a cosine. Everything drawn comes from ``seed``.

    Args:
        images: uint8 (N, 3, H, W); the detector is trained on their device.
        masks: bool (N, H, W), true on the object.
        seed: any integer.
        steps: at least 1.

    Raises:
        DataError: for no image, or no pixel of an object.
        ValueError: on another type or shape.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images must be uint8 (N, 3, H, W), not {images.dtype} {tuple(images.shape)}.")
    if masks.dtype != torch.bool or masks.shape != (len(images), *images.shape[2:]):
        raise ValueError(f"masks must be bool (N, H, W) of the images, not {masks.dtype} {tuple(masks.shape)}.")
    if not bool(masks.any()):
        raise DataError("No mask holds a pixel of an object.", hint="A detector learns from images whose masks do.")
    with keyed_global_rng(seed, "init", "detector"):
        detector = SmallDetector().to(images.device)
    optimizer = torch.optim.Adam(detector.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        batch, target = _batch(images, masks, generator(seed, "detector", step))
        loss = F.binary_cross_entropy_with_logits(detector(batch), target.float())
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()
    return detector.eval().requires_grad_(False)


def _batch(images: Tensor, masks: Tensor, drawn: torch.Generator) -> tuple[Tensor, Tensor]:
    chosen = torch.randint(len(images), (BATCH,), generator=drawn).to(images.device)
    mirrored = (torch.rand(BATCH, generator=drawn) < 0.5).to(images.device)
    batch, target = images[chosen], masks[chosen]
    return (
        torch.where(mirrored[:, None, None, None], batch.flip(3), batch),
        torch.where(mirrored[:, None, None], target.flip(2), target),
    )


def scenes_detector(seed: int = 0) -> SmallDetector:
    """The detector of the embedded set's objects, trained once a process (some 10 s) and kept.

    It learns from the training images of ``load_scenes(seed=seed, imbalance=1)`` and their masks, never from val or
    test. Balanced, because a detector stands for one that was trained elsewhere, before anyone knew of the long tail.
    """
    return _scenes_detector(seed)


# Apart from scenes_detector, whose callers may name the seed or leave it out: the cache would take that for three keys.
@functools.cache
def _scenes_detector(seed: int) -> SmallDetector:
    train = load_scenes(seed=seed, imbalance=1).train
    assert train.masks is not None
    return train_detector(train.stacked, train.masks, seed=seed)
