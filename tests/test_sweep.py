"""A search of settings: chosen on val alone, the same trials whenever it is cut, refused with line and key."""

from __future__ import annotations

import csv
import io
import json
import re
import shlex
import shutil
import signal
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from longtail.cli import main
from longtail.config import NUMBERS_VERSION
from longtail.errors import ConfigError, DataError, DivergedError, ResourceError, RunError, StoppedError
from longtail.layers import parse_assignments
from longtail.recipes import load_config
from longtail.runs.rundir import RunDir
from longtail.study import CellsFailedError, journal, running
from longtail.study.cells import Cell
from longtail.study.journal import JOURNAL, Drawn, Journal
from longtail.study.running import Failure
from longtail.study.search_file import Search, has_search, read_search
from longtail.study.search_plan import SearchPlan
from longtail.study.space import Choice, Range
from longtail.study.sweep import on_val, plan_search, run_search
from longtail.study.sweep_tables import best_first, command
from longtail.study.sweep_watching import SearchLines, SearchTable, search_watcher_for
from longtail.study.watching import CellListener
from tiny import KilledError, files_of, write_npz

pytest.importorskip("optuna", reason="a search needs Optuna: pip install 'longtail[sweep]'")

SEARCH = """name: tiny
base: npz/logit-adjustment
seeds: [100, 101]
settings:
  data: {{path: {archive}, groups: [8, 3]}}
  model.backbone: resnet8
  optim: {{epochs: 2, batch: 8}}
  run: {{compile: false, threads: 1}}
search:
  trials: {trials}
  metric: top1
  space:
    optim.lr: {{low: 1.0e-3, high: 0.1, log: true}}
    method.tau: {{low: 0.5, high: 1.5, step: 0.25}}
"""
CIFAR = """name: a
base: cifar100/concutmix
seeds: [0]
settings: {data: {path: cifar, val: 5}}
search:
  trials: 3
  space:
"""


def only_a_page(out: Path) -> None:
    """In place of a report with its pictures, which take longer than these runs."""
    (out / "report.html").write_text("a page")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("longtail.api.write_report", only_a_page)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny images with a val split of their own."""
    return write_npz(tmp_path_factory.mktemp("data") / "val.npz", val=4)


class Watch(SearchLines):
    """Keeps which runs were started and what was said."""

    def __init__(self, planned: SearchPlan) -> None:
        super().__init__(Console(quiet=True), planned)
        self.order: list[str] = []
        self.said: list[str] = []

    def started(self, cell: Cell) -> None:
        super().started(cell)
        self.order.append(cell.folder.name)

    def say(self, line: str) -> None:
        self.said.append(line)


def plan(archive: Path, trials: int = 3, change: Callable[[str], str] = lambda text: text, **over: Any) -> SearchPlan:
    Path("study.yaml").write_text(change(SEARCH.format(archive=archive, trials=trials)))
    return plan_search("study.yaml", over, out=Path("out"))


def run(planned: SearchPlan, kind: type[Watch] = Watch, jobs: int = 1) -> list[str]:
    return watched(planned, kind, jobs).order


def watched(planned: SearchPlan, kind: type[Watch] = Watch, jobs: int = 1) -> Watch:
    watch = kind(planned)
    run_search(planned, watch, jobs)
    return watch


def tables(out: Path = Path("out")) -> dict[str, str]:
    return {name: (out / name).read_text() for name in ("search.md", "search.csv", "best.yaml")}


def rows(out: Path = Path("out")) -> list[dict[str, str]]:
    with (out / "search.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, archive: Path) -> Path:
    """The folder of a search of three trials that ran from beginning to end."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("longtail.api.write_report", only_a_page)
        order = run(plan(archive))
    assert order == [f"trial-{number}-s{seed}" for number in range(3) for seed in (100, 101)]
    return folder / "out"


@pytest.fixture
def copy(whole: Path) -> Path:
    shutil.copytree(whole, "out")
    return Path("out")


# Chosen on val --------------------------------------------------------------------------------------------------------


def test_a_trial_is_worth_the_mean_over_seeds_of_its_last_epoch_on_val(whole: Path) -> None:
    for row in rows(whole):
        values = []
        for seed in (100, 101):
            lines = (whole / f"trial-{row['trial']}-s{seed}" / "metrics.jsonl").read_text().splitlines()
            last = json.loads(lines[-1])
            assert (last["epoch"], last["evaluated_on"]) == (1, "val")
            values.append(last["top1"])
        assert float(row["val_top1"]) == pytest.approx(statistics.mean(values), abs=1e-6)
        assert [float(row[f"val_top1_seed_{seed}"]) for seed in (100, 101)] == pytest.approx(values, abs=1e-6)


