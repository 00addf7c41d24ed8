"""The command line: `train`, `inspect`, `table`, `report`, `claims`, `sync`, `dashboard`."""

from __future__ import annotations

import argparse
import errno
import gc
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import hydra
from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from blockwise.config.compose import CONFIG_DIR, CONFIG_NAME, check_groups, explain, plain
from blockwise.errors import InputError, Interrupted
from blockwise.quiet import silence_libraries
from blockwise.study.jobs import Outcome, ledger, run_job
from blockwise.study.worker import end_with_parent

FAILED = 1
USAGE_ERROR = 2
INTERRUPTED = 130
DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO}


def main(arguments: list[str] | None = None) -> None:
    """Run a subcommand of `blockwise`."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["train"]:
        sys.argv = ["blockwise train", *arguments[1:]]
        train()
        return
    parser = argparse.ArgumentParser("blockwise", description="Which part of a pretrained network should I fine-tune?")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    commands.add_parser("train", help="train cells: blockwise train model=vgg16 block=all (--help: all settings)")
    inspect = commands.add_parser("inspect", help="show the partition of a model, without its weights")
    inspect.add_argument("model", help="a name under conf/model, of timm or of torchvision")
    inspect.add_argument("overrides", nargs="*", help="settings, as partition=window partition.length=4")
    inspect.add_argument("--json", action="store_true", help="print JSON")
    inspect.set_defaults(command=_inspect)
    table = commands.add_parser("table", help="print the tables of recorded sweeps again")
    table.add_argument("results", nargs="?", default="results", help="a results folder, or one below it")
    table.add_argument("--backbones", action="store_true", help="one row a backbone, as in the paper")
    table.add_argument("--out", type=Path, action="append", default=[], help="write it as well: FILE.md or FILE.csv")
    table.set_defaults(command=_table)
    report = commands.add_parser("report", help="write a page of tables, statistics and figures")
    report.add_argument("results", nargs="?", default="results", help="a results folder, or one below it")
    report.add_argument("-o", "--out", type=Path, default=Path("report"), help="the folder to write to (report)")
    report.set_defaults(command=_report)
    claims = commands.add_parser("claims", help="test the paper's claims on recorded sweeps")
    claims.add_argument("results", nargs="?", default="results", help="a results folder, or one below it")
    claims.add_argument("--json", action="store_true", help="print JSON")
    claims.set_defaults(command=_claims)
    sync = commands.add_parser("sync", help="send recorded cells to Weights & Biases, a run a cell")
    sync.add_argument("results", nargs="?", default="results", help="a results folder, or one below it")
    sync.add_argument("--project", default="blockwise", help="their project (blockwise)")
    sync.add_argument("--entity", help="a user or a team (your default)")
    sync.set_defaults(command=_sync)
    dashboard = commands.add_parser("dashboard", help="publish a workspace of Weights & Biases that compares blocks")
    dashboard.add_argument("--entity", required=True, help="a user or a team")
    dashboard.add_argument("--project", default="blockwise", help="the project of the runs (blockwise)")
    dashboard.add_argument("--dry-run", action="store_true", help="print its JSON, send nothing")
    dashboard.set_defaults(command=_dashboard)
    options = parser.parse_args([*arguments[:1], *_flags_first(arguments[1:])])
    _or_one_sentence(lambda: options.command(options))


def train() -> None:
    """Run what `train.py` runs: Hydra's main over `study.run`."""
    # Hydra would print its own pages of errors and exit; this way they arrive below, where they become a sentence
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    sys.argv[1:] = _flags_first(sys.argv[1:])

    silence_libraries()

    def command() -> None:
        check_groups(sys.argv[1:])
        hydra.main(version_base="1.3", config_path=str(CONFIG_DIR), config_name=CONFIG_NAME)(_job)()

    _or_one_sentence(command)


def _job(cfg: DictConfig) -> Outcome | None:
    """Train what a config names; a job of a multirun does so in a process of its own."""
    job = HydraConfig.get()
    if job.mode == RunMode.MULTIRUN:
        # a launcher's workers may run in a folder of their own
        folder = Path(job.runtime.cwd, job.sweep.dir, job.sweep.subdir)
        try:
            return run_job(list(job.overrides.task), folder, job.runtime.cwd, _config_options(job))
        except Interrupted:
            print(*ledger(folder.parent), sep="\n", file=sys.stderr)
            raise
    # torch and timm take seconds to import; wrong overrides need not wait
    with _no_garbage():
        from blockwise.config.checks import check_config
        from blockwise.fast.memory import keep_freed_memory
        from blockwise.study.run import run
        from blockwise.training.distributed import count_processes, launch, launched

    end_with_parent()
    silence_libraries()  # once more: libraries that are imported by now have set levels of their own
    keep_freed_memory()
    try:
        check_config(plain(cfg))
        if count_processes(cfg.trainer.devices) > 1 and not cfg.plan and not launched():
            sys.exit(launch(cfg.trainer.devices, [*_config_options(job), "hydra.mode=RUN", *job.overrides.task]))
        run(cfg)
    except (InputError, HydraException, OmegaConfBaseException) as error:
        # Hydra would print the overrides above the sentence if this were raised through it
        _exit(f"error: {error if isinstance(error, InputError) else explain(error)}", USAGE_ERROR)
    return None


