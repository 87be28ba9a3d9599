"""``longtail predict`` and priors: what is read, what is written, and that moved probabilities are Bayes' rule."""

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import longtail
from longtail.api import Run, train
from longtail.cli import main
from longtail.config import METHOD_SETTINGS
from longtail.errors import ConfigError, DataError
from longtail.evaluation.priors import class_prior, move_prior, parse_prior
from longtail.evaluation.scoring import Scoring
from longtail.methods import METHODS
from longtail.methods.criteria import answers_for
from longtail.models.network import ModelSettings
from longtail.prediction.predict import Model
from longtail.prediction.predicting import predict_paths
from longtail.rng import numpy_generator
from tiny import COUNTS, read_test_images, settings_of, write_npz


@pytest.fixture(scope="module")
def model(finished_run: Run) -> Model:
    return longtail.load(finished_run.path)


@pytest.fixture
def pixels(finished_run: Run) -> Any:
    return read_test_images(finished_run.path)


@pytest.fixture
def folder(pixels: Any, tmp_path: Path) -> Path:
    """The test images as b.png, a/00.png, a/01.png, ..., beside things that are no images."""
    (tmp_path / "pictures" / "a").mkdir(parents=True)
    Image.fromarray(pixels[0]).save(tmp_path / "pictures" / "b.PNG")
    for number, image in enumerate(pixels[1:]):
        Image.fromarray(image).save(tmp_path / "pictures" / "a" / f"{number:02d}.png")
    (tmp_path / "pictures" / "notes.txt").write_text("no image")
    Image.fromarray(pixels[0]).save(tmp_path / "pictures" / ".hidden.png")
    (tmp_path / "pictures" / "loop").symlink_to(tmp_path / "pictures")
    return tmp_path / "pictures"


def run_command(*words: Any) -> int:
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    return int(stop.value.code or 0)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


# Priors ---------------------------------------------------------------------------------------------------------------


def test_moving_a_prior_is_bayes_rule(model: Model, pixels: Any) -> None:
    """p_k = s_k q_k / sum_j s_j q_j for a softmax s of a network that answers for a uniform prior."""
    assert model.answers_for == "uniform"
    plain = model.predict(pixels)
    wanted = [0.1, 0.2, 0.3, 0.4]
    for prior, shares in ((wanted, wanted), ("training", COUNTS), ("uniform", [1] * 4)):
        moved = model.predict(pixels, prior=prior)
        for row, old in zip(moved.tolist(), plain.tolist(), strict=True):
            expected = [s * q for s, q in zip(old, shares, strict=True)]
            assert row == pytest.approx([value / sum(expected) for value in expected], rel=1e-4)


def test_what_answers_for_the_training_prior_is_divided_by_it() -> None:
    logits = torch.tensor([[1.0, -2.0, 0.5], [0.0, 0.0, 0.0]])
    counts = [60, 30, 10]
    moved = move_prior(logits, "training", class_prior("uniform", ["a", "b", "c"], counts), counts)
    for row, given in zip(moved.tolist(), logits.tolist(), strict=True):
        expected = [math.exp(value) / count for value, count in zip(given, counts, strict=True)]
        assert row == pytest.approx([value / sum(expected) for value in expected], rel=1e-6)
    same = move_prior(logits, "training", class_prior("training", ["a", "b", "c"], counts), counts)
    assert same.flatten().tolist() == pytest.approx(torch.softmax(logits, dim=1).flatten().tolist(), rel=1e-6)


def test_a_class_of_prior_zero_is_never_predicted_and_nothing_else_is_lost() -> None:
    logits = torch.tensor([[500.0, 0.0, -500.0]])
    moved = move_prior(logits, "uniform", class_prior([0, 1, 1], ["a", "b", "c"], [5, 5, 5]), [5, 5, 5])
    assert moved.tolist() == [[0.0, 1.0, 0.0]]


def test_a_class_without_training_images_can_be_asked_for() -> None:
    moved = move_prior(torch.zeros(1, 2), "training", class_prior("uniform", ["a", "b"], [9, 0]), [9, 0])
    assert bool(torch.isfinite(moved).all())


