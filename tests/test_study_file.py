"""A study file: what it takes, how it becomes runs, and that what is wrong in it is refused with its line and key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from longtail.errors import ConfigError
from longtail.layers import parse_assignments
from longtail.methods import METHODS
from longtail.recipes import load_config
from longtail.study import Study, read_study
from longtail.study.cells import Cell, assignments, key_of, study_cells

SHIPPED = sorted((Path(__file__).resolve().parents[1] / "studies").glob("*.yaml"))

GOOD = """name: small
base: scenes/ce
seeds: [0, 1]
settings: {run: {threads: 1}}
baseline: host
rows:
  host: {}
  bcl:
    recipe: scenes/bcl
    method:
      dim: 16
    optim.lr: 0.05
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "study.yaml"
    path.write_text(text)
    return path


def read(folder: Path, text: str, **overrides: Any) -> Study:
    return read_study(written(folder, text), overrides)


def cells_of(folder: Path, text: str) -> list[Cell]:
    return study_cells(read(folder, text), folder / "out")


def labels(study: Study) -> list[str]:
    return [row.label for row in study.rows]


# Reading --------------------------------------------------------------------------------------------------------------


def test_a_row_is_its_recipe_with_the_common_and_its_own_settings_over_it(tmp_path: Path) -> None:
    study = read(tmp_path, GOOD)
    wanted = load_config("scenes/bcl", ["run.threads=1", "method.dim=16", "optim.lr=0.05", "seed=1"])
    assert study.config(study.rows[1], 1) == wanted
    assert labels(study) == ["host", "bcl"]
    assert (study.name, study.seeds, study.baseline) == ("small", (0, 1), "host")


@pytest.mark.parametrize("row", ["{optim: {lr: 0.3, batch: 16}}", "{optim.lr: 0.3, optim.batch: 16}"])
def test_nested_and_dotted_keys_say_the_same(tmp_path: Path, row: str) -> None:
    study = read(tmp_path, f"name: a\nbase: scenes/ce\nseeds: [0]\nrows: {{x: {row}}}\n")
    assert study.config(study.rows[0], 0) == load_config("scenes/ce", ["optim.lr=0.3", "optim.batch=16"])


def test_a_row_goes_over_the_common_settings_and_the_command_line_over_both(tmp_path: Path) -> None:
    text = (
        "name: a\nbase: scenes/ce\nseeds: [0]\nsettings: {optim.lr: 0.2, optim.batch: 8}\nrows: {x: {optim.lr: 0.3}}\n"
    )
    study = read(tmp_path, text, optim={"epochs": 3})
    optim = study.config(study.rows[0], 0).optim
    assert (optim.lr, optim.batch, optim.epochs) == (0.3, 8, 3)


def test_a_grid_is_the_product_of_its_values(tmp_path: Path) -> None:
    text = "name: a\nbase: scenes/bcl\nseeds: [0]\ngrid: {method.alpha: [0, 1.5], optim: {epochs: [1, 2]}}\n"
    study = read(tmp_path, text)
    assert labels(study) == [
        "alpha=0, epochs=1",
        "alpha=0, epochs=2",
        "alpha=1.5, epochs=1",
        "alpha=1.5, epochs=2",
    ]
    config = study.config(study.rows[3], 0)
    assert (config.plain()["method"]["alpha"], config.optim.epochs) == (1.5, 2)


def test_rows_and_a_grid_are_multiplied(tmp_path: Path) -> None:
    text = "name: a\nbase: scenes/ce\nseeds: [0]\nrows: {x: {}, y: {optim.lr: 1}}\ngrid: {optim.epochs: [1, 2]}\n"
    assert labels(read(tmp_path, text)) == ["x, epochs=1", "x, epochs=2", "y, epochs=1", "y, epochs=2"]


def test_axes_of_the_same_last_word_are_told_apart(tmp_path: Path) -> None:
    text = "name: a\nbase: scenes/ce\nseeds: [0]\ngrid: {data.name: [scenes], method.name: [ce, bcl]}\n"
    assert labels(read(tmp_path, text))[1] == "data.name=scenes, method.name=bcl"


