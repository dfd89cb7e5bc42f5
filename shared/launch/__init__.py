"""The `lightning` command: run a project's script, list projects, rebuild reports, make dashboards, check the installation.

`python -m shared.launch` is the same command, for an environment in which another distribution owns the name `lightning`.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from shared.launch.planning import FABRIC_PORT, UsageError, make_plan
from shared.launch.projects import LIGHTNING_VERBS, find_projects, script_owners
from shared.launch.running import execute
from shared.runs import REPOSITORY

ACCELERATORS = ("auto", "cpu", "gpu", "cuda", "mps")
USAGE_ERROR = 2
STATE_STYLES = {"ok": "green", "note": "yellow", "broken": "bold red"}


def main(args: Sequence[str] | None = None) -> int:
    """Run the `lightning` command.

    Args:
        args: the arguments; None takes those of the process.

    Returns:
        The exit code: 0, 1 for a failure, 2 for wrong usage, 130 after Ctrl-C, or what the script ended with.

    Raises:
        SystemExit: from the argument parser, and from scripts that run in this process.
    """
    options = build_parser().parse_args(args)
    try:
        return options.function(options)
    except UsageError as error:
        print(f"lightning {options.name}: error: {error}", file=sys.stderr)
        return USAGE_ERROR


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the `lightning` command."""
    parser = argparse.ArgumentParser("lightning", description="Run and inspect Touchstone's projects.", allow_abbrev=False)
    parser.add_argument("--version", action=_Version, nargs=0, help="print versions, and which distribution owns this command")
    commands = parser.add_subparsers(dest="name", metavar="COMMAND", required=True)

    run = commands.add_parser(
        "run",
        help="run a script in this process, on several devices or on several nodes",
        usage="lightning run [launch options] SCRIPT [arguments of the script]",
        epilog="Example: lightning run --devices 2 --accelerator cpu projects/diff_cleanse/cli.py fit --trainer.max_epochs 1",
        allow_abbrev=False,
    )
    run.add_argument(
        "--devices", metavar="N", help="devices per node: a number, a list of CUDA devices (0,2), or auto: all visible CUDA devices, else 1"
    )
    run.add_argument("--num-nodes", "--num_nodes", type=int, metavar="N", help="number of machines (default 1)")
    run.add_argument("--node-rank", "--node_rank", type=int, metavar="N", help="which machine this is, from 0 (default 0)")
    run.add_argument("--main-address", "--main_address", metavar="HOST", help="host name or IP address of machine 0")
    run.add_argument(
        "--main-port", "--main_port", type=int, metavar="PORT", help=f"port on machine 0 (default: a free one; {FABRIC_PORT} for several)"
    )
    run.add_argument("--accelerator", choices=ACCELERATORS, help="hardware to run on (default: the Trainer's setting)")
    run.add_argument("--dry-run", "--dry_run", action="store_true", help="print the command and its environment, and run nothing")
    run.add_argument(
        "command", nargs=argparse.REMAINDER, metavar="SCRIPT ...", help="the script, from here or from the repository; then its arguments"
    )
    run.set_defaults(function=_run)

    listing = commands.add_parser("list", help="list the projects and their verbs")
    listing.add_argument("--json", action="store_true", help="print JSON")
    listing.set_defaults(function=_list)

    report = commands.add_parser("report", help="rebuild a run's report.html, or compare runs")
    report.add_argument("runs", nargs="+", metavar="RUN", help="a run folder, project/run, or a project for its latest run")
    report.add_argument("--out", type=Path, metavar="FILE", help="where to write (default: report.html of the run; comparison.html here for several)")
    report.set_defaults(function=_report)

    dashboard = commands.add_parser("dashboard", help="make the W&B workspace that a project's dashboard.yaml describes")
    dashboard.add_argument("project", metavar="NAME", help="name of the project")
    dashboard.add_argument("--dry-run", "--dry_run", action="store_true", help="print the workspace as JSON, and send nothing")
    dashboard.add_argument("--entity", help="W&B user or team (default: $WANDB_ENTITY, else that of the API key)")
    dashboard.set_defaults(function=_dashboard)

    doctor = commands.add_parser("doctor", help="check the installation, devices, disk, W&B and data")
    doctor.add_argument("--json", action="store_true", help="print JSON")
    doctor.set_defaults(function=_doctor)
    return parser


class _Version(argparse.Action):
    """Prints versions read from metadata, which takes no import of the libraries."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from shared.runs import versions

        owners = script_owners()
        print(", ".join(f"{name} {version}" for name, version in versions().items() if name in ("touchstone", "lightning", "torch")))
        print(f"the command `lightning` belongs to {' and '.join(owners) or 'no installed distribution'}; run as {sys.argv[0]}")
        parser.exit()


def _run(options: argparse.Namespace) -> int:
    plan = make_plan(options, os.environ)
    if options.dry_run:
        print(plan.describe())
        return 0
    return execute(plan)


def _list(options: argparse.Namespace) -> int:
    projects = find_projects()
    if options.json:
        print(json.dumps([asdict(project) for project in projects], indent=2))
    else:
        rows = [(each.name, " ".join(verb for verb in each.verbs if verb not in LIGHTNING_VERBS), each.title) for each in projects]
        print_table(("project", "further verbs", "what it does"), rows)
        print(f"\nEach also has {', '.join(LIGHTNING_VERBS)}; `lightning run projects/NAME/cli.py VERB --help` tells what a verb does and takes.")
    return 0


def _report(options: argparse.Namespace) -> int:
    from shared.report import build_report, compare_runs
    from shared.runs import resolve_run

    try:
        runs = [resolve_run(text) for text in options.runs]
        if len(runs) > 1:
            page = compare_runs(runs, options.out or Path("comparison.html"))
        else:
            page = build_report(runs[0])
            page = Path(shutil.copyfile(page, options.out)) if options.out else page
        print(page)
    except (OSError, ValueError) as error:
        return _fail("report", error)
    return 0


def _dashboard(options: argparse.Namespace) -> int:
    from shared.dashboards import publish

    file = REPOSITORY / "projects" / options.project / "dashboard.yaml"
    try:
        return publish(file, entity=options.entity, dry_run=options.dry_run)
    except (OSError, ValueError) as error:
        return _fail("dashboard", error)


def _doctor(options: argparse.Namespace) -> int:
    from shared.doctor import examine, exit_code

    checks = examine()
    if options.json:
        print(json.dumps([asdict(check) for check in checks], indent=2))
    else:
        print_table(("check", "state", "found", "what to do"), [(check.name, check.state, check.found, check.remedy) for check in checks])
    return exit_code(checks)


def _fail(command: str, error: Exception) -> int:
    print(f"lightning {command}: {error}", file=sys.stderr)
    return 1


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table: with rich on a terminal, else as plain text, one row a line."""
    if not sys.stdout.isatty():
        widths = [max(len(row[i]) for row in [columns, *rows]) for i in range(len(columns))]
        for row in [columns, *rows]:
            print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*columns, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        table.add_row(*(Text(cell, STATE_STYLES.get(cell, "")) for cell in row))
    Console().print(table)
