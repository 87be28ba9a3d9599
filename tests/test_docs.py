"""The documentation: it builds, names what there is, and every block of it is something that the program takes."""

from __future__ import annotations

import html
import importlib
import os
import re
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path
from typing import Any

import click
import pytest
import typer

import longtail
from documents import CHECKED, NOT_CODE, PAGES, ROOT, SHELL, Block, blocks, commands, every_block
from longtail.api import MOVABLE
from longtail.cli import _split, app
from longtail.commands.data import settings_of
from longtail.config import known_keys
from longtail.data.settings import DATA_NAMES, check_complete
from longtail.errors import LongtailError
from longtail.evaluation.priors import parse_prior
from longtail.exchange.export import ENDINGS
from longtail.layers import parse_assignments
from longtail.methods import METHODS
from longtail.recipes import load_config
from longtail.study.file import read_study
from longtail.study.search_file import has_search, read_search

TABLES = [block for block in every_block() if block.language == ""]
CODE = [block for block in every_block() if block.language in CHECKED]


# The site -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site as ``make docs`` makes it, where a warning ends the build."""
    pytest.importorskip("furo", reason="the extra 'docs' is not installed")
    out = tmp_path_factory.mktemp("site")
    words = ["-W", "-n", "--keep-going", "-q", "-d", str(out / "doctrees"), "docs", str(out / "html")]
    ran = subprocess.run(
        [sys.executable, "-m", "sphinx", *words],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(longtail.__file__).parents[1])},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    return out / "html"


def test_the_site_builds_without_a_warning_and_has_every_page(site: Path) -> None:
    pages = [page for page in PAGES if page.startswith("docs/")]
    assert len(pages) > 40
    for page in pages:
        assert (site / page.removeprefix("docs/")).with_suffix(".html").is_file(), page


def test_no_page_of_the_site_loads_anything_from_the_network(site: Path) -> None:
    loading = re.compile(
        r"<(?:script|img|link|iframe|source)\b[^>]*?(?:src|href)=[\"'](?:https?:)?//[^\"']+|@import|url\(http"
    )
    checked = 0
    for path in [*site.rglob("*.html"), *site.rglob("*.css")]:
        assert not loading.search(path.read_text(encoding="utf-8")), path
        checked += 1
    assert checked > 40


def test_the_reference_names_every_public_name_command_and_key(site: Path) -> None:
    def source(page: str) -> str:
        return (site / "reference" / page).read_text(encoding="utf-8")

    def words(page: str) -> str:
        return html.unescape(re.sub(r"<[^>]+>", "", source(page)))

    for name in set(longtail.__all__) - {"__version__"}:
        assert f'id="longtail.{name}"' in source("training.html"), name
    for part in ("data", "losses", "mixing", "saliency", "explain"):
        module = importlib.import_module(f"longtail.{part}")
        for name in module.__all__:
            if callable(getattr(module, name)):
                assert f'id="longtail.{part}.{name}"' in source(f"{part}.html"), name
    keys = words("keys.html").split()
    assert set(known_keys()) <= set(keys), set(known_keys()) - set(keys)
    for name, _ in every_command():
        assert f"Usage: longtail {name} " in words("commands.html"), name
    for name in METHODS:
        assert f"train it: longtail train cifar100/{name} " in words("methods.html"), name


# What pages name ------------------------------------------------------------------------------------------------------


NO_KEYS = (
    "json",
    "py",
    "yaml",
    "md",
    "csv",
    "predict",
    "train",
    "answers_for",
    "class_names",
    "safetensors",
    "results",
)
"""What follows ``run.`` and ``model.`` where these are a file or an object of Python."""


def test_every_key_that_a_page_names_is_a_key() -> None:
    known = set(known_keys()) | {"data.key"}
    groups = "|".join(sorted({key.partition(".")[0] for key in known if "." in key}))
    named = re.compile(rf"`[^`\n]*?\b({groups})\.([a-z_]+)(?==|`| )[^`\n]*`")
    found = 0
    for page in PAGES:
        for match in named.finditer((ROOT / page).read_text(encoding="utf-8")):
            key = f"{match[1]}.{match[2]}"
            if match[2] not in NO_KEYS:
                assert key in known, f"{page} names {key}"
                found += 1
    assert found > 300


LINK = re.compile(r"\]\((?!https?:|mailto:|#)([^()#\s]+)(?:#[^()\s]*)?\)")


@pytest.mark.parametrize("page", [*PAGES, "CHANGELOG.md"])
def test_relative_links_lead_to_files_of_the_repository(page: str) -> None:
    """As GitHub follows them; in the site the same is a warning, with the anchors."""
    for target in LINK.findall((ROOT / page).read_text(encoding="utf-8")):
        assert ((ROOT / page).parent / target).exists(), f"{page} links to {target}"


def test_every_block_is_run_checked_or_shown_with_a_reason() -> None:
    unknown = [f"{block}: {block.language}" for block in every_block() if block.language not in (*CHECKED, *NOT_CODE)]
    assert not unknown, f"say what these are, one of {', '.join([*CHECKED, *NOT_CODE])}: {unknown}"
    marked = [block for block in every_block() if block.not_run is not None]
    assert all(block.language in CHECKED for block in marked), "only code can be 'not run'"
    assert len(CODE) > 50, "the blocks are found"
    assert len(marked) < len(CODE) / 4, "not run is the exception"


# Shell ----------------------------------------------------------------------------------------------------------------


