"""The fenced blocks of README, CONTRIBUTING and docs/, as their readers would take them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = ["README.md", "CONTRIBUTING.md", *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md"))]
PAGES = [page for page in PAGES if not page.startswith("docs/_build/")]

SHELL = ("sh", "bash", "console", "shell")
CHECKED = (*SHELL, "python", "yaml")
NOT_CODE = ("", "text", "bibtex")
"""Languages of blocks that show something, and are nothing to run."""

FENCE = re.compile(r"^ *```(\S*) *(.*)$")
REMARK = re.compile(r"^<!-- (not run|file): (\S.*) -->$")


@dataclass(frozen=True)
class Block:
    """A fenced block: where it is, its language, its text, and what an HTML comment just above it says.

    ``<!-- not run: REASON -->`` keeps a block from being run (it is checked all the same), ``<!-- file: NAME -->`` says
    as what the reader saves it.
    """

    page: str
    line: int
    language: str
    text: str
    not_run: str | None = None
    file: str | None = None

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(page: str) -> list[Block]:
    """The blocks of a page, in its order; directives of the site ({toctree} and others) are none."""
    found, lines = list[Block](), (ROOT / page).read_text(encoding="utf-8").splitlines()
    start: int | None = None
    for number, line in enumerate(lines):
        fence = FENCE.match(line)
        if fence is None:
            continue
        if start is None:
            start = number
            continue
        assert fence[1] == "", f"{page}:{start + 1}: the block is not closed before line {number + 1}"
        opening = FENCE.match(lines[start])
        assert opening is not None
        if not opening[1].startswith("{"):
            remark = REMARK.match(lines[start - 1]) if start else None
            said = {} if remark is None else {remark[1].replace(" ", "_"): remark[2]}
            text = "\n".join(lines[start + 1 : number]) + "\n"
            found.append(Block(page, start + 1, opening[1], text, **said))
        start = None
    assert start is None, f"{page}:{(start or 0) + 1}: the block is not closed"
    return found


def every_block() -> Iterator[Block]:
    for page in PAGES:
        yield from blocks(page)


def commands(text: str) -> list[list[str]]:
    """The commands of a shell block as words: comments gone, lines that go on joined, ``&&`` apart."""
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        words: list[str] = []
        for word in [*shlex.split(line, comments=True), "&&"]:
            if word != "&&":
                words.append(word)
            elif words:
                found.append(words)
                words = []
    return found
