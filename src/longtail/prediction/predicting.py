"""``longtail predict``: images from files, folders and archives to a table of probabilities, a batch at a time."""

from __future__ import annotations

import contextlib
import csv
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray

from longtail.data.reading.folders import SUFFIXES
from longtail.data.sources.archives import DAMAGED, load_archive
from longtail.errors import ConfigError, DataError, ResourceError
from longtail.evaluation.priors import Prior, class_prior
from longtail.files import as_cell
from longtail.prediction.predict import Images, Model, as_uint8

BATCH = 250
SHOWN = 20
ARCHIVES = (".npz", ".npy")


@dataclass
class Predicted:
    """What came of it: how many images were predicted, as which classes, and what could not be read and why."""

    images: int = 0
    classes: Counter[str] = field(default_factory=Counter)
    unreadable: list[str] = field(default_factory=list)
    first: list[str] = field(default_factory=list)
    """A line for each of the first images."""


def predict_paths(
    model: Model, paths: Sequence[str | Path], out: Path | None = None, *, prior: Prior | None = None, top: int = 0
) -> Predicted:
    """Predict images, folders of them and arrays, into ``out`` (.csv or .jsonl) where it is given.

    A line holds the file, the class of the largest probability, that probability, and one for every class (for the
    ``top`` most probable ones where it is not 0). What cannot be read is left out and told in ``unreadable``. ``out``
    is written whole or not at all. Raises ConfigError for an ``out`` or a prior that cannot be, DataError for a path
    that is not there and where nothing could be read.
    """
    if out is not None and out.suffix not in (".csv", ".jsonl"):
        raise ConfigError(f"--out {out}: predictions are written as .csv or .jsonl.")
    if out is not None and not out.parent.is_dir():
        raise ConfigError(f"--out {out}: there is no folder {out.parent}.")
    if top < 0 or top > len(model.class_names):
        raise ConfigError(f"--top {top}: there are {len(model.class_names)} classes.")
    wanted = None if prior is None else class_prior(prior, model.class_names, model.class_counts)
    found = Predicted()
    batches = read_batches([str(path) for path in paths], model.size, found.unreadable, model.share)
    with contextlib.nullcontext() if out is None else written_whole(out) as file:
        table = None if file is None or out is None else _Table(file, out.suffix, model.class_names, top)
        for names, images in batches:
            probabilities = model.predict(images, prior=wanted)
            order = np.argsort(-probabilities, axis=1, kind="stable")
            for name, row, ranks in zip(names, probabilities, order, strict=True):
                if table is not None:
                    table.write(name, row, ranks)
                if len(found.first) < SHOWN:
                    best = [f"{model.class_names[k]} {row[k]:.3f}" for k in ranks[: top or 1]]
                    found.first.append(f"{name}: {', '.join(best)}")
                found.classes[model.class_names[ranks[0]]] += 1
            found.images += len(names)
        if not found.images:
            listed = "\n".join(found.unreadable[:SHOWN])
            raise DataError(f"No image could be read. Tried {len(found.unreadable)}:\n{listed}")
    return found


# Reading --------------------------------------------------------------------------------------------------------------


def read_batches(
    paths: Sequence[str], size: int, unreadable: list[str], share: float = 1.0
) -> Iterator[tuple[list[str], torch.Tensor]]:
    """Names and images (n, 3, size, size) uint8, n up to BATCH; a reason for each that cannot be read goes to
    ``unreadable``. Raises DataError at once, before anything is read, for a path that is not there."""
    return _joined(_pieces(list(expand(paths)), size, share, unreadable))


