"""How many small faults their own tests see: a seeded random sample of mutants of the files that must not be wrong.

python benchmarks/mutants.py [--count 200] [--seed 0] [--jobs 2] [--files rundir losses.contrastive]

A mutant is one of these files with one operator, number, truth value, condition or call changed. Its own test files run
against it until the first failure; a mutant that no test fails on survives. The same seed gives the same mutants of the
same files. Prints a line for each survivor and saves all to runs/bench/mutants.json.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import copy
import importlib.abc
import importlib.machinery
import io
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
OUT = Path("runs/bench/mutants.json")
SECONDS = 300

OWN_TESTS: dict[str, tuple[str, ...]] = {
    "rundir": ("test_rundir",),
    "state": ("test_rundir", "test_resume"),
    "data.sampling": ("test_sampling",),
    "losses.classification": ("test_losses",),
    "losses.contrastive": ("test_contrastive",),
    "losses.margins": ("test_losses", "test_criteria"),
    "losses.parametric": ("test_paco",),
    "losses.smoothing": ("test_losses", "test_family"),
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


def tested(mutant: Mutant | None, tests: Sequence[str], said: multiprocessing.connection.Connection) -> None:
    """In a forked process: run the tests on the mutant (or on the module as it is) and send pytest's exit code."""
    import pytest

    os.chdir(ROOT)
    if mutant is not None:
        sys.meta_path.insert(0, Importer(mutant))
    files = [f"tests/{name}.py" for name in tests]
    words = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:randomly", *files]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        code = int(pytest.main(words))
    said.send(code)
    said.close()
    os._exit(0)


def verdict(mutant: Mutant | None, tests: Sequence[str]) -> str:
    """killed, survived, or timed out (which counts as killed: somebody would notice)."""
    fork = multiprocessing.get_context("fork")
    here, there = fork.Pipe(duplex=False)
    process = fork.Process(target=tested, args=(mutant, tests, there))
    process.start()
    there.close()
    process.join(SECONDS)
    if process.is_alive():
        process.kill()
        process.join()
        return "timed out"
    try:
        code = here.recv()
    except EOFError:
        return "killed"  # the process itself died
    return "survived" if code == 0 else "killed"


def main() -> None:
    """Read the command line, check that the tests pass on what is there, and try the sample."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--files", nargs="*", default=list(OWN_TESTS), help=f"of {', '.join(OWN_TESTS)}")
    given = parser.parse_args()
    import numpy as np
    import torch  # noqa: F401  # once for all forks: it is most of what a test run takes to start

    everything = mutants(given.files)
    order = np.random.Generator(np.random.Philox(given.seed)).permutation(len(everything))
    chosen = [everything[place] for place in sorted(order[: given.count])]
    for module in dict.fromkeys(mutant.module for mutant in chosen):
        if verdict(None, OWN_TESTS[module]) != "survived":
            sys.exit(f"The tests of {module} fail without any mutant.")
    began, results = time.monotonic(), []
    with ThreadPoolExecutor(given.jobs) as pool:
        for mutant, found in zip(chosen, pool.map(lambda m: verdict(m, OWN_TESTS[m.module]), chosen), strict=True):
            results.append({**asdict(mutant), "verdict": found})
            if found == "survived":
                print(f"survived: {mutant.module}:{mutant.line}: {mutant.change}", flush=True)
    killed = sum(result["verdict"] != "survived" for result in results)
    minutes = (time.monotonic() - began) / 60
    print(
        f"{killed} of {len(results)} killed ({killed / len(results):.1%}), of {len(everything)}; {minutes:.0f} minutes"
    )
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps({"seed": given.seed, "killed": killed, "of": len(results), "mutants": results}, indent=1))


if __name__ == "__main__":
    main()
