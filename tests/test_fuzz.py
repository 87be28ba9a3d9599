"""Fuzzing: whatever comes in, only our typed errors come out."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import longtail.cli as cli
from amounts import NIGHTLY, amounts
from longtail.config import build_config, known_keys
from longtail.data.files import list_files
from longtail.data.settings import DataSettings
from longtail.data.sources.npz import load_npz
from longtail.errors import ConfigError, DataError, LongtailError, RunError
from longtail.layers import load_yaml, parse_assignments
from longtail.methods import METHODS
from longtail.recipes import load_config
from longtail.runs.rundir import Checkpoint, RunDir
from longtail.training.state import RunState
from tiny import write_npz


def fuzz(count: int, **strategies: st.SearchStrategy[Any]) -> Callable[[Callable[..., None]], None]:
    """Call the function with ``count`` examples: the same every time, but for nightly runs."""

    def run(check: Callable[..., None]) -> None:
        often = settings(
            max_examples=count,
            derandomize=NIGHTLY == 1,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        )
        often(given(**strategies)(check))()

    return run


KEYS = sorted({*known_keys(), "data", "method", "optim.unknown", "nobody", "", ".", "a.b.c", "data.name.x"})

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-3, 3),
    st.floats(),
    st.floats(0, 2),
    st.text(max_size=8),
    st.sampled_from([*METHODS, "step", "cosine", "auto", "npz", "csv", "scenes", "1e30", "-1", "val", "~nobody/x"]),
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=4), inner, max_size=3)),
    max_leaves=6,
)


# Settings -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", amounts(60, 3000))
def test_any_values_for_any_keys_are_a_config_or_a_config_error(count: int) -> None:
    @fuzz(
        count,
        recipe=st.sampled_from(["scenes/ce", "npz/concutmix", "cifar10/smcl", "csv/paco", "folder/ldam-drw"]),
        given_=st.dictionaries(st.sampled_from(KEYS), values, max_size=4),
    )
    def check(recipe: str, given_: dict[str, Any]) -> None:
        nested: dict[str, Any] = {}
        for key, value in given_.items():
            group, dot, name = key.partition(".")
            if dot and isinstance(nested.setdefault(group, {}), dict):
                nested[group][name] = value
            elif not dot:
                nested[group] = value
        try:
            config = load_config(recipe, nested)
        except ConfigError:
            return
        assert build_config(load_yaml(yaml.safe_dump(config.plain()))) == config
        assert config.key() == build_config(config.plain()).key()


@pytest.mark.parametrize("count", amounts(60, 5000))
def test_any_text_is_yaml_or_a_yaml_error(count: int) -> None:
    pieces = st.sampled_from(
        ["a: ", "- ", "&x ", "*x ", "[", "]", "{", "}", "\n", "  ", "!!python/name:os ", "<<: ", "2020-13-99", "'", '"']
    )

    @fuzz(count, text=st.one_of(st.text(), st.lists(pieces, max_size=30).map("".join)))
    def check(text: str) -> None:
        try:
            load_yaml(text)
        except yaml.YAMLError:
            return
        try:
            expected = yaml.safe_load(text)
        except RecursionError:
            return
        assert repr(load_yaml(text)) == repr(expected)


@pytest.mark.parametrize("count", amounts(60, 3000))
def test_any_words_are_assignments_or_a_config_error(count: int) -> None:
    words = st.lists(st.one_of(st.text(), st.tuples(st.sampled_from(KEYS), st.text()).map("=".join)), max_size=4)

    @fuzz(count, words=words)
    def check(words: list[str]) -> None:
        try:
            found = parse_assignments(words)
        except ConfigError:
            return
        assert isinstance(found, dict)


@pytest.mark.parametrize("count", amounts(40, 500))
def test_any_command_line_ends_with_a_code_of_the_contract(
    count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is trained: a command line that is right is a dry run or a list."""
    monkeypatch.chdir(tmp_path)
    words = st.one_of(
        st.sampled_from(
            ["--out", "--resume", "--overwrite", "--help", "--debug", "--which", "-x", "=", "a=b", "x.yaml"]
        ),
        st.tuples(st.sampled_from(KEYS), st.text(max_size=6)).map("=".join),
        st.text(max_size=6),
    )
    starts = st.sampled_from(
        [
            ["train", "scenes/ce", "--dry-run"],
            ["train", "--dry-run"],
            ["eval"],
            ["predict"],
            ["report"],
            ["export"],
            ["import"],
            ["data", "check"],
            ["data", "stats"],
            ["methods"],
            ["study", "--dry-run"],
            [],
        ]
    )

    @fuzz(count, start=starts, words=st.lists(words, max_size=4))
    def check(start: list[str], words: list[str]) -> None:
        # The embedded set would be made, and shown; everything else has to be refused.
        given_ = [word for word in words if "\0" not in word and word not in ("schema",)]
        with pytest.raises(SystemExit) as ended:
            cli.main([*start, *given_])
        said = capsys.readouterr().err
        assert ended.value.code in (0, 2, 3, 4), said
        assert "bug of longtail" not in said

    assert sorted(path.name for path in tmp_path.iterdir()) == []


# Data -----------------------------------------------------------------------------------------------------------------


cells = st.one_of(
    st.text(max_size=8), st.sampled_from(["a.png", "../x", "/etc/passwd", "0", "-1", "1e9", "nan", '"', "\0"])
)


