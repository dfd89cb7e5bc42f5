"""How benchmarks are run one after the other, and how what they compare becomes a table."""

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
KEPT, TABLE, README = HERE / "results.json", HERE / "RESULTS.md", ROOT / "README.md"
MARKERS = "<!-- benchmarks: written by `tests/bench/all.py --write`, do not edit by hand -->", "<!-- end of benchmarks -->"
SCRIPTS = sorted(path.stem.removeprefix("bench_") for path in HERE.glob("bench_*.py"))
PROJECTS = {
    "cleanse": "diff_cleanse",
    "poisons": "dvae",
    "pruning": "diff_cleanse",
    "sampling": "diff_cleanse",
    "scan": "diff_cleanse",
    "smoothing": "drs",
    "startup": "diff_cleanse",
    "training": "diff_cleanse",
}
"""Of the scripts that do not bear a project's name."""
HEAD = "| project | what | size | ours | beside | ratio | target |\n|---|---|---|---|---|---|---|"
INTRODUCTION = """# Benchmarks

`uv run --group peers python tests/bench/all.py --write` makes this table: {machine}. *Beside* names what ours is timed beside in the same
process or on the same machine: the same written as one would first write it, a peer (marked so), or a number that was asked for (marked as a bound).
A ratio above 1 says that ours is better, by that factor; a target is the least ratio that was asked for.
"""


def machine():
    """Return the machine, the torch version and the date in a line."""
    import torch

    info = Path("/proc/cpuinfo")
    models = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")] if info.is_file() else []
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ", no GPU"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    model = models[0] if models else platform.processor() or platform.machine()
    return f"one thread of {cores} cores of {model}{gpu}, torch {torch.__version__}, {date.today()}"


def run(name, arguments, limit, show=print):
    """Run a script; returns its rows, its seconds, and why it failed, which is empty if it did not."""
    with tempfile.TemporaryDirectory() as folder:
        path, began = Path(folder) / "rows.jsonl", time.perf_counter()
        environment = os.environ | {
            "OMP_NUM_THREADS": "1",
            "TOUCHSTONE_BENCH": str(path),
            "PYTHONPATH": str(ROOT),
            "TQDM_DISABLE": "1",
            "PYTHONUNBUFFERED": "1",
        }
        output = Path(folder) / "output.txt"
        with output.open("w") as file:
            command = [sys.executable, str(HERE / f"bench_{name}.py"), *arguments]
            process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
            failure = wait(process, limit, name, show)
        lines = [line for line in output.read_text(errors="replace").splitlines() if line.strip()]
        if failure == "failed":
            failure = f"exit code {process.returncode}: {lines[-1] if lines else 'not a word'}"
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []
        project = PROJECTS.get(name, name)
        return [{"project": project} | row for row in rows], time.perf_counter() - began, failure


def wait(process, limit, name, show):
    """Wait for a process, and end it and its children at the limit; returns why it failed: empty, `failed` or the limit in words."""
    began = told = time.monotonic()
    while True:
        try:
            return "" if process.wait(timeout=1) == 0 else "failed"
        except subprocess.TimeoutExpired:
            now = time.monotonic()
            if now - began > limit:
                os.killpg(process.pid, 9)
                process.wait()
                return f"was stopped after {limit:.0f} s (--limit)"
            if now - told > 60:
                told = now
                show(f"  {name}: {now - began:.0f} s ...")
        except BaseException:
            os.killpg(process.pid, 9)
            raise


def is_below(row):
    return row["target"] is not None and row["ratio"] < row["target"]


def amount(value, unit):
    """Return a number with its unit, as a person reads it."""
    if unit == "s":
        value, unit = next(((value * 10**power, name) for power, name in ((0, "s"), (3, "ms")) if value * 10**power >= 1), (value * 1e6, "us"))
    return f"{value:.0f} {unit}" if value >= 1000 else f"{value:.3g} {unit}"


def cells(row):
    """Return the cells of a comparison."""
    mark = {"naive": "", "peer": " (peer)", "bound": " (bound)"}[row["kind"]]
    beside = row["beside"] if row["kind"] == "bound" else f"{row['beside']}: {amount(row['other'], row['unit'])}"
    target = "" if row["target"] is None else f"{row['target']:.3g}"
    ratio = f"{row['ratio']:.3g}" if row["ratio"] < 1000 else f"{row['ratio']:.0f}"
    return [
        row["project"],
        row["what"],
        row["size"],
        amount(row["ours"], row["unit"]),
        beside + mark,
        f"**{ratio}**" if is_below(row) else ratio,
        target,
    ]


def markdown(rows):
    """Return a table of comparisons."""
    return "\n".join([HEAD, *("| " + " | ".join(cell.replace("|", "/") for cell in cells(row)) + " |" for row in rows)])


def below_target(rows):
    """Return a list of what is below its target, with the reason."""
    lines = [
        f"- {row['project']}, {row['what']}, {row['size']}: {row['ratio']:.3g} where {row['target']:.3g} was asked for beside {row['beside']}. "
        + (f"{row['reason'][:1].upper()}{row['reason'][1:]}." if row["reason"] else "No reason is known.")
        for row in rows
        if is_below(row)
    ]
    return "\n".join(lines) or "Nothing."


def page(kept):
    """Return RESULTS.md of what is kept, `{script: {machine, seconds, failure, rows}}`."""
    scripts = sorted(kept, key=lambda name: (PROJECTS.get(name, name), name))
    machines = {}
    for name in scripts:
        machines.setdefault(kept[name]["machine"], []).append(name)
    told = "; ".join(f"{where} ({', '.join(names)})" if len(machines) > 1 else where for where, names in machines.items())
    rows = [row for name in scripts for row in kept[name]["rows"]]
    took = ", ".join(f"{name} {kept[name]['seconds']:.0f} s" for name in scripts)
    parts = [INTRODUCTION.format(machine=told), markdown(rows), "\n## Below target\n", below_target(rows), f"\nThe scripts took: {took}."]
    failed = [f"- bench_{name}.py: {kept[name]['failure']}" for name in scripts if kept[name]["failure"]]
    return "\n".join([*parts, *(["\n## Failed\n", *failed] if failed else []), ""])


def overview(kept):
    """Return what the root README quotes of `{script: {machine, seconds, failure, rows}}`: a line a project."""
    by_project = {}
    for name in kept:
        by_project.setdefault(PROJECTS.get(name, name), []).extend(kept[name]["rows"])
    lines = ["| project | beside straightforward code | beside peers | reached what was asked for |", "|---|---|---|---|"]
    for project, rows in sorted(by_project.items()):
        cells = [_spread([row["ratio"] for row in rows if row["kind"] == kind]) for kind in ("naive", "peer")]
        asked = [row for row in rows if row["target"] is not None]
        reached = f"{len(asked) - sum(map(is_below, asked))} of {len(asked)}" if asked else ""
        lines.append(f"| {project} | {cells[0]} | {cells[1]} | {reached} |")
    return "\n".join(lines)


def _spread(ratios):
    """Return the median of ratios with the least and the most, and how many there are."""
    if not ratios:
        return ""
    low, middle, high = (f"{value:.2g}" if value < 100 else f"{value:.0f}" for value in (min(ratios), statistics.median(ratios), max(ratios)))
    return f"{middle} ({low} to {high}, {len(ratios)})" if len(ratios) > 1 else middle
