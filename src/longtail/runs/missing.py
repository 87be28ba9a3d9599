"""What to say where a run was expected and is not."""

from __future__ import annotations

from pathlib import Path

from longtail.errors import RunError, nearest


def no_run(path: Path) -> RunError:
    """The error for a place that holds no run, with the run that was probably meant where one lies near."""
    if not path.exists():
        beside = [run.parent.name for run in path.parent.glob("*/run.json")]
        near = nearest(path.name, beside)
        return RunError(f"There is no run folder {path}.", hint=near and f"Did you mean {path.parent / near}?")
    hint = None
    if path.is_dir():
        inside = sorted(path.glob("*/run.json"))
        if inside:
            hint = f"Give one of the {len(inside)} in it, e.g. {inside[0].parent}"
    elif (path.parent / "run.json").is_file():
        hint = f"Give the folder: {path.parent}"
    return RunError(f"{path} is not a run folder: it has no run.json.", hint=hint)
