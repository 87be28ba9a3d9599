"""The same training step behind an ordinary pipeline: PIL images, torchvision's transforms, a DataLoader."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from PIL import Image, ImageFilter
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from longtail.config import Config
from longtail.data.batch import Batch
from longtail.data.loader import Loader
from longtail.data.prepare import Prepared
from longtail.training.optim import build_optimizer
from longtail.training.state import build_method
from longtail.training.updating import update


class Blur:
    """PIL's Gaussian blur with a radius uniform in 0.1 to 2, as the public programs have it."""

    def __call__(self, image: Image.Image) -> Image.Image:
        return image.filter(ImageFilter.GaussianBlur(float(torch.empty(()).uniform_(0.1, 2.0))))


def view(name: str, mean: Sequence[float], std: Sequence[float]) -> transforms.Compose:
    """The view ``name`` of 32 pixels, by torchvision's transforms of PIL images."""
    flip = transforms.RandomHorizontalFlip()
    stages: dict[str, list[Any]] = {
        "crop-flip": [transforms.RandomCrop(32, padding=4), flip],
        "autoaugment": [
            transforms.RandomCrop(32, padding=4),
            flip,
            transforms.AutoAugment(transforms.AutoAugmentPolicy.CIFAR10),
        ],
        "contrastive": [
            transforms.RandomResizedCrop(32, scale=(0.2, 1.0)),
            flip,
            transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.4, 0.1)], 0.8),
            transforms.RandomGrayscale(0.2),
            transforms.RandomApply([Blur()], 0.5),
        ],
    }
    return transforms.Compose([*stages[name], transforms.ToTensor(), transforms.Normalize(mean, std)])


class Images(Dataset[tuple[Tensor, ...]]):
    """Item (i, j): the views of image i, then those of its partner j unless that is negative."""

    def __init__(self, pixels: Any, own: Sequence[transforms.Compose], partner: Sequence[transforms.Compose]) -> None:
        self.pixels, self.own, self.partner = pixels, own, partner

    def __getitem__(self, numbers: tuple[int, int]) -> tuple[Tensor, ...]:
        taken = [(numbers[0], one) for one in self.own]
        taken += [(numbers[1], one) for one in self.partner if numbers[1] >= 0]
        return tuple(one(Image.fromarray(self.pixels[number])) for number, one in taken)


class OrdinaryRun:
    """A second copy of the run: the same method, compiled alike, fed by a DataLoader with the loader's own order."""

    def __init__(self, config: Config, data: Prepared, loader: Loader, workers: int) -> None:
        self.config, self.data, self.loader, self.workers = config, data, loader, workers
        self.method = build_method(config, data.stats.counts, 32)
        if config.run.compile is True:
            self.method.compile_for(config.optim.batch, 32)
        self.method.train()
        self.optimizer = build_optimizer(self.method, config.optim, self.method.rates)
        names = config.views.model_dump()
        needs = loader.needs
        made = [
            [view(names[role], data.mean, data.std) for role in roles] for roles in (needs.views, needs.partner_views)
        ]
        self.images = Images(data.train.images.permute(0, 2, 3, 1).numpy(), *made)
        self.done = 0

    def pairs(self, steps: int) -> list[list[tuple[int, int]]]:
        """Images and partners of the next steps; -1 where a step makes no partner."""
        batches, partners = self.loader.plan(0)
        found = []
        for step in range(self.done, self.done + steps):
            place = step % (len(batches) - 1)  # the last may be short
            with_partner = bool(partners) and self.method.needs_partner(self.loader.progress(place))
            own = batches[place].tolist()
            found.append(list(zip(own, partners[place].tolist() if with_partner else [-1] * len(own), strict=True)))
        return found

    def seconds(self, steps: int) -> float:
        """Seconds a step over ``steps`` steps, waiting for the images included.

        One step goes before, and so many batches are made after the last that the workers are never out of work.
        """
        pairs = self.pairs(1 + steps + 2 * self.workers)
        batches = iter(DataLoader(self.images, batch_sampler=pairs, num_workers=self.workers))
        self.step(batches, pairs[0])
        began = time.perf_counter()
        for number in range(1, steps + 1):
            self.step(batches, pairs[number])
        took = (time.perf_counter() - began) / steps
        for _ in range(2 * self.workers):
            next(batches)
        self.done += 1 + steps
        return took

    def step(self, batches: Iterator[Any], pairs: list[tuple[int, int]]) -> None:
        """One update of the weights, as training does it."""
        images, own = next(batches), len(self.images.own)
        index, other = torch.tensor(pairs).unbind(1)
        partner = None
        if int(other[0]) >= 0:
            partner = Batch(tuple(images[own:]), self.data.train.labels[other], other, None, self.peaks(other))
        batch = Batch(tuple(images[:own]), self.data.train.labels[index], index, partner, self.peaks(index))
        optim = self.config.optim
        update(self.method, self.optimizer, batch, self.loader.progress(self.done), optim.lr, optim)

    def peaks(self, index: Tensor) -> Tensor | None:
        """The peaks of the images as they are, not carried along: less work than the method asks for."""
        return None if self.loader.peaks is None else self.loader.peaks[index]
