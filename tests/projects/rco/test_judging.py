"""Figures of networks, against scikit-learn and scipy."""

import numpy as np
import pytest
import torch
from scipy.special import rel_entr, softmax
from sklearn.metrics import accuracy_score, top_k_accuracy_score

from projects.rco.face_protocols import FaceProtocol, Verification
from projects.rco.judging import Answers, Collected, congruence, distances, measures

DRAWN = np.random.default_rng(0)


def logits(count, classes, scale=3.0):
    return torch.from_numpy(scale * DRAWN.standard_normal((count, classes))).float()


@pytest.mark.parametrize("classes", [2, 7, 10, 100])
def test_accuracies_are_those_of_scikit_learn(classes):
    outputs, labels = logits(300, classes), torch.from_numpy(DRAWN.integers(0, classes, 300))
    found = measures(Answers(labels, outputs))
    assert found["accuracy"] == pytest.approx(accuracy_score(labels, outputs.argmax(1)), abs=1e-6)
    assert ("top5" in found) == (classes >= 10)
    if classes >= 10:
        assert found["top5"] == pytest.approx(top_k_accuracy_score(labels, outputs, k=5, labels=range(classes)), abs=1e-6)


def test_congruence_of_classifiers_is_the_divergence_from_the_teacher():
    outputs, teacher, labels = logits(200, 5), logits(200, 5), torch.from_numpy(DRAWN.integers(0, 5, 200))
    found = congruence(Answers(labels, outputs), teacher, embeds=False)
    apart = rel_entr(softmax(teacher.double().numpy(), 1), softmax(outputs.double().numpy(), 1)).sum(1)
    np.testing.assert_allclose(distances(outputs, teacher, False), apart, rtol=1e-4, atol=1e-6)
    assert found == {
        "congruence": pytest.approx(apart.mean(), rel=1e-5),
        "agreement": pytest.approx(accuracy_score(teacher.argmax(1), outputs.argmax(1)), abs=1e-6),
        "teacher_accuracy": pytest.approx(accuracy_score(labels, teacher.argmax(1)), abs=1e-6),
    }
    assert congruence(Answers(labels, teacher), teacher, embeds=False)["congruence"] == pytest.approx(0, abs=1e-6)


def test_congruence_of_embeddings_is_their_squared_distance():
    outputs, teacher = logits(50, 8), logits(50, 8)
    apart = ((outputs.double().numpy() - teacher.double().numpy()) ** 2).mean(1)
    np.testing.assert_allclose(distances(outputs, teacher, True), apart, rtol=1e-5)
    assert congruence(Answers(torch.full((50,), -1), outputs), teacher, embeds=True) == {"congruence": pytest.approx(apart.mean(), rel=1e-5)}


def test_people_without_a_class_are_judged_by_the_protocol_alone():
    protocol = FaceProtocol(40, Verification(torch.arange(20), torch.arange(20, 40), torch.arange(20) % 2 == 0, torch.arange(20) % 10))
    embeddings = logits(40, 12)
    assert measures(Answers(torch.full((40,), -1), embeddings), protocol) == protocol.judge(embeddings)


def test_answers_are_joined_in_the_order_of_the_set():
    outputs, labels, order = logits(23, 3), torch.arange(23) % 3, torch.from_numpy(DRAWN.permutation(23))
    collected = Collected(3)
    for part in order.split(5):
        collected.add({"index": part, "label": labels[part]}, outputs[part].requires_grad_())
    found = collected.gathered(torch.device("cpu"))
    assert torch.equal(found.outputs, outputs)
    assert torch.equal(found.labels, labels)
    assert not found.outputs.requires_grad
    assert Collected(4).gathered(torch.device("cpu")).outputs.shape == (0, 4)
