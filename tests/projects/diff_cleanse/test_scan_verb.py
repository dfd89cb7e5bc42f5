import csv
import json
import os
import re
import signal
import sys
import time

import pytest
import torch
from helpers.planted import CONFIG
from helpers.processes import run_together, start
from helpers.scanning import OPTIONS, QUICK, plant, scan_as_a_script, scan_until_killed
from safetensors.torch import load_file, save_file

from projects.diff_cleanse import scan as scanning
from projects.diff_cleanse.cli import main
from shared.backbones.unets import build_unet, save_pipeline


@pytest.fixture(autouse=True)
def quick_recipe(monkeypatch):
    monkeypatch.setitem(scanning.BUDGETS, "fast", QUICK)


@pytest.fixture
def planted(monkeypatch, tmp_path):
    """A folder that is read as a model with an ODE backdoor."""
    plant(monkeypatch.setattr)
    (tmp_path / "model").mkdir()
    return str(tmp_path / "model")


@pytest.fixture
def pipeline(tmp_path):
    """A real pipeline folder with an untrained network."""
    from diffusers import DDPMScheduler

    torch.manual_seed(0)
    return save_pipeline(build_unet("tiny", 8, 1), DDPMScheduler(**CONFIG), tmp_path / "foreign" / "pipeline")


def ended(capsys, *args):
    """Run the command as a script; returns the exit code, and what went to both streams."""
    named = [*map(str, args)]
    sys.argv = ["cli.py", "scan", *named[:1], *OPTIONS, *named[1:]]
    try:
        main()
        code = 0
    except SystemExit as stop:
        code = stop.code
    return code, capsys.readouterr()


def comparable(folder):
    content = json.loads((folder / "report.json").read_text()) | {"seconds": None}
    return content | {"findings": [finding | {"seconds": None} for finding in content["findings"]]}


