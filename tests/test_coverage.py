"""A slice of experiments/coverage: networks of several architectures can be cut, and train as a plain network does."""

import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "experiments" / "coverage" / "measure.py"


@pytest.fixture(scope="module")
def measure():
    spec = importlib.util.spec_from_file_location("coverage_measure", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def assert_works(row):
    assert row["why"] == ""
    assert (row["inspect"], row["stages"], row["train"]) == ("yes", "yes", "yes")
    # in single precision, random weights amplify rounding in some networks
    exact = row["gradients_float64"] if row["gradients_float64"] != "" else row["gradients_float32"]
    assert exact < 1e-3


@pytest.mark.parametrize("name", ["test_vit", "test_convnext", "test_byobnet", "torchvision:squeezenet1_1"])
def test_small_networks(measure, name):
    assert_works(measure.examine(name))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    (
        "beit_base_patch16_224 convit_tiny crossvit_tiny_240 densenet121 efficientvit_b0 eva02_tiny_patch14_224 "
        "gcvit_xxtiny hrnet_w18_small inception_v3 mvitv2_tiny nfnet_f0 resnetv2_50 swin_tiny_patch4_window7_224 "
        "swinv2_cr_tiny_224 torchvision:regnet_x_400mf torchvision:swin_v2_t torchvision:vit_b_16"
    ).split(),
)
def test_networks_that_were_refused_or_cut_in_odd_places(measure, name):
    assert_works(measure.examine(name))


def test_networks_that_cannot_be_made_have_a_reason(measure):
    row = measure.examine("there_is_none")
    assert row["why"].startswith("InputError")
    assert row["train"] == ""


@pytest.mark.slow
def test_one_network_of_every_model_module_is_chosen(measure):
    chosen = measure.smallest()
    assert len(chosen) >= 98
    assert chosen["vgg"] == "vgg11"
