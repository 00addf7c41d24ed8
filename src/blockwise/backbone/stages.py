"""The staged backbone: a network cut into stages that run one after another from any boundary.

The network's torch.fx graph is cut at the boundaries of the partition. The output of the stages is compared with the
original network's, at another batch size, before they are used.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from blockwise.backbone.layers import function_kind
from blockwise.backbone.partition import Partition
from blockwise.backbone.tracing import trace
from blockwise.errors import InputError
from blockwise.fast.depthwise import replace_depthwise
from blockwise.fast.folding import CONVOLUTIONS, called, fold_norms
from blockwise.fast.inplace import allow_inplace, forbid_inplace
from blockwise.fast.strided import replace_strided

Activations = Mapping[str, Any]
"""The activations at a boundary: the values that later stages need, by name."""
Fuse = Callable[[fx.GraphModule], None]


class CannotStageError(RuntimeError):
    """The network cannot be cut into stages; it can still be trained as a single stage."""


class StagedBackbone(nn.Module):
    """A frozen network as a chain of stages; a block consists of one or more stages.

    Stages keep the network's parameter names. They are frozen: without gradients and in inference mode. A cell that
    trains a stage owns a copy of it and passes the copy to `run`.

    Attributes:
        stages: The unmodified stages, input side first; a cell copies those that it trains.
        frozen: The same stages, optimized for inference; see `freeze`.
        partition: The partition; its block edges are the boundaries.
        num_features: Length of the feature vector after the last stage.
        own_head: The layers of the architecture's own head, if they are in no block: a template for new ones.
        whole: True if the network could not be cut and is a single stage.
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
        self.own_head: nn.Module | None = None
        self.whole = len(stages) == 1 and len(partition.cuts) > 1
        self._inputs = list(inputs)
        self._outputs = list(outputs)
        # needed[i]: names of the inputs of stage i and all later stages
        self._needed = [{name for later in self._inputs[i:] for name in later} for i in range(len(stages) + 1)]
        self._result = self._outputs[-1][0]
        self.freeze()

    def freeze(self, dtype: torch.dtype = torch.float32, *, fuse: Fuse | None = None) -> None:
        """Rebuild the frozen stages from `stages`, which keep their norms for the cells that train them.

        Args:
            dtype: Type of the weights of convolutions and linear layers. Autocast to this type gives the same results;
                storing the weights in it avoids a cast in each step.
            fuse: Fuses the convolutions of a stage with what follows them, for one kind of device.
        """
        self.frozen = nn.ModuleList(_frozen(stage, dtype, fuse=fuse) for stage in self.stages)
        self.eval()

    def train(self, mode: bool = True) -> StagedBackbone:  # noqa: FBT001, FBT002 (torch's signature)
        """Stay in inference mode even if a trainer sets training mode, since the shared stages are frozen."""
        del mode
        return super().train(mode=False)

    def __len__(self) -> int:
        return len(self.stages)

    def enter(self, images: Tensor) -> Activations:
        """Return the activations at boundary 0: the images."""
        return {self._inputs[0][0]: images}

    def run(self, stage: int, activations: Activations, module: nn.Module | None = None) -> Activations:
        """Run a stage, or a cell's copy of it, and return the activations after it."""
        values = (self.frozen[stage] if module is None else module)(
            *(activations[name] for name in self._inputs[stage])
        )
        values = (values,) if isinstance(values, Tensor) else values  # an uncut network returns a tensor, not a tuple
        values_by_name = {**activations, **dict(zip(self._outputs[stage], values, strict=True))}
        needed = self._needed[stage + 1] if stage + 1 < len(self) else {self._result}
        return {name: value for name, value in values_by_name.items() if name in needed}

    @torch.no_grad()
    def per_image(self, images: Tensor) -> frozenset[str]:
        """Return the names of the activations that grow with the batch: one row per image, or the number of images.

        Args:
            images: At least two images, shape (batch, channels, height, width).

        Raises:
            InputError: One grows in another way, so that its images cannot be told apart.
        """
        sizes: list[dict[str, Any]] = []
        for batch in (images, images[:1]):
            reached = self.boundaries(batch, set(range(len(self) + 1)))
            sizes.append({name: _length(value) for _, activations in reached for name, value in activations.items()})
        grow = frozenset(name for name, length in sizes[0].items() if length != sizes[1][name])
        if odd := [name for name in grow if (sizes[0][name], sizes[1][name]) != (len(images), 1)]:
            raise InputError(
                f"data.folds cannot be combined with this network: {odd[0]}, which blocks pass on, does not have "
                "one row per image"
            )
        return grow

    def features(self, activations: Activations) -> Tensor:
        """Return the feature vectors, shape (batch, num_features), from the activations after the last stage.

        If the architecture's own head follows, return what this head reads.
        """
        features: Tensor = activations[self._result]
        return features if self.own_head is not None else pooled(features)

    def boundaries(self, images: Tensor, wanted: set[int]) -> Iterator[tuple[int, Activations]]:
        """Run the frozen stages once, up to the last wanted boundary, and yield the activations at each wanted one.

        Args:
            images: Normalised images, shape (batch, channels, height, width).
            wanted: Boundaries, from 0 (the pixels) to the number of stages (the features).
        """
        yield from self.onward(0, self.enter(images), wanted)

    def onward(self, start: int, activations: Activations, wanted: set[int]) -> Iterator[tuple[int, Activations]]:
        """Like `boundaries`, but continue from the activations at boundary `start`."""
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


