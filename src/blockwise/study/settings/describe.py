"""Describe Python objects as plain JSON data, the same in every process: transforms, optimizers, functions, tensors."""

from __future__ import annotations

import dis
import hashlib
import math
import types
from collections.abc import Callable, Iterator, Mapping
from enum import Enum
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import BatchSampler, TensorDataset, default_collate, default_convert

from blockwise.recipe.parameter_groups import OptimizerFactory

# what samplers of PyTorch have besides the data set and the generator
SAMPLING = ("weights", "indices", "replacement", "num_samples")
# longer lists count by their hash
LONGEST = 100


def describe_transform(value: Any) -> Any:
    """Convert a transform to plain JSON data: like `describe`, but with all its public attributes and its tensors.

    >>> from torchvision.transforms import v2
    >>> describe_transform(v2.RandomApply([v2.GaussianNoise(sigma=0.2)], p=0.1))["options"]["transforms"][0]["options"]
    {'mean': 0.0, 'sigma': 0.2, 'clip': True}
    """
    if isinstance(value, Mapping):
        return {str(key): describe_transform(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [describe_transform(entry) for entry in value]
    if isinstance(value, (Enum, torch.dtype)):
        return str(value)
    if isinstance(value, np.ndarray):
        return hash_tensor(torch.from_numpy(value))
    # of what is no transform itself, such as a logger, not all attributes matter
    if isinstance(value, partial) or hasattr(value, "__qualname__") or not callable(value):
        return describe(value)
    options = {key: entry for key, entry in getattr(value, "__dict__", {}).items() if key[0] != "_"}
    if isinstance(value, nn.Module):
        options.pop("training", None)
        options |= {**dict(value.named_children()), **dict(value.named_parameters()), **dict(value.named_buffers())}
    return {"name": name_of(type(value)), **({"options": describe_transform(options)} if options else {})}


def describe_optimizer(optimizer: OptimizerFactory) -> dict[str, Any]:
    """Return the class and the options of the optimizers that a factory makes.

    The factory is called with one group for the head and one for the blocks. If their options differ, both are kept.
    """
    groups = [{"params": [nn.Parameter(torch.zeros(1))], "lr": 1e-3} for _ in range(2)]
    example = optimizer(groups)
    options = [{k: describe(v) for k, v in g.items() if k not in ("params", "lr")} for g in example.param_groups]
    rates = [group["lr"] for group in example.param_groups]
    differ = {} if rates == [1e-3, 1e-3] else {"rates": [rate / 1e-3 for rate in rates]}
    options = options[:1] if all(group == options[0] for group in options) else options
    return {"name": name_of(type(example)), **(options[0] if len(options) == 1 else {"groups": options}), **differ}


def describe(value: Any) -> Any:
    """Convert a value to plain JSON data; equal values give equal results in every process.

    >>> describe({"rate": (1, 2.5)}), describe(torch.optim.SGD), describe(partial(torch.optim.SGD, momentum=0.9))
    ({'rate': [1, 2.5]}, 'torch.optim.sgd.SGD', {'name': 'torch.optim.sgd.SGD', 'options': {'momentum': 0.9}})
    """
    if _is_simple(value):
        return value
    if isinstance(value, Mapping):
        return {str(key): describe(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [describe(entry) for entry in value]
    if isinstance(value, torch.Tensor):
        return hash_tensor(value)
    if isinstance(value, partial):
        options = {**({"arguments": describe(value.args)} if value.args else {}), **describe(value.keywords)}
        return {"name": describe(value.func), "options": options}
    if isinstance(value, types.FunctionType):
        kept = [_describe_kept(cell) for cell in value.__closure__ or ()]
        defaults = describe([*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()])
        own = {key: entries for key, entries in (("closure", kept), ("defaults", defaults)) if entries}
        return {"name": name_of(value), "code": hash_of(_code(value.__code__)), **own}
    if hasattr(value, "__qualname__"):
        return name_of(value)
    entries = getattr(value, "__dict__", {})
    told = {key: describe(entry) for key, entry in entries.items() if key[0] != "_" and _tells(entry)}
    return {"name": name_of(type(value)), **({"options": told} if told else {})}


def _tells(value: Any) -> bool:
    """Return whether an attribute of an object can be described by its value."""
    return _is_simple(value) or isinstance(value, (torch.Tensor, types.FunctionType, partial))


def describe_rule(value: Any) -> Any:
    """Like `describe`, but with all that an object holds: lists, arrays, child modules, numbers of a function's module.

    It is for what training does not change, such as a loss: a data module or a callback may fill its lists meanwhile.
    """
    if isinstance(value, partial):
        return {**describe(value), "name": describe_rule(value.func)}
    if isinstance(value, types.MethodType) and isinstance(value.__func__, types.FunctionType):
        return {**describe_rule(value.__func__), "of": describe_rule(value.__self__)}
    if isinstance(value, types.FunctionType):
        found = {name: value.__globals__.get(name) for name in sorted(set(_globals_of(value.__code__)))}
        # not its lists, which may collect what training says
        read = _held({name: entry for name, entry in found.items() if entry is not None and not _is_several(entry)})
        return {**describe(value), **({"globals": read} if read else {})}
    described = describe(value)
    if not isinstance(described, dict) or isinstance(value, Mapping):
        return described
    more = _held({key: entry for key, entry in getattr(value, "__dict__", {}).items() if key[0] != "_"})
    if isinstance(value, nn.Module) and (children := dict(value.named_children())):
        more["children"] = describe_transform(children)
    options = {**described.get("options", {}), **more}
    return {**described, **({"options": options} if options else {})}


def _held(entries: Mapping[str, Any]) -> dict[str, Any]:
    """Describe the entries that are data, and leave the others out."""
    return {key: data for key, entry in entries.items() if (data := _data(entry)) is not NotImplemented}


def _data(value: Any) -> Any:
    """Describe a number, a text, an array, or a list or dictionary of them; NotImplemented for anything else."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)  # JSON has no such numbers
    if _is_simple(value):
        return value
    if isinstance(value, torch.Tensor):
        return hash_tensor(value)
    if isinstance(value, np.ndarray):
        content = repr(value.tolist()) if value.dtype.hasobject else np.ascontiguousarray(value).tobytes()
        return hash_of([value.dtype.str, value.shape, content])
    if not _is_several(value):
        return NotImplemented
    entries = (
        [[str(key), _data(entry)] for key, entry in value.items()]
        if isinstance(value, Mapping)
        else [_data(entry) for entry in value]
    )
    if any(entry is NotImplemented or (isinstance(entry, list) and NotImplemented in entry) for entry in entries):
        return NotImplemented
    return entries if len(entries) <= LONGEST else hash_of(entries)


def _is_several(value: Any) -> bool:
    return isinstance(value, (list, tuple, range, Mapping))


def _globals_of(code: types.CodeType) -> Iterator[str]:
    """Yield the names of its module that a function reads, also in functions inside it."""
    yield from (step.argval for step in dis.get_instructions(code) if step.opname == "LOAD_GLOBAL")
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _globals_of(constant)


def _describe_kept(cell: types.CellType) -> Any:
    """Return what a function keeps of its surroundings; of another function only its code, which may be circular."""
    try:
        value = cell.cell_contents
    except ValueError:  # not yet assigned
        return None
    return hash_of(_code(value.__code__)) if isinstance(value, types.FunctionType) else describe(value)


def _is_simple(value: Any) -> bool:
    return value is None or isinstance(value, (str, int, float, bool))


def describe_loader(loader: Any) -> dict[str, Any]:
    """Return what identifies the images and batches of a DataLoader, as far as it tells."""
    dataset = getattr(loader, "dataset", None)
    entry = {
        "batches": len(loader),
        "batch_size": getattr(loader, "batch_size", None),
        "dataset": name_of(type(dataset)),
    }
    sampler, collate = getattr(loader, "sampler", None), getattr(loader, "collate_fn", default_collate)
    entry["sampler"] = name_of(type(sampler))
    held = {key: getattr(sampler, "__dict__", {}).get(key) for key in SAMPLING}
    if sampling := _held({key: value for key, value in held.items() if value is not None and value is not False}):
        entry["sampling"] = sampling
    batches = getattr(loader, "batch_sampler", None)
    if batches is not None and type(batches) is not BatchSampler:
        entry["batch_sampler"] = describe_rule(batches)
    if collate is not default_collate and collate is not default_convert:
        entry["collate"] = describe_rule(collate)
    if (generator := getattr(loader, "generator", None) or getattr(sampler, "generator", None)) is not None:
        entry["generator"] = generator.initial_seed()
    if dataset is not None and hasattr(dataset, "__len__"):
        entry["images"] = len(dataset)
    if isinstance(dataset, TensorDataset):
        entry["fingerprint"] = hash_of([hash_tensor(tensor) for tensor in dataset.tensors])
    return entry


def name_of(value: Callable[..., Any] | type) -> str:
    """Return the name of a function or class, with its module."""
    return f"{value.__module__}.{value.__qualname__}"


def hash_of(value: Any) -> str:
    """Return a short hash of plain data."""
    return hashlib.sha256(repr(value).encode()).hexdigest()[:16]


def hash_tensor(tensor: torch.Tensor) -> str:
    """Return a short hash of a tensor's content."""
    content = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return hash_of([str(tensor.dtype), tuple(tensor.shape), hashlib.sha256(content.tobytes()).hexdigest()])


def _code(code: types.CodeType) -> list[Any]:
    """Return the bytecode, names and constants of a function, without its file and line numbers."""
    return [code.co_code.hex(), code.co_names, [_constant(constant) for constant in code.co_consts]]


def _constant(value: Any) -> Any:
    if isinstance(value, types.CodeType):
        return _code(value)
    if isinstance(value, frozenset) and any(isinstance(entry, (str, bytes)) for entry in value):
        return ["frozenset", *sorted(map(repr, value))]  # its order differs between processes
    return repr(value)
