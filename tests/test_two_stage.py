"""Second stages: what is frozen stays, what is fresh is fresh, and the scaled logits are what is evaluated."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import save_file
from torch import Tensor, nn

import longtail.training.starting as starting
from family_oracles import label_aware_smoothing, smoothed_cross_entropy
from longtail.config import METHOD_SETTINGS, OptimSettings
from longtail.data.images import ImageSet
from longtail.data.loader import Loader
from longtail.data.views import build_view
from longtail.errors import ConfigError, RunError, StoppedError
from longtail.methods import METHODS, Batch, Progress
from longtail.methods.two_stage import TwoStage
from longtail.models.network import ModelSettings
from longtail.prediction.predict import load
from longtail.recipes import load_config
from longtail.rng import generator
from longtail.runs.rundir import RunDir
from longtail.study import plan_study, run_study
from longtail.study.watching import StudyLines
from longtail.training.loop import train
from longtail.training.optim import build_optimizer
from longtail.training.state import begin, build_method, load_initial_weights, load_model, model_part
from longtail.training.updating import update
from oracles import cross_entropy, dot, log_softmax
from tiny import COUNTS, SIZE, At, Recorder, outcome, read_test_images, tiny_config, write_npz

NAMES = ("crt", "lws", "mislas")
AT = Progress(step=2, epoch=0, epochs=2, seed=0)


def built(name: str, seed: int = 0, **settings: Any) -> TwoStage:
    chosen = METHOD_SETTINGS[name].model_validate({"name": name, **settings})
    method = METHODS[name].build(chosen, ModelSettings(backbone="resnet8"), COUNTS, size=SIZE, seed=seed)
    assert isinstance(method, TwoStage)
    if method.scales is not None:
        with torch.no_grad():
            method.scales.copy_(torch.tensor([0.5, 1.5, 2.0, -1.0]))
    return method


def pictures(count: int = 8) -> Tensor:
    return torch.randn(count, 3, SIZE, SIZE, generator=generator("two-stage pictures"))


def batch(count: int = 8) -> Batch:
    return Batch((pictures(count),), torch.arange(count) % len(COUNTS), torch.arange(count))


def tensors_of(run: Path) -> dict[str, Tensor]:
    checkpoint = RunDir(run).load_checkpoint()
    assert checkpoint is not None
    return model_part(checkpoint)


@pytest.fixture(scope="module")
def first(tiny_npz: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished first stage, whose seed is another than that of the second."""
    out = tmp_path_factory.mktemp("first") / "run"
    train(tiny_config("ce", tiny_npz, out, seed=7))
    return out


# Equations ------------------------------------------------------------------------------------------------------------


def plain_logits(method: TwoStage, features: list[list[float]]) -> list[list[float]]:
    """f_k (w_k . h + b_k) of every row h."""
    weight, bias = method.network.classifier.weight.tolist(), method.network.classifier.bias.tolist()
    scales = [1.0] * len(weight) if method.scales is None else method.scales.tolist()
    return [[f * (dot(w, h) + b) for f, w, b in zip(scales, weight, bias, strict=True)] for h in features]


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_and_the_logits_are_those_of_the_slow_loop(name: str) -> None:
    method, given = built(name).double(), batch()
    images = given.views[0].double()
    features = method.network.features(images).tolist()
    expected = plain_logits(method, features)
    target = given.target.tolist()
    if name == "mislas":
        loss = smoothed_cross_entropy(expected, target, label_aware_smoothing(COUNTS, 0.4, 0.1))
    else:
        loss = cross_entropy(expected, target)
    found = method(Batch((images,), given.target, given.index), AT)
    assert float(found.loss.detach()) == pytest.approx(loss, rel=1e-6)
    assert float(found.logs["classification"]) == float(found.loss.detach())
    judged = plain_logits(method, method.eval().network.features(images).tolist())
    torch.testing.assert_close(method.logits(images).tolist(), judged, rtol=1e-9, atol=1e-9)


def test_a_scale_gets_the_error_of_its_class_times_its_unscaled_logit() -> None:
    method, given = built("lws").double(), batch()
    images = given.views[0].double()
    assert method.scales is not None
    scales, features = method.scales.tolist(), method.network.features(images).tolist()
    expected = [0.0] * len(COUNTS)
    for row, label in zip(plain_logits(method, features), given.target.tolist(), strict=True):
        for k, log_p in enumerate(log_softmax(row)):
            expected[k] += (math.exp(log_p) - float(k == label)) * row[k] / scales[k] / len(features)
    method(Batch((images,), given.target, given.index), AT).loss.backward()
    assert method.scales.grad is not None
    torch.testing.assert_close(method.scales.grad.tolist(), expected, rtol=1e-9, atol=1e-12)


