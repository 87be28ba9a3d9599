"""A study runs what is missing, once, goes on where it was cut, and ends with the same table."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import longtail.study.running as running
from longtail.cli import main
from longtail.config import NUMBERS_VERSION
from longtail.errors import ConfigError, StoppedError
from longtail.files import write_json
from longtail.runs.rundir import RunDir
from longtail.study import CellsFailedError, Plan, plan_study, run_study
from longtail.study.cells import Cell
from longtail.study.watching import CellListener, StudyLines, StudyTable, watcher_for
from longtail.study.writing import TABLES
from tiny import write_npz

STUDY = """name: tiny
base: npz/ce
seeds: [0, 1]
settings:
  data: {{path: {archive}, groups: [8, 3]}}
  model.backbone: resnet8
  optim: {{epochs: 1, batch: 8, lr: 0.05}}
  run: {{compile: false, threads: 1}}
baseline: ce
rows:
  ce: {{}}
  la: {{recipe: npz/logit-adjustment}}
  again: {{method.tau: 1.0}}
{more}"""


def only_a_page(out: Path) -> None:
    """In place of a report with its pictures, which take longer than these runs."""
    (out / "report.html").write_text("a page")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs land in, and kept results are looked for below, the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("longtail.api.write_report", only_a_page)


class Watch(StudyLines):
    """Keeps which cells were started, and may do something at one."""

    def __init__(self, at: Callable[[Cell], None] = lambda cell: None) -> None:
        super().__init__(Console(quiet=True))
        self.order: list[str] = []
        self.at = at

    def started(self, cell: Cell) -> None:
        super().started(cell)
        self.order.append(cell.folder.name)
        self.at(cell)


def plan(archive: Path, more: str = "", only: tuple[str, ...] = (), **overrides: Any) -> Plan:
    Path("study.yaml").write_text(STUDY.format(archive=archive, more=more))
    return plan_study("study.yaml", overrides, out=Path("out"), only=only)


def run(planned: Plan, watch: Watch | None = None, jobs: int = 1) -> list[str]:
    watch = watch or Watch()
    run_study(planned, watch, jobs)
    return watch.order


def tables(out: Path = Path("out")) -> dict[str, str]:
    """The tables without the seconds that training took."""
    found = {name: (out / name).read_text() for name in TABLES}
    rows = [line.split(",") for line in found["study.csv"].splitlines()]
    timed = [column for column, name in enumerate(rows[0]) if name.startswith("train_seconds")]
    assert len(timed) == 2
    found["study.csv"] = "\n".join(",".join(v for i, v in enumerate(row) if i not in timed) for row in rows)
    for name, pattern in (
        ("study.md", r"\d+ \|$"),
        ("study.tex", r"\{\d+\} \\\\$"),
        ("study.html", r"<td>\d+</td></tr>"),
    ):
        found[name], times = re.subn(pattern, "", found[name], flags=re.MULTILINE)
        assert times == 3
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tiny_npz: Path) -> Path:
    """The folder of a study that ran from beginning to end."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("longtail.api.write_report", only_a_page)
        order = run(plan(tiny_npz))
    assert order == ["ce-s0", "la-s0", "ce-s1", "la-s1"]
    return folder / "out"


@pytest.fixture
def copy(whole: Path) -> Path:
    """The same folder, to be changed. Runs know where they lie by ``out`` alone, which is no part of their key."""
    shutil.copytree(whole, "out")
    return Path("out")


# Once, and to the end -------------------------------------------------------------------------------------------------


def test_run_again_it_does_nothing_and_leaves_every_file_as_it_is(copy: Path, tiny_npz: Path) -> None:
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    planned = plan(tiny_npz)
    assert planned.todo == []
    assert run(planned) == []
    assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before


def test_each_cell_is_an_ordinary_run_folder(whole: Path) -> None:
    for name in ("ce-s0", "la-s0", "ce-s1", "la-s1"):
        described = RunDir(whole / name).description()
        assert described["status"] == "finished"
        assert described["command"].startswith("longtail train npz/")
        assert (whole / name / "report.html").is_file()
    assert not (whole / "again-s0").exists(), "a row of the same configuration is not run again"


