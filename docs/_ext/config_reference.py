"""The reference of every config key, generated from `conf/` when a build begins.

A comment above a key is its description. The comment at the top of a file describes the file; indented lines of it are
commands. Keys that a file takes over from another one of its folder, by Hydra's `defaults`, are shown as if they were
written in the file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import yaml
from sphinx.application import Sphinx

# folders of options, in the order of their pages; those that are not named here come last
ORDER = ("model", "data", "partition", "optimizer", "trainer", "logger", "experiment", "hydra/launcher")
# what a value is called that the user must give
MANDATORY = "???"


@dataclass(frozen=True)
class Key:
    """One setting.

    Attributes:
        name: Its dotted name inside the file.
        default: Its value as it is written in the file.
        description: The comment above it.
    """

    name: str
    default: str
    description: str = ""


@dataclass(frozen=True)
class Option:
    """One file of a group: `data=digits`.

    Attributes:
        name: What the command line calls it.
        description: The comment at the top of the file, without commands.
        commands: The commands in that comment.
        keys: Its settings, those of its bases included.
        own: Names of the settings that are written in the file itself.
    """

    name: str
    description: str
    commands: tuple[str, ...]
    keys: tuple[Key, ...]
    own: frozenset[str] = frozenset()

    @property
    def summary(self) -> str:
        """The description; without one, the first values that tell this file from the others."""
        if self.description:
            return _prose(self.description)
        told = [key for key in self.keys if key.name in self.own and key.name not in ("name", "_target_")]
        return ", ".join(f"`{_cell(key.name)}={_cell(key.default)}`" for key in told[:2])


def read_option(path: Path) -> Option:
    """Return the settings of a file, those that it takes over from files beside it included."""
    text = path.read_text()
    root = yaml.compose(text)
    own = tuple(_keys(root, text)) if isinstance(root, yaml.MappingNode) else ()
    merged: dict[str, Key] = {}
    for entry in _defaults(root):
        _merge(merged, own if entry == "_self_" else read_option(path.parent / f"{entry}.yaml").keys)
    description, commands = _header(text)
    return Option(path.stem, description, commands, tuple(merged.values()), frozenset(key.name for key in own))


def groups(conf: Path) -> dict[str, list[Option]]:
    """Return the options of every folder of a config directory; files that begin with `_` are no options."""
    folders = sorted({path.parent.relative_to(conf).as_posix() for path in conf.glob("*/**/*.yaml")})
    folders.sort(key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER))
    found = {}
    for folder in folders:
        files = sorted(path for path in (conf / folder).glob("*.yaml") if path.name[0] != "_")
        found[folder] = [read_option(path) for path in files]
    return found


def chosen(conf: Path) -> dict[str, str]:
    """Return the option that `train.yaml` chooses of each group."""
    entries = yaml.safe_load((conf / "train.yaml").read_text())["defaults"]
    pairs = [next(iter(entry.items())) for entry in entries if isinstance(entry, dict)]
    return {group.removeprefix("override ").lstrip("/"): str(name) for group, name in pairs}


def group_page(group: str, options: Sequence[Option], default: str | None) -> str:
    """Return the page of a group in Markdown: a list of its options, then a table for each."""
    lines = [f"# {group}", "", f"`{group}=NAME` chooses one of the files in `conf/{group}`.", ""]
    lines += ["| choice | description |", "| --- | --- |"]
    for option in options:
        mark = " (default)" if option.name == default else ""
        lines.append(f"| [`{group}={option.name}`](#{_anchor(group, option)}){mark} | {option.summary} |")
    for option in options:
        lines += ["", f"({_anchor(group, option)})=", f"## `{group}={option.name}`", ""]
        lines += [_prose(option.description), ""] if option.description else []
        lines += ["```bash", *option.commands, "```", ""] if option.commands else []
        lines += key_table(option.keys, prefix=_prefix(group))
    return "\n".join(lines) + "\n"


def run_page(option: Option, defaults: dict[str, str]) -> str:
    """Return the page of `train.yaml`: the choice of each group, and the settings that belong to none."""
    lines = ["# Settings of a run", "", _prose(option.description), "", "## Groups", ""]
    lines += ["| group | default choice |", "| --- | --- |"]
    lines += [f"| `{group}` | {'none' if name == 'None' else f'`{name}`'} |" for group, name in defaults.items()]
    hydra = [key for key in option.keys if key.name.startswith("hydra.")]
    lines += ["", "## Settings", "", *key_table([key for key in option.keys if key not in hydra])]
    if hydra:
        lines += ["", "## Hydra", "", "Where Hydra writes, and what it calls at the end of a multirun.", ""]
        lines += key_table(hydra)
    return "\n".join(lines) + "\n"


def key_table(keys: Sequence[Key], prefix: str = "") -> list[str]:
    """Return a table of settings in Markdown."""
    if not keys:
        return ["No settings."]
    lines = ["| setting | default | description |", "| --- | --- | --- |"]
    for key in keys:
        default = "must be given" if key.default == MANDATORY else f"`{_cell(key.default)}`"
        lines.append(f"| `{prefix}{key.name}` | {default} | {_prose(key.description)} |")
    return lines


def write_pages(conf: Path, target: Path) -> list[Path]:
    """Write the page of `train.yaml` and one per group; pages that have not changed keep their time."""
    target.mkdir(parents=True, exist_ok=True)
    defaults = chosen(conf)
    pages = {"train": run_page(read_option(conf / "train.yaml"), defaults)}
    for group, options in groups(conf).items():
        if options:
            pages[group.replace("/", "-")] = group_page(group, options, defaults.get(group))
    # the order of the table of contents
    pages = {f"{number:02}-{name}.md": text for number, (name, text) in enumerate(pages.items())}
    for stale in target.glob("*.md"):
        if stale.name not in pages:
            stale.unlink()
    for name, text in pages.items():
        page = target / name
        if not page.exists() or page.read_text() != text:
            page.write_text(text)
    return [target / name for name in pages]


def _keys(node: yaml.MappingNode, text: str, prefix: str = "") -> Iterator[Key]:
    for key, value in node.value:
        name = f"{prefix}{key.value}"
        if name == "defaults":
            continue
        if isinstance(value, yaml.MappingNode) and value.value:
            yield from _keys(value, text, f"{name}.")
        else:
            yield Key(name, _written(value, text), _comment(text, key.start_mark.line))


def _written(value: yaml.Node, text: str) -> str:
    if isinstance(value, yaml.SequenceNode) and not value.flow_style:
        return f"[{', '.join(_written(item, text) for item in value.value)}]"
    return " ".join(text[value.start_mark.index : value.end_mark.index].split()) or "null"


def _comment(text: str, line: int) -> str:
    """Return the comment that ends on the line above `line`, as one paragraph; the one at the top is the file's."""
    lines = text.splitlines()
    first = line
    while first and lines[first - 1].lstrip().startswith("#"):
        first -= 1
    return _joined(lines[first:line]) if first else ""


