"""Named data sources: ``load_source("cifar100", path)``."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from longtail.data.images import Source
from longtail.data.sources.arrays import from_arrays, resize
from longtail.data.sources.cifar import load_cifar10, load_cifar100
from longtail.data.sources.idx import load_fashion_mnist
from longtail.data.sources.npz import load_npz
from longtail.errors import ConfigError, DataError, unknown_name

__all__ = ["SOURCES", "from_arrays", "load_source"]

Loader = Callable[[Path, bool], Source]


def _npz(path: Path, download: bool) -> Source:
    if download:
        raise ConfigError("data.download: an npz file of your own has no place to be downloaded from.")
    if path.is_dir():
        raise DataError(f"{path} is a folder.", hint="Give the file: data.path=FILE.npz")
    return load_npz(path)


SOURCES: dict[str, Loader] = {
    "cifar10": load_cifar10,
    "cifar100": load_cifar100,
    "fashion-mnist": load_fashion_mnist,
    "npz": _npz,
}


def load_source(
    name: str, path: str | os.PathLike[str] | None, *, download: bool = False, size: int | None = None
) -> Source:
    """Load the source ``name`` from ``path``, resized to ``size`` x ``size`` if that is given and differs.

    Nothing is fetched unless ``download`` is true; then ``path`` is the folder to download to. Raises
    :class:`ConfigError` for an unknown name or no path, :class:`DataError` for anything wrong with what lies there.
    """
    if name not in SOURCES:
        raise unknown_name("data source", name, SOURCES)
    if path is None:
        place = "data.path=FILE.npz" if name == "npz" else "data.path=FILE.npz or data.path=FOLDER"
        if name == "fashion-mnist":
            place = "data.path=FOLDER"
        raise ConfigError(f"The data source '{name}' needs a path.", hint=f"Say where it lies: {place}")
    place_on_disk = Path(path).expanduser()
    if not download and not _exists(place_on_disk):
        raise DataError(f"There is nothing at {place_on_disk}.", hint="Check data.path.")
    source = SOURCES[name](place_on_disk, download)
    return source if size is None else resize(source, size)


def _exists(path: Path) -> bool:
    try:
        path.stat()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise DataError(f"Cannot look at {path}: {error.strerror}.") from error
    return True
