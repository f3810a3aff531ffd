"""Decode stored image bytes to uint8 pixels `(h, w, c)` with c in {1, 3}."""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
from PIL import Image, ImageOps

from expunge.system.errors import DataError
from expunge.system.limits import in_force

# Only formats whose decoders are self-contained: Pillow's EPS plug-in, for example, would start an interpreter.
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")


def decode(data: bytes, name: str) -> np.ndarray:
    """Decode one image file to a new `(h, w, c)` uint8 array; `name` is used in messages.

    Greyscale images keep one channel, all others become RGB. EXIF rotation is applied, transparent images are
    composited over white, and 16-bit greyscale is scaled to 8 bits. Raises DataError for a corrupt file, for pixel
    modes without a faithful 8-bit form (32-bit integers, floats, CIELAB), for several frames, and for more
    pixels than `limits.pixels` allows.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as checked:
            _refuse_large(checked, name)
            checked.verify()  # PNG checksums and the end of the file, which load() does not check
        with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
            frames = getattr(opened, "n_frames", 1)
            if frames > 1:
                raise DataError(f"{name}: the image has {frames} frames; keep only one of them")
            opened.load()
            image = ImageOps.exif_transpose(opened)
            return _pixels(image, name)
    except DataError:
        raise
    except Image.DecompressionBombError as e:  # Pillow's own limit, if it is lower
        raise DataError(f"{name}: has too many pixels ({e}); make it smaller, or remove it") from e
    except Exception as e:  # on broken files decoders raise OSError, SyntaxError, ValueError, KeyError and others
        raise DataError(f"{name}: not a readable image ({type(e).__name__}: {e}); replace or remove it") from e


def _refuse_large(image: Image.Image, name: str) -> None:
    """Raise DataError if the header declares too many pixels. This is checked before decompression."""
    (width, height), most = image.size, in_force().pixels
    if width * height > most:
        raise DataError(
            f"{name}: the image declares {width:,} x {height:,} pixels, but at most {most:,} are allowed in all "
            "(limits.pixels); make it smaller, or remove it"
        )


def _pixels(image: Image.Image, name: str) -> np.ndarray:
    mode = image.mode
    if mode.startswith("I;16"):
        # Pillow's own conversion clips at 255 instead of scaling.
        deep = np.asarray(image).astype(np.uint32)
        return ((deep * 255 + 32767) // 65535).astype(np.uint8)[:, :, None]
    if mode in ("I", "F", "LAB"):
        raise DataError(
            f"{name}: pixel mode {mode!r} cannot be converted to 8 bits without loss; convert the image to 8-bit "
            "grey or RGB"
        )
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        white.alpha_composite(image.convert("RGBA"))
        image = white.convert("L" if mode in ("LA", "L", "1") else "RGB")
    elif mode == "1":
        image = image.convert("L")
    elif mode not in ("L", "RGB"):
        image = image.convert("RGB")
    pixels = np.array(image)
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def binary_array(images: np.ndarray) -> pa.Array:
    """Return `(n, h, w, c)` uint8 images as a binary Arrow array of n rows, without copying a contiguous input.

    Raises ValueError for more than 2 GiB, since the offsets are int32.
    """
    images = np.ascontiguousarray(images)
    n, size = len(images), int(np.prod(images.shape[1:]))
    offsets = np.arange(n + 1, dtype=np.int64) * size
    if offsets[-1] > np.iinfo(np.int32).max:
        raise ValueError("an Arrow binary array holds at most 2 GiB; pass fewer images at a time")
    return pa.Array.from_buffers(
        pa.binary(), n, [None, pa.py_buffer(offsets.astype(np.int32)), pa.py_buffer(images.reshape(-1))]
    )


def raw_stack(column: pa.Array, shape: tuple[int, int, int]) -> np.ndarray:
    """Return a read-only `(n, h, w, c)` view of raw images of one `shape`, without a copy.

    Raises ValueError if an image does not have the number of bytes of `shape`.
    """
    n, size = len(column), int(np.prod(shape))
    _, offsets, values = column.buffers()
    ends = np.frombuffer(offsets, dtype=np.int32, count=n + 1, offset=4 * column.offset)
    if not np.array_equal(np.diff(ends), np.full(n, size)):
        raise ValueError(f"raw images of shape {shape} must have {size} bytes each, and some have not")
    return np.frombuffer(values, dtype=np.uint8, count=n * size, offset=int(ends[0])).reshape(n, *shape)
