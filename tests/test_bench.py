"""The command that runs all benchmarks, and the one that checks a GPU."""

import importlib
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PROJECTS = sorted(path.parent.name for path in (TESTS.parent / "projects").glob("*/cli.py"))
SCRIPTS = sorted((TESTS / "bench").glob("bench_*.py"))


@pytest.fixture
def load(monkeypatch):
    """Return a function that imports a module of tests/bench or tests/gpu for this test alone."""
    monkeypatch.syspath_prepend(str(TESTS / "gpu"))
    monkeypatch.syspath_prepend(str(TESTS / "bench"))
    before = set(sys.modules)
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and Path(sys.modules[name].__file__).parent in (TESTS / "bench", TESTS / "gpu"):
            del sys.modules[name]


def row(ratio=2.0, target=None, **other):
    given = {"project": "cafe", "what": "step", "size": "8 | 9", "ours": 0.5, "other": 0.5 * ratio, "beside": "loop", "kind": "naive", "unit": "s"}
    return given | {"ratio": ratio, "target": target, "reason": "", "peak": None} | other


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_every_benchmark_records_what_it_compares_and_has_a_quick_run(script):
    source = script.read_text()
    assert re.search(r"\brecord\(", source)
    assert '"--quick"' in source


def test_every_project_has_a_benchmark_and_a_check_on_a_gpu(load):
    results, fits = load("results"), load("fits")
    assert {results.PROJECTS.get(name, name) for name in results.SCRIPTS} == set(PROJECTS) == set(fits.FITS)
    assert set(load("check").SPEED) <= set(results.SCRIPTS)


def test_a_ratio_above_one_is_better_for_times_and_for_rates(load, tmp_path, monkeypatch):
    monkeypatch.setenv("TOUCHSTONE_BENCH", str(tmp_path / "rows.jsonl"))
    record = load("timing").record
    record("sum", "8", 2.0, 6.0)
    record("sum", "8", 30.0, 10.0, "numpy", kind="peer", unit="images/s", target=5, reason="it is small", peak=7.0)
    first, second = (json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines())
    assert first["ratio"] == second["ratio"] == 3
    assert (first["target"], first["kind"]) == (None, "naive")
    assert (second["target"], second["reason"], second["peak"], second["beside"]) == (5, "it is small", 7.0, "numpy")
    monkeypatch.delenv("TOUCHSTONE_BENCH")
    record("sum", "8", 2.0, 6.0)
    assert len((tmp_path / "rows.jsonl").read_text().splitlines()) == 2


def test_a_peer_that_is_not_there_is_left_out_with_a_word(load, capsys):
    timing = load("timing")
    assert timing.installed("json")
    assert not timing.installed("a_peer_that_nobody_wrote")
    assert "a_peer_that_nobody_wrote: left out" in capsys.readouterr().out


@pytest.fixture
def scripts(load, tmp_path, monkeypatch):
    """Return the modules `all` and `results` over three small benchmarks of their own: one is good, one fails, one never ends."""
    results = load("results")
    line = json.dumps({name: value for name, value in row(target=3).items() if name != "project"})
    (tmp_path / "bench_good.py").write_text(
        f"import os, sys\nprint(sys.argv[1:])\nopen(os.environ['TOUCHSTONE_BENCH'], 'w').write({line + chr(10)!r})\n"
    )
    (tmp_path / "bench_bad.py").write_text("print('before')\nraise ValueError('out of luck')\n")
    (tmp_path / "bench_endless.py").write_text("import time\ntime.sleep(600)\n")
    monkeypatch.setattr(results, "HERE", tmp_path)
    monkeypatch.setattr(results, "ROOT", tmp_path)
    everything = load("all")
    monkeypatch.setattr(everything, "SCRIPTS", ["bad", "good"])
    monkeypatch.setattr(everything, "KEPT", tmp_path / "results.json")
    monkeypatch.setattr(everything, "TABLE", tmp_path / "RESULTS.md")
    monkeypatch.setattr(everything, "README", tmp_path / "README.md")
    (tmp_path / "README.md").write_text("a\n" + "\nold\n".join(results.MARKERS) + "\nb\n")
    return everything, results


def test_a_script_that_fails_or_never_ends_is_said_to(scripts):
    _, results = scripts
    rows, _, failure = results.run("good", [], 60)
    assert [each["project"] for each in rows] == ["good"]
    assert failure == ""
    assert results.run("bad", [], 60)[::2] == ([], "exit code 1: ValueError: out of luck")
    assert results.run("endless", [], 1)[::2] == ([], "was stopped after 1 s (--limit)")


