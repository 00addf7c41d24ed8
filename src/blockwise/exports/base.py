"""Load the network that a cell started from, with the weights that it had."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from omegaconf import DictConfig

from blockwise.backbone.load import Backbone, load_backbone
from blockwise.config.compose import compose_config, groups
from blockwise.config.model_names import model_overrides
from blockwise.errors import InputError
from blockwise.io.origins import short_name
from blockwise.results.record import Record

# what `train.py` takes besides settings
FLAGS = ("-m", "--multirun")
# in a setting, these name code, find configs, or could compose such a name; a variable of the environment cannot
NAMES_CODE = re.compile(r"_target_|^[+~]*hydra\b|\$(?!\{oc\.env:\w+\})|^[^=]*[@/]")


def config_of(record: Record, overrides: Sequence[str] = (), *, with_data: bool = False) -> DictConfig:
    """Return the config that trained a cell, from the command in its record, with further settings.

    A cell that was trained from Python has no settings in its command; then it is the config of its model. A record may
    be a stranger's: settings that name code, such as `data.source._target_`, count only among the further ones.

    Args:
        record: The record.
        overrides: Further settings.
        with_data: Refuse a command with settings of the data that do not count.

    Raises:
        InputError: The command cannot be composed any more, a setting is invalid, or one of the data does not count.
    """
    overrides = as_words(overrides)
    try:
        words = shlex.split(str(record.provenance.get("command") or ""))
    except ValueError:  # a quotation that does not end
        words = []
    new = {word.partition("=")[0].lstrip("+") for word in overrides}
    given = [word for word in words[1:] if "=" in word and not word.startswith("-")]
    given = [word for word in given if word.partition("=")[0].lstrip("+") not in new]
    code = [word for word in given if NAMES_CODE.search(word)]
    if with_data and (of_data := [word for word in code if word.lstrip("+~").startswith("data")]):
        raise InputError(f"the record's command has {of_data[0]}, which may name code: give it again, if you trust it")
    given = [word for word in given if word not in code]
    if not given or set(FLAGS) & set(words) or not all(map(_is_known, given)):
        return _of_model(record, overrides)
    try:
        cfg = compose_config([*given, *overrides])
    except InputError:
        return _of_model(record, overrides)
    return cfg if short_name(cfg.model.name) == record.backbone.name else _of_model(record, overrides)


def _is_known(word: str) -> bool:
    """Return whether a setting chooses none but blockwise's own configs, if it chooses one: no file elsewhere."""
    group, _, choice = word.partition("=")
    known = groups().get(group.lstrip("+~"))
    return known is None or all(name.strip() in known for name in choice.strip("[]").split(","))


def _of_model(record: Record, overrides: Sequence[str]) -> DictConfig:
    model: dict[str, Any] = record.settings["model"]
    name = model.get("architecture") or model["name"]
    prefix = f"{model['source']}:" if model.get("source") else ""
    pretrained = [] if record.backbone.weights != "random" else ["model.pretrained=false"]
    size = [f"data.image_size={record.data.image_size}"]
    head = [f"model.head={model['head']}"] if "head" in model else []
    seed = [f"seed={record.seed}"]
    cfg = compose_config([*model_overrides(prefix + name), *size, *head, *pretrained, *seed, *overrides])
    if model.get("options") and cfg.model.options is None:
        cfg.model.options = model["options"]
    return cfg


def base_of(record: Record, cfg: DictConfig | None = None) -> Backbone:
    """Load the backbone of a record, and check that it has the weights that the cell started from.

    Args:
        record: The record.
        cfg: Its config, if files have moved, for example; None for that of its command.

    Raises:
        InputError: The weights cannot be loaded, or are others.
    """
    cfg = cfg or config_of(record)
    backbone = load_backbone(cfg.model, image_size=record.data.image_size, seed=cfg.seed)
    data = record.settings["data"]
    kept = {key: data[key] for key in ("crop_pct", "interpolation", "mean", "std") if data.get(key) is not None}
    own: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in kept.items()}
    backbone.images = replace(backbone.images, **own)
    check_base(backbone, record)
    return backbone


def other_precision(record: Record) -> str | None:
    """Return the precision in which a cell was tested; None for float32, in which an export computes."""
    precision = record.settings.get("trainer", {}).get("precision", "32-true")
    return None if precision == "32-true" else str(precision)


def as_words(overrides: str | Sequence[str]) -> list[str]:
    """Return settings as a list; a single one may be given as it is."""
    return [overrides] if isinstance(overrides, str) else list(overrides)


def check_words(command: str, overrides: Sequence[str], groups: Sequence[str], advice: str) -> None:
    """Check that settings have an effect on what is done with an export.

    Raises:
        InputError: One is of none of the groups.
    """
    for word in overrides:
        key = word.partition("=")[0].lstrip("+")
        if key.partition(".")[0] not in groups or key in ("data.image_size", "data.batch_size", "data.folds"):
            raise InputError(f"{command} {word} has no effect: it takes {advice}")


def check_base(backbone: Backbone, record: Record) -> None:
    """Check that a backbone has the weights that a cell started from, and the same options, such as an activation.

    Options of dropout do not count: they change no prediction.

    Raises:
        InputError: It has others.
    """
    trained = record.backbone
    theirs, ours = (_as_text(one.get("options")) for one in (record.settings["model"], backbone.settings))
    if theirs != ours:
        raise InputError(
            f"{record.folder} was trained on {trained.name} with model.options={theirs}, but this backbone has {ours}"
        )
    known = trained.checksum or trained.weights
    if known is not None and known != (backbone.checksum if trained.checksum else backbone.weights):
        raise InputError(
            f"{record.folder} was trained on {trained.name} with the weights {trained.weights}, but this backbone is "
            f"{backbone.name} with {backbone.weights}"
            + (", whose tensors differ" if trained.weights == backbone.weights else "")
        )


def _as_text(options: Any) -> str:
    return json.dumps({k: v for k, v in (options or {}).items() if "drop" not in k}, sort_keys=True, default=str)
