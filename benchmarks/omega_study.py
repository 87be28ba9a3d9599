"""Whether ConCutMix's label rectification helps: a study whose rows share the epochs before it begins.

python benchmarks/omega_study.py run STUDY.yaml [data.path=FILE] [--seeds 1 2]
python benchmarks/omega_study.py labels RUN RUN ... --out FILE.json
python benchmarks/omega_study.py table FILE.json

``run``: for each seed the first row is trained until the first epoch that rectifies, and every row goes on from there.
Rows may differ in ``method.omega`` and ``method.topk`` alone, so each ends with the weights that a run of its own would
have, bit for bit (a test holds it); ``longtail study STUDY.yaml`` then finds its runs finished. Two processes with
different --seeds share nothing. A cut run goes on where it was. ``labels``: what rectification does to the labels of
finished runs. ``table`` prints that as Markdown.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from longtail.api import run_config
from longtail.config import Config, differences
from longtail.errors import ConfigError, StoppedError
from longtail.explain import rectification_effect
from longtail.layers import parse_assignments
from longtail.listeners import Listener, Silent
from longtail.rundir import RunDir
from longtail.settings import resolve_time
from longtail.study import read_study
from longtail.study.cells import Cell, study_cells
from longtail.study.statistics import spread
from longtail.training import train

SHARED_KEYS = {"method.omega", "method.topk"}
"""Settings that nothing reads before labels are rectified."""


class StopBefore(Silent):
    """Asks a run to stop once it has made all steps before ``epoch``."""

    def __init__(self, epoch: int) -> None:
        self.epoch, self.at = epoch, 0

    def started(self, config: Config, data: Any, steps: int, first_step: int) -> None:
        self.at = steps // config.optim.epochs * self.epoch
        if first_step >= self.at:
            raise ConfigError(f"{config.out} is past epoch {self.epoch} already.")

    def stepped(self, step: int, logs: Mapping[str, float], images_per_second: float) -> None:
        if step == self.at:
            signal.raise_signal(signal.SIGTERM)


def first_rectified(config: Config) -> int:
    """The first epoch whose labels depend on omega."""
    start = resolve_time(config.method.rectify_start, config.optim.epochs)  # type: ignore[attr-defined]
    return min(start + 1, config.optim.epochs)


def share_first_half(cells: Sequence[Cell], prefix: Path) -> None:
    """Train the first cell until labels are rectified, and lay every cell's folder there that is not begun."""
    first = cells[0].config
    for cell in cells[1:]:
        other = set(differences(first, cell.config)) - SHARED_KEYS
        if other:
            raise ConfigError(f"{cell.name} differs from {cells[0].name} in {', '.join(sorted(other))}.")
    waiting = [cell for cell in cells if not RunDir(cell.folder).is_run]
    if not waiting:
        return
    done = prefix / "shared"
    if not done.exists():
        try:
            config = first.model_copy(update={"out": str(prefix)})
            train(config, resume=prefix.exists(), listener=StopBefore(first_rectified(first)))
        except StoppedError:
            done.write_text("trained until labels are rectified\n")
    for cell in waiting:
        begun = cell.folder.with_name(cell.folder.name + ".partial")
        shutil.rmtree(begun, ignore_errors=True)
        shutil.copytree(prefix, begun)
        (begun / "shared").unlink()
        run = RunDir(begun)
        run.write_config(cell.config.plain())
        run.update_description(config_key=cell.key, command=shlex.join(["longtail", "train", *cell.words]))
        begun.rename(cell.folder)


def run_cells(study: Path, overrides: Mapping[str, Any], seeds: Sequence[int], listener: Listener) -> None:
    """Every row of the wanted seeds."""
    plan = read_study(study, overrides)
    out = Path("runs/studies") / plan.name
    by_seed: dict[int, list[Cell]] = {}
    for cell in study_cells(plan, out):
        by_seed.setdefault(cell.seed, []).append(cell)
    for seed in seeds or by_seed:
        share_first_half(by_seed[seed], (out / f"shared-s{seed}").absolute())
        for cell in by_seed[seed]:
            last = run_config(cell.config, resume=True, listener=listener).results["last"]
            print(f"{cell.name}: top-1 {100 * last['top1']:.2f} %, few {100 * last['few']:.2f} %", flush=True)


def labels(runs: Sequence[Path]) -> dict[str, Any]:
    """rectification_effect of each run, by the name of its folder."""
    return {run.name: rectification_effect(run) for run in runs}


def table(measured: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Markdown: a line for each row of the study, means and deviations over its seeds, in percent."""
    names = {
        "gamma": "gamma",
        "outside": "label mass outside the pair",
        "semantic_outside": "of the semantic label",
        "neighbor_in_pair": "neighbor in the pair",
        "area_agrees": "area label agrees",
        "semantic_agrees": "semantic label agrees",
        "rectified_agrees": "rectified label agrees",
    }
    rows: dict[str, list[Mapping[str, Any]]] = {}
    for name, values in measured.items():
        rows.setdefault(name.rpartition("-s")[0], []).append(values)
    lines = [
        f"| row | seeds | omega | {' | '.join(names.values())} | semantic label agrees, neighbor not in the pair |",
        "|---" * (4 + len(names)) + "|",
    ]
    for row, runs in rows.items():
        cells = [percent([run["all"][name] for run in runs]) for name in names]
        cells.append(percent([run["outside_pair"]["semantic_agrees"] for run in runs]))
        lines.append(f"| {row} | {len(runs)} | {runs[0]['omega']:.4g} | {' | '.join(cells)} |")
    return lines


def percent(values: Sequence[float]) -> str:
    """Mean and sample deviation in percent."""
    found = spread([100 * value for value in values])
    if found is None:
        return "-"
    return f"{found.mean:.2f}" if found.deviation is None else f"{found.mean:.2f} ± {found.deviation:.2f}"


def main() -> None:
    """The three commands."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, dest="command")
    run = commands.add_parser("run")
    run.add_argument("study", type=Path)
    run.add_argument("settings", nargs="*")
    run.add_argument("--seeds", type=int, nargs="*", default=[])
    measure = commands.add_parser("labels")
    measure.add_argument("runs", type=Path, nargs="+")
    measure.add_argument("--out", type=Path, required=True)
    show = commands.add_parser("table")
    show.add_argument("file", type=Path)
    given = parser.parse_args()
    if given.command == "run":
        run_cells(given.study, parse_assignments(given.settings), given.seeds, Silent())
    elif given.command == "labels":
        given.out.write_text(json.dumps(labels(given.runs), indent=1) + "\n")
    else:
        print("\n".join(table(json.loads(given.file.read_text()))))


if __name__ == "__main__":
    main()
