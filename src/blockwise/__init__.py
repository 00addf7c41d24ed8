"""Which part of a pretrained network should I fine-tune?

Block-wise fine-tuning (Barakat & Huang, 2023) trains one block of a frozen backbone together with a new head. It finds
the block with the best accuracy and compares it with two baselines: head only, and full fine-tuning.
"""

__version__ = "0.1.0"

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from blockwise.api import (
        fine_tuned,
        load_backbone,
        make_partition,
        plot_accuracy_by_block,
        read_records,
        run_study,
        train_scopes,
    )
    from blockwise.data import BlockwiseDataModule
    from blockwise.exports.use.evaluate import evaluate
    from blockwise.exports.use.predict import predict
    from blockwise.exports.write import export
    from blockwise.results import Record
    from blockwise.study.study import Study

__all__ = [
    "BlockwiseDataModule",
    "Record",
    "Study",
    "evaluate",
    "export",
    "fine_tuned",
    "load_backbone",
    "make_partition",
    "plot_accuracy_by_block",
    "predict",
    "read_records",
    "run_study",
    "train_scopes",
]


def __getattr__(name: str) -> Any:
    """Import a public name on first access, so that `blockwise table` need not wait for torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    places = {
        "BlockwiseDataModule": "blockwise.data",
        "Record": "blockwise.results",
        "Study": "blockwise.study.study",
        "evaluate": "blockwise.exports.use.evaluate",
        "export": "blockwise.exports.write",
        "predict": "blockwise.exports.use.predict",
    }
    return getattr(import_module(places.get(name, "blockwise.api")), name)
