"""What the layers of a network read: the inputs of every convolution and product with a weight."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


class LayerInputs(TorchFunctionMode):
    """While active, calls `see(name, h, count)` for each convolution and each product with a weight of `model`.

    `name`: that of the weight. `h (positions, groups, k)` float64: the inputs of its outputs, where k is the number of
    inputs of one output: those of a linear layer, or the patch of a convolution. `count`: the rows of the batch.
    Calls of functions are observed, not those of modules, because some modules pad their input themselves.
    """

    def __init__(self, model: nn.Module, see: Callable[[str, Tensor, int], None]) -> None:
        super().__init__()
        self.names = {id(parameter): name for name, parameter in model.named_parameters()}
        self.see = see

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (F.conv2d, F.linear) and (name := self.names.get(id(args[1]))) is not None:
            x = args[0].detach().double()
            h = patches(x, *args[1:]) if func is F.conv2d else x.reshape(-1, 1, x.shape[-1])
            self.see(name, h, len(x))
        return func(*args, **(kwargs or {}))


def patches(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] | str = (0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
) -> Tensor:
    """Return the inputs of a convolution's outputs, `(positions, groups, k)`; the arguments are those of F.conv2d."""
    kernel, sides = tuple(weight.shape[2:]), [0, 0, 0, 0]  # of the last dimension first, as F.pad takes them
    for i in range(2):
        whole = dilation[i] * (kernel[i] - 1) if padding == "same" else 0
        before, after = (whole // 2, whole - whole // 2) if isinstance(padding, str) else (padding[i], padding[i])
        sides[2 - 2 * i : 4 - 2 * i] = before, after
    columns = F.unfold(F.pad(x, sides), kernel, tuple(dilation), 0, tuple(stride))
    return columns.transpose(1, 2).reshape(-1, groups, columns.shape[1] // groups)