def test_one_command_writes_one_table_and_renews_a_part_of_it(scripts, tmp_path, capsys):
    everything, _ = scripts
    assert everything.main(["--write"]) == 1
    page = (tmp_path / "RESULTS.md").read_text()
    assert "| good | step | 8 / 9 | 500 ms | loop: 1 s | **2** | 3 |" in page
    assert "## Below target\n\n- good, step, 8 | 9: 2 where 3 was asked for beside loop." in page
    assert "- bench_bad.py: exit code 1: ValueError: out of luck" in page
    assert "failed: bench_bad.py" in capsys.readouterr().err
    (tmp_path / "bench_bad.py").write_text("pass\n")
    assert everything.main(["--write", "--only", "bad"]) == 0
    page = (tmp_path / "RESULTS.md").read_text()
    assert "| good | step |" in page
    assert "## Failed" not in page
    readme = (tmp_path / "README.md").read_text()
    assert "| good | 2 |  | 0 of 1 |" in readme
    assert (readme[:2], readme[-2:], "old" in readme) == ("a\n", "b\n", False)


@pytest.mark.parametrize(("arguments", "message"), [(["--quick", "--write"], "leave out --write"), (["--only", "goood"], "no benchmark goood")])
def test_wrong_options_are_named(scripts, capsys, arguments, message):
    with pytest.raises(SystemExit) as stop:
        scripts[0].main(arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_what_is_below_its_target_is_listed_with_the_reason(load):
    results = load("results")
    rows = [row(4.0, 5, reason="fields are large"), row(5.0, 5), row(0.1), row(0.5, 1, kind="bound", beside="60 s", ours=120.0, other=60)]
    listed = results.below_target(rows).splitlines()
    assert [line.endswith(end) for line, end in zip(listed, ("beside loop. Fields are large.", "beside 60 s. No reason is known."), strict=True)] == [
        True
    ] * 2
    assert results.below_target([row(5.0, 5)]) == "Nothing."
    assert results.markdown(rows).splitlines()[-1] == "| cafe | step | 8 / 9 | 120 s | 60 s (bound) | **0.5** | 1 |"


@pytest.mark.parametrize(
    ("value", "unit", "text"), [(2.5e-5, "s", "25 us"), (0.0123, "s", "12.3 ms"), (61.04, "s", "61 s"), (12345.6, "images/s", "12346 images/s")]
)
def test_amounts_are_read_easily(load, value, unit, text):
    assert load("results").amount(value, unit) == text


def test_runs_on_two_devices_agree_by_their_losses_or_their_summaries(load):
    compare = load("fits").compare
    run = lambda losses, **told: {"losses": losses, "told": told}  # noqa: E731
    assert compare(run([1.0, 0.51]), run([1.0, 0.5]), is_loose=False)[0]
    assert not compare(run([1.1, 0.5]), run([1.0, 0.5]), is_loose=False)[0]
    assert compare(run([1.1, 0.5]), run([1.0, 0.5]), is_loose=True)[0]
    assert not compare(run([1.0, math.nan]), run([1.0, 0.5]), is_loose=True)[0]
    assert not compare(run([1.0]), run([1.0, 0.5]), is_loose=True)[0]
    assert compare(run([], psnr=40.0), run([], psnr=41.0), is_loose=False)[0]
    assert not compare(run([], psnr=10.0), run([], psnr=41.0), is_loose=False)[0]
    assert not compare(run([]), run([], psnr=41.0), is_loose=False)[0]


def test_a_machine_without_a_gpu_is_told_of_the_rehearsal(load, capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert load("check").main([]) == 1
    assert "--device cpu rehearses the checks" in capsys.readouterr().err


@pytest.mark.slow
def test_the_checks_of_a_gpu_can_be_rehearsed_without_one(tmp_path):
    command = [
        sys.executable,
        str(TESTS / "gpu" / "check.py"),
        "--device",
        "cpu",
        "--only",
        "drs",
        "vafl",
        "--steps",
        "2",
        "--out",
        str(tmp_path / "table.md"),
    ]
    done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=580, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    table = (tmp_path / "table.md").read_text()
    for cell in (
        "sums over channels",
        "noise, checkerboard",
        "drs fit | cpu, bf16-mixed",
        "drs certify",
        "vafl fit",
        "drs: training under the Trainer",
    ):
        assert cell in table


def test_the_overview_has_a_line_a_project_with_the_median_of_its_ratios(load):
    results = load("results")
    rows = [row(2.0, 3), row(4.0, 3), row(150.0), row(1.5, kind="peer"), row(0.5, 1, kind="bound")]
    kept = {"scan": {"rows": [row(1.1, project="diff_cleanse")]}, "cafe": {"rows": rows}}
    assert results.overview(kept).splitlines()[2:] == ["| cafe | 4 (2 to 150, 3) | 1.5 | 1 of 3 |", "| diff_cleanse | 1.1 |  |  |"]
    assert all(marker in results.README.read_text(encoding="utf-8") for marker in results.MARKERS)
