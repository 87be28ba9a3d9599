"""``longtail export``: what another program is given answers as the run does, or is not kept."""

import importlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import longtail
from longtail.api import Run, evaluate_run, train
from longtail.cli import main
from longtail.config import METHOD_SETTINGS, Config
from longtail.errors import ConfigError, RunError
from longtail.evaluation.scoring import Scoring
from longtail.exchange.export import CHECKED, Answering, check_agreement, check_images, export
from longtail.methods import METHODS
from longtail.models.network import ModelSettings
from longtail.prediction.predict import Model, training_only
from longtail.runs.exported import PATHS, portable_command
from longtail.training.state import begin, build_method
from tiny import files_of, read_test_images, settings_of, tiny_config, write_npz


@pytest.fixture(scope="module")
def model(finished_run: Run) -> Model:
    return longtail.load(finished_run.path, device="cpu")


@pytest.fixture
def pixels(finished_run: Run) -> Any:
    """Test images of the run, uint8 (12, 3, 8, 8)."""
    return np.ascontiguousarray(read_test_images(finished_run.path).transpose(0, 3, 1, 2))


def run_command(*words: Any) -> int:
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    return int(stop.value.code or 0)


# Graphs ---------------------------------------------------------------------------------------------------------------


def test_an_exported_program_answers_as_the_run_does(model: Model, pixels: Any, tmp_path: Path) -> None:
    path, said = export(model, "exported-program", tmp_path / "model.pt2")
    about = {"longtail.json": ""}
    program = torch.export.load(path, extra_files=about).module()
    for images in (pixels, pixels[:1], pixels[:7]):
        logits, probabilities = program(torch.from_numpy(images))
        np.testing.assert_allclose(probabilities.numpy(), model.predict(images), rtol=1e-4, atol=1e-6)
        assert (torch.softmax(logits, dim=1) - probabilities).abs().max() < 1e-6
    assert json.loads(about["longtail.json"])["class_names"] == model.class_names
    assert f"checked on {CHECKED} images" in said
    assert [part.name for part in tmp_path.iterdir()] == ["model.pt2"]


def test_a_graph_of_onnx_answers_as_the_run_does(model: Model, pixels: Any, tmp_path: Path) -> None:
    for name in ("onnx", "onnxscript"):
        pytest.importorskip(name, reason="needs the extra 'onnx'")
    runtime = pytest.importorskip("onnxruntime", reason="needs the extra 'onnx'")
    path, _ = export(model, "onnx", tmp_path / "model.onnx")
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for images in (pixels, pixels[:1], pixels[:7]):
        logits, probabilities = session.run(["logits", "probabilities"], {"images": images})
        np.testing.assert_allclose(probabilities, model.predict(images), rtol=1e-4, atol=1e-6)
        assert logits.shape == (len(images), 4)
    known = session.get_modelmeta().custom_metadata_map
    assert json.loads(known["class_names"]) == model.class_names
    assert known["weights"] == "last"
    assert [part.name for part in tmp_path.iterdir()] == ["model.onnx"]


def test_what_the_run_does_at_test_time_is_in_the_graph(finished_run: Run, pixels: Any, tmp_path: Path) -> None:
    scored = longtail.load(finished_run.path, device="cpu")
    plain = scored.predict(pixels)
    scored.scoring = Scoring(flip=True, tau_norm=0.5, tau=0.7, temperature=1.7)
    path, _ = export(scored, "exported-program", tmp_path / "model.pt2")
    _, probabilities = torch.export.load(path).module()(torch.from_numpy(pixels))
    np.testing.assert_allclose(probabilities.numpy(), scored.predict(pixels), rtol=1e-4, atol=1e-6)
    assert np.abs(probabilities.numpy() - plain).max() > 1e-3


