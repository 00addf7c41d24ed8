"""New heads: linear, an MLP, or the architecture's own layers behind its features."""

from __future__ import annotations

import copy
import re
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from blockwise.backbone.load import HeadKind
from blockwise.backbone.stages import StagedBackbone, pooled

# names of the tensors of a new head among the trained ones of a cell
HEAD = re.compile(r"head\.((?:(?:hidden|last)\.)?(?:weight|bias)|body\..+)")


class OwnHead(nn.Module):
    """The architecture's own head, with new weights and a new last layer.

    Args:
        body: The layers of the head in front of its last one.
        num_features: Length of the feature vector that the body returns.
        num_classes: Number of classes.
    """

    def __init__(self, body: nn.Module, num_features: int, num_classes: int) -> None:
        super().__init__()
        self.body = copy.deepcopy(body).requires_grad_()
        for module in self.body.modules():
            if callable(reset := getattr(module, "reset_parameters", None)):
                reset()
        self.last = nn.Linear(num_features, num_classes)

    def forward(self, activations: Tensor) -> Tensor:
        """Return logits, shape (batch, classes), from what the backbone returns."""
        (features,) = self.body(activations)
        with torch.autocast(activations.device.type, enabled=False):
            return self.last(pooled(features).float())


def new_head(backbone: StagedBackbone, num_classes: int, kind: HeadKind = "linear", seed: int = 0) -> nn.Module:
    """Return a new head; all cells with the same seed start with the same weights.

    Args:
        backbone: The backbone, which has the layers of its own head.
        num_classes: Number of classes.
        kind: `linear`; `mlp`, with one hidden layer as wide as the features; or `own`, which is linear where the
            architecture has no layers with weights between its features and its classifier.
        seed: Seed of the weights.
    """
    width = backbone.num_features
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        if kind == "own" and backbone.own_head is not None:
            return OwnHead(backbone.own_head, width, num_classes)
        return (_mlp if kind == "mlp" else nn.Linear)(width, num_classes)


def _mlp(width: int, num_classes: int) -> nn.Module:
    parts = OrderedDict(hidden=nn.Linear(width, width), act=nn.GELU(), last=nn.Linear(width, num_classes))
    return nn.Sequential(parts)


def logits(head: nn.Module, features: Tensor) -> Tensor:
    """Return logits, shape (batch, classes), in float32; of an own head, only the last layer runs in full precision."""
    full = nullcontext() if isinstance(head, OwnHead) else torch.autocast(features.device.type, enabled=False)
    with full:
        return head(features if isinstance(head, OwnHead) else features.float())


def trained_head(state: Mapping[str, Tensor]) -> tuple[nn.Module, dict[str, Tensor]]:
    """Return the head of a trained cell, and the tensors that belong to the network, by the network's names.

    Args:
        state: What `CellNetwork.trained_state` returned.

    Raises:
        KeyError: Tensors are missing.
        IndexError: A tensor has another rank.
        RuntimeError: Tensors do not fit each other.
    """
    # a network may have a part named `head` too
    own = {name: match[1] for name in state if (match := HEAD.fullmatch(name))}
    rest: dict[str, Any] = {key: state[name] for name, key in own.items() if not key.startswith("body.")}
    trained = {name: tensor for name, tensor in state.items() if name not in own}
    body = {key.removeprefix("body."): state[name] for name, key in own.items() if key.startswith("body.")}
    if body:
        rest = {key.removeprefix("last."): tensor for key, tensor in rest.items()}
    make, last = (_mlp, "last.weight") if "hidden.weight" in rest else (nn.Linear, "weight")
    num_classes, width = rest[last].shape[0], rest[last].shape[1]
    head = make(width, num_classes)
    head.load_state_dict(rest)
    return head, {**trained, **body}
