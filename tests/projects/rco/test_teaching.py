"""The teacher's training, against a loop as one writes it down."""

import copy
import math

import pytest
import torch
from helpers.distilling import fit, world
from helpers.rco_reference import batches_of
from sklearn.metrics import accuracy_score
from torch.nn import functional as F

from projects.rco.anchors import AnchorRecorder, Route
from projects.rco.networks import build_network
from projects.rco.recipes import Recipe
from projects.rco.teaching import Teacher

RECIPE = Recipe(lr=0.1, weight_decay=1e-3, milestones=[2])


def test_a_classifier_is_trained_as_by_a_bare_loop(tmp_path):
    data, teacher = world(), Teacher("mlp_16", [10], 2, recipe=RECIPE)
    net = copy.deepcopy(teacher.net)
    fit(teacher, data, AnchorRecorder(tmp_path, about=teacher.about), epochs=3)
    route, step = Route.load(tmp_path), 0
    optimizer = torch.optim.SGD(net.parameters(), 0.1, 0.9, weight_decay=1e-3)
    for epoch in range(3):
        optimizer.param_groups[0]["lr"] = 0.1 if epoch < 2 else 0.01
        for inputs, labels in batches_of(data, epoch, step):
            optimizer.zero_grad()
            F.cross_entropy(net(inputs), labels).backward()
            optimizer.step()
            step += 1
        for name, value in net.state_dict().items():
            torch.testing.assert_close(route.tensors(epoch + 1)[name], value, atol=1e-6, rtol=1e-5)
    held = next(iter(data.ordered("held")))
    accuracy = accuracy_score(held["label"], net(held["input"]).argmax(1))
    assert route.history[-1].metrics["val/accuracy"] == pytest.approx(accuracy, abs=1e-6)
    assert [state.lr for state in route.history] == pytest.approx([0.1, 0.1, 0.01])
    assert all(0 <= state.metrics["train/accuracy"] <= 1 for state in route.history)


def test_a_route_tells_how_its_network_is_built(tmp_path):
    data, teacher = world(), Teacher("mlp_16_8", [10], 2)
    fit(teacher, data, AnchorRecorder(tmp_path, about=teacher.about), epochs=1)
    about = Route.load(tmp_path).about
    assert about == {"network": "mlp_16_8", "shape": [10], "outputs": 2, "embeds": False, "seed": 0}
    build_network(about["network"], about["shape"], about["outputs"]).load_state_dict(Route.load(tmp_path).tensors(1))


def test_embeddings_are_trained_by_an_additive_angular_margin():
    """The cross-entropy is of s cos(angle + m) for the own class, and s cos(angle) for the others."""
    teacher = Teacher("mlp_16", [10], 3, embedding=4, margin=0.3, scale=8.0)
    inputs, labels = torch.randn(6, 10), torch.arange(6) % 3
    weights = next(value for name, value in teacher.head.named_parameters() if value.shape == (3, 4)).detach().double()
    units = F.normalize(teacher(inputs).detach().double()), F.normalize(weights)
    cosines = units[0] @ units[1].T
    own = cosines[range(6), labels]
    turned = torch.cos(torch.acos(own) + 0.3)
    assert torch.all(torch.acos(own) < math.pi - 0.3), "where the margin is as it is written"
    expected = 8 * torch.where(F.one_hot(labels, 3).bool(), turned[:, None], cosines)
    torch.testing.assert_close(teacher.head(teacher(inputs), labels).double(), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(teacher.head.cosines(teacher(inputs)).double(), cosines, atol=1e-5, rtol=1e-5)


def test_a_teacher_of_faces_is_judged_by_the_protocol():
    data = world(source="drawn_faces", people=6, shots=6, size=16, batch_size=8, held_out=0.2)
    teacher = Teacher("cnn_2", data.shape, data.classes, embedding=6, recipe=Recipe(lr=1e-3))
    trainer = fit(teacher, data, epochs=1)
    assert 0 <= float(trainer.callback_metrics["val/accuracy"]) <= 1, "people held out are among those trained on"
    trainer.test(teacher, datamodule=data, verbose=False)
    found = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("test/")}
    teacher.eval()
    with torch.no_grad():
        judged = data.protocol.judge(torch.cat([teacher(data.finish(batch, augment=False)["input"]) for batch in data.ordered("test")]))
    assert found == pytest.approx({f"test/{name}": value for name, value in judged.items()}, abs=1e-6)
    assert "test/rank1" in found


def test_the_weights_are_a_function_of_the_seed():
    one, same, other = (Teacher("mlp_4", [10], 2, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(one.net.output.weight, same.net.output.weight)
    assert not torch.equal(one.net.output.weight, other.net.output.weight)


def test_a_diverged_teacher_is_stopped_before_it_is_stored(tmp_path):
    teacher = Teacher("mlp_8", [10], 2, recipe=Recipe(lr=1e30))
    with pytest.raises(ValueError, match="the training diverged"):
        fit(teacher, world(), AnchorRecorder(tmp_path), epochs=2)
    assert not list(tmp_path.glob("*.safetensors"))
