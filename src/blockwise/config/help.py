"""The text of `blockwise train --help`: every group's options and every setting, from the comments in `conf/`."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

import yaml

from blockwise.config.compose import CONFIG_DIR, defaults, groups

USAGE = """\
usage: blockwise train [-m] [GROUP=NAME ...] [SETTING=VALUE ...]

Train cells: each scope of a backbone on a data set. Cells with a record are skipped.

  -m, --multirun    several values separated by commas become several jobs: -m model=vgg16,resnet50 'block=range(0,12)'
  --config-dir DIR  a folder with configs of your own
  --hydra-help      further options, of Hydra
"""
INDENT = 27
WIDTH = 118
KEY = re.compile(r"(?P<indent> *)(?P<name>\w+):(?: (?P<value>.*))?")
# parts that Python code reads
INTERNAL = ("_target_", "_partial_", "defaults", "source", "hydra", "logger", "strategy")


def train_help() -> str:
    """Return the help text."""
    names = groups()
    order = [group for group in defaults() if group in names]  # as in conf/train.yaml
    order += [group for group in names if group not in order and group != "hydra"]
    lines = [USAGE, "Groups; each name is a file in conf/:"]
    lines += [_entry(f"{group}=", ", ".join(names[group])) for group in order]
    comments: dict[str, str] = {}
    others: list[tuple[str, str, str]] = []  # settings that the default config does not have
    for prefix, choice, path in _files(order, names):
        for key, value, comment in _settings(path):
            key = f"{prefix}{key}"
            if key not in defaults() and key not in comments and "experiment" not in key:
                others.append((key, value, choice))
            comments[key] = comments.get(key) or comment
    lines.append("\nSettings, with their defaults:")
    for key, value in defaults().items():
        if not isinstance(value, dict) and not set(key.split(".")) & set(INTERNAL):
            lines.append(_entry(f"{key}={_shown(value)}", comments.get(key, "")))
    lines.append("\nFurther settings of some files of a group:")
    lines += [_entry(f"{key}={value}", f"{comments[key]} ({choice})".strip()) for key, value, choice in others]
    return "\n".join(lines)


def _files(order: list[str], names: dict[str, list[str]]) -> Iterator[tuple[str, str, Path]]:
    """Yield the prefix of a file's settings, the choice of the file, and its path."""
    yield "", "", CONFIG_DIR / "train.yaml"
    for group in order:
        for name in ["_base", *names[group]]:
            if (path := CONFIG_DIR / group / f"{name}.yaml").is_file():
                yield f"{group}.", f"{group}={name}", path


def _shown(value: object) -> str:
    """Return a value as in YAML."""
    return yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("\n").removesuffix("\n...")


def _settings(path: Path) -> Iterator[tuple[str, str, str]]:
    """Yield name, value and comment of each setting in a file."""
    parents: list[tuple[int, str]] = []
    comment: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.strip().startswith("#"):
            comment.append(line.strip().removeprefix("#").strip())
            continue
        if match := KEY.fullmatch(line):
            depth, name, value = len(match["indent"]), match["name"], (match["value"] or "").strip()
            parents = [parent for parent in parents if parent[0] < depth]
            names = [*(parent[1] for parent in parents), name]
            if value and not set(names) & set(INTERNAL):
                yield ".".join(names), value, " ".join(comment)
            parents.append((depth, name))
        comment = []


def _entry(name: str, text: str) -> str:
    """Return two columns; a long name has a line of its own."""
    indent = " " * INDENT
    body = textwrap.fill(text, WIDTH, initial_indent=indent, subsequent_indent=indent)
    if len(name) + 4 > INDENT or not body:
        return f"  {name}\n{body}".rstrip()
    return f"  {name:<{INDENT - 2}}{body.strip()}"