def bytes_of(values: Iterable[Any]) -> int:
    """Return the memory of the tensors among some values; sizes and numbers take none."""
    return sum(value.numel() * value.element_size() for value in values if isinstance(value, Tensor))


def rows_of(activations: Activations, rows: Tensor, per_image: Collection[str]) -> Activations:
    """Return the activations of some images of a batch.

    Args:
        activations: The activations of the batch.
        rows: The indices of the images, shape (images,).
        per_image: The names of the activations that grow with the batch, see `StagedBackbone.per_image`.
    """
    return {name: _rows(value, rows) if name in per_image else value for name, value in activations.items()}


def _rows(value: Any, rows: Tensor) -> Any:
    if isinstance(value, Tensor):
        return value[rows]
    # a network may also read the number of images, or the shape of a tensor
    return torch.Size((len(rows), *value[1:])) if isinstance(value, torch.Size) else len(rows)


def _length(value: Any) -> Any:
    shape = value.shape if isinstance(value, Tensor) else value
    return (shape[0] if shape else 0) if isinstance(shape, torch.Size) else shape


def pooled(features: Tensor) -> Tensor:
    """Return feature vectors, shape (batch, features): the mean over the positions of a map or over tokens."""
    return features.mean((2, 3)) if features.ndim == 4 else features.mean(1) if features.ndim == 3 else features


def stage_backbone(network: nn.Module, partition: Partition, example: Tensor) -> StagedBackbone:
    """Cut a network at the edges of a partition's blocks.

    Args:
        network: Maps images to features. The result takes it over: in-place operations are replaced, and the network is
            frozen and set to inference mode.
        partition: The partition, made from the recorded layers of this network.
        example: At least two images, shape (batch, channels, height, width), for tracing and for the comparison.

    Raises:
        CannotStageError: The forward pass cannot be traced, or the traced network gives a different output.
    """
    network.eval()
    forbid_inplace(network)
    if len(partition.cuts) == 1 and not partition.head:
        return whole_backbone(network, partition, example)
    # one image more than traced with, which reveals a batch size that is hard-coded in the graph
    check = torch.cat([example, example[:1]])
    try:
        staged = _split(network, trace(network, example), partition)
        _check_stages(network, staged, check)
    except CannotStageError:
        raise
    except Exception as error:
        raise CannotStageError(f"{type(error).__name__}: {error}") from error
    return staged


def _frozen(stage: nn.Module, dtype: torch.dtype, *, fuse: Fuse | None) -> nn.Module:
    if not isinstance(stage, fx.GraphModule):  # a whole network
        return stage
    folded = fold_norms(stage)
    if dtype != torch.float32:
        for node in folded.graph.nodes:
            module = called(folded, node)
            # only modules that the graph calls directly; copy them, since unfolded ones are shared with the stage
            if type(module) in (*CONVOLUTIONS, nn.Linear):
                folded.set_submodule(node.target, copy.deepcopy(module).to(dtype))
    if fuse is not None:
        fuse(folded)
    return folded


