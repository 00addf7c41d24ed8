"""Small sweeps on an NVIDIA GPU, for tests/gpu; `make test-gpu` runs these, elsewhere they are skipped."""

import pytest
import torch

from blockwise.config.compose import compose_config
from blockwise.study import runs
from blockwise.study.study import Study
from blockwise.training.module import BlockwiseModule

ON_GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no NVIDIA GPU")]
SMALL = [
    "model=efficientnet_lite0",
    "model.pretrained=false",
    "data=digits",
    "data.image_size=64",
    "data.train_per_class=20",
    "data.val_per_class=6",
    "data.test_per_class=6",
    "data.batch_size=32",
    "partition=even",
    "partition.num_blocks=2",
    "trainer=gpu",
    "trainer.max_epochs=2",
    "optimizer.lr=0.001",
    "block=[head,1,full]",
]


def train(folder, *overrides):
    """Train a small sweep; return history, test metrics and trained tensors by cell, and what was told."""
    modules, told = [], []

    class Watched(BlockwiseModule):
        def __init__(self, *args, **options):
            super().__init__(*args, **{**options, "tell": told.append})
            modules.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "BlockwiseModule", Watched)
        cfg = compose_config([*SMALL, f"results_dir={folder / 'results'}", f"cache.folder={folder}", *overrides])
        Study.from_config(cfg).train(retrain=True)
    cells = {
        cell.key: (progress.history, progress.test, progress.best_state)
        for module in modules
        for cell, progress in zip(module.cells, module.progress, strict=True)
    }
    return cells, told
