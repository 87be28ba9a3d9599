"""The report of a run and the comparison of several: one HTML file each, which loads nothing.

Text reaches the page only through Jinja's escaping, whatever a class or a folder is called; what the page's own script
reads stands in a JSON block in which no tag can end. Without script the page is whole, and only stands still.
"""

from __future__ import annotations

import base64
import hashlib
import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

import longtail
from longtail.data.prepare import images_of
from longtail.errors import ResourceError, RunError
from longtail.evaluation.intervals import wilson_interval
from longtail.files import write_atomic
from longtail.report import caution, charts, comparing, findings
from longtail.report.columns import classes_per_column
from longtail.report.comparing import ComparisonRow, rows_of
from longtail.report.findings import split_of
from longtail.report.folder import GROUPS, FinishedRun, read_run
from longtail.report.images import Shot
from longtail.report.measured import Measured, measure
from longtail.report.plots import accuracy_by_count, learning_curves, loss_terms, png
from longtail.report.style import GROUP_COLORS, LINE_COLORS
from longtail.report.svg import shortened

CONFUSED_PAIRS = 8
HERE = Path(__file__).parent


def write_report(run_dir: Path, out: Path | None = None, baseline: Path | None = None) -> Path:
    """Write the page of a finished run, by default to its ``report.html`` with its ``plots/*.png``; returns the path.

    With ``out`` only that file is written and the run folder is left as it is. ``baseline`` is another finished run:
    every headline number then has its difference to it. Images and weights are read from the folder and from where the
    configuration says; where they cannot be, the page says so. Raises RunError for a run that is absent, unfinished,
    incomplete or broken, naming what is missing; ResourceError if the disk refuses.
    """
    run = read_run(Path(run_dir))
    beside = None if baseline is None else read_run(Path(baseline))
    if out is None:
        events = sorted({t for times in findings.schedule_events(run).values() for t in times})
        curves = learning_curves(run.history, events, split=str(run.history[-1].get("evaluated_on", split_of(run))))
        _make_folder(run.path / "plots")
        write_atomic(run.path / "plots" / "learning_curves.png", png(curves))
        write_atomic(run.path / "plots" / "accuracy_by_count.png", png(accuracy_by_count(run.classes, split_of(run))))
    page = Path(out) if out is not None else run.path / "report.html"
    found = findings.confusions(run)
    made = measure(run, found[:CONFUSED_PAIRS])
    content = _about(run) | _against(run, beside) | _curves([("run-0", run)], single=True)
    content |= _images(run, made, found) | {
        "classes": findings.class_table(run, found),
        "environment": findings.flattened(run.description, ("class_counts", "data.class_names", "command", "schema")),
    }
    return _write_page(page, "run.html", content)


def _about(run: FinishedRun) -> dict[str, Any]:
    command = run.description.get("command", "")
    calibration = findings.reliability(run)
    lines = {entry.name: entry.bins for entry in calibration}
    return {
        "run": run,
        "results": run.results,
        "last": run.last,
        "best": run.results.get("best"),
        "split": split_of(run),
        "tested": images_of(split_of(run)),
        "subject": findings.subject(run),
        "balance_sentence": caution.balance_sentence(run),
        "single_sentence": caution.single_sentence(run),
        "groups_sentence": findings.groups_sentence(run),
        "images": sum(row.train_count for row in run.classes),
        "thirds": findings.thirds_of(run) if len(run.group_sizes()) < len(GROUPS) else {},
        "tail_sentence": findings.tail_sentence(run),
        "classes_per_column": classes_per_column(len(run.classes)),
        "curves_sentence": findings.curves_sentence(run),
        "events": findings.schedule_events(run),
        "calibration": calibration,
        "calibration_sentence": findings.reliability_sentence(calibration) if calibration else "",
        "calibration_chart": charts.reliability_chart(lines, "Accuracy over confidence") if calibration else "",
        "command": shlex.join(map(str, command)) if isinstance(command, list) else str(command),
    }


