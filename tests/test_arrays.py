"""Arrays in memory: resizing, pixel statistics, fingerprints."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from longtail.data import ImageSet, Source, from_arrays
from longtail.data.sources.arrays import pixel_statistics, resize
from longtail.errors import ConfigError, DataError
from longtail.rng import numpy_generator


def pixels(*shape: int) -> NDArray[np.uint8]:
    return numpy_generator("pixels").integers(0, 256, shape, dtype=np.uint8)


def test_resizing_keeps_flat_color_and_takes_the_center_of_a_wide_image() -> None:
    wide = np.full((1, 8, 24, 3), 30, dtype=np.uint8)
    wide[:, :, 8:16] = 200
    assert bool((resize(from_arrays(wide, [0]), 8).train.images == 200).all())
    flat = resize(from_arrays(np.full((1, 9, 9), 77, dtype=np.uint8), [0]), 5).train.images
    assert bool((flat == 77).all())


def test_resizing_is_antialiased() -> None:
    noise = pixels(8, 32, 32)
    smaller = resize(from_arrays(noise, [0] * 8), 8).train.images[:, 0].double().std()
    # Plain bilinear averages 4 of the 16 pixels under each new one: half the deviation is left instead of a fifth.
    assert smaller < 0.3 * noise.std()


def test_masks_are_resized_with_their_images() -> None:
    mask = torch.zeros(1, 8, 8, dtype=torch.bool)
    mask[:, :4] = True
    part = ImageSet(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), torch.tensor([0]), torch.tensor([0]), masks=mask)
    resized = resize(Source("masks", ["a"], part, None, None), 4).train.masks
    assert resized is not None
    assert resized.tolist() == [[[True] * 4] * 2 + [[False] * 4] * 2]


def test_a_size_below_one_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"data\.size"):
        resize(from_arrays(pixels(1, 4, 4), [0]), 0)


def test_pixel_statistics_equal_numpy_over_several_chunks() -> None:
    images = torch.from_numpy(pixels(2500, 3, 4, 4))
    mean, std = pixel_statistics(images)
    plain = images.numpy().astype(np.float64) / 255
    np.testing.assert_allclose(mean, plain.mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(std, plain.std((0, 2, 3)), rtol=1e-10)


def test_a_channel_without_variance_has_deviation_one() -> None:
    images = torch.zeros(5, 3, 4, 4, dtype=torch.uint8)
    images[:, 1] = 201
    images[0, 2, 0, 0] = 1
    mean, std = pixel_statistics(images)
    assert mean[1] == 201 / 255
    assert std[:2] == (1.0, 1.0)
    np.testing.assert_allclose(std[2], images[:, 2].double().div(255).std(correction=0), rtol=1e-10)


def test_statistics_of_no_image_are_refused() -> None:
    with pytest.raises(DataError):
        pixel_statistics(torch.empty(0, 3, 4, 4, dtype=torch.uint8))


def test_a_fingerprint_tells_pixels_labels_and_shapes_apart() -> None:
    images = pixels(4, 2, 8, 3)
    prints = {
        from_arrays(x, y).train.fingerprint()
        for x, y in (
            (images, [0, 1, 2, 3]),
            (images, [0, 1, 3, 2]),
            (images[::-1], [0, 1, 2, 3]),
            (images.reshape(4, 4, 4, 3), [0, 1, 2, 3]),
        )
    }
    assert len(prints) == 4
