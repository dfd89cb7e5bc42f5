"""What `lightning doctor` looks at: versions, devices, disk, W&B, the `lightning` command itself, and each project's data."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal
from urllib.parse import urlparse

from shared.launch.projects import find_projects, script_owners
from shared.runs import REPOSITORY, runs_root
from shared.wandb_key import wandb_key_source

LOW_DISK_GB = 5
LOW_MEMORY_GB = 4
OWN_SCRIPT = "another distribution installed a command `lightning` too: uninstall it and install touchstone again, or use `python -m shared.launch`"


@dataclass(frozen=True)
class Check:
    """The outcome of one check: `note` is worth knowing, `broken` keeps projects from running."""

    name: str
    state: Literal["ok", "note", "broken"]
    found: str
    remedy: str = ""


def examine() -> list[Check]:
    """Run all checks."""
    machine: list[Callable[[], Check]] = [_python, _dependencies, _extras, _torch, _cuda, _processor, _disk, _wandb, _command, _network]
    return [*(check() for check in machine), *_data([REPOSITORY / project.script for project in find_projects()])]


def exit_code(checks: list[Check]) -> int:
    """Return 1 if something is broken, else 0."""
    return int(any(check.state == "broken" for check in checks))


def _python() -> Check:
    return Check("Python", "ok", f"{sys.version.split()[0]}, {sys.executable}")


def _dependencies() -> Check:
    """Compare what is installed with what the distribution requires."""
    from packaging.requirements import Requirement

    try:
        requirements = [Requirement(line) for line in metadata.requires("touchstone") or []]
    except metadata.PackageNotFoundError:
        return Check("dependencies", "broken", "touchstone is not installed", "run `uv sync` or `pip install -e .` in the repository")
    needed = [requirement for requirement in requirements if requirement.marker is None or requirement.marker.evaluate({"extra": ""})]
    wrong = [problem for requirement in needed if (problem := unmet(requirement.name, str(requirement.specifier)))]
    if wrong:
        return Check("dependencies", "broken", "; ".join(wrong), "run `uv sync` or `pip install -e .` in the repository")
    return Check("dependencies", "ok", f"lightning {metadata.version('lightning')} and {len(needed) - 1} others as required")


def _extras() -> Check:
    """Tell which optional parts are there; a verb that needs one that is not says so itself."""
    from packaging.requirements import Requirement

    try:
        lines, extras = metadata.requires("touchstone") or [], metadata.metadata("touchstone").get_all("Provides-Extra") or []
    except metadata.PackageNotFoundError:
        return Check("optional parts", "note", "not known: touchstone is not installed")
    parts = [(extra, requirement) for line in lines if "extra ==" in line for requirement in [Requirement(line)] for extra in extras]
    absent = {
        extra: problem
        for extra, requirement in parts
        if requirement.marker and requirement.marker.evaluate({"extra": extra}) and (problem := unmet(requirement.name, str(requirement.specifier)))
    }
    there = [extra for extra in extras if extra not in absent]
    found = [", ".join(there) or "none", *(f"without {extra}: {problem}" for extra, problem in absent.items())]
    return Check("optional parts", "ok", "; ".join(found), "for those that you need: `uv sync --extra NAME`" if absent else "")


def unmet(distribution: str, specifier: str) -> str | None:
    """Say how an installed distribution misses a version specifier such as `>=2.6.6`; None if it meets it."""
    from packaging.specifiers import SpecifierSet

    try:
        version = metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return f"{distribution} is missing"
    return None if SpecifierSet(specifier).contains(version, prereleases=True) else f"{distribution} {version} is not {specifier}"


def _torch() -> Check:
    try:
        import torch
    except Exception as error:  # a broken binary raises anything from OSError to AttributeError
        return Check("torch", "broken", f"cannot be imported: {error}", "install torch again, see pytorch.org")
    return Check("torch", "ok", f"{torch.__version__}, built for {f'CUDA {torch.version.cuda}' if torch.version.cuda else 'the CPU'}")


def _cuda() -> Check:
    try:
        import torch

        count = torch.cuda.device_count()
        names = [torch.cuda.get_device_name(index) for index in range(count)]
    except Exception as error:
        return Check("CUDA", "note", f"no answer: {error}", "projects run on the CPU; check the driver with `nvidia-smi`")
    driver = _driver()
    if names:
        return Check("CUDA", "ok", f"{', '.join(names)}; driver {driver or 'unknown'}")
    if driver:
        return Check(
            "CUDA", "note", f"driver {driver}, but torch sees no device", "install a torch built for this driver, or look at CUDA_VISIBLE_DEVICES"
        )
    return Check("CUDA", "ok", "no device: projects run on the CPU")


def _driver() -> str | None:
    try:
        answer = subprocess.run(
            ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"], capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.partition("\n")[0].strip() or None


def _processor() -> Check:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = memory_gb()
    if memory is None:
        return Check("processor", "ok", f"{cores} cores")
    found = f"{cores} cores, {memory:.0f} GB of memory"
    if memory < LOW_MEMORY_GB:
        return Check("processor", "note", found, "little memory: lower data.batch_size if a run is killed")
    return Check("processor", "ok", found)


def memory_gb() -> float | None:
    """Return the memory that this process may use, in 10^9 bytes, a container's limit included; None where the system does not tell."""
    try:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.is_file() else "max"
    return min(total, int(text) if text.isdigit() else total) / 1e9


