import importlib.metadata
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from shared.launch import build_parser, main, planning
from shared.launch.planning import UsageError, local_processes, make_plan, outer_launcher
from shared.launch.projects import find_projects, script_owners
from shared.runs import REPOSITORY

OUTER = ("RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_STEP_ID", "SLURM_JOB_NAME", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")
RECORDER = """
import json, os, sys
from pathlib import Path
names = ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "OMP_NUM_THREADS", "TOUCHSTONE_ACCELERATOR", "TOUCHSTONE_RUN_STAMP")
content = {"argv": sys.argv, "name": __name__, "path": sys.path[:2], "pid": os.getpid(), "environment": {n: os.environ.get(n) for n in names}}
Path(__file__).with_name(f"record{os.environ.get('RANK', '')}.json").write_text(json.dumps(content))
"""


@pytest.fixture(autouse=True)
def no_outer_launcher(monkeypatch):
    for name in OUTER:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def script(tmp_path):
    """A script that records how it was run, and then does what is appended to it."""

    def write(rest="", name="script.py"):
        path = tmp_path / name
        path.write_text(RECORDER + rest)
        return str(path)

    return write


def record(tmp_path, rank=""):
    return json.loads((tmp_path / f"record{rank}.json").read_text())


def plan_of(*args, environ=None):
    return make_plan(build_parser().parse_args(["run", *args]), environ or {})


# ---- in this process


def test_script_runs_in_this_process_with_untouched_arguments(script, tmp_path):
    argv, path = sys.argv, sys.path[:]
    arguments = ["fit", "--run", "a b", "--help", "--", "--devices", "3", "--version", "--dry-run"]
    assert main(["run", script(), *arguments]) == 0
    seen = record(tmp_path)
    assert seen["argv"] == [str(tmp_path / "script.py"), *arguments]
    assert (seen["name"], seen["pid"], seen["path"]) == ("__main__", os.getpid(), [str(tmp_path), str(REPOSITORY)])
    assert not any(seen["environment"].values())
    assert (sys.argv, sys.path) == (argv, path)


@pytest.mark.parametrize("code", [0, 2, 7])
def test_exit_code_of_the_script_passes(script, code):
    with pytest.raises(SystemExit) as stop:
        main(["run", script(f"sys.exit({code})")])
    assert stop.value.code == code


def test_interrupt_is_130(script):
    assert main(["run", script("raise KeyboardInterrupt")]) == 130


def test_accelerator_alone_stays_in_this_process(script, tmp_path):
    assert main(["run", "--accelerator", "cpu", "--", script()]) == 0
    assert record(tmp_path)["environment"]["TOUCHSTONE_ACCELERATOR"] == "cpu"
    assert "TOUCHSTONE_ACCELERATOR" not in os.environ


def test_script_is_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert plan_of("projects/diff_cleanse/cli.py", "fit").script == REPOSITORY / "projects/diff_cleanse/cli.py"


def test_missing_script_names_the_closest_project(capsys):
    assert main(["run", "projects/diffcleanse/cli.py", "fit"]) == 2
    message = capsys.readouterr().err
    assert "no script projects/diffcleanse/cli.py" in message
    assert "Did you mean projects/diff_cleanse/cli.py?" in message


def test_no_script_is_a_usage_error(capsys):
    assert main(["run", "--accelerator", "cpu"]) == 2
    assert "which script? For example: lightning run projects/" in capsys.readouterr().err


# ---- plans


def test_waiting_threads_sleep_unless_told_otherwise(tmp_path, monkeypatch):
    (tmp_path / "policy.py").write_text(
        "import os; from pathlib import Path; Path(__file__).with_suffix('.txt').write_text(os.environ['OMP_WAIT_POLICY'])"
    )
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    main(["run", str(tmp_path / "policy.py")])
    assert (tmp_path / "policy.txt").read_text() == "PASSIVE"
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    main(["run", str(tmp_path / "policy.py")])
    assert (tmp_path / "policy.txt").read_text() == "ACTIVE"


def test_dry_run_prints_command_and_environment(script, tmp_path, capsys):
    assert main(["run", "--devices", "2", "--accelerator=cpu", "--dry-run", script(), "fit", "--run", "a b"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "# 2 processes on one node, meeting at 127.0.0.1, port chosen by the system"
    assert lines[-1] == f"{sys.executable} {tmp_path / 'script.py'} fit --run 'a b'"
    assert "TOUCHSTONE_ACCELERATOR=cpu" in lines
    assert any(re.fullmatch(r"TOUCHSTONE_RUN_STAMP=\d{8}-\d{6}", line) for line in lines)
    assert not (tmp_path / "record.json").exists()


def test_several_nodes_meet_at_node_zero(script):
    plan = plan_of("--devices=4", "--num_nodes=2", "--node_rank=1", "--main_address=node0", "--accelerator=cpu", script())
    assert (plan.processes, plan.nodes, plan.node_rank, plan.main_address, plan.main_port) == (4, 2, 1, "node0", 29400)
    assert plan.in_process is None
    assert "TOUCHSTONE_RUN_STAMP" not in plan.environment


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--num-nodes", "2"], "several nodes need --main-address"),
        (["--num-nodes", "2", "--main-address", "a", "--node-rank", "2"], "--node-rank 2 is not among the 2 nodes: they count from 0 to 1"),
        (["--devices", "0"], "--devices 0 will not do: give a number from 1"),
        (["--devices", "two"], "--devices two will not do"),
        (["--devices", "1,1"], "--devices 1,1 will not do"),
        (["--devices", "0,1"], "asks for CUDA device 1, and 0 are visible; --accelerator cpu"),
    ],
)
def test_impossible_options_are_explained(script, options, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        plan_of("--accelerator", "cpu", *options, script())


def test_threads_are_shared_out_unless_set(script):
    cores = len(os.sched_getaffinity(0))
    options = ["--accelerator", "cpu", "--devices", "2", script()]
    assert plan_of(*options).environment["OMP_NUM_THREADS"] == str(max(1, cores // 2))
    assert "OMP_NUM_THREADS" not in plan_of(*options, environ={"OMP_NUM_THREADS": "5"}).environment


@pytest.mark.parametrize(
    ("environ", "is_launched"),
    [
        ({"RANK": "0", "WORLD_SIZE": "2"}, True),
        ({"RANK": "0"}, False),
        ({"SLURM_PROCID": "0", "SLURM_STEP_ID": "0", "SLURM_JOB_NAME": "train"}, True),
        ({"SLURM_PROCID": "0", "SLURM_JOB_NAME": "train"}, False),  # a batch script without srun
        ({"SLURM_PROCID": "0", "SLURM_STEP_ID": "0", "SLURM_JOB_NAME": "bash"}, False),
        ({}, False),
    ],
)
def test_what_another_launcher_started_is_not_launched_again(script, environ, is_launched):
    assert (outer_launcher(environ) is not None) == is_launched
    plan = plan_of("--devices", "2", "--accelerator", "cpu", script(), environ=environ)
    assert (plan.in_process is not None) == is_launched


def test_options_left_aside_are_said(script, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["run", "--devices", "2", script()]) == 0
    assert "--devices left aside: RANK and WORLD_SIZE are set" in capsys.readouterr().err
    assert record(tmp_path, "1")["pid"] == os.getpid()


@pytest.mark.parametrize(
    ("devices", "accelerator", "visible", "expected"),
    [
        ("auto", None, [], (1, {})),
        ("auto", None, ["0", "1", "2"], (3, {})),
        ("auto", "cpu", ["0", "1"], (1, {})),
        ("2", None, [], (2, {})),
        ("2", "cpu", ["0", "1", "2"], (2, {})),
        ("2", "cuda", ["0", "1", "2"], (2, {"CUDA_VISIBLE_DEVICES": "0,1"})),
        ("2,0", None, ["4", "5", "6"], (2, {"CUDA_VISIBLE_DEVICES": "6,4"})),
        ("1,", "gpu", ["0", "1"], (1, {"CUDA_VISIBLE_DEVICES": "1"})),
        ("1,0", None, ["0", "1"], (2, {"CUDA_VISIBLE_DEVICES": "1,0"})),
    ],
)
def test_devices_become_processes(monkeypatch, devices, accelerator, visible, expected):
    monkeypatch.setattr(planning, "visible_cuda_devices", lambda environ: visible)
    assert local_processes(devices, accelerator, {}) == expected


@pytest.mark.parametrize(("devices", "accelerator", "visible"), [("2", None, ["0"]), ("1", "cuda", []), ("0,3", None, ["0", "1", "2"])])
def test_absent_cuda_devices_are_said(monkeypatch, devices, accelerator, visible):
    monkeypatch.setattr(planning, "visible_cuda_devices", lambda environ: visible)
    with pytest.raises(UsageError, match=rf"--devices {devices} asks for CUDA device \d, and {len(visible)} are visible"):
        local_processes(devices, accelerator, {})


# ---- several processes


def test_two_processes_get_ranks_and_the_first_failure_decides(script, tmp_path, capfd):
    report = "os.write(1, b'rank ' + os.environ['RANK'].encode() + b'\\n')"  # in one piece, lest the lines of both processes mix
    path = script(f"import time\n{report}\nsys.exit(3) if os.environ['RANK'] == '1' else time.sleep(60)")
    start = time.monotonic()
    assert main(["run", "--devices", "2", "--accelerator", "cpu", path, "fit", "--run", "x", "--help"]) == 3
    assert time.monotonic() - start < 40
    records = [record(tmp_path, rank) for rank in (0, 1)]
    assert [r["environment"]["RANK"] for r in records] == ["0", "1"]
    assert {(r["environment"]["WORLD_SIZE"], r["environment"]["LOCAL_WORLD_SIZE"]) for r in records} == {("2", "2")}
    assert len({r["environment"]["TOUCHSTONE_RUN_STAMP"] for r in records}) == 1
    assert all(r["argv"] == [path, "fit", "--run", "x", "--help"] for r in records)
    assert not any(psutil.pid_exists(r["pid"]) for r in records)
    out, err = capfd.readouterr()
    assert sorted(out.split("\n")) == ["", "rank 0", "rank 1"]
    assert err.strip() == "lightning run: process 1 of 2 ended with exit code 3; the others were stopped"


def test_processes_that_end_well_tell_the_exit_code(script, capfd):
    path = script("if os.environ['RANK'] == '1':\n    Path(os.environ['TOUCHSTONE_EXIT_CODE_FILE']).write_text('2')")
    assert main(["run", "--devices", "2", "--accelerator", "cpu", path]) == 2
    assert capfd.readouterr().err == ""
    assert "TOUCHSTONE_EXIT_CODE_FILE" not in os.environ


def test_killed_process_is_named_by_its_signal(script, capfd):
    path = script("import signal, time\nos.kill(os.getpid(), signal.SIGKILL) if os.environ['RANK'] == '0' else time.sleep(60)")
    assert main(["run", "--devices", "2", "--accelerator", "cpu", path]) == 128 + signal.SIGKILL
    assert "process 0 of 2 ended with signal SIGKILL" in capfd.readouterr().err


def test_one_process_without_accelerator_knows_its_world(script, tmp_path, monkeypatch):
    monkeypatch.setattr(planning, "visible_cuda_devices", lambda environ: [])
    assert main(["run", "--devices", "1", script()]) == 0
    assert record(tmp_path, "0")["environment"]["LOCAL_WORLD_SIZE"] == "1"


def test_main_port_is_used_and_a_taken_one_is_said(script, tmp_path, capfd):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert main(["run", "--devices", "2", "--accelerator", "cpu", "--main-port", str(port), script()]) == 1
        assert f"the processes could not meet at 127.0.0.1:{port}; is the port in use" in capfd.readouterr().err
    path = script("assert os.environ['MASTER_PORT'] == sys.argv[1]")
    assert main(["run", "--devices", "2", "--accelerator", "cpu", "--main-port", str(port), path, str(port)]) == 0


STUBBORN = "import signal, time\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(0))\ntry:\n    time.sleep(60)\nfinally:\n    time.sleep(0.5)"


def test_impatient_interrupts_leave_no_process_behind(script, tmp_path):
    command = [sys.executable, "-m", "shared.launch", "run", "--devices", "2", "--accelerator", "cpu", script(STUBBORN)]
    launcher = subprocess.Popen(command, cwd=REPOSITORY)
    records = [wait_for(tmp_path / f"record{rank}.json") for rank in (0, 1)]
    for _ in range(3):
        launcher.send_signal(signal.SIGINT)
        time.sleep(0.1)
    assert launcher.wait(timeout=40) == 130
    assert not any(psutil.pid_exists(r["pid"]) for r in records)


def test_termination_stops_every_process(script, tmp_path):
    records = []

    def terminate():
        records.extend(wait_for(tmp_path / f"record{rank}.json") for rank in (0, 1))
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        threading.Thread(target=terminate, daemon=True).start()
        assert main(["run", "--devices", "2", "--accelerator", "cpu", script(STUBBORN)]) == 143
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)
    assert len(records) == 2
    assert not any(psutil.pid_exists(r["pid"]) for r in records)


def test_interrupt_of_a_script_in_process(script, tmp_path):
    launcher = subprocess.Popen([sys.executable, "-m", "shared.launch", "run", script("import time; time.sleep(60)")], cwd=REPOSITORY)
    assert wait_for(tmp_path / "record.json")["pid"] == launcher.pid
    launcher.send_signal(signal.SIGINT)
    assert launcher.wait(timeout=20) == 130


def wait_for(file: Path, seconds: float = 40):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if file.exists() and (text := file.read_text()):
            time.sleep(0.2)  # the script comes from writing its record to what it does then
            return json.loads(text)
        time.sleep(0.05)
    raise TimeoutError(f"no {file} after {seconds} s")


# ---- the other commands


@pytest.mark.parametrize("args", [["--help"], ["list", "--json"], ["run", "--dry-run", "--accelerator", "cpu", "projects/diff_cleanse/cli.py"]])
def test_answers_without_any_library(args):
    bare = [sys.executable, "-S", "-m", "shared.launch", *args]  # -S: nothing but the standard library can be imported
    assert subprocess.run(bare, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout


def test_the_command_lightning_is_ours_alone(capsys):
    assert script_owners() == ["touchstone"]
    assert not list(importlib.metadata.distributions(name="lightning-sdk"))
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert f"lightning {importlib.metadata.version('lightning')}" in out
    assert "the command `lightning` belongs to touchstone" in out


def test_list_prints_every_project(capsys):
    assert main(["list", "--json"]) == 0
    listed = {project["name"]: project for project in json.loads(capsys.readouterr().out)}
    assert set(listed) == {path.parent.name for path in REPOSITORY.glob("projects/*/cli.py")}
    assert listed["diff_cleanse"]["script"] == "projects/diff_cleanse/cli.py"
    assert {"fit", "test", "predict"} <= set(listed["diff_cleanse"]["verbs"])
    assert {"search", "robustness"} <= set(listed["forgery_nas"]["verbs"])  # the second one stands in shared
    assert all(10 < len(project["title"]) < 160 for project in listed.values())  # a clause
    assert main(["list"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in listed)
    assert shown.splitlines()[-1].startswith("Each also has fit, validate, test, predict;")


def test_projects_are_read_without_importing_them(tmp_path):
    methods = "    def scan(self): ...\n    def _help(self): ...\n    @property\n    def run(self): ...\n"
    cli = "raise RuntimeError\nclass Trainer(ProjectTrainer):\n" + methods
    for name in ("alpha", "beta", "gamma"):
        (tmp_path / "projects" / name).mkdir(parents=True)
        (tmp_path / "projects" / name / "cli.py").write_text(cli)
    (tmp_path / "projects/alpha/README.md").write_text("# alpha\n\n![picture](a.png)\n\nFinds triggers\nin models: all. More.\n")
    (tmp_path / "projects/beta/__init__.py").write_text('"""Beta: certifies classifiers.\n\nLong text."""\n')
    (tmp_path / "projects/gamma/cli.py").write_text("def broken(:")
    alpha, beta, gamma = find_projects(tmp_path)
    assert (alpha.title, beta.title, gamma.title) == ("Finds triggers in models", "Beta: certifies classifiers", "")
    assert alpha.verbs == ["fit", "validate", "test", "predict", "scan"]
    assert gamma.verbs == []


def test_report_of_an_unknown_run_is_a_message(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TOUCHSTONE_RUNS", str(tmp_path))
    assert main(["report", "nothing"]) == 1
    assert "no run 'nothing'" in capsys.readouterr().err


@pytest.mark.reports
def test_report_builds_and_compares_pages(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TOUCHSTONE_RUNS", str(tmp_path))
    for name in ("first", "second"):
        folder = tmp_path / "demo" / name / "fit"
        folder.mkdir(parents=True)
        (folder / "metrics.csv").write_text("step,train/loss\n0,1.0\n1,0.5\n")
    (tmp_path / "demo" / "latest").write_text("second\n")
    assert main(["report", "demo"]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "demo/second/report.html")
    assert main(["report", "demo/first", "demo/second", "--out", str(tmp_path / "both.html")]) == 0
    assert main(["report", "demo/first", "--out", str(tmp_path / "one.html")]) == 0
    assert all("train/loss" in (tmp_path / page).read_text() for page in ("demo/second/report.html", "both.html", "one.html"))


def test_dashboard_of_an_unknown_project_is_a_message(capsys):
    assert main(["dashboard", "nothing"]) == 1
    assert f"no dashboard {REPOSITORY / 'projects' / 'nothing' / 'dashboard.yaml'}" in capsys.readouterr().err


def test_doctor_prints_json_and_a_table(capsys):
    code = main(["doctor", "--json"])
    checks = {check["name"]: check for check in json.loads(capsys.readouterr().out)}
    assert code == int(any(check["state"] == "broken" for check in checks.values()))
    assert {"Python", "dependencies", "torch", "CUDA", "disk", "W&B", "lightning command"} <= set(checks)
    assert checks["lightning command"]["state"] != "broken"
    main(["doctor"])
    assert capsys.readouterr().out.splitlines()[0].split() == ["check", "state", "found", "what", "to", "do"]
