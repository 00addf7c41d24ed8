"""Runs of W&B: offline, and against a server on the loopback interface that speaks its protocol."""

import getpass
import json
import os
import platform
import socket
import sys
from pathlib import Path

import grids
import pytest
from conftest import SMALL
from processes import blockwise
from wandb_server import Server

from blockwise.cli import main
from blockwise.results.store import read_history, read_records, settings_hash
from blockwise.study.run import run as train

QUICK = [*SMALL, "partition.num_blocks=3", "logger=wandb", "block=[head,1,full]", "cache.folder=null"]


@pytest.fixture
def server():
    with Server() as running:
        yield running


@pytest.fixture
def call(tmp_path):
    """Run `blockwise` in a new process, with a home folder without a W&B login."""
    quiet = {"HOME": str(tmp_path), "NETRC": str(tmp_path / "netrc")}
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("WANDB")}

    def run(*arguments, server=None, before="", **environment):
        online = {} if server is None else {"WANDB_BASE_URL": server.address, "WANDB_API_KEY": 40 * "k"}
        environment = {**inherited, **quiet, **online, **environment}
        return blockwise(*arguments, folder=tmp_path, environment=environment, before=before)

    return run


@pytest.mark.slow
def test_without_a_key_runs_are_kept_offline_and_one_sentence_says_so(call, tmp_path):
    done = call("train", *QUICK)
    assert done.returncode == 0, done.stderr
    assert " ".join(done.stdout.split()).count("W&B is offline (there is no API key)") == 1
    assert "wandb:" not in done.stdout + done.stderr
    ids = {settings_hash(record["settings"]) for record in read_records(tmp_path / "results")}
    kept = [path.name for path in (tmp_path / "results" / ".logs" / "wandb").glob("offline-run-*")]
    assert {name.rsplit("-", 1)[1] for name in kept} == ids
    assert len(kept) == 3


def test_every_cell_is_a_run_of_its_sweeps_group(call, tmp_path, server):
    done = call("train", *QUICK, "optimizer.lr=[1e-3,1e30]", "optimizer=sgd", server=server)
    assert done.returncode == 0, done.stderr
    assert "offline" not in done.stdout
    records = read_records(tmp_path / "results")
    assert len(server.runs) == len(records) == 6
    assert len({run.group for run in server.runs.values()}) == 1
    for record in records:
        run = server.runs[settings_hash(record["settings"])]
        scope = record["cell"]["scope"]
        assert set(run.tags) >= {"test_resnet", "digits", "unit", {"1": "block 1"}.get(scope, scope)}
        assert ("quarter 2" in run.tags) == (scope == "1")
        assert run.config["settings"] == record["settings"]
        assert run.config["first_layer"] == record["cell"]["first_layer"]
        assert run.exit_code == (0 if record["status"] == "finished" else 1)
        assert run.summary["status"] == record["status"]
        curve = [row["val"]["top1"] for row in read_history(record["folder"])]
        assert [line["val/top1"] for line in run.history] == curve
        assert [line["epoch"] for line in run.history] == list(range(record["epochs"]))
        if record["status"] == "finished":
            assert run.summary["test/top1"] == record["metrics"]["test"]["top1"]
            assert run.summary["val/top1"] == record["metrics"]["val"]["top1"]
    assert {record["status"] for record in records} == {"finished", "diverged"}


@pytest.mark.slow
def test_nothing_of_the_environment_is_sent_beyond_the_record(call, tmp_path, server):
    call("train", *QUICK, server=server, BLOCKWISE_TEST_SECRET="a-secret-of-the-environment")
    heard = "\n".join(server.heard)
    assert "val/top1" in heard
    private = [socket.gethostname(), str(tmp_path), str(Path(__file__).parents[1]), sys.executable, platform.release()]
    assert [word for word in private if word in heard] == []
    assert "a-secret-of-the-environment" not in heard
    assert {line.split()[0] for line in server.heard if "/otel/" in line.split()[0]} == set()
    assert "requirements.txt" not in heard
    assert "wandb-metadata" not in heard
    assert f'"{getpass.getuser()}"' not in heard


