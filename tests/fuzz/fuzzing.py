"""What the fuzz tests share: how many inputs they try, damaged bytes, and what must hold for every input.

`make test` tries a few inputs of each kind, `make fuzz` many.
"""

import os
import re
import signal
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from blockwise.errors import InputError

# inputs per test; `make fuzz` sets the variable
EXAMPLES = int(os.environ.get("BLOCKWISE_FUZZ_EXAMPLES", "8"))
# seconds that one input may take, also on a busy machine
PATIENCE = 10
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def examples(share=1.0):
    """Return settings for a fuzz test; slow ones take a share of the inputs that others take."""
    return settings(
        max_examples=max(5, int(share * EXAMPLES)),
        # the first inputs also import what the code needs
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
        # a database of failures belongs to those who run `make fuzz`, not to the tests of a release
        database=None,
    )


class TooSlow(BaseException):
    """An input took too long; no `except Exception` catches it."""


class Watch:
    """Remembers which files were written outside a folder while it is on.

    Python tells an audit hook of every file that it is about to open or change. Hooks cannot be removed, so there is
    one for all tests.
    """

    CHANGES = frozenset("os.mkdir os.rmdir os.remove os.rename os.link os.symlink os.chmod os.chown os.utime".split())

    def __init__(self):
        self.folder = None
        self.outside = []
        sys.addaudithook(self.see)

    def see(self, event, arguments):
        if self.folder is None or not (event == "open" or event in self.CHANGES):
            return
        if event == "open":
            path, mode, flags = arguments
            writing = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) if isinstance(flags, int) else mode not in "rb"
            paths = [path] if writing else []
        else:
            paths = arguments[:2] if event in ("os.rename", "os.link") else arguments[:1]
            paths = arguments[1:2] if event == "os.symlink" else paths
        for path in paths:
            if isinstance(path, (str, bytes, os.PathLike)):
                real = os.path.realpath(os.fsdecode(path))
                if real != self.folder and not real.startswith(self.folder + os.sep) and real != os.devnull:
                    self.outside.append((event, real))

    @contextmanager
    def on(self, folder):
        self.folder, self.outside = os.path.realpath(folder), []
        try:
            yield
        finally:
            self.folder = None


WATCH = Watch()


@contextmanager
def within_limits():
    """Yield a new folder; fail if the `with` block hangs, writes outside it or raises an error of more than a line.

    An `InputError` is what invalid input shall raise, and ends the block.
    """
    with tempfile.TemporaryDirectory(prefix="blockwise-fuzz-") as name:
        folder = Path(name, "inner")
        folder.mkdir()
        with WATCH.on(folder), _alarm():
            try:
                yield folder
            except InputError as error:
                check_line(str(error))
        assert not WATCH.outside, f"written outside the folder: {WATCH.outside}"
        assert os.listdir(name) == ["inner"]  # noqa: PTH208 (names, not paths)


def check_line(message):
    """Check that a message is one line that changes nothing in a terminal, and no advice to run a file's code."""
    assert message.strip()
    assert not CONTROL.search(message), f"control characters in {message!r}"
    assert "weights_only" not in message


@contextmanager
def _alarm():
    if not hasattr(signal, "setitimer"):  # Windows
        yield
        return

    def ring(*_):
        raise TooSlow

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, PATIENCE)
    try:
        yield
    except TooSlow as error:
        raise AssertionError(f"an input took longer than {PATIENCE} seconds") from error
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# values at which sizes, offsets and signs of file formats change
EDGES = [
    b"\0",
    b"\xff",
    b"\x7f",
    b"\x80",
    b"\xff\xff\xff\xff",
    b"\x7f\xff\xff\xff",
    b"\xff" * 8,
    b"\0" * 8,
    b"\n",
    b'"',
]
POSITION = st.integers(0, 2**16)
BYTES = st.one_of(st.sampled_from(EDGES), st.binary(min_size=1, max_size=8))
# most changes keep all other bytes in their places, or hardly any damaged file would be read past its header
SMALL = st.tuples(st.sampled_from(("add", "add", "flip", "flip", "set")), POSITION, BYTES)
LARGE = st.tuples(st.sampled_from(("set", "insert", "delete", "repeat", "cut")), POSITION, BYTES)
EDITS = st.one_of(
    st.lists(SMALL, min_size=1, max_size=3), st.lists(LARGE, min_size=1, max_size=1), st.lists(st.one_of(SMALL, LARGE))
)


def damaged(*originals):
    """Return a strategy of bytes: one of the originals after a few changes."""
    return st.builds(_damage, st.sampled_from(originals), EDITS)


def _damage(original, edits):
    data = bytearray(original)
    for kind, where, value in edits:
        at = where % (len(data) + 1)
        end = at + len(value)
        if kind == "set":
            data[at:end] = value
        elif kind == "insert":
            data[at:at] = value
        elif kind == "delete":
            del data[at : at + value[0] + 1]
        elif kind == "repeat":
            data[at:at] = data[at : at + value[0] + 1] * (1 + value[-1] % 3)
        elif kind == "cut":
            del data[at:]
        elif kind == "flip" and at < len(data):
            data[at] ^= 1 << value[0] % 8
        elif at < len(data):
            data[at] = (data[at] + value[0]) % 256
    return bytes(data)
