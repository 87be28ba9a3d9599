"""Jobs of two processes from the command line: one folder, one voice, stops, kills, and resumes by another number."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from longtail.data.packing import pack
from longtail.errors import StoppedError
from longtail.files import read_json
from longtail.runs.rundir import Checkpoint, RunDir
from longtail.training.loop import train
from miniatures import miniature
from pictures import settings
from processes import Command, Launcher, wait_until
from tiny import At, assignments, outcome, settings_of, tiny_config

Start = Callable[..., list[Command]]
LIMIT = 15.0
"""Seconds that a job may outlive one of its processes."""


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """``start("train", ...)`` starts the command in two processes, with the environment that torchrun gives them."""
    job = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    launchers = [
        Launcher(tmp_path_factory.mktemp(f"process-{number}"), RANK=str(number), LOCAL_RANK=str(number), **job)
        for number in range(2)
    ]
    yield lambda *words: [launch(*words) for launch in launchers]
    for launch in launchers:
        launch.close()


def words(method: str, archive: Path, out: Path, **own: object) -> list[str]:
    return [
        "train",
        f"npz/{method}",
        *assignments(settings_of(method) | own),
        f"data.path={archive}",
        "--out",
        str(out),
    ]


def last(out: Path) -> Checkpoint:
    found = RunDir(out).load_checkpoint()
    assert found is not None
    return found


def assert_close(one: Checkpoint, other: Checkpoint) -> None:
    """Equal but for the order of sums."""
    assert one.step == other.step
    assert one.tensors.keys() == other.tensors.keys()
    for name, value in one.tensors.items():
        torch.testing.assert_close(value, other.tensors[name], rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def by_two(start: Start, tiny_npz: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of ce by two processes, which both ended well."""
    out = tmp_path_factory.mktemp("by-two") / "run"
    both = start(*words("ce", tiny_npz, out))
    assert [command.wait() for command in both] == [0, 0], both[0].stderr
    assert both[1].stdout == both[1].stderr == ""
    return out


def test_a_run_by_two_is_the_run_by_one_with_two_shards_but_for_their_number(
    by_two: Path, tiny_npz: Path, tmp_path: Path
) -> None:
    train(tiny_config("ce", tiny_npz, tmp_path / "one", model={"bn_shards": 2}))
    alone, together = outcome(tmp_path / "one"), outcome(by_two)
    assert (alone["described"].pop("processes"), together["described"].pop("processes")) == (1, 2)
    assert together == alone
    assert RunDir(by_two).read_config()["model"]["bn_shards"] == 2
    assert (by_two / "report.html").is_file()


SIX_RUNS = """
import sys
from longtail.cli import main
for number in range(6):
    try:
        main([*sys.argv[1:], f"{number}"])
    except SystemExit as ended:
        assert not ended.code, ended.code
"""


def test_one_program_trains_several_times_under_torchrun(tiny_npz: Path, tmp_path: Path) -> None:
    """Its store outlives the groups of a run: the addresses of the last one must not be read by the next."""
    program = tmp_path / "six_runs.py"
    program.write_text(SIX_RUNS)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    given = [*words("ce", tiny_npz, tmp_path)[:-2], "optim.epochs=1", "--out"]
    done = subprocess.run(
        [*torchrun, str(program), *given],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("*/report.html"))) == 6


NAMES_OF_THREADS = """
import sys
from pathlib import Path
from longtail.cli import main
try:
    main(sys.argv[1:])
except SystemExit as ended:
    assert not ended.code
sys.exit(" ".join(path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")))
"""


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="looks for threads in /proc")
def test_no_thread_of_a_job_outlives_it(tiny_npz: Path, tmp_path: Path) -> None:
    """One that does aborts the process now and then, when all is written. Not from the server, which imports more."""
    job = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
    program = [sys.executable, "-c", NAMES_OF_THREADS, *words("ce", tiny_npz, tmp_path / "run")]
    both = [
        subprocess.Popen(program, env=os.environ | job | {"RANK": number}, stderr=subprocess.PIPE, text=True)
        for number in "01"
    ]
    for names in [process.communicate(timeout=120)[1] for process in both]:
        assert "python" in names
        assert "gloo" not in names


