"""The verb `route`: what it says of a teacher's states, against the same computed by hand."""

import copy
import csv
import json
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch.nn import functional as F

from projects.rco.anchors import AnchorRecorder, Route
from projects.rco.data import DistillationData
from projects.rco.diagnosing import Gap, Hardness, choices_of, compared_states, diagnose, hardness_rows, walk_greedily
from projects.rco.greedy import hardness, next_anchor
from projects.rco.module import RouteDistillation
from projects.rco.networks import build_network
from projects.rco.objectives import Loss
from projects.rco.recipes import Recipe
from projects.rco.teaching import Teacher
from projects.rco.walking import Walk
from shared.quiet import quiet_trainer, silence
from shared.runs import Run

EPOCHS, PURE, RECIPE = 4, Loss("kd", tau=1.0, ce=0.0, weights={"kd": 1.0}), Recipe(lr=0.1, schedule="steps", milestones=[2], weight_decay=0)


def world(**options):
    return DistillationData(**({"bits": 10, "secret": 2, "length": 512, "test_length": 64, "held_out": 128} | options))


def student(route=None):
    made = RouteDistillation([10], 2, student="mlp_6", walk=Walk(delta=0.1), loss=PURE, learning=RECIPE)
    made.route = route
    made.hparams.route = None if route is None else str(route.folder)
    return made


@pytest.fixture(scope="module")
def route(tmp_path_factory):
    folder = tmp_path_factory.mktemp("route")
    teacher = Teacher("mlp_64", [10], 2, recipe=RECIPE)
    with silence():
        quiet_trainer(EPOCHS, callbacks=[AnchorRecorder(folder, about=teacher.about)]).fit(teacher, datamodule=world())
    return Route.load(folder)


def verb_trainer(folder, **options):
    """A trainer as the command line makes one, without its folder of runs."""
    trainer = quiet_trainer(EPOCHS, default_root_dir=str(folder), **options)
    run = Run(folder)
    for name, value in {"run": run, "verb": "route", "is_forced": False, "save_every": 8}.items():
        setattr(trainer, name, value)
    return trainer


def trained(route, walk, judge, epochs=EPOCHS):
    module, data = student(route), world()
    module.walk = walk
    with silence():
        quiet_trainer(epochs, callbacks=[judge], limit_val_batches=0).fit(module, datamodule=data)
    return module, data


def held_logits(net, data):
    return net(torch.stack([data.held_set[place]["input"] for place in range(len(data.held_set))]).float())


def teacher_logits(route, epoch, data):
    net = build_network(route.about["network"], [10], 2)
    net.load_state_dict(route.tensors(epoch))
    return held_logits(net.eval(), data)


@torch.no_grad()
def test_a_leg_is_judged_by_the_student_that_it_leaves_behind(route):
    """The first leg of a walk over four states in four epochs is one epoch of plain distillation from the first."""
    judge = Hardness()
    with torch.enable_grad():
        trained(route, Walk("explicit", epochs=[1, 2, 3, 4]), judge)
        module, data = trained(route, Walk("single", epochs=[1]), Callback(), epochs=1)
    own = held_logits(module.student.eval(), data).log_softmax(1)
    said = {j: teacher_logits(route, j, data).log_softmax(1) for j in (1, 2, 3, 4)}
    expected = {j: float((logs.exp() * (logs - own)).sum()) for j, logs in said.items()}
    found = judge.losses[1]
    assert [found[j] / found[1] for j in (2, 3, 4)] == pytest.approx([expected[j] / expected[1] for j in (2, 3, 4)], rel=1e-4)
    assert {i: list(row) for i, row in judge.losses.items()} == {1: [1, 2, 3, 4], 2: [2, 3, 4], 3: [3, 4]}


def test_judging_between_legs_leaves_the_training_as_it_is(route):
    walk = Walk("explicit", epochs=[1, 3, 4])
    weights = [trained(route, walk, judge)[0].student.state_dict() for judge in (Hardness(), Callback())]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(tensor, weights[1][name], rtol=0, atol=0)