def expand(paths: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    """Files, and what of them is meant (an array in an archive, or None): folders are searched, in sorted order.

    A file that is named is tried whatever its name. In folders, names that begin with a dot are passed over, and links
    to folders are not followed, so that no search goes in circles. Raises DataError for what is not there and for a
    folder without images.
    """
    for path in paths:
        place, _, array = path.rpartition(":")
        if os.path.isdir(path):
            images = list(_images_below(path))
            if not images:
                raise DataError(f"There is no image in {path}.", hint=f"Images are {', '.join(sorted(SUFFIXES))}.")
            yield from ((image, None) for image in images)
        elif os.path.exists(path):
            yield path, None
        elif place.endswith(ARCHIVES) and os.path.exists(place):
            yield place, array
        else:
            raise DataError(f"There is no {path}.")


def _images_below(folder: str) -> Iterator[str]:
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if Path(name).suffix.lower() in SUFFIXES and not name.startswith("."):
                yield os.path.join(place, name)


def _pieces(
    files: Sequence[tuple[str, str | None]], size: int, share: float, unreadable: list[str]
) -> Iterator[tuple[list[str], torch.Tensor]]:
    for path, array in files:
        shown = os.fsencode(path).decode("utf-8", "replace")
        try:
            if not path.endswith(ARCHIVES):
                yield [shown], as_uint8([path], size, share)
                continue
            name, stacked = read_array(path, array)
            for start in range(0, len(stacked), BATCH):
                part: Images = stacked[start : start + BATCH]
                names = [f"{shown}{name}[{start + i}]" for i in range(len(part))]
                yield names, as_uint8(part, size, share)
        except DataError as error:
            unreadable.append(error.message if path in error.message else f"{shown}: {error.message}")


def _joined(pieces: Iterator[tuple[list[str], torch.Tensor]]) -> Iterator[tuple[list[str], torch.Tensor]]:
    names: list[str] = []
    images: list[torch.Tensor] = []
    for more, piece in pieces:
        if names and len(names) + len(more) > BATCH:
            yield names, torch.cat(images)
            names, images = [], []
        names, images = names + more, [*images, piece]
    if names:
        yield names, torch.cat(images)


def read_array(path: str, asked: str | None) -> tuple[str, NDArray[Any]]:
    """The images in an .npy or .npz file, and ``:NAME`` of the array in the latter.

    ``asked`` is the name of an array or of a split (``test`` is ``test_images``). Without it: the only array that is
    not of labels, else ``images``, else ``test_images``. No pickle is read. Raises DataError.
    """
    try:
        with open(path, "rb") as file:
            archive = load_archive(file)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                return "", archive
            arrays = [name for name in archive.files if not name.endswith(("labels", "class_names"))]
            if asked is None:
                known = [*(arrays if len(arrays) == 1 else []), "images", "test_images"]
            else:
                known = [asked, f"{asked}_images"]
            chosen = next((name for name in known if name in archive.files), None)
            if chosen is None:
                here = ", ".join(archive.files) or "nothing"
                raise DataError(f"{path} has no array {' or '.join(known)}; it has {here}. Say which: {path}:NAME")
            return f":{chosen}", archive[chosen]
    except DataError:
        raise
    except (OSError, *DAMAGED) as error:
        raise DataError(f"{path} cannot be read as an array: {error}") from None


# Writing --------------------------------------------------------------------------------------------------------------


class _Table:
    """The lines of a .csv or a .jsonl file."""

    def __init__(self, file: IO[str], suffix: str, class_names: Sequence[str], top: int) -> None:
        self.file, self.names, self.top = file, class_names, top
        self.csv = csv.writer(file, lineterminator="\n") if suffix == ".csv" else None
        if self.csv is not None:
            more = [f"p_{name}" for name in class_names]
            if top:
                more = [f"{what}_{rank}" for rank in range(2, top + 1) for what in ("predicted", "probability")]
            self.csv.writerow(["file", "predicted", "probability", *more])

    def write(self, name: str, row: NDArray[np.float32], ranks: NDArray[np.int64]) -> None:
        """One image: its probabilities (C,), and the classes (C,) from the most probable down."""
        best = [(self.names[k], float(f"{row[k]:.6g}")) for k in ranks[: self.top or 1]]
        if self.csv is not None:
            more = [value for pair in best[1:] for value in pair] if self.top else [f"{p:.6g}" for p in row]
            self.csv.writerow([as_cell(cell) if isinstance(cell, str) else cell for cell in (name, *best[0], *more)])
            return
        chosen = best if self.top else [(k, float(f"{p:.6g}")) for k, p in zip(self.names, row, strict=True)]
        line = {"file": name, "predicted": best[0][0], "probability": best[0][1], "probabilities": dict(chosen)}
        self.file.write(json.dumps(line, ensure_ascii=False) + "\n")


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[IO[str]]:
    """A text file that takes the place of ``path`` when the block ends, and is thrown away when it raises.

    Raises ResourceError where the disk refuses.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("w", encoding="utf-8", newline="") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise ResourceError(f"{path} cannot be written: {error.strerror}.") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
