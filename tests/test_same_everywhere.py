"""The same command gives the same bytes in another locale, time zone, Python process and order of files.

Three promises of the same kind are tested elsewhere: cells alone and among others, and the number of workers, in
`study/test_run.py`; runs that are interrupted and resumed in `training/test_checkpoints.py`.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import SMALL
from PIL import Image
from processes import blockwise

# Turkish has an i without a dot, which is the lower case of I
CLASSES = ("Iris", "çam", "\N{LATIN SMALL LETTER DOTLESS I}rmak")
SUFFIXES = (".png", ".PNG", ".bmp", ".GIF")
OWN_TO_A_RUN = ("seconds", "peak_memory_bytes")
# the checkout may change while the tests run
OWN_TO_A_MOMENT = ("finished", "commit", "dirty")
TRAIN = ["train", *(o for o in SMALL if not o.startswith(("data", "trainer.max_epochs")))]
TRAIN += ["trainer.max_epochs=1", "partition.num_blocks=3", "block=[head,1,full]"]
TRAIN += ["data=imagefolder", "data.root=images", "data.image_size=32", "data.batch_size=4"]
# as if the disk listed folders and files the other way round
BACKWARDS = """
import os
listdir, scandir = os.listdir, os.scandir

class Backwards:
    def __init__(self, *folder):
        with scandir(*folder) as entries:
            self.entries = iter(sorted(entries, key=lambda entry: entry.name, reverse=True))

    def __iter__(self):
        return self

    def __next__(self):
        return next(self.entries)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    close = __exit__

os.listdir = lambda *folder: sorted(listdir(*folder), reverse=True)
os.scandir = Backwards
assert os.listdir("images")[-1] == next(os.walk("images"))[1][-1] == "Iris"
"""


def paint(folder, *, backwards=False):
    """Write a few images of each class, in either order of time."""
    random = np.random.default_rng(0)
    names = [f"{label}/{i}{suffix}" for label in CLASSES for i, suffix in enumerate(SUFFIXES + SUFFIXES)]
    pixels = {name: random.integers(0, 256, (40, 40, 3), dtype=np.uint8) for name in names}
    for age, name in enumerate(reversed(names) if backwards else names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[name]).save(folder / name)
        os.utime(folder / name, (age, age))


def environment(**variables):
    """Return the environment of a run: that of the tests, with a cache of images in the working directory."""
    return {**os.environ, "BLOCKWISE_CACHE": "cache", "PYTHONIOENCODING": "utf-8", **variables}


def results(folder):
    """Return the content of each file of the results, without what no two runs share; hidden folders are left out."""
    files = (path for path in sorted((folder / "results").glob("[!.]*/**/*")) if path.is_file())
    found = {str(path.relative_to(folder)): path.read_bytes() for path in files}
    for name in found:
        if name.endswith("record.json"):
            record = {key: value for key, value in json.loads(found[name]).items() if key not in OWN_TO_A_RUN}
            record["provenance"] = {k: v for k, v in record["provenance"].items() if k not in OWN_TO_A_MOMENT}
            found[name] = record
    return found


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """Return the folder of the run that all others are compared with."""
    folder = tmp_path_factory.mktemp("reference")
    paint(folder / "images")
    done = blockwise(*TRAIN, folder=folder, environment=environment())
    assert done.returncode == 0, done.stderr
    kinds = {Path(name).name for name in results(folder) if not name.endswith(".png")}
    assert kinds == {"record.json", "history.csv", "predictions.safetensors", "weights.safetensors"}
    assert sum(name.endswith("record.json") for name in results(folder)) == 3
    return folder


@pytest.fixture
def folder(reference, tmp_path):
    """Return a folder with the images of the reference run and nothing else."""
    shutil.copytree(reference / "images", tmp_path / "images")
    return tmp_path


def check_same(folder, reference, done):
    assert done.returncode == 0, done.stderr
    mine, theirs = results(folder), results(reference)
    assert mine.keys() == theirs.keys()
    assert [name for name in mine if mine[name] != theirs[name]] == []


def test_the_same_command_twice(folder, reference):
    """The second run reads its images from the cache of the first."""
    shutil.copytree(reference / "cache", folder / "cache")
    before = {path.name for path in (folder / "cache").glob("*.npy")}
    done = blockwise(*TRAIN, folder=folder, environment=environment())
    check_same(folder, reference, done)
    assert {path.name for path in (folder / "cache").glob("*.npy")} == before


def test_another_order_of_files_other_times_of_change_and_a_time_zone_far_away(tmp_path, reference):
    paint(tmp_path / "images", backwards=True)
    before = BACKWARDS + "import time; time.tzset(); assert time.timezone == -14 * 3600"
    done = blockwise(*TRAIN, folder=tmp_path, environment=environment(TZ="LINT-14"), before=before)
    check_same(tmp_path, reference, done)


@pytest.fixture(scope="session")
def turkish(tmp_path_factory):
    """Return the variables of a Turkish locale: decimal commas, and i without a dot; it need not be installed."""
    folder = tmp_path_factory.mktemp("locales")
    if not shutil.which("localedef"):
        pytest.skip("localedef is not installed")
    subprocess.run(
        ["localedef", "-i", "tr_TR", "-f", "UTF-8", folder / "tr_TR.UTF-8"], capture_output=True, check=False
    )
    if not (folder / "tr_TR.UTF-8").is_dir():
        pytest.skip("the sources of Turkish are not installed")
    return {"LOCPATH": str(folder), "LC_ALL": "tr_TR.UTF-8"}


def test_a_turkish_locale(folder, reference, turkish):
    before = "import locale; locale.setlocale(locale.LC_ALL, ''); assert locale.localeconv()['decimal_point'] == ','"
    done = blockwise(*TRAIN, folder=folder, environment=environment(**turkish), before=before)
    check_same(folder, reference, done)


@pytest.mark.slow
def test_another_python_with_an_ascii_locale_and_another_order_of_sets(folder, reference):
    """Both are fixed when Python starts, so this run is not forked. What it prints has to be ASCII too."""
    ascii_locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": ""}
    done = subprocess.run(
        [sys.executable, "-m", "blockwise", *TRAIN],
        cwd=folder, env=environment(**ascii_locale, PYTHONHASHSEED="1"),
        capture_output=True, encoding="ascii", check=False,
    )  # fmt: skip
    check_same(folder, reference, done)
    assert "? head" in done.stdout, "in a table, a terminal without it shows ? for the Greek letter"
