"""Tests of cuts in models of other packages.

Both halves must give the whole bit for bit, and the upper half must train as it does in the whole.
"""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import fx, nn

from expunge.models.classifier import Classifier
from expunge.models.cut_split import core_of
from expunge.models.cuts import cut_names, example, split_at_cut, traces_of
from expunge.models.zoo import build
from expunge.system.errors import ConfigError
from expunge.system.vision_imports import import_vision

sys.path.insert(0, str(Path(__file__).parent))
from texts import write_encoder

SMALL: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
# Name, size of the pictures, a valid cut, and a module that is no cut because more than one tensor passes there.
VISION = [
    ("resnet-small", 16, "stage1", "stage2.norm1"),
    ("efficientnet-lite0", 64, "_blocks.4", "_blocks.2._expand_conv"),
    ("timm:resnet18", 32, "layer3", "layer3.1.conv1"),
    pytest.param("timm:resnet50", 32, "layer3.2", "layer3.2.conv2", marks=pytest.mark.slow),
    ("timm:convnext_atto", 32, "stages.2.blocks.1", "stages.2.blocks.1.mlp.fc1"),
    ("timm:vit_tiny_patch16_224", 32, "blocks.7", "blocks.7.attn"),
    pytest.param(
        "timm:swin_tiny_patch4_window7_224", 64, "layers.2.blocks.3", "layers.2.blocks.3.norm1", marks=pytest.mark.slow
    ),
    ("torchvision:resnet18", 32, "layer3.0", "layer3.0.bn1"),
    pytest.param(
        "torchvision:vit_b_16",
        32,
        "encoder.layers.encoder_layer_9",
        "encoder.layers.encoder_layer_9.ln_1",
        marks=pytest.mark.slow,
    ),
    ("torchvision:mobilenet_v3_small", 32, "features.6", "features.5.block.1"),
    ("cut_models:branching", 16, "first", "left"),
]


@pytest.fixture(scope="module", autouse=True)
def _importable() -> Any:
    sys.path.insert(0, str(Path(__file__).parent))
    yield
    sys.path.remove(str(Path(__file__).parent))


def vision(name: str, size: int) -> Classifier:
    return settled(build(name, 4, (size, size, 3), image_size=size))


