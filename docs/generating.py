"""An extension of this site alone: pages that the program writes about itself, and docstrings as they are meant.

A line ``<!-- generated: WHAT -->`` in a page is replaced by what ``PAGES[WHAT]()`` says when the site is made, so that
no list of keys or options is kept by hand.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import click
import typer
from pydantic import BaseModel
from sphinx.application import Sphinx

HERE = Path(__file__).resolve().parent

PAGE_OF = {
    HERE.parent / "README.md": HERE / "overview.md",
    HERE.parent / "CONTRIBUTING.md": HERE / "add-a-method.md",
    HERE.parent / "CHANGELOG.md": HERE / "changelog.md",
    HERE.parent / "SECURITY.md": HERE / "security.md",
}
"""Files of the repository that the site shows under another name."""

FENCED = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<!!)\[([^\[\]]+)\]\((?!https?:|mailto:|#)([^()#\s]+)(#[^()\s]+)?\)")
MARK = re.compile(r"^<!-- generated: (\w+) -->$", re.MULTILINE)


def keys() -> str:
    """Every key of a configuration, as Markdown tables: key, what it takes, default, meaning."""
    from longtail.config import Config
    from longtail.methods import METHODS

    parts = ["## Without a group", _table("", Config)]
    for name, field in Config.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            parts += [f"## `{name}`", _table(f"{name}.", field.annotation)]
    parts.append("## `method`")
    parts.append("`method.name` chooses the method, and the method the keys. What a name stands for is its default.")
    of_class: dict[type[BaseModel], list[str]] = {}
    for name, entry in METHODS.items():
        of_class.setdefault(entry.settings, []).append(name)
    for settings, names in of_class.items():
        parts.append("### " + ", ".join(f"`{name}`" for name in names))
        parts.append(_table("method.", settings))
        stands = [_stands_for(name, METHODS[name].defaults) for name in names if METHODS[name].defaults]
        if stands:
            parts.append("\n".join(stands))
    return "\n\n".join(parts)


def _stands_for(name: str, defaults: Mapping[str, Any]) -> str:
    return f"- `{name}` stands for " + ", ".join(f"`method.{key}={json.dumps(v)}`" for key, v in defaults.items())


def _table(prefix: str, settings: type[BaseModel]) -> str:
    schema = settings.model_json_schema(ref_template="{model}")
    rows = ["| key | takes | default | meaning |", "|---|---|---|---|"]
    for name, field in settings.model_fields.items():
        given = schema["properties"][name]
        if "$ref" in given or "discriminator" in given:
            continue  # a group of keys, which has a table of its own
        default = "needed" if field.is_required() else f"`{json.dumps(given.get('default'))}`"
        cells = (f"`{prefix}{name}`", _takes(given), default, field.description or "")
        rows.append("| " + " | ".join(_cell(text) for text in cells) + " |")
    return "\n".join(rows)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _takes(given: Mapping[str, Any]) -> str:
    """What a key takes, from its JSON schema: ``a number above 0, or null``."""
    if "anyOf" in given:
        return ", or ".join(dict.fromkeys(_takes(one) for one in given["anyOf"]))
    if "const" in given:
        return f"`{given['const']}`"
    if "enum" in given:
        return ", ".join(f"`{value}`" for value in given["enum"])
    kind = {
        "integer": "an integer",
        "number": "a number",
        "boolean": "true or false",
        "string": "text",
        "array": "a list",
        "null": "null",
    }.get(given.get("type", ""), "a value")
    bounds = (("minimum", "from"), ("exclusiveMinimum", "above"), ("maximum", "to"), ("exclusiveMaximum", "below"))
    return " ".join([kind, *(f"{word} {given[key]}" for key, word in bounds if key in given)])


def commands() -> str:
    """Every command with what its ``--help`` says."""
    from longtail.cli import app

    parts = []
    for name, command in _commands("longtail", typer.main.get_command(app)):
        with click.Context(command, info_name=name, terminal_width=100, max_content_width=100) as context:
            parts += [f"## `{name}`", f"```text\n{command.get_help(context).strip()}\n```"]
    return "\n\n".join(parts)


def _commands(name: str, command: Any) -> Iterator[tuple[str, Any]]:
    """Every command that does something, by the words that call it, and the top one for its options."""
    inner = getattr(command, "commands", None)
    if inner is None or name == "longtail":
        yield name, command
    for word, one in (inner or {}).items():
        yield from _commands(f"{name} {word}", one)


def methods() -> str:
    """What ``longtail methods NAME`` says of every method."""
    from longtail.commands.listing import description
    from longtail.methods import METHODS

    return "\n\n".join(f"## `{name}`\n\n```text\n" + "\n".join(description(name)) + "\n```" for name in METHODS)


PAGES: dict[str, Callable[[], str]] = {"keys": keys, "commands": commands, "methods": methods}


def fill(text: str) -> str:
    """A page with its marks replaced."""
    return MARK.sub(lambda found: PAGES[found[1]](), text)


def relink(text: str, file: Path, page: Path) -> str:
    """Links of ``file`` as they must be in ``page``, which is the file itself or includes it.

    Files of the repository that the site has a page for lead there, other files are downloads (as MyST makes them), and
    folders, which only a repository browser can show, keep their words alone.
    """

    def moved(found: re.Match[str]) -> str:
        words, target, anchor = found[1], found[2], found[3] or ""
        there = (file.parent / target).resolve()
        if there.is_dir() and not (there / "index.md").is_file():
            return words
        there = there / "index.md" if there.is_dir() else PAGE_OF.get(there, there)
        return f"[{words}]({Path(os.path.relpath(there, page.parent)).as_posix()}{anchor})"

    pieces = FENCED.split(text)
    return "".join(piece if number % 2 else LINK.sub(moved, piece) for number, piece in enumerate(pieces))


def literal_bars(lines: list[str]) -> None:
    """Escape ``|x|``, which docstrings mean as an absolute value and reStructuredText as a substitution."""
    literal: int | None = None
    for number, line in enumerate(lines):
        indent = len(line) - len(line.lstrip())
        if literal is not None and line.strip() and indent <= literal:
            literal = None
        if literal is None:
            parts = line.split("``")
            lines[number] = "``".join(part if i % 2 else part.replace("|", "\\|") for i, part in enumerate(parts))
            literal = indent if line.rstrip().endswith("::") else None


def _read(app: Sphinx, page: str, source: list[str]) -> None:
    path = HERE / f"{page}.md"
    source[0] = relink(fill(source[0]), path, path)


def _include(app: Sphinx, file: Path, page: str, source: list[str]) -> None:
    # MyST passes the last part of the page's name only.
    source[0] = relink(source[0], (HERE / file).resolve(), HERE / f"{app.env.docname}.md")


def _docstring(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    literal_bars(lines)


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("source-read", _read)
    app.connect("include-read", _include)
    app.connect("autodoc-process-docstring", _docstring)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
