"""Predict the classes of images with an export."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from blockwise.data.samples import Sample
from blockwise.errors import InputError
from blockwise.exports.folder import read_export
from blockwise.exports.images import find_images
from blockwise.exports.use.load import classified, load_network


@dataclass(frozen=True)
class Prediction:
    """The prediction for one image.

    Attributes:
        image: The file.
        classes: The likeliest classes, the likeliest first.
        probabilities: Their probabilities, by softmax.
        error: Why the image cannot be read; then there are no classes.
    """

    image: Path
    classes: tuple[str, ...] = ()
    probabilities: tuple[float, ...] = ()
    error: str | None = None


def predict(
    folder: str | Path,
    images: str | Path | Sequence[str | Path],
    *,
    top: int = 1,
    overrides: Sequence[str] = (),
    begin: Callable[[int], Callable[[], None]] = lambda _total: lambda: None,
) -> list[Prediction]:
    """Predict the classes of images.

    Args:
        folder: An export folder.
        images: A file or a folder of images, or several.
        top: Number of classes per image.
        overrides: Settings for the base weights of a delta, such as `model.checkpoint=<path>`.
        begin: Called with the number of images; returns a function that is called once per image.

    Returns:
        One prediction per image, in the order of the arguments; images that cannot be read have an `error`.

    Raises:
        InputError: The folder is not an export, or there are no images.
    """
    if isinstance(top, bool) or not isinstance(top, int) or top < 1:
        raise InputError(f"--top {top} must be an integer of at least 1")
    exported = read_export(folder)
    paths = list(find_images(images))
    network = load_network(exported, overrides)
    report = begin(len(paths))
    found: list[Prediction] = []
    samples = [Sample(str(path), 0, path) for path in paths]
    for batch, kept, logits, broken in classified(network, samples, exported.images, report):
        predicted = {index: Prediction(Path(batch[index].name), error=reason) for index, reason in broken.items()}
        shares, order = logits.softmax(1).sort(dim=1, descending=True, stable=True)
        for index, own, classes in zip(kept, shares.tolist(), order.tolist(), strict=True):
            names = tuple(exported.classes[number] for number in classes[:top])
            predicted[index] = Prediction(Path(batch[index].name), names, tuple(own[:top]))
        found += [predicted[index] for index in range(len(batch))]
    return found
