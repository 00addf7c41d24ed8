"""Layers: what they are, in which order a network executes them, and how data flows between them."""

from blockwise.backbone.layers.layer import (
    CONTAINERS,
    Kind,
    Layer,
    function_kind,
    is_leaf,
    is_norm,
    module_kind,
    own_tensors,
)
from blockwise.backbone.layers.recording import record_layers

__all__ = [
    "CONTAINERS",
    "Kind",
    "Layer",
    "function_kind",
    "is_leaf",
    "is_norm",
    "module_kind",
    "own_tensors",
    "record_layers",
]
