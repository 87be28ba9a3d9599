"""What ``longtail train`` does, in one process or in each of several."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import typer
import yaml
from rich.console import Console

from longtail.api import run_config
from longtail.data.settings import check_complete
from longtail.layers import parse_assignments
from longtail.processes.distributed import is_first, job
from longtail.recipes import load_config
from longtail.training.display import LiveTable, listener_for


def train_and_report(
    recipe: str | None,
    words: list[str],
    out: str | None,
    *,
    resume: bool,
    overwrite: bool,
    dry_run: bool,
    show: Callable[[], Console],
) -> Path | None:
    """Train by a recipe and settings; the report, or None of a dry run and in all processes but the first."""
    with job():
        speaks = is_first()
        values = parse_assignments(words)
        config = load_config(recipe, values if out is None else values | {"out": out})
        check_complete(config.data)
        if dry_run:
            if speaks:
                typer.echo(yaml.safe_dump(config.plain(), sort_keys=False), nl=False)
                found = config.optim.resolved() | config.views.resolved(config.optim.epochs)
                times = ", ".join(f"{name} {value}" for name, value in found.items())
                typer.echo(f"# in epochs: {times}" if times else "# onecycle has no times of its own")
            return None
        listener = listener_for(show()) if speaks else None
        command = ["longtail", *sys.argv[1:]]
        try:
            run = run_config(config, resume=resume, overwrite=overwrite, listener=listener, command=command)
        finally:
            if isinstance(listener, LiveTable):
                listener.close()
    return run.report if speaks else None
