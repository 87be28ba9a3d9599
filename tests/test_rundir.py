"""The run folder: whatever happens while it is written, it can be read again."""

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from longtail.errors import ConfigError, ResourceError, RunError
from longtail.files import read_json, write_atomic, write_json
from longtail.rng import generator, numpy_generator
from longtail.runs.rundir import Checkpoint, RunDir
from tiny import KilledError, files_of


def checkpoint(step: int) -> Checkpoint:
    tensors = {
        "model/weight": torch.randn(5, 3, generator=generator(step, "weight")),
        "model/steps": torch.tensor(step),
        "model/layout": torch.randn(2, 3, 4, 4, generator=generator(step, "layout")).to(
            memory_format=torch.channels_last
        ),
        "momentum/weight": torch.randn(5, 3, generator=generator(step, "momentum")),
    }
    return Checkpoint(step, tensors, {"epochs_done": step // 3, "sums": {"loss": 0.1 * step}})


def run_with(path: Path, *steps: int) -> RunDir:
    run = RunDir(path)
    run.create()
    for step in steps:
        run.save_checkpoint(checkpoint(step))
    return run


def assert_same(one: Checkpoint | None, other: Checkpoint) -> None:
    assert one is not None
    assert (one.step, one.state) == (other.step, other.state)
    assert one.tensors.keys() == other.tensors.keys()
    for name, value in other.tensors.items():
        assert one.tensors[name].dtype == value.dtype
        assert torch.equal(one.tensors[name], value)


def names(run: RunDir) -> set[str]:
    return {path.name for path in run.checkpoints.iterdir()}


# Checkpoints ----------------------------------------------------------------------------------------------------------


def test_a_checkpoint_reads_back_as_it_was_written(tmp_path: Path) -> None:
    assert_same(run_with(tmp_path / "run", 4).load_checkpoint(), checkpoint(4))


def test_a_new_run_has_no_checkpoint(tmp_path: Path) -> None:
    run = run_with(tmp_path / "run")
    assert run.load_checkpoint() is None
    assert not run.has_checkpoint
    with pytest.raises(RunError, match="no best checkpoint"):
        run.load_best()


def test_the_two_newest_are_kept(tmp_path: Path) -> None:
    run = run_with(tmp_path / "run", 3, 6, 9, 12)
    assert names(run) == {f"step-{step}.{kind}" for step in (9, 12) for kind in ("json", "safetensors")}
    assert_same(run.load_checkpoint(), checkpoint(12))


def test_steps_are_compared_as_numbers(tmp_path: Path) -> None:
    assert_same(run_with(tmp_path / "run", 9, 10).load_checkpoint(), checkpoint(10))


def test_the_checkpoint_of_a_step_is_read_by_its_number(tmp_path: Path) -> None:
    run = run_with(tmp_path / "run", 3, 6)
    assert_same(run.load_step(3), checkpoint(3))
    assert run.load_step(4) is None
    path = run.checkpoints / "step-3.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(RunError, match=r"step-3\.safetensors"):
        run.load_step(3)
    assert_same(run.load_step(6), checkpoint(6))


def test_an_old_checkpoint_of_which_a_file_is_gone_is_no_hindrance(tmp_path: Path) -> None:
    run = run_with(tmp_path / "run", 3, 6)
    (run.checkpoints / "step-3.safetensors").unlink()
    run.save_checkpoint(checkpoint(9))
    assert names(run) == {f"step-{step}.{kind}" for step in (6, 9) for kind in ("json", "safetensors")}


def test_a_run_is_made_below_folders_that_are_not_there_yet(tmp_path: Path) -> None:
    run_with(tmp_path / "a" / "b" / "run", 3)
    assert (tmp_path / "a" / "b" / "run" / "run.json").is_file()


def test_making_a_run_that_is_there_changes_nothing(tmp_path: Path) -> None:
    run = run_with(tmp_path / "run", 3)
    before = files_of(run.path)
    RunDir(run.path).create()
    assert files_of(run.path) == before


def test_what_is_synced_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash after fsync finds all that was written before it: nothing waits in a buffer of this process."""
    run = run_with(tmp_path / "run")
    real, seen = os.fsync, dict[str, bytes]()

    def look(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").resolve()
        if path.is_file():
            seen[path.name] = path.read_bytes()
        real(descriptor)

    monkeypatch.setattr(os, "fsync", look)
    run.append_metrics({"epoch": 0, "loss": 1.5})
    write_atomic(tmp_path / "whole.txt", b"content")
    assert seen == {"metrics.jsonl": run.metrics.read_bytes(), ".whole.txt.tmp": b"content"}
    assert seen["metrics.jsonl"].endswith(b"\n")


def test_the_best_is_kept_beside_the_steps(tmp_path: Path) -> None:
    run = run_with(tmp_path / "run")
    run.save_best(checkpoint(3))
    for step in (3, 6, 9):
        run.save_checkpoint(checkpoint(step))
    assert_same(run.load_best(), checkpoint(3))
    run.save_best(checkpoint(9))
    assert_same(run.load_best(), checkpoint(9))


def test_a_checkpoint_holds_no_pickle(tmp_path: Path) -> None:
    run = run_with(tmp_path / "run", 3)
    for path in run.checkpoints.iterdir():
        assert path.suffix in (".json", ".safetensors")
        assert not path.read_bytes().startswith((b"\x80", b"PK"))


def flip(content: bytes, seed: int) -> bytes:
    stream = numpy_generator(seed, "flip")
    place, bit = int(stream.integers(len(content))), int(stream.integers(8))
    return content[:place] + bytes([content[place] ^ (1 << bit)]) + content[place + 1 :]


def zero_block(content: bytes, seed: int) -> bytes:
    place = int(numpy_generator(seed, "zero").integers(len(content) - 16))
    assert any(content[place : place + 16])
    return content[:place] + bytes(16) + content[place + 16 :]


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "a flipped bit at the start": lambda content: bytes([content[0] ^ 1]) + content[1:],
    "a flipped bit at the end": lambda content: content[:-2] + bytes([content[-2] ^ 1]) + content[-1:],
    "half of it": lambda content: content[: len(content) // 2],
    "one byte less": lambda content: content[:-2] + b"\n" if content.endswith(b"\n") else content[:-1],
    "nothing": lambda content: b"",
    "a zeroed block": lambda content: zero_block(content, 0),
    "something else": lambda content: b"<html>404</html>",
    "a list": lambda content: b"[1, 2]",
    "a number": lambda content: b"3",
    "a null": lambda content: b"null",
}


@pytest.mark.parametrize("kind", ["safetensors", "json"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before_and_named(
    tmp_path: Path, damage: str, kind: str
) -> None:
    run = run_with(tmp_path / "run", 3, 6)
    path = run.checkpoints / f"step-6.{kind}"
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    again = RunDir(run.path)
    assert_same(again.load_checkpoint(), checkpoint(3))
    assert len(again.warnings) == 1
    assert "step-6" in again.warnings[0]
    assert "passed over" in again.warnings[0]


def test_another_models_file_is_passed_over(tmp_path: Path) -> None:
    run, other = run_with(tmp_path / "run", 3, 6), run_with(tmp_path / "other", 5)
    shutil.copy(other.checkpoints / "step-5.safetensors", run.checkpoints / "step-6.safetensors")
    assert_same(run.load_checkpoint(), checkpoint(3))


def test_tensors_that_are_gone_are_passed_over(tmp_path: Path) -> None:
    run = run_with(tmp_path / "run", 3, 6)
    (run.checkpoints / "step-6.safetensors").unlink()
    assert_same(run.load_checkpoint(), checkpoint(3))
    assert "step-6" in run.warnings[0]


def test_no_good_checkpoint_is_an_error_that_names_each_tried(tmp_path: Path) -> None:
    run = run_with(tmp_path / "run", 3, 6)
    for step in (3, 6):
        path = run.checkpoints / f"step-{step}.safetensors"
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(RunError, match="No checkpoint can be read") as caught:
        run.load_checkpoint()
    assert caught.value.exit_code == 4
    assert "step-3.safetensors" in caught.value.message
    assert "step-6.safetensors" in caught.value.message


def test_a_damaged_best_is_an_error_that_names_it(tmp_path: Path) -> None:
    run = run_with(tmp_path / "run")
    run.save_best(checkpoint(3))
    path = run.checkpoints / "best.safetensors"
    path.write_bytes(flip(path.read_bytes(), 0))
    with pytest.raises(RunError, match=r"best\.safetensors"):
        run.load_best()


@pytest.mark.parametrize("kind", ["safetensors", "json"])
def test_every_flipped_bit_and_every_cut_is_noticed(tmp_path: Path, kind: str) -> None:
    run = run_with(tmp_path / "run", 6)
    path = run.checkpoints / f"step-6.{kind}"
    good = path.read_bytes()
    stream = numpy_generator(0, "cuts")
    damaged = [flip(good, seed) for seed in range(120)]
    damaged += [good[: int(stream.integers(len(good) - 1))] for _ in range(30)]
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(RunError):
            RunDir(run.path).load_checkpoint()
    path.write_bytes(good)
    assert_same(RunDir(run.path).load_checkpoint(), checkpoint(6))


def test_a_damaged_checkpoint_is_not_counted_among_the_two_that_are_kept(tmp_path: Path) -> None:
    run = run_with(tmp_path / "run", 6, 9)
    path = run.checkpoints / "step-9.safetensors"
    path.write_bytes(flip(path.read_bytes(), 0))
    run.save_checkpoint(checkpoint(7))
    assert names(run) == {f"step-{step}.{kind}" for step in (6, 7) for kind in ("json", "safetensors")}


class Counter:
    """Dies before or after the n-th call that reaches the disk."""

    def __init__(self, number: int, after: bool) -> None:
        self.number, self.after, self.calls = number, after, 0

    def around(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*given: Any, **named: Any) -> Any:
            self.calls += 1
            if self.calls == self.number and not self.after:
                raise KilledError
            result = call(*given, **named)
            if self.calls == self.number:
                raise KilledError
            return result

        return wrapped


@pytest.mark.parametrize("after", [False, True])
def test_a_kill_at_any_point_of_saving_leaves_the_old_or_the_new_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    """Before and after each write, fsync, rename and delete."""
    points = 0
    for number in range(1, 100):
        run = run_with(tmp_path / f"run-{number}", 3, 6)
        run.save_best(checkpoint(3))
        counter = Counter(number, after)
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", counter.around(os.fsync))
            patch.setattr(Path, "replace", counter.around(Path.replace))
            patch.setattr(Path, "unlink", counter.around(Path.unlink))
            try:
                run.save_checkpoint(checkpoint(9))
            except KilledError:
                points += 1
        again = RunDir(run.path)
        found = again.load_checkpoint()
        assert found is not None
        assert_same(found, checkpoint(found.step))
        assert found.step in (6, 9)
        assert again.warnings == []
        assert_same(again.load_best(), checkpoint(3))
        again.lock()
        again.save_checkpoint(checkpoint(9))
        again.unlock()
        assert names(again) == {"best.json", "best.safetensors"} | {
            f"step-{step}.{kind}" for step in (6, 9) for kind in ("json", "safetensors")
        }
        if counter.calls < number:
            break
    assert points == 8, "three for each of two files, and two deletions"


def test_a_kill_while_the_best_is_replaced_leaves_the_old_the_new_or_a_named_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(1, 20):
        run = run_with(tmp_path / f"run-{number}", 6)
        run.save_best(checkpoint(3))
        counter = Counter(number, after=True)
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", counter.around(os.fsync))
            patch.setattr(Path, "replace", counter.around(Path.replace))
            try:
                run.save_best(checkpoint(6))
            except KilledError:
                pass
            else:
                break
        try:
            found = RunDir(run.path).load_best()
        except RunError as error:
            shown = str(error)
            assert "best.safetensors" in shown
        else:
            assert_same(found, checkpoint(found.step))
        run.save_best(checkpoint(6))
        assert_same(RunDir(run.path).load_best(), checkpoint(6))
    assert number > 5


def test_a_full_disk_leaves_the_previous_checkpoint_and_no_temporary_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_with(tmp_path / "run", 3, 6)
    before = files_of(run.path)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(ResourceError, match=r"step-9\.safetensors cannot be written: No space left") as caught:
            run.save_checkpoint(checkpoint(9))
        assert caught.value.exit_code == 6
        assert "--resume" in str(caught.value.hint)
        with pytest.raises(ResourceError):
            run.append_metrics({"epoch": 0})
    (run.path / "metrics.jsonl").unlink()
    assert files_of(run.path) == before


# Single files ---------------------------------------------------------------------------------------------------------


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"old")
    for number in range(1, 5):
        counter = Counter(number, after=False)
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", counter.around(os.fsync))
            patch.setattr(Path, "replace", counter.around(Path.replace))
            with contextlib.suppress(KilledError):
                write_atomic(path, b"new")
        assert path.read_bytes() in (b"old", b"new")
    assert path.read_bytes() == b"new"


def test_json_with_nan_is_refused_rather_than_written(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"a": 1})
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "a.json", {"a": float("nan")})
    assert read_json(tmp_path / "a.json") == {"a": 1}


def test_json_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{")
    for name in ("a.json", "absent.json"):
        with pytest.raises(RunError, match=name):
            read_json(tmp_path / name)


# Metrics --------------------------------------------------------------------------------------------------------------


def test_metrics_are_cut_back_to_the_epochs_that_are_done(tmp_path: Path) -> None:
    run = run_with(tmp_path / "run")
    for epoch in range(5):
        run.append_metrics({"epoch": epoch, "loss": 0.1 * epoch})
    run.cut_metrics(3)
    assert [row["epoch"] for row in run.read_metrics()] == [0, 1, 2]
    run.append_metrics({"epoch": 3})
    assert [row["epoch"] for row in run.read_metrics()] == [0, 1, 2, 3]


@pytest.mark.parametrize("tail", [b'{"epoch": 2, "lo', b"\x00\x00\x00", b"{", b'{"epoch": 2, "loss": 1}'])
def test_a_line_that_a_kill_cut_short_is_dropped_and_the_next_stands_alone(tmp_path: Path, tail: bytes) -> None:
    run = run_with(tmp_path / "run")
    for epoch in range(2):
        run.append_metrics({"epoch": epoch})
    with run.metrics.open("ab") as file:
        file.write(tail)
    run.cut_metrics(2)
    run.append_metrics({"epoch": 2})
    assert run.read_metrics() == [{"epoch": 0}, {"epoch": 1}, {"epoch": 2}]


def test_metrics_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    run = run_with(tmp_path / "run")
    with pytest.raises(ValueError, match="JSON compliant"):
        run.append_metrics({"epoch": 0, "loss": float("nan")})


# The folder -----------------------------------------------------------------------------------------------------------


def test_making_the_object_touches_nothing(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    assert not run.is_run
    assert not run.has_started
    assert not (tmp_path / "run").exists()


def test_a_folder_that_is_there_is_refused_and_an_empty_one_taken(tmp_path: Path) -> None:
    RunDir(tmp_path / "absent").refuse_unless_new()
    (tmp_path / "empty").mkdir()
    RunDir(tmp_path / "empty").refuse_unless_new()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("years of work")
    (tmp_path / "file").write_text("")
    run_with(tmp_path / "run")
    for name, words in (("other", "not a run folder"), ("file", "not a run folder"), ("run", "--resume")):
        with pytest.raises(ConfigError, match="exists already") as caught:
            RunDir(tmp_path / name).refuse_unless_new()
        assert words in str(caught.value.hint)


def test_a_kill_while_the_folder_is_made_leaves_a_run_or_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(1, 20):
        run = RunDir(tmp_path / f"run-{number}")
        counter = Counter(number, after=True)
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", counter.around(os.fsync))
            patch.setattr(Path, "mkdir", counter.around(Path.mkdir))
            patch.setattr(Path, "replace", counter.around(Path.replace))
            with contextlib.suppress(KilledError):
                run.create()
        if not run.is_run:
            run.refuse_unless_new()
        run.delete()
        run.create()
        if counter.calls < number:
            break
    assert number > 6


def test_only_a_run_folder_is_deleted(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match="not a run folder"):
        RunDir(tmp_path / "other").delete()
    assert (tmp_path / "other" / "thesis.tex").read_text() == "years of work"
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="not a run folder"):
        RunDir(tmp_path / "file").delete()
    run = run_with(tmp_path / "run", 3)
    run.delete()
    assert not run.path.exists()


def test_a_run_folder_behind_a_link_is_emptied_and_the_link_kept(tmp_path: Path) -> None:
    run = run_with(tmp_path / "run", 3)
    (tmp_path / "link").symlink_to(run.path, target_is_directory=True)
    linked = RunDir(tmp_path / "link")
    linked.delete()
    assert files_of(run.path) == {}
    linked.create()
    assert run.is_run


def test_deleting_does_not_follow_links_out_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "images.npz").write_text("not ours")
    run = run_with(tmp_path / "run", 3)
    (run.path / "data").symlink_to(tmp_path / "data", target_is_directory=True)
    run.delete()
    assert not run.path.exists()
    assert (tmp_path / "data" / "images.npz").exists()


def test_a_kill_while_a_run_is_deleted_leaves_what_can_be_deleted_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(1, 10):
        run = run_with(tmp_path / f"run-{number}", 3)
        run.write_config({"seed": 1})
        counter = Counter(number, after=True)
        with monkeypatch.context() as patch:
            patch.setattr(shutil, "rmtree", counter.around(shutil.rmtree))
            patch.setattr(Path, "unlink", counter.around(Path.unlink))
            with contextlib.suppress(KilledError):
                run.delete()
        RunDir(run.path).delete()
        RunDir(run.path).refuse_unless_new()
        if counter.calls < number:
            break
    assert number > 4


def test_a_second_process_is_kept_out_until_the_first_is_done(tmp_path: Path) -> None:
    run = run_with(tmp_path / "run")
    run.lock()
    other = RunDir(run.path)
    with pytest.raises(RunError, match="Another process") as caught:
        other.lock()
    assert caught.value.exit_code == 4
    with pytest.raises(RunError, match="Another process"):
        other.delete()
    assert run.is_run
    run.unlock()
    other.lock()
    other.unlock()


def test_a_lock_file_that_a_dead_process_left_does_not_keep_anyone_out(tmp_path: Path) -> None:
    run = run_with(tmp_path / "run")
    (run.path / ".lock").write_text("12345")
    run.lock()
    run.unlock()


def test_taking_the_lock_clears_away_what_a_kill_left(tmp_path: Path) -> None:
    run = run_with(tmp_path / "run", 3)
    (run.path / ".run.json.tmp").write_text("{")
    (run.checkpoints / ".step-6.safetensors.tmp").write_text("half")
    (run.checkpoints / "step-5.safetensors").write_text("its JSON was never written")
    run.lock()
    run.unlock()
    assert set(files_of(run.path)) == {
        ".lock",
        "run.json",
        "checkpoints/step-3.json",
        "checkpoints/step-3.safetensors",
    }


def test_a_description_is_merged_and_a_broken_one_named(tmp_path: Path) -> None:
    run = run_with(tmp_path / "run")
    run.update_description(status="running", seed=3)
    run.update_description(status="stopped")
    assert run.description() == {"schema": 1, "status": "stopped", "seed": 3}
    (run.path / "run.json").write_text("{")
    with pytest.raises(RunError, match=r"run\.json"):
        run.description()
    with pytest.raises(RunError, match="not a run folder"):
        RunDir(tmp_path).description()


@pytest.mark.parametrize("content", [b"", b"[1]", b"a: [", b"\xff\xfe"])
def test_a_broken_configuration_is_named(tmp_path: Path, content: bytes) -> None:
    run = run_with(tmp_path / "run")
    (run.path / "config.yaml").write_bytes(content)
    with pytest.raises(RunError, match=r"config\.yaml"):
        run.read_config()


def test_a_place_that_cannot_be_written_is_a_readable_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match="cannot be written"):
        RunDir(tmp_path / "file" / "run").create()
    run = run_with(tmp_path / "run")
    (run.path / ".lock").mkdir()
    with pytest.raises(ResourceError, match=r"\.lock cannot be written"):
        run.lock()


def test_a_config_is_written_as_yaml_that_json_could_hold(tmp_path: Path) -> None:
    run = run_with(tmp_path / "run")
    values = {"seed": 1, "data": {"path": "ä: #b", "groups": [100, 20]}, "optim": {"lr": 1e-5}}
    run.write_config(values)
    assert run.read_config() == values
    assert json.dumps(run.read_config())
