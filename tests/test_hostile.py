"""Files made to do harm: nothing in them is run, nothing is read elsewhere, and each is refused quickly and cheaply."""

from __future__ import annotations

import contextlib
import csv
import io
import os
import pickle
import shutil
import struct
import sys
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import longtail.cli as cli
from amounts import amounts
from longtail.data.checking import check_data
from longtail.data.files import load_files
from longtail.data.reading.decoding import BrokenImageError, read_square
from longtail.data.settings import DataSettings
from longtail.errors import DataError
from longtail.files import as_cell
from longtail.layers import load_yaml
from longtail.rng import numpy_generator
from longtail.runs.rundir import RunDir
from longtail.training.loop import train
from pictures import picture
from tiny import tiny_config, write_npz

SECONDS, BYTES = 4.0 if sys.gettrace() is None else 30.0, 200 * 2**20
"""What a refusal may take. Time is that of this process alone: others share the machine, and slow it down all the same.
What these tests are about takes minutes or never ends. A tracer's time is not meant."""


@contextlib.contextmanager
def cheap() -> Iterator[None]:
    """Fail where the block takes more than that of processor time or of memory beyond what was held before."""
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")

    def peak() -> int:
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return 1024 * int(line.split()[1])

    measurable = reset.exists()
    if measurable:
        with contextlib.suppress(OSError):
            reset.write_text("5")
    before, began = peak() if measurable else 0, time.process_time()
    yield
    assert time.process_time() - began < SECONDS
    if measurable:
        assert peak() - before < BYTES


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """``refused(code, "train", ...)``: the command ends with the code and one readable block, which it returns."""

    def run(code: int, *words: str) -> str:
        with cheap(), pytest.raises(SystemExit) as ended:
            cli.main(list(words))
        said = capsys.readouterr().err
        assert ended.value.code == code, said
        assert said.startswith("error: ")
        assert "Traceback" not in said
        return said

    return run


Refused = Callable[..., str]


# Pickles --------------------------------------------------------------------------------------------------------------


class Harm:
    """Unpickling it makes a folder."""

    def __init__(self, mark: Path) -> None:
        self.mark = str(mark)

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (self.mark,)


@pytest.fixture
def mark(tmp_path: Path) -> Iterator[Path]:
    """What a harmful file would make; it must not be there in the end."""
    path = tmp_path / "harm was done"
    yield path
    assert not path.exists()