class Off(torch.nn.Module):
    """An exported graph that is off by ``by`` in one logit of one image, the last."""

    def __init__(self, inner: Answering, by: float) -> None:
        super().__init__()
        self.inner, self.by, self.seen = inner, by, 0

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits, probabilities = self.inner(images)
        self.seen += len(images)
        if self.seen == CHECKED:
            logits = logits.clone()
            logits[-1, 0] += self.by
        return logits, probabilities


def test_a_graph_that_is_off_in_one_logit_of_the_last_image_is_refused(model: Model) -> None:
    answering = Answering(model).eval()
    with torch.no_grad():
        last_part = check_images(model.size)[-(CHECKED % 60) :]
        scale = max(1.0, float(answering(last_part)[0].abs().max()))
        found = check_agreement(answering, Off(answering, 5e-5 * scale), model.size)
        assert found == pytest.approx(5e-5, rel=0.1)
        for by in (2e-4 * scale, float("nan"), float("inf")):
            with pytest.raises(RunError, match="does not agree"):
                check_agreement(answering, Off(answering, by), model.size)


class Swapped(torch.nn.Module):
    """A network, or a copy of it, whose two nearly equal logits may change places."""

    def __init__(self, first: float) -> None:
        super().__init__()
        self.first = first

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits = torch.tensor([[self.first, 0.5]]).expand(len(images), 2)
        return logits, torch.softmax(logits, dim=1)


class Scaled(torch.nn.Module):
    """One large logit and two others, all a little off by ``by``."""

    def __init__(self, by: float) -> None:
        super().__init__()
        self.by = by

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits = torch.tensor([[500.0, 30.0, -10.0]]).expand(len(images), 3)
        return logits + self.by, torch.softmax(logits, dim=1)


def test_large_logits_may_differ_by_as_many_digits_as_float32_has() -> None:
    assert check_agreement(Scaled(0.0), Scaled(5e-3), 8) == pytest.approx(1e-5, rel=0.1)  # type: ignore[arg-type]
    with pytest.raises(RunError, match="does not agree"):
        check_agreement(Scaled(0.0), Scaled(0.1), 8)  # type: ignore[arg-type]


def test_a_graph_within_the_tolerance_that_answers_otherwise_is_refused() -> None:
    with pytest.raises(RunError, match="argmaxes differ"):
        check_agreement(Swapped(0.50001), Swapped(0.49999), 8)  # type: ignore[arg-type]


