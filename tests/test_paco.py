"""PaCo: its loss and whole steps against loops from the equations, and what its queue and key encoder hold when."""

from __future__ import annotations

import copy
import math
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longtail.config import OptimSettings
from longtail.errors import ConfigError
from longtail.losses import (
    cross_entropy,
    logit_adjustment,
    masked_contrastive_loss,
    parametric_contrastive_loss,
)
from longtail.losses.parametric import parametric_contrastive_terms
from longtail.methods.base import Batch, Progress
from longtail.methods.paco import PaCo, PaCoSettings, untrained_copy
from longtail.models.network import ModelSettings, Network, ProjectionSettings
from longtail.recipes import load_config
from longtail.rng import generator
from longtail.training.loop import train
from longtail.training.optim import build_optimizer
from longtail.training.updating import update
from oracles import Matrix, dot
from tiny import At, KilledError, Recorder, outcome, tiny_config

COUNTS = (40, 12, 5, 2)
SIZE, EPOCHS = 8, 10


def random(*shape: int, key: str) -> Tensor:
    return torch.randn(*shape, generator=generator("paco", key, *shape), dtype=torch.float64)


def ids(length: int, key: str, classes: int = len(COUNTS)) -> Tensor:
    return torch.randint(classes, (length,), generator=generator("paco", key, length))


def method_of(**own: Any) -> PaCo:
    settings = PaCoSettings.model_validate({"hidden": 16, "dim": 8, "queue": 13, "momentum": 0.7, **own})
    return PaCo(settings, ModelSettings(backbone="resnet8"), COUNTS, size=SIZE, seed=0)


def at(step: int) -> Progress:
    return Progress(step, 0, EPOCHS, 0)


def batch_of(images: int, key: str = "batch") -> Batch:
    views = tuple(random(images, 3, SIZE, SIZE, key=f"{key} {view}").float() for view in range(2))
    return Batch(views, ids(images, key), torch.arange(images))


def doubled(batch: Batch) -> Batch:
    return Batch(tuple(view.double() for view in batch.views), batch.target, batch.index)


def still(method: PaCo) -> PaCo:
    """In float64 and training, but with batch-norm in evaluation, so that a loop over images can follow."""
    method.double()
    method.network.eval()
    method.key_encoder.eval()
    return method


def key_weights(method: PaCo) -> dict[str, Tensor]:
    """What of the key encoder stands for a parameter of the network, copied."""
    state = method.key_encoder.state_dict()
    return {name: state[name].clone() for name, _ in method.network.named_parameters() if name in state}


def slow_loss(
    queries: Matrix,
    labels: Sequence[int],
    logits: Matrix,
    keys: Matrix,
    key_labels: Sequence[int],
    *,
    temperature: float,
    alpha: float,
    beta: float,
    offset: Sequence[float],
    target: Matrix | None = None,
) -> tuple[float, float]:
    """The shares of the centers and of the samples in the loss, term by term."""
    centers = samples = 0.0
    for i, query in enumerate(queries):
        to_class = [value + shift for value, shift in zip(logits[i], offset, strict=True)]
        others = [(dot(query, other) / temperature, labels[j]) for j, other in enumerate(queries) if j != i]
        others += [(dot(query, key) / temperature, label) for key, label in zip(keys, key_labels, strict=True)]
        log_total = math.log(
            math.fsum(math.exp(value) for value in to_class) + math.fsum(math.exp(value) for value, _ in others)
        )
        positives = [value for value, label in others if label == labels[i]]
        weight = beta + alpha * len(positives)
        shares = [float(k == labels[i]) for k in range(len(to_class))] if target is None else target[i]
        pulled = math.fsum(share * (value - log_total) for share, value in zip(shares, to_class, strict=True))
        centers -= beta * pulled / weight
        samples -= alpha * math.fsum(value - log_total for value in positives) / weight
    return centers / len(queries), samples / len(queries)


# The loss -------------------------------------------------------------------------------------------------------------