def test_what_the_test_images_say_has_no_part_in_the_choice(archive: Path, whole: Path) -> None:
    """Every result on test is turned to nonsense as soon as a run is finished, before its trial is told."""

    class Blinded(Watch):
        def ended(self, cell: Cell, error: str | None) -> None:
            path = cell.folder / "results.json"
            path.write_text(json.dumps(dict.fromkeys(json.loads(path.read_text()), "nonsense")))
            for name in ("predictions.csv", "per_class.csv"):
                (cell.folder / name).unlink()
            super().ended(cell, error)

    run(plan(archive), Blinded)
    assert tables() == tables(whole)


def test_a_number_that_is_not_of_val_is_refused(copy: Path, archive: Path) -> None:
    planned = plan(archive)
    cell = planned.cells(planned.drawn[0])[0]
    path = cell.folder / "metrics.jsonl"
    text = path.read_text()
    assert on_val(cell, "top1") == json.loads(text.splitlines()[-1])["top1"]
    path.write_text(text.replace('"val"', '"test"'))
    with pytest.raises(RunError, match="no top-1 on val"):
        on_val(cell, "top1")
    path.write_text("")
    with pytest.raises(RunError, match="no top-1 on val"):
        on_val(cell, "top1")


def test_images_without_a_val_split_are_refused_by_the_data(tiny_npz: Path) -> None:
    with pytest.raises(DataError, match=r"chooses on val.*they would be test images") as caught:
        plan(tiny_npz)
    assert "data.val" in str(caught.value.hint)
    assert not Path("out").exists()
    assert plan(tiny_npz, data={"val": 1}).missing == 3


def test_a_group_without_classes_is_no_metric(archive: Path) -> None:
    def few(text: str) -> str:
        return text.replace("metric: top1", "metric: few").replace("[8, 3]", "[8, 0]")

    with pytest.raises(DataError, match="no class is few-shot"):
        plan(archive, change=few)


# Drawn by Optuna ------------------------------------------------------------------------------------------------------


def score(search: Search, drawn: Drawn) -> float:
    """In place of a training: best at lr 0.01 and tau 1."""
    values = search.drawn(drawn.parameters)
    return 1 - abs(values["optim.lr"] - 0.01) - abs(values["method.tau"] - 1)


