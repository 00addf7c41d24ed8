"""Training on a GPU: cells alone and side by side, with and without CUDA graphs, in every precision."""

from functools import partial

import pytest
import torch
from gpu_sweeps import ON_GPU, train

pytestmark = ON_GPU


@pytest.fixture
def sweep(tmp_path):
    return partial(train, tmp_path)


PRECISIONS = ["32-true", "bf16-mixed", "16-mixed"]
EXACT = "+trainer.deterministic=true"


def same(one, other):
    for key, (history, test, state) in one.items():
        assert (history, test) == other[key][:2], key
        assert all(torch.equal(tensor, other[key][2][name]) for name, tensor in state.items()), key


@pytest.mark.parametrize("precision", PRECISIONS)
def test_graphs_and_company_change_no_bit(sweep, precision):
    options = (EXACT, f"trainer.precision={precision}")
    together, told = sweep(*options)
    assert told == []
    plain, _ = sweep(*options, "gpu.cells_at_once=0", "gpu.images_gb=0")
    same(together, plain)
    alone, _ = sweep(*options, "block=1")
    same(alone, together)
    # a cell learns
    for key, (history, _, _) in together.items():
        assert history[-1]["train"]["loss"] < history[0]["train"]["loss"], key


RECIPES = {
    "schedule": ["scheduler=cosine", "scheduler.warmup=0.5"],
    "momentum": ["optimizer=sgd", "optimizer.lr=0.001"],
    "clipped": ["optimizer.clip_norm=0.1"],
    "clipped in float16": ["optimizer.clip_norm=0.1", "trainer.precision=16-mixed"],
    "policy": ["policy=gradual", "trainer.max_epochs=3"],
    "batch statistics": ["freeze.norm=train"],
    "mixed images": ["data.mixup=0.2", "data.cutmix=1.0"],
    "low rank": ["block=[lora8,head]"],
    "norms": ["block=[norms,bias,from1]"],
    "own head": ["model=mobilenet_v3", "model.pretrained=false", "model.head=own", "block=[head,1]"],
    "dropout": ["model=torchvision", "model.name=efficientnet_b0", "model.pretrained=false", "block=[head,1,full]"],
    "transformer": ["model=timm", "model.name=vit_tiny_patch16_224", "model.pretrained=false"],
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_trains_the_same_with_graphs(sweep, recipe):
    if recipe == "low rank":
        pytest.importorskip("peft")
    graphed, told = sweep(EXACT, *RECIPES[recipe])
    assert told == []
    plain, _ = sweep(EXACT, *RECIPES[recipe], "gpu.cells_at_once=0")
    same(graphed, plain)


def test_what_a_graph_cannot_hold_runs_without_and_is_told(sweep):
    graphed, told = sweep(EXACT, "scheduler=onecycle")  # moves the momentum as well
    plain, _ = sweep(EXACT, "scheduler=onecycle", "gpu.cells_at_once=0")
    same(graphed, plain)
    assert len(told) <= 1


def test_a_gpu_trains_like_a_cpu(sweep):
    options = ("trainer.precision=32-true", "trainer.max_epochs=1")
    on_gpu, _ = sweep(*options)
    on_cpu, _ = sweep(*options, "trainer.accelerator=cpu")
    for key, (history, _, _) in on_gpu.items():
        for split in ("train", "val"):
            assert history[0][split]["loss"] == pytest.approx(on_cpu[key][0][0][split]["loss"], rel=0.02), key
