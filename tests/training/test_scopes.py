import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockwise.errors import InputError
from blockwise.training.scopes import parse_scopes


def names(block, num_blocks=12):
    return [scope.name for scope in parse_scopes(block, num_blocks, "net")]


def test_all_is_head_every_block_and_full():
    scopes = parse_scopes("all", 3, "net")
    assert [(scope.name, scope.blocks) for scope in scopes] == [
        ("head", ()),
        ("0", (0,)),
        ("1", (1,)),
        ("2", (2,)),
        ("full", (0, 1, 2)),
    ]


def test_canonical_names_are_not_repeated():
    assert names([-1, 11, "7+3", "3+7", "from-2", "from10", "head", "head"]) == ["11", "3+7", "from10", "head"]


@given(st.integers(1, 40), st.data())
def test_numbers_from_either_end_are_the_same_block(num_blocks, data):
    block = data.draw(st.integers(0, num_blocks - 1))
    assert parse_scopes(block, num_blocks, "net") == parse_scopes(str(block - num_blocks), num_blocks, "net")
    assert parse_scopes(block, num_blocks, "net")[0].blocks == (block,)


@given(st.integers(2, 40), st.data())
def test_joint_blocks_are_sorted_and_complete(num_blocks, data):
    chosen = data.draw(st.lists(st.integers(0, num_blocks - 1), min_size=2, unique=True))
    (scope,) = parse_scopes("+".join(map(str, chosen)), num_blocks, "net")
    assert scope.blocks == tuple(sorted(chosen))
    first = chosen[0]
    assert parse_scopes(f"from{first}", num_blocks, "net")[0].blocks == tuple(range(first, num_blocks))


@given(st.text(max_size=12), st.integers(1, 20))
def test_any_text_is_a_scope_or_one_sentence(text, num_blocks):
    try:
        scopes = parse_scopes(text, num_blocks, "net")
    except InputError as error:
        assert "\n" not in str(error).replace(text, "")
    else:
        assert scopes
        assert all(0 <= block < num_blocks for scope in scopes for block in scope.blocks)


def test_top_takes_the_best_of_a_ranking():
    (scope,) = parse_scopes("top3", 12, "net")
    assert scope.top == 3
    assert scope.resolve([8, 2, 5, 1]).blocks == (2, 5, 8)


@pytest.mark.parametrize(
    ("block", "message"),
    [
        (12, "block=12 is out of range: net has 12 blocks, so choose 0 to 11"),
        (-13, "block=-13 is out of range"),
        ("3+12", r"block=3\+12 is out of range"),
        ("from12", "block=from12 is out of range"),
        ("3+3", "lists a block of net twice"),
        ("3+-9", "lists a block of net twice"),
        ("top1", "choose top2 to top12"),
        ("top13", "choose top2 to top12"),
        ("hed", "block=hed is not a scope.*Did you mean 'head'"),
        ("form7", "Did you mean 'from7'"),
        ("", "is not a scope"),
        (1.5, "is not a scope"),
        ([], "trains nothing"),
    ],
)
def test_wrong_scopes_are_refused(block, message):
    with pytest.raises(InputError, match=message):
        parse_scopes(block, 12, "net")
