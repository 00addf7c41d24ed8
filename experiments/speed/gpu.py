"""Time a sweep on one GPU against plain and tuned training, one network and one batch size after another.

    python experiments/speed/gpu.py --out gpu-figures                        # minutes
    python experiments/speed/gpu.py --networks resnet50 --batches 32 --parts ours-4 tuned

Contenders train the same 14 cells (12 blocks, `head`, `full`) on the same images:

- `plain`: one Lightning fit per cell in float32; eight workers decode JPEG files. Six of the cells are timed, and what
  the other blocks take is interpolated.
- `tuned`: one loop per cell: bfloat16, channels last, images and their crops on the GPU, a fused optimizer, and the
  whole step as one CUDA graph. `compiled` is the same with `torch.compile`, for six of the cells.
- `ours-4`: `python train.py trainer=gpu` with 4 cells at once, and so on. `eager` is the same without CUDA graphs,
  and `full` trains the cell `full` alone.

A time is that of one training step of all cells, in an epoch after the first. Photographs are replaced by noise, and
weights are random; neither changes the time of a step.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import logging
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any, ClassVar

import lightning as L
import numpy as np
import torch
from omegaconf import DictConfig
from PIL import Image
from rich.console import Console
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

sys.path.insert(0, str(Path(__file__).parent))

import blockwise.study.runs as runs
from blockwise.backbone.load import load_backbone
from blockwise.config.compose import compose_config
from blockwise.data.augment import gather_pixels
from blockwise.data.datamodule import normalise
from blockwise.study.study import Study
from peers import FineTuning, loaders

Figures = dict[str, Any]
STEPS = 20
CLASSES = 20
# of the slow contenders, only these cells are timed
SOME = ("head", "0", "3", "7", "11", "full")


def main() -> None:
    """Time the contenders and write the figures, after each of them."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--networks", nargs="+", default=["efficientnet_lite0", "resnet50"])
    parser.add_argument("--batches", nargs="+", type=int, default=[32, 128])
    parser.add_argument("--size", type=int, default=160)
    parser.add_argument("--parts", nargs="+", default=["ours-4", "full", "tuned", "plain"])
    parser.add_argument("--out", type=Path, default=Path("gpu-figures"))
    parser.add_argument("overrides", nargs="*", help="further settings, such as block=[head,full]")
    options = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore")
    options.out.mkdir(parents=True, exist_ok=True)
    rows: list[Figures] = []
    with tempfile.TemporaryDirectory() as folder:
        write_photographs(Path(folder) / "photographs", max(options.batches))
        for network in options.networks:
            for batch in options.batches:
                settings = {"network": network, "batch": batch, "size": options.size}
                study = partial(make_study, Path(folder), **settings, overrides=options.overrides)
                for part in options.parts:
                    row = {**settings, "part": part, **measured(part, study)}
                    rows.append(row)
                    print(json.dumps(row), flush=True)
                    figures = {"device": device_name(), "torch": torch.__version__, "rows": rows}
                    (options.out / "gpu.json").write_text(json.dumps(figures, indent=1) + "\n")
    print(table(rows))


