"""NumPy files from anywhere: no pickle is read, and nothing that would unpack to far more than the file holds."""

from __future__ import annotations

import os
import pickle
import stat
import struct
import tokenize
import zipfile
import zlib
from typing import Any, BinaryIO

import numpy as np
from numpy.lib.npyio import NpzFile
from numpy.typing import NDArray

from longtail.errors import DataError

MAX_RATIO = 200
"""An archive that unpacks to so many times its size, and to more than MAX_UNPACKED, is refused: blank images reach
about 100, a bomb 1000."""

MAX_UNPACKED = 128 * 2**20

DAMAGED = (
    zipfile.BadZipFile,
    zlib.error,
    pickle.UnpicklingError,
    struct.error,
    tokenize.TokenError,
    EOFError,
    ValueError,
    LookupError,
    RuntimeError,
    SyntaxError,
    TypeError,
    OverflowError,
)
"""What NumPy raises for bytes that are no archive, a pickle, a cut archive, a damaged member or header."""

_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def load_archive(file: BinaryIO) -> NpzFile | NDArray[Any]:
    """``numpy.load`` of an open file without pickles, after its sizes were looked at.

    Raises DataError for a device or a pipe, which would not end, for an archive that unpacks to
    :data:`MAX_RATIO` times its size, and for an array that claims more than its file holds; else what NumPy raises.
    """
    about = os.fstat(file.fileno())
    if not stat.S_ISREG(about.st_mode):
        raise DataError(f"{file.name} is not a regular file.")
    if zipfile.is_zipfile(file):
        file.seek(0)
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            unpacked = sum(member.file_size for member in members)
            if unpacked > MAX_UNPACKED and unpacked > MAX_RATIO * about.st_size:
                raise DataError(
                    f"{file.name} has {about.st_size:,} bytes and would unpack to {unpacked:,}.",
                    hint="If it is to be trusted, write it anew with numpy.savez, which does not compress.",
                )
            for member in members:
                with archive.open(member) as inner:
                    _refuse_claims(inner, member.file_size, f"'{member.filename}' in {file.name}")
    else:
        file.seek(0)
        _refuse_claims(file, about.st_size, str(file.name))
    file.seek(0)
    loaded: NpzFile | NDArray[Any] = np.load(file, allow_pickle=False)
    return loaded


def _refuse_claims(file: Any, size: int, name: str) -> None:
    """Raise DataError where the header of an array wants more bytes than there are: NumPy would ask for them first."""
    try:
        shape, _, dtype = _HEADERS[np.lib.format.read_magic(file)](file)
    except DAMAGED:
        return  # no array, or damaged: NumPy says so
    wanted = dtype.itemsize
    for side in shape:
        wanted *= side
    if wanted > size and not dtype.hasobject:
        raise DataError(f"{name} claims {wanted:,} bytes and has {size:,}.", hint="Copy or download the file again.")