def test_the_classifier_learns_at_its_multiple_of_the_rate_and_the_scales_at_the_whole() -> None:
    """Two steps of w := w - rate v with v := 0.9 v + g + decay w, for each in plain floats."""
    method, settings = built("mislas", classifier_rate=0.2), OptimSettings(lr=0.05, momentum=0.9, weight_decay=0.1)
    optimizer = build_optimizer(method, settings, method.rates)
    assert method.scales is not None
    learned: list[tuple[nn.Parameter, float]] = [(method.network.classifier.bias, 0.2 * 0.05), (method.scales, 0.05)]
    values, speeds = [parameter.tolist() for parameter, _ in learned], [[0.0] * len(COUNTS) for _ in learned]
    for step in range(2):
        update(method, optimizer, batch(), Progress(step, 0, 2, 0), 0.05, settings)
        for number, (parameter, rate) in enumerate(learned):
            assert parameter.grad is not None
            for k, slope in enumerate(parameter.grad.tolist()):
                speeds[number][k] = 0.9 * speeds[number][k] + slope + 0.1 * values[number][k]
                values[number][k] -= rate * speeds[number][k]
            torch.testing.assert_close(parameter.tolist(), values[number], rtol=1e-5, atol=1e-6)


def test_nothing_frozen_is_in_the_optimizer() -> None:
    for name, parts in (("crt", {"network.classifier"}), ("lws", {"scales"})):
        method = built(name)
        known = {
            id(parameter)
            for group in build_optimizer(method, OptimSettings()).param_groups
            for parameter in group["params"]
        }
        there = {key for key, parameter in method.named_parameters() if id(parameter) in known}
        assert {key.removesuffix(".weight").removesuffix(".bias") for key in there} == parts


def test_shifted_statistics_move_by_a_tenth_toward_those_of_the_batch() -> None:
    method = built("mislas")
    maps: list[Tensor] = []
    backbone = method.network.backbone
    backbone.conv1.register_forward_hook(lambda module, given, made: maps.append(made.detach()))
    method(batch(), AT)
    for channel, running in enumerate(backbone.bn1.running_mean.tolist()):
        values = maps[0][:, channel].double().flatten().tolist()
        assert running == pytest.approx(0.9 * 0.0 + 0.1 * math.fsum(values) / len(values), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_batch_norm_of_the_backbone_is_in_training_mode_only_where_it_shifts(name: str) -> None:
    method = built(name)
    for _ in range(2):
        assert {
            module.training for module in method.network.backbone.modules() if isinstance(module, nn.BatchNorm2d)
        } == {name == "mislas"}
        assert method.training
        method.eval()
        assert not any(module.training for module in method.modules())
        method.train()


def test_draws_are_balanced_unless_another_sampler_is_asked_for() -> None:
    labels = torch.arange(len(COUNTS)).repeat_interleave(torch.tensor(COUNTS) * 40)
    images = ImageSet(torch.zeros(len(labels), 3, SIZE, SIZE, dtype=torch.uint8), labels, torch.arange(len(labels)))
    views = {"classification": build_view("plain", SIZE, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))}
    shares = {}
    for sampler in ("class_balanced", "shuffle"):
        plan, _ = Loader(images, built("crt", sampler=sampler).needs, views, 64, 1, seed=0).plan(0)
        shares[sampler] = (torch.bincount(labels[torch.cat(plan)]) / len(labels)).tolist()
    assert built("crt").needs.sampler == "class_balanced"
    assert shares["class_balanced"] == pytest.approx([0.25] * 4, abs=0.06)
    assert shares["shuffle"] == pytest.approx([count / sum(COUNTS) for count in COUNTS])


# What comes from the first stage --------------------------------------------------------------------------------------

