"""Look at a folder of images before `expunge init` writes anything."""

from __future__ import annotations

from pathlib import Path

from expunge.system.errors import DataError

SAMPLE = 200  # pictures whose shapes are compared; a few seconds at most


def refuse_unusable(folder: Path, one_shape: bool) -> None:
    """Raise DataError, which names a file, if the pipeline would refuse the image folder.

    The names of all files are checked. Training all weights needs pictures of `one_shape`: at most SAMPLE of them,
    evenly spaced, are decoded and compared.
    """
    from expunge.data.images import decode  # imports pyarrow
    from expunge.data.readers.image_folder import image_files, read_image_folder

    read_image_folder(folder)
    if not one_shape:
        return
    files = image_files(folder)
    compared = files[:: -(-len(files) // SAMPLE)]
    shapes = {file: decode(file.read_bytes(), str(file)).shape for file in compared}
    for file, shape in shapes.items():
        if shape != shapes[files[0]]:
            raise DataError(
                f"{file}: is {_words(shape)}, but {files[0]} is {_words(shapes[files[0]])}. Training all weights needs "
                "pictures of one size and one kind of colour; convert them, or train a head on public weights "
                "(--training head)"
            )


def _words(shape: tuple[int, ...]) -> str:
    height, width, channels = shape
    return f"{width} x {height} pixels in {'grey' if channels == 1 else 'colour'}"
