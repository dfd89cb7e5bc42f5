import importlib.metadata
import os
import re
import shutil
import sys

import pytest

from shared import doctor
from shared.doctor import Check, examine, exit_code, memory_gb, unmet


@pytest.fixture
def find(monkeypatch):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "HTTPS_PROXY", "https_proxy", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)

    def check(name):
        return next(check for check in examine() if check.name == name)

    return check


def test_this_installation_is_usable(find):
    checks = {check.name: check for check in examine()}
    assert checks["Python"].found.startswith(sys.version.split()[0])
    assert importlib.metadata.version("lightning") in checks["dependencies"].found
    assert importlib.metadata.version("torch") in checks["torch"].found
    assert f"{len(os.sched_getaffinity(0))} cores" in checks["processor"].found
    assert re.fullmatch(r"\d+ of \d+ projects begin with data that are drawn offline; yours are given by --data.root", checks["data"].found)
    assert {"onnx", "dashboards"} <= set(re.findall(r"\w+", checks["optional parts"].found))
    assert exit_code(list(checks.values())) == 0


def test_only_what_is_broken_fails():
    assert exit_code([Check("a", "ok", ""), Check("b", "note", "")]) == 0
    assert exit_code([Check("a", "ok", ""), Check("b", "broken", "")]) == 1


def test_requirements_are_compared():
    assert unmet("lightning", ">=2.6.6") is None
    assert unmet("lightning", ">=99").endswith("is not >=99")
    assert unmet("no-such-distribution", ">=1") == "no-such-distribution is missing"


def test_memory_agrees_with_psutil():
    psutil = pytest.importorskip("psutil")
    assert 0 < memory_gb() <= psutil.virtual_memory().total / 1e9 * 1.001


def test_low_disk_is_noted_and_a_closed_folder_is_broken(find, monkeypatch, tmp_path):
    monkeypatch.setenv("TOUCHSTONE_RUNS", str(tmp_path / "not" / "yet"))
    assert find("disk").found == f"{shutil.disk_usage(tmp_path).free / 1e9:.1f} GB free for {tmp_path / 'not' / 'yet'}"
    monkeypatch.setattr(doctor, "LOW_DISK_GB", 1e9)
    assert (find("disk").state, find("disk").remedy.startswith("less than")) == ("note", True)
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write everywhere
    assert (find("disk").state, find("disk").remedy) == ("broken", "set TOUCHSTONE_RUNS to a folder of yours")


def test_wandb_state(find, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find("W&B").found.endswith("no key, runs are kept offline, in their folders")
    monkeypatch.setenv("WANDB_MODE", "online")
    assert (find("W&B").state, find("W&B").remedy) == ("broken", "run `wandb login`, set WANDB_API_KEY, or unset WANDB_MODE")
    monkeypatch.setenv("WANDB_API_KEY", "0123")
    assert find("W&B").found.endswith("key from WANDB_API_KEY, WANDB_MODE=online")
    assert "0123" not in find("W&B").found.replace(importlib.metadata.version("wandb"), "")


def test_a_foreign_command_is_noted(find, monkeypatch, tmp_path):
    foreign = tmp_path / "lightning"
    foreign.write_text("#!/bin/sh\n")
    foreign.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path) + os.pathsep + os.environ["PATH"])
    assert find("lightning command").found.startswith(f"{foreign} comes before ours in ")
    monkeypatch.setenv("PATH", "")
    assert find("lightning command").found.endswith("is not on PATH")


def test_another_owner_of_the_command_breaks_it(find, monkeypatch, tmp_path):
    metadata = tmp_path / "intruder-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: intruder\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[console_scripts]\nlightning = intruder:main\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    check = find("lightning command")
    assert (check.state, check.found) == ("broken", "declared by intruder, touchstone")
    assert "python -m shared.launch" in check.remedy


def test_passwords_of_proxies_are_not_shown(find, monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://user:secret@proxy.example.org:3128")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert find("hubs and proxies").found == "HF_HUB_OFFLINE=1, HTTPS_PROXY=http://proxy.example.org:3128; projects download nothing by themselves"


def test_data_of_configurations(tmp_path):
    configs = tmp_path / "demo" / "configs"
    configs.mkdir(parents=True)
    script = tmp_path / "demo" / "cli.py"
    offline = "1 of 1 projects begin with data that are drawn offline; yours are given by --data.root"
    (configs / "tiny.yaml").write_text("data: {source: digits}\n")
    assert doctor._data([script]) == [Check("data", "ok", offline)]
    (configs / "paper.yaml").write_text(f"data: {{source: folder, root: {tmp_path}}}\n")
    assert doctor._data([script]) == [Check("data of demo", "ok", f"paper.yaml: {tmp_path} found"), Check("data", "ok", offline.replace("1", "0", 1))]
    (configs / "celeba.yaml").write_text(f"where: {tmp_path / 'celeba'}\ndata: {{root: '${{where}}'}}\n")
    check, _ = doctor._data([script])
    assert (check.state, check.found) == ("note", f"celeba.yaml: {tmp_path / 'celeba'} absent; paper.yaml: {tmp_path} found")
    (configs / "celeba.yaml").write_text("data: {root: [\n")
    check, _ = doctor._data([script])
    assert (check.state, check.found.startswith(f"{configs / 'celeba.yaml'} cannot be read")) == ("broken", True)


def test_an_absent_optional_part_is_told(monkeypatch):
    monkeypatch.setattr(doctor, "unmet", lambda name, specifier: "onnx is missing" if name == "onnx" else None)
    check = doctor._extras()
    assert (check.state, check.remedy) == ("ok", "for those that you need: `uv sync --extra NAME`")
    assert check.found.endswith("; without onnx: onnx is missing")


def test_driver_without_visible_device_is_noted(find, monkeypatch, tmp_path):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 570.12\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path) + os.pathsep + os.environ["PATH"])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    check = find("CUDA")
    assert (check.state, check.found) == ("note", "driver 570.12, but torch sees no device")
