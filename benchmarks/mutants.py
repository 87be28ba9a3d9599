"""How many small faults their own tests see: a seeded random sample of mutants of the files that must not be wrong.

python benchmarks/mutants.py [--count 200] [--seed 0] [--jobs 2] [--files runs.rundir losses.contrastive] [--anew]

A mutant is one of these files with one operator, number, truth value, condition or call changed. Of its own test files
those tests that run the changed line run against it, the fastest first, until one fails; a mutant that none fails on
survives. The same seed gives the same mutants of the same files. Prints a line for each survivor and saves each verdict
to runs/bench/mutants.json as it is found: a second start goes on from there, and tries survivors again where their
tests have changed. A verdict holds for one content of the file that the mutant is of.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import copy
import hashlib
import importlib.abc
import importlib.machinery
import io
import json
import multiprocessing
import os
import resource
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
OUT = Path("runs/bench/mutants.json")
SECONDS = 1800
"""Of the clock, for what waits forever; for what computes forever see :func:`verdict`."""

OWN_TESTS: dict[str, tuple[str, ...]] = {
    "runs.rundir": ("test_rundir",),
    "training.state": ("test_state", "test_rundir", "test_resume"),
    "data.sampling": ("test_sampling",),
    "losses.classification": ("test_losses",),
    "losses.contrastive": ("test_contrastive",),
    "losses.margins": ("test_losses", "test_criteria"),
    "losses.parametric": ("test_paco",),
    "losses.rows": ("test_losses_in_chunks", "test_contrastive"),
    "losses.smoothing": ("test_losses", "test_criteria", "test_family"),
}
"""The files of checkpoints, samplers and losses, and the test files that are theirs."""

SWAPS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Div,
    ast.Pow: ast.Mult,
    ast.And: ast.Or,
    ast.Or: ast.And,
}


@dataclass(frozen=True)
class Mutant:
    """The ``number``-th change of a module of the package, and what it is, for people."""

    module: str
    number: int
    line: int
    change: str


def changes(tree: ast.Module) -> Iterator[tuple[int, str, Callable[[], None]]]:
    """Every change of a tree: its line, what it is, and the function that makes it, in the order of the source."""
    annotations = {id(inner) for node in ast.walk(tree) for part in _unread(node) for inner in ast.walk(part)}
    for node in ast.walk(tree):
        if id(node) in annotations or not hasattr(node, "lineno"):
            continue
        line, shown = node.lineno, ast.unparse(node).splitlines()[0][:70]
        if isinstance(node, ast.Compare | ast.BinOp | ast.BoolOp | ast.AugAssign):
            operators = node.ops if isinstance(node, ast.Compare) else [node.op]
            for place, operator in enumerate(operators):
                if type(operator) in SWAPS:
                    yield line, f"{shown}: {type(operator).__name__} swapped", _swap(node, place)
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            yield line, f"{shown}: sign turned round", _set(node, "op", ast.UAdd())
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            yield line, f"{shown}: not dropped", _set(node, "operand", ast.UnaryOp(ast.Not(), node.operand))
        elif isinstance(node, ast.Constant) and isinstance(node.value, bool | int | float):
            value = (not node.value) if isinstance(node.value, bool) else node.value + 1
            yield line, f"{node.value} becomes {value}", _set(node, "value", value)
        elif isinstance(node, ast.If | ast.IfExp | ast.While):
            negated = ast.UnaryOp(ast.Not(), node.test)
            yield line, f"{shown}: condition turned round", _set(node, "test", negated)
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            yield line, f"{shown}: left out", _set(node, "value", ast.Constant(None))


def _unread(node: ast.AST) -> list[ast.AST]:
    """What is in the source for readers and type checkers alone."""
    parts = [getattr(node, name, None) for name in ("annotation", "returns")]
    return [part for part in parts if isinstance(part, ast.AST)]


def _set(node: ast.AST, name: str, value: Any) -> Callable[[], None]:
    return lambda: setattr(node, name, value)


def _swap(node: ast.Compare | ast.BinOp | ast.BoolOp | ast.AugAssign, place: int) -> Callable[[], None]:
    def change() -> None:
        if isinstance(node, ast.Compare):
            node.ops[place] = SWAPS[type(node.ops[place])]()  # type: ignore[assignment]
        else:
            node.op = SWAPS[type(node.op)]()  # type: ignore[assignment]

    return change


def source_of(module: str) -> Path:
    """The file of a module, by its name below the package."""
    return ROOT / "src" / "longtail" / (module.replace(".", "/") + ".py")


def mutants(modules: Sequence[str]) -> list[Mutant]:
    """Every mutant of the modules, in the order of the sources."""
    found = []
    for module in modules:
        tree = ast.parse(source_of(module).read_text())
        found += [Mutant(module, n, line, change) for n, (line, change, _) in enumerate(changes(tree))]
    return found


def mutated(mutant: Mutant) -> ast.Module:
    """The module with the change made."""
    tree = ast.parse(source_of(mutant.module).read_text())
    for number, (_, _, change) in enumerate(list(changes(tree))):
        if number == mutant.number:
            change()
    return ast.fix_missing_locations(copy.deepcopy(tree))


class Importer(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Gives the mutated module to whoever imports it; every other module is itself."""

    def __init__(self, mutant: Mutant) -> None:
        self.name, self.tree = f"longtail.{mutant.module}", mutated(mutant)

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != self.name:
            return None
        place = str(source_of(name.removeprefix("longtail.")))
        return importlib.machinery.ModuleSpec(name, self, origin=place)

    def exec_module(self, module: ModuleType) -> None:
        module.__file__ = str(source_of(self.name.removeprefix("longtail.")))
        exec(compile(self.tree, module.__file__, "exec"), module.__dict__)


