"""Which networks can be inspected, cut and trained side by side? One network per model module of timm, and torchvision.

python experiments/coverage/measure.py              # a quarter of an hour on two cores, no download
python experiments/coverage/measure.py resnet18 torchvision:swin_t      # some networks, printed
python experiments/coverage/measure.py --inspect    # blocks of every architecture of timm
python experiments/coverage/measure.py --summary    # counts of what is in results/
"""

from __future__ import annotations

import contextlib
import copy
import csv
import io
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any

import timm
import torch
from timm.models import _registry as registry
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from blockwise import load_backbone, make_partition, train_scopes
from blockwise.backbone.load import Backbone
from blockwise.backbone.partition import Partition
from blockwise.backbone.stages import CannotStageError, StagedBackbone, stage_backbone
from blockwise.training.cells import CellNetwork
from blockwise.training.scopes import parse_scopes

HERE = Path(__file__).parent
TORCHVISION = (
    "alexnet convnext_tiny densenet121 efficientnet_b0 efficientnet_v2_s googlenet inception_v3 maxvit_t mnasnet0_5 "
    "mobilenet_v2 mobilenet_v3_large mobilenet_v3_small regnet_x_400mf regnet_y_400mf resnet18 resnet50 "
    "resnext50_32x4d shufflenet_v2_x0_5 squeezenet1_1 swin_t swin_v2_t vgg11 vgg11_bn vit_b_16 wide_resnet50_2"
).split()
FIELDS = (
    "module name parameters pixels inspect partition blocks stages train gradients_float32 gradients_float64 seconds "
    "why"
).split()
PARTITION = "auto"
PROCESSES = 2
# networks that exist in one size alone, which fills the memory
SMALLER: dict[str, dict[str, Any]] = {"timm:deepseek_vit_412m": {"image_size": 126, "options": {"depth": 4}}}
# largest error of gradients, relative to the largest gradient
TOLERANCE = 1e-3
# side of the images, where a network takes it
PIXELS = 128


def main() -> None:
    """Examine the networks named on the command line, or all, and write a table."""
    torch.set_num_threads(1)
    arguments = sys.argv[1:]
    if arguments == ["--inspect"]:
        rows = write("inspect.csv", in_processes(inspect, timm.list_models()), ("name", "partition", "blocks", "why"))
        print(f"{sum(row['blocks'] > 0 for row in rows)} of {len(rows)} architectures can be inspected")
        return
    if arguments == ["--summary"]:
        print(summary())
        return
    if arguments:
        for row in in_processes(examine, arguments):
            print(row)
        return
    names = [*smallest().values(), *(f"torchvision:{name}" for name in TORCHVISION)]
    write("networks.csv", in_processes(examine, names), FIELDS)


def in_processes(work: Callable[[str], dict[str, Any]], names: Iterable[str]) -> Iterable[dict[str, Any]]:
    """Yield the rows of networks as two processes finish them; a process that dies costs only its network."""
    waiting: SimpleQueue[str | None] = SimpleQueue()
    rows: SimpleQueue[dict[str, Any]] = SimpleQueue()
    names = list(names)
    for name in [*names, *[None] * PROCESSES]:
        waiting.put(name)
    for _ in range(PROCESSES):
        Thread(target=_work_on, args=(work, waiting, rows), daemon=True).start()
    for _ in names:
        yield rows.get()


def _work_on(work: Callable[[str], dict[str, Any]], waiting: SimpleQueue[str | None], rows: SimpleQueue[Any]) -> None:
    pool = None
    while (name := waiting.get()) is not None:
        pool = pool or ProcessPoolExecutor(1, get_context("fork"), torch.set_num_threads, (1,))
        try:
            rows.put(pool.submit(work, name).result())
        except BrokenProcessPool:
            pool = None
            rows.put(dict.fromkeys(FIELDS, "") | {"name": name, "blocks": 0, "why": "the process died"})


def write(name: str, rows: Iterable[dict[str, Any]], fields: Iterable[str]) -> list[dict[str, Any]]:
    """Write rows to a file in results/, which grows as they come and is sorted in the end."""
    written: list[dict[str, Any]] = []
    for row in rows:
        written = sorted([*written, row], key=lambda row: row["name"])
        with (HERE / "results" / name).open("w", newline="") as file:
            writer = csv.DictWriter(file, list(fields), lineterminator="\n", extrasaction="ignore")
            writer.writeheader()
            writer.writerows(written)
    return written


