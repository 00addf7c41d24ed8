"""Run one contender of the benchmark: train a sweep or one cell, and print the measurements as a line of JSON.

    python experiments/speed/contender.py plain model=resnet50 ...

Contenders are `plain` and `tuned` (see peers.py), `ours`, `ours-fp32`, `search` (ours with `search=halving`), `full`
(ours, only the cell `full`) and `floor` (the parts of one training step, each timed alone). Further arguments are
overrides of the config, the same for all.
"""

from __future__ import annotations

import copy
import gc
import json
import logging
import resource
import sys
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from io import StringIO
from statistics import median
from time import perf_counter
from typing import Any

BEGIN = perf_counter()
gc.disable()  # the command line does this during imports; for a fair comparison, do it for the peers too

import lightning as L  # noqa: E402 (imports are part of what a user waits for)
import torch  # noqa: E402
from omegaconf import DictConfig  # noqa: E402
from rich.console import Console  # noqa: E402

import blockwise.study.runs  # noqa: E402
from blockwise.backbone.load import load_backbone  # noqa: E402
from blockwise.config.compose import compose_config  # noqa: E402
from blockwise.fast.memory import keep_freed_memory  # noqa: E402
from blockwise.study.study import Study  # noqa: E402
from blockwise.training.module import BlockwiseModule  # noqa: E402
from blockwise.training.scopes import Scope  # noqa: E402
from peers import FineTuning, loaders  # noqa: E402
from step import Step  # noqa: E402

gc.freeze()
gc.enable()

Figures = dict[str, float]


def main() -> None:
    """Run the contender named on the command line."""
    contender, *overrides = sys.argv[1:]
    overrides.insert(0, "optimizer.lr=0.001")  # one rate per scope, as the peers train
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore")
    run = {"plain": plain, "tuned": tuned, "floor": floor}.get(contender, ours)
    if contender == "ours-fp32":
        overrides.append("trainer.precision=32-true")
    if contender == "search":
        overrides.append("search=halving")
    if contender == "full":
        overrides.append("block=full")
    with tempfile.TemporaryDirectory() as folder:
        cfg = compose_config([*overrides, f"results_dir={folder}"])
        since = perf_counter()
        study = Study.from_config(cfg, Console(file=StringIO()))
        # the peers use its splits and blocks, but do not pay for cutting the network into stages
        free = perf_counter() - since if contender in ("plain", "tuned") else 0.0
        figures = run(study, cfg)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"seconds": perf_counter() - BEGIN - free, "peak_memory_bytes": peak, **figures}))


def plain(study: Study, cfg: DictConfig) -> Figures:
    """Run one fit per cell with default options."""
    return _fits(study, cfg, decoded=False)


def tuned(study: Study, cfg: DictConfig) -> Figures:
    """Run one fit per cell with the options that are known to be fast."""
    return _fits(study, cfg, decoded=True, precision="bf16-mixed")


def _fits(study: Study, cfg: DictConfig, *, decoded: bool, **options: Any) -> Figures:
    backbone = load_backbone(cfg.model, image_size=cfg.data.image_size, seed=cfg.seed)
    data = study.data.module
    batches = loaders(data.splits, data.images, data.batch_size, decoded=decoded)
    for scope in study.scopes:
        L.seed_everything(cfg.seed, verbose=False)
        module = FineTuning(
            copy.deepcopy(backbone.network),
            _trained(study, scope),
            num_features=study.staged.num_features,
            num_classes=len(study.data.classes),
            lr=cfg.optimizer.lr,
            weight_decay=cfg.optimizer.weight_decay,
            fused=decoded,
        )
        if decoded:
            module.to(memory_format=torch.channels_last)
        trainer = L.Trainer(
            accelerator="cpu",
            max_epochs=cfg.trainer.max_epochs,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            **options,
        )
        trainer.fit(module, batches["train"], batches["val"])
        trainer.test(module, batches["test"], verbose=False)
    return {}


def _trained(study: Study, scope: Scope) -> list[str]:
    modules = {name for name, _ in study.backbone.network.named_modules()}
    partition = study.staged.partition
    layers = [layer.name for block in scope.blocks for layer in partition.layers_of(block)]
    return [name for name in layers if name in modules]


class TimedModule(BlockwiseModule):
    """Measures the time of training, without validation and start-up."""

    training_seconds = 0.0
    steps = 0

    def on_train_epoch_start(self) -> None:
        """Start the timer."""
        self.since = perf_counter()

    def on_train_batch_end(self, *_: Any) -> None:
        """Count the step."""
        TimedModule.steps += 1

    def on_validation_epoch_start(self) -> None:
        """Stop the timer: validation follows the last step of each epoch."""
        TimedModule.training_seconds += perf_counter() - self.since


def ours(study: Study, _cfg: DictConfig) -> Figures:
    """Train all cells side by side, as `train.py` does."""
    keep_freed_memory()
    blockwise.study.runs.BlockwiseModule = TimedModule  # type: ignore[misc]
    study.train()
    return {"training_seconds": TimedModule.training_seconds, "steps": TimedModule.steps}


def floor(study: Study, _cfg: DictConfig) -> Figures:
    """Time the parts of a step separately: the frozen stages, and each cell's forward, backward and optimizer step."""
    step = Step(study)
    parts = {"frozen stages": _time(step.frozen)}
    for index, name in enumerate(step.names):
        parts[name] = _time(partial(step.cell, index))
    return {"floor_step_seconds": sum(parts.values()), **{f"floor of {name}": t for name, t in parts.items()}}


def _time(action: Callable[[], None], repetitions: int = 5) -> float:
    action()
    times = []
    for _ in range(repetitions):
        since = perf_counter()
        action()
        times.append(perf_counter() - since)
    return median(times)


if __name__ == "__main__":
    main()