def parts(images: int, keys: int, classes: int = len(COUNTS)) -> dict[str, Tensor]:
    return {
        "queries": F.normalize(random(images, 8, key="queries"), dim=1),
        "labels": ids(images, "labels", classes),
        "logits": 2 * random(images, classes, key="logits"),
        "keys": F.normalize(random(keys, 8, key="keys"), dim=1),
        "key_labels": ids(keys, "key labels", classes),
    }


@pytest.mark.parametrize(("images", "keys", "classes"), [(6, 10, 4), (5, 0, 4), (1, 7, 3), (4, 3, 1), (2, 1, 60)])
@pytest.mark.parametrize(("alpha", "beta", "temperature"), [(0.01, 1.0, 0.05), (0.4, 0.7, 0.3), (0.0, 1.0, 0.2)])
def test_the_loss_is_that_of_the_equations(
    images: int, keys: int, classes: int, alpha: float, beta: float, temperature: float
) -> None:
    given, offset = parts(images, keys, classes), random(classes, key="offset")
    weights = {"temperature": temperature, "alpha": alpha, "beta": beta}
    slow = slow_loss(*(given[name].tolist() for name in given), **weights, offset=offset.tolist())
    fast = parametric_contrastive_terms(**given, **weights, offset=offset)
    assert [float(term) for term in fast] == pytest.approx(slow, rel=1e-11, abs=1e-12)
    assert float(parametric_contrastive_loss(**given, **weights, offset=offset)) == pytest.approx(sum(slow), rel=1e-11)


def test_the_loss_of_one_image_and_one_equal_key_is_what_a_hand_computes() -> None:
    """Z = 1 + 1 + e; half of log Z - 0 and half of log Z - 1."""
    one = torch.tensor([[1.0, 0.0]])
    label = torch.tensor([1])
    loss = parametric_contrastive_loss(one, label, torch.zeros(1, 2), one, label, temperature=1.0, alpha=1.0)
    assert float(loss) == pytest.approx(math.log(2 + math.e) - 0.5, rel=1e-6)


@pytest.mark.parametrize(("alpha", "beta"), [(0.0, 1.0), (0.5, 1.0), (2.0, 0.1)])
def test_an_image_alone_has_the_cross_entropy_of_balanced_softmax(alpha: float, beta: float) -> None:
    given, offset = parts(1, 0), logit_adjustment(COUNTS)
    loss = parametric_contrastive_loss(**given, temperature=0.05, alpha=alpha, beta=beta, offset=offset)
    expected = cross_entropy(given["logits"], given["labels"], offset=offset)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)


def test_with_centers_that_weigh_nothing_and_are_far_it_is_the_supervised_contrastive_loss() -> None:
    given = parts(6, 20)
    given["logits"] = torch.full((6, 4), -60.0, dtype=torch.float64)
    columns, labels = torch.cat((given["queries"], given["keys"])), torch.cat((given["labels"], given["key_labels"]))
    expected = masked_contrastive_loss(
        given["queries"], given["labels"], columns, labels, temperature=0.3, self_index=torch.arange(6)
    )
    loss = parametric_contrastive_loss(**given, temperature=0.3, alpha=1.0, beta=1e-13)
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=0)


def test_smoothed_labels_share_the_pull_of_the_centers_and_leave_that_of_the_samples() -> None:
    given, weights = parts(5, 6), {"temperature": 0.2, "alpha": 0.3, "beta": 0.7}
    offset, smoothed = random(4, key="offset"), 0.8 * F.one_hot(given["labels"], 4).double() + 0.2 / 4
    rows = [given[name].tolist() for name in given]
    slow = slow_loss(*rows, **weights, offset=offset.tolist(), target=smoothed.tolist())
    fast = parametric_contrastive_terms(**given, **weights, offset=offset, target=smoothed)
    assert [float(term) for term in fast] == pytest.approx(slow, rel=1e-11)
    hard = parametric_contrastive_loss(**given, **weights, target=F.one_hot(given["labels"], 4).double())
    torch.testing.assert_close(hard, parametric_contrastive_loss(**given, **weights), rtol=1e-12, atol=0)