UNIFORM = {"balanced-softmax", "logit-adjustment", "bcl", "concutmix", "smcl-concutmix", "paco"}
UNIFORM |= {"class-balanced", "class-balanced-focal", "ce-drw", "ldam-drw", "smcl", "crt", "lws", "mislas"}


@pytest.mark.parametrize("name", METHODS)
def test_a_method_says_for_which_prior_its_softmax_is(name: str) -> None:
    entry = METHODS[name]
    settings = METHOD_SETTINGS[name](**settings_of(name)["method"])
    built = entry.build(settings, ModelSettings(backbone="resnet8"), [500, 100, 20, 5], size=8, seed=0)
    assert built.answers_for == ("uniform" if name in UNIFORM else "training")


def test_half_the_prior_decides_which_one_a_softmax_is_nearer_to() -> None:
    counts = [500, 100, 20, 5]
    log_prior = torch.tensor([math.log(n / sum(counts)) for n in counts])
    found = [answers_for(counts, offset=tau * log_prior) for tau in (0.0, 0.4, 0.6, 0.9, 1.0, 2.0)]
    assert found == ["training", "training", "uniform", "uniform", "uniform", "uniform"]
    inverse = torch.tensor([1 / n for n in counts])
    assert answers_for(counts, weight=inverse) == "uniform"
    assert answers_for(counts, weight=torch.ones(4)) == "training"


def test_a_network_whose_logits_lose_the_prior_at_test_time_answers_for_a_uniform_one(tmp_path: Path) -> None:
    data = write_npz(tmp_path / "data.npz")
    values = settings_of("ce", data={"path": str(data)})
    trained = train("npz/ce", **values, out=tmp_path / "run").model()
    assert trained.answers_for == "training"
    uniform = trained.predict(read_test_images(tmp_path / "run"), prior="uniform")
    trained.scoring = Scoring(tau=1.0)
    assert trained.answers_for == "uniform"
    np.testing.assert_allclose(trained.predict(read_test_images(tmp_path / "run")), uniform, rtol=1e-4)


def test_classes_that_are_not_named_share_what_is_left() -> None:
    names = ["a", "b=c", "d"]
    assert class_prior(parse_prior("b=c=0.5"), names, [1, 1, 1]).tolist() == pytest.approx([0.25, 0.5, 0.25])
    assert class_prior({"a": 3, "b=c": 1, "d": 0}, names, [1, 1, 1]).tolist() == pytest.approx([0.75, 0.25, 0])


def test_a_prior_is_read_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text('class,images\n"x, y",30\nz,10\n')
    (tmp_path / "q.csv").write_text("x,0.5\n")
    (tmp_path / "p.json").write_text('{"x": 0.2, "z": 0.8}')
    (tmp_path / "list.json").write_text("[1, 3]")
    assert parse_prior(str(tmp_path / "p.csv")) == {"x, y": 30, "z": 10}
    assert parse_prior(str(tmp_path / "q.csv")) == {"x": 0.5}
    assert parse_prior(str(tmp_path / "p.json")) == {"x": 0.2, "z": 0.8}
    assert class_prior(parse_prior(str(tmp_path / "list.json")), ["x", "z"], [1, 1]).tolist() == [0.25, 0.75]


@pytest.mark.parametrize(
    ("prior", "words"),
    [
        ("trainng", "Did you mean 'training'"),
        ([1, 2], "4 classes"),
        ([1, 2, 3, -1], "at least 0"),
        ([0, 0, 0, 0], "above it"),
        ([1, 2, 3, math.nan], "at least 0"),
        ({"5": 0.2}, "Unknown class"),
        ({"0": 0.7, "1": 0.7}, "sum to 1.4"),
        ({"0": "much"}, "numbers"),
        (["a", "b", "c", "d"], "A prior is"),
    ],
)
def test_a_prior_that_is_none_is_refused(model: Model, pixels: Any, prior: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        model.predict(pixels, prior=prior)


@pytest.mark.parametrize("text", ["a=much", "absent.csv", "absent.json"])
def test_a_prior_of_the_command_line_that_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="prior"):
        parse_prior(text)


