"""Networks are cut as a config says, or one sentence tells why they cannot be."""

import pytest
from torch import nn

from blockwise.backbone.cut import cut
from blockwise.config.compose import compose_config
from blockwise.errors import InputError

NETWORK = nn.Sequential(nn.Conv2d(3, 4, 5), nn.Conv2d(4, 4, 5), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def partition(*overrides):
    return compose_config(list(overrides)).partition


def test_a_network_is_cut_by_the_partitioner_of_a_config():
    found = cut(NETWORK, 16, partition("partition=layer"), {"name": "net"})
    assert [(block.first, block.last) for block in found.blocks] == [
        (0, 0),
        (1, 3),
    ]  # with the pooling


@pytest.mark.parametrize(
    ("size", "overrides", "model", "message"),
    [
        (8, [], {}, r"data.image_size=8 does not fit net \(.*Kernel size can't be greater"),
        (8, [], {"options": {"depth": 2}}, "model.options={'depth': 2}: with them, net does not run"),
        (16, ["partition.num_blocks=9"], {}, "partition.num_blocks=9 does not fit"),
        (16, ["partition=window", "partition.length=0"], {}, "partition.length=0 must be an integer of at least 1"),
        (16, ["partition._target_=x.Y"], {}, "partition: there is no x.Y"),
    ],
)
def test_what_cannot_be_cut_is_one_sentence(size, overrides, model, message):
    with pytest.raises(InputError, match=message) as told:
        cut(NETWORK, size, partition(*overrides), {"name": "net", **model})
    assert "\n" not in str(told.value)
