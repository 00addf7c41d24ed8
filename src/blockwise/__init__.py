"""Which part of a pretrained network should I fine-tune?

Block-wise fine-tuning (Barakat & Huang, 2023): train one block of a frozen backbone and a new head, and find out
which block serves best, beside two baselines: head only, and everything.
"""

__version__ = "0.1.0"

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

__all__ = [
    "BlockwiseDataModule",
    "fine_tuned",
    "load_backbone",
    "make_partition",
    "plot_accuracy_by_block",
    "read_records",
    "run_study",
    "train_scopes",
]


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is: `blockwise table` need not wait for torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from blockwise import api, data

    return getattr(data if name in data.__all__ else api, name)