# The command ----------------------------------------------------------------------------------------------------------


def test_a_folder_is_searched_in_order_and_each_image_once(
    finished_run: Run, model: Model, pixels: Any, folder: Path, tmp_path: Path
) -> None:
    assert run_command("predict", finished_run.path, folder, "--out", tmp_path / "out.csv") == 0
    rows = rows_of(tmp_path / "out.csv")
    assert [row["file"] for row in rows] == [
        f"{folder}/b.PNG", *(f"{folder}/a/{number:02d}.png" for number in range(11))
    ]  # fmt: skip
    expected = model.predict(pixels)
    for row, probabilities in zip(rows, expected, strict=True):
        assert list(row) == ["file", "predicted", "probability", "p_0", "p_1", "p_2", "p_3"]
        assert [float(row[f"p_{k}"]) for k in range(4)] == pytest.approx(probabilities.tolist(), rel=1e-4)
        assert row["predicted"] == str(probabilities.argmax())
        assert float(row["probability"]) == pytest.approx(float(probabilities.max()), rel=1e-5)


def test_lines_of_json_say_what_the_table_says(finished_run: Run, folder: Path, tmp_path: Path) -> None:
    assert run_command("predict", finished_run.path, folder, "--out", tmp_path / "out.csv") == 0
    assert run_command("predict", finished_run.path, folder, "--out", tmp_path / "out.jsonl") == 0
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    for line, row in zip(lines, rows_of(tmp_path / "out.csv"), strict=True):
        assert (line["file"], line["predicted"]) == (row["file"], row["predicted"])
        assert line["probabilities"] == {str(k): float(row[f"p_{k}"]) for k in range(4)}


def test_top_keeps_the_most_probable_classes_in_order(model: Model, folder: Path, tmp_path: Path) -> None:
    predict_paths(model, [folder], tmp_path / "all.jsonl")
    predict_paths(model, [folder], tmp_path / "two.jsonl", top=2)
    predict_paths(model, [folder], tmp_path / "two.csv", top=2)
    every, two = (
        [json.loads(line) for line in (tmp_path / name).read_text().splitlines()] for name in ("all.jsonl", "two.jsonl")
    )
    for all_of, kept, row in zip(every, two, rows_of(tmp_path / "two.csv"), strict=True):
        best = sorted(all_of["probabilities"].items(), key=lambda item: -item[1])[:2]
        assert list(kept["probabilities"].items()) == best
        assert list(row.values())[1:] == [str(value) for pair in best for value in pair]


def test_arrays_are_taken_by_name_by_split_or_where_there_is_one_choice(
    model: Model, pixels: Any, tmp_path: Path
) -> None:
    np.savez(tmp_path / "a.npz", test_images=pixels, train_images=pixels[:2], test_labels=np.zeros(12))
    np.savez(tmp_path / "b.npz", mine=pixels[:3], labels=np.zeros(3))
    np.save(tmp_path / "c.npy", pixels[:1])
    archives = [f"{tmp_path}/a.npz", f"{tmp_path}/a.npz:train", f"{tmp_path}/b.npz", f"{tmp_path}/c.npy"]
    found = predict_paths(model, archives, tmp_path / "out.csv")
    assert found.images == 18
    rows = rows_of(tmp_path / "out.csv")
    assert rows[11]["file"] == f"{tmp_path}/a.npz:test_images[11]"
    assert rows[12]["file"] == f"{tmp_path}/a.npz:train_images[0]"
    assert rows[14]["file"] == f"{tmp_path}/b.npz:mine[0]"
    assert rows[17]["file"] == f"{tmp_path}/c.npy[0]"
    with pytest.raises(DataError, match="no array"):
        predict_paths(model, [f"{tmp_path}/a.npz:val"])


