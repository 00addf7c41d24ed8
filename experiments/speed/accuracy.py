"""Test whether bfloat16 costs accuracy: train every cell with three seeds, in float32 and in bfloat16.

    python experiments/speed/accuracy.py         # about five minutes, no download

Arguments are overrides of the config: model=..., data=..., and so on. Each data set gets its own table.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from statistics import mean, stdev

from bench import HERE, machine
from blockwise.results.provenance import provenance
from blockwise.results.store import read_records

PRECISIONS = ("32-true", "bf16-mixed")
SEEDS = (0, 1, 2)
FOLDER = Path("results") / "precision"


def main() -> None:
    """Train the cells without a record, and write the table."""
    root = HERE.parents[1]
    data = next((word.removeprefix("data=") for word in sys.argv[1:] if word.startswith("data=")), "digits")
    for precision in PRECISIONS:
        command = [sys.executable, "train.py", "-m", f"seed={','.join(map(str, SEEDS))}", "trainer=cpu"]
        settings = ["optimizer.lr=0.001", f"trainer.precision={precision}", f"results_dir={FOLDER / data / precision}"]
        subprocess.run([*command, *settings, *sys.argv[1:]], check=True, cwd=root)
    text = table({precision: read_records(root / FOLDER / data / precision) for precision in PRECISIONS})
    about = provenance()
    shown = ["data.root=..." if word.startswith("data.root=") else word for word in sys.argv[1:]]
    text += f"\n`{' '.join(['python experiments/speed/accuracy.py', *shown])}`; "
    text += f"{machine()}; commit {about['commit']}{' with changes' if about['dirty'] else ''}.\n"
    out = HERE / "results" / f"accuracy-{data}.md"
    out.parent.mkdir(exist_ok=True)
    out.write_text(text)
    print(text)


def table(records: dict[str, list[dict]]) -> str:
    """Return the test accuracies as Markdown: mean and standard deviation over the seeds."""
    accuracies = {
        p: {(r["cell"]["scope"], r["seed"]): 100 * r["metrics"]["test"]["top1"] for r in records[p]} for p in PRECISIONS
    }
    scopes = list(dict.fromkeys(sorted((scope for scope, _ in accuracies[PRECISIONS[0]]), key=_order)))
    lines = ["| cell | float32 | bfloat16 | difference |", "| --- | --- | --- | --- |"]
    differences, within = [], 0
    for scope in scopes:
        tops = [[accuracies[p][scope, seed] for seed in SEEDS] for p in PRECISIONS]
        difference = mean(tops[1]) - mean(tops[0])
        differences.append(difference)
        within += abs(difference) <= max(map(stdev, tops))
        lines.append(f"| {scope} | {' | '.join(f'{mean(t):.1f} ± {stdev(t):.1f}' for t in tops)} | {difference:+.1f} |")
    lines += [
        "",
        f"Test accuracy in %, mean and standard deviation over seeds {', '.join(map(str, SEEDS))}. Of {len(scopes)} "
        f"cells, {within} differ by no more than the standard deviation over seeds. Averaged over all cells, the "
        f"accuracy in bfloat16 is {mean(differences):+.2f} points different.",
    ]
    return "\n".join(lines) + "\n"


def _order(scope: str) -> tuple[bool, bool, int]:
    return scope != "head", scope == "full", int(scope) if scope.isdigit() else -1


if __name__ == "__main__":
    main()
