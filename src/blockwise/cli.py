"""The command line: `train` and the other commands of `blockwise`."""

from __future__ import annotations

import argparse
import errno
import gc
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from io import TextIOWrapper
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser
from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from blockwise import __version__
from blockwise.config.checks import check_config
from blockwise.config.compose import CONFIG_DIR, CONFIG_NAME, explain, groups, plain, settings
from blockwise.config.help import train_help
from blockwise.config.overrides import check_added, check_overrides
from blockwise.errors import InputError, Interrupted, out_of_memory
from blockwise.quiet import silence_libraries
from blockwise.results.finished import Finished, recall_finished
from blockwise.study.jobs import Outcome, ledger, run_job
from blockwise.study.worker import end_with_parent

FAILED = 1
USAGE_ERROR = 2
INTERRUPTED = 130
NO_MEMORY = (
    "memory ran out: records are kept; choose smaller images or batches, or fewer cells at a time "
    "(sweeper.cells_per_job with -m)"
)
DISK_ERRORS = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EROFS, errno.EIO}


def main(arguments: list[str] | None = None) -> None:
    """Run a subcommand of `blockwise`."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["train"]:
        sys.argv = ["blockwise train", *arguments[1:]]
        train()
        return
    parser = build_parser()
    (commands,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    own = commands.choices.get(arguments[0]) if arguments else None
    options = parser.parse_args([*arguments[:1], *_flags_first(arguments[1:], own)])
    _exit_on_error(lambda: options.command(options))


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all subcommands; `train` is parsed by Hydra instead."""
    parser = argparse.ArgumentParser("blockwise", description="Which part of a pretrained network should I fine-tune?")
    parser.add_argument("--version", action="version", version=f"blockwise {__version__}")
    results = argparse.ArgumentParser(add_help=False)
    results.add_argument("results", nargs="?", default="results", help="results folder, or a subfolder of one")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    commands.add_parser("train", help="train cells: blockwise train model=vgg16 block=all (--help: all settings)")
    inspect = commands.add_parser("inspect", help="show the partition of a model, without downloading its weights")
    inspect.add_argument(
        "model",
        help="model name: a file in conf/model, a timm model (also hf-hub:..., local-dir:...) or a torchvision model",
    )
    inspect.add_argument("overrides", nargs="*", help="settings, such as partition=window partition.length=4")
    inspect.add_argument("--json", action="store_true", help="print JSON")
    inspect.set_defaults(command=_inspect)
    rank = commands.add_parser("rank", help="score the blocks of a model on some training images, before any training")
    rank.add_argument("model", help="model name, as for inspect")
    rank.add_argument("overrides", nargs="*", help="settings, such as data=caltech101")
    rank.add_argument("--score", action="append", default=[], help="a score; may be repeated (default: all)")
    rank.add_argument("--json", action="store_true", help="print JSON")
    rank.set_defaults(command=_rank)
    table = commands.add_parser("table", parents=[results], help="print one table per recorded sweep")
    table.add_argument("--backbones", action="store_true", help="print one row per backbone, as in the paper")
    table.add_argument("--smooth", action="store_true", help="take neighbouring blocks to be alike: P(best) over depth")
    table.add_argument(
        "--out", type=_path, action="append", default=[], help="with --backbones: also write to FILE.md or FILE.csv"
    )
    table.set_defaults(command=_table)
    report = commands.add_parser(
        "report", parents=[results], help="write an HTML page of tables, statistics and figures"
    )
    report.add_argument("-o", "--out", type=_path, default=Path("report"), help="output folder (default: report)")
    report.set_defaults(command=_report)
    claims = commands.add_parser("claims", parents=[results], help="test the paper's claims on recorded sweeps")
    claims.add_argument("--json", action="store_true", help="print JSON")
    claims.set_defaults(command=_claims)
    export = commands.add_parser("export", parents=[results], help="write a trained network for other tools")
    export.add_argument("overrides", nargs="*", help="settings, if files have moved: model.checkpoint=, data.root=")
    export.add_argument("-o", "--out", type=_path, required=True, help="output folder")
    for name, text in (("model", "backbone"), ("data", "data set"), ("policy", "policy")):
        export.add_argument(f"--{name}", help=f"name of the {text}, if the results have several")
    export.add_argument("--scope", default="best", help="a scope (default: the best single block by validation)")
    export.add_argument("--seed", type=int, help="the seed (default: the best by validation)")
    formats = export.add_mutually_exclusive_group()
    formats.add_argument("--format", default="timm", help="timm, onnx, torch_export or delta (default: timm)")
    formats.add_argument(
        "--delta", action="store_const", const="delta", dest="format", help="the same as --format delta"
    )
    export.add_argument("--push-to-hub", metavar="NAME", help="then upload the folder to the Hugging Face hub")
    export.set_defaults(command=_export)
    predict = commands.add_parser("predict", help="predict the classes of images with an exported network")
    predict.add_argument("export", type=_path, help="export folder")
    predict.add_argument(
        "images", nargs="+", type=_path, help="images, folders of images, and model.checkpoint= for a delta"
    )
    predict.add_argument("--top", type=int, default=1, help="number of classes per image (default: 1)")
    output = predict.add_mutually_exclusive_group()
    output.add_argument("--json", action="store_true", help="print JSON")
    output.add_argument("--csv", action="store_true", help="print CSV")
    predict.add_argument("--explain", type=_path, metavar="FOLDER", help="write Grad-CAM pictures to a folder")
    predict.add_argument(
        "--beside", type=_path, action="append", default=[], metavar="FOLDER",
        help="with --explain: draw another export beside it, or head, best block and full of results; may be repeated",
    )  # fmt: skip
    predict.set_defaults(command=_predict)
    evaluate = commands.add_parser("evaluate", help="measure an exported network on the test images of its data set")
    evaluate.add_argument("export", type=_path, help="export folder")
    evaluate.add_argument(
        "overrides", nargs="*", help="a folder with one folder of images per class; or settings of the data: data.root="
    )
    evaluate.add_argument("--json", action="store_true", help="print JSON")
    evaluate.set_defaults(command=_evaluate)
    sync = commands.add_parser(
        "sync", parents=[results], help="upload recorded cells to Weights & Biases, one run per cell"
    )
    sync.add_argument("--project", default="blockwise", help="W&B project (default: blockwise)")
    sync.add_argument("--entity", help="W&B user or team (default: the one of your API key)")
    sync.set_defaults(command=_sync)
    dashboard = commands.add_parser("dashboard", help="publish a Weights & Biases workspace that compares blocks")
    dashboard.add_argument("--entity", required=True, help="W&B user or team")
    dashboard.add_argument("--project", default="blockwise", help="W&B project of the runs (default: blockwise)")
    dashboard.add_argument("--dry-run", action="store_true", help="print the workspace as JSON and upload nothing")
    dashboard.set_defaults(command=_dashboard)
    return parser


