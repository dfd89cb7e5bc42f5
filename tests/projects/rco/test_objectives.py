import copy
import gc
import pickle
import weakref
from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from projects.rco import losses
from projects.rco.networks import build_network, classifier, stages
from projects.rco.objectives import KINDS, Answer, Loss, Objective, Taps, build_objective

LABELS = torch.tensor([0, 2, 1, 2])


def small(widths=(6, 8), outputs=3):
    torch.manual_seed(0)
    first, second = widths
    layers = {
        "stem": nn.Conv2d(1, first, 3, padding=1),
        "relu": nn.ReLU(),
        "body": nn.Sequential(nn.Conv2d(first, second, 3, 2, padding=1), nn.BatchNorm2d(second), nn.ReLU()),
        "pool": nn.AdaptiveAvgPool2d(1),
        "flat": nn.Flatten(),
        "drop": nn.Dropout(0.5),
        "fc": nn.Linear(second, outputs),
    }
    return nn.Sequential(OrderedDict(layers))


def images(batch=4, size=8):
    return torch.randn(batch, 1, size, size, generator=torch.Generator().manual_seed(3))


def answers(student, teacher, objective, inputs):
    with torch.no_grad():
        taught = Taps(teacher.eval(), objective.teacher_layers)(inputs)
    return Taps(student, objective.student_layers)(inputs), taught


# Taps


def test_taps_keep_what_layers_give_and_what_goes_in():
    net, inputs = small().eval(), images()
    answer = Taps(net, ["body.0", "fc:in", "pool"])(inputs)
    stem = net.relu(net.stem(inputs))
    torch.testing.assert_close(answer.features["body.0"], net.body[0](stem))
    torch.testing.assert_close(answer.features["fc:in"], net.pool(net.body(stem)).flatten(1))
    torch.testing.assert_close(answer.outputs, net(inputs))
    assert list(answer.features) == ["body.0", "fc:in", "pool"]


def test_gradients_flow_through_tapped_features():
    net = small()
    Taps(net, ["relu"])(images()).features["relu"].sum().backward()
    assert net.stem.weight.grad is not None
    assert net.fc.weight.grad is None


@pytest.mark.parametrize("way", ["remove", "forget"])
def test_taps_leave_nothing_behind(way):
    net = small()
    taps = Taps(net, ["body", "fc:in"])
    answer = taps(images())
    alive = weakref.ref(answer.features["body"])
    gc.disable()
    try:
        if way == "remove":
            taps.remove()
        else:
            del taps
        del answer
        assert alive() is None, "no cycle keeps the features"
    finally:
        gc.enable()
    assert not any(module._forward_hooks for module in net.modules())


def test_taps_live_and_die_with_their_network_without_cycles():
    net = small()
    seen, taps = weakref.ref(net), Taps(net, ["body"])
    gc.collect()
    gc.disable()
    try:
        del net, taps
        assert seen() is None
    finally:
        gc.enable()


def test_a_copy_of_a_tapped_network_runs_on_its_own():
    net = small().eval()
    taps = Taps(net, ["body"])
    twin = copy.deepcopy(net)
    nn.init.zeros_(twin.stem.weight)
    twin(images())
    torch.testing.assert_close(taps(images()).features["body"], net.body(net.relu(net.stem(images()))))
    assert pickle.loads(pickle.dumps(net))(images()).shape == (4, 3)
    both = copy.deepcopy({"net": net, "taps": taps})
    nn.init.zeros_(both["net"].body[0].weight)
    assert (both["taps"](images()).features["body"].var((0, 2, 3)) == 0).all(), "taps copied with their network are taps of the copy"


def test_taps_find_features_in_a_network_compiled_after_them():
    net, inputs = small().eval(), images()
    expected = Taps(net, ["body"])(inputs)
    taps = Taps(net, ["body"])
    net.compile(backend="eager")
    for _ in range(2):
        torch.testing.assert_close(taps(inputs).features["body"], expected.features["body"])


