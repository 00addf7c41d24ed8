"""Cut a network into blocks: record its layers, and let the partitioner of a config divide them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from blockwise.backbone.layers import record_layers
from blockwise.backbone.partition import Partition, partition_network
from blockwise.errors import InputError, check_memory, first_line
from blockwise.io.targets import instantiate


def cut(network: nn.Module, size: int, partition: Mapping[str, Any], model: Mapping[str, Any]) -> Partition:
    """Cut a network into blocks.

    Args:
        network: The network without its classifier.
        size: Side of its input images in pixels.
        partition: Settings of the partitioner.
        model: Settings of the model: `name`, and `head` and `options` if there are any.

    Raises:
        InputError: The images are too small for the network, or the partitioner's options do not fit it.
    """
    device = next((parameter.device for parameter in network.parameters()), torch.device("cpu"))
    try:
        layers = record_layers(network, torch.zeros(1, 3, size, size, device=device))
    except Exception as error:  # networks raise whatever they like
        check_memory(error, f"data.image_size={size}")
        reason = first_line(error)
        if options := model.get("options"):
            raise InputError(f"model.options={options}: with them, {model['name']} does not run ({reason})") from error
        raise InputError(
            f"data.image_size={size} does not fit {model['name']} ({reason}): "
            "choose another size, or null for the model's default"
        ) from error
    return partition_network(instantiate("partition", partition), layers, network, model.get("head") or "linear")
