"""The student's training: who teaches when, what is learnt, what is kept, and what does not fit together."""

import copy
import gc
import shutil
from dataclasses import replace

import lightning as L
import pytest
import torch
from helpers import rco_reference
from helpers.distilling import EPOCHS, KD, RECIPE, STEPS, Watch, by_hand, close, fit, network_of, record, student, world
from helpers.layouts import write_cifar10
from helpers.rco_reference import KeptAnchors
from scipy.special import rel_entr, softmax

from projects.rco.anchors import Route
from projects.rco.guide import AnchorNet
from projects.rco.networks import build_network
from projects.rco.objectives import Loss
from projects.rco.recipes import Recipe
from projects.rco.walking import Walk

WALKS = {
    "mirror": (Walk(anchors=3), [2, 2, 4, 4, 6, 6]),
    "one by one": (Walk("one_by_one"), [1, 2, 3, 4, 5, 6]),
    "plain": (KD, [6] * 6),
    "explicit": (Walk("explicit", epochs=[1, 5]), [1, 1, 5, 5, 6, 6]),
    "reversed": (Walk(anchors=3, order="reversed"), [6, 6, 4, 4, 2, 2]),
    "single": (Walk("single", epochs=[2]), [2] * 6),
    "restart": (Walk(anchors=2, budget="restart"), [3] * 6 + [6] * 6),
}
GREEDY = Walk("greedy", delta=0.01, floor=0.01)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Digits and the route of a teacher with batch normalisation, of two epochs."""
    data = world(source="digits", batch_size=256, held_out=None)
    return data, record(tmp_path_factory.mktemp("pictures"), data, "cnn_4", epochs=2)


# ---- what is learnt


@pytest.mark.parametrize(("walk", "anchors"), [(KD, [6]), (Walk(anchors=3), [2, 4, 6])], ids=["plain", "EEI-3"])
def test_each_step_is_that_of_a_bare_loop(teacher, walk, anchors):
    """One batch is an epoch, so that weights are compared after each step."""
    data, loss, recipe = world(batch_size=256), Loss("kd"), Recipe(lr=0.1, weight_decay=1e-3, schedule="constant")
    module, watch = student(teacher, data, walk=walk, loss=loss, learning=recipe, cache=False), Watch()
    net, after = copy.deepcopy(module.student), []
    fit(module, data, watch, epochs=12)
    anchor_nets = KeptAnchors(build_network("mlp_32", data.shape, data.classes), teacher, anchors, 12)
    rco_reference.distil(net, anchor_nets, data, 12, recipe, loss, lambda epoch: after.append(copy.deepcopy(net)))
    assert len(after) == len(watch.students) == 12
    for ours, theirs in zip(watch.students, after, strict=True):
        close(ours.state_dict(), theirs.state_dict(), 1e-6)
    assert not torch.equal(after[0].output.weight, after[-1].output.weight)


@pytest.mark.parametrize("budget", ["mirror", "restart"])
def test_a_walk_is_a_loop_over_legs(teacher, budget):
    data, watch = world(), Watch()
    module = student(teacher, data, walk=Walk(anchors=3, budget=budget))
    net = copy.deepcopy(module.student)
    trainer = fit(module, data, watch, epochs=3)
    assert trainer.current_epoch == (9 if budget == "restart" else 3)
    by_hand(net, teacher, data, watch.legs, RECIPE, budget == "restart")
    close(module.student.state_dict(), net.state_dict())


# ---- who teaches


@pytest.mark.parametrize("name", WALKS)
def test_each_epoch_has_its_anchor(teacher, name):
    walk, expected = WALKS[name]
    data, watch = world(), Watch()
    fit(student(teacher, data, walk=walk), data, watch)
    assert watch.by_epoch("anchor") == expected
    assert not any(row["is_training"] for row in watch.rows)
    assert watch.guide.epoch == expected[-1]
    assert all(torch.equal(value, teacher.tensors(expected[-1])[key]) for key, value in watch.guide.net.state_dict().items())


@pytest.mark.parametrize("budget", ["mirror", "restart"])
def test_the_greedy_walk_goes_as_far_as_the_student_can_follow(teacher, budget):
    """Hardness anew from the student after each leg, by scipy."""
    data, watch = world(), Watch()
    walk = Walk("greedy", delta=GREEDY.delta, floor=GREEDY.floor, budget=budget)
    module, kept = student(teacher, data, walk=walk), []
    trainer = fit(module, data, watch, L.pytorch.callbacks.LambdaCallback(on_train_end=lambda *_: kept.append(module.lessons.scheduler.hardness)))
    assert len(watch.legs) >= 3
    assert watch.legs[0].anchor == 1
    assert watch.legs[-1].anchor == 6
    assert watch.by_epoch("anchor") == [leg.anchor for leg in watch.legs for _ in range(leg.start, leg.stop)]
    assert trainer.current_epoch == watch.legs[-1].stop == (EPOCHS * len(watch.legs) if budget == "restart" else EPOCHS)
    inputs = data.held_set.vectors if hasattr(data.held_set, "vectors") else torch.cat([batch["input"] for batch in data.ordered("held")])
    for leg, following, found in zip(watch.legs[:-1], watch.legs[1:], kept[0], strict=True):
        own = softmax(watch.students[leg.stop - 1](inputs).detach().double().numpy(), 1)
        states = range(leg.anchor, 7)
        losses = [rel_entr(softmax(network_of(teacher, state)(inputs).detach().double().numpy(), 1), own).sum(1).mean() for state in states]
        ratios = [(loss + walk.floor) / (losses[0] + walk.floor) for loss in losses]
        assert list(found.values()) == pytest.approx(ratios, rel=1e-4)
        too_hard = next((state for state, ratio in zip(states, ratios, strict=True) if ratio > 1 + walk.delta), None)
        chosen = 6 if too_hard is None else max(too_hard - 1, leg.anchor + 1)
        assert following.anchor == (6 if budget == "mirror" and following.stop - following.start == EPOCHS - leg.stop else chosen)


def test_the_greedy_walk_needs_samples_held_out(teacher):
    data = world(held_out=0)
    with pytest.raises(ValueError, match=r"data\.held_out"):
        fit(student(teacher, data, walk=GREEDY), data)


def test_the_teacher_stays_as_it_was_stored_though_the_student_learns(pictures):
    data, route = pictures
    module, watch = student(route, data, student="cnn_2", walk=Walk(anchors=2), cache=False), Watch()
    moved = module.student.bn1.running_mean.clone()
    fit(module, data, watch, epochs=2)
    assert not any(row["is_training"] for row in watch.rows)
    assert all(torch.equal(value, route.tensors(2)[name]) for name, value in watch.guide.net.state_dict().items())
    assert "bn1.running_mean" in watch.guide.net.state_dict()
    assert not torch.equal(module.student.bn1.running_mean, moved)


class Owned(L.Callback):
    """Looks at what belongs to the module in the middle of its training."""

    def on_train_batch_end(self, trainer, module, *_):
        owned = [*module.student.parameters(), *module.objective.parameters()]
        self.parameters = [parameter.numel() for parameter in module.parameters()]
        assert self.parameters == [parameter.numel() for parameter in owned]
        assert {id(one) for group in trainer.optimizers[0].param_groups for one in group["params"]} == {id(one) for one in owned}
        theirs = {id(part) for part in module.lessons.guide.net.modules()}
        assert not theirs & {id(part) for part in module.modules()}
        if trainer.current_epoch == 5:
            self.guides = [one for one in gc.get_objects() if type(one) is AnchorNet and one.route is module.route]


def test_the_teacher_is_no_part_of_the_module(teacher):
    data, owned = world(), Owned()
    module = student(replace(teacher), data, walk=Walk("one_by_one"), loss=Loss("kd+hint", hint_stage=0))
    fit(module, data, owned, limit_train_batches=1)
    assert len(owned.guides) == 1, "one network for six anchors"
    assert sum(owned.parameters) == (10 * 6 + 6) + (6 * 2 + 2) + (6 * 32 + 32)
    assert module.objective is None


# ---- cached outputs


@pytest.mark.parametrize("budget", ["mirror", "restart"])
def test_cached_outputs_teach_the_same(teacher, budget):
    data, walk = world(), Walk(anchors=2, budget=budget)
    modules, watches = [student(teacher, data, walk=walk, cache=cache) for cache in (False, True)], [Watch(), Watch()]
    epochs = [fit(module, data, watch, epochs=4).current_epoch for module, watch in zip(modules, watches, strict=True)]
    close(modules[1].state_dict(), modules[0].state_dict())
    assert [{row["is_cached"] for row in watch.rows} for watch in watches] == [{False}, {True}]
    assert epochs == [8 if budget == "restart" else 4] * 2
    assert [module.taught for module in modules] == [epochs[0] * STEPS * 64, 2 * 256]


@pytest.mark.parametrize(("loss", "is_cached"), [(Loss("dkd+dist"), True), (Loss("kd+hint", hint_stage=0), False), (Loss("kd+crd"), False)], ids=str)
def test_outputs_are_cached_where_they_are_all_that_is_compared(teacher, loss, is_cached):
    data, watch = world(), Watch()
    fit(student(teacher, data, loss=loss), data, watch, epochs=1)
    assert {row["is_cached"] for row in watch.rows} == {is_cached}


def test_outputs_of_varying_views_or_for_hints_are_not_cached(teacher, pictures, tmp_path):
    data = world(source="cifar10", root=str(write_cifar10(tmp_path).parent), batch_size=4, held_out=None)
    route = record(tmp_path / "route", data, "cnn_1", epochs=1)
    watch = Watch()
    fit(student(route, data, student="cnn_1"), data, watch, epochs=1)
    assert {row["is_cached"] for row in watch.rows} == {False}
    with pytest.raises(ValueError, match=r"model\.cache keeps outputs on unaugmented samples"):
        fit(student(route, data, student="cnn_1", cache=True), data, epochs=1)
    with pytest.raises(ValueError, match="take a loss of outputs alone"):
        fit(student(teacher, world(), loss=Loss("hint", hint_stage=0), cache=True), world(), epochs=1)


# ---- budgets


@pytest.mark.parametrize("choice", ["eei", "greedy"])
def test_a_restarted_leg_has_a_fresh_optimiser_and_schedule(teacher, choice):
    data, watch = world(), Watch()
    fit(student(teacher, data, walk=Walk(choice, anchors=3, budget="restart", delta=0.01, floor=0.01)), data, watch, epochs=4)
    assert len(watch.legs) >= 3
    assert all(leg.stop - leg.start == 4 for leg in watch.legs)
    cosine = [0.1 * (1 + torch.cos(torch.tensor(torch.pi * epoch / 4)).item()) / 2 for epoch in range(4)]
    assert watch.by_epoch("lr") == pytest.approx(cosine * len(watch.legs), rel=1e-5)
    first = [place % (4 * STEPS) == 0 for place in range(len(watch.rows))]
    assert [row["momenta"] == 0 for row in watch.rows] == first


def test_a_mirrored_walk_carries_its_optimiser_on(teacher):
    data, watch = world(), Watch()
    fit(student(teacher, data, walk=Walk(anchors=3)), data, watch)
    assert [row["momenta"] == 0 for row in watch.rows] == [place == 0 for place in range(EPOCHS * STEPS)]
    cosine = [0.1 * (1 + torch.cos(torch.tensor(torch.pi * epoch / 6)).item()) / 2 for epoch in range(6)]
    assert watch.by_epoch("lr") == pytest.approx(cosine, rel=1e-5)


# ---- losses


@pytest.mark.parametrize("kind", ["kd", "mimic", "kd+hint", "crd", "dkd", "dist", "hint"])
def test_each_loss_teaches_a_perceptron(teacher, kind):
    data = world()
    module = student(teacher, data, loss=Loss(kind, hint_stage=0))
    before = copy.deepcopy(module.student.state_dict())
    trainer = fit(module, data, epochs=2)
    assert not torch.equal(before["hidden1.weight"], module.student.hidden1.weight)
    terms = {name.removeprefix("train/"): float(value) for name, value in trainer.callback_metrics.items() if name.startswith("train/")}
    expected = {*kind.split("+"), *(() if kind == "mimic" else ("ce",))}
    assert set(terms) == expected | {"loss", "anchor"}
    assert terms["loss"] == pytest.approx(sum(terms[name] for name in expected), rel=1e-5)


@pytest.mark.parametrize("kind", ["at", "dkd", "dist", "hint", "kd+crd"])
@pytest.mark.parametrize("net", ["cnn_2", pytest.param("resnet8", marks=pytest.mark.slow)])
def test_each_loss_teaches_a_network_of_images(pictures, net, kind):
    data, route = pictures
    module = student(route, data, student=net, loss=Loss(kind, hint_stage=1), learning=Recipe(lr=0.01))
    before = copy.deepcopy(module.student.state_dict())
    trainer = fit(module, data, epochs=1, limit_train_batches=2)
    assert torch.isfinite(trainer.callback_metrics["train/loss"])
    assert any(not torch.equal(value, before[name]) for name, value in module.student.state_dict().items() if "conv1.weight" in name)


def test_hints_come_first_where_they_have_epochs_of_their_own(teacher):
    data, watch = world(), Watch()
    module = student(teacher, data, loss=Loss("kd+hint", hint_stage=0, hint_epochs=2))
    begin = copy.deepcopy(module.student)
    fit(module, data, watch, epochs=3)
    assert module.find_unused_parameters
    assert torch.equal(watch.students[1].output.weight, begin.output.weight)
    assert not torch.equal(watch.students[1].hidden1.weight, begin.hidden1.weight)
    assert not torch.equal(watch.students[2].output.weight, begin.output.weight)


def test_a_diverged_training_is_stopped(teacher):
    data = world()
    with pytest.raises(ValueError, match="the training diverged"):
        fit(student(teacher, data, loss=Loss("mimic"), learning=Recipe(lr=1e18)), data, epochs=2)


# ---- embeddings


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    data = world(source="drawn_faces", people=8, shots=6, size=16, batch_size=16, held_out=None)
    return data, record(tmp_path_factory.mktemp("faces"), data, "cnn_4", epochs=2, embedding=6)


@pytest.mark.parametrize("cache", [False, True])
def test_embeddings_are_mimicked_and_judged_as_faces(faces, cache):
    data, route = faces
    module = student(route, data, student="cnn_2", embedding=6, loss=Loss("mimic"), walk=Walk(anchors=2), learning=Recipe(lr=1e-3), cache=cache)
    watch = Watch()
    trainer = fit(module, data, watch, epochs=4)
    assert watch.by_epoch("anchor") == [1, 1, 2, 2]
    trainer.test(module, datamodule=data, verbose=False)
    found = {name.removeprefix("test/"): float(value) for name, value in trainer.callback_metrics.items() if name.startswith("test/")}
    module.eval(), (final := network_of(route, 2))
    with torch.no_grad():
        inputs = torch.cat([data.finish(batch, augment=False)["input"] for batch in data.ordered("test")])
        own, theirs = module(inputs), final(inputs)
    judged = data.protocol.judge(own)
    assert "rank1" in judged
    assert found == pytest.approx(judged | {"congruence": float((own - theirs).square().mean())}, abs=1e-5)
    assert "accuracy" not in found


# ---- what does not fit


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"embedding": 4}, r"model\.embedding makes vectors: take loss\.kind mimic, with loss\.ce 0"),
        ({"embedding": 4, "loss": Loss("mimic", ce=0.1)}, r"loss\.ce 0\.1 is of class scores"),
        ({"embedding": 4, "loss": Loss("mimic")}, r"takes \[10\] to 2 outputs \(embedding: False\), the student \[10\] to 4 \(True\)"),
        ({"student": "prayer"}, "prayer"),
        ({"loss": Loss("at")}, "at needs"),
        ({"walk": Walk(anchors=7)}, r"walk\.anchors 7 asks for 7 distinct states"),
        ({"walk": Walk("explicit", epochs=[9])}, r"walk\.epochs names 9"),
        ({"loss": Loss("kd+hint", hint_stage=0, hint_epochs=6)}, r"loss\.hint_epochs 6 leaves none of the student's 6 epochs"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_named(teacher, options, message):
    data = world()
    with pytest.raises(ValueError, match=message):
        fit(student(teacher, data, **options), data)


def test_a_route_or_data_of_another_shape_are_refused(teacher):
    wider = world(bits=12)
    with pytest.raises(ValueError, match=r"takes \[10\] to 2 outputs \(embedding: False\), the student \[12\] to 2"):
        fit(student(teacher, wider), wider)
    with pytest.raises(ValueError, match=r"the student takes \[10\] to 2 classes, the data are \[12\] with 2"):
        fit(student(teacher, world()), wider)
    with pytest.raises(ValueError, match="no route to follow"):
        fit(student(None, world()), world())


def test_classes_of_other_names_are_refused(teacher):
    """As many classes as before, so that shapes tell nothing: scores would be compared across the two."""
    data = world()
    told = replace(teacher, about=teacher.about | {"class_names": ["cat", "dog"]})
    with pytest.raises(ValueError, match="teacher learnt the classes cat, dog, the data have even, odd"):
        fit(student(told, data), data)
    module = student(None, data)
    module.class_names = ["cat", "dog"]
    with pytest.raises(ValueError, match="student learnt the classes cat, dog, the data have even, odd"):
        L.Trainer(logger=False, enable_progress_bar=False, accelerator="cpu").test(module, datamodule=data, verbose=False)


@pytest.mark.parametrize(("seed", "is_said"), [(0, False), (1, True)])
def test_samples_held_out_that_the_teacher_learnt_are_told_of(pictures, caplog, seed, is_said):
    data = world(source="digits", batch_size=256, held_out=0.1, seed=seed)
    told = replace(pictures[1], about=pictures[1].about | {"division": {"held_out": 0.1, "seed": 0}})
    fit(student(told, data, student="cnn_1", cache=False), data, epochs=1, limit_train_batches=1, limit_val_batches=0)
    assert ("the teacher learnt samples that are held out here" in caplog.text) == is_said


def test_a_damaged_state_is_found_before_the_training(teacher, tmp_path):
    shutil.copytree(teacher.folder, tmp_path / "route")
    last = tmp_path / "route" / teacher.states[-2].file
    last.write_bytes(last.read_bytes()[:-8])
    data, watch = world(), Watch()
    with pytest.raises(ValueError, match=rf"{last.name} is damaged .*put it back, or train the teacher again"):
        fit(student(Route.load(tmp_path / "route"), data, walk=Walk("one_by_one")), data, watch)
    assert not watch.rows


def test_a_seed_decides_on_the_students_first_weights_and_nothing_else_does():
    state = torch.get_rng_state()
    one, other, same = (student(None, world(), seed=seed) for seed in (0, 1, 0))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one.student.hidden1.weight, same.student.hidden1.weight)
    assert not torch.equal(one.student.hidden1.weight, other.student.hidden1.weight)


@pytest.mark.parametrize(
    ("loss", "unused"),
    [
        (Loss("kd"), False),
        (Loss("hint"), False),
        (Loss("hint", ce=0.0), True),
        (Loss("crd", ce=0.0), True),
        (Loss("mimic"), False),
        (Loss("kd+hint", hint_epochs=1), True),
    ],
    ids=str,
)
def test_parameters_without_a_gradient_are_announced(loss, unused):
    assert student(None, world(), loss=loss).find_unused_parameters is unused


# ---- what is limited or odd


def test_a_validation_of_some_batches_compares_them_with_the_same_samples(teacher):
    data = world(held_out=600)
    trainer = fit(student(teacher, data), data, epochs=1, limit_val_batches=1)
    assert 0 <= float(trainer.callback_metrics["val/agreement"]) <= 1
    assert float(trainer.callback_metrics["val/teacher_accuracy"]) > 0.5


def test_a_walk_needs_a_number_of_epochs(teacher):
    data = world()
    with pytest.raises(ValueError, match=r"set trainer\.max_epochs, not trainer\.max_steps"):
        fit(student(teacher, data), data, epochs=-1, max_steps=4)


def test_a_second_training_of_a_trainer_has_as_many_epochs(teacher):
    data, walk = world(), Walk(anchors=2, budget="restart")
    trainer = fit(student(teacher, data, walk=walk), data, epochs=2)
    assert (trainer.current_epoch, trainer.max_epochs) == (4, 2)


def test_a_route_that_does_not_tell_its_network_is_refused(tmp_path, teacher):
    data = world()
    with pytest.raises(ValueError, match=r"does not tell the teacher's network, shape, outputs"):
        fit(student(replace(teacher, about={}), data), data, epochs=1)


@pytest.mark.parametrize("precision", ["64-true", "bf16-true"])
def test_true_precisions_have_the_teacher_with_them(teacher, precision):
    data = world()
    module = student(teacher, data, cache=False)
    trainer = fit(module, data, epochs=1, precision=precision, limit_val_batches=0)
    assert trainer.global_step == STEPS
    trainer.test(module, datamodule=data, verbose=False)
    assert 0 <= float(trainer.callback_metrics["test/congruence"]) < 10
