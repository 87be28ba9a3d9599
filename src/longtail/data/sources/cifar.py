"""CIFAR-10 and CIFAR-100 from the original files, the original archive, or an npz archive."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import pickle
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longtail.data.images import Source
from longtail.data.sources.arrays import from_arrays
from longtail.data.sources.npz import load_npz
from longtail.errors import DataError, ResourceError

# CIFAR-10's, with which the field normalizes both sets (Cao et al., arXiv 1906.07413). The deviation is the mean
# over images of each image's own deviation, not that of all pixels.
MEAN = (0.4914, 0.4822, 0.4465)
STD = (0.2023, 0.1994, 0.2010)

Reader = Callable[[str], bytes]


@dataclasses.dataclass(frozen=True)
class _Edition:
    """One of the two sets; ``torchvision_class`` carries the published file names and MD5 sums."""

    name: str
    classes: int
    label_key: str
    torchvision_class: str

    @property
    def published(self) -> Any:
        """torchvision's class, imported when first asked for: class counts and npz files need no torchvision."""
        from torchvision import datasets

        return getattr(datasets, self.torchvision_class)


_CIFAR10 = _Edition("cifar10", 10, "labels", "CIFAR10")
_CIFAR100 = _Edition("cifar100", 100, "fine_labels", "CIFAR100")


def load_cifar10(path: Path, download: bool = False) -> Source:
    """CIFAR-10 (Krizhevsky, 2009): 50,000 + 10,000 images of 32x32; see :func:`load_cifar100` for ``path``."""
    return _load(_CIFAR10, path, download)


def load_cifar100(path: Path, download: bool = False) -> Source:
    """CIFAR-100 with fine labels (Krizhevsky, 2009): 50,000 + 10,000 images of 32x32.

    ``path`` is an npz archive in MedMNIST's layout, the original .tar.gz, or the folder (or its parent) with the
    original Python files. Those are pickles: each is read only after its published MD5 matches, and by an unpickler
    that knows arrays and plain containers alone. With ``download`` the archive is fetched into the folder ``path``.
    Raises :class:`DataError` for anything else.
    """
    return _load(_CIFAR100, path, download)


def _load(edition: _Edition, path: Path, download: bool) -> Source:
    if download and not path.is_file():
        path = _download(edition, path)
    if path.is_dir():
        return _from_originals(edition, *_folder_reader(edition, path))
    if path.name.endswith((".tar.gz", ".tgz")):
        return _from_originals(edition, _archive_reader(edition, path), path)
    return _from_npz(edition, path)


def _from_npz(edition: _Edition, path: Path) -> Source:
    source = load_npz(path, edition.name, class_names=[str(k) for k in range(edition.classes)])
    if len(source.class_names) != edition.classes:
        raise DataError(
            f"{path} names {len(source.class_names)} classes, but {edition.name} has {edition.classes}.",
            hint="For a set of your own use the 'npz' presets.",
        )
    height, width = source.train.images.shape[2:]
    if (height, width) != (32, 32):
        raise DataError(
            f"{path} has images of {height}x{width}, but those of {edition.name} are 32x32.",
            hint="For a set of your own use the 'npz' presets.",
        )
    return dataclasses.replace(source, mean=MEAN, std=STD)


def _from_originals(edition: _Edition, read: Reader, where: Path) -> Source:
    published = edition.published
    train = [_batch(edition, read, name, md5, where) for name, md5 in published.train_list]
    test = [_batch(edition, read, name, md5, where) for name, md5 in published.test_list]
    meta = _verified(read, published.meta["filename"], published.meta["md5"], where)
    source = from_arrays(
        np.concatenate([images for images, _ in train]),
        np.concatenate([labels for _, labels in train]),
        test_images=np.concatenate([images for images, _ in test]),
        test_labels=np.concatenate([labels for _, labels in test]),
        class_names=[str(name) for name in meta[published.meta["key"]]],
        name=edition.name,
    )
    return dataclasses.replace(source, mean=MEAN, std=STD)


