"""Salient peaks of a run's training images: found once, kept on disk by what they depend on, with progress."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from longtail.data.images import ImageSet
from longtail.data.reading.cutting import Whole, tensor, whole
from longtail.data.reading.image_files import PART, ImageFiles, refuse_unread
from longtail.data.reading.members import state_of
from longtail.data.reading.readers import in_turn
from longtail.data.sources.archives import DAMAGED, load_archive
from longtail.errors import DataError, ResourceError
from longtail.files import cache_folder, write_atomic
from longtail.rng import generator
from longtail.saliency import mask_centers, peak
from longtail.saliency.detectors import DETECTORS, ImageDetector
from longtail.training.listeners import Listener

DETECTION_VERSION = 2
"""Raised when a detector gives other peaks: what older versions kept is then found anew."""

CHUNK = 256
"""Images given to a detector at once."""


def training_peaks(
    train: ImageSet,
    detector: str | None,
    *,
    maps_file: str | None = None,
    given: Callable[[Tensor], Tensor] | None = None,
    ties: str = "first",
    listener: Listener,
) -> Tensor | None:
    """Row and column of the salient peak of every training image, (N, 2) int64 on the CPU, or None without a detector.

    Of images in files: float64, as shares of the height and the width of the whole image, which is looked at with its
    short side at ``data.size``.

    ``detector`` is DataNeeds.detector: a name of DETECTORS, or "given" for maps from ``maps_file``. ``given`` is a
    function from Python, uint8 (B, 3, H, W) to maps (B, H, W), that takes the place of either. Peaks of detectors that
    depend on the image alone are kept under the user's cache folder, keyed by the images, the detector and ``ties``.
    Raises DataError for maps that do not fit the images or hold values that are not finite, and where ground truth is
    asked of a set without masks.
    """
    if detector is None:
        return None
    if isinstance(train.images, ImageFiles):
        return _peaks_of_files(train, train.images, detector, given, ties, listener)
    if given is not None:
        return _find(train, given, "the function given", ties, listener)
    if detector == "given":
        assert maps_file is not None, "a method says 'given' only where it has a file"
        maps = read_maps(Path(maps_file), train)
        _refuse_unless_finite(maps, train, 0, maps_file)
        return _peaks_of(maps, ties, 0)
    entry = DETECTORS[detector]
    if entry.kind == "masks":
        if train.masks is None:
            raise DataError(
                f"The detector '{detector}' needs object masks, and these images have none.",
                hint="Only the set 'scenes' has masks; longtail detectors lists the others.",
            )
        return mask_centers(train.masks.cpu())
    assert entry.maps is not None, f"'{detector}' is found in the step"
    kept = _cache_file(train.fingerprint(), detector, ties)
    peaks = _read(kept, train)
    if peaks is None:
        peaks = _find(train, entry.maps, detector, ties, listener)
        _keep(kept, peaks)
    return peaks


def read_maps(path: Path, train: ImageSet) -> Tensor:
    """``maps`` (N, H, W) of an npz file for the training images, float32.

    N is the number of training images, in their order, or the number of images in the source before its tail was cut.
    Raises DataError for anything else.
    """
    try:
        # Opened here, because NumPy leaves a file open that turns out to be no archive.
        with path.open("rb") as file:
            archive = load_archive(file)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise DataError(f"{path} holds a single array.", hint="Write it with numpy.savez(FILE, maps=MAPS).")
            if "maps" not in archive.files:
                raise DataError(
                    f"{path} has no array 'maps'.", hint=f"It has: {', '.join(archive.files) or 'nothing'}."
                )
            maps = torch.from_numpy(np.asarray(archive["maps"], dtype=np.float32))
    except DataError:
        raise
    except (OSError, *DAMAGED) as error:
        raise DataError(f"The saliency maps {path} cannot be read: {error}", hint="Give an npz file.") from None
    size = tuple(train.images.shape[-2:])
    if maps.ndim != 3 or tuple(maps.shape[1:]) != size:
        raise DataError(f"The maps in {path} are {tuple(maps.shape)}; (N, {size[0]}, {size[1]}) is wanted.")
    if len(maps) > int(train.source_index.max()):
        return maps[train.source_index.cpu()]
    if len(maps) != len(train):
        raise DataError(
            f"{path} has {len(maps)} maps for {len(train)} training images.",
            hint="Give one for every training image of the source, or for every one that is trained on.",
        )
    return maps


def _find(
    train: ImageSet, maps: ImageDetector, name: str, ties: str, listener: Listener, stream: tuple[str | int, ...] = ()
) -> Tensor:
    """Peaks by chunks; says where it stands every few seconds. Draws among ties are those of ``stream``."""
    found, said = [], time.monotonic()
    for number, part in enumerate(torch.split(train.stacked, CHUNK)):
        made = maps(part.clone())  # a function from outside may write into what it is given
        if not isinstance(made, Tensor) or made.shape != (len(part), *part.shape[-2:]):
            shape = tuple(made.shape) if isinstance(made, Tensor) else type(made).__name__
            raise DataError(f"Saliency maps of {name} are {shape}; {(len(part), *part.shape[-2:])} is wanted.")
        made = made.float()
        _refuse_unless_finite(made, train, number * CHUNK, name)
        found.append(_peaks_of(made, ties, *stream, number))
        if time.monotonic() - said > 5:
            said = time.monotonic()
            done = min(len(train), (number + 1) * CHUNK)
            listener.said(f"salient peaks ({name}): {done:,} of {len(train):,} images")
    return torch.cat(found)


def _peaks_of_files(
    train: ImageSet,
    images: ImageFiles,
    detector: str,
    given: ImageDetector | None,
    ties: str,
    listener: Listener,
) -> Tensor:
    """Peaks (N, 2) of image files. Kept by the names, sizes and times of the files; those of ``given`` are not kept."""
    entry = DETECTORS.get(detector)
    maps = given or (None if entry is None else entry.maps)
    if maps is None:
        raise DataError(
            f"The saliency of '{detector}' is for images in memory, and these are read from their files when needed.",
            hint="Choose a detector that looks at the image (longtail detectors), or data.stream=false.",
        )
    kept = None if given else _cache_file(_state_of(images), detector, ties)
    if kept is not None:
        with contextlib.suppress(OSError, SafetensorError, KeyError):
            found = load_file(kept)["peaks"]
            if (
                found.shape == (len(train), 2)
                and found.dtype == torch.float64
                and bool(((found > 0) & (found < 1)).all())
            ):
                return found
    found = _look_at_files(train, images, maps, detector, ties, listener)
    if kept is not None:
        _keep(kept, found)
    return found


def _state_of(images: ImageFiles) -> str:
    state = hashlib.blake2b(f"files {images.size}".encode(), digest_size=16)
    shards: dict[str, bytes] = {}
    for file in images.files:
        with contextlib.suppress(OSError):  # a file that is not there is told when it is read
            state.update(state_of(file, shards))
    return state.hexdigest()


def _look_at_files(
    train: ImageSet, images: ImageFiles, maps: ImageDetector, name: str, ties: str, listener: Listener
) -> Tensor:
    """The readers bring whole images, the detector looks here: at those of one shape together."""
    peaks, said = torch.empty(len(train), 2, dtype=torch.float64), time.monotonic()
    firsts = range(0, len(train), CHUNK)
    pieces = [images.files[first : first + CHUNK] for first in firsts]
    short, most = images.size, 4 * images.size
    wanted = [[Whole(part[i : i + PART], short, most) for i in range(0, len(part), PART)] for part in pieces]
    for first, piece, found in zip(firsts, pieces, in_turn(whole, wanted), strict=True):
        read = [one for part in found for one in part]
        refuse_unread({file: one for file, one in zip(piece, read, strict=True) if isinstance(one, str)})
        by_shape: dict[torch.Size, dict[int, Tensor]] = {}
        for row, one in enumerate(read):
            if not isinstance(one, str):
                by_shape.setdefault(torch.Size(one.shape[1:]), {})[first + row] = tensor(one)
        for shape, alike in by_shape.items():
            rows = torch.tensor(list(alike))
            part = dataclasses.replace(train.subset(rows), images=torch.stack(list(alike.values())))
            places = _find(part, maps, name, ties, listener, ("files", int(rows[0]))).double()
            peaks[rows] = (places + 0.5) / torch.tensor(shape)
        if time.monotonic() - said > 5:
            said = time.monotonic()
            listener.said(f"salient peaks ({name}): {first + len(read):,} of {len(train):,} images")
    return peaks


def _refuse_unless_finite(maps: Tensor, train: ImageSet, first: int, name: str) -> None:
    """Raise DataError naming the first image, of those from ``first`` on, whose map has a value that is not finite."""
    wrong = ~torch.isfinite(maps).flatten(1).all(dim=1)
    if not bool(wrong.any()):
        return
    row = first + int(wrong.nonzero()[0])
    known = f"image {int(train.source_index[row])} of the source" if train.ids is None else train.ids[row]
    raise DataError(
        f"The saliency map of training image {row} ({known}) has NaN or infinite values: {name}.",
        hint="Mend the file or the function that the maps come from.",
    )


def _peaks_of(maps: Tensor, ties: str, *stream: str | int) -> Tensor:
    return peak(maps, generator=generator("saliency ties", *stream) if ties == "random" else None).cpu()


def _cache_file(images: str, detector: str, ties: str) -> Path:
    parts = (images, detector, ties, str(DETECTION_VERSION))
    name = hashlib.blake2b("\0".join(parts).encode(), digest_size=12).hexdigest()
    return cache_folder() / "peaks" / f"{name}.safetensors"


def _read(path: Path, train: ImageSet) -> Tensor | None:
    """What was kept, or None where there is nothing or nothing that fits."""
    try:
        peaks = load_file(path)["peaks"]
    except (OSError, SafetensorError, KeyError):
        return None
    last = torch.tensor(train.images.shape[-2:]) - 1
    fits = peaks.shape == (len(train), 2) and peaks.dtype == torch.int64
    return peaks if fits and bool(((peaks >= 0) & (peaks <= last)).all()) else None


def _keep(path: Path, peaks: Tensor) -> None:
    """Keep peaks where the cache can be written; elsewhere they are found again next time."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, save({"peaks": peaks}))
    except (OSError, ResourceError):
        return


def digest(peaks: Tensor | None) -> str | None:
    """A short digest of peaks, so that a resumed run can tell that they are the same."""
    return None if peaks is None else hashlib.blake2b(peaks.contiguous().numpy().tobytes(), digest_size=8).hexdigest()
