"""Every project's training ends after a hard kill as if it had not been killed, and is in two processes what it is in one.

The projects whose own tests show this in the default suite are listed with those tests; the others are trained here, through their command lines.
"""

import csv
import importlib
import signal
from pathlib import Path

import pytest
import torch
from helpers.commands import slow
from helpers.processes import run_together, start
from helpers.runs import runs_in
from helpers.workers import command_line, fit_until_killed

from shared.checkpoints import load_checkpoint

ROOT = Path(__file__).parent.parent
PROJECTS = sorted(path.parent.name for path in (ROOT / "projects").glob("*/cli.py"))
QUIET = ["--trainer.enable_model_summary=false", "--trainer.log_every_n_steps=1", "--trainer.max_epochs=2"]
SMALL = {
    "cafe": ["--data.count=80", "--model.widths=[4,8]", "--model.first=16"],
    "diff_cleanse": [
        *("--trainer.max_steps=-1", "--trainer.check_val_every_n_epoch=1", "--data.val_fraction=0.9", "--data.batch_size=64"),
        *("--model.timesteps=10", "--model.eval_samples=4", "--model.eval_steps=2"),
    ],
    "drs": ["--trainer.check_val_every_n_epoch=1", "--data.batch_size=700"],
    "forgery_nas": ["--data.length=32", "--data.test_length=8", "--data.size=32", "--data.batch_size=16", "--model.channels=4", "--model.layers=3"],
    "hodinet": [
        *("--model.widths=[8,12,16,20]", "--model.size=32"),
        *("--data.size=32", "--data.length=16", "--data.test_length=7", "--data.batch_size=8"),
    ],
    "moe_ffd": [
        *("--data.length=32", "--data.test_length=8", "--data.augmentation=none", "--model.ranks=[1,2]", "--model.kinds=[cv,rd]"),
        *("--model.lora_router=uniform", "--model.adapter_router=uniform"),
    ],
    "rco": [
        *("--data.bits=10", "--data.secret=2", "--data.length=256", "--data.test_length=64", "--data.held_out=64", "--data.batch_size=64"),
        *("--model.teacher=mlp_32", "--model.student=mlp_6", "--model.teacher_epochs=2", "--model.walk.anchors=2"),
    ],
    "rsknet": [
        *("--model.options={layers: [1, 1, 1], widths: [4, 6, 8], embedding: 12}", "--data.batch_size=8", "--data.speakers=8"),
        *("--data.utterances=4", "--data.held_speakers=6", "--data.test_speakers=5", "--data.test_utterances=3"),
    ],
    "s3rp": [
        *("--data.world.size=16", "--data.world.frames=4", "--data.world.sigma=0.01", "--data.world.missing=0", "--data.world.diffusivity=0.01"),
        *("--data.train=8", "--data.val=4", "--data.test=3", "--data.batch_size=4", "--model.channels=4", "--model.hide=0", "--members=0"),
    ],
    "tripinet": [
        *("--model.channels=8", "--model.width=8", "--data.size=32", "--data.length=16", "--data.test_length=7", "--data.batch_size=8"),
        *("--data.test_sets=[noise]", "--model.norm=group"),
    ],
}
"""Options of a training of two epochs of a few steps."""
KILLED = {"cafe": 2, "diff_cleanse": 2, "hodinet": 2, "rco": 4, "rsknet": 4, "s3rp": 2}
"""After which step a training is killed: the last of its first epoch, before its validation."""
OWN_KILLED = {
    "comad": "test_verbs.py::test_a_killed_fit_goes_on_and_learns_the_same",
    "drs": "test_module.py::test_a_killed_training_resumes_to_the_same_weights",
    "dvae": "test_module.py::test_a_killed_training_resumes_in_the_second_stage_to_the_same_weights",
    "forgery_nas": "test_verbs.py::test_a_killed_search_resumes_to_the_same_cells",
    "moe_ffd": "test_verbs.py::test_a_killed_training_resumes_to_the_same_weights",
    "tripinet": "test_verbs.py::test_a_killed_training_resumes_to_the_same_weights",
    "umed": "test_verbs.py::test_a_killed_training_resumes_to_the_same_weights",
    "vafl": "test_processes.py::test_a_killed_server_is_waited_for_and_no_answer_is_given_twice",
}
"""Tests of projects that kill a process where it hurts most: in a second stage, a search, a federation."""
TOGETHER = {
    "diff_cleanse": 1e-4,
    "drs": 0.1,
    "forgery_nas": 0.1,
    "hodinet": 0.1,
    "moe_ffd": 0.05,
    "rco": 1e-4,
    "rsknet": 0.35,
    "s3rp": 1e-3,
    "tripinet": 1e-3,
}
"""How far what two processes log may be from what one logs, also relative to it: batch normalisation sees half of each batch."""
OWN_TOGETHER = {
    "cafe": "test_configs.py::test_several_processes_are_refused",
    "comad": "test_verbs.py::test_two_processes_learn_and_measure_what_one_does",
    "dvae": "test_module.py::test_two_processes_follow_one",
    "umed": "test_verbs.py::test_two_processes_follow_one",
    "vafl": "test_ddp.py::test_two_processes_learn_what_one_learns",
}
"""Tests of projects for several processes; the parties of cafe are simulated in one."""
HEAVY = {"diff_cleanse"}
"""Projects whose smallest training takes long: with the slow tests."""
KILLED_CASES, TOGETHER_CASES = ([slow(name) if name in HEAVY else name for name in table] for table in (KILLED, TOGETHER))


