"""What a step costs beside the bare network: none of ours may grow into it unseen."""

from __future__ import annotations

import importlib
import json
import runpy
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.timeout(1800)
def test_a_step_of_cross_entropy_takes_at_most_15_percent_more_than_the_bare_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    row = importlib.import_module("throughput").bench("ce", 20, 0, tmp_path)
    assert row["ratio"] < 1.15


def test_the_benchmark_of_a_step_still_finds_every_part_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without compilation and in three steps, so that the functions it times may not move unnoticed."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    row = importlib.import_module("throughput").bench("bcl", 3, 0, tmp_path, quick=True)
    assert row["ratio"] > 0
    assert all(row["breakdown_s"][part] > 0 for part in ("augment", "forward", "losses", "backward", "optimizer"))
    assert row["evaluation_images_per_s"] > 0


def test_the_benchmark_of_whole_recipes_takes_real_steps_of_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    stepper = importlib.import_module("whole_recipes").stepper
    settings = ["optim.epochs=4", "optim.batch=128", "run.compile=false"]
    step, steps = stepper("scenes/cmo,method.criterion=logit-adjustment", settings, 1, str(tmp_path / "run"))
    assert steps == 4 * 6
    assert step() > 0
    assert step() > 0
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("method", "backbone", "batch", "steps"),
    [
        ("ce", "resnet20", 64, 2),
        *(
            pytest.param(
                method, "resnet32", 256, 6, marks=[pytest.mark.slow, pytest.mark.alone, pytest.mark.timeout(1800)]
            )
            for method in ("ce", "concutmix", "paco")
        ),
    ],
)
def test_all_guards_together_take_at_most_3_percent_of_a_step(
    monkeypatch: pytest.MonkeyPatch, method: str, backbone: str, batch: int, steps: int
) -> None:
    """Each step's guards are timed right after it, so that a busy machine slows both alike; medians are compared."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    step, guards, saving = importlib.import_module("guards").measure(method, batch, backbone, steps)
    print(f"{method}: {100 * guards / step:.2f} % of a step of {step:.2f} s; a checkpoint {saving:.2f} s")
    assert 0 < guards < 0.03 * step
    # A checkpoint every five minutes, which is the default, is a guard as well.
    assert guards / step + saving / 300 < 0.03


def test_the_table_of_speed_takes_what_the_benchmark_saves() -> None:
    row = {"images_per_step": 256, "images_per_s": 550.5, "bare_images_per_s": 560.0, "bare_variant": "eager"}
    row |= {"ratio": 1.017, "augment_share": 0.012, "steps_timed": 9}
    speed_table = runpy.run_path(str(BENCHMARKS / "speed_table.py"))["speed_table"]
    machine = {"system": "Linux", "processor": "x86_64", "cores": 2, "threads": 2, "torch": "2"}
    old = speed_table({"machine": machine, "ce": row})
    assert old[-1] == "| ce | 256 | 550.5 | 560.0 (eager) | 1.017 | 1.2 % of the step | 9 |"
    row |= {"breakdown_s": {"augment": 0.01, "forward": 0.2}, "evaluation_share": 0.1, "pil_pipeline_ratio": 1.5}
    row |= {"first_step_s": 4.2, "peak_memory_mib": 900.0}
    new = json.loads(json.dumps({"definitions": {"ratio": "words"}, "machine": machine, "help_s": 0.2, "ce": row}))
    lines = speed_table(new)
    assert old[-1] in lines
    assert "| ce | 0.0100 | 0.2000 | 10.0 % | 1.50 | 4.2 | 900.0 |" in lines
    assert lines[-1] == "`longtail --help`: 0.2 s."
