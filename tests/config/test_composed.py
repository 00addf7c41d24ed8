"""Every option of every config group composes to exactly the settings in composed.json.

Configs inherit from each other, so a small edit can change settings elsewhere; this test shows it. After an intended
change, write the file again and review its diff:

    python tests/config/test_composed.py
"""

import json
from functools import cache
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

CONF = Path(__file__).parents[2] / "conf"
GOLDEN = Path(__file__).with_name("composed.json")
REGENERATE = "if that is meant, run `python tests/config/test_composed.py` and review the diff of composed.json"


def choices():
    """Return every choice as on the command line, such as `model=vgg16`; the empty choice is the default config.

    conf/hydra is left out, since its configs depend on the installed Hydra plugins.
    """
    files = sorted(path for path in CONF.glob("*/*.yaml") if not path.stem.startswith("_"))
    return ["", *(f"{path.parent.name}={path.stem}" for path in files)]


@pytest.mark.parametrize("path", sorted((CONF / "experiment").glob("*.yaml")), ids=lambda path: path.stem)
def test_all_that_an_experiment_sets_counts(path):
    own = {key: value for key, value in OmegaConf.load(path).items() if key not in ("defaults", "hydra")}
    with initialize_config_dir(str(CONF), version_base="1.3"):
        settings = compose("train", [f"experiment={path.stem}"])
    assert OmegaConf.merge(settings, own) == settings


@cache
def composed(choice):
    """Return the settings of a choice: those of its group, or for an experiment all that it changes."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        settings = OmegaConf.to_container(compose("train", [choice] if choice else []))
    group = choice.partition("=")[0]
    if group == "experiment":
        return {key: value for key, value in settings.items() if value != composed("").get(key)}
    return settings.get(group) if group else settings


@pytest.fixture(scope="module")
def golden():
    return json.loads(GOLDEN.read_text())


@pytest.mark.parametrize("choice", choices())
def test_a_choice_sets_what_it_always_did(choice, golden):
    assert choice in golden, f"{choice} is new and not in composed.json: {REGENERATE}"
    assert composed(choice) == golden[choice], f"{choice or 'the default config'} has changed: {REGENERATE}"


def test_no_choice_has_gone(golden):
    gone = sorted(set(golden) - set(choices()))
    assert not gone, f"{', '.join(gone)} can no longer be chosen: {REGENERATE}"


def write():
    """Write composed.json."""
    settings = {choice: composed(choice) for choice in choices()}
    GOLDEN.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    write()