STILL: dict[str, Any] = {"lr": 1e-12, "momentum": 0, "weight_decay": 0, "epochs": 1}
OPTIONS: dict[str, dict[str, Any]] = {
    "none": {},
    "decay": {"optim": {"weight_decay": 0.5}},
    "ema": {"optim": {"ema": 0.7}},
    "sam, clipped": {"optim": {"sam": 0.1, "clip": 1.0, "accumulate": 2}},
    "bfloat16": {"run": {"precision": "bfloat16"}},
}


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("name", NAMES)
def test_what_is_frozen_is_bit_for_bit_what_the_first_stage_left(
    tiny_npz: Path, tmp_path: Path, first: Path, name: str, option: str
) -> None:
    train(tiny_config(name, tiny_npz, tmp_path / "run", init=str(first), **OPTIONS[option]))
    checkpoint = RunDir(tmp_path / "run").load_checkpoint()
    assert checkpoint is not None
    before = tensors_of(first)
    for prefix in ("model/", "average/"):
        after = {key.removeprefix(prefix): v for key, v in checkpoint.tensors.items() if key.startswith(prefix)}
        assert bool(after) == (prefix == "model/" or option == "ema")
        for key, value in after.items():
            part = key.rpartition(".")[2]
            moves = name == "mislas" and part in ("running_mean", "running_var", "num_batches_tracked")
            learns = key == "scales" or (name != "lws" and "classifier" in key)
            if key.startswith("network.backbone.") or (name == "lws" and "classifier" in key):
                assert torch.equal(value, before[key]) != moves, key
            else:
                assert learns, key
    learned = {key.removeprefix("momentum/") for key in checkpoint.tensors if key.startswith("momentum/")}
    assert {key.split(".")[1] for key in learned if "." in key} == ({"classifier"} if name != "lws" else set())
    assert ("scales" in learned) == (name != "crt")


def test_the_classifier_of_crt_is_fresh_and_that_of_the_others_is_the_first_stages(
    tiny_npz: Path, tmp_path: Path, first: Path
) -> None:
    weight = "network.classifier.weight"
    for name in NAMES:
        train(tiny_config(name, tiny_npz, tmp_path / name, init=str(first), optim=STILL))
        found, left = tensors_of(tmp_path / name)[weight], tensors_of(first)[weight]
        fresh = built(name, seed=0).state_dict()[weight]
        assert not torch.equal(left, fresh)
        torch.testing.assert_close(found, fresh if name == "crt" else left, rtol=0, atol=1e-9)


def test_a_run_gives_the_classifier_its_own_rate(tiny_npz: Path, tmp_path: Path, first: Path) -> None:
    train(tiny_config("mislas", tiny_npz, tmp_path / "run", init=str(first), method={"classifier_rate": 1e-12}))
    after, before = tensors_of(tmp_path / "run"), tensors_of(first)
    torch.testing.assert_close(
        after["network.classifier.weight"], before["network.classifier.weight"], rtol=0, atol=1e-9
    )
    assert float((after["scales"] - 1).abs().max()) > 1e-4


def test_what_is_said_counts_what_is_taken_and_names_what_is_not(first: Path) -> None:
    backbone = sum(key.startswith("network.backbone.") for key in built("crt").state_dict())
    said = {name: load_initial_weights(built(name), first).partition(": ")[2] for name in NAMES}
    assert said["crt"] == f"{backbone} of {backbone} tensors fit; network.classifier begins anew."
    assert said["lws"] == said["mislas"] == f"{backbone + 2} of {backbone + 2} tensors fit; scales begins anew."


def test_scales_of_one_give_the_logits_of_the_first_stage_bit_for_bit(tiny_npz: Path, first: Path) -> None:
    stage_one = build_method(tiny_config("ce", tiny_npz, first), COUNTS, SIZE)
    load_model(stage_one, tensors_of(first))
    config = tiny_config("lws", tiny_npz, first, init=str(first))
    method = build_method(config, COUNTS, SIZE)
    begin(method, config)
    with torch.no_grad():
        expected = stage_one.eval().logits(pictures())
        assert torch.equal(method.eval().logits(pictures()), expected)
        method.get_parameter("scales").fill_(2.0)
        assert torch.equal(method.logits(pictures()), 2 * expected)


def test_scales_begin_at_one_after_another_run_with_scales(tiny_npz: Path, tmp_path: Path, first: Path) -> None:
    train(tiny_config("lws", tiny_npz, tmp_path / "lws", init=str(first)))
    assert not torch.equal(tensors_of(tmp_path / "lws")["scales"], torch.ones(len(COUNTS)))
    method = build_method(tiny_config("lws", tiny_npz, tmp_path / "again"), COUNTS, SIZE)
    load_initial_weights(method, tmp_path / "lws")
    assert torch.equal(method.get_parameter("scales"), torch.ones(len(COUNTS)))


