"""The report of a run and the comparison of several: one HTML file each, without network or script.

Text reaches the page only through Jinja's escaping, whatever a class or a folder is called. Pictures are embedded once
for a light and a dark page, wide and narrow, and the reader's browser takes the one that fits.
"""

from __future__ import annotations

import base64
import shlex
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure

import longtail
from longtail.errors import ResourceError, RunError
from longtail.files import write_atomic
from longtail.metrics import paired_bootstrap
from longtail.report import findings
from longtail.report.folder import GROUPS, FinishedRun, read_run
from longtail.report.plots import accuracy_by_count, accuracy_by_rank, classes_per_column, learning_curves, png
from longtail.report.style import GROUP_COLORS, LOOKS, Look

CONFUSED_PAIRS = 8
PHONE = "(max-width: 640px)"
DARK = "(prefers-color-scheme: dark)"


@dataclass(frozen=True)
class ComparisonRow:
    """One run of a comparison: numbers of the last epoch, fractions 0..1, None where a group is empty.

    ``head``, ``middle`` and ``tail`` are set if one of the compared runs has an empty group. ``difference`` is top-1
    minus that of the first run with its 95 % interval (paired bootstrap over test images), None for the first and
    where the test images are not the same.
    """

    run: str
    label: str
    dataset: str
    method: str
    model: str
    epochs: int | None
    seed: int | None
    evaluated_on: str
    top1: float
    many: float | None
    medium: float | None
    few: float | None
    head: float | None
    middle: float | None
    tail: float | None
    worst_tenth: float | None
    ece: float | None
    image_passes: int | None
    seconds: float | None
    difference: tuple[float, float, float] | None


def write_report(run_dir: Path, out: Path | None = None) -> Path:
    """Write the page of a finished run, by default to its ``report.html`` with its ``plots/*.png``; returns the path.

    With ``out`` only that file is written and the run folder is left as it is. Raises RunError for a run that is
    absent, unfinished, incomplete or broken, naming what is missing; ResourceError if the disk refuses.
    """
    run = read_run(Path(run_dir))
    curves, tail = _drawn(lambda look: _curves(run, look)), _drawn(lambda look: _tail(run, look))
    if out is None:
        _make_folder(run.path / "plots")
        write_atomic(run.path / "plots" / "learning_curves.png", curves["light"])
        write_atomic(run.path / "plots" / "accuracy_by_count.png", tail["light"])
    page = Path(out) if out is not None else run.path / "report.html"
    found = findings.confusions(run)
    flows = findings.image_flow(run)
    events = findings.schedule_events(run)
    command = run.description.get("command", "")
    content = {
        "run": run,
        "results": run.results,
        "last": run.last,
        "best": run.results.get("best"),
        "split": _split(run),
        "images": sum(row.train_count for row in run.classes),
        "thirds": findings.thirds_of(run) if len(run.group_sizes()) < len(GROUPS) else {},
        "tail_picture": _picture(tail, "Training images and accuracy of every class, by rank"),
        "tail_sentence": findings.tail_sentence(run),
        "classes_per_column": classes_per_column(len(run.classes)),
        "curves_picture": _picture(curves, "Loss terms and accuracies over the epochs"),
        "curves_sentence": findings.curves_sentence(run),
        "events": events,
        "flows": flows,
        "flow_sentence": findings.flow_sentence(flows) if len(flows) > 1 else "",
        "pairs": found[:CONFUSED_PAIRS],
        "pair_sentence": findings.confusion_sentence(found[:CONFUSED_PAIRS]) if found else "",
        "classes": findings.class_table(run, found),
        "environment": findings.flattened(run.description, ("class_counts", "data.class_names", "command", "schema")),
        "command": shlex.join(map(str, command)) if isinstance(command, list) else str(command),
    }
    return _write_page(page, "template.html", content)


def comparison_rows(run_dirs: Sequence[Path]) -> list[ComparisonRow]:
    """The table of a comparison as data, one row per run in the order given. Raises RunError as the report does."""
    return _rows(_read_all(run_dirs))


def write_comparison(run_dirs: Sequence[Path], out: Path) -> Path:
    """Write one page on several finished runs: a table, and accuracy over class rank with a line per run.

    Raises RunError for a run that is absent, unfinished, incomplete or broken; ResourceError if the disk refuses.
    """
    runs = _read_all(run_dirs)
    rows = _rows(runs)
    lines = [(row.label, run.classes) for row, run in zip(rows, runs, strict=True)]
    splits = sorted({row.evaluated_on for row in rows})
    content = {
        "rows": rows,
        "splits": splits,
        "with_thirds": any(row.head is not None for row in rows),
        "with_differences": any(row.difference is not None for row in rows),
        "notes": _comparison_notes(runs, rows),
        "sentence": _rarest_sentence(runs, rows),
        "picture": _picture(
            _drawn(lambda look: accuracy_by_rank(lines, look, " / ".join(splits))),
            "Accuracy over class rank, a line per run",
        ),
    }
    return _write_page(Path(out), "comparison.html", content)


def _read_all(run_dirs: Sequence[Path]) -> list[FinishedRun]:
    if not run_dirs:
        raise RunError("No run to compare.")
    return [read_run(Path(path)) for path in run_dirs]


