"""Two processes train a teacher and a student as one does."""

import json

import pytest
import torch
from helpers.distilling import SHORT
from helpers.processes import run_together
from helpers.workers import command_line

from projects.rco.anchors import Route
from projects.rco.cli import main
from shared.checkpoints import load_checkpoint


def student(folder):
    return load_checkpoint(folder / "checkpoints" / "last.ckpt")


def agree(found, expected, tolerance=1e-5):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=tolerance, rtol=tolerance)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        ["--model.cache=false"],
        ["--model.cache=true"],
        ["--model.loss={kind: kd+hint, tau: 1.0, hint_stage: 0}", "--model.cache=null"],
        ["--model.walk.choice=greedy", "--model.walk.delta=0.05", "--model.walk.floor=0.01"],
        ["--model.walk.budget=restart", "--trainer.max_epochs=2"],
    ],
    ids=["uncached", "cached", "hint", "greedy", "restart"],
)
def test_two_processes_distil_to_the_student_of_one(run_folder, options):
    """Each of them sees half of each batch, and the gradient is the mean of both."""
    main(["fit", "--run=one", *SHORT, *options])
    run_together(command_line, ["fit", "--run=two", *SHORT, *options], "rco")
    one, two = (run_folder / "rco" / name for name in ("one", "two"))
    routes = [Route.load(folder / "artefacts" / "fit" / "anchors") for folder in (one, two)]
    assert routes[0].epochs == routes[1].epochs == [1, 2, 3, 4]
    for epoch in routes[0].epochs:
        agree(routes[1].tensors(epoch), routes[0].tensors(epoch))
    for whole, halved in zip(*(route.history for route in routes), strict=True):
        assert halved.metrics == pytest.approx(whole.metrics, abs=1e-4)
    found, expected = student(two), student(one)
    for part in ("state_dict", "objective"):
        agree(found[part], expected[part])
    plain = ("choice", "epochs", "anchors", "starts", "stops", "states")
    assert {name: found["walk"][name] for name in plain} == {name: expected["walk"][name] for name in plain}
    assert (found["taught"], found["global_step"]) == (expected["taught"], expected["global_step"])
    [row], [other] = (json.loads((folder / "artefacts" / "fit" / "student.json").read_text()) for folder in (one, two))
    assert other == {name: pytest.approx(value, abs=1e-4) if isinstance(value, float) else value for name, value in row.items()}
    assert not list(two.rglob(".*.safetensors")), "the route is written by one of them"


@pytest.mark.slow
def test_two_processes_test_and_follow_a_route_that_is_there(runs):
    before = json.loads((runs / "student" / "artefacts" / "fit" / "student.json").read_text())
    run_together(command_line, ["test", "--run=student"], "rco")
    [row] = json.loads((runs / "student" / "artefacts" / "test" / "student.json").read_text())
    assert row == {name: pytest.approx(value, abs=1e-5) if isinstance(value, float) else value for name, value in before[0].items()}
    run_together(command_line, ["fit", "--run=two", *SHORT, "--model.route=teacher"], "rco")
    agree(student(runs / "two")["state_dict"], student(runs / "student")["state_dict"])
    assert not (runs / "two" / "artefacts" / "fit" / "anchors").exists()
