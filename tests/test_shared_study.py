"""A study whose rows share their first epochs: each ends as a run of its own."""

from __future__ import annotations

import io
import runpy
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

import tiny
from longtail.api import run_config
from longtail.config import METHOD_SETTINGS
from longtail.recipes import load_config
from longtail.study import plan_study, run_study
from longtail.study.watching import StudyLines

SHARED = runpy.run_path(str(Path(__file__).parents[1] / "benchmarks" / "shared_study.py"))

ROWS: dict[str, dict[str, Any]] = {
    "concutmix": {"none": {"method.omega": 0}, "strong": {"method.omega": 40.0}, "one center": {"method.topk": 1}},
    "smcl": {
        "salient": {},
        "random": {"method.detector": "random"},
        "never": {"method.mask_probability": 0},
        "hard": {"method.variant": "B"},
        "the rest": {
            "method.fill": "noise",
            "method.ties": "random",
            "method.at_edge": "shift",
            "method.mask_alpha": 0.5,
        },
    },
}
SETTINGS = {
    "concutmix": {"mix_probability": 1.0},
    "smcl": {"mask_probability": 1.0, "mask_start": 2},
}


def write_study(folder: Path, method: str, rows: dict[str, Any]) -> Path:
    file = folder / "study.yaml"
    study = {
        "name": "sharing",
        "base": f"npz/{method}",
        "seeds": [3],
        "settings": tiny.settings_of(method, optim={"epochs": 4}, method=SETTINGS[method]),
        "rows": rows,
    }
    file.write_text(yaml.safe_dump(study, sort_keys=False))
    return file


@pytest.mark.parametrize("method", list(ROWS))
def test_rows_that_share_their_first_epochs_end_as_runs_of_their_own(
    method: str, tiny_npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    over = {"data": {"path": str(tiny_npz)}}
    file = write_study(tmp_path, method, ROWS[method])
    SHARED["share_all"](file, over)
    plan = plan_study(file, over)
    assert [cell.status for cell in plan.cells] == ["stopped"] * len(ROWS[method])
    run_study(plan, StudyLines(Console(file=io.StringIO())))
    ends = set()
    for number, cell in enumerate(plan.cells):
        alone = tmp_path / f"alone{number}"
        run_config(cell.config.model_copy(update={"out": str(alone)}))
        mine, other = tiny.outcome(cell.folder), tiny.outcome(alone)
        for name in other:
            assert mine[name] == other[name], (cell.name, name)
        ends.add(str(mine["last"]))
    assert len(ends) == len(ROWS[method]), "or the rows would not differ"


def test_what_is_begun_or_differs_earlier_shares_nothing(
    tiny_npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    over = {"data": {"path": str(tiny_npz)}}
    rows = {"a": {}, "b": {"method.tau": 0.5}, "c": {"method.omega": 1.0}}
    file = write_study(tmp_path, "concutmix", rows)
    found = SHARED["groups"](plan_study(file, over).cells)
    assert [[cell.labels[0] for cell in group] for group in found] == [["a", "c"]]
    run_config(plan_study(file, over).cells[2].config)
    assert SHARED["groups"](plan_study(file, over).cells) == []


@pytest.mark.parametrize(
    ("method", "word"),
    [
        ("smcl", "mu=0.1"),
        ("smcl", "mask_start=0.5"),
        ("smcl", "partner_sampler=shuffle"),
        ("smcl", "contrastive_from=0.5"),
        ("smcl", "forward_partner=true"),
        ("concutmix", "rectify_start=0.2"),
        ("concutmix", "mix_probability=1"),
        ("concutmix", "beta=1"),
    ],
)
def test_a_setting_that_is_read_from_the_start_parts_the_rows(method: str, word: str) -> None:
    one, other = (load_config(f"cifar100/{method}", words) for words in ([], [f"method.{word}"]))
    assert SHARED["shared_part"](one) != SHARED["shared_part"](other)


def test_every_late_setting_is_one_of_its_method() -> None:
    for method, (late, start, _) in SHARED["LATE"].items():
        assert {*late, start} <= METHOD_SETTINGS[method].model_fields.keys()
    assert SHARED["late_epoch"](load_config("cifar100/concutmix", ["optim.epochs=20"])) == 11
    assert SHARED["late_epoch"](load_config("cifar100/smcl", ["optim.epochs=20"])) == 16
    assert SHARED["late_epoch"](load_config("cifar100/ce")) == 0
