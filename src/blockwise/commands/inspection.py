"""Show the partition of a model as a table or as JSON, without downloading its weights."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from omegaconf import DictConfig
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from blockwise.analysis.sweep_table import print_table
from blockwise.backbone.cut import cut
from blockwise.backbone.layers import Layer
from blockwise.backbone.load import classifier_names, describe_backbone
from blockwise.backbone.partition import Partition, split_head
from blockwise.backbone.stages import pooled
from blockwise.config.checks import check_config
from blockwise.config.compose import compose_config, plain
from blockwise.config.model_names import model_overrides


def inspect_model(model: str, overrides: list[str]) -> dict[str, Any]:
    """Return the partition of a model as plain data.

    Args:
        model: A name under `conf/model/`, a timm model, or a torchvision model (`torchvision:resnet18` if timm has the
            same name).
        overrides: Settings as on the command line, such as `partition=window` and `partition.length=4`.

    Raises:
        InputError: The model is unknown, or the options do not fit it.
    """
    cfg = compose_config([*model_overrides(model), *overrides])
    check_config(plain(cfg))
    network, example = describe_backbone(cfg.model, cfg.data.image_size)
    partition = cut(network, example.shape[-1], cfg.partition, cfg.model)
    layers = [*partition.layers, *partition.head]
    return {
        "model": cfg.model.name,
        "image_size": example.shape[-1],
        "partition": partition.name,
        "reason": partition.reason,
        "num_blocks": len(partition),
        "head": _head(cfg, network, layers, example),
        "layers": len(layers),
        "parameters": sum(layer.num_parameters for layer in layers),
        "flops": sum(layer.flops for layer in layers),
        "blocks": [_block(partition, index) for index in range(len(partition))],
    }


def number_of_blocks(cfg: DictConfig) -> int:
    """Return the number of blocks of a config's backbone, without downloading weights."""
    network, example = describe_backbone(cfg.model, cfg.data.image_size)
    return len(cut(network, example.shape[-1], cfg.partition, cfg.model))


def print_inspection(found: dict[str, Any], console: Console, *, as_json: bool) -> None:
    """Print what `inspect_model` returned."""
    if as_json:
        print(json.dumps(found, indent=2))
        return
    table = Table(
        title=_title(found),
        caption="{layers} layers, {parameters:,} parameters, {flops:,} FLOPs per image".format_map(found)
        + f"\n{_about_head(found['head'])}",
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        collapse_padding=True,
        pad_edge=False,
    )
    for heading in ("block", "layers"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("first and last layer", overflow="fold")
    for heading in ("parameters", "MFLOPs", "output", "quarter"):
        table.add_column(heading, justify="right", no_wrap=True)
    for block in found["blocks"]:
        table.add_row(
            str(block["block"]),
            f"{block['layers'][0]}-{block['layers'][1]}",
            f"{block['first_layer']}\n{block['last_layer']}",
            f"{block['parameters']:,}",
            f"{block['flops'] / 1e6:,.1f}",
            "x".join(map(str, block["output_size"])),
            str(block["quarter"]),
        )
    print_table(console, table)


def _head(cfg: DictConfig, network: nn.Module, layers: Sequence[Layer], example: Tensor) -> dict[str, Any]:
    """Return what the new head replaces, and which layers in front of it are the architecture's own head."""
    with torch.no_grad():
        features = pooled(network(example)).shape[1]
    own = [layer.name for layer in layers[split_head(layers) :] if layer.parameters]
    replaced = list(classifier_names(cfg.model, cfg.data.image_size))
    return {"kind": cfg.model.head, "features": features, "replaces": replaced, "own_layers": own}


def _title(found: Mapping[str, Any]) -> str:
    reason = f" ({found['reason']})" if found["reason"] else ""
    return "{model} at {image_size} px, partition {partition}: {num_blocks} blocks".format_map(found) + reason


def _about_head(head: Mapping[str, Any]) -> str:
    """Return what belongs to the head, in one sentence."""
    replaced = f"in place of {', '.join(head['replaces'])}" if head["replaces"] else ""
    text = f"new head ({head['kind']}) on {head['features']:,} features {replaced}".rstrip()
    if not head["own_layers"]:
        return text
    names = ", ".join(head["own_layers"])
    return (
        f"{text}, and new weights for {names}"
        if head["kind"] == "own"
        else f"{text}; model.head=own also renews {names}"
    )


def _block(partition: Partition, index: int) -> dict[str, Any]:
    layers = partition.layers_of(index)
    return {
        "block": index,
        "layers": [layers[0].index, layers[-1].index],
        "weighted_layers": sum(layer.kind == "weighted" for layer in layers),
        "first_layer": layers[0].name,
        "last_layer": layers[-1].name,
        "parameters": sum(layer.num_parameters for layer in layers),
        "flops": sum(layer.flops for layer in layers),
        "output_size": list(layers[-1].output_size),
        "quarter": partition.quarter(index),
    }