def test_label_smoothing_reaches_the_step() -> None:
    batch = doubled(batch_of(6))
    method = still(method_of(label_smoothing=0.2, alpha=0.3))
    with torch.no_grad():
        loss = method(batch, at(0)).loss
        features = method.network.features(batch.views[0])
        keys = F.normalize(method.network.project(method.network.features(batch.views[1])), dim=1)
        expected = parametric_contrastive_loss(
            F.normalize(method.network.project(features), dim=1),
            batch.target,
            method.network.classifier(features),
            keys,
            batch.target,
            temperature=0.05,
            alpha=0.3,
            offset=logit_adjustment(COUNTS),
            target=0.8 * F.one_hot(batch.target, 4).double() + 0.05,
        )
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)  # labels are float32


def test_a_key_with_a_negative_label_counts_in_no_way() -> None:
    given = parts(6, 9)
    given["key_labels"][[1, 4, 5]] = -1
    kept = given["key_labels"] >= 0
    fewer = given | {"keys": given["keys"][kept], "key_labels": given["key_labels"][kept]}
    weights = {"temperature": 0.1, "alpha": 0.3}
    loss = parametric_contrastive_loss(**given, **weights)
    torch.testing.assert_close(loss, parametric_contrastive_loss(**fewer, **weights), rtol=1e-12, atol=0)
    given["keys"][1] *= 100
    assert torch.equal(parametric_contrastive_loss(**given, **weights), loss)