def every_command() -> list[tuple[str, Any]]:
    """``[("train", command), ("data check", command), ...]``."""
    top = typer.main.get_command(app)
    inner = [(name, command) for name, command in top.commands.items()]  # type: ignore[attr-defined]
    below = [
        (f"{name} {word}", one) for name, command in inner for word, one in getattr(command, "commands", {}).items()
    ]
    return [(name, command) for name, command in inner if not hasattr(command, "commands")] + below


def check_longtail(words: list[str]) -> None:
    """Take a command as typer would, without running it, and resolve the keys and names in it."""
    if words[0].startswith("--"):
        assert words in (["--help"], ["--version"]), words
        return
    taken = 2 if words[0] == "data" else 1
    name, rest = " ".join(words[:taken]), words[taken:]
    context = dict(every_command())[name].make_context(name, list(rest))
    given = context.params
    settings = given.get("settings") or []
    for word in settings:
        key = word.partition("=")[0]
        assert key in known_keys() or (name == "eval" and key == "which"), f"{key} is no key"
    values = parse_assignments(settings)
    if name == "train":
        target, own = _split(given["target"], settings)
        if target is not None and target.endswith((".yaml", ".yml")):
            return
        check_complete(load_config(target, parse_assignments(own)).data)
    elif name == "import":
        load_config(given["recipe"], values)
    elif name == "eval":
        assert {word.partition("=")[0] for word in settings} <= {*MOVABLE, "which"}
    elif name == "export":
        assert given["form"] in ENDINGS
    elif name == "predict" and given["prior"] is not None:
        parse_prior(given["prior"])
    elif name == "methods" and given["name"] is not None:
        assert given["name"] in METHODS
    elif name == "study" and (ROOT / given["file"]).is_file():
        file = ROOT / given["file"]
        read_search(file, values) if has_search(file) else read_study(file, values)
    elif name.startswith("data") and given["spec"] in DATA_NAMES:
        settings_of(given["spec"], settings)


def check_other(words: list[str]) -> None:
    """Commands around the program: the targets, files and extras that they name are there."""
    first, rest = words[0].removeprefix(".venv/bin/"), words[1:]
    if first == "make":
        targets = re.findall(r"^(\S+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert {word for word in rest if "=" not in word} <= set(targets), words
    elif (first in ("python", "python3") and rest[:2] == ["-m", "pip"]) or first == "pip":
        extras = re.findall(r"\[([\w,]+)\]", " ".join(rest))
        known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        assert {extra for group in extras for extra in group.split(",")} <= set(known), words
    elif first == "torchrun":
        assert rest[rest.index("-m") + 1] == "longtail", words
        check_longtail(rest[rest.index("-m") + 2 :])
    elif first in ("python", "python3"):
        files = [word for word in rest if word.endswith(".py")]
        assert all((ROOT / word).is_file() for word in files), words
        assert files or rest[:2] == ["-m", "venv"], f"{words}: what is this?"
    else:
        assert first in (".", "ruff", "mypy", "git", "apt-get"), f"{words}: what is this?"


def check_command(words: list[str]) -> None:
    if words[0] == "longtail":
        check_longtail(words[1:])
    else:
        check_other(words)


@pytest.mark.parametrize("block", [block for block in CODE if block.language in SHELL], ids=str)
def test_every_command_of_a_page_is_one_that_the_program_takes(block: Block) -> None:
    found = commands(block.text)
    assert found, f"{block}: no command"
    for words in found:
        try:
            check_command(words)
        except (LongtailError, click.ClickException) as error:
            pytest.fail(f"{block}: {' '.join(words)}\n{error}")


def test_commands_that_stand_beside_results_are_ones_that_the_program_takes() -> None:
    lines = [line for block in TABLES for line in block.text.splitlines() if line.startswith(("longtail ", "python "))]
    assert len(lines) > 10
    for line in lines:
        for words in commands(line):
            check_command(words)


@pytest.mark.parametrize(
    "words", ["longtail train scenes/cee", "longtail train scenes/ce optim.epoch=2", "longtail trein", "make nothing"]
)
def test_a_command_that_the_program_would_refuse_is_found(words: str) -> None:
    with pytest.raises((AssertionError, LongtailError, click.ClickException, KeyError)):
        check_command(words.split())


# YAML and Python ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [block for block in CODE if block.language == "yaml"], ids=str)
def test_every_yaml_block_loads_as_what_it_is(block: Block, tmp_path: Path) -> None:
    file = tmp_path / (block.file or "block.yaml")
    file.write_text(block.text, encoding="utf-8")
    data = {"data": {"path": "images.npz"}} if re.search(r"cifar|fashion", block.text) else {}
    if has_search(file):
        assert read_search(file, data).trials > 0
    elif re.search(r"^(rows|grid):", block.text, re.MULTILINE):
        assert read_study(file, data).rows
    else:
        load_config(file, data)


@pytest.mark.parametrize("block", [block for block in CODE if block.language == "python"], ids=str)
def test_every_python_block_compiles(block: Block) -> None:
    compile(python_of(block), str(block), "exec")


def python_of(block: Block) -> str:
    """The block; a row of a table (``"name": value,``) as the dict that it is a part of."""
    text = textwrap.dedent(block.text)
    return f"{{\n{text}\n}}" if re.match(r'^"[\w-]+": ', text) else text


def test_a_block_that_is_not_closed_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "page.md").write_text("```sh\nls\n")
    monkeypatch.setattr("documents.ROOT", tmp_path)
    with pytest.raises(AssertionError, match=r"page\.md:1: the block is not closed"):
        blocks("page.md")
