"""Choose the record to export."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # pandas is optional
    import pandas as pd

from blockwise.analysis.summary import Sweep, best_seed, sweeps
from blockwise.errors import InputError, did_you_mean
from blockwise.results.record import Record
from blockwise.results.store import read_record
from blockwise.training.scopes import parse_scopes

BEST = "best"


def choose(
    records: Sequence[Record],
    *,
    model: str | None = None,
    data: str | None = None,
    scope: str = BEST,
    policy: str | None = None,
    seed: int | None = None,
) -> Record:
    """Return the record of a scope at its best learning rate by validation, of the best seed by validation.

    Args:
        records: All records.
        model: Name of the backbone; may be left out if there is one only.
        data: Name of the data set; likewise.
        scope: A scope, or `best`: the best single block.
        policy: Name of the policy; may be left out if there is one only.
        seed: The seed; None for the best one by validation.

    Raises:
        InputError: There is no such record, or several sweeps have one.
    """
    if len(records) == 1 and scope == BEST and (model, data, policy, seed) == (None, None, None, None):
        return records[0]  # the folder of a cell
    sweep = choose_sweep(records, model=model, data=data, policy=policy)
    row = sweep.best if scope == BEST else sweep.row(_canonical(scope, sweep))
    if row is None:
        trained = [row.scope for row in sweep.rows if row.records]
        if scope == BEST:
            raise InputError(f"{sweep.title} has no single block that trained to its end: choose a scope with --scope")
        raise InputError(
            f"{sweep.title} has no finished scope {scope}: choose {', '.join(trained)}.{did_you_mean(scope, trained)}"
        )
    of_seed = [record for record in row.records if seed in (None, record.seed)]
    if not of_seed:
        raise InputError(f"{sweep.title}, {row.scope} has no seed {seed}: choose {sorted(row.seeds)}")
    return best_seed(of_seed)


def as_record(given: Record | pd.Series | str | Path) -> Record:
    """Return a record, given itself, its row in a table, or its folder.

    Raises:
        InputError: It is neither, or the folder has no record.
    """
    if isinstance(given, Record):
        return given
    folder = given if isinstance(given, (str, Path)) else getattr(given, "folder", None)
    if not isinstance(folder, (str, Path)):
        raise InputError(f"{type(given).__name__} is not a record: give one, a row of read_records, or a cell's folder")
    try:
        return read_record(Path(folder).expanduser() / "record.json")
    except OSError as error:
        raise InputError(f"{folder} contains no record ({error.strerror})") from error


def _canonical(scope: str, sweep: Sweep) -> str:
    """Return the name that records have for a scope: `3+7` for `7+3`, `11` for `-1`."""
    try:
        (found,) = parse_scopes(scope, sweep.num_blocks, sweep.backbone)
    except (InputError, ValueError):  # none, or several
        return scope
    return found.name


def choose_sweep(
    records: Sequence[Record], *, model: str | None = None, data: str | None = None, policy: str | None = None
) -> Sweep:
    """Return the only sweep of a backbone, a data set and a policy; each may be left out if there is one only.

    Raises:
        InputError: There is none, or there are several.
    """
    found = _only(_only(_only(sweeps(records), "backbone", model), "data", data), "policy", policy)
    if len(found) > 1:
        raise InputError(f"{len(found)} sweeps fit {_how_to_choose(found)}")
    return found[0]


def _how_to_choose(found: Sequence[Sweep]) -> str:
    """Return the titles of sweeps and how to choose one; those with the same title are in the same folder."""
    titles = sorted({sweep.title for sweep in found})
    if len(titles) == len(found):
        return f"({'; '.join(titles)}): give the folder of one, or choose with --model, --data, --policy"
    best = [best_seed(sweep.best.records if sweep.best else sweep.records) for sweep in found]
    folders = ", ".join(str(record.folder) for record in best)
    return f"({'; '.join(titles)}), and their settings differ: give the folder of one cell, such as {folders}"


def _only(found: list[Sweep], what: str, name: str | None) -> list[Sweep]:
    """Return the sweeps with a name; all if none is asked for."""
    if name is None:
        return found
    known = sorted({getattr(sweep, what) for sweep in found})
    if name not in known:
        kind = {"backbone": "model"}.get(what, what)
        raise InputError(f"--{kind} {name} has no records: choose {', '.join(known)}.{did_you_mean(name, known)}")
    return [sweep for sweep in found if getattr(sweep, what) == name]
