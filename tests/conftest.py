"""Fixtures: a small network with everything that makes cutting hard, and real configs with small settings."""

import copy
import gc
import os
import signal
from functools import cache
from io import StringIO
from pathlib import Path

import hypothesis
import pytest
import torch
import yaml
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional as F

from blockwise.backbone.layers import record_layers
from blockwise.backbone.partitioners.even import EvenPartitioner
from blockwise.backbone.stages import stage_backbone
from blockwise.config.compose import compose_config, groups, settings
from blockwise.config.overrides import check_added, check_overrides
from blockwise.errors import InputError
from blockwise.training.module import BlockwiseModule

# a busy machine may take long for an example
hypothesis.settings.register_profile("blockwise", deadline=None)
hypothesis.settings.load_profile("blockwise")
# Hydra reads 20 files for each config, in Python: libyaml reads the same in a fifth of the time
yaml.SafeLoader = yaml.CSafeLoader
# imported objects stay: garbage collection need not scan them, neither now nor in every test
gc.disable()


def pytest_collection_finish():
    gc.freeze()
    gc.enable()


class NoFigure:
    """A picture that is not drawn."""

    @staticmethod
    def savefig(path, **_options):
        path.touch()


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Leave out what takes a third of a tiny run: its picture, and waiting for the disk (no test cuts the power)."""
    monkeypatch.setattr("blockwise.study.study.accuracy_by_block", lambda _sweeps: NoFigure)
    monkeypatch.setattr(os, "fsync", lambda _file: None)


class StubNetwork(nn.Module):
    """Residuals, functional activation and pooling, an in-place activation, dropout, and a parameter outside layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.conv1 = nn.Conv2d(8, 8, 3, 1, 1)
        self.norm1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3, 1, 1)
        self.norm2 = nn.BatchNorm2d(8)
        self.scale = nn.Parameter(torch.full((8, 1, 1), 0.5))
        self.conv3 = nn.Conv2d(8, 16, 3, 2, 1)
        self.norm3 = nn.GroupNorm(4, 16)
        self.drop = nn.Dropout(0.2)
        self.fc = nn.Linear(16, 12)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        y = F.relu(self.norm1(self.conv1(x)))
        x = x + self.norm2(self.conv2(y)) * self.scale
        x = F.max_pool2d(F.relu(x), 2)
        x = self.norm3(self.conv3(x)).relu()
        batch = x.shape[0]
        return self.fc(self.drop(x.mean((2, 3)).reshape(batch, -1))).tanh()


@pytest.fixture
def stub() -> StubNetwork:
    torch.manual_seed(0)
    return StubNetwork()


@pytest.fixture
def stub_layers(stub):
    return record_layers(stub, torch.zeros(1, 3, 16, 16))


@pytest.fixture
def realistic():
    """Set the statistics and weights of a network's norms to values that a trained network might have."""

    def change(network: nn.Module) -> nn.Module:
        torch.manual_seed(1)
        for module in network.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.running_mean.normal_(0, 0.3)
                module.running_var.uniform_(0.5, 2)
                if module.affine:
                    nn.init.uniform_(module.weight, 0.5, 1.5)
                    nn.init.normal_(module.bias, 0, 0.3)
        return network.eval()

    return change


@pytest.fixture
def stays_the_same(realistic):
    """Check that a network computes the same, forward and backward, after its frozen stages were fused."""

    def check(network: nn.Module, fuse, kind: type) -> None:
        network = realistic(network)
        partition = EvenPartitioner(3)(record_layers(network, torch.zeros(1, 3, 64, 64)), network)
        backbone = stage_backbone(network, partition, torch.randn(2, 3, 64, 64))
        images, direction = torch.randn(4, 3, 64, 64), torch.randn(4, backbone.num_features)
        results = []
        for how in (None, fuse):
            backbone.freeze(fuse=how)
            x = images.clone().requires_grad_()
            features = backbone(x)
            features.backward(direction)
            results.append((features.detach(), x.grad))
        assert any(isinstance(module, kind) for module in backbone.frozen.modules())
        for expected, actual in zip(*results, strict=True):
            assert (expected - actual).abs().max() <= 1e-4 * expected.abs().max()

    return check


SMALL = [
    "model=timm",
    "model.name=test_resnet",
    "model.pretrained=false",
    "data=digits",
    "data.image_size=32",
    "data.train_per_class=8",
    "data.val_per_class=3",
    "data.test_per_class=5",
    "data.batch_size=16",
    "trainer.max_epochs=2",
    "trainer.accelerator=cpu",
    "optimizer.lr=0.001",
]


@pytest.fixture
def small_overrides(tmp_path):
    """The small settings as command-line overrides."""
    return [*SMALL, "partition.num_blocks=3", f"cache.folder={tmp_path / 'cache'}"]


def quick_config(overrides: list[str]) -> DictConfig:
    """Compose a config as `compose_config` does, but each choice of files once: Hydra takes 0.1 s for them."""
    return copy.deepcopy(composed(*overrides))


@cache
def composed(*overrides: str) -> DictConfig:
    names = groups()
    files = [override for override in overrides if override.lstrip("+").partition("=")[0] in names]
    values = [override for override in overrides if override not in files]
    try:
        check_overrides(values, names)
        cfg = copy.deepcopy(from_files(*files))
        ConfigLoaderImpl._apply_overrides_to_config(OverridesParser.create().parse_overrides(values), cfg)
    except (InputError, HydraException, OmegaConfBaseException):
        return compose_config(list(overrides))  # has the sentence for the user
    check_added(values, cfg, settings())
    return cfg


@cache
def from_files(*overrides: str) -> DictConfig:
    return compose_config(list(overrides))


@pytest.fixture
def small(tmp_path):
    """Compose the real config with small settings; results go to the test's temporary folder."""

    def compose(*overrides: str) -> DictConfig:
        partition = [] if any(o.startswith("partition=") for o in overrides) else ["partition.num_blocks=3"]
        places = [o for o in overrides if o.startswith("results_dir=")]
        cfg = quick_config([*SMALL, *partition, *(o for o in overrides if o not in places)])
        cfg.results_dir = places[-1].partition("=")[2] if places else str(tmp_path / "results")
        if not any(o.startswith("cache.folder=") for o in overrides):
            cfg.cache.folder = str(tmp_path / "cache")
        return cfg

    return compose


@pytest.fixture
def console():
    """A fake terminal, 100 characters wide, that records the output."""
    return Console(width=100, record=True, file=StringIO())


@pytest.fixture
def photographs() -> Path:
    """The folder of real photographs in BLOCKWISE_DATA."""
    folder = os.environ.get("BLOCKWISE_DATA")
    if not folder:
        pytest.skip("BLOCKWISE_DATA is not set to a folder of photographs")
    return Path(folder)


@pytest.fixture
def stop_at(monkeypatch):
    """Send a signal to this process in the middle of a training or validation step."""

    def stop(step: int, number: int = signal.SIGTERM) -> None:
        count = 0

        def counting(original):
            def method(self, *arguments):
                nonlocal count
                count += 1
                if count == step:
                    os.kill(os.getpid(), number)
                return original(self, *arguments)

            return method

        for name in ("training_step", "validation_step"):
            monkeypatch.setattr(BlockwiseModule, name, counting(getattr(BlockwiseModule, name)))

    return stop
