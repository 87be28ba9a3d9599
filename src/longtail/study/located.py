"""YAML that remembers its lines, so that whatever is wrong in a study file is refused with file, line and key."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from longtail.errors import ConfigError
from longtail.layers import compose_yaml, yaml_errors

MERGE = "tag:yaml.org,2002:merge"


@dataclass(frozen=True)
class Entry:
    """One ``key: value`` of a mapping and the line it stands on, counted from 1."""

    key: str
    node: yaml.Node
    line: int


@dataclass(frozen=True)
class Setting:
    """A setting by its dotted key, its value, and the line it stands on."""

    key: str
    value: Any
    line: int


class LocatedYaml:
    """One YAML document: nodes with their lines, and the plain values they stand for."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"The study {path} cannot be read: {error.strerror}.") from None
        except UnicodeDecodeError as error:
            raise ConfigError(f"{path} is not YAML: {error}") from None
        try:
            with yaml_errors():
                self._loader = yaml.SafeLoader(text)
            self.root = compose_yaml(self._loader)
        except yaml.YAMLError as error:
            raise self._not_yaml(error) from None

    def refusal(self, line: int, message: str, hint: str | None = None) -> ConfigError:
        """The error for what stands on ``line``."""
        return ConfigError(f"{self.path}:{line}: {message}", hint=hint)

    def _not_yaml(self, error: yaml.YAMLError) -> ConfigError:
        mark = getattr(error, "problem_mark", None)
        said = str(getattr(error, "problem", None) or error)
        return self.refusal(1 if mark is None else mark.line + 1, f"This is not YAML: {said}.")

    def plain(self, node: yaml.Node) -> Any:
        """The value of a node in built-in types; raises ConfigError for tags and keys that have none."""
        try:
            with yaml_errors():
                return self._loader.construct_object(node, deep=True)
        except yaml.YAMLError as error:
            raise self._not_yaml(error) from None

    def entries(self, node: yaml.Node | None, name: str) -> list[Entry]:
        """What stands in a mapping, in its order; nothing at all is an empty one. Twice the same key is refused."""
        if node is None or (isinstance(node, yaml.ScalarNode) and self.plain(node) is None):
            return []
        if not isinstance(node, yaml.MappingNode):
            raise self.refusal(node.start_mark.line + 1, f"{name} is not a mapping of keys to values.")
        own = [self._entry(key, value, name) for key, value in node.value if key.tag != MERGE]
        for position, entry in enumerate(own):
            if entry.key in {other.key for other in own[:position]}:
                raise self.refusal(entry.line, f"'{entry.key}' stands twice in {name}.")
        try:
            with yaml_errors():
                self._loader.flatten_mapping(node)  # ``<<: *anchor``
        except yaml.YAMLError as error:
            raise self._not_yaml(error) from None
        merged = {entry.key: entry for entry in (self._entry(key, value, name) for key, value in node.value)}
        return list(merged.values())

    def _entry(self, key: yaml.Node, value: yaml.Node, name: str) -> Entry:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            raise self.refusal(line, f"A key of {name} is not a plain word.")
        return Entry(key.value, value, line)

    def settings(self, node: yaml.Node | None, name: str) -> list[Setting]:
        """Settings that are nested (``method: {mu: 0}``), dotted (``method.mu: 0``) or both, by their dotted keys."""
        found: list[Setting] = []
        for entry in self.entries(node, name):
            if isinstance(entry.node, yaml.MappingNode):
                inner = self.entries(entry.node, f"'{entry.key}' of {name}")
                found += [Setting(f"{entry.key}.{one.key}", self.plain(one.node), one.line) for one in inner]
            else:
                found.append(Setting(entry.key, self.plain(entry.node), entry.line))
        for position, one in enumerate(found):
            before = found[:position]
            if any(one.key == other.key for other in before):
                raise self.refusal(one.line, f"'{one.key}' stands twice in {name}.")
            if any(_is_below(one.key, other.key) or _is_below(other.key, one.key) for other in before):
                raise self.refusal(one.line, f"'{one.key}' is below a key that already has a value in {name}.")
        return found


def _is_below(key: str, group: str) -> bool:
    return key.startswith(f"{group}.")


def nested(settings: Sequence[Setting]) -> dict[str, Any]:
    """Settings as nested dicts, later over earlier."""
    values: dict[str, Any] = {}
    for setting in settings:
        group, dot, name = setting.key.partition(".")
        if dot:
            inner = values.get(group)
            values[group] = (inner if isinstance(inner, dict) else {}) | {name: setting.value}
        else:
            values[group] = setting.value
    return values