@torch.no_grad()
def _check_stages(network: nn.Module, staged: StagedBackbone, images: Tensor) -> None:
    """Compare the stages with the network, and note the number of features.

    Folding norms changes the last bits, and some networks, above all with random weights, amplify them. So if the
    outputs differ, they are compared again in double precision.

    Raises:
        CannotStageError: The outputs differ.
    """
    expected, actual = pooled(network(images)), _with_own_head(staged, images)
    staged.num_features = actual.shape[1]
    if _agree(expected, actual, 1e-5):
        return
    exact = copy.deepcopy(staged).double()
    exact.freeze()
    expected = pooled(copy.deepcopy(network).double()(images.double()))
    if not _agree(expected, _with_own_head(exact, images.double()), 1e-7):
        raise CannotStageError("the traced network and the original give different outputs")


def _with_own_head(staged: StagedBackbone, images: Tensor) -> Tensor:
    features = staged(images)
    return features if staged.own_head is None else pooled(staged.own_head(features)[0])


def _agree(expected: Tensor, actual: Tensor, tolerance: float) -> bool:
    """Return whether two outputs agree up to rounding.

    The tolerance is relative to the largest value, since networks with random weights have outputs of any magnitude.
    """
    scale = expected.abs().max()
    return bool(torch.allclose(expected, actual, rtol=10 * tolerance, atol=float(tolerance * scale), equal_nan=True))


def whole_backbone(network: nn.Module, partition: Partition, example: Tensor) -> StagedBackbone:
    """Wrap a network that cannot be cut as a single stage, of which a cell trains some layers."""
    staged = StagedBackbone([network], [("images",)], [("features",)], partition)
    with torch.no_grad():
        staged.num_features = staged(example).shape[1]
    return staged


def _split(network: nn.Module, graph: fx.Graph, partition: Partition) -> StagedBackbone:
    stage_of = _assign(network, graph, partition)
    result = next(node for node in graph.nodes if node.op == "output").args[0]
    if not isinstance(result, fx.Node):
        raise CannotStageError("the network does not return a single tensor")
    modules, inputs, outputs = [], [], []
    for stage in range(len(partition.cuts) + bool(partition.head)):
        nodes = [node for node in graph.nodes if stage_of.get(node) == stage]
        # a dict removes duplicates and keeps the order
        consumed = dict.fromkeys(n for node in nodes for n in node.all_input_nodes if stage_of[n] < stage)
        returned = [n for n in nodes if n is result or any(stage_of.get(user, stage) > stage for user in n.users)]
        modules.append(_extract(network, nodes, list(consumed), returned))
        inputs.append(tuple(node.name for node in consumed))
        outputs.append(tuple(node.name for node in returned))
    if not partition.head:
        return StagedBackbone(modules, inputs, outputs, partition)
    staged = StagedBackbone(modules[:-1], inputs[:-1], outputs[:-1], partition)
    if outputs[-2] != inputs[-1] or len(inputs[-1]) != 1:
        raise CannotStageError("the architecture's own head reads several values")
    staged.own_head = modules[-1].requires_grad_(requires_grad=False).eval()
    return staged


def _assign(network: nn.Module, graph: fx.Graph, partition: Partition) -> dict[fx.Node, int]:
    """Map each node to its stage (-1 for the images) by matching the graph's calls with the recorded layers."""
    cuts = {*partition.cuts, len(partition.layers)} - {0}
    layers = iter((*partition.layers, *partition.head))
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
    # a parameter, and what is computed from parameters alone, is read and computed where it is used
    dependent = _dependent_on_images(graph)
    for node in reversed(graph.nodes):
        users = [stage_of[user] for user in node.users if user in stage_of]
        if users and node in stage_of and node not in dependent and not _is_layer(network, node):
            stage_of[node] = min(users)
    return stage_of


def _dependent_on_images(graph: fx.Graph) -> set[fx.Node]:
    """Return the nodes whose values depend on the images, and not only on their shape."""
    dependent: set[fx.Node] = set()
    for node in graph.nodes:
        read = (source for source in node.all_input_nodes if source.meta.get("tensor", True))
        if node.op == "placeholder" or any(source in dependent for source in read):
            dependent.add(node)
    return dependent


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
    network: nn.Module, nodes: Sequence[fx.Node], inputs: Sequence[fx.Node], outputs: Sequence[fx.Node]
) -> fx.GraphModule:
    """Make a module from some nodes of a graph; it maps the values `inputs` to a tuple of the values `outputs`."""
    graph = fx.Graph()
    copies = {node: graph.placeholder(node.name) for node in inputs}
    for node in nodes:
        copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(tuple(copies[node] for node in outputs))
    stage = fx.GraphModule(network, graph)
    replace_depthwise(stage)
    replace_strided(stage)
    allow_inplace(stage)
    return stage