def test_a_graph_that_is_refused_is_not_kept_and_what_was_there_stays(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.pt2"
    path.write_bytes(b"of before")
    monkeypatch.setattr("longtail.exchange.export.TOLERANCE", -1.0)
    with pytest.raises(RunError, match="not kept"):
        export(model, "exported-program", path)
    assert files_of(tmp_path) == {"model.pt2": b"of before"}


def test_the_images_of_the_check_differ_and_are_always_the_same() -> None:
    images = check_images(8)
    assert images.shape == (CHECKED, 3, 8, 8)
    assert images.dtype == torch.uint8
    assert len(torch.unique(images, dim=0)) == CHECKED
    assert torch.equal(images, check_images(8))


@pytest.mark.parametrize("name", METHODS)
def test_an_answer_depends_on_every_tensor_that_is_exported_and_on_no_other(name: str) -> None:
    entry = METHODS[name]
    settings = METHOD_SETTINGS[name](**settings_of(name)["method"])
    built = entry.build(settings, ModelSettings(backbone="resnet8"), [9, 6, 4, 2], size=8, seed=0).eval()
    images = torch.linspace(-1, 1, 2 * 3 * 64).view(2, 3, 8, 8)
    for tensor_name, tensor in built.state_dict().items():
        if not tensor.is_floating_point() or tensor.numel() == 0:
            continue
        kept = tensor.clone()
        with torch.no_grad():
            tensor.fill_(float("nan"))
            spoiled = not bool(torch.isfinite(built.logits(images)).all())
            tensor.copy_(kept)
        assert spoiled != training_only(tensor_name), tensor_name


# The folder -----------------------------------------------------------------------------------------------------------


def test_an_exported_folder_is_loaded_and_answers_as_the_run_does(model: Model, pixels: Any, tmp_path: Path) -> None:
    path, _ = export(model, "safetensors", tmp_path / "hub")
    loaded = longtail.load(path)
    np.testing.assert_array_equal(loaded.predict(pixels), model.predict(pixels))
    np.testing.assert_array_equal(loaded.predict(pixels, prior="training"), model.predict(pixels, prior="training"))
    assert (loaded.class_names, loaded.class_counts, loaded.which) == (model.class_names, model.class_counts, "last")
    assert sorted(files_of(path)) == ["README.md", "config.json", "model.safetensors"]


def test_an_exported_folder_holds_no_training_part_and_no_path_of_the_machine(model: Model, tmp_path: Path) -> None:
    path, _ = export(model, "safetensors", tmp_path / "hub")
    names = load_file(path / "model.safetensors")
    assert not [name for name in names if "projection" in name or "center_head" in name]
    about = json.loads((path / "config.json").read_text())
    data = model.config.data.path
    assert data
    for text in (path / "config.json", path / "README.md"):
        assert str(Path(data).parent) not in text.read_text()
        assert str(model.folder) not in text.read_text()
    assert about["config"]["data"]["path"] is None


def test_every_setting_that_is_a_place_is_left_out_of_what_is_exported() -> None:
    known = {f"{group}.{name}".removeprefix(".") for group, names in PATHS.items() for name in names}
    places = set()
    for group, field in Config.model_fields.items():
        inner = {f"method.{n}": f for kind in METHOD_SETTINGS.values() for n, f in kind.model_fields.items()}
        if group != "method":
            inner = {f"{group}.{n}": f for n, f in getattr(field.annotation, "model_fields", {}).items()}
        for name, own in {group: field, **inner}.items():
            if "AfterValidator" in repr(own.annotation) and "_from_anywhere" in repr(own.annotation):
                places.add(name)
    assert len(places) > 5
    assert known == places | {"out"}


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("cifar100/ce data.path=/home/me/c.npz seed=1", "cifar100/ce data.path=c.npz seed=1"),
        ("npz/ce data.path=my/own.npz --out runs/x --resume", "npz/ce data.path=own.npz"),
        ("../x/config.yaml out=/tmp/y", "config.yaml"),
        ("folder/ce 'data.path=/home/a b/k=v/photos'", "folder/ce data.path=photos"),
        ("/home/k=v/config.yaml seed=1", "config.yaml seed=1"),
        ("csv/ce data.root=~/a --out=q 'data.path=a b/c d.csv'", "csv/ce data.root=a 'data.path=c d.csv'"),
        ("scenes/smcl method.saliency_maps=x/m.npz init=runs/a/", "scenes/smcl method.saliency_maps=m.npz init=a"),
    ],
)
def test_a_command_is_told_without_the_places_of_the_machine(given: str, shown: str) -> None:
    assert portable_command(f"longtail train {given}") == f"longtail train {shown}"


