"""Names with an origin: repositories and folders, and their short names."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockwise.errors import InputError
from blockwise.io import origins
from blockwise.io.names import LONGEST


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("resnet18.a1_in1k", "resnet18.a1_in1k"),
        ("hf-hub:timm/resnet18.a1_in1k", "timm--resnet18.a1_in1k"),
        ("hf-hub:a/b@refs/pr/1", "a--b--refs--pr--1"),
        ("local-dir:/networks/mine/", "mine"),
        ("local-dir:/networks/.hidden", "_hidden"),
        ("local-dir:/networks/a|b", "a_b"),
        ("local-dir:/", "_"),
    ],
)
def test_short_names(name, short):
    assert origins.short_name(name) == short


def test_a_folder_may_be_relative_or_at_home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert origins.folder("local-dir:mine") == origins.folder("local-dir:~/mine") == tmp_path / "mine"
    assert origins.short_name("local-dir:.") == tmp_path.name


@given(st.text(max_size=200), st.sampled_from((origins.HUB, origins.FOLDER)))
def test_every_name_is_one_part_of_a_path_or_refused(text, prefix):
    try:
        short = origins.short_name(prefix + text)
    except InputError as error:
        assert "\n" not in str(error)
    else:
        assert short not in ("", ".", "..")
        assert os.sep not in short
        assert prefix == origins.FOLDER or len(short) <= 2 * origins.LONGEST + 2
        assert prefix == origins.HUB or len(short.encode()) <= LONGEST
