"""Each cell has its own run in each logger: what Lightning's loggers write, and when."""

import csv
from pathlib import Path
from types import SimpleNamespace

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from blockwise.config import plain
from blockwise.config.checks import check_config
from blockwise.errors import InputError, Interrupted
from blockwise.results import METRICS, find_records, read_history
from blockwise.results.store import cell_name, sweep_path
from blockwise.study.prepare import open_loggers
from blockwise.study.run import run
from blockwise.study.study import Study
from blockwise.tracking.callback import final_metrics
from blockwise.tracking.wandb import WandbRun, WandbRuns
from blockwise.training.module import BlockwiseModule

BLOCKS = "block=[head,1,full]"


def folder_of(cfg, record, logger):
    settings = record["settings"]
    return Path(cfg.results_dir, ".logs", logger, sweep_path(settings), settings["scope"], cell_name(settings))


def test_several_loggers_at_once_each_with_a_run_a_cell(small, console):
    cfg = small("logger=[csv,tensorboard]", BLOCKS)
    for record in run(cfg, console):
        with (folder_of(cfg, record, "csv") / "metrics.csv").open() as file:
            rows = list(csv.DictReader(file))
        accuracies = [float(row["val/top1"]) for row in rows if row["val/top1"]]
        assert accuracies == [row["val"]["top1"] for row in read_history(record["folder"])]
        assert [float(row["test/top1"]) for row in rows if row["test/top1"]] == [record["metrics"]["test"]["top1"]]
        events = EventAccumulator(str(folder_of(cfg, record, "tensorboard"))).Reload()
        assert [event.value for event in events.Scalars("val/top1")] == pytest.approx(accuracies)
        assert [event.step for event in events.Scalars("val/top1")] == [0, 1]


def test_no_logger_is_the_default(small, console):
    cfg = small(BLOCKS)
    assert dict(cfg.logger) == {}
    run(cfg, console)
    assert not Path(cfg.results_dir, ".logs").exists()


def test_a_package_that_is_missing_is_one_sentence(small, console, monkeypatch):
    monkeypatch.setattr("blockwise.study.prepare.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'blockwise\[tensorboard\]'"):
        run(small("logger=tensorboard", BLOCKS), console)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["logger=wandb", "logger.wandb.mode=bogus"],
            "^logger.wandb.mode=bogus is unknown: choose online, offline or",
        ),
        (["logger=wandb", "logger.wandb.project=''"], "the W&B project must have a name"),
        (["logger=csv", "+logger.csv.bogus=3"], "a logger cannot be opened .*bogus.*check the logger settings"),
        (["logger=csv", "logger.csv.logger.save_dir=/proc/x"], "a logger cannot be opened"),
    ],
)
def test_settings_that_are_wrong_are_one_sentence(small, console, overrides, message):
    cfg = small(*overrides, BLOCKS)
    with pytest.raises(InputError, match=message):
        run(cfg, console)
    assert not find_records(Path(cfg.results_dir))


def test_no_logger_has_several_names(small, console):
    for overrides in (["logger=[]"], ["logger=none"], ["logger=csv", "logger.csv=null"]):
        assert open_loggers(small(*overrides)) == []
        check_config(plain(small(*overrides)))


class Listener:
    """A logger that stores its calls."""

    def __init__(self, record, begin=0):
        self.scope, self.next_epoch, self.told, self.ended = record["cell"]["scope"], begin, [], None

    def log(self, epoch, metrics):
        self.told.append((epoch, metrics))

    def finish(self, status, final):
        assert self.ended is None, "a run ends once"
        self.ended = (status, final)


def test_the_best_block_alone_is_kept(small, console, monkeypatch):
    kept = []
    monkeypatch.setattr(Listener, "keep", lambda self, record: kept.append(record.cell.scope), raising=False)
    study = Study.from_config(small("block=[head,0,1,full]", "optimizer.lr=[0.001,0.01]"), console)
    study.loggers = [Listener]
    study.train()
    assert kept == [study.sweep().best.scope]


