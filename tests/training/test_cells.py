import pytest
import torch
from torch import nn

from blockwise.backbone.layers import record_layers
from blockwise.backbone.stages import stage_backbone, whole_backbone
from blockwise.partition import LayerPartitioner
from blockwise.training.cells import Cell, CellNetwork, Progress
from blockwise.training.scopes import parse_scopes


@pytest.fixture(params=["staged", "whole"])
def backbone(request, stub):
    partition = LayerPartitioner()(record_layers(stub, torch.zeros(1, 3, 16, 16)), stub)
    make = stage_backbone if request.param == "staged" else whole_backbone
    return make(stub, partition, torch.randn(2, 3, 16, 16))


def network_of(backbone, scope, **options):
    (parsed,) = parse_scopes(scope, len(backbone.partition), "stub")
    return CellNetwork(backbone, parsed, 7, **options)


def logits_of(network, backbone, images):
    (live,) = (live for _, live in backbone.boundaries(images, {network.start}))
    return network(backbone, live)


@pytest.mark.parametrize("scope", ["head", "1", "0+2", "from3", "full"])
def test_exactly_the_scope_gets_gradients(backbone, scope):
    network = network_of(backbone, scope).train()
    logits_of(network, backbone, torch.randn(4, 3, 16, 16)).square().sum().backward()
    (parsed,) = parse_scopes(scope, len(backbone.partition), "stub")
    expected = {n for block in parsed.blocks for layer in backbone.partition.layers_of(block) for n in layer.parameters}
    found = {n for module in network.own.values() for n, p in module.named_parameters() if p.grad is not None}
    assert found == expected
    assert network.head.weight.grad is not None
    assert all(parameter.grad is None for parameter in backbone.parameters())
    assert sum(len(block.parameters) for block in network.block_parameters()) == len(expected)


@pytest.mark.parametrize("scope", ["1", "0+2", "full"])
@pytest.mark.parametrize("norm", ["train", "eval"])
def test_modes(backbone, scope, norm):
    network = network_of(backbone, scope, norm=norm).train()
    (parsed,) = parse_scopes(scope, len(backbone.partition), "stub")
    trained = {layer.name for block in parsed.blocks for layer in backbone.partition.layers_of(block)}
    for module in network.own.values():
        for name, child in module.named_modules():
            if isinstance(child, nn.BatchNorm2d):
                assert child.training == (name in trained and norm == "train")
            if isinstance(child, nn.Dropout):
                assert child.training == (name in trained)
    network.eval()
    assert not any(module.training for module in network.modules())


def test_untrained_cells_compute_what_the_backbone_does(backbone):
    images = torch.randn(4, 3, 16, 16)
    with torch.no_grad():
        for scope in ("head", "1", "full"):
            network = network_of(backbone, scope).eval()
            assert torch.allclose(logits_of(network, backbone, images), network.head(backbone(images)), atol=1e-6)


def test_all_cells_of_a_seed_begin_with_the_same_head(backbone):
    torch.manual_seed(123)
    one = network_of(backbone, "head", seed=4).head.weight
    other = network_of(backbone, "full", seed=4).head.weight
    assert torch.equal(one, other)
    assert not torch.equal(one, network_of(backbone, "head", seed=5).head.weight)


def test_trained_state_is_what_training_changes(backbone):
    network = network_of(backbone, "1", norm="train").train()
    state = network.trained_state()
    assert set(state) == {
        "head.weight", "head.bias", "conv1.weight", "conv1.bias", "norm1.weight", "norm1.bias",
        "norm1.running_mean", "norm1.running_var", "norm1.num_batches_tracked",
    }  # fmt: skip
    saved = {name: tensor.clone() for name, tensor in state.items()}
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], 0.1)
    frozen = {n: t.clone() for m in network.own.values() for n, t in m.state_dict().items() if n not in state}
    logits_of(network, backbone, torch.randn(4, 3, 16, 16)).square().sum().backward()
    optimizer.step()
    assert not any(torch.equal(tensor, saved[name]) for name, tensor in network.trained_state().items())
    now = {n: t for m in network.own.values() for n, t in m.state_dict().items()}
    assert all(torch.equal(tensor, now[name]) for name, tensor in frozen.items())
    network.load_trained_state(saved)
    assert all(torch.equal(tensor, saved[name]) for name, tensor in network.trained_state().items())


def test_keys_are_unique_in_scope_and_rate():
    (scope,) = parse_scopes("3+7", 12, "net")
    assert Cell(scope, 1e-3).key == "3+7@0.001"


def metrics(top1, loss=1.0):
    return {"top1": top1, "top5": 1.0, "macro_f1": top1, "ece": 0.0, "loss": loss}


def test_best_epoch_is_the_first_of_the_highest_validation_accuracy():
    progress = Progress()
    improved = [progress.end_epoch(metrics(0.9), metrics(top1), None) for top1 in (0.2, 0.5, 0.5, 0.4)]
    assert improved == [True, True, False, False]
    assert progress.best_epoch == 1
    assert progress.active


def test_patience_stops_and_zero_accuracy_is_a_value():
    progress = Progress()
    for top1 in (0.0, 0.0, 0.0):
        assert progress.active
        progress.end_epoch(metrics(0.9), metrics(top1), 2)
    assert progress.status == "stopped"
    assert progress.best_epoch == 0


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_is_divergence(bad):
    progress = Progress()
    progress.end_epoch(metrics(0.9), metrics(0.5), None)
    assert not progress.end_epoch(metrics(0.9, bad), metrics(0.9), None)
    assert progress.status == "diverged"
