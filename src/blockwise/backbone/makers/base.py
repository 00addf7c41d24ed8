"""What makes networks of one library, and the size and preprocessing of their images."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from blockwise.backbone.makers.options import check_accepted, check_effective, given_options
from blockwise.backbone.makers.weights import match_names, read_state_dict
from blockwise.errors import InputError


@dataclass(frozen=True)
class ImageSpec:
    """Size and preprocessing of a backbone's input images.

    Attributes:
        size: Side of the square input in pixels.
        mean: Mean of each channel, for pixel values in 0..1.
        std: Standard deviation of each channel, for pixel values in 0..1.
        interpolation: `bilinear` or `bicubic`.
        crop_pct: Side of the centre crop as a fraction of the shorter side of the resized image.
    """

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str
    crop_pct: float

    @property
    def resized(self) -> int:
        """Side of the square that an image is resized to before its centre is cut out, in pixels."""
        return round(self.size / self.crop_pct)


class Maker(ABC):
    """Makes networks of one library.

    Attributes:
        architecture: The library's name of the network, in messages.
        tag: The library's name of the pretrained weights.
        options: Arguments for the library's builder, from `model.options`.

    Raises:
        InputError: The architecture is unknown, or an option is not for users to set.
    """

    architecture: str
    tag: str

    def __init__(self, model: Mapping[str, Any], image_size: int | None) -> None:
        self.model = model
        self.image_size = image_size
        self.options = given_options(model)

    @abstractmethod
    def make(self, *, pretrained: bool) -> nn.Module:
        """Return the network with its classifier."""

    @abstractmethod
    def build(self, options: Mapping[str, Any]) -> nn.Module:
        """Return the network with its classifier and without weights; the library's errors are not translated."""

    @abstractmethod
    def cached(self) -> Path | None:
        """Return the file of the pretrained weights if it is on this machine."""

    @abstractmethod
    def classifiers(self, network: nn.Module) -> tuple[str, ...]:
        """Return the paths of all classifiers, which will be removed: the main one first, then auxiliary ones."""

    @abstractmethod
    def without_classifier(self, network: nn.Module) -> nn.Module:
        """Return the network without its classifier."""

    @abstractmethod
    def images(self) -> ImageSpec:
        """Return the size and preprocessing of its input images."""

    def weights(self) -> str:
        """Return what identifies the pretrained weights in settings."""
        return self.tag

    def described(self) -> tuple[str, dict[str, Any]]:
        """Return the library's name of the architecture, without a tag, and all arguments of its builder."""
        return self.architecture.partition(".")[0], self.options

    def settings(self) -> dict[str, Any]:
        """Return what else the settings of a record say of the network."""
        return {"options": self.options} if self.options else {}

    def check_options(self) -> None:
        """Check that the library takes the options; nothing is downloaded.

        Raises:
            InputError: It does not.
        """
        if self.options:
            check_accepted(self.build, self.architecture, self.options)
            check_effective(self.build, self.architecture, self.options, self.image_size or self.images().size)

    def not_loaded(self, error: Exception) -> InputError:
        """Return why the pretrained weights cannot be had: their file does not fit the network, or there is none."""
        file = self.cached()
        if file is None:
            return unreachable(self.architecture, error)
        options = f"; the network has model.options={self.options}" if self.options else ""
        try:
            state = read_state_dict(file, f"the file {file}")
            network = self.build(self.options)
            match_names(state, network.state_dict(), self.classifiers(network), str(file))
        except InputError as reason:
            return InputError(f"{reason}{options}")
        except Exception as reason:
            return InputError(f"{self.architecture} cannot be made ({kind_and_line(reason)})")
        return InputError(f"the weights {file} of {self.architecture} cannot be loaded ({kind_and_line(error)})")


def image_spec_of(model: Mapping[str, Any], own: Mapping[str, Any]) -> ImageSpec:
    """Return the config's values, and the library's where the config has none."""

    def value(key: str, default: Any) -> Any:
        configured = model.get(key)
        return configured if configured is not None else own.get(key, default)

    own = {**own, "input_size": own.get("input_size", (3, 224, 224))[-1]}
    return ImageSpec(
        size=int(value("input_size", 224)),
        mean=tuple(value("mean", (0.485, 0.456, 0.406))),
        std=tuple(value("std", (0.229, 0.224, 0.225))),
        interpolation=str(value("interpolation", "bicubic")),
        crop_pct=float(value("crop_pct", 0.875) or 0.875),
    )


def unreachable(name: str, error: Exception) -> InputError:
    """Return the sentence for weights that cannot be downloaded."""
    reason = str(error) if isinstance(error, InputError) else kind_and_line(error)
    return InputError(
        f"the pretrained weights of {name} could not be downloaded ({reason}): set model.checkpoint=<path> "
        "to a local file, or train from random weights with model.pretrained=false"
    )


def kind_and_line(error: Exception) -> str:
    """Return the kind of an error and the first line of its message."""
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no message'}"