@pytest.mark.slow
def test_two_processes_skip_and_go_back_together(
    tiny_npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault = "nan-images@1,inf-gradient@3-5"  # pixels of each process's own, gradients of both
    job = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "LONGTAIL_FAULT": fault}
    launchers = []
    for number in range(2):
        (tmp_path / f"process-{number}").mkdir()
        launchers.append(Launcher(tmp_path / f"process-{number}", RANK=str(number), LOCAL_RANK=str(number), **job))
    try:
        both = [launch(*words("bcl", tiny_npz, tmp_path / "two")) for launch in launchers]
        assert [command.wait() for command in both] == [0, 0], both[0].stderr
    finally:
        for launch in launchers:
            launch.close()
    monkeypatch.setenv("LONGTAIL_FAULT", fault)
    train(tiny_config("bcl", tiny_npz, tmp_path / "one", model={"bn_shards": 2}))
    one, two = (read_json(tmp_path / name / "results.json") for name in ("one", "two"))
    assert one["skipped_steps"] == two["skipped_steps"] > 1
    assert one["rate_scale"] == two["rate_scale"] == 0.5
    assert_close(last(tmp_path / "one"), last(tmp_path / "two"))


def test_a_refusal_is_said_once(start: Start, by_two: Path, tiny_npz: Path, tmp_path: Path) -> None:
    cases = {
        2: words("ce", tiny_npz, by_two),
        3: words("ce", tmp_path / "nothing.npz", tmp_path / "run"),
    }
    cases[2], unknown = cases[2], [*words("ce", tiny_npz, tmp_path / "run"), "optim.epoch=3"]
    for code, given in [*cases.items(), (2, unknown)]:
        both = start(*given)
        assert [command.wait() for command in both] == [code, code]
        assert "".join(command.stderr for command in both).count("error: ") == 1
    assert not (tmp_path / "run").exists()


def test_shards_that_two_processes_cannot_share_are_refused(start: Start, tiny_npz: Path, tmp_path: Path) -> None:
    both = start(*words("ce", tiny_npz, tmp_path / "run"), "model.bn_shards=3")
    assert [command.wait() for command in both] == [2, 2]
    assert "cannot be shared evenly by 2 processes" in both[0].stderr + both[1].stderr


ALIKE = """
import os, time
from longtail.errors import ConfigError
from longtail.processes.distributed import job, rank
try:
    with job():
        time.sleep(rank())
        raise ConfigError("alike")
except ConfigError as error:
    print(error.said, flush=True)
    os._exit(0)
"""


