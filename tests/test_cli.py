"""The command line in real processes: output, files and exit status."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import SMALL
from processes import blockwise, started

from blockwise import __version__
from blockwise.cli import _show, main
from blockwise.config.compose import CONFIG_DIR, defaults, groups, plain
from blockwise.results.finished import recall_finished
from blockwise.study.run import run

TRAIN = [sys.executable, "-m", "blockwise", "train"]
RESULTS = Path(__file__).parent / "fixtures" / "results_before"
QUICK = [*SMALL, "partition.num_blocks=3", "trainer.max_epochs=1"]


def scopes(folder):
    return sorted(json.loads(path.read_text())["cell"]["scope"] for path in folder.rglob("record.json"))


def test_a_run_its_table_and_its_picture(tmp_path):
    done = blockwise("train", *QUICK, "block=all", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert scopes(tmp_path) == ["0", "1", "2", "full", "head"]
    assert "best block by validation accuracy" in done.stdout
    (picture,) = tmp_path.rglob("*.png")
    assert str(picture.relative_to(tmp_path)) in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["results"]
    again = blockwise("table", "results", folder=tmp_path)
    table = [line.rstrip() for line in again.stdout.splitlines() if line.strip()]
    assert table
    assert all(line in done.stdout for line in table)


@pytest.mark.slow
def test_a_multirun_keeps_blocks_together_and_names_every_failure(tmp_path):
    overrides = ["-m", "block=range(0,2)", "partition.num_blocks=3,99"]
    done = blockwise("train", *[o for o in QUICK if not o.startswith("partition")], *overrides, folder=tmp_path)
    assert done.returncode == 1
    assert scopes(tmp_path) == ["0", "1"]
    assert " ".join(done.stdout.split()).count("2 cells, 0 of them already recorded") == 1
    assert "1 of 2 jobs failed:" in done.stderr
    assert done.stderr.count("partition.num_blocks=99 does not fit") == 2  # when it happened, and in the ledger
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model=vgg61"], "Did you mean 'vgg16'?"),
        (["data=digit"], "Did you mean 'digits'?"),
        ([*QUICK, "block=7"], "block=7 is out of range: test_resnet has 3 blocks, so choose 0 to 2"),
        ([*QUICK, "data.batch_size=51"], "data.batch_size=51 does not fit the 50 training images"),
        ([*QUICK, "results_dir=/proc/here"], "results_dir=/proc/here cannot be written to"),
        ([*QUICK, f"results_dir={300 * 'x'}"], "cannot be written to (File name too long)"),
        ([*QUICK, "trainer.precision=fp7"], "trainer.precision=fp7 is unknown: choose 32-true"),
        (["model=timm"], "model.name is missing"),
        (["-m", "model=vgg16,vgg61"], "Did you mean 'vgg16'?"),
    ],
)
def test_wrong_input_is_one_sentence(tmp_path, monkeypatch, capsys, overrides, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", sys.argv)
    for name in ("HYDRA_FULL_ERROR", "WANDB_ERROR_REPORTING"):
        monkeypatch.setenv(name, "1")  # the command line sets them, for its whole process
    with pytest.raises(SystemExit) as ended:
        main(["train", *overrides])
    assert ended.value.code == 2
    (sentence,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert sentence.startswith("error: ")
    assert message in sentence
    assert not list(tmp_path.rglob("record.json"))


@pytest.mark.slow
def test_a_failed_job_is_tried_again_with_the_users_own_configs(tmp_path):
    (tmp_path / "mine" / "study").mkdir(parents=True)
    (tmp_path / "mine" / "study" / "one.yaml").write_text("# @package _global_\nblock: 7\n")
    done = blockwise("train", "-m", "--config-dir", "mine", *QUICK, "+study=one", "seed=0", folder=tmp_path)
    assert done.returncode == 1
    assert "again: blockwise train --config-dir=mine " in done.stderr


def test_wrong_input_leaves_no_traceback(tmp_path):
    done = blockwise("train", *QUICK, "block=7", folder=tmp_path)
    assert done.returncode == 2
    (sentence,) = done.stderr.strip().splitlines()
    assert sentence.startswith("error: block=7 is out of range")


def _interrupt_after_epochs(command, folder, count):
    """Press Ctrl-C once so many epochs have been printed; return their numbers and what went to stderr."""
    epochs = []
    with started(*command, folder=folder) as running:
        for line in running.stdout:
            if line.startswith("epoch "):
                epochs.append(int(line.split()[1].partition("/")[0]))
            if len(epochs) == count:
                break
        os.kill(running.pid, signal.SIGINT)
        running.stdout.read()
        running.wait(timeout=60)
        assert running.returncode == 130
        return epochs, running.stderr


def test_ctrl_c_keeps_what_is_trained_and_the_same_command_goes_on(tmp_path):
    assert blockwise("train", *QUICK, "block=head", folder=tmp_path).returncode == 0
    long = ["train", *(o for o in QUICK if "epochs" not in o), "trainer.max_epochs=5000", "block=head", "seed=1"]
    epochs, errors = _interrupt_after_epochs(long, tmp_path, 3)
    assert epochs == [1, 2, 3]
    assert errors.strip().splitlines()[-1].startswith("interrupted: progress is saved")
    assert "Traceback" not in errors
    assert scopes(tmp_path) == ["head"], "what had been recorded before"
    again, _ = _interrupt_after_epochs(long, tmp_path, 1)
    assert again[0] > 3


def test_inspect_and_help(tmp_path):
    done = blockwise("inspect", "resnet18", "--json", "partition=stage", folder=tmp_path)
    assert json.loads(done.stdout)["num_blocks"] == 5
    assert blockwise("inspect", "resnet81", folder=tmp_path).returncode == 2
    assert "inspect" in blockwise("--help", folder=tmp_path).stdout
    assert "optimizer" in blockwise("train", "--help", folder=tmp_path).stdout


def test_version_and_help_of_every_setting(tmp_path):
    assert blockwise("--version", folder=tmp_path).stdout == f"blockwise {__version__}\n"
    text = blockwise("train", "--help", folder=tmp_path).stdout
    assert not [name for name, value in defaults().items() if f" {name}=" not in text and not internal(name, value)]
    for group, names in groups().items():
        assert group == "hydra" or ", ".join(names)[:60] in text
    assert "Further settings" in text
    assert "partition.length=8" in text


def internal(name, value):
    return isinstance(value, dict) or set(name.split(".")) & {"_target_", "_partial_", "source"} or name == "experiment"


def test_a_reader_that_has_enough_gets_no_traceback(tmp_path):
    command = f"{sys.executable} -m blockwise table {RESULTS} --backbones | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    many = f"{sys.executable} -c \"from blockwise.cli import _exit_on_error as e; e(lambda: print('x\\n' * 10**6))\""
    done = subprocess.run(["bash", "-c", f"{many} | head -1"], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("x\n", "")


@pytest.mark.parametrize(
    ("command", "code", "message"),
    [
        (f"table {RESULTS} >&-", 0, ""),
        ("train -m 'seed=range(0,0)'", 2, "error: seed=range(0,0) has no values"),
        ("train -m 'seed=interval(0,1)'", 2, "error: seed=interval(0,1) has no end of values"),
        ("train +trainer.limit_train_batches=0", 2, "limit_train_batches=0 must be a number greater than 0"),
        ("train 'seed=${nope}'", 2, "Interpolation key 'nope' not found"),
        (f"report {RESULTS} --out ''", 2, "is empty: is a variable of your shell unset?"),
    ],
)
def test_odd_shells_and_axes(tmp_path, command, code, message):
    line = f"{sys.executable} -m blockwise {command}"
    done = subprocess.run(["bash", "-c", line], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, "Traceback" in done.stderr) == (code, False)
    assert message in done.stderr
    assert "Error executing" not in done.stderr


def test_a_folder_that_was_removed(tmp_path):
    line = f"mkdir gone; cd gone; rmdir ../gone; {sys.executable} -m blockwise train"
    done = subprocess.run(["bash", "-c", line], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.endswith("error: the current folder has been removed: change to another one\n")


# sitecustomize.py, which Python runs at start: at the end it tells whether torch was imported
TELL = "import atexit, sys; atexit.register(lambda: print('torch' in sys.modules, file=sys.stderr))"


@pytest.mark.slow
def test_a_run_without_anything_left_to_train_does_not_wait_for_torch(tmp_path):
    first = blockwise("train", *QUICK, "block=[head,1]", folder=tmp_path)
    assert first.returncode == 0, first.stderr
    (tmp_path / "sitecustomize.py").write_text(TELL)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    for flags in ([], ["-m"]):
        command = [sys.executable, "-m", "blockwise", "train", *flags, *QUICK, "block=[head,1]"]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
        assert done.stderr == "False\n"
        assert " ".join(done.stdout.split()).startswith(
            "test_resnet on digits, partition unit of 3 blocks: 2 cells, 2 of them already recorded"
        )
        table = first.stdout[first.stdout.index("test_resnet on digits, partition unit  ") :]
        assert done.stdout.endswith(table)


@pytest.mark.parametrize("policy", ["lp_ft", "[static,lp_ft]"])
def test_the_same_command_again_shows_the_same_tables(small, console, capsys, monkeypatch, policy):
    monkeypatch.setenv("COLUMNS", str(console.width))
    cfg = small("block=[head,2]", f"policy={policy}", "trainer.max_epochs=4")
    run(cfg, console)
    _show(recall_finished(plain(cfg)))
    first, (headline, *again) = console.export_text(), capsys.readouterr().out.splitlines()
    assert headline.endswith("of them already recorded")
    assert again
    assert first.endswith("\n".join(again) + "\n")


def test_head_alone_beside_the_sweep_of_a_policy_has_a_table(small, console, capsys):
    run(small("block=[head,0]", "policy=lp_ft", "trainer.max_epochs=4"), console)
    cfg = small("block=head", "trainer.max_epochs=4")
    run(cfg, console)
    _show(recall_finished(plain(cfg)))
    assert " head " in capsys.readouterr().out


def test_tables_do_not_wait_for_torch():
    modules = "sys, blockwise.cli, blockwise.analysis.sweep_table, blockwise.analysis.report, blockwise.results"
    code = f"import {modules}; print(any(name in sys.modules for name in ('torch', 'wandb')))"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
        == "False"
    )


@pytest.mark.slow
def test_inspect_does_not_wait_for_wandb():
    code = "import sys; from blockwise.cli import main; main(['inspect', 'test_resnet', '--json'])"
    code += "; sys.exit('wandb' in sys.modules or 'torch' not in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


@pytest.mark.slow
def test_wheel_and_source_distribution_are_the_same_whenever_they_are_built(tmp_path):
    built = []
    for name in ("one", "two"):
        command = [sys.executable, "-m", "build", "--outdir", str(tmp_path / name), str(CONFIG_DIR.parent)]
        assert subprocess.run(command, capture_output=True, check=False).returncode == 0
        built.append({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()})
    assert built[0] == built[1]
    assert len(built[0]) == 2


@pytest.mark.slow
def test_the_wheel_carries_configs_and_sweeper(tmp_path):
    """Built, installed without the checkout, run: with the dependencies of this environment, and its code alone."""
    root = CONFIG_DIR.parent
    build = [sys.executable, "-m", "build", "--wheel", "--outdir", str(tmp_path), str(root)]
    assert subprocess.run(build, capture_output=True, check=False).returncode == 0
    (wheel,) = tmp_path.glob("*.whl")
    installed = tmp_path / "installed"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(installed), str(wheel)]
    assert subprocess.run(pip, check=False).returncode == 0
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    where = [
        sys.executable,
        "-c",
        "import blockwise, blockwise.config.compose as c; print(blockwise.__file__, c.CONFIG_DIR)",
    ]
    found = subprocess.run(where, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True).stdout
    assert found.split() == [str(installed / "blockwise/__init__.py"), str(installed / "blockwise/conf")]
    done = subprocess.run(
        [*TRAIN, *QUICK, "-m", "block=range(0,2)"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert scopes(tmp_path / "results") == ["0", "1"]
    assert Path(installed / "hydra_plugins/blockwise_sweeper").is_dir()