def npz_with(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize("key", ["train_images", "train_labels", "test_images", "class_names"])
def test_a_pickle_in_an_npz_file_is_not_run(tmp_path: Path, mark: Path, refused: Refused, key: str) -> None:
    archive = write_npz(tmp_path / "good.npz")
    with np.load(archive) as good:
        arrays = dict(good)
    arrays[key] = np.array([Harm(mark)], dtype=object)
    said = refused(3, "train", "npz/ce", f"data.path={npz_with(tmp_path / 'bad.npz', **arrays)}", f"out={tmp_path}/run")
    assert "pickle" in said


def test_a_pickle_in_place_of_any_file_is_not_run(tmp_path: Path, tiny_npz: Path, mark: Path, refused: Refused) -> None:
    content = pickle.dumps(Harm(mark))
    torch_file = io.BytesIO()
    torch.save({"state_dict": Harm(mark)}, torch_file)
    train(tiny_config("ce", tiny_npz, tmp_path / "run"))
    for number, harm in enumerate((content, torch_file.getvalue())):
        bad = tmp_path / f"{number}.npz"
        bad.write_bytes(harm)
        out, images = f"out={tmp_path}/other", f"data.path={tiny_npz}"
        refused(3, "train", "npz/ce", f"data.path={bad}", out)
        refused(3, "train", "csv/ce", f"data.path={bad}", out)
        refused(3, "train", "list/ce", f"data.path={bad}", out)
        refused(3, "data", "check", str(bad), "data.name=npz")
        refused(4, "train", "npz/ce", images, f"init={bad}", "model.backbone=resnet8", out)
        refused(3, "train", "npz/smcl", images, f"method.saliency_maps={bad}", "model.backbone=resnet8", out)
        refused(4, "import", str(bad), "--recipe", "cifar100/concutmix", "--out", f"{tmp_path}/other")
        refused(3, "predict", str(tmp_path / "run"), str(bad))
        configuration = tmp_path / f"{number}.yaml"
        configuration.write_bytes(harm)
        refused(2, "train", str(configuration))
        for name in ("checkpoints/step-6.safetensors", "checkpoints/step-6.json", "config.yaml", "run.json"):
            broken = tmp_path / "broken"
            shutil.copytree(tmp_path / "run", broken)
            (broken / "checkpoints" / "step-3.safetensors").unlink()
            (broken / name).write_bytes(harm)
            refused(4, "eval", str(broken))
            shutil.rmtree(broken)


# YAML -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:os.mkdir ['MARK']",
        "seed: !!python/object/apply:os.mkdir ['MARK']",
        "seed: !!python/name:os.system",
        "data: !!python/object/new:os.mkdir ['MARK']",
        "a: &a [1]\nb: &b [*a, *a, *a, *a, *a, *a, *a, *a, *a, *a]\n"
        + "\n".join(f"{chr(k + 1)}: &{chr(k + 1)} [{', '.join([f'*{chr(k)}'] * 10)}]" for k in range(98, 110)),
        "a: &a {k: 1}\n"
        + "\n".join(f"{chr(k + 1)}: &{chr(k + 1)} {{<<: [{', '.join([f'*{chr(k)}'] * 10)}]}}" for k in range(97, 108)),
        "seed: &a [*a]",
        "[" * 20_000,
        "a: " * 5_000,
        "seed: " + "9" * 5_000,
        "seed: 2020-13-45",
        "seed: 1:2:99999999999999999999",
        "? {a: b}\n: 1",
        "\x00",
    ],
)
def test_hostile_yaml_is_refused_and_not_run(tmp_path: Path, mark: Path, refused: Refused, text: str) -> None:
    path = tmp_path / "hostile.yaml"
    path.write_text(text.replace("MARK", str(mark)))
    refused(2, "train", str(path), f"out={tmp_path}/run")
    refused(2, "study", str(path), "--out", f"{tmp_path}/study")
    if "\n" not in text and "\x00" not in text:
        refused(2, "train", "npz/ce", f"seed={text.removeprefix('seed: ').replace('MARK', str(mark))}")
    assert not (tmp_path / "run").exists()


def test_yaml_reads_as_before_with_aliases_that_people_write() -> None:
    text = "base: &b {lr: 0.1, list: [1, 2.5, null, yes]}\nother: {<<: *b, lr: 0.2}\ndate: 2024-02-03\n"
    assert load_yaml(text) == yaml.safe_load(text)
    assert load_yaml("") is None
    for broken in ("a: [", "a: *nobody", "a: b: c", "{}\n---\n{}"):
        with pytest.raises(yaml.YAMLError):
            load_yaml(broken)


# Bombs and claims -----------------------------------------------------------------------------------------------------


