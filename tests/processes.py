"""`blockwise` in real processes. They are forked from a server that has made the imports, so each starts at once."""

import atexit
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from multiprocessing import forkserver
from pathlib import Path
from unittest import mock

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["preloaded"])


class Running:
    """A process of `blockwise`: `pid`, the pipe `stdout`, and at the end `returncode` and the text of `stderr`."""

    def __init__(self, process: multiprocessing.Process, folder: Path) -> None:
        self.process, self.pid, self._folder = process, process.pid, folder
        self.stdout = (folder / "stdout").open()  # waits until the process has opened its end

    def wait(self, timeout: float) -> None:
        self.process.join(timeout)
        assert self.process.exitcode is not None, f"still running after {timeout} seconds"

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode

    @property
    def stderr(self) -> str:
        return (self._folder / "stderr").read_text()


@contextmanager
def started(
    *arguments: str, folder: Path, environment: Mapping[str, str] | None = None, before: str = ""
) -> Iterator[Running]:
    """Start `blockwise` with these arguments in a folder; at the end of the `with` block it is killed if it still runs.

    Args:
        arguments: Arguments of `blockwise`.
        folder: Working directory.
        environment: Environment variables; those of the tests if None.
        before: Python code that the process runs first.
    """
    path = [str(Path(__file__).parent), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    with mock.patch.dict(os.environ, PYTHONPATH=os.pathsep.join(path)):
        forkserver.ensure_running()  # the server does not know the path of `preloaded`
    with tempfile.TemporaryDirectory() as pipes:
        os.mkfifo(Path(pipes, "stdout"))
        environment = dict(os.environ if environment is None else environment)
        process = SERVER.Process(target=_blockwise, args=(list(arguments), str(folder), environment, before, pipes))
        process.start()
        running = Running(process, Path(pipes))
        try:
            yield running
        finally:
            running.stdout.close()
            process.kill()
            process.join()


def blockwise(*arguments: str, timeout: float = 120, **options) -> subprocess.CompletedProcess[str]:
    """Run `blockwise` to its end, as `subprocess.run(["blockwise", ...])` does; for the options, see `started`."""
    with started(*arguments, **options) as running:
        output = running.stdout.read()
        running.wait(timeout)
        return subprocess.CompletedProcess(["blockwise", *arguments], running.returncode, output, running.stderr)


def _blockwise(arguments: list[str], folder: str, environment: dict[str, str], before: str, pipes: str) -> None:
    for number, name in enumerate(("stdout", "stderr"), 1):
        file = os.open(Path(pipes, name), os.O_WRONLY | os.O_CREAT)
        os.dup2(file, number)
        os.close(file)
    multiprocessing.set_start_method(None, force=True)  # the system's default, as in a new process
    # Python's own were made for the server's files
    sys.stdout = os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", 1, errors="backslashreplace", closefd=False)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv = ["blockwise", *arguments]
    try:
        exec(before, {})
        runpy.run_module("blockwise", run_name="__main__")
    finally:
        atexit._run_exitfuncs()  # a child of multiprocessing skips them
