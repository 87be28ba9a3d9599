"""SIGTERM and Ctrl-C at the moments that matter most: while a run writes, and while its report is made."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import longtail.api as api
from amounts import amounts
from longtail.api import run_config
from longtail.errors import StoppedError
from longtail.runs.ending import stoppable
from longtail.runs.rundir import RunDir
from longtail.training.loop import train
from processes import Launcher, wait_until
from tiny import STEPS, Recorder, assignments, files_of, outcome, tiny_config

OFTEN: dict[str, Any] = {"run": {"checkpoint_minutes": 1e-9}}
"""A checkpoint after each step."""

REPORT_CALLS = 9
"""How often a report reaches the disk: two pictures and the page, each with fsync, rename and fsync of the folder."""

SIGNALS = [(signal.SIGTERM, 75), (signal.SIGINT, 130)]


class Struck:
    """Sends a signal before or after the n-th call that reaches the disk: fsync, rename, delete."""

    def __init__(self, patch: pytest.MonkeyPatch, call: int, number: int, after: bool) -> None:
        self.call, self.number, self.after, self.calls = call, number, after, 0
        patch.setattr(os, "fsync", self.around(os.fsync))
        patch.setattr(Path, "replace", self.around(Path.replace))
        patch.setattr(Path, "unlink", self.around(Path.unlink))

    def around(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            self.calls += 1
            due = self.calls == self.call
            if due and not self.after:
                signal.raise_signal(self.number)
            result = real(*given, **named)
            if due and self.after:
                signal.raise_signal(self.number)
            return result

        return call


@pytest.fixture(scope="module")
def unbroken(tiny_npz: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("unbroken") / "run"
    train(tiny_config("ce", tiny_npz, out, **OFTEN))
    return outcome(out)


@pytest.fixture(scope="module")
def calls(tiny_npz: Path, tmp_path_factory: pytest.TempPathFactory) -> int:
    """How often a run reaches the disk, from its first file to its results."""
    folder = tmp_path_factory.mktemp("counted")
    with pytest.MonkeyPatch.context() as patch:
        struck = Struck(patch, 0, 0, after=False)
        train(tiny_config("ce", tiny_npz, folder / "run", **OFTEN))
    return struck.calls


def spread(most: int, count: int) -> Sequence[int]:
    """About ``count`` of the numbers 1 to ``most``, the first and the last among them."""
    return sorted({1 + round(place * (most - 1) / (count - 1)) for place in range(count)})


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("count", amounts(6, 1000))
@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_a_signal_at_any_moment_of_writing_is_answered_when_that_is_written(
    tiny_npz: Path, tmp_path: Path, unbroken: dict[str, Any], calls: int, count: int, number: int, code: int
) -> None:
    """Within checkpoints, the best weights, metrics, descriptions, results; the full count strikes at every call."""
    assert calls > 8 * STEPS, "six of a checkpoint, and two deletions"
    steps = set()
    for call in spread(calls, min(count, calls)):
        folder = tmp_path / str(call)
        config, watched = tiny_config("ce", tiny_npz, folder, **OFTEN), Recorder()
        with pytest.MonkeyPatch.context() as patch:
            Struck(patch, call, number, after=bool(call % 2))
            with pytest.raises(StoppedError) as caught, stoppable():
                train(config, listener=watched)
        assert caught.value.exit_code == code
        found = RunDir(folder).load_checkpoint()
        assert (0 if found is None else found.step) == len(watched.steps), "that of the last finished step"
        steps.add(len(watched.steps))
        train(config, resume=True)
        assert outcome(folder) == unbroken, call
        assert not [name for name in files_of(folder) if name.endswith(".tmp")]
    print(f"struck {min(count, calls)} of {calls} calls")
    assert {0, STEPS} < steps


@pytest.fixture(scope="module")
def trained(tiny_npz: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The configuration of a run that has finished, without its report."""
    config = tiny_config("concutmix", tiny_npz, tmp_path_factory.mktemp("trained") / "run")
    train(config)
    return config


@pytest.mark.parametrize(
    ("number", "code", "after"),
    [
        (signal.SIGTERM, 75, False),
        (signal.SIGINT, 130, True),
        pytest.param(signal.SIGTERM, 75, True, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, 130, False, marks=pytest.mark.slow),
    ],
)
def test_a_signal_while_the_report_is_written_ends_it_at_once_and_loses_nothing(
    trained: Any, number: int, code: int, after: bool
) -> None:
    folder = Path(trained.out)
    before = {name: content for name, content in files_of(folder).items() if not name.startswith("plots/")}
    for call in range(1, REPORT_CALLS + 2):
        with pytest.MonkeyPatch.context() as patch:
            struck = Struck(patch, call, number, after)
            if call > REPORT_CALLS:
                run_config(trained, resume=True)
                assert struck.calls == REPORT_CALLS
                break
            with pytest.raises(StoppedError) as caught:
                run_config(trained, resume=True)
        assert caught.value.exit_code == code
        assert struck.calls == call, "nothing more was written"
        complete = (folder / "report.html").is_file()
        assert complete == (call + after > REPORT_CALLS - 1), "the last but one gives the page its name"
        (folder / "report.html").unlink(missing_ok=True)
    left = files_of(folder)
    assert left.pop("report.html").rstrip().endswith(b"</html>")
    assert {name: content for name, content in left.items() if not name.startswith("plots/")} == before
    (folder / "report.html").unlink()


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_a_signal_in_the_middle_of_a_page_does_not_wait_for_it(
    trained: Any, monkeypatch: pytest.MonkeyPatch, number: int, code: int
) -> None:
    def write(out: Path) -> None:
        signal.raise_signal(number)
        pytest.fail("the page was gone on with")

    monkeypatch.setattr(api, "write_report", write)
    with pytest.raises(StoppedError) as caught:
        run_config(trained, resume=True)
    assert caught.value.exit_code == code
    assert not (Path(trained.out) / "report.html").exists()


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_a_command_that_makes_its_report_answers_a_signal_within_two_seconds(
    tiny_npz: Path, tmp_path: Path, launch: Launcher, number: int, code: int
) -> None:
    """Ten moments from the first picture of the report on."""
    config = tiny_config("concutmix", tiny_npz, tmp_path / "run")
    train(config)
    words = ["train", *assignments({name: value for name, value in config.plain().items() if value is not None})]
    page, picture = tmp_path / "run" / "report.html", tmp_path / "run" / "plots" / "learning_curves.png"
    codes, slowest = [], 0.0
    for moment in range(10):
        page.unlink(missing_ok=True)
        picture.unlink(missing_ok=True)
        command = launch(*words, "--resume")
        wait_until(picture.is_file)
        time.sleep(0.02 * moment)
        sent = time.monotonic()
        if command.is_running:
            command.send(number)
        codes.append(command.wait())
        slowest = max(slowest, time.monotonic() - sent)
        assert "Traceback" not in command.stderr
        assert page.is_file() or codes[-1] == code
        assert not page.is_file() or page.read_text().rstrip().endswith("</html>")
    print(f"slowest answer {slowest:.2f} s, codes {codes}")
    assert set(codes) <= {0, code}
    assert codes[0] == code
    assert slowest < 2
