"""What `lightning run` is going to do: which script, in which processes, with which environment."""

from __future__ import annotations

import argparse
import difflib
import os
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from shared.cluster import is_step_of_slurm
from shared.launch.projects import find_projects
from shared.runs import REPOSITORY

LAUNCH_OPTIONS = ("devices", "num_nodes", "node_rank", "main_address", "main_port", "accelerator")
FABRIC_PORT = 29400


class UsageError(ValueError):
    """The command line asks for something that cannot be; the message says what and how to mend it."""


@dataclass(frozen=True)
class Plan:
    """How a script is going to be run."""

    script: Path
    arguments: list[str]
    in_process: str | None
    """Why it runs in this process; None if processes are started for it."""
    environment: dict[str, str] = field(default_factory=dict)
    """Variables set for the script on top of those that are there."""
    processes: int = 1
    nodes: int = 1
    node_rank: int = 0
    main_address: str = "127.0.0.1"
    main_port: int | None = None
    """Port of the first process; None lets the system choose a free one, for a single node."""

    def describe(self) -> str:
        """Return the plan as text: where, the environment and the command."""
        where = f"in this process: {self.in_process}"
        if self.in_process is None:
            nodes = f"each of {self.nodes} nodes, here node {self.node_rank}" if self.nodes > 1 else "one node"
            where = f"{self.processes} processes on {nodes}, meeting at {self.main_address}, port {self.main_port or 'chosen by the system'}"
        environment = [f"{name}={shlex.quote(value)}" for name, value in sorted(self.environment.items())]
        return "\n".join([f"# {where}", *environment, shlex.join([sys.executable, str(self.script), *self.arguments])])


def make_plan(options: argparse.Namespace, environ: Mapping[str, str]) -> Plan:
    """Decide how to run a script.

    Args:
        options: the parsed command line of `run`.
        environ: the environment: what an outer launcher has set is respected.

    Raises:
        UsageError: if the script does not exist, or options contradict each other or the machine.
    """
    command = options.command[1:] if options.command[:1] == ["--"] else options.command
    if not command:
        raise UsageError("which script? For example: lightning run projects/diff_cleanse/cli.py fit")
    script, arguments = find_script(command[0]), command[1:]
    given = [name for name in LAUNCH_OPTIONS if getattr(options, name) is not None]
    environment = {"TOUCHSTONE_ACCELERATOR": options.accelerator} if options.accelerator else {}
    if outer := outer_launcher(environ):
        if ignored := [f"--{name.replace('_', '-')}" for name in given if name != "accelerator"]:
            print(f"lightning run: {', '.join(ignored)} left aside: {outer}", file=sys.stderr)
        return Plan(script, arguments, outer, environment)
    if not given:
        return Plan(script, arguments, "no launch option is given")

    nodes, node_rank = 1 if options.num_nodes is None else options.num_nodes, options.node_rank or 0
    if not 0 <= node_rank < nodes:
        raise UsageError(f"--node-rank {node_rank} is not among the {nodes} nodes: they count from 0 to {nodes - 1}, see --num-nodes")
    if nodes > 1 and options.main_address is None:
        raise UsageError("several nodes need --main-address: the host name or IP address of node 0, the same on every node")
    processes, cuda = local_processes(options.devices or "auto", options.accelerator, environ)
    environment |= cuda
    if processes == nodes == 1 and options.accelerator:
        return Plan(script, arguments, "one process on one node", environment)
    environment |= _environment_of_processes(processes, nodes, environ)
    port = options.main_port or (FABRIC_PORT if nodes > 1 else None)
    return Plan(script, arguments, None, environment, processes, nodes, node_rank, options.main_address or "127.0.0.1", port)


def find_script(text: str) -> Path:
    """Find a script relative to the current folder, else relative to the repository.

    Raises:
        UsageError: if there is none; the message names the closest project and all of them.
    """
    folders = dict.fromkeys((Path.cwd(), REPOSITORY))
    for folder in folders:
        if (folder / Path(text).expanduser()).is_file():
            return folder / Path(text).expanduser()
    scripts = {project.name: project.script for project in find_projects()}
    close = difflib.get_close_matches(text, [*scripts, *scripts.values()], n=1, cutoff=0.4)
    hint = f" Did you mean {scripts.get(close[0], close[0])}?" if close else ""
    raise UsageError(f"no script {text} in {' or '.join(map(str, folders))}.{hint}\nThe projects' scripts: {', '.join(scripts.values()) or 'none'}")


def outer_launcher(environ: Mapping[str, str]) -> str | None:
    """Say who has started this process as one of several; None if nobody has."""
    if "RANK" in environ and "WORLD_SIZE" in environ:
        return "RANK and WORLD_SIZE are set, so a launcher has started this process"
    return "srun has started this process" if is_step_of_slurm(environ) else None


def local_processes(devices: str, accelerator: str | None, environ: Mapping[str, str]) -> tuple[int, dict[str, str]]:
    """Work out how many processes a node runs, and which CUDA devices they may see.

    Args:
        devices: a number, a comma-separated list of CUDA devices, or `auto` for all visible ones.
        accelerator: what the user asked for, if anything.
        environ: the environment, for CUDA_VISIBLE_DEVICES.

    Returns:
        The number of processes, and CUDA_VISIBLE_DEVICES where it has to be narrowed.

    Raises:
        UsageError: if `devices` is none of these, or asks for CUDA devices that are not there.
    """
    visible = [] if accelerator in ("cpu", "mps") else visible_cuda_devices(environ)
    if devices == "auto":
        return max(1, len(visible)), {}
    indices = _parse_devices(devices)
    needs_cuda = "," in devices or accelerator in ("cuda", "gpu") or bool(visible)
    if needs_cuda and max(indices) >= len(visible):
        raise UsageError(
            f"--devices {devices} asks for CUDA device {max(indices)}, and {len(visible)} are visible; --accelerator cpu --devices N runs on the CPU"
        )
    chosen = [visible[index] for index in indices] if needs_cuda else visible
    return len(indices), {"CUDA_VISIBLE_DEVICES": ",".join(chosen)} if chosen != visible else {}


def _parse_devices(devices: str) -> list[int]:
    try:
        indices = [int(part) for part in devices.split(",") if part] if "," in devices else list(range(int(devices)))
    except ValueError:
        indices = []
    if not indices or min(indices) < 0 or len(set(indices)) < len(indices):
        raise UsageError(f"--devices {devices} will not do: give a number from 1, a list of CUDA devices such as 0,2 or auto")
    return indices


def visible_cuda_devices(environ: Mapping[str, str]) -> list[str]:
    """Return the names that CUDA_VISIBLE_DEVICES uses for the devices that are visible, in their order."""
    import torch

    count = torch.cuda.device_count()
    named = [name.strip() for name in environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return named[:count] if named else [str(index) for index in range(count)]


def _environment_of_processes(processes: int, nodes: int, environ: Mapping[str, str]) -> dict[str, str]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    environment = {"PYTHONPATH": os.pathsep.join(filter(None, [str(REPOSITORY), environ.get("PYTHONPATH")]))}
    if "OMP_NUM_THREADS" not in environ:
        environment["OMP_NUM_THREADS"] = str(max(1, cores // processes))
    if nodes == 1:
        environment["TOUCHSTONE_RUN_STAMP"] = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")  # all processes name the run folder alike
    return environment
