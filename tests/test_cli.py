"""The command: what it prints, how it refuses, and with which exit codes."""

import io
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from rich.console import Console

import longtail
from longtail.api import Run
from longtail.cli import main
from longtail.config import Config, known_keys
from longtail.errors import StoppedError
from longtail.methods import METHODS
from longtail.recipes import load_config, recipe_names
from longtail.runs.rundir import RunDir
from longtail.training.display import LiveTable, clock, listener_for, percent
from longtail.training.loop import train
from processes import Launcher
from tiny import At, assignments, files_of, outcome, settings_of, tiny_config, write_npz


@dataclass(frozen=True)
class Ended:
    """What a command printed and with which code it ended."""

    code: int
    out: str
    err: str


Command = Callable[..., Ended]


@pytest.fixture
def longtail_command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """Run the command in this process."""

    def command(*words: str) -> Ended:
        monkeypatch.setattr("sys.argv", ["longtail", *words])
        with pytest.raises(SystemExit) as stop:
            main()
        printed = capsys.readouterr()
        code = stop.value.code
        return Ended(code if isinstance(code, int) else 0, printed.out, printed.err)

    return command


def words_for(method: str, archive: Path, *more: str) -> list[str]:
    return ["train", f"npz/{method}", f"data.path={archive}", *assignments(settings_of(method)), *more]


def assert_refused(ended: Ended, code: int, *words: str) -> None:
    """One readable block on standard error, and nothing else."""
    assert ended.code == code, ended
    assert ended.out == ""
    assert ended.err.startswith("error: ")
    assert ended.err.count("error:") == 1
    assert "Traceback" not in ended.err
    assert "bug" not in ended.err
    assert len(ended.err.strip().splitlines()) <= 4
    for word in words:
        assert word in ended.err


# Training -------------------------------------------------------------------------------------------------------------


def test_a_run_from_the_command_line_says_what_happens_and_where_the_report_is(
    longtail_command: Command, tiny_npz: Path, tmp_path: Path
) -> None:
    ended = longtail_command(*words_for("ce", tiny_npz, "--out", str(tmp_path / "run")))
    assert ended.code == 0
    assert ended.err == ""
    lines = ended.out.splitlines()
    assert lines[0] == "npz/ce, seed 0: 21 training images (9 to 2 a class), 12 test images"
    assert "2 epochs, 6 steps, into " in ended.out
    assert [line.split()[1] for line in lines if line.startswith("epoch ") and "top-1" in line] == ["0", "1"]
    assert "last (epoch 1)" in ended.out
    assert "selected on test" in ended.out
    assert lines[-1] == f"report: {tmp_path / 'run' / 'report.html'}"
    assert (tmp_path / "run" / "report.html").is_file()
    described = RunDir(tmp_path / "run").description()
    assert described["command"].startswith("longtail train npz/ce ")
    train(tiny_config("ce", tiny_npz, tmp_path / "same"))
    assert outcome(tmp_path / "run") == outcome(tmp_path / "same")


