"""What every entry of the other tables must do: recipes, views, samplers, mixings, backbones, classifiers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor

from longtail.config import known_keys
from longtail.data.sampling import SAMPLERS, epoch_plan
from longtail.data.settings import DATA_NAMES
from longtail.data.views import VIEWS, build_view
from longtail.methods.base import Batch, Progress
from longtail.methods.mixings import CutMix, Mixing, Mixup, NoMixing, soft_target
from longtail.models import BACKBONES, build_backbone
from longtail.models.heads import CLASSIFIERS
from longtail.models.network import ModelSettings, Network
from longtail.recipes import load_config, recipe_names
from longtail.recipes.presets import NAMED, PRESETS
from longtail.rng import generator, keyed_global_rng
from longtail.training.state import build_method

# Recipes --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_is_a_config_that_survives_yaml_and_has_a_key_of_its_own(name: str, tmp_path: Path) -> None:
    config = load_config(name)
    assert config.recipe == (f"{config.data.name}/{NAMED[name].method}" if name in NAMED else name)
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(config.plain(), sort_keys=False))
    again = load_config(file)
    assert again == config
    assert again.key() == config.key()
    assert len(config.key()) == 12


def test_no_two_recipes_have_the_same_key() -> None:
    assert len({load_config(name).key() for name in recipe_names()}) == len(recipe_names())


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_can_be_built_for_few_and_for_many_classes(name: str) -> None:
    config = load_config(name, ["model.backbone=resnet8"])
    for counts in ([5, 1], list(range(120, 0, -1))):
        method = build_method(config, counts, 8)
        assert method.eval().logits(torch.zeros(1, 3, 8, 8)).shape == (1, len(counts))


@pytest.mark.parametrize("name", recipe_names())
def test_every_key_of_a_recipe_can_be_given_again(name: str) -> None:
    config = load_config(name)
    for key in known_keys(config.method_name):
        group, _, inner = key.partition(".")
        value = config.plain()[group][inner] if inner else config.plain()[group]
        if value is not None:
            assert load_config(name, {group: {inner: value}} if inner else {group: value}) == config


def test_every_data_set_has_a_preset() -> None:
    assert set(PRESETS) == set(DATA_NAMES)


# Views ----------------------------------------------------------------------------------------------------------------


def stack(count: int, size: int) -> Tensor:
    return torch.randint(256, (count, 3, size, size), generator=generator("stack", size), dtype=torch.uint8)


@pytest.mark.parametrize("name", VIEWS)
@pytest.mark.parametrize("size", [1, 2, 4, 7, 8, 28, 33])
def test_a_view_gives_finite_images_of_its_size_however_small(name: str, size: int) -> None:
    made = build_view(name, size, (0.5, 0.4, 0.3), (0.2, 0.2, 0.2))(stack(5, size), generator(0, "view", 0, 0))
    assert made.shape == (5, 3, size, size)
    assert made.dtype == torch.float32
    assert bool(torch.isfinite(made).all())


@pytest.mark.parametrize("name", VIEWS)
def test_a_view_stays_within_the_range_of_normalized_pixels(name: str) -> None:
    made = build_view(name, 16, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))(stack(64, 16), generator(0, "view", 0, 0))
    assert float(made.min()) >= -1e-6
    assert float(made.max()) <= 1 + 1e-6


@pytest.mark.parametrize("name", VIEWS)
def test_a_view_is_keyed_and_each_image_drawn_for_itself(name: str) -> None:
    view, images = build_view(name, 8, (0, 0, 0), (1, 1, 1)), stack(1, 8).expand(24, -1, -1, -1)
    one, same, other = (view(images, generator(0, "view", 0, step)) for step in (0, 0, 1))
    assert torch.equal(one, same)
    if name != "plain":
        assert not torch.equal(one, other)
        assert len(torch.unique(one, dim=0)) > 1


# Samplers -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("counts", [(9, 6, 4, 2), (1,), (1, 1), (5, 0, 2), (500, 3)])
def test_a_sampler_gives_as_many_valid_indices_as_asked_by_its_key(name: str, counts: tuple[int, ...]) -> None:
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    drawn, same, other = (SAMPLERS[name](labels, len(labels), generator(0, "order", epoch)) for epoch in (0, 0, 1))
    assert drawn.shape == labels.shape
    assert drawn.dtype == torch.int64
    assert int(drawn.min()) >= 0
    assert int(drawn.max()) < len(labels)
    assert torch.equal(drawn, same)
    if len(labels) > 8:
        assert not torch.equal(drawn, other)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sampler_makes_the_batches_of_an_epoch(name: str) -> None:
    labels = torch.tensor([0] * 9 + [1] * 6 + [2] * 6)
    plan = epoch_plan(labels, 8, generator(0, "order", 0), sampler=SAMPLERS[name])
    assert [len(batch) for batch in plan] == [8, 8, 5]


# Mixings --------------------------------------------------------------------------------------------------------------

MIXINGS: dict[str, Mixing] = {"none": NoMixing(), "cutmix": CutMix(8, probability=1.0), "mixup": Mixup(probability=1.0)}


@pytest.mark.parametrize("name", MIXINGS)
def test_a_mixing_mixes_pixels_and_labels_alike_and_changes_neither(name: str) -> None:
    """Of a black image and a white partner, the share of white is the share of the partner's label."""
    mixing, black, white = MIXINGS[name], torch.zeros(4, 3, 8, 8), torch.ones(4, 3, 8, 8)
    target, partner = soft_target(torch.tensor([0, 1, 2, 0]), 4), Batch((white,), torch.full((4,), 3), torch.arange(4))
    shares = set()
    for step in range(20):
        at = Progress(step, 0, 1, 0)
        mixed = mixing(black, target, partner if mixing.wants_partner(at) else None, at)
        share = float(mixed.images.mean())
        shares.add(round(share, 3))
        assert share == pytest.approx(1 - mixed.lam, abs=1e-6)
        assert mixed.target[:, 3].tolist() == pytest.approx([share] * 4, abs=1e-6)
        torch.testing.assert_close(mixed.target.sum(dim=1), torch.ones(4))
        assert float(black.max()) == 0
        assert float(white.min()) == 1
        assert bool(((target == 0) | (target == 1)).all())
    assert (len(shares) > 5) == (name != "none")


