"""Show what scores say about the blocks of a model before any training."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files

from rich import box
from rich.console import Console
from rich.table import Table

from blockwise.analysis.sweep_table import print_table
from blockwise.config.checks import check_config
from blockwise.config.compose import compose_config, plain
from blockwise.config.model_names import model_overrides
from blockwise.ranking import check_score, score_names
from blockwise.study.searching import IMAGES
from blockwise.study.study import Study

HEADINGS = {
    "gradient_norm": "gradient norm",
    "gradient_snr": "gradient SNR",
    "fisher": "Fisher",
    "saliency": "saliency",
    "probe": "probe",
    "first_loss": "first loss",
}


@dataclass(frozen=True)
class Ranking:
    """Scores of the single blocks of a model.

    Attributes:
        title: Model and data.
        scores: The scores of each block, by the name of the score and the block; higher is better.
    """

    title: str
    scores: Mapping[str, Mapping[str, float]]


def rank_model(model: str, overrides: Sequence[str], names: Sequence[str], console: Console) -> Ranking:
    """Compute scores of the single blocks of a model; nothing is recorded.

    Args:
        model: A model name, as `blockwise inspect` takes it.
        overrides: Settings as on the command line, such as `data=caltech101`.
        names: Names of scores; empty for all.
        console: Console for messages to the user.

    Raises:
        InputError: The model or a score is unknown, or a setting does not fit.
    """
    for name in names:
        check_score(name)
    with tempfile.TemporaryDirectory() as folder:
        cfg = compose_config([*model_overrides(model), *overrides, "block=all", f"results_dir={folder}"])
        check_config(plain(cfg))
        study = Study.from_config(cfg, console)
        # a linear probe needs the activations between blocks
        known = [name for name in score_names() if name != "probe" or not study.staged.whole]
        return Ranking(study.title, study.rankings(names or known))


def print_ranking(found: Ranking, console: Console, *, as_json: bool) -> None:
    """Print a ranking: the values of each score, and the place of each block by it."""
    if as_json:
        print(json.dumps({"title": found.title, "scores": found.scores}, indent=2))
        return
    table = Table(
        title=found.title,
        caption=f"Place of each block by each score, 1 for the first, from up to {IMAGES} training images (first loss: "
        "from one epoch of training). A place is a guess: it may be wrong.",
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    table.add_column("block", justify="right")
    for name in found.scores:
        table.add_column(HEADINGS.get(name, name), justify="right")
    places = {name: _places(scores) for name, scores in found.scores.items()}
    for block in next(iter(found.scores.values())):
        table.add_row(block, *(f"{scores[block]:.3g} [{places[n][block]}]" for n, scores in found.scores.items()))
    agreement = json.loads((files("blockwise.ranking") / "agreement.json").read_text())
    if known := [name for name in found.scores if name in agreement["tau"]]:
        table.add_section()
        for place, label in enumerate(("mean τ", "lowest", "highest")):
            taus = (agreement["tau"][name][place] if name in known else None for name in found.scores)
            table.add_row(label, *("" if tau is None else f"{tau:+.2f}" for tau in taus))
        table.caption = (
            f"{table.caption}\nτ: Kendall's rank correlation with the test accuracy after training in "
            f"{agreement['sweeps']} sweeps of experiments/evidence"
        )
    print_table(console, table)


def _places(scores: Mapping[str, float]) -> dict[str, int]:
    """Return the place of each block, 1 for the highest score; of equals, the one nearest to the head is first."""
    order = sorted(scores, key=lambda block: (scores[block], int(block)), reverse=True)
    return {block: place for place, block in enumerate(order, 1)}
