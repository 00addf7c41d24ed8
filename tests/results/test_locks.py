"""Only one process trains a cell, and no lock outlives its process."""

import subprocess
import sys
import time

import pytest

from blockwise.errors import InputError
from blockwise.results.locks import claim, wait

HOLD = """
import sys, time
from pathlib import Path
from blockwise.results.locks import claim
with claim([Path(path) for path in sys.argv[1:]]) as got:
    print(got, flush=True)
    time.sleep(600)
"""


def hold(*paths):
    process = subprocess.Popen([sys.executable, "-c", HOLD, *map(str, paths)], stdout=subprocess.PIPE, text=True)
    return process, process.stdout.readline().strip()


def test_what_another_process_holds_is_not_claimed_until_that_is_gone(tmp_path):
    paths = [tmp_path / "locks" / name for name in "abc"]
    process, got = hold(*paths[:2])
    with process:
        assert got == "[True, True]"
        with claim(paths) as mine:
            assert mine == [False, False, True]
        assert not wait(paths[0], seconds=0.1)
        process.kill()
        since = time.monotonic()
        assert wait(paths[0])
        assert time.monotonic() - since < 30
    with claim(paths) as mine:
        assert mine == [True, True, True]


def test_something_else_in_place_of_a_lock_is_left_alone(tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("content")
    (tmp_path / "link").symlink_to(precious)
    (tmp_path / "folder").mkdir()
    for name, message in (("link", "is a link: remove it"), ("folder", "cannot be locked")):
        with pytest.raises(InputError, match=message), claim([tmp_path / name]):
            pass
    assert precious.read_text() == "content"
