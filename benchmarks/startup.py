"""Time to start, and the memory of a run, each in a process of its own."""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve()


def seconds_of_help(repeats: int) -> float:
    """Median seconds of ``longtail --help``."""
    took = []
    for _ in range(repeats):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", "longtail", "--help"], check=True, capture_output=True)
        took.append(time.perf_counter() - began)
    return round(statistics.median(took), 3)


def first_steps(config: Path, steps: int) -> dict[str, float]:
    """Seconds from the start of Python to the end of the first step, and peak resident memory after ``steps``."""
    began = time.perf_counter()
    child = subprocess.Popen([sys.executable, str(HERE), str(config), str(steps)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    child.stdout.readline()
    first = time.perf_counter() - began
    said = child.stdout.read()
    if child.wait() != 0:
        raise SystemExit(f"the run of {config} ended with exit code {child.returncode}")
    peak: dict[str, float] = json.loads(said)
    return {"first_step_s": round(first, 2), **peak}


def main() -> None:
    """Train by the configuration file given, say when the first step is done, and leave after some more."""
    from longtail.recipes import load_config
    from longtail.training.listeners import Silent
    from longtail.training.loop import train

    class EnoughError(Exception):
        pass

    class Watch(Silent):
        def stepped(self, step: int, logs: Mapping[str, float], images_per_second: float) -> None:
            if step == 1:
                print("first", flush=True)
            if step == int(sys.argv[2]):
                raise EnoughError

    config: Any = load_config(sys.argv[1])
    try:
        train(config, overwrite=True, listener=Watch())
    except EnoughError:
        unit = 1 if sys.platform == "darwin" else 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
        print(json.dumps({"peak_memory_mib": round(peak, 1)}))


if __name__ == "__main__":
    main()
