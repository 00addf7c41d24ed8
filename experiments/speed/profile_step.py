"""Profile one training step: print a table, and write a trace for Perfetto or chrome://tracing.

    python experiments/speed/profile_step.py model=efficientnet_lite0 trainer=cpu

Arguments are overrides of the config. The parts add up to more than the time of a normal step, since profiling costs
time and memory.
"""

from __future__ import annotations

import sys
from pathlib import Path
from time import perf_counter

from rich.console import Console
from rich.table import Table
from torch.profiler import profile

from blockwise.config.compose import compose_config
from blockwise.study.study import Study
from step import Step

OUT = Path("results") / "profile"
WARM_UP = 4
ROWS = 20


def main() -> None:
    """Profile one step of the study configured on the command line."""
    console = Console()
    cfg = compose_config(["trainer=cpu", "optimizer.lr=0.001", *sys.argv[1:]])
    step = Step(Study.from_config(cfg, console))
    for _ in range(WARM_UP):
        since = perf_counter()
        step.whole()
        seconds = perf_counter() - since
    with profile(record_shapes=True) as profiler:
        step.whole()
    OUT.mkdir(parents=True, exist_ok=True)
    trace = OUT / f"{cfg.model.name}.json.gz"
    profiler.export_chrome_trace(str(trace))
    console.print(_table(profiler, f"one step of {len(step.names)} cells: {1000 * seconds:.0f} ms unprofiled"))
    console.print(f"Trace: {trace}")


def _table(profiler: profile, title: str) -> Table:
    events = sorted(profiler.key_averages(), key=lambda event: -event.self_cpu_time_total)
    total = sum(event.self_cpu_time_total for event in events)
    table = Table("operation", "ms", "share", "calls", title=title)
    for column in table.columns[1:]:
        column.justify = "right"
    for event in events[:ROWS]:
        share = event.self_cpu_time_total / total
        table.add_row(event.key, f"{event.self_cpu_time_total / 1000:.1f}", f"{share:.0%}", str(event.count))
    return table


if __name__ == "__main__":
    main()