def drawn_in(folder: Path, search: Search, trials: int, starts: int = 1) -> list[Mapping[str, Any]]:
    """The parameters of as many trials, of a search that is started anew every ``trials / starts`` trials."""
    folder.mkdir(exist_ok=True)
    for _ in range(starts):
        kept = Journal(folder, search)
        kept.open(None)
        for _ in range(trials // starts):
            one = kept.draw()
            if one.number % 5 == 4:
                kept.fail(one.number, "diverged")
            else:
                kept.finish(one.number, [score(search, one)])
    return [one.parameters for one in kept.trials()]


def test_trials_depend_on_the_file_and_not_on_where_it_was_cut(archive: Path) -> None:
    search = plan(archive, 24).search
    once = drawn_in(Path("once"), search, 24)
    assert drawn_in(Path("cut"), search, 24, starts=8) == once
    another = read_search_of(archive, "seed: 7\n  space:")
    assert drawn_in(Path("seed"), another, 24)[0] != once[0]


def read_search_of(archive: Path, instead_of_space: str) -> Search:
    return plan(archive, change=lambda text: text.replace("space:", instead_of_space)).search


def test_with_trials_to_go_by_better_settings_are_drawn(archive: Path) -> None:
    """Of five values of tau the best one is drawn twice as often as by chance, late in three searches."""
    best = []
    for seed in range(3):
        search = read_search_of(archive, f"seed: {seed}\n  space:")
        late = drawn_in(Path(f"journal-{seed}"), search, 60)[-20:]
        best += [search.drawn(parameters)["method.tau"] == 1.0 for parameters in late]
    assert statistics.mean(best) > 0.35


def test_trials_that_are_drawn_together_differ_and_depend_on_the_file_alone(archive: Path) -> None:
    search = plan(archive).search
    both = []
    for name in ("one", "two"):
        drawn_in(Path(name), search, 15)
        kept = Journal(Path(name), search)
        kept.open(None)
        both.append([dict(kept.draw().parameters) for _ in range(4)])
        assert [one.state for one in kept.trials()[15:]] == ["open"] * 4
    assert both[0] == both[1]
    assert len({json.dumps(one) for one in both[0]}) == 4


def test_a_drawn_value_is_of_the_range_in_six_digits_and_of_the_kind_of_the_setting() -> None:
    real = Range("optim.lr", 1, 0.01, 0.0512345678, log=True)
    assert real.value(0.0123456789) == 0.0123457
    assert real.value(0.0512345678) == 0.0512345678, "rounding does not leave the range"
    assert Range("optim.lr", 1, 0.0, 1.0, step=0.1).value(0.1 + 0.2) == 0.3
    whole = Range("method.dim", 1, 32.0, 128.0, whole=True)
    assert json.dumps(whole.value(33)) == "33"
    assert json.dumps(Range("optim.warmup", 1, 0.0, 1.0).value(1)) == "1.0", "1 would be an epoch and not the whole run"
    assert [Choice("a.b", 1, ("1", "true", "[1, 2]")).value(text) for text in ("1", "true")] == [1, True]


# Killed, stopped, run again -------------------------------------------------------------------------------------------


def test_run_again_it_does_nothing_and_leaves_every_file_as_it_is(copy: Path, archive: Path) -> None:
    before = files_of(copy)
    planned = plan(archive)
    assert (planned.open, planned.missing, planned.images) == ([], 0, None)
    assert run(planned) == []
    assert files_of(copy) == before


def test_more_trials_go_on_from_those_that_are_there(copy: Path, archive: Path) -> None:
    assert run(plan(archive, 4)) == ["trial-3-s100", "trial-3-s101"]
    assert len(rows()) == 4


@pytest.mark.parametrize("number", [None, signal.SIGTERM])
def test_cut_within_a_run_and_started_again_it_ends_with_the_same_tables(
    archive: Path, whole: Path, number: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Cutting(CellListener):
        def stepped(self, step: int, logs: Any, images_per_second: float) -> None:
            if (self.cell.folder.name, step) == ("trial-1-s100", 4):
                if number is None:
                    raise KilledError
                signal.raise_signal(number)

    with monkeypatch.context() as patch:
        patch.setattr(running, "CellListener", Cutting)
        if number is None:  # nothing of ours is written after a kill
            patch.setattr(SearchPlan, "write_tables", lambda self: None)
        with pytest.raises(KilledError if number is None else StoppedError):
            run(plan(archive))
    assert (Path("out") / "search.md").is_file() == (number is not None)
    planned = plan(archive)
    assert [one.state for one in planned.drawn] == ["finished", "open"]
    assert run(planned) == ["trial-1-s100", "trial-1-s101", "trial-2-s100", "trial-2-s101"]
    assert "resumed_with" in RunDir("out/trial-1-s100").description(), "it went on with the run"
    assert tables() == tables(whole)


def test_killed_between_a_run_and_its_number_nothing_is_trained_again(
    archive: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*given: Any) -> None:
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "finish", killed)
        with pytest.raises(KilledError):
            run(plan(archive))
    assert run(plan(archive))[0] == "trial-1-s100"
    assert tables() == tables(whole)


def test_a_signal_between_two_runs_ends_the_search_with_its_tables(archive: Path) -> None:
    class Signaled(Watch):
        def compared(self, trial: Drawn) -> None:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(StoppedError) as caught:
        run(plan(archive), Signaled)
    assert caught.value.exit_code == 75
    assert len(rows()) == 1
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_journal_whose_last_line_was_cut_is_read_up_to_it(copy: Path, archive: Path) -> None:
    with (copy / JOURNAL).open("ab") as file:
        file.write(b'{"op_code": 6, "wor')
    assert len(plan(archive).drawn) == 3
    assert run(plan(archive, 4)) == ["trial-3-s100", "trial-3-s101"]
    assert len(plan(archive, 4).drawn) == 4


def test_a_damaged_journal_is_told_by_its_name(copy: Path, archive: Path) -> None:
    text = (copy / JOURNAL).read_text()
    (copy / JOURNAL).write_text("nonsense\n" + text)
    with pytest.raises(RunError, match=f"{JOURNAL} cannot be read"):
        plan(archive)


def test_two_at_once_in_a_folder_are_refused(archive: Path) -> None:
    other = RunDir("out")
    Path("out").mkdir()
    other.lock()
    with pytest.raises(RunError, match="Another process"):
        run(plan(archive))
    other.unlock()


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("high: 0.1", "high: 0.2", "differs in: space."),
        ("metric: top1", "metric: balanced_accuracy", "differs in: metric."),
        ("[100, 101]", "[101]", "differs in: seeds."),
        ("epochs: 2", "epochs: 3", "differs in: settings."),
        ("  trials", "  seed: 3\n  trials", "differs in: search.seed."),
        ("name: tiny", "name: other", "is of the search 'tiny'"),
    ],
)
def test_a_folder_of_another_search_is_refused(copy: Path, archive: Path, old: str, new: str, said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)) as caught:
        plan(archive, change=lambda text: text.replace(old, new, 1))
    assert "--out" in str(caught.value.hint)


