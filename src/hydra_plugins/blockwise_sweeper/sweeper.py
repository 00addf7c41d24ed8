"""Hydra's basic sweeper, except that the `block` axis stays together.

`block=0,1,2` or `block=range(0,12)` becomes one job with a list of scopes, trained side by side, instead of a job
a block; every other axis (`model`, `data`, `seed`, ...) is swept as usual.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override

from blockwise.errors import JobFailure

TOGETHER = "block"
# Hydra executes this file outside of `sys.modules`: annotations of the dataclass must not be postponed.


@dataclass
class BlockAxisSweeperConf:
    """What `hydra/sweeper=blockwise` means."""

    _target_: str = "hydra_plugins.blockwise_sweeper.sweeper.BlockAxisSweeper"
    max_batch_size: int | None = None
    params: dict[str, str] | None = None


ConfigStore.instance().store(
    group="hydra/sweeper", name="blockwise", node=BlockAxisSweeperConf, provider="blockwise_sweeper"
)


class BlockAxisSweeper(BasicSweeper):
    """Sweeps over every axis but `block`, and names every job that failed."""

    @staticmethod
    def split_arguments(overrides: list[Override], max_batch_size: int | None) -> list[list[list[str]]]:
        """Return batches of jobs, each a list of overrides."""
        return BasicSweeper.split_arguments([_together(override) for override in overrides], max_batch_size)

    def sweep(self, arguments: list[str]) -> Any:
        """Run every job, then exit with 1 if some have failed."""
        returns: Sequence[Sequence[Any]] = super().sweep(arguments)
        jobs = [job.return_value for batch in returns for job in batch]
        failures = [job for job in jobs if isinstance(job, JobFailure)]
        if failures:
            print(f"{len(failures)} of {len(jobs)} jobs failed:", file=sys.stderr)
            for failure in failures:
                print(f"  {failure.overrides}: {failure.reason}", file=sys.stderr)
            sys.exit(1)
        return returns


def _together(override: Override) -> Override:
    if override.get_key_element() != TOGETHER or not override.is_sweep_override():
        return override
    values = list(override.sweep_string_iterator())
    if any(value.startswith("[") for value in values):  # lists of scopes: a job a list, as written
        return override
    (joined,) = OverridesParser.create().parse_overrides([f"{TOGETHER}=[{','.join(values)}]"])
    return joined
