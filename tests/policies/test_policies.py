"""Which blocks train in which epoch."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockwise.errors import InputError
from blockwise.policies import LPFT, Cyclic, Gradual, Phase, Static, check_policy, phases


def blocks_of(policy, blocks, epochs):
    return [phase.blocks for phase in phases(policy, blocks, epochs)]


def test_what_trains():
    assert blocks_of(Static(), (1, 4), 3) == [(1, 4)] * 3
    assert blocks_of(LPFT(2), (1, 4), 4) == [(), (), (1, 4), (1, 4)]
    assert blocks_of(Gradual(2), (1, 4, 6), 8) == [(), (), (6,), (6,), (4, 6), (4, 6), (1, 4, 6), (1, 4, 6)]
    assert blocks_of(Cyclic(1), (1, 4, 6), 5) == [(6,), (4,), (1,), (6,), (4,)]
    assert blocks_of(Cyclic(2), (1, 4), 5) == [(4,), (4,), (1,), (1,), (4,)]


@given(
    st.sampled_from([Static(), LPFT(1), LPFT(3), Gradual(1), Gradual(3), Cyclic(1), Cyclic(2)]),
    st.sets(st.integers(0, 20), max_size=8).map(lambda blocks: tuple(sorted(blocks))),
    st.integers(1, 40),
)
def test_every_phase_trains_the_head_and_blocks_of_the_scope(policy, blocks, epochs):
    planned = phases(policy, blocks, epochs)
    assert len(planned) == epochs
    for phase in planned:
        assert phase.head
        assert set(phase.blocks) <= set(blocks)
        assert list(phase.blocks) == sorted(phase.blocks)


@pytest.mark.parametrize("make", [LPFT, Gradual, Cyclic])
@pytest.mark.parametrize("value", [0, -1, 1.5, True, "2", None])
def test_epochs_are_whole_numbers(make, value):
    with pytest.raises(InputError, match="must be an integer of at least 1"):
        make(value)


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (LPFT(3), "policy=mine trains no block in 3 epochs"),
        (lambda *_: Phase((), head=False), "policy=mine trains nothing in epoch 0"),
        (lambda *_: Phase((9,)), "policy=mine trains block 9 in epoch 0, which is not in the scope"),
        (lambda *_: (1,), "policy=mine must return a Phase"),
        (lambda *_: 1 / 0, "policy=mine fails .ZeroDivisionError"),
    ],
)
def test_a_policy_that_cannot_be(policy, message):
    with pytest.raises(InputError, match=message):
        check_policy("mine", policy, (1, 2), 3)


def test_a_scope_without_blocks_trains_its_head():
    assert blocks_of(lambda *_: 1 / 0, (), 2) == [(), ()]
