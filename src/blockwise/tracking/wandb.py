"""Weights & Biases: one run per cell, while it trains or from its record.

The id of a run is the hash of the cell's settings. So training that resumes continues its run, and uploading a run
twice does not duplicate it. The runs of a sweep form a group.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rich.console import Console

from blockwise.analysis.summary import Sweep, sweeps
from blockwise.errors import InputError
from blockwise.io.names import file_name
from blockwise.quiet import no_error_reports
from blockwise.results.record import STATIC, Metrics, Record
from blockwise.results.store import WEIGHTS, read_history, settings_hash, sweep_hash, sweep_path
from blockwise.tracking.callback import AT_ONCE, ENDED, describe, final_metrics, replay
from blockwise.tracking.progress import new_bar

with no_error_reports():
    import wandb

# seconds to wait for the server
PATIENCE = 30
MODES = (None, "online", "offline", "disabled")
LONGEST_TAG = 64
LATER = "to upload them later, run `blockwise sync`"


class WandbRuns:
    """Opens the runs of cells. Without an API key, W&B falls back to offline mode and prints a notice.

    Args:
        project: The project of the runs.
        entity: A user or a team; None uses the default of the API key.
        folder: The folder in which W&B creates its folder `wandb`.
        mode: `online` or `offline`. None uses `WANDB_MODE` if it is set, else `online` if there is an API key.
        artifacts: `best` uploads the weights and the record of each sweep's best block as an artifact; None nothing.
    """

    def __init__(
        self, project: str, entity: str | None, folder: str, mode: str | None = None, artifacts: str | None = None
    ) -> None:
        if artifacts not in (None, "best"):
            raise InputError(f"logger.wandb.artifacts={artifacts} is unknown: choose best or null")
        self._artifacts = artifacts is not None
        if not project:
            raise InputError("the W&B project must have a name")
        if mode not in (None, "online", "offline"):
            raise InputError(f"logger.wandb.mode={mode} is unknown: choose online, offline or null")
        self._project, self._entity = project, entity
        self._folder = folder
        self._mode: Any = mode or os.environ.get("WANDB_MODE")
        if self._mode not in MODES:
            raise InputError(f"WANDB_MODE={self._mode} is unknown: choose online, offline or disabled")
        if self._mode == "online":
            check_online()
        elif self._mode is None:
            reason = why_offline()
            self._mode = "online" if reason is None else "offline"
            if reason is not None:
                print(f"W&B is offline ({reason}): runs are stored in {folder}/wandb; {LATER}")

    def __call__(self, record: Record) -> WandbRun:
        """Open or continue the run of a cell; if W&B refuses it, go on without W&B."""
        try:
            return self.open(record)
        except InputError as error:
            print(f"{error}; {LATER}")
            self._mode = "disabled"
            return self.open(record)

    def open(self, record: Record) -> WandbRun:
        """Open or continue the run of a cell.

        Raises:
            InputError: W&B refuses it.
        """
        try:
            return WandbRun(self._init(record), artifacts=self._artifacts)
        except (wandb.errors.Error, ValueError) as error:
            raise InputError(f"W&B refuses the run: {' '.join(str(error).split())}") from error

    def _init(self, record: Record) -> Any:
        Path(self._folder).mkdir(parents=True, exist_ok=True)
        cell, settings = record.cell, record.settings
        quarter = [] if cell.quarter is None else [f"quarter {cell.quarter}"]
        scope = f"block {cell.scope}" if cell.scope.isdigit() else cell.scope
        policy = [] if record.policy == STATIC else [record.policy]
        names = [record.backbone.name, record.data.name, record.partition.name, scope, *quarter, *policy]
        return wandb.init(
            project=self._project,
            entity=self._entity,
            id=settings_hash(settings),
            name=" ".join([record.backbone.name, scope, *policy, f"lr{settings.get('lr')}", f"seed{record.seed}"]),
            group=f"{sweep_path(settings)}-{sweep_hash(settings)}",
            tags=[name[:LONGEST_TAG] for name in names],
            config=describe(record),
            dir=self._folder,
            mode=self._mode,
            resume="allow",
            reinit="create_new",  # several runs are open at once
            settings=_settings(),
        )


class WandbRun:
    """The run of a cell; see `tracking.CellLog`."""

    def __init__(self, run: Any, *, artifacts: bool = False) -> None:
        self._run = run
        self._artifacts = artifacts
        self.next_epoch = run.step  # one step per epoch: the server already has those before an interruption
        run.define_metric("epoch", hidden=True)
        run.define_metric("*", step_metric="epoch")

    def log(self, epoch: int, metrics: Metrics) -> None:
        """Log the metrics of an epoch."""
        self._run.log({"epoch": epoch, **metrics}, step=epoch, commit=True)

    def keep(self, record: Record) -> None:
        """Upload the weights and the record of the chosen cell, if artifacts are asked for."""
        if not self._artifacts or record.folder is None:
            return
        name = file_name(f"{record.backbone.name}-{record.data.name}")
        artifact = wandb.Artifact(name, type="model", metadata={"scope": record.cell.scope, "lr": record.lr})
        for file in (WEIGHTS, "record.json"):
            artifact.add_file(str(Path(record.folder, file)))
        self._run.log_artifact(artifact, aliases=["best", f"seed{record.seed}"])

    def finish(self, status: str, final: dict[str, float]) -> None:
        """Set the summary and end the run, as failed if the cell diverged; an interrupted run may continue."""
        self._run.summary.update({"status": status, **final})
        if status == "interrupted":
            self._run.mark_preempting()
        self._run.finish(exit_code=0 if status in ENDED else 1)


def why_offline() -> str | None:
    """Return the reason why W&B cannot be used online; None if it can."""
    if (mode := os.environ.get("WANDB_MODE", "online")) != "online":
        return f"WANDB_MODE is {mode}"
    try:
        _start()
        return None if wandb.login(prompt=False) else "there is no API key"
    except (wandb.errors.Error, ValueError) as error:
        return " ".join(str(error).split())


def _start() -> None:
    """Start W&B's service process, which outlives this call; a second call does nothing."""
    with no_error_reports():
        wandb.setup(settings=wandb.Settings(silent=True))


