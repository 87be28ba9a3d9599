"""Image files in the place of stacked images, for sets that do not fit into memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from longtail.data.reading.cutting import Cut, Draw, Part, Square, cut, tensor
from longtail.data.reading.listing import first_few, shown
from longtail.data.reading.members import Place
from longtail.data.reading.readers import in_turn
from longtail.errors import DataError

PART = 32
"""Files that a reader is given at once."""

_CPU = torch.device("cpu")


@dataclasses.dataclass(frozen=True)
class ImageFiles:
    """Files of images that stand for their middle squares (N, 3, size, size) uint8, read when they are asked for.

    A file is one of its own or a member of a tar file. The square is ``share`` of the short side (see
    :func:`~longtail.data.reading.squares.middle_square`). What is read arrives on ``device``. ``scaled`` lets windows,
    which squares are not, be read by :func:`~longtail.data.reading.jpeg.read_windows`. Raises DataError naming the
    files that cannot be read. ``shorter_side`` is that of the listing: names do not tell shrunk images
    from others.
    """

    files: Sequence[Place]
    size: int
    share: float = 1.0
    device: torch.device = _CPU
    scaled: bool = False
    shorter_side: int | None = None

    def __len__(self) -> int:
        return len(self.files)

    @property
    def shape(self) -> torch.Size:
        """(N, 3, size, size)."""
        return torch.Size((len(self.files), 3, self.size, self.size))

    def __getitem__(self, rows: int | slice | Tensor) -> Tensor:
        """The squares at ``rows``, (3, size, size) of a number and (n, 3, size, size) of several."""
        if isinstance(rows, int):
            return self.subset(torch.tensor([rows]))[:][0]
        places = torch.arange(len(self))[rows.cpu() if isinstance(rows, Tensor) else rows]
        return next(self.subset(places).split(max(1, len(places))), self._stack([], []))

    def subset(self, indices: Tensor) -> ImageFiles:
        """The files at ``indices`` (n,) int64, in that order, unread."""
        return dataclasses.replace(self, files=[self.files[int(i)] for i in indices])

    def to(self, device: torch.device) -> ImageFiles:
        """The same files, whose images arrive on another device."""
        return dataclasses.replace(self, device=device)

    def split(self, count: int) -> Iterator[Tensor]:
        """The squares of ``count`` files after the other; the next ones are read while these are used."""
        square = (self.size, self.share)
        groups = [parts_of(self.files[first : first + count], (square,)) for first in range(0, len(self), count)]
        for parts, found in zip(groups, in_turn(cut, groups), strict=True):
            yield self._stack(parts, found)

    def _stack(self, parts: Sequence[Part], found: Sequence[Cut]) -> Tensor:
        refuse_broken(parts, found)
        none = torch.empty(0, 3, self.size, self.size, dtype=torch.uint8)
        return torch.cat([none, *(tensor(one.pixels[0]) for one in found)]).to(self.device)


def parts_of(
    files: Sequence[Place],
    cuts: tuple[Draw | Square, ...],
    places: Sequence[int] | None = None,
    batch: int | None = None,
    *,
    scaled: bool = False,
) -> list[Part]:
    """The files of a batch in parts for the readers, in order; or those at ``places`` of one of ``batch`` images."""
    places = range(len(files)) if places is None else places
    starts = range(0, len(files), PART)
    return [Part(files[i : i + PART], places[i : i + PART], batch or len(files), cuts, scaled) for i in starts]


def refuse_broken(parts: Sequence[Part], found: Sequence[Cut]) -> None:
    """Raise DataError naming the files of these parts that could not be read, where there are any."""
    refuse_unread(
        {part.files[row]: why for part, one in zip(parts, found, strict=True) for row, why in one.broken.items()}
    )


def refuse_unread(broken: Mapping[Place, str]) -> None:
    """Raise DataError naming the files, each with the reason why it could not be read, where there are any."""
    if broken:
        raise DataError(
            "\n".join(
                [
                    "Images that cannot be read:",
                    *first_few([f"  {shown(str(f), 300)}: {why}" for f, why in broken.items()]),
                ]
            ),
            hint="longtail data check lists them all. Mend them, or take their lines out.",
        )


Pixels = Tensor | ImageFiles
"""Images (N, 3, H, W) uint8: stacked, or in their files."""


def picked(images: Pixels, indices: Tensor) -> Pixels:
    """The images at ``indices`` (n,) int64, in that order; files stay unread."""
    return images.subset(indices) if isinstance(images, ImageFiles) else images[indices.to(images.device)]


def chunks(images: Pixels, count: int) -> Iterator[Tensor]:
    """``images`` in stacks of ``count``, the last one shorter."""
    yield from images.split(count) if isinstance(images, ImageFiles) else torch.split(images, count)
