import pytest

from blockwise.study.study import Study


def settings(cfg, console):
    return Study.from_config(cfg, console).settings


@pytest.mark.parametrize(
    "override",
    [
        "seed=1",
        "data.batch_size=8",
        "data.augment=[flip]",
        "data.image_size=40",
        "data.crop_pct=0.9",
        "data.test_per_class=4",
        "partition.balance=flops",
        "partition.num_blocks=2",
        "optimizer.weight_decay=0",
        "optimizer.block_lr=1e-4",
        "optimizer=sgd",
        "freeze.norm=train",
        "optimizer.layer_decay=0.5",
        "optimizer.no_decay=true",
        "optimizer.clip_norm=1",
        "scheduler=cosine",
        "scheduler.warmup=0.5",
        "loss=focal",
        "loss.label_smoothing=0.1",
        "loss.class_weights=balanced",
        "select_by=loss",
        "early_stopping.patience=3",
        "trainer.max_epochs=3",
        "trainer.precision=bf16-mixed",
        "+trainer.limit_train_batches=1",
        "model.mean=[0.1,0.2,0.3]",
        "model.interpolation=lanczos",
    ],
)
def test_what_changes_the_result_is_covered(small, console, override):
    assert settings(small(), console) != settings(small(*override.split()), console)


@pytest.mark.parametrize(
    "override",
    [
        "data.num_workers=2",
        "logger=csv",
        "block=head",
        "trainer.accelerator=auto",
        "optimizer.lr=[1e-4,1e-3]",
        "cache.folder=null",
        "policy=static",
        "scheduler=constant",
        "loss=cross_entropy",
        "select_by=top1",
    ],
)
def test_what_changes_nothing_is_not(small, console, override):
    assert settings(small(), console) == settings(small(override), console)