def test_queries_logits_and_keys_have_the_gradient_of_finite_differences() -> None:
    given = parts(4, 3)
    given["key_labels"][1] = -1
    inputs = tuple(given[name].requires_grad_() for name in ("queries", "logits", "keys"))

    def loss(queries: Tensor, logits: Tensor, keys: Tensor) -> Tensor:
        return parametric_contrastive_loss(
            **(given | {"queries": queries, "logits": logits, "keys": keys}), temperature=0.2, alpha=0.4
        )

    assert torch.autograd.gradcheck(loss, inputs, eps=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ({"queries": torch.zeros(5, 8)}, "queries must be"),
        ({"queries": torch.zeros(6, 2, 4)}, "queries must be"),
        ({"keys": torch.zeros(3, 7)}, "keys must be"),
        ({"key_labels": torch.zeros(4, dtype=torch.int64)}, "key_labels must be"),
        ({"key_labels": torch.zeros(3)}, "key_labels must be"),
        ({"labels": torch.full((6,), 4)}, "labels holds ids"),
        ({"logits": torch.zeros(6)}, "logits must be"),
        ({"offset": torch.zeros(5)}, "offset must be"),
        ({"target": torch.zeros(6)}, "target must be"),
        ({"target": torch.zeros(6, 4, dtype=torch.int64)}, "target must be"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"alpha": -0.1}, "alpha must not be below 0"),
        ({"alpha": math.nan}, "alpha must not be below 0"),
        ({"beta": 0.0}, "beta must be above 0"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(broken: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parametric_contrastive_loss(**({**parts(6, 3), "temperature": 0.1, "alpha": 0.1} | broken))


# Whole steps ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("queue", [0, 4, 13, 1024])
def test_the_loss_of_every_step_is_that_of_the_equations(queue: int) -> None:
    """The key encoder followed number by number, keys one image at a time, the queue as a deque."""
    method = still(method_of(queue=queue, alpha=0.3, beta=0.8, temperature=0.2))
    optimizer = build_optimizer(method, OptimSettings(lr=0.05, weight_decay=5e-3))
    followed, held = copy.deepcopy(method.network), deque[tuple[list[float], int]](maxlen=queue)
    offset = [math.log(count / sum(COUNTS)) for count in COUNTS]

    def projected(network: Network, images: Tensor) -> tuple[list[list[float]], list[list[float]]]:
        with torch.no_grad():
            features = [network.features(image[None]) for image in images]
            units = [F.normalize(network.project(row), dim=1)[0].tolist() for row in features]
            return units, [network.classifier(row)[0].tolist() for row in features]

    for step, images in enumerate([6, 6, 5, 6, 2, 6]):
        batch = doubled(batch_of(images, f"step {step}"))
        labels = batch.target.tolist()
        if step > 0:
            for own, trained in zip(followed.parameters(), method.network.parameters(), strict=True):
                pairs = zip(own.flatten().tolist(), trained.flatten().tolist(), strict=True)
                own.data = own.new_tensor([0.7 * k + 0.3 * w for k, w in pairs]).view_as(own)
        queries, logits = projected(method.network, batch.views[0])
        keys, _ = projected(followed, batch.views[1])
        expected = slow_loss(
            queries,
            labels,
            logits,
            [*keys, *(key for key, _ in held)],
            [*labels, *(label for _, label in held)],
            temperature=0.2,
            alpha=0.3,
            beta=0.8,
            offset=offset,
        )
        held.extend(zip(keys, labels, strict=True))

        optimizer.zero_grad()
        output = method(batch, at(step))
        # The offset is kept in float32.
        assert float(output.loss.detach()) == pytest.approx(sum(expected), rel=1e-6)
        shown = [float(output.logs[name]) for name in ("classification", "contrastive")]
        assert shown == pytest.approx(expected, rel=1e-6)
        filled = method.queue_labels >= 0
        in_queue = [*zip(method.queue[filled].tolist(), method.queue_labels[filled].tolist(), strict=True)]
        for found, made in zip(sorted(in_queue), sorted(held), strict=True):
            assert found[0] == pytest.approx(made[0], rel=1e-9)
            assert found[1] == made[1]
        output.loss.backward()
        optimizer.step()


def test_the_oldest_keys_make_room_when_the_queue_is_not_a_multiple_of_the_batch() -> None:
    method = method_of(queue=5, dim=2)
    for first, count, labels in [(0, 3, [0, 1, 2, -1, -1]), (3, 3, [5, 1, 2, 3, 4]), (6, 9, [13, 14, 10, 11, 12])]:
        numbers = torch.arange(first, first + count)
        method.enqueue(numbers[:, None].expand(-1, 2).float(), numbers)
        # Of nine, the last five are put where the first of them would have stood: after the newest key.
        expected = labels if count < 9 else [14, 10, 11, 12, 13]
        assert method.queue_labels.tolist() == expected
        filled = method.queue_labels >= 0
        assert method.queue[filled, 0].tolist() == [float(label) for label in expected if label >= 0]


def test_the_first_step_compares_images_with_nothing_that_the_queue_will_hold() -> None:
    batch = batch_of(6)
    losses = [float(method_of(queue=queue)(batch, at(0)).loss.detach()) for queue in (0, 5, 1024)]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-6)


@pytest.mark.parametrize("momentum", [0.0, 1.0])
def test_a_key_encoder_without_momentum_is_the_network_and_with_all_of_it_its_start(momentum: float) -> None:
    method = method_of(momentum=momentum)
    start = key_weights(method)
    optimizer = build_optimizer(method, OptimSettings(lr=0.05))
    for step in range(3):
        method(batch_of(6), at(step)).loss.backward()
        optimizer.step()
    method(batch_of(6), at(3))
    trained = dict(method.network.named_parameters())
    for name, value in key_weights(method).items():
        assert torch.equal(value, trained[name] if momentum == 0 else start[name]), name
    assert any(not torch.equal(start[name], trained[name]) for name in start)


def test_the_optimizer_gets_nothing_of_the_key_encoder_and_a_checkpoint_all_of_it() -> None:
    method = method_of()
    known = {f"key_encoder.{name}" for name, _ in untrained_copy(method.network).named_buffers()}
    given = {id(p) for group in build_optimizer(method, OptimSettings()).param_groups for p in group["params"]}
    assert given == {id(parameter) for parameter in method.network.parameters()}
    assert known | {"queue", "queue_labels", "queue_end"} == {
        name for name in method.state_dict() if not name.startswith("network.")
    }
    assert not any(value.requires_grad for name, value in method.named_buffers())
    output = method(batch_of(6), at(0))
    assert not method.queue.requires_grad
    output.loss.backward()
    assert all(buffer.grad is None for buffer in method.buffers())


@pytest.mark.parametrize("backbone", ["resnet8", "vit-small-patch4"])
def test_an_untrained_copy_computes_what_the_network_does_and_shares_nothing_with_it(backbone: str) -> None:
    heads = ProjectionSettings(hidden=16, dim=8)
    network = Network(ModelSettings(backbone=backbone), 4, seed=0, size=SIZE, projection=heads).eval()
    copied = untrained_copy(network)
    images = batch_of(3).views[0]
    with torch.no_grad():
        expected = network.project(network.features(images))
        # Attention takes another way through PyTorch where weights are no parameters, and sums in another order.
        torch.testing.assert_close(copied.project(copied.features(images)), expected, rtol=1e-5, atol=1e-6)
        for parameter in network.parameters():
            parameter.zero_()
        torch.testing.assert_close(copied.project(copied.features(images)), expected, rtol=1e-5, atol=1e-6)
    assert not list(copied.parameters())


def test_a_run_starts_with_a_key_encoder_that_is_the_network_and_an_empty_queue() -> None:
    """As after init=RUN, which gives the network weights that the key encoder has never seen, or an old queue."""
    method = method_of()
    for step in range(4):
        method(batch_of(6), at(step))
    with torch.no_grad():
        for parameter in method.network.parameters():
            parameter.add_(0.1)
    batch = batch_of(6, "start")
    method(batch, at(0))
    trained = method.network.state_dict()
    for name, value in key_weights(method).items():
        assert torch.equal(value, trained[name]), name
    assert method.queue_labels.tolist() == [*batch.target.tolist(), *[-1] * 7]


def test_a_run_from_the_weights_of_another_says_that_its_key_encoder_and_queue_begin_anew(
    tiny_npz: Path, tmp_path: Path
) -> None:
    train(tiny_config("paco", tiny_npz, tmp_path / "first", optim={"epochs": 1}))
    recorder = Recorder()
    train(
        tiny_config("paco", tiny_npz, tmp_path / "second", init=str(tmp_path / "first"), optim={"epochs": 1}),
        listener=recorder,
    )
    said = next(message for message in recorder.messages if message.startswith("Started from"))
    assert all(f"{name} " in said for name in ("key_encoder.backbone", "key_encoder.projection", "queue"))
    assert said.endswith("begin anew.")


def test_a_step_says_how_many_images_went_through_both_encoders() -> None:
    method, seen = method_of(), list[int]()

    def count(module: nn.Module, given: tuple[Tensor, ...]) -> None:
        seen.append(len(given[0]))

    for network in (method.network, method.key_encoder):
        network.backbone.register_forward_pre_hook(count)
    assert method(batch_of(5), at(0)).forwarded == sum(seen) == 10
    assert seen == [5, 5]


def test_both_backbones_are_compiled_for_a_full_batch_of_one_view(monkeypatch: pytest.MonkeyPatch) -> None:
    method, called = method_of(), list[str]()

    def compiler(module: nn.Module, **_: Any) -> Any:
        which = "network" if module is method.network.backbone else "key encoder"

        def run(images: Tensor) -> Tensor:
            called.append(which)
            out: Tensor = module(images)
            return out

        return run

    monkeypatch.setattr(torch, "compile", compiler)
    method.compile_for(6, SIZE)
    method(batch_of(6), at(0))
    assert called == ["network", "key encoder"]
    method(batch_of(5), at(1))
    assert len(called) == 2, "a short batch stays eager"


# With the training options --------------------------------------------------------------------------------------------


def test_a_second_pass_at_the_same_place_sees_what_the_first_saw_and_moves_nothing() -> None:
    method = still(method_of(queue=7))
    for step in range(3):
        method(doubled(batch_of(6, f"step {step}")), at(step))
    with torch.no_grad():
        for parameter in method.network.parameters():
            parameter.mul_(1.1)
    batch = doubled(batch_of(6, "twice"))
    first = method(batch, at(3)).loss.detach()
    after = {name: value.clone() for name, value in method.state_dict().items()}
    assert torch.equal(method(batch, at(3)).loss.detach(), first)
    for name, value in method.state_dict().items():
        assert torch.equal(value, after[name]), name
    assert not torch.equal(method(batch, at(4)).loss.detach(), first)


@pytest.mark.parametrize("own", [{}, {"sam": 0.1}, {"accumulate": 3}, {"sam": 0.1, "accumulate": 3}])
def test_queue_and_key_encoder_advance_once_a_step_whatever_the_passes(own: dict[str, Any]) -> None:
    method, settings = method_of(queue=32), OptimSettings(lr=0.05, batch=6, **own)
    optimizer = build_optimizer(method, settings)
    expected, labels = key_weights(method), list[int]()
    for step in range(4):
        batch = batch_of(6, f"step {step}")
        if step > 0:
            trained = dict(method.network.named_parameters())
            expected = {name: 0.7 * value + 0.3 * trained[name].detach() for name, value in expected.items()}
        done = update(method, optimizer, batch, at(step), 0.05, settings)
        labels += batch.target.tolist()
        assert method.queue_labels.tolist() == [*labels, *[-1] * (32 - len(labels))]
        assert int(method.queue_end) == len(labels)
        for name, value in key_weights(method).items():
            torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6)
        assert done.forwarded == (24 if "sam" in own else 12)