@pytest.mark.slow
def test_training_that_was_interrupted_continues_its_runs(call, tmp_path, server):
    long = [*QUICK, "trainer.max_epochs=4", "checkpoint.every_minutes=0"]
    stopped = call("train", *long, server=server, before=STOP_IN_EPOCH.format(epoch=2))
    assert stopped.returncode == 143, stopped.stderr
    assert [len(run.history) for run in server.runs.values()] == [2] * 3
    assert all(run.preempting and run.exit_code == 1 for run in server.runs.values())
    done = call("train", *long, server=server)
    assert done.returncode == 0, done.stderr
    assert len(server.runs) == 3
    for sent in server.runs.values():
        assert [line["epoch"] for line in sent.history] == [0, 1, 2, 3]
        assert sent.exit_code == 0


STOP_IN_EPOCH = """
import blockwise.training.module as m, os, signal
original = m.BlockwiseModule.training_step
def step(self, batch, index):
    if self.current_epoch == {epoch}:
        os.kill(os.getpid(), signal.SIGTERM)
    return original(self, batch, index)
m.BlockwiseModule.training_step = step
"""


@pytest.mark.slow
def test_a_server_that_does_not_answer_leaves_training_alone(call, tmp_path):
    class Gone:
        address = "http://127.0.0.1:9"

    done = call("train", *QUICK, server=Gone, WANDB_INIT_TIMEOUT="1")
    assert done.returncode == 0, done.stderr
    assert " ".join(done.stdout.split()).count("W&B is offline") == 1
    assert len(read_records(tmp_path / "results")) == 3


@pytest.mark.slow
def test_sync_sends_what_was_trained_without_wandb_and_once_only(call, tmp_path, server, small, console):
    train(small("block=[head,1,full]"), console)
    for _ in range(2):
        done = call("sync", "results", server=server)
        assert done.returncode == 0, done.stderr
        records = read_records(tmp_path / "results")
        assert done.stdout.count("\n") < 4
        assert "3 runs are up to date in blockwise" in done.stdout
        assert set(server.runs) == {settings_hash(record["settings"]) for record in records}
        for record in records:
            run = server.runs[settings_hash(record["settings"])]
            assert [line["val/top1"] for line in run.history] == [
                row["val"]["top1"] for row in read_history(record["folder"])
            ]
            assert run.summary["test/top1"] == record["metrics"]["test"]["top1"]
            assert run.exit_code == 0


def test_sync_without_a_key_is_one_sentence(call, tmp_path):
    grids.save([grids.record("head", 0.5)], tmp_path / "results")
    done = call("sync", "results")
    assert done.returncode == 2
    assert "wandb login" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        (["sync", "results"], {"WANDB_MODE": "offline"}, "WANDB_MODE is offline"),
        (["sync", "results", "--project", ""], {}, "the W&B project must have a name"),
        (["dashboard", "--entity", ""], {}, "'' is not a valid W&B name"),
    ],
)
def test_what_sync_and_dashboard_cannot_do_is_one_sentence(
    tmp_path, monkeypatch, capsys, arguments, environment, message
):
    grids.save([grids.record("head", 0.5)], tmp_path / "results")
    monkeypatch.chdir(tmp_path)
    for name, value in {"WANDB_ERROR_REPORTING": "false", **environment}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_an_address_that_is_none_is_one_sentence(call, tmp_path):
    grids.save([grids.record("head", 0.5)], tmp_path / "results")
    done = call("sync", "results", WANDB_BASE_URL="junk", WANDB_API_KEY=40 * "k")
    assert done.returncode == 2
    assert "W&B cannot be used" in done.stderr
    assert "Traceback" not in done.stderr


def test_dashboard_dry_run_prints_json_and_sends_nothing(server, monkeypatch, capsys):
    online = {"WANDB_BASE_URL": server.address, "WANDB_API_KEY": 40 * "k", "WANDB_ERROR_REPORTING": "false"}
    for name, value in online.items():
        monkeypatch.setenv(name, value)
    main(["dashboard", "--entity", "e", "--project", "p", "--dry-run"])
    assert json.loads(capsys.readouterr().out)["entity"] == "e"
    assert server.heard == []


def test_a_dashboard_is_published(call, server):
    done = call("dashboard", "--entity", "e", "--project", "p", server=server)
    assert done.returncode == 0, done.stderr
    assert "/e/p?nw=" in done.stdout
    (view,) = server.views
    assert json.loads(view["spec"])["section"]