def _against(run: FinishedRun, baseline: FinishedRun | None) -> dict[str, Any]:
    """What depends on the baseline: the tiles' differences, the dashed line, the sentence on the flow."""
    flows = findings.image_flow(run)
    alike = baseline is not None and [r.name for r in run.classes] == [r.name for r in baseline.classes]
    other = findings.image_flow(baseline) if baseline is not None and alike else []
    differences: dict[str, Sequence[float]] = {}
    note = ""
    if baseline is not None:
        differences |= comparing.differences(run, baseline)
        if not differences:
            note = "The baseline was not evaluated on the same images, so there are no differences."
        else:
            for name in ("worst_tenth", "ece"):
                if run.last.get(name) is not None and baseline.last.get(name) is not None:
                    differences[name] = (run.last[name] - baseline.last[name],)
    return {
        "baseline": baseline,
        "baseline_label": "" if baseline is None else shortened(comparing.labels_of([run, baseline])[1], 60),
        "baseline_note": note,
        "differences": differences,
        "flows": flows,
        "flow_sentence": findings.flow_sentence(flows, other, split_of(run)) if len(flows) > 1 else "",
        "tail_picture": charts.long_tail(
            run.classes, baseline.classes if baseline is not None and alike else None, split_of(run)
        ),
        "explored": _script_data(_explored(run, baseline if alike else None)),
    }


def _explored(run: FinishedRun, baseline: FinishedRun | None) -> dict[str, Any]:
    """What the page's script says of each class, by rank."""
    worst: dict[int, findings.Confusion] = {}
    for pair in findings.confusions(run):
        worst.setdefault(pair.target.index, pair)
    rows = []
    for row in run.ranked():
        said = [f"{row.group}-shot", f"{row.train_count:,} training images"]
        if row.accuracy is None:
            said.append(f"no {split_of(run)} image")
        else:
            low, high = (findings.percent(end, 0) for end in wilson_interval(row.accuracy, row.test_count))
            said.append(f"accuracy {findings.percent(row.accuracy)} [{low} to {high}]")
        if baseline is not None and baseline.classes[row.index].accuracy is not None:
            said.append(f"baseline {findings.percent(baseline.classes[row.index].accuracy)}")
        if row.index in worst:
            pair = worst[row.index]
            said.append(f"mostly taken for {pair.predicted.name} ({findings.percent(pair.share, 0)})")
        rows.append({"index": row.index, "name": row.name, "said": " · ".join(said)})
    return {"classes": rows}


def _images(run: FinishedRun, made: Measured, found: Sequence[findings.Confusion]) -> dict[str, Any]:
    pairs = found[:CONFUSED_PAIRS]
    alt = f"{images_of(split_of(run)).capitalize()} in feature space"
    space = "" if made.space is None else charts.space_chart(made.space, run.classes, alt)
    return {
        "made": made,
        "space_chart": space,
        "pairs": pairs,
        "pair_sentence": findings.confusion_sentence(pairs) if pairs else "",
    }


def _curves(runs: Sequence[tuple[str, FinishedRun]], *, single: bool) -> dict[str, Any]:
    """The learning curves: of one run by loss term and group, of several by run."""
    if single:
        history = runs[0][1].history
        events = sorted({t for times in findings.schedule_events(runs[0][1]).values() for t in times})
        terms = loss_terms(history)
        losses = [
            _line(history, term, ("total" if len(terms) > 1 else "loss") if k == 0 else term, _color(k - 1))
            for k, term in enumerate(terms)
        ]
        accuracies = [_line(history, "top1", "top-1", "ink")]
        accuracies += [_line(history, group, group, group) for group in GROUPS]
        first = charts.line_chart(losses, "Loss terms over the epochs", percent=False, across="epoch", events=events)
    else:
        events = []
        losses = [_line(run.history, "top1", color, color) for color, run in runs]
        accuracies = [_line(run.history, "few", color, color) for color, run in runs]
        first = charts.line_chart(losses, "Top-1 over the epochs, a line a run", percent=True, across="epoch")
    second = charts.line_chart(accuracies, "Accuracies over the epochs", percent=True, across="epoch", events=events)
    return {
        "loss_lines": [line for line in losses if any(line.points)],
        "accuracy_lines": [line for line in accuracies if any(line.points)],
        "curve_pictures": (first, second),
    }