@dataclass
class Known:
    """What a run of a module's tests without a mutant tells: the seconds of each test, and who ran which line."""

    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    lines: dict[int, set[str]] = field(default_factory=dict)

    def tests_of(self, line: int) -> list[str]:
        """The tests to run on a change of a line, the fastest first: those that ran it, or all where import did."""
        ran = self.lines.get(line, set()) - {""}
        return sorted(ran or self.seconds, key=lambda name: self.seconds[name])


class Watch:
    """A plugin of pytest: which lines of a file each test runs, and how long it takes."""

    def __init__(self, path: Path) -> None:
        from coverage import Coverage

        self.coverage = Coverage(data_file=None, include=[str(path)], config_file=False)
        self.path, self.known = path, Known()
        self.coverage.start()

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.coverage.switch_context(nodeid)

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.known.seconds[report.nodeid] += report.duration

    def finished(self) -> Known:
        """What was seen."""
        self.coverage.stop()
        found = self.coverage.get_data().contexts_by_lineno(str(self.path))
        self.known.lines = {line: set(names) for line, names in found.items()}
        self.known.seconds = dict(self.known.seconds)
        return self.known


class Chosen:
    """A plugin of pytest: these tests in this order, and no others."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = {name: place for place, name in enumerate(names)}

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        items[:] = sorted((item for item in items if item.nodeid in self.names), key=lambda i: self.names[i.nodeid])


def tested(
    mutant: Mutant | None, module: str, names: Sequence[str], said: multiprocessing.connection.Connection
) -> None:
    """In a forked process: run the tests on the mutant (or on the module as it is); send pytest's code, what is known.

    Tests that the mutant makes compute for long end by the limit on processor time.
    """
    import pytest

    os.chdir(ROOT)
    plugin: Any
    if mutant is None:
        plugin = Watch(source_of(module))
    else:
        sys.meta_path.insert(0, Importer(mutant))
        plugin = Chosen(names)
    files = [f"tests/{name}.py" for name in OWN_TESTS[module]]
    words = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:randomly", *files]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        code = int(pytest.main(words, plugins=[plugin]))
    said.send((code, plugin.finished() if mutant is None else None))
    said.close()
    os._exit(0)


def run_tests(mutant: Mutant | None, module: str, names: Sequence[str], limit: int | None) -> tuple[int, Known | None]:
    """pytest's exit code and, without a mutant, what is known; minus a signal's number where one ended the process."""
    fork = multiprocessing.get_context("fork")
    here, there = fork.Pipe(duplex=False)

    def limited() -> None:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 5))
        tested(mutant, module, names, there)

    process = fork.Process(target=limited)
    process.start()
    there.close()
    try:
        if not here.poll(SECONDS):
            process.kill()
        found: tuple[int, Known | None] = here.recv()
    except EOFError:
        process.join()
        return process.exitcode or 1, None
    process.join()
    return found


def verdict(mutant: Mutant, known: Known) -> str:
    """killed, survived, or timed out (which counts as killed: somebody would notice)."""
    names = known.tests_of(mutant.line)
    limit = 60 + 10 * int(sum(known.seconds[name] for name in names))
    code, _ = run_tests(mutant, mutant.module, names, limit)
    if code in (4, 5):
        sys.exit(f"pytest ran no test on {mutant}.")
    return "survived" if code == 0 else "killed" if code > 0 else "timed out"


def digest_of(*paths: Path) -> str:
    """Of the contents of files, those that are there."""
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths if path.is_file())).hexdigest()


def earlier(seed: int) -> dict[tuple[str, int], dict[str, Any]]:
    """The verdicts that a run before this one found, by module and number."""
    if not OUT.is_file():
        return {}
    kept = json.loads(OUT.read_text())
    return {(row["module"], row["number"]): row for row in kept["mutants"]} if kept["seed"] == seed else {}


def main() -> None:
    """Read the command line, see which tests run which lines, and try the sample."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--files", nargs="*", default=list(OWN_TESTS), help=f"of {', '.join(OWN_TESTS)}")
    parser.add_argument("--anew", action="store_true", help="without the verdicts of an earlier run")
    given = parser.parse_args()
    import numpy as np
    import torch  # noqa: F401  # once for all forks: it is most of what a test run takes to start

    everything = mutants(given.files)
    order = np.random.Generator(np.random.Philox(given.seed)).permutation(len(everything))
    chosen = [everything[place] for place in sorted(order[: given.count])]
    began, results = time.monotonic(), {} if given.anew else earlier(given.seed)
    sources = {module: digest_of(source_of(module)) for module in OWN_TESTS}
    tests = {module: digest_of(*(ROOT / "tests" / f"{n}.py" for n in names)) for module, names in OWN_TESTS.items()}

    def save() -> None:
        rows = [results[mutant.module, mutant.number] for mutant in chosen if (mutant.module, mutant.number) in results]
        killed = sum(row["verdict"] != "survived" for row in rows)
        OUT.parent.mkdir(parents=True, exist_ok=True)
        OUT.write_text(json.dumps({"seed": given.seed, "killed": killed, "of": len(rows), "mutants": rows}, indent=1))

    def is_known(mutant: Mutant) -> bool:
        row = results.get((mutant.module, mutant.number))
        if row is None or row["change"] != mutant.change or row["source"] != sources[mutant.module]:
            return False
        return row["verdict"] != "survived" or row["tests"] == tests[mutant.module]

    def attempt(mutant: Mutant) -> None:
        results[mutant.module, mutant.number] = {
            **asdict(mutant),
            "verdict": verdict(mutant, known[mutant.module]),
            "source": sources[mutant.module],
            "tests": tests[mutant.module],
        }

    left = [mutant for mutant in chosen if not is_known(mutant)]
    known: dict[str, Known] = {}
    for module in dict.fromkeys(mutant.module for mutant in left):
        code, found = run_tests(None, module, (), None)
        if code or found is None:
            sys.exit(f"The tests of {module} fail without any mutant.")
        known[module] = found
    with ThreadPoolExecutor(given.jobs) as pool:
        for _ in pool.map(attempt, left):
            save()
    save()
    rows = [results[mutant.module, mutant.number] for mutant in chosen]
    for row in rows:
        if row["verdict"] == "survived":
            print(f"survived: {row['module']}:{row['line']}: {row['change']}")
    killed, minutes = sum(row["verdict"] != "survived" for row in rows), (time.monotonic() - began) / 60
    print(f"{killed} of {len(rows)} killed ({killed / len(rows):.1%}), of {len(everything)}; ", end="")
    print(f"{len(left)} of them tried now, in {minutes:.0f} minutes")


if __name__ == "__main__":
    main()
