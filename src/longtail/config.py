"""The configuration of a run: typed, complete, and strict about unknown keys.

Precedence: defaults < recipe or file < command line. Nothing here looks at the data; what it refuses has exit code 2.
"""

from __future__ import annotations

import functools
import hashlib
import json
import operator
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast, get_args

from pydantic import BaseModel, Field, ValidationError, create_model

from longtail.data.settings import DATA_NAMES, DataSettings
from longtail.data.views import VIEWS
from longtail.errors import ConfigError, unknown_name
from longtail.evaluation.scoring import ScoringSettings
from longtail.layers import read_config_file
from longtail.methods import METHODS
from longtail.models import check_backbone
from longtail.models.network import ModelSettings
from longtail.other_words import meant_key
from longtail.saliency.detectors import DETECTORS
from longtail.settings import AbsolutePath, Settings, leaves_none
from longtail.training_settings import OptimSettings as OptimSettings
from longtail.training_settings import RunSettings as RunSettings
from longtail.training_settings import ViewSettings as ViewSettings

NUMBERS_VERSION = 1
"""Raised by every change that moves numbers; rows of different versions are never averaged."""


def _named(name: str) -> type[Settings]:
    entry = METHODS[name]
    fields: dict[str, Any] = {"name": (Literal[name], name)}
    for key, value in entry.defaults.items():
        fields[key] = (entry.settings.model_fields[key].rebuild_annotation(), value)
    return cast(type[Settings], create_model(f"{name}-settings", __base__=entry.settings, **fields))


METHOD_SETTINGS: dict[str, type[Settings]] = {name: _named(name) for name in METHODS}
"""For each method its settings with the defaults that its name stands for, and the field ``name``."""

if TYPE_CHECKING:
    AnyMethodSettings = Settings
else:
    AnyMethodSettings = Annotated[functools.reduce(operator.or_, METHOD_SETTINGS.values()), Field(discriminator="name")]


