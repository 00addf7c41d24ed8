"""Trace the forward pass of a network as a torch.fx graph.

The default tracer fails if a forward pass branches on the shape of a tensor. This one runs every operation on an
example while tracing, so that shapes have values. Almost every architecture can be traced this way.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn

from blockwise.backbone.layers import is_leaf


class _ExampleProxy(fx.Proxy):
    """A traced value with an example, from which Python gets lengths, numbers and truth values."""

    @property
    def example(self) -> Any:
        return self.tracer.examples[self.node]  # type: ignore[attr-defined]

    def __len__(self) -> int:
        return len(self.example)

    def __int__(self) -> int:
        return int(self.example)

    def __index__(self) -> int:
        return operator.index(self.example)

    def __float__(self) -> float:
        return float(self.example)


class _ExampleTracer(fx.Tracer):
    """Runs every operation on an example while tracing, so that the values of shapes are available."""

    def __init__(self, example: Tensor) -> None:
        super().__init__()
        self.examples: dict[fx.Node, Any] = {}
        self._input = example
        self._forward: Callable[..., Any] | None = None
        self._running = False

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:  # noqa: ARG002
        return is_leaf(m)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _ExampleProxy(node, self)

    def to_bool(self, obj: fx.Proxy) -> bool:
        return bool(self.examples[obj.node])

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        return iter([operator.getitem(obj, index) for index in range(len(self.examples[obj.node]))])

    def create_node(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **more: Any) -> fx.Node:
        node = super().create_node(kind, target, args, kwargs, *rest, **more)
        if kind != "output":
            self.examples[node] = self._run(node)
        return node

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if self._running:  # a leaf is running on the example and calls its children
            return forward(*args, **kwargs)
        self._forward = forward
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        return attr_val if self._running else super().getattr(attr, attr_val, parameter_proxy_cache)

    @torch.no_grad()
    def _run(self, node: fx.Node) -> Any:
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: self.examples[n])
        self._running = True
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
            self._running = False


class _Root(nn.Module):
    """Calls the network with images only, so that tracing keeps the defaults of optional arguments."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images)


def trace(network: nn.Module, example: Tensor) -> fx.Graph:
    """Return the graph of a network's forward pass on images like `example`, with one node per layer and function.

    Constants created in the forward pass become buffers of the network. In-place operations become out-of-place ones.

    Args:
        network: The network, in inference mode.
        example: Images, shape (batch, channels, height, width).
    """
    root = _Root(network)
    graph = _ExampleTracer(example).trace(root)
    for name, value in vars(root).items():
        if isinstance(value, Tensor):  # constants created in the forward pass
            network.register_buffer(name, value, persistent=False)
    for node in graph.nodes:
        if node.op in ("call_module", "get_attr"):
            node.target = node.target.removeprefix("network.")
        if node.target is operator.iadd:
            node.target = operator.add
        if node.kwargs.get("inplace"):
            node.kwargs = {**node.kwargs, "inplace": False}
    return graph
