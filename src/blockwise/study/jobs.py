"""The jobs of a multirun, each in its own process, and a summary of those that failed.

If a job crashes in native code, is killed or runs out of memory, the other jobs continue.
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
from blockwise.io.files import replacing
from blockwise.results.provenance import COMMAND
from blockwise.study.worker import CELLS, FOLDER

LOG = "job.log"
OUTCOME = "outcome.json"
# a disk with fewer free bytes counts as full
ROOM = 2**16


@dataclass(frozen=True)
class Outcome:
    """How a job ended.

    Attributes:
        overrides: Options and settings of the job, as on the command line.
        code: Exit code; negative if a signal killed the job.
        reason: Cause of the failure in one line; empty if the job succeeded.
        cells: Cells without a record, as far as the job reported them.
        log: Path of the log, with the job's errors and tracebacks.
    """

    overrides: list[str]
    code: int
    reason: str
    cells: list[str]
    log: str


def run_job(overrides: Sequence[str], folder: Path, cwd: str = ".", options: Sequence[str] = ()) -> Outcome:
    """Run a job in its own process and return its outcome.

    Args:
        overrides: Options and settings of the job, as on the command line.
        folder: Folder of the job's log and outcome.
        cwd: Working directory of the job.
        options: Further command-line options, such as `--config-dir=...`.

    Raises:
        Interrupted: Ctrl-C or SIGTERM; it was forwarded to the job, which has saved its work.
    """
    folder.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, FOLDER: str(folder), COMMAND: shlex.join(["blockwise", "train", *options, *overrides])}
    # print a traceback on segmentation faults, too
    environment["PYTHONFAULTHANDLER"] = "1"
    command = [sys.executable, "-m", "blockwise.train", *options, "hydra.mode=RUN", *overrides]
    with (folder / LOG).open("a", encoding="utf-8") as log:
        # in its own session, the job receives Ctrl-C only once, from this process
        process = subprocess.Popen(command, stderr=log, env=environment, cwd=cwd, start_new_session=True)
        with _forward_signals(process) as received:
            code = process.wait()
    if received:
        raise Interrupted(received[0])
    log_path = folder / LOG
    outcome = Outcome([*options, *overrides], code, _reason(code, log_path), _cells(folder), str(log_path))
    folder.mkdir(parents=True, exist_ok=True)  # the user may have removed it meanwhile
    with replacing(folder / OUTCOME) as temporary:
        temporary.write_text(json.dumps(asdict(outcome), indent=2) + "\n", encoding="utf-8")
    if outcome.reason:
        print(f"failed: {outcome.reason}", file=sys.stderr)
    return outcome


def read_outcomes(sweep_folder: Path) -> list[Outcome]:
    """Return the outcomes of the jobs of a multirun that have ended, in the order of the jobs."""
    paths = sorted(sweep_folder.glob(f"*/{OUTCOME}"), key=lambda path: (len(path.parent.name), path.parent.name))
    return [Outcome(**json.loads(path.read_text(encoding="utf-8"))) for path in paths]


def ledger(sweep_folder: Path) -> list[str]:
    """Return the lines of the failure summary: cells, reason, log and retry command of each failed job."""
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
    """At the end of a multirun, prints the failed jobs; exits with status 1 if there are any."""

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Print the failed jobs, and the total of a plan."""
        if config.plan:
            from blockwise.study.plan import total

            if sentence := total(Path(config.hydra.sweep.dir)):
                print(sentence)
        if lines := ledger(Path(config.hydra.sweep.dir)):
            print(*lines, sep="\n", file=sys.stderr)
            sys.exit(1)


def _program() -> str:
    """Return the command with which the user started this program."""
    script = Path(sys.argv[0]).name
    return f"python {shlex.quote(sys.argv[0])}" if script == "train.py" else "blockwise train"


@contextmanager
def _forward_signals(process: subprocess.Popen[Any]) -> Iterator[list[int]]:
    """Forward Ctrl-C and SIGTERM to a job, which then saves its work; yield the list of received signals."""
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
        why = ", perhaps because memory ran out" if -code == signal.SIGKILL else ""
        return f"killed by {name}{why}"
    try:
        if shutil.disk_usage(log.parent).free < ROOM:
            return f"no space left on the disk of {log.parent}"  # so the log may be incomplete
        lines = [
            line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()
        ]
    except OSError:
        return f"exit code {code}; the log cannot be read"
    return lines[-1].removeprefix("error: ") if lines else f"exit code {code}"


def _cells(folder: Path) -> list[str]:
    try:
        return list(json.loads((folder / CELLS).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return []
