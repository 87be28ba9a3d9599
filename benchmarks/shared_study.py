"""Train once what rows of a study share, before ``longtail study`` goes on with each.

python benchmarks/shared_study.py STUDY.yaml [data.path=FILE] [--jobs N] [--only ROW ...] [--seeds S ...]
longtail study STUDY.yaml [data.path=FILE] [--jobs N]

Some settings are read only late in a run: ConCutMix's omega once labels are rectified, SMCL's detector once images are
masked. Rows that differ in nothing else are the same run until then. For each such group of rows that are not begun the
first is trained that far, and its folder is laid where each row's own would be, with the row's settings: what goes on
from there ends with the weights, momentum and numbers that a run of its own would have, bit for bit (a test holds it).
A cut prefix goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import shlex
import shutil
import signal
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from longtail.config import Config
from longtail.data.open import open_data
from longtail.errors import StoppedError
from longtail.layers import parse_assignments
from longtail.runs.rundir import RunDir
from longtail.settings import resolve_time
from longtail.study import plan_study
from longtail.study.cells import Cell
from longtail.training.detection import digest
from longtail.training.feeding import build_views, find_peaks
from longtail.training.listeners import Silent
from longtail.training.loop import train
from longtail.training.state import build_method

LATE: dict[str, tuple[frozenset[str], str, int]] = {
    "concutmix": (frozenset({"omega", "topk", "confidence"}), "rectify_start", 1),
    "smcl": (
        frozenset({"detector", "mask_probability", "mask_alpha", "variant", "ties", "at_edge", "fill"}),
        "mask_start",
        0,
    ),
}
"""Of a method: the settings that are read late, the setting that says when, and how many epochs after it."""


class StopBefore(Silent):
    """Asks a run to stop once it has made all steps before ``epoch``."""

    def __init__(self, epoch: int) -> None:
        self.epoch, self.at = epoch, 0

    def started(self, config: Config, data: Any, steps: int, first_step: int) -> None:
        self.at = steps // config.optim.epochs * self.epoch

    def stepped(self, step: int, logs: Mapping[str, float], images_per_second: float) -> None:
        if step == self.at:
            signal.raise_signal(signal.SIGTERM)


def late_epoch(config: Config) -> int:
    """The first epoch in which a late setting of the config's method is read; 0 where there is none."""
    if config.method_name not in LATE:
        return 0
    _, name, after = LATE[config.method_name]
    start = resolve_time(getattr(config.method, name), config.optim.epochs)
    return min(start + after, config.optim.epochs)


def shared_part(config: Config) -> str:
    """All that the epochs before :func:`late_epoch` depend on."""
    values = config.plain()
    for name in LATE[config.method_name][0]:
        values["method"].pop(name)
    values.pop("out")
    return json.dumps(values, sort_keys=True)


def groups(cells: Sequence[Cell]) -> list[list[Cell]]:
    """Cells without a folder that share their first epochs, two or more at a time, in the order of the cells."""
    found: dict[str, list[Cell]] = {}
    for cell in cells:
        if cell.status == "missing" and cell.start is None and late_epoch(cell.config) > 0:
            found.setdefault(shared_part(cell.config), []).append(cell)
    return [group for group in found.values() if len(group) > 1]


def share(group: Sequence[Cell], prefix: Path) -> str:
    """Train the first cell of a group until its rows part, and lay the folder of each."""
    first = group[0].config
    done = prefix / "shared"
    if not done.exists():
        config = first.model_copy(update={"out": str(prefix)})
        try:
            train(config, resume=prefix.exists(), listener=StopBefore(late_epoch(first)))
        except StoppedError:
            reached = RunDir(prefix).load_checkpoint()
            if reached is None or reached.step < steps_before(prefix, first):
                raise  # somebody else's signal
        done.write_text("trained until the rows part\n")
    for cell in group:
        begun = cell.folder.with_name(cell.folder.name + ".partial")
        shutil.rmtree(begun, ignore_errors=True)
        shutil.copytree(prefix, begun)
        (begun / "shared").unlink()
        run = RunDir(begun)
        run.write_config(cell.config.plain())
        command = shlex.join(["longtail", "train", *cell.words])
        run.update_description(config_key=cell.key, command=command, peaks=peaks_digest(cell.config))
        begun.rename(cell.folder)
    return f"{group[0].name} and {len(group) - 1} more share {late_epoch(first)} of {first.optim.epochs} epochs"


def steps_before(prefix: Path, config: Config) -> int:
    """The steps that the rows share."""
    return int(RunDir(prefix).description()["steps"]) // config.optim.epochs * late_epoch(config)


def peaks_digest(config: Config) -> str | None:
    """What run.json says of the salient peaks of a run of this config."""
    data = open_data(config.data)
    method = build_method(config, data.stats.counts, int(data.train.images.shape[-1]))
    return digest(find_peaks(config, data, method, build_views(config, data), None, Silent()))


def share_all(
    study: Path, overrides: Mapping[str, Any], *, jobs: int = 1, only: Sequence[str] = (), seeds: Sequence[int] = ()
) -> None:
    """Every group of the wanted rows and seeds, ``jobs`` at a time."""
    plan = plan_study(study, overrides, only=only)
    wanted = [cell for cell in plan.todo if not seeds or cell.seed in seeds]
    work = [(group, (plan.out / f"shared-{number}-s{group[0].seed}").absolute()) for number, group in named(wanted)]
    if jobs == 1:
        for group, prefix in work:
            print(share(group, prefix), flush=True)
        return
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        for said in pool.map(share, *zip(*work, strict=True)) if work else ():
            print(said, flush=True)


def named(cells: Sequence[Cell]) -> list[tuple[str, list[Cell]]]:
    """Each group with the name of its first row, which is that of the folder of what is shared."""
    return [(group[0].folder.name.rpartition("-s")[0], group) for group in groups(cells)]


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("settings", nargs="*", help="key=value, laid over every row")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--only", action="append", default=[], help="a row; may be repeated")
    parser.add_argument("--seeds", type=int, nargs="*", default=[])
    given = parser.parse_args()
    share_all(given.study, parse_assignments(given.settings), jobs=given.jobs, only=given.only, seeds=given.seeds)


if __name__ == "__main__":
    main()
