"""Keep the small files of finished runs under results/, and make docs/results.md from them.

python benchmarks/results.py collect STUDY RUN...   (of a study with a file under studies/: all its run folders)
python benchmarks/results.py speed            (what make bench saved)
python benchmarks/results.py table            (make results)
"""

from __future__ import annotations

import csv
import json
import runpy
import shutil
import statistics
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from longtail.runs.exported import portable_command
from longtail.study import read_study
from longtail.study.cells import Cell, Finder, study_cells
from longtail.study.file import Study
from longtail.study.table import study_results
from longtail.study.writing import markdown

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results"
STUDIES = ROOT / "studies"
PAGE = ROOT / "docs" / "results.md"
SALIENCY = RESULTS / "saliency"
SPEED = RESULTS / "speed" / "throughput.json"
TIMES = RESULTS / "speed" / "whole_recipes.json"
MEMORY = RESULTS / "memory" / "inat18-concutmix.json"
KEPT = ("results.json", "per_class.csv", "metrics.jsonl")

INTRODUCTION = """# Results

Made by `make results` from the committed files under `results/`; a test fails when the two differ. Top-1 and groups in
percent. **last** is the last epoch, the headline. **best** is the best epoch as chosen on the set it names: where that
is the test set it is not a result, and stands here only because the field reports it. More than one seed: mean and
standard deviation, with the number of seeds; fewer than three seeds are marked and support no claim.
"""


def without_paths(config: dict[str, Any]) -> dict[str, Any]:
    """The values of a run's config.yaml, without this machine's folders."""
    path, init = config["data"]["path"], config["init"]
    named = {"init": init and Path(init).name, "data": config["data"] | {"path": path and Path(path).name}}
    return config | {"out": None} | named


