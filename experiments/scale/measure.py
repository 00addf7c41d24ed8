"""Measure memory and start-up of runs on many images: `train.py` on 1,000 and on N generated JPEGs, cold and warm.

    python experiments/scale/measure.py --images 100000      # about half an hour and 20 GB of the disk

Each run is a separate process that trains the head for one epoch of at most 300 batches.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import nullcontext
from pathlib import Path

from photographs import generate

HERE = Path(__file__).parent
FEW, CLASSES = 1000, 100
SETTINGS = [
    *("model=timm", "model.name=test_resnet", "model.pretrained=false", "block=head", "partition.num_blocks=3"),
    *("data=imagefolder", "trainer.max_epochs=1", "trainer.accelerator=cpu", "optimizer.lr=[1e-3]"),
    # at most 16,000 images, drawn from all of them
    *("+trainer.limit_train_batches=300", "+trainer.limit_val_batches=100", "+trainer.limit_test_batches=100"),
]
COLUMNS = (
    *("images", "run", "image_size", "seconds_to_first_batch", "images_per_second_decoded", "seconds"),
    *("peak_rss_gb", "peak_anonymous_gb", "peak_of_all_processes_gb"),
)


def main() -> None:
    """Generate the images, measure all runs, and write a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100_000, help="number of images")
    parser.add_argument("--size", type=int, default=224, help="side of the images for the network")
    parser.add_argument("--folder", help="folder for the images, which are kept there; if not given, they are deleted")
    parser.add_argument("--only", nargs="+", default=["cold", "warm", "on demand"], help="which of the runs")
    options = parser.parse_args()
    rows = []
    with nullcontext(options.folder) if options.folder else tempfile.TemporaryDirectory() as folder:
        for count in (FEW, options.images):
            images = Path(folder, str(count))
            generate(images, count, CLASSES)
            shutil.rmtree(images.with_suffix(".cache"), ignore_errors=True)
            for name in options.only:
                rows.append({"images": count, "run": name, **run(images, options.size, name)})
                print(rows[-1], flush=True)
                save(rows, HERE / "results" / f"{options.images}-at-{options.size}.csv")
            shutil.rmtree(images.with_suffix(".cache"))


def run(images: Path, size: int, name: str) -> dict[str, float]:
    """Return the figures of one run in a process of its own."""
    limit = 0.01 if name.startswith("on demand") else 1000
    overrides = [f"data.root={images}", f"data.image_size={size}", f"cache.folder={images.with_suffix('.cache')}"]
    with tempfile.TemporaryDirectory() as results:
        overrides += [f"results_dir={results}", f"cache.max_gb={limit}"]
        out = Path(results, "figures.json")
        command = [sys.executable, __file__, str(out), *SETTINGS, *overrides]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=HERE.parents[1])
        return {"image_size": size, **json.loads(out.read_text())}


def save(rows: list[dict], path: Path) -> None:
    """Write the rows as a CSV file."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for row in rows:
            writer.writerow({key: round(value, 2) if isinstance(value, float) else value for key, value in row.items()})


def observed(out: Path, overrides: list[str]) -> None:
    """Run `train.py` in this process, and write what it took."""
    begin, figures = time.monotonic(), dict.fromkeys(COLUMNS[3:], 0.0)
    threading.Thread(target=watch, args=(figures,), daemon=True).start()
    from blockwise.cli import train
    from blockwise.data.pixels import seen
    from blockwise.training.module import BlockwiseModule

    step, decode = BlockwiseModule.training_step, seen.decode_chunks
    spent = []

    def first_step(self, batch, batch_idx):
        figures["seconds_to_first_batch"] = figures["seconds_to_first_batch"] or time.monotonic() - begin
        return step(self, batch, batch_idx)

    def timed(samples, indices, *rest):
        since = time.monotonic()
        yield from decode(samples, indices, *rest)
        spent.append((len(indices), time.monotonic() - since))

    BlockwiseModule.training_step, seen.decode_chunks = first_step, timed
    sys.argv = ["train.py", *overrides]
    train()
    count, seconds = (sum(values) for values in zip(*spent, strict=True)) if spent else (0, 1)
    figures |= {"images_per_second_decoded": count / seconds, "seconds": time.monotonic() - begin}
    out.write_text(json.dumps(figures))


def watch(figures: dict[str, float]) -> None:
    """Keep the highest memory so far of this process, and of it with its workers; shared pages count once."""
    own = Path("/proc/self")
    while True:
        status = dict(line.split(":", 1) for line in (own / "status").read_text().splitlines())
        # a thread may end between the two calls
        lists = [read(task / "children") for task in (own / "task").iterdir()]
        shares = [share(Path("/proc", pid)) for pid in (str(os.getpid()), *" ".join(lists).split())]
        for key, value in (
            ("peak_rss_gb", kilobytes(status["VmHWM"])),
            ("peak_anonymous_gb", kilobytes(status["RssAnon"])),
            ("peak_of_all_processes_gb", sum(shares)),
        ):
            figures[key] = max(figures[key], value)
        time.sleep(0.25)


def share(process: Path) -> float:
    """Return a process's share of memory in GB; pages of several processes count in parts."""
    lines = read(process / "smaps_rollup").splitlines()
    return next((kilobytes(line.split(":")[1]) for line in lines if line.startswith("Pss:")), 0)


def read(path: Path) -> str:
    """Return what a process or a thread tells about itself; nothing if it has ended."""
    try:
        return path.read_text()
    except OSError:
        return ""


def kilobytes(text: str) -> float:
    """Return `1234 kB` in GB."""
    return int(text.split()[0]) * 1024 / 1e9


if __name__ == "__main__":
    if len(sys.argv) > 1 and sys.argv[1].endswith(".json"):
        observed(Path(sys.argv[1]), sys.argv[2:])
    else:
        main()
