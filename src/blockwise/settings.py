"""Config -> every setting that changes a cell's result: what its hash covers, and its record shows."""

from __future__ import annotations

from typing import Any

from blockwise.backbones import Backbone
from blockwise.data import BlockwiseDataModule

DATA = ("name", "train_per_class", "val_per_class", "test_per_class", "batch_size", "augment", "skip_broken")
# what a trainer may be told without changing what comes out
NO_EFFECT = frozenset(
    "_target_ accelerator devices num_nodes strategy use_distributed_sampler logger callbacks default_root_dir "
    "enable_checkpointing enable_progress_bar enable_model_summary num_sanity_val_steps log_every_n_steps "
    "profiler".split()
)


def common_settings(
    cfg: dict[str, Any], backbone: Backbone, data: BlockwiseDataModule, partition: str
) -> dict[str, Any]:
    """Return the settings that all cells of a run share; scope, blocks and learning rate are added for each cell.

    Left out is what changes nothing: number of workers, logger, device, where data lie, which cells run beside.
    """
    model, images = cfg["model"], data.images
    return {
        "model": {
            "name": backbone.name,
            "source": model["source"],
            "architecture": model["architecture"] or model["name"],
            "weights": backbone.weights,
        },
        "data": {
            **{key: cfg["data"][key] for key in DATA},
            "fingerprint": data.splits.fingerprint,
            "image_size": images.size,
            "mean": list(images.mean),
            "std": list(images.std),
            "interpolation": images.interpolation,
            "crop_pct": images.crop_pct,
        },
        "partition": {"name": partition, **_without(cfg["partition"], {"_target_"})},
        "optimizer": {
            "name": cfg["optimizer"]["_target_"],
            **_without(cfg["optimizer"], {"_target_", "_partial_", "lr"}),
        },
        "freeze": cfg["freeze"],
        "early_stopping": cfg["early_stopping"],
        "trainer": _without(cfg["trainer"], NO_EFFECT),
        "seed": cfg["seed"],
    }


def _without(settings: dict[str, Any], keys: set[str] | frozenset[str]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key not in keys}