def test_wandb_uploads_the_best_blocks_weights_if_asked(small, console):
    (record,) = Study.from_config(small("block=0"), console).train()
    uploaded = []
    run = SimpleNamespace(step=0, define_metric=lambda *_, **__: None)
    run.log_artifact = lambda artifact, aliases: uploaded.append((artifact, aliases))
    WandbRun(run).keep(record)
    assert not uploaded
    WandbRun(run, artifacts=True).keep(record)
    ((artifact, aliases),) = uploaded
    assert set(artifact.manifest.entries) == {"weights.safetensors", "record.json"}
    assert artifact.metadata["scope"] == "0"
    assert aliases == ["best", "seed0"]
    with pytest.raises(InputError, match="logger.wandb.artifacts=all is unknown: choose best or null"):
        WandbRuns("p", None, ".", "offline", artifacts="all")


@pytest.fixture
def listen(monkeypatch):
    """Add a logger to a study that stores the calls for each cell's run."""

    def begin(at=0):
        heard = []

        def opened(record):
            heard.append(Listener(record, at))
            return heard[-1]

        monkeypatch.setattr("blockwise.study.prepare.open_loggers", lambda cfg: [opened])
        return heard

    return begin


def test_a_run_is_told_every_epoch_once_and_its_end(small, console, listen):
    heard = listen()
    records = run(small(BLOCKS), console)
    head = records[0]["metrics"]["test"]["top1"]
    for log, record in zip(heard, records, strict=True):
        assert log.scope == record["cell"]["scope"]
        assert [epoch for epoch, _ in log.told] == [0, 1]
        history = read_history(record["folder"])
        assert log.told[1][1] == {
            f"{split}/{name}": history[1][split][name] for split in history[1] for name in METRICS
        }
        status, final = log.ended
        assert status == "finished"
        assert final["val/top1"] == record["metrics"]["val"]["top1"]
        assert final["gain/head"] == pytest.approx(record["metrics"]["test"]["top1"] - head)
        assert final["seconds"] == record["seconds"]


def test_a_cell_that_diverges_ends_so_and_the_others_do_not(small, console, listen):
    heard = listen()
    run(small("block=[head,full]", "optimizer.lr=[1e-3,1e30]", "optimizer=sgd"), console)
    assert {log.ended[0] for log in heard} == {"finished", "diverged"}
    assert all(("test/top1" in log.ended[1]) == (log.ended[0] == "finished") for log in heard)


@pytest.mark.parametrize(("error", "status"), [(Interrupted(15), "interrupted"), (RuntimeError("no memory"), "failed")])
def test_runs_end_when_training_does_not_end_well(small, console, listen, monkeypatch, error, status):
    heard = listen()

    def fail(*_):
        raise error

    monkeypatch.setattr(BlockwiseModule, "validation_step", fail)
    with pytest.raises(type(error)):
        run(small(BLOCKS), console)
    assert [log.ended for log in heard] == [(status, {})] * 3


@pytest.mark.slow
def test_training_that_goes_on_tells_what_the_runs_lack(small, console, listen, monkeypatch):
    original = BlockwiseModule.on_validation_epoch_end

    def stop(self):
        original(self)
        if self.current_epoch == 1:
            raise Interrupted(15)

    monkeypatch.setattr(BlockwiseModule, "on_validation_epoch_end", stop)
    cfg = small(BLOCKS, "trainer.max_epochs=3", "checkpoint.every_minutes=0")
    first = listen()
    with pytest.raises(Interrupted):
        run(cfg, console)
    assert [[epoch for epoch, _ in log.told] for log in first] == [[0]] * 3
    monkeypatch.undo()
    again = listen(at=1)
    run(cfg, console)
    assert [[epoch for epoch, _ in log.told] for log in again] == [[1, 2]] * 3


def test_gains_compare_the_same_seed_and_say_nothing_without_a_baseline(small, console):
    records = run(small("block=[head,1]"), console)
    assert "gain/full" not in final_metrics(records[1], None)
    assert final_metrics(records[1], None)["test/top1"] == records[1]["metrics"]["test"]["top1"]
