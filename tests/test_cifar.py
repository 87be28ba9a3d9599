"""CIFAR: original files, archive and npz; nothing is unpickled before its MD5 matches, and then only arrays."""

import hashlib
import io
import os
import pickle
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torchvision.datasets as published
from numpy.typing import NDArray

from longtail.data import load_source
from longtail.data.sources.cifar import ArrayUnpickler
from longtail.errors import DataError
from longtail.rng import numpy_generator

PER_CLASS = 2


def rows(n: int, seed: int) -> NDArray[np.uint8]:
    return numpy_generator(seed, "cifar rows").integers(0, 256, (n, 3072), dtype=np.uint8)


def originals(name: str) -> dict[str, bytes]:
    """Tiny files in the original format: as many batches as the published set has."""
    table = getattr(published, name.upper())
    classes, key = (10, "labels") if name == "cifar10" else (100, "fine_labels")
    labels = [k for k in range(classes) for _ in range(PER_CLASS)]
    files = {}
    for seed, (file, _) in enumerate([*table.train_list, *table.test_list]):
        content: dict[str, Any] = {"data": rows(len(labels), seed), key: labels, "filenames": ["x.png"] * len(labels)}
        if name == "cifar100":
            content["coarse_labels"] = [0] * len(labels)
        files[file] = pickle.dumps(content, protocol=4)
    files[table.meta["filename"]] = pickle.dumps({table.meta["key"]: [f"name {k}" for k in range(classes)]}, protocol=2)
    return files


def md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def publish(monkeypatch: pytest.MonkeyPatch, name: str, files: dict[str, bytes]) -> None:
    """Make ``files`` the published ones."""
    table = getattr(published, name.upper())
    for part in ("train_list", "test_list"):
        monkeypatch.setattr(table, part, [[file, md5(files[file])] for file, _ in getattr(table, part)])
    meta = table.meta["filename"]
    monkeypatch.setattr(table, "meta", {**table.meta, "md5": md5(files[meta])})