def test_the_scaled_logits_are_what_is_evaluated_and_predicted(tiny_npz: Path, tmp_path: Path, first: Path) -> None:
    train(tiny_config("lws", tiny_npz, tmp_path / "run", init=str(first), optim={"lr": 3.0}))
    model = load(tmp_path / "run")
    images = read_test_images(tmp_path / "run")
    probabilities = model.predict(images)
    model.method.get_parameter("scales").data.fill_(1.0)
    assert np.abs(model.predict(images) - probabilities).max() > 0.01
    rows = (tmp_path / "run" / "predictions.csv").read_text().splitlines()[1:]
    assert [float(row.split(",")[4]) for row in rows] == pytest.approx(probabilities.max(axis=1).tolist(), abs=2e-6)


# Refusals -------------------------------------------------------------------------------------------------------------


def saved(path: Path, own: dict[str, Any], counts: tuple[int, ...] = COUNTS) -> Path:
    config = load_config("npz/ce", {"data": {"path": "unused"}, **own})
    save_file({key: value.contiguous() for key, value in build_method(config, counts, SIZE).state_dict().items()}, path)
    return path


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("backbones", [("resnet20", "resnet8"), ("resnet8", "resnet20")])
def test_a_backbone_of_another_depth_is_refused_though_the_shallow_one_fits_into_the_deep(
    tiny_npz: Path, tmp_path: Path, name: str, backbones: tuple[str, str]
) -> None:
    source = saved(tmp_path / "first.safetensors", {"model": {"backbone": backbones[0]}})
    config = tiny_config(name, tiny_npz, tmp_path / "run", init=str(source), model={"backbone": backbones[1]})
    with pytest.raises(RunError, match=r"first\.safetensors holds another network\.backbone.*layer\d\.1\.") as caught:
        train(config)
    assert "model.backbone" in str(caught.value.hint)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", NAMES)
def test_a_first_stage_of_other_classes_is_refused(tiny_npz: Path, tmp_path: Path, name: str) -> None:
    source = saved(tmp_path / "first.safetensors", {"model": {"backbone": "resnet8"}}, (9, 6, 4, 2, 1))
    with pytest.raises(RunError, match="is of 5 classes, and the data have 4"):
        train(tiny_config(name, tiny_npz, tmp_path / "run", init=str(source)))


@pytest.mark.parametrize(("there", "here"), [("linear", "cosine"), ("cosine", "linear")])
def test_a_classifier_of_another_kind_is_refused_where_it_would_be_kept_and_no_matter_where_it_is_fresh(
    tiny_npz: Path, tmp_path: Path, there: str, here: str
) -> None:
    source = saved(tmp_path / "first.safetensors", {"model": {"backbone": "resnet8", "classifier": there}})
    own = {"init": str(source), "model": {"classifier": here}}
    for name in ("lws", "mislas"):
        with pytest.raises(RunError, match=r"another network\.classifier"):
            train(tiny_config(name, tiny_npz, tmp_path / name, **own))
    train(tiny_config("crt", tiny_npz, tmp_path / "crt", **own))


def test_a_stage_in_which_nothing_learns_is_refused(tiny_npz: Path, tmp_path: Path) -> None:
    config = tiny_config("lws", tiny_npz, tmp_path / "run", method={"scales": False})
    with pytest.raises(ConfigError, match="nothing to learn"):
        train(config)
    assert not (tmp_path / "run").exists()


def test_without_a_first_stage_the_start_says_that_features_are_random(tiny_npz: Path, tmp_path: Path) -> None:
    for name, warns in (("ce", False), ("crt", True), ("lws", True), ("mislas", True)):
        config, watched = tiny_config(name, tiny_npz, tmp_path / name), Recorder()
        with pytest.raises(StoppedError):
            train(config, listener=At(2))
        train(tiny_config(name, tiny_npz, tmp_path / name), resume=True, listener=watched)
        assert not any("init=RUN" in message for message in watched.messages), "it was said when the run began"
        again = Recorder()
        train(config, overwrite=True, listener=again)
        assert any(f"'{name}' freezes" in message for message in again.messages) == warns


# Whole runs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_second_stage_goes_on_as_if_nothing_had_been_though_the_first_is_gone(
    tiny_npz: Path, tmp_path: Path, first: Path, name: str
) -> None:
    shutil.copytree(first, tmp_path / "first")
    own: dict[str, Any] = {"init": str(tmp_path / "first"), "optim": {"ema": 0.8}}
    train(tiny_config(name, tiny_npz, tmp_path / "whole", **own))
    config = tiny_config(name, tiny_npz, tmp_path / "run", **own)
    with pytest.raises(StoppedError):
        train(config, listener=At(4))
    shutil.rmtree(tmp_path / "first")
    train(config, resume=True)
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")


