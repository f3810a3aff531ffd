"""Pictures of every mode are decoded to 8-bit grey or colour, and what has no such form is refused."""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from expunge.data.images import binary_array, decode, raw_stack
from expunge.system.errors import DataError

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (6, 9), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (6, 9, 3), dtype=np.uint8)


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
@pytest.mark.parametrize("pixels", [GREY, COLOUR], ids=["grey", "colour"])
def test_lossless_formats_give_back_the_pixels(kind: str, pixels: np.ndarray) -> None:
    expected = pixels.reshape(6, 9, -1)
    np.testing.assert_array_equal(decode(encoded(Image.fromarray(pixels), kind), "a"), expected)


def test_grey_jpeg_stays_grey() -> None:
    assert decode(encoded(Image.fromarray(GREY), "JPEG"), "a").shape == (6, 9, 1)


def test_bilevel_becomes_black_and_white() -> None:
    bits = GREY > 127
    np.testing.assert_array_equal(decode(encoded(Image.fromarray(bits)), "a")[:, :, 0], bits * np.uint8(255))


def test_palette_indices_become_colours() -> None:
    palette = Image.fromarray(COLOUR).quantize(16)
    table = np.array(palette.getpalette()).reshape(-1, 3)
    np.testing.assert_array_equal(decode(encoded(palette), "a"), table[np.asarray(palette)])


def test_transparency_is_laid_over_white() -> None:
    alpha = RNG.integers(0, 256, (6, 9), dtype=np.uint8)
    image = Image.fromarray(np.dstack([COLOUR, alpha]))
    share = alpha[..., None] / 255
    expected = COLOUR * share + 255 * (1 - share)
    got = decode(encoded(image), "a")
    assert got.shape == (6, 9, 3)
    assert np.abs(got - expected).max() <= 1
    hidden = Image.fromarray(np.dstack([GREY, np.zeros_like(GREY)]), "LA")
    np.testing.assert_array_equal(decode(encoded(hidden), "a"), np.full((6, 9, 1), 255))


def test_transparent_palette_colour_is_white() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    np.testing.assert_array_equal(decode(encoded(image, transparency=1), "a"), [[[10, 20, 30], [255, 255, 255]]])


def test_cmyk_becomes_rgb() -> None:
    cmyk = np.zeros((8, 8, 4), dtype=np.uint8)
    cmyk[..., 1] = cmyk[..., 2] = 255  # Magenta and yellow ink give red.
    got = decode(encoded(Image.fromarray(cmyk, "CMYK"), "TIFF"), "a")
    np.testing.assert_array_equal(got[0, 0], [255, 0, 0])


def test_16_bit_grey_is_scaled_not_clipped() -> None:
    deep = np.array([[0, 128, 129, 200, 257, 32768, 65535]], dtype=np.uint16)
    got = decode(encoded(Image.fromarray(deep)), "a")[0, :, 0]
    np.testing.assert_array_equal(got, np.round(deep[0] / 257))


def test_exif_rotation_is_applied() -> None:
    image = Image.fromarray(COLOUR)
    exif = Image.Exif()
    exif[0x0112] = 6  # The camera turned it left, so the decoder must turn it right.
    got = decode(encoded(image, "PNG", exif=exif), "a")
    np.testing.assert_array_equal(got, np.rot90(COLOUR, -1))


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (Image.fromarray(np.ones((4, 4), np.float32)), "'F'"),
        (Image.fromarray(np.ones((4, 4), np.int32)), "'I'"),
    ],
)
def test_what_has_no_8_bit_form_is_refused(image: Image.Image, words: str) -> None:
    with pytest.raises(DataError, match=f"photo.tif: .*{words}"):
        decode(encoded(image, "TIFF"), "photo.tif")


def test_several_frames_are_refused() -> None:
    frames = [Image.fromarray(GREY), Image.fromarray(255 - GREY)]
    with pytest.raises(DataError, match=r"a\.gif: the image has 2 frames"):
        decode(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]), "a.gif")


@pytest.mark.parametrize("data", [b"", b"not an image", encoded(Image.fromarray(COLOUR))[:-30], b"%!PS-Adobe-3.0 EPSF"])
def test_corrupt_files_are_refused_by_name(data: bytes) -> None:
    with pytest.raises(DataError, match=r"cat/1\.png: not a readable image"):
        decode(data, "cat/1.png")


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow warns of damaged files.
@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["PNG", "JPEG", "GIF", "TIFF", "BMP"]), st.data())
def test_any_damaged_file_is_an_image_or_raises_data_error(kind: str, draw: st.DataObject) -> None:
    data = bytearray(encoded(Image.fromarray(COLOUR), kind))
    for _ in range(draw.draw(st.integers(1, 4))):
        data[draw.draw(st.integers(0, len(data) - 1))] = draw.draw(st.integers(0, 255))
    try:
        pixels = decode(bytes(data), "a")
    except DataError:
        return
    assert pixels.dtype == np.uint8 and pixels.shape[2] in (1, 3)


def test_raw_images_round_trip_without_a_copy() -> None:
    images = RNG.integers(0, 256, (5, 3, 2, 1), dtype=np.uint8)
    column = binary_array(images)
    assert column.to_pylist() == [i.tobytes() for i in images]
    got = raw_stack(column.slice(1, 3), (3, 2, 1))
    np.testing.assert_array_equal(got, images[1:4])
    assert np.shares_memory(got, images)
    with pytest.raises(ValueError, match="must have 6 bytes each"):
        raw_stack(pa.array([b"123456", b"12345"], pa.binary()), (3, 2, 1))
