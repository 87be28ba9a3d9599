"""AutoAugment and RandAugment: random chains of operations, run on uint8 pixels.

A policy draws, for each image and each of its two slots, an operation and a magnitude. Slot by slot, the images that
share an operation are taken out of the batch, changed together and put back. The published operations are PIL's, whose
truncations belong to them; so a float image is rounded to uint8 on entry.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from longtail.data.views import augment
from longtail.data.views.augment import Params, as_bytes
from longtail.data.views.geometry import clamp_points, uniform, warp

PIXEL_OPERATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "AutoContrast": lambda images, _: augment.autocontrast(images),
    "Equalize": lambda images, _: augment.equalize(images),
    "Invert": lambda images, _: augment.invert(images),
    "Posterize": augment.posterize,
    "Solarize": augment.solarize,
    "SolarizeAdd": augment.solarize_add,
    "Color": augment.adjust_saturation,
    "Contrast": augment.adjust_contrast,
    "Brightness": augment.adjust_brightness,
    "Sharpness": augment.adjust_sharpness,
}
"""Operations on uint8 images (n, 3, H, W) with one magnitude per image: bits, threshold, addend or blend factor."""

WARPS = ("Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY")
"""Operations that move pixels; magnitudes in degrees, slope, pixels."""

OPERATIONS = ("Identity", *PIXEL_OPERATIONS, *WARPS)
"""All names; what is drawn is the position in this tuple."""

NUMBER = {name: number for number, name in enumerate(OPERATIONS)}


def warp_matrices(operation: Tensor, magnitude: Tensor, sizes: Tensor) -> Tensor:
    """Maps (B, 2, 3) from the result's (x, y, 1), counted from the center, to the source; the identity for no warp.

    Rotate turns counter-clockwise about the center; a shear fixes the upper or left edge of the frame, as torchvision's
    policies and PIL's matrix (1, slope, 0, 0, 1, 0) do; a translation is to the right or down.
    """
    is_a = {name: (operation == NUMBER[name]).to(torch.float64) for name in WARPS}
    magnitude = magnitude.to(torch.float64)
    height, width = sizes.to(torch.float64).unbind(1)
    angle = torch.deg2rad(magnitude * is_a["Rotate"])
    shear_x, shear_y = magnitude * is_a["ShearX"], magnitude * is_a["ShearY"]
    x = torch.stack([angle.cos(), shear_x - angle.sin(), shear_x * height / 2 - magnitude * is_a["TranslateX"]], dim=1)
    y = torch.stack([shear_y + angle.sin(), angle.cos(), shear_y * width / 2 - magnitude * is_a["TranslateY"]], dim=1)
    return torch.stack([x, y], dim=1).to(torch.float32)


def apply_operations(images: Tensor, params: Params, fill: Tensor) -> Tensor:
    """Run the slots of ``operation`` (B, slots) with ``magnitude`` and ``matrix`` on uint8 images; ``fill`` (3,)."""
    images = images.clone()
    for slot in range(params["operation"].shape[1]):
        operation, magnitude = params["operation"][:, slot], params["magnitude"][:, slot]
        for name, change in PIXEL_OPERATIONS.items():
            # Chosen on the CPU, where the draws are: asking a GPU how many there are would wait for it.
            chosen = (operation == NUMBER[name]).nonzero().squeeze(1)
            if len(chosen) > 0:
                place = chosen.to(images.device)
                images.index_copy_(0, place, change(images.index_select(0, place), magnitude[chosen]))
        chosen = (operation >= NUMBER[WARPS[0]]).nonzero().squeeze(1)
        if len(chosen) > 0:
            place = chosen.to(images.device)
            moved = warp(images.index_select(0, place), params["matrix"][chosen, slot], fill)
            images.index_copy_(0, place, moved)
    return images


def carry_points(points: Tensor, params: Params) -> Tensor:
    """Points (B, 2) through the warps of all slots."""
    last = (params["size"].to(points.device) - 1).to(torch.float32)
    center = last / 2
    for matrix in params["matrix"].to(points.device).unbind(1):
        offset = (points.to(torch.float32) - center).flip(1) - matrix[:, :, 2]
        source = torch.linalg.solve(matrix[:, :, :2], offset)
        points = clamp_points(source.flip(1) + center, last)
    return points


def carry_masks(masks: Tensor, params: Params) -> Tensor:
    """Masks (B, H, W) through the warps of all slots; 0 where nothing was."""
    for slot in range(params["matrix"].shape[1]):
        chosen = (params["operation"][:, slot] >= NUMBER[WARPS[0]]).nonzero().squeeze(1)
        if len(chosen) > 0:
            place = chosen.to(masks.device)
            moved = warp(masks[place].unsqueeze(1), params["matrix"][chosen, slot], torch.zeros(1)).squeeze(1)
            masks = masks.index_copy(0, place, moved)
    return masks


def _params(operation: Tensor, magnitude: Tensor, sizes: Tensor) -> Params:
    matrices = [warp_matrices(operation[:, s], magnitude[:, s], sizes) for s in range(operation.shape[1])]
    return {
        "operation": operation,
        "magnitude": magnitude.to(torch.float32),
        "matrix": torch.stack(matrices, dim=1),
        "size": sizes.clone(),
    }


class Policy:
    """What the policies share: what was drawn is applied, and carries points and masks along."""

    fill: tuple[float, float, float]
    carries = True

    def apply(self, images: Tensor, params: Params) -> Tensor:
        """(B, 3, S, S) to uint8 (B, 3, S, S)."""
        return apply_operations(as_bytes(images), params, torch.tensor(self.fill).round())

    def carry_points(self, points: Tensor, params: Params) -> Tensor:
        """Points (B, 2) through shear, translation and rotation."""
        return carry_points(points, params)

    def carry_masks(self, masks: Tensor, params: Params) -> Tensor:
        """Masks (B, S, S) through shear, translation and rotation."""
        return carry_masks(masks, params)


Choice = tuple[str, float, int]
"""Operation, probability, level 0..9 (0 where the operation has none)."""

CIFAR10_POLICY: tuple[tuple[Choice, Choice], ...] = (
    (("Invert", 0.1, 0), ("Contrast", 0.2, 6)),
    (("Rotate", 0.7, 2), ("TranslateX", 0.3, 9)),
    (("Sharpness", 0.8, 1), ("Sharpness", 0.9, 3)),
    (("ShearY", 0.5, 8), ("TranslateY", 0.7, 9)),
    (("AutoContrast", 0.5, 0), ("Equalize", 0.9, 0)),
    (("ShearY", 0.2, 7), ("Posterize", 0.3, 7)),
    (("Color", 0.4, 3), ("Brightness", 0.6, 7)),
    (("Sharpness", 0.3, 9), ("Brightness", 0.7, 9)),
    (("Equalize", 0.6, 0), ("Equalize", 0.5, 0)),
    (("Contrast", 0.6, 7), ("Sharpness", 0.6, 5)),
    (("Color", 0.7, 7), ("TranslateX", 0.5, 8)),
    (("Equalize", 0.3, 0), ("AutoContrast", 0.4, 0)),
    (("TranslateY", 0.4, 3), ("Sharpness", 0.2, 6)),
    (("Brightness", 0.9, 6), ("Color", 0.2, 8)),
    (("Solarize", 0.5, 2), ("Invert", 0.0, 0)),
    (("Equalize", 0.2, 0), ("AutoContrast", 0.6, 0)),
    (("Equalize", 0.2, 0), ("Equalize", 0.6, 0)),
    (("Color", 0.9, 9), ("Equalize", 0.6, 0)),
    (("AutoContrast", 0.8, 0), ("Solarize", 0.2, 8)),
    (("Brightness", 0.1, 3), ("Color", 0.7, 0)),
    (("Solarize", 0.4, 5), ("AutoContrast", 0.9, 0)),
    (("TranslateY", 0.9, 9), ("TranslateY", 0.7, 9)),
    (("AutoContrast", 0.9, 0), ("Solarize", 0.8, 3)),
    (("Equalize", 0.8, 0), ("Invert", 0.1, 0)),
    (("TranslateY", 0.7, 9), ("AutoContrast", 0.9, 0)),
)
"""The 25 pairs published for CIFAR-10 (arXiv 1805.09501, table 7)."""

SIGNED = frozenset({*WARPS, "Color", "Contrast", "Brightness", "Sharpness"})
"""AutoAugment's operations whose magnitude is negated half of the time."""