def measured(part: str, study: Callable[..., Any]) -> Figures:
    """Return the figures of one contender; an error is a figure too, so that the others still run."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    kind, _, number = part.partition("-")
    contenders = {"tuned": tuned, "compiled": partial(tuned, compiled=True), "plain": plain}
    more = {"eager": ["gpu.cells_at_once=0"], "full": ["block=full"], "ours": [f"gpu.cells_at_once={number}"]}
    since = time.perf_counter()
    try:
        figures = contenders.get(kind, ours)(*study(*more.get(kind, [])))
    except Exception as error:
        figures = {"error": f"{type(error).__name__}: {str(error)[:300]}"}
    if torch.cuda.is_available():
        figures["reserved_mb"] = torch.cuda.max_memory_reserved() // 10**6
        figures["allocated_mb"] = torch.cuda.max_memory_allocated() // 10**6
    return {**figures, "seconds": round(time.perf_counter() - since, 2)}


def device_name() -> str:
    """Return the name of the GPU."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def write_photographs(folder: Path, batch: int) -> None:
    """Write JPEG files of smooth noise, of the size of Caltech-101's photographs."""
    rng = np.random.default_rng(0)
    per_class = -(-STEPS * batch * 10 // 8 // CLASSES)
    for label in range(CLASSES):
        (folder / f"{label:02}").mkdir(parents=True)
        for number in range(per_class):
            small = Image.fromarray(rng.integers(0, 256, (12, 15, 3), np.uint8))
            small.resize((300, 240)).save(folder / f"{label:02}" / f"{number}.jpg", quality=90)


def make_study(
    folder: Path, *more: str, network: str, batch: int, size: int, overrides: list[str]
) -> tuple[Any, DictConfig]:
    """Return a study of 14 cells and its config; an epoch has `STEPS` batches."""
    on_gpu = torch.cuda.is_available()
    model = [f"model={network}"] if "/" not in network else ["model=timm", f"model.name={network.partition('/')[2]}"]
    cfg = compose_config(
        [
            *model,
            "model.pretrained=false",
            "data=imagefolder",
            f"data.root={folder / 'photographs'}",
            f"data.image_size={size}",
            f"data.batch_size={batch}",
            f"data.train_per_class={STEPS * batch // CLASSES}",
            "partition=even",
            "partition.num_blocks=12",
            "block=all",
            "optimizer.lr=0.001",
            "trainer=gpu" if on_gpu else "trainer=cpu",
            "trainer.max_epochs=3",
            f"results_dir={tempfile.mkdtemp(dir=folder)}",
            f"cache.folder={folder / 'cache'}",
            *overrides,
            *more,
        ]
    )
    return Study.from_config(cfg, Console(file=StringIO())), cfg


class Timed(runs.BlockwiseModule):  # type: ignore[name-defined]
    """Times epochs of training and of validation, and profiles some steps of the last one."""

    train_seconds: ClassVar[list[float]] = []
    val_seconds: ClassVar[list[float]] = []
    kernels: ClassVar[Figures] = {}
    told: ClassVar[list[str]] = []

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{**options, "tell": Timed.told.append})
        self._profile: Any = None

    def on_train_epoch_start(self) -> None:
        self.since = now()

    def on_validation_epoch_start(self) -> None:
        Timed.train_seconds.append(now() - self.since)
        self.since = now()

    def on_validation_epoch_end(self) -> None:
        Timed.val_seconds.append(now() - self.since)
        super().on_validation_epoch_end()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if self.current_epoch == self.trainer.max_epochs - 1 and batch_idx == 5 and torch.cuda.is_available():
            now()
            self._profile = profile(activities=[ProfilerActivity.CUDA])
            self._profile.start()

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self._profile is not None and batch_idx == 9:
            now()
            self._profile.stop()
            Timed.kernels = summary(self._profile, steps=5)
            self._profile = None


def now() -> float:
    """Wait for the GPU and return the time in seconds."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def summary(profiled: Any, steps: int) -> Figures:
    """Return the sum of all kernels per step, the time in which one runs at least, and the share of that time."""
    spans = sorted(
        (event.time_range.start, event.time_range.end, event.name)
        for event in profiled.events()
        if event.device_type == torch.autograd.DeviceType.CUDA
    )
    if not spans:
        return {}
    busy, end = 0.0, spans[0][0]
    for start, stop, _ in spans:
        busy += max(0.0, stop - max(start, end))
        end = max(end, stop)
    by_name: dict[str, float] = {}
    for start, stop, name in spans:
        by_name[short(name)] = by_name.get(short(name), 0.0) + (stop - start) / steps / 1e3
    most = sorted(by_name.items(), key=lambda item: -item[1])[:12]
    return {
        "kernels_per_step": len(spans) // steps,
        "kernel_ms": round(sum(stop - start for start, stop, _ in spans) / steps / 1e3, 3),
        "busy_share": round(busy / (end - spans[0][0]), 3),
        "most": {name: round(ms, 3) for name, ms in most},
    }


def short(name: str) -> str:
    """Return the name of a kernel without its namespaces and arguments, but with the operation that it applies."""
    for noise in (
        "void ",
        "at::native::",
        "(anonymous namespace)::",
        "c10::",
        "std::",
        "unsigned ",
        "cutlass__5x_cudnn::",
    ):
        name = name.replace(noise, "")
    return name[:110]


def ours(study: Any, _cfg: DictConfig) -> Figures:
    """Train all cells side by side, as `train.py` does."""
    Timed.train_seconds, Timed.val_seconds, Timed.kernels, Timed.told = [], [], {}, []
    original = runs.BlockwiseModule
    runs.BlockwiseModule = Timed  # type: ignore[misc]
    try:
        study.train()
    finally:
        runs.BlockwiseModule = original  # type: ignore[misc]
    batches = study.data.batches()
    return {
        "step_ms": round(1e3 * Timed.train_seconds[1] / batches["train"], 3),
        "first_epoch_s": round(Timed.train_seconds[0], 2),
        "val_ms": round(1e3 * Timed.val_seconds[1] / batches["val"], 3),
        **Timed.kernels,
        "told": Timed.told,
    }


def plain(study: Any, cfg: DictConfig) -> Figures:
    """Run one Lightning fit per cell with default options."""
    data = study.data.module
    network = load_backbone(cfg.model, image_size=cfg.data.image_size, seed=0).network
    batches = loaders(data.splits, data.images, data.batch_size, decoded=False, workers=8)
    cells = {}
    for scope in [scope for scope in study.scopes if scope.name in SOME]:
        module = TimedFit(*peer(study, cfg, scope, copy.deepcopy(network)), fused=False)
        trainer = L.Trainer(
            accelerator="auto", max_epochs=2, logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, num_sanity_val_steps=0, limit_val_batches=0,
        )  # fmt: skip
        trainer.fit(module, batches["train"])
        cells[scope.name] = round(1e3 * module.seconds[-1] / len(batches["train"]), 3)
    return {"step_ms": of_all(cells, [scope.name for scope in study.scopes]), "cells": cells}


def of_all(some: dict[str, float], names: list[str]) -> float:
    """Return the time of all cells, given some: blocks between two that were timed take what lies between."""
    blocks = sorted((int(name), ms) for name, ms in some.items() if name.isdigit())
    between = np.interp([int(name) for name in names if name.isdigit()], *zip(*blocks, strict=True)) if blocks else []
    return round(float(np.sum(between)) + sum(ms for name, ms in some.items() if not name.isdigit()), 3)


class TimedFit(FineTuning):
    """Times epochs."""

    def on_train_epoch_start(self) -> None:
        self.since = now()

    def on_train_epoch_end(self) -> None:
        self.seconds = [*getattr(self, "seconds", []), now() - self.since]


def peer(study: Any, cfg: DictConfig, scope: Any, network: nn.Module) -> tuple[Any, ...]:
    """Return the arguments of a peer's module."""
    modules = {name for name, _ in network.named_modules()}
    layers = [layer.name for block in scope.blocks for layer in study.staged.partition.layers_of(block)]
    trained = [name for name in layers if name in modules]
    return network, trained, study.staged.num_features, CLASSES, cfg.optimizer.lr, cfg.optimizer.weight_decay