def settled(model: Classifier) -> Classifier:
    """Give each batch norm other running statistics, as training would, and return the model."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.copy_(torch.randn(module.running_mean.shape, generator=generator) / 10)
                module.running_var.copy_(torch.rand(module.running_var.shape, generator=generator) + 0.5)
    return model


def transformers_model(kind: str, directory: Path) -> Classifier:
    t = import_vision("transformers")
    torch.manual_seed(2)
    if kind == "bert":
        return build(f"sentence:{write_encoder(directory / kind)}", 4, None, training="head")
    size = {"image_size": 32, "patch_size": 8, "num_labels": 4}
    made = {
        "vit": lambda: t.ViTForImageClassification(t.ViTConfig(intermediate_size=32, **size, **SMALL)),
        "dinov2": lambda: t.Dinov2ForImageClassification(t.Dinov2Config(**size, **SMALL)),
    }[kind]()
    made.save_pretrained(directory / kind)
    return build(f"transformers:{directory / kind}", 4, (32, 32, 3))


def halves_are_the_whole(model: Classifier, cut: str) -> None:
    split = split_at_cut(model, cut)
    core, _ = core_of(model)
    for n, t in ((1, 4), (5, 9)):
        x = example(model, n, t)
        with torch.no_grad():
            a = split.below(x)
            assert tuple(a.shape[1:]) == split.shape(x.shape[1])
            assert torch.equal(split.above(a, x >= 0), core(x))
            assert not torch.equal(split.above(a + 0.1 * torch.rand_like(a), x >= 0), core(x))


@pytest.mark.parametrize(("name", "size", "cut", "wrong"), VISION)
def test_both_halves_of_a_vision_model_give_the_whole_and_wrong_cuts_are_refused(
    name: str, size: int, cut: str, wrong: str
) -> None:
    model = vision(name, size)
    halves_are_the_whole(model, cut)
    with pytest.raises(
        ConfigError, match=f"no cut '{wrong}': (more than one tensor passes|it returns).*(nearest|known)"
    ):
        split_at_cut(model, wrong)


@pytest.mark.parametrize(
    ("kind", "cut", "wrong"),
    [
        ("vit", "vit.layers.1", "vit.layers.1.attention"),
        ("dinov2", "dinov2.encoder.layer.1", "dinov2.encoder.layer.1.norm1"),
        ("bert", "encoder.layer.0", "encoder.layer.0.output.dense"),
    ],
)
def test_both_halves_of_a_transformer_give_the_whole_and_wrong_cuts_are_refused(
    kind: str, cut: str, wrong: str, tmp_path: Path
) -> None:
    model = transformers_model(kind, tmp_path)
    halves_are_the_whole(model, cut)
    with pytest.raises(ConfigError, match=f"no cut '{wrong}': .*(nearest|known).*{cut}"):
        split_at_cut(model, wrong)


@pytest.mark.parametrize("name", ["timm:resnet18", "torchvision:mobilenet_v3_small", "cut_models:branching"])
def test_what_is_above_trains_as_it_does_in_the_whole(name: str) -> None:
    """The whole model, its tensor detached at the cut, gives the same gradients and running statistics, bit for bit."""
    cut = {"timm:resnet18": "layer3.0", "torchvision:mobilenet_v3_small": "features.6", "cut_models:branching": "first"}
    whole, size = vision(name, 32), 32
    halved = copy.deepcopy(whole)
    split = split_at_cut(halved, cut[name])
    x = example(whole, 4, size)
    with torch.no_grad():
        a = split.below(x)
    split.train_above()
    torch.manual_seed(5)
    halved.head(split.above(a)).square().sum().backward()
    # In the reference the same modules train, selected by name, and a hook ends the graph at the cut.
    above = set(split.lying_above.parameters)
    for path, module in whole.backbone.named_modules():
        module.training = any(k.startswith(f"{path}.") for k in above) and not any(
            k.startswith(f"{path}.") for k in set(dict(whole.backbone.named_parameters())) - above
        )
        module.training |= any(p.startswith(f"{path}.") for p in split.lying_above.modules) or any(
            path.startswith(p) for p in split.lying_above.modules
        )
    whole.head.train()
    handle = whole.backbone.get_submodule(cut[name]).register_forward_hook(lambda _m, _g, out: out.detach())
    torch.manual_seed(5)
    whole.head(whole.backbone(x)).square().sum().backward()
    handle.remove()
    theirs = dict(whole.named_parameters())
    for k, p in halved.named_parameters():
        if p.grad is None:
            assert theirs[k].grad is None and k.removeprefix("backbone.") not in above
        else:
            assert torch.equal(p.grad, theirs[k].grad), k
    for k, tensor in halved.state_dict().items():
        assert torch.equal(tensor, whole.state_dict()[k]), k
    split.train_above(False)
    assert not any(m.training for m in halved.modules())


def test_a_traced_graph_agrees_where_there_is_one() -> None:
    """torch.fx finds the cut independently: the nodes behind it read one tensor and give the same features."""
    model = vision("torchvision:resnet18", 32)
    graph = fx.symbolic_trace(model.backbone)
    x = example(model, 3, 0)
    at = next(n for n in graph.graph.nodes if n.name == "layer3_1_relu_1")
    seen: dict[str, torch.Tensor] = {}

    class Recording(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            out = super().run_node(n)
            seen[n.name] = out
            return out

    with torch.no_grad():
        z = Recording(graph).run(x)
        split = split_at_cut(model, "layer3")
        assert torch.equal(seen[at.name], split.below(x)) and torch.equal(split.above(seen[at.name]), z)


@pytest.mark.slow
def test_names_are_listed_in_order_and_only_those_that_work() -> None:
    model = vision("timm:resnet18", 32)
    assert cut_names(model) == (
        "conv1", "bn1", "act1", "maxpool", "layer1.0", "layer1", "layer2.0", "layer2", "layer3.0", "layer3", "layer4.0",
    )  # fmt: skip
    assert split_at_cut(model, "layer1.1").name == "layer1.1"  # another name of the same tensor
    with pytest.raises(ConfigError, match=r"no cut 'layer5': the backbone has no such module; the nearest.*layer4.0"):
        split_at_cut(model, "layer5")
    with pytest.raises(ConfigError, match=r"no cut 'layer4': no weights lie above it but the head's; .*layer4.0"):
        split_at_cut(model, "layer4")


@pytest.mark.parametrize(
    ("name", "cut", "why"),
    [
        ("side", "middle", "more than one tensor passes"),
        ("masked", "middle", "more than one tensor passes|different features"),
        ("recurrent", "cell", "it runs 3 times in one pass"),
        ("tied", "first", "used both below and above"),
    ],
)
def test_cuts_that_cannot_be_are_refused_with_the_reason(name: str, cut: str, why: str) -> None:
    model = vision(f"cut_models:{name}", 16)
    with pytest.raises(ConfigError, match=f"no cut '{cut}': .*({why})"):
        split_at_cut(model, cut)


def test_train_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="train mode"):
        traces_of(vision("resnet-small", 16).train())