def _translation(level: int) -> float:
    """The share of its side that an image is moved by, of a level 0..9."""
    return 150 / 331 * (level / 9)


def autoaugment_magnitude(operation: str, level: int, signs: Tensor, sizes: Tensor) -> Tensor:
    """The magnitude of a level 0..9, (n,) float64, for ``signs`` (n,) in {-1, 1} and image ``sizes`` (n, 2)."""
    part = level / 9
    constant = {
        "Rotate": 30.0 * part,
        "ShearX": 0.3 * part,
        "ShearY": 0.3 * part,
        "Posterize": float(round(8 - 4 * part)),
        "Solarize": 255.0 * (1 - part),
    }
    if operation in ("TranslateX", "TranslateY"):
        side = sizes[:, 1 if operation == "TranslateX" else 0]
        return signs * (side * _translation(level)).floor()
    if operation in ("Color", "Contrast", "Brightness", "Sharpness"):
        return 1.0 + signs * (0.9 * part)
    return (signs if operation in SIGNED else torch.ones_like(signs)) * constant.get(operation, 0.0)


class _Wanted(NamedTuple):
    """CIFAR10_POLICY as tables (25, 2), because a draw of the choices one by one takes as long as applying them.

    ``positive`` and ``negative`` are the magnitudes by sign, but for translations: these are ``share`` of the side.
    """

    operation: Tensor
    probability: Tensor
    positive: Tensor
    negative: Tensor
    share: Tensor

    @classmethod
    def of_policy(cls) -> _Wanted:
        choices = [choice for pair in CIFAR10_POLICY for choice in pair]
        unsized = torch.zeros(1, 2, dtype=torch.int64)
        by_sign = [
            torch.cat([autoaugment_magnitude(name, level, sign, unsized) for name, _, level in choices])
            for sign in torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
        ]
        share = [_translation(level) if name.startswith("Translate") else 0.0 for name, _, level in choices]
        numbers = torch.tensor([NUMBER[name] for name, _, _ in choices])
        probability = torch.tensor([probability for _, probability, _ in choices], dtype=torch.float64)
        return cls(*(table.view(-1, 2) for table in (numbers, probability, *by_sign, torch.tensor(share))))


