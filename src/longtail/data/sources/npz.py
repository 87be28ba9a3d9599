"""NumPy archives in MedMNIST's layout: {train,val,test}_images, {train,val,test}_labels, optional class_names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from longtail.data.images import Source
from longtail.data.sources.archives import DAMAGED, load_archive
from longtail.data.sources.arrays import from_arrays
from longtail.errors import DataError, nearest

KEYS = tuple(f"{split}_{what}" for split in ("train", "val", "test") for what in ("images", "labels"))


def load_npz(path: Path, name: str | None = None, *, class_names: list[str] | None = None) -> Source:
    """The source in the archive at ``path``: images (N, H, W[, 3]) uint8, labels (N,) or (N, 1).

    ``class_names`` stands in if the archive has none. No pickle is ever read: object arrays are refused. Raises
    :class:`DataError` for a file that is absent, no archive, damaged, or lacks the training arrays.
    Layout: Yang et al. (MedMNIST v2), arXiv 2110.14795.
    """
    arrays = _read(path)
    missing = [key for key in ("train_images", "train_labels") if key not in arrays]
    if missing:
        near = nearest(missing[0], arrays)
        found = f"It has {', '.join(sorted(arrays)) or 'no array'}."
        raise DataError(
            f"{path} has no array '{missing[0]}'. {found}",
            hint=f"Rename '{near}'." if near else "The layout is train_images, train_labels, and val_/test_ likewise.",
        )
    names = arrays.pop("class_names", None)
    if names is not None and (names.ndim != 1 or names.dtype.kind not in "US"):
        raise DataError(f"{path}: class_names is {names.dtype} of shape {names.shape}, not a list of strings.")
    given = None if names is None else [n.decode() if isinstance(n, bytes) else str(n) for n in names.tolist()]
    return from_arrays(
        arrays["train_images"],
        arrays["train_labels"],
        val_images=arrays.get("val_images"),
        val_labels=arrays.get("val_labels"),
        test_images=arrays.get("test_images"),
        test_labels=arrays.get("test_labels"),
        class_names=class_names if given is None else given,
        name=name or path.stem,
    )


def _read(path: Path) -> dict[str, NDArray[np.generic]]:
    arrays: dict[str, NDArray[np.generic]] = {}
    key = ""
    try:
        # Opened here, because NumPy leaves a file open that turns out to be no archive.
        with path.open("rb") as file:
            archive = load_archive(file)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise DataError(f"{path} holds a single array, not an archive.", hint="Write it with numpy.savez.")
            for key in (*KEYS, "class_names"):
                if key in archive.files:
                    arrays[key] = archive[key]
            # Of the others only the names are needed, for the message that lists what is there.
            arrays |= {other: np.empty(0) for other in archive.files if other not in arrays}
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error.strerror or error}.") from error
    except DataError:
        raise
    except DAMAGED as error:
        if "allow_pickle" in str(error) and key:
            raise DataError(
                f"{path}: '{key}' is an object array, which only a pickle can hold, and pickles can run code.",
                hint="Store images of one size as one uint8 array.",
            ) from error
        what = f"'{key}' in {path} is damaged" if key else f"{path} is no NumPy archive, or it is cut short"
        raise DataError(f"{what}: {error}", hint="Copy or download the file again.") from error
    return arrays
