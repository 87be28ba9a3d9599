"""``longtail import``: checkpoints of the public programs as runs of ours, to the image, and nothing of them is run."""

import csv
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file

import longtail
from longtail.api import evaluate_run
from longtail.cli import main
from longtail.errors import ConfigError, RunError
from longtail.exchange.importers import fill, import_checkpoint, read_checkpoint, translate
from longtail.layers import merge
from longtail.recipes import load_config
from longtail.report.page import write_report
from longtail.runs.rundir import RunDir
from longtail.training.state import build_method
from tiny import files_of, read_test_images, tiny_config, write_npz


def run_command(*words: Any) -> int:
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    return int(stop.value.code or 0)


BACK = {
    "network.backbone.": "encoder.",
    "network.projection.": "head.",
    "network.center_head.": "head_fc.",
    "network.classifier.": "fc.",
}


def public(archive: Path, method: str = "bcl", prefix: str = "module.", **own: Any) -> dict[str, Any]:
    """What the public program would write of a fresh tiny network."""
    config = tiny_config(method, archive, archive.parent, **merge({"seed": 3}, own))
    state = build_method(config, [9, 6, 4, 2], 8).state_dict()
    renamed = {}
    for name, value in state.items():
        ours = next(part for part in BACK if name.startswith(part))
        turned = ours == "network.classifier." and config.model.classifier == "cosine"
        renamed[prefix + BACK[ours] + name.removeprefix(ours)] = value.T.clone() if turned else value
    renamed[f"{prefix}encoder.linear.weight"] = torch.zeros(10, 64)
    return {"epoch": 7, "arch": "resnet8", "state_dict": renamed, "best_acc1": 33.3, "optimizer": {"state": {}}}


def settings(archive: Path, **own: Any) -> dict[str, Any]:
    small = {
        "data": {"path": str(archive), "groups": [8, 3]},
        "model": {"backbone": "resnet8"},
        "method": {"hidden": 16, "dim": 8},
        "run": {"threads": 1},
    }
    return merge(small, own)


@pytest.fixture
def checkpoint(tiny_npz: Path, tmp_path: Path) -> Path:
    torch.save(public(tiny_npz), tmp_path / "checkpoint.pth.tar")
    return tmp_path / "checkpoint.pth.tar"


# Names ----------------------------------------------------------------------------------------------------------------


def test_names_of_the_public_programs_become_ours() -> None:
    pairs = {
        "module.encoder.layer1.0.bn1.running_mean": "network.backbone.layer1.0.bn1.running_mean",
        "encoder.conv1.weight": "network.backbone.conv1.weight",
        "module.head.0.weight": "network.projection.0.weight",
        "module.head_fc.3.bias": "network.center_head.3.bias",
        "fc.weight": "network.classifier.weight",
        "module.encoder.linear.bias": None,
        "network.classifier.bias": "network.classifier.bias",
        "something.else": "something.else",
    }
    assert {name: translate(name) for name in pairs} == pairs


@pytest.mark.parametrize("method", ["bcl", "concutmix"])
@pytest.mark.parametrize("prefix", ["module.", ""])
@pytest.mark.parametrize("classifier", ["linear", "cosine"])
def test_every_weight_of_a_public_checkpoint_is_taken(
    tiny_npz: Path, tmp_path: Path, method: str, prefix: str, classifier: str
) -> None:
    """The width is 64 and there are 4 classes, so a cosine classifier that is not turned does not fit."""
    model = {"backbone": "resnet8", "classifier": classifier}
    torch.save(public(tiny_npz, method, prefix, model=model), tmp_path / "file.pth")
    import_checkpoint(tmp_path / "file.pth", f"npz/{method}", settings(tiny_npz, model=model), str(tmp_path / "run"))
    found = longtail.load(tmp_path / "run").method.state_dict()
    config = tiny_config(method, tiny_npz, tmp_path, seed=3, model=model)
    wanted = build_method(config, [9, 6, 4, 2], 8).state_dict()
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert torch.equal(found[name].cpu(), value), name


def test_a_square_cosine_classifier_is_turned_too(tmp_path: Path) -> None:
    """With as many classes as features the shapes do not tell which way it is stored."""
    archive = write_npz(tmp_path / "data.npz", counts=(1,) * 64)
    config = tiny_config("ce", archive, tmp_path, model={"classifier": "cosine"})
    method = build_method(config, [1] * 64, 8)
    stored = torch.arange(64.0 * 64).view(64, 64)
    state = {
        name.replace("network.backbone", "encoder").replace("network.classifier", "fc"): value
        for name, value in method.state_dict().items()
    }
    fill(method, state | {"fc.weight": stored}, Path("file"))
    assert torch.equal(method.network.classifier.weight, stored.T)


# The run folder -------------------------------------------------------------------------------------------------------


