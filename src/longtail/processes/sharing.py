"""How a batch is shared out: shards that batch-norm sees apart, and the processes that have them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from longtail.processes.distributed import gather_rows


@dataclass(frozen=True)
class Shares:
    """The shards of one batch, by the number of their images, in order; and which process of how many this is.

    A process has as many neighboring shards as every other. A shard may be empty, where images are few.
    """

    sizes: tuple[int, ...]
    processes: int = 1
    rank: int = 0

    @property
    def own(self) -> range:
        """The shards of this process."""
        each = len(self.sizes) // self.processes
        return range(self.rank * each, (self.rank + 1) * each)

    @property
    def rows(self) -> slice:
        """The images of this process, by their place in the batch."""
        first = sum(self.sizes[: self.own.start])
        return slice(first, first + sum(self.sizes[shard] for shard in self.own))

    @property
    def counts(self) -> list[int]:
        """The number of images of each process."""
        each = len(self.sizes) // self.processes
        return [sum(self.sizes[first : first + each]) for first in range(0, len(self.sizes), each)]

    def in_full(self, values: Tensor) -> Tensor:
        """A row for each image of this process (b, ...) to one for each of the batch (B, ...)."""
        return gather_rows(values, self.counts)


@dataclass(frozen=True)
class Sharing:
    """What the batches of a run are shared out by: ``shards`` of at least ``least`` images, a multiple of processes."""

    shards: int = 1
    processes: int = 1
    rank: int = 0
    least: int = 2

    def of(self, images: int) -> Shares | None:
        """The shards of a batch: equal to within one image, the largest first, empty ones last; None for one shard.

        Never an image alone where batch-norm could make nothing of it.
        """
        if self.shards == 1:
            return None
        filled = max(1, min(self.shards, images // self.least))
        sizes = [images // filled + (shard < images % filled) for shard in range(filled)]
        return Shares((*sizes, *(0,) * (self.shards - filled)), self.processes, self.rank)

    def largest(self, images: int) -> int:
        """The images of this process's largest shard of a batch."""
        shares = self.of(images)
        return images if shares is None else shares.sizes[shares.own.start]


ALONE = Sharing()
"""One process, and batches in one piece."""
