"""Batches as a pure function of the step: plan, views and partner all come from keyed draws."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from longtail.data.batch import Batch, DataNeeds, Progress
from longtail.data.images import ImageSet
from longtail.data.sampling import epoch_plan, sampler_named
from longtail.data.views import View, select
from longtail.errors import ConfigError
from longtail.rng import generator


class Loader:
    """Makes the batch of any step of any epoch, alone.

    The images stay stacked on one device as uint8; ``views`` maps a role to its augmentation. With ``workers`` > 0
    that many threads make batches ahead; the batches are the same. ``peaks`` (N, 2) are the salient peaks of the
    training images, row and column, where ``needs.detector`` names one; the first view carries them along. ``own``
    says which images of a batch of n this process makes views of, by their places (b,): draws are those of the batch.
    From epoch ``refined_from`` on the view ``refined`` stands in for the view ``classification``.
    """

    def __init__(
        self,
        train: ImageSet,
        needs: DataNeeds,
        views: Mapping[str, View],
        batch: int,
        epochs: int,
        seed: int,
        *,
        workers: int = 0,
        peaks: Tensor | None = None,
        own: Callable[[int], Tensor] | None = None,
        refined_from: int | None = None,
    ) -> None:
        self.train, self.needs, self.views = train, needs, views
        if (peaks is None) != (needs.detector is None) or (peaks is not None and peaks.shape != (len(train), 2)):
            given = "none" if peaks is None else tuple(peaks.shape)
            raise ConfigError(f"The method's detector is {needs.detector}, and the peaks given are {given}.")
        self.peaks, self.own, self.refined_from = peaks, own, refined_from
        self.batch_size, self.epochs, self.seed, self.workers = batch, epochs, seed, workers
        self.labels = train.labels.cpu()
        self._plans: dict[int, tuple[list[Tensor], list[Tensor]]] = {}
        self.steps_per_epoch = len(self.plan(0)[0])

    def progress(self, step: int) -> Progress:
        """The place of a step, counted from 0 over the whole run."""
        return Progress(step, step // self.steps_per_epoch, self.epochs, self.seed)

    def role_at(self, role: str, step: int) -> str:
        """The role whose view is made for ``role`` in this step."""
        refines = self.refined_from is not None and self.progress(step).epoch >= self.refined_from
        return "refined" if refines and role == "classification" else role

    def plan(self, epoch: int) -> tuple[list[Tensor], list[Tensor]]:
        """Index lists of an epoch's batches, and of their partners where the method wants any."""
        plans = self._plans  # another thread may replace the dict by that of another epoch
        if epoch not in plans:
            self._plans = plans = {epoch: self._draw_plan(epoch)}
        return plans[epoch]

    def _draw_plan(self, epoch: int) -> tuple[list[Tensor], list[Tensor]]:
        own, order = sampler_named(self.needs.sampler, self.needs.beta), generator(self.seed, "order", epoch)
        batches = epoch_plan(self.labels, self.batch_size, order, sampler=own)
        if not self.needs.partner:
            return batches, []
        sampler = sampler_named(self.needs.partner_sampler, self.needs.beta)
        order = generator(self.seed, "partner order", epoch)
        drawn = sampler(self.labels, len(self.train), order)
        return batches, list(torch.split(drawn, [len(indices) for indices in batches]))

    def batch(self, step: int, *, with_partner: bool, roles: Sequence[str] | None = None) -> Batch:
        """The batch of a step; its partner only where the method says that this step uses one.

        ``roles`` are the views that it uses, the first ones of ``needs.views``; None is all of them.
        """
        epoch, position = divmod(step, self.steps_per_epoch)
        batches, partners = self.plan(epoch)
        partner = None
        if with_partner:
            partner = self._make(partners[position], self.needs.partner_views, "partner view", step)
        return self._make(batches[position], self.needs.views if roles is None else roles, "view", step, partner)

    def _make(
        self, indices: Tensor, roles: Sequence[str], purpose: str, step: int, partner: Batch | None = None
    ) -> Batch:
        device = self.train.images.device
        own = None if self.own is None else self.own(len(indices))
        images = self.train.images[(indices if own is None else indices[own]).to(device)]
        made, peaks = [], None
        for number, role in enumerate(roles):
            view, draws = self.views[self.role_at(role, step)], generator(self.seed, purpose, number, step)
            params = view.draw(torch.tensor(images.shape[-2:]).expand(len(indices), 2), draws)
            made.append(view.apply(images, params if own is None else select(params, own)))
            if number == 0 and self.peaks is not None:
                peaks = view.carry_points(self.peaks[indices], params).round().to(torch.int64)
        return Batch(tuple(made), self.train.labels[indices.to(device)], indices, partner, peaks)

    def iterate(
        self,
        start: int,
        stop: int,
        wants_partner: Callable[[Progress], bool],
        views_at: Callable[[Progress], Sequence[str] | None] = lambda at: None,
    ) -> Iterator[Batch]:
        """The batches of steps ``start`` to ``stop`` - 1, made ahead by threads where ``workers`` > 0."""

        def make(step: int) -> Batch:
            at = self.progress(step)
            return self.batch(step, with_partner=wants_partner(at), roles=views_at(at))

        if not self.workers:
            yield from map(make, range(start, stop))
            return
        with ThreadPoolExecutor(self.workers, thread_name_prefix="longtail-batch") as pool:
            ahead: deque[Future[Batch]] = deque()
            for step in range(start, min(start + self.workers, stop)):
                ahead.append(pool.submit(make, step))
            for step in range(start + self.workers, stop + self.workers):
                batch = ahead.popleft().result()
                if step < stop:
                    ahead.append(pool.submit(make, step))
                yield batch
