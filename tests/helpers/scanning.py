"""The verb `scan` on a planted backdoor, in seconds."""

import sys
import time

from helpers.planted import CONFIG, PlantedNetwork

from projects.diff_cleanse import scan as scanning

QUICK = scanning.Budget(32, (-0.8, -0.5), 16, 8, 16, 30, 6, (15, 16), (15, 2))
OPTIONS = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--samplers=ddim,ddpm"]


def plant(setattr_, attack="villandiffusion"):
    """Let folders hold a planted network, and scans be quick; `setattr_` sets an attribute of a module's path or an item of a dictionary."""
    from projects.diff_cleanse import scan_task

    setattr_(scan_task, "load_pipeline", lambda folder: (PlantedNetwork(attack), CONFIG))
    scanning.BUDGETS["fast"] = QUICK


def scan_until_killed(folder, run):
    """Scan by two threads, and hang in the second finding."""
    import torch

    from projects.diff_cleanse.cli import main

    torch.set_num_threads(2)
    make = scanning.Scan.make
    scanning.Scan.make = lambda job, method, sampler: make(job, method, sampler) if sampler == "ddim" else time.sleep(600)
    plant(setattr)
    main(["scan", folder, *OPTIONS, "--run", run])


def scan_as_a_script(arguments):
    """Scan as a launcher's process does: the arguments are those of the process."""
    from projects.diff_cleanse.cli import main

    plant(setattr)
    sys.argv = ["cli.py", "scan", *arguments[:1], *OPTIONS, *arguments[1:]]
    main()
