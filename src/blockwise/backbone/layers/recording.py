"""Record the layers that a network executes, in order, and the flow of data between them, in one forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from blockwise.backbone.layers.branches import with_branches
from blockwise.backbone.layers.dataflow import PRODUCTS, DataFlow, Step
from blockwise.backbone.layers.layer import Kind, Layer, function_kind, is_leaf, module_kind

# the images
IMAGES = 0


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
class _Carried:
    """What a tensor that does not depend on the images was made of."""

    parameters: dict[str, None] = field(default_factory=dict)
    layers: list[int] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.parameters or self.layers)


@dataclass
class _Recorder(TorchFunctionMode):
    """Records one forward pass: leaf modules by module hooks, everything else by a torch function mode."""

    network: nn.Module
    layers: list[Layer] = field(default_factory=list)
    flow: DataFlow = field(default_factory=DataFlow)

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
        self.early: dict[str, None] = {}  # parameters used before the first layer
        self.home: dict[str, int] = {}  # parameter -> layer that owns it
        self.joins: list[tuple[int, int]] = []  # layers first..last that must be in the same block
        self.revised: set[int] = set()  # layers that the first versions had in another block
        self.old_home: dict[str, int] = {}  # where the first versions had a parameter that is used outside of layers
        self.old_norm_home: dict[int, int] = {}
        self.pointwise: set[int] = set()
        self.products: list[int] = []  # steps that multiply two matrices that depend on the images
        self.value_of: dict[int, int] = {}  # id of a tensor -> value
        self.value_sizes: list[tuple[int, ...]] = []  # shape of each value without the batch dimension
        self.carried: dict[int, _Carried] = {}  # id of a tensor that does not depend on the images -> its origin
        self.alive: list[Any] = []  # keeps tensors alive, so that ids are not reused

    def record(self, example: Tensor) -> list[Layer]:
        self.value_of[id(example)] = IMAGES
        self.value_sizes.append(tuple(example.shape[1:]))
        with ExitStack() as stack:
            for module in self.network.modules():
                stack.callback(module.register_forward_pre_hook(self._enter).remove)
                stack.callback(module.register_forward_hook(self._leave, with_kwargs=True).remove)
            stack.enter_context(self.flops)
            stack.enter_context(self)
            output = self.network(example)
        if self.layers:
            self._add_flops_to_last()
        self.flow.results = frozenset(self._values(_tensors(output)))
        self._place_norms()
        joined = {index for first, last in self.joins for index in range(first + 1, last + 1)}
        layers = [
            replace(layer, joined=layer.index in joined, revised=layer.index in self.revised) for layer in self.layers
        ]
        return with_branches(layers, self.flow, self.value_sizes, self.pointwise, self.products)

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
        if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and set(module.kernel_size) == {1}):
            self.pointwise.add(len(self.layers))
        channels = _channels(module)
        self._add(name, type(module).__name__, kind, parameters, (args, kwargs), output, activates, channels)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        if self.in_leaf:
            return output
        function = getattr(func, "__name__", "")
        name = function.strip("_")
        parameters = [self.owner_of[id(t)] for t in _tensors((args, kwargs)) if id(t) in self.owner_of]
        kind = function_kind(function, has_parameters=bool(parameters))
        if kind:
            caller = self.path[-1] if self.path else ""
            path = parameters[0].rpartition(".")[0] if parameters else f"{caller}.{function}".strip(".")
            if name == "linear":
                self.pointwise.add(len(self.layers))
            shape = next((t.shape for t in _tensors((args, kwargs)) if id(t) in self.owner_of), (0,))
            channels = shape[1] if len(shape) > 1 else shape[0]
            self._add(path, function, kind, parameters, (args, kwargs), output, kind == "activation", channels)
        else:
            # a write changes its first argument
            made = args[0] if name == "setitem" else output
            self._flow(name, (args, kwargs), made, parameters)
        return output

    def _add(
        self,
        name: str,
        type_: str,
        kind: Kind,
        parameters: list[str],
        inputs: Any,
        output: Any,
        activates: bool,  # noqa: FBT001
        channels: int,
    ) -> None:
        index = len(self.layers)
        total = self.flops.get_total_flops()
        flops = total - self.counted
        self.counted = total
        if kind == "norm":
            self.old_norm_home[index] = self._normalised_layer(inputs)
        elif kind == "weighted" and not flops:
            kind = "scale"
            self.revised.add(index)
        sizes = [tuple(tensor.shape[1:]) for tensor in _tensors(output)]
        layer = Layer(
            index=index,
            name=name,
            type=type_,
            kind=kind,
            activates=activates,
            flops=flops,
            channels=channels,
            output_size=sizes[0] if sizes else (),
        )
        self.layers.append(layer)
        own = self._claim([*self.early, *parameters], index)
        self.early.clear()
        self._own(index, own)
        self._flow(type_.strip("_"), inputs, output, [], layer=index)

    def _flow(self, name: str, inputs: Any, output: Any, parameters: list[str], layer: int | None = None) -> None:
        """Record what a call reads and makes."""
        # `reshape_as` reads its second argument for the shape alone
        read, made = _tensors(inputs)[: 1 if name.endswith("_as") else None], _tensors(output)
        self.alive.append((inputs, made))
        values = self._values(read)
        if not made:  # asking for a shape does not use the tensor
            return
        carried = self._origin(read, parameters)
        if not values:
            self._carry(carried, made, layer)
            return
        if carried:
            self._use(carried, values, layer)
        if name in PRODUCTS and len(values) > 1:
            self.products.append(len(self.flow.steps))
        passed_on = all(any(tensor is other for other in read) for tensor in made)
        if passed_on and layer is not None and self.layers[layer].kind == "other":
            return  # dropout, identity
        for tensor in made:
            self.value_of[id(tensor)] = len(self.value_sizes)
            self.value_sizes.append(tuple(tensor.shape[1:]))
        self.flow.add(Step(name, values, self._values(made), layer))

    def _values(self, tensors: Iterable[Tensor]) -> tuple[int, ...]:
        return tuple(self.value_of[id(tensor)] for tensor in tensors if id(tensor) in self.value_of)

    def _origin(self, read: Iterable[Tensor], parameters: list[str]) -> _Carried:
        """Return the parameters, and the layers that depend on no image, from which a call reads."""
        for parameter in parameters:
            self.old_home.setdefault(parameter, self._last_weighted() if self.layers else -1)
        origin = _Carried(dict.fromkeys(parameters))
        for tensor in read:
            if (before := self.carried.get(id(tensor))) is not None:
                origin.parameters |= before.parameters
                origin.layers += before.layers
        return origin

    def _carry(self, carried: _Carried, made: Iterable[Tensor], layer: int | None) -> None:
        """Remember of what tensors that do not depend on the images were made."""
        if layer is not None:
            carried = _Carried(layers=[*carried.layers, layer], parameters=carried.parameters)
        for tensor in made:
            self.carried[id(tensor)] = carried

    def _use(self, carried: _Carried, values: tuple[int, ...], layer: int | None) -> None:
        """Assign parameters used outside of layers to the layer that reads them, or else to the layer that they follow.

        So a bias that is put together by hand belongs to its linear layer, and a class token or the scale of a residual
        branch to the layer behind which it is.
        """
        home = layer if layer is not None else self.flow.before(values, self._weighted())
        if home is None:
            if not self.layers:
                self.early |= carried.parameters
                return
            home = self._last_weighted()
        last = home if layer is not None else len(self.layers) - 1
        own = self._claim(list(carried.parameters), home)
        self._own(home, own)
        self.joins.append((min([home, *carried.layers]), max(home, last)))
        if carried.layers or any(self.old_home.get(name, home) != home for name in own):
            self.revised.add(home)

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

    def _own(self, index: int, parameters: list[str]) -> None:
        layer = self.layers[index]
        names = tuple(dict.fromkeys(layer.parameters + tuple(parameters)))
        self.layers[index] = replace(layer, parameters=names, num_parameters=sum(self.sizes[name] for name in names))

    def _place_norms(self) -> None:
        """Join each norm or scale to the layer that it normalises for.

        That is the weighted layer in front of it, if this one feeds nothing else; else the first one that reads it and
        nothing else; else the last one in front of it, as for the norm at the end of a vision transformer.
        """
        flow, weighted = self.flow, self._weighted()
        weightless = {layer.index for layer in self.layers if layer.kind in ("activation", "other")}
        for step in flow.steps:
            if step.layer is None or self.layers[step.layer].kind not in ("norm", "scale"):
                continue
            index = step.layer
            behind = flow.behind(step, weightless)
            before = None if behind is None else behind.layer
            if before is not None and self.layers[before].kind in ("weighted", "norm", "scale"):
                self.joins.append((before, index))
                home = before
            elif (after := flow.first_reader(step, weighted)) is not None:
                self.joins.append((index, after))
                home = after
            else:
                upstream = flow.before(step.reads, weighted)
                home = self._last_weighted(index) if upstream is None else upstream
                self.joins.append((home, index))
            if home != self.old_norm_home.get(index):
                self.revised.add(index)

    def _normalised_layer(self, inputs: Any) -> int:
        """Return the layer to which the first versions joined a norm."""
        for value in self._values(_tensors(inputs)):
            index = self.flow.steps[self.flow.maker[value]].layer if value in self.flow.maker else None
            if index is not None and self.layers[index].parameters:
                return index
        return self._last_weighted()

    def _weighted(self) -> set[int]:
        return {layer.index for layer in self.layers if layer.kind == "weighted"}

    def _last_weighted(self, before: int | None = None) -> int:
        return next((layer.index for layer in reversed(self.layers[:before]) if layer.kind == "weighted"), 0)

    def _add_flops_to_last(self) -> None:
        rest = self.flops.get_total_flops() - self.counted
        self.layers[-1] = replace(self.layers[-1], flops=self.layers[-1].flops + rest)


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in torch.utils._pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


def _channels(module: nn.Module) -> int:
    """Return the number of channels that a module reads; 0 if it does not say."""
    names = ("in_features", "in_channels", "num_features", "num_channels", "normalized_shape")
    value = next((getattr(module, name) for name in names if hasattr(module, name)), 0)
    return int(value[-1] if isinstance(value, (tuple, list, torch.Size)) else value)
