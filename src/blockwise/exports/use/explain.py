"""Where does a network look? Grad-CAM pictures of images, several networks side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from blockwise.analysis.summary import best_seed
from blockwise.backbone.makers.base import ImageSpec
from blockwise.errors import InputError
from blockwise.exports.base import base_of, config_of
from blockwise.exports.choose import choose_sweep
from blockwise.exports.folder import CONFIG, Exported, read_export
from blockwise.exports.images import find_images, read_images
from blockwise.exports.network import class_names, trained_network
from blockwise.exports.use.load import load_network
from blockwise.exports.use.positions import Positions, as_map, last_positions
from blockwise.io.names import file_name, printable
from blockwise.results.record import Record
from blockwise.results.store import read_records

# pictures of more images would take minutes
MOST = 100


@dataclass(frozen=True)
class Explained:
    """A network that is explained.

    Attributes:
        title: What was trained of it.
        network: The network.
        layer: The last layer whose output has positions.
        images: Size and preprocessing of its images.
        classes: Class names, in the order of the logits.
    """

    title: str
    network: nn.Module
    layer: Positions
    images: ImageSpec
    classes: tuple[str, ...]


def explain(
    folder: str | Path,
    images: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    beside: Sequence[str | Path] = (),
    overrides: Sequence[str] = (),
) -> list[Path]:
    """Write one picture per image: the image, and for each network where its predicted class comes from.

    Grad-CAM (Selvaraju et al., 2017, "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based
    Localization"), of the last layer that has positions, computed by captum.

    Args:
        folder: An export folder in the format `timm` or `delta`.
        images: A file or a folder of images, or several.
        out: Folder of the pictures.
        beside: What to draw beside it: further export folders, and folders of results, of which the head alone, the
            best block and `full` of the same backbone and data set are drawn.
        overrides: Settings for base weights, such as `model.checkpoint=<path>`.

    Raises:
        InputError: captum is missing, a network has no gradients or no positions, there are too many images, or
            nothing to draw beside.
    """
    try:
        from captum.attr import LayerGradCam  # noqa: F401 (checks that it is installed)
    except ModuleNotFoundError as error:
        raise InputError("--explain needs captum: pip install 'blockwise[explain]'") from error
    paths = list(find_images(images))
    if len(paths) > MOST:
        raise InputError(f"--explain draws at most {MOST} images, but there are {len(paths)}: name a few")
    exported = read_export(folder)
    explained = [_of_export(exported, overrides)]
    for place in map(Path, beside):
        if (place / CONFIG).exists():
            explained.append(_of_export(read_export(place), overrides))
        else:
            explained += [_of_record(record, overrides) for record in _counterparts(place, exported.record)]
    target = Path(out).expanduser()
    target.mkdir(parents=True, exist_ok=True)
    written = []
    for number, path in enumerate(paths):
        figure = _picture(path, explained)
        if figure is not None:
            written.append(target / f"{number:03}-{file_name(path.stem)}.png")
            figure.savefig(written[-1], dpi=110)
    return written


def _of_export(exported: Exported, overrides: Sequence[str]) -> Explained:
    network = load_network(exported, overrides)
    if exported.format not in ("timm", "delta") or not isinstance(network, nn.Module):
        raise InputError(f"--explain needs gradients, which the format {exported.format} has not: export it as timm")
    return _prepare(exported.record, network, exported.images, exported.classes)


def _of_record(record: Record, overrides: Sequence[str]) -> Explained:
    backbone = base_of(record, config_of(record, overrides))
    return _prepare(record, trained_network(backbone, record), backbone.images, class_names(record))


def _prepare(record: Record, network: nn.Module, images: ImageSpec, classes: tuple[str, ...]) -> Explained:
    layer = last_positions(network, torch.zeros(1, 3, images.size, images.size))
    if layer is None:
        raise InputError(f"--explain: no layer of {record.backbone.name} has positions")
    return Explained(f"scope {record.cell.scope}", network, layer, images, classes)


def _counterparts(results: Path, record: Record) -> list[Record]:
    """Return the records of the head alone, the best block and `full` of the same backbone and data set.

    Raises:
        InputError: There are none but the record's own.
    """
    names = {"model": record.backbone.name, "data": record.data.name, "policy": record.policy}
    try:
        sweep = choose_sweep(read_records(results), **names)
    except InputError as error:
        wanted = f"{record.backbone.name} on {record.data.name} under the policy {record.policy}"
        raise InputError(f"--beside {results}: it has not one sweep of {wanted} ({error})") from error
    rows = (sweep.row("head"), sweep.best, sweep.row("full"))
    found = [best_seed(row.records) for row in rows if row is not None and row.records]
    found = [one for one in found if one.cell.scope != record.cell.scope]
    if not found:
        raise InputError(f"{results} has no head, block or full of {sweep.title} to draw beside {record.cell.scope}")
    return found


def _picture(path: Path, explained: Sequence[Explained]) -> Figure | None:
    """Return the picture of an image; None if it cannot be read."""
    figure = Figure(figsize=(2.6 * (1 + len(explained)), 3.1), layout="constrained")
    panels = figure.subplots(1, 1 + len(explained))
    for axes, one in zip(panels[1:], explained, strict=True):
        spec = one.images
        images, broken = read_images([path], spec)
        if broken:
            return None
        heat, label, share = grad_cam(one.network, one.layer, images)
        pixels = (images[0].permute(1, 2, 0).numpy() * spec.std + spec.mean).clip(0, 1)
        panels[0].imshow(pixels)
        axes.imshow(pixels)
        axes.imshow(heat, cmap="inferno", alpha=0.55, vmin=0, vmax=max(float(heat.max()), 1e-12))
        nowhere = "" if heat.max() > 0 else " (no region)"
        found = f"{printable(one.classes[label])}, {100 * share:.0f} %{nowhere}"
        axes.set_title(f"{one.title}\n{found}", fontsize="medium", parse_math=False)
    panels[0].set_title(f"{printable(path.name)}\n", fontsize="medium", parse_math=False)
    for axes in panels:
        axes.axis("off")
    return figure


def grad_cam(network: nn.Module, layer: Positions, images: Tensor) -> tuple[np.ndarray, int, float]:
    """Return where the predicted class of one image comes from, shape (size, size), the class, and its probability."""
    from captum.attr import LayerAttribution, LayerGradCam

    with torch.no_grad():
        shares = network(images).softmax(1)[0]
    label = int(shares.argmax())
    # without gradients towards the image, a frozen layer would have none
    images = images.clone().requires_grad_()
    with as_map(layer) as positions:
        heat = LayerGradCam(network, positions).attribute(images, target=label, relu_attributions=True)
    heat = LayerAttribution.interpolate(heat, tuple(images.shape[2:]), interpolate_mode="bilinear")
    return heat[0, 0].detach().numpy(), label, float(shares[label])
