"""The estimator: images and labels of any kind in, a network out that is the run's own and needs no folder."""

from __future__ import annotations

import copy
import pickle
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler

import longtail
from longtail import LongTailClassifier
from longtail.data import from_arrays
from longtail.errors import ConfigError, DataError, StoppedError
from longtail.rng import numpy_generator
from tiny import At

RUN = {"run": {"threads": 1, "compile": False}}
COUNTS = (9, 6, 4)


def small(method: str = "ce", **own: Any) -> LongTailClassifier:
    return LongTailClassifier(
        **{"method": method, "epochs": 1, "batch": 8, "backbone": "resnet8", "settings": RUN, **own}
    )


def with_settings(**own: Any) -> dict[str, Any]:
    return {**RUN, **own}


@pytest.fixture(scope="module")
def images() -> NDArray[np.uint8]:
    """Noise, brighter from class to class; (19, 8, 8, 3)."""
    labels = np.repeat(np.arange(len(COUNTS)), COUNTS)
    noise = numpy_generator("estimator").integers(0, 100, (len(labels), 8, 8, 3))
    return (noise + 70 * labels.reshape(-1, 1, 1, 1)).astype(np.uint8)


@pytest.fixture(scope="module")
def labels() -> NDArray[Any]:
    return np.repeat(["cat", "ant", "bee"], COUNTS)


@pytest.fixture(scope="module")
def fitted(images: NDArray[np.uint8], labels: NDArray[Any]) -> LongTailClassifier:
    return small().fit(images, labels)


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where temporary folders are made; after every test none of a run is left."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    assert list(folder.glob("longtail-*")) == []


# What is learned ------------------------------------------------------------------------------------------------------


def test_an_estimator_trains_the_network_that_the_recipe_trains(
    images: NDArray[np.uint8], labels: NDArray[Any], tmp_path: Path
) -> None:
    order = ["ant", "bee", "cat"]
    source = from_arrays(images, [order.index(label) for label in labels], class_names=order)
    settings: dict[str, Any] = {"model": {"backbone": "resnet8"}, "optim": {"epochs": 2, "batch": 8}, **RUN}
    run = longtail.train("arrays/bcl", source=source, seed=5, data={"held_out": 0}, out=tmp_path / "run", **settings)
    own = small("bcl", epochs=2, random_state=5).fit(images, labels)
    expected = run.model().method.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in own.model_.method.state_dict().items())
    np.testing.assert_array_equal(own.predict_proba(images), run.model().predict(images))


def test_every_image_is_trained_on_and_the_results_say_on_what_they_are(fitted: LongTailClassifier) -> None:
    assert list(fitted.classes_) == ["ant", "bee", "cat"]
    assert list(fitted.class_counts_) == [6, 4, 9]
    assert fitted.results_["evaluated_on"] == "train"
    assert fitted.results_["test_counts"] == [6, 4, 9]


def test_images_are_kept_back_only_where_settings_say_so(images: NDArray[np.uint8], labels: NDArray[Any]) -> None:
    kept = small(epochs=2, settings=with_settings(**{"data.val": 1}), which="best").fit(images, labels)
    assert list(kept.class_counts_) == [5, 3, 8]
    assert kept.results_["best"]["selected_on"] == "val"
    assert [row["evaluated_on"] for row in kept.history_] == ["val", "val"]
    assert kept.model_.which == "best"
    held = small(settings=with_settings(data={"held_out": 0.3})).fit(images, labels)
    assert list(held.class_counts_) == [4, 3, 6]
    assert held.results_["evaluated_on"] == "held-out"


def test_the_training_images_are_evaluated_once(images: NDArray[np.uint8], labels: NDArray[Any]) -> None:
    assert [row["epoch"] for row in small(epochs=3).fit(images, labels).history_] == [2]
    often = small(epochs=3, settings={"run": {**RUN["run"], "evaluate_every": 2}}).fit(images, labels)
    assert [row["epoch"] for row in often.history_] == [1, 2]


@pytest.mark.parametrize(
    "names",
    [np.array([7, -1, 30]), np.array([True, False, True]), np.array(["b", "", "ä b"]), np.array([5.0, 2.0, -1.0])],
    ids=lambda names: names.dtype.kind,
)
def test_labels_of_any_type_come_back_as_they_were(
    images: NDArray[np.uint8], fitted: LongTailClassifier, names: NDArray[Any]
) -> None:
    y = names[np.repeat(np.arange(3), COUNTS)]
    own = small().fit(images, y)
    assert list(own.classes_) == sorted(set(names.tolist()))
    assert own.predict(images).dtype == y.dtype
    chosen = own.predict_proba(images).argmax(axis=1)
    assert list(own.predict(images)) == [own.classes_[k] for k in chosen]
    assert own.score(images, own.predict(images)) == 1.0