def test_a_missing_layer_is_named_with_its_near_matches():
    with pytest.raises(ValueError, match=r"Sequential has no layer 'bodi': did you mean body, "):
        Taps(small(), ["bodi:in"])
    with pytest.raises(ValueError, match=r"no layer 'QQQ': its layers begin with stem, relu"):
        Taps(small(), ["QQQ"])


class Odd(nn.Module):
    def __init__(self):
        super().__init__()
        self.twice, self.never, self.pair = nn.Linear(3, 3), nn.Linear(3, 3), nn.LSTM(3, 3)

    def forward(self, inputs):
        return self.pair(self.twice(self.twice(inputs)))[0]


@pytest.mark.parametrize(
    ("layer", "message"),
    [("twice", "'twice' of the Odd was run 2 times"), ("never:in", "'never:in' of the Odd was not run"), ("pair", "gives a tuple: tap a layer")],
)
def test_layers_that_cannot_be_tapped_say_why(layer, message):
    with pytest.raises(ValueError, match=message):
        Taps(Odd(), [layer])(torch.zeros(2, 3))


# Loss


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "kd+hnt"}, "loss.kind 'kd\\+hnt' has an unknown part 'hnt': choose of kd, hint"),
        ({"kind": "kd+kd"}, "loss.kind 'kd\\+kd' names a loss twice"),
        ({"weights": {"hint": 1.0}}, "loss.weights has hint, but loss.kind is 'kd': add it there"),
        ({"weights": {"kd": -1.0}}, "loss.weights.kd must be 0 or more"),
        ({"ce": -0.1}, "loss.ce must be 0 or more"),
        ({"ce": float("nan")}, "loss.ce must be 0 or more, and finite"),
        ({"ce": 0.0, "weights": {"kd": 0.0}}, "nothing is left to train by"),
        ({"tau": 0.0}, "loss.tau must be above 0"),
        ({"dkd_warmup": -1}, "loss.dkd_warmup must be 0 or more"),
        ({"hint_stage": -1}, "loss.hint_stage must be 0 or more"),
        ({"regressor": "linear"}, "loss.regressor must be plain or bn_relu"),
        ({"hint_epochs": 3}, "loss.hint_epochs needs a hint to begin with: add \\+hint"),
        ({"kind": "hint", "ce": 0.0, "hint_epochs": 3}, "loss.hint_epochs leaves nothing to train by after the hint: add kd\\+"),
    ],
)
def test_wrong_options_are_named_with_their_mend(options, message):
    with pytest.raises(ValueError, match=message):
        Loss(**options)


def test_customary_weights_are_those_of_the_benchmarks():
    assert (Loss().ce_weight, Loss().weight("kd"), Loss().temperature) == (0.1, 0.9, 4.0)
    assert Loss("mimic").ce_weight == 0
    both = Loss("kd+crd", weights={"crd": 0.5})
    assert (both.ce_weight, both.weight("kd"), both.weight("crd")) == (1.0, 0.9, 0.5)
    features = torch.randn(2, 3, 2, 2), torch.randn(2, 3, 2, 2)
    torch.testing.assert_close(KINDS["hint"][1] * losses.hint_loss(*features), 100 * F.mse_loss(*features))


# Objective


@pytest.mark.parametrize("form", ["plain", "convex"])
def test_both_weightings_of_kd_can_be_had(form):
    student, teacher = torch.randn(4, 3), torch.randn(4, 3)
    hard, soft = F.cross_entropy(student, LABELS), losses.kd_loss(student, teacher, 5.0)
    loss = Loss(tau=5.0, ce=1.0, weights={"kd": 2.0}) if form == "plain" else Loss(tau=5.0, ce=0.3, weights={"kd": 0.7})
    objective = build_objective(loss, nn.Linear(3, 3), nn.Linear(3, 3), torch.zeros(1, 3))
    terms = objective(Answer(student, {}), Answer(teacher, {}), LABELS, 0)
    assert list(terms) == ["ce", "kd"]
    torch.testing.assert_close(sum(terms.values()), hard + 2 * soft if form == "plain" else 0.3 * hard + 0.7 * soft)
    assert (objective.student_layers, objective.teacher_layers, list(objective.parameters())) == ([], [], []), "the teacher's outputs are enough"