@pytest.mark.parametrize("count", amounts(60, 1500))
@pytest.mark.parametrize("name", ["list", "csv"])
def test_any_table_is_a_listing_or_a_data_error(name: str, count: int, tmp_path: Path) -> None:
    place = tmp_path / "root" / "table"
    place.parent.mkdir()
    lines = st.lists(st.lists(cells, max_size=3).map((" " if name == "list" else ",").join), max_size=6)
    text = lines.map("\n".join).map(lambda body: body if name == "list" else f"image,label\n{body}")

    @fuzz(count, content=st.one_of(st.binary(max_size=60), text.map(lambda made: made.encode("utf-8", "replace"))))
    def check(content: bytes) -> None:
        place.write_bytes(content)
        try:
            listing = list_files(DataSettings(name=name, path=str(place), size=8))
            listing.refuse_problems()
        except DataError:
            return
        for entries in listing.splits.values():
            assert all(Path(entry.path).is_relative_to(place.parent) for entry in entries)
            assert all(0 <= entry.label < len(listing.class_names) for entry in entries)


def rezipped(content: bytes, key: str, mend: Callable[[bytes], bytes]) -> bytes:
    """An archive with one member changed and its checksums right again."""
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(made, "w") as new:
        for name in old.namelist():
            new.writestr(name, mend(old.read(name)) if name == f"{key}.npy" else old.read(name))
    return made.getvalue()


@pytest.mark.parametrize("count", amounts(60, 3000))
def test_any_archive_is_a_source_or_a_data_error(count: int, tmp_path: Path) -> None:
    good = write_npz(tmp_path / "good.npz", val=1).read_bytes()
    place = tmp_path / "bad.npz"
    keys = [f"{split}_{what}" for split in ("train", "val", "test") for what in ("images", "labels")]
    shapes = st.lists(st.integers(0, 9), max_size=5).map(tuple)
    kinds = st.sampled_from(["u1", "i8", "f4", "U3", "S2", "O", "b1", "M8[s]", "c8", "V4", "f2"])

    @fuzz(
        count,
        key=st.sampled_from([*keys, "class_names"]),
        change=st.one_of(
            st.binary(max_size=80).map(lambda new: ("bytes", new)),
            st.tuples(st.integers(0, 200), st.integers(0, 255)).map(lambda at: ("flip", at)),
            st.tuples(shapes, kinds).map(lambda new: ("array", new)),
        ),
    )
    def check(key: str, change: tuple[str, Any]) -> None:
        how, what = change
        if how == "array":
            with np.load(io.BytesIO(good)) as archive:
                np.savez(place, **(dict(archive) | {key: np.zeros(*what)}))
        else:

            def mend(content: bytes) -> bytes:
                if how == "bytes":
                    return bytes(what)
                spoiled = bytearray(content)
                spoiled[what[0] % len(spoiled)] = what[1]
                return bytes(spoiled)

            place.write_bytes(rezipped(good, key, mend))
        try:
            source = load_npz(place)
        except DataError:
            return
        assert source.train.images.dtype == torch.uint8
        assert int(source.train.labels.min()) >= 0
        assert int(source.train.labels.max()) < len(source.class_names)


# Runs -----------------------------------------------------------------------------------------------------------------


def signed(described: Any) -> bytes:
    """A description with the digest that belongs to it."""
    if isinstance(described, dict):
        digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
        described = described | {"state_sha256": digest}
    return json.dumps(described).encode()


@pytest.mark.parametrize("count", amounts(60, 3000))
def test_any_description_of_a_checkpoint_is_one_or_a_run_error(count: int, tmp_path: Path) -> None:
    """Digests that fit included: whoever changes a file can make them anew."""
    run = RunDir(tmp_path / "run")
    run.create()
    run.save_checkpoint(Checkpoint(3, {"weight": torch.ones(2)}, {"epochs_done": 1}))
    path = run.checkpoints / "step-3.json"
    good = {name: value for name, value in json.loads(path.read_text()).items() if name != "state_sha256"}
    jsonable = st.recursive(
        st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=6)),
        lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=6), inner, max_size=3)),
        max_leaves=6,
    )
    states = st.dictionaries(st.sampled_from([*RunState().__dict__, "other"]), jsonable, max_size=4)
    contents = st.one_of(
        st.binary(max_size=40),
        jsonable.map(signed),
        st.dictionaries(st.sampled_from([*good, "more"]), jsonable, max_size=3).map(lambda new: signed(good | new)),
        states.map(lambda new: signed(good | {"state": new})),
    )

    @fuzz(count, content=contents)
    def check(content: bytes) -> None:
        path.write_bytes(content)
        try:
            found = RunDir(run.path).load_checkpoint()
            assert found is not None
            RunState.read(found.state)
        except RunError:
            pass


@pytest.mark.parametrize("count", amounts(40, 1000))
@pytest.mark.parametrize("name", ["run.json", "config.yaml", "metrics.jsonl"])
def test_any_content_of_a_run_folder_is_read_or_a_typed_error(name: str, count: int, tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    run.create()
    run.write_config(load_config("scenes/ce").plain())

    @fuzz(count, content=st.one_of(st.binary(max_size=40), values.map(lambda made: json.dumps(made).encode())))
    def check(content: bytes) -> None:
        (run.path / name).write_bytes(content)
        again = RunDir(run.path)
        for read in (again.description, again.read_config, again.read_metrics, lambda: again.cut_metrics(1)):
            with contextlib.suppress(LongtailError):
                read()
