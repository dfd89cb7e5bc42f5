"""Commands of READMEs that end with another exit code than 0, and those that a run on one machine leaves out."""

from __future__ import annotations

import re
import shutil

from readme_inputs.commands import Command, project_calls

CODES = {
    ("cafe", "audit"): {0, 3, 4},
    ("diff_cleanse", "scan"): {0, 1, 2},
    ("diff_cleanse", "cleanse"): {0, 1, 2},
    ("drs", "audit"): {0, 1},
    ("dvae", "detect"): {0, 1},
    ("umed", "verify"): {0, 1},
    ("rsknet", "verify"): {0, 3},
}
"""Exit codes that are answers, as READMEs say: a model is backdoored, records leak, another person speaks."""

LEFT_OUT = [
    (r"--devices 8\b", "eight devices"),
    (r"\s\.\.\.|\[\w+ \.\.\.\]|\w\|\w", "a form, not a command: it has `...` or `|` in the place of words"),
    (r"--nnodes 2|--num-nodes 2", "two machines"),
    (r"moe_ffd/cli\.py (fit --config paper|convert WEIGHTS\.pth)", "takes weights of a ViT-B/16 that only a network or their authors give"),
    (r"rsknet/cli\.py fit --config paper --config (light|large_margin)", "takes 26 GiB of memory or more at the paper's 128 crops a step"),
    (r"^lightning (dashboard|report) (NAME|RUN)", "a form, not a command; dashboards go to a W&B server"),
]
NEEDS_GPU = [] if shutil.which("nvidia-smi") else [(r"tests/gpu/check\.py", "there is no GPU here")]
LONG = [
    (r"uv run pytest|\.ci/run|tests/bench/", "a whole suite or benchmark: run without --quick"),
]


def allowed_codes(command: Command) -> set[int]:
    """Return the exit codes with which a command may end."""
    codes = (
        [CODES.get((project, arguments[0]), {0}) for project, arguments in project_calls(command.text) if arguments]
        if command.kind != "python"
        else []
    )
    return set().union({0}, *codes)


def reason_to_leave_out(command: Command, is_quick: bool = False) -> str:
    """Say why a command cannot be run as it stands; empty if it can."""
    if command.kind == "python":
        return ""
    return next((reason for pattern, reason in LEFT_OUT + NEEDS_GPU + LONG * is_quick if re.search(pattern, command.short)), "")
