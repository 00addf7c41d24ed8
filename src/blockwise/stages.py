"""Network + partition -> the staged backbone: cut into stages that run one by one from any boundary.

The cut is made on a torch.fx graph. The stock tracer stops where a forward pass asks a tensor for its shape and
branches on the answer; `_ExampleTracer` runs every operation on an example while it traces and answers from that,
so that almost every architecture can be cut. What was cut is run against the original on another batch size before
it is used.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from blockwise.depthwise import replace_depthwise
from blockwise.folding import CONVOLUTIONS, called, fold_norms
from blockwise.fusion import fuse_convolutions
from blockwise.inplace import allow_inplace, forbid_inplace
from blockwise.layers import function_kind, is_leaf
from blockwise.partition import Partition

Live = Mapping[str, Any]
"""What is live at a boundary: the values that later stages still need, by name."""


class CannotStageError(RuntimeError):
    """The network cannot be cut into stages; it can still be trained whole."""


class StagedBackbone(nn.Module):
    """A frozen network as a chain of stages; a block is one stage or more.

    Stage modules keep the network's own parameter names. They are frozen: no gradients, inference mode. A cell
    that trains a stage owns a copy of it and passes that to `run`.

    Attributes:
        stages: The stages as the network has them, input side first; what a cell copies.
        frozen: The stages as they run while frozen; see `freeze`.
        partition: The partition whose edges are the boundaries.
        num_features: Length of the feature vector behind the last stage.
        whole: True if the network could not be cut: one stage, whatever the partition.
    """

    def __init__(
        self,
        stages: Sequence[nn.Module],
        inputs: Sequence[tuple[str, ...]],
        outputs: Sequence[tuple[str, ...]],
        partition: Partition,
    ) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages).requires_grad_(requires_grad=False)
        self.partition = partition
        self.num_features = 0
        self.whole = len(stages) == 1 and len(partition.cuts) > 1
        self._inputs = list(inputs)
        self._outputs = list(outputs)
        # needed[i]: what the stages from i on take in
        self._needed = [{name for later in self._inputs[i:] for name in later} for i in range(len(stages) + 1)]
        self._result = self._outputs[-1][0]
        self.freeze()

    def freeze(self, dtype: torch.dtype = torch.float32, *, fuse: bool = False) -> None:
        """Make what runs while a stage is frozen, from `stages`, which keep their norms for the cells that train them.

        Args:
            dtype: What the weights of convolutions and linear layers are stored in. Autocast to that type computes
                the same, but need not cast them anew each time.
            fuse: Run convolutions together with their activations; on a CPU only, see `fusion.can_fuse`.
        """
        self.frozen = nn.ModuleList(_frozen(stage, dtype, fuse=fuse) for stage in self.stages)
        self.eval()

    def train(self, mode: bool = True) -> StagedBackbone:  # noqa: FBT001, FBT002 (torch's signature)
        """Stay in inference mode, whatever a trainer asks for: shared stages are frozen."""
        del mode
        return super().train(mode=False)

    def __len__(self) -> int:
        return len(self.stages)

    def enter(self, images: Tensor) -> Live:
        """Return what is live at boundary 0."""
        return {self._inputs[0][0]: images}

    def run(self, stage: int, live: Live, module: nn.Module | None = None) -> Live:
        """Run stage number `stage`, or a cell's own copy of it, and return what is live behind it."""
        values = (self.frozen[stage] if module is None else module)(*(live[name] for name in self._inputs[stage]))
        values = (values,) if isinstance(values, Tensor) else values  # a whole network returns its features bare
        found = {**live, **dict(zip(self._outputs[stage], values, strict=True))}
        needed = self._needed[stage + 1] if stage + 1 < len(self) else {self._result}
        return {name: value for name, value in found.items() if name in needed}

    def features(self, live: Live) -> Tensor:
        """Return the feature vectors, shape (batch, num_features), from what is live behind the last stage."""
        features = live[self._result]
        return features.mean((2, 3)) if features.ndim == 4 else features

    def boundaries(self, images: Tensor, wanted: set[int]) -> Iterator[tuple[int, Live]]:
        """Run the frozen stages once, no further than needed, and yield what is live at each wanted boundary.

        Args:
            images: Normalised images, shape (batch, channels, height, width).
            wanted: Boundaries, 0 (the pixels) to the number of stages (the features).
        """
        yield from self.onward(0, self.enter(images), wanted)

    def onward(self, start: int, live: Live, wanted: set[int]) -> Iterator[tuple[int, Live]]:
        """Do what `boundaries` does, from what is live at boundary `start`."""
        for boundary in range(start, max(wanted, default=start - 1) + 1):
            if boundary > start:
                with torch.no_grad():
                    live = self.run(boundary - 1, live)
            if boundary in wanted:
                yield boundary, live

    def forward(self, images: Tensor) -> Tensor:
        """Return the frozen network's features, shape (batch, num_features)."""
        live = self.enter(images)
        for stage in range(len(self)):
            live = self.run(stage, live)
        return self.features(live)


def stage_backbone(network: nn.Module, partition: Partition, example: Tensor) -> StagedBackbone:
    """Cut a network at the edges of a partition's blocks.

    Args:
        network: Maps images to features; taken over by the result (made not in-place, frozen, in inference mode).
        partition: The partition, made from this network's recorded layers.
        example: A few images, shape (2 or more, channels, height, width), to trace and to check with.

    Raises:
        CannotStageError: The forward pass cannot be traced, or the traced network computes something else.
    """
    network.eval()
    forbid_inplace(network)
    if len(partition.cuts) == 1:
        return whole_backbone(network, partition, example)
    # one image more than it is traced with: a graph with the batch size baked in gives itself away
    check = torch.cat([example, example[:1]])
    try:
        graph = _trace(network, example)
        staged = _split(network, graph, partition)
        with torch.no_grad():
            expected, features = network(check), staged(check)
    except CannotStageError:
        raise
    except Exception as error:
        raise CannotStageError(f"{type(error).__name__}: {error}") from error
    if not _agree(staged.features({staged._result: expected}), features):
        raise CannotStageError("the traced network computes something else than the original")
    staged.num_features = features.shape[1]
    return staged


