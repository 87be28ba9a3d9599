"""Disks that are full, read-only or limited, and checkpoints damaged in every way: by real faults, not by mocks."""

from __future__ import annotations

import contextlib
import resource
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import longtail.cli as cli
from amounts import amounts
from longtail.errors import ResourceError, RunError, StoppedError
from longtail.rng import numpy_generator
from longtail.runs.rundir import RunDir
from longtail.training.loop import train
from processes import Launcher, wait_until
from tiny import At, Recorder, assignments, digest, files_of, outcome, tiny_config

OFTEN: dict[str, Any] = {"run": {"checkpoint_minutes": 1e-9}}


@contextlib.contextmanager
def files_no_larger_than(size: int) -> Iterator[None]:
    """What ``ulimit -f`` does; Python ignores the signal, so that a write fails as on a full disk."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


class AfterStep(Recorder):
    """A listener that does something after a step."""

    def __init__(self, step: int, act: Callable[[], object]) -> None:
        super().__init__()
        self.step, self.act = step, act

    def stepped(self, step: int, logs: Mapping[str, float], images_per_second: float) -> None:
        super().stepped(step, logs, images_per_second)
        if step == self.step:
            self.act()


# Disks ----------------------------------------------------------------------------------------------------------------


def assert_goes_on(tiny_npz: Path, folder: Path, step: int) -> None:
    """The last good checkpoint is there, no temporary file after the next start, and the end as if nothing had been."""
    found = RunDir(folder).load_checkpoint()
    assert found is not None
    assert found.step == step
    watched = Recorder()
    train(tiny_config("ce", tiny_npz, folder, **OFTEN), resume=True, listener=watched)
    assert watched.first_step == step
    assert not [name for name in files_of(folder) if name.endswith(".tmp")]
    train(tiny_config("ce", tiny_npz, folder.parent / "whole"))
    assert outcome(folder) == outcome(folder.parent / "whole")


def test_a_device_that_is_full_ends_the_run_with_the_previous_checkpoint(tiny_npz: Path, tmp_path: Path) -> None:
    """The temporary file is /dev/full, which has no space left for anybody, root included."""
    folder = tmp_path / "run"

    def fill() -> None:
        (folder / "checkpoints" / ".step-5.safetensors.tmp").symlink_to("/dev/full")

    with pytest.raises(ResourceError, match=r"step-5\.safetensors cannot be written: No space left") as caught:
        train(tiny_config("ce", tiny_npz, folder, **OFTEN), listener=AfterStep(4, fill))
    assert caught.value.exit_code == 6
    assert "--resume" in str(caught.value.hint)
    assert_goes_on(tiny_npz, folder, 4)


def test_metrics_on_a_full_device_end_the_run_with_the_previous_checkpoint(tiny_npz: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"

    def fill() -> None:
        (folder / "metrics.jsonl").rename(folder / "aside")
        (folder / "metrics.jsonl").symlink_to("/dev/full")

    with pytest.raises(ResourceError, match=r"metrics\.jsonl cannot be written: No space left"):
        train(tiny_config("ce", tiny_npz, folder, **OFTEN), listener=AfterStep(4, fill))
    (folder / "metrics.jsonl").unlink()
    (folder / "aside").rename(folder / "metrics.jsonl")
    assert_goes_on(tiny_npz, folder, 6)


def test_a_file_size_limit_ends_the_run_with_the_previous_checkpoint(tiny_npz: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    limit = AfterStep(4, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard)))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with files_no_larger_than(soft), pytest.raises(ResourceError, match="File too large") as caught:
        train(tiny_config("ce", tiny_npz, folder, **OFTEN), listener=limit)
    assert caught.value.exit_code == 6
    assert_goes_on(tiny_npz, folder, 3)


def test_the_command_ends_with_code_6_under_a_file_size_limit(
    tiny_npz: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_config("ce", tiny_npz, tmp_path / "run")
    words = assignments({name: value for name, value in config.plain().items() if value is not None})
    with files_no_larger_than(20_000), pytest.raises(SystemExit) as caught:
        cli.main(["train", *words])
    assert caught.value.code == 6
    assert "File too large" in capsys.readouterr().err


@pytest.mark.parametrize("size", [1_000, 10_000])
def test_a_report_that_does_not_fit_ends_with_code_6_and_is_written_next_time(
    tiny_npz: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], size: int
) -> None:
    train(tiny_config("ce", tiny_npz, tmp_path / "run"))
    with files_no_larger_than(size), pytest.raises(SystemExit) as caught:
        cli.main(["report", str(tmp_path / "run")])
    assert caught.value.code == 6
    assert "cannot be written" in capsys.readouterr().err
    with pytest.raises(SystemExit) as done:
        cli.main(["report", str(tmp_path / "run")])
    assert done.value.code == 0
    assert (tmp_path / "run" / "report.html").is_file()


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a file system that nobody can write to")
def test_a_folder_that_nobody_can_write_to_ends_with_code_6(
    tiny_npz: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_config("ce", tiny_npz, Path("/proc/longtail/run"))
    words = assignments({name: value for name, value in config.plain().items() if value is not None})
    with pytest.raises(SystemExit) as caught:
        cli.main(["train", *words])
    assert caught.value.code == 6
    assert "/proc/longtail/run cannot be written" in capsys.readouterr().err


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(place)], capture_output=True)
    if mounted.returncode:
        pytest.skip("only root may mount a small file system")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


@pytest.mark.slow
def test_a_small_disk_that_runs_full_and_is_cleared_loses_nothing(
    tiny_npz: Path, tmp_path: Path, small_disk: Path
) -> None:
    folder, rest = small_disk / "run", small_disk / "rest"

    def fill() -> None:
        with rest.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))

    with pytest.raises(ResourceError, match="No space left") as caught:
        train(tiny_config("ce", tiny_npz, folder, **OFTEN), listener=AfterStep(4, fill))
    assert caught.value.exit_code == 6
    rest.unlink()
    found = RunDir(folder).load_checkpoint()
    assert found is not None
    assert found.step == 3
    train(tiny_config("ce", tiny_npz, folder, **OFTEN), resume=True)
    train(tiny_config("ce", tiny_npz, tmp_path / "whole"))
    assert outcome(folder) == outcome(tmp_path / "whole")


@pytest.mark.slow
def test_a_file_system_that_turns_read_only_loses_nothing(tiny_npz: Path, tmp_path: Path, small_disk: Path) -> None:
    folder = small_disk / "run"

    def remount(how: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{how}", str(small_disk)], check=True)

    with pytest.raises(StoppedError):
        train(tiny_config("ce", tiny_npz, folder, **OFTEN), listener=At(4))
    remount("ro")
    before = files_of(folder)
    with pytest.raises(ResourceError, match="Read-only file system") as caught:
        train(tiny_config("ce", tiny_npz, folder, **OFTEN), resume=True)
    assert caught.value.exit_code == 6
    assert files_of(folder) == before
    remount("rw")
    train(tiny_config("ce", tiny_npz, folder, **OFTEN), resume=True)
    train(tiny_config("ce", tiny_npz, tmp_path / "whole"))
    assert outcome(folder) == outcome(tmp_path / "whole")


# Damage ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_runs(tiny_npz: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunDir, RunDir]:
    """A run stopped after step 5, with checkpoints of steps 3 and 5, and one of another model."""
    folder = tmp_path_factory.mktemp("damage")
    for name, method in (("run", "ce"), ("other", "bcl")):
        with pytest.raises(StoppedError):
            train(tiny_config(method, tiny_npz, folder / name), listener=At(5))
    return RunDir(folder / "run"), RunDir(folder / "other")


DAMAGE = ("flip", "cut", "zero", "other", "empty", "longer", "swapped")


def damaged(content: bytes, other: bytes, kind: str, stream: np.random.Generator) -> bytes:
    """``content`` damaged at a random place; something else than ``content`` in any case."""
    place = int(stream.integers(len(content)))
    if kind == "flip":
        return content[:place] + bytes([content[place] ^ (1 << int(stream.integers(8)))]) + content[place + 1 :]
    if kind == "cut":
        return content[:place]
    if kind == "zero":
        block = min(len(content) - place, int(stream.choice([64, 512, 4096])))
        return content[:place] + bytes(block) + content[place + block :]
    if kind == "longer":
        return content + stream.bytes(1 + place % 64)
    if kind == "swapped":
        first, second = content[place : place + 512], content[place + 512 : place + 1024]
        return content[:place] + second + first + content[place + 1024 :]
    return {"other": other, "empty": b""}[kind]


@pytest.mark.parametrize("count", amounts(70, 1000))
def test_every_damaged_checkpoint_is_noticed_passed_over_and_named(two_runs: tuple[RunDir, RunDir], count: int) -> None:
    run, other = two_runs
    before = RunDir(run.path)._load("step-3")
    tried = 0
    for number in range(count):
        stream = numpy_generator(0, "damage", number)
        kind, suffix = DAMAGE[number % len(DAMAGE)], (".safetensors", ".safetensors", ".json")[number % 3]
        path = run.checkpoints / f"step-5{suffix}"
        good = path.read_bytes()
        bad = damaged(good, (other.checkpoints / path.name).read_bytes(), kind, stream)
        tried += bad != good
        try:
            path.write_bytes(bad)
            again = RunDir(run.path)
            found = again.load_checkpoint()
        finally:
            path.write_bytes(good)
        assert found is not None
        if bad != good:
            assert digest(found) == digest(before), (number, kind, suffix)
            assert len(again.warnings) == 1
            assert "step-5.safetensors" in again.warnings[0]
    assert tried > 0.95 * count, "a block of zeros may be zeroed, and nothing else is as it was"


def test_both_damaged_are_both_named(two_runs: tuple[RunDir, RunDir]) -> None:
    run, _ = two_runs
    kept = {path: path.read_bytes() for path in run.checkpoints.glob("step-*.safetensors")}
    try:
        for number, (path, content) in enumerate(kept.items()):
            path.write_bytes(damaged(content, b"", "flip", numpy_generator(1, "damage", number)))
        with pytest.raises(RunError, match="No checkpoint can be read") as caught:
            RunDir(run.path).load_checkpoint()
    finally:
        for path, content in kept.items():
            path.write_bytes(content)
    assert caught.value.exit_code == 4
    assert all(str(path) in caught.value.message for path in kept)


class StopAtOnce(Recorder):
    """Sends SIGTERM after the first step."""

    def stepped(self, step: int, logs: Mapping[str, float], images_per_second: float) -> None:
        signal.raise_signal(signal.SIGTERM)


# Two runs on one folder -----------------------------------------------------------------------------------------------


def test_a_second_command_on_a_running_folder_is_refused_and_a_dead_ones_lock_is_none(
    tiny_npz: Path, tmp_path: Path, launch: Launcher
) -> None:
    """In processes of their own: the first is killed while it holds the lock."""
    config = tiny_config("ce", tiny_npz, tmp_path / "run", optim={"epochs": 500})
    words = ["train", *assignments({name: value for name, value in config.plain().items() if value is not None})]
    first = launch(*words)
    wait_until(lambda: (tmp_path / "run" / "metrics.jsonl").exists())
    try:
        with pytest.raises(RunError, match="Another process is running"):
            train(config, resume=True)
        with pytest.raises(RunError, match="Another process is running"):
            train(config, overwrite=True)
    finally:
        first.send()
        first.wait()
    assert (tmp_path / "run" / ".lock").exists()
    with pytest.raises(StoppedError):
        train(config, resume=True, listener=StopAtOnce())
