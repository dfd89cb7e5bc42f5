"""Where the time goes from the command to the first training step, and how long --help takes.

uv run python tests/bench/bench_startup.py [--quick]        3 minutes on two CPU cores
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time

from timing import record

PHASES = """
import time; start = time.perf_counter(); marks = []
import torch; marks.append(("import torch", time.perf_counter()))
import lightning; marks.append(("import lightning", time.perf_counter()))
from projects.diff_cleanse.cli import main; marks.append(("import the project", time.perf_counter()))
import lightning as L
from projects.diff_cleanse.module import DiffusionTraining
first = DiffusionTraining.training_step
def step(self, batch, batch_idx):
    marks.append(("parser, network (imports diffusers), data, loggers, trainer", time.perf_counter()))
    result = first(self, batch, batch_idx)
    marks.append(("first forward pass", time.perf_counter()))
    for (name, end), begin in zip(marks, [start, *(m[1] for m in marks)]):
        print(f"  {end - begin:6.2f} s  {name}")
    print(f"  {marks[-1][1] - start:6.2f} s  in all", flush=True)
    import os; os._exit(0)
DiffusionTraining.training_step = step
main(["fit", "--trainer.num_sanity_val_steps=0"])
"""


def seconds(rounds: int, *command: str) -> float:
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="once, and without the phases")
    is_quick = parser.parse_args().quick
    rounds = 1 if is_quick else 3
    bare = seconds(rounds, "-c", "import lightning")
    helped = seconds(rounds, "-m", "shared.launch", "run", "projects/diff_cleanse/cli.py", "fit", "--help")
    listed = seconds(rounds, "-m", "shared.launch", "run", "projects/diff_cleanse/cli.py", "--help")
    print(f"import lightning {bare:.1f} s; fit --help {helped:.1f} s (ratio {helped / bare:.2f}); --help {listed:.1f} s (ratio {listed / bare:.2f})")
    for name, took in (("fit --help", helped), ("--help", listed)):
        record(name, "diff_cleanse", took, 1.5 * bare, f"1.5 times a bare `import lightning`, {1.5 * bare:.1f} s", kind="bound", target=1)
    if is_quick:
        return
    with tempfile.TemporaryDirectory() as runs:
        environment = os.environ | {"TOUCHSTONE_RUNS": runs, "WANDB_MODE": "offline"}
        print("from command to first step:", flush=True)
        subprocess.run([sys.executable, "-c", PHASES], check=True, env=environment)


if __name__ == "__main__":
    main()
