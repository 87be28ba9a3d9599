"""The checks of tests/test_fuzz.py with inputs that atheris chooses by the lines they reach.

python benchmarks/fuzzing.py [PART OF A NAME] [--seconds 60]

Needs atheris (pip install atheris; it has wheels for Linux), which nothing else does: it is no dependency, and the
tests draw from the same strategies without it. Each check runs for so many seconds in a process of its own. Ends with 1
if one of them found anything but a typed error; atheris then prints the traceback.
"""

from __future__ import annotations

import argparse
import inspect
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))


def guided(seconds: int) -> Callable[..., Any]:
    """What stands in for ``fuzz`` of the tests: the bytes of atheris are what Hypothesis draws its examples from."""
    import atheris
    from hypothesis import HealthCheck, given, settings

    def fuzz(count: int, **strategies: Any) -> Callable[[Callable[..., None]], None]:
        def run(check: Callable[..., None]) -> None:
            drawn = settings(database=None, deadline=None, suppress_health_check=list(HealthCheck))
            one = drawn(given(**strategies)(check)).hypothesis.fuzz_one_input
            words = [
                f"-max_total_time={seconds}",
                "-max_len=4096",
                "-rss_limit_mb=0",
                "-seed=1",
                "-print_final_stats=1",
            ]
            atheris.Setup([sys.argv[0], *words], lambda content: one(content) and None)
            atheris.Fuzz()

        return run

    return fuzz


def run_here(node: str, seconds: int, folder: str) -> None:
    """Run one test in this process, which atheris ends."""
    import atheris

    with atheris.instrument_imports(include=["longtail"]):
        import test_fuzz
    import pytest

    test_fuzz.fuzz = guided(seconds)
    sys.exit(
        pytest.main(
            [
                "-q",
                "-s",
                "-W",
                "ignore::pytest.PytestAssertRewriteWarning",
                "-o",
                "timeout=0",
                "-p",
                "no:cacheprovider",
                f"--basetemp={folder}/run",
                node,
            ]
        )
    )


def nodes(part: str) -> list[str]:
    """The tests whose name holds ``part``, each with its first, small count, which is not looked at."""
    import test_fuzz

    names = [name for name, value in vars(test_fuzz).items() if name.startswith("test_") and inspect.isfunction(value)]
    words = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", "tests/test_fuzz.py"]
    found = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    return [line for line in found if "::" in line and part in line and re.split(r"::|\[", line)[1] in names]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="?", default="")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--here", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.here:
        run_here(given.part, given.seconds, given.here)
    failed = []
    for node in nodes(given.part):
        with tempfile.TemporaryDirectory() as folder:
            words = [sys.executable, __file__, node, "--seconds", str(given.seconds), "--here", folder]
            ended = subprocess.run(words, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        units = re.search(r"number_of_executed_units: (\d+)", ended.stderr)
        print(f"{node}: {units[1] if units else 'no'} inputs, exit code {ended.returncode}", flush=True)
        if ended.returncode or not units:
            failed.append(node)
            print(ended.stderr, file=sys.stderr)
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
