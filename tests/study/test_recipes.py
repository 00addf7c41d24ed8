"""Recipes in training: schedules, clipping, losses and mixing keep cells exact, alone and when resumed."""

from pathlib import Path

import pytest
import torch
from conftest import quick_config
from processes import blockwise
from safetensors.torch import load_file

from blockwise.api import train_scopes
from blockwise.errors import InputError, Interrupted
from blockwise.policies import Cyclic, Phase, Static
from blockwise.recipe.schedulers import Schedule
from blockwise.results import read_records
from blockwise.results.record import SELECTIONS
from blockwise.study.run import run
from blockwise.study.study import Study
from blockwise.training.module import BlockwiseModule

EVERYTHING = [
    "trainer.max_epochs=3",
    "optimizer.lr=0.01",
    "scheduler=cosine",
    "scheduler.warmup=0.5",
    "optimizer.layer_decay=0.8",
    "optimizer.no_decay=true",
    "optimizer.clip_norm=0.5",
    "loss=focal",
    "loss.class_weights=balanced",
    "select_by=macro_f1",
    "early_stopping.patience=1",
    "data.mixup=0.4",
    "data.sampler=balanced",
    "freeze.norm=train",
    "policy=lp_ft",
    "policy.lp_ft.head_epochs=1",
]


def assert_same(one, other):
    for key in ("settings", "metrics", "best_epoch", "epochs"):
        assert one[key] == other[key], key
    mine, theirs = (load_file(f"{record.folder}/weights.safetensors") for record in (one, other))
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in mine.items())
    histories = [Path(record.folder, "history.csv").read_text() for record in (one, other)]
    assert histories[0] == histories[1]


def test_with_everything_alone_equals_among_also_when_resumed(small, console, tmp_path, monkeypatch, stop_at):
    among = run(small("block=[head,1,0+2,full,bias]", *EVERYTHING), console)
    kept = {record.cell.scope: record for record in among}
    cfg = small("block=0+2", *EVERYTHING, f"results_dir={tmp_path / 'alone'}")
    stop_at(8)  # in the second epoch, in which the blocks train
    with pytest.raises(Interrupted):
        run(cfg, console)
    monkeypatch.undo()
    (alone,) = run(cfg, console)
    assert_same(alone, kept["0+2"])


@pytest.mark.slow
def test_two_processes_train_as_one(small, small_overrides, console, tmp_path):
    options = ["block=[head,full]", *(option for option in EVERYTHING if "norm=train" not in option)]
    run(small(*options, f"results_dir={tmp_path / 'one'}"), console)
    ddp = ["trainer=ddp", "trainer.accelerator=cpu", f"results_dir={tmp_path / 'two'}"]
    done = blockwise("train", *small_overrides, *options, *ddp, folder=tmp_path, timeout=300)
    assert done.returncode == 0, done.stderr
    for one, two in zip(read_records(tmp_path / "one"), read_records(tmp_path / "two"), strict=True):
        assert one.cell.scope == two.cell.scope
        mine, theirs = (load_file(f"{record.folder}/weights.safetensors") for record in (one, two))
        assert all((tensor - theirs[name]).abs().max() < 1e-4 for name, tensor in mine.items())


@pytest.mark.slow
def test_each_cell_has_its_own_schedule(small, console, monkeypatch):
    """A cell that stops early leaves the rates of the others alone."""
    rates = {}
    step = BlockwiseModule.training_step

    def watched(self, batch, batch_idx):
        for index in self._active():
            groups = self._steps[index][0].optimizer.param_groups
            rates.setdefault(self.cells[index].key, []).append([group["lr"] for group in groups])
        step(self, batch, batch_idx)

    monkeypatch.setattr(BlockwiseModule, "training_step", watched)
    options = ["trainer.max_epochs=3", "early_stopping.patience=1", "scheduler=cosine", "optimizer.lr=[0.3,1e-3]"]
    partition = ["partition=segment", "partition.num_blocks=3"]
    run(small("block=[0,full]", "select_by=loss", "optimizer.layer_decay=0.5", *options, *partition), console)
    steps = [len(of_cell) for of_cell in rates.values()]
    assert min(steps) < max(steps) == 12
    for key, of_cell in rates.items():
        lr = float(key.split("@")[1])
        decays = [1, 1] if key.startswith("0") else [1, 0.5**3, 0.5**2, 0.5]
        for number, groups in enumerate(of_cell):
            factor = (1 + torch.cos(torch.tensor(torch.pi * number / 12))) / 2
            assert groups == pytest.approx([lr * decay * float(factor) for decay in decays], rel=1e-4, abs=1e-12)


def test_the_gradient_of_each_cell_is_clipped(small, console, monkeypatch):
    norms = []
    step = torch.optim.SGD.step

    def watched(self, *arguments, **options):
        gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        norms.append(float(torch.stack([gradient.norm() for gradient in gradients]).norm()))
        return step(self, *arguments, **options)

    monkeypatch.setattr(torch.optim.SGD, "step", watched)
    for clip in ("null", "0.01"):
        norms.clear()
        run(small("block=[head,full]", "optimizer=sgd", f"optimizer.clip_norm={clip}"), console)
        norms = norms[1:]  # the first step is that of a check
        assert len(norms) == 16
        assert (max(norms) > 0.02) if clip == "null" else (max(norms) == pytest.approx(0.01, rel=1e-3))


