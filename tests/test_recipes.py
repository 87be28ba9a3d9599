"""Recipes: what stands in them, and where it comes from."""

import pytest

from longtail.cli import main
from longtail.methods import METHODS
from longtail.recipes import load_config, recipe, recipe_names, recipe_source
from longtail.recipes.presets import OF_IMBALANCE, PRESETS, TUNED


def test_there_is_a_recipe_for_every_pair_of_a_preset_and_a_method() -> None:
    assert set(recipe_names()) == {f"{data}/{method}" for data in PRESETS for method in METHODS}


def test_tuned_entries_are_recipes_and_say_where_they_come_from() -> None:
    assert set(TUNED) <= set(recipe_names())
    assert set(OF_IMBALANCE) <= set(TUNED)
    for name in recipe_names():
        assert recipe_source(name) in ("paper", "authors' program", "ours (selected on val)", "untuned defaults")
        assert (recipe_source(name) == "untuned defaults") == (name not in TUNED)


def test_cifar_recipes_default_to_imbalance_100() -> None:
    for data in ("cifar10", "cifar100"):
        for method in METHODS:
            assert load_config(f"{data}/{method}").data.imbalance == 100


def test_the_main_recipe_is_that_of_the_authors() -> None:
    """Their command for CIFAR-100-LT, imbalance 100."""
    config = load_config("cifar100/concutmix")
    own = config.method.model_dump()
    assert own == {
        "name": "concutmix",
        "label_smoothing": 0.0,
        "alpha": 2.0,
        "beta": 0.6,
        "temperature": 0.1,
        "tau": 0.9,
        "omega": 20 / 255,
        "topk": 30,
        "rectify_start": 0.5,
        "mix_probability": 0.5,
        "mix_alpha": 1.0,
        "partner_sampler": "class_balanced",
        "patch": None,
        "hidden": 512,
        "dim": 128,
    }
    assert config.model.model_dump() == {
        "backbone": "resnet32",
        "classifier": "linear",
        "weights": None,
        "bn": "batch",
        "bn_shards": None,
        "freeze": "none",
        "adapter_rank": None,
        "adapter_alpha": None,
        "adapter_layers": "all",
    }
    assert config.views.model_dump() == {
        "classification": "autoaugment",
        "contrastive": "contrastive",
        "contrastive_size": None,
    }
    optim = config.optim
    assert (optim.epochs, optim.batch, optim.lr, optim.schedule) == (200, 256, 0.15, "step")
    assert (optim.momentum, optim.nesterov, optim.weight_decay, optim.decay) == (0.9, False, 5e-4, 0.1)


@pytest.mark.parametrize(
    ("name", "imbalance", "tau"),
    [
        ("cifar100/concutmix", 100, 0.9),
        ("cifar100/concutmix", 50, 0.75),
        ("cifar100/concutmix", 10, 1.0),
        ("cifar10/concutmix", 100, 0.85),
        ("cifar10/concutmix", 50, 0.81),
        ("cifar10/concutmix", 10, 1.0),
    ],
)
def test_tau_is_the_authors_for_each_imbalance(name: str, imbalance: float, tau: float) -> None:
    assert load_config(name, [f"data.imbalance={imbalance}"]).method.tau == tau  # type: ignore[attr-defined]


def test_tau_of_the_command_line_goes_over_that_of_the_imbalance() -> None:
    config = load_config("cifar100/concutmix", ["data.imbalance=50", "method.tau=0.3"])
    assert config.method.tau == 0.3  # type: ignore[attr-defined]


def test_a_recipe_handed_out_is_a_copy() -> None:
    recipe("cifar100/concutmix")["method"]["tau"] = 77
    recipe("cifar100/ce")["optim"]["epochs"] = 1
    assert recipe("cifar100/concutmix")["method"]["tau"] == 0.9
    assert recipe("cifar100/ce")["optim"]["epochs"] == 200


def test_settings_of_one_method_do_not_leak_into_another() -> None:
    assert set(recipe("cifar100/ce")["method"]) == {"name"}
    assert load_config("cifar100/bcl").method.tau == 1.0  # type: ignore[attr-defined]


def test_the_list_says_whose_numbers_a_recipe_has(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["recipes"])
    assert stopped.value.code == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert "authors' program (tau is theirs" in lines["cifar100/concutmix"]
    assert "ours (selected on val) (backbone" in lines["scenes/concutmix"]
    assert lines["npz/ce"].endswith("untuned defaults")