@pytest.mark.parametrize(("here", "own"), [(KILLED, OWN_KILLED), (TOGETHER, OWN_TOGETHER)], ids=["killed", "together"])
def test_every_project_is_in_the_matrix(here, own):
    assert sorted([*here, *own]) == PROJECTS
    for project, place in own.items():
        file, name = place.split("::")
        assert f"def {name}(" in (ROOT / "tests" / "projects" / project / file).read_text(encoding="utf-8"), f"{project} has no {place}"


def rows_of(folder):
    return list(csv.DictReader((folder / "fit" / "metrics.csv").open()))


def logged(folder, prefix):
    """Return the values that a training logged, by name and step."""
    return {(name, row["step"]): float(value) for row in rows_of(folder) for name, value in row.items() if name.startswith(prefix) and value}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """Returns the folder of runs in which a project's training was carried out once, in one process, as the run `whole`."""
    made = {}

    def train(project):
        if project not in made:
            folder = tmp_path_factory.mktemp("whole")
            with runs_in(folder):
                importlib.import_module(f"projects.{project}.cli").main(["fit", *QUIET, *SMALL[project], "--run=whole"])
            made[project] = folder
        return made[project]

    return train


@pytest.fixture(autouse=True)
def without_pictures(monkeypatch):
    """Figures of these runs are not looked at, and take much of the time of such short ones."""
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, path, **options: Path(path).touch())


@pytest.mark.parametrize("project", KILLED_CASES)
def test_a_killed_training_ends_as_an_unbroken_one(unbroken, monkeypatch, project):
    folder = unbroken(project)
    monkeypatch.setenv("TOUCHSTONE_RUNS", str(folder))
    process = start(fit_until_killed, ["fit", *QUIET, *SMALL[project], "--save_every=1", "--run=broken"], project, KILLED[project])
    process.join(240)
    assert process.exitcode == -signal.SIGKILL
    importlib.import_module(f"projects.{project}.cli").main(["fit", "--resume", "--run=broken"])
    broken, whole = (folder / project / name for name in ("broken", "whole"))
    checkpoints = {file.name for file in (whole / "checkpoints").iterdir()}
    assert {file.name for file in (broken / "checkpoints").iterdir()} == checkpoints >= {"last.ckpt"}
    for file in checkpoints & {"last.ckpt", "best.ckpt"}:
        one, other = (load_checkpoint(run / "checkpoints" / file) for run in (whole, broken))
        assert (other["global_step"], other["epoch"]) == (one["global_step"], one["epoch"])
        for name, value in one["state_dict"].items():
            torch.testing.assert_close(other["state_dict"][name], value, atol=1e-6, rtol=1e-5)  # rounding may differ between the processes
    assert logged(broken, "val/") == {key: pytest.approx(value, rel=1e-4, abs=1e-6) for key, value in logged(whole, "val/").items()}


@pytest.mark.parametrize("project", TOGETHER_CASES)
def test_two_processes_learn_and_validate_as_one(unbroken, monkeypatch, project):
    folder = unbroken(project)
    monkeypatch.setenv("TOUCHSTONE_RUNS", str(folder))
    run_together(command_line, ["fit", *QUIET, *SMALL[project], "--run=two"], project)
    one, two = (folder / project / name for name in ("whole", "two"))
    for prefix in ("train/loss", "val/"):
        expected, found = logged(one, prefix), logged(two, prefix)
        assert found == {key: pytest.approx(value, rel=TOGETHER[project], abs=TOGETHER[project]) for key, value in expected.items()}