def test_select_by(small, console):
    for metric in SELECTIONS:
        (record,) = run(
            small("block=full", "trainer.max_epochs=4", "optimizer.lr=0.03", f"select_by={metric}"), console
        )
        with Path(record.folder, "history.csv").open() as file:
            names, *rows = [line.strip().split(",") for line in file]
        val = [{name: float(row[names.index(f"val_{name}")]) for name in SELECTIONS} for row in rows]
        scores = [(-v["loss"], v["top1"]) if metric == "loss" else (v[metric], -v["loss"]) for v in val]
        assert record.best_epoch == scores.index(max(scores)), "of equals, the one with the lowest loss"
        assert record.metrics.val[metric] == pytest.approx(val[record.best_epoch][metric])
        assert record.select_by == metric


def test_a_loss_a_schedule_and_a_transform_from_outside(small, console, tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "import torch\n\n"
        "class Hinge(torch.nn.MultiMarginLoss):\n    pass\n\n"
        "class Inverted(torch.nn.Module):\n"
        "    def forward(self, image):\n        return 255 - image\n\n"
        "def halved(optimizer, steps_per_epoch):\n"
        "    return torch.optim.lr_scheduler.StepLR(optimizer, steps_per_epoch, 0.5)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    (record,) = run(
        small(
            "block=0",
            "loss=focal",
            "loss._target_=mine.Hinge",
            "~loss.gamma",
            "scheduler._target_=mine.halved",
            "data.augment=[{_target_: mine.Inverted}]",
        ),
        console,
    )
    assert record.settings["loss"] == {"name": "mine.Hinge"}
    assert record.settings["scheduler"]["name"] == "mine.halved"
    assert record.settings["data"]["augment"] == [{"_target_": "mine.Inverted"}]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("scheduler.warmup=2", "scheduler.warmup=2 must be less than trainer.max_epochs=2"),
        ("scheduler.warmup=8 scheduler.warmup_unit=step", "scheduler.warmup=8 steps is not shorter than training"),
        ("scheduler=cosin", "Did you mean 'cosine'"),
        ("scheduler._target_=torch.optim.lr_scheduler.ReduceLROnPlateau", "ReduceLROnPlateau cannot be used"),
        ("loss.label_smoothing=1.5", "loss.label_smoothing=1.5 must be a number of at least 0 and below 1"),
        ("loss.class_weights=[1,2]", "loss.class_weights has 2 weights for 10 classes"),
        ("loss=none", "loss=none is unknown"),
        ("data.mixup=0.2 loss._target_=torch.nn.MultiMarginLoss ~loss.label_smoothing", "mixed labels"),
        (
            "select_by=top5",
            "select_by=top5 is unknown: choose top1 or mean_per_class or macro_f1 or loss or probability",
        ),
        ("optimizer.layer_decay=1.5", "optimizer.layer_decay=1.5 must be at most 1"),
        ("optimizer.clip_norm=0", "optimizer.clip_norm=0 must be a number greater than 0"),
        ("+trainer.gradient_clip_val=1", "use optimizer.clip_norm=1"),
        ("+trainer.accumulate_grad_batches=2", "use a larger data.batch_size"),
        ("optimizer._target_=torch.optim.LBFGS ~optimizer.fused ~optimizer.weight_decay", "LBFGS computes the loss"),
        ("block=norms:9", "block=norms:9 is out of range"),
        ("block=lora999", "block=lora999: choose a rank of at most"),
        ("block={norms:1}", "is not a scope"),
        (
            "block=full optimizer.layer_decay=0.1 scheduler=cosine scheduler.min_lr=1e-4",
            "scheduler.min_lr=0.0001 must be between 0 and the lowest learning rate, 1e-06",
        ),
        ("scheduler=cosine scheduler.min_lr=nan", "scheduler.min_lr=nan must be a finite number"),
        ("loss=focal loss.gamma=inf", "loss.gamma=inf must be a finite number"),
        ("loss.class_weights=[0,0,0,0,0,0,0,0,0,0]", "must be balanced, one number per class, or null"),
        ("loss._target_=null", "the loss needs a _target_"),
        ("optimizer._target_=torch.optim.SparseAdam ~optimizer.fused ~optimizer.weight_decay", "cannot take a step"),
        ("optimizer._target_=timm.optim.Lion", "remove it with '~optimizer.fused'"),
        ("+trainer.overfit_batches=1", "use data.train_per_class"),
        ("+trainer.check_val_every_n_epoch=3", "trainer.check_val_every_n_epoch=3 does not fit: cells train for"),
        ("+trainer.val_check_interval=0.5", "trainer.val_check_interval=0.5 does not fit"),
        ("+trainer.val_check_interval=1", "trainer.val_check_interval=1 does not fit"),
        ("trainer.num_sanity_val_steps=2", "trainer.num_sanity_val_steps=2 does not fit"),
        ("+trainer.max_steps=3", "trainer.max_steps=3 does not fit"),
        ("+trainer.max_time=00:00:01:00", "trainer.max_time=00:00:01:00 does not fit"),
        ("+trainer.fast_dev_run=true", "trainer.fast_dev_run=True does not fit"),
        ("+model.options.drop_path_rate=nan", "must be a finite number"),
    ],
)
def test_wrong_recipes_are_one_sentence(small_overrides, overrides, message):
    with pytest.raises(InputError, match=message):
        Study.from_config(quick_config([*small_overrides, *overrides.split()]))