@pytest.mark.parametrize("name", MIXINGS)
def test_without_a_partner_nothing_is_mixed(name: str) -> None:
    images, target = torch.rand(4, 3, 8, 8, generator=generator(0)), soft_target(torch.tensor([0, 1, 2, 0]), 4)
    mixed = MIXINGS[name](images, target, None, Progress(3, 0, 1, 0))
    assert torch.equal(mixed.images, images)
    assert torch.equal(mixed.target, target)
    assert (mixed.box, mixed.lam) == (None, 1.0)


# Backbones and classifiers --------------------------------------------------------------------------------------------

HEAVY = {
    "torchvision/resnet101",
    "torchvision/resnet152",
    "resnet32-w64",
    "torchvision/resnet34",
    "torchvision/resnet50",
    "torchvision/resnext50_32x4d",
}
HEAVY |= {"torchvision/vit_b_16", "torchvision/vit_b_32"}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in HEAVY else []) for name in BACKBONES]
)
def test_a_backbone_trains_and_judges_images_one_by_one_in_evaluation(name: str) -> None:
    network = Network(ModelSettings(backbone=name), 3, seed=0)
    images = torch.randn(4, 3, 32, 32, generator=generator("images"))
    network.logits(images).square().mean().backward()
    for parameter, value in network.named_parameters():
        assert value.grad is not None, parameter
        assert bool(torch.isfinite(value.grad).all()), parameter
    network.eval()
    with torch.no_grad():
        together = network.logits(images)
        torch.testing.assert_close(network.logits(images[1:2]), together[1:2], rtol=1e-4, atol=1e-4)
    assert network.features(images[:1]).shape == (1, int(network.backbone.feature_dim))


@pytest.mark.parametrize("name", ["resnet8", "resnet20", "torchvision/resnet18"])
def test_a_backbone_starts_alike_under_its_key(name: str) -> None:
    made = []
    for seed in (0, 0, 1):
        with keyed_global_rng(seed, "init", "backbone"):
            made.append(build_backbone(name).state_dict())
    assert all(torch.equal(made[0][key], made[1][key]) for key in made[0])
    assert any(not torch.equal(made[0][key], made[2][key]) for key in made[0])


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_classifier_has_one_row_of_weights_for_each_class(name: str) -> None:
    with keyed_global_rng(0, "init", "classifier"):
        classifier = CLASSIFIERS[name](16, 5)
    assert classifier.weight.shape == (5, 16)
    logits = classifier(torch.randn(3, 16, generator=generator(0)))
    assert logits.shape == (3, 5)
    logits.sum().backward()
    assert classifier.weight.grad is not None
    assert bool(torch.isfinite(classifier.weight.grad).all())
