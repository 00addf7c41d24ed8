"""Trace the forward pass of a network as a torch.fx graph.

The default tracer fails where a forward pass branches on the shape of a tensor, calls `len` or `int` on it, creates
tensors of its size, writes into it, or asks for its device. This one runs every operation on an example while tracing,
so that shapes have values, and takes every call of PyTorch's functions that a traced value is part of. Nearly every
architecture can be traced this way.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, fx, nn
from torch.fx import _symbolic_trace as symbolic_trace
from torch.fx.proxy import Attribute
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_any, tree_map

from blockwise.backbone.layers import is_leaf

# functions and methods that take sizes, and do not tell PyTorch's overrides if a size is a traced value
SIZED_FUNCTIONS = ("arange", "empty", "eye", "full", "linspace", "ones", "rand", "randn", "zeros")
SIZED_METHODS = ("expand", "new_empty", "new_full", "new_ones", "new_zeros", "repeat", "reshape", "tile", "view")
AUTOCAST = torch.amp.autocast_mode.autocast
# in-place methods without a twin that is not
FILLS: dict[str, Callable[..., Tensor]] = {"zero_": torch.zeros_like, "fill_": torch.full_like}


class _ExampleProxy(fx.Proxy):
    """A traced value with an example, from which Python gets lengths, numbers and truth values."""

    whole: tuple[_ExampleProxy, Any] | None = None  # the value and the index of which this is an item

    @property
    def example(self) -> Any:
        return self.tracer.examples[self.node]  # type: ignore[attr-defined]

    def __getattr__(self, name: str) -> Any:
        return _ExampleAttribute(self, name)

    def __len__(self) -> int:
        return len(self.example)

    def __int__(self) -> int:
        return int(self.example)

    def __index__(self) -> int:
        return operator.index(self.example)

    def __float__(self) -> float:
        return float(self.example)

    def __getitem__(self, index: Any) -> Any:
        item: Any = self.tracer.create_proxy("call_function", operator.getitem, (self, index), {})
        item.whole = self, index
        return item

    def __setitem__(self, index: Any, value: Any) -> None:
        # what reads this value from now on reads the new one
        self.node = self.tracer.create_proxy("call_function", with_item, (self, index, value), {}).node


class _ExampleAttribute(Attribute, _ExampleProxy):
    """An attribute of a traced value, such as its shape or a method."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        plain = self.attr.removesuffix("_")
        target: Any = plain
        kind = "call_method"
        if self.attr in FILLS:
            kind, target = "call_function", FILLS[self.attr]
        elif self.attr.startswith("__") or plain == self.attr or not hasattr(Tensor, plain):
            return super().__call__(*args, **kwargs)
        # out of place: activations are shared between cells
        self.root.node = self.tracer.create_proxy(kind, target, (self.root, *args), kwargs).node
        if (whole := getattr(self.root, "whole", None)) is not None:
            value, index = whole
            value[index] = self.root
        return self.root


def with_item(values: Tensor, index: Any, value: Any) -> Tensor:
    """Return a copy of a tensor with some of its elements replaced."""
    values = values.clone()
    values[index] = value
    return values


