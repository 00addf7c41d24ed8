import pytest
import torch

from blockwise.backbone.layers import record_layers
from blockwise.backbone.stages import StagedBackbone, stage_backbone
from blockwise.partition import LayerPartitioner
from blockwise.study.run import run
from blockwise.training.step.activation_cache import ActivationCache
from blockwise.training.step.image_cache import ImageCache


@pytest.fixture
def backbone(stub):
    partition = LayerPartitioner()(record_layers(stub, torch.zeros(1, 3, 16, 16)), stub)
    return stage_backbone(stub.eval(), partition, torch.zeros(2, 3, 16, 16))


@pytest.fixture
def ran(monkeypatch):
    """The indices of the stages that ran."""
    numbers = []
    run = StagedBackbone.run

    def counting(self, stage, *rest):
        numbers.append(stage)
        return run(self, stage, *rest)

    monkeypatch.setattr(StagedBackbone, "run", counting)
    return numbers


def test_stages_run_once_for_each_batch_and_on_from_where_they_stopped(backbone, ran):
    batches = [torch.randn(2, 3, 16, 16), torch.randn(2, 3, 16, 16)]
    kept = ActivationCache(10**6)
    for boundary, expected in ((0, []), (2, [0, 1] * 2), (2, []), (3, [2] * 2), (5, [3, 4] * 2)):
        del ran[:]
        found = [kept.at(boundary, number, backbone, backbone.enter(images)) for number, images in enumerate(batches)]
        assert ran == expected
        for images, live in zip(batches, found, strict=True):
            ((_, fresh),) = backbone.boundaries(images, {boundary})
            assert live.keys() == fresh.keys()
            assert all(torch.equal(live[name], fresh[name]) for name in live)


def test_sizes_that_later_stages_need_are_kept_as_well(ran):
    """Swin's stages pass on the shape of the images."""

    class Passes(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = torch.nn.Conv2d(3, 4, 1), torch.nn.Conv2d(4, 4, 1)

        def forward(self, x):
            x = self.first(x)
            shape = x.shape
            return self.second(x.reshape(shape)).reshape(shape).mean((2, 3))

    network = Passes().eval()
    partition = LayerPartitioner()(record_layers(network, torch.zeros(1, 3, 8, 8)), network)
    backbone = stage_backbone(network, partition, torch.zeros(2, 3, 8, 8))
    images = torch.randn(2, 3, 8, 8)
    ((_, live),) = backbone.boundaries(images, {1})
    assert not all(isinstance(value, torch.Tensor) for value in live.values())
    kept, cached = ActivationCache(10**6), ImageCache(10**6, count=2)
    for _ in range(2):
        del ran[:]
        assert kept.at(1, 0, backbone, backbone.enter(images)).keys() == live.keys()
    assert ran == []
    assert cached.at(1, [0, 1], backbone, backbone.enter(images)).keys() == live.keys()


def test_no_more_is_kept_than_there_is_room_for(backbone, ran):
    batches = [torch.randn(2, 3, 16, 16) for _ in range(3)]
    ((_, live),) = backbone.boundaries(batches[0], {2})
    kept = ActivationCache(2 * sum(value.numel() * 4 for value in live.values()))
    for expected in (6, 2, 2):  # two of three batches fit
        del ran[:]
        for number, images in enumerate(batches):
            kept.at(2, number, backbone, backbone.enter(images))
        assert len(ran) == expected


def test_records_are_the_same_and_validation_is_spared(small, console, ran, tmp_path):
    found, calls = [], []
    for number, size in enumerate((0, 1)):
        del ran[:]
        options = (f"cache.activations_gb={size}", f"results_dir={tmp_path / str(number)}")
        found.append(run(small("block=[head,-1]", "data.augment=light", "trainer.max_epochs=3", *options), console))
        calls.append(len(ran))
    assert [record["metrics"] for record in found[0]] == [record["metrics"] for record in found[1]]
    # 30 validation images are two batches; two stages lie before the last block; two epochs of three are spared
    assert calls[0] - calls[1] == 2 * 2 * 2
