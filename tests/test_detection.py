"""Salient peaks: found once and kept, read from files, carried from the image to the view, the same when resumed."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import longtail.training.detection as detection
from longtail.data.batch import Batch, Progress
from longtail.data.images import ImageSet
from longtail.data.open import open_data
from longtail.errors import ConfigError, DataError, RunError, StoppedError
from longtail.files import read_json
from longtail.methods.smcl import SMCL, Masked
from longtail.methods.smcl_concutmix import Replaced, SMCLConCutMix
from longtail.rng import generator, numpy_generator
from longtail.saliency import fine_grained, mask_centers, peak
from longtail.saliency.detectors import DETECTORS
from longtail.training.detection import cache_folder, digest, training_peaks
from longtail.training.feeding import build_views, find_peaks
from longtail.training.listeners import Silent
from longtail.training.loop import train
from longtail.training.state import build_method
from pictures import picture, settings
from tiny import COUNTS, SIZE, At, Recorder, files_of, tiny_config, write_npz

N = sum(COUNTS)
MASKED: dict[str, Any] = {"mask_probability": 1.0, "mask_start": 0}


def image_set(key: str = "images", count: int = N, **own: Any) -> ImageSet:
    pixels = torch.randint(256, (count, 3, SIZE, SIZE), generator=generator(key), dtype=torch.uint8)
    return ImageSet(pixels, torch.arange(count) % 4, own.pop("source_index", torch.arange(count)), **own)


def brightness(images: Tensor) -> Tensor:
    return images.float().sum(dim=1)


class Counted:
    """A detector that counts its calls."""

    def __init__(self, maps: Callable[[Tensor], Tensor]) -> None:
        self.maps, self.calls = maps, 0

    def __call__(self, images: Tensor) -> Tensor:
        self.calls += 1
        return self.maps(images)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Counted:
    """What stands in for fine-grained and spectral-residual, with a cache of its own."""
    counting = Counted(fine_grained)
    for name in ("fine-grained", "spectral-residual"):
        monkeypatch.setitem(DETECTORS, name, dataclasses.replace(DETECTORS[name], maps=counting))
    monkeypatch.setenv("LONGTAIL_CACHE", str(tmp_path / "cache"))
    return counting


def found(train_set: ImageSet, detector: str = "fine-grained", **own: Any) -> Tensor:
    peaks = training_peaks(train_set, detector, listener=Silent(), **own)
    assert peaks is not None
    return peaks


# Found once -----------------------------------------------------------------------------------------------------------


def test_the_peaks_are_those_of_each_untouched_image_whatever_the_chunk(
    counted: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(detection, "CHUNK", 4)
    images = image_set()
    peaks = found(images)
    assert counted.calls == 6
    assert (peaks.dtype, peaks.shape) == (torch.int64, (N, 2))
    for row, image in zip(peaks.tolist(), images.images, strict=True):
        flat = fine_grained(image[None]).flatten().tolist()
        assert row == list(divmod(flat.index(max(flat)), SIZE))


def test_a_second_run_does_not_ask_the_detector(tiny_npz: Path, tmp_path: Path, counted: Counted) -> None:
    for name in ("one", "two"):
        train(tiny_config("smcl", tiny_npz, tmp_path / name, method=MASKED, seed=len(name), optim={"epochs": 1}))
        assert counted.calls == 1
    one, two = (read_json(tmp_path / name / "run.json")["peaks"] for name in ("one", "two"))
    assert one == two
    assert len(one) == 16


def test_other_images_another_detector_other_ties_and_another_version_are_found_anew(
    counted: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = found(image_set())
    assert torch.equal(found(image_set()), first)
    assert counted.calls == 1
    found(image_set("others"))
    found(image_set(), "spectral-residual")
    found(image_set(), ties="random")
    monkeypatch.setattr(detection, "DETECTION_VERSION", 10**6)
    found(image_set())
    assert counted.calls == 5
    for again in (image_set("others"), image_set()):
        found(again, ties="first")
    found(image_set(), ties="random")
    assert counted.calls == 7, "of the new version, the images alone are known"


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "other name", "other shape", "other kind", "outside"])
def test_a_damaged_cache_is_ignored_and_replaced(counted: Counted, tmp_path: Path, damage: str) -> None:
    images = image_set()
    peaks = found(images)
    (file,) = (path for path in (tmp_path / "cache").rglob("*") if path.is_file())
    whole = file.read_bytes()
    wrong = {
        "other name": {"peak": peaks},
        "other shape": {"peaks": peaks[:-1].clone()},
        "other kind": {"peaks": peaks.float()},
        "outside": {"peaks": peaks + torch.tensor([0, SIZE])},
    }
    if damage in wrong:
        save_file(wrong[damage], file)
    else:
        file.write_bytes({"cut": whole[:-1], "empty": b"", "text": b"not a cache"}[damage])
    assert torch.equal(found(images), peaks)
    assert counted.calls == 2
    assert file.read_bytes() == whole
    assert torch.equal(found(images), peaks)
    assert counted.calls == 2


@pytest.mark.parametrize("what", ["cache", "cache/peaks"])
def test_a_cache_folder_that_cannot_be_written_does_no_harm(counted: Counted, tmp_path: Path, what: str) -> None:
    (tmp_path / what).parent.mkdir(exist_ok=True)
    (tmp_path / what).write_text("a file where a folder should be")
    peaks = found(image_set())
    assert torch.equal(found(image_set()), peaks)
    assert counted.calls == 2


def test_a_full_disk_does_no_harm_and_leaves_no_half_of_a_file(
    counted: Counted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        peaks = found(image_set())
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert torch.equal(found(image_set()), peaks)


def test_the_cache_lies_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LONGTAIL_CACHE", str(tmp_path / "own"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "own"
    monkeypatch.delenv("LONGTAIL_CACHE")
    assert cache_folder() == tmp_path / "xdg" / "longtail"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert cache_folder() == tmp_path / ".cache" / "longtail"

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(ConfigError, match="no cache folder"):
        cache_folder()


def test_a_long_search_says_where_it_stands(counted: Counted, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 1000, 3))
    monkeypatch.setattr(detection.time, "monotonic", lambda: float(next(clock)))
    monkeypatch.setattr(detection, "CHUNK", 4)
    watched = Recorder()
    training_peaks(image_set(), "fine-grained", listener=watched)
    assert watched.messages[0] == "salient peaks (fine-grained): 8 of 21 images"
    assert 1 < len(watched.messages) < 6


def test_random_ties_take_any_of_the_equals_and_first_the_first(counted: Counted) -> None:
    counted.maps = lambda images: (torch.arange(SIZE) % 3 == 1).float().expand(len(images), SIZE, SIZE)
    assert found(image_set()).tolist() == [[0, 1]] * N
    peaks = found(image_set(), ties="random")
    assert set(peaks[:, 1].tolist()) == {1, 4, 7}
    assert len(peaks[:, 0].unique()) > 4


def test_random_ties_of_files_are_drawn_for_each_shape_apart(counted: Counted, tmp_path: Path) -> None:
    counted.maps = lambda images: (torch.arange(images.shape[-1]) == 0).float().expand(len(images), *images.shape[-2:])
    for number in range(24):
        name = f"train/{'ab'[number % 2]}/{number}.png"
        picture(tmp_path / "own" / name, number, height=40, width=40 + number)
    own = settings("folder", tmp_path / "own", stream=True, size=8, held_out=0.25)
    peaks = found(open_data(own).train, ties="random")
    assert len(peaks[:, 0].unique()) > 4


# From masks, files and functions --------------------------------------------------------------------------------------


def test_the_ground_truth_is_the_middle_of_the_mask(counted: Counted) -> None:
    masks = torch.rand(N, SIZE, SIZE, generator=generator("masks")) < 0.1
    assert torch.equal(found(image_set(masks=masks), "ground-truth"), mask_centers(masks))
    assert counted.calls == 0
    with pytest.raises(DataError, match="'ground-truth' needs object masks, and these images have none"):
        found(image_set(), "ground-truth")


def test_without_a_detector_there_are_no_peaks() -> None:
    assert training_peaks(image_set(), None, listener=Silent()) is None
    assert digest(None) is None


def test_a_function_goes_before_every_detector_and_is_asked_each_time(counted: Counted) -> None:
    function = Counted(brightness)
    for detector in ("fine-grained", "ground-truth", "given"):
        assert torch.equal(found(image_set(), detector, given=function), peak(brightness(image_set().images)))
    assert (function.calls, counted.calls) == (3, 0)


def test_a_function_that_writes_into_its_images_does_not_change_those_of_the_run() -> None:
    def careless(images: Tensor) -> Tensor:
        return images.fill_(0).float()[:, 0]

    images = image_set()
    found(images, given=careless)
    assert torch.equal(images.images, image_set().images)


def test_a_map_that_is_not_finite_is_told_by_its_image_in_whichever_chunk() -> None:
    def broken(images: Tensor) -> Tensor:
        maps = brightness(images)
        maps[images[:, 0, 0, 0] == 255, 2, 3] = float("inf")
        return maps

    images = image_set(count=300, source_index=torch.arange(300) * 2)
    images.images[:, 0, 0, 0] = 0
    images.images[[290, 299], 0, 0, 0] = 255
    with pytest.raises(
        DataError, match=r"training image 290 \(image 580 of the source\) has NaN or infinite"
    ) as caught:
        found(images, given=broken)
    assert caught.value.exit_code == 3
    named = dataclasses.replace(images, ids=[f"cat/{i}.png" for i in range(300)])
    with pytest.raises(DataError, match=r"training image 290 \(cat/290.png\)"):
        found(named, given=broken)


def write_maps(path: Path, count: int = N, **more: Any) -> Path:
    maps = numpy_generator("maps").random((count, SIZE, SIZE)).astype(np.float32)
    np.savez(path, **({"maps": maps} | more))
    return path


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.uint8])
def test_maps_of_a_file_are_those_of_the_images_in_their_order(tmp_path: Path, kind: Any) -> None:
    maps = (200 * numpy_generator("maps").random((N, SIZE, SIZE))).astype(kind)
    np.savez(tmp_path / "maps.npz", maps=maps)
    peaks = found(image_set(), "given", maps_file=str(tmp_path / "maps.npz"))
    for row, single in zip(peaks.tolist(), maps, strict=True):
        assert row == list(divmod(int(single.argmax()), SIZE))


def test_a_file_may_have_maps_of_the_whole_source_or_of_the_images_that_are_trained_on(tmp_path: Path) -> None:
    chosen = torch.tensor([5, 2, 39, 17, *range(20, 37)])
    images = image_set(source_index=chosen)
    whole = numpy_generator("maps").random((40, SIZE, SIZE)).astype(np.float32)
    np.savez(tmp_path / "whole.npz", maps=whole)
    np.savez(tmp_path / "part.npz", maps=whole[chosen.numpy()])
    one, other = (found(images, "given", maps_file=str(tmp_path / name)) for name in ("whole.npz", "part.npz"))
    assert torch.equal(one, other)
    assert torch.equal(one, peak(torch.from_numpy(whole))[chosen])


def test_maps_of_the_source_follow_a_long_tail_that_is_cut_from_it(tmp_path: Path) -> None:
    """Every map points at a place of its image's own."""
    path = write_npz(tmp_path / "data.npz", (9, 9, 9))
    maps = np.eye(SIZE * SIZE, dtype=np.float32)[:27].reshape(27, SIZE, SIZE)
    np.savez(tmp_path / "maps.npz", maps=maps)
    data = open_data(tiny_config("smcl", path, tmp_path / "run", data={"imbalance": 4.0}).data)
    assert len(data.train) < 27
    peaks = found(data.train, "given", maps_file=str(tmp_path / "maps.npz"))
    with np.load(path) as archive:
        pixels = torch.from_numpy(archive["train_images"]).permute(0, 3, 1, 2)
    for place, image in zip(peaks.tolist(), data.train.images, strict=True):
        (source,) = (i for i in range(27) if torch.equal(pixels[i], image))
        assert place == [source // SIZE, source % SIZE]


def run(folder: Path, data: Path, method: Mapping[str, Any], watch: Callable[[Batch, Masked], Any], **own: Any) -> None:
    """A run of SMCL of which ``watch`` sees every masked batch."""
    real = SMCL.mask

    def watched(self: SMCL, batch: Batch, at: Progress) -> Masked:
        made = real(self, batch, at)
        watch(batch, made)
        return made

    saliency = own.pop("saliency")
    config = tiny_config("smcl", data, folder, method=dict(method), **own)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SMCL, "mask", watched)
        train(config, saliency=saliency)


