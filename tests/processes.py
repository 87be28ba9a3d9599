"""Commands in processes of their own, without paying PyTorch's import for each: a parent imports it once and forks."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

SERVER = """
import json, os, sys
import torch
torch.set_num_threads(1)
import longtail.api, longtail.cli, longtail.training.display
for line in sys.stdin:
    order = json.loads(line)
    child = os.fork()
    if child == 0:
        for number, path in enumerate((os.devnull, order["stdout"], order["stderr"])):
            os.dup2(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), number)
        sys.argv = ["longtail", *order["words"]]
        code = 0
        try:
            longtail.cli.main()
        except SystemExit as stop:
            code = stop.code or 0
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Command:
    """One ``longtail ...`` that runs in a process of its own."""

    def __init__(self, server: subprocess.Popen[str], words: Sequence[str], place: Path) -> None:
        self.server, self.place = server, place
        assert server.stdin is not None
        assert server.stdout is not None
        order = {"words": list(words), "stdout": f"{place}.stdout", "stderr": f"{place}.stderr"}
        server.stdin.write(json.dumps(order) + "\n")
        server.stdin.flush()
        self.pid = int(server.stdout.readline())
        self.code: int | None = None

    def send(self, number: int = signal.SIGKILL) -> None:
        """Send a signal; one that comes too late is none."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    @property
    def is_running(self) -> bool:
        """Whether it has not ended."""
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        return self.code is None

    def wait(self) -> int:
        """The exit code; minus the signal's number if one ended it."""
        if self.code is None:
            assert self.server.stdout is not None
            self.code = int(self.server.stdout.readline())
        return self.code

    @property
    def stdout(self) -> str:
        return Path(f"{self.place}.stdout").read_text()

    @property
    def stderr(self) -> str:
        return Path(f"{self.place}.stderr").read_text()


class Launcher:
    """Starts commands, one at a time."""

    def __init__(self, place: Path, **environment: str) -> None:
        self.place, self.commands = place, list[Command]()
        self.server = subprocess.Popen(
            [sys.executable, "-c", SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        )

    def __call__(self, *words: str) -> Command:
        self._end_last()
        self.commands.append(Command(self.server, words, self.place / f"command-{len(self.commands)}"))
        return self.commands[-1]

    def _end_last(self) -> None:
        """A test that failed may have left its command behind."""
        if self.commands and self.commands[-1].code is None:
            self.commands[-1].send(signal.SIGKILL)
            self.commands[-1].wait()

    def close(self) -> None:
        """End the parent."""
        self._end_last()
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        self.server.stdin.close()
        self.server.stdout.close()
        if not self.commands:  # it may be importing PyTorch still, for nobody
            self.server.kill()
        self.server.wait(timeout=60)


def wait_until(happened: Callable[[], bool], seconds: float = 240.0) -> None:
    """Look every few milliseconds until ``happened()``; fail after ``seconds``, which a busy machine may well take."""
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, "what was waited for did not happen"
        time.sleep(0.002)
