"""The batch script of the README under a SLURM that starts its tasks on this machine."""

import json
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from shared.cluster import launched, stamp

ROOT = Path(__file__).parent.parent.parent
SRUN = """#!{python}
import os, subprocess, sys
nodes, local = int(os.environ["SLURM_NNODES"]), int(os.environ["SLURM_NTASKS_PER_NODE"])
tasks = [
    subprocess.Popen(
        sys.argv[1:],
        env=os.environ
        | {{"SLURM_STEP_ID": "0", "SLURM_NTASKS": str(nodes * local), "SLURM_PROCID": str(task), "SLURM_LOCALID": str(task % local)}}
        | {{"SLURM_NODEID": str(task // local), "SLURM_NODELIST": "localhost", "SLURM_STEP_NUM_NODES": str(nodes)}},
    )
    for task in range(nodes * local)
]
sys.exit(max(task.wait() for task in tasks))
"""


@pytest.fixture
def cluster(tmp_path):
    """Return a function that does what `sbatch` does with the README's script, and its arguments, on two nodes of one task each."""
    script = next(block for block in re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL) if "#SBATCH" in block)
    (tmp_path / "train.sbatch").write_text(script)
    for name, text in (("srun", SRUN.format(python=sys.executable)), ("scontrol", '#!/bin/bash\necho "$@" >> scontrol.log\n')):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(stat.S_IRWXU)
    (tmp_path / ".venv").symlink_to(Path(sys.executable).parent.parent)
    outer = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")}

    def submit(*arguments, **variables):
        environment = outer | {
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "SLURM_JOB_ID": "70123",
            "SLURM_JOB_NAME": "train.sbatch",
            "SLURM_NNODES": "2",
            "SLURM_NTASKS_PER_NODE": "1",
            "SLURM_PROCID": "0",
            "TOUCHSTONE_RUNS": str(tmp_path / "runs"),
            "WANDB_MODE": "disabled",
            "OMP_NUM_THREADS": "1",
            **variables,
        }
        return subprocess.run(["bash", "train.sbatch", *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)

    return submit


def fit(*options):
    return (f"{ROOT}/projects/drs/cli.py", "fit", "--trainer.accelerator", "cpu", "--model.schedule", "multistep", "--trainer.max_steps", *options)


def test_the_batch_script_of_the_readme_trains_on_two_nodes(cluster, tmp_path):
    done = cluster(*fit("3"))
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Starting with 2 processes" in done.stderr
    run = tmp_path / "runs" / "drs" / "slurm-70123"
    assert [path.name for path in run.parent.iterdir() if path.is_dir()] == [run.name]
    assert len(json.loads((run / "manifest.json").read_text())["stages"]) == 1  # written by one process of the two


@pytest.mark.slow
def test_a_requeued_job_goes_on_with_its_run(cluster, tmp_path):
    assert cluster(*fit("3")).returncode == 0
    assert cluster(*fit("5"), SLURM_RESTART_COUNT="1").returncode == 0
    weights = tmp_path / "runs" / "drs" / "slurm-70123" / "checkpoints" / "last.ckpt"
    assert torch.load(weights, weights_only=True)["global_step"] == 5


def test_a_job_stopped_at_its_time_limit_is_put_in_the_queue_again(cluster, tmp_path):
    (tmp_path / "srun").write_text("#!/bin/bash\nexit 143\n")
    assert cluster("projects/drs/cli.py", "fit").returncode == 143
    assert (tmp_path / "scontrol.log").read_text() == "requeue 70123\n"


@pytest.mark.parametrize(
    ("environment", "counts", "named"),
    [
        ({}, None, None),
        ({"WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4", "RANK": "0"}, (4, 2), None),
        ({"SLURM_PROCID": "3", "SLURM_STEP_ID": "0", "SLURM_NTASKS": "8", "SLURM_NNODES": "2", "SLURM_JOB_ID": "5"}, (4, 2), "slurm-5"),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_NNODES": "2", "SLURM_JOB_ID": "5"}, None, None),  # the batch script itself
        ({"SLURM_PROCID": "0", "SLURM_STEP_ID": "0", "SLURM_JOB_NAME": "bash", "SLURM_JOB_ID": "5"}, None, None),
    ],
    ids=["laptop", "torchrun", "srun", "sbatch", "interactive"],
)
def test_the_processes_that_a_launcher_has_started_are_read_off_the_environment(monkeypatch, environment, counts, named):
    for name in [name for name in os.environ if name.startswith("SLURM_") or name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "TOUCHSTONE_RUN_STAMP")]:
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert (launched(), stamp()) == (counts, named)


def test_nodes_with_different_numbers_of_processes_are_refused(monkeypatch):
    for name, value in {"SLURM_PROCID": "0", "SLURM_STEP_ID": "0", "SLURM_NTASKS": "3", "SLURM_NNODES": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(ValueError, match="--ntasks-per-node"):
        launched()