def damaged(path: Path) -> None:
    """Within what was compressed, so that the archive opens and the array does not."""
    np.savez_compressed(path, maps=np.arange(N * SIZE * SIZE).reshape(N, SIZE, SIZE) % 50)
    content = bytearray(path.read_bytes())
    for place in range(100, 140):
        content[place] ^= 255
    path.write_bytes(bytes(content))


def single(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.zeros((N, SIZE, SIZE)))


FILES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "not there": (lambda path: None, "cannot be read: .*No such file"),
    "a folder": (lambda path: path.mkdir(), "cannot be read: .*directory"),
    "text": (lambda path: path.write_text("maps"), "cannot be read"),
    "empty": (lambda path: path.write_bytes(b""), "cannot be read"),
    "a pickle": (lambda path: path.write_bytes(pickle.dumps([1, 2])), "cannot be read"),
    "cut": (lambda path: path.write_bytes(write_maps(path).read_bytes()[:-200]), "cannot be read"),
    "damaged": (damaged, "cannot be read"),
    "one array": (single, "single array"),
    "another name": (
        lambda path: np.savez(path, map=np.zeros((N, SIZE, SIZE))),
        r"no array 'maps'[\s\S]*It has: map\.",
    ),
    "pickled": (lambda path: write_maps(path, maps=np.array([None] * N)), "cannot be read: .*allow_pickle"),
    "words": (lambda path: write_maps(path, maps=np.array(["a"] * N)), "cannot be read"),
    "another size": (lambda path: write_maps(path, maps=np.zeros((N, 8, 9))), r"are \(21, 8, 9\); \(N, 8, 8\) is"),
    "channels": (lambda path: write_maps(path, maps=np.zeros((N, 3, 8, 8))), r"are \(21, 3, 8, 8\)"),
    "too few": (lambda path: write_maps(path, N - 1), "20 maps for 21 training images"),
    "none": (lambda path: write_maps(path, 0), "0 maps for 21 training images"),
    "nan": (
        lambda path: write_maps(path, maps=np.where(np.arange(N)[:, None, None] == 4, np.nan, np.ones((N, 8, 8)))),
        "training image 4 .* has NaN",
    ),
}


