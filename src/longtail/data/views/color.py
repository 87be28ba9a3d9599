"""Color stages of a view: pixels change and stay in their places."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from longtail.data.views import augment
from longtail.data.views.augment import Params, as_float
from longtail.data.views.geometry import uniform


class Color:
    """What all color stages share: pixels stay in their places, so points and masks do too."""

    carries = True

    def carry_points(self, points: Tensor, params: Params) -> Tensor:
        """The same points."""
        return points

    def carry_masks(self, masks: Tensor, params: Params) -> Tensor:
        """The same masks."""
        return masks


@dataclasses.dataclass(frozen=True)
class ColorJitter(Color):
    """Brightness, contrast, saturation and hue in a fresh random order per image, with probability ``probability``.

    Factors uniform in [1 - x, 1 + x], the hue's shift uniform in [-hue, hue] turns, as torchvision's ``ColorJitter`` on
    float images: nothing is rounded in between.
    """

    brightness: float
    contrast: float
    saturation: float
    hue: float
    probability: float = 1.0

    def draw(self, sizes: Tensor, generator: torch.Generator) -> Params:
        """``amount`` (B, 4) in the order of the fields, ``order`` (B, 4) of their numbers, ``jitter`` (B,) bool."""
        count = len(sizes)
        reach = torch.tensor([self.brightness, self.contrast, self.saturation, self.hue], dtype=torch.float64)
        center = torch.tensor([1.0, 1.0, 1.0, 0.0], dtype=torch.float64)
        amount = uniform((count, 4), -1.0, 1.0, generator) * reach + center
        return {
            "amount": amount.to(torch.float32),
            "order": uniform((count, 4), 0.0, 1.0, generator).argsort(dim=1),
            "jitter": uniform((count,), 0.0, 1.0, generator) < self.probability,
        }

    def apply(self, images: Tensor, params: Params) -> Tensor:
        """(B, 3, S, S) to float (B, 3, S, S) in [0, 1]."""
        operations = (
            augment.adjust_brightness,
            augment.adjust_contrast,
            augment.adjust_saturation,
            augment.adjust_hue,
        )
        images = as_float(images).clone()
        for position in range(4):
            for number, change in enumerate(operations):
                chosen = (params["jitter"] & (params["order"][:, position] == number)).nonzero().squeeze(1)
                if len(chosen) > 0 and not (number == 3 and self.hue == 0):
                    place = chosen.to(images.device)
                    amount = params["amount"][chosen, number]
                    images.index_copy_(0, place, change(images.index_select(0, place), amount))
        return images


@dataclasses.dataclass(frozen=True)
class Grayscale(Color):
    """Gray with probability ``probability``."""

    probability: float

    def draw(self, sizes: Tensor, generator: torch.Generator) -> Params:
        """``gray`` (B,) bool."""
        return {"gray": uniform((len(sizes),), 0.0, 1.0, generator) < self.probability}

    def apply(self, images: Tensor, params: Params) -> Tensor:
        """(B, 3, S, S) to the same shape and kind."""
        place = params["gray"].nonzero().squeeze(1).to(images.device)
        return images.index_copy(0, place, augment.grayscale(images.index_select(0, place)))


@dataclasses.dataclass(frozen=True)
class GaussianBlur(Color):
    """Blur with probability ``probability`` and a standard deviation uniform in ``sigma``, in pixels.

    Paper (SimCLR, arXiv 2002.05709): a kernel of a tenth of the side, which at 32 pixels is 3 and hardly blurs.
    Authors' program of ConCutMix: PIL's blur, three box filters without a bound, with the border pixels repeated. Here:
    the Gaussian itself cut at 3 times the largest sigma and reflected at the border, as torchvision's ``gaussian_blur``
    with a kernel of that size, because it is what PIL approximates and can be tested exactly.
    """

    probability: float
    sigma: tuple[float, float] = (0.1, 2.0)

    def draw(self, sizes: Tensor, generator: torch.Generator) -> Params:
        """``blur`` (B,) bool and ``sigma`` (B,)."""
        return {
            "blur": uniform((len(sizes),), 0.0, 1.0, generator) < self.probability,
            "sigma": uniform((len(sizes),), *self.sigma, generator).to(torch.float32),
        }

    def apply(self, images: Tensor, params: Params) -> Tensor:
        """(B, 3, S, S) to float (B, 3, S, S) in [0, 1]."""
        images = as_float(images)
        chosen = params["blur"].nonzero().squeeze(1)
        place = chosen.to(images.device)
        radius = int(3 * self.sigma[1] + 0.5)
        blurred = augment.gaussian_blur(images.index_select(0, place), params["sigma"][chosen], radius)
        return images.index_copy(0, place, blurred)