@pytest.fixture
def without_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than these runs."""
    monkeypatch.setattr("longtail.api.write_report", lambda out: (out / "report.html").write_text("a page"))


@pytest.mark.usefixtures("without_report")
def test_a_run_is_repeated_from_its_config_file_into_another_folder(
    longtail_command: Command, finished_run: Run, tmp_path: Path
) -> None:
    config = str(finished_run.path / "config.yaml")
    for words in (["--out", str(tmp_path / "a")], [f"out={tmp_path / 'b'}"]):
        assert longtail_command("train", config, *words).code == 0
    assert outcome(tmp_path / "a") == outcome(tmp_path / "b") == outcome(finished_run.path)


@pytest.mark.usefixtures("without_report")
@pytest.mark.parametrize("name", ["2024", "a b", "null", "1e3", "x: y", "[a", "ä#", "yes", "-x"])
def test_the_folder_is_called_what_was_asked_for(
    longtail_command: Command, tiny_npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """--out is a word, not YAML."""
    monkeypatch.chdir(tmp_path)
    assert longtail_command(*words_for("ce", tiny_npz, "optim.epochs=1", f"--out={name}")).code == 0
    assert (tmp_path / name / "results.json").is_file()


@pytest.mark.usefixtures("without_report")
def test_without_a_folder_the_run_goes_where_data_method_and_seed_say(
    longtail_command: Command, tiny_npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert longtail_command(*words_for("ce", tiny_npz, "seed=3", "optim.epochs=1")).code == 0
    assert (tmp_path / "runs" / "npz-ce-s3" / "report.html").is_file()


@pytest.mark.usefixtures("without_report")
def test_resuming_a_finished_run_prints_its_result(longtail_command: Command, tiny_npz: Path, tmp_path: Path) -> None:
    words = words_for("ce", tiny_npz, "--out", str(tmp_path / "run"), "--resume")
    assert longtail_command(*words).code == 0
    before = files_of(tmp_path / "run")
    ended = longtail_command(*words)
    assert ended.code == 0
    top1 = json.loads((tmp_path / "run" / "results.json").read_text())["last"]["top1"]
    assert f"top-1 {100 * top1:.2f} %" in ended.out
    assert "is finished" in ended.out
    assert files_of(tmp_path / "run") == before


@pytest.mark.usefixtures("without_report")
def test_a_resumed_run_says_where_it_goes_on(longtail_command: Command, tiny_npz: Path, tmp_path: Path) -> None:
    config = tiny_config("ce", tiny_npz, tmp_path / "run")
    with pytest.raises(StoppedError):
        train(config, listener=At(5))
    path = tmp_path / "run" / "checkpoints" / "step-5.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    ended = longtail_command(*words_for("ce", tiny_npz, "--out", str(tmp_path / "run"), "--resume"))
    assert ended.code == 0
    assert "resumed at step 3" in ended.out
    assert "step-5.safetensors" in ended.out
    assert "passed over" in ended.out


@pytest.mark.usefixtures("without_report")
def test_overwriting_replaces_a_run(longtail_command: Command, tiny_npz: Path, tmp_path: Path) -> None:
    for seed in (0, 1):
        words = words_for("ce", tiny_npz, f"seed={seed}", "--out", str(tmp_path / "run"), "--overwrite")
        assert longtail_command(*words).code == 0
    assert json.loads((tmp_path / "run" / "results.json").read_text())["seed"] == 1


def test_a_dry_run_prints_a_configuration_that_can_be_trained_and_writes_nothing(
    longtail_command: Command, tiny_npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ended = longtail_command("train", "cifar100/concutmix", f"data.path={tiny_npz}", "optim.epochs=20", "--dry-run")
    assert (ended.code, ended.err) == (0, "")
    assert Config.model_validate(yaml.safe_load(ended.out)) == load_config(
        "cifar100/concutmix", ["optim.epochs=20", f"data.path={tiny_npz}"]
    )
    assert "milestones [16, 18]" in ended.out
    assert list(tmp_path.iterdir()) == []


# Refusals -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "replaced", "words"),
    [
        (2, {"recipe": "npz/concutmx"}, ["Unknown method 'concutmx'", "concutmix"]),
        (2, {"recipe": "npzz/ce"}, ["Unknown data set 'npzz'", "npz"]),
        (2, {"recipe": "ce"}, ["'ce' is a method; a recipe is DATASET/METHOD"]),
        (2, {"recipe": "absent.yaml"}, ["absent.yaml", "cannot be read"]),
        (2, {"more": "optim.epoch=3"}, ["Unknown key 'optim.epoch'", "optim.epochs"]),
        (2, {"more": "optim.epochs=0"}, ["optim.epochs=0", "greater than or equal to 1"]),
        (2, {"more": "optim.epochs=ten"}, ["optim.epochs='ten'"]),
        (2, {"more": "data.imbalance=0.5"}, ["data.imbalance=0.5", "greater than or equal to 1"]),
        (2, {"more": "model.backbone=resnet33"}, ["Unknown backbone 'resnet33'", "resnet32"]),
        (2, {"more": "views.contrastive=none"}, ["Unknown view 'none'"]),
        (2, {"more": "run.device=abacus"}, ["run.device=abacus"]),
        (2, {"more": "seed"}, ["'seed' is not of the form key=value"]),
        (2, {"data": ""}, ["data.path"]),
        (3, {"data": "absent.npz"}, ["absent.npz", "Check data.path"]),
        (3, {"data": "."}, ["is a folder"]),
        (3, {"data": "text.npz"}, ["text.npz"]),
        (3, {"data": "cut.npz"}, ["cut.npz"]),
        (3, {"data": "no_train.npz"}, ["train_images"]),
        (3, {"data": "pickle.npz"}, ["pickle"]),
        (3, {"data": "one_class.npz"}, ["only one class"]),
        (3, {"data": "gap.npz"}, ["without training images", "data.allow_empty"]),
        (3, {"data": "wide.npz"}, ["8 x 10"]),
        (3, {"data": "labels.npz"}, ["train_labels"]),
        (3, {"more": "data.imbalance=1000"}, ["data.imbalance"]),
        (3, {"more": "data.val=2"}, ["Too few images for validation"]),
        (4, {"more": "init=absent.safetensors"}, ["absent.safetensors"]),
    ],
)
def test_a_refused_start_is_one_readable_block_with_its_code_and_leaves_nothing(
    longtail_command: Command,
    tiny_npz: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    code: int,
    replaced: dict[str, str],
    words: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.npz").write_text("no archive")
    (tmp_path / "cut.npz").write_bytes(tiny_npz.read_bytes()[:-200])
    np.savez(tmp_path / "no_train.npz", test_images=np.zeros((2, 8, 8), np.uint8), test_labels=[0, 1])
    np.savez(tmp_path / "pickle.npz", train_images=np.array([{}]), train_labels=[0], allow_pickle=True)
    write_npz(tmp_path / "one_class.npz", (9,))
    write_npz(tmp_path / "gap.npz", (9, 0, 3))
    write_npz(tmp_path / "wide.npz", shape=(8, 10, 3))
    write_npz(tmp_path / "labels.npz", train_labels=np.full(21, -1))
    before = files_of(tmp_path)
    given = [replaced.get("recipe", "npz/concutmix"), f"data.path={replaced.get('data', tiny_npz)}"]
    more = [replaced["more"]] if "more" in replaced else []
    ended = longtail_command("train", *given, *assignments(settings_of("concutmix")), *more, "--out", "runs/run")
    assert_refused(ended, code, *words)
    assert files_of(tmp_path) == before
    assert not (tmp_path / "runs").exists()


def test_an_existing_folder_is_refused_with_the_ways_out(
    longtail_command: Command, finished_run: Run, tmp_path: Path
) -> None:
    before = files_of(finished_run.path)
    ended = longtail_command("train", str(finished_run.path / "config.yaml"))
    assert_refused(ended, 2, "exists already", "--resume", "--overwrite")
    (tmp_path / "thesis.tex").write_text("years of work")
    for flags in ([], ["--resume"], ["--overwrite"]):
        config = str(finished_run.path / "config.yaml")
        assert_refused(longtail_command("train", config, "--out", str(tmp_path), *flags), 2, "not a run folder")
    assert files_of(tmp_path) == {"thesis.tex": b"years of work"}
    assert files_of(finished_run.path) == before


def test_resuming_with_other_settings_names_the_keys(longtail_command: Command, finished_run: Run) -> None:
    config = str(finished_run.path / "config.yaml")
    ended = longtail_command("train", config, "optim.epochs=3", "method.tau=2", "--resume")
    assert_refused(ended, 2, "optim.epochs (", "there, 3 here)", "method.tau", "other settings")


def test_resume_and_overwrite_exclude_each_other(longtail_command: Command, finished_run: Run) -> None:
    config = str(finished_run.path / "config.yaml")
    assert_refused(longtail_command("train", config, "--resume", "--overwrite"), 2, "exclude each other")
    assert (finished_run.path / "results.json").exists()


def test_a_run_that_diverges_ends_with_code_5(longtail_command: Command, tiny_npz: Path, tmp_path: Path) -> None:
    ended = longtail_command(*words_for("ce", tiny_npz, "optim.lr=1e30", "--out", str(tmp_path / "run")))
    assert ended.code == 5
    assert ended.err.startswith("error: The loss became")
    assert "optim.lr" in ended.err
    assert "Traceback" not in ended.err


def test_only_damaged_checkpoints_end_with_code_4_and_are_named(
    longtail_command: Command, tiny_npz: Path, tmp_path: Path
) -> None:
    with pytest.raises(StoppedError):
        train(tiny_config("ce", tiny_npz, tmp_path / "run"), listener=At(5))
    for path in (tmp_path / "run" / "checkpoints").glob("*.safetensors"):
        path.write_bytes(b"")
    ended = longtail_command(*words_for("ce", tiny_npz, "--out", str(tmp_path / "run"), "--resume"))
    assert_refused(ended, 4, "step-3.safetensors", "step-5.safetensors")


def test_a_full_disk_ends_with_code_6(
    longtail_command: Command, tiny_npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    ended = longtail_command(*words_for("ce", tiny_npz, "--out", str(tmp_path / "run")))
    assert_refused(ended, 6, "No space left on device", "--resume")


@pytest.mark.parametrize(("number", "code", "word"), [(signal.SIGTERM, 75, "SIGTERM"), (signal.SIGINT, 130, "Ctrl-C")])
def test_a_stop_before_training_ends_with_its_code(
    longtail_command: Command,
    tiny_npz: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    code: int,
    word: str,
) -> None:
    before = signal.getsignal(number)

    def interrupt(*given: Any) -> None:
        try:
            signal.raise_signal(number)
        except Exception:  # as around foreign decoders
            pytest.fail("a signal is no error")

    monkeypatch.setattr("longtail.training.setup.open_data", interrupt)
    ended = longtail_command(*words_for("ce", tiny_npz, "--out", str(tmp_path / "run")))
    assert_refused(ended, code, word, "nothing was lost")
    assert not (tmp_path / "run").exists()
    assert signal.getsignal(number) is before


@pytest.mark.slow
def test_sigterm_while_pytorch_is_imported_ends_with_code_75(tmp_path: Path) -> None:
    """By default the word is -15: before the command has read its own name, nobody can say more."""
    codes = []
    for delay in (1.0, 1.5, 2.0):
        words = [sys.executable, "-m", "longtail", "train", "scenes/ce", f"out={tmp_path / 'run'}"]
        with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as started:
            time.sleep(delay)
            started.terminate()
            codes.append(started.wait())
    assert set(codes) <= {75, -15}
    assert 75 in codes


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (OSError(28, "No space left on device", "/x/report.html"), "/x/report.html: No space left on device."),
        (OSError(30, "Read-only file system"), "Read-only file system."),
        (MemoryError(), "Out of memory."),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), "Out of memory."),
    ],
)
def test_a_disk_or_memory_that_gives_out_anywhere_ends_with_code_6(
    longtail_command: Command,
    tiny_npz: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: Exception,
    words: str,
) -> None:
    def fail(*given: Any) -> None:
        raise fault

    monkeypatch.setattr("longtail.training.setup.open_data", fail)
    ended = longtail_command(*words_for("ce", tiny_npz, "--out", str(tmp_path / "run")))
    assert_refused(ended, 6, words)


def test_a_bug_of_ours_says_so_and_shows_its_traceback_only_when_asked(
    longtail_command: Command, tiny_npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*given: Any) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr("longtail.training.setup.open_data", fail)
    words = words_for("ce", tiny_npz, "--out", str(tmp_path / "run"))
    ended = longtail_command(*words)
    assert ended.code == 1
    assert "bug of longtail: ZeroDivisionError: division by zero" in ended.err
    assert "--debug" in ended.err
    assert "Traceback" not in ended.err
    ended = longtail_command(*words, "--debug")
    assert ended.code == 1
    assert "Traceback" in ended.err


def test_debug_shows_the_traceback_of_a_refusal_too(longtail_command: Command) -> None:
    ended = longtail_command("train", "npz/cee", "--debug")
    assert ended.code == 2
    assert "Traceback" in ended.err


@pytest.mark.parametrize(
    "words", [["trian"], ["train", "npz/ce", "--ouut", "x"], ["eval"], ["report"], ["train", "npz/ce", "--out"]]
)
def test_a_command_line_that_cannot_be_parsed_ends_with_code_2(longtail_command: Command, words: list[str]) -> None:
    ended = longtail_command(*words)
    assert ended.code == 2
    assert "Error: " in ended.err
    assert "Traceback" not in ended.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--epochs", "3"], "optim.epochs=..."),
        (["--batch-size=3"], "optim.batch=..."),
        (["--frobnicate"], "optim.epochs=20"),
        (["--resum"], "--resume"),
    ],
)
def test_an_option_that_there_is_not_is_told_as_a_setting(
    longtail_command: Command, words: list[str], said: str
) -> None:
    ended = longtail_command("train", "scenes/ce", *words)
    assert (ended.code, said in ended.err) == (2, True)


def test_what_stands_in_place_of_a_recipe_is_told(
    longtail_command: Command, finished_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "My Photos").mkdir()
    (tmp_path / "table.csv").write_text("image,label\n")
    monkeypatch.chdir(tmp_path)
    for word, said in (
        ("concutmix", "'concutmix' is a method; a recipe is DATASET/METHOD."),
        ("folder", "'folder' is a data set; a recipe is DATASET/METHOD."),
        ("My Photos", "longtail train folder/ce 'data.path=My Photos'"),
        ("table.csv", "longtail train csv/ce data.path=table.csv"),
        (str(finished_run.path), f"longtail train {finished_run.path}/config.yaml --resume"),
        ("zzz", "longtail recipes lists them"),
    ):
        assert_refused(longtail_command("train", word), 2, said)


def test_a_place_without_a_run_names_the_runs_near_it(longtail_command: Command, finished_run: Run) -> None:
    folder = finished_run.path
    assert_refused(longtail_command("eval", str(folder.parent)), 4, f"e.g. {folder}")
    assert_refused(longtail_command("eval", f"{folder}x"), 4, f"Did you mean {folder}?")
    assert_refused(longtail_command("report", str(folder / "results.json")), 4, f"Give the folder: {folder}")


def test_a_report_is_no_picture_or_document(longtail_command: Command, finished_run: Run, tmp_path: Path) -> None:
    assert_refused(longtail_command("report", str(finished_run.path), "--out", str(tmp_path / "a.pdf")), 2, ".html")


def test_summaries_of_commands_are_not_cut(longtail_command: Command) -> None:
    for words in (["--help"], ["-h"], ["data", "--help"]):
        ended = longtail_command(*words)
        assert (ended.code, "..." in ended.out.partition("Commands:")[2]) == (0, False)


def test_training_nothing_in_particular_gives_an_example(longtail_command: Command) -> None:
    assert_refused(longtail_command("train"), 2, "longtail train scenes/concutmix")
    assert_refused(longtail_command("train", "seed=1"), 2, "longtail train scenes/concutmix")


# Evaluating -----------------------------------------------------------------------------------------------------------


def numbers_of(printed: str) -> dict[str, str]:
    return {" ".join(line.split()[:-1]): line.split()[-1] for line in printed.splitlines()[1:]}


@pytest.mark.parametrize("which", ["last", "best"])
def test_evaluating_a_run_gives_its_results_again(longtail_command: Command, finished_run: Run, which: str) -> None:
    before = files_of(finished_run.path)
    ended = longtail_command("eval", str(finished_run.path), f"which={which}")
    assert (ended.code, ended.err) == (0, "")
    assert f"{which} weights, 12 test images" in ended.out
    results = finished_run.results[which]
    printed = numbers_of(ended.out)
    for name, shown in (("top1", "top-1"), ("few", "few"), ("worst_class", "worst class"), ("ece", "ece")):
        assert printed[shown] == f"{100 * results[name]:.2f}"
    assert files_of(finished_run.path) == before


def test_the_last_weights_are_evaluated_unless_asked_otherwise(longtail_command: Command, finished_run: Run) -> None:
    ended = longtail_command("eval", str(finished_run.path))
    assert "last weights" in ended.out
    assert numbers_of(ended.out)["top-1"] == f"{100 * finished_run.results['last']['top1']:.2f}"


def test_images_that_were_moved_are_found_by_data_path(
    longtail_command: Command, tiny_npz: Path, tmp_path: Path
) -> None:
    data = Path(shutil.copy(tiny_npz, tmp_path / "data.npz"))
    results = train(tiny_config("ce", data, tmp_path / "run"))
    data.rename(tmp_path / "moved.npz")
    assert_refused(longtail_command("eval", str(tmp_path / "run")), 3, "data.npz")
    ended = longtail_command("eval", str(tmp_path / "run"), f"data.path={tmp_path / 'moved.npz'}")
    assert ended.code == 0
    assert "note" not in ended.out
    assert numbers_of(ended.out)["top-1"] == f"{100 * results['last']['top1']:.2f}"


def test_other_images_are_noted_and_other_classes_refused(
    longtail_command: Command, finished_run: Run, tmp_path: Path
) -> None:
    other = write_npz(tmp_path / "other.npz", seed=1)
    ended = longtail_command("eval", str(finished_run.path), f"data.path={other}")
    assert ended.code == 0
    assert "note: these are not the images" in ended.out
    fewer = write_npz(tmp_path / "fewer.npz", (9, 6, 4))
    assert_refused(longtail_command("eval", str(finished_run.path), f"data.path={fewer}"), 3, "classes")
    larger = write_npz(tmp_path / "larger.npz", shape=(16, 16, 3))
    assert_refused(longtail_command("eval", str(finished_run.path), f"data.path={larger}"), 3, "16 x 16")


def test_a_damaged_last_checkpoint_is_noted(longtail_command: Command, finished_run: Run, tmp_path: Path) -> None:
    run = shutil.copytree(finished_run.path, tmp_path / "run")
    (run / "checkpoints" / "step-6.safetensors").write_bytes(b"")
    ended = longtail_command("eval", str(run))
    assert ended.code == 0
    assert "note:" in ended.out
    assert "step-6" in ended.out


@pytest.mark.parametrize(
    ("word", "code", "words"),
    [
        ("optim.epochs=3", 2, ["'optim.epochs' cannot be changed", "data.path"]),
        ("data.imbalance=10", 2, ["'data.imbalance' cannot be changed"]),
        ("seed=1", 2, ["'seed' cannot be changed"]),
        ("which=first", 2, ["'last' and 'best'"]),
        ("what=best", 2, ["'what' cannot be changed", "which"]),
        ("data.path=absent.npz", 3, ["absent.npz"]),
        ("run.device=abacus", 2, ["run.device=abacus"]),
        ("run.threads=0", 2, ["run.threads=0"]),
    ],
)
def test_what_would_be_another_run_cannot_be_evaluated(
    longtail_command: Command, finished_run: Run, word: str, code: int, words: list[str]
) -> None:
    assert_refused(longtail_command("eval", str(finished_run.path), word), code, *words)


def test_what_is_no_run_cannot_be_evaluated_or_reported(longtail_command: Command, tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "absent"):
        for command in ("eval", "report"):
            assert_refused(longtail_command(command, str(place)), 4, str(place))


# Reports and lists ----------------------------------------------------------------------------------------------------


def test_a_report_goes_where_it_is_asked_for(longtail_command: Command, finished_run: Run, tmp_path: Path) -> None:
    before = files_of(finished_run.path)
    ended = longtail_command("report", str(finished_run.path), "--out", str(tmp_path / "page.html"))
    assert (ended.code, ended.out.strip()) == (0, f"report: {tmp_path / 'page.html'}")
    assert (tmp_path / "page.html").is_file()
    assert files_of(finished_run.path) == before


def test_several_runs_are_compared_in_one_table(
    longtail_command: Command, finished_run: Run, tiny_npz: Path, tmp_path: Path
) -> None:
    results = train(tiny_config("ce", tiny_npz, tmp_path / "run"))
    page = tmp_path / "page.html"
    ended = longtail_command("report", str(finished_run.path), str(tmp_path / "run"), "--out", str(page))
    assert ended.code == 0
    assert page.is_file()
    assert "npz/concutmix" in ended.out
    assert "npz/ce" in ended.out
    assert f"{100 * results['last']['top1']:.2f}" in ended.out


def test_every_recipe_and_method_is_listed_with_where_it_comes_from(longtail_command: Command) -> None:
    listed = {line.split()[0]: line for line in longtail_command("recipes").out.splitlines()}
    assert set(listed) == set(recipe_names())
    assert "authors' program" in listed["cifar100/concutmix"]
    listed = {line.split()[0]: line for line in longtail_command("methods").out.splitlines()}
    assert set(listed) == set(METHODS)
    assert "arXiv 2407.04911" in listed["concutmix"]


def test_recipes_are_narrowed_by_a_part_of_their_name(longtail_command: Command) -> None:
    listed = [line.split()[0] for line in longtail_command("recipes", "100/con").out.splitlines()]
    assert listed == [name for name in recipe_names() if "100/con" in name] != []
    ended = longtail_command("recipes", "cifr100/fast")
    assert ended.code == 2
    assert "Did you mean 'cifar100/fast'?" in ended.err


def test_the_schema_has_every_key(longtail_command: Command) -> None:
    schema = json.loads(longtail_command("schema").out)
    text = json.dumps(schema)
    for key in known_keys():
        assert f'"{key.rpartition(".")[2]}"' in text


def test_help_lists_the_commands_that_work(longtail_command: Command) -> None:
    ended = longtail_command("--help")
    assert ended.code == 0
    for command in ("train", "eval", "report", "recipes", "methods", "schema"):
        assert command in ended.out
        assert longtail_command(command, "--help").code == 0


def test_the_version_is_shown(longtail_command: Command) -> None:
    assert longtail_command("--version").out.strip() == f"longtail {longtail.__version__}"


# What a person sees ---------------------------------------------------------------------------------------------------


def test_a_terminal_shows_a_table_that_grows_and_is_given_back(tiny_npz: Path, tmp_path: Path) -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=120, height=40)
    watching = listener_for(console)
    assert isinstance(watching, LiveTable)
    train(tiny_config("bcl", tiny_npz, tmp_path / "run"), listener=watching)
    watching.close()
    shown = screen.getvalue()
    for words in ("epoch", "top-1", "contrastive", "in %, on test", "images/s", "left", "last (epoch 1)"):
        assert words in shown
    assert not watching.live.is_started
    assert [row["epoch"] for row in watching.rows] == [0, 1]


def test_a_pipe_gets_plain_lines() -> None:
    assert not isinstance(listener_for(Console(file=io.StringIO())), LiveTable)


def test_percentages_and_clocks_read_as_people_write_them() -> None:
    assert [percent(value) for value in (0.5, 0.12345, 1, 0, None)] == ["50.00", "12.35", "100.00", "0.00", "-"]
    assert [clock(value) for value in (0, 59.6, 61, 3600, 3723)] == ["0:00", "1:00", "1:01", "1:00:00", "1:02:03"]


# In a process of its own ----------------------------------------------------------------------------------------------


def test_a_command_in_a_process_of_its_own_ends_with_its_code(launch: Launcher, tmp_path: Path) -> None:
    command = launch("train", "scenes/concutmx", "--out", str(tmp_path / "run"))
    assert command.wait() == 2
    assert command.stderr.splitlines() == ["error: Unknown method 'concutmx'.", "Did you mean 'concutmix'?"]
    assert command.stdout == ""
    command = launch("methods")
    assert command.wait() == 0
    assert len(command.stdout.splitlines()) == len(METHODS)


def test_the_package_runs_as_a_module() -> None:
    ran = subprocess.run([sys.executable, "-m", "longtail", "--version"], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == f"longtail {longtail.__version__}"