def test_a_folder_of_other_images_or_another_version_of_the_numbers_is_refused(
    copy: Path, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = write_npz(Path("other.npz").absolute(), val=4, seed=1)
    with pytest.raises(ConfigError, match="images"):
        run(plan(other, 4))
    monkeypatch.setattr(journal, "NUMBERS_VERSION", NUMBERS_VERSION + 1)
    with pytest.raises(ConfigError, match="version of the numbers"):
        plan(archive)


# What fails -----------------------------------------------------------------------------------------------------------


def diverging(text: str) -> str:
    return text.replace("{low: 1.0e-3, high: 0.1, log: true}", "[0.05, 1.0e+30]")


def test_a_trial_that_diverges_has_failed_and_the_others_go_on(archive: Path) -> None:
    order = run(plan(archive, 6, diverging))
    failed = [row for row in rows() if row["state"] == "failed"]
    assert 0 < len(failed) < 6
    assert rows()[-len(failed) :] == failed, "failed trials stand last"
    assert {row["optim.lr"] for row in failed} == {"1e+30"}
    first = failed[0]["trial"]
    assert f"trial-{first}-s100" in order
    assert f"trial-{first}-s101" not in order, "a trial that failed is not trained with its other seeds"
    page = Path("out/search.md").read_text()
    assert f"Failed: trial {first}: seed 100: The loss became" in page
    assert run(plan(archive, 6, diverging)) == [], "it is not tried again"


def test_where_every_trial_fails_the_search_does(archive: Path) -> None:
    with pytest.raises(DivergedError, match=r"None of 2 trials ended well. trial 1: seed 100") as caught:
        run(plan(archive, 2, lambda text: diverging(text).replace("0.05, ", "1.0e+29, ")))
    assert caught.value.exit_code == 5
    assert not Path("out/best.yaml").exists()


def test_what_is_no_fault_of_the_settings_ends_the_search_and_the_trial_stays_open(
    archive: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusing(config: Any, **more: Any) -> None:
        raise ResourceError("The disk is full.")

    with monkeypatch.context() as patch:
        patch.setattr(running, "run_config", refusing)
        with pytest.raises(CellsFailedError) as caught:
            run(plan(archive))
    assert caught.value.exit_code == 6
    assert [one.state for one in plan(archive).drawn] == ["open"]
    run(plan(archive))
    assert tables() == tables(whole)


def test_a_network_that_does_not_fit_into_memory_is_a_fault_of_the_settings(
    archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "_train_here", lambda cell, watch: Failure(cell, 6, "Out of memory."))
    with pytest.raises(DivergedError, match="Out of memory"):
        run(plan(archive))


def test_settings_that_do_not_go_together_fail_their_trial(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: SearchPlan, trial: Drawn) -> list[Cell]:
        if trial.number == 1:
            raise ConfigError("These two exclude each other.")
        return of_trial(self, trial)

    of_trial = SearchPlan.cells
    monkeypatch.setattr(SearchPlan, "cells", refuse)
    assert [name for name in run(plan(archive)) if "trial-1" in name] == []
    assert "Failed: trial 1: These two exclude each other." in Path("out/search.md").read_text()


def test_settings_that_were_tried_are_not_trained_again(archive: Path) -> None:
    def few(text: str) -> str:
        start = text.index("    optim.lr")
        return text[:start] + "    method.tau: [0.5, 1.0]\n"

    watch = watched(plan(archive, 6, few))
    assert len(watch.order) == 2 * 2
    assert len(rows()) == 6
    numbers = {row["method.tau"]: row["val_top1"] for row in rows()}
    assert all(row["val_top1"] == numbers[row["method.tau"]] for row in rows())
    assert any("has the settings of trial 0" in line for line in watch.said)


# Several at a time ----------------------------------------------------------------------------------------------------


def test_several_jobs_train_the_seeds_of_a_trial_together_and_come_to_the_same(
    archive: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts: list[list[str]] = []

    def one_by_one(cells: Any, finder: Any, watch: Any, out: Path, jobs: int) -> list[Failure]:
        assert jobs in (2, 4)
        parts.append([cell.folder.name for cell in cells])
        return running._one_by_one(cells, finder, watch)  # processes of their own load PyTorch each

    monkeypatch.setattr("longtail.study.sweep.run_cells", one_by_one)
    run(plan(archive), jobs=2)
    assert parts[0] == ["trial-0-s100", "trial-0-s101"]
    assert tables() == tables(whole)
    shutil.rmtree("out")
    parts.clear()
    run(plan(archive), jobs=4)
    assert [len(part) for part in parts] == [4, 2], "two trials at a time, each with two seeds"


@pytest.mark.slow
def test_processes_of_their_own_come_to_the_same_tables(archive: Path, whole: Path) -> None:
    run(plan(archive), jobs=2)
    assert tables() == tables(whole)
    assert (Path("out/logs/trial-0-s100.log")).is_file()


# The tables -----------------------------------------------------------------------------------------------------------


def test_trials_are_ordered_from_the_best_down_and_failed_ones_last() -> None:
    drawn = [
        Drawn(0, {}, "finished", (0.2, 0.4)),
        Drawn(1, {}, "failed"),
        Drawn(2, {}, "finished", (0.5, 0.3)),
        Drawn(3, {}, "open"),
        Drawn(4, {}, "finished", (0.4, 0.4)),
    ]
    assert [one.number for one in best_first(drawn)] == [2, 4, 0, 1]


def test_the_page_has_the_best_first_its_settings_and_the_command_that_trains_them(whole: Path, archive: Path) -> None:
    page = (whole / "search.md").read_text()
    best = rows(whole)[0]
    assert [float(row["val_top1"]) for row in rows(whole)] == sorted(
        (float(row["val_top1"]) for row in rows(whole)), reverse=True
    )
    first = page.splitlines()[4]
    assert first.startswith(f"| {best['trial']} | {100 * float(best['val_top1']):.2f} ± ")
    assert "Chosen on val: the highest top-1 of the last epoch among 3 trials with seeds 100, 101." in page
    assert "No test image had a part in this." in page
    fragment = yaml.safe_load(page.split("```yaml\n")[1].split("```")[0])
    assert fragment == {"optim": {"lr": float(best["optim.lr"])}, "method": {"tau": float(best["method.tau"])}}
    words = shlex.split(page.split("```sh\n")[1].split("\n```")[0])
    assert words[:3] == ["longtail", "train", "npz/logit-adjustment"]
    stored = load_config(whole / f"trial-{best['trial']}-s100" / "config.yaml")
    trained = load_config(words[2], parse_assignments(words[3:]))
    assert trained.seed == 0
    assert trained.model_copy(update={"seed": 100}).key() == stored.key()
    assert load_config(whole / "best.yaml", {"seed": 100}).key() == stored.key()
    assert (whole / "best.yaml").read_text().startswith("# Chosen on val: ")


def test_the_best_settings_name_the_images_so_that_any_folder_can_use_them(archive: Path) -> None:
    shutil.copy(archive, "here.npz")
    run(plan(Path("here.npz"), trials=1))
    there = str(Path("here.npz").absolute())
    assert yaml.safe_load(Path("out/best.yaml").read_text())["data"]["path"] == there
    assert f"data.path={there} " in Path("out/search.md").read_text()


def test_the_command_takes_a_seed_that_the_search_did_not_use(copy: Path, archive: Path) -> None:
    planned = plan(archive)
    assert planned.best is not None
    assert command(planned.search, planned.best).endswith(" seed=0")
    text = Path("study.yaml").read_text().replace("[100, 101]", "[1, 0]")
    Path("study.yaml").write_text(text)
    assert command(read_search("study.yaml"), planned.best).endswith(" seed=2")


# What is seen ---------------------------------------------------------------------------------------------------------


def test_progress_tells_the_numbers_on_val(archive: Path) -> None:
    watch = watched(plan(archive, 2))
    assert watch.said[0] == "2 trials: 0 ended, 2 to be run; chosen by top-1 on val"
    assert watch.said[1].startswith("[1/2] trial 0, seed 100: starts in out")
    assert re.match(r"\[1/2\] trial 0, seed 100: epoch 1: top-1 .* on val", watch.said[2])
    mean = float(next(row for row in rows() if row["trial"] == "0")["val_top1"])
    assert watch.said[5] == f"trial 0: top-1 {100 * mean:.2f} % on val; best so far {100 * mean:.2f} % (trial 0)"


def test_on_a_terminal_the_best_trials_are_a_table(copy: Path, archive: Path) -> None:
    console = Console(force_terminal=True, width=120, record=True, file=io.StringIO())
    planned = plan(archive)
    watch = search_watcher_for(console, planned)
    assert isinstance(watch, SearchTable)
    watch.begin()
    console.print(watch._picture())
    shown = console.export_text()
    assert "3 of 3 trials ended" in shown
    assert rows()[0]["optim.lr"] in shown
    assert type(search_watcher_for(Console(file=io.StringIO()), planned)) is SearchLines


# The file -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "line", "said", "hint"),
    [
        ("    method.topkk: [3, 5]\n", 8, "Unknown key 'method.topkk'", "method.topk"),
        ("    method.topk: [3, many]\n", 8, "search with method.topk=many: method.topk", ""),
        ("    method.topk: {low: 3, high: 9}\n", 8, "method.topk", ""),
        ("    optim.lr: {low: -1, high: 0.5}\n", 8, "search: optim.lr", ""),
        ("    optim.lr: {low: 0.1}\n", 8, "the range has no 'high'", "Example"),
        ("    optim.lr:\n      low: 0.1\n      hight: 1\n", 10, "Unknown key 'hight'", "'high'"),
        ("    optim.lr: {low: 0.5, high: 0.1}\n", 8, "must be below", ""),
        ("    optim.lr: {low: 0, high: 0.1, log: true}\n", 8, "above 0 on a log scale", ""),
        ("    optim.lr: {low: 0.1, high: 0.2, log: true, step: 0.1}\n", 8, "exclude each other", ""),
        ("    optim.lr: {low: 0.1, high: 0.2, step: 0.2}\n", 8, "step=0.2: must be|step=0.2 must be", ""),
        ("    optim.lr: {low: 0.1, high: .inf}\n", 8, "high=inf: must be a number", ""),
        ("    optim.lr: {low: 0.1, high: 1, log: 1}\n", 8, "log=1: must be true or false", ""),
        ("    method.dim: {low: 32.5, high: 128, int: true}\n", 8, "must be a whole number", ""),
        ("    optim.lr: 0.1\n", 8, "must be a range or a list", "Example"),
        ("    optim.lr: [0.1]\n", 8, "two choices or more", ""),
        ("    optim.lr: [0.1, 0.1]\n", 8, "stands twice", ""),
        ("    optim.lr: [2020-01-01, 0.1]\n", 8, "a choice must be", ""),
        ("    optim.lr: [0.1, 0.2]\n    optim: {lr: [1, 2]}\n", 9, "'optim.lr' stands twice", ""),
        ("    seed: [1, 2]\n", 8, "'seed' cannot be searched", ""),
        ("    data.val: [1, 2]\n", 8, "'data.val' cannot be searched: it would change the val images", "settings"),
        ("    run: {threads: [1, 2]}\n", 8, "'run.threads' cannot be searched", ""),
    ],
)
def test_a_wrong_space_is_refused_with_line_and_key(text: str, line: int, said: str, hint: str) -> None:
    Path("study.yaml").write_text(CIFAR + text)
    with pytest.raises(ConfigError, match=rf"study\.yaml:{line}: .*({said})") as caught:
        read_search("study.yaml")
    assert hint in str(caught.value.hint)


SPACE = "    method.tau: [1, 2]\n"


@pytest.mark.parametrize(
    ("old", "new", "line", "said", "hint"),
    [
        (", val: 5", "", 5, "A search chooses on val, and cifar100 has no val images of its own", "data.val: 5"),
        ("val: 5", "val: 0", 5, "A search chooses on val", "data.val: 5"),
        ("trials: 3", "trials: 0", 6, "trials=0: must be an integer from 1", ""),
        ("  trials: 3\n", "", 5, "'search' has no 'trials'", "trials: 20"),
        ("  trials", "  seed: x\n  trials", 6, "seed='x'", ""),
        ("  trials", "  metric: few_shot\n  trials", 6, "metric='few_shot'", "'few'"),
        ("  trials", "  trails: 3\n  trials", 6, "Unknown key 'trails' of search", "'trials'"),
        ("search:", "rows: {a: {}}\nsearch:", 5, "Unknown key 'rows'", "settings"),
        ("base: cifar100/concutmix\n", "", 1, "The search has no 'base'", ""),
        ("cifar100/concutmix", "cifar100/concutmx", 2, "Unknown method 'concutmx'", "concutmix"),
        ("val: 5}", "val: 5}, init: 'row:a'", 4, "there is no row 'a'", ""),
    ],
)
def test_a_wrong_search_is_refused_with_line_and_key(old: str, new: str, line: int, said: str, hint: str) -> None:
    text = CIFAR + SPACE
    assert old in text
    Path("study.yaml").write_text(text.replace(old, new, 1))
    with pytest.raises(ConfigError, match=rf"study\.yaml:{line}: .*{re.escape(said)}") as caught:
        read_search("study.yaml")
    assert hint in str(caught.value.hint)


def test_a_file_that_may_bring_its_own_val_split_is_left_to_the_data() -> None:
    Path("study.yaml").write_text(CIFAR.replace("path: cifar, val: 5", "path: cifar.npz") + SPACE)
    assert read_search("study.yaml").first.data.val == 0
    Path("study.yaml").write_text(
        CIFAR.replace("{data: {path: cifar, val: 5}}", "{}").replace("cifar100", "scenes") + SPACE
    )
    assert plan_search("study.yaml").images is not None, "scenes have one"


def test_what_is_searched_cannot_be_given_on_the_command_line_too() -> None:
    Path("study.yaml").write_text(CIFAR + SPACE)
    with pytest.raises(ConfigError, match=r":8: 'method\.tau' is searched"):
        read_search("study.yaml", {"method": {"tau": 1.0}})


def test_a_space_may_be_nested_and_has_its_axes_in_order() -> None:
    text = "    method:\n      topk: [3, 5]\n      dim: {low: 32, high: 100, step: 32, int: true}\n"
    text += "    optim.lr: [1, 0.1]\n"
    Path("study.yaml").write_text(CIFAR + text)
    search = read_search("study.yaml")
    assert [axis.key for axis in search.space] == ["method.topk", "method.dim", "optim.lr"]
    assert search.space[1] == Range("method.dim", 10, 32.0, 96.0, 32.0, whole=True)
    assert (search.metric, search.seed, search.trials) == ("balanced_accuracy", 0, 3)
    assert has_search("study.yaml")


# The command ----------------------------------------------------------------------------------------------------------


def longtail(*words: str) -> int:
    with pytest.raises(SystemExit) as stop:
        main(list(words))
    return int(stop.value.code or 0)


def test_the_command_tells_the_best_settings_and_where_the_tables_are(
    copy: Path, archive: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan(archive)
    assert longtail("study", "study.yaml", "--out", "out") == 0
    printed = capsys.readouterr().out
    assert f"best, chosen on val: trial {rows()[0]['trial']}, top1 " in printed
    assert "longtail train npz/logit-adjustment" in printed
    assert "out/search.md" in printed


def test_a_dry_run_says_what_there_is_and_writes_nothing(
    copy: Path, archive: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan(archive, 5)
    before = files_of(copy)
    assert longtail("study", "study.yaml", "--out", "out", "--dry-run") == 0
    printed = capsys.readouterr().out
    assert re.search(r"trial 0: finished \(top1 0\.\d+ on val\): optim\.lr=", printed)
    assert "5 trials, 2 to be run, into out" in printed
    assert files_of(copy) == before


def test_only_is_refused_for_a_search(archive: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan(archive)
    assert longtail("study", "study.yaml", "--only", "a") == 2
    assert "a search has no rows" in capsys.readouterr().err


def test_without_optuna_a_search_says_how_to_get_it(
    archive: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plan(archive)
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    assert longtail("study", "study.yaml", "--out", "elsewhere") == 2
    assert "pip install 'longtail[sweep]'" in capsys.readouterr().err
    assert not Path("elsewhere").exists()