@pytest.mark.parametrize(("warmup", "factors"), [(4, [0.25, 0.5, 0.75, 1, 1]), (0, [1, 1, 1, 1, 1])], ids=["grows", "at_once"])
def test_dkd_warms_up_as_the_benchmarks_do_that_count_from_one(warmup, factors):
    objective = build_objective(Loss("dkd", dkd_beta=2.0, dkd_warmup=warmup), nn.Linear(3, 3), nn.Linear(3, 3), torch.zeros(1, 3))
    student, teacher = torch.randn(4, 3), torch.randn(4, 3)
    found = [objective(Answer(student, {}), Answer(teacher, {}), LABELS, epoch)["dkd"] for epoch in range(5)]
    torch.testing.assert_close(torch.stack(found), losses.dkd_loss(student, teacher, LABELS, 1.0, 2.0) * torch.tensor(factors))


@pytest.mark.parametrize("kind", ["kd", "dist", "mimic", "hint"])
def test_without_cross_entropy_no_label_is_looked_at(kind):
    student, teacher = small(), small((6, 8))
    objective = build_objective(Loss(kind, ce=0.0, student_layer="body", teacher_layer="body"), student, teacher, images(1))
    nowhere = torch.full((4,), 1 << 40)
    terms = objective(*answers(student, teacher, objective, images()), nowhere, 0)
    assert list(terms) == [kind]
    assert terms[kind].isfinite()


def test_samples_of_unknown_class_are_left_to_the_teacher():
    student, teacher = torch.randn(4, 3), torch.randn(4, 3)
    objective = build_objective(Loss("kd+dkd"), nn.Linear(3, 3), nn.Linear(3, 3), torch.zeros(1, 3))
    terms = objective(Answer(student, {}), Answer(teacher, {}), torch.full((4,), -1), 0)
    assert terms["ce"] == terms["dkd"] == 0
    assert terms["kd"] > 0


@pytest.mark.parametrize("normalise", [False, True], ids=["plain", "normalised"])
def test_mimic_adapts_the_width_where_it_must(normalise):
    student, teacher = small(outputs=5), small(outputs=3)
    assert not list(build_objective(Loss("mimic"), teacher, teacher, images(1)).parameters())
    objective = build_objective(Loss("mimic", normalise=normalise), student, teacher, images(1))
    ours, theirs = answers(student, teacher, objective, images())
    weight, bias = objective.parameters()
    adapted, target = F.linear(ours.outputs, weight, bias), theirs.outputs
    if normalise:
        adapted, target = adapted / adapted.norm(dim=1, keepdim=True), target / target.norm(dim=1, keepdim=True)
    torch.testing.assert_close(objective(ours, theirs, LABELS, 0), {"mimic": (adapted - target).square().mean()})


@pytest.mark.parametrize("regressor", ["plain", "bn_relu"])
def test_hints_meet_at_the_teachers_channels_and_the_smaller_size(regressor):
    student, teacher = small((6, 8)), small((4, 10))
    objective = build_objective(Loss("kd+hint", student_layer="relu", teacher_layer="body", regressor=regressor), student, teacher, images(1))
    ours, theirs = answers(student, teacher, objective, images())
    assert (objective.student_layers, objective.teacher_layers) == (["relu"], ["body"])
    weight = next(objective.parameters())
    assert weight.shape == (10, 6, 1, 1)
    bias = None if regressor == "bn_relu" else list(objective.parameters())[1]
    guided = F.conv2d(F.adaptive_avg_pool2d(ours.features["relu"], 4), weight, bias)
    if regressor == "bn_relu":
        guided = F.batch_norm(guided, None, None, training=True).relu()
    terms = objective(ours, theirs, LABELS, 0)
    torch.testing.assert_close(terms["hint"], 100 * F.mse_loss(guided, theirs.features["body"]))
    sum(terms.values()).backward()
    assert all(parameter.grad is not None for parameter in [*student.parameters(), *objective.parameters()])
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_hints_of_vectors_go_through_a_linear_layer():
    student, teacher = small(), small((4, 20))
    objective = build_objective(Loss("hint", student_layer="fc:in", teacher_layer="flat"), student, teacher, images(1))
    assert [tuple(parameter.shape) for parameter in objective.parameters()] == [(20, 8), (20,)]
    assert objective(*answers(student, teacher, objective, images()), LABELS, 0)["hint"] > 0