@torch.no_grad()
def test_a_student_of_one_state_is_compared_with_it_and_with_the_final_one(route):
    judge = Gap()
    with torch.enable_grad():
        module, data = trained(route, Walk("single", epochs=[2]), judge)
    own, labels = held_logits(module.student.eval(), data), torch.tensor([data.held_set[place]["label"] for place in range(128)])
    taught, final = (teacher_logits(route, epoch, data) for epoch in (2, 4))
    losses = [float(F.kl_div(own.log_softmax(1), said.log_softmax(1), log_target=True, reduction="batchmean")) for said in (taught, final)]
    accuracies = [float((one.argmax(1) == labels).float().mean()) for one in (taught, own)]
    expected = {"state": 2, "teacher_accuracy": accuracies[0], "accuracy": accuracies[1], "congruence": losses[0], "final_congruence": losses[1]}
    assert judge.row == pytest.approx(expected, rel=1e-4)


def test_the_verb_goes_on_where_it_was_stopped_and_writes_tables_and_figures(route, tmp_path, capsys, monkeypatch):
    """The plug is pulled within a walk's last leg, and as the second of the students of one state has been trained."""
    stops, steps, alone, step, judge = [25], [], [], RouteDistillation.training_step, Gap.on_fit_end

    def stepping(module, batch, batch_idx):
        steps.append(module.global_step)
        if steps[-1] in stops:
            raise RuntimeError("pulled the plug")
        return step(module, batch, batch_idx)

    def judging(gap, trainer, module):
        alone.append(module.lessons.scheduler.legs[-1].anchor)
        if alone == [1, 2]:
            raise RuntimeError("pulled the plug")
        judge(gap, trainer, module)

    monkeypatch.setattr(RouteDistillation, "training_step", stepping)
    monkeypatch.setattr(Gap, "on_fit_end", judging)
    for begun, walked in (([], [*range(26)]), ([1, 2], [*range(24, 32), *range(32), *range(32)])):
        with pytest.raises(RuntimeError, match="plug"):
            diagnose(verb_trainer(tmp_path), student(route), world(), candidates=3, gap=True)
        assert (alone, steps) == (begun, walked)
        stops.clear(), steps.clear()
    trainer = verb_trainer(tmp_path)
    found = diagnose(trainer, student(route), world(), candidates=3, gap=True)
    assert alone == [1, 2, 2, 4]
    assert steps == list(range(32)), "the second student was at its end, and is only judged"
    _is_as_in_one_go(found, route)
    _is_written(found, tmp_path / "artefacts" / "route", route, capsys.readouterr().out)
    assert (trainer.fit_loop.max_epochs, trainer.limit_val_batches) == (EPOCHS, 1.0)


def _is_as_in_one_go(found, route):
    judge, gaps = Hardness(), [Gap() for _ in range(3)]
    trained(route, Walk("explicit", epochs=[1, 2, 4]), judge)
    assert found.ratios == {i: hardness(losses, i, Walk().floor) for i, losses in judge.losses.items()}
    for state, gap in zip((1, 2, 4), gaps, strict=True):
        trained(route, Walk("single", epochs=[state]), gap)
    assert found.gaps == [gap.row for gap in gaps]


def _is_written(found, folder, route, said):
    tables = {f"{name}.{end}" for name in ("states", "choices", "hardness", "gap") for end in ("csv", "json")}
    assert {path.name for path in folder.iterdir()} == tables | {"route.png", "hardness.png", "gap.png"}, "what was kept for the next call is gone"
    assert [int(row["epoch"]) for row in csv.DictReader((folder / "states.csv").open())] == [1, 2, 3, 4]
    matrix = json.loads((folder / "hardness.json").read_text())
    assert [(row["learnt from"], row[str(row["learnt from"])]) for row in matrix] == [(1, 1.0), (2, 1.0)]
    assert found.summary["route/states"] == EPOCHS
    assert found.summary["route/greedy"].endswith("4")
    assert f"--model.route {route.folder} --model.walk.choice explicit --model.walk.epochs '{json.dumps(found.choices['greedy'])}'" in said