def tuned(study: Any, cfg: DictConfig, *, compiled: bool = False) -> Figures:
    """Train one cell after another, each step as one CUDA graph over images that are on the GPU."""
    data = study.data.module
    data.decode()
    images = data._decoded["train"]
    at = [
        torch.from_numpy(np.asarray(images.pixels[list(range(i, min(i + 256, len(images))))]))
        for i in range(0, len(images), 256)
    ]
    pixels, labels = torch.cat(at).cuda(), torch.from_numpy(images.labels).cuda()
    network = load_backbone(cfg.model, image_size=cfg.data.image_size, seed=0).network
    cells = {}
    for scope in study.scopes:
        if compiled and scope.name not in SOME:
            continue
        torch._dynamo.reset()
        module = FineTuning(*peer(study, cfg, scope, copy.deepcopy(network)), fused=True)
        module = module.cuda().to(memory_format=torch.channels_last).train()
        cells[scope.name] = round(
            1e3 * graphed_step(module, partial(batch_of, pixels, labels, data), compiled=compiled), 3
        )
        del module
        gc.collect()
    return {"step_ms": of_all(cells, [scope.name for scope in study.scopes]), "cells": cells}


def batch_of(pixels: Tensor, labels: Tensor, data: Any, step: int) -> tuple[Tensor, Tensor]:
    """Return a batch of crops, cut on the GPU."""
    batch, size = data.batch_size, data.images.size
    places = torch.arange(step * batch, (step + 1) * batch, device=pixels.device) % len(pixels)
    room = pixels.shape[-1] - size
    draws = [(step % (room + 1), step % (room + 1), bool(step % 2))] * batch
    return normalise(gather_pixels(pixels, size, draws, places), data.images), labels[places]


def graphed_step(module: FineTuning, batch: Callable[[int], tuple[Tensor, Tensor]], *, compiled: bool) -> float:
    """Return the seconds of a step: the copy of a batch, and the replay of a graph of everything else."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, **{**module.options, "fused": True}, capturable=True)
    forward = torch.compile(module.forward) if compiled else module.forward
    images, labels = (tensor.clone() for tensor in batch(0))
    hits = torch.zeros((), device="cuda")

    def step() -> None:
        with torch.autocast("cuda", torch.bfloat16, cache_enabled=False):
            logits = forward(images)
            loss = nn.functional.cross_entropy(logits, labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        hits.add_((logits.detach().argmax(1) == labels).sum())

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    times = []
    for _ in range(2):
        since = now()
        for number in range(STEPS):
            for place, value in zip((images, labels), batch(number), strict=True):
                place.copy_(value)
            graph.replay()
        times.append((now() - since) / STEPS)
    return times[-1]


def table(rows: list[Figures]) -> str:
    """Return the figures as text, one line per contender."""
    keys = (
        "network",
        "batch",
        "part",
        "step_ms",
        "val_ms",
        "kernel_ms",
        "busy_share",
        "reserved_mb",
        "seconds",
        "error",
    )
    return "\n".join("  ".join(f"{key}={row[key]}" for key in keys if key in row) for row in rows)


if __name__ == "__main__":
    main()
