"""Show the partition of a model as a table or as JSON, without downloading its weights."""

from __future__ import annotations

import json
from typing import Any

import hydra
from omegaconf import DictConfig
from rich import box
from rich.console import Console
from rich.table import Table
from torch import nn

from blockwise.analysis.sweep_table import print_table
from blockwise.backbone.layers import Layer, record_layers
from blockwise.backbone.load import describe_backbone
from blockwise.backbone.partition import BlockPartitioner, Partition, SegmentPartitioner
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
    layers = record_layers(network, example)
    partition: Partition = _partitioner(cfg, overrides, layers, network)(layers, network)
    return {
        "model": cfg.model.name,
        "image_size": example.shape[-1],
        "partition": partition.name,
        "num_blocks": len(partition),
        "layers": len(layers),
        "parameters": sum(layer.num_parameters for layer in layers),
        "flops": sum(layer.flops for layer in layers),
        "blocks": [_block(partition, index) for index in range(len(partition))],
    }


def number_of_blocks(cfg: DictConfig) -> int:
    """Return the number of blocks of a config's backbone, without downloading weights."""
    network, example = describe_backbone(cfg.model, cfg.data.image_size)
    return len(hydra.utils.instantiate(cfg.partition)(record_layers(network, example), network))


def print_inspection(found: dict[str, Any], console: Console, *, as_json: bool) -> None:
    """Print what `inspect_model` returned."""
    if as_json:
        print(json.dumps(found, indent=2))
        return
    table = Table(
        title="{model} at {image_size} px, partition {partition}: {num_blocks} blocks".format_map(found),
        caption="{layers} layers, {parameters:,} parameters, {flops:,} FLOPs per image".format_map(found),
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


def _partitioner(cfg: DictConfig, overrides: list[str], layers: list[Layer], network: nn.Module) -> BlockPartitioner:
    """Return the config's partitioner; the default one never makes more blocks than the network has segments."""
    if not any(override.lstrip("+~").startswith("partition") for override in overrides):
        every_segment = SegmentPartitioner(cfg.partition.separators, None)
        if len(every_segment(layers, network)) < cfg.partition.num_blocks:
            return every_segment
    partitioner: BlockPartitioner = hydra.utils.instantiate(cfg.partition)
    return partitioner


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
