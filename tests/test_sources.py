"""Sources from arrays and npz archives: what they hold, and how broken ones are refused."""

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from longtail.data import SOURCES, from_arrays, load_source
from longtail.errors import ConfigError, DataError
from longtail.rng import numpy_generator


def pixels(*shape: int, seed: int = 0) -> NDArray[np.uint8]:
    return numpy_generator(seed, "pixels").integers(0, 256, shape, dtype=np.uint8)


def write(path: Path, **changes: Any) -> Path:
    """A small archive in MedMNIST's layout; ``changes`` replace arrays, None leaves one out."""
    arrays: dict[str, Any] = {
        "train_images": pixels(6, 8, 8, 3),
        "train_labels": np.array([[0], [1], [2], [0], [1], [2]], dtype=np.uint8),
        "test_images": pixels(3, 8, 8, 3, seed=1),
        "test_labels": np.array([[2], [1], [0]], dtype=np.uint8),
    }
    arrays |= changes
    np.savez_compressed(path, allow_pickle=True, **{key: a for key, a in arrays.items() if a is not None})
    return path


def test_npz_images_keep_their_pixels_channels_first_and_labels_are_flat(tmp_path: Path) -> None:
    source = load_source("npz", write(tmp_path / "set.npz"))
    assert source.train.images.shape == (6, 3, 8, 8)
    assert source.train.images.is_contiguous()
    assert np.array_equal(source.train.images.numpy(), pixels(6, 8, 8, 3).transpose(0, 3, 1, 2))
    assert source.train.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert source.test is not None
    assert source.test.labels.tolist() == [2, 1, 0]
    assert source.val is None
    assert (source.name, list(source.class_names), source.mean) == ("set", ["0", "1", "2"], None)


def test_npz_val_and_class_names_are_read(tmp_path: Path) -> None:
    path = write(
        tmp_path / "set.npz",
        val_images=pixels(2, 8, 8, 3),
        val_labels=np.array([1, 3]),
        class_names=np.array(["ant", "bee", "cow", "dog"]),
    )
    source = load_source("npz", path)
    assert source.val is not None
    assert source.val.labels.tolist() == [1, 3]
    assert list(source.class_names) == ["ant", "bee", "cow", "dog"]


@pytest.mark.parametrize("shape", [(4, 5, 7), (4, 5, 7, 1)])
def test_gray_is_repeated_to_three_channels(shape: tuple[int, ...]) -> None:
    gray = pixels(*shape)
    images = from_arrays(gray, [0, 1, 0, 1]).train.images
    assert images.shape == (4, 3, 5, 7)
    for channel in range(3):
        assert np.array_equal(images[:, channel].numpy(), gray.reshape(4, 5, 7))


def test_arrays_are_copied_so_that_later_changes_do_not_reach_the_set() -> None:
    images, labels = pixels(2, 4, 4, 3), np.array([0, 1])
    source = from_arrays(images, labels)
    before = source.train.fingerprint()
    images[:], labels[:] = 0, 0
    assert source.train.fingerprint() == before


def test_tensors_lists_and_whole_floats_serve_as_arrays() -> None:
    images = torch.from_numpy(pixels(2, 4, 4, 3))
    for labels in ([0, 1], torch.tensor([0, 1]), np.array([0.0, 1.0]), np.array([[0], [1]], dtype=np.uint8)):
        assert from_arrays(images, labels).train.labels.tolist() == [0, 1]


def test_labels_in_half_precision_are_labels() -> None:
    labels = np.array([0, 1, 1, 0], dtype=np.float16)
    source = from_arrays(np.zeros((4, 8, 8), np.uint8), labels)
    assert source.train.labels.tolist() == [0, 1, 1, 0]


def test_the_table_has_every_source_of_this_module() -> None:
    assert list(SOURCES) == ["cifar10", "cifar100", "fashion-mnist", "npz"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_labels": None}, "no array 'train_labels'"),
        ({"train_images": None, "images": pixels(2, 8, 8)}, "no array 'train_images'"),
        ({"train_images": pixels(6, 8, 8, 3).astype(np.float32)}, "float32, not uint8"),
        ({"train_images": pixels(6, 3, 8, 8)}, "channels last"),
        ({"train_images": pixels(6, 8, 8, 4)}, "shape"),
        ({"train_images": pixels(6, 8)}, "shape"),
        ({"train_images": pixels(0, 8, 8, 3)}, "is empty"),
        ({"train_images": pixels(5, 8, 8, 3)}, "5 images but 6 labels"),
        ({"train_images": np.array([pixels(8, 8), pixels(9, 9)], dtype=object)}, "object array"),
        ({"train_labels": np.array([0, 1, 2, 0, 1, None], dtype=object)}, "object array"),
        ({"train_labels": np.eye(6, dtype=np.int64)}, "several labels"),
        ({"train_labels": np.zeros((6, 1, 1), dtype=np.int64)}, "shape"),
        ({"train_labels": np.array([0, 1, 2, 0, -1, 2])}, r"train_labels\[4\] is -1"),
        ({"train_labels": np.array([0, 1, 2, 0.5, 1, 2])}, r"train_labels\[3\] is 0.5"),
        ({"train_labels": np.array([0, 1, np.nan, 0, 1, 2])}, r"train_labels\[2\] is nan"),
        ({"train_labels": np.array([0, 1, 1e300, 0, 1, 2])}, r"train_labels\[2\] is 1e\+300"),
        ({"train_labels": np.array(["a"] * 6)}, "not integers"),
        ({"train_labels": np.array([0, 1, 2, 0, 1, 255])}, "reach 255 with only 6 images"),
        ({"train_labels": np.array([0, 1, 2, 0, 1, 3]), "class_names": np.array(["a", "b", "c"])}, "3 names"),
        ({"test_labels": np.array([0, 1, 3])}, r"test_labels\[2\] is 3, but the training labels end at 2"),
        ({"test_labels": None}, "test split has images but no labels"),
        ({"test_images": None}, "test split has labels but no images"),
        ({"test_images": pixels(3, 9, 9, 3)}, "differ in size: train 8x8, test 9x9"),
        ({"test_images": pixels(0, 8, 8, 3), "test_labels": np.array([], dtype=np.int64)}, "is empty"),
        ({"class_names": np.array(["a", "b", "a"])}, "'a' twice"),
        ({"class_names": np.array([1, 2, 3])}, "not a list of strings"),
    ],
)
def test_a_broken_archive_is_refused_with_what_and_where(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = write(tmp_path / "broken.npz", **changes)
    with pytest.raises(DataError, match=message) as caught:
        load_source("npz", path)
    assert "broken" in str(caught.value), "the message names the file"
    assert caught.value.exit_code == 3


def test_a_misspelled_key_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "set.npz", train_images=None, train_image=pixels(6, 8, 8, 3))
    with pytest.raises(DataError, match="Rename 'train_image'"):
        load_source("npz", path)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"not an archive", b"\x80\x04K\x01.", bytes(200)])
