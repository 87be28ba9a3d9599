"""The commands that take a model away: ``longtail predict``, ``export`` and ``import``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from longtail.prediction.predict import Model

Run = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, or a folder made by export.")]
Which = Annotated[str, typer.Option(metavar="last|best", help="The weights of the last or of the best epoch.")]


def predict(
    run: Run,
    paths: Annotated[list[str], typer.Argument(metavar="PATH", help="Images, folders of them, FILE.npz[:ARRAY].")],
    out: Annotated[Path | None, typer.Option(help="Write every probability to a .csv or .jsonl file.")] = None,
    which: Which = "last",
    prior: Annotated[
        str | None,
        typer.Option(metavar="training|uniform|FILE|c1=0.2,...", help="How frequent the classes are where it is used."),
    ] = None,
    top: Annotated[int, typer.Option(min=0, metavar="K", help="The K most probable classes of an image alone.")] = 0,
) -> None:
    """Predict images with a trained run."""
    from longtail.evaluation.priors import parse_prior
    from longtail.prediction.predicting import SHOWN, predict_paths

    asked = None if prior is None else parse_prior(prior)
    model = _loaded(run, which, "auto")
    found = predict_paths(model, paths, out, prior=asked, top=top)
    for reason in found.unreadable[:SHOWN]:
        typer.echo(f"left out: {reason}", err=True)
    if len(found.unreadable) > SHOWN:
        typer.echo(f"left out: {len(found.unreadable) - SHOWN} more", err=True)
    if out is None:
        for line in found.first:
            typer.echo(line)
        if found.images > len(found.first):
            typer.echo(f"... and {found.images - len(found.first)} more: --out FILE.csv writes them all")
    common = ", ".join(f"{name} {count}" for name, count in found.classes.most_common(10))
    more = ", ..." if len(found.classes) > 10 else ""
    answered = prior or model.answers_for
    lost = f", {len(found.unreadable)} could not be read" if found.unreadable else ""
    counted = f"{found.images} image{'' if found.images == 1 else 's'}"
    typer.echo(f"{counted} ({model.which} weights, prior: {answered}){lost}: {common}{more}")
    if out is not None:
        typer.echo(f"predictions: {out}")


def export(
    run: Run,
    form: Annotated[
        str, typer.Option("--format", metavar="onnx|exported-program|safetensors", help="What to write.")
    ] = "safetensors",
    out: Annotated[Path | None, typer.Option(help="Where to (RUN/export/model-WHICH...).")] = None,
    which: Which = "last",
) -> None:
    """Write a trained run for other programs.

    A checked graph (ONNX, or an exported program of PyTorch), or a folder of weights with a model card.
    """
    from longtail.errors import unknown_name
    from longtail.exchange.export import ENDINGS
    from longtail.exchange.export import export as write

    if form not in ENDINGS:
        raise unknown_name("format", form, ENDINGS)
    # What is written is checked on the CPU, where every format runs.
    path, said = write(_loaded(run, which, "cpu"), form, out)
    typer.echo(f"{form}, {which} weights: {path}\n{said}")


def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A checkpoint of the public ConCutMix or BCL program.")],
    recipe: Annotated[str, typer.Option(metavar="DATASET/METHOD", help="What it was trained on and by.")],
    settings: Annotated[
        list[str] | None, typer.Argument(metavar="key=value", help="Settings laid over the recipe's.")
    ] = None,
    out: Annotated[str | None, typer.Option(help="The run folder to make.")] = None,
) -> None:
    """Make a run of a public checkpoint.

    What the public ConCutMix and BCL programs wrote is then evaluated, predicted with, exported or started from.
    """
    from longtail.evaluation.evaluate import describe
    from longtail.exchange.importers import import_checkpoint
    from longtail.layers import parse_assignments

    made = import_checkpoint(file, recipe, parse_assignments(settings or []), out)
    for note in made.notes:
        typer.echo(f"note: {note}")
    if made.data is None or made.evaluation is None:
        typer.echo(f"evaluate it: longtail eval {made.run.path} data.path=FILE_OR_FOLDER")
    else:
        images = f"{len(made.evaluation.targets)} {made.data.evaluated_on} images"
        typer.echo(f"{describe(made.evaluation.numbers())} ({images})")
        typer.echo(f"report: {made.run.path / 'report.html'}")
    typer.echo(f"run: {made.run.path}")


def _loaded(run: Path, which: str, device: str) -> Model:
    """The model, with what there is to be said of its checkpoints said on standard error."""
    import warnings

    from longtail.prediction.predict import load

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = load(run, which=which, device=device)
    for warning in caught:
        typer.echo(f"note: {warning.message}", err=True)
    return model