@pytest.mark.parametrize("what", FILES)
def test_a_file_that_holds_no_maps_of_these_images_is_refused(tiny_npz: Path, tmp_path: Path, what: str) -> None:
    make, words = FILES[what]
    path = tmp_path / "maps.npz"
    make(path)
    config = tiny_config("smcl", tiny_npz, tmp_path / "run", method={**MASKED, "saliency_maps": str(path)})
    with pytest.raises(DataError, match=words) as caught:
        train(config)
    assert caught.value.exit_code == 3
    assert "maps.npz" in str(caught.value)
    assert not (tmp_path / "run").exists()


# From the image to the method -----------------------------------------------------------------------------------------


@pytest.fixture
def spotted(tmp_path: Path) -> Path:
    """Dark images with one white pixel each, all at places of their own."""
    place = torch.randperm(SIZE * SIZE, generator=generator("spots"))[:N]
    pixels = torch.full((N, SIZE * SIZE, 3), 40, dtype=torch.uint8)
    pixels[torch.arange(N), place] = 255
    return write_npz(tmp_path / "spots.npz", train_images=pixels.view(N, SIZE, SIZE, 3).numpy())


def white(images: Tensor) -> Tensor:
    """Where the white pixel of normalized images is, (n, 3): image, row, column; it may be cut off."""
    return (images.amin(dim=1) > 1).nonzero()