@pytest.mark.reports
def test_a_backdoored_model_ends_with_1_and_leaves_the_evidence(planted, run_folder, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", [])
    code, shown = ended(capsys, planted, "--run", "found", "--out", tmp_path / "evidence")
    assert code == 1
    assert "BACKDOORED: noise that wears the inverted trigger" in shown.out
    assert "it answers to ddim (deterministic), not to ddpm (stochastic)" in shown.out
    next_command = f"next: lightning run projects/diff_cleanse/cli.py cleanse {planted} --trigger {tmp_path}/evidence/trigger.safetensors"
    assert next_command in shown.out
    run = run_folder / "diff_cleanse" / "found"
    kept = run / "artefacts" / "scan"
    names = {"report.json", "trigger.png", "trigger.safetensors", "samples_clean.png", "samples_triggered.png", "curve.csv"}
    assert {path.name for path in (tmp_path / "evidence").iterdir()} == names
    assert names < {path.name for path in kept.iterdir()}
    assert all((kept / name).read_bytes() == (tmp_path / "evidence" / name).read_bytes() for name in names)
    report = json.loads((kept / "report.json").read_text())
    assert (report["verdict"], report["exit_code"], report["answers_to"]) == ("backdoored", 1, ["ddim"])
    assert load_file(kept / "trigger.safetensors")["trigger"].shape == (1, 8, 8)
    assert {finding["device"] for finding in report["findings"]} == {"cpu"}
    findings = list(csv.DictReader((kept / "findings.csv").open()))
    assert [(row["sampler"], row["verdict"]) for row in findings] == [("ddim", "backdoored"), ("ddpm", "clean")]

    page = (run / "report.html").read_text()
    assert re.search(r'verdict</dt><dd class="words">backdoored', page)
    assert all(f'alt="{name} "' in page for name in ("trigger", "samples_clean", "samples_triggered"))
    assert "of triggered samples are one picture" in page  # the table of findings
    assert page.count("<svg") == 1
    assert all(f"{sampler}/gradient_loss" in page for sampler in ("ddim", "ddpm"))
    assert "<caption>curve" not in page

    code, shown = ended(capsys, planted, "--run", "found", "--out", tmp_path / "evidence", "--resume")
    assert code == 1
    assert "scan was done already with these settings and weights, with exit code 1" in shown.out
    code, shown = ended(capsys, planted, "--run", "found", "--threshold", "1.0", "--samplers", "ddpm", "--resume")
    assert (code, json.loads((kept / "report.json").read_text())["threshold"]) == (0, 1.0)


@pytest.mark.slow
def test_a_foreign_folder_is_judged_by_itself(pipeline, run_folder, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", [])
    (pipeline.parent / "config.yaml").write_text("trainer: {nonsense: true}\n")
    (pipeline / "unet" / "pytorch_model.bin").write_bytes(b"a pickle that is not read")
    code, shown = ended(capsys, pipeline, "--run", "foreign", "--samplers", "ddim")
    assert code == 0
    assert "CLEAN: no trigger was found" in shown.out
    assert "A clean verdict covers what was tried" in shown.out
    assert f"to look harder: lightning run projects/diff_cleanse/cli.py scan {pipeline} --recipe full --methods '[gradient,bbti]'" in shown.out

    weights = pipeline / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    save_file(tensors | {"conv_in.weight": tensors["conv_in.weight"] * torch.nan}, weights)
    code, shown = ended(capsys, pipeline, "--run", "broken")
    assert (code, shown.out) == (1, "")
    assert shown.err.startswith("error: the network's weights are not all finite numbers")
    assert not (run_folder / "diff_cleanse" / "broken").exists()


@pytest.mark.parametrize(
    ("spoil", "args", "message"),
    [
        (None, ["nowhere"], "no pipeline folder 'nowhere': give one that save_pretrained wrote, or a run's name"),
        ("unet/config.json", [], "is no pipeline folder: unet/config.json missing; expected what diffusers' save_pretrained writes"),
        ("unet/diffusion_pytorch_model.safetensors", [], "unet/weights.bin is a pickle and is not read, for it could execute code"),
        (None, ["--methods", "ufid"], "unknown method 'ufid'; known are gradient, bbti, bbti_released, elijah, terd"),
        (None, ["--samplers", "[ddim,euler]"], "unknown sampler 'euler'; known are ddim, ddpm"),
        (None, ["--recipe", "huge"], "unknown recipe 'huge'; known are quick, fast, full"),
        (None, ["--threshold", "2"], "threshold must lie in (0, 1], got 2.0"),
        (None, ["--out", "file/out"], "cannot write a report into file/out (Not a directory): choose another folder"),
    ],
)
def test_messages(pipeline, run_folder, capsys, monkeypatch, tmp_path, spoil, args, message):
    monkeypatch.setattr(sys, "argv", [])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (pipeline / "unet" / "weights.bin").touch()
    if spoil:
        (pipeline / spoil).unlink()
    given = args if args == ["nowhere"] else [pipeline, *args]
    code, shown = ended(capsys, *given, "--run", "wrong")
    assert (code, shown.out) == (1, "")
    assert message in shown.err
    assert not list(run_folder.rglob("*.json"))


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_half_precision_comes_to_the_same_verdict(planted, precision):
    done = main(["scan", planted, *OPTIONS, "--samplers", "ddim", "--trainer.precision", precision])
    finding = done.result.leading
    assert (done.result.verdict, done.exit_code) == ("backdoored", 1)
    assert finding.precision == {"bf16-mixed": "float32, autocast to bfloat16", "bf16-true": "bfloat16"}[precision]
    assert finding.tensors["triggered"].dtype == torch.get_default_dtype() == torch.float32


@pytest.mark.slow
def test_a_killed_scan_goes_on_where_it_stopped(planted, run_folder, capsys, monkeypatch):
    process = start(scan_until_killed, planted, "killed")
    part = run_folder / "diff_cleanse" / "killed" / "artefacts" / "scan" / "parts" / "gradient-ddim.safetensors"
    deadline = time.monotonic() + 120
    while not part.is_file() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.kill()
    process.join()
    written = part.stat().st_mtime_ns
    whole = main(["scan", planted, *OPTIONS, "--run", "whole"]).run.artefacts("scan")
    capsys.readouterr()
    resumed = main(["scan", planted, *OPTIONS, "--run", "killed", "--resume"])
    assert "gradient under ddim: backdoored, found earlier" in capsys.readouterr().out
    assert part.stat().st_mtime_ns == written
    assert comparable(resumed.run.artefacts("scan")) == comparable(whole)
    for name in ("trigger.png", "samples_clean.png", "samples_triggered.png", "curve.csv", "trigger.safetensors"):
        assert (resumed.run.artefacts("scan") / name).read_bytes() == (whole / name).read_bytes()
    assert [stage["status"] for stage in resumed.run.manifest()["stages"]] == ["running", "done"]
    main(["scan", planted, *OPTIONS, "--run", "killed", "--resume", "--force"])
    assert part.stat().st_mtime_ns > written


@pytest.mark.parametrize(("number", "expected"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_scan_says_how_to_go_on(planted, run_folder, capsys, monkeypatch, number, expected):
    make = scanning.Scan.make
    monkeypatch.setattr(sys, "argv", [])
    monkeypatch.setattr(scanning.Scan, "make", lambda job, *pair: make(job, *pair) if pair[1] == "ddim" else os.kill(os.getpid(), number))
    code, shown = ended(capsys, planted, "--run", "stopped")
    assert code == expected
    assert f"go on with: lightning run projects/diff_cleanse/cli.py scan {planted} {' '.join(OPTIONS)} --resume --run stopped" in shown.err
    assert json.loads((run_folder / "diff_cleanse" / "stopped" / "manifest.json").read_text())["stages"][0]["status"] == "interrupted"
    assert signal.getsignal(number) in (signal.default_int_handler, signal.SIG_DFL)


@pytest.mark.slow
@pytest.mark.parametrize("samplers", ["ddim,ddpm", "ddim"])
def test_two_processes_share_the_findings_and_agree(planted, run_folder, monkeypatch, samplers):
    monkeypatch.setenv("TOUCHSTONE_EXIT_CODE_FILE", str(run_folder / "exit_code"))
    run_together(scan_as_a_script, [planted, "--run", "two", "--samplers", samplers])
    assert (run_folder / "exit_code").read_text() == "1"
    alone = main(["scan", planted, *OPTIONS, "--run", "one", "--samplers", samplers]).run.artefacts("scan")
    assert comparable(run_folder / "diff_cleanse" / "two" / "artefacts" / "scan") == comparable(alone)
    assert os.environ.get("RANK") is None