def _color(number: int) -> str:
    return "ink" if number < 0 else f"run-{number % len(LINE_COLORS)}"


def _line(history: Sequence[Mapping[str, Any]], key: str, name: str, color: str) -> charts.Line:
    points = [None if row.get(key) is None else (float(row["epoch"]), float(row[key])) for row in history]
    return charts.Line(name, color, points)


def comparison_rows(run_dirs: Sequence[Path]) -> list[ComparisonRow]:
    """The table of a comparison as data, one row per run in the order given. Raises RunError as the report does."""
    return rows_of(_read_all(run_dirs))


def write_comparison(run_dirs: Sequence[Path], out: Path) -> Path:
    """Write one page on several finished runs: a table, accuracy over class rank, learning curves, every class.

    Raises RunError for a run that is absent, unfinished, incomplete or broken; ResourceError if the disk refuses.
    """
    runs = _read_all(run_dirs)
    rows = rows_of(runs)
    colors = [_color(number) for number in range(len(runs))]
    splits = sorted({row.evaluated_on for row in rows})
    alike = comparing.same_order(runs)
    ranked = [run.ranked() for run in runs] if alike else []
    classes = [(entries[0], [entry.accuracy for entry in entries]) for entries in zip(*ranked, strict=True)]
    said = [
        " · ".join(f"{r.label} {findings.percent(a)}" for r, a in zip(rows, own, strict=True)) for _, own in classes
    ]
    explored = [
        {"index": row.index, "name": row.name, "said": f"{row.train_count:,} training images · {text}"}
        for (row, _), text in zip(classes, said, strict=True)
    ]
    content = {
        "rows": rows,
        "colors": colors,
        "splits": splits,
        "tested": images_of(" / ".join(splits)),
        "with_thirds": any(row.head is not None for row in rows),
        "with_differences": any(row.difference is not None for row in rows),
        "notes": comparing.notes_on(runs, rows),
        "sentence": comparing.rarest_sentence(runs, rows),
        "flows": [(row, color, findings.image_flow(run)) for row, color, run in zip(rows, colors, runs, strict=True)],
        "picture": charts.over_rank(
            [(color, run.classes) for color, run in zip(colors, runs, strict=True)], " / ".join(splits)
        ),
        "classes": classes,
        "explored": _script_data({"classes": explored}),
    }
    return _write_page(
        Path(out), "comparison.html", content | _curves(list(zip(colors, runs, strict=True)), single=False)
    )


def _read_all(run_dirs: Sequence[Path]) -> list[FinishedRun]:
    if not run_dirs:
        raise RunError("No run to compare.")
    return [read_run(Path(path)) for path in run_dirs]


def _script_data(values: Any) -> Markup:
    """JSON in which no tag can begin or end, for a script element that is not run."""
    text = json.dumps(values, ensure_ascii=True, separators=(",", ":"))
    for letter in "<>&":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return Markup(text)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResourceError(f"The folder {folder} cannot be made: {error.strerror}.") from error


def _shot(shot: Shot) -> Markup:
    return shot.markup()


def _write_page(path: Path, template: str, content: Mapping[str, Any]) -> Path:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": findings.percent, "points": findings.points, "shot": _shot}
    script = (HERE / "page.js").read_text(encoding="utf-8")
    page = environment.get_template(template).render(
        **content,
        groups=GROUPS,
        group_colors=GROUP_COLORS,
        line_colors=LINE_COLORS,
        sheet=Markup((HERE / "page.css").read_text(encoding="utf-8")),
        script=Markup(script),
        digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        version=longtail.__version__,
    )
    _make_folder(path.parent)
    write_atomic(path, page.encode())
    return path
