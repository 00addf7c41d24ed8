"""Tests on an NVIDIA GPU: `make test-gpu`. Elsewhere they are skipped."""

import pytest
import torch


def pytest_collection_modifyitems(items):
    skip = pytest.mark.skip(reason="there is no NVIDIA GPU")
    for item in items:
        if "/gpu/" in str(item.path):
            item.add_marker(pytest.mark.gpu)
            if not torch.cuda.is_available():
                item.add_marker(skip)


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    """Train a small sweep on the GPU; return history, test metrics and trained tensors by cell, and what was told."""
    from blockwise.config.compose import compose_config
    from blockwise.study import study as studies

    def train(*overrides, folder="results"):
        modules, told = [], []

        class Watched(studies.BlockwiseModule):
            def __init__(self, *args, **options):
                super().__init__(*args, **{**options, "tell": told.append})
                modules.append(self)

        with monkeypatch.context() as patch:
            patch.setattr(studies, "BlockwiseModule", Watched)
            cfg = compose_config([*SMALL, f"results_dir={tmp_path / folder}", f"cache.folder={tmp_path}", *overrides])
            studies.Study.from_config(cfg).train(retrain=True)
        cells = {
            cell.key: (progress.history, progress.test, progress.best_state)
            for module in modules
            for cell, progress in zip(module.cells, module.progress, strict=True)
        }
        return cells, told

    return train


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