def _rows(runs: Sequence[FinishedRun]) -> list[ComparisonRow]:
    with_thirds = any(len(run.group_sizes()) < len(GROUPS) for run in runs)
    rows = []
    for run, label in zip(runs, _labels(runs), strict=True):
        results, last = run.results, run.last
        parts = findings.thirds_of(run) if with_thirds else {}
        rows.append(
            ComparisonRow(
                run=str(run.path),
                label=label,
                dataset=str(results.get("dataset", "")),
                method=str(results["method"]),
                model=str(results.get("model", "")),
                epochs=results.get("epochs"),
                seed=results.get("seed"),
                evaluated_on=_split(run),
                top1=last["top1"],
                **{name: last.get(name) for name in (*GROUPS, "worst_tenth", "ece")},
                **{name: parts.get(name) for name in ("head", "middle", "tail")},
                image_passes=results.get("image_passes"),
                seconds=results.get("train_seconds"),
                difference=None if run is runs[0] else _difference(run, runs[0]),
            )
        )
    return rows


def _labels(runs: Sequence[FinishedRun]) -> list[str]:
    """The shortest names that tell the runs apart: method, with seed, with folder."""
    methods = [str(run.results["method"]) for run in runs]
    seeds = [f"{m}, seed {run.results.get('seed')}" for m, run in zip(methods, runs, strict=True)]
    folders = [f"{m} ({run.path.name})" for m, run in zip(methods, runs, strict=True)]
    return next((names for names in (methods, seeds, folders) if len(set(names)) == len(runs)), folders)


def _difference(run: FinishedRun, baseline: FinishedRun) -> tuple[float, float, float] | None:
    ours, theirs = run.predictions, baseline.predictions
    if ours is None or theirs is None or ours.ids != theirs.ids or not np.array_equal(ours.targets, theirs.targets):
        return None
    if [row.name for row in run.classes] != [row.name for row in baseline.classes]:
        return None
    return paired_bootstrap(ours.predicted == ours.targets, theirs.predicted == theirs.targets, seed=0)


def _comparison_notes(runs: Sequence[FinishedRun], rows: Sequence[ComparisonRow]) -> list[str]:
    notes = []
    data = [run.description.get("data") for run in runs]
    prints = {entry.get("fingerprint") for entry in data if isinstance(entry, Mapping)}
    if len({row.dataset for row in rows}) > 1:
        notes.append("The runs are on different data sets.")
    elif len(prints) > 1:
        notes.append("The runs were trained on different images of the same data set.")
    if len({row.evaluated_on for row in rows}) > 1:
        notes.append("The runs are not all evaluated on the same split.")
    if len({row.epochs for row in rows}) > 1:
        notes.append("The runs are of different length.")
    if len({row.image_passes for row in rows}) > 1:
        notes.append(
            "Image passes differ: some methods forward several images for every training image, so equal epochs are "
            "not equal work."
        )
    return notes


def _rarest_sentence(runs: Sequence[FinishedRun], rows: Sequence[ComparisonRow]) -> str:
    """Which run does best on the rarest classes; nothing to say on different data or on one run."""
    order = [row.name for row in runs[0].ranked()]
    if len(runs) < 2 or any([row.name for row in run.ranked()] != order for run in runs):
        return ""
    tails = [findings.thirds_of(run)["tail"] or 0.0 for run in runs]
    best, worst = int(np.argmax(tails)), int(np.argmin(tails))
    return (
        f"On the third of the classes with the fewest training images, {rows[best].label} has the highest mean "
        f"accuracy, {findings.percent(tails[best])}, {rows[worst].label} the lowest, {findings.percent(tails[worst])}."
    )


def _split(run: FinishedRun) -> str:
    return str(run.results.get("evaluated_on", "test"))


def _curves(run: FinishedRun, look: Look) -> Figure:
    events = sorted({t for times in findings.schedule_events(run).values() for t in times})
    return learning_curves(run.history, events, look, str(run.history[-1].get("evaluated_on", _split(run))))


def _tail(run: FinishedRun, look: Look) -> Figure:
    return accuracy_by_count(run.classes, look, _split(run))


def _drawn(draw: Callable[[Look], Figure]) -> dict[str, bytes]:
    return {name: png(draw(look)) for name, look in LOOKS.items()}


def _picture(images: Mapping[str, bytes], alt: str) -> Markup:
    """One picture in four looks; the browser takes the first source whose condition holds."""
    shown = {}
    for name, image in images.items():
        width, height = struct.unpack(">II", image[16:24])  # of the PNG's first chunk
        source = "data:image/png;base64," + base64.b64encode(image).decode()
        shown[name] = {"source": source, "width": width, "height": height}
    source_tag = Markup('<source media="{media}" srcset="{source}" width="{width}" height="{height}">')
    image_tag = Markup('<img src="{source}" width="{width}" height="{height}" alt="{alt}">')
    conditions = ((f"{PHONE} and {DARK}", "dark_narrow"), (PHONE, "light_narrow"), (DARK, "dark"))
    tags = [source_tag.format(media=media, **shown[name]) for media, name in conditions]
    tags.append(image_tag.format(alt=alt, **shown["light"]))
    return Markup("<picture>{}</picture>").format(Markup("\n").join(tags))


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResourceError(f"The folder {folder} cannot be made: {error.strerror}.") from error


def _write_page(path: Path, template: str, content: Mapping[str, Any]) -> Path:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": findings.percent, "points": findings.points}
    page = environment.get_template(template).render(
        **content, groups=GROUPS, group_colors=GROUP_COLORS, version=longtail.__version__
    )
    _make_folder(path.parent)
    write_atomic(path, page.encode())
    return path
