"""Recipes by name, ``DATASET/METHOD``, and the way from a recipe or file and overrides to a Config."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from longtail.config import Config, build_config
from longtail.errors import ConfigError, unknown_name
from longtail.layers import merge, parse_assignments, read_config_file
from longtail.methods import METHODS
from longtail.recipes.presets import NAMED, OF_IMBALANCE, PRESETS, TUNED, Tuned

__all__ = ["load_config", "recipe", "recipe_names", "recipe_note", "recipe_source"]


def recipe_names() -> list[str]:
    """Every pair of a data preset and a method, and the recipes with a name of their own."""
    return [*(f"{data}/{method}" for data in PRESETS for method in METHODS), *NAMED]


def recipe_source(name: str) -> str:
    """Where the numbers of a recipe come from: paper, authors' program, ours (selected on val), untuned defaults."""
    tuned = _tuned(name)
    return "untuned defaults" if tuned is None else tuned.source


def recipe_note(name: str) -> str:
    """What else is to be said of where a recipe's numbers come from; empty where there is nothing."""
    tuned = _tuned(name)
    return "" if tuned is None else tuned.note


def _tuned(name: str) -> Tuned | None:
    return NAMED.get(name) or TUNED.get(name)


def recipe(name: str, imbalance: float | None = None) -> dict[str, Any]:
    """The nested values of a recipe: preset, then what the method's name stands for, then the tuned entry.

    ``imbalance`` picks the settings that the source gives for it, if it gives any. A recipe with a name of its own is
    that of its method with its settings over it. Raises ConfigError for an unknown name, with the nearest match.
    """
    data, slash, method = name.partition("/")
    if name in NAMED:
        return merge(recipe(f"{data}/{NAMED[name].method}", imbalance), NAMED[name].settings)
    if not slash or data not in PRESETS or method not in METHODS:
        if slash and data in PRESETS:
            raise unknown_name("method", method, [*METHODS, *_named_of(data)])
        if slash and method in METHODS:
            raise unknown_name("data set", data, PRESETS)
        raise unknown_name("recipe", name, recipe_names())
    entry = METHODS[method]
    named = {"data": {"name": data}, "model": entry.model, "method": {"name": method}, "test": entry.test}
    layers: list[Mapping[str, Any]] = [PRESETS[data], named, {"optim": entry.optim}]
    if name in TUNED:
        layers.append(TUNED[name].settings)
    values = merge(*layers)
    chosen = imbalance if imbalance is not None else values["data"].get("imbalance")
    return merge(values, {"method": OF_IMBALANCE.get(name, {}).get(chosen, {})})


def load_config(target: str | Path | None, overrides: Sequence[str] | Mapping[str, Any] = ()) -> Config:
    """The Config of a recipe name or a YAML file, with ``key=value`` strings or nested values laid over it.

    Precedence: defaults < recipe < file < overrides. Raises ConfigError for anything unknown or out of range.
    """
    explicit = dict(overrides) if isinstance(overrides, Mapping) else parse_assignments(overrides)
    if target is not None:
        text = str(target)
        if text.endswith((".yaml", ".yml")):
            explicit = merge(read_config_file(Path(text)), explicit)
        else:
            data, _, method = text.partition("/")
            method = recipe(text)["method"]["name"]
            explicit = merge({"data": {"name": data}, "method": {"name": method}}, explicit)
    data_values, method_values = explicit.get("data") or {}, explicit.get("method") or {}
    if not isinstance(data_values, Mapping) or not isinstance(method_values, Mapping):
        return build_config(explicit)
    data_name, method_name = data_values.get("name"), method_values.get("name")
    if data_name is None and method_name is None and target is None:
        raise ConfigError("No recipe and no configuration file.", hint="Example: longtail train scenes/concutmix")
    if not isinstance(data_name, str | None) or not isinstance(method_name, str | None):
        return build_config(explicit)
    name = f"{data_name}/{method_name}"
    if data_name in PRESETS and method_name in METHODS:
        imbalance = _number(data_values.get("imbalance"))
        if target in NAMED and name == _base(str(target)):
            name = str(target)
        explicit = merge(recipe(name, imbalance), explicit)
    config = build_config(explicit)
    if name in NAMED and config.out is None:  # else it would share the folder of its method's recipe
        return config.model_copy(update={"out": f"runs/{name.replace('/', '-')}-s{config.seed}"})
    return config


def _base(named: str) -> str:
    return f"{named.partition('/')[0]}/{NAMED[named].method}"


def _named_of(data: str) -> list[str]:
    return [name.partition("/")[2] for name in NAMED if name.startswith(f"{data}/")]


def _number(given: Any) -> float | None:
    """A number as the configuration would read it (YAML takes 1e2 for text), or None."""
    try:
        return None if isinstance(given, bool) else float(given)
    except (TypeError, ValueError):
        return None
