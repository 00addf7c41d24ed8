"""Settings of the command line: parsed, or answered in one line."""

import pytest
from fuzzing import check_line, examples, within_limits
from hypothesis import given
from hypothesis import strategies as st

from blockwise.config.compose import compose_config, groups, plain, settings
from blockwise.config.overrides import check_overrides
from blockwise.errors import InputError

NAMES, GROUPS = settings(), groups()
CHOICES = [f"{group}={name}" for group, names in GROUPS.items() for name in names]
PIECE = st.one_of(
    st.sampled_from(
        "[ ] { } ( ) , : = \" ' \\ $ ${ ${oc.env:HOME} ${seed} null true -1 1e999 nan .. / * ~ + @ # ??? 0x1 _target_ "
        "range( choice( glob( sort( int( float( interval( tag( shuffle( \x1b[31m \n \t \0 é".split(" ")
    ),
    st.integers().map(str),
    st.text(max_size=3),
)
VALUE = st.lists(PIECE, max_size=6).map("".join)
KEY = st.one_of(
    st.sampled_from(NAMES),
    st.sampled_from([*GROUPS, "hydra/launcher", "hydra.run.dir", "data@x", "data.source.x", "optimizer.x", "x"]),
    st.text(max_size=8),
)
PREFIX = st.sampled_from(("", "", "", "", "+", "++", "~"))
SETTING = st.builds("{}{}{}{}".format, PREFIX, KEY, st.sampled_from(("=", "=", "=", "")), VALUE)
OVERRIDES = st.lists(st.one_of(SETTING, st.sampled_from(CHOICES), st.text(max_size=20)), min_size=1, max_size=3)

# what gets past the checks
KNOWN = st.sampled_from([*NAMES, *GROUPS, "hydra/launcher", "hydra.verbose", "optimizer.x", "trainer.x", "hydra.x"])
SIMPLE = "1 -1 0.5 true x a,b [] [1,2] {} {a:1} ${seed} ${x} ${oc.env:X} ??? range(1,3) choice(a,b) 'x' ../x /x"
PARSED = st.builds("{}{}={}".format, PREFIX, KNOWN, st.one_of(st.sampled_from(SIMPLE.split()), VALUE))


@given(OVERRIDES)
@examples()
def test_every_setting_is_parsed_or_answered_in_one_line(overrides):
    with within_limits():
        check_overrides(overrides, GROUPS)


@given(st.one_of(OVERRIDES, st.lists(PARSED, min_size=1, max_size=2), st.lists(st.sampled_from(CHOICES), max_size=4)))
@examples(0.02)
def test_every_setting_is_composed_or_answered_in_one_line(overrides):
    with within_limits():
        plain(compose_config(["model=efficientnet_lite0", *overrides]))


@pytest.mark.parametrize(
    "override",
    [
        "seed=" + "1" * 5000,
        "seed=int(" + "9" * 5000 + ")",
        "data.root=[\x1b[31m",
        "a\n\x1b[31m=1",
        "\x1b[31m",
        "seed=\0",
        "model=0",
        "+data=1.5",
        "hydra/launcher=true",
        "optimizer={a:1}",
        "model=[1,2]",
        "model=[vgg16,{}]",
        "logger=[wandb,null]",
        "logger=[[wandb]]",
    ],
    ids=[
        "digits",
        "int",
        "value",
        "name",
        "no name",
        "zero byte",
        "number",
        "added",
        "launcher",
        "dictionary",
        "numbers",
        "in a list",
        "null",
        "list",
    ],
)
def test_what_no_parser_reads_is_answered_in_one_line(override):
    with pytest.raises(InputError) as caught:
        check_overrides([override], GROUPS)
    check_line(str(caught.value))