def write_folder(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for file, content in files.items():
        (folder / file).write_bytes(content)
    return folder


def write_archive(path: Path, base: str, files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for file, content in {**files, "readme.html": b"<html>"}.items():
            member = tarfile.TarInfo(f"{base}/{file}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    path.write_bytes(buffer.getvalue())
    return buffer.getvalue()


def in_its_folder(tmp_path: Path, name: str, files: dict[str, bytes], _: pytest.MonkeyPatch) -> Path:
    return write_folder(tmp_path / getattr(published, name.upper()).base_folder, files)


def in_the_parent(tmp_path: Path, name: str, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> Path:
    in_its_folder(tmp_path, name, files, monkeypatch)
    return tmp_path


def in_the_archive(tmp_path: Path, name: str, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> Path:
    table = getattr(published, name.upper())
    content = write_archive(tmp_path / table.filename, table.base_folder, files)
    monkeypatch.setattr(table, "tgz_md5", md5(content))
    return tmp_path / str(table.filename)


def beside_the_archive(tmp_path: Path, name: str, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> Path:
    return in_the_archive(tmp_path, name, files, monkeypatch).parent


LAYOUTS: list[Callable[[Path, str, dict[str, bytes], pytest.MonkeyPatch], Path]] = [
    in_its_folder,
    in_the_parent,
    in_the_archive,
    beside_the_archive,
]


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_original_files_are_read_wherever_they_lie(
    layout: Any, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = originals(name)
    publish(monkeypatch, name, files)
    source = load_source(name, layout(tmp_path, name, files, monkeypatch))
    batches, classes = (5, 10) if name == "cifar10" else (1, 100)
    assert source.test is not None
    assert source.train.counts(classes) == [batches * PER_CLASS] * classes
    assert source.test.counts(classes) == [PER_CLASS] * classes
    expected = np.concatenate([rows(classes * PER_CLASS, seed) for seed in range(batches)]).reshape(-1, 3, 32, 32)
    assert np.array_equal(source.train.images.numpy(), expected)
    assert list(source.class_names) == [f"name {k}" for k in range(classes)]
    assert source.mean == (0.4914, 0.4822, 0.4465)
    assert source.std == (0.2023, 0.1994, 0.2010)


class Trap:
    """Makes a folder when unpickled by anything that resolves names."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.folder),))


def test_a_file_with_another_md5_is_refused_before_any_unpickling(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = originals("cifar10")
    publish(monkeypatch, "cifar10", files)
    files["data_batch_2"] = pickle.dumps(Trap(tmp_path / "sprung"))
    with pytest.raises(DataError, match=r"'data_batch_2'.* is not the published file"):
        load_source("cifar10", write_folder(tmp_path / "files", files))
    assert not (tmp_path / "sprung").exists()


def test_nothing_at_all_is_unpickled_if_the_first_file_is_altered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = originals("cifar100")
    publish(monkeypatch, "cifar100", files)
    files["train"] += b" "

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("unpickled")

    monkeypatch.setattr(ArrayUnpickler, "__init__", never)
    with pytest.raises(DataError, match=f"its MD5 is {md5(files['train'])}"):
        load_source("cifar100", write_folder(tmp_path / "files", files))


def test_a_malicious_pickle_is_refused_even_if_its_md5_matches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = originals("cifar100")
    files["test"] = pickle.dumps({"data": Trap(tmp_path / "sprung"), "fine_labels": [0]})
    publish(monkeypatch, "cifar100", files)
    with pytest.raises(DataError, match=r"asks for .*mkdir"):
        load_source("cifar100", write_folder(tmp_path / "files", files))
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    "stream",
    [
        b"cbuiltins\neval\n(S'1'\ntR.",
        b"cnumpy\nload\n.",
        b"cnumpy.core.multiarray\nscalar\n.",
        b"\x80\x04\x8c\x05numpy\x8c\x0edtype.__init__\x93.",
        b"Pname\n.",
    ],
)
def test_names_other_than_an_array_needs_are_refused(stream: bytes) -> None:
    with pytest.raises(DataError, match="asks for"):
        ArrayUnpickler(io.BytesIO(stream), encoding="latin1").load()


@pytest.mark.parametrize("module", [b"numpy.core.multiarray", b"numpy._core.multiarray"])
def test_an_array_as_python_2_pickled_it_is_read_under_either_numpy(module: bytes) -> None:
    expected = rows(2, 0)
    stream = b"c" + module + b"\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR(I1\n(I2\nI3072\nt"
    stream += b"cnumpy\ndtype\n(S'u1'\nI0\nI1\ntR(I3\nS'|'\nNNNI-1\nI-1\nI0\ntbI00\n"
    # The published files hold pixels as a byte string (opcode T), which only latin1 carries over unchanged.
    stream += b"T" + struct.pack("<i", expected.nbytes) + expected.tobytes() + b"tb."
    found = ArrayUnpickler(io.BytesIO(stream), encoding="latin1").load()
    assert np.array_equal(found, expected)
    assert found.dtype == np.uint8


def test_an_altered_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(b"\x1f\x8b" + bytes(50))
    with pytest.raises(DataError, match="not the published archive"):
        load_source("cifar10", tmp_path)


def test_an_archive_without_a_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = originals("cifar10")
    publish(monkeypatch, "cifar10", files)
    del files["data_batch_4"]
    with pytest.raises(DataError, match="data_batch_4"):
        load_source("cifar10", in_the_archive(tmp_path, "cifar10", files, monkeypatch))


def test_a_folder_without_one_of_the_files_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = originals("cifar10")
    publish(monkeypatch, "cifar10", files)
    del files["test_batch"]
    with pytest.raises(DataError, match=r"Cannot read .*test_batch"):
        load_source("cifar10", write_folder(tmp_path / "files", files))


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_a_folder_with_something_else_says_what_was_looked_for(name: str, tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    with pytest.raises(DataError, match=r"original files.*tar\.gz") as caught:
        load_source(name, tmp_path)
    assert "data.download=true" in str(caught.value)


def test_a_download_goes_to_the_folder_and_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision.datasets.utils as fetch

    files = originals("cifar100")
    publish(monkeypatch, "cifar100", files)
    asked: list[str] = []

    def download(url: str, root: str, filename: str, md5: str) -> None:
        asked.append(url)
        in_the_archive(Path(root), "cifar100", files, monkeypatch)

    monkeypatch.setattr(fetch, "download_url", download)
    folder = tmp_path / "new" / "folder"
    assert len(load_source("cifar100", folder, download=True).train) == 100 * PER_CLASS
    assert len(load_source("cifar100", folder, download=True).train) == 100 * PER_CLASS
    assert asked == [published.CIFAR100.url], "the second time it is there"


def test_a_failed_download_is_an_error_about_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision.datasets.utils as fetch

    def download(*_: Any, **__: Any) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(fetch, "download_url", download)
    with pytest.raises(DataError, match="no route to host"):
        load_source("cifar10", tmp_path, download=True)


def write_npz(path: Path, classes: int, size: int = 32, **more: Any) -> Path:
    labels = np.arange(classes, dtype=np.uint8)[:, None]
    images = np.zeros((classes, size, size, 3), dtype=np.uint8)
    np.savez_compressed(path, train_images=images, train_labels=labels, test_images=images, test_labels=labels, **more)
    return path


def test_an_npz_without_names_numbers_the_classes(tmp_path: Path) -> None:
    source = load_source("cifar10", write_npz(tmp_path / "c.npz", 10))
    assert list(source.class_names) == [str(k) for k in range(10)]
    assert (source.name, source.mean) == ("cifar10", (0.4914, 0.4822, 0.4465))


def test_an_npz_with_labels_beyond_the_classes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train_labels\[100\] is 100"):
        load_source("cifar100", write_npz(tmp_path / "c.npz", 101))


def test_an_npz_with_another_number_of_names_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="names 10 classes, but cifar100 has 100"):
        load_source("cifar100", write_npz(tmp_path / "c.npz", 10, class_names=np.array([str(k) for k in range(10)])))


def test_an_npz_with_images_of_another_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="28x28"):
        load_source("cifar10", write_npz(tmp_path / "c.npz", 10, size=28))


@pytest.mark.shared
def test_the_real_cifar100_has_500_and_100_images_of_every_class(shared: Path) -> None:
    source = load_source("cifar100", shared / "data" / "cifar100.npz")
    assert source.test is not None
    assert source.train.counts(100) == [500] * 100
    assert source.test.counts(100) == [100] * 100
    assert (source.class_names[0], source.class_names[99]) == ("apple", "worm")
    assert source.train.images.shape == (50000, 3, 32, 32)
