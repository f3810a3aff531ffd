"""Read data sets by their name in torchvision, such as `torchvision:CIFAR10`, without loading a pickle.

The data sets of NAMED have readers of their own: torchvision's classes of CIFAR load pickles, and these readers need no
torchvision. `torchvision_classes.py` reads others through torchvision.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from pathlib import Path

from expunge.data.readers.cifar import CIFAR10, CIFAR100, read_cifar
from expunge.data.readers.idx import FASHION_MNIST, KMNIST, MNIST, read_idx_set
from expunge.data.readers.image_folder import read_image_folder
from expunge.data.readers.imagenet import read_imagenet, read_tiny_imagenet
from expunge.data.readers.listed import read_flowers102, read_food101
from expunge.data.readers.stl10 import read_stl10
from expunge.data.readers.svhn import read_svhn
from expunge.data.readers.torchvision_classes import CLASSES, read_torchvision_class
from expunge.data.source import Source
from expunge.system.errors import DataError

PREFIX = "torchvision:"
NAMED: dict[str, Callable[[Path, bool], Source]] = {
    "CIFAR10": lambda root, download: read_cifar(root, CIFAR10, download),
    "CIFAR100": lambda root, download: read_cifar(root, CIFAR100, download),
    "MNIST": lambda root, download: read_idx_set(root, MNIST, download),
    "FashionMNIST": lambda root, download: read_idx_set(root, FASHION_MNIST, download),
    "KMNIST": lambda root, download: read_idx_set(root, KMNIST, download),
    "SVHN": read_svhn,
    "STL10": read_stl10,
    "Food101": read_food101,
    "Flowers102": read_flowers102,
    "TinyImageNet": read_tiny_imagenet,  # not in torchvision; the layout of the publisher's archive
}
WITHOUT_DOWNLOAD = ("ImageNet", "ImageFolder")
PICKLED = ("LSUN", "LSUNClass")  # torchvision keeps the keys of these in a pickle, and no other reader is here


def read_named(source: str, root: Path, download: bool = False, test_fraction: float = 0.2, seed: int = 0) -> Source:
    """Open the data set `torchvision:NAME` below `root`; `download` allows downloading it there.

    The splits are the publisher's; `test_fraction` and `seed` apply only where there is no published test split, and to
    ImageFolder without train/ and test/. Raises DataError for an unknown name, a missing root, and invalid files.
    """
    name = source.removeprefix(PREFIX)
    known = (*NAMED, *WITHOUT_DOWNLOAD, *CLASSES)
    if name in PICKLED:
        raise DataError(f"data.source: torchvision loads a pickle to read {name}, and no pickle is ever loaded here")
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {PREFIX}{close[0]}?" if close else f"the known data sets are {', '.join(known)}"
        raise DataError(f"data.source: no reader for {source!r}; {hint}")
    if download and name in WITHOUT_DOWNLOAD:
        raise DataError(f"data.download: {name} cannot be downloaded; put its images below {root}")
    if not root.is_dir() and not download:
        raise DataError(f"{root}: no such directory; correct data.root in params.yaml, or set data.download: true")
    if name == "ImageNet":
        return read_imagenet(root)
    if name == "ImageFolder":
        return read_image_folder(root, test_fraction, seed)
    if name in CLASSES:
        return read_torchvision_class(name, root, download, test_fraction, seed)
    return NAMED[name](root, download)