def test_anchors_and_merge_keys_of_yaml_are_understood(tmp_path: Path) -> None:
    rows = "rows:\n  x: &x {optim.lr: 0.3, optim.batch: 8}\n  y: {<<: *x, optim.lr: 0.4}\n"
    text = f"name: a\nbase: scenes/ce\nseeds: [0]\n{rows}"
    study = read(tmp_path, text)
    optim = study.config(study.rows[1], 0).optim
    assert (optim.lr, optim.batch) == (0.4, 8)


def test_a_base_that_is_a_file_is_looked_for_beside_the_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own.yaml").write_text("data: {name: scenes}\nmethod: {name: ce}\noptim: {lr: 0.7}\n")
    path = written(tmp_path, "name: a\nbase: own.yaml\nseeds: [0]\nrows: {x: {}}\n")
    monkeypatch.chdir("/")
    study = read_study(path)
    assert study.config(study.rows[0], 0).optim.lr == 0.7


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_study_that_is_shipped_can_be_read(path: Path) -> None:
    study = read_study(path, {"data": {"path": "images.npz"}} if "cifar" in path.stem else {})
    assert study.name == path.stem


def test_the_family_is_every_method() -> None:
    study = read_study(next(path for path in SHIPPED if path.stem == "family-scenes"))
    there = {study.config(row, 0).method_name for row in study.rows if row.initial_row is None}
    assert set(METHODS) <= there | set(labels(study)), "give the new method a row in studies/family-scenes.yaml"


# Refusals -------------------------------------------------------------------------------------------------------------

BASE = "name: a\nbase: scenes/bcl\nseeds: [0]\n"