def summary() -> str:
    """Return a Markdown table with the number of networks for which each part works."""
    with (HERE / "results" / "networks.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    of_torchvision = [row for row in rows if row["module"] == "torchvision"]
    of_timm = [row for row in rows if row["module"] != "torchvision"]
    works: dict[str, Callable[[dict[str, str]], bool]] = {
        "inspect": lambda row: row["inspect"] == "yes",
        "stages": lambda row: row["stages"] == "yes",
        "gradients": lambda row: float(row["gradients_float64"] or row["gradients_float32"] or "inf") < TOLERANCE,
        "train": lambda row: row["train"] == "yes",
    }
    lines = [f"| | timm, {len(of_timm)} modules | torchvision, {len(of_torchvision)} networks |", "| --- | --- | --- |"]
    for name, test in works.items():
        lines.append(f"| {name} | {sum(map(test, of_timm))} | {sum(map(test, of_torchvision))} |")
    return "\n".join(lines)


def smallest() -> dict[str, str]:
    """Return the architecture with the fewest parameters of each model module of timm."""
    best: dict[str, tuple[int, str]] = {}
    for name in timm.list_models():
        try:
            with torch.device("meta"):
                size = sum(p.numel() for p in timm.create_model(name).parameters())
        except Exception:  # some cannot be made on this device; their module has others
            continue
        module = registry._model_to_module[name]
        best[module] = min(best.get(module, (size, name)), (size, name))
    return {module: name for module, (_, name) in sorted(best.items())}


def inspect(name: str) -> dict[str, Any]:
    """Return the number of blocks of a network of random weights."""
    from blockwise.inspection import inspect_model

    try:
        found = inspect_model(f"timm:{name}", [f"partition={PARTITION}"])
    except Exception as error:
        return {"name": name, "partition": "", "blocks": 0, "why": f"{type(error).__name__}: {error}"}
    return {"name": name, "partition": found["partition"], "blocks": found["num_blocks"], "why": ""}


def examine(name: str) -> dict[str, Any]:
    """Return what works with a network of random weights."""
    start = time.perf_counter()
    row: dict[str, Any] = dict.fromkeys(FIELDS, "")
    row |= {"name": name, "module": registry._model_to_module.get(name, "torchvision")}
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            _examine(name if ":" in name else f"timm:{name}", row)
        except Exception as error:
            row["why"] = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
    row["seconds"] = round(time.perf_counter() - start, 1)
    return row


def _examine(name: str, row: dict[str, Any]) -> None:
    backbone, partition = load(name)
    liven(backbone.network)
    row["parameters"] = sum(p.numel() for p in backbone.network.parameters())
    row["pixels"] = size = backbone.images.size
    row |= {"inspect": "yes", "partition": partition.name, "blocks": len(partition)}
    plain = copy.deepcopy(backbone.network)
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    try:
        staged = stage_backbone(copy.deepcopy(backbone.network), partition, images)
    except CannotStageError as error:
        row["stages"] = f"no: {str(error).splitlines()[0]}"
    else:
        row["stages"] = "yes"
        row["gradients_float32"] = error_of_gradients(plain, staged, partition, images)
        if row["gradients_float32"] > TOLERANCE:
            plain, backbone64 = plain.double(), copy.deepcopy(backbone.network).double()
            staged = stage_backbone(backbone64, partition, images.double())
            row["gradients_float64"] = error_of_gradients(plain, staged, partition, images.double())
    row["train"] = train(backbone, partition)


def load(name: str) -> tuple[Backbone, Partition]:
    """Return a network of random weights and its partition, for small images if it takes these."""
    if smaller := SMALLER.get(name):
        backbone = load_backbone(name, pretrained=False, **smaller)
        return backbone, make_partition(backbone, PARTITION)
    try:
        backbone = load_backbone(name, pretrained=False, image_size=PIXELS)
        return backbone, make_partition(backbone, PARTITION)
    except Exception:  # it is made for one size, or has too few positions left
        backbone = load_backbone(name, pretrained=False)
        return backbone, make_partition(backbone, PARTITION)


def liven(network: nn.Module) -> None:
    """Give every parameter and running statistic a random value, so that no branch is zero or the identity."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.ndim <= 1 or not parameter.any() or parameter.abs().max() <= 1e-4:
                noise = torch.rand(parameter.shape, generator=generator)
                parameter.copy_(0.2 * (noise - 0.5) if name.endswith("bias") else 0.5 + noise)
        for name, buffer in network.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                noise = torch.rand(buffer.shape, generator=generator)
                buffer.copy_(0.5 + noise if name.endswith("var") else noise - 0.5)


def error_of_gradients(plain: nn.Module, staged: StagedBackbone, partition: Partition, images: Tensor) -> float:
    """Return the largest relative error of the gradients of the first, a middle and the last block."""
    worst = 0.0
    labels = torch.tensor([0, 1])
    features = plain.requires_grad_()(images)
    features = features.mean((2, 3)) if features.ndim == 4 else features
    for block in sorted({0, len(partition) // 2, len(partition) - 1}):
        (scope,) = parse_scopes(block, len(partition), "the network")
        cell = CellNetwork(staged, scope, 3).eval()
        names = {name for layer in partition.layers_of(block) for name in layer.parameters}
        parameters = {name: parameter for name, parameter in plain.named_parameters() if name in names}
        loss = cross_entropy(cell.head(features.float()), labels)
        gradients = torch.autograd.grad(loss, tuple(parameters.values()), retain_graph=True, allow_unused=True)
        expected = {n: gradient for n, gradient in zip(parameters, gradients, strict=True) if gradient is not None}
        _, activations = next(iter(staged.boundaries(images, {cell.start})))
        cross_entropy(cell(staged, activations), labels).backward()
        actual = {n: p.grad for module in cell.own.values() for n, p in module.named_parameters()}
        norm = max(float(gradient.norm()) for gradient in expected.values())
        errors = [float((actual[name] - gradient).norm()) for name, gradient in expected.items()]
        worst = max(worst, max(errors) / max(norm, 1e-30))
    return worst


def train(backbone: Backbone, partition: Partition) -> str:
    """Train the head and three blocks side by side for one step; return `yes` or why not."""
    size = backbone.images.size
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    loader = DataLoader(TensorDataset(images, torch.arange(2)), batch_size=2)
    scopes = ["head", *sorted({0, len(partition) // 2, len(partition) - 1})]
    with tempfile.TemporaryDirectory() as folder:
        records = train_scopes(
            backbone,
            partition,
            scopes,
            {"train": loader, "val": loader, "test": loader},
            classes=["a", "b"],
            lr=1e-5,
            max_epochs=1,
            results_dir=folder,
            accelerator="cpu",
            quiet=True,
        )
    failed = [record.cell.scope for record in records if record.status != "finished"]
    return f"no: {', '.join(failed)} diverged" if failed else "yes"


if __name__ == "__main__":
    main()
