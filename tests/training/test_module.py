"""The LightningModule used from Python, with any network and the user's own trainer."""

import copy
from functools import partial

import lightning as L
import pytest
import torch

from blockwise.backbone.layers import record_layers
from blockwise.backbone.load import ImageSpec
from blockwise.backbone.stages import stage_backbone
from blockwise.data import BlockwiseDataModule
from blockwise.data.sources.digits import Digits
from blockwise.partition import SegmentPartitioner
from blockwise.search import FirstEpoch
from blockwise.training.cells import Cell
from blockwise.training.module import BlockwiseModule
from blockwise.training.scopes import parse_scopes


@pytest.fixture
def data():
    spec = ImageSpec(16, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bilinear", 1.0)
    return BlockwiseDataModule(Digits(train_per_class=10, val_per_class=4, test_per_class=5), spec, batch_size=20)


@pytest.fixture
def module(stub):
    layers = record_layers(stub, torch.zeros(1, 3, 16, 16))
    partition = SegmentPartitioner(num_blocks=3)(layers, stub)
    backbone = stage_backbone(stub, partition, torch.zeros(2, 3, 16, 16))
    cells = [Cell(scope, lr=1e-2) for scope in parse_scopes("all", len(partition), "mine")]
    return BlockwiseModule(backbone, cells, num_classes=10, optimizer=torch.optim.AdamW)


def trainer(tmp_path, **options):
    return L.Trainer(
        max_epochs=2,
        accelerator="cpu",
        default_root_dir=tmp_path,
        enable_progress_bar=False,
        log_every_n_steps=1,
        **options,
    )


def test_a_trainer_with_everything_left_at_its_default(module, data, tmp_path):
    used = trainer(tmp_path)
    used.fit(module, datamodule=data)
    used.test(module, datamodule=data, verbose=False)
    for progress in module.progress:
        assert progress.status == "finished"
        assert len(progress.history) == 2
        assert progress.test is not None


def test_training_lowers_the_loss_of_every_cell(module, data, tmp_path):
    L.Trainer(
        max_epochs=15, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
    ).fit(module, datamodule=data)
    for progress in module.progress:
        assert progress.history[-1]["train"]["loss"] < progress.history[0]["train"]["loss"] - 0.05


def test_cells_that_a_search_has_stopped_take_no_memory_and_no_room_in_checkpoints(module, data, tmp_path):
    module.search = FirstEpoch(keep=1)
    used = trainer(tmp_path)
    used.fit(module, datamodule=data)
    used.save_checkpoint(tmp_path / "all.ckpt")
    saved = torch.load(tmp_path / "all.ckpt", weights_only=True)
    kept = {"head", "full"}
    for cell, progress, optimizer in zip(module.cells, module.progress, saved["optimizer_states"], strict=True):
        goes_on = progress.status == "running"
        kept |= {cell.scope.name} if goes_on else set()
        of_training = saved["cells"][cell.key]["trained"], optimizer["state"], progress.best_state
        assert [len(found) > 0 for found in of_training] == [goes_on] * 3
    assert len(kept) == 3  # one of three blocks


def test_metrics_reach_a_logger(module, data, tmp_path):
    logger = L.pytorch.loggers.CSVLogger(tmp_path)
    trainer(tmp_path, logger=logger).fit(module, datamodule=data)
    header = next(tmp_path.rglob("metrics.csv")).read_text().splitlines()[0].split(",")
    assert {"head@0.01/val_top1", "full@0.01/train_loss", "2@0.01/val_ece"} <= set(header)


def test_every_trained_parameter_has_one_optimizer_and_no_other(module):
    optimizers = module.configure_optimizers()
    held = [id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
    assert len(held) == len(set(held))
    assert set(held) == {id(p) for p in module.parameters() if p.requires_grad}


def test_a_cell_alone_runs_the_frozen_prefix_without_gradients(module, data):
    data.setup("fit")
    images, _ = data.on_after_batch_transfer(next(iter(data.val_dataloader())), 0)
    for boundary, live in module.backbone.boundaries(images, {0, 1, 2, 3}):
        assert not any(value.requires_grad for value in live.values()), boundary


def test_fused_optimizers_step_as_plain_ones_do(stub, data, tmp_path):
    """PyTorch's fused optimizers are silently wrong if weights and gradients have different memory formats."""
    layers = record_layers(stub, torch.zeros(1, 3, 16, 16))
    partition = SegmentPartitioner(num_blocks=3)(layers, stub)
    scopes = parse_scopes("all", len(partition), "mine")
    for kind, rate in ((torch.optim.AdamW, 1e-3), (partial(torch.optim.SGD, momentum=0.9, nesterov=True), 1e-2)):
        states = []
        for fused in (False, True):
            backbone = stage_backbone(copy.deepcopy(stub), partition, torch.zeros(2, 3, 16, 16))
            cells = [Cell(scope, lr=rate) for scope in scopes]
            module = BlockwiseModule(backbone, cells, num_classes=10, optimizer=partial(kind, fused=fused))
            trainer(tmp_path, logger=False, limit_train_batches=3).fit(module, datamodule=data)
            states.append([network.trained_state() for network in module.networks])
        for plain, fused_state in zip(*states, strict=True):
            assert all(torch.allclose(plain[name], fused_state[name], atol=rate / 10) for name in plain)


def test_only_tensors_of_four_dimensions_become_channels_last(module):
    module.register_buffer("mask", torch.zeros(1, 1, 4, 2, 2))
    module._channels_last()
    assert module.mask.is_contiguous()
    weights = [p for p in module.parameters() if p.ndim == 4 and min(p.shape[1:]) > 1]
    assert weights
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in weights)