@pytest.mark.parametrize("view", ["plain", "crop", "crop-flip"])
def test_the_white_pixel_that_was_detected_is_the_peak_of_the_view_and_lies_in_the_middle_of_the_mask(
    spotted: Path, tmp_path: Path, view: str
) -> None:
    inside, cut, erased = 0, 0, 0

    def look(batch: Batch, masked: Masked) -> None:
        nonlocal inside, cut, erased
        assert batch.peaks is not None
        for i, images in enumerate(batch.views[0]):
            spot = white(images[None])[:, 1:].tolist()
            row, column = batch.peaks[i].tolist()
            if spot:
                assert spot == [[row, column]]
                inside += 1
                covered = float(masked.lam[i]) < 1
                assert len(white(masked.images[i][None])) == (not covered)
                erased += covered
            else:
                assert row in (0, SIZE - 1) or column in (0, SIZE - 1), "cut off, so it stands on the frame"
                cut += 1

    run(
        tmp_path / "run",
        spotted,
        {**MASKED, "mu": 0.0},
        look,
        saliency=brightness,
        optim={"epochs": 4},
        views={"classification": view},
    )
    assert inside + cut == 4 * N
    assert erased > 10
    assert cut == 0 if view == "plain" else cut > 10 and inside > 10


def test_the_peak_of_a_partner_follows_its_own_view(spotted: Path, tmp_path: Path) -> None:
    """Through smcl-concutmix: what is transplanted is the white pixel of the partner, wherever its view has it."""
    real, met = SMCLConCutMix.replace, 0

    def watched(self: SMCLConCutMix, batch: Batch, box: Any, at: Progress) -> Replaced:
        nonlocal met
        assert batch.peaks is not None
        assert batch.partner is not None
        assert batch.partner.peaks is not None
        for part, peaks in ((batch, batch.peaks), (batch.partner, batch.partner.peaks)):
            for image, row, column in white(part.views[0]).tolist():
                assert peaks[image].tolist() == [row, column]
                met += part is batch.partner
        return real(self, batch, box, at)

    config = tiny_config(
        "smcl-concutmix",
        spotted,
        tmp_path / "run",
        method={"mix_probability": 1.0},
        views={"classification": "crop-flip"},
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SMCLConCutMix, "replace", watched)
        train(config, saliency=brightness)
    assert met > 10


