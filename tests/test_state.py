"""What a run carries, into checkpoints and out of them, and what it begins with; each rule by itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from longtail.config import Config
from longtail.errors import DivergedError, RunError
from longtail.methods import Method
from longtail.rng import generator
from longtail.runs.rundir import Checkpoint, RunDir
from longtail.training.averaging import Moving
from longtail.training.optim import build_optimizer
from longtail.training.state import (
    RunState,
    begin,
    build_method,
    finite_copies,
    initial_model,
    load_initial_weights,
    load_model,
    model_part,
    model_tensors,
    refuse_other_adapters,
    refuse_other_alpha,
    refuse_unless_whole,
    restore,
    shown_tensors,
    snapshot,
    stored_config,
)
from tiny import COUNTS, SIZE, tiny_config


def config_of(method: str, **own: Any) -> Config:
    return tiny_config(method, Path("unused.npz"), Path("unused"), **own)


def method_of(method: str = "ce", /, **own: Any) -> Method:
    return build_method(config_of(method, **own), COUNTS, SIZE)


def noisy(state: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
    """Other values of the same names, shapes and types."""
    drawn: dict[str, Tensor] = {}
    for name, value in state.items():
        if value.is_floating_point():
            drawn[name] = torch.rand(value.shape, generator=generator(seed, name)) + 0.5
        else:
            drawn[name] = value + seed
    return drawn


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


# The numbers ----------------------------------------------------------------------------------------------------------


def test_a_run_begins_with_nothing_counted_and_the_whole_rate() -> None:
    assert dataclasses.asdict(RunState()) == {
        "epochs_done": 0,
        "sums": {},
        "counted": {},
        "best_epoch": -1,
        "best_score": -1.0,
        "best_numbers": {},
        "unimproved": 0,
        "image_passes": 0,
        "saved_passes": 0.0,
        "seconds": 0.0,
        "skipped": 0,
        "in_a_row": 0,
        "returns": 0,
        "returns_here": 0,
        "rate_scale": 1.0,
    }


def test_a_scalar_has_its_mean_over_the_steps_that_logged_it() -> None:
    state = RunState()
    state.add({"loss": 1.0, "contrast": 6.0}, 8)
    state.add({"loss": 2.0}, 5)
    state.add({"loss": 6.0, "contrast": 8.0}, 8)
    assert state.means() == {"loss": 3.0, "contrast": 7.0}
    assert state.image_passes == 21


def test_a_closed_epoch_starts_new_sums_and_keeps_what_is_of_the_run() -> None:
    state = RunState(epochs_done=2, skipped=3, in_a_row=1, returns=2, returns_here=2, rate_scale=0.25)
    state.add({"loss": 1.0}, 8)
    state.close_epoch()
    wanted = RunState(epochs_done=3, image_passes=8, skipped=3, in_a_row=1, returns=2, rate_scale=0.25)
    assert state == wanted


def test_the_best_epoch_is_the_earliest_of_the_highest_and_others_are_counted() -> None:
    state, found = RunState(), []
    for epoch, score in enumerate((0.0, 0.25, 0.25, 0.125, 0.5)):
        found.append(state.improves(epoch, {"balanced_accuracy": score, "top1": score / 2}))
        assert state.unimproved == (0, 0, 1, 2, 0)[epoch]
    assert found == [True, True, False, False, True]
    assert (state.best_epoch, state.best_score) == (4, 0.5)
    assert state.best_numbers == {"balanced_accuracy": 0.5, "top1": 0.25}


def test_a_state_reads_back_and_an_older_one_has_the_rest_from_the_beginning() -> None:
    state = RunState(epochs_done=3, sums={"loss": 1.5}, counted={"loss": 2}, best_score=0.5, rate_scale=0.5)
    assert RunState.read(dataclasses.asdict(state)) == state
    assert RunState.read({"epochs_done": 3}) == RunState(epochs_done=3)
    assert RunState.read({"seconds": 3}).seconds == 3, "a whole number of seconds is one"


@pytest.mark.parametrize(
    "values",
    [
        {"unknown": 1},
        {"epochs_done": 1.0},
        {"epochs_done": True},
        {"rate_scale": False},
        {"rate_scale": "1"},
        {"sums": [1]},
        {"best_numbers": None},
        {"epochs_done": 1, "skipped": None},
    ],
)
def test_a_state_of_another_version_is_refused_by_the_name_that_does_not_fit(values: dict[str, Any]) -> None:
    with pytest.raises(RunError, match=f"of another version: {list(values)[-1]} is "):
        RunState.read(values)


# Tensors --------------------------------------------------------------------------------------------------------------


def test_weights_are_copies_that_later_steps_do_not_reach() -> None:
    method = method_of()
    taken = model_tensors(method)
    assert same(taken, method.state_dict())
    kept = {name: value.clone() for name, value in taken.items()}
    method.load_state_dict(noisy(taken, 1))
    assert same(taken, kept)
    assert not any(value.requires_grad for value in taken.values())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_not_handed_out(value: float) -> None:
    whole = {"a": torch.ones(3), "steps": torch.tensor(3)}
    assert same(finite_copies(whole), whole)
    whole["b"] = torch.tensor([1.0, value])
    with pytest.raises(DivergedError, match="The weights 'b' are not finite, so they are not saved") as caught:
        finite_copies(whole)
    assert caught.value.hint == "Lower optim.lr."


def test_what_is_shown_is_the_average_where_there_is_one() -> None:
    method = method_of()
    average = Moving(method, 0.5)
    average.tensors = noisy(average.tensors, 1)
    assert same(shown_tensors(method, None), method.state_dict())
    assert same(shown_tensors(method, average), average.tensors)
    average.tensors["network.classifier.weight"].fill_(float("nan"))
    with pytest.raises(DivergedError, match=r"network\.classifier\.weight"):
        shown_tensors(method, average)


def test_a_checkpoint_of_another_model_is_refused() -> None:
    with pytest.raises(RunError, match="The checkpoint is of another model"):
        load_model(method_of("ce"), method_of("bcl").state_dict())


@pytest.mark.parametrize("ema", [None, 0.5])
def test_a_snapshot_gives_back_weights_momentum_average_and_state(ema: float | None) -> None:
    config = config_of("bcl")
    method = build_method(config, COUNTS, SIZE)
    optimizer = build_optimizer(method, config.optim, method.rates)
    average = None if ema is None else Moving(method, ema)
    for number, parameter in enumerate(method.parameters()):
        if number % 2:  # the others were not updated yet
            optimizer.state[parameter]["momentum_buffer"] = torch.rand(parameter.shape, generator=generator(number, 0))
    method.load_state_dict(noisy(method.state_dict(), 1))
    if average is not None:
        average.tensors = noisy(average.tensors, 2)
    state = RunState(epochs_done=1, returns=2, rate_scale=0.25)
    taken = snapshot(7, method, optimizer, state, average)
    kinds = {name.partition("/")[0] for name in taken.tensors}
    assert kinds == {"model", "momentum"} | ({"average"} if ema else set())
    assert same(model_part(taken), method.state_dict() if average is None else average.tensors)

    kept_back = {name: value.clone() for name, value in taken.tensors.items()}
    before = {name: value.clone() for name, value in method.state_dict().items()}
    method.load_state_dict(noisy(before, 3))
    for buffers in optimizer.state.values():
        buffers["momentum_buffer"].add_(1.0)
    assert same(taken.tensors, kept_back), "later steps do not reach it"
    method.load_state_dict(before)

    other = build_method(config, COUNTS, SIZE)
    others = build_optimizer(other, config.optim, other.rates)
    fresh = None if ema is None else Moving(other, ema)
    assert restore(taken, other, others, fresh) == (state, 7)
    assert same(other.state_dict(), method.state_dict())
    if average is not None and fresh is not None:
        assert same(fresh.tensors, average.tensors)
    assert same(snapshot(7, other, others, state, fresh).tensors, taken.tensors), "momentum too"
    (first, *_) = others.state.values()
    first["momentum_buffer"].add_(1.0)
    assert same(taken.tensors, kept_back), "nor do steps after it was taken up"


# Initial weights ------------------------------------------------------------------------------------------------------


def saved(path: Path, tensors: Mapping[str, Tensor]) -> Path:
    save_file({name: value.contiguous() for name, value in tensors.items()}, path)
    return path


def test_a_run_and_a_file_of_weights_are_taken_to_start_from(tmp_path: Path) -> None:
    wanted = noisy(method_of().state_dict(), 1)
    run = RunDir(tmp_path / "run")
    run.create()
    run.save_checkpoint(Checkpoint(3, {f"model/{name}": value for name, value in wanted.items()}, {}))
    for source in (run.path, saved(tmp_path / "x.safetensors", wanted)):
        method = method_of()
        said = load_initial_weights(method, source)
        assert same(method.state_dict(), wanted)
        assert said == f"Started from {source}: {len(wanted)} of {len(wanted)} tensors fit."


def test_what_fits_in_name_and_shape_is_taken_and_counted(tmp_path: Path) -> None:
    method = method_of()
    own = {name: value.clone() for name, value in method.state_dict().items()}
    given = noisy(own, 1)
    given["network.classifier.weight"] = torch.ones(7, 3)
    del given["network.classifier.bias"]
    given["unknown"] = torch.ones(1)
    said = load_initial_weights(method, saved(tmp_path / "x.safetensors", given))
    assert said.endswith(f": {len(own) - 2} of {len(own)} tensors fit.")
    found = method.state_dict()
    for name, value in own.items():
        assert torch.equal(found[name], value if name.startswith("network.classifier") else given[name])


def test_what_a_method_begins_anew_is_not_taken_and_said(tmp_path: Path) -> None:
    method, given = method_of("paco"), noisy(method_of("paco").state_dict(), 1)
    anew = {name for name in given if name.startswith(("key_encoder.", "queue"))}
    own = {name: value.clone() for name, value in method.state_dict().items()}
    said = load_initial_weights(method, saved(tmp_path / "x.safetensors", given))
    assert f"{len(given) - len(anew)} of {len(given) - len(anew)} tensors fit; key_encoder." in said
    assert said.endswith(" begin anew.")
    for name, value in method.state_dict().items():
        assert torch.equal(value, own[name] if name in anew else given[name])


def test_one_thing_that_begins_anew_begins(tmp_path: Path) -> None:
    given = noisy(method_of("ce").state_dict(), 1)
    said = load_initial_weights(method_of("crt"), saved(tmp_path / "x.safetensors", given))
    assert said.endswith("; network.classifier begins anew.")


def test_what_gives_nothing_to_start_from_is_refused(tmp_path: Path) -> None:
    RunDir(tmp_path / "run").create()
    (tmp_path / "text.safetensors").write_bytes(b"no tensors")
    cases = {
        tmp_path / "run": "has no checkpoint to start from",
        tmp_path / "absent": "cannot be read as safetensors",
        tmp_path / "text.safetensors": "cannot be read as safetensors",
        saved(tmp_path / "other.safetensors", {"a": torch.ones(1)}): "Nothing in .* fits this model",
    }
    for source, words in cases.items():
        with pytest.raises(RunError, match=words):
            load_initial_weights(method_of(), source)


def test_a_second_stage_finds_its_first_whole_and_of_its_classes() -> None:
    tensors, source = method_of("ce").state_dict(), Path("first")
    for name in ("crt", "lws"):
        refuse_unless_whole(method_of(name), tensors, source)
    refuse_unless_whole(method_of("ce"), {}, source)  # which asks for nothing whole
    backbone = sorted(name for name in tensors if name.startswith("network.backbone."))
    shorter = {name: value for name, value in tensors.items() if name not in backbone[1:3]}
    with pytest.raises(RunError, match=rf"another network\.backbone .* 2 of its tensors .* with {backbone[1]}\."):
        refuse_unless_whole(method_of("crt"), shorter, source)
    with pytest.raises(RunError, match=r"1 of its tensors .* with network\.backbone\.more\.") as caught:
        refuse_unless_whole(method_of("crt"), tensors | {"network.backbone.more": torch.ones(1)}, source)
    assert "model.backbone" in str(caught.value.hint)
    fewer = tensors | {name: tensors[name][:-1] for name in ("network.classifier.weight", "network.classifier.bias")}
    for name in ("crt", "lws"):
        with pytest.raises(RunError, match="first is of 3 classes, and the data have 4"):
            refuse_unless_whole(method_of(name), fewer, source)
    without = {name: value for name, value in tensors.items() if "classifier" not in name}
    refuse_unless_whole(method_of("crt"), without, source)  # its classifier is a fresh one
    with pytest.raises(RunError, match=r"another network\.classifier"):
        refuse_unless_whole(method_of("lws"), without, source)


def test_adapters_that_would_be_left_out_are_refused_by_name() -> None:
    source, wide = Path("adapted"), torch.ones(2, 8)
    given = {"network.backbone.b.lora_b": wide.T, "network.backbone.b.lora_a": wide, "network.backbone.b.weight": wide}
    refuse_other_adapters(given, given, source)
    refuse_other_adapters({}, {"key_encoder.backbone.b.lora_a": wide, "network.backbone.b.weight": wide}, source)
    with pytest.raises(
        RunError, match=r"2 tensors of adapters .* beginning with network\.backbone\.b\.lora_a"
    ) as found:
        refuse_other_adapters({}, given, source)
    assert "longtail export RUN --format safetensors" in str(found.value.hint)
    with pytest.raises(RunError, match=r"1 tensors of adapters .* beginning with network\.backbone\.b\.lora_a"):
        refuse_other_adapters(given | {"network.backbone.b.lora_a": torch.ones(3, 8)}, given, source)


@pytest.mark.parametrize(
    ("theirs", "ours", "refused"),
    [
        ({"adapter_rank": 2, "adapter_alpha": 3.0}, {"adapter_rank": 2, "adapter_alpha": 4.0}, True),
        ({"adapter_rank": 2, "adapter_alpha": 3.0}, {"adapter_rank": 2, "adapter_alpha": 3.0}, False),
        ({"adapter_rank": None, "adapter_alpha": 3.0}, {"adapter_rank": 2, "adapter_alpha": 4.0}, False),
        ({}, {"adapter_rank": 2, "adapter_alpha": 4.0}, False),
        ({"adapter_rank": 2, "adapter_alpha": 3.0}, {}, False),
    ],
)
def test_adapters_that_were_weighed_otherwise_are_refused(
    tmp_path: Path, theirs: dict[str, Any], ours: dict[str, Any], refused: bool
) -> None:
    run = RunDir(tmp_path / "run")
    run.create()
    run.write_config({"model": theirs})
    config = config_of("ce", model={"freeze": "backbone", **ours} if ours else {})
    if refused:
        with pytest.raises(RunError, match=r"with model\.adapter_alpha=3\.0, and weigh otherwise with 4\.0") as caught:
            refuse_other_alpha(config, run.path)
        assert "model.adapter_alpha" in str(caught.value.hint)
    else:
        refuse_other_alpha(config, run.path)
    refuse_other_alpha(config, saved(tmp_path / "x.safetensors", {"a": torch.ones(1)}))


# What a run begins with -----------------------------------------------------------------------------------------------


def test_only_what_learns_on_random_features_is_said_at_the_beginning(tmp_path: Path) -> None:
    assert begin(method_of("ce"), config_of("ce")) is None
    said = begin(method_of("crt"), config_of("crt"))
    assert said is not None
    assert "Without init=RUN 'crt' freezes a network that nobody trained" in said
    assert "npz/ce" in said
    frozen = config_of("ce", model={"freeze": "backbone"})
    said = begin(method_of("ce", model={"freeze": "backbone"}), frozen)
    assert said is not None
    assert "Without init=RUN model.freeze=backbone freezes" in said


def test_a_run_begins_with_its_initial_weights(tmp_path: Path) -> None:
    wanted = noisy(method_of().state_dict(), 1)
    source = saved(tmp_path / "x.safetensors", wanted)
    config = config_of("ce", init=str(source))
    said = begin(method_of(), config)
    assert said is not None
    assert said.startswith(f"Started from {source}")
    assert same(initial_model(config, COUNTS, SIZE).state_dict(), wanted)
    assert not same(initial_model(config_of("ce"), COUNTS, SIZE).state_dict(), wanted)


def test_a_stored_configuration_is_read_with_what_moved_and_a_refused_one_says_its_version(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    run.create()
    run.write_config(config_of("ce", seed=3).plain())
    assert stored_config(run).seed == 3
    moved = stored_config(run, {"data": {"path": "/elsewhere.npz"}})
    assert (moved.seed, moved.data.path) == (3, "/elsewhere.npz")
    run.write_config(config_of("ce").plain() | {"unheard": 1})
    with pytest.raises(RunError, match=r"\(longtail an unknown version\) is refused: .*unheard"):
        stored_config(run)
    run.update_description(versions={"longtail": "9.9"})
    with pytest.raises(RunError, match=r"\(longtail 9\.9\) is refused"):
        stored_config(run)