_WANTED = _Wanted.of_policy()


@dataclasses.dataclass(frozen=True)
class AutoAugment(Policy):
    """One of the 25 pairs of AutoAugment's CIFAR-10 policy per image, each operation with its own probability.

    Cubuk et al., arXiv 1805.09501. Paper: magnitudes in ten levels. Authors' program of ConCutMix: rotates to one side
    only, translates by fractions of a pixel, shears with bicubic interpolation, solarizes at 256 (1 - level / 9), fills
    with gray. Here: torchvision's ``AutoAugmentPolicy.CIFAR10`` (magnitudes, random signs, whole-pixel translations,
    nearest interpolation) with fill 128, because it is the same in kind and has a public reference to test against.
    """

    fill: tuple[float, float, float] = (128.0, 128.0, 128.0)

    def draw(self, sizes: Tensor, generator: torch.Generator) -> Params:
        """``pair`` (B,), and per slot ``operation`` (B, 2), ``magnitude`` (B, 2) and ``matrix`` (B, 2, 2, 3)."""
        count = len(sizes)
        pair = (uniform((count,), 0.0, 1.0, generator) * len(CIFAR10_POLICY)).to(torch.int64)
        chance = uniform((count, 2), 0.0, 1.0, generator)
        sign = torch.where(uniform((count, 2), 0.0, 1.0, generator) < 0.5, -1.0, 1.0).to(torch.float64)
        wanted = _WANTED.operation[pair]
        operation = torch.where(chance < _WANTED.probability[pair], wanted, 0)
        side = torch.where(wanted == NUMBER["TranslateX"], sizes[:, 1:], sizes[:, :1])
        pixels = sign * (side * _WANTED.share[pair]).floor()
        fixed = torch.where(sign > 0, _WANTED.positive[pair], _WANTED.negative[pair])
        magnitude = torch.where(operation > 0, fixed + pixels, 0.0)
        return {"pair": pair, **_params(operation, magnitude, sizes)}


