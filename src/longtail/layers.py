"""Settings before they are checked: ``key=value`` words, YAML files, and one laid over the other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from longtail.errors import ConfigError


def parse_assignments(assignments: Iterable[str]) -> dict[str, Any]:
    """``["optim.epochs=20", "seed=1"]`` as a nested dict; values are read as YAML scalars or lists.

    Raises ConfigError for what is not ``key=value``.
    """
    nested: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not key:
            raise ConfigError(f"'{assignment}' is not of the form key=value.", hint="Example: optim.epochs=20")
        try:
            value = yaml.safe_load(text) if text else None
        except yaml.YAMLError:
            raise ConfigError(
                f"The value of '{key}' cannot be read: {text}", hint="Quote it, or use a plain value."
            ) from None
        parts = key.strip().split(".")
        place = nested
        for part in parts[:-1]:
            place = place.setdefault(part, {})
            if not isinstance(place, dict):
                raise ConfigError(f"'{key}' is below a key that already has a value.")
        place[parts[-1]] = value
    return nested


def merge(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dicts laid over each other, later over earlier; lists are replaced whole."""
    merged: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            if isinstance(value, Mapping) and isinstance(merged.get(key), dict):
                merged[key] = merge(merged[key], value)
            else:
                merged[key] = merge(value) if isinstance(value, Mapping) else value
    return merged


def read_config_file(path: Path) -> dict[str, Any]:
    """The nested values of a YAML file; raises ConfigError naming the line that cannot be read."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"The configuration {path} cannot be read: {error.strerror}.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {error}") from None
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise ConfigError(f"{path} is not a mapping of keys to values.", hint="Example:\noptim:\n  epochs: 20")
    return values
