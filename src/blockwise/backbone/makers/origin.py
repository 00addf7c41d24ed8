"""The `config.json` of a timm network, and the weights beside it."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import timm
from timm.models import PretrainedCfg
from timm.models._hub import load_model_config_from_path

from blockwise.backbone.makers import hub
from blockwise.errors import InputError, did_you_mean
from blockwise.io import origins
from blockwise.io.names import printable

CONFIG = "config.json"
# in the order in which timm looks for them in a folder
FILES = (
    *hub.FILES,
    "pytorch_model.pth",
    "model.pth",
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth",
)
SUFFIXES = (".safetensors", ".pth", ".pth.tar", ".bin")
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos")
LARGEST_IMAGE = 10_000
# arguments of `timm.create_model` that say where files are, or change what it returns
OURS = ("checkpoint_path", "cache_dir", "model_name", "features_only", "device", "dtype", "scriptable", "exportable")


@dataclass(frozen=True)
class Origin:
    """A timm network with a config of its own.

    Attributes:
        architecture: timm's name of the architecture.
        config: How its weights expect images, and what the classifier is called.
        arguments: Arguments for timm's builder.
        folder: The folder of `config.json`; for a repository of the hub, one in the local cache, named by its commit.
        repository: The repository of the hub; None for a folder.
    """

    architecture: str
    config: PretrainedCfg
    arguments: dict[str, Any]
    folder: Path
    repository: str | None

    @property
    def files(self) -> tuple[str, ...]:
        """The names that the weights may have, in the order in which timm looks for them."""
        if self.repository is None:
            return FILES
        return (self.config.hf_hub_filename,) if self.config.hf_hub_filename else hub.FILES

    def weights(self) -> Path | None:
        """Return the file of the weights if it is on this machine."""
        named = (self.folder / name for name in self.files)
        others = (file for suffix in SUFFIXES for file in sorted(self.folder.glob(f"*{suffix}")))
        found = named if self.repository else (*named, *others)
        return next((file for file in found if file.is_file()), None)


def find_origin(name: str) -> Origin:
    """Read the config of `hf-hub:<org>/<name>`, from the local cache or downloaded, or of `local-dir:<folder>`.

    Raises:
        InputError: There is none, it cannot be downloaded, or it describes no network of timm.
    """
    if name.startswith(origins.HUB):
        repository, revision = origins.repository(name)
        return _read(hub.fetch(repository, (CONFIG,), revision, name), name, repository)
    folder = origins.folder(name)
    if not folder.is_dir():
        raise InputError(f"{name} is not a folder: give one with a config.json and a model.safetensors")
    if not (folder / CONFIG).is_file():
        raise InputError(f"{name} has no config.json: timm's save_for_hf writes one beside the weights")
    return _read(folder / CONFIG, name, None)


def _read(path: Path, name: str, repository: str | None) -> Origin:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"the config.json of {name} cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"the config.json of {name} is damaged: it is not JSON") from error
    architecture = content.get("architecture") if isinstance(content, dict) else None
    if not isinstance(architecture, str) or not timm.is_model(architecture):
        known = did_you_mean(architecture, timm.list_models()) if isinstance(architecture, str) else ""
        shown = printable(str(architecture))[:100]
        raise InputError(f"{name} is not a network of timm: its config.json names the architecture {shown}.{known}")
    try:
        config, _, arguments = load_model_config_from_path(path.parent)
        # it is made from this machine's files, so timm must not look elsewhere
        parsed = replace(PretrainedCfg(**config), source=None, file=None, url=None, hf_hub_id=None, state_dict=None)
        _check(parsed, arguments)
    except InputError:
        raise
    except Exception as error:  # it may hold anything
        reason = printable(" ".join(str(error).split()))[:200]
        raise InputError(f"the config.json of {name} is damaged ({type(error).__name__}: {reason})") from error
    return Origin(architecture, parsed, dict(arguments), path.parent, repository)


def _check(config: PretrainedCfg, arguments: dict[str, Any]) -> None:
    """Check what blockwise and timm take from a config without looking.

    Raises:
        ValueError: A value cannot be.
    """
    if ours := [key for key in arguments if key in OURS or key.startswith("pretrained")]:
        raise ValueError(f"model_args.{ours[0]}")
    size, channels = config.input_size, arguments.get("in_chans", 3)
    if len(size) != 3 or size[0] != 3 or channels != 3:
        raise ValueError(f"it takes images of {channels if channels != 3 else size[0]} channels, not 3")
    classifier = config.classifier or ()
    if not isinstance(classifier, (str, list, tuple)) or not all(isinstance(part, str) for part in classifier):
        raise ValueError(f"classifier={classifier}")
    file = PurePosixPath(config.hf_hub_filename or "")
    if file.is_absolute() or ".." in file.parts:
        raise ValueError(f"hf_hub_filename={file}")
    _check_images(config)


def _check_images(config: PretrainedCfg) -> None:
    for key in ("mean", "std"):
        numbers = getattr(config, key)
        if len(numbers) != 3 or not all(math.isfinite(n) for n in numbers) or (key == "std" and min(numbers) <= 0):
            raise ValueError(f"{key}={numbers}")
    if not all(isinstance(side, int) and 1 <= side <= LARGEST_IMAGE for side in config.input_size):
        raise ValueError(f"input_size={config.input_size}")
    if config.interpolation not in INTERPOLATIONS:
        raise ValueError(f"interpolation={config.interpolation}")
    if not 0 < config.crop_pct <= 1:
        raise ValueError(f"crop_pct={config.crop_pct}")
