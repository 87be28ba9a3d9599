"""A trained network in use: what it takes, what it refuses, and that it says what the run said."""

import csv
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import longtail
from longtail.api import Run
from longtail.errors import ConfigError, DataError, RunError
from longtail.prediction.predict import Model
from longtail.rng import numpy_generator
from longtail.runs.rundir import RunDir
from longtail.training.loop import train
from tiny import read_test_images, tiny_config, write_npz


@pytest.fixture(scope="module")
def model(finished_run: Run) -> Model:
    return longtail.load(finished_run.path)


@pytest.fixture
def pixels(finished_run: Run) -> Any:
    """The test images of the run, uint8 (12, 8, 8, 3)."""
    return read_test_images(finished_run.path)


def noise(*shape: int) -> Any:
    return numpy_generator(0, "noise").integers(0, 256, shape).astype(np.uint8)


# What comes out -------------------------------------------------------------------------------------------------------


def test_predicting_the_test_images_gives_predictions_csv(finished_run: Run, model: Model, pixels: Any) -> None:
    probabilities = model.predict(pixels)
    with (finished_run.path / "predictions.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [int(row["predicted"]) for row in table] == probabilities.argmax(axis=1).tolist()
    stored = [float(row["probability"]) for row in table]
    assert stored == pytest.approx(probabilities.max(axis=1).tolist(), abs=1e-6)


def test_the_best_weights_give_the_best_result(finished_run: Run, pixels: Any) -> None:
    predicted = finished_run.model(which="best").predict(pixels).argmax(axis=1)
    right = float((predicted == np.repeat(np.arange(4), 3)).mean())
    assert right == pytest.approx(finished_run.results["best"]["top1"])


def test_probabilities_are_a_distribution_over_the_classes_of_the_run(model: Model) -> None:
    probabilities = model.predict(noise(5, 8, 8, 3))
    assert probabilities.shape == (5, 4)
    assert probabilities.dtype == np.float32
    assert (probabilities >= 0).all()
    assert probabilities.sum(axis=1) == pytest.approx(np.ones(5), abs=1e-5)
    assert model.class_names == ["0", "1", "2", "3"]
    assert model.class_counts == [9, 6, 4, 2]


def test_logits_have_no_training_offset(finished_run: Run, model: Model) -> None:
    """softmax of classifier(backbone(normalized)), by hand."""
    images = torch.from_numpy(noise(3, 8, 8, 3)).permute(0, 3, 1, 2)
    normalization = RunDir(finished_run.path).description()["normalization"]
    mean, std = (torch.tensor(normalization[name]).view(3, 1, 1) for name in ("mean", "std"))
    network: Any = model.method.network
    with torch.no_grad():
        expected = F.softmax(network.classifier(network.backbone((images / 255 - mean) / std)), dim=1)
    np.testing.assert_allclose(model.predict(images), expected.numpy(), rtol=1e-5, atol=1e-7)


def test_predicting_twice_is_predicting_once(model: Model) -> None:
    """Neither batch-norm statistics nor a random draw may change between two calls."""
    images = noise(6, 8, 8, 3)
    first = model.predict(images)
    model.predict(noise(4, 8, 8))
    np.testing.assert_array_equal(model.predict(images), first)
    assert not model.method.training


def test_many_images_go_in_parts(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    images = noise(7, 8, 8, 3)
    whole = model.predict(images)
    monkeypatch.setattr("longtail.evaluation.scoring.EVALUATION_BATCH", 3)
    np.testing.assert_allclose(model.predict(images), whole, rtol=1e-5, atol=1e-7)


# What goes in ---------------------------------------------------------------------------------------------------------


def test_every_accepted_kind_of_the_same_images_gives_the_same(model: Model, pixels: Any, tmp_path: Path) -> None:
    expected = model.predict(pixels)
    pictures = [Image.fromarray(image) for image in pixels]
    for number, picture in enumerate(pictures):
        picture.save(tmp_path / f"{number}.png")
    paths = [tmp_path / f"{number}.png" for number in range(len(pixels))]
    read_only = pixels.copy()
    read_only.setflags(write=False)
    kinds = {
        "channels first": pixels.transpose(0, 3, 1, 2),
        "tensor": torch.from_numpy(pixels),
        "tensor, channels first": torch.from_numpy(pixels).permute(0, 3, 1, 2),
        "float32": (pixels / 255).astype(np.float32),
        "float64": pixels / 255,
        "float16": (pixels / 255).astype(np.float16),
        "float tensor, channels first": torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255,
        "strided": np.repeat(pixels, 2, axis=0)[::2],
        "flipped twice": pixels[..., ::-1][..., ::-1],
        "flipped in memory": np.ascontiguousarray(pixels[:, :, ::-1])[:, :, ::-1],
        "read-only": read_only,
        "list of arrays": list(pixels),
        "tuple of tensors": tuple(torch.from_numpy(pixels)),
        "list of PIL": pictures,
        "list of paths": paths,
        "list of strings": [str(path) for path in paths],
        "mixed list": [pictures[0], paths[1], *pixels[2:]],
    }
    for kind, images in kinds.items():
        np.testing.assert_array_equal(model.predict(images), expected, err_msg=kind)


def test_gray_is_repeated_to_three_channels(model: Model, tmp_path: Path) -> None:
    gray = noise(4, 8, 8)
    expected = model.predict(np.repeat(gray[..., None], 3, axis=-1))
    Image.fromarray(gray[0]).save(tmp_path / "gray.png")
    for images in (gray, gray[..., None], gray[:, None], torch.from_numpy(gray), gray / 255, list(gray)):
        np.testing.assert_array_equal(model.predict(images), expected)
    np.testing.assert_allclose(model.predict([tmp_path / "gray.png"]), expected[:1], rtol=1e-5, atol=1e-7)


def test_a_picture_with_palette_or_transparency_is_read_as_rgb(model: Model, tmp_path: Path) -> None:
    picture = Image.fromarray(noise(8, 8, 3))
    for mode in ("P", "RGBA", "L", "CMYK"):
        converted = picture.convert(mode)
        np.testing.assert_array_equal(model.predict([converted]), model.predict([converted.convert("RGB")]))


@pytest.mark.parametrize("side", [16, 5, 9, 1])
def test_another_size_is_resized_once_and_antialiased(model: Model, side: int) -> None:
    images = noise(3, side, side, 3)
    planes = torch.from_numpy(images).permute(0, 3, 1, 2).float()
    small = F.interpolate(planes, (8, 8), mode="bilinear", antialias=True, align_corners=False)
    expected = model.predict(small.round().clamp(0, 255).to(torch.uint8))
    np.testing.assert_array_equal(model.predict(images), expected)
    np.testing.assert_array_equal(model.predict(list(images)), expected)
    np.testing.assert_array_equal(model.predict([Image.fromarray(image) for image in images]), expected)


def test_of_a_wide_image_the_middle_is_taken(model: Model) -> None:
    images = noise(3, 8, 12, 3)
    np.testing.assert_array_equal(model.predict(images), model.predict(images[:, :, 2:10]))
    np.testing.assert_array_equal(model.predict(list(images)), model.predict(images[:, :, 2:10]))
    tall = noise(3, 13, 8, 3)
    np.testing.assert_array_equal(model.predict(tall), model.predict(tall[:, 2:10]))


def test_images_of_the_source_are_resized_as_in_training(tmp_path: Path) -> None:
    data = write_npz(tmp_path / "data.npz", shape=(13, 20, 3))
    train(tiny_config("ce", data, tmp_path / "run", data={"size": 8}))
    probabilities = longtail.load(tmp_path / "run").predict(read_test_images(tmp_path / "run"))
    with (tmp_path / "run" / "predictions.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [int(row["predicted"]) for row in table] == probabilities.argmax(axis=1).tolist()
    stored = [float(row["probability"]) for row in table]
    assert stored == pytest.approx(probabilities.max(axis=1).tolist(), abs=1e-6)


def test_pictures_of_several_sizes_go_together(model: Model) -> None:
    pictures = [noise(8, 8, 3), noise(16, 12, 3), Image.fromarray(noise(5, 9, 3))]
    together = model.predict(pictures)
    assert together.shape == (3, 4)
    np.testing.assert_allclose(together[1:2], model.predict([pictures[1]]), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (noise(8, 8, 3), "list of one"),
        (noise(8, 8), "list of one"),
        (noise(2, 8, 8, 4), "must be"),
        (noise(2, 2, 8, 8, 3), "must be"),
        (noise(0, 8, 8, 3), "no pixels"),
        (noise(2, 0, 8, 3), "no pixels"),
        (noise(2, 8, 8, 3).astype(np.int64), "uint8 or float, not int64"),
        (noise(2, 8, 8, 3).astype(np.uint16), "uint8 or float, not uint16"),
        (noise(2, 8, 8, 3) > 100, "uint8 or float, not bool"),
        (noise(2, 8, 8, 3).astype(np.complex64), "uint8 or float, not complex64"),
        (noise(2, 8, 8, 3).astype(np.float32), r"\[0, 1\]"),
        (noise(2, 8, 8, 3) / -255, r"\[0, 1\]"),
        (np.full((2, 8, 8, 3), np.nan), r"\[0, 1\]"),
        ([], "no images"),
        ((), "no images"),
        ("image.png", "list of one"),
        (Path("image.png"), "list of one"),
        (Image.fromarray(noise(8, 8, 3)), "list of one"),
        (None, "not a kind of images"),
        (3, "must be|uint8"),
        ({"a": 1}, "not a kind of images"),
        (np.array(["a", "b"]), "not a kind of images"),
        ([None], "not a kind of images"),
        ([noise(2, 8, 8, 3)], "in a list must be"),
        ([[1, 2], [3]], "not a kind of images|must be"),
        (["absent.png"], "absent.png cannot be read"),
        ([Path("absent.png")], "absent.png cannot be read"),
    ],
)
def test_anything_else_is_refused_in_words(model: Model, images: Any, words: str) -> None:
    with pytest.raises(DataError, match=words) as caught:
        model.predict(images)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("content", [b"", b"not an image", b"\x89PNG\r\n\x1a\n broken", b"GIF89a", b"\xff\xd8\xff\xe0"])
def test_a_file_that_is_no_image_is_refused_by_name(model: Model, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "picture.png").write_bytes(content)
    with pytest.raises(DataError, match=r"picture\.png"):
        model.predict([tmp_path / "picture.png"])


def test_a_picture_cut_short_is_refused_by_name(model: Model, tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    Image.fromarray(noise(64, 64, 3)).save(path)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(DataError, match=r"picture\.png"):
        model.predict([path])


# Loading --------------------------------------------------------------------------------------------------------------


def test_loading_refuses_what_is_no_run(tmp_path: Path) -> None:
    for path, said in ((tmp_path / "absent", "There is no run folder"), (tmp_path, "not a run folder")):
        with pytest.raises(RunError, match=said) as caught:
            longtail.load(path)
        assert caught.value.exit_code == 4


def test_there_are_last_and_best_weights_only(finished_run: Run) -> None:
    with pytest.raises(ConfigError, match="'last' and 'best'"):
        longtail.load(finished_run.path, which="first")


def test_a_run_without_a_checkpoint_is_refused(finished_run: Run, tmp_path: Path) -> None:
    shutil.copytree(finished_run.path, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    with pytest.raises(RunError, match="no checkpoint yet"):
        longtail.load(tmp_path / "run")
    with pytest.raises(RunError, match="no best checkpoint"):
        longtail.load(tmp_path / "run", which="best")


def test_a_damaged_last_checkpoint_is_passed_over_with_a_warning(finished_run: Run, tmp_path: Path) -> None:
    run = shutil.copytree(finished_run.path, tmp_path / "run")
    (run / "checkpoints" / "step-6.safetensors").write_bytes(b"")
    with pytest.warns(UserWarning, match="step-6"):
        longtail.load(run)
    (run / "checkpoints" / "step-3.safetensors").write_bytes(b"")
    with pytest.raises(RunError, match="No checkpoint can be read"):
        longtail.load(run)
    (run / "checkpoints" / "best.safetensors").write_bytes(b"")
    with pytest.raises(RunError, match=r"best\.safetensors"):
        longtail.load(run, which="best")


def test_a_damaged_description_is_named(finished_run: Run, tmp_path: Path) -> None:
    run = shutil.copytree(finished_run.path, tmp_path / "run")
    (run / "run.json").write_text("{")
    with pytest.raises(RunError, match=r"run\.json"):
        longtail.load(run)


def test_a_run_that_was_moved_still_loads_without_its_images(tiny_npz: Path, tmp_path: Path) -> None:
    data = shutil.copy(tiny_npz, tmp_path / "data.npz")
    train(tiny_config("ce", Path(data), tmp_path / "run"))
    expected = longtail.load(tmp_path / "run").predict(noise(2, 8, 8, 3))
    (tmp_path / "run").rename(tmp_path / "moved")
    (tmp_path / "data.npz").unlink()
    np.testing.assert_array_equal(longtail.load(tmp_path / "moved").predict(noise(2, 8, 8, 3)), expected)
