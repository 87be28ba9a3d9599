"""What imports what: one way only, no PyTorch before it is needed, accelerators named in one file."""

from __future__ import annotations

import ast
import graphlib
import importlib
import re
import resource
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import longtail

SOURCE = Path(longtail.__file__).parent

LAYERS = [
    ["errors", "settings", "rng", "files", "layers", "other_words", "processes"],
    ["data", "models", "losses", "mixing", "saliency"],
    ["methods"],
    ["evaluation"],
    ["config", "training_settings"],
    ["runs", "recipes"],
    ["training"],
    ["prediction"],
    ["explain"],
    ["report"],
    ["api"],
    ["study", "exchange", "estimator", "estimator_inputs"],
    ["commands"],
    ["cli"],
    ["__main__"],
]
"""From the bottom: a module imports from its own layer and those before, never from a later one."""

PARTS = ["data", "models", "losses", "mixing", "saliency"]


def module_name(path: Path) -> str:
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def imports() -> dict[str, set[str]]:
    """For each module of ours, by its name below the package, those it imports, wherever in the file it does.

    An import for the type checker alone does not count: it is not there when the program runs.
    """
    trees = {module_name(path): ast.parse(path.read_text()) for path in SOURCE.rglob("*.py")}
    found: dict[str, set[str]] = {}
    for name, tree in trees.items():
        ignored = {
            id(inner)
            for node in ast.walk(tree)
            if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
            for statement in node.body
            for inner in ast.walk(statement)
        }
        found[name] = set()
        for node in ast.walk(tree):
            if id(node) in ignored:
                continue
            if isinstance(node, ast.Import):
                found[name] |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{name}: imports are absolute"
                base = str(node.module)
                inner = {f"{base}.{alias.name}" for alias in node.names}
                found[name] |= {i if i.removeprefix("longtail.") in trees else base for i in inner}
        ours = {i for i in found[name] if i == "longtail" or i.startswith("longtail.")}
        found[name] = {i.removeprefix("longtail").removeprefix(".") for i in ours}
    return found


def layer_of(module: str) -> int:
    top = module.partition(".")[0]
    found = [number for number, layer in enumerate(LAYERS) if top in layer]
    assert len(found) == 1, f"give '{top}' a place in LAYERS"
    return found[0]


@pytest.mark.parametrize("module", sorted(imports()))
def test_a_module_imports_only_from_its_own_layer_or_below(module: str) -> None:
    if module == "":
        assert imports()[module] == set(), "the package itself imports lazily"
        return
    upward = {other for other in imports()[module] if other and layer_of(other) > layer_of(module)}
    assert not upward


def test_no_module_imports_itself_on_a_way_around() -> None:
    graphlib.TopologicalSorter(imports()).prepare()  # raises CycleError, which shows the way


def test_no_package_imports_itself_on_a_way_around() -> None:
    between: dict[str, set[str]] = {}
    for module, others in imports().items():
        if module:
            package = module.partition(".")[0]
            between.setdefault(package, set()).update({other.partition(".")[0] for other in others} - {package, ""})
    graphlib.TopologicalSorter(between).prepare()


def test_parts_know_no_configuration_and_no_method() -> None:
    above = {"config", "methods", "training", "recipes", "runs"}
    for module, others in imports().items():
        if module.partition(".")[0] in PARTS:
            assert not {other.partition(".")[0] for other in others} & above, module


def test_methods_know_no_configuration() -> None:
    for module, others in imports().items():
        if module.startswith("methods"):
            assert {other.partition(".")[0] for other in others} <= {*PARTS, "methods", "settings", "errors", "rng"}


def names_in_code(tree: ast.AST) -> set[str]:
    """Every identifier, attribute and string of a file but its docstrings."""
    documentation = {
        id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            found.add(node.id)
        elif isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.alias):
            found.add(node.name)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation:
            found.add(node.value)
    return found


def test_an_accelerator_is_named_in_one_file_only() -> None:
    naming = {
        module_name(path)
        for path in SOURCE.rglob("*.py")
        if any(re.search(r"\b(cuda|mps)\b", name) for name in names_in_code(ast.parse(path.read_text())))
    }
    assert naming == {"processes.device"}


def loaded_by(program: str) -> set[str]:
    """The modules that a fresh interpreter has loaded at the end of ``program``."""
    ending = "\nimport sys\nprint('modules:', *sys.modules)"
    ran = subprocess.run([sys.executable, "-c", program + ending], capture_output=True, text=True, check=True)
    return set(ran.stdout.partition("modules:")[2].split())


def test_importing_the_package_needs_no_pytorch() -> None:
    loaded = loaded_by("import longtail; longtail.__version__; dir(longtail)")
    assert "longtail" in loaded
    assert not loaded & {"torch", "numpy", "matplotlib", "pydantic"}


def test_help_needs_no_pytorch() -> None:
    program = """
from longtail.cli import main
for words in (["--help"], ["train", "--help"], ["eval", "--help"], ["report", "--help"]):
    try:
        main(words)
    except SystemExit as stop:
        assert stop.code == 0, stop.code
"""
    assert not loaded_by(program) & {"torch", "numpy", "matplotlib", "torchvision"}


def test_help_takes_less_than_four_tenths_of_a_second() -> None:
    """Of the processor, so that what else the machine does has little say in it; the best of three."""

    def seconds() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "longtail", "--help"], check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    seconds()  # compiles
    assert min(seconds() for _ in range(3)) < 0.4


def test_the_public_names_are_there_and_nothing_else_is() -> None:
    assert set(longtail.__all__) == {"LongTailClassifier", "Model", "Run", "__version__", "load", "train"}
    importlib.import_module("longtail.training.loop")  # a module must not stand in the way of a public name
    for name in ("train", "load", "Run", "Model", "LongTailClassifier"):
        assert callable(getattr(longtail, name))
        assert callable(getattr(longtail, name)), "the second use"
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        longtail.nothing  # noqa: B018