def array_header(shape: tuple[int, ...], dtype: str = "|u1") -> bytes:
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    header += b" " * (63 - (len(header) + 10) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header


def zipped(path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return path


LABELS = array_header((4,)) + bytes([0, 1, 0, 1])


def test_an_archive_that_unpacks_to_hundreds_of_times_its_size_is_refused(tmp_path: Path, refused: Refused) -> None:
    """300 MB of zeros in 300 kB; written in parts, so that the test itself stays small."""
    bomb = tmp_path / "bomb.npz"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("train_images.npy", "w") as member:
            member.write(array_header((100_000, 32, 32, 3)))
            for _ in range(300):
                member.write(bytes(1_024_000))
        archive.writestr("train_labels.npy", LABELS)
    assert bomb.stat().st_size < 2**20
    said = refused(3, "train", "npz/ce", f"data.path={bomb}", f"out={tmp_path}/run")
    assert "would unpack to" in said
    said = refused(3, "train", "npz/smcl", f"data.path={write_npz(tmp_path / 'd.npz')}", f"method.saliency_maps={bomb}")
    assert "would unpack to" in said


@pytest.mark.parametrize("shape", [(10**6, 32, 32, 3), (10**12,), (2**40, 2**40), (4, 8, 8, 3, 10**9)])
def test_an_array_that_claims_more_than_it_has_is_refused(
    tmp_path: Path, refused: Refused, shape: tuple[int, ...]
) -> None:
    claims = zipped(tmp_path / "claims.npz", train_images=array_header(shape) + bytes(768), train_labels=LABELS)
    assert "claims" in refused(3, "train", "npz/ce", f"data.path={claims}", f"out={tmp_path}/run")
    claims = zipped(tmp_path / "labels.npz", train_images=LABELS, train_labels=array_header((4,), "<U999999999"))
    assert "claims" in refused(3, "train", "npz/ce", f"data.path={claims}", f"out={tmp_path}/run")


def test_blank_images_are_no_bomb(tmp_path: Path) -> None:
    np.savez_compressed(
        tmp_path / "blank.npz",
        train_images=np.zeros((2000, 32, 32, 3), np.uint8),
        train_labels=np.arange(2000) % 2,
    )
    config = tiny_config("ce", tmp_path / "blank.npz", tmp_path / "run")
    from longtail.data.open import open_data

    assert len(open_data(config.data).train) > 1000


@pytest.mark.parametrize("device", ["/dev/zero", "/dev/urandom"])
@pytest.mark.parametrize("name", ["npz", "list", "csv"])
def test_a_device_that_never_ends_is_no_file(tmp_path: Path, refused: Refused, device: str, name: str) -> None:
    said = refused(3, "train", f"{name}/ce", f"data.path={device}", f"out={tmp_path}/run")
    assert "not a regular file" in said


def test_a_picture_of_a_thousand_million_pixels_is_not_decoded(tmp_path: Path) -> None:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    packed = zlib.compress(bytes(10_000_000), 9)
    text = chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(100_000_000), 9))
    for number, (side, extra) in enumerate(((40_000, b""), (9_000, text))):
        header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
        content = chunk(b"IHDR", header) + extra + chunk(b"IDAT", packed) + chunk(b"IEND", b"")
        path = tmp_path / f"{number}.png"
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + content)
        (tmp_path / "list.txt").write_text(f"{path.name} 0\n{picture(tmp_path / 'good.png', 1).name} 1\n")
        with cheap(), pytest.raises(DataError, match=r"1 of 2 images cannot be read:\n  [01]\.png"):
            load_files(DataSettings(name="list", path=str(tmp_path / "list.txt"), size=8))


# Paths ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["list", "csv"])
@pytest.mark.parametrize("on_error", ["stop", "skip"])
@pytest.mark.parametrize(
    "place", ["../secret.png", "a/../../secret.png", "ABSOLUTE", "./../secret.png", "a\\..\\..\\x"]
)
def test_no_path_of_a_table_leads_out_of_the_root(
    tmp_path: Path, refused: Refused, name: str, on_error: str, place: str
) -> None:
    picture(tmp_path / "secret.png", 0)
    root = tmp_path / "root"
    root.mkdir()
    inside = [picture(root / f"{n}.png", n).name for n in range(4)]
    place = place.replace("ABSOLUTE", str(tmp_path / "secret.png"))
    rows = [(path, n % 2) for n, path in enumerate([*inside, place])]
    if name == "list":
        (root / "all.txt").write_text("".join(f"{path} {label}\n" for path, label in rows))
    else:
        (root / "all.csv").write_text("image,label\n" + "".join(f"{path},{label}\n" for path, label in rows))
    table = root / ("all.txt" if name == "list" else "all.csv")
    if "\\" in place and on_error == "skip":
        return  # no separator here: a file of this name is not there, and is skipped
    words = [f"data.path={table}", f"data.on_error={on_error}", "data.size=8", f"out={tmp_path}/run"]
    refused(3, "train", f"{name}/ce", *words)


# Cells ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(1)", "\t=1", "\r=1"])
def test_a_name_that_a_spreadsheet_would_run_stands_behind_an_apostrophe(name: str) -> None:
    assert as_cell(name) == f"'{name}"


@pytest.mark.parametrize("name", ["", "cat", "-1", "+2.5", "-1e9", "a=1", "1-2", "'=1"])
def test_other_names_and_numbers_stay_as_they_are(name: str) -> None:
    assert as_cell(name) == name