@pytest.mark.parametrize(
    ("hint_epochs", "expected"), [(0, [{"ce", "kd", "hint"}] * 3), (2, [{"hint"}, {"hint"}, {"ce", "kd"}])], ids=["joint", "phases"]
)
def test_hints_come_jointly_or_first(hint_epochs, expected):
    student, teacher = small(), small()
    loss = Loss("kd+hint", student_layer="body", teacher_layer="body", hint_epochs=hint_epochs)
    objective = build_objective(loss, student, teacher, images(1))
    ours, theirs = answers(student, teacher, objective, images())
    assert [set(objective(ours, theirs, LABELS, epoch)) for epoch in range(3)] == expected


def test_terms_without_weight_are_left_out_with_their_layers_and_adapters():
    loss = Loss("kd+hint", weights={"hint": 0.0}, student_layer="body", teacher_layer="body")
    objective = build_objective(loss, small(), small(), images(1))
    assert (list(objective.terms), objective.student_layers, list(objective.parameters())) == (["ce", "kd"], [], [])


def test_building_leaves_both_networks_as_they_were():
    student, teacher = small(), small().eval()
    student.drop.eval()
    before = [{name: value.clone() for name, value in net.state_dict().items()} for net in (student, teacher)]
    modes = [[module.training for module in net.modules()] for net in (student, teacher)]
    build_objective(Loss("hint", student_layer="body", teacher_layer="body"), student, teacher, images(1))
    assert [[module.training for module in net.modules()] for net in (student, teacher)] == modes
    for net, state in zip((student, teacher), before, strict=True):
        torch.testing.assert_close(net.state_dict(), state, rtol=0, atol=0)
        assert not any(module._forward_hooks for module in net.modules())


def test_adapters_follow_the_networks_precision():
    student, teacher = small().double(), small((4, 4)).double()
    objective = build_objective(Loss("hint", student_layer="body", teacher_layer="body"), student, teacher, images(1).double())
    assert all(parameter.dtype == torch.float64 for parameter in objective.parameters())


@pytest.mark.parametrize(
    ("options", "outputs", "message"),
    [
        ({}, 4, "kd compares class by class, but the student has 4 outputs and the teacher 3"),
        (
            {"kind": "hint", "student_layer": "body", "teacher_layer": "fc:in"},
            3,
            r"'body' gives \(1, 8, 4, 4\) and the teacher's 'fc:in' \(1, 8\)",
        ),
        ({"kind": "hint", "student_layer": "bdy", "teacher_layer": "body"}, 3, "no layer 'bdy': did you mean body"),
    ],
    ids=["classes", "map_and_vector", "no_layer"],
)
def test_networks_that_do_not_fit_say_so(options, outputs, message):
    with pytest.raises(ValueError, match=message):
        build_objective(Loss(**options), small(outputs=outputs), small(), images(1))


# The networks of the project


@pytest.fixture(scope="module")
def residual():
    torch.manual_seed(1)
    return build_network("resnet20", (3, 32, 32), 3), build_network("mobilenetv2_0.5", (3, 32, 32), 3)


@pytest.mark.parametrize("kind", ["kd+hint+at+crd", "dkd+mimic", "dist"])
def test_real_networks_learn_by_every_kind(residual, kind):
    teacher, student = residual
    inputs = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    objective = build_objective(Loss(kind), student, teacher, inputs[:1])
    terms = objective(*answers(student, teacher, objective, inputs), LABELS, 0)
    assert list(terms) == ["ce", *kind.split("+")]
    assert all(term.isfinite() and term > 0 for term in terms.values())
    student.zero_grad()
    sum(terms.values()).backward()
    parameters = [*student.parameters(), *objective.parameters()]
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in parameters)


