"""Hydra's basic sweeper, except that the values of the `block` axis stay in one job.

`block=0,1,2` or `block=range(0,12)` becomes one job with a list of scopes, trained side by side, instead of one job per
block. All other axes (`model`, `data`, `seed`, ...) are swept as usual. `sweeper.cells_per_job` limits the cells per
job. With this limit, scopes such as `top3` run in a second batch of jobs, after the blocks that they choose from.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from blockwise.errors import InputError

TOGETHER = "block"
# prefix of the scopes that choose among trained blocks
TOP = "top"
# no `from __future__ import annotations`: Hydra executes this file outside of `sys.modules`


@dataclass
class BlockAxisSweeperConf:
    """The config `hydra/sweeper=blockwise`."""

    _target_: str = "hydra_plugins.blockwise_sweeper.sweeper.BlockAxisSweeper"
    max_batch_size: int | None = None
    # axes in a config: a text as on the command line, or a list of values
    params: dict[str, Any] = field(default_factory=dict)


ConfigStore.instance().store(
    group="hydra/sweeper", name="blockwise", node=BlockAxisSweeperConf, provider="blockwise_sweeper"
)


class BlockAxisSweeper(BasicSweeper):
    """Sweeps over all axes except `block`."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Set up Hydra's sweeper, after checking the launcher.

        Raises:
            InputError: The launcher is for Slurm, which is not installed.
        """
        if config.hydra.launcher._target_.endswith("SlurmLauncher") and shutil.which("srun") is None:
            raise InputError("hydra/launcher=submitit_slurm finds no srun: run it on a machine with Slurm")
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)

    def _parse_config(self) -> list[str]:
        """Return the axes of a config as command-line overrides."""
        values = ((k, v if isinstance(v, str) else ",".join(map(str, v))) for k, v in (self.params or {}).items())
        return [f"{key}={value}" for key, value in values]

    def split_arguments(  # type: ignore[override]
        self, overrides: list[Override], max_batch_size: int | None
    ) -> list[list[list[str]]]:
        """Return batches of jobs, each a list of overrides.

        Raises:
            InputError: An axis has no values.
        """
        for override in overrides:
            if override.is_interval_sweep():
                raise InputError(f"{override.input_line} has no end of values: list them, or use range(...)")
            if override.is_sweep_override() and not any(True for _ in override.sweep_string_iterator()):
                raise InputError(f"{override.input_line} has no values")
        (jobs,) = BasicSweeper.split_arguments([_together(override) for override in overrides], None)
        assert self.config is not None
        if (cells := self.config.sweeper.cells_per_job) is None:
            return list(self.split_overrides_to_chunks(jobs, max_batch_size))
        parts = [part for job in jobs for part in self._divide(job, cells)]
        batches = ([part for part in parts if _chooses(part) is later] for later in (False, True))
        return [chunk for batch in batches if batch for chunk in self.split_overrides_to_chunks(batch, max_batch_size)]

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        """Check the settings of all jobs before the first one starts.

        Raises:
            InputError: A setting of a job is invalid.
        """
        from blockwise.config.checks import check_config
        from blockwise.config.compose import plain, settings
        from blockwise.config.overrides import check_added

        assert self.hydra_context is not None
        assert self.config is not None
        for job in batch:
            cfg = self.hydra_context.config_loader.load_sweep_config(self.config, list(job))
            check_added(job, cfg, settings())
            # Hydra sets its own part of the config when a job starts
            check_config(plain(OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])))

    def _divide(self, job: list[str], cells: int) -> list[list[str]]:
        """Split a job into jobs of at most `cells` cells, but at least one scope; `top` scopes get their own jobs."""
        assert self.hydra_context is not None
        assert self.config is not None
        cfg = self.hydra_context.config_loader.load_sweep_config(self.config, list(job))
        scopes, rates = _values(cfg.block), _values(cfg.optimizer.lr)
        if "all" in scopes:
            from blockwise.commands.inspection import number_of_blocks  # imports torch

            place = scopes.index("all")
            every = ["head", *map(str, range(number_of_blocks(cfg))), "full"]
            scopes[place : place + 1] = [scope for scope in every if scope not in scopes]
        size = max(1, cells // (len(rates) * max(1, len(cfg.policy))))
        others = [override for override in job if not override.startswith(f"{TOGETHER}=")]
        kinds = ([s for s in scopes if not s.startswith(TOP)], [s for s in scopes if s.startswith(TOP)])
        parts = [kind[first : first + size] for kind in kinds for first in range(0, len(kind), size)]
        return [[*others, f"{TOGETHER}=[{','.join(part)}]"] for part in parts]


def _chooses(job: list[str]) -> bool:
    """Return whether a job trains `top` scopes, which need the results of other jobs."""
    return any(override.startswith(f"{TOGETHER}=[{TOP}") for override in job)


def _values(value: Any) -> list[str]:
    """Return a value, or several, as a list of texts."""
    return [str(value)] if isinstance(value, (str, int, float)) else [str(item) for item in value]


def _together(override: Override) -> Override:
    if override.get_key_element() != TOGETHER or not override.is_sweep_override():
        return override
    values = list(override.sweep_string_iterator())
    if any(value.startswith("[") for value in values):  # several lists of scopes: one job per list
        return override
    (joined,) = OverridesParser.create().parse_overrides([f"{TOGETHER}=[{','.join(values)}]"])
    return joined