def test_predictions_hold_no_formula(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archive = write_npz(tmp_path / "d.npz", class_names=np.array(["=1+1", "@x", "-3", "b"]))
    train(tiny_config("ce", archive, tmp_path / "run"))
    image = picture(tmp_path / "=2+2.png", 1)
    with contextlib.chdir(tmp_path), pytest.raises(SystemExit):
        cli.main(["predict", "run", image.name, "--out", "p.csv"])
    written = [(tmp_path / name).read_text().splitlines() for name in ("p.csv", "run/per_class.csv")]
    cells = [cell for lines in written for row in csv.reader(lines) for cell in row]
    assert "'=2+2.png" in cells
    assert {"'=1+1", "'@x", "-3"} <= set(cells)
    assert not [cell for cell in cells if cell.startswith(("=", "@", "+"))]


# Corrupted images -----------------------------------------------------------------------------------------------------

FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")


def corrupted(content: bytes, number: int) -> bytes:
    """Cut, overwritten in places, or zeroed from a place on."""
    stream = numpy_generator(0, "corrupt", number)
    place = int(stream.integers(len(content)))
    how = number // len(FORMATS) % 3
    if how == 0:
        return content[:place]
    if how == 1:
        spoiled = bytearray(content)
        for spot in stream.integers(0, len(content), 8):
            spoiled[spot] = int(stream.integers(256))
        return bytes(spoiled)
    return content[:place] + bytes(len(content) - place)


@pytest.mark.parametrize("count", amounts(70, 1000))
def test_corrupted_images_are_all_named_in_one_report_or_skipped_and_counted(tmp_path: Path, count: int) -> None:
    whole = [picture(tmp_path / f"whole-{kind}", 3, format=kind).read_bytes() for kind in FORMATS]
    root = tmp_path / "root"
    for split in ("a", "b"):
        (root / split).mkdir(parents=True)
        picture(root / split / "good.png", 1)
    for number in range(count):
        path = root / "ab"[number % 2] / f"{number}.png"
        path.write_bytes(corrupted(whole[number % len(FORMATS)], number))
    settings = DataSettings(name="folder", path=str(root), size=8, allow_empty=True)
    began = time.process_time()
    found = {one.kind: one.where for one in check_data(settings).findings}
    unreadable = {line.partition(":")[0] for line in found["unreadable"]}
    assert time.process_time() - began < 0.1 * count
    assert len(unreadable) > count / 3
    with pytest.raises(DataError, match=f"{len(unreadable)} of {count + 2} images cannot be read") as caught:
        load_files(settings)
    assert caught.value.exit_code == 3
    left = load_files(settings.model_copy(update={"on_error": "skip"}))
    assert len(left.train) == count + 2 - len(unreadable)
    assert not unreadable & set(left.train.ids or ())
    assert any(f"cannot be read ({len(unreadable)})" in note for note in left.notes)
    slowest = 0.0
    for path in sorted(root.rglob("*.png")):
        began = time.process_time()
        with contextlib.suppress(BrokenImageError):
            read_square(path, 8)
        slowest = max(slowest, time.process_time() - began)
    print(f"{len(unreadable)} of {count} unreadable; the slowest takes {1000 * slowest:.0f} ms")
    assert slowest < SECONDS


# Checkpoints that fit their digests -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "state",
    [{"epochs_done": "1"}, {"epochs_done": True}, {"unknown": 1}, {"sums": [1]}, {"rate_scale": None}, {"seconds": {}}],
)
def test_a_state_of_other_types_is_refused_though_its_digest_fits(
    tmp_path: Path, tiny_npz: Path, refused: Refused, state: dict[str, Any]
) -> None:
    import dataclasses

    from longtail.errors import StoppedError
    from tiny import At, assignments

    config = tiny_config("ce", tiny_npz, tmp_path / "run")
    with pytest.raises(StoppedError):
        train(config, listener=At(4))
    run = RunDir(tmp_path / "run")
    found = run.load_checkpoint()
    assert found is not None
    run.save_checkpoint(dataclasses.replace(found, state=found.state | state))
    words = assignments({name: value for name, value in config.plain().items() if value is not None})
    said = refused(4, "train", *words, "--resume")
    assert next(iter(state)) in said
