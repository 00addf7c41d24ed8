"""Settings that Hydra's parser would refuse with an error of its own, or accept although nothing reads them."""

import shlex

import pytest
from conftest import quick_config
from hypothesis import given
from hypothesis import strategies as st

from blockwise.config.compose import compose_config, groups
from blockwise.config.overrides import check_overrides
from blockwise.errors import InputError

FOLDER = ["data=imagefolder", "model=efficientnet_lite0"]
PATHS = [
    "~/images",
    "für",
    "images (1)",
    "a(1)",
    "a=b",
    "a&b",
    "{x}",
    "[x",
    '"x',
    "it's",
    "a#b",
    "a;b",
    "!x",
    "/tmp/<x>",
]


def quoted(message):
    """Return the argument that a message tells to type, as the shell passes it on."""
    (argument,) = shlex.split(message.partition("for the shell: ")[2])
    return argument


@pytest.mark.parametrize("path", PATHS)
def test_a_path_that_hydra_cannot_read_is_answered_with_its_quotes(path):
    try:
        cfg = compose_config([*FOLDER, f"data.root={path}"])
    except InputError as error:
        assert "quote its value twice" in str(error)
        cfg = compose_config([*FOLDER, quoted(str(error))])
    assert cfg.data.root == path


@given(st.text(st.characters(min_codepoint=32), min_size=1, max_size=30))
def test_every_text_is_parsed_or_answered_in_one_line(text):
    try:
        check_overrides([f"data.root={text}"], groups())
    except InputError as error:
        if "for the shell: " in str(error):
            check_overrides([quoted(str(error))], groups())


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.root=", "data.root= has no value: is a variable of your shell unset\\?"),
        ("data.root=null", "data.root=None must be text"),
        ("data.root=a,b", """a comma inside one value needs quotes: 'data.root="a,b"'"""),
        ("=3", "'' is not the name of a setting"),
        ("a b=3", "'a b' is not the name of a setting"),
        ("model=NULL", "model=NULL chooses no config"),
        ("~plan", "~plan removes a setting that is needed"),
        ("+foo=3", "there is no setting foo"),
        ("+seedd=3", r"there is no setting seedd. Did you mean 'seed'\\?"),
        ("+data.foo=3", "there is no setting data.foo"),
        ("++model.foo.bar=3", "there is no setting model.foo.bar"),
        ("data.root=${data.root}", "(?i)cannot be resolved .recursive|refers to itself"),
        ("data.num_workers=100000", "data.num_workers=100000 is too large"),
        ("data.image_size=1000000", "data.image_size=1000000 is too large"),
        ("data.crop_pct=1e-9", "data.crop_pct=1e-09 must be between 0.1 and 1"),
        (f"data.name={300 * 'x'}", "data.name has 300 characters"),
    ],
)
def test_what_cannot_be_meant_is_one_sentence(override, message):
    from blockwise.config import plain
    from blockwise.config.checks import check_config

    with pytest.raises(InputError, match=message) as caught:
        check_config(plain(quick_config([*FOLDER, "data.root=x", override])))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "override",
    ["+optimizer.amsgrad=true", "+trainer.gradient_clip_val=1", "+partition.mine=1", "~optimizer.weight_decay"],
)
def test_what_a_class_takes_may_be_added_and_removed(override):
    compose_config(["model=efficientnet_lite0", override])