def _path(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("is empty: is a variable of your shell unset?")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise argparse.ArgumentTypeError(f"{text} names no folder: there is no such user") from error


def train() -> None:
    """Run `blockwise train`: Hydra's main function around `study.run`."""
    if {"-h", "--help"} & set(sys.argv[1:]):
        _exit_on_error(lambda: print(train_help()))
        return
    # Hydra would print its own error pages and exit; with this it raises, and we print one sentence
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    sys.argv[1:] = _flags_first(sys.argv[1:])

    silence_libraries()

    def command() -> None:
        check_overrides(_overrides(sys.argv[1:]), groups())
        hydra.main(version_base="1.3", config_path=str(CONFIG_DIR), config_name=CONFIG_NAME)(_job)()

    _exit_on_error(command)


def _job(cfg: DictConfig) -> Outcome | None:
    """Train the cells of a config; in a multirun, start a separate process for each job."""
    job = HydraConfig.get()
    if job.mode == RunMode.RUN:  # the jobs of a multirun check themselves
        _check(job.overrides.task, cfg)
    finished = None if cfg.plan or "RANK" in os.environ else recall_finished(plain(cfg))
    if finished is not None:
        _show(finished)
        return None
    if job.mode == RunMode.MULTIRUN:
        # a launcher's workers may have another working directory
        folder = Path(job.runtime.cwd, job.sweep.dir, job.sweep.subdir)
        try:
            return run_job(list(job.overrides.task), folder, job.runtime.cwd, _config_options(job))
        except Interrupted:
            print(*ledger(folder.parent), sep="\n", file=sys.stderr)
            raise
    with _quick_imports():
        from blockwise.fast.memory import keep_freed_memory
        from blockwise.study.run import run
        from blockwise.training.distributed import count_processes, launch, launched

    end_with_parent()
    silence_libraries()  # again: libraries imported since the first call have set their own log levels
    keep_freed_memory()
    try:
        if count_processes(cfg.trainer.devices) > 1 and not cfg.plan and not launched():
            sys.exit(launch(cfg.trainer.devices, [*_config_options(job), "hydra.mode=RUN", *job.overrides.task]))
        run(cfg)
    except (InputError, HydraException, OmegaConfBaseException) as error:
        _exit(f"error: {error if isinstance(error, InputError) else explain(error)}", USAGE_ERROR)
    return None


def _check(overrides: Sequence[str], cfg: DictConfig) -> None:
    try:
        check_added(overrides, cfg, settings())
        check_config(plain(cfg))
    except (InputError, OmegaConfBaseException) as error:
        # if Hydra caught this error, it would print the overrides above the message
        _exit(f"error: {error if isinstance(error, InputError) else explain(error)}", USAGE_ERROR)


def _show(finished: Finished) -> None:
    """Print what a run without anything left to train prints."""
    from blockwise.analysis.summary import sweep_with
    from blockwise.analysis.sweep_table import print_table, sweep_table
    from blockwise.results.store import find_records, sweep_hash

    console = Console(markup=False)
    console.print(finished.headline, highlight=False)
    folder = Path(finished.records[0].folder or "").parents[1]
    records = find_records(folder)
    # a table per policy, as after training; the record of `head` has none, and belongs to the sweeps of all
    own = [record for record in finished.records if record.cell.scope != "head"] or finished.records
    for key in dict.fromkeys(sweep_hash(record.settings) for record in own):
        if (sweep := sweep_with(records, key)) is not None:
            print_table(console, sweep_table(sweep))
        picture = folder / f"accuracy-by-block-{key}.png"
        if picture.is_file():
            console.print(f"Accuracy by block: {picture}", soft_wrap=True, highlight=False)


def _config_options(job: HydraConf) -> list[str]:
    """Return the command-line options that add a config folder or choose a config."""
    added = [Path(source.path) for source in job.runtime.config_sources if source.provider == "command-line"]
    here = Path(job.runtime.cwd)  # in which jobs run as well
    folders = [path.relative_to(here) if path.is_relative_to(here) else path for path in added]
    name = [] if job.job.config_name == CONFIG_NAME else [f"--config-name={job.job.config_name}"]
    return [*(f"--config-dir={folder}" for folder in folders), *name]


def _overrides(arguments: list[str]) -> list[str]:
    """Return the settings among the arguments of `train`."""
    return list(get_args_parser().parse_known_args(arguments)[0].overrides)


def _flags_first(arguments: Sequence[str], options: argparse.ArgumentParser | None = None) -> list[str]:
    """Move flags and their values in front of the rest: argparse accepts no flag between two settings.

    Args:
        arguments: The arguments of a command.
        options: The command's parser, which knows its flags; None for `train`, which has `-m`.
    """
    known: dict[str, Any] = {"-m": 0, "--multirun": 0}
    if options is not None:
        known = {flag: action.nargs for action in options._actions for flag in action.option_strings}
    flags: list[str] = []
    rest: list[str] = []
    left = iter(arguments)
    for argument in left:
        flag, equals, _ = argument.partition("=")
        if flag not in known:
            rest.append(argument)
            continue
        flags.append(argument)
        if known[flag] != 0 and not equals and (value := next(left, None)) is not None:
            flags.append(value)
    return [*flags, *rest]


@contextmanager
def _quick_imports() -> Iterator[None]:
    """Speed up the imports inside a `with` block.

    Garbage collection is paused: imported objects stay, and scanning them takes a fifth of the time. wandb is hidden,
    since timm imports it, which takes half a second, for a function that is not used here.
    """
    gc.disable()
    hide_wandb = "wandb" not in sys.modules
    if hide_wandb:
        sys.modules["wandb"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if hide_wandb:
            del sys.modules["wandb"]
        gc.freeze()
        gc.enable()


def _inspect(options: argparse.Namespace) -> None:
    with _quick_imports():
        from blockwise.commands.inspection import inspect_model, print_inspection

    silence_libraries()
    print_inspection(inspect_model(options.model, options.overrides), Console(markup=False), as_json=options.json)


def _rank(options: argparse.Namespace) -> None:
    with _quick_imports():
        from blockwise.commands.rank import print_ranking, rank_model

    silence_libraries()
    console = Console(markup=False)
    found = rank_model(options.model, options.overrides, options.score, Console(markup=False, stderr=True))
    print_ranking(found, console, as_json=options.json)


def _table(options: argparse.Namespace) -> None:
    from blockwise.analysis.backbone_table import backbone_rows, backbone_table, write_rows
    from blockwise.analysis.summary import sweeps
    from blockwise.analysis.sweep_table import print_table, sweep_table
    from blockwise.results.store import read_records

    console = Console(markup=False)
    recorded = sweeps(read_records(options.results))
    if not options.backbones:
        if options.out:
            raise InputError("--out needs --backbones: it writes that table")
        for sweep in recorded:
            print_table(console, sweep_table(sweep, smooth=options.smooth))
        return
    if options.smooth:
        raise InputError("--smooth is about the blocks of a sweep: leave out --backbones")
    rows = backbone_rows(recorded)
    print_table(console, backbone_table(rows))
    for path in options.out:
        write_rows(rows, path)


def _report(options: argparse.Namespace) -> None:
    with _extra("report"):
        from blockwise.analysis.report import write_report
    from blockwise.results.store import read_records

    print(f"Report written to {write_report(read_records(options.results), options.out)}")


def _export(options: argparse.Namespace) -> None:
    with _quick_imports():
        from blockwise.exports.choose import choose
        from blockwise.exports.write import export
    from blockwise.results.store import read_records

    silence_libraries()
    if options.push_to_hub is not None:
        from blockwise.exports.use.push import check_repository

        check_repository(options.push_to_hub)
    names = {name: getattr(options, name) for name in ("model", "data", "scope", "policy", "seed")}
    record = choose(read_records(options.results), **names)
    done = export(record, options.out, format=options.format, overrides=options.overrides)
    cell = f"{record.backbone.name} on {record.data.name}, scope {record.cell.scope}, seed {record.seed}"
    print(f"{cell}: written to {done.folder}")
    if done.difference is not None:
        images = "test images" if done.photographs else "noise (the data set was not found)"
        print(f"loaded without blockwise; logits on {images} differ by at most {done.difference:.1g} of the largest")
    if options.push_to_hub is not None:
        from blockwise.exports.use.push import push_to_hub

        print(f"uploaded: {push_to_hub(done.folder, options.push_to_hub)}")


def _predict(options: argparse.Namespace) -> None:
    with _quick_imports():
        from blockwise.commands.predicting import print_predictions
        from blockwise.exports.use.predict import predict
    from blockwise.tracking.progress import decoding

    silence_libraries()
    if options.beside and options.explain is None:
        raise InputError("--beside needs --explain: it draws others beside the pictures")
    overrides = [str(word) for word in options.images if str(word).startswith("model.") and "=" in str(word)]
    images = [word for word in options.images if str(word) not in overrides]
    if options.explain is not None:
        from blockwise.exports.use.explain import explain

        written = explain(options.export, images, options.explain, beside=options.beside, overrides=overrides)
        print(f"{len(written)} picture{'s' * (len(written) != 1)} written to {options.explain}", file=sys.stderr)
    with decoding(Console(stderr=True, quiet=not sys.stderr.isatty())) as begin:
        found = predict(options.export, images, top=options.top, overrides=overrides, begin=begin)
    kind = "json" if options.json else "csv" if options.csv else "table"
    print_predictions(found, Console(markup=False), kind)
    if broken := [prediction for prediction in found if prediction.error]:
        for prediction in broken:
            print(f"skipped {prediction.image}: {prediction.error}", file=sys.stderr)
        sys.exit(FAILED)


def _evaluate(options: argparse.Namespace) -> None:
    with _quick_imports():
        from blockwise.commands.predicting import print_metrics
        from blockwise.exports.use.evaluate import evaluate

    silence_libraries()
    folders = [word for word in options.overrides if "=" not in word or Path(word).is_dir()]
    if len(folders) > 1:
        raise InputError(f"evaluate measures one folder at a time, not {len(folders)}: {' '.join(folders)}")
    overrides = [word for word in options.overrides if word not in folders]
    found = evaluate(options.export, overrides, images=folders[0] if folders else None)
    print_metrics(found, Console(markup=False), as_json=options.json)


def _claims(options: argparse.Namespace) -> None:
    with _extra("report"):
        from blockwise.analysis.claims import claims, claims_list
    from blockwise.analysis.summary import sweeps
    from blockwise.results.store import read_records

    results = claims(sweeps(read_records(options.results)))
    if options.json:
        print(json.dumps([asdict(claim) for claim in results], indent=2))
    else:
        Console(markup=False).print(claims_list(results))


def _sync(options: argparse.Namespace) -> None:
    silence_libraries()
    from blockwise.results.store import read_records
    from blockwise.tracking.wandb import sync

    records = read_records(options.results)
    sync(records, options.project, options.entity, Console(markup=False))
    print(f"{len(records)} runs are up to date in {options.project}")


def _dashboard(options: argparse.Namespace) -> None:
    silence_libraries()
    from blockwise.config.checks import NAME
    from blockwise.tracking.dashboard import build_dashboard, dashboard_json, publish

    for name in (options.entity, options.project):
        if not NAME.fullmatch(name):
            raise InputError(f"{name!r} is not a valid W&B name: use letters, digits and . _ + -")
    dashboard = build_dashboard(options.entity, options.project)
    print(dashboard_json(dashboard) if options.dry_run else publish(dashboard))


@contextmanager
def _extra(name: str) -> Iterator[None]:
    """Name the extra to install if an optional package is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise InputError(f"{error.name} is not installed: pip install 'blockwise[{name}]'") from error


def _exit_on_error(command: Callable[[], Any]) -> None:
    """Run a command; if the user can fix the error, exit with one sentence instead of a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal may lack Δ
    try:
        _check_current_folder()
        command()
        if sys.stdout is not None:  # closed
            sys.stdout.flush()
    except BrokenPipeError:  # as in `blockwise inspect vgg16 | head`: nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (Exception, KeyboardInterrupt, Interrupted) as error:
        if (ending := _ending(error)) is None:
            raise
        _exit(*ending)


def _check_current_folder() -> None:
    try:
        Path.cwd()
    except FileNotFoundError as error:
        raise InputError("the current folder has been removed: change to another one") from error


def _ending(error: BaseException) -> tuple[str, int] | None:
    """Return the sentence and the exit code of an error that the user can do something about; None for others."""
    if isinstance(error, InputError):
        return f"error: {error}", USAGE_ERROR
    if isinstance(error, (HydraException, OmegaConfBaseException)):
        return f"error: {explain(error)}", USAGE_ERROR
    if isinstance(error, (NotADirectoryError, FileExistsError, PermissionError)):  # a folder that Hydra cannot make
        return f"error: {error.filename} cannot be written to ({error.strerror})", USAGE_ERROR
    if isinstance(error, FileNotFoundError) and error.filename:
        return f"error: {error.filename} does not exist, and cannot be made", USAGE_ERROR
    if isinstance(error, OSError) and error.errno in DISK_ERRORS:
        name = f"{error.filename} cannot be written" if error.filename else "a file cannot be written"
        return f"error: {name} ({error.strerror}): records are kept; run the same command again to go on", FAILED
    if out_of_memory(error):
        return f"error: {NO_MEMORY}", FAILED
    if isinstance(error, Interrupted):
        return "interrupted: progress is saved; run the same command again to continue", 128 + error.signal
    if isinstance(error, KeyboardInterrupt):
        return "interrupted: what is finished is kept; run the same command again to go on", INTERRUPTED
    return None


def _exit(sentence: str, code: int) -> None:
    if int(os.environ.get("RANK", "0")) == 0:
        print(" ".join(sentence.split()), file=sys.stderr, flush=True)
    else:  # the first process to exit ends the others: give rank 0 time to print
        time.sleep(5)
    sys.exit(code)