class InAutocast:
    """A function or method that runs under autocast, or outside of it, as the forward pass has it.

    Args:
        target: A function, or the name of a method.
        device_type: Type of device that the region is for.
        dtype: The lower precision.
        enabled: False switches autocast off.
    """

    def __init__(self, target: Any, device_type: str, dtype: torch.dtype, *, enabled: bool) -> None:
        self.target = target
        self.region = (device_type, dtype, enabled)
        self.__name__ = self.__qualname__ = target if isinstance(target, str) else target.__name__
        self.__module__ = __name__

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the target."""
        device_type, dtype, enabled = self.region
        device = next((arg.device.type for arg in args if isinstance(arg, Tensor)), device_type)
        function = getattr(args[0], self.target) if isinstance(self.target, str) else self.target
        with torch.autocast(device, dtype, enabled):
            return function(*args[isinstance(self.target, str) :], **kwargs)


class _CallsOnTracedValues(TorchFunctionMode):
    """Traces calls that PyTorch would answer itself, such as `torch.ones(x.shape[0])`."""

    def __init__(self, tracer: _ExampleTracer) -> None:
        super().__init__()
        self.tracer = tracer

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.tracer.running or not _has_proxies((args, kwargs)):
            return func(*args, **kwargs)
        if func is Tensor.__setitem__:  # a constant that is written to
            raise NotImplementedError("the forward pass writes a traced value into a constant")
        return fx.Proxy.__torch_function__(func, types, args, kwargs)


class _ExampleTracer(fx.Tracer):
    """Runs every operation on an example while tracing, so that the values of shapes are available."""

    proxy_buffer_attributes = True

    def __init__(self, example: Tensor) -> None:
        super().__init__()
        self.examples: dict[fx.Node, Any] = {}
        self.running = False
        self.regions: list[Any] = []  # the autocast regions that are open
        self._input = example
        self._forward: Callable[..., Any] | None = None

    def trace(self, root: nn.Module | Callable[..., Any], concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        with ExitStack() as stack:
            # functions that others have marked as not to be traced are traced, as the recorder of layers records them
            for marked in ("_wrapped_fns_to_patch", "_wrapped_methods_to_patch"):
                stack.enter_context(patch.object(symbolic_trace, marked, type(getattr(symbolic_trace, marked))()))
            stack.enter_context(_recorded_autocast(self))
            for owner, kind, names in (
                (torch, "call_function", SIZED_FUNCTIONS),
                (Tensor, "call_method", SIZED_METHODS),
            ):
                for name in names:
                    stack.enter_context(patch.object(owner, name, self._traced(kind, getattr(owner, name))))
            stack.enter_context(_CallsOnTracedValues(self))
            return super().trace(root, concrete_args)

    def _traced(self, kind: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            if self.running or not _has_proxies((args, kwargs)):
                return function(*args, **kwargs)
            target = function if kind == "call_function" else function.__name__
            return self.create_proxy(kind, target, args, kwargs)

        return call

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:  # noqa: ARG002
        return is_leaf(m)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _ExampleProxy(node, self)

    def to_bool(self, obj: fx.Proxy) -> bool:
        return bool(self.examples[obj.node])

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        return iter([operator.getitem(obj, index) for index in range(len(self.examples[obj.node]))])

    def create_node(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **more: Any) -> fx.Node:
        if self.regions and kind == "call_module":
            raise NotImplementedError(f"{target} is called in an autocast region")
        if self.regions and kind in ("call_function", "call_method"):
            kind, target = "call_function", InAutocast(target, **self.regions[-1])
        node = super().create_node(kind, target, args, kwargs, *rest, **more)
        if kind != "output":
            self.examples[node] = self._run(node)
        return node

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if self.running:  # a leaf is running on the example and calls its children
            return forward(*args, **kwargs)
        self._forward = forward
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        return attr_val if self.running else super().getattr(attr, attr_val, parameter_proxy_cache)

    @torch.no_grad()
    def _run(self, node: fx.Node) -> Any:
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: self.examples[n])
        self.running = True
        try:
            if node.op == "placeholder":
                return self._input
            if node.op == "get_attr":
                return operator.attrgetter(str(node.target))(self.root)
            if node.op == "call_module" and self._forward is not None:
                return self._forward(*args, **kwargs)
            if node.op == "call_method":
                return getattr(args[0], str(node.target))(*args[1:], **kwargs)
            return node.target(*args, **kwargs)  # type: ignore[operator]
        finally:
            self.running = False


@contextmanager
def _recorded_autocast(tracer: _ExampleTracer) -> Iterator[None]:
    """Tell the tracer which autocast regions are open; torch.fx does not record them."""
    make, enter, leave = AUTOCAST.__init__, AUTOCAST.__enter__, AUTOCAST.__exit__

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        args, kwargs = tree_map(lambda v: v.example if isinstance(v, _ExampleProxy) else v, (args, kwargs))
        make(self, *args, **kwargs)

    def enter_region(self: Any) -> Any:
        if not tracer.running:
            tracer.regions.append({"device_type": self.device, "dtype": self.fast_dtype, "enabled": self._enabled})
        return enter(self)

    def leave_region(self: Any, *reason: Any) -> Any:
        if not tracer.running:
            tracer.regions.pop()
        return leave(self, *reason)

    with patch.multiple(AUTOCAST, __init__=init, __enter__=enter_region, __exit__=leave_region):
        yield


def _has_proxies(tree: Any) -> bool:
    return tree_any(lambda leaf: isinstance(leaf, fx.Proxy), tree)


class _Root(nn.Module):
    """Calls the network with images only, so that tracing keeps the defaults of optional arguments."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images)


def trace(network: nn.Module, example: Tensor) -> fx.Graph:
    """Return the graph of a network's forward pass on images like `example`, with one node per layer and function.

    Constants of the forward pass become buffers of the network. In-place operations become out-of-place ones. The
    `meta` of a node says under `tensor` whether its value is a tensor.

    Args:
        network: The network, in inference mode.
        example: Images, shape (batch, channels, height, width).
    """
    root, tracer = _Root(network), _ExampleTracer(example)
    graph = tracer.trace(root)
    buffers = {id(buffer) for buffer in network.buffers()}
    for node in list(graph.nodes):
        node.meta["tensor"] = isinstance(tracer.examples.get(node), Tensor)
        if node.op == "get_attr":
            value = operator.attrgetter(node.target)(root)
            if isinstance(value, Tensor) and not isinstance(value, nn.Parameter) and id(value) not in buffers:
                # a constant, which as a buffer moves to another device with the network
                node.target = f"network.constant_{node.name}"
                network.register_buffer(f"constant_{node.name}", value, persistent=False)
        if node.op in ("call_module", "get_attr"):
            node.target = node.target.removeprefix("network.")
        if node.target is operator.iadd:
            node.target = operator.add
        if node.kwargs.get("inplace"):
            node.kwargs = {**node.kwargs, "inplace": False}
        if (device := node.kwargs.get("device")) is not None and not isinstance(device, fx.Node):
            _follow_images(graph, node)
    return graph


def _follow_images(graph: fx.Graph, node: fx.Node) -> None:
    """Let a node create its tensor on the device of the images instead of that of the trace."""
    images = next(iter(graph.nodes))
    with graph.inserting_before(node):
        device = graph.call_function(getattr, (images, "device"))
    node.kwargs = {**node.kwargs, "device": device}
