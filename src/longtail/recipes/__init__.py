"""Recipes by name, ``DATASET/METHOD``, and the way from a recipe or file and overrides to a Config."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from longtail.config import Config, build_config
from longtail.data.settings import KINDS
from longtail.errors import ConfigError, nearest, unknown_name
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
        if slash and method in METHODS and not Path(name).exists():
            raise unknown_name("data set", data, PRESETS)
        raise _no_recipe(name)
    entry = METHODS[method]
    named = {"data": {"name": data}, "model": entry.model, "method": {"name": method}, "test": entry.test}
    layers: list[Mapping[str, Any]] = [PRESETS[data], named, {"optim": entry.optim}]
    if name in TUNED:
        layers.append(TUNED[name].settings)
    values = merge(*layers)
    chosen = imbalance if imbalance is not None else values["data"].get("imbalance")
    return merge(values, {"method": OF_IMBALANCE.get(name, {}).get(chosen, {})})


def _no_recipe(name: str) -> ConfigError:
    """The error for a word that stands where a recipe should: what it is instead, and what was probably meant."""
    if name in METHODS:
        return ConfigError(
            f"'{name}' is a method; a recipe is DATASET/METHOD.",
            hint=f"Example: scenes/{name}, or folder/{name} data.path=FOLDER",
        )
    if name in PRESETS:
        return ConfigError(
            f"'{name}' is a data set; a recipe is DATASET/METHOD.",
            hint=f"Example: {name}/ce. Methods are listed by: longtail methods",
        )
    try:
        path = Path(name).expanduser()
        is_run, is_folder, is_file = (path / "run.json").is_file(), path.is_dir(), path.is_file()
    except (OSError, RuntimeError, ValueError):  # no path at all
        is_run = is_folder = is_file = False
    if is_run:
        again = f"longtail train {shlex.quote(str(path / 'config.yaml'))}"
        return ConfigError(
            f"'{name}' is a run folder, not a recipe.",
            hint=f"Go on with it: {again} --resume\nTrain it again: {again} out=ELSEWHERE",
        )
    kind = "folder" if is_folder else KINDS.get(path.suffix.lower()) if is_file else None
    if kind is not None:
        word = shlex.quote(f"data.path={name}")
        return ConfigError(
            f"'{name}' is a {'folder' if is_folder else 'file'}, not a recipe.",
            hint=f"If your images are there: longtail train {kind}/ce {word}",
        )
    match = nearest(name, recipe_names())
    hint = f"Did you mean '{match}'?" if match else "A recipe is DATASET/METHOD: longtail recipes lists them."
    return ConfigError(f"Unknown recipe '{name}'.", hint=hint)


def load_config(target: str | Path | None, overrides: Sequence[str] | Mapping[str, Any] = ()) -> Config:
    """The Config of a recipe name or a YAML file, with ``key=value`` strings or nested values laid over it.

    Precedence: defaults < recipe < file < overrides. Raises ConfigError for anything unknown or out of range.
    """
    explicit = dict(overrides) if isinstance(overrides, Mapping) else parse_assignments(overrides)
    if target is not None:
        text = str(target)
        if text.endswith((".yaml", ".yml")):
            explicit = merge(_for_method_of(explicit, read_config_file(Path(text))), explicit)
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


def _for_method_of(overrides: Mapping[str, Any], file: dict[str, Any]) -> dict[str, Any]:
    """The values of a file without what only its own method brought, where ``overrides`` name another one.

    Its ``method`` group goes, and what a recipe of either method sets under ``model``, ``test`` and ``optim`` where the
    file has what the old one's gives: a run's config.yaml holds every key, and would make ``bcl`` of cross-entropy
    nothing but a name.
    """
    old, new = (_names(values) for values in (file, overrides))
    data, method = old["data"], old["method"]
    if new["method"] not in METHODS or method not in METHODS or new["method"] == method:
        return file
    values = {group: inner for group, inner in file.items() if group != "method"}
    usual = build_config(recipe(f"{data}/{method}")).plain() if data in PRESETS else {}
    for group in ("model", "test", "optim"):
        own = {*getattr(METHODS[method], group), *getattr(METHODS[new["method"]], group)}
        if isinstance(inner := values.get(group), Mapping):
            left = {n: v for n, v in inner.items() if n not in own or v != usual.get(group, {}).get(n, v)}
            values[group] = left
    return values


def _names(values: Mapping[str, Any]) -> dict[str, str]:
    """What ``values`` call their data and their method; an empty text where they name none."""
    groups = {group: values.get(group) for group in ("data", "method")}
    names = {group: inner.get("name") if isinstance(inner, Mapping) else None for group, inner in groups.items()}
    return {group: name if isinstance(name, str) else "" for group, name in names.items()}


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
