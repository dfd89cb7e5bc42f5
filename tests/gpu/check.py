"""Runs every project on a GPU: kernels beside torch, fits beside a CPU, and the benchmarks' GPU parts; writes one table.

pip install uv && uv run python tests/gpu/check.py [--device cuda] [--parts kernels fits speed] [--only NAME ...] [--budget 540] [--out FILE.md]

kernels: the Triton kernels give what plain torch gives, and their times.
fits: each project's own command for a few steps, and its test, on a CPU and on the GPU in float32, and in bfloat16 where a project uses it: losses
must be close (loosely where noise is drawn on the device, or in bfloat16); steps a second, and peak memory.
speed: the benchmarks' comparisons on the GPU: throughput beside straightforward code and peers.

A row that fails is said to, and the exit code is then 1. What has not begun when the budget of seconds is spent is left out and named. With
--device cpu everything runs as a rehearsal: kernels under Triton's interpreter, small sizes for speed.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
for folder in (HERE.parents[1], HERE.parent / "bench", HERE):
    sys.path.insert(0, str(folder))

PARTS = ("kernels", "fits", "speed")
SPEED = {
    "pruning": ["--rounds", "2"],
    "smoothing": ["--rounds", "2"],
    "drs": ["--rounds", "2"],
    "dvae": ["--rounds", "2", "--batch", "128"],
    "umed": ["--rounds", "2"],
    "moe_ffd": ["--parts", "network", "--rounds", "2", "--batch", "32", "--bf16"],
    "forgery_nas": ["--rounds", "2"],
    "tripinet": ["--parts", "training", "--rounds", "2"],
    "hodinet": ["--parts", "gpu", "--rounds", "2"],
    "rsknet": ["--parts", "gpu", "--rounds", "2"],
    "rco": ["--parts", "gpu", "--rounds", "1"],
    "s3rp": ["--parts", "gpu", "--rounds", "2"],
}
"""Benchmarks that run on a GPU, with their options."""


def speed(device, name, limit):
    """Yield the rows of a benchmark."""
    from results import amount, is_below, run

    arguments = [*SPEED[name], "--device", device, *(["--quick"] if device == "cpu" else [])]
    rows, seconds, failure = run(name, arguments, limit, lambda text: print(text, flush=True))
    for row in (row for row in rows if row["kind"] != "bound"):
        peak = "" if row["peak"] is None else f", peak {row['peak']:.0f} MiB"
        result = f"{amount(row['ours'], row['unit'])}, {row['ratio']:.3g} times {row['beside']}{peak}"
        result += f" (asked for: {row['target']:.3g})" if is_below(row) else ""
        yield {"part": "speed", "what": f"{row['project']}: {row['what']}", "setting": row["size"], "result": result, "is_good": True}
    if failure:
        yield {"part": "speed", "what": f"bench_{name}.py", "setting": f"{device}, {seconds:.0f} s", "result": failure, "is_good": False}


def page(rows, left, where):
    """Return the table as Markdown."""
    lines = [f"# GPU checks\n\n{where}\n", "| part | what | setting | result | |", "|---|---|---|---|---|"]
    for row in rows:
        cells = [str(row[key]).replace("|", "/").replace("\n", " ") for key in ("part", "what", "setting", "result")]
        lines.append("| " + " | ".join([*cells, "good" if row["is_good"] else "**fails**"]) + " |")
    return "\n".join([*lines, *([f"\nLeft out, for want of time: {', '.join(left)}."] if left else []), ""])


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--only", nargs="+", metavar="NAME", help="projects, and benchmarks of speed")
    parser.add_argument("--steps", type=int, default=6, help="training steps of fits")
    parser.add_argument("--budget", type=float, default=540, help="seconds after which nothing more begins")
    parser.add_argument("--limit", type=float, default=90, help="seconds of a benchmark")
    parser.add_argument("--out", type=Path, help="file for the table")
    options = parser.parse_args(arguments)
    end = time.perf_counter() + options.budget
    if options.device == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"  # before Triton is first imported
    os.environ |= {"WANDB_MODE": "disabled", "TQDM_DISABLE": "1"}
    import torch

    if options.device == "cuda" and not torch.cuda.is_available():
        print("error: there is no CUDA device here; --device cpu rehearses the checks", file=sys.stderr)
        return 1
    import fits
    from results import machine

    if unknown := set(options.only or ()) - set(fits.FITS) - set(SPEED):
        parser.error(f"no check {', '.join(sorted(unknown))}: choose among {', '.join(sorted({*fits.FITS, *SPEED}))}")
    rows, left = [], []

    def take(found):
        for row in found:
            rows.append(row)
            print(f"{'good ' if row['is_good'] else 'FAILS'} {row['what']}, {row['setting']}: {row['result']}", flush=True)

    def take_all(part, names, check):
        wanted = [name for name in names if options.only is None or name in options.only]
        while wanted and time.perf_counter() < end:
            take(check(wanted.pop(0)))
        left.extend(f"{part} of {name}" for name in wanted)

    with tempfile.TemporaryDirectory() as runs:
        os.environ["TOUCHSTONE_RUNS"] = runs
        if "kernels" in options.parts:
            import kernels

            take(kernels.check(options.device))
        if "fits" in options.parts:
            take_all("fits", fits.FITS, lambda name: fits.check(options.device, name, options.steps))
        if "speed" in options.parts:
            take_all("speed", SPEED, lambda name: speed(options.device, name, options.limit))
    text = page(rows, left, machine())
    if options.out:
        options.out.write_text(text, encoding="utf-8")
    print(f"\n{text}")
    return 0 if all(row["is_good"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
