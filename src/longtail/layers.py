"""Settings before they are checked: ``key=value`` words, YAML files, and one laid over the other."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from longtail.errors import ConfigError

MAX_NODES = 100_000
"""Values and keys of a YAML text, aliases written out: ten lines of aliases can stand for billions."""


def load_yaml(text: str) -> Any:
    """``yaml.safe_load``, in which every refusal is a YAMLError: :func:`yaml_errors`, :func:`compose_yaml`."""
    with yaml_errors():
        loader = yaml.SafeLoader(text)
        try:
            node = compose_yaml(loader)
            return None if node is None else loader.construct_document(node)
        finally:
            loader.dispose()


@contextlib.contextmanager
def yaml_errors() -> Iterator[None]:
    """Turn into YAMLError what PyYAML lets through: impossible dates, integers without end, nests too deep."""
    try:
        yield
    except (ValueError, OverflowError, TypeError, AttributeError, LookupError) as error:
        raise yaml.YAMLError(str(error)) from None
    except RecursionError:
        raise yaml.YAMLError("it is nested too deeply") from None


def compose_yaml(loader: yaml.SafeLoader) -> yaml.Node | None:
    """The one document of ``loader`` as nodes, None where it is empty.

    Raises YAMLError where it stands for more than :data:`MAX_NODES` values once its aliases are written out.
    """
    with yaml_errors():
        node: yaml.Node | None = loader.get_single_node()
        if node is not None and _written_out(node, {}) > MAX_NODES:
            raise yaml.YAMLError(f"it stands for more than {MAX_NODES:,} values")
    return node


def _written_out(node: yaml.Node, known: dict[int, float]) -> float:
    """How many nodes there would be without aliases; without end where one holds itself."""
    if id(node) not in known:
        known[id(node)] = math.inf  # while it is being counted
        inner = node.value if isinstance(node.value, list) else []
        parts = [part for pair in inner for part in (pair if isinstance(pair, tuple) else (pair,))]
        known[id(node)] = 1 + sum(_written_out(part, known) for part in parts)
    return known[id(node)]


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
            value = load_yaml(text) if text else None
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
        values = load_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"The configuration {path} cannot be read: {error.strerror}.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        said = str(error).replace('"<unicode string>"', path.name)
        raise ConfigError(f"{path} is not YAML: {said}") from None
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise ConfigError(f"{path} is not a mapping of keys to values.", hint="Example:\noptim:\n  epochs: 20")
    return values
