"""The code in the documentation and the READMEs: Python runs, commands exist, settings compose.

A block after the comment `<!-- not run: reason -->` is skipped.
"""

import importlib
import re
import shlex
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import quick_config
from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser

from blockwise import cli
from blockwise.config import CONFIG_DIR, CONFIG_NAME, plain
from blockwise.config.checks import check_config

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "docs" / "_ext"))

from config_reference import groups, read_option  # noqa: E402 (the documentation's own modules)

GENERATED = ROOT / "docs" / "reference" / "config"
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md")),
    *sorted(ROOT.glob("experiments/*/README.md")),
    *sorted(
        page for page in ROOT.glob("docs/**/*.md") if not {GENERATED, ROOT / "docs" / "_build"} & set(page.parents)
    ),
]
FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\w+)\n(?P<code>.*?)^(?P=indent)```", re.MULTILINE | re.DOTALL)
LEFT_OUT = re.compile(r"<!-- not run: .+? -->\s*\Z", re.DOTALL)
# programs of others, whose arguments are not checked
OTHERS = {
    "cd",
    "docker",
    "export",
    "git",
    "kill",
    "mkdir",
    "pre-commit",
    "pytest",
    "sphinx-build",
    "tensorboard",
    "torchrun",
    "wandb",
}


@dataclass(frozen=True)
class Block:
    """A fenced block of code, with its page and line."""

    page: Path
    line: int
    code: str


def blocks(language: str) -> list[Block]:
    found = []
    for page in PAGES:
        text = page.read_text()
        for match in FENCE.finditer(text):
            if match["language"] == language and not LEFT_OUT.search(text[: match.start()]):
                line = text.count("\n", 0, match.start("code"))
                found.append(Block(page, line, re.sub(rf"^{match['indent']}", "", match["code"], flags=re.MULTILINE)))
    return found


def commands() -> list:
    """Return the distinct commands of bash blocks and config headers, with the place of their first use."""
    found: dict[tuple[str, ...], str] = {}
    sources = [(str(b.page.relative_to(ROOT)), b.code) for b in blocks("bash")]
    options = [(f"conf/{group}/{o.name}.yaml", o.commands) for group, all_ in groups(CONFIG_DIR).items() for o in all_]
    options.append(("conf/train.yaml", read_option(CONFIG_DIR / "train.yaml").commands))
    sources += [(place, "\n".join(lines)) for place, lines in options]
    for place, code in sources:
        for line in code.replace("\\\n", " ").splitlines():
            for command in split(line):
                found.setdefault(tuple(command), place)
    return [pytest.param(list(command), id=f"{place}: {shlex.join(command)}") for command, place in found.items()]


def split(line: str) -> list[list[str]]:
    """Return the commands of a line, without leading variables, pipes and redirections."""
    words = shlex.split(line, comments=True)
    parts: list[list[str]] = [[]]
    for word in words:
        if word in ("&&", "||", ";", "|"):
            parts.append([])
        elif word != "sudo" and not (not parts[-1] and re.fullmatch(r"\w+=.*", word)):
            parts[-1].append(word)
    return [part for part in parts if part]


# pages whose code trains much
TRAINING = ("recipes", "policies", "search", "add_logger")


def python_pages() -> list:
    pages: dict[Path, list[Block]] = {}
    for block in blocks("python"):
        pages.setdefault(block.page, []).append(block)
    marks = {page: [pytest.mark.slow] if page.stem in TRAINING else [] for page in pages}
    return [pytest.param(own, id=str(page.relative_to(ROOT)), marks=marks[page]) for page, own in pages.items()]


@pytest.mark.parametrize("own", python_pages())
def test_python_of_a_page_runs_from_top_to_bottom(own, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # no page may need a network; one that does fails at once
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    namespace: dict = {"__name__": "__main__"}
    for block in own:
        # blank lines before it, so that a traceback names the line of the page
        exec(compile("\n" * block.line + block.code, str(block.page), "exec"), namespace)


@pytest.mark.parametrize("command", commands())
def test_a_command_can_be_given(command):
    program = command[0].rpartition("/")[2]
    rest = command[1:]
    if program in ("python", "python3") and rest[:2] == ["-m", "pip"]:
        program, rest = "pip", rest[2:]
    if program in ("python", "python3"):
        if rest[:1] == ["train.py"] or rest[:2] == ["-m", "blockwise.train"]:
            check_training(rest[1 + (rest[0] == "-m") :])
        elif rest[:2] == ["-m", "blockwise"]:
            check_blockwise(rest[2:])
        else:
            assert (ROOT / rest[0]).is_file(), f"{rest[0]} is no script"
    elif program == "blockwise":
        check_blockwise(rest)
    elif program == "make":
        wanted = {word for word in rest if "=" not in word}
        assert wanted <= targets(), f"the Makefile has no {wanted - targets()}"
    elif program == "pip":
        for extra in re.findall(r"\[(.+?)\]", " ".join(rest)):
            assert set(extra.split(",")) <= set(extras()), f"there is no extra {extra}"
    else:
        assert program in OTHERS, f"{program} is not known to this test"


def check_training(arguments):
    """Compose the settings of a `train.py` command, with the first value of each axis."""
    options = get_args_parser().parse_intermixed_args([word for word in arguments if word != "..."])
    chosen, of_hydra = [], []
    for override in OverridesParser.create().parse_overrides(options.overrides):
        line = override.input_line
        if override.is_sweep_override():
            assert options.multirun, f"{line} is an axis, and -m is missing"
            line = f"{override.get_key_element()}={next(iter(override.sweep_string_iterator()))}"
        (of_hydra if override.key_or_group.startswith("hydra") else chosen).append(line)
    if options.config_dir:
        folder = ROOT / options.config_dir
        assert folder.is_dir()
        chosen.append(f"hydra.searchpath=[file://{folder}]")
    check_config(plain(quick_config(chosen)))
    if of_hydra:
        with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
            compose(CONFIG_NAME, [*chosen, *of_hydra], return_hydra_config=True)


def check_blockwise(arguments):
    """Parse a `blockwise` command."""
    if arguments[:1] == ["train"]:
        check_training(arguments[1:])
        return
    options = cli.build_parser().parse_args(list(arguments))
    quick_config([word for word in getattr(options, "overrides", []) if "=" in word])


def targets():
    lines = (ROOT / "Makefile").read_text().splitlines()
    return {name for line in lines if (match := re.match(r"([\w -]+):(?!=)", line)) for name in match[1].split()}


def extras():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def mentioned(pattern):
    """Return the matches of a pattern in the documentation's inline code, with their pages."""
    found = []
    for page in PAGES:
        prose = FENCE.sub("", page.read_text())
        found += [(text, page.name) for text in re.findall(r"`([^`\n]+)`", prose) if re.fullmatch(pattern, text)]
    return found


def test_files_that_pages_mention_are_there():
    named = mentioned(r"(src|conf|tests|docs|experiments|notebooks)(/[\w.-]+)+/?")
    made = ("experiments/paper/results", "docs/_build/html")  # by `make tables` and `make docs`
    assert named
    assert not [entry for entry in named if not (ROOT / entry[0]).exists() and entry[0] not in made]


def test_modules_that_pages_mention_are_there():
    named = mentioned(r"blockwise(\.\w+)+")
    assert named
    missing = []
    for name, page in named:
        parent, _, last = name.rpartition(".")
        try:
            importlib.import_module(name)
        except ModuleNotFoundError:
            if not hasattr(importlib.import_module(parent), last):
                missing.append((name, page))
    assert not missing