# Resumed --------------------------------------------------------------------------------------------------------------


def test_a_run_is_not_resumed_with_other_maps(tiny_npz: Path, tmp_path: Path) -> None:
    path = write_maps(tmp_path / "maps.npz")
    config = tiny_config("smcl", tiny_npz, tmp_path / "run", method={**MASKED, "saliency_maps": str(path)})
    with pytest.raises(StoppedError):
        train(config, listener=At(4))
    before, kept = files_of(tmp_path / "run"), path.read_bytes()
    with np.load(path) as archive:
        maps = archive["maps"]
    np.savez(path, maps=maps[:, ::-1])
    with pytest.raises(RunError, match="saliency maps are not those") as caught:
        train(config, resume=True)
    assert caught.value.exit_code == 4
    with pytest.raises(RunError, match="saliency maps are not those"):
        train(config, resume=True, saliency=brightness)
    assert files_of(tmp_path / "run") == before
    path.write_bytes(kept)
    watched = Recorder()
    train(config, resume=True, listener=watched)
    assert watched.first_step == 4


def test_a_run_with_a_function_is_resumed_with_it_and_not_without(tiny_npz: Path, tmp_path: Path) -> None:
    config = tiny_config("smcl", tiny_npz, tmp_path / "run", method=MASKED)
    with pytest.raises(StoppedError):
        train(config, listener=At(4), saliency=brightness)
    with pytest.raises(RunError, match="saliency maps are not those"):
        train(config, resume=True)
    train(config, resume=True, saliency=lambda images: brightness(images) + 1)
    assert read_json(tmp_path / "run" / "run.json")["status"] == "finished"


def test_equal_peaks_are_chosen_as_the_method_says(tiny_npz: Path, tmp_path: Path) -> None:
    """In a flat map all pixels tie: the first is the corner, and random ones are all over the image."""
    for ties, corners in (("first", True), ("random", False)):
        config = tiny_config("smcl", tiny_npz, tmp_path / ties, method={"ties": ties})
        data = open_data(config.data)
        method = build_method(config, data.stats.counts, SIZE)
        found = find_peaks(
            config, data, method, build_views(config, data), lambda images: torch.ones(images[:, 0].shape), Silent()
        )
        assert found is not None
        assert bool((found == 0).all()) == corners