RANDAUGMENT_OPERATIONS = tuple(name for name in OPERATIONS if name != "Identity")
"""The 15 operations that RandAugment draws from."""


def randaugment_magnitude(operation: str, m: Tensor, signs: Tensor, sizes: Tensor) -> Tensor:
    """The magnitude of m in [0, 10], (n,), for ``signs`` (n,) in {-1, 1} and image ``sizes`` (n, 2)."""
    magnitudes: dict[str, Callable[[], Tensor]] = {
        "Rotate": lambda: signs * 3.0 * m,
        "ShearX": lambda: signs * 0.03 * m,
        "ShearY": lambda: signs * 0.03 * m,
        "TranslateX": lambda: signs * 0.045 * m * sizes[:, 1],
        "TranslateY": lambda: signs * 0.045 * m * sizes[:, 0],
        "Posterize": lambda: (0.4 * m).floor(),
        "Solarize": lambda: (25.6 * m).floor(),
        "SolarizeAdd": lambda: (11.0 * m).floor(),
        "Color": lambda: 0.1 + 0.18 * m,
        "Contrast": lambda: 0.1 + 0.18 * m,
        "Brightness": lambda: 0.1 + 0.18 * m,
        "Sharpness": lambda: 0.1 + 0.18 * m,
    }
    return magnitudes[operation]() if operation in magnitudes else torch.zeros_like(m)


@dataclasses.dataclass(frozen=True)
class RandAugment(Policy):
    """``count`` operations out of 15 with replacement, each applied with probability 1/2.

    Cubuk et al., arXiv 1909.13719, as the ConCutMix authors run it at ImageNet size (n 2, m 10, mstd 0.5): m is drawn
    for each operation from N(magnitude, deviation), cut to [0, 10]. Paper: one m for all, no skipping. ``fill`` is the
    mean color in 0..255. Authors' program: warps interpolate. Here: they take the nearest pixel, as AutoAugment does.
    Solarize inverts what is at least its threshold, as PIL does, so at m = 10 (threshold 256) it changes nothing.
    """

    fill: tuple[float, float, float]
    count: int = 2
    magnitude: float = 10.0
    deviation: float = 0.5

    def draw(self, sizes: Tensor, generator: torch.Generator) -> Params:
        """Per slot ``operation`` (B, count), ``magnitude`` (B, count) and ``matrix`` (B, count, 2, 3)."""
        shape = (len(sizes), self.count)
        kinds = len(RANDAUGMENT_OPERATIONS)
        # Identity is operation 0 and the 15 follow it.
        drawn = 1 + (uniform(shape, 0.0, 1.0, generator) * kinds).to(torch.int64)
        operation = torch.where(uniform(shape, 0.0, 1.0, generator) < 0.5, drawn, 0)
        m = torch.randn(shape, generator=generator, dtype=torch.float64) * self.deviation + self.magnitude
        m = m.clamp(0.0, 10.0)
        sign = torch.where(uniform(shape, 0.0, 1.0, generator) < 0.5, -1.0, 1.0).to(torch.float64)
        magnitude = torch.zeros(shape, dtype=torch.float64)
        for slot in range(self.count):
            for name in RANDAUGMENT_OPERATIONS:
                at = (operation[:, slot] == NUMBER[name]).nonzero().squeeze(1)
                magnitude[at, slot] = randaugment_magnitude(name, m[at, slot], sign[at, slot], sizes[at])
        return _params(operation, magnitude, sizes)
