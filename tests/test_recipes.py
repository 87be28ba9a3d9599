"""Recipes: what stands in them, and where it comes from."""

from pathlib import Path

import pytest
import yaml

from longtail.cli import main
from longtail.config import differences
from longtail.errors import ConfigError
from longtail.methods import METHODS
from longtail.recipes import load_config, recipe, recipe_names, recipe_note, recipe_source
from longtail.recipes.presets import NAMED, OF_IMBALANCE, PRESETS, TUNED, Named


def test_there_is_a_recipe_for_every_pair_of_a_preset_and_a_method() -> None:
    assert set(recipe_names()) == {f"{data}/{method}" for data in PRESETS for method in METHODS} | set(NAMED)


def test_tuned_entries_are_recipes_and_say_where_they_come_from() -> None:
    assert set(TUNED) <= set(recipe_names())
    assert not set(NAMED) & set(TUNED)
    assert set(OF_IMBALANCE) <= set(TUNED)
    for name in recipe_names():
        assert recipe_source(name) in ("paper", "authors' program", "ours (selected on val)", "untuned defaults")
        assert (recipe_source(name) == "untuned defaults") == (name not in {*TUNED, *NAMED})


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
        "confidence": "frequency",
        "rectify_start": 0.5,
        "mix_probability": 0.5,
        "mix_alpha": 1.0,
        "partner_sampler": "class_balanced",
        "patch": None,
        "hidden": 512,
        "dim": 128,
        "contrast_start": 0,
        "contrast_stop": 1.0,
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
        "progressive_size": None,
        "progressive_stop": 0.5,
        "refined": None,
        "refined_start": 0.9,
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


# Recipes with a name of their own -------------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> str:
    """A recipe ``cifar100/quick`` of ConCutMix with other epochs and another tau."""
    own = {"optim": {"epochs": 7}, "method": {"beta": 0.2}}
    monkeypatch.setitem(NAMED, "cifar100/quick", Named(own, "ours (selected on val)", "a test", method="concutmix"))
    return "cifar100/quick"


def test_a_named_recipe_is_that_of_its_method_with_its_settings_over_it(quick: str) -> None:
    config, plain = load_config(quick), load_config("cifar100/concutmix")
    assert differences(config, plain) == ["method.beta", "optim.epochs"]
    assert (config.method_name, config.recipe) == ("concutmix", "cifar100/concutmix")
    assert (config.optim.epochs, config.method.beta) == (7, 0.2)  # type: ignore[attr-defined]


def test_a_named_recipe_takes_what_its_methods_source_has_for_an_imbalance(quick: str) -> None:
    assert load_config(quick, ["data.imbalance=50"]).method.tau == 0.75  # type: ignore[attr-defined]


def test_settings_go_over_a_named_recipe_and_another_method_leaves_it(quick: str) -> None:
    assert load_config(quick, ["optim.epochs=3"]).optim.epochs == 3
    assert load_config(quick, ["method.name=bcl"]) == load_config("cifar100/bcl")
    assert load_config(quick, ["data.name=cifar10"]) == load_config("cifar10/concutmix")


def test_a_named_recipe_has_a_run_folder_of_its_own(quick: str) -> None:
    assert load_config(quick, ["seed=3"]).out == "runs/cifar100-quick-s3"
    assert load_config(quick, ["out=there"]).out == "there"
    assert load_config("cifar100/concutmix").out is None


def test_named_recipes_are_listed_and_found_by_their_nearest_name(quick: str) -> None:
    assert quick in recipe_names()
    assert (recipe_source(quick), recipe_note(quick)) == ("ours (selected on val)", "a test")
    with pytest.raises(ConfigError, match="quikc") as caught:
        load_config("cifar100/quikc")
    assert "quick" in str(caught.value.hint)


# A configuration file whose method is another -----------------------------------------------------------------------


@pytest.mark.parametrize("old", ["ce-drw", "ldam-drw", "tau-norm", "concutmix", "mislas"])
@pytest.mark.parametrize("new", ["logit-adjustment", "bcl", "cmo", "ldam-drw", "smcl", "tau-norm"])
def test_another_method_over_a_complete_file_is_that_method(old: str, new: str, tmp_path: Path) -> None:
    file, own = tmp_path / "config.yaml", ["optim.batch=48", "seed=3"]
    file.write_text(yaml.safe_dump(load_config(f"scenes/{old}", own).plain()))
    assert load_config(file, [f"method.name={new}"]) == load_config(f"scenes/{new}", own)
    tuned = load_config(file, [f"method.name={new}", "optim.lr=0.01"])
    assert (tuned.optim.lr, tuned.optim.batch) == (0.01, 48)


def test_a_dotted_key_in_a_file_is_told_to_be_nested(tmp_path: Path) -> None:
    file = tmp_path / "dotted.yaml"
    file.write_text("data: {name: scenes}\nmethod: {name: ce}\noptim.epochs: 1\n")
    with pytest.raises(ConfigError, match="is a key of a group") as caught:
        load_config(file)
    assert "Write epochs under optim" in str(caught.value.hint)
