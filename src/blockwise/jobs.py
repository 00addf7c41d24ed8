"""The jobs of a multirun: each in a process of its own, and a ledger of those that failed.

What takes a job down (a crash in native code, a kill, no memory left) takes that job down alone.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from blockwise.errors import Interrupted
from blockwise.files import replacing

LOG = "job.log"
OUTCOME = "outcome.json"
# in the environment of a job: its folder, and the command of its own
FOLDER = "BLOCKWISE_JOB_FOLDER"
COMMAND = "BLOCKWISE_JOB_COMMAND"
CELLS = "cells.json"
# bytes: a disk with less is full
ROOM = 2**16


@dataclass(frozen=True)
class Outcome:
    """What has become of a job.

    Attributes:
        overrides: The settings of the job, as on the command line.
        code: Its exit code; below 0, the number of the signal that killed it.
        reason: Why it failed, in one line; empty if it did not.
        cells: The cells that have no record yet, as far as the job has come to know them.
        log: Where its errors are, tracebacks included.
    """

    overrides: list[str]
    code: int
    reason: str
    cells: list[str]
    log: str


def run_job(overrides: Sequence[str], folder: Path, cwd: str = ".", options: Sequence[str] = ()) -> Outcome:
    """Run a job in a process of its own and return what has become of it.

    Args:
        overrides: Its settings, as on the command line.
        folder: Keeps its log and its outcome.
        cwd: Where it runs.
        options: What else the command line needs, as `--config-dir=...`.

    Raises:
        Interrupted: By Ctrl-C or SIGTERM, which the job was told of and given time for.
    """
    folder.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, FOLDER: str(folder), COMMAND: shlex.join(["blockwise", "train", *overrides])}
    # a segmentation fault leaves a traceback, too
    environment["PYTHONFAULTHANDLER"] = "1"
    command = [sys.executable, "-m", "blockwise.train", *options, "hydra.mode=RUN", *overrides]
    with (folder / LOG).open("a") as log:
        # a session of its own: Ctrl-C reaches it once, through us
        process = subprocess.Popen(command, stderr=log, env=environment, cwd=cwd, start_new_session=True)
        with _passing_on(process) as received:
            code = process.wait()
    if received:
        raise Interrupted(received[0])
    outcome = Outcome(list(overrides), code, _reason(code, folder / LOG), _cells(folder), str(folder / LOG))
    folder.mkdir(parents=True, exist_ok=True)  # it may have been removed meanwhile
    with replacing(folder / OUTCOME) as temporary:
        temporary.write_text(json.dumps(asdict(outcome), indent=2) + "\n")
    if outcome.reason:
        print(f"failed: {outcome.reason}", file=sys.stderr)
    return outcome


def report_cells(missing: Iterable[str]) -> None:
    """Note the cells that a job has yet to record, for the ledger; outside of a job, do nothing."""
    if folder := os.environ.get(FOLDER):
        (Path(folder) / CELLS).write_text(json.dumps(list(missing)))


def end_with_parent() -> None:
    """Have the system send this process SIGTERM when its parent ends, as by `kill -9`; on Linux alone."""
    if FOLDER not in os.environ or sys.platform != "linux":
        return
    import ctypes

    set_parent_death_signal = 1
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGTERM)


def read_outcomes(sweep_folder: Path) -> list[Outcome]:
    """Return what has become of the jobs of a multirun so far, in their order."""
    found = sorted(sweep_folder.glob(f"*/{OUTCOME}"), key=lambda path: (len(path.parent.name), path.parent.name))
    return [Outcome(**json.loads(path.read_text())) for path in found]


def ledger(sweep_folder: Path) -> list[str]:
    """Return the lines that name every failure: the cells, the reason, the log, the command that tries them again."""
    outcomes = read_outcomes(sweep_folder)
    failures = [outcome for outcome in outcomes if outcome.reason]
    lines = [f"{len(failures)} of {len(outcomes)} jobs failed:"] if failures else []
    for outcome in failures:
        cells = f" (cells without a record: {' '.join(outcome.cells)})" if outcome.cells else ""
        lines += [
            f"  {shlex.join(outcome.overrides)}{cells}",
            f"    {outcome.reason}",
            f"    log:   {outcome.log}",
            f"    again: {_program()} {shlex.join(outcome.overrides)}",
        ]
    return lines


class Ledger(Callback):
    """Names the jobs of a multirun that have failed when it ends, and has it exit with 1 if there are any."""

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Print the ledger."""
        if config.plan:
            from blockwise.plan import total

            if sentence := total(Path(config.hydra.sweep.dir)):
                print(sentence)
        if lines := ledger(Path(config.hydra.sweep.dir)):
            print(*lines, sep="\n", file=sys.stderr)
            sys.exit(1)


def _program() -> str:
    """Return how the user has called this program."""
    script = Path(sys.argv[0]).name
    return f"python {shlex.quote(sys.argv[0])}" if script == "train.py" else "blockwise train"


@contextmanager
def _passing_on(process: subprocess.Popen[Any]) -> Iterator[list[int]]:
    """Pass Ctrl-C and SIGTERM on to a job, and tell which came; the job saves its work before it ends."""
    received: list[int] = []

    def pass_on(number: int, _frame: Any) -> None:
        received.append(number)
        process.send_signal(number)

    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    previous = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _reason(code: int, log: Path) -> str:
    if code == 0:
        return ""
    if code < 0:
        name = signal.Signals(-code).name
        why = ", as the system does when memory runs out" if -code == signal.SIGKILL else ""
        return f"killed by {name}{why}"
    try:
        if shutil.disk_usage(log.parent).free < ROOM:
            return f"no space is left where {log.parent} lies"  # and so the log may lack its end
        lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    except OSError:
        return f"exit code {code}, and its log has vanished"
    return lines[-1].removeprefix("error: ") if lines else f"exit code {code}"


def _cells(folder: Path) -> list[str]:
    try:
        return list(json.loads((folder / CELLS).read_text()))
    except (OSError, ValueError):
        return []
