"""Record the layers that a network executes, in order, during one forward pass.

Nothing here depends on the architecture: a layer is any leaf module or function that the forward pass calls.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

Kind = Literal["weighted", "norm", "activation", "pool", "other"]

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
        kind: The role of the layer for partitioners.
        activates: True if the layer is or ends with an activation (timm fuses norm and activation).
        parameters: Names of its parameters; each parameter belongs to exactly one layer.
        num_parameters: Number of elements of its parameters.
        flops: Floating-point operations per image; a multiply-add counts as two.
        output_size: Shape of the output without the batch dimension.
        joined: True if the layer must be in the same block as the layer before it, such as a norm after its convolution
            or a layer that reuses a weight.
    """

    index: int
    name: str
    type: str
    kind: Kind
    activates: bool = False
    parameters: tuple[str, ...] = ()
    num_parameters: int = 0
    flops: int = 0
    output_size: tuple[int, ...] = ()
    joined: bool = False


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


@torch.no_grad()
def record_layers(network: nn.Module, example: Tensor) -> list[Layer]:
    """Run one forward pass in inference mode and return the layers it executes, in order.

    Args:
        network: Any module that maps a batch of images to a tensor; its modes and gradients are restored afterwards.
        example: Images, shape (1, channels, height, width), on the network's device, which may be `meta`.
    """
    training = {module: module.training for module in network.modules()}
    trainable = [parameter for parameter in network.parameters() if parameter.requires_grad]
    try:
        # the FLOP counter hooks into gradients even if none are computed
        return _Recorder(network.eval().requires_grad_(requires_grad=False)).record(example)
    finally:
        for module, mode in training.items():
            module.training = mode
        for parameter in trainable:
            parameter.requires_grad_()


@dataclass
class _Recorder(TorchFunctionMode):
    """Records one forward pass: leaf modules by module hooks, everything else by a torch function mode."""

    network: nn.Module
    layers: list[Layer] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self.names = {module: name for name, module in self.network.named_modules()}
        self.owner_of: dict[int, str] = {}
        for name, parameter in self.network.named_parameters():
            self.owner_of.setdefault(id(parameter), name)
        # compute the sizes before recording: this mode would record `numel` as a use of the parameter
        self.sizes = {name: parameter.numel() for name, parameter in self.network.named_parameters()}
        self.flops = FlopCounterMode(display=False)
        self.counted = 0
        self.path: list[str] = []  # the modules that are being called, outermost first
        self.in_leaf = 0
        self.early: list[str] = []  # parameters used before the first layer
        self.home: dict[str, int] = {}  # parameter -> layer that owns it
        self.joins: list[tuple[int, int]] = []  # layers first..last that must be in the same block
        self.producer: dict[int, int] = {}  # id of an output -> the layer that returned it
        self.alive: list[Any] = []  # keeps outputs alive, so that ids are not reused

    def record(self, example: Tensor) -> list[Layer]:
        with ExitStack() as stack:
            for module in self.network.modules():
                stack.callback(module.register_forward_pre_hook(self._enter).remove)
                stack.callback(module.register_forward_hook(self._leave, with_kwargs=True).remove)
            stack.enter_context(self.flops)
            stack.enter_context(self)
            self.network(example)
        if self.layers:
            self._add_flops_to_last()
        joined = {index for first, last in self.joins for index in range(first + 1, last + 1)}
        return [replace(layer, joined=layer.index in joined) for layer in self.layers]

    def _enter(self, module: nn.Module, _args: Any) -> None:
        self.path.append(self.names.get(module, ""))
        self.in_leaf += is_leaf(module)

    def _leave(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        name = self.path.pop()
        if not is_leaf(module):
            return
        self.in_leaf -= 1
        if self.in_leaf:
            return
        kind = module_kind(module)
        activates = kind == "activation" or any(module_kind(child) == "activation" for child in module.children())
        parameters = [self.owner_of[id(parameter)] for parameter in module.parameters()]
        self._add(name, type(module).__name__, kind, parameters, (args, kwargs), output, activates=activates)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        if self.in_leaf:
            return output
        function = getattr(func, "__name__", "")
        parameters = [self.owner_of[id(t)] for t in _tensors((args, kwargs)) if id(t) in self.owner_of]
        kind = function_kind(function, has_parameters=bool(parameters))
        if kind:
            caller = self.path[-1] if self.path else ""
            name = parameters[0].rpartition(".")[0] if parameters else f"{caller}.{function}".strip(".")
            self._add(name, function, kind, parameters, (args, kwargs), output, activates=kind == "activation")
        elif parameters and function != "__get__":  # reading `weight.shape` does not use the weight
            self._attach(parameters)
        return output

    def _add(
        self, name: str, type_: str, kind: Kind, parameters: list[str], inputs: Any, output: Any, *, activates: bool
    ) -> None:
        index = len(self.layers)
        own = self._claim(self.early + parameters, index)
        self.early.clear()
        if kind == "norm":
            self.joins.append((self._normalised_layer(inputs), index))
        sizes = [tuple(tensor.shape[1:]) for tensor in _tensors(output)]
        total = self.flops.get_total_flops()
        layer = Layer(
            index=index,
            name=name,
            type=type_,
            kind=kind,
            activates=activates,
            parameters=tuple(own),
            num_parameters=self._count(own),
            flops=total - self.counted,
            output_size=sizes[0] if sizes else (),
        )
        self.counted = total
        self.layers.append(layer)
        self.alive.append((inputs, output))
        for tensor in _tensors(output):
            self.producer[id(tensor)] = index

    def _claim(self, parameters: list[str], index: int) -> list[str]:
        """Assign each parameter to the first layer that uses it; a later layer that uses it is joined to that one."""
        own = []
        for parameter in dict.fromkeys(parameters):
            home = self.home.setdefault(parameter, index)
            if home == index:
                own.append(parameter)
            else:
                self.joins.append((home, index))
        return own

    def _attach(self, parameters: list[str]) -> None:
        """Assign parameters used outside of layers (class token, layer scale) to the previous weighted layer."""
        if not self.layers:
            self.early.extend(parameters)
            return
        last = len(self.layers) - 1
        home = self._last_weighted()
        own = self._claim(parameters, home)
        self.joins.append((home, last))
        layer = self.layers[home]
        names = tuple(dict.fromkeys(layer.parameters + tuple(own)))
        self.layers[home] = replace(layer, parameters=names, num_parameters=self._count(names))

    def _normalised_layer(self, inputs: Any) -> int:
        """Return the weighted layer whose output a norm receives, or else the last weighted layer executed."""
        for tensor in _tensors(inputs):
            index = self.producer.get(id(tensor))
            if index is not None and self.layers[index].parameters:
                return index
        return self._last_weighted()

    def _last_weighted(self) -> int:
        return next((layer.index for layer in reversed(self.layers) if layer.kind == "weighted"), 0)

    def _count(self, names: Any) -> int:
        return sum(self.sizes[name] for name in names)

    def _add_flops_to_last(self) -> None:
        rest = self.flops.get_total_flops() - self.counted
        self.layers[-1] = replace(self.layers[-1], flops=self.layers[-1].flops + rest)


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in torch.utils._pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]
