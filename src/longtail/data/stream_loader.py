"""Batches of image files: windows are cut by the readers, the rest of a view is computed on the stack."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from longtail.data.batch import Batch, Progress
from longtail.data.images import ImageSet
from longtail.data.loader import Loader
from longtail.data.reading.cutting import Cut, Draw, Part, Square, cut, sizes_of, tensor
from longtail.data.reading.image_files import ImageFiles, parts_of, refuse_broken
from longtail.data.reading.readers import Asked
from longtail.data.reading.squares import fitting
from longtail.data.views import View, select
from longtail.data.views.geometry import ResizedCrop
from longtail.rng import generator

AHEAD = 2
"""Steps of which the images are asked for while one is computed."""

NO_SIZES = torch.empty(0, 2, dtype=torch.int64)


class _Request(NamedTuple):
    parts: list[Part]
    asked: Asked[Cut]


class StreamLoader(Loader):
    """Makes the batch of any step of any epoch from image files; otherwise as :class:`Loader`.

    A view that begins with a resized crop has its window from the whole image, any other begins with the middle square
    at ``data.size``, as it would in memory. ``peaks`` (N, 2) are float64, row and column as shares of the sides of the
    whole image. At most ``AHEAD + 1`` steps of images are in memory.
    """

    @property
    def files(self) -> ImageFiles:
        """The training images, unread."""
        assert isinstance(self.train.images, ImageFiles)
        return self.train.images

    @functools.cached_property
    def _requests(self) -> dict[tuple[str, int], _Request]:
        return {}

    def _make(
        self, indices: Tensor, roles: Sequence[str], purpose: str, step: int, partner: Batch | None = None
    ) -> Batch:
        request = self._requests.pop((purpose, step)) if (purpose, step) in self._requests else None
        parts, asked = self._request(indices, roles, purpose, step) if request is None else request
        found = asked.take()
        refuse_broken(parts, found)
        own = self._own(len(indices))
        sizes = self._sizes(indices, own, torch.cat([NO_SIZES, *(torch.from_numpy(one.sizes) for one in found)]))
        made, peaks = [], None
        for number, role in enumerate(roles):
            view, draws = self.views[self.role_at(role, step)], generator(self.seed, purpose, number, step)
            cuts = _cuts_windows(view)
            side = view.size if cuts else self.files.size
            none = torch.empty(0, 3, side, side, dtype=torch.uint8)  # where a process has no image of the batch
            pixels = torch.cat([none, *(tensor(one.pixels[number]) for one in found)]).to(self.files.device)
            params = view.draw(sizes if cuts else torch.tensor(pixels.shape[-2:]).expand(len(indices), 2), draws)
            made.append(view.apply(pixels, select(params, own), done=1 if cuts else 0))
            if number == 0 and self.peaks is not None:
                places = self.peaks[indices] * sizes - 0.5
                if not cuts:
                    places = _in_square(places, sizes, self.files)
                peaks = view.carry_points(places, params).round().to(torch.int64)
        placed = indices.to(self.train.labels.device)
        return Batch(tuple(made), self.train.labels[placed], indices, partner, peaks)

    def _request(self, indices: Tensor, roles: Sequence[str], purpose: str, step: int) -> _Request:
        views = [self.views[self.role_at(role, step)] for role in roles]
        cuts = tuple(self._first(view, (self.seed, purpose, n, step)) for n, view in enumerate(views))
        own = self._own(len(indices))
        files = [self.files.files[i] for i in indices[own].tolist()] if cuts else []  # of partners by label alone
        parts = parts_of(files, cuts, own.tolist(), len(indices), scaled=self.files.scaled)
        return _Request(parts, Asked(cut, parts))

    def _own(self, images: int) -> Tensor:
        """The places of a batch whose images this process makes: all where it is alone."""
        return torch.arange(images) if self.own is None else self.own(images)

    def _sizes(self, indices: Tensor, own: Tensor, read: Tensor) -> Tensor:
        """Sizes (B, 2) of a batch's images, of which ``read`` are this process's.

        A row of a draw depends on the size in that row alone, so the others' count only where peaks are carried: then
        they are read from the headers of their files.
        """
        if len(own) == len(indices):
            return read
        if self.peaks is None:
            sizes = torch.ones(len(indices), 2, dtype=torch.int64)
        else:
            sizes = torch.from_numpy(sizes_of([self.files.files[i] for i in indices.tolist()])[0])
        sizes[own] = read
        return sizes

    def _first(self, view: View, key: tuple[int | str, ...]) -> Draw | Square:
        if _cuts_windows(view):
            stage = view.stages[0]
            assert isinstance(stage, ResizedCrop)
            return Draw(stage, key)
        return (self.files.size, self.files.share)

    def iterate(
        self,
        start: int,
        stop: int,
        wants_partner: Callable[[Progress], bool],
        views_at: Callable[[Progress], Sequence[str] | None] = lambda at: None,
    ) -> Iterator[Batch]:
        """The batches of steps ``start`` to ``stop`` - 1; the readers are some steps ahead."""
        asked = start
        try:
            for step in range(start, stop):
                while self.workers and asked < min(step + 1 + AHEAD, stop):
                    ahead = self.progress(asked)
                    self._ask(asked, wants_partner(ahead), views_at(ahead))
                    asked += 1
                at = self.progress(step)
                yield self.batch(step, with_partner=wants_partner(at), roles=views_at(at))
        finally:
            for request in self._requests.values():
                request.asked.drop()
            self._requests.clear()

    def _ask(self, step: int, with_partner: bool, views: Sequence[str] | None) -> None:
        epoch, position = divmod(step, self.steps_per_epoch)
        own, partners = self.plan(epoch)
        roles = self.needs.views if views is None else views
        self._requests["view", step] = self._request(own[position], roles, "view", step)
        if with_partner:
            roles = self.needs.partner_views
            self._requests["partner view", step] = self._request(partners[position], roles, "partner view", step)


def loader_for(images: ImageSet) -> type[Loader]:
    """The kind of loader: for images in memory, or for image files."""
    return StreamLoader if isinstance(images.images, ImageFiles) else Loader


def _cuts_windows(view: View) -> bool:
    return bool(view.stages) and isinstance(view.stages[0], ResizedCrop)


def _in_square(places: Tensor, sizes: Tensor, files: ImageFiles) -> Tensor:
    """Points (B, 2) of whole images of ``sizes`` (B, 2), in their middle squares; moved into them if outside."""
    moved = []
    for place, (height, width) in zip(places, sizes.tolist(), strict=True):
        shape, window = fitting(height, width, files.size, files.share)
        corner = torch.tensor([window[1].start, window[2].start])
        scale = torch.tensor(shape, dtype=torch.float64) / torch.tensor([height, width])
        moved.append((place + 0.5) * scale - 0.5 - corner)
    return torch.stack(moved).clamp(0, files.size - 1)
