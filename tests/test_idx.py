"""IDX files and Fashion-MNIST: what is read, and how broken files are refused."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from longtail.data import load_source
from longtail.data.sources.idx import read_idx
from longtail.errors import DataError
from longtail.rng import numpy_generator


def pixels(*shape: int) -> NDArray[np.uint8]:
    return numpy_generator("pixels").integers(0, 256, shape, dtype=np.uint8)


def idx(array: NDArray[np.uint8]) -> bytes:
    return struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_fashion(folder: Path, *, zipped: bool) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for split, n in (("train", 20), ("t10k", 10)):
        for what, array in (
            ("images-idx3", pixels(n, 28, 28)),
            ("labels-idx1", np.arange(n, dtype=np.uint8) % 10),
        ):
            content = idx(array)
            name = f"{split}-{what}-ubyte" + (".gz" if zipped else "")
            (folder / name).write_bytes(gzip.compress(content, mtime=0) if zipped else content)
    return folder


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("inner", ["", "FashionMNIST/raw"])
def test_fashion_mnist_is_read_from_either_layout(tmp_path: Path, zipped: bool, inner: str) -> None:
    write_fashion(tmp_path / inner, zipped=zipped)
    source = load_source("fashion-mnist", tmp_path)
    assert source.test is not None
    assert np.array_equal(source.train.images[:, 2].numpy(), pixels(20, 28, 28))
    assert source.test.labels.tolist() == list(range(10))
    assert source.class_names[9] == "Ankle boot"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "does not start like an IDX file"),
        (b"\x00\x00\x08\x01\x00\x00\x00\x02ab", "00000801 instead of 00000803"),
        (b"\x00\x00\x0d\x03" + bytes(12), "does not start like"),
        (b"\x00\x00\x08\x03\x00\x00", "does not start like"),
        (idx(pixels(2, 3, 3))[:-1], "announces 2 x 3 x 3 values and holds 17"),
        (idx(pixels(2, 3, 3)) + b"x", "holds 19"),
        (gzip.compress(idx(pixels(2, 3, 3)), mtime=0)[:-5], "damaged gzip"),
    ],
)
def test_a_broken_idx_file_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_idx(path, 3)


def test_a_missing_idx_file_is_named(tmp_path: Path) -> None:
    write_fashion(tmp_path, zipped=True)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataError, match="t10k-labels-idx1-ubyte"):
        load_source("fashion-mnist", tmp_path)


def test_fashion_mnist_wants_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataError, match="not a folder"):
        load_source("fashion-mnist", tmp_path / "file")
