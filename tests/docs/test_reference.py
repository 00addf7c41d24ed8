"""The reference agrees with the code: settings, commands, fields of a record, figures."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from torch.utils.data import DataLoader, TensorDataset

from blockwise import load_backbone, make_partition, train_scopes
from blockwise.cli import build_parser
from blockwise.config import CONFIG_DIR, compose_config

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
sys.path.insert(0, str(DOCS / "_ext"))

import config_reference  # noqa: E402 (the documentation's own modules)


def flat(node, prefix=""):
    if not isinstance(node, dict) or not node:
        return {prefix[:-1]: node}
    return {key: value for name, child in node.items() for key, value in flat(child, f"{prefix}{name}.").items()}


def options():
    """All options except experiments and Hydra's, whose keys may be in any group."""
    for group, found in config_reference.groups(CONFIG_DIR).items():
        if not group.startswith(("experiment", "hydra")):
            yield from (pytest.param(group, option, id=f"{group}={option.name}") for option in found)


@pytest.mark.parametrize(("group", "option"), options())
def test_settings_of_an_option_are_those_that_hydra_composes(group, option):
    composed = OmegaConf.to_container(compose_config([f"{group}={option.name}"]), resolve=False)[group] or {}
    shown = {
        key.name: OmegaConf.to_container(OmegaConf.create(f"value: {key.default}"))["value"] for key in option.keys
    }
    assert shown == (flat(composed) if composed else {})


def test_every_setting_of_a_run_is_shown():
    composed = OmegaConf.to_container(compose_config([]), resolve=False)
    chosen = config_reference.chosen(CONFIG_DIR)
    own = {name: value for name, value in composed.items() if name not in chosen}
    shown = {key.name for key in config_reference.read_option(CONFIG_DIR / "train.yaml").keys}
    assert set(flat(own)) <= shown


def test_comments_become_descriptions_and_bases_are_resolved(tmp_path):
    (tmp_path / "_base.yaml").write_text("# what all share\n# how many\nnumber: 1\nrest: {a: 1, b: [x, y]}\n")
    (tmp_path / "one.yaml").write_text(
        "# One of <them>.\n#   python train.py group=one\ndefaults: [_base, _self_]\n\n"
        "# a text | of two\n# lines\ntext: >-\n"
        "  a\n  b\nrest:\n  # the first\n  a: 2\n"
    )
    option = config_reference.read_option(tmp_path / "one.yaml")
    assert (option.description, option.commands) == ("One of <them>.", ("python train.py group=one",))
    rows = config_reference.key_table(option.keys, "group.")[2:]
    assert rows[0] == "| `group.number` | `1` |  |"
    assert rows[1] == "| `group.rest.a` | `2` | the first |"
    assert rows[2] == "| `group.rest.b` | `[x, y]` |  |"
    assert rows[3].endswith("| a text \\| of two lines |")
    assert config_reference._commands(("one:  a x=1 y=2", "two: ... x=3")) == (
        "# one",
        "a x=1 y=2",
        "# two",
        "a y=2 x=3",
    )
    assert "\\<them>" in config_reference.group_page("group", [option], None)


def test_pages_of_groups_that_are_gone_are_removed(tmp_path):
    stale = tmp_path / "99-gone.md"
    stale.write_text("# gone\n")
    pages = config_reference.write_pages(CONFIG_DIR, tmp_path)
    assert set(tmp_path.iterdir()) == set(pages)
    assert stale not in pages


def test_every_field_of_a_record_is_described(tmp_path):
    backbone = load_backbone("timm:test_resnet", pretrained=False, image_size=32)
    loader = DataLoader(TensorDataset(torch.randn(8, 3, 32, 32), torch.arange(8) % 2), batch_size=4)
    (record,) = train_scopes(
        backbone, make_partition(backbone, num_blocks=2), 0, dict.fromkeys(("train", "val", "test"), loader),
        classes=["a", "b"], data_name="noise", max_epochs=1, accelerator="cpu", results_dir=tmp_path, quiet=True,
    )  # fmt: skip
    page = (DOCS / "reference" / "results.md").read_text()
    described = set(re.findall(r"`([\w.]+)`", page))
    # objects that are described as a whole
    whole = {"settings", "files", "provenance.versions", *(f"metrics.{split}" for split in ("train", "val", "test"))}
    content = record.to_json()
    leaves = {"".join(name) for name in flat(content)}
    leaves = {next((part for part in whole if name.startswith(f"{part}.")), name) for name in leaves}
    assert not leaves - described
    assert set(content["metrics"]["test"]) <= described
    files = {path.name for path in Path(record.folder).iterdir()}
    assert files <= described


@pytest.mark.parametrize("page", ["explanation/speed.md", "explanation/reliability.md"])
def test_figures_are_those_of_the_readmes(page):
    sources = [ROOT / "README.md", *ROOT.glob("experiments/*/README.md")]
    known = set(re.findall(r"\d+(?:\.\d+)?", " ".join(path.read_text() for path in sources)))
    text = (DOCS / page).read_text()
    # decimals, and what a table says
    cells = [cell for line in text.splitlines() if line.startswith("|") for cell in re.findall(r"\d+(?:\.\d+)?", line)]
    figures = {*re.findall(r"\d+\.\d+", text), *cells}
    assert figures
    assert not figures - known


@pytest.mark.skipif(importlib.util.find_spec("sphinx") is None, reason="the extra `docs` is not installed")
def test_every_command_has_a_section():
    import cli_reference

    found = cli_reference.commands(build_parser())
    assert {"train", "inspect", "table", "report", "claims", "sync", "dashboard"} <= set(found)
    section = cli_reference.command_section("table", *found["table"])
    assert section.startswith("### `blockwise table`")
    assert "| `--backbones` |" in section
