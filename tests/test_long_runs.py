"""What only shows after many steps: memory, open files, pace; and how soon a signal is answered."""

from __future__ import annotations

import os
import signal
import statistics
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from amounts import NIGHTLY
from longtail.runs.rundir import RunDir
from longtail.training.listeners import Silent
from longtail.training.loop import train
from processes import Launcher, wait_until
from tiny import assignments, tiny_config, write_npz


class Meter(Silent):
    """Resident memory, open files and processor seconds, every ``every`` steps."""

    def __init__(self, every: int) -> None:
        self.every, self.last = every, 0.0
        self.memory: list[int] = []
        self.files: list[int] = []
        self.seconds: list[float] = []

    def stepped(self, step: int, logs: Mapping[str, float], images_per_second: float) -> None:
        if step % self.every == 0:
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            self.memory.append(pages * os.sysconf("SC_PAGE_SIZE"))
            self.files.append(len(list(Path("/proc/self/fd").iterdir())))
            now = time.process_time()
            self.seconds.append(now - self.last)
            self.last = now


def measured(folder: Path, steps: int, every: int, workers: int) -> Meter:
    """A run of ``steps`` steps, three to an epoch, each epoch evaluated and saved."""
    meter = Meter(every)
    own = {"optim": {"epochs": steps // 3 + 1}, "run": {"workers": workers}}
    train(tiny_config("concutmix", write_npz(folder / "data.npz"), folder / "run", **own), listener=meter)
    return meter


linux = pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="reads /proc")


@linux
def test_three_hundred_steps_leave_no_file_open_and_little_memory_behind(tmp_path: Path) -> None:
    meter = measured(tmp_path, 300, 50, workers=2)
    assert max(meter.files) <= min(meter.files) + 3, meter.files
    assert meter.memory[-1] - meter.memory[1] < 20 * 2**20, meter.memory


@linux
@pytest.mark.slow
@pytest.mark.timeout(3600 * NIGHTLY)
@pytest.mark.parametrize("workers", [0, 2])
def test_ten_thousand_steps_take_no_more_memory_files_or_time_at_the_end(tmp_path: Path, workers: int) -> None:
    meter = measured(tmp_path, 10_000 * NIGHTLY, 500, workers)
    print(f"memory {(meter.memory[-1] - meter.memory[1]) / 2**20:.1f} MB, files {meter.files[0]} to {meter.files[-1]}")
    assert meter.memory[-1] - meter.memory[1] < 20 * 2**20, meter.memory
    assert max(meter.files) <= min(meter.files) + 3, meter.files
    early, late = meter.seconds[1:6], meter.seconds[-5:]
    assert statistics.median(late) < 1.3 * statistics.median(early), meter.seconds


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_answered_within_two_seconds_and_one_step(
    tiny_npz: Path, tmp_path: Path, launch: Launcher, number: int
) -> None:
    """Ten moments, with a checkpoint every step, so that steps, saves and evaluations are all hit."""
    slowest = 0.0
    config = tiny_config("concutmix", tiny_npz, tmp_path / "run", optim={"epochs": 3000})
    words = ["train", *assignments({name: value for name, value in config.plain().items() if value is not None})]
    for moment in range(10):
        before = RunDir(tmp_path / "run").read_metrics()
        command = launch(*words, "run.checkpoint_minutes=1e-9", "--resume")
        wait_until(lambda: len(RunDir(tmp_path / "run").read_metrics()) > len(before))  # noqa: B023
        time.sleep(0.05 * moment)
        sent = time.monotonic()
        command.send(number)
        assert command.wait() == (75 if number == signal.SIGTERM else 130)
        slowest = max(slowest, time.monotonic() - sent)
        assert RunDir(tmp_path / "run").load_checkpoint() is not None
    print(f"slowest answer {slowest:.2f} s")
    assert slowest < 2.5, "two seconds and one tiny step"
