"""Nothing is downloaded or uploaded, and nothing is written outside the results, cache and output folders."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import SMALL
from PIL import Image

pytestmark = pytest.mark.slow

# Python runs a `sitecustomize.py` when it starts: before all imports, and in child processes too. This one writes down
# what the process writes, moves, deletes and starts, and where it connects to, and it cuts the network.
WATCH = """
import json, os, sys

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES = {"os.mkdir": 1, "os.remove": 1, "os.rmdir": 1, "os.truncate": 1, "os.chmod": 1, "os.chown": 1,
           "os.utime": 1, "os.rename": 2, "os.link": 2, "os.symlink": 2}
NETWORK = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr", "socket.bind",
           "socket.sendto", "socket.sendmsg")
PROCESSES = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty", "os.startfile")
log = os.open(os.environ["WATCH_LOG"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)

def note(kind, what):
    os.write(log, (json.dumps([kind, what]) + "\\n").encode())

def watch(event, arguments):
    if event == "open" and isinstance(arguments[0], (str, bytes)) and arguments[2] & WRITING:
        note("write", os.path.abspath(os.fsdecode(arguments[0])))
    elif event in CHANGES:
        for path in arguments[: CHANGES[event]]:
            # a folder that exists already stays as it is
            if not isinstance(path, int) and not (event == "os.mkdir" and os.path.isdir(path)):
                note("write", os.path.abspath(os.fsdecode(path)))
    elif event == "subprocess.Popen":
        note("start", [os.fsdecode(part) for part in arguments[1]])
    elif event in PROCESSES:
        note("start", [event])
    # urllib3 asks whether the machine knows IPv6
    elif event in NETWORK and not (event == "socket.bind" and arguments[1][:2] == ("::1", 0)):
        note("network", [event, repr(arguments)])
        raise OSError("the network is cut")

sys.addaudithook(watch)
"""
# When Matplotlib is imported for the first time, it makes these folders, asks the system for its fonts, and keeps their
# list. Without the list, each command would take longer to start.
MATPLOTLIB = ("home/.cache/matplotlib", "home/.config/matplotlib")
# questions about the machine: its fonts by Matplotlib, its libraries by torch
QUESTIONS = {"fc-list", "system_profiler", "ldconfig"}
CACHE = "home/.cache/blockwise"


@pytest.fixture(scope="module")
def user(tmp_path_factory):
    """Run the commands of a new user; return the folder with `home`, `work`, `tmp` and what `WATCH` wrote down."""
    folder = tmp_path_factory.mktemp("user").resolve()
    for name in ("home", "work", "tmp", "watch", "images/a", "images/b"):
        (folder / name).mkdir(parents=True)
    for i in range(12):
        Image.new("RGB", (40, 40), (20 * i, 0, 0)).save(folder / "images" / "ab"[i % 2] / f"{i}.png")
    (folder / "watch" / "sitecustomize.py").write_text(WATCH)
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder / "home"),
        "TMPDIR": str(folder / "tmp"),
        "PYTHONPATH": str(folder / "watch"),
        "WATCH_LOG": str(folder / "watch" / "log"),
        "OMP_NUM_THREADS": "1",
    }
    train = ["train", *(o for o in SMALL if not o.startswith(("data", "trainer.max_epochs")))]
    train += ["trainer.max_epochs=1", "partition.num_blocks=3", "block=[head,0]"]
    train += ["data=imagefolder", f"data.root={folder / 'images'}", "data.image_size=32", "data.batch_size=4"]
    for arguments in (train, ["table"], ["report"]):
        command = [sys.executable, "-m", "blockwise", *arguments]
        done = subprocess.run(
            command, cwd=folder / "work", env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    return folder


def noted(user, kind):
    lines = [json.loads(line) for line in (user / "watch" / "log").read_text().splitlines()]
    return [what for noted_kind, what in lines if noted_kind == kind]


def test_everything_is_written_to_the_results_the_cache_the_output_or_the_temporary_folder(user):
    ours = ["work/results", "work/report", CACHE]
    written = {Path(path) for path in noted(user, "write")} - {Path(os.devnull)}
    for place in ours:
        assert any(path.is_relative_to(user / place) for path in written)
    places = [user / place for place in (*ours, "tmp", *MATPLOTLIB)]
    elsewhere = {path for path in written if not any(path.is_relative_to(place) for place in places)}
    elsewhere -= {user / "home/.cache", user / "home/.config"}
    # Python keeps its byte code beside the source
    assert {path for path in elsewhere if "__pycache__" not in path.parts} == set()


def test_what_is_left_is_in_the_same_folders(user):
    """Libraries written in C can write without an event."""
    assert {path.name for path in (user / "work").iterdir()} == {"results", "report"}
    left = {str(path.relative_to(user)) for path in (user / "home").rglob("*") if not path.is_dir()}
    assert {path for path in left if not path.startswith((CACHE, *MATPLOTLIB))} == set()
    assert len(list((user / "images").rglob("*"))) == 14


def test_nothing_is_downloaded_or_uploaded(user):
    assert noted(user, "network") == []


def test_only_git_is_started_and_its_index_stays_as_it_is(user):
    started = [arguments for arguments in noted(user, "start") if Path(arguments[0]).name not in QUESTIONS]
    assert started, "git tells the commit"
    for program, *options in started:
        assert program == "git"
        assert "--no-optional-locks" in options, "`git status` would lock the index of the checkout and write to it"
