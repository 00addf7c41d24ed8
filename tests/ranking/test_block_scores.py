"""Scores of blocks against gradients and classifiers computed in another way."""

import pytest
import torch
from sklearn.linear_model import Ridge
from torch import nn
from torch.nn import functional as F

from blockwise.backbone.layers import record_layers
from blockwise.backbone.partitioners.even import EvenPartitioner
from blockwise.backbone.stages import pooled, stage_backbone
from blockwise.ranking import SCORES, Sample
from blockwise.ranking.gradients import SCALE
from blockwise.ranking.sample import left_out, ridge


@pytest.fixture
def sample(stub, realistic):
    network = realistic(stub).double()
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(12, 3, 16, 16, generator=generator, dtype=torch.float64)
    layers = record_layers(network, images[:1])
    backbone = stage_backbone(network, EvenPartitioner(3)(layers, network), images[:2])
    return Sample(backbone, images, torch.arange(12) % 3, 3)


def features(sample):
    return pooled(sample.backbone(sample.images))


def test_ridge_is_that_of_scikit_learn(sample):
    x = features(sample).detach()
    weight, bias = ridge(x, sample.labels, 3)
    scale = x.square().mean().sqrt()
    with_ones = torch.cat([x / scale, torch.ones(12, 1)], 1).numpy()
    known = Ridge(alpha=12, fit_intercept=False).fit(with_ones, F.one_hot(sample.labels, 3).numpy())
    expected = torch.from_numpy(known.predict(with_ones))
    torch.testing.assert_close(x @ weight + bias, expected.double())


def test_left_out_is_what_a_fit_without_the_image_gives(sample):
    x = features(sample).detach()
    x = x / x.square().mean().sqrt()
    ones = torch.ones(12, 1, dtype=x.dtype)
    outputs = left_out(x, sample.labels, 3)
    for image in range(12):
        rest = [other for other in range(12) if other != image]
        with_ones = torch.cat([x, ones], 1).numpy()
        known = Ridge(alpha=12, fit_intercept=False).fit(with_ones[rest], F.one_hot(sample.labels, 3).numpy()[rest])
        torch.testing.assert_close(outputs[image], torch.from_numpy(known.predict(with_ones[[image]])[0]))


def test_gradients_are_those_of_the_plain_network(sample, stub):
    weight, bias = ridge(features(sample).detach(), sample.labels, 3)
    network = stub.requires_grad_().eval()
    blocks = [
        {name for layer in sample.backbone.partition.layers_of(block) for name in layer.parameters}
        for block in range(3)
    ]
    of_images = []
    for image, label in zip(sample.images, sample.labels, strict=True):
        network.zero_grad()
        loss = F.cross_entropy(SCALE * (pooled(network(image[None])) @ weight + bias), label[None])
        loss.backward()
        of_images.append({name: p.grad.clone() for name, p in network.named_parameters()})
    stacked = {name: torch.stack([own[name] for own in of_images]) for name in of_images[0]}
    weights = dict(network.named_parameters())

    def total(block, value):
        return float(sum(value(name) for name in blocks[block]))

    scores = {name: score(sample) for name, score in SCORES.items()}
    for block in range(3):
        signal = total(block, lambda name: stacked[name].mean(0).square().sum())
        size = total(block, lambda name: weights[name].detach().square().sum())
        noise = total(block, lambda name: stacked[name].var(0, unbiased=False).sum())
        key = str(block)
        assert scores["gradient_norm"][key] == pytest.approx((signal / size) ** 0.5, rel=1e-6)
        assert scores["gradient_snr"][key] == pytest.approx(signal / noise, rel=1e-6)
        assert scores["fisher"][key] == pytest.approx(
            total(block, lambda name: stacked[name].square().mean(0).sum()), rel=1e-6
        )
        assert scores["saliency"][key] == pytest.approx(
            total(block, lambda name: (weights[name].detach() * stacked[name].mean(0)).abs().sum()), rel=1e-6
        )
        assert 0 <= scores["probe"][key] <= 1


def test_a_probe_knows_separable_features():
    class Separable(nn.Module):
        """Its first block destroys what tells the classes apart: their mean colour."""

        def __init__(self):
            super().__init__()
            self.a = nn.Conv2d(3, 4, 1)
            self.b = nn.Conv2d(4, 4, 1)
            nn.init.zeros_(self.a.weight)

        def forward(self, x):
            return self.b(self.a(x).relu()).mean((2, 3))

    network = Separable()
    images = torch.randn(20, 3, 8, 8, generator=torch.Generator().manual_seed(0)) / 10
    labels = torch.arange(20) % 2
    images[labels == 1] += 1
    backbone = stage_backbone(network, EvenPartitioner(2)(record_layers(network, images[:1]), network), images[:2])
    scores = SCORES["probe"](Sample(backbone, images, labels, 2))
    assert scores["0"] == 1
    assert scores["1"] <= 0.6
