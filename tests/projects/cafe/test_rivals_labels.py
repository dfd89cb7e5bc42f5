import pytest
import torch
from torch import nn
from torch.nn import functional as F

from projects.cafe.rivals.attacks import infer_labels
from projects.cafe.rivals.labels import as_labels, label_counts, sign_rule
from projects.cafe.rivals.matching import Attacked


def model(classes, seed=0):
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, classes))
    return Attacked(lambda blocks: net(torch.cat(blocks, 1)), list(net.parameters()))


def gradients(attacked, labels, classes, seed=0):
    records = torch.rand(len(labels), 6, generator=torch.Generator().manual_seed(seed))
    return attacked.gradients([records[:, :2], records[:, 2:]], F.one_hot(labels, classes).float())


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_the_sign_rule_finds_the_label_of_every_single_record(classes):
    for label in range(classes):
        observed = gradients(model(classes, seed=label), torch.tensor([label]), classes, seed=label)
        assert sign_rule(observed[-2]) == label
        assert label_counts(observed[-1], 1).tolist() == F.one_hot(torch.tensor(label), classes).tolist()


def test_the_sign_rule_holds_for_inputs_of_both_signs():
    for label in range(4):
        residual = torch.tensor([0.4, 0.3, 0.2, 0.1]) - F.one_hot(torch.tensor(label), 4)
        assert sign_rule(residual[:, None] * torch.randn(1, 7, generator=torch.Generator().manual_seed(label))) == label


def test_a_gradient_of_zero_tells_no_label():
    with pytest.raises(ValueError, match="tells no label"):
        sign_rule(torch.zeros(3, 4))


def test_counts_are_exact_where_the_mean_probabilities_are_known():
    counts = torch.tensor([0, 5, 1, 2])
    probabilities = torch.tensor([0.1, 0.2, 0.3, 0.4])
    assert label_counts(probabilities - counts / 8, 8, probabilities).tolist() == counts.tolist()


def test_counts_always_sum_to_the_batch():
    random = torch.Generator().manual_seed(0)
    for batch in range(1, 30):
        gradient = torch.randn(7, generator=random)
        counts = label_counts(gradient - gradient.mean(), batch)
        assert counts.sum() == batch
        assert counts.min() >= 0
    with pytest.raises(ValueError, match="at least 1 record, got 0"):
        label_counts(torch.zeros(3), 0)


def test_counts_of_a_fresh_model_are_those_of_the_batch():
    attacked = model(5)
    labels = torch.tensor([0, 0, 0, 1, 3, 3, 4, 4, 4, 4])
    inferred = infer_labels(attacked, gradients(attacked, labels, 5), [(2,), (4,)], 10)
    assert inferred.tolist() == labels.tolist()


def test_counts_are_listed_as_labels_in_rising_order():
    assert as_labels(torch.tensor([2, 0, 1])).tolist() == [0, 0, 2]
