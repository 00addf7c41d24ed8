"""The checks know the values that the code behind them takes, and do not wait for torch."""

import subprocess
import sys
from typing import get_args

import pytest

from blockwise.config import checks
from blockwise.data import augment, datamodule, decode
from blockwise.errors import InputError
from blockwise.recipe import recipe, schedulers


def test_the_choices_are_those_of_the_code():
    assert tuple(augment.NAMED) == checks.AUGMENTATIONS
    assert tuple(augment.PRESETS) == checks.PRESETS
    assert datamodule.SAMPLERS == checks.SAMPLERS
    assert tuple(decode.INTERPOLATIONS) == checks.INTERPOLATIONS
    assert checks.NORM_MODES == recipe.NORM_MODES
    assert get_args(schedulers.Unit) == checks.UNITS


def test_a_split_has_one_purpose():
    check = checks.CHECKS["data.splits"]
    check("data.splits", {"train": "train", "test": "validation"})
    with pytest.raises(InputError, match=r"data.splits.val and data.splits.test are the same split, validation"):
        check("data.splits", {"train": "train", "val": "validation", "test": "validation"})


def test_values_are_checked_without_torch():
    code = "import sys, blockwise.config.checks; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