def test_an_imported_run_is_evaluated_predicted_with_and_reported_like_any_other(
    tiny_npz: Path, checkpoint: Path, tmp_path: Path
) -> None:
    made = import_checkpoint(checkpoint, "npz/bcl", settings(tiny_npz), str(tmp_path / "run"))
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert made.evaluation is not None
    assert results["last"]["top1"] == made.evaluation.metrics.top1
    assert (results["epochs"], results["last"]["epoch"]) == (7, 6)
    assert RunDir(tmp_path / "run").description()["imported"]["epoch"] == 7
    assert RunDir(tmp_path / "run").read_config()["optim"]["epochs"] == 7
    for which in ("last", "best"):
        found = evaluate_run(tmp_path / "run", which)
        assert found.evaluation.numbers() == made.evaluation.numbers()
        assert found.notes == []
    predicted = longtail.load(tmp_path / "run").predict(read_test_images(tmp_path / "run"))
    np.testing.assert_array_equal(predicted, made.evaluation.probabilities)
    assert write_report(tmp_path / "run", tmp_path / "page.html").is_file()
    assert (tmp_path / "run" / "report.html").is_file()


def test_an_imported_run_is_something_to_start_from(tiny_npz: Path, checkpoint: Path, tmp_path: Path) -> None:
    import_checkpoint(checkpoint, "npz/bcl", settings(tiny_npz), str(tmp_path / "run"))
    started = tiny_config("bcl", tiny_npz, tmp_path / "next", init=str(tmp_path / "run"))
    longtail.train(started_file(started, tmp_path))
    assert (tmp_path / "next" / "results.json").is_file()


def started_file(config: Any, folder: Path) -> Path:
    path = folder / "next.yaml"
    path.write_text(yaml.safe_dump(config.plain()))
    return path


def test_resuming_an_imported_run_trains_nothing(tiny_npz: Path, checkpoint: Path, tmp_path: Path) -> None:
    import_checkpoint(checkpoint, "npz/bcl", settings(tiny_npz), str(tmp_path / "run"))
    before = files_of(tmp_path / "run" / "checkpoints")
    assert run_command("train", tmp_path / "run" / "config.yaml", "--resume") == 0
    assert files_of(tmp_path / "run" / "checkpoints") == before


def test_cifar_is_imported_without_its_images_and_evaluated_where_they_are(tmp_path: Path) -> None:
    names = np.array([f"kind {k}" for k in range(10)])
    archive = write_npz(tmp_path / "cifar10.npz", counts=(8,) * 10, test=2, shape=(32, 32, 3), class_names=names)
    values = {"model": {"backbone": "resnet8"}, "method": {"hidden": 16, "dim": 8}, "run": {"threads": 1}}
    config = load_config("cifar10/bcl", merge(values, {"data": {"path": str(archive)}}))
    torch.save(build_method(config, [8] * 10, 32).state_dict(), tmp_path / "file.pth")
    assert import_checkpoint(tmp_path / "file.pth", "cifar10/bcl", values, str(tmp_path / "tail")).evaluation is None
    model = longtail.load(tmp_path / "tail")
    assert (model.class_counts[0], model.class_counts[-1], len(model.class_counts)) == (5000, 50, 10)
    with pytest.raises(ConfigError, match=r"data\.path"):
        evaluate_run(tmp_path / "tail")

    whole = merge(values, {"data": {"imbalance": None}})
    import_checkpoint(tmp_path / "file.pth", "cifar10/bcl", whole, str(tmp_path / "run"))
    with_images = merge(whole, {"data": {"path": str(archive)}})
    made = import_checkpoint(tmp_path / "file.pth", "cifar10/bcl", with_images, str(tmp_path / "other"))
    found = evaluate_run(tmp_path / "run", settings={"data": {"path": str(archive)}})
    assert made.evaluation is not None
    np.testing.assert_array_equal(found.evaluation.probabilities, made.evaluation.probabilities)
    assert found.notes == []


# What is refused ------------------------------------------------------------------------------------------------------


def refused(file: Path, recipe: str, values: dict[str, Any], out: Path) -> str:
    with pytest.raises(RunError) as error:
        import_checkpoint(file, recipe, values, str(out))
    assert not out.exists()
    return str(error.value)