def _config_options(job: HydraConf) -> list[str]:
    """Return the options by which the user has added or chosen configs."""
    folders = [source.path for source in job.runtime.config_sources if source.provider == "command-line"]
    name = [] if job.job.config_name == CONFIG_NAME else [f"--config-name={job.job.config_name}"]
    return [*(f"--config-dir={folder}" for folder in folders), *name]


def _flags_first(arguments: list[str]) -> list[str]:
    """Move `-m` and `--json` before the overrides: argparse takes no flag between two of them."""
    return sorted(arguments, key=lambda argument: argument not in ("-m", "--multirun", "--json"))


@contextmanager
def _no_garbage() -> Iterator[None]:
    """Do not look for garbage among what imports make: it stays, and looking takes a fifth of their time."""
    gc.disable()
    yield
    gc.freeze()
    gc.enable()


def _inspect(options: argparse.Namespace) -> None:
    with _no_garbage():
        from blockwise.inspection import inspect_model, print_inspection

    silence_libraries()
    print_inspection(inspect_model(options.model, options.overrides), Console(markup=False), as_json=options.json)


def _table(options: argparse.Namespace) -> None:
    from blockwise.analysis.backbone_table import backbone_rows, backbone_table, write_rows
    from blockwise.analysis.summary import sweeps
    from blockwise.analysis.sweep_table import print_table, sweep_table
    from blockwise.results.store import read_records

    console = Console(markup=False)
    found = sweeps(read_records(options.results))
    if not options.backbones:
        if options.out:
            raise InputError("--out writes the table of --backbones: give both")
        for sweep in found:
            print_table(console, sweep_table(sweep))
        return
    rows = backbone_rows(found)
    print_table(console, backbone_table(rows))
    for path in options.out:
        write_rows(rows, path)


def _report(options: argparse.Namespace) -> None:
    with _extra("report"):
        from blockwise.analysis.report import write_report
    from blockwise.results.store import read_records

    print(f"{write_report(read_records(options.results), options.out)} tells what the records say")


def _claims(options: argparse.Namespace) -> None:
    with _extra("report"):
        from blockwise.analysis.claims import claims, claims_list
    from blockwise.analysis.summary import sweeps
    from blockwise.results.store import read_records

    found = claims(sweeps(read_records(options.results)))
    if options.json:
        print(json.dumps([asdict(claim) for claim in found], indent=2))
    else:
        Console(markup=False).print(claims_list(found))


def _sync(options: argparse.Namespace) -> None:
    with _extra("wandb"):
        from blockwise.tracking.wandb import sync
    from blockwise.results.store import read_records

    records = read_records(options.results)
    sync(records, options.project, options.entity, Console(markup=False))
    print(f"{len(records)} runs are in {options.project}")


def _dashboard(options: argparse.Namespace) -> None:
    with _extra("wandb"):
        from blockwise.tracking.dashboard import build_dashboard, dashboard_json, publish
    from blockwise.config.checks import NAME

    for name in (options.entity, options.project):
        if not NAME.fullmatch(name):
            raise InputError(f"{name!r} is no name of W&B: letters, digits, and . _ + -")
    dashboard = build_dashboard(options.entity, options.project)
    print(dashboard_json(dashboard) if options.dry_run else publish(dashboard))


@contextmanager
def _extra(name: str) -> Iterator[None]:
    """Say in one sentence that packages are missing which only some users need."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise InputError(f"{error.name} is missing: pip install 'blockwise[{name}]'") from error


def _or_one_sentence(command: Callable[[], Any]) -> None:
    """Run a command; what a user got wrong ends it with one sentence, not with a traceback."""
    try:
        command()
    except InputError as error:
        _exit(f"error: {error}", USAGE_ERROR)
    except (HydraException, OmegaConfBaseException) as error:
        _exit(f"error: {explain(error)}", USAGE_ERROR)
    except (NotADirectoryError, FileExistsError, PermissionError) as error:  # a folder that Hydra cannot make
        _exit(f"error: {error.filename} cannot be written to ({error.strerror})", USAGE_ERROR)
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        name = f"{error.filename} cannot be written" if error.filename else "a file cannot be written"
        _exit(f"error: {name} ({error.strerror}): what is recorded stays, and the same command does the rest", FAILED)
    except Interrupted as interrupted:
        _exit(
            "interrupted: what was trained so far is kept, and the same command goes on from there",
            128 + interrupted.signal,
        )
    except KeyboardInterrupt:
        _exit("interrupted: finished cells are recorded, and the same command trains the rest", INTERRUPTED)


def _exit(sentence: str, code: int) -> None:
    if int(os.environ.get("RANK", "0")) == 0:  # of several processes, one speaks
        print(" ".join(sentence.split()), file=sys.stderr, flush=True)
    else:  # and is given the time to: the first to end takes the others down
        time.sleep(5)
    sys.exit(code)