def test_the_seed_decides_and_nothing_else(images: NDArray[np.uint8], labels: NDArray[Any]) -> None:
    one, again, other = (small(random_state=seed).fit(images, labels).predict_proba(images) for seed in (3, 3, 4))
    np.testing.assert_array_equal(one, again)
    assert (one != other).any()


def test_no_seed_draws_one_as_scikit_learn_does() -> None:
    state = np.random.RandomState(1)
    expected = np.random.RandomState(1).randint(2**31 - 1, size=2)
    assert [small(random_state=state)._seed() for _ in range(2)] == list(expected)
    assert small(random_state=None)._seed() != small(random_state=None)._seed()
    assert small(random_state=np.int64(7))._seed() == 7


def test_fitting_again_forgets(images: NDArray[np.uint8], labels: NDArray[Any], fitted: LongTailClassifier) -> None:
    own = small(image_shape=(8, 8, 3)).fit(images.reshape(len(images), -1)[:15], labels[:15])
    assert own.n_features_in_ == 192
    own.fit(images, labels)
    assert not hasattr(own, "n_features_in_")
    np.testing.assert_array_equal(own.predict_proba(images), fitted.predict_proba(images))


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ConfigError("no")])
def test_a_fit_that_does_not_end_leaves_nothing_that_answers(
    images: NDArray[np.uint8], labels: NDArray[Any], error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the classes of the second fit would name the answers of the network of the first."""
    model = small().fit(images, labels)

    def fail(*given: Any) -> None:
        raise error

    monkeypatch.setattr(LongTailClassifier, "_train", fail)
    with pytest.raises(type(error)):
        model.fit(images, np.array([f"class {label}" for label in labels]))
    with pytest.raises(NotFittedError):
        model.predict(images)


def test_the_threads_of_the_process_stay_as_they_were(images: NDArray[np.uint8], labels: NDArray[Any]) -> None:
    before = torch.get_num_threads()
    small(settings={"run": {"threads": before + 1, "compile": False}}).fit(images, labels)
    assert torch.get_num_threads() == before


# Kinds of images ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["channels first", "float", "tensor", "list of PIL", "list of arrays", "rows"])
def test_every_kind_of_images_is_trained_and_predicted_alike(
    images: NDArray[np.uint8], labels: NDArray[Any], fitted: LongTailClassifier, kind: str
) -> None:
    X: Any = {
        "channels first": images.transpose(0, 3, 1, 2),
        "float": images / 255,
        "tensor": torch.from_numpy(images),
        "list of PIL": [Image.fromarray(image) for image in images],
        "list of arrays": list(images),
        "rows": images.reshape(len(images), -1),
    }[kind]
    own = small(image_shape=(8, 8, 3) if kind == "rows" else None).fit(X, labels)
    np.testing.assert_array_equal(own.predict_proba(X), fitted.predict_proba(images))


def test_gray_is_repeated_to_three_channels(images: NDArray[np.uint8], labels: NDArray[Any]) -> None:
    gray = images[..., 0]
    color = np.repeat(gray[..., None], 3, axis=-1)
    expected = small().fit(color, labels).predict_proba(color)
    np.testing.assert_array_equal(small().fit(gray, labels).predict_proba(gray), expected)
    rows = gray.reshape(len(gray), -1)
    for shape in ((8, 8), (8, 8, 1), "square"):
        np.testing.assert_array_equal(small(image_shape=shape).fit(rows, labels).predict_proba(rows), expected)


def test_a_range_of_pixels_is_stretched_to_that_of_images(images: NDArray[np.uint8], labels: NDArray[Any]) -> None:
    images = images.copy()
    images[0, 0, 0], images[0, 0, 1] = 0, 255
    expected = small().fit(images, labels).predict_proba(images)
    wide = images.astype(np.int32) * 16 - 1000
    for asked in ((-1000, 3080), "training"):
        own = small(pixel_range=asked).fit(wide, labels)
        assert own.pixel_range_ == (-1000, 3080)
        np.testing.assert_array_equal(own.predict_proba(wide), expected)
    beyond = np.where(wide == 3080, 9999, wide)
    np.testing.assert_array_equal(own.predict_proba(beyond), expected)


def test_files_are_cross_validated_as_a_vector_of_paths(
    images: NDArray[np.uint8], labels: NDArray[Any], tmp_path: Path
) -> None:
    paths = []
    for number, image in enumerate(images):
        Image.fromarray(image).resize((9 + number % 3, 12)).save(tmp_path / f"{number}.png")
        paths.append(str(tmp_path / f"{number}.png"))
    found = cross_val_score(small(size=8), np.array(paths), labels, cv=2, error_score="raise")
    assert found.shape == (2,)


# In scikit-learn ------------------------------------------------------------------------------------------------------


def test_a_clone_and_a_copy_keep_what_they_should(fitted: LongTailClassifier, images: NDArray[np.uint8]) -> None:
    fresh = clone(fitted)
    assert fresh.get_params() == fitted.get_params()
    with pytest.raises(NotFittedError):
        fresh.predict(images)
    np.testing.assert_array_equal(copy.deepcopy(fitted).predict_proba(images), fitted.predict_proba(images))


@pytest.mark.parametrize("method", ["concutmix", "paco"])
def test_a_pickle_carries_the_weights_and_what_val_chose(
    images: NDArray[np.uint8], labels: NDArray[Any], method: str
) -> None:
    settings = with_settings(data={"val": 1}, test={"temperature": "val"}, method={"hidden": 16, "dim": 8})
    own = small(method, settings=settings).fit(images, labels)
    content = pickle.dumps(own)
    restored = pickle.loads(content)
    assert not restored.model_.folder.exists()
    assert restored.model_.scoring.temperature != 1
    np.testing.assert_array_equal(restored.predict_proba(images), own.predict_proba(images))
    assert pickle.loads(pickle.dumps(restored)).predict(images).tolist() == own.predict(images).tolist()
    weights = sum(value.nbytes for value in own.model_.method.network.backbone.state_dict().values())
    assert len(content) < 1.5 * weights, "the heads that serve training alone stay behind"


def test_parameters_are_searched_and_settings_with_them(images: NDArray[np.uint8], labels: NDArray[Any]) -> None:
    grid = {
        "method": ["ce", "logit-adjustment"],
        "settings": [with_settings(), with_settings(**{"optim.weight_decay": 0.1})],
    }
    folds = StratifiedKFold(2, shuffle=True, random_state=0)
    search = GridSearchCV(small(), grid, cv=folds, scoring="balanced_accuracy", error_score="raise")
    search.fit(images, labels)
    assert len(search.cv_results_["params"]) == 4
    assert search.best_estimator_.method == search.best_params_["method"]
    assert set(search.predict(images)) <= {"ant", "bee", "cat"}


def test_a_pipeline_learns_digits_given_as_rows() -> None:
    X, y = load_digits(n_class=3, return_X_y=True)
    network = LongTailClassifier(
        "ce",
        epochs=3,
        batch=32,
        lr=0.05,
        backbone="resnet8",
        image_shape=(8, 8),
        settings={**RUN, "views.classification": "plain", "optim.schedule": "onecycle"},
    )
    pipeline = make_pipeline(MinMaxScaler(clip=True), network)
    assert cross_val_score(pipeline, X[:240], y[:240], cv=2, error_score="raise").min() > 0.8
    pipeline.set_params(longtailclassifier__epochs=1)
    assert network.epochs == 1


# Priors ---------------------------------------------------------------------------------------------------------------


def test_probabilities_are_for_the_prior_asked_for(fitted: LongTailClassifier, images: NDArray[np.uint8]) -> None:
    own = copy.deepcopy(fitted)
    for prior, same in (({"cat": 0.5, "ant": 0.2, "bee": 0.3}, [0.2, 0.3, 0.5]), ([2, 3, 5], [0.2, 0.3, 0.5])):
        own.set_params(prior=prior)
        np.testing.assert_array_equal(own.predict_proba(images), fitted.model_.predict(images, prior=same))
    assert (own.predict_proba(images) != fitted.predict_proba(images)).any()
    own.set_params(prior="uniform")
    np.testing.assert_array_equal(own.predict_proba(images), fitted.model_.predict(images, prior="uniform"))


def test_a_prior_names_classes_by_their_labels(images: NDArray[np.uint8]) -> None:
    y = np.repeat([30, 7, 10], COUNTS)
    own = small(prior={7: 0.0, np.int64(30): 0.5, 10: 0.5}).fit(images, y)
    assert own.predict_proba(images)[:, list(own.classes_).index(7)].max() == 0


# Folders --------------------------------------------------------------------------------------------------------------


def test_a_run_folder_is_kept_where_one_is_named(
    images: NDArray[np.uint8], labels: NDArray[Any], fitted: LongTailClassifier, tmp_path: Path
) -> None:
    own = small(out=tmp_path / "run").fit(images, labels)
    loaded = longtail.load(tmp_path / "run")
    np.testing.assert_array_equal(loaded.predict(images), own.predict_proba(images))
    np.testing.assert_array_equal(own.predict_proba(images), fitted.predict_proba(images))
    assert "evaluated on train" in (tmp_path / "run" / "report.html").read_text()
    with pytest.raises(ConfigError, match="exists already"):
        own.fit(images, labels)


@pytest.mark.parametrize(("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, StoppedError)])
def test_a_stop_ends_the_fit_and_leaves_nothing_behind(
    images: NDArray[np.uint8],
    labels: NDArray[Any],
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
    error: type[BaseException],
) -> None:
    monkeypatch.setattr("longtail.estimator.Silent", lambda: At(2, number))
    own = small()
    with pytest.raises(error) as caught:
        own.fit(images, labels)
    assert "--resume" not in str(caught.value)
    assert not hasattr(own, "model_")


def test_nothing_is_printed_unless_it_is_asked_for(
    images: NDArray[np.uint8], labels: NDArray[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    small().fit(images, labels)
    assert capsys.readouterr() == ("", "")
    small(verbose=True).fit(images, labels)
    assert "epoch 0" in capsys.readouterr().out


# Refusals -------------------------------------------------------------------------------------------------------------


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"method": "cee"}, "Did you mean 'ce'"),
    ({"epochs": 0}, "optim.epochs=0"),
    ({"backbone": "resnet9"}, "Unknown backbone 'resnet9'"),
    ({"settings": {"optim": {"epochs": 3}}}, "Give it as the parameter epochs"),
    ({"settings": {"seed": 1}}, "Give it as the parameter random_state"),
    ({"settings": {"optim.epoch": 3}}, "Did you mean 'optim.epochs'"),
    ({"settings": [1]}, "not a dict"),
    ({"settings": {"run.trackers": ["tensorboard"]}}, "out=DIR"),
    ({"which": "best"}, "needs images that choose"),
    ({"which": "first"}, "there are 'last' and 'best'"),
    ({"method": "crt"}, "second stage"),
    ({"prior": "even"}, "prior"),
    ({"prior": [1, 2]}, "there are 3 classes"),
    ({"image_shape": (8, 7, 3)}, "A row of X has 192 values"),
    ({"image_shape": (8, 24, 1)}, "8 x 24 pixels are not square"),
    ({"image_shape": "round"}, "no shape"),
    ({"pixel_range": (1, 1)}, "no range of values"),
    ({"pixel_range": "test"}, "no range of values"),
]


@pytest.mark.parametrize(("own", "words"), REFUSED, ids=lambda value: str(value))
def test_what_is_wrong_is_refused_in_words_before_training(
    images: NDArray[np.uint8], labels: NDArray[Any], monkeypatch: pytest.MonkeyPatch, own: dict[str, Any], words: str
) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("training began")

    monkeypatch.setattr("longtail.estimator.train", never)
    X = images.reshape(len(images), -1) if "image_shape" in own else images
    with pytest.raises((ConfigError, DataError)) as caught:
        small(**({"method": "ce"} | own)).fit(X, labels)
    assert words in str(caught.value)


def test_images_that_cannot_be_read_are_refused(images: NDArray[np.uint8], labels: NDArray[Any]) -> None:
    for X, own, words in (
        (images[:, :, :6], {}, "not square"),
        (images * 1.0, {}, r"in \[0, 1\]"),
        (images.astype(np.int64), {}, "uint8 or float"),
        (np.where(images == images, np.nan, 0), {"pixel_range": (0, 1)}, "not finite"),
        ([*images[:-1], images[0, :6, :6]], {}, "differ in size"),
        (list(images), {"pixel_range": (0, 1)}, "pixel_range"),
        (images[:-1], {}, "inconsistent numbers of samples"),
        (images[:, 0, 0, 0], {}, "Images must be"),
    ):
        with pytest.raises(ValueError, match=words):
            small(**own).fit(X, labels)
    with pytest.raises(ValueError, match="y is None"):
        small().fit(images, None)
    with pytest.raises(ValueError, match="only one class"):
        small().fit(images, ["cat"] * len(images))


def test_an_unfitted_estimator_says_so(images: NDArray[np.uint8]) -> None:
    for ask in (small().predict, small().predict_proba):
        with pytest.raises(NotFittedError):
            ask(images)
