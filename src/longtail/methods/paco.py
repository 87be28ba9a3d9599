"""Parametric contrastive learning: a classifier's classes and a queue of keys in one contrastive loss.

Cui et al., "Parametric Contrastive Learning", ICCV 2021, arXiv 2107.12028; docs/methods/paco.md has what differs.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from longtail.losses import logit_adjustment
from longtail.losses.parametric import parametric_contrastive_terms
from longtail.methods.base import Batch, DataNeeds, Method, Progress, StepOutput
from longtail.methods.criteria import LabelSettings, answers_for
from longtail.methods.mixings import soft_target
from longtail.models.network import ModelSettings, Network, ProjectionSettings


class PaCoSettings(LabelSettings):
    """``method.*`` of parametric contrastive learning; the defaults are the authors' for CIFAR-100."""

    alpha: float = Field(0.01, ge=0)
    """Weight of each image of the same class among the positives."""
    beta: float = Field(1.0, gt=0)
    """Weight of the class center among the positives."""
    temperature: float = Field(0.05, gt=0)
    """Of the similarities of images; the classifier's logits have none."""
    queue: int = Field(1024, ge=0)
    """Keys of earlier steps that images are compared with."""
    momentum: float = Field(0.999, ge=0, le=1)
    """Share of itself that the key encoder keeps in a step; the rest is the trained network's."""
    hidden: int = Field(64, ge=1)
    """Hidden width of the projection MLP."""
    dim: int = Field(32, ge=1)
    """Width of the projections."""


class PaCo(Method):
    """The parametric contrastive loss of queries against class centers, each other, their keys and a queue of keys.

    Queries q = u(x) / |u(x)| and logits l = W h(x) + b + log pi come from the trained network and the classification
    view, keys from the contrastive view and a key encoder. In training, once a step and before its passes, the key
    encoder moves, k := m k + (1 - m) w, and in step 0 k := w, with an empty queue. A step's keys enter the queue for
    the steps after it. ``parametric_contrastive_loss`` has the loss.

    The key encoder's weights are buffers: they are saved and resumed, and are none of the parameters that an optimizer
    takes. Micro-batches of a step see the same key encoder and queue, and so does SAM's second pass, which is of places
    in the run that have been there before.
    """

    # Step 0 makes them from the network that init=RUN gave.
    never_from_init = ("key_encoder.", "queue")

    def __init__(
        self, settings: PaCoSettings, model: ModelSettings, counts: Sequence[int], *, size: int, seed: int
    ) -> None:
        super().__init__()
        self.settings, self.classes = settings, len(counts)
        self.needs = DataNeeds(views=("classification", "contrastive"))
        sizes = ProjectionSettings(hidden=settings.hidden, dim=settings.dim)
        self.network = Network(model, self.classes, seed=seed, size=size, projection=sizes)
        self.key_encoder = untrained_copy(self.network)
        self.register_buffer("offset", logit_adjustment(counts, 1.0), persistent=False)
        self.answers_for = answers_for(counts, offset=logit_adjustment(counts, 1.0))
        self.register_buffer("queue", torch.zeros(settings.queue, settings.dim))
        self.register_buffer("queue_labels", torch.full((settings.queue,), -1))
        self.register_buffer("queue_end", torch.zeros((), dtype=torch.int64))
        self.offset: Tensor
        self.queue: Tensor
        self.queue_labels: Tensor
        self.queue_end: Tensor
        # Of the step that is under way. A checkpoint is of whole steps, so none of this is in it.
        self._step: int | None = None
        self._places: set[Progress] = set()
        self._before = (self.queue, self.queue_labels)

    def stacks(self) -> tuple[int, ...]:
        return (1,)

    def compile_for(
        self, batch: int, size: int, contrastive_size: int | None = None, progressive_size: int | None = None
    ) -> None:
        sides, small = (size, progressive_size or size), contrastive_size or size
        self.network.compile_for(*(torch.Size((batch, 3, side, side)) for side in sides))
        self.key_encoder.compile_for(*(torch.Size((batch, 3, min(side, small), min(side, small))) for side in sides))

    def forward(self, batch: Batch, at: Progress) -> StepOutput:
        own, labels = self.settings, batch.target
        images, others = batch.views
        if self.training and at.step != self._step:
            self.begin(at)
        features = self.network.features_of(images, shares=batch.shares)
        queries = F.normalize(self.network.project(features), dim=1)
        # No torch.no_grad: nothing in here is trained, so there is a graph only where someone asks for the pixels'.
        seen = self.key_encoder.features_of(others, shares=batch.shares)
        keys = F.normalize(self.key_encoder.project(seen), dim=1)

        queue, queue_labels = self._before if self.training else (self.queue, self.queue_labels)
        center, samples = parametric_contrastive_terms(
            queries,
            labels,
            self.network.classifier(features),
            torch.cat((keys, queue)),
            torch.cat((labels, queue_labels)),
            temperature=own.temperature,
            alpha=own.alpha,
            beta=own.beta,
            offset=self.offset,
            target=own.smoothed(soft_target(labels, self.classes)) if own.label_smoothing > 0 else None,
        )
        if self.training and at not in self._places:
            self._places.add(at)
            self.enqueue(keys, labels)
        logs = {"classification": center.detach(), "contrastive": samples.detach()}
        return StepOutput(center + samples, logs, len(features) + len(seen))

    def given_weights(self) -> None:
        # Step 0 does it too; but where that is skipped for a value that is not finite, buffers are put back to these.
        self.follow()

    def forget_step(self) -> None:
        self._step, self._places = None, set()

    @torch.no_grad()
    def begin(self, at: Progress) -> None:
        """Move the key encoder toward the network and keep the queue that all passes of this step look at."""
        self._step, self._places = at.step, set()
        if at.step == 0:
            # Not where it is built: the network may have been given other weights since.
            self.follow()
            self.queue.zero_()
            self.queue_labels.fill_(-1)
            self.queue_end.zero_()
        else:
            keys = self.key_encoder.state_dict()
            for name, parameter in self.network.named_parameters():
                if name in keys:
                    keys[name].lerp_(parameter, 1 - self.settings.momentum)
        self._before = (self.queue.clone(), self.queue_labels.clone())

    @torch.no_grad()
    def follow(self) -> None:
        """Give the key encoder the weights and statistics of the network."""
        keys = self.key_encoder.state_dict()
        for name, value in self.network.state_dict().items():
            if name in keys:
                keys[name].copy_(value)

    @torch.no_grad()
    def enqueue(self, keys: Tensor, labels: Tensor) -> None:
        """Put keys (B, D) and their labels in the place of the oldest; of more than the queue holds, the last."""
        places = len(self.queue)
        if places == 0:
            return
        keys, labels = keys[-places:], labels[-places:]
        taken = (self.queue_end + torch.arange(len(keys), device=keys.device)) % places
        self.queue[taken] = keys.to(self.queue)
        self.queue_labels[taken] = labels
        self.queue_end.copy_((self.queue_end + len(keys)) % places)


def untrained_copy(network: Network) -> Network:
    """A copy of the network without its classifier, whose weights are buffers: saved and moved, but not trained."""
    copied = copy.deepcopy(network)
    del copied.classifier
    for module in copied.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            delattr(module, name)
            module.register_buffer(name, parameter.detach())
    return copied