REFUSED = [
    ("name: [\n", 2, "not YAML", ""),
    ("name: a\nname: b\n", 2, "'name' stands twice", ""),
    ("- 1\n", 1, "not a mapping", ""),
    ("", 1, "no 'name'", ""),
    ("name: a\nseeds: [0]\n", 1, "neither 'rows' nor 'grid'", "recipe:"),
    ("name: ../x\nseeds: [0]\nrows: {a: {}}\n", 1, "name=", ""),
    ("name: a\nseed: [0]\n", 2, "Unknown key 'seed'", "'seeds'"),
    ("name: a\nseeds: 3\nrows: {a: {}}\nbase: scenes/ce\n", 2, "seeds=3", ""),
    ("name: a\nseeds: [0, 0]\nrows: {a: {}}\nbase: scenes/ce\n", 2, "twice", ""),
    ("name: a\nseeds: [true]\nrows: {a: {}}\nbase: scenes/ce\n", 2, "seeds=", ""),
    ("name: a\nseeds: [-1]\nrows: {a: {}}\nbase: scenes/ce\n", 2, "seeds=", ""),
    ("name: a\nseeds: [0]\nrows:\n  x: {}\n", 4, "no recipe", "base"),
    ("name: a\nseeds: [0]\nbase: [1]\nrows:\n  x: {}\n", 3, "base=", ""),
    (BASE + "rows:\n", 4, "'rows' is empty", ""),
    (BASE + "rows: {}\n", 4, "'rows' is empty", ""),
    (BASE + "rows: 3\n", 4, "rows is not a mapping", ""),
    (BASE + "rows:\n  x: 3\n", 5, "row 'x' is not a mapping", ""),
    (BASE + "grid: {}\n", 4, "'grid' is empty", ""),
    (BASE + "grid:\n  optim.lr: 0.1\n", 5, "optim.lr=0.1", "list"),
    (BASE + "grid:\n  optim.lr: []\n", 5, "optim.lr=[]", "list"),
    (BASE + "rows:\n  x: {}\n  x: {}\n", 6, "'x' stands twice", ""),
    (BASE + "rows:\n  x y: {}\n  x-y: {}\n", 6, "would share the folder x-y", ""),
    (BASE + "rows:\n  '..': {}\n", 5, "cannot be the name of a row", ""),
    (BASE + "baseline: ful\nrows: {full: {}}\n", 4, "no row 'ful'", "'full'"),
    (BASE + "rows:\n  x:\n    seed: 3\n", 6, "'seed' is set by the study", ""),
    (BASE + "rows:\n  x:\n    out: y\n", 6, "'out' is set by the study", ""),
    (BASE + "rows:\n  x:\n    method.alpa: 3\n", 6, "Unknown key 'method.alpa'", "method.alpha"),
    (BASE + "rows:\n  x:\n    method:\n      alpha: 1\n      bta: 3\n", 8, "Unknown key 'method.bta'", "method.beta"),
    (BASE + "rows:\n  x:\n    optin.lr: 3\n", 6, "Unknown key 'optin'", "optim"),
    (BASE + "settings:\n  optim.lr: 0\nrows:\n  x: {}\n", 5, "optim.lr=0", ""),
    (BASE + "grid:\n  optim.epochs: [1, 0]\n", 5, "row 'epochs=0': optim.epochs=0", ""),
    (BASE + "rows:\n  x: {}\n  y:\n    optim.batch: many\n", 7, "optim.batch='many'", ""),
    (BASE + "rows:\n  x:\n    optim.nesterov: false\n    optim.lr: yes\n", 7, "optim.lr=True", "true or false"),
    (BASE + "rows:\n  x:\n    optim: 3\n", 6, "'optim' is a group of keys", ""),
    (BASE + "rows:\n  x:\n    optim: 3\n    optim.lr: 1\n", 7, "already has a value", ""),
    (BASE + "rows:\n  x:\n    optim: {lr: 1}\n    optim.lr: 2\n", 7, "'optim.lr' stands twice", ""),
    (BASE + "rows:\n  x:\n    recipe: scenes/bcll\n", 6, "Unknown method 'bcll'", "'bcl'"),
    ("name: a\nseeds: [0]\nbase: scnes/ce\nrows: {x: {}}\n", 3, "Unknown data set 'scnes'", "'scenes'"),
    ("name: a\nseeds: [0]\nbase: absent.yaml\nrows: {x: {}}\n", 3, "cannot be read", ""),
    (BASE + "rows:\n  x:\n    recipe: 3\n", 6, "recipe=3", ""),
    (BASE + "rows:\n  x:\n    model.backbone: resnet88\n", 6, "(model.backbone): Unknown backbone", "resnet8"),
    (BASE + "rows:\n  x:\n    views.classification: crop-flop\n", 6, "Unknown view 'crop-flop'", "crop-flip"),
    (BASE + "rows:\n  x:\n    data.name: npz\n", 6, "'npz' needs data.path", "data.path"),
    (BASE + "rows:\n  x:\n    init: row:y\n  y: {}\n", 6, "no row 'y'", ""),
    (BASE + "rows:\n  x:\n    init: row:x\n", 6, "cannot start from itself", ""),
    (BASE + "rows:\n  x:\n    [1, 2]: 3\n", 6, "not a plain word", ""),
    (BASE + "rows:\n  x:\n    optim.lr: !!python/name:os.getcwd ''\n", 6, "not YAML", ""),
]


