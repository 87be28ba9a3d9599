"""What a method is: an nn.Module whose forward returns the loss, and that declares the data it needs."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor, nn

from longtail.data.batch import Batch, DataNeeds, Progress
from longtail.models.network import Network

__all__ = ["Answers", "Batch", "DataNeeds", "Method", "Progress", "StepOutput"]

Answers = Literal["training", "uniform"]
"""A class prior that a softmax may be for: that of the training images, or one that is equal for all classes."""


@dataclass(frozen=True)
class StepOutput:
    """The scalar loss with its graph, detached scalars to log, and how many images went through the network for it.

    ``forwarded`` None is what most methods do: every view of the batch once.
    """

    loss: Tensor
    logs: dict[str, Tensor] = field(default_factory=dict)
    forwarded: int | None = None


class Method(nn.Module, abc.ABC):
    """A way to train a ``network``: ``forward(batch, at)`` gives the loss, ``logits(images)`` what is evaluated."""

    needs: DataNeeds
    network: Network
    from_init: tuple[str, ...] = ()
    """What ``init`` has to hold whole, as beginnings of tensor names; a method that names none takes what fits."""
    never_from_init: tuple[str, ...] = ()
    """What begins anew even where ``init`` holds it, as beginnings of tensor names."""
    rates: Mapping[str, float] = MappingProxyType({})
    """Multiples of the learning rate, by beginnings of parameter names; 1 for the others."""
    leaves_unused = False
    """Whether some step gives some parameter no gradient: several processes have to know, to wait for none."""
    answers_for: Answers = "training"
    """The class prior for which softmax(``logits``) is the probability of a class: what the loss asks for at its
    optimum, not what a network that memorizes its images does."""

    @abc.abstractmethod
    def forward(self, batch: Batch, at: Progress) -> StepOutput:
        """The loss of one step."""

    def logits(self, images: Tensor) -> Tensor:
        """Normalized images (B, 3, H, W) to logits (B, C) without the training offset."""
        return self.network.logits(images)

    def needs_partner(self, at: Progress) -> bool:
        """Whether this step uses a partner batch; where it does not, none is made."""
        return self.needs.partner

    def views_at(self, at: Progress) -> tuple[str, ...]:
        """The views of each image that this step uses: the first ones of ``needs.views``; no more are made."""
        return self.needs.views

    def see_at(self, side: int | None) -> None:
        """Let every network see training images at ``side`` pixels at most from now on; None is in full."""
        for network in self.networks():
            network.seen_at = network.size if side is None else min(side, network.size)

    def take_saved_passes(self) -> float:
        """Passes of full images that were saved since this was last asked, by images of fewer pixels."""
        return sum(network.take_saved_passes() for network in self.networks())

    def networks(self) -> list[Network]:
        """Every network of the method: the one that is trained and what encodes beside it."""
        return [module for module in self.modules() if isinstance(module, Network)]

    def given_weights(self) -> None:
        """The network was given weights to begin with: what is made of them is made anew."""

    def forget_step(self) -> None:
        """Forget what is kept within a step: weights and buffers were put back, and the same step may come again."""

    def stacks(self) -> tuple[int, ...]:
        """How many batches of images a step sends through the network at once: the usual number first."""
        return (len(self.needs.views),)

    def compile_for(
        self, batch: int, size: int, contrastive_size: int | None = None, progressive_size: int | None = None
    ) -> None:
        """Compile the network for full training batches of ``batch`` images of ``size`` pixels, all views stacked.

        Contrastive views of another size are a stack of their own. With ``progressive_size`` both are compiled: what
        the network sees of them in the first part of a run, and in the second.
        """
        shapes: list[torch.Size] = []
        for side in dict.fromkeys((size, progressive_size or size)):
            small = min(contrastive_size or side, side)
            contrastive = self.needs.views.count("contrastive") if small != side else 0
            for stack in self.stacks():
                apart = contrastive if stack > contrastive else 0  # else a step without them
                shapes.append(torch.Size(((stack - apart) * batch, 3, side, side)))
            if contrastive:
                shapes.append(torch.Size((contrastive * batch, 3, small, small)))
        self.network.compile_for(*shapes)
