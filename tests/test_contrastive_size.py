"""Contrastive views of fewer pixels: what goes through the network together, and what batch-norm remembers of it."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import longtail
from longtail.errors import ConfigError
from longtail.methods import METHODS
from longtail.methods.base import DataNeeds
from longtail.models.network import ModelSettings, Network
from longtail.recipes import load_config
from longtail.rng import generator

CONTRASTIVE = [name for name in METHODS if name in ("supcon", "bcl", "concutmix", "smcl-concutmix", "paco")]


def network() -> Network:
    return Network(ModelSettings(backbone="resnet8"), 3, seed=0).train()


def images(side: int, key: int) -> Tensor:
    return torch.randn(4, 3, side, side, generator=generator("images", side, key))


def statistics(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.named_buffers() if "running" in name}


def test_views_of_one_size_go_through_together() -> None:
    views = [images(16, key) for key in range(3)]
    assert torch.equal(network().features_of(*views), network().features(torch.cat(views)))


def test_views_of_two_sizes_are_normalized_apart_and_keep_their_order() -> None:
    first, second, third, fourth = images(16, 0), images(8, 1), images(8, 2), images(16, 3)
    features = network().features_of(first, second, third, fourth)
    large, small = network().features(torch.cat((first, fourth))), network().features(torch.cat((second, third)))
    assert torch.equal(features, torch.cat((large[:4], small, large[4:])))


def test_running_statistics_are_those_of_the_size_that_is_evaluated() -> None:
    mixed, alone = network(), network()
    mixed.features_of(images(16, 0), images(8, 1), images(8, 2))
    alone.features(images(16, 0))
    found, expected = statistics(mixed), statistics(alone)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert {part.momentum for part in mixed.modules() if isinstance(part, nn.BatchNorm2d)} == {0.1}


def test_both_shapes_are_compiled_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    made = network()
    monkeypatch.setattr(torch, "compile", lambda module, **settings: module)

    class Threefold:
        needs = DataNeeds(views=("classification", "contrastive", "contrastive"))
        network = made

        def stacks(self) -> tuple[int, ...]:
            return (3, 4)

    compile_for = longtail.methods.base.Method.compile_for
    compile_for(Threefold(), 5, 16, 8)  # type: ignore[arg-type]
    assert made._compiled is not None
    assert made._compiled[1] == {(5, 3, 16, 16), (10, 3, 16, 16), (10, 3, 8, 8)}
    compile_for(Threefold(), 5, 16)  # type: ignore[arg-type]
    assert made._compiled[1] == {(15, 3, 16, 16), (20, 3, 16, 16)}


@pytest.mark.parametrize("method", CONTRASTIVE)
def test_every_contrastive_method_trains_with_smaller_contrastive_views(method: str, tmp_path: Path) -> None:
    seen: list[torch.Size] = []
    before = Network.features

    def watched(self: Network, given: Tensor) -> Tensor:
        if self.training:
            seen.append(given.shape)
        return before(self, given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Network, "features", watched)
        longtail.train(
            f"scenes/{method}",
            views={"contrastive_size": 16},
            optim={"epochs": 1, "batch": 256},
            run={"threads": 1, "compile": False},
            out=tmp_path / "run",
        )
    assert {shape[-1] for shape in seen} == {16, 32}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["views.contrastive_size=64"], "more than the images' 32 pixels"),
        (["views.contrastive_size=16", "views.contrastive=crop-flip"], "needs a view that resizes"),
    ],
)
def test_sizes_that_cannot_be_had_are_refused(words: list[str], said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        longtail.train("scenes/bcl", **_nested(words), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_key_of_a_config_is_as_it_was_where_the_size_is_not_set() -> None:
    keys = {load_config("scenes/bcl", words).key() for words in ([], ["views.contrastive_size=16"])}
    assert len(keys) == 2
    assert load_config("scenes/bcl", ["views.contrastive_size=null"]).key() == load_config("scenes/bcl", []).key()


def _nested(words: list[str]) -> dict[str, dict[str, object]]:
    from longtail.layers import parse_assignments

    return parse_assignments(words)  # type: ignore[return-value]
