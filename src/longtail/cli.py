"""The command ``longtail``. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from longtail.commands import listing, taking_away
from longtail.commands.data import data
from longtail.commands.words import OfSettings
from longtail.errors import EXIT_BUG, ConfigError, LongtailError
from longtail.runs.ending import stoppable, untyped

if TYPE_CHECKING:
    from rich.console import Console

app = typer.Typer(
    help="Train image classifiers on long-tailed data.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(data, name="data")

Settings = Annotated[list[str] | None, typer.Argument(metavar="key=value", help="Settings laid over the others.")]


def _version(wanted: bool) -> None:
    if wanted:
        from longtail import __version__

        typer.echo(f"longtail {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Train image classifiers on long-tailed data."""


def _console() -> Console:
    from rich.console import Console

    console = Console()
    # A pipe or a file has no width of its own; rich would wrap the tables at 80, unless COLUMNS says how wide.
    return console if console.is_terminal or "COLUMNS" in os.environ else Console(width=120)


def _split(target: str | None, settings: list[str] | None) -> tuple[str | None, list[str]]:
    """A first word with '=' in it is a setting: ``longtail train data.name=... method.name=...``."""
    words = list(settings or [])
    if target is not None and "=" in target and not target.endswith((".yaml", ".yml")):
        return None, [target, *words]
    return target, words


@app.command(cls=OfSettings)
def train(
    target: Annotated[str | None, typer.Argument(metavar="RECIPE|CONFIG.yaml", help="e.g. scenes/concutmix")] = None,
    settings: Settings = None,
    out: Annotated[str | None, typer.Option(help="The run folder (the same as out=DIR).")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in the folder.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Delete the run in the folder first.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the resolved configuration and stop.")] = False,
) -> None:
    """Train by a recipe or a configuration file."""
    from longtail.commands.train import train_and_report

    recipe, words = _split(target, settings)
    report = train_and_report(recipe, words, out, resume=resume, overwrite=overwrite, dry_run=dry_run, show=_console)
    if report is not None:
        typer.echo(f"report: {report}")


@app.command("eval", cls=OfSettings)
def evaluate(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, or a folder made by export.")],
    settings: Settings = None,
) -> None:
    """Evaluate trained weights again. which=best takes the best epoch's; data.path=... is where images are now."""
    from longtail.api import evaluate_run
    from longtail.layers import parse_assignments
    from longtail.training.display import evaluation_table

    values = parse_assignments(settings or [])
    which = str(values.pop("which", "last"))
    found = evaluate_run(run, which, values)
    for note in found.notes:
        typer.echo(f"note: {note}")
    images = len(found.evaluation.targets)
    _console().print(evaluation_table(found.evaluation.numbers(), found.which, found.data.evaluated_on, images))
    if found.verdict:
        typer.echo(found.verdict)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="One run folder, or several to compare.")],
    out: Annotated[Path | None, typer.Option(help="The page to write (RUN/report.html).")] = None,
    baseline: Annotated[
        Path | None, typer.Option(metavar="RUN", help="A run that the others are set against, on the same images.")
    ] = None,
) -> None:
    """Write the page of a run, or of several.

    One run gives its report, RUN/report.html; several give a table, and a page that compares them.
    """
    from longtail.report.page import write_comparison, write_report

    if out is not None and out.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"--out {out}: a report is a page.", hint="Let its name end in .html")
    if len(runs) == 1:
        typer.echo(f"report: {write_report(runs[0], out, baseline)}")
        return
    from longtail.files import read_json
    from longtail.training.display import results_table

    place = out or runs[0].resolve().parent / "report.html"
    if baseline is not None:  # differences are against the first
        runs = [baseline, *(path for path in runs if path.resolve() != baseline.resolve())]
    page = write_comparison(runs, place)
    _console().print(results_table([read_json(path / "results.json") for path in runs]))
    typer.echo(f"report: {page}")


@app.command(cls=OfSettings)
def study(
    file: Annotated[Path, typer.Argument(metavar="STUDY.yaml", help="e.g. studies/family-scenes.yaml")],
    settings: Settings = None,
    out: Annotated[Path | None, typer.Option(help="The folder of the study (runs/studies/NAME).")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Run so many at a time, each in a process of its own.")] = 1,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what is finished and what would run.")] = False,
    only: Annotated[list[str] | None, typer.Option(metavar="ROW", help="Run this row only (may be repeated).")] = None,
) -> None:
    """Train rows of settings with several seeds.

    Runs what is missing of a study, or of a search of settings, and writes its tables.
    """
    import shlex

    from longtail.layers import parse_assignments
    from longtail.study import plan_study, run_study
    from longtail.study.search_file import has_search
    from longtail.study.watching import watcher_for

    if has_search(file):
        _search(file, parse_assignments(settings or []), out, jobs, dry_run, only or [])
        return
    plan = plan_study(file, parse_assignments(settings or []), out=out, only=only or [])
    if dry_run:
        for cell in plan.cells:
            to_run = "" if cell not in plan.todo else ", to be run"
            typer.echo(f"{cell.name}: {cell.status}{to_run}  (longtail train {shlex.join(cell.words)})")
        typer.echo(f"{len(plan.cells)} runs, {len(plan.todo)} to be run, into {plan.out}")
        return
    run_study(plan, watcher_for(_console()), jobs)
    typer.echo(f"tables: {plan.out}/study.md, .csv, .tex, .html")


def _search(file: Path, values: dict[str, Any], out: Path | None, jobs: int, dry_run: bool, only: list[str]) -> None:
    from longtail.study.sweep import plan_search, run_search
    from longtail.study.sweep_tables import command
    from longtail.study.sweep_watching import search_watcher_for

    if only:
        raise ConfigError("--only: a search has no rows.", hint="Leave it out.")
    plan = plan_search(file, values, out=out)
    if dry_run:
        typer.echo("\n".join(plan.lines()))
        return
    run_search(plan, search_watcher_for(_console(), plan), jobs)
    assert plan.best is not None
    said = f"{plan.best.name}, {plan.search.metric} {100 * plan.best.mean:.2f} % on val"
    typer.echo(f"best, chosen on val: {said}\n  {command(plan.search, plan.best)}")
    typer.echo(f"tables: {plan.out}/search.md, .csv; settings: {plan.out}/best.yaml")


app.command()(taking_away.predict)
app.command()(taking_away.export)
app.command("import", cls=OfSettings)(taking_away.import_)


app.command()(listing.recipes)
app.command()(listing.methods)
app.command()(listing.detectors)
app.command()(listing.schema)


def main(arguments: list[str] | None = None) -> Any:
    """Run the command and exit with the code of the contract; errors are one readable block on standard error."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words or os.environ.get("LONGTAIL_DEBUG") == "1"
    words = [word for word in words if word != "--debug"]
    try:
        with stoppable():
            app(words, prog_name="longtail", standalone_mode=True)
    except LongtailError as error:
        if debug:
            traceback.print_exc()
        if not error.said:
            _say_error(error.message, error.hint)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(EXIT_BUG)
    except Exception as error:
        if debug:
            traceback.print_exc()
        known = untyped(error)
        if known is not None:
            _say_error(known.message, known.hint)
            sys.exit(known.exit_code)
        _say_error(
            f"This is a bug of longtail: {type(error).__name__}: {error}",
            "Run again with --debug and report what it prints.",
        )
        sys.exit(EXIT_BUG)


def _say_error(message: str, hint: str | None) -> None:
    lines = [f"error: {message}", *([hint] if hint else [])]
    typer.echo("\n".join(lines), err=True)
