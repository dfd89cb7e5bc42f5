"""Runs the benchmarks one after the other, and puts what they compare into one table.

uv run --group peers python tests/bench/all.py [--only cafe s3rp] [--quick] [--write] [--limit 900]

Each script runs in a process of its own with one thread, and ends after --limit seconds at the latest. What was measured is kept in results.json,
script by script, with --write, which makes RESULTS.md of all that is kept, and the overview of the root README: --only renews a part of it. --quick
takes the smallest sizes, to see that everything runs; its figures are not kept. A script that fails is listed with its last line, and the exit code
is then 1.
"""

import argparse
import json
import sys

from results import KEPT, MARKERS, PROJECTS, README, SCRIPTS, TABLE, below_target, is_below, machine, markdown, overview, page, run

from shared.results import write_between


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="scripts or projects")
    parser.add_argument("--quick", action="store_true", help="the smallest sizes, to see that everything runs")
    parser.add_argument("--write", action="store_true", help=f"keep the figures, and write {TABLE.name} and the overview in {README.name}")
    parser.add_argument("--limit", type=float, default=900, help="seconds of a script")
    options = parser.parse_args(arguments)
    if options.quick and options.write:
        parser.error("--quick measures next to nothing: leave out --write")
    wanted = SCRIPTS if options.only is None else [name for name in SCRIPTS if {name, PROJECTS.get(name, name)} & set(options.only)]
    if unknown := set(options.only or ()) - set(SCRIPTS) - set(PROJECTS.values()):
        parser.error(f"no benchmark {', '.join(sorted(unknown))}: choose among {', '.join(SCRIPTS)}")
    kept = json.loads(KEPT.read_text(encoding="utf-8")) if options.write and KEPT.is_file() else {}
    found, failed, where = [], {}, machine()
    for number, name in enumerate(wanted, 1):
        print(f"[{number}/{len(wanted)}] bench_{name}.py", flush=True)
        rows, seconds, failure = run(name, ["--quick"] if options.quick else [], options.limit, lambda text: print(text, flush=True))
        low = sum(is_below(row) for row in rows)
        print(f"  {seconds:.0f} s, {len(rows)} rows, {low} below target{f'; failed: {failure}' if failure else ''}", flush=True)
        found += rows
        failed |= {name: failure} if failure else {}
        if options.write:
            kept[name] = {"machine": where, "seconds": round(seconds), "failure": failure, "rows": rows}
            KEPT.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
            TABLE.write_text(page(kept), encoding="utf-8")
            write_between(README, MARKERS, overview(kept))
    print(f"\n{markdown(found)}\n\nBelow target:\n{below_target(found)}")
    for name, failure in failed.items():
        print(f"failed: bench_{name}.py: {failure}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