def test_choices_say_what_they_pick_or_why_they_do_not_apply(route):
    found, remarks = choices_of(route, Walk(anchors=2, interval=3), 0)
    assert {name: found[name] for name in ("eei", "interval", "lr_drop")} == {"eei": [2, 4], "interval": [3, 4], "lr_drop": [2, 4]}
    assert len(found["random"]) == 2
    _, remarks = choices_of(route, Walk(anchors=9), 0)
    assert remarks["eei"] == remarks["random"].replace("distinct states, but", "distinct states, at or after epochs 1, 1, 2, 2, 3, 3, 4, 4, 4, but")
    level = copy.copy(route)
    object.__setattr__(level, "history", tuple(SimpleNamespace(epoch=s.epoch, lr=0.1, metrics={}) for s in route.history))
    assert choices_of(level, Walk(anchors=2), 0)[1]["lr_drop"] == "the teacher's learning rate never fell"


@pytest.mark.parametrize("stored", [2, 3, 7, 20, 240])
@pytest.mark.parametrize("candidates", [2, 5, 8])
def test_states_are_compared_at_equal_distances_from_the_first_to_the_final_one(stored, candidates):
    found = compared_states(range(1, stored + 1), candidates, 100)
    assert (found[0], found[-1], len(found)) == (1, stored, min(candidates, stored))
    gaps = {after - before for before, after in pairwise(found)}
    assert max(gaps) - min(gaps) <= 1
    assert min(gaps) >= 1


def test_the_greedy_walk_of_a_matrix_is_the_search_row_by_row():
    losses = {i: {j: 1 + 0.3 * (j - i) for j in range(i, 11)} for i in range(1, 10)}
    ratios = {i: hardness(row, i, floor=0.1) for i, row in losses.items()}
    assert walk_greedily(ratios, 0.8) == [1, 3, 5, 7, 9, 10]
    assert walk_greedily(ratios, 0.2) == list(range(1, 11))
    assert walk_greedily(ratios, 9.0) == [1, 10]
    rows = hardness_rows(ratios, 0.8, marked=True)
    assert [next(int(name) for name, cell in row.items() if str(cell).endswith("*")) for row in rows[:6]] == [4, 5, 6, 7, 8, 9]
    assert rows[0]["next"] == next_anchor(ratios[1], 1, 0.8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"candidates": 1}, "at least 2 states"),
        ({"epochs": 1}, "got candidates 8, 4 stored, 1 student epochs"),
        ({"data": world(held_out=0), "gap": True}, "set data.held_out, such as 0.1"),
        ({"module": student()}, "has no route: name a run or a folder with one by --model.route"),
    ],
    ids=["one-candidate", "one-epoch", "nothing-held-out", "no-route"],
)
def test_what_cannot_be_diagnosed_is_refused_with_the_mend(route, tmp_path, options, message):
    given = {"module": student(route), "data": world()} | options
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        diagnose(verb_trainer(tmp_path / "rco" / "run"), **given)


def test_a_route_is_shown_without_samples_held_out(route, tmp_path, capsys):
    found = diagnose(verb_trainer(tmp_path / "rco" / "run"), student(route), world(held_out=0))
    assert [row["epoch"] for row in found.states] == route.epochs
    assert found.choices["eei"][-1] == route.final
    assert "greedy" not in found.choices
    assert "hardness is judged on samples held out of training, and there are none" in capsys.readouterr().out


@pytest.mark.parametrize("normalise", [False, True])
def test_the_gap_of_embeddings_is_the_loss_that_trains_them(monkeypatch, normalise):
    chance = torch.Generator().manual_seed(0)
    own, anchor, final = (torch.randn(20, 8, generator=chance) * length for length in (1, 3, 1))
    outputs = {"student": own, 2: anchor, 5: final}
    lessons = SimpleNamespace(
        scheduler=SimpleNamespace(legs=[SimpleNamespace(anchor=2)]), route=SimpleNamespace(final=5), guide=SimpleNamespace(at=lambda epoch: epoch)
    )
    data, loss = SimpleNamespace(held_set=None), Loss("mimic", normalise=normalise)
    module = SimpleNamespace(lessons=lessons, student="student", embeds=True, loss=loss, data=data)
    module.outputs_on = lambda _, net: outputs[net]
    monkeypatch.setattr("projects.rco.diagnosing.labels_of", lambda _: torch.zeros(20, dtype=torch.long))
    judge = Gap()
    judge.on_fit_end(None, module)
    for name, other in (("congruence", anchor), ("final_congruence", final)):
        ours, theirs = (F.normalize(part, dim=1) if normalise else part for part in (own, other))
        assert judge.row[name] == pytest.approx(float((ours - theirs).square().mean()), rel=1e-5)