def test_a_checkpoint_of_another_recipe_is_refused_with_what_does_not_fit(
    tiny_npz: Path, checkpoint: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    said = refused(checkpoint, "npz/ce", settings(tiny_npz) | {"method": {}}, out)
    assert "left over: module.head.0.weight" in said
    said = refused(checkpoint, "npz/bcl", settings(tiny_npz, method={"dim": 12}), out)
    assert "of another shape: module.head.3.weight (8, 16), not (12, 16)" in said
    said = refused(checkpoint, "npz/bcl", settings(tiny_npz, model={"backbone": "resnet20"}), out)
    assert "missing: network.backbone.layer1.1.conv1.weight" in said
    assert "more" in said
    said = refused(checkpoint, "npz/bcl", settings(tiny_npz, model={"classifier": "cosine"}), out)
    assert "left over: module.fc.bias" in said


def test_weights_that_are_not_finite_are_refused(tiny_npz: Path, tmp_path: Path) -> None:
    content = public(tiny_npz)
    content["state_dict"]["module.fc.bias"][1] = float("nan")
    torch.save(content, tmp_path / "file.pth")
    said = refused(tmp_path / "file.pth", "npz/bcl", settings(tiny_npz), tmp_path / "run")
    assert "module.fc.bias" in said


class Evil:
    """A pickle that would make a file when it is read."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (Path.touch, (self.place,))  # type: ignore[return-value]


def test_a_file_that_would_run_code_is_refused_and_runs_none(tiny_npz: Path, tmp_path: Path) -> None:
    place = tmp_path / "was here"
    content = public(tiny_npz) | {"args": Evil(place)}
    torch.save(content, tmp_path / "file.pth")
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps(Evil(place)))
    for name in ("file.pth", "plain.pkl"):
        refused(tmp_path / name, "npz/bcl", settings(tiny_npz), tmp_path / "run")
    assert not place.exists()


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "absent", "folder", "no weights", "numbers"])
def test_a_file_that_is_no_checkpoint_is_refused(checkpoint: Path, tmp_path: Path, damage: str) -> None:
    file = tmp_path / "file.pth"
    if damage == "cut":
        file.write_bytes(checkpoint.read_bytes()[:1000])
    elif damage == "empty":
        file.write_bytes(b"")
    elif damage == "text":
        file.write_text("weights are elsewhere")
    elif damage == "folder":
        file.mkdir()
    elif damage == "no weights":
        torch.save({"epoch": 3}, file)
    elif damage == "numbers":
        torch.save([1, 2, 3], file)
    with pytest.raises(RunError, match=r"file\.pth"):
        read_checkpoint(file)


def test_a_file_of_tensors_alone_and_safetensors_are_read_too(tiny_npz: Path, checkpoint: Path, tmp_path: Path) -> None:
    tensors, epoch = read_checkpoint(checkpoint)
    assert epoch == 7
    torch.save(tensors, tmp_path / "tensors.pth")
    save_file({name: value.contiguous() for name, value in tensors.items()}, tmp_path / "file.safetensors")
    for name in ("tensors.pth", "file.safetensors"):
        again, epoch = read_checkpoint(tmp_path / name)
        assert epoch is None
        assert again.keys() == tensors.keys()
    made = import_checkpoint(tmp_path / "tensors.pth", "npz/bcl", settings(tiny_npz), str(tmp_path / "run"))
    assert any("does not say" in note for note in made.notes)


def test_settings_and_places_that_cannot_be_are_refused_before_the_file_is_read(tiny_npz: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").write_text("")
    absent = tmp_path / "absent.pth"
    for recipe, values, out, words in (
        ("npz/bcll", settings(tiny_npz), "run", "Did you mean"),
        ("npz/bcl", settings(tiny_npz), "there", "exists already"),
        ("npz/bcl", settings(tiny_npz, init=str(tmp_path)), "run", "exclude each other"),
        ("npz/bcl", settings(tiny_npz, optim={"lr": -1}), "run", "optim.lr"),
    ):
        with pytest.raises(ConfigError, match=words):
            import_checkpoint(absent, recipe, values, str(tmp_path / out))


def test_other_data_than_cifar_cannot_be_described_without_images(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.path"):
        import_checkpoint(checkpoint, "npz/bcl", {}, str(tmp_path / "run"))


def test_the_command_says_what_it_made(
    tiny_npz: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"data.path={tiny_npz}", "model.backbone=resnet8", "method.hidden=16", "method.dim=8", "run.threads=1"]
    out = tmp_path / "run"
    assert run_command("import", checkpoint, "--recipe", "npz/bcl", *words, "--out", out) == 0
    said = capsys.readouterr().out
    assert "nothing uses them: module.encoder.linear.weight" in said
    assert "(12 test images)" in said
    assert f"run: {out}" in said
    assert run_command("import", checkpoint, "--recipe", "npz/ce", *words[:2], "--out", tmp_path / "other") == 4
    assert "left over" in capsys.readouterr().err


# The reference --------------------------------------------------------------------------------------------------------


@pytest.mark.shared
def test_the_authors_checkpoint_is_right_on_2047_of_the_10000_test_images(shared: Path, tmp_path: Path) -> None:
    values = {"data": {"path": str(shared / "data" / "cifar100.npz")}, "run": {"threads": 1}}
    file = shared / "golden" / "authors_checkpoint.pth.tar"
    made = import_checkpoint(file, "cifar100/concutmix", values, str(tmp_path / "run"))
    with (tmp_path / "run" / "predictions.csv").open() as table:
        assert sum(int(row["correct"]) for row in csv.DictReader(table)) == 2047
    assert made.evaluation is not None
    numbers = made.evaluation.numbers()
    assert [round(100 * numbers[name], 2) for name in ("many", "medium", "few")] == [29.97, 15.80, 14.83]