def _batch(
    edition: _Edition, read: Reader, name: str, md5: str, where: Path
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    content = _verified(read, name, md5, where)
    images = np.asarray(content["data"], dtype=np.uint8).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return images, np.asarray(content[edition.label_key], dtype=np.int64)


def _verified(read: Reader, name: str, md5: str, where: Path) -> dict[str, Any]:
    """Unpickle a file if its bytes have the published MD5; the bytes checked are the bytes unpickled."""
    content = read(name)
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found != md5:
        raise DataError(
            f"'{name}' in {where} is not the published file: its MD5 is {found}, not {md5}. It was not opened.",
            hint="Download the archive again, or use an npz file.",
        )
    unpickled: dict[str, Any] = ArrayUnpickler(io.BytesIO(content), encoding="latin1").load()
    return unpickled


class ArrayUnpickler(pickle.Unpickler):
    """An unpickler for NumPy arrays in plain containers: any other name in the stream is refused, not imported."""

    # The first of what an array reduces to is NumPy's own constructor, whose module moved between NumPy 1 and 2.
    _ARRAY = np.empty(0).__reduce__()[0]
    _KNOWN = {  # noqa: RUF012 - a constant table
        ("numpy.core.multiarray", "_reconstruct"): _ARRAY,
        ("numpy._core.multiarray", "_reconstruct"): _ARRAY,
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
    }

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        """The object behind a name in the pickle, for the four names an array needs."""
        try:
            return self._KNOWN[module_name, global_name]
        except KeyError:
            raise DataError(f"The pickle asks for {module_name}.{global_name}, which no CIFAR file does.") from None

    def persistent_load(self, pid: Any) -> Any:
        """Refused: CIFAR files have no persistent ids."""
        raise DataError("The pickle asks for an object outside of it, which no CIFAR file does.")


def _folder_reader(edition: _Edition, path: Path) -> tuple[Reader, Path]:
    published = edition.published
    names = [name for name, _ in (*published.train_list, *published.test_list)]
    for folder in (path, path / published.base_folder):
        if any((folder / name).is_file() for name in names):

            def read(name: str, folder: Path = folder) -> bytes:
                return _read_file(folder / name)

            return read, folder
    archive = path / published.filename
    if archive.is_file():
        return _archive_reader(edition, archive), archive
    raise DataError(
        f"{path} holds neither {edition.name}'s original files ({', '.join(names[:2])}, ...) "
        f"nor {published.base_folder}/ nor {published.filename}.",
        hint="Give that folder, the archive or an npz file with data.path, or add data.download=true.",
    )


def _archive_reader(edition: _Edition, path: Path) -> Reader:
    published = edition.published
    content = _read_file(path)
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found != published.tgz_md5:
        raise DataError(
            f"{path} is not the published archive: its MD5 is {found}, not {published.tgz_md5}. It was not opened.",
            hint="Download it again, or use an npz file.",
        )
    wanted = {f"{published.base_folder}/{name}": name for name, _ in (*published.train_list, *published.test_list)}
    wanted[f"{published.base_folder}/{published.meta['filename']}"] = published.meta["filename"]
    members: dict[str, bytes] = {}
    try:
        # One pass in the order of the archive: seeking back in a gzip stream decompresses it anew.
        with tarfile.open(fileobj=io.BytesIO(content), mode="r|gz") as archive:
            for member in archive:
                file = archive.extractfile(member) if member.name in wanted else None
                if file is not None:
                    members[wanted[member.name]] = file.read()
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise DataError(f"{path} is damaged: {error}", hint="Download it again.") from error

    def read(name: str) -> bytes:
        if name not in members:
            raise DataError(f"{path} has no {published.base_folder}/{name}.", hint="Download it again.")
        return members[name]

    return read


def _read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error.strerror or error}.") from error


def _download(edition: _Edition, folder: Path) -> Path:
    from torchvision.datasets.utils import check_integrity, download_url

    published = edition.published
    archive: Path = folder / published.filename
    if check_integrity(str(archive), published.tgz_md5):
        return archive
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResourceError(f"Cannot make the folder {folder}: {error.strerror or error}.") from error
    try:
        download_url(published.url, str(folder), filename=published.filename, md5=published.tgz_md5)
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"Could not download {published.url}: {error}", hint="Fetch it by other means and give data.path."
        ) from error
    return archive
