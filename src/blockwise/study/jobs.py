"""The jobs of a multirun: each in a process of its own, and a summary of those that failed.

A crash in native code, a kill or a lack of memory ends one job; the others go on.
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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from blockwise.errors import Interrupted
from blockwise.results.files import replacing
from blockwise.results.provenance import COMMAND
from blockwise.study.worker import CELLS, FOLDER

LOG = "job.log"
OUTCOME = "outcome.json"
# bytes; a disk with less free space counts as full
ROOM = 2**16


@dataclass(frozen=True)
class Outcome:
    """How a job ended.

    Attributes:
        overrides: The settings of the job, as on the command line.
        code: Its exit code; a negative one is the number of the signal that killed it.
        reason: Why it failed, in one line; empty if it did not.
        cells: The cells that have no record yet, as far as the job reported them.
        log: Path of the log with its errors, tracebacks included.
    """

    overrides: list[str]
    code: int
    reason: str
    cells: list[str]
    log: str


def run_job(overrides: Sequence[str], folder: Path, cwd: str = ".", options: Sequence[str] = ()) -> Outcome:
    """Run a job in a process of its own and return how it ended.

    Args:
        overrides: Its settings, as on the command line.
        folder: Folder of its log and its outcome.
        cwd: Its working directory.
        options: Further options of the command line, as `--config-dir=...`.

    Raises:
        Interrupted: By Ctrl-C or SIGTERM, which was passed on to the job; it has saved its work.
    """
    folder.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, FOLDER: str(folder), COMMAND: shlex.join(["blockwise", "train", *overrides])}
    # a segmentation fault leaves a traceback as well
    environment["PYTHONFAULTHANDLER"] = "1"
    command = [sys.executable, "-m", "blockwise.train", *options, "hydra.mode=RUN", *overrides]
    with (folder / LOG).open("a") as log:
        # in a session of its own, Ctrl-C reaches it once, through this process
        process = subprocess.Popen(command, stderr=log, env=environment, cwd=cwd, start_new_session=True)
        with _forward_signals(process) as received:
            code = process.wait()
    if received:
        raise Interrupted(received[0])
    outcome = Outcome(list(overrides), code, _reason(code, folder / LOG), _cells(folder), str(folder / LOG))
    folder.mkdir(parents=True, exist_ok=True)  # the user may have removed it meanwhile
    with replacing(folder / OUTCOME) as temporary:
        temporary.write_text(json.dumps(asdict(outcome), indent=2) + "\n")
    if outcome.reason:
        print(f"failed: {outcome.reason}", file=sys.stderr)
    return outcome


def read_outcomes(sweep_folder: Path) -> list[Outcome]:
    """Return how the jobs of a multirun ended so far, in their order."""
    paths = sorted(sweep_folder.glob(f"*/{OUTCOME}"), key=lambda path: (len(path.parent.name), path.parent.name))
    return [Outcome(**json.loads(path.read_text())) for path in paths]


def ledger(sweep_folder: Path) -> list[str]:
    """Return the lines that name every failed job: its cells, the reason, the log, the command that runs it again."""
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
    """At the end of a multirun, prints the jobs that failed and exits with 1 if there are any."""

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Print the ledger."""
        if config.plan:
            from blockwise.study.plan import total

            if sentence := total(Path(config.hydra.sweep.dir)):
                print(sentence)
        if lines := ledger(Path(config.hydra.sweep.dir)):
            print(*lines, sep="\n", file=sys.stderr)
            sys.exit(1)


def _program() -> str:
    """Return the command by which the user started this program."""
    script = Path(sys.argv[0]).name
    return f"python {shlex.quote(sys.argv[0])}" if script == "train.py" else "blockwise train"


@contextmanager
def _forward_signals(process: subprocess.Popen[Any]) -> Iterator[list[int]]:
    """Forward Ctrl-C and SIGTERM to a job, and yield the list of those received; the job saves its work."""
    received: list[int] = []

    def forward(number: int, _frame: Any) -> None:
        received.append(number)
        process.send_signal(number)

    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    previous = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM)}
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
