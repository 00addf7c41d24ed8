"""The settings in records, and how objects are described there."""

from blockwise.study.settings.describe import describe, describe_rule
from blockwise.study.settings.shared import (
    DATA,
    NEWER_DATA,
    config_settings,
    describe_data,
    describe_policy,
    describe_splits,
    partition_settings,
    python_settings,
)

__all__ = [
    "DATA",
    "NEWER_DATA",
    "config_settings",
    "describe",
    "describe_data",
    "describe_policy",
    "describe_rule",
    "describe_splits",
    "partition_settings",
    "python_settings",
]
