"""The two containers that every data source returns."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from longtail.data.reading.image_files import ImageFiles, Pixels
from longtail.errors import DataError


@dataclasses.dataclass(frozen=True)
class ImageSet:
    """Images of one split, stacked or in their files.

    ``images`` (N, 3, H, W) uint8, or :class:`ImageFiles`; ``labels`` (N,) int64 in [0, C). Optional, per image:
    ``masks`` (N, H, W) bool, true on the object; ``backgrounds`` (N,) int64, the background family; ``ids``, a name to
    find the image again by (default: its position in the source, which ``source_index`` keeps through subsets).
    """

    images: Pixels
    labels: Tensor
    source_index: Tensor
    masks: Tensor | None = None
    backgrounds: Tensor | None = None
    ids: Sequence[str] | None = None

    def __len__(self) -> int:
        return int(self.labels.shape[0])

    @property
    def stacked(self) -> Tensor:
        """The images where they are in memory; DataError where they are in files."""
        if isinstance(self.images, ImageFiles):
            raise DataError(
                f"This needs all images in memory, and these {len(self):,} are read from their files when needed.",
                hint="Use fewer images, or data.stream=false.",
            )
        return self.images

    def subset(self, indices: Tensor) -> ImageSet:
        """The images at ``indices`` (n,) int64, in that order."""
        return ImageSet(
            images=self.images.subset(indices) if isinstance(self.images, ImageFiles) else self.images[indices],
            labels=self.labels[indices],
            source_index=self.source_index[indices],
            masks=None if self.masks is None else self.masks[indices],
            backgrounds=None if self.backgrounds is None else self.backgrounds[indices],
            ids=None if self.ids is None else [self.ids[int(i)] for i in indices],
        )

    def to(self, device: torch.device) -> ImageSet:
        """The same set on another device (images, labels, masks, backgrounds)."""
        return dataclasses.replace(
            self,
            images=self.images.to(device),
            labels=self.labels.to(device),
            masks=None if self.masks is None else self.masks.to(device),
            backgrounds=None if self.backgrounds is None else self.backgrounds.to(device),
        )

    def counts(self, classes: int) -> list[int]:
        """Images per class, of length ``classes``."""
        return [int(n) for n in torch.bincount(self.labels.cpu(), minlength=classes)]

    def fingerprint(self) -> str:
        """A digest of pixels and labels: equal sets have equal fingerprints on every machine.

        Of images in files it is the names that count, and what they were shrunk to when they were packed, and not what
        is in them: nothing is read.
        """
        digest = hashlib.blake2b(digest_size=16)
        digest.update(repr(tuple(self.images.shape)).encode())
        if isinstance(self.images, ImageFiles):
            digest.update(repr(self.images.share).encode())
            if self.images.shorter_side is not None:
                digest.update(f"shorter side {self.images.shorter_side}\0".encode())
            digest.update("\0".join(self.ids if self.ids is not None else map(str, self.images.files)).encode())
        else:
            # A flat view instead of bytes: a copy of the pixels would double the memory of the largest tensor.
            digest.update(self.images.cpu().contiguous().numpy().reshape(-1).data)
        digest.update(self.labels.cpu().contiguous().numpy().reshape(-1).data)
        return digest.hexdigest()


@dataclasses.dataclass(frozen=True)
class Source:
    """What a data source holds before any long tail is cut from it.

    ``mean`` and ``std`` (3 floats each, of pixels in [0, 1]) are published constants where the source has them, else
    None: they are then computed from the training images that are kept. ``notes`` are worth saying of a run on it.
    """

    name: str
    class_names: Sequence[str]
    train: ImageSet
    val: ImageSet | None
    test: ImageSet | None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    background_names: Sequence[str] | None = None
    notes: Sequence[str] = ()
