"""The reference of the command line, generated from the argument parser itself."""

from __future__ import annotations

import argparse

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from blockwise.cli import build_parser


def commands(parser: argparse.ArgumentParser) -> dict[str, tuple[str, argparse.ArgumentParser]]:
    """Return the help text and the parser of each subcommand, by its name."""
    (action,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    helps = {choice.dest: choice.help or "" for choice in action._choices_actions}
    return {name: (helps.get(name, ""), sub) for name, sub in action.choices.items()}


def command_section(name: str, text: str, sub: argparse.ArgumentParser) -> str:
    """Return the section of a subcommand in Markdown: its help text, its usage, its arguments."""
    usage = " ".join(sub.format_usage().removeprefix("usage:").split())
    usage = usage[usage.index("blockwise") :].replace("[-h] ", "").removesuffix(" [-h]")
    lines = [f"### `blockwise {name}`", "", f"{text[:1].upper()}{text[1:]}.", "", "```text", usage, "```", ""]
    rows = [_row(action) for action in sub._actions if "--help" not in action.option_strings]
    if rows:
        lines += ["| argument | default | description |", "| --- | --- | --- |", *rows]
    return "\n".join(lines)


def _row(action: argparse.Action) -> str:
    name = ", ".join(action.option_strings) or action.dest
    value = "" if action.nargs == 0 or not action.option_strings else f" {(action.metavar or action.dest).upper()}"
    shown = action.default not in (None, False, []) and action.default is not argparse.SUPPRESS
    default = f"`{action.default}`" if shown else ""
    return f"| `{name}{value}` | {default} | {(action.help or '').replace('|', chr(92) + '|')} |"


class CliCommands(SphinxDirective):
    """A section for each subcommand."""

    def run(self) -> list[nodes.Node]:
        """Return the sections."""
        found = commands(build_parser())
        text = "\n\n".join(command_section(name, *entry) for name, entry in found.items() if name != "train")
        return self.parse_text_to_nodes(text, allow_section_headings=True)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register with Sphinx."""
    app.add_directive("cli-commands", CliCommands)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
