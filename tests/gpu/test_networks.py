"""Logits and gradients on a GPU, against the CPU and against the plain network."""

import copy

import pytest
import torch
from gpu_sweeps import ON_GPU
from torch.nn.functional import cross_entropy, linear

from blockwise.backbone.layers import record_layers
from blockwise.backbone.load import load_backbone
from blockwise.backbone.stages import stage_backbone
from blockwise.config.compose import compose_config
from blockwise.fast.fusion import fusion_for
from blockwise.fast.memory import allow_tf32
from blockwise.partition import SegmentPartitioner
from blockwise.training.cells import CellNetwork
from blockwise.training.scopes import parse_scopes

pytestmark = ON_GPU
NETWORKS = ["efficientnet_lite0", "resnet50", "densenet121", "vgg16"]
DEVICE = "cuda"
SIZE = 96
# in float32 what is left is the conditioning of networks with random weights
TOLERANCES = {torch.float64: 1e-6, torch.float32: 0.05}


@pytest.fixture(params=NETWORKS)
def network(request, realistic):
    cfg = compose_config([f"model={request.param}", "model.pretrained=false"])
    return realistic(load_backbone(cfg.model, image_size=SIZE, seed=0, download=False).network)


def staged_copy(network):
    images = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    network = copy.deepcopy(network)
    partition = SegmentPartitioner(num_blocks=6)(record_layers(network, images), network)
    return stage_backbone(network, partition, images)


def batch(dtype=torch.float32):
    return torch.randn(8, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1)).to(dtype), torch.arange(8) % 5


def logits_of(staged, cell, images):
    ((_, activations),) = staged.boundaries(images, {cell.start})
    return cell(staged, activations)


def test_logits_are_those_of_the_cpu(network):
    staged, (images, _) = staged_copy(network), batch()
    cell = CellNetwork(staged, parse_scopes("1", len(staged.partition), "it")[0], 5)
    expected = logits_of(staged, cell, images).detach()
    staged.freeze(fuse=fusion_for(torch.device(DEVICE)))
    with allow_tf32(False):
        actual = logits_of(staged.to(DEVICE), cell.to(DEVICE), images.to(DEVICE)).detach().cpu()
    assert (actual - expected).abs().max() < 1e-3 * expected.abs().max()


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_gradients_of_every_scope_are_those_of_the_plain_network(network, dtype):
    plain = copy.deepcopy(network).to(DEVICE, dtype).eval()
    staged, (images, labels) = staged_copy(network).to(dtype), batch(dtype)
    # the kernels of a GPU's fusion compute in float32
    staged.freeze(fuse=fusion_for(torch.device(DEVICE)) if dtype == torch.float32 else None)
    staged, images, labels = staged.to(DEVICE), images.to(DEVICE), labels.to(DEVICE)
    with allow_tf32(False):
        for scope in parse_scopes("all", len(staged.partition), "it"):
            cell = CellNetwork(staged, scope, 5).to(DEVICE)
            cross_entropy(logits_of(staged, cell, images), labels).backward()
            trained = {n: p for module in cell.own.values() for n, p in module.named_parameters() if p.requires_grad}
            expected = plain_gradients(plain, cell.head, trained, images, labels)
            for name, parameter in trained.items():
                error = (expected[name] - parameter.grad).norm() / expected[name].norm().clamp(min=1e-12)
                assert error < TOLERANCES[dtype], (scope.name, name, float(error))
            if scope.name == "full":
                assert set(trained) == {name for name, _ in plain.named_parameters()}


def plain_gradients(plain, head, trained, images, labels):
    parameters = dict(plain.requires_grad_(False).named_parameters())
    for name in trained:
        parameters[name].requires_grad_(True).grad = None
    features = plain(images)
    features = features.mean((2, 3)) if features.ndim == 4 else features
    loss = cross_entropy(linear(features.float(), head.weight, head.bias), labels)
    if trained:
        loss.backward()
    return {name: parameters[name].grad for name in trained}
