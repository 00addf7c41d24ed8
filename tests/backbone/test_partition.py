from dataclasses import replace
from itertools import combinations, pairwise, takewhile

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from blockwise.backbone.layers import Layer, record_layers
from blockwise.errors import InputError
from blockwise.partition import (
    EvenPartitioner,
    LayerPartitioner,
    SegmentPartitioner,
    StagePartitioner,
    UnitPartitioner,
    WindowPartitioner,
    merge,
    unit_starts,
)

NOTHING = nn.Identity()


@st.composite
def layer_lists(draw):
    """Random layer lists, as a recording may return them: weighted layers, joined norms, separators, other layers."""
    kinds = draw(
        st.lists(st.sampled_from(["weighted", "norm", "activation", "pool", "other"]), min_size=1, max_size=40)
    )
    layers, seen = [], False
    for index, kind in enumerate([*kinds, "weighted"]):
        size = draw(st.integers(1, 1000)) if kind in ("weighted", "norm") else 0
        joined = seen and (kind == "norm" or draw(st.integers(0, 9)) == 0)
        layer = Layer(
            index, f"l{index}", kind, kind, kind == "activation", (f"l{index}.w",) if size else (), size, size
        )
        layers.append(replace(layer, joined=joined))
        seen = seen or kind == "weighted"
    return layers


def assert_exact_cover(partition):
    """Blocks are adjacent, contain every layer once, and each has parameters."""
    spans = [(block.first, block.last) for block in partition.blocks]
    assert spans[0][0] == 0
    assert spans[-1][1] == len(partition.layers) - 1
    assert all(a[1] + 1 == b[0] for a, b in pairwise(spans))
    assert all(sum(layer.num_parameters for layer in partition.layers_of(i)) for i in range(len(partition)))
    for first, _ in spans[1:]:
        assert not partition.layers[first].joined


@given(layer_lists())
def test_layer_covers_exactly(layers):
    partition = LayerPartitioner()(layers, NOTHING)
    assert_exact_cover(partition)
    for index in range(len(partition)):
        free = [layer for layer in partition.layers_of(index) if layer.kind == "weighted" and not layer.joined]
        assert len(free) <= 2  # the first block also holds what comes before the first weighted layer


@given(layer_lists(), st.sampled_from([("pool",), ("activation",), ("pool", "activation")]))
def test_segment_covers_exactly_and_ends_at_separators(layers, separators):
    partition = SegmentPartitioner(separators, None)(layers, NOTHING)
    assert_exact_cover(partition)
    for index in range(1, len(partition)):
        following = partition.layers_of(index)
        before_weights = takewhile(lambda layer: layer.kind != "weighted", following)
        around = [*partition.layers_of(index - 1), *before_weights]
        assert any(layer.kind in separators for layer in around)


@given(layer_lists(), st.data())
def test_even_and_merged_segments_have_the_number_asked_for(layers, data):
    units = len(unit_starts(layers))
    number = data.draw(st.integers(1, units))
    even = EvenPartitioner(number)(layers, NOTHING)
    assert_exact_cover(even)
    assert len(even) == number
    segments = len(SegmentPartitioner(num_blocks=None)(layers, NOTHING))
    number = data.draw(st.integers(1, segments))
    for balance in ("layers", "parameters", "flops"):
        merged = SegmentPartitioner(num_blocks=number, balance=balance)(layers, NOTHING)
        assert_exact_cover(merged)
        assert len(merged) == number


@given(layer_lists(), st.data())
def test_window_covers_at_least_once(layers, data):
    units = len(unit_starts(layers))
    length = data.draw(st.integers(1, units))
    stride = data.draw(st.integers(1, length))
    partition = WindowPartitioner(length, stride)(layers, NOTHING)
    covered = {layer.index for index in range(len(partition)) for layer in partition.layers_of(index)}
    assert covered == set(range(len(layers)))
    for index in range(len(partition)):
        stages = partition.stages_of(index)
        edges = [*partition.cuts, len(layers)]
        assert edges[stages[0]] == partition.blocks[index].first
        assert edges[stages[-1] + 1] - 1 == partition.blocks[index].last


