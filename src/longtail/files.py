"""Files that are written whole or not at all, and the folder of what can be made again."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from pathlib import Path
from typing import Any

from longtail.errors import ConfigError, ResourceError, RunError


def write_atomic(path: Path, content: bytes) -> None:
    """Replace ``path`` by ``content`` or leave it as it was. Raises ResourceError when the disk refuses."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise disk_error(path, error) from error


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def disk_error(path: Path, error: OSError) -> ResourceError:
    hint = "Free some space and run again with --resume." if error.errno in (errno.ENOSPC, errno.EDQUOT) else None
    return ResourceError(f"{path} cannot be written: {error.strerror}.", hint=hint)


def write_json(path: Path, content: Any) -> None:
    """Write built-in types as indented JSON, atomically; NaN and infinities are refused."""
    write_atomic(path, (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> Any:
    """Read JSON; raises RunError naming the file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{path} cannot be read: {error}") from None


def as_cell(text: str) -> str:
    """A name as a cell of a CSV file: behind an apostrophe where a spreadsheet would take it for a formula and run it.

    Source: OWASP, "CSV Injection". Numbers stay as they are.
    """
    if not text.startswith(("=", "+", "-", "@", "\t", "\r")):
        return text
    try:
        float(text)
    except ValueError:
        return f"'{text}"
    return text


def cache_folder() -> Path:
    """``$LONGTAIL_CACHE``, else ``longtail`` in ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    own = os.environ.get("LONGTAIL_CACHE")
    if own:
        return Path(own)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "longtail"
    except RuntimeError as error:  # no home folder
        raise ConfigError(f"There is no cache folder: {error}", hint="Set LONGTAIL_CACHE.") from None
