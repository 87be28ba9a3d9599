"""A folder that ``longtail export`` wrote: weights, and what they are of. Read here, written in ``export.py``."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import Tensor

from longtail.config import Config, build_config
from longtail.errors import ConfigError, RunError
from longtail.files import read_json
from longtail.layers import merge

EXPORT_SCHEMA = 1
WEIGHTS, ABOUT, CARD = "model.safetensors", "config.json", "README.md"
"""The files of such a folder."""

PATHS = {
    "": ("out", "init"),
    "data": ("path", "root", "val_path", "test_path"),
    "model": ("weights",),
    "method": ("saliency_maps",),
}
"""Settings that are places on the machine of the run, by group."""


def is_exported(folder: Path) -> bool:
    """Whether ``folder`` looks like one, and is no run folder."""
    return (folder / ABOUT).is_file() and not (folder / "run.json").is_file()


def read_about(folder: Path) -> dict[str, Any]:
    """The content of config.json; raises RunError where this version did not write it."""
    about = read_json(folder / ABOUT)
    if not isinstance(about, dict) or about.get("format") != "longtail" or about.get("schema") != EXPORT_SCHEMA:
        raise RunError(f"{folder} is neither a run folder nor one that this version of longtail exported.")
    # What an older version did not write is not known.
    return {"fingerprint": None, "results": None, "evaluated_on": None} | about


def exported_config(folder: Path, about: Mapping[str, Any], moved: Mapping[str, Any] | None = None) -> Config:
    """The configuration, with the settings in ``moved`` laid over it; RunError where this version refuses it."""
    try:
        config = build_config(about["config"])
    except (ConfigError, KeyError) as error:
        raise RunError(f"{folder / ABOUT} (longtail {about.get('longtail', '?')}) is refused: {error}") from None
    return build_config(merge(about["config"], moved)) if moved else config


def read_weights(folder: Path, about: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors by name; raises RunError where they cannot be read or are not those that were written."""
    file = folder / WEIGHTS
    try:
        content = file.read_bytes()
        if hashlib.sha256(content).hexdigest() != about.get("sha256"):
            raise RunError(f"{file} does not have the digest it was written with.")
        return load_tensors(content)
    except OSError as error:
        raise RunError(f"{file} cannot be read: {error.strerror}.") from None
    except SafetensorError as error:
        raise RunError(f"{file} cannot be read: {error}") from None


def without_paths(config: dict[str, Any]) -> dict[str, Any]:
    """The nested values of a configuration without the places on the machine: they say nothing elsewhere."""
    config = config | dict.fromkeys(PATHS[""])
    for group, names in PATHS.items():
        if group:
            config[group] = config[group] | {name: None for name in names if name in config[group]}
    return config


def portable_command(command: str) -> str:
    """The command of a run without its folder, and with the names of files and folders in place of their paths."""
    places = {f"{group}.{name}".removeprefix(".") for group, names in PATHS.items() for name in names}
    words: list[str] = []
    given = shlex.split(command)
    for before, word in zip(["", *given], given, strict=False):
        if "--out" in (before, word) or word.startswith(("out=", "--out=", "--resume", "--overwrite", "--debug")):
            continue
        key, equals, value = word.partition("=")
        if not equals or "/" in key:  # no assignment: the word is itself a path
            key, equals, value = "", "", word
        if key in places or value.startswith(("/", "../", "~")):
            word = f"{key}{equals}{Path(value).name}"
        words.append(word)
    return shlex.join(words)
