"""The jobs that a multirun makes from its axes."""

import pytest
from conftest import SMALL
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from omegaconf import OmegaConf

from blockwise.config.compose import CONFIG_DIR, CONFIG_NAME


@pytest.fixture
def jobs():
    """Return the jobs of a command line, each a list of overrides."""
    from hydra._internal.config_loader_impl import ConfigLoaderImpl
    from hydra._internal.utils import create_config_search_path
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.utils import setup_globals
    from hydra.types import HydraContext, RunMode

    setup_globals()
    GlobalHydra.instance().clear()

    def split(*overrides, together=True):
        loader = ConfigLoaderImpl(create_config_search_path(str(CONFIG_DIR)))
        config = loader.load_configuration(CONFIG_NAME, list(overrides), RunMode.MULTIRUN)
        context = HydraContext(config_loader=loader, callbacks=None)
        sweeper = Plugins.instance().instantiate_sweeper(hydra_context=context, task_function=print, config=config)
        arguments = [*sweeper._parse_config(), *OmegaConf.to_container(config.hydra.overrides.task)]
        parsed = OverridesParser.create(config_loader=loader).parse_overrides(arguments)
        batches = sweeper.split_arguments(parsed, sweeper.max_batch_size)
        return [job for batch in batches for job in batch] if together else batches

    return split


def test_the_block_axis_stays_together(jobs):
    assert jobs("model=vgg16,densenet121", "block=range(0,3)") == [
        ["model=vgg16", "block=[0,1,2]"],
        ["model=densenet121", "block=[0,1,2]"],
    ]


@pytest.mark.parametrize(
    ("given", "block"),
    [
        ("block=0,3,7", "[0,3,7]"),
        ("block=head,full,-1", "[head,full,-1]"),
        ("block=all", "all"),
        ("block=[all,top3]", "[all,top3]"),
        ("block=3+7,from2", "[3+7,from2]"),
    ],
)
def test_every_way_to_name_blocks(jobs, given, block):
    assert jobs(given, "seed=0,1") == [[f"block={block}", f"seed={seed}"] for seed in (0, 1)]


def test_lists_of_scopes_are_jobs_as_written(jobs):
    assert jobs("block=[0,1],[2,head]") == [["block=[0,1]"], ["block=[2,head]"]]


def test_other_axes_take_all_of_hydras_syntax(jobs):
    assert len(jobs("model=glob(vgg*)", "seed=range(0,3)", "partition=choice(even,stage)")) == 2 * 3 * 2


def test_basic_has_a_job_a_cell(jobs):
    assert jobs("hydra/sweeper=basic", "block=0,1", "seed=0,1") == [
        [f"block={block}", f"seed={seed}"] for block in (0, 1) for seed in (0, 1)
    ]


@pytest.mark.parametrize(
    ("overrides", "blocks"),
    [
        (["block=range(0,5)", "sweeper.cells_per_job=2"], ["[0,1]", "[2,3]", "[4]"]),
        (["block=all", "sweeper.cells_per_job=2"], ["[head,0]", "[1,2]", "[full]"]),
        (["sweeper.cells_per_job=4"], ["[head,0,1,2]", "[full]"]),
        (["block=[head,all,top2]", "sweeper.cells_per_job=3"], ["[head,0,1]", "[2,full]", "[top2]"]),
        (["block=0,1,2", "optimizer.lr=[1e-3,1e-2]", "sweeper.cells_per_job=4"], ["[0,1]", "[2]"]),
        (["block=0,1", "optimizer.lr=[1e-3,1e-2]", "sweeper.cells_per_job=1"], ["[0]", "[1]"]),
    ],
)
def test_a_job_has_at_most_so_many_cells(jobs, overrides, blocks):
    found = jobs(*SMALL, "partition.num_blocks=3", *overrides)
    assert [next(o for o in job if o.startswith("block=")) for job in found] == [f"block={b}" for b in blocks]


def test_what_chooses_among_blocks_waits_for_all_of_them(jobs):
    overrides = ["block=[all,top2]", "seed=0,1", "sweeper.cells_per_job=3", "partition.num_blocks=3"]
    first, later = jobs(*SMALL, *overrides, together=False)
    assert len(first) == 4
    assert [job[-1] for job in later] == ["block=[top2]"] * 2


def test_axes_may_come_from_a_config_and_the_command_line_wins(jobs):
    from_config = jobs("experiment=seeds", "model=vgg16")
    assert [sorted(o for o in job if "experiment" not in o) for job in from_config] == [
        ["block=all", "model=vgg16", f"seed={seed}"] for seed in (0, 1, 2)
    ]
    assert [job for job in jobs("experiment=seeds", "seed=5", "block=0,1") if "seed=5" in job and "block=[0,1]" in job]
