"""Trainings that were broken off end as unbroken ones; and what a checkpoint holds."""

import copy

import lightning as L
import pytest
import torch
from helpers.distilling import EPOCHS, STEPS, fit, student, world

from projects.rco.module import RouteDistillation
from projects.rco.objectives import Loss
from projects.rco.walking import Walk
from shared.callbacks import ResumePoint
from shared.checkpoints import load_checkpoint


class Killed(Exception):  # noqa: N818
    """Stands for a process that ends at once: nothing is written after it."""


class KillAt(L.Callback):
    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            raise Killed


HINTED = Loss("kd+hint", tau=1.0, ce=0.1, hint_stage=0)
BROKEN = {
    "mirror": {"walk": Walk(anchors=3)},
    "restart": {"walk": Walk(anchors=2, budget="restart")},
    "greedy": {"walk": Walk("greedy", delta=0.01, floor=0.01)},
    "greedy, restart": {"walk": Walk("greedy", delta=0.05, floor=0.01, budget="restart")},
    "hint": {"walk": Walk(anchors=3), "loss": HINTED},
}


def ended(module, data, folder, *callbacks, resume=None):
    """Train to the end and return the last checkpoint."""
    epochs = 3 if module.walk.budget == "restart" else EPOCHS
    fit(module, data, ResumePoint(folder, 1), *callbacks, epochs=epochs, resume=resume)
    return load_checkpoint(folder / "last.ckpt")


@pytest.fixture(scope="module")
def unbroken(teacher, tmp_path_factory):
    """Return the last checkpoint of an unbroken training, and the steps that its second leg begins after."""
    done = {}

    def of(name):
        if name not in done:
            last = ended(student(teacher, world(), **BROKEN[name]), world(), tmp_path_factory.mktemp("unbroken"))
            done[name] = last, last["walk"]["starts"][1] * STEPS
        return done[name]

    return of


PLACES = {"within a leg": -STEPS - 2, "at a leg's end": 0, "after a leg's first step": 1, "within the next leg": STEPS + 3}
"""Steps after the beginning of the second leg."""
SHOWN = {("mirror", 0), ("mirror", 1), ("restart", 0), ("greedy", 0), ("greedy", -STEPS - 2), ("greedy, restart", 0), ("hint", STEPS + 3)}
CASES = [
    pytest.param(name, step, marks=() if (name, step) in SHOWN else pytest.mark.slow, id=f"{name}, {place}")
    for name in BROKEN
    for place, step in PLACES.items()
]


@pytest.mark.parametrize(("name", "step"), CASES)
def test_a_killed_training_ends_at_the_weights_of_an_unbroken_one(teacher, unbroken, tmp_path, name, step):
    whole, second = unbroken(name)
    step = max(second + step, 1)
    with pytest.raises(Killed):
        ended(student(teacher, world(), **BROKEN[name]), world(), tmp_path, KillAt(step))
    assert load_checkpoint(tmp_path / "last.ckpt")["global_step"] == step
    again = ended(student(teacher, world(), **BROKEN[name]), world(), tmp_path, resume=tmp_path / "last.ckpt")
    assert again["global_step"] == whole["global_step"]
    for part in ("state_dict", "objective"):
        assert again[part].keys() == whole[part].keys()
        assert all(torch.equal(value, again[part][key]) for key, value in whole[part].items()), part
    for one, other in zip(again["optimizer_states"][0]["state"].values(), whole["optimizer_states"][0]["state"].values(), strict=True):
        assert torch.equal(one["momentum_buffer"], other["momentum_buffer"])
    assert (again["walk"], again["leg"], again["lr_schedulers"]) == (whole["walk"], whole["leg"], whole["lr_schedulers"])
    assert ("objective.terms.hint.regressor.weight" in whole["objective"]) == (name == "hint")


def test_two_stops_at_the_ends_of_epochs_leave_the_number_of_epochs_as_it_is(teacher, unbroken, tmp_path):
    whole, _ = unbroken("mirror")
    resume = None
    for step in (2 * STEPS, 4 * STEPS):
        with pytest.raises(Killed):
            ended(student(teacher, world(), **BROKEN["mirror"]), world(), tmp_path, KillAt(step), resume=resume)
        resume = tmp_path / "last.ckpt"
    again = ended(student(teacher, world(), **BROKEN["mirror"]), world(), tmp_path, resume=resume)
    assert again["global_step"] == whole["global_step"]
    assert all(torch.equal(value, again["state_dict"][key]) for key, value in whole["state_dict"].items())


def test_a_checkpoint_of_another_walk_is_refused(teacher, tmp_path):
    with pytest.raises(Killed):
        ended(student(teacher, world(), walk=Walk(anchors=3)), world(), tmp_path, KillAt(5))
    with pytest.raises(ValueError, match="the checkpoint's walk differs"):
        ended(student(teacher, world(), walk=Walk(anchors=2)), world(), tmp_path, resume=tmp_path / "last.ckpt")


# ---- checkpoints


def test_a_checkpoint_holds_the_student_alone(teacher, tmp_path):
    module, data = student(teacher, world(), walk=Walk(anchors=2), loss=HINTED), world()
    content = ended(module, data, tmp_path)
    assert set(content["state_dict"]) == {"student.hidden1.weight", "student.hidden1.bias", "student.output.weight", "student.output.bias"}
    assert set(content["objective"]) == {"objective.terms.hint.regressor.weight", "objective.terms.hint.regressor.bias"}
    assert content["class_names"] == data.class_names
    assert content["walk"]["anchors"] == [3, 6]
    read = RouteDistillation.load_from_checkpoint(tmp_path / "last.ckpt", weights_only=True)
    assert read.class_names == data.class_names
    assert all(torch.equal(value, module.state_dict()[name]) for name, value in read.state_dict().items())
    tested = [
        L.Trainer(logger=False, enable_progress_bar=False, accelerator="cpu").test(one, datamodule=data, verbose=False)[0] for one in (module, read)
    ]
    assert {"test/congruence", "test/agreement", "test/teacher_accuracy"} == tested[0].keys() - tested[1].keys()
    assert tested[0]["test/accuracy"] == tested[1]["test/accuracy"]


def test_a_training_can_be_followed_by_another_one(teacher):
    data = world()
    module = student(teacher, data, walk=Walk(anchors=2), loss=HINTED)
    fit(module, data, epochs=2)
    weights = copy.deepcopy(module.state_dict())
    fit(module, data, epochs=2)
    assert weights.keys() == module.state_dict().keys()
    assert not torch.equal(weights["student.output.weight"], module.state_dict()["student.output.weight"])
