"""The trained network of a cell: the base weights with what the cell has trained."""

from __future__ import annotations

import copy
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path

from torch import Tensor, nn

from blockwise.backbone.heads import trained_head
from blockwise.backbone.load import Backbone
from blockwise.backbone.lora import merge_lora
from blockwise.errors import InputError
from blockwise.exports.base import check_base
from blockwise.exports.folder import read_export
from blockwise.results.predictions import PREDICTIONS, checksum, read_predictions
from blockwise.results.record import Record
from blockwise.results.store import CARD, WEIGHTS


def trained_network(backbone: Backbone, record: Record) -> nn.Sequential:
    """Return the trained classifier, which maps images, (batch, 3, size, size), to logits, (batch, classes).

    It has two parts, `backbone` and `head`.

    Raises:
        InputError: The weights are missing, or the backbone is another one or has other weights.
    """
    check_base(backbone, record)
    return network_from(backbone, read_weights(record), record)


def network_from(backbone: Backbone, tensors: dict[str, Tensor], record: Record) -> nn.Sequential:
    """Return the same, given the tensors that were trained.

    Raises:
        InputError: They do not fit the backbone.
    """
    head, trained = split_head(tensors, record)
    network = copy.deepcopy(backbone.network)
    own = network.state_dict()
    with suppress(KeyError, RuntimeError):  # what does not fit is told below
        trained = merge_lora(own, trained)
    if foreign := [name for name, tensor in trained.items() if name not in own or own[name].shape != tensor.shape]:
        raise InputError(
            f"{record.folder} was trained on a network other than {backbone.name}: {foreign[0]} does not fit"
        )
    network.load_state_dict(trained, strict=False)
    return nn.Sequential(OrderedDict(backbone=network, head=head)).eval()


def class_names(record: Record) -> tuple[str, ...]:
    """Return the class names, which are kept with the predictions; numbers for records of earlier versions.

    Raises:
        InputError: The predictions are missing or have changed.
    """
    if (kept := read_predictions(record, "test")) is not None:
        return kept.classes
    if PREDICTIONS in record.files:
        raise InputError(f"{record.folder}/{PREDICTIONS}, which has the class names, is missing or has changed")
    return tuple(map(str, range(record.data.classes)))


def read_weights(record: Record) -> dict[str, Tensor]:
    """Return the tensors that a cell has trained.

    Raises:
        InputError: They are missing, or the file is damaged.
    """
    from safetensors.torch import load

    folder = Path(record.folder or "")
    path, expected = folder / WEIGHTS, record.files.get(WEIGHTS)
    if (folder / CARD).exists():
        exported = read_export(folder)  # checks the files
        if exported.format != "delta":
            raise InputError(f"{folder} is a whole network: load it with timm, or export what was trained with --delta")
        path, expected = exported.weights, None
    try:
        content = path.read_bytes()
    except OSError as error:
        reason = {"diverged": "the cell diverged", "pruned": "a search stopped the cell"}.get(record.status)
        reason = reason or "the cell diverged, or they were removed"
        raise InputError(f"{record.folder} contains no weights: {reason}") from error
    if expected not in (None, checksum(content)):
        raise InputError(f"the weights in {record.folder} have changed since training: remove it and train again")
    try:
        return load(content)
    except Exception as error:  # safetensors has errors of its own
        raise InputError(f"the weights in {record.folder} cannot be read: the file is damaged") from error


def split_head(trained: dict[str, Tensor], record: Record) -> tuple[nn.Module, dict[str, Tensor]]:
    """Return the head, and the other tensors by the network's names.

    Raises:
        InputError: There is no head.
    """
    try:
        return trained_head(trained)
    except (KeyError, IndexError, RuntimeError) as error:
        raise InputError(f"the weights in {record.folder} have no head: the file is damaged") from error