@pytest.mark.parametrize(("text", "line", "words", "hint"), REFUSED, ids=[words for _, _, words, _ in REFUSED])
def test_what_is_wrong_is_refused_with_file_line_and_key(
    tmp_path: Path, text: str, line: int, words: str, hint: str
) -> None:
    path = written(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        read_study(path)
    assert caught.value.exit_code == 2
    assert caught.value.message.startswith(f"{path}:{line}: "), caught.value.message
    assert words in caught.value.message
    assert hint in str(caught.value)
    assert "\n" not in caught.value.message


def test_a_study_that_is_not_there_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.yaml"):
        read_study(tmp_path / "absent.yaml")


@pytest.mark.parametrize("key", ["seed", "out"])
def test_the_command_line_cannot_set_what_the_study_sets(tmp_path: Path, key: str) -> None:
    with pytest.raises(ConfigError, match="set by the study"):
        read(tmp_path, GOOD, **{key: 1})


# Cells ----------------------------------------------------------------------------------------------------------------


def test_cells_come_seed_by_seed(tmp_path: Path) -> None:
    cells = cells_of(tmp_path, GOOD)
    assert [cell.folder.name for cell in cells] == ["host-s0", "bcl-s0", "host-s1", "bcl-s1"]
    assert [cell.config.seed for cell in cells] == [0, 0, 1, 1]


def test_rows_of_the_same_configuration_are_one_run(tmp_path: Path) -> None:
    text = (
        "name: a\nbase: scenes/ce\nseeds: [0]\nrows: {x: {}, y: {optim.lr: 0.1, method.tau: 1}, z: {optim.lr: 0.2}}\n"
    )
    cells = cells_of(tmp_path, text)
    assert [cell.labels for cell in cells] == [["x", "y"], ["z"]]


def test_rows_that_differ_in_their_images_alone_are_two_runs(tmp_path: Path) -> None:
    text = "name: a\nbase: npz/ce\nseeds: [0]\nrows: {x: {data.path: a.npz}, y: {data.path: b.npz}}\n"
    cells = cells_of(tmp_path, text)
    assert [cell.labels for cell in cells] == [["x"], ["y"]]


def test_the_words_of_a_cell_repeat_its_configuration(tmp_path: Path) -> None:
    text = """name: a
base: scenes/bcl
seeds: [7]
rows:
  x:
    optim: {lr: 0.00001, milestones: [0.5, 16], nesterov: true, schedule: step}
    data.path: "a b/ü=1, 'x'.npz"
    init: "1e5"
    data.imbalance: null
    method: {alpha: 1.0e-7}
"""
    cell = cells_of(tmp_path, text)[0]
    target, *words = cell.words
    assert load_config(target, [*words, f"out={cell.folder}"]) == cell.config


ODD_TEXTS = [
    "yes",
    "null",
    "1e5",
    "0x1F",
    "a: b",
    "# a",
    "it's",
    "-",
    "~",
    "2024-01-01",
    "",
    "resnet8",
    "/a: b",
    "./a #b",
    "/a ",
    "...",
    "\x7f",
]


@given(st.sampled_from(ODD_TEXTS) | st.text() | st.text(alphabet="01eExX.-_+:/~#'\"yYnNoOufatrslx "))
def test_a_text_is_read_back_as_the_same_text(value: str) -> None:
    assert parse_assignments(assignments({"a": {"b": value}})) == {"a": {"b": value}}


@pytest.mark.parametrize("name", ["bfloat16", "resnet8", "torchvision/resnet18", "class_balanced", "/a/b c.npz"])
def test_a_name_stands_without_quotes(name: str) -> None:
    assert assignments({"a": name}) == [f"a={name}"]


def test_a_cell_starts_from_the_cell_of_its_own_seed(tmp_path: Path) -> None:
    text = "name: a\nbase: scenes/ce\nseeds: [0, 1]\nrows: {x: {}, y: {init: 'row:x', optim.epochs: 2}}\n"
    cells = cells_of(tmp_path, text)
    for first, second in ((cells[0], cells[1]), (cells[2], cells[3])):
        assert second.start is first
        assert second.config.init == str(first.folder)
    assert cells[1].key != cells[3].key


def test_the_key_of_a_cell_is_known_before_what_it_starts_from_is_there(tmp_path: Path) -> None:
    text = "name: a\nbase: scenes/ce\nseeds: [0]\nrows: {x: {}, y: {init: 'row:x', optim.epochs: 2}}\n"
    first, second = cells_of(tmp_path, text)
    for cell in (first, second):
        cell.folder.mkdir(parents=True)
        (cell.folder / "config.yaml").write_text(yaml.safe_dump(cell.config.plain()))
    assert key_of(second.folder) == second.key
    assert cells_of(tmp_path, text)[1].key == second.key