def collect(study: str, runs: Iterable[Path]) -> None:
    """Copy the small files of each run to results/STUDY/KEY, with the command and without this machine's paths."""
    for run in runs:
        results = json.loads((run / "results.json").read_text())
        described = json.loads((run / "run.json").read_text())
        folder = RESULTS / study / f"{results['method']}-s{results['seed']}-{results['config_key']}"
        folder.mkdir(parents=True, exist_ok=True)
        for name in KEPT:
            shutil.copy(run / name, folder / name)
        if (STUDIES / f"{study}.yaml").is_file():
            keep_answers(run / "predictions.csv", folder / "predictions.csv")
        config = without_paths(yaml.safe_load((run / "config.yaml").read_text()))
        (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
        (folder / "command.txt").write_text(f"{portable_command(described['command'])}\n")
        wanted = ("versions", "processor", "processes", "threads", "compiled")
        about = {name: described[name] for name in wanted if name in described}  # older runs know no processor
        about["fingerprint"] = described["data"]["fingerprint"]
        (folder / "environment.json").write_text(json.dumps(about, indent=1) + "\n")
        print(folder.relative_to(ROOT))


def keep_answers(source: Path, kept: Path) -> None:
    """What a paired comparison needs of predictions.csv: a number for each test image instead of its name."""
    with source.open(newline="") as file:
        rows = list(csv.DictReader(file))
    lines = [",".join((row["index"], row["target"], row["predicted"], row["correct"])) for row in rows]
    kept.write_text("\n".join(["id,target,predicted,correct", *lines]) + "\n")


def read(folder: Path) -> dict[str, Any]:
    """One finished run."""
    run: dict[str, Any] = json.loads((folder / "results.json").read_text())
    run["command"] = (folder / "command.txt").read_text().strip()
    run["config"] = yaml.safe_load((folder / "config.yaml").read_text())
    return run


def identity(run: dict[str, Any]) -> str:
    """What runs that may be averaged have in common: all settings but the seed, and the version of the numbers."""
    config = {name: value for name, value in run["config"].items() if name not in ("seed", "run", "out")}
    return json.dumps([config, run["numbers_version"]], sort_keys=True)


def spread(values: Sequence[float | None]) -> str:
    """Mean and sample standard deviation in percent, or a dash for an empty group."""
    known = [100 * value for value in values if value is not None]
    if not known:
        return "-"
    mean = f"{statistics.mean(known):.2f}"
    return mean if len(known) == 1 else f"{mean} ± {statistics.stdev(known):.2f}"


def study_table(runs: list[dict[str, Any]]) -> list[str]:
    """The table of one study, a line for each setting, and the commands under it."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        groups.setdefault(identity(run), []).append(run)
    lines = [
        "| method | epochs | seeds | last top-1 | many | medium | few | best top-1 (selected on) | image passes |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    rows = sorted(groups.values(), key=lambda group: (group[0]["epochs"], group[0]["image_passes"], group[0]["method"]))
    for group in rows:
        group.sort(key=lambda run: int(run["seed"]))
        first, seeds = group[0], ", ".join(str(run["seed"]) for run in group)
        few = "" if len(group) >= 3 else f" (n={len(group)})"
        last = {name: spread([run["last"][name] for run in group]) for name in ("top1", "many", "medium", "few")}
        best = spread([run["best"]["top1"] for run in group])
        lines.append(
            f"| {first['method']} | {first['epochs']} | {seeds}{few} | {last['top1']} | {last['many']} | "
            f"{last['medium']} | {last['few']} | {best} ({first['best']['selected_on']}) | {first['image_passes']:,} |"
        )
    lines += ["", "Every run apart (last epoch):", "", "| method | seed | top-1 | many | medium | few | ece |"]
    lines.append("|---|---|---|---|---|---|---|")
    for run in (run for group in rows for run in group):
        last = {name: spread([run["last"][name]]) for name in ("top1", "many", "medium", "few", "ece")}
        values = " | ".join(last[name] for name in ("top1", "many", "medium", "few", "ece"))
        lines.append(f"| {run['method']}, {run['epochs']} epochs | {run['seed']} | {values} |")
    lines += ["", "Commands:", "", "```"]
    lines += [run["command"] for group in rows for run in group]
    return [*lines, "```"]


def archive_of(study: Path) -> str | None:
    """What the commands here call the images of a study: ``cifar100.npz``; the scenes are embedded and need none."""
    data = str(yaml.safe_load(study.read_text())["base"]).partition("/")[0]
    return None if data == "scenes" else f"{data}.npz"


def cells_of_study(name: str) -> tuple[Study, list[Cell]]:
    """A study that has a file, and its cells with what is kept of them."""
    images = archive_of(STUDIES / f"{name}.yaml")
    study = read_study(STUDIES / f"{name}.yaml", {"data": {"path": images}} if images else {})
    cells = study_cells(study, RESULTS / name / "of-no-run")
    finder = Finder(RESULTS, name, fingerprint=lambda config: None)  # the images need not be at hand
    for cell in cells:
        finder.look(cell)
    return study, cells


def table_of_study(name: str) -> list[str]:
    """The table of a study that has a file: its rows in its order, with differences to its baseline."""
    images = archive_of(STUDIES / f"{name}.yaml")
    study, cells = cells_of_study(name)
    done = {label for cell in cells if cell.finished is not None for label in cell.labels}
    labels = [row.label for row in study.rows if row.label in done]
    table = study_results(study.name, labels, study.baseline if study.baseline in done else None, cells)
    lines = markdown(table).splitlines()[2:]
    command = f"longtail study studies/{name}.yaml {f'data.path={images} ' if images else ''}--jobs 2"
    return [*lines, "", "Command:", "", "```", command, "```"]


def label_table(measured: Path) -> list[str]:
    """What benchmarks/omega_study.py measured of the labels of a study's runs; nothing without its file."""
    if not measured.is_file():
        return []
    table = runpy.run_path(str(ROOT / "benchmarks" / "omega_study.py"))["table"]
    about = "What rectification does to the labels of the mixed images, in percent of them or of their mass:"
    command = "python benchmarks/omega_study.py labels RUN RUN ... --out labels.json"
    return ["", about, "", *table(json.loads(measured.read_text())), "", "```", command, "```"]


def time_table() -> list[str]:
    """Accuracy against time of the fast recipe and the runs beside it; nothing without the seconds of steps."""
    if not TIMES.is_file():
        return []
    table = runpy.run_path(str(ROOT / "benchmarks" / "against_time.py"))["table"]
    about = "Accuracy against time, by the seconds of steps that took turns ([drawn](pictures/against-time.png)):"
    commands = ["python benchmarks/against_time.py table", "python benchmarks/against_time.py picture"]
    return ["", about, "", *table(json.loads(TIMES.read_text())["recipes"]), "", "```", *commands, "```"]


def saliency_tables() -> list[str]:
    """What benchmarks/saliency_study.py measured, with what README.md beside it says."""
    study = runpy.run_path(str(ROOT / "benchmarks" / "saliency_study.py"))
    lines = [(SALIENCY / "README.md").read_text().strip(), ""]
    for path in (SALIENCY / name for name in ("hits.json", "backgrounds.json")):
        if path.is_file():
            lines += [*study["table"](json.loads(path.read_text())), ""]
    return lines


def page() -> str:
    """The text of docs/results.md."""
    parts = [INTRODUCTION]
    for study in sorted(path for path in RESULTS.iterdir() if path.is_dir()) if RESULTS.is_dir() else []:
        runs = [read(path.parent) for path in sorted(study.glob("*/results.json"))]
        if not runs:
            continue
        about = study / "README.md"
        title = about.read_text().strip() if about.is_file() else f"## {study.name}"
        with_file = (STUDIES / f"{study.name}.yaml").is_file()
        table = table_of_study(study.name) if with_file else study_table(runs)
        times = time_table() if study.name == "fast-cifar100" else []
        parts.append("\n".join([title, "", *table, *label_table(study / "labels.json"), *times]) + "\n")
    if SALIENCY.is_dir():
        parts.append("\n".join(saliency_tables()))
    if SPEED.is_file():
        table = runpy.run_path(str(ROOT / "benchmarks" / "speed_table.py"))["speed_table"]
        parts.append("\n".join(table(json.loads(SPEED.read_text()))) + "\n")
    if MEMORY.is_file():
        table = runpy.run_path(str(ROOT / "benchmarks" / "memory.py"))["memory_table"]
        parts.append("\n".join(table(json.loads(MEMORY.read_text()))) + "\n")
    return "\n".join(parts)


def main() -> None:
    """Do what the first word says."""
    words = sys.argv[1:] or ["table"]
    if words[0] == "collect" and len(words) > 2:
        collect(words[1], map(Path, words[2:]))
    elif words == ["speed"]:
        SPEED.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / "runs" / "bench" / "throughput.json", SPEED)
    elif words != ["table"]:
        sys.exit(__doc__)
    PAGE.write_text(page())
    print(PAGE.relative_to(ROOT))


if __name__ == "__main__":
    main()