@settings(max_examples=50)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=9), st.data())
def test_merge_is_the_best_of_all_ways_to_cut(weights, data):
    layers = [Layer(i, str(i), "Conv2d", "weighted", False, (str(i),), w) for i, w in enumerate(weights)]
    number = data.draw(st.integers(1, len(weights)))
    starts = merge(list(range(len(weights))), layers, number, "parameters", "segments")

    def cost(cuts):
        return sum(sum(weights[a:b]) ** 2 for a, b in pairwise([0, *cuts, len(weights)]))

    best = min(cost(cuts) for cuts in combinations(range(1, len(weights)), number - 1))
    assert cost(starts[1:]) == best


@given(layer_lists())
def test_quarters_ascend_from_one_to_four(layers):
    partition = LayerPartitioner()(layers, NOTHING)
    quarters = [partition.quarter(index) for index in range(len(partition))]
    assert quarters == sorted(quarters)
    assert set(quarters) <= {1, 2, 3, 4}
    if len(quarters) >= 4:
        assert set(quarters) == {1, 2, 3, 4}


@pytest.mark.parametrize(
    ("name", "segments_by_pool", "segments", "units"),
    [("vgg16", 6, 15, 15), ("resnet50", 2, 49, 53)],
)
def test_known_architectures(name, segments_by_pool, segments, units):
    with torch.device("meta"):
        network = timm.create_model(name, num_classes=0)
        layers = record_layers(network, torch.zeros(1, 3, 224, 224))
    assert len(LayerPartitioner()(layers, network)) == units
    assert len(SegmentPartitioner(["pool"], None)(layers, network)) == segments_by_pool
    assert len(SegmentPartitioner(num_blocks=None)(layers, network)) == segments


def test_stages_are_the_architectures_own():
    with torch.device("meta"):
        network = timm.create_model("resnet18", num_classes=0)
        partition = StagePartitioner()(record_layers(network, torch.zeros(1, 3, 64, 64)), network)
    firsts = [partition.layers_of(index)[0].name for index in range(len(partition))]
    assert firsts == ["conv1", "layer1.0.conv1", "layer2.0.conv1", "layer3.0.conv1", "layer4.0.conv1"]


def test_stages_by_resolution_where_the_network_lists_none(stub, stub_layers):
    partition = StagePartitioner()(stub_layers, stub)
    assert [partition.layers_of(index)[0].name for index in range(len(partition))] == ["stem.0", "conv3"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SegmentPartitioner(num_blocks=99), "partition.num_blocks=99 does not fit.*choose 1 to"),
        (lambda: SegmentPartitioner(num_blocks=0), "partition.num_blocks=0 does not fit"),
        (lambda: EvenPartitioner(99), "5 weighted layers, so choose 1 to 5"),
        (lambda: SegmentPartitioner(["norm"]), "partition.separators=norm is unknown"),
        (lambda: SegmentPartitioner([]), "choose pool, activation or both"),
        (lambda: SegmentPartitioner("inner"), "choose pool, activation or both"),
        (lambda: UnitPartitioner(0), "partition.num_blocks=0 does not fit.*or null to keep every unit"),
        (lambda: UnitPartitioner(balance="weight"), "partition.balance=weight is unknown"),
        (lambda: SegmentPartitioner(balance="weight"), "partition.balance=weight is unknown"),
        (lambda: WindowPartitioner(2, 3), "partition.stride=3 skips layers"),
        (lambda: WindowPartitioner(99, 3), "longer than the backbone's 5 weighted layers"),
        (lambda: WindowPartitioner(0, 1), "partition.length=0 must be"),
    ],
)
def test_options_that_do_not_fit_are_refused(make, message, stub, stub_layers):
    with pytest.raises(InputError, match=message):
        make()(stub_layers, stub)


def test_a_network_without_parameters_is_refused():
    with pytest.raises(InputError, match="nothing to fine-tune"):
        LayerPartitioner()(record_layers(nn.Sequential(nn.ReLU()), torch.zeros(1, 3)), NOTHING)


def test_of_one_block_there_is_no_range_to_choose_from():
    with pytest.raises(InputError, match=r"the backbone has 1 weighted layer, so choose 1$"):
        merge([0], [], 2, "layers", "weighted layers")
