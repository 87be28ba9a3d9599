"""IDX files (the MNIST family's format) and Fashion-MNIST."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from longtail.data.images import Source
from longtail.data.sources.arrays import from_arrays
from longtail.errors import DataError

_FILES = {
    "train_images": "train-images-idx3-ubyte",
    "train_labels": "train-labels-idx1-ubyte",
    "test_images": "t10k-images-idx3-ubyte",
    "test_labels": "t10k-labels-idx1-ubyte",
}
_UNSIGNED_BYTE = 0x08


def read_idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """The array of unsigned bytes in an IDX file, gzipped or not: big-endian magic, sizes, then the values.

    Raises :class:`DataError` for another magic number, another number of dimensions, or bytes missing or left over.
    """
    try:
        content = path.read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path} is a damaged gzip file: {error}", hint="Copy or download it again.") from error
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error.strerror or error}.") from error
    header = 4 + 4 * dimensions
    magic = bytes((0, 0, _UNSIGNED_BYTE, dimensions))
    if content[:4] != magic or len(content) < header:
        raise DataError(
            f"{path} does not start like an IDX file of unsigned bytes in {dimensions} dimension(s): "
            f"{content[:4].hex() or 'nothing'} instead of {magic.hex()}."
        )
    shape = struct.unpack(f">{dimensions}I", content[4:header])
    if len(content) - header != math.prod(shape):
        raise DataError(
            f"{path} announces {' x '.join(map(str, shape))} values and holds {len(content) - header}.",
            hint="Copy or download it again.",
        )
    return np.frombuffer(content, dtype=np.uint8, offset=header).reshape(shape)


def load_fashion_mnist(path: Path, download: bool = False) -> Source:
    """Fashion-MNIST: 60,000 + 10,000 gray images of 28x28 in ten classes, kept at 28x28.

    ``path`` is the folder with the four files, gzipped or not, or a folder with them under ``FashionMNIST/raw``
    (torchvision's layout, which ``download`` writes). Source: Xiao et al., arXiv 1708.07747.
    """
    from torchvision.datasets import FashionMNIST

    if download and not path.is_file():
        try:
            FashionMNIST(str(path), train=True, download=True)
        except (OSError, RuntimeError) as error:
            raise DataError(
                f"Could not download Fashion-MNIST to {path}: {error}",
                hint="Fetch it by other means and give data.path.",
            ) from error
    if not path.is_dir():
        raise DataError(f"{path} is not a folder.", hint="Give the folder that holds the four IDX files.")
    places = (path, path / "FashionMNIST" / "raw", path / "raw")
    arrays = {key: read_idx(_find(places, name), 3 if key.endswith("images") else 1) for key, name in _FILES.items()}
    return from_arrays(
        arrays["train_images"],
        arrays["train_labels"],
        test_images=arrays["test_images"],
        test_labels=arrays["test_labels"],
        class_names=list(FashionMNIST.classes),
        name="fashion-mnist",
    )


def _find(places: tuple[Path, ...], name: str) -> Path:
    for place in places:
        for candidate in (place / name, place / f"{name}.gz"):
            if candidate.is_file():
                return candidate
    raise DataError(
        f"{places[0]} has no {name} or {name}.gz, nor has its FashionMNIST/raw.",
        hint="Give the folder that holds the four IDX files, or add data.download=true.",
    )
