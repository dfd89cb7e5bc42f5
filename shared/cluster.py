"""Who has started this process as one of several, read off the environment: torchrun, `lightning run`, or SLURM's srun."""

from __future__ import annotations

import os
from collections.abc import Mapping


def is_step_of_slurm(environ: Mapping[str, str]) -> bool:
    """Say whether srun has started this process.

    A batch script has SLURM_PROCID too, only a step of srun also SLURM_STEP_ID. A job named `bash` or `interactive` counts as a local machine, as for
    Lightning.
    """
    return {"SLURM_PROCID", "SLURM_STEP_ID"} <= environ.keys() and environ.get("SLURM_JOB_NAME") not in ("bash", "interactive")


def launched() -> tuple[int, int] | None:
    """Return the processes of each node and the number of nodes that a launcher has started; None without one.

    Raises:
        ValueError: if srun has not started the same number of processes on each node.
    """
    environ = os.environ
    if "WORLD_SIZE" in environ and "LOCAL_WORLD_SIZE" in environ:
        local, world = int(environ["LOCAL_WORLD_SIZE"]), int(environ["WORLD_SIZE"])
        return local, world // local
    if not is_step_of_slurm(environ):
        return None
    tasks, nodes = int(environ.get("SLURM_NTASKS", "1")), int(environ.get("SLURM_NNODES", "1"))
    if tasks % nodes:
        raise ValueError(f"srun has started {tasks} processes on {nodes} nodes: give every node as many, with --ntasks-per-node")
    return tasks // nodes, nodes


def stamp() -> str | None:
    """Return the name that all processes of a launcher give to a run that the user has not named, None where the launcher does not say one."""
    if named := os.environ.get("TOUCHSTONE_RUN_STAMP"):
        return named
    job = os.environ.get("SLURM_JOB_ID") if is_step_of_slurm(os.environ) else None
    return f"slurm-{job}" if job else None