def test_batches_do_not_change_an_answer(
    model: Model, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savez(tmp_path / "a.npz", images=numpy_generator(0, "a").integers(0, 256, (7, 8, 8, 3)).astype(np.uint8))
    predict_paths(model, [folder, tmp_path / "a.npz"], tmp_path / "whole.csv")
    seen = []
    plain = model.predict
    monkeypatch.setattr("longtail.prediction.predicting.BATCH", 3)
    monkeypatch.setattr(model, "predict", lambda images, prior: seen.append(len(images)) or plain(images, prior))
    predict_paths(model, [folder, tmp_path / "a.npz"], tmp_path / "parts.csv")
    assert max(seen) == 3
    assert sum(seen) == 19
    whole, parts = rows_of(tmp_path / "whole.csv"), rows_of(tmp_path / "parts.csv")
    assert [row["file"] for row in whole] == [row["file"] for row in parts]
    for one, other in zip(whole, parts, strict=True):
        assert [float(one[f"p_{k}"]) for k in range(4)] == pytest.approx(
            [float(other[f"p_{k}"]) for k in range(4)], rel=1e-4
        )


def test_what_cannot_be_read_is_named_counted_and_left_out(
    finished_run: Run, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "broken.jpg").write_bytes(b"\xff\xd8 nothing")
    (folder / "empty.png").write_bytes(b"")
    (folder / "cut.png").write_bytes((folder / "b.PNG").read_bytes()[:60])
    np.savez(tmp_path / "objects.npz", images=np.array([{}], dtype=object))
    out = tmp_path / "out.csv"
    assert run_command("predict", finished_run.path, folder, tmp_path / "objects.npz", "--out", out) == 0
    said = capsys.readouterr()
    for name in ("broken.jpg", "empty.png", "cut.png", "objects.npz"):
        assert f"left out: {tmp_path}" in said.err
        assert name in said.err
    assert "12 images (last weights, prior: uniform), 4 could not be read" in said.out
    assert len(rows_of(out)) == 12


def test_an_archive_whose_images_are_of_another_shape_is_named(
    finished_run: Run, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "rgba.npz", images=np.zeros((3, 8, 8, 4), np.uint8))
    assert run_command("predict", finished_run.path, folder, tmp_path / "rgba.npz", "--out", tmp_path / "out.csv") == 0
    assert "rgba.npz" in capsys.readouterr().err


def test_where_nothing_can_be_read_nothing_is_written(
    finished_run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.png").write_bytes(b"nothing")
    (tmp_path / "out.csv").write_text("of before")
    words = ("predict", finished_run.path, tmp_path / "broken.png", "--out", tmp_path / "out.csv")
    assert run_command(*words) == 3
    assert "broken.png" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken.png", "out.csv"]
    assert (tmp_path / "out.csv").read_text() == "of before"


def test_without_a_file_the_first_images_are_shown(
    finished_run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("longtail.prediction.predicting.SHOWN", 2)
    assert run_command("predict", finished_run.path, folder, "--which", "best", "--top", "3") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{folder}/b.PNG: ")
    assert lines[0].count(",") == 2
    assert "10 more" in lines[2]
    assert lines[3].startswith("12 images (best weights, prior: uniform)")


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["{run}", "{run}/absent.png"], 3, "There is no"),
        (["{run}", "{run}/checkpoints"], 3, "no image in"),
        (["{run}", "{run}/plots", "--out", "x.txt"], 2, ".csv or .jsonl"),
        (["{run}", "{run}/plots", "--out", "/absent/x.csv"], 2, "no folder"),
        (["{run}", "{run}/plots", "--prior", "unform"], 2, "uniform"),
        (["{run}", "{run}/plots", "--which", "first"], 2, "which"),
        (["{run}", "{run}/plots", "--top", "5"], 2, "4 classes"),
        (["{run}/plots", "{run}/plots"], 4, "run folder"),
    ],
)
def test_a_command_that_cannot_be_is_refused_with_the_code_of_its_kind(
    finished_run: Run, words: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command("predict", *(word.format(run=finished_run.path) for word in words)) == code
    assert said in capsys.readouterr().err


def test_a_photo_is_turned_as_its_camera_says(model: Model, pixels: Any, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.rot90(pixels[0])).save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(model.predict([tmp_path / "turned.png"]), model.predict([pixels[0]]))
