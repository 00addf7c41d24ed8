"""Network + partition -> the staged backbone: cut into stages that run one by one from any boundary.

The cut is made on the network's torch.fx graph. Before the stages are used, their output is compared with the
original's, on another batch size.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from blockwise.backbone.layers import function_kind
from blockwise.backbone.partition import Partition
from blockwise.backbone.tracing import trace
from blockwise.fast.depthwise import replace_depthwise
from blockwise.fast.folding import CONVOLUTIONS, called, fold_norms
from blockwise.fast.fusion import fuse_convolutions
from blockwise.fast.inplace import allow_inplace, forbid_inplace

Activations = Mapping[str, Any]
"""The activations at a boundary: the values that later stages still need, by name."""


class CannotStageError(RuntimeError):
    """The network cannot be cut into stages; it can still be trained whole."""


class StagedBackbone(nn.Module):
    """A frozen network as a chain of stages; a block consists of one or more stages.

    Stage modules keep the network's own parameter names. They are frozen: no gradients, inference mode. A cell
    that trains a stage owns a copy of it and passes that to `run`.

    Attributes:
        stages: The stages as in the network, input side first; a cell copies the ones that it trains.
        frozen: The same stages, made fast for inference; see `freeze`.
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
        """Make the frozen stages anew from `stages`, which keep their norms for the cells that train them.

        Args:
            dtype: Type of the weights of convolutions and linear layers. Autocast to that type computes the same
                result; stored weights need no cast in each step.
            fuse: Run convolutions together with their activations; on a CPU only, see `fusion.can_fuse`.
        """
        self.frozen = nn.ModuleList(_frozen(stage, dtype, fuse=fuse) for stage in self.stages)
        self.eval()

    def train(self, mode: bool = True) -> StagedBackbone:  # noqa: FBT001, FBT002 (torch's signature)
        """Stay in inference mode, also when a trainer asks for training mode: shared stages are frozen."""
        del mode
        return super().train(mode=False)

    def __len__(self) -> int:
        return len(self.stages)

    def enter(self, images: Tensor) -> Activations:
        """Return the activations at boundary 0: the images."""
        return {self._inputs[0][0]: images}

    def run(self, stage: int, activations: Activations, module: nn.Module | None = None) -> Activations:
        """Run stage number `stage`, or a cell's copy of it, and return the activations behind it."""
        values = (self.frozen[stage] if module is None else module)(
            *(activations[name] for name in self._inputs[stage])
        )
        values = (values,) if isinstance(values, Tensor) else values  # a whole network returns its features bare
        values_by_name = {**activations, **dict(zip(self._outputs[stage], values, strict=True))}
        needed = self._needed[stage + 1] if stage + 1 < len(self) else {self._result}
        return {name: value for name, value in values_by_name.items() if name in needed}

    def features(self, activations: Activations) -> Tensor:
        """Return the feature vectors, shape (batch, num_features), from the activations behind the last stage."""
        features = activations[self._result]
        return features.mean((2, 3)) if features.ndim == 4 else features

    def boundaries(self, images: Tensor, wanted: set[int]) -> Iterator[tuple[int, Activations]]:
        """Run the frozen stages once, no further than needed, and yield the activations at each wanted boundary.

        Args:
            images: Normalised images, shape (batch, channels, height, width).
            wanted: Boundaries, 0 (the pixels) to the number of stages (the features).
        """
        yield from self.onward(0, self.enter(images), wanted)

    def onward(self, start: int, activations: Activations, wanted: set[int]) -> Iterator[tuple[int, Activations]]:
        """Do the same as `boundaries`, starting from the activations at boundary `start`."""
        for boundary in range(start, max(wanted, default=start - 1) + 1):
            if boundary > start:
                with torch.no_grad():
                    activations = self.run(boundary - 1, activations)
            if boundary in wanted:
                yield boundary, activations

    def forward(self, images: Tensor) -> Tensor:
        """Return the frozen network's features, shape (batch, num_features)."""
        activations = self.enter(images)
        for stage in range(len(self)):
            activations = self.run(stage, activations)
        return self.features(activations)


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
        graph = trace(network, example)
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


def _agree(expected: Tensor, actual: Tensor) -> bool:
    """Return whether two outputs are the same up to rounding, measured against the largest of them.

    Single elements cannot be the measure: folding norms moves last bits, and networks without trained weights put out
    numbers of any size.
    """
    scale = expected.abs().max()
    return bool(torch.allclose(expected, actual, rtol=1e-4, atol=float(1e-5 * scale), equal_nan=True))


def whole_backbone(network: nn.Module, partition: Partition, example: Tensor) -> StagedBackbone:
    """Wrap a network that cannot be cut: a single stage, of which a cell trains some layers."""
    staged = StagedBackbone([network], [("images",)], [("features",)], partition)
    with torch.no_grad():
        staged.num_features = staged(example).shape[1]
    return staged


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