def test_an_error_that_others_raise_a_moment_later_is_said_once() -> None:
    alike = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    both = [
        subprocess.Popen(
            [sys.executable, "-c", ALIKE],
            env=os.environ | alike | {"RANK": str(number), "LOCAL_RANK": str(number)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    assert [process.communicate(timeout=60)[0].strip() for process in both] == ["False", "True"]


def test_a_job_stops_and_saves_where_any_process_was_told_to(start: Start, tiny_npz: Path, tmp_path: Path) -> None:
    given = words("ce", tiny_npz, tmp_path / "run", optim={"epochs": 4000, "batch": 8, "lr": 0.05})
    both = start(*given)
    wait_until(RunDir(tmp_path / "run").metrics.is_file)
    both[1].send(signal.SIGTERM)
    assert [command.wait() for command in both] == [75, 75]
    assert (both[0].stderr + both[1].stderr).count("Stopped by SIGTERM") == 1
    run = RunDir(tmp_path / "run")
    assert run.description()["status"] == "stopped"
    assert last(run.path).step >= 3


def test_a_stopped_job_is_resumed_by_two_and_by_one(start: Start, by_two: Path, tiny_npz: Path, tmp_path: Path) -> None:
    for out in (tmp_path / "two", tmp_path / "one"):
        both = start(*words("ce", tiny_npz, out), "run.stop_after_minutes=1e-9")
        assert [command.wait() for command in both] == [75, 75]
        assert last(out).step == 1
    both = start(*words("ce", tiny_npz, tmp_path / "two"), "--resume")
    assert [command.wait() for command in both] == [0, 0]
    again, unbroken = outcome(tmp_path / "two"), outcome(by_two)
    assert again == unbroken

    results = train(tiny_config("ce", tiny_npz, tmp_path / "one"), resume=True)
    assert_close(last(tmp_path / "one"), last(by_two))
    assert results["last"]["top1"] == unbroken["results"]["last"]["top1"]


def test_a_run_of_one_is_resumed_by_two(start: Start, tiny_npz: Path, tmp_path: Path) -> None:
    for model in ({"bn_shards": 2}, {"bn": "sync"}):
        train(tiny_config("ce", tiny_npz, tmp_path / "whole", model=model))
        config = tiny_config("ce", tiny_npz, tmp_path / "run", model=model)
        with pytest.raises(StoppedError):
            train(config, listener=At(2))
        model = {"backbone": "resnet8", **model}
        both = start(*words("ce", tiny_npz, tmp_path / "run", model=model), "--resume")
        assert [command.wait() for command in both] == [0, 0], both[0].stderr
        assert "Going on with 2 processes instead of 1" in both[0].stdout
        assert_close(last(tmp_path / "run"), last(tmp_path / "whole"))
        for folder in ("run", "whole"):
            RunDir(tmp_path / folder).delete()


@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_process_ends_the_others(killed: int, start: Start, tiny_npz: Path, tmp_path: Path) -> None:
    both = start(*words("concutmix", tiny_npz, tmp_path / "run", optim={"epochs": 4000, "batch": 8, "lr": 0.05}))
    wait_until(lambda: RunDir(tmp_path / "run").has_checkpoint)
    both[killed].send(signal.SIGKILL)
    began = time.monotonic()
    assert both[killed].wait() == -signal.SIGKILL
    assert both[1 - killed].wait() == 6
    seconds = time.monotonic() - began
    print(f"the other ended after {seconds:.1f} s")
    assert seconds < LIMIT
    assert "lost another one" in both[1 - killed].stderr
    assert last(tmp_path / "run").step >= 3


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="looks for processes in /proc")
def test_torchrun_ends_with_a_killed_process_and_leaves_none_behind(tiny_npz: Path, tmp_path: Path) -> None:
    given = words("ce", tiny_npz, tmp_path / "run", optim={"epochs": 4000, "batch": 8, "lr": 0.05})
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    running = subprocess.Popen(
        [*torchrun, "-m", "longtail", *given],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    workers: list[int] = []
    try:
        wait_until(RunDir(tmp_path / "run").metrics.is_file)
        workers = children(running.pid)
        assert len(workers) == 2
        os.kill(workers[1], signal.SIGKILL)
        began = time.monotonic()
        assert running.wait(timeout=LIMIT) != 0
        print(f"torchrun ended after {time.monotonic() - began:.1f} s")
        assert not [pid for pid in workers if Path(f"/proc/{pid}").exists()]
    finally:
        for pid in (running.pid, *workers):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        running.wait()
    assert read_json(tmp_path / "run" / "run.json")["processes"] == 2


@pytest.mark.slow
def test_four_processes_train_scenes_as_one_with_four_shards(tmp_path: Path) -> None:
    given = ["model.backbone=resnet8", "optim.epochs=1", "optim.batch=64", "run.threads=1", "run.compile=false"]
    given = ["train", "scenes/concutmix", *given]
    longtail = ["-m", "longtail"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "4"]
    subprocess.run([*torchrun, *longtail, *given, "--out", str(tmp_path / "four")], check=True, timeout=280)
    one = [*given, "model.bn_shards=4", "--out", str(tmp_path / "one")]
    subprocess.run([sys.executable, *longtail, *one], check=True, timeout=280)
    four, whole = (last(tmp_path / name).tensors for name in ("four", "one"))
    names = [name for name in whole if name.startswith("model/")]
    there, here = (torch.cat([tensors[name].double().flatten() for name in names]) for tensors in (four, whole))
    assert (there - here).norm() <= 1e-4 * here.norm()
    found, expected = (read_json(tmp_path / name / "results.json")["last"] for name in ("four", "one"))
    assert found["top1"] == pytest.approx(expected["top1"], abs=0.02)


@pytest.mark.slow
def test_torchrun_trains_from_shards_as_one_process_from_files(tmp_path: Path) -> None:
    """Streamed images with peaks, which each process carries for its own images, read by one reader each."""
    files = miniature(tmp_path / "files", "places-lt", classes=5)
    pack(settings("places-lt", files), tmp_path / "shards")
    given = ["train", "places-lt/smcl", "data.size=16", "model.backbone=resnet8", "optim.epochs=2", "optim.batch=8"]
    given += ["method.hidden=16", "method.dim=8", "method.mask_start=0", "method.mask_probability=0.5"]
    given += ["run.threads=1", "run.compile=false"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    two = [f"data.path={tmp_path / 'shards'}", "run.workers=1", "--out", str(tmp_path / "two")]
    one = [f"data.path={files}", "run.workers=0", "model.bn_shards=2", "--out", str(tmp_path / "one")]
    subprocess.run([*torchrun, "-m", "longtail", *given, *two], check=True, timeout=280)
    subprocess.run([sys.executable, "-m", "longtail", *given, *one], check=True, timeout=280)
    assert_close(last(tmp_path / "two"), last(tmp_path / "one"))
    described = [read_json(tmp_path / name / "run.json") for name in ("two", "one")]
    assert [about["processes"] for about in described] == [2, 1]
    assert described[0]["data"]["fingerprint"] == described[1]["data"]["fingerprint"]
    assert described[0]["peaks"] == described[1]["peaks"]
