"""The commands that say what there is: ``longtail recipes``, ``methods``, ``detectors`` and ``schema``."""

from __future__ import annotations

from typing import Annotated

import typer


def recipes(
    text: Annotated[str | None, typer.Argument(metavar="TEXT", help="Only those with this in their name.")] = None,
) -> None:
    """List the recipes, and their sources.

    What a recipe sets is shown by longtail train RECIPE --dry-run.
    """
    from longtail.errors import unknown_name
    from longtail.recipes import recipe_names, recipe_note, recipe_source

    names = [name for name in recipe_names() if text is None or text in name]
    if text is not None and not names:
        raise unknown_name("recipe", text, recipe_names())
    width = max(map(len, names))
    for name in names:
        note = recipe_note(name)
        typer.echo(f"{name:<{width}}  {recipe_source(name)}" + (f" ({note})" if note else ""))


def methods(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="A method, to see more of it.")] = None,
) -> None:
    """List the methods.

    Each with its paper and one line; of one, what its name stands for and what papers report of it.
    """
    from longtail.errors import unknown_name
    from longtail.methods import METHODS

    if name is not None:
        if name not in METHODS:
            raise unknown_name("method", name, METHODS)
        typer.echo("\n".join(description(name)))
        return
    width = max(map(len, METHODS))
    for name, entry in METHODS.items():
        typer.echo(f"{name:<{width}}  {entry.summary} [{entry.paper}]")


def description(name: str) -> list[str]:
    """Lines on a method: its paper, the settings it stands for and what was published with it."""
    from longtail.methods import METHODS
    from longtail.recipes.published import published

    entry = METHODS[name]
    lines = [f"{name}: {entry.summary}", f"paper: {entry.paper}"]
    stands_for = {"method": entry.defaults, "model": entry.model, "test": entry.test}
    settings = [f"{group}.{key}={value}" for group, values in stands_for.items() for key, value in values.items()]
    if settings:
        lines.append(f"stands for: {' '.join(settings)}")
    reported = [entry.describe() for entry in published() if entry.method == name]
    lines.append("published top-1 in %, on the papers' protocols:" if reported else "published numbers: none traced")
    return lines + [f"  {line}" for line in reported] + [f"train it: longtail train cifar100/{name} data.path=FILE.npz"]


def detectors() -> None:
    """List the saliency detectors."""
    from longtail.saliency.detectors import DETECTORS

    width = max(map(len, DETECTORS))
    for name, entry in DETECTORS.items():
        typer.echo(f"{name:<{width}}  {entry.summary} ({entry.cost}) [{entry.source}]")


def schema() -> None:
    """Print every key, as a JSON schema.

    The schema of a configuration file has the type of each key, its default and its meaning.
    """
    import json

    from longtail.config import Config

    typer.echo(json.dumps(Config.model_json_schema(), indent=1))