class Config(Settings):
    """Everything that a run depends on. ``seed`` keys every draw but the subset, which has ``data.subset_seed``."""

    seed: int = Field(0, ge=0, lt=2**31)
    """Keys every draw of training: initial weights, order, views, mixing."""
    out: str | None = None
    """The run folder; null is runs/DATASET-METHOD-sSEED."""
    init: AbsolutePath | None = None
    """A run folder, or a file of weights, to start from."""
    data: DataSettings
    views: ViewSettings = ViewSettings()
    model: ModelSettings = ModelSettings()
    method: AnyMethodSettings
    optim: OptimSettings = OptimSettings()
    run: RunSettings = RunSettings()
    test: ScoringSettings = ScoringSettings()

    @property
    def method_name(self) -> str:
        """The name under which the method stands in ``METHODS``."""
        return str(self.method.name)  # type: ignore[attr-defined]

    @property
    def recipe(self) -> str:
        """``DATASET/METHOD``."""
        return f"{self.data.name}/{self.method_name}"

    def plain(self) -> dict[str, Any]:
        """As nested built-in types, complete, ready for YAML or JSON."""
        return self.model_dump(mode="json")

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled by its values: the class of ``method`` is made when this module is imported and has no address."""
        return build_config, (self.plain(),)

    def key(self, init: str | None = None) -> str:
        """A short digest of all that the result depends on: not the folder, nor how it is computed, but for precision,
        and for how often is evaluated where ``optim.patience`` counts evaluations.

        Only what differs from the defaults counts, so that adding a setting leaves keys as they are. Initial weights
        and saliency maps count by content: a run folder by its key, a file by its bytes; ``init`` stands for what is
        not there yet.
        """
        kept: dict[str, Any] = {"seed": self.seed, "init": init or (self.init and _content_of(Path(self.init)))}
        for group, values in self:
            if isinstance(values, Settings) and group != "run":
                kept[group] = _changed(values)
        counted = ("precision", *(("evaluate_every",) if self.optim.patience is not None else ()))
        kept["run"] = {name: value for name, value in _changed(self.run).items() if name in counted}
        for name in ("path", "root", "val_path", "test_path", "download", "test_profile"):
            kept["data"].pop(name, None)
        for group, name in (("method", "saliency_maps"), ("model", "weights")):
            if kept[group].get(name):
                kept[group][name] = _content_of(Path(kept[group][name]))
        text = json.dumps({name: value for name, value in kept.items() if value not in (None, {})}, sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()


def _changed(values: Settings) -> dict[str, Any]:
    """The values that differ from the defaults of their settings, and the name in any case."""
    kind = type(values)
    needed = {name: getattr(values, name) for name, field in kind.model_fields.items() if field.is_required()}
    given, default = (one.model_dump(mode="json") for one in (values, kind(**needed)))
    # Compared as JSON, in which a time of 1 (an epoch) is not 1.0 (the whole run).
    return {name: v for name, v in given.items() if name == "name" or json.dumps(v) != json.dumps(default[name])}


def _content_of(path: Path, seen: frozenset[Path] = frozenset()) -> str:
    """What initial weights are: the key of a run folder, the digest of a file or an exported folder; else the path."""
    if (path / "model.safetensors").is_file():  # a folder that was exported
        path = path / "model.safetensors"
    if path.is_file():
        return hashlib.sha256(path.read_bytes()).hexdigest()
    if path in seen or not (path / "config.yaml").is_file():  # a run may have been started anew from its own weights
        return str(path)
    try:
        config = build_config(read_config_file(path / "config.yaml"))
    except ConfigError:
        return str(path)
    return config.key(config.init and _content_of(Path(config.init), seen | {path}))


def known_keys(method: str | None = None) -> list[str]:
    """Every key there is (for one method, or for all): ``["seed", ..., "data.name", ...]``."""
    keys: list[str] = []
    for name, field in Config.model_fields.items():
        if name == "method":
            chosen = [METHOD_SETTINGS[method]] if method in METHOD_SETTINGS else list(METHOD_SETTINGS.values())
            keys += sorted({f"method.{inner}" for settings in chosen for inner in settings.model_fields})
        elif isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            keys += [f"{name}.{inner}" for inner in field.annotation.model_fields]
        else:
            keys.append(name)
    return keys


def build_config(values: Mapping[str, Any]) -> Config:
    """A checked Config from nested values; raises ConfigError naming every key that is wrong and what it may be."""
    _check_names(values)
    try:
        config = Config.model_validate(dict(values))
    except ValidationError as error:
        raise ConfigError(_explain(error, values)) from None
    check_backbone(config.model.backbone)
    if config.init is not None and config.model.weights is not None:
        raise ConfigError("init and model.weights exclude each other: both are what the backbone begins with.")
    detector = getattr(config.method, "detector", None)
    if detector is not None and detector not in DETECTORS:
        raise unknown_name("detector", detector, DETECTORS)
    for view in config.views.names.values():
        if view not in VIEWS:
            raise unknown_name("view", view, VIEWS)
    epochs, start = config.optim.epochs, config.views.refined_start
    if config.views.refined is not None and leaves_none(start, epochs):
        raise ConfigError(
            f"views.refined_start={start} leaves none of the {epochs} epochs of optim.epochs to "
            f"views.refined={config.views.refined}.",
            hint="Begin it earlier, or leave views.refined out.",
        )
    return config


def _check_names(values: Mapping[str, Any]) -> None:
    """Unknown keys and names are told with their nearest match before anything else is looked at."""
    for group, inner in values.items():
        if group not in Config.model_fields:
            _unknown_key(group)
        is_group = any(key.startswith(f"{group}.") for key in known_keys())
        if is_group and not isinstance(inner, Mapping):
            raise ConfigError(f"'{group}' is a group of keys.", hint=f"Set one of them, e.g. {_example(group)}=...")
        if not is_group and isinstance(inner, Mapping):
            raise ConfigError(f"'{group}' is a single key, not a group.")
    data, method = values.get("data", {}), values.get("method", {})
    for kind, given, table in (("data set", data.get("name"), DATA_NAMES), ("method", method.get("name"), METHODS)):
        if given is None:
            raise ConfigError(f"No {kind} is named.", hint="Start from a recipe: longtail recipes lists them.")
        if not isinstance(given, str) or given not in table:
            raise unknown_name(kind, str(given), table)
    known = known_keys(method["name"])
    for group, inner in values.items():
        if isinstance(inner, Mapping):
            for name in inner:
                if f"{group}.{name}" not in known:
                    _unknown_key(f"{group}.{name}", known, method["name"])
    _check_truth_values(values, METHOD_SETTINGS[method["name"]])


def _check_truth_values(values: Mapping[str, Any], method: type[Settings]) -> None:
    """Without this ``optim.epochs=yes`` would be one epoch: YAML reads yes as true, and true counts as 1."""
    for group, inner in values.items():
        settings = method if group == "method" else Config.model_fields[group].annotation
        for name, value in inner.items() if isinstance(inner, Mapping) else [(group, inner)]:
            fields = cast(type[Settings], settings if isinstance(inner, Mapping) else Config).model_fields
            annotation = fields[name].annotation
            if isinstance(value, bool) and bool not in (annotation, *get_args(annotation)):
                key = f"{group}.{name}" if isinstance(inner, Mapping) else group
                raise ConfigError(f"{key}={value!r}: must not be true or false (YAML reads yes, no, on and off so).")


def _unknown_key(key: str, known: Iterable[str] | None = None, method: str | None = None) -> None:
    if "." in key and key in known_keys(method):
        group, _, name = key.partition(".")
        hint = f"Write {name} under {group}: in a file 'optim: {{epochs: 5}}', in Python optim={{\"epochs\": 5}}."
        raise ConfigError(f"'{key}' is a key of a group, and is nested here.", hint=hint)
    match = meant_key(key, list(known if known is not None else known_keys()))
    where = f" of method '{method}'" if method and key.startswith("method.") else ""
    hint = f"Did you mean '{match}'?" if match else "longtail schema lists every key."
    raise ConfigError(f"Unknown key '{key}'{where}.", hint=hint)


def _example(group: str) -> str:
    return next(key for key in known_keys() if key.startswith(f"{group}."))


def _explain(error: ValidationError, values: Mapping[str, Any]) -> str:
    lines: dict[str, list[str]] = {}
    for problem in error.errors():
        place = [str(part) for part in problem["loc"]]
        if place and place[0] == "method" and len(place) > 1 and place[1] in METHODS:
            place.pop(1)
        key = ".".join(place[:2]) if place[0] in values and isinstance(values[place[0]], Mapping) else place[0]
        message = problem["msg"].removeprefix("Value error, ")
        lines.setdefault(key, [])
        text = message[0].lower() + message[1:]
        if text not in lines[key]:
            lines[key].append(text)
    shown = []
    for key, messages in lines.items():
        group, _, name = key.partition(".")
        given = values.get(group, {}).get(name) if name else values.get(group)
        shown.append(f"{key}={given!r}: {', or '.join(messages)}.")
    return "\n".join(shown)


def differences(one: Config, other: Config) -> list[str]:
    """The keys in which two configs differ, but for the folder, how often they save, and what moves no bit.

    Of another method or data set only the name is told: the settings that come with it say nothing more.
    """
    ignored = {"out", "data.download", "run.threads", "run.workers", "run.checkpoint_minutes", "run.stop_after_minutes"}
    ignored |= {"run.trackers", "run.checkpointing"}
    first, second = one.plain(), other.plain()
    found = []
    for group in first:
        if isinstance(first[group], dict):
            if first[group].get("name") != second[group].get("name"):
                found.append(f"{group}.name")
                continue
            names = sorted(first[group].keys() | second[group].keys())
            missing = object()
            found += [
                f"{group}.{name}"
                for name in names
                if first[group].get(name, missing) != second[group].get(name, missing)
            ]
        elif first[group] != second[group]:
            found.append(group)
    return [key for key in found if key not in ignored]