def test_rows_of_one_configuration_share_their_numbers(whole: Path) -> None:
    first, _, third = (line.split("|")[2:] for line in (whole / "study.md").read_text().splitlines()[4:7])
    assert first[:6] == third[:6]


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_cut_within_a_run_and_started_again_it_ends_with_the_same_tables(
    tiny_npz: Path, whole: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stopping(CellListener):
        def stepped(self, step: int, logs: Any, images_per_second: float) -> None:
            if (self.cell.folder.name, step) == ("la-s0", 2):
                signal.raise_signal(number)

    with monkeypatch.context() as patch:
        patch.setattr(running, "CellListener", Stopping)
        with pytest.raises(StoppedError) as caught:
            run(plan(tiny_npz))
    assert caught.value.exit_code == {signal.SIGTERM: 75, signal.SIGINT: 130}[signal.Signals(number)]
    assert (Path("out") / "study.md").is_file(), "what is finished has its table"
    planned = plan(tiny_npz)
    assert [cell.status for cell in planned.cells] == ["finished", "stopped", "missing", "missing"]
    assert run(planned) == ["la-s0", "ce-s1", "la-s1"]
    assert tables() == tables(whole)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_between_two_runs_ends_the_study(tiny_npz: Path, number: int, code: int) -> None:
    with pytest.raises(StoppedError) as caught:
        run(plan(tiny_npz), Watch(lambda cell: signal.raise_signal(number)))
    assert caught.value.exit_code == code
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert run(plan(tiny_npz, only=("la",))) == ["la-s0", "la-s1"]


def test_a_run_without_its_report_gets_it(copy: Path, tiny_npz: Path) -> None:
    (copy / "la-s1" / "report.html").unlink()
    assert run(plan(tiny_npz)) == ["la-s1"]
    assert (copy / "la-s1" / "report.html").is_file()


def test_a_cell_that_fails_is_told_and_the_others_go_on(tiny_npz: Path) -> None:
    more = "  bad: {optim.lr: 1.0e+30}\n  next: {init: 'row:bad'}\n  last: {optim.lr: 0.01}\n"
    watch = Watch()
    with pytest.raises(CellsFailedError) as caught:
        run_study(plan(tiny_npz, more, only=("bad", "next", "last")), watch)
    assert caught.value.exit_code == 5
    assert watch.order == ["bad-s0", "last-s0", "bad-s1", "last-s1"]
    assert "bad, seed 0" in caught.value.message
    assert "next, seed 1: it starts from bad, seed 1, which failed" in caught.value.message
    page = Path("out/study.md").read_text()
    assert "Failed: bad, seed 0: The loss became" in page
    assert re.search(r"^\| last \| 2 \(n=2\) \| \d", page, flags=re.MULTILINE)


def test_a_row_can_start_from_the_weights_of_another(copy: Path, tiny_npz: Path) -> None:
    planned = plan(tiny_npz, "  two: {init: 'row:la', optim.lr: 0.01}\n", only=("two",))
    assert run(planned) == ["two-s0", "two-s1"]
    assert json.loads(Path("out/two-s1/results.json").read_text())["config_key"] == planned.cells[-1].key
    assert plan(tiny_npz, "  two: {init: 'row:la', optim.lr: 0.01}\n").todo == []


def test_what_a_row_starts_from_is_run_with_it(tiny_npz: Path) -> None:
    planned = plan(tiny_npz, "  two: {init: 'row:la', optim.lr: 0.01}\n", only=("two",))
    assert [cell.folder.name for cell in planned.todo] == ["la-s0", "two-s0", "la-s1", "two-s1"]


def test_only_the_rows_that_are_asked_for_are_run(copy: Path, tiny_npz: Path) -> None:
    shutil.rmtree(copy / "ce-s0")
    shutil.rmtree(copy / "la-s0")
    assert [cell.folder.name for cell in plan(tiny_npz, only=("again",)).todo] == ["ce-s0"]
    with pytest.raises(ConfigError, match="no row 'lb'") as caught:
        plan(tiny_npz, only=("lb",))
    assert "'la'" in str(caught.value.hint)


# What counts as finished ----------------------------------------------------------------------------------------------


def keep(copy: Path, name: str) -> Path:
    """What is committed of a run, in place of its folder."""
    kept = Path("results/tiny") / name
    kept.mkdir(parents=True)
    for part in ("results.json", "config.yaml"):
        shutil.copy(copy / name / part, kept / part)
    fingerprint = RunDir(copy / name).description()["data"]["fingerprint"]
    write_json(kept / "environment.json", {"fingerprint": fingerprint})
    shutil.rmtree(copy / name)
    return kept


def test_a_result_that_was_kept_counts_as_finished(copy: Path, tiny_npz: Path, whole: Path) -> None:
    keep(copy, "la-s0")
    planned = plan(tiny_npz)
    assert [cell.status for cell in planned.cells] == ["finished", "kept", "finished", "finished"]
    assert run(planned) == []
    assert (
        (Path("out/study.md").read_text().splitlines()[5].split("|")[:8])
        == ((whole / "study.md").read_text().splitlines()[5].split("|")[:8])
    )


def test_what_another_study_kept_counts_if_its_predictions_were_kept(copy: Path, tiny_npz: Path) -> None:
    predictions = (copy / "la-s0" / "predictions.csv").read_text()
    elsewhere = keep(copy, "la-s0").rename("elsewhere")
    Path("results/other").mkdir()
    elsewhere.rename("results/other/la-s0")
    assert [cell.status for cell in plan(tiny_npz).cells] == ["finished", "missing", "finished", "finished"]
    Path("results/other/la-s0/predictions.csv").write_text(predictions)
    assert [cell.status for cell in plan(tiny_npz).cells] == ["finished", "kept", "finished", "finished"]


def test_a_result_kept_under_an_older_key_is_found_by_its_configuration(copy: Path, tiny_npz: Path) -> None:
    kept = keep(copy, "la-s0")
    results = json.loads((kept / "results.json").read_text())
    write_json(kept / "results.json", results | {"config_key": "0123456789ab"})
    assert plan(tiny_npz).todo == []


@pytest.mark.parametrize("what", ["numbers", "images", "settings"])
def test_a_result_of_something_else_does_not_count(copy: Path, tiny_npz: Path, what: str) -> None:
    kept = keep(copy, "la-s0")
    if what == "numbers":
        results = json.loads((kept / "results.json").read_text())
        write_json(kept / "results.json", results | {"numbers_version": NUMBERS_VERSION - 1})
    elif what == "images":
        write_json(kept / "environment.json", {"fingerprint": "another"})
    else:
        text = (kept / "config.yaml").read_text()
        assert "lr: 0.05" in text
        (kept / "config.yaml").write_text(text.replace("lr: 0.05", "lr: 0.06"))
        results = json.loads((kept / "results.json").read_text())
        write_json(kept / "results.json", results | {"config_key": "0123456789ab"})
    assert [cell.folder.name for cell in plan(tiny_npz).todo] == ["la-s0"]


def test_a_folder_of_other_settings_is_refused_by_the_key(copy: Path, tiny_npz: Path) -> None:
    with pytest.raises(ConfigError, match=r"other settings: optim\.lr") as caught:
        plan(tiny_npz, optim={"lr": 0.1})
    assert "--out" in str(caught.value.hint)


def test_a_folder_of_another_version_of_the_numbers_is_refused(copy: Path, tiny_npz: Path) -> None:
    run_dir = RunDir(copy / "la-s0")
    versions = run_dir.description()["versions"]
    run_dir.update_description(versions=versions | {"numbers": NUMBERS_VERSION + 1})
    with pytest.raises(ConfigError, match="of the numbers"):
        plan(tiny_npz)


def test_a_folder_of_other_images_is_refused_and_moved_images_are_not(copy: Path, tiny_npz: Path) -> None:
    moved = Path(shutil.copy(tiny_npz, "moved.npz")).absolute()
    assert plan(moved).todo == []
    with pytest.raises(ConfigError, match="other images"):
        plan(write_npz(Path("other.npz").absolute(), seed=1))


def test_without_the_images_what_is_finished_stays_finished_and_says_so(copy: Path) -> None:
    planned = plan(Path("absent.npz").absolute())
    assert planned.todo == []
    assert all(cell.notes for cell in planned.cells)


def test_a_folder_that_is_no_run_is_left_alone(tiny_npz: Path) -> None:
    Path("out/la-s0").mkdir(parents=True)
    Path("out/la-s0/mine.txt").write_text("x")
    with pytest.raises(ConfigError, match="exists already"):
        plan(tiny_npz)


# The command ----------------------------------------------------------------------------------------------------------


def command(*words: str) -> int:
    with pytest.raises(SystemExit) as stop:
        main(list(words))
    return int(stop.value.code or 0)


def test_a_dry_run_says_what_would_run_and_writes_nothing(tiny_npz: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan(tiny_npz)
    assert command("study", "study.yaml", "--out", "out", "--dry-run") == 0
    printed = capsys.readouterr().out
    assert "la, seed 1: missing, to be run" in printed
    assert "4 runs, 4 to be run" in printed
    assert not Path("out").exists()


def test_a_wrong_study_ends_with_code_2_and_writes_nothing(tiny_npz: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("study.yaml").write_text(STUDY.format(archive=tiny_npz, more="  x: {optim.epoch: 3}\n"))
    assert command("study", "study.yaml", "--out", "out") == 2
    printed = capsys.readouterr().err
    assert "study.yaml:14: row 'x': Unknown key 'optim.epoch'" in printed
    assert "optim.epochs" in printed
    assert not Path("out").exists()


def test_the_command_tells_where_the_tables_are(copy: Path, tiny_npz: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan(tiny_npz)
    assert command("study", "study.yaml", "--out", "out") == 0
    assert "out/study.md" in capsys.readouterr().out


def test_a_terminal_gets_a_table_that_survives_any_label(tiny_npz: Path) -> None:
    console = Console(force_terminal=True, width=100, record=True)
    watch = watcher_for(console)
    assert isinstance(watch, StudyTable)
    planned = plan(tiny_npz, "  '[red]x[/nothing]': {optim.lr: 0.01}\n")
    watch.planned(planned.cells, [])
    watch.started(planned.cells[2])
    watch.progressed(planned.cells[2], "step [b]1")
    console.print(watch._picture())
    watch.ended(planned.cells[2], "broke")
    watch.close()
    shown = console.export_text()
    assert "[red]x[/nothing]" in shown
    assert "step [b]1" in shown
    assert "failed: broke" in shown


def test_plain_lines_repeat_nothing_and_come_once_a_minute(tiny_npz: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    console, clock = Console(record=True, width=200), [0.0]
    monkeypatch.setattr("longtail.study.watching.time.monotonic", lambda: clock[0])
    watch = watcher_for(console)
    planned = plan(tiny_npz)
    watch.planned(planned.cells, planned.todo)
    watch.started(planned.cells[0])
    for clock[0], text in (
        (30.0, "epoch 1"),
        (61.0, "epoch 1"),
        (150.0, "epoch 1"),
        (151.0, "epoch 2"),
        (211.0, "epoch 3"),
    ):
        watch.progressed(planned.cells[0], text)
    assert [line.rpartition(": ")[2] for line in console.export_text().splitlines()[2:]] == ["epoch 1", "epoch 2"]


# Several at a time ----------------------------------------------------------------------------------------------------


def test_two_at_a_time_make_the_same_tables(tiny_npz: Path, whole: Path) -> None:
    """The first two runs are there already; each of the others is a process that loads PyTorch."""
    for name in ("ce-s0", "la-s0"):
        shutil.copytree(whole / name, Path("out") / name)
    assert run(plan(tiny_npz), jobs=2) == ["ce-s1", "la-s1"]
    assert tables() == tables(whole)


@pytest.mark.slow
def test_a_child_that_fails_is_told_with_its_message_and_code(copy: Path, tiny_npz: Path) -> None:
    more = "  bad: {optim.lr: 1.0e+30}\n  next: {init: 'row:bad'}\n"
    shutil.rmtree(copy / "la-s1")
    planned = plan(tiny_npz, more)
    planned.todo = [cell for cell in planned.todo if cell.seed == 0]
    with pytest.raises(CellsFailedError) as caught:
        run_study(planned, Watch(), jobs=2)
    assert caught.value.exit_code == 5
    assert "bad, seed 0: The loss became" in caught.value.message
    assert "next, seed 0: it starts from bad, seed 0, which failed" in caught.value.message


@pytest.mark.slow
@pytest.mark.parametrize("jobs", ["1", "2"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_stopped_command_waits_for_its_runs_and_goes_on_later(
    tiny_npz: Path, whole: Path, jobs: str, number: int, code: int
) -> None:
    Path("study.yaml").write_text(STUDY.format(archive=tiny_npz, more=""))
    words = [sys.executable, "-m", "longtail", "study", "study.yaml", "--out", "out", "--jobs", jobs]
    slow = subprocess.Popen([*words, "optim.epochs=2000"])
    end = time.monotonic() + 120
    while not (Path("out/ce-s0/metrics.jsonl")).is_file() and time.monotonic() < end:
        time.sleep(0.1)
    slow.send_signal(number)
    assert slow.wait(timeout=120) == code
    assert RunDir("out/ce-s0").description()["status"] == "stopped"
    shutil.rmtree("out")
    assert subprocess.run(words, check=False, timeout=300).returncode == 0
    assert tables() == tables(whole)


@pytest.mark.parametrize("content", ['[{"acc": 1}]', '{"acc":', "7"])
def test_results_of_another_program_beside_the_study_are_passed_over(tiny_npz: Path, content: str) -> None:
    other = Path("results/mine/run1")
    other.mkdir(parents=True)
    (other / "results.json").write_text(content)
    (other / "predictions.csv").write_text("a,b\n")
    assert {cell.status for cell in plan(tiny_npz).cells} == {"missing"}