def test_an_exported_folder_of_a_run_on_scenes_repeats_its_numbers_to_the_image(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings: dict[str, Any] = {"optim": {"epochs": 2}, "run": {"threads": 1, "compile": False}}
    run = longtail.train("scenes/ce", model={"backbone": "resnet8"}, out=tmp_path / "run", **settings)
    assert run_command("export", run.path, "--out", tmp_path / "weights") == 0
    shutil.rmtree(run.path)
    assert run_command("eval", tmp_path / "weights") == 0
    said = capsys.readouterr().out
    assert "equal those of the card" in said
    assert f"{100 * run.results['last']['top1']:.2f}" in said
    again = evaluate_run(tmp_path / "weights")
    assert again.evaluation.numbers() == {k: v for k, v in run.results["last"].items() if k != "epoch"}
    card = (tmp_path / "weights" / "README.md").read_text()
    assert "`longtail eval THIS_FOLDER` counts again" in card, "the scenes need no data.path"


def test_an_exported_folder_is_evaluated_where_the_images_are_and_says_if_the_card_differs(
    finished_run: Run, tiny_npz: Path, tmp_path: Path
) -> None:
    for which in ("last", "best"):
        path, _ = export(longtail.load(finished_run.path, which=which), "safetensors", tmp_path / which)
        with pytest.raises(ConfigError, match=r"data\.path"):
            evaluate_run(path)
        found = evaluate_run(path, which, {"data": {"path": str(tiny_npz)}})
        assert found.which == which
        assert found.notes == []
        assert f"equal those of the card ({path}/README.md)" in found.verdict
        assert found.evaluation.metrics.top1 == finished_run.results[which]["top1"]
    about = json.loads((tmp_path / "last" / "config.json").read_text())
    about["results"]["top1"] -= 1 / 12
    (tmp_path / "last" / "config.json").write_text(json.dumps(about))
    verdict = evaluate_run(tmp_path / "last", settings={"data": {"path": str(tiny_npz)}}).verdict
    assert verdict.startswith("Not the numbers of the card")
    assert "1 of 12 images" in verdict
    about["config"]["optim"]["epoch"] = 3
    (tmp_path / "last" / "config.json").write_text(json.dumps(about))
    with pytest.raises(RunError, match=r"'optim\.epoch'"):
        evaluate_run(tmp_path / "last", settings={"data": {"path": str(tiny_npz)}})


def test_an_exported_folder_is_exported_again_with_the_same_card(model: Model, tmp_path: Path) -> None:
    first, _ = export(model, "safetensors", tmp_path / "first")
    second, _ = export(longtail.load(first, device="cpu"), "safetensors", tmp_path / "second")
    assert files_of(first) == files_of(second)


def test_a_run_begins_with_the_weights_of_an_exported_folder_wherever_it_is(
    model: Model, tiny_npz: Path, tmp_path: Path
) -> None:
    path, _ = export(model, "safetensors", tmp_path / "hub")
    shutil.copytree(path, tmp_path / "elsewhere")
    config = [
        tiny_config("ce", tiny_npz, tmp_path / "run", init=str(folder)) for folder in (path, tmp_path / "elsewhere")
    ]
    assert config[0].key() == config[1].key() != tiny_config("ce", tiny_npz, tmp_path / "run").key()
    method = build_method(config[0], model.class_counts, model.size)
    begin(method, config[0])
    own = model.method.state_dict()
    for name, value in method.state_dict().items():
        assert torch.equal(value, own[name]), name
    (path / "model.safetensors").write_bytes(b"spoiled")
    with pytest.raises(RunError, match="digest"):
        begin(method, config[0])


def test_a_folder_exported_from_a_run_that_chose_on_val_answers_with_what_was_chosen(tmp_path: Path) -> None:
    data = write_npz(tmp_path / "data.npz", val=3)
    values = settings_of("ce", data={"path": str(data)}, test={"temperature": "val", "tau": "val"})
    trained = train("npz/ce", **values, out=tmp_path / "run").model()
    path, _ = export(trained, "safetensors", tmp_path / "hub")
    images = read_test_images(tmp_path / "run")
    np.testing.assert_array_equal(longtail.load(path).predict(images), trained.predict(images))


def test_the_card_says_counts_and_numbers_of_the_weights_it_is_of(finished_run: Run, tmp_path: Path) -> None:
    for which in ("last", "best"):
        path, _ = export(longtail.load(finished_run.path, which=which), "safetensors", tmp_path / which)
        card = (path / "README.md").read_text()
        numbers = finished_run.results[which]
        assert f"npz/concutmix, {which} weights" in card
        assert f"| many | more than 8 | 1 | 9 | {100 * numbers['many']:.2f} % |" in card
        assert f"| medium | 3 to 8 | 2 | 10 | {100 * numbers['medium']:.2f} % |" in card
        assert f"| all | 2 to 9 | 4 | 21 | {100 * numbers['top1']:.2f} % |" in card
        assert ("the numbers are too good" in card) == (which == "best")
        assert "| 3 | 2 |" in card
    with pytest.raises(RunError, match="holds the last weights alone"):
        longtail.load(tmp_path / "last", which="best")
    assert longtail.load(tmp_path / "best").which == "best"


def test_a_class_name_cannot_break_the_card(tmp_path: Path) -> None:
    names = ["<script>alert(1)</script>", "a | b\n| c | 3 |", "[x](y) `z` *w*", "ok"]
    data = write_npz(tmp_path / "data.npz", class_names=np.array(names))
    trained = train("npz/ce", **settings_of("ce", data={"path": str(data)}), out=tmp_path / "run").model()
    path, _ = export(trained, "safetensors", tmp_path / "hub")
    card = (path / "README.md").read_text()
    assert "<script" not in card
    assert "| c | 3 |" not in card
    assert "[x]" not in card
    assert longtail.load(path).class_names == names


def test_a_damaged_folder_is_refused_and_told(model: Model, tmp_path: Path) -> None:
    export(model, "safetensors", tmp_path / "hub")

    def spoiled(name: str, change: Any) -> Path:
        copied = tmp_path / "spoiled"
        shutil.rmtree(copied, ignore_errors=True)
        shutil.copytree(tmp_path / "hub", copied)
        change(copied / name)
        return copied

    def flip(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)

    def other(path: Path) -> None:
        about = json.loads(path.read_text())
        about["config"]["model"]["backbone"] = "resnet20"
        path.write_text(json.dumps(about))

    def strange(path: Path) -> None:
        path.write_text('{"model_type": "bert"}')

    for name, change, words in (
        ("model.safetensors", flip, "digest"),
        ("model.safetensors", Path.unlink, "cannot be read"),
        ("config.json", other, "another model"),
        ("config.json", strange, "neither a run folder"),
        ("config.json", lambda path: path.write_text("{"), "cannot be read"),
    ):
        with pytest.raises(RunError, match=words):
            longtail.load(spoiled(name, change))


def test_a_folder_with_something_else_in_it_is_left_alone(model: Model, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match="left alone"):
        export(model, "safetensors", tmp_path)
    assert files_of(tmp_path) == {"thesis.tex": b"years of work"}
    export(model, "safetensors", tmp_path / "hub")
    export(model, "safetensors", tmp_path / "hub")


# The command ----------------------------------------------------------------------------------------------------------


def test_without_out_the_file_lies_in_the_run_and_carries_the_word_for_its_weights(
    finished_run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished_run.path, run)
    assert run_command("export", run, "--format", "safetensors", "--which", "best") == 0
    assert f"best weights: {run}/export/model-best" in capsys.readouterr().out
    assert (run / "export" / "model-best" / "model.safetensors").is_file()


def test_without_the_packages_onnx_is_refused_with_the_name_of_the_extra(
    finished_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = importlib.import_module

    def absent(name: str, package: str | None = None) -> Any:  # it is everyone's, a library's late imports included
        if name.startswith("onnx"):
            raise ImportError(f"No module named {name!r}")
        return found(name, package)

    monkeypatch.setattr("longtail.exchange.export.importlib.import_module", absent)
    assert run_command("export", finished_run.path, "--format", "onnx", "--out", tmp_path / "model.onnx") == 2
    assert "longtail[onnx]" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["{run}", "--format", "onx"], 2, "onnx"),
        (["{run}", "--format", "exported-program", "--out", "{tmp}"], 2, "one file"),
        (["{run}", "--format", "exported-program", "--out", "{tmp}/model.onnx"], 2, ".pt2"),
        (["{run}/plots"], 4, "run folder"),
        (["{run}", "--which", "first"], 2, "which"),
    ],
)
def test_an_export_that_cannot_be_is_refused_with_the_code_of_its_kind(
    finished_run: Run, tmp_path: Path, words: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command("export", *(word.format(run=finished_run.path, tmp=tmp_path) for word in words)) == code
    assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