def test_bfloat16_rounds_what_a_frozen_backbone_computes_in_training_and_nothing_in_evaluation() -> None:
    method = built("crt")
    exact = method.network.features(pictures())
    starting.use_bfloat16(method, torch.device("cpu"))
    assert not torch.equal(method.network.features(pictures()), exact)
    torch.testing.assert_close(method.network.features(pictures()), exact, rtol=0.1, atol=0.1)
    assert torch.equal(method.eval().network.features(pictures()), exact)


def test_a_frozen_backbone_is_compiled_for_training_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    method, asked = built("crt"), list[torch.Size]()

    def compiled(backbone: Callable[[Tensor], Tensor], **_: Any) -> Callable[[Tensor], Tensor]:
        return lambda images: asked.append(images.shape) or backbone(images)  # type: ignore[func-returns-value]

    monkeypatch.setattr(torch, "compile", compiled)
    method.compile_for(8, SIZE)
    method(batch(8), AT)
    method(batch(6), AT)
    method.eval().logits(pictures(8))
    assert asked == [torch.Size((8, 3, SIZE, SIZE))]


def test_a_study_trains_a_first_stage_and_then_the_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("longtail.api.write_report", lambda out: (out / "report.html").write_text("a page"))
    archive = write_npz(tmp_path / "tiny.npz")
    Path("stages.yaml").write_text(
        "name: stages\nbase: npz/ce\nseeds: [0]\nsettings:\n"
        f"  data: {{path: {archive}, groups: [8, 3]}}\n  model.backbone: resnet8\n"
        "  optim: {epochs: 1, batch: 8, lr: 0.05}\n  run: {compile: false, threads: 1}\n"
        "rows:\n  ce: {}\n  crt: {recipe: npz/crt, init: 'row:ce'}\n"
    )
    plan = plan_study(Path("stages.yaml"), out=tmp_path / "out")
    assert [cell.folder.name for cell in plan.todo] == ["ce-s0", "crt-s0"]
    run_study(plan, StudyLines(Console(quiet=True)))
    one, two = tensors_of(tmp_path / "out" / "ce-s0"), tensors_of(tmp_path / "out" / "crt-s0")
    assert all(torch.equal(two[key], one[key]) for key in one if key.startswith("network.backbone."))
    assert not torch.equal(two["network.classifier.weight"], one["network.classifier.weight"])


# Recipes --------------------------------------------------------------------------------------------------------------


def test_a_second_stage_is_short_on_every_data_set() -> None:
    for name, epochs in (("crt", 10), ("lws", 5), ("mislas", 10)):
        for data in ("scenes", "cifar100", "npz"):
            optim = load_config(f"{data}/{name}", {"data": {"path": "x"}} if data != "scenes" else {}).optim
            assert (optim.epochs, optim.schedule, optim.warmup_epochs) == (epochs, "cosine", 0)


@pytest.mark.parametrize(
    ("data", "imbalance", "expected"),
    [
        ("cifar100", 100, (0.4, 0.1, 0.2, True)),
        ("cifar100", 50, (0.3, 0.0, 0.1, True)),
        ("cifar100", 10, (0.2, 0.0, 0.1, True)),
        ("cifar10", 100, (0.3, 0.0, 0.5, False)),
        ("cifar10", 50, (0.2, 0.0, 0.2, False)),
        ("cifar10", 10, (0.1, 0.0, 0.2, False)),
    ],
)
def test_mislas_has_the_settings_of_its_program_for_each_imbalance(
    data: str, imbalance: int, expected: tuple[float, float, float, bool]
) -> None:
    config = load_config(f"{data}/mislas", [f"data.imbalance={imbalance}"])
    own = config.method.model_dump()
    assert tuple(own[key] for key in ("smooth_head", "smooth_tail", "classifier_rate", "shift")) == expected
    assert (config.optim.lr, config.optim.batch, config.optim.weight_decay) == (0.1, 128, 2e-4)
    other = load_config(f"{data}/mislas", [f"data.imbalance={imbalance}", "method.smooth_head=0.05"])
    assert other.method.smooth_head == 0.05  # type: ignore[attr-defined]
