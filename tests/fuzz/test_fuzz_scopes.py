"""The grammar of scopes: every text is a scope with the right blocks, or is answered in one line."""

import re
import time

import pytest
from fuzzing import check_line, examples, within_limits
from hypothesis import given
from hypothesis import strategies as st

from blockwise.errors import InputError
from blockwise.training.scopes import LONGEST, parse_scopes

PIECE = st.one_of(
    st.sampled_from(
        ("head", "full", "all", "from", "top", "+", "-", " ", "0", "7", "12", "²", "٣", "\x1b", "\n", "1e3")
    ),
    st.integers(-20, 20).map(str),
    st.text(max_size=3),
)
TEXT = st.one_of(st.lists(PIECE, max_size=6).map("".join), st.text(max_size=30), st.text("0123456789+-", max_size=40))
LEAF = st.one_of(TEXT, st.integers(), st.floats(), st.none(), st.booleans(), st.binary(max_size=3))
BLOCK = st.one_of(LEAF, st.lists(LEAF, max_size=5), st.dictionaries(TEXT, LEAF, max_size=2))


def check(block, num_blocks):
    """Check the scopes of a value against what its text says."""
    scopes = parse_scopes(block, num_blocks, "net")
    assert len({scope.name for scope in scopes}) == len(scopes) > 0
    for scope in scopes:
        assert list(scope.blocks) == sorted(set(scope.blocks))
        assert all(0 <= number < num_blocks for number in scope.blocks)
        assert parse_scopes(scope.name, num_blocks, "net") == [scope]
    if isinstance(block, str) and re.fullmatch(r"-?\d+(\+-?\d+)*", block, re.ASCII):
        assert scopes[0].blocks == tuple(sorted(int(number) % num_blocks for number in block.split("+")))


@given(BLOCK, st.integers(1, 40))
@examples()
def test_every_value_is_a_scope_or_answered_in_one_line(block, num_blocks):
    with within_limits():
        check(block, num_blocks)


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ("1" * 5000, "is longer than"),
        (10**5000, "too many digits"),
        ("+".join(map(str, range(400))), "is longer than"),
        ("\x1b[31mhead\nfull", "is not a scope"),
        ("+".join(str(-number) for number in range(1, 52)), "is longer than"),  # written as 499+498+...
        ("9" * LONGEST, "is out of range"),
        ("top" + "9" * 100, "choose top2 to top500"),
    ],
    ids=["digits", "a number", "400 blocks", "51 blocks", "commands", "nines", "top"],
)
def test_what_is_too_long_or_contains_commands_is_refused(block, message):
    with pytest.raises(InputError, match=message) as caught:
        parse_scopes(block, 500, "net")
    check_line(str(caught.value))


def test_leading_zeros_change_no_block():
    assert parse_scopes("00000000000007", 12, "net")[0].blocks == (7,)
    assert parse_scopes("top0000000000003", 12, "net")[0].top == 3


def test_a_long_text_is_refused_at_once():
    start = time.monotonic()
    with pytest.raises(InputError, match="is not a scope"):
        parse_scopes("fromtop" * 28, 10_000, "net")
    assert time.monotonic() - start < 1