@pytest.mark.slow
def test_own_objects_in_python_are_told_apart(small, console, tmp_path):
    """Two losses, schedules and policies that differ only in what they keep inside have records of their own."""
    study = Study.from_config(small(), console)

    def train(**options):
        (record,) = train_scopes(
            study.backbone,
            study.staged.partition,
            0,
            study.data.module,
            classes=study.data.classes,
            max_epochs=1,
            results_dir=tmp_path / "python",
            quiet=True,
            accelerator="cpu",
            **options,
        )
        return record.folder

    def scaled(factor):
        return lambda logits, labels: factor * torch.nn.functional.cross_entropy(logits, labels)

    def falling(gamma):
        return Schedule(lambda optimizer: torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma))

    def steady(number):
        return lambda blocks, epoch, max_epochs: Phase(blocks, head=number > 0)

    losses = [scaled(1.0), scaled(2.0), torch.nn.CrossEntropyLoss(torch.tensor([1.0] * 9 + [2.0]))]
    folders = [train(loss=loss) for loss in losses]
    folders += [train(scheduler=falling(gamma)) for gamma in (0.5, 0.9)]
    folders += [train(policy={"mine": steady(number)}) for number in (1, 0)]
    folders += [train(policy={"mine": policy}) for policy in (Cyclic(1), Cyclic(2))]
    folders += [train(policy=name) for name in ("cyclic", Cyclic(1))]  # the same
    assert len(set(folders)) == len(folders) - 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"policy": ""}, "policy= is unknown"),
        ({"policy": "lp"}, "policy=lp is unknown"),
        ({"policy": Cyclic}, "must be an object that can be called, not a class"),
        ({"policy": {"static": Cyclic(1)}}, "the name static is for"),
        ({"policy": {"other": Static()}}, "the name static is for"),
        ({"policy": lambda *_: Phase(None)}, "must return a Phase"),
        ({"loss": 3}, "loss: 3 must be an object that can be called"),
        ({"scheduler": 3}, "scheduler=3 must be a name"),
        ({"clip_norm": "x"}, "clip_norm=x must be a number"),
        ({"optimizer": lambda _: None}, "NoneType is not an optimizer"),
    ],
)
def test_wrong_objects_in_python_are_one_sentence(small, console, tmp_path, options, message):
    study = Study.from_config(small(), console)
    data = study.data
    with pytest.raises(InputError, match=message):
        train_scopes(
            study.backbone,
            study.staged.partition,
            0,
            data.module,
            classes=data.classes,
            results_dir=tmp_path,
            quiet=True,
            **options,
        )


@pytest.mark.slow
def test_a_checkpoint_belongs_to_the_settings_of_its_policy(small, console, monkeypatch, stop_at):
    """A run that was stopped under other settings of the policy begins anew."""
    options = ["block=[0,full]", "trainer.max_epochs=4", "policy=gradual"]
    stop_at(8)
    with pytest.raises(Interrupted):
        run(small(*options, "policy.gradual.every=1"), console)
    monkeypatch.undo()
    run(small(*options, "policy.gradual.every=2"), console)
    assert "resuming" not in console.export_text(clear=False)
    run(small(*options, "policy.gradual.every=1"), console)
    assert "resuming" in console.export_text()


@pytest.mark.slow
def test_the_same_recipe_in_python(small, console, tmp_path):
    """`train_scopes` takes names and objects, and trains what the command line does."""
    options = ["trainer.max_epochs=2", "scheduler=cosine", "scheduler.warmup=0", "optimizer.clip_norm=0.5"]
    cfg = small("block=[1,full]", "policy=cyclic", "select_by=loss", "optimizer.layer_decay=0.5", *options)
    expected = run(cfg, console)
    study = Study.from_config(cfg, console)
    records = train_scopes(
        study.backbone,
        study.staged.partition,
        [1, "full"],
        study.data.module,
        classes=study.data.classes,
        max_epochs=2,
        policy="cyclic",
        optimizer=study.optimizer,
        scheduler="cosine",
        clip_norm=0.5,
        layer_decay=0.5,
        select_by="loss",
        results_dir=tmp_path / "python",
        quiet=True,
        accelerator="cpu",
    )
    for one, other in zip(expected, records, strict=True):
        assert one.metrics == other.metrics
        assert other.settings["policy"] == {"name": "cyclic", "every": 1}
        assert other.settings["scheduler"]["name"] == "cosine"