def _frozen(stage: nn.Module, dtype: torch.dtype, *, fuse: bool) -> nn.Module:
    if not isinstance(stage, fx.GraphModule):  # a whole network
        return stage
    folded = fold_norms(stage)
    if dtype != torch.float32:
        for node in folded.graph.nodes:
            module = called(folded, node)
            # what lies inside a larger leaf stays as it is; a copy, for what needed no folding is shared with the stage
            if type(module) in (*CONVOLUTIONS, nn.Linear):
                folded.set_submodule(node.target, copy.deepcopy(module).to(dtype))
    if fuse:
        fuse_convolutions(folded)
    return folded


def _agree(expected: Tensor, found: Tensor) -> bool:
    """Tell whether two outputs are the same up to rounding, measured against the largest of them.

    Single elements cannot be the measure: folding norms moves last bits, and networks without trained weights put out
    numbers of any size.
    """
    scale = expected.abs().max()
    return bool(torch.allclose(expected, found, rtol=1e-4, atol=float(1e-5 * scale), equal_nan=True))


def whole_backbone(network: nn.Module, partition: Partition, example: Tensor) -> StagedBackbone:
    """Wrap a network that cannot be cut: a single stage, of which a cell trains some layers."""
    staged = StagedBackbone([network], [("images",)], [("features",)], partition)
    with torch.no_grad():
        staged.num_features = staged(example).shape[1]
    return staged


class _ExampleProxy(fx.Proxy):
    """A traced value that knows its example: Python asks for a length, a number or a truth value and gets it."""

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
    """Runs every operation on an example while tracing, to answer questions about shapes."""

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
        if self._running:  # a leaf that calls its own children on the example
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
    """What is traced: calls the network with images alone, so that optional arguments keep their defaults."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images)


def _trace(network: nn.Module, example: Tensor) -> fx.Graph:
    root = _Root(network)
    graph = _ExampleTracer(example).trace(root)
    for name, value in vars(root).items():
        if isinstance(value, Tensor):  # constants that the forward pass made while it was traced
            network.register_buffer(name, value, persistent=False)
    for node in graph.nodes:
        if node.op in ("call_module", "get_attr"):
            node.target = node.target.removeprefix("network.")
        if node.target is operator.iadd:
            node.target = operator.add
        if node.kwargs.get("inplace"):
            node.kwargs = {**node.kwargs, "inplace": False}
    return graph


def _split(network: nn.Module, graph: fx.Graph, partition: Partition) -> StagedBackbone:
    stage_of = _assign(network, graph, partition)
    result = next(node for node in graph.nodes if node.op == "output").args[0]
    if not isinstance(result, fx.Node):
        raise CannotStageError("the network returns something else than one tensor")
    modules, inputs, outputs = [], [], []
    for stage in range(len(partition.cuts)):
        nodes = [node for node in graph.nodes if stage_of.get(node) == stage]
        # dicts keep the order in which values are made
        taken = dict.fromkeys(n for node in nodes for n in node.all_input_nodes if stage_of[n] < stage)
        given = [n for n in nodes if n is result or any(stage_of.get(user, stage) > stage for user in n.users)]
        modules.append(_extract(network, nodes, list(taken), given))
        inputs.append(tuple(node.name for node in taken))
        outputs.append(tuple(node.name for node in given))
    return StagedBackbone(modules, inputs, outputs, partition)


def _assign(network: nn.Module, graph: fx.Graph, partition: Partition) -> dict[fx.Node, int]:
    """Map each node to its stage, -1 for the images; graph and recorded layers are matched call by call."""
    cuts = set(partition.cuts) - {0}
    layers = iter(partition.layers)
    stage_of: dict[fx.Node, int] = {}
    stage = 0
    for node in graph.nodes:
        if node.op == "output":
            continue
        if _is_layer(network, node):
            layer = next(layers, None)
            if layer is None or (node.op == "call_module" and layer.name != node.target):
                raise CannotStageError(f"the trace calls {node.target} where the recorded forward pass did not")
            stage += layer.index in cuts
        stage_of[node] = -1 if node.op == "placeholder" else stage
    if next(layers, None) is not None:
        raise CannotStageError("the trace calls fewer layers than the recorded forward pass")
    for node in graph.nodes:
        if node.op == "get_attr":  # a parameter is read where it is used
            stage_of[node] = min((stage_of[user] for user in node.users), default=0)
    return stage_of


def _is_layer(network: nn.Module, node: fx.Node) -> bool:
    if node.op == "call_module":
        return True
    if node.op not in ("call_function", "call_method"):
        return False
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    weights = any(
        n.op == "get_attr" and isinstance(operator.attrgetter(str(n.target))(network), nn.Parameter)
        for n in node.all_input_nodes
    )
    return function_kind(name, has_parameters=weights) is not None


def _extract(
    network: nn.Module, nodes: Sequence[fx.Node], taken: Sequence[fx.Node], given: Sequence[fx.Node]
) -> fx.GraphModule:
    """Make a module of some nodes of a graph: the values `taken` in, a tuple of the values `given` out."""
    graph = fx.Graph()
    copies = {node: graph.placeholder(node.name) for node in taken}
    for node in nodes:
        copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(tuple(copies[node] for node in given))
    stage = fx.GraphModule(network, graph)
    replace_depthwise(stage)
    allow_inplace(stage)
    return stage