def check_online() -> None:
    """Check that there is an API key and that the server accepts it.

    Raises:
        InputError: There is no key, or the server refuses it or cannot be reached.
    """
    if (reason := why_offline()) is not None:
        raise InputError(f"W&B cannot be used ({reason}): run `wandb login`, or set WANDB_API_KEY and WANDB_BASE_URL")


def sync(records: Sequence[Record], project: str, entity: str | None, console: Console) -> None:
    """Upload recorded cells, including those trained without W&B; existing runs are completed.

    Raises:
        InputError: There is no API key, or the server cannot be reached.
    """
    with tempfile.TemporaryDirectory() as folder, new_bar(console) as bar, ThreadPoolExecutor(AT_ONCE) as pool:
        runs = WandbRuns(project, entity, folder, "online")
        task = bar.add_task("uploading runs", total=len(records))

        def send(record: Record, sweep: Sweep) -> None:
            run = runs.open(record)
            replay(run, read_history(record.folder or ""))
            run.finish(record.status, final_metrics(record, sweep))
            bar.advance(task)

        homes: dict[str | None, tuple[Record, Sweep]] = {}
        for sweep in sweeps(records):
            for record in sweep.records:
                # `head` is in the sweeps of all policies
                if record.folder not in homes or record.policy == sweep.policy:
                    homes[record.folder] = record, sweep
        for upload in [pool.submit(send, *home) for home in homes.values()]:
            upload.result()


def _settings() -> Any:
    """Return settings with which W&B sends nothing about the user's machine, code or environment."""
    return wandb.Settings(
        console="off",
        disable_code=True,
        disable_git=True,
        disable_job_creation=True,
        host="",
        init_timeout=PATIENCE,
        save_code=False,
        silent=True,
        x_disable_machine_info=True,
        x_disable_meta=True,
        x_disable_stats=True,
        x_save_requirements=False,
    )
