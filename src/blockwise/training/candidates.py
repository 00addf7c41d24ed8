"""What a search sees of the cells of a run, and what it stops."""

from __future__ import annotations

from collections.abc import Sequence

from blockwise.backbone.flops import mean_flops
from blockwise.backbone.partition import Partition
from blockwise.errors import InputError
from blockwise.policies import Phase
from blockwise.search import Candidate, Search
from blockwise.training.cells import Cell, Progress


def stop_cells(
    search: Search,
    partition: Partition,
    cells: Sequence[Cell],
    phases: Sequence[Sequence[Phase]],
    progress: Sequence[Progress],
    select_by: str,
    epoch: int,
) -> None:
    """Ask a search which cells stop, policy by policy, and set their status to `pruned`.

    Args:
        search: The search.
        partition: The partition of the network.
        cells: All cells of the run.
        phases: What trains in each epoch, for each cell.
        progress: The state of each cell.
        select_by: The validation metric that selects.
        epoch: Number of epochs so far; fewer than all.

    Raises:
        InputError: The search stops a cell that is none of its candidates.
    """
    policies: dict[str, dict[str, tuple[Candidate, Progress]]] = {}
    for cell, of_cell, state in zip(cells, phases, progress, strict=True):
        if state.status in ("running", "stopped") and state.best_epoch is not None:
            whole = cell.scope.part == "all"
            flops = mean_flops(partition, of_cell, whole=whole) if state.active else 0
            policies.setdefault(cell.policy, {})[cell.key] = candidate(cell, state, flops, select_by), state
    for own in policies.values():
        for key in search.stop([candidate for candidate, _ in own.values()], epoch, len(phases[0])):
            if key not in own:
                raise InputError(f"the search stops {key!r}, but its candidates are {', '.join(own)}")
            if own[key][1].active:
                own[key][1].status = "pruned"


def candidate(cell: Cell, progress: Progress, flops: int, select_by: str) -> Candidate:
    """Return what a search sees of a cell."""
    assert progress.best_epoch is not None
    kept = {name: values.cpu().numpy() for name, values in progress.predictions["val"].items()}
    return Candidate(
        key=cell.key,
        scope=cell.scope.name,
        policy=cell.policy,
        lr=cell.lr,
        flops=flops,
        history=progress.history,
        best_epoch=progress.best_epoch,
        select_by=select_by,
        correct=kept["label"] == kept["predicted"],
        log_likelihood=kept["log_likelihood"],
    )