def test_under_autocast_the_terms_are_float32(residual):
    teacher, student = residual
    inputs = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    objective = build_objective(Loss("kd+hint+at+crd+mimic+dist+dkd"), student, teacher, inputs[:1])
    given = answers(student, teacher, objective, inputs)
    exact = objective(*given, LABELS, 0)
    with torch.autocast("cpu", torch.bfloat16):
        terms = objective(*given, LABELS, 0)
        halved = objective(*answers(student, teacher, objective, inputs), LABELS, 0)
    for name, term in terms.items():
        assert term.dtype == halved[name].dtype == torch.float32
        rounding = 1e-2 if list(objective.terms[name].parameters()) else 1e-6  # adapters run in bfloat16
        assert term.item() == pytest.approx(exact[name].item(), rel=rounding)
    sum(halved.values()).backward()
    assert all(parameter.grad.isfinite().all() for parameter in objective.parameters())


def test_attention_pairs_the_stages_after_the_stem_from_the_last(residual):
    teacher, student = residual
    objective = build_objective(Loss("at"), student, teacher, torch.zeros(1, 3, 32, 32))
    ours, theirs = stages(student)[1:], stages(teacher)[1:]
    number = min(len(ours), len(theirs))
    assert (objective.student_layers, objective.teacher_layers) == (ours[-number:], theirs[-number:])
    inputs = torch.randn(4, 3, 32, 32)
    found, taught = answers(student, teacher, objective, inputs)
    pairs = zip(ours[-number:], theirs[-number:], strict=True)
    expected = sum(1000 * losses.attention_loss(found.features[a], taught.features[b]) for a, b in pairs)
    torch.testing.assert_close(objective(found, taught, LABELS, 0)["at"], expected)


def test_contrast_projects_both_penultimate_features(residual):
    teacher, student = residual
    objective = build_objective(Loss("crd"), student, teacher, torch.zeros(1, 3, 32, 32))
    found, taught = answers(student, teacher, objective, torch.randn(4, 3, 32, 32))
    (a, a0, b, b0), ours, theirs = objective.parameters(), f"{classifier(student)}:in", f"{classifier(teacher)}:in"
    projected = F.linear(found.features[ours], a, a0), F.linear(taught.features[theirs], b, b0)
    torch.testing.assert_close(objective(found, taught, LABELS, 0)["crd"], 0.8 * losses.contrast_loss(*projected, LABELS))
    assert projected[0].shape == (4, 128)


def test_perceptrons_have_hints_but_no_attention():
    student, teacher, example = build_network("mlp_16_8", (10,), 2), build_network("mlp_32_16", (10,), 2), torch.zeros(1, 10)
    hints = build_objective(Loss("hint", hint_stage=1), student, teacher, example)
    assert [tuple(parameter.shape) for parameter in hints.parameters()] == [(16, 8), (16,)]
    with pytest.raises(ValueError, match=r"at needs feature maps \(B, C, H, W\), but the student's .* gives \(1, 8\)"):
        build_objective(Loss("at"), student, teacher, example)
    with pytest.raises(ValueError, match=r"loss.hint_stage is 2, but the stages of the student are 0 to 1 .*: choose one .*student_layer"):
        build_objective(Loss("hint"), student, teacher, example)
    with pytest.raises(ValueError, match="at needs stages after the stem in both networks"):
        build_objective(Loss("at"), build_network("mlp_16", (10,), 2), teacher, example)


def test_an_objective_is_an_ordinary_module():
    objective = build_objective(Loss("hint", student_layer="body", teacher_layer="body"), small(), small(), images(1))
    twin = build_objective(Loss("hint", student_layer="body", teacher_layer="body"), small(), small(), images(1))
    twin.load_state_dict(objective.state_dict())
    assert isinstance(copy.deepcopy(twin), Objective)
