"""Hashes of contents that are remembered, and when they must not be."""

import hashlib
import os
import time
from pathlib import Path

import pytest

from blockwise.io import hashes as module
from blockwise.io.hashes import hash_files, remembering


@pytest.fixture
def files(tmp_path):
    made = [tmp_path / "images" / f"{number}.jpg" for number in range(3)]
    made[0].parent.mkdir()
    for path in made:
        path.write_text(path.name)
    return made


@pytest.fixture
def hashed(monkeypatch):
    """The names of the files whose content is read; what was written just now counts as settled."""
    names, original = [], module._hash

    def counting(name):
        names.append(Path(name).name)
        return original(name)

    monkeypatch.setattr(module, "_hash", counting)
    monkeypatch.setattr(module, "TICK_SECONDS", -1)
    return names


def expected(files):
    return [hashlib.blake2b(path.read_bytes()).hexdigest() for path in files]


def test_the_second_time_no_content_is_read(files, hashed, tmp_path):
    for _ in range(2):
        with remembering(tmp_path / "cache"):
            assert hash_files(files) == expected(files)
    assert sorted(hashed) == ["0.jpg", "1.jpg", "2.jpg"]
    assert hash_files(files) == expected(files)  # nothing is remembered outside the block
    assert len(hashed) == 6


def test_a_changed_file_is_read_again_even_with_its_old_time(files, hashed, tmp_path):
    with remembering(tmp_path / "cache"):
        hash_files(files)
        del hashed[:]
        status = files[1].stat()
        time.sleep(0.02)
        files[1].write_text("X.jpg")  # of the same size
        os.utime(files[1], ns=(status.st_atime_ns, status.st_mtime_ns))
        assert hash_files(files) == expected(files)
        assert hashed == ["1.jpg"]


def test_what_has_just_changed_is_not_remembered(files, hashed, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "TICK_SECONDS", 60)
    with remembering(tmp_path / "cache"):
        for _ in range(2):
            assert hash_files(files) == expected(files)
    assert len(hashed) == 6


def test_what_cannot_be_read_is_tried_again(files, hashed, tmp_path):
    content = files[2].read_text()
    files[2].unlink()
    with remembering(tmp_path / "cache"):
        assert hash_files(files)[2] == "unreadable: No such file or directory"
        files[2].write_text(content)
        assert hash_files(files) == expected(files)
    assert hashed.count("2.jpg") == 2


@pytest.mark.parametrize("content", ["", "{", "[]", '{"a": 1}', "\udcff"])
def test_a_damaged_memory_is_written_anew(files, hashed, tmp_path, content):
    with remembering(tmp_path / "cache"):
        hash_files(files)
        (memory,) = (tmp_path / "cache").iterdir()
        memory.write_bytes(content.encode(errors="surrogateescape"))
        assert hash_files(files) == hash_files(files) == expected(files)
    assert len(hashed) == 6


def test_a_folder_that_cannot_be_made_costs_the_memory_and_not_the_run(files, hashed, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match="cannot remember hashes"), remembering(tmp_path / "file" / "cache"):
        assert hash_files(files) == expected(files)


def test_names_need_not_be_utf_8(tmp_path, hashed):
    path = tmp_path / os.fsdecode(b"\xe9.jpg")
    path.write_text("content")
    for _ in range(2):
        with remembering(tmp_path / "cache"):
            assert hash_files([path]) == expected([path])
    assert len(hashed) == 1