def _disk() -> Check:
    folder = runs_root()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(existing).free / 1e9
    found = f"{free:.1f} GB free for {folder}"
    if not os.access(existing, os.W_OK):
        return Check("disk", "broken", f"{existing} cannot be written", "set TOUCHSTONE_RUNS to a folder of yours")
    if free < LOW_DISK_GB:
        return Check("disk", "note", found, f"less than {LOW_DISK_GB} GB: remove old runs, or set TOUCHSTONE_RUNS to a folder on another disk")
    return Check("disk", "ok", found)


def _wandb() -> Check:
    try:
        version = metadata.version("wandb")
    except metadata.PackageNotFoundError:
        return Check("W&B", "note", "not installed", "run `uv sync`; metrics still go to CSV files with --wandb disabled")
    source, mode = wandb_key_source(), os.environ.get("WANDB_MODE")
    key = f"key from {source}" if source else "no key"
    way = f"WANDB_MODE={mode}" if mode else "runs are sent" if source else "runs are kept offline, in their folders"
    if mode == "online" and not source:
        return Check("W&B", "broken", f"{version}, {key}, {way}", "run `wandb login`, set WANDB_API_KEY, or unset WANDB_MODE")
    return Check("W&B", "ok", f"{version}, {key}, {way}")


def _command() -> Check:
    owners, found = script_owners(), shutil.which("lightning")
    if owners != ["touchstone"]:
        state: Literal["note", "broken"] = "broken" if owners else "note"
        remedy = OWN_SCRIPT if owners else "run `uv sync` or `pip install -e .` in the repository"
        return Check("lightning command", state, f"declared by {', '.join(owners) or 'no distribution'}", remedy)
    ours = Path(sysconfig.get_path("scripts"))
    if found is None:
        return Check("lightning command", "note", f"{ours} is not on PATH", "use `uv run lightning`, or activate the environment")
    if Path(found).parent.resolve() != ours.resolve():
        return Check(
            "lightning command", "note", f"{found} comes before ours in {ours}", "activate the environment, or use `python -m shared.launch`"
        )
    return Check("lightning command", "ok", found)


def _network() -> Check:
    """Tell what stands between the projects and the hubs; nothing is contacted."""
    offline = [f"{name}={os.environ[name]}" for name in ("HF_HUB_OFFLINE", "HF_ENDPOINT") if os.environ.get(name)]
    proxies = [f"{name}={_without_password(os.environ[name])}" for name in ("HTTPS_PROXY", "https_proxy") if os.environ.get(name)]
    settings = ", ".join(offline + proxies) or "no setting"
    return Check("hubs and proxies", "ok", f"{settings}; projects download nothing by themselves")


def _without_password(address: str) -> str:
    parts = urlparse(address)
    return f"{parts.scheme}://{parts.hostname or ''}{f':{parts.port}' if parts.port else ''}"


def _data(scripts: list[Path]) -> list[Check]:
    """Look for the folders that projects' configurations name as `data.root`; those that name none share a line."""
    checks = [check for script in scripts if (check := _roots(script))]
    drawn = len(scripts) - len(checks)
    found = f"{drawn} of {len(scripts)} projects begin with data that are drawn offline; yours are given by --data.root"
    return [*checks, Check("data", "ok", found)]


def _roots(script: Path) -> Check | None:
    """Look for the folders that a project's configurations name as `data.root`; None if they name none."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    name, states = f"data of {script.parent.name}", []
    for file in sorted((script.parent / "configs").glob("*.yaml")):
        try:
            root = OmegaConf.select(OmegaConf.load(file), "data.root")
        except (OmegaConfBaseException, YAMLError) as error:
            return Check(name, "broken", f"{file} cannot be read: {str(error).partition(chr(10))[0]}", "mend the file")
        if root is not None:
            states.append((file.name, root, Path(root).expanduser().is_dir()))
    if not states:
        return None
    found = "; ".join(f"{file}: {root} {'found' if is_there else 'absent'}" for file, root, is_there in states)
    if all(is_there for *_, is_there in states):
        return Check(name, "ok", found)
    return Check(name, "note", found, f"only these configurations need it: see {script.parent.name}'s README, and --data.root FOLDER")
