"""Batches as graphs, with a stand-in for CUDA graphs that runs on a CPU; tests/gpu has the same with real ones."""

from contextlib import nullcontext
from functools import partial

import lightning as L
import pytest
import torch
from torch.utils._pytree import tree_flatten

from blockwise.backbone.layers import record_layers
from blockwise.backbone.load import ImageSpec
from blockwise.backbone.stages import stage_backbone
from blockwise.data import BlockwiseDataModule
from blockwise.data.sources.digits import Digits
from blockwise.partition import SegmentPartitioner
from blockwise.policies import LPFT, Cyclic, Gradual
from blockwise.recipe.recipe import Recipe
from blockwise.recipe.schedulers import Schedule
from blockwise.training.cells import Cell
from blockwise.training.module import BlockwiseModule
from blockwise.training.scopes import parse_scopes


class RunAgain:
    """Replays by running the function again and copying what it returns to where the first results are."""

    def __init__(self, module, spoil=lambda _filled: None):
        self.lanes = 2
        self.replayed = 0
        self._module = module
        self._spoil = spoil

    def record(self, function, lane):
        states = [tensor for (step,) in self._module._steps for group in step.changed() for tensor in group]
        before = [tensor.detach().clone() for tensor in states]
        filled = function()
        with torch.no_grad():
            for tensor, old in zip(states, before, strict=True):
                tensor.copy_(old)

        def replay():
            self.replayed += 1
            again = function()
            with torch.no_grad():
                for old, new in zip(tree_flatten(filled)[0], tree_flatten(again)[0], strict=True):
                    old.copy_(new)
            self._spoil(filled)

        return replay, filled

    def lane(self, lane):
        return nullcontext()

    def fork(self):
        pass

    def join(self):
        pass

    def time(self, replay):
        replay()
        return 0.5


def make(stub, recipe, optimizer=torch.optim.AdamW, block="all", told=None, policy="static"):
    layers = record_layers(stub, torch.zeros(1, 3, 16, 16))
    partition = SegmentPartitioner(num_blocks=3)(layers, stub)
    backbone = stage_backbone(stub, partition, torch.zeros(2, 3, 16, 16))
    cells = [Cell(scope, lr=1e-2, policy=policy) for scope in parse_scopes(block, len(partition), "mine")]
    tell = (lambda _: None) if told is None else told.append
    return BlockwiseModule(backbone, cells, num_classes=10, optimizer=optimizer, recipe=recipe, tell=tell)


