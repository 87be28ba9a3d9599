"""What a data set holds, without training: counts per class and split, and a sheet of images."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from longtail.data.files import list_files
from longtail.data.images import ImageSet, Source
from longtail.data.open import cut, open_data
from longtail.data.prepare import Prepared
from longtail.data.reading.decoding import BrokenImageError, quiet_pillow, read_square
from longtail.data.reading.listing import Entry, shown
from longtail.data.settings import FILES, DataSettings

PER_CLASS = 8
MOST_CLASSES = 40
"""Rows of a sheet: with more classes, these many of them, spread evenly from the largest to the smallest."""

_LABEL_WIDTH = 220
_SMALLEST, _LARGEST = 48, 128


def count_data(settings: DataSettings) -> Prepared:
    """The data of a run as ``longtail train`` would have it, for its counts; image files are not opened.

    The images of file data sets are blank. Raises ConfigError and DataError as training would, but for files that
    cannot be read.
    """
    if settings.name not in FILES:
        return open_data(settings.model_copy(update={"allow_empty": True}))
    listing = list_files(settings)
    listing.refuse_problems()

    def blank(entries: list[Entry]) -> ImageSet:
        labels = torch.tensor([entry.label for entry in entries], dtype=torch.int64)
        images = torch.zeros(1, 1, 1, 1, dtype=torch.uint8).expand(len(entries), 3, 1, 1)
        return ImageSet(images, labels, torch.arange(len(entries)))

    sets = {split: blank(entries) for split, entries in listing.splits.items()}
    name, names, notes = shown(listing.name), listing.class_names, listing.notes
    source = Source(name, names, sets["train"], sets.get("val"), sets.get("test"), notes=notes)
    return cut(source, settings.model_copy(update={"allow_empty": True}))


@dataclasses.dataclass(frozen=True)
class _Line:
    name: str
    count: int
    images: list[Tensor]


def sheet(settings: DataSettings) -> tuple[Image.Image, int, int]:
    """A picture with up to 8 training images of each class, largest class first; and the classes shown and there are.

    The images of a class are spread evenly over its list. Image files that cannot be read are left out.
    """
    lines, classes = _of_files(settings) if settings.name in FILES else _of_run(settings)
    side = max((min(_LARGEST, max(_SMALLEST, image.shape[-1])) for line in lines for image in line.images), default=48)
    gap = 4
    width, height = _LABEL_WIDTH + PER_CLASS * (side + gap), len(lines) * (side + gap)
    page = Image.new("RGB", (width, max(height, 1)), "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default()
    for row, line in enumerate(lines):
        top = row * (side + gap)
        text = f"{shown(line.name, 30)}\n{line.count:,} images"
        if isinstance(font, ImageFont.ImageFont):  # Pillow's own letters, where FreeType is not there, are Latin-1
            text = text.encode("latin-1", "replace").decode("latin-1")
        draw.multiline_text((gap, top + side // 2 - 12), text, fill="black", font=font)
        for column, image in enumerate(line.images):
            square = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
            way = Image.Resampling.BILINEAR if side < image.shape[-1] else Image.Resampling.NEAREST
            page.paste(square.resize((side, side), way), (_LABEL_WIDTH + column * (side + gap), top))
    return page, len(lines), classes


def _of_files(settings: DataSettings) -> tuple[list[_Line], int]:
    listing = list_files(settings)
    listing.refuse_problems()
    counts, size = listing.counts("train"), settings.size
    assert size is not None
    mine: list[list[Entry]] = [[] for _ in counts]
    for entry in listing.splits["train"]:
        mine[entry.label].append(entry)
    lines = []
    with quiet_pillow():
        for k in _chosen(counts):
            images = []
            for place in _spread(counts[k], PER_CLASS):
                try:
                    images.append(read_square(mine[k][place].path, size))
                except BrokenImageError:
                    continue
            lines.append(_Line(listing.class_names[k], counts[k], images))
    return lines, len(counts)


def _of_run(settings: DataSettings) -> tuple[list[_Line], int]:
    data = open_data(settings.model_copy(update={"allow_empty": True}))
    counts = data.stats.counts
    lines = []
    for k in _chosen(counts):
        mine = torch.nonzero(data.train.labels == k).flatten()
        images = [data.train.images[int(mine[place])] for place in _spread(len(mine), PER_CLASS)]
        lines.append(_Line(data.class_names[k], counts[k], images))
    return lines, len(counts)


def _chosen(counts: Sequence[int]) -> list[int]:
    ranked = sorted(range(len(counts)), key=lambda k: -counts[k])
    return [ranked[place] for place in _spread(len(ranked), MOST_CLASSES)]


def _spread(there: int, wanted: int) -> list[int]:
    """``wanted`` places of ``there``, evenly, the first and the last among them; all of them if there are fewer."""
    if there <= wanted:
        return list(range(there))
    return [round(i * (there - 1) / (wanted - 1)) for i in range(wanted)]