def test_micro_batches_of_a_step_are_not_compared_with_each_others_keys() -> None:
    one, two = (still(method_of(queue=32)) for _ in range(2))
    settings = OptimSettings(lr=0.05, batch=6, accumulate=3)
    earlier, batch = doubled(batch_of(6, "earlier")), doubled(batch_of(6))
    for method in (one, two):
        method(earlier, at(0))
    alone = []
    for first in (0, 2, 4):
        part = slice(first, first + 2)
        views = tuple(view[part] for view in batch.views)
        given = copy.deepcopy(two)
        alone.append(float(given(Batch(views, batch.target[part], batch.index[part]), at(1)).loss.detach()))
    done = update(one, build_optimizer(one, settings), batch, at(1), 0.05, settings)
    assert done.loss == pytest.approx(sum(alone) / 3, rel=1e-9)


@pytest.mark.parametrize("stop", [2, 3, 5])
def test_a_run_with_all_options_killed_after_any_step_ends_the_same(tiny_npz: Path, tmp_path: Path, stop: int) -> None:
    own: dict[str, Any] = {
        "method": {"queue": 11},
        "optim": {"ema": 0.9, "sam": 0.05, "accumulate": 2, "clip": 5.0},
        "run": {"checkpoint_minutes": 1e-9},
    }
    whole, broken = (tiny_config("paco", tiny_npz, tmp_path / name, **own) for name in ("whole", "broken"))
    train(whole)
    with pytest.raises(KilledError):
        train(broken, listener=At(stop, None))
    train(broken, resume=True)
    expected, found = outcome(tmp_path / "whole"), outcome(tmp_path / "broken")
    assert found["last"] == expected["last"]
    assert found["metrics"] == expected["metrics"]
    assert found["predictions"] == expected["predictions"]


def test_a_run_without_a_queue_finishes_and_counts_both_encoders(tiny_npz: Path, tmp_path: Path) -> None:
    results = train(tiny_config("paco", tiny_npz, tmp_path / "run", method={"queue": 0}))
    assert results["image_passes"] == 2 * 2 * 21
    network = Network(
        ModelSettings(backbone="resnet8"), 4, seed=0, size=SIZE, projection=ProjectionSettings(hidden=16, dim=8)
    )
    assert results["parameters"] == sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(
    "setting", ["alpha=-1", "beta=0", "temperature=0", "queue=-1", "momentum=1.1", "momentum=-0.1", "dim=0"]
)
def test_a_setting_out_of_range_is_refused_by_its_key(setting: str) -> None:
    with pytest.raises(ConfigError, match=rf"method\.{setting.partition('=')[0]}"):
        load_config("cifar100/paco", [f"method.{setting}"])