def _header(text: str) -> tuple[str, tuple[str, ...]]:
    """Return the comment at the top of a file: what it says, and the commands in it."""
    lines = text.splitlines()
    end = next((number for number, line in enumerate(lines) if not line.startswith("#")), len(lines))
    commands = [line for line in lines[:end] if line.startswith("#   ")]
    return _joined([line for line in lines[:end] if line not in commands]), _commands([line[4:] for line in commands])


def _commands(lines: Sequence[str]) -> tuple[str, ...]:
    """Return commands as a shell takes them: a label becomes a comment, `...` the overrides of the first command."""
    found: list[str] = []
    first = ""
    for line in lines:
        label, command = re.fullmatch(r"(?:([^:=]+):\s+)?(.+)", line).groups()  # type: ignore[union-attr]
        first = first or command
        if command.startswith("... "):
            changed = {word.partition("=")[0] for word in command.split()}
            kept = [word for word in first.split() if word.partition("=")[0] not in changed]
            command = " ".join([*kept, command.removeprefix("... ")])
        found += [f"# {label}", command] if label else [command]
    return tuple(found)


def _joined(lines: Sequence[str]) -> str:
    bare = (line.lstrip().removeprefix("#").strip() for line in lines)
    return " ".join(line for line in bare if line and not line.startswith("@package"))


def _defaults(root: yaml.Node | None) -> list[str]:
    """Return the files beside it that a file takes keys from, in order, and `_self_` for its own keys."""
    entries = []
    if isinstance(root, yaml.MappingNode):
        for key, value in root.value:
            if key.value == "defaults" and isinstance(value, yaml.SequenceNode):
                entries = [item.value for item in value.value if isinstance(item, yaml.ScalarNode)]
    found = [re.sub(r"@.*", "", entry) for entry in entries]
    return found if "_self_" in found else [*found, "_self_"]


def _merge(merged: dict[str, Key], keys: Sequence[Key]) -> None:
    for key in keys:
        before = merged.get(key.name)
        # a value that is changed keeps the description that it was given where it was introduced
        keep = before is not None and not key.description
        merged[key.name] = replace(key, description=before.description) if before and keep else key


def _prefix(group: str) -> str:
    if group == "experiment":  # such a file sets keys of the whole config
        return ""
    return f"{group.replace('/', '.')}."


def _anchor(group: str, option: Option) -> str:
    return f"{group.replace('/', '-')}-{option.name}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _prose(comment: str) -> str:
    """Return a comment as Markdown: what is not between backticks is text, whatever signs it holds."""
    parts = comment.split("`")
    parts[::2] = [re.sub(r"([<*_\[\]{}\\])", r"\\\1", part) for part in parts[::2]]
    return _cell("`".join(parts))


def setup(app: Sphinx) -> dict[str, bool]:
    """Register with Sphinx."""
    docs = Path(app.srcdir)
    app.connect("builder-inited", lambda _app: write_pages(docs.parent / "conf", docs / "reference" / "config"))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
