import itertools

import pytest
import torch
from torch import nn

from projects.cafe.rivals.priors import batch_norm_statistics, group_consistency, matched, total_variation


def test_total_variation_is_the_mean_step_between_neighbours():
    blocks = [torch.rand(2, 3, 4, 5), torch.rand(2, 1, 3, 2)]
    expected = 0.0
    for block in blocks:
        across = [abs(float(block[b, c, i, j + 1] - block[b, c, i, j])) for b, c, i, j in itertools.product(*map(range, block[..., 1:].shape))]
        down = [abs(float(block[b, c, i + 1, j] - block[b, c, i, j])) for b, c, i, j in itertools.product(*map(range, block[:, :, 1:].shape))]
        expected += (sum(across) / len(across) + sum(down) / len(down)) / 2
    assert float(total_variation(blocks)) == pytest.approx(expected, rel=1e-5)


def test_total_variation_refuses_tables():
    with pytest.raises(ValueError, match=r"party 1 has \(3, 7\)"):
        total_variation([torch.rand(3, 1, 4, 4), torch.rand(3, 7)])


def normed():
    torch.manual_seed(0)
    bottoms = nn.ModuleList([nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2), nn.BatchNorm1d(2))])
    return bottoms, lambda blocks: bottoms[0](blocks[0])


def test_batch_norm_statistics_are_compared_layer_by_layer():
    bottoms, model = normed()
    for layer in (bottoms[0][1], bottoms[0][5]):
        layer.running_mean.normal_()
        layer.running_var.uniform_(0.5, 2)
    bottoms.eval()
    images = torch.rand(6, 1, 4, 4)
    expected = torch.zeros(())
    features = bottoms[0][0](images)
    expected = expected + ((features.mean((0, 2, 3)) - bottoms[0][1].running_mean) ** 2).sum()
    expected = expected + ((features.var((0, 2, 3), unbiased=False) - bottoms[0][1].running_var) ** 2).sum()
    features = bottoms[0][:5](images)
    expected = expected + ((features.mean(0) - bottoms[0][5].running_mean) ** 2).sum()
    expected = expected + ((features.var(0, unbiased=False) - bottoms[0][5].running_var) ** 2).sum()
    torch.testing.assert_close(batch_norm_statistics(model, bottoms)([images]), expected)


def test_batch_norm_statistics_are_zero_for_the_batch_that_made_them_and_leave_the_networks_as_they_are():
    bottoms, _ = normed()
    images = torch.rand(50, 1, 4, 4)
    layer = bottoms[0][1].eval()
    features = bottoms[0][0](images).detach()
    layer.running_mean.copy_(features.mean((0, 2, 3)))
    layer.running_var.copy_(features.var((0, 2, 3), unbiased=False))
    prior = batch_norm_statistics(lambda blocks: bottoms[0][:3](blocks[0]), [layer])
    assert float(prior([images]).detach()) == pytest.approx(0, abs=1e-10)
    assert float(prior([2 * images]).detach()) > 0.01
    assert not layer._forward_pre_hooks
    assert layer.num_batches_tracked == 0


def test_batch_norm_statistics_refuse_networks_that_have_none_or_are_in_training_mode():
    bottoms, model = normed()
    with pytest.raises(ValueError, match="no batch-norm layer"):
        batch_norm_statistics(model, [nn.Linear(2, 2)])
    with pytest.raises(ValueError, match="call eval"):
        batch_norm_statistics(model, bottoms)


def test_matching_equals_a_search_through_all_orders():
    first, second = torch.rand(5, 3), torch.rand(5, 3)
    best = min(itertools.permutations(range(5)), key=lambda order: float((first - second[list(order)]).square().sum()))
    assert matched(first, second).tolist() == list(best)


def test_matching_keeps_labels_together():
    first, second = torch.tensor([[0.0], [1.0], [0.6]]), torch.tensor([[1.0], [0.6], [0.9]])
    assert matched(first, second).tolist() == [1, 0, 2]
    assert matched(first, second, torch.tensor([0, 1, 1])).tolist() == [0, 2, 1]


def test_group_consistency_is_the_spread_of_the_members_whatever_their_order():
    blocks = [torch.rand(4, 1, 2, 2), torch.rand(4, 3)]
    order = torch.tensor([2, 0, 3, 1])
    assert float(group_consistency([blocks, [block[order] for block in blocks]])) == 0
    noise = 1e-3 * torch.randn(4, 7)
    moved = [blocks[0] + noise[:, :4].view(4, 1, 2, 2), blocks[1] + noise[:, 4:]]
    spread = float(group_consistency([blocks, [block[order] for block in moved]]))
    assert spread == pytest.approx(float((noise / 2).square().mean()), rel=1e-3)
    with pytest.raises(ValueError, match="at least 2 runs, got 1"):
        group_consistency([blocks])
