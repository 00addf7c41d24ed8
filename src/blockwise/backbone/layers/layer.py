"""What a layer is, and what kinds of layers there are.

Nothing here depends on the architecture: a layer is any leaf module or function that the forward pass calls.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

Kind = Literal["weighted", "norm", "scale", "activation", "pool", "other"]

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
# Activations are recognized by the end of their names: `LeakyReLU`, `quick_gelu`, `HardSwishJit`, `GELUTanh`. Gates
# (sigmoid, hardsigmoid, softmax) are left out on purpose: they scale another branch and do not end a run of layers.
ACTIVATION = re.compile(
    r"(relu6?|elu|glu|silu|swish|mish|tanh|shrink|softplus|softsign|threshold|logsigmoid)(me|jit)?$", re.IGNORECASE
)
WEIGHT_FUNCTIONS = frozenset(["linear", "conv1d", "conv2d", "conv3d", "embedding", "bilinear"])
NORM_FUNCTIONS = frozenset(["batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm"])


@dataclass(frozen=True)
class Layer:
    """One leaf module or one function call, in the order of execution.

    Attributes:
        index: Position in the forward pass, from 0 at the pixels.
        name: The module's path, or the path of the calling module and the function's name.
        type: Class or function name, such as `Conv2d`.
        kind: The role of the layer for partitioners. A `scale` multiplies or shifts elements, such as LayerScale.
        activates: True if the layer is or ends with an activation (timm fuses norm and activation).
        parameters: Names of its parameters; each parameter belongs to exactly one layer.
        num_parameters: Number of elements of its parameters.
        flops: Floating-point operations per image; a multiply-add counts as two.
        channels: Number of channels of the input; 0 if the layer does not know it.
        stream_size: Shape of what the input is a rearrangement of, without the batch dimension.
        output_size: Shape of the output without the batch dimension.
        joined: True if the layer must be in the same block as the layer before it, such as a norm after its convolution
            or a layer that reuses a weight.
        beside: Number of values, other than the layer's input, that it or later layers need. It is 0 where the residual
            stream is whole, and more inside a residual branch.
        inner: True for an activation or pooling layer within squeeze-and-excitation, attention or an MLP.
        merges: True if the input is a concatenation, as in DenseNet and Inception.
        revised: True if the first versions had the layer, or one of its parameters, in another block.
    """

    index: int
    name: str
    type: str
    kind: Kind
    activates: bool = False
    parameters: tuple[str, ...] = ()
    num_parameters: int = 0
    flops: int = 0
    channels: int = 0
    stream_size: tuple[int, ...] = ()
    output_size: tuple[int, ...] = ()
    joined: bool = False
    beside: int = 0
    inner: bool = False
    merges: bool = False
    revised: bool = False


def is_leaf(module: nn.Module) -> bool:
    """Return whether a module is one layer: from torch.nn, childless, or the only tensor owner in its subtree."""
    if isinstance(module, CONTAINERS):
        return False
    if module.__module__.startswith("torch.nn") or not any(True for _ in module.children()):
        return True
    owns = any(True for _ in own_tensors(module))
    return owns and not any(True for child in module.children() for _ in own_tensors(child, recurse=True))


def own_tensors(module: nn.Module, *, recurse: bool = False) -> Iterator[Tensor]:
    """Yield the parameters and buffers of a module."""
    yield from module.parameters(recurse=recurse)
    yield from module.buffers(recurse=recurse)


def is_norm(module: nn.Module) -> bool:
    """Return whether a module is a normalisation layer (batch, layer, group, instance or RMS norm, or similar)."""
    return isinstance(module, nn.modules.batchnorm._NormBase) or "norm" in type(module).__name__.lower()


def module_kind(module: nn.Module) -> Kind:
    """Return the kind of a leaf module."""
    name = type(module).__name__
    if is_norm(module):
        return "norm"
    if _is_activation(name):  # before "weighted": PReLU owns a parameter
        return "activation"
    if any(True for _ in module.parameters()):
        return "weighted"
    return "pool" if "pool" in name.lower() else "other"


def _is_activation(name: str) -> bool:
    return ACTIVATION.search(name) is not None


def function_kind(function: str, *, has_parameters: bool = True) -> Kind | None:
    """Return the kind of a called function; None if it is not a layer (add, reshape, ...)."""
    name = function.strip("_")
    if "pool" in name:
        return "pool"
    if _is_activation(name):
        return "activation"
    if has_parameters and name in WEIGHT_FUNCTIONS:
        return "weighted"
    if has_parameters and name in NORM_FUNCTIONS:
        return "norm"
    return None
