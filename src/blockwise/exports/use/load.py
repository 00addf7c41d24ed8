"""Load the network of an export folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from blockwise.backbone.makers.base import ImageSpec
from blockwise.data.samples import Sample
from blockwise.errors import InputError, first_line
from blockwise.exports.base import base_of, config_of
from blockwise.exports.folder import Exported
from blockwise.exports.images import read_samples
from blockwise.exports.network import trained_network

Network = Callable[[Tensor], Tensor]
# images that are read, and classified, at once
BATCH = 64


def classified(
    network: Network, samples: Sequence[Sample], images: ImageSpec, report: Callable[[], None] = lambda: None
) -> Iterator[tuple[Sequence[Sample], list[int], Tensor, dict[int, str]]]:
    """Read and classify images, a batch at a time.

    Args:
        network: The network.
        samples: The images.
        images: Their size and preprocessing.
        report: Called once per image.

    Yields:
        The samples of a batch, the indices of those that can be read, their logits, shape (readable, classes), and why
        the others cannot be read, by index.
    """
    for first in range(0, len(samples), BATCH):
        batch = samples[first : first + BATCH]
        pixels, broken = read_samples(batch, images, report)
        if kept := [index for index in range(len(batch)) if index not in broken]:
            with torch.no_grad():
                yield batch, kept, network(pixels[kept]), broken
        else:
            yield batch, kept, torch.empty(0, 0), broken


def load_network(exported: Exported, overrides: Sequence[str] = ()) -> Network:
    """Return what maps normalised images, shape (batch, 3, size, size), to logits, shape (batch, classes).

    Args:
        exported: The export.
        overrides: Settings for the base weights of a delta, such as `model.checkpoint=<path>`.

    Raises:
        InputError: A package is missing, the base weights of a delta are others, or the file cannot be loaded.
    """
    try:
        network = LOADERS[exported.format](exported, overrides)
        with torch.no_grad():
            classes = network(torch.zeros(1, 3, exported.images.size, exported.images.size)).shape[1]
    except (InputError, ModuleNotFoundError):
        raise
    except Exception as error:  # the libraries have errors of their own
        raise InputError(f"{exported.weights} cannot be loaded ({first_line(error)}): export it again") from error
    if classes != len(exported.classes):
        raise InputError(
            f"{exported.folder} names {len(exported.classes)} classes, but its head has {classes}: export it again"
        )
    return network


def _timm(exported: Exported, overrides: Sequence[str]) -> Network:
    del overrides
    import timm

    network: Network = timm.create_model(f"local-dir:{exported.folder.resolve()}", pretrained=True).eval()
    return network


def _onnx(exported: Exported, overrides: Sequence[str]) -> Network:
    del overrides
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise InputError("an ONNX export needs onnxruntime: pip install 'blockwise[onnx]'") from error
    session = onnxruntime.InferenceSession(str(exported.weights), providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(["logits"], {"images": images.contiguous().numpy()})[0])


def _torch_export(exported: Exported, overrides: Sequence[str]) -> Network:
    del overrides
    return torch.export.load(exported.weights).module()


def _delta(exported: Exported, overrides: Sequence[str]) -> Network:
    record = replace(exported.record, folder=str(exported.folder))
    return trained_network(base_of(record, config_of(record, overrides)), record)


LOADERS = {"timm": _timm, "onnx": _onnx, "torch_export": _torch_export, "delta": _delta}