def trained(module, graphs=None, epochs=3):
    spec = ImageSpec(16, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bilinear", 1.0)
    # 100 training images in batches of 30: the last batch of an epoch is smaller
    data = BlockwiseDataModule(Digits(train_per_class=10, val_per_class=4, test_per_class=5), spec, batch_size=30)
    module._graphs = lambda _device: graphs
    options = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = L.Trainer(max_epochs=epochs, accelerator="cpu", logger=False, **options)
    trainer.fit(module, datamodule=data)
    trainer.test(module, datamodule=data, verbose=False)
    return [(progress.history, progress.test, progress.status) for progress in module.progress]


def without_dropout(stub):
    stub.drop.p = 0.0
    return stub


RECIPES = {
    "plain": Recipe(),
    "clipped, batch statistics": Recipe(clip_norm=0.1, norm="train"),
    "early stopping": Recipe(patience=0),
    "scheduled": Recipe(
        scheduler=Schedule(partial(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.5), interval="step")
    ),
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_graphs_change_no_number(stub, recipe):
    plain = make(without_dropout(stub), RECIPES[recipe])
    graphed = make(without_dropout(stub), RECIPES[recipe], told=(told := []))
    expected = trained(plain)
    assert trained(graphed, graphs := RunAgain(graphed)) == expected
    assert graphs.replayed > 40
    assert told == []


POLICIES = {"gradual": Gradual(every=1), "lp_ft": LPFT(head_epochs=1), "cyclic": Cyclic(every=1)}


@pytest.mark.parametrize(
    "policy", [pytest.param(name, marks=[] if name == "cyclic" else [pytest.mark.slow]) for name in POLICIES]
)
def test_policies_record_anew_what_changes(stub, policy):
    recipe = Recipe(policies=POLICIES)
    plain = make(without_dropout(stub), recipe, policy=policy)
    graphed = make(without_dropout(stub), recipe, policy=policy, told=(told := []))
    expected = trained(plain, epochs=4)
    assert trained(graphed, RunAgain(graphed), epochs=4) == expected
    assert told == []


def test_what_draws_random_numbers_on_the_cpu_runs_without_graphs(stub):
    plain, graphed = make(stub, Recipe()), make(stub, Recipe(), told=(told := []))
    expected = trained(plain)
    assert trained(graphed, RunAgain(graphed)) == expected
    assert len(told) == 1
    assert "random numbers" in told[0]


def test_an_optimizer_whose_settings_move_runs_without_graphs(stub):
    schedule = Schedule(lambda optimizer: MovesMomentum(optimizer, lambda _: 1.0))
    recipe = Recipe(scheduler=schedule)
    sgd = partial(torch.optim.SGD, lr=1e-2, momentum=0.9)
    plain = make(without_dropout(stub), recipe, sgd)
    graphed = make(without_dropout(stub), recipe, sgd)
    expected = trained(plain)
    assert trained(graphed, RunAgain(graphed)) == expected


class MovesMomentum(torch.optim.lr_scheduler.LambdaLR):
    def step(self, *args):
        super().step(*args)
        for group in self.optimizer.param_groups:
            group["momentum"] *= 0.9


def spoil_first_number(filled):
    for tensor in tree_flatten(filled)[0]:
        if tensor.is_floating_point():
            tensor[(0,) * tensor.ndim] += 1e3


def test_a_wrong_graph_is_noticed_and_not_used(stub):
    plain = make(without_dropout(stub), Recipe())
    graphed = make(without_dropout(stub), Recipe(), told=(told := []))
    expected = trained(plain)
    assert trained(graphed, RunAgain(graphed, spoil_first_number)) == expected
    assert told == ["training without CUDA graphs, which is slower (the frozen stages give other values)"]


class ForgetsToTrain(RunAgain):
    """Restores one weight after each replay, as if a graph did not train it."""

    def record(self, function, lane):
        replay, filled = super().record(function, lane)

        def forgetful():
            weights = [p for (step,) in self._module._steps for p in step.network.parameters()]
            before = [weight.detach().clone() for weight in weights]
            replay()
            with torch.no_grad():
                for weight, old in zip(weights, before, strict=True):
                    if weight.ndim == 4:
                        weight.copy_(old)

        return forgetful, filled


def test_a_graph_that_does_not_train_a_weight_is_not_used(stub):
    plain = make(without_dropout(stub), Recipe(), block="full")
    graphed = make(without_dropout(stub), Recipe(), block="full", told=(told := []))
    expected = trained(plain)
    assert trained(graphed, ForgetsToTrain(graphed)) == expected
    assert told == ["training without CUDA graphs, which is slower (another set of weights trains)"]


class CannotRecord(RunAgain):
    def record(self, function, lane):
        raise RuntimeError("operation not permitted when stream is capturing")


def test_a_step_that_cannot_be_recorded_runs_without_graphs(stub):
    plain = make(without_dropout(stub), Recipe())
    graphed = make(without_dropout(stub), Recipe(), told=(told := []))
    expected = trained(plain)
    assert trained(graphed, CannotRecord(graphed)) == expected
    assert len(told) == 1
    assert "not permitted" in told[0]


class KeepsRates(RunAgain):
    """Replays with the rates as they were recorded: a number for ever, a tensor with what was copied to it since."""

    def record(self, function, lane):
        groups = [group for (step,) in self._module._steps for group in step.optimizer.param_groups]
        recorded = [group["lr"] for group in groups]
        replay, filled = super().record(function, lane)

        def with_recorded_rates():
            now = [group["lr"] for group in groups]
            for group, rate in zip(groups, recorded, strict=True):
                group["lr"] = rate
            replay()
            for group, rate in zip(groups, now, strict=True):
                group["lr"] = rate

        return with_recorded_rates, filled


def test_a_schedule_reaches_what_is_replayed(stub):
    halved = partial(torch.optim.lr_scheduler.StepLR, step_size=2, gamma=0.5)
    recipe = Recipe(scheduler=Schedule(halved, interval="step"))
    sgd = partial(torch.optim.SGD, lr=1e-2, momentum=0.9)
    plain = make(without_dropout(stub), recipe, sgd, block="full")
    graphed = make(without_dropout(stub), recipe, sgd, block="full", told=(told := []))
    expected = trained(plain)
    actual = trained(graphed, KeepsRates(graphed))
    for (history, _, _), (same, _, _) in zip(actual, expected, strict=True):
        # a rate on the device is a float32
        assert [epoch["train"]["loss"] for epoch in history] == pytest.approx(
            [epoch["train"]["loss"] for epoch in same], rel=1e-5
        )
    assert told == []
