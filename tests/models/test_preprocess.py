"""Tests of preprocessing, whose resizing and conversion to grey are compared with Pillow."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from expunge.models.preprocess import Preprocess
from expunge.system.errors import DataError

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (5, 9, 7, 3), dtype=np.uint8)


def smooth(height: int, width: int) -> np.ndarray:
    """Return a smooth picture, because aliasing would make resizing filters differ."""
    y, x = np.mgrid[0:height, 0:width]
    return (127 + 60 * np.sin(y / 6) + 60 * np.cos(x / 9)).astype(np.uint8)


def test_same_size_is_plain_normalisation() -> None:
    out = Preprocess(9, 7, 3, (0.1, 0.2, 0.3), (0.5, 0.4, 0.3))(COLOUR)
    expected = (COLOUR / 255.0 - [0.1, 0.2, 0.3]) / [0.5, 0.4, 0.3]
    assert out.dtype == torch.float32 and out.shape == (5, 3, 9, 7)
    assert out.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_allclose(out.numpy(), expected.transpose(0, 3, 1, 2), atol=1e-6)


def test_arrays_tensors_and_lists_agree_also_read_only_and_without_channel_axis() -> None:
    grey = COLOUR[..., 0].copy()
    grey.flags.writeable = False
    pre = Preprocess(12, 12, 1, (0.5,), (0.5,))
    expected = pre(grey)
    for images in (grey[..., None], torch.from_numpy(grey.copy()), list(grey), list(grey[..., None])):
        assert torch.equal(pre(images), expected)


def test_images_of_many_sizes_keep_their_order() -> None:
    pre = Preprocess(8, 8, 3, (0.5,) * 3, (0.5,) * 3)
    images = [COLOUR[0], smooth(20, 30), COLOUR[1][:4], COLOUR[2]]
    out = pre(images)
    for i, image in enumerate(images):
        torch.testing.assert_close(out[i], pre(image[None])[0])


@pytest.mark.parametrize(
    ("name", "filter_"), [("bilinear", Image.Resampling.BILINEAR), ("bicubic", Image.Resampling.BICUBIC)]
)
@pytest.mark.parametrize("size", [(16, 24), (90, 70)])
def test_resizing_is_that_of_pillow(name: str, filter_: Image.Resampling, size: tuple[int, int]) -> None:
    image = smooth(40, 60)
    pillow = np.asarray(Image.fromarray(image).resize((size[1], size[0]), filter_)) / 255.0
    ours = Preprocess(*size, 1, (0.0,), (1.0,), name)(image[None])[0, 0].numpy()
    assert np.abs(ours - pillow).max() <= 1.3 / 255  # Pillow rounds to whole numbers after each direction


def test_bicubic_stays_within_the_range_of_pixels() -> None:
    edge = np.zeros((1, 8, 8), np.uint8)
    edge[:, :, 4:] = 255
    out = Preprocess(32, 32, 1, (0.0,), (1.0,), "bicubic")(edge)
    assert out.min() == 0 and out.max() == 1


def test_grey_to_colour_repeats_and_colour_to_grey_is_pillows_luma() -> None:
    grey = COLOUR[..., :1]
    out = Preprocess(9, 7, 3, (0.0,) * 3, (1.0,) * 3)(grey)
    assert torch.equal(out[:, 0], out[:, 1]) and torch.equal(out[:, 0], out[:, 2])
    luma = Preprocess(9, 7, 1, (0.0,), (1.0,))(COLOUR)[:, 0].numpy() * 255
    pillow = np.stack([np.asarray(Image.fromarray(c).convert("L")) for c in COLOUR])
    assert np.abs(luma - pillow).max() <= 1


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (COLOUR.astype(np.float32), "float32, but uint8 in 0..255"),
        (np.zeros((2, 4, 4, 4), np.uint8), "4 channels, but the model takes 3"),
        (np.zeros((4, 4), np.uint8), "is needed"),
        ([COLOUR[0], np.zeros(4, np.uint8)], "image 1 has shape"),
        (np.zeros((2, 0, 4), np.uint8), "shape"),
    ],
)
def test_what_is_no_image_is_refused(images: object, words: str) -> None:
    with pytest.raises(DataError, match=words):
        Preprocess(8, 8, 3, (0.5,) * 3, (0.5,) * 3)(images)  # type: ignore[arg-type]


def test_no_images_give_no_rows() -> None:
    pre = Preprocess(8, 8, 1, (0.5,), (0.5,))
    assert pre([]).shape == (0, 1, 8, 8)
    assert pre(np.zeros((0, 8, 8), np.uint8)).shape == (0, 1, 8, 8)


def test_preprocessing_survives_a_round_trip_through_json() -> None:
    pre = Preprocess(8, 9, 3, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "bicubic")
    assert Preprocess.from_json(json.loads(json.dumps(pre.to_json()))) == pre


@pytest.mark.parametrize("bad", [{"height": 0}, {"mean": (0.1, 0.2)}, {"std": (0.0,)}, {"interpolation": "cubic"}])
def test_impossible_settings_are_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        Preprocess(**{"height": 8, "width": 8, "channels": 1, "mean": (0.5,), "std": (0.5,), **bad})  # type: ignore[arg-type]