def test_bytes_that_are_no_archive_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "set.npz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"set\.npz"):
        load_source("npz", path)


def test_a_single_array_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "set.npz").open("wb") as file:
        np.save(file, pixels(2, 2))
    with pytest.raises(DataError, match="single array"):
        load_source("npz", tmp_path / "set.npz")


def test_an_archive_cut_or_damaged_anywhere_loads_unchanged_or_is_refused(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole.npz", class_names=np.array(["a", "b", "c"])).read_bytes()
    expected = load_source("npz", tmp_path / "whole.npz").train.fingerprint()
    path = tmp_path / "damaged.npz"
    draw = numpy_generator("damage")
    refused = 0
    for trial in range(300):
        content = bytearray(whole)
        at = int(draw.integers(len(whole)))
        if trial % 2:
            content = content[:at]
        else:
            content[at] ^= int(draw.integers(1, 256))
        path.write_bytes(content)
        try:
            assert load_source("npz", path).train.fingerprint() == expected
        except DataError:
            refused += 1
    assert refused > 150


def test_an_object_array_is_never_unpickled(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return (os.mkdir, (str(tmp_path / "sprung"),))

    path = write(tmp_path / "set.npz", train_labels=np.array([Trap()] * 6, dtype=object))
    with pytest.raises(DataError, match="object array"):
        load_source("npz", path)
    assert not (tmp_path / "sprung").exists()


def test_images_of_several_sizes_are_refused() -> None:
    with pytest.raises(DataError, match="train_images"):
        from_arrays([pixels(4, 4, 3), pixels(5, 5, 3)], [0, 1])


def test_no_path_is_a_mistake_in_the_config() -> None:
    for name in SOURCES:
        with pytest.raises(ConfigError, match=r"data\.path=") as caught:
            load_source(name, None)
        assert caught.value.exit_code == 2


@pytest.mark.parametrize("name", SOURCES)
def test_a_path_where_nothing_lies_is_a_mistake_in_the_data(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing at") as caught:
        load_source(name, tmp_path / "absent.npz")
    assert caught.value.exit_code == 3
    assert list(tmp_path.iterdir()) == []


def test_a_folder_instead_of_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is a folder"):
        load_source("npz", tmp_path)


def test_an_unknown_source_is_refused_with_the_nearest_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'cifar100'"):
        load_source("cifar-100", tmp_path)


def test_an_unreadable_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "set.npz")

    def denied(*_: Any, **__: Any) -> Any:
        # The tests may run as root, for whom every file is readable.
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(np, "load", denied)
    with pytest.raises(DataError, match="Permission denied"):
        load_source("npz", path)


def test_npz_has_no_download(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="download"):
        load_source("npz", tmp_path / "set.npz", download=True)


def test_saved_archives_in_memory_layout_match_numpy(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, train_images=np.asfortranarray(pixels(3, 4, 4, 3)), train_labels=np.array([0, 1, 2]))
    (tmp_path / "fortran.npz").write_bytes(buffer.getvalue())
    images = load_source("npz", tmp_path / "fortran.npz").train.images
    assert np.array_equal(images.numpy(), pixels(3, 4, 4, 3).transpose(0, 3, 1, 2))


def test_a_given_size_resizes_every_split(tmp_path: Path) -> None:
    source = load_source("npz", write(tmp_path / "set.npz"), size=4)
    assert source.test is not None
    assert source.train.images.shape == (6, 3, 4, 4)
    assert source.test.images.shape == (3, 3, 4, 4)
    assert source.train.images.dtype == torch.uint8


def test_the_size_an_image_has_already_changes_nothing(tmp_path: Path) -> None:
    path = write(tmp_path / "set.npz")
    assert load_source("npz", path, size=8).train.fingerprint() == load_source("npz", path).train.fingerprint()
