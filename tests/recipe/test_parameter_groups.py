"""Learning rates and weight decay of head and blocks."""

import pytest
import timm.optim
import torch
from torch.nn import Parameter

from blockwise.errors import InputError
from blockwise.recipe.parameter_groups import BlockParameters, check_optimizer, parameter_groups


@pytest.fixture
def parts():
    """A head, and blocks 0 and 2 of three, each with a matrix and a vector."""
    pairs = [[Parameter(torch.zeros(3, 2)), Parameter(torch.zeros(3))] for _ in range(3)]
    return pairs[0], [BlockParameters(3, pairs[1]), BlockParameters(1, pairs[2])]


def test_by_default_there_are_two_groups(parts):
    head, blocks = parts
    first, second = parameter_groups(head, blocks, lr=0.1)
    assert (first["params"], first["lr"]) == (head, 0.1)
    assert (second["params"], second["lr"]) == ([*blocks[0].parameters, *blocks[1].parameters], 0.1)
    assert parameter_groups(head, blocks, lr=0.1, block_lr=0.02)[1]["lr"] == 0.02
    assert parameter_groups(head, [], lr=0.1) == [{"params": head, "lr": 0.1}]


def test_rates_fall_away_from_the_head(parts):
    head, blocks = parts
    groups = parameter_groups(head, blocks, lr=0.1, layer_decay=0.5)
    assert [group["lr"] for group in groups] == pytest.approx([0.1, 0.1 * 0.5**3, 0.1 * 0.5])
    assert parameter_groups(head, blocks[:1], lr=0.1, layer_decay=0.5)[1]["lr"] == 0.1, "a block alone keeps its rate"


def test_norms_and_biases_without_weight_decay(parts):
    head, blocks = parts
    groups = parameter_groups(head, blocks, lr=0.1, no_decay=True)
    for group in groups:
        (dimensions,) = {parameter.ndim for parameter in group["params"]}
        assert group.get("weight_decay") == (0.0 if dimensions == 1 else None)
    assert sum(len(group["params"]) for group in groups) == 6


@pytest.mark.parametrize("make", [torch.optim.RMSprop, torch.optim.NAdam, timm.optim.Lion, timm.optim.Lamb])
def test_any_optimizer_of_torch_and_timm(make):
    check_optimizer(make)


def test_optimizers_that_compute_the_loss_again_are_refused():
    with pytest.raises(InputError, match="LBFGS computes the loss several times per step"):
        check_optimizer(torch.optim.LBFGS)
