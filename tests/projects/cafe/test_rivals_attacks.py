import pytest
import torch
from torch import nn
from torch.nn import functional as F

from projects.cafe.rivals.attacks import best_of, dlg, group_inversion, idlg, inverting_gradients, sapag
from projects.cafe.rivals.dummies import REACH, Dummies, cosine_decay, descend_lbfgs, step_decay
from projects.cafe.rivals.matching import Attacked
from projects.cafe.rivals.priors import batch_norm_statistics, total_variation

SHAPES = [(1, 4, 4), (1, 4, 4)]


def federation(seed=0, norm=False, activation=nn.Sigmoid):
    """Two parties with a small net each, and a linear server, in eval mode."""
    torch.manual_seed(seed)
    first, width = ([nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), activation(), nn.Flatten()], 64) if norm else ([nn.Flatten()], 16)
    bottoms = nn.ModuleList([nn.Sequential(*first, nn.Linear(width, 24), activation(), nn.Linear(24, 5)) for _ in range(2)])
    server = nn.Linear(10, 4)
    bottoms.eval()
    return Attacked(
        lambda blocks: server(torch.cat([net(block) for net, block in zip(bottoms, blocks, strict=True)], 1)),
        [*bottoms.parameters(), *server.parameters()],
    ), bottoms


def records(count, seed=0):
    random = torch.Generator().manual_seed(seed)
    return [torch.rand(count, *shape, generator=random) for shape in SHAPES], torch.randint(0, 4, (count,), generator=random)


def upload(attacked, blocks, labels):
    return attacked.gradients(blocks, F.one_hot(labels, 4).float())


def error(recovered, blocks):
    """Root mean squared error over all pixels."""
    return float(torch.stack([(ours - theirs).square().mean() for ours, theirs in zip(recovered.blocks, blocks, strict=True)]).mean().sqrt())


@pytest.mark.parametrize("attack", [dlg, idlg, sapag])
def test_one_record_is_recovered_from_its_gradient(attack):
    attacked, _ = federation()
    blocks, labels = records(1)
    recovered = best_of(lambda seed: attack(attacked, upload(attacked, blocks, labels), SHAPES, 1, steps=100, seed=seed), range(2))
    assert error(recovered, blocks) < 0.03
    assert recovered.labels.argmax(1).tolist() == labels.tolist()


def test_many_records_are_not_recovered_from_one_gradient():
    attacked, _ = federation()
    blocks, labels = records(30)
    recovered = dlg(attacked, upload(attacked, blocks, labels), SHAPES, 30, steps=60)
    assert error(recovered, blocks) > 0.2


def test_a_horizontal_worker_is_a_federation_of_one_party():
    torch.manual_seed(1)
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 32), nn.Sigmoid(), nn.Linear(32, 4))
    attacked = Attacked(lambda blocks: net(blocks[0]), list(net.parameters()))
    (block, _), labels = records(1)
    recovered = idlg(attacked, upload(attacked, [block], labels), SHAPES[:1], 1, steps=60)
    assert error(recovered, [block]) < 0.03


def test_inverting_gradients_finds_a_smooth_record_better_with_total_variation_and_stays_in_the_box():
    attacked, _ = federation(activation=nn.ReLU)
    ramp = torch.linspace(0.2, 0.8, 4).expand(1, 1, 4, 4).contiguous()
    blocks, labels = [ramp, ramp.mT.contiguous()], torch.tensor([2])
    found = [
        inverting_gradients(attacked, upload(attacked, blocks, labels), SHAPES, 1, steps=200, variation=weight, labels=labels)
        for weight in (0.0, 0.02)
    ]
    assert error(found[1], blocks) < 0.1
    assert float(total_variation(found[1].blocks)) < float(total_variation(found[0].blocks))
    for recovered in found:
        assert all(block.min() >= 0 and block.max() <= 1 for block in recovered.blocks)


def test_batch_norm_statistics_join_the_objective():
    attacked, bottoms = federation(norm=True)
    blocks, labels = records(6)
    for net, block in zip(bottoms, blocks, strict=True):
        features = net[0](block).detach()
        net[1].running_mean.copy_(features.mean((0, 2, 3)))
        net[1].running_var.copy_(features.var((0, 2, 3), unbiased=False))
    prior = batch_norm_statistics(attacked.model, bottoms)
    observed = upload(attacked, blocks, labels)
    settings = {"steps": 60, "variation": 0, "labels": labels}
    found = [inverting_gradients(attacked, observed, SHAPES, 6, priors=priors, **settings) for priors in ([], [(0.1, prior)])]
    apart = [float(prior(recovered.blocks).detach()) for recovered in found]
    assert apart[1] < apart[0] / 2


def test_a_group_is_pulled_together():
    attacked, _ = federation()
    blocks, labels = records(3)
    observed = upload(attacked, blocks, labels)
    alone = [inverting_gradients(attacked, observed, SHAPES, 3, steps=40, variation=0, seed=seed, labels=labels) for seed in range(3)]
    group = group_inversion(attacked, observed, SHAPES, 3, range(3), 0.0, steps=40, variation=0, labels=labels)
    assert group.loss == pytest.approx(min(each.loss for each in alone), rel=0.05)
    pulled = group_inversion(attacked, observed, SHAPES, 3, range(3), 10.0, steps=40, variation=0, labels=labels)
    assert error(pulled, group.blocks) > 0.01


def test_the_same_seed_gives_the_same_dummies_and_another_seed_others():
    attacked, _ = federation()
    blocks, labels = records(2)
    for attack in (
        lambda seed: dlg(attacked, upload(attacked, blocks, labels), SHAPES, 2, steps=3, seed=seed),
        lambda seed: inverting_gradients(attacked, upload(attacked, blocks, labels), SHAPES, 2, steps=3, seed=seed),
    ):
        assert torch.equal(attack(0).blocks[1], attack(0).blocks[1])
        assert not torch.equal(attack(0).blocks[1], attack(1).blocks[1])


def test_networks_are_left_as_they_were():
    attacked, _ = federation()
    blocks, labels = records(2)
    before = [parameter.detach().clone() for parameter in attacked.parameters]
    dlg(attacked, upload(attacked, blocks, labels), SHAPES, 2, steps=3)
    torch.testing.assert_close(before, [parameter.detach() for parameter in attacked.parameters], rtol=0, atol=0)
    assert all(parameter.grad is None for parameter in attacked.parameters)


def test_a_small_loss_is_matched_as_well_as_a_large_one():
    attacked, _ = federation()
    blocks, labels = records(1)
    small = Attacked(attacked.model, attacked.parameters, lambda logits, targets: 1e-6 * F.cross_entropy(logits, targets))
    recovered = dlg(small, upload(small, blocks, labels), SHAPES, 1, steps=60, labels=labels)
    assert error(recovered, blocks) < 0.03


def test_lbfgs_walks_to_a_far_minimum_in_bounded_steps():
    target = torch.linspace(-6, 6, 16).view(1, 16)
    curvature = torch.logspace(-6, -3, 16)
    dummies = Dummies.draw([(16,)], 1, 4, target, seed=0, labels=torch.tensor([0]))
    visited = []

    def objective():
        visited.append(dummies.blocks[0].detach().clone())
        return (curvature * (dummies.blocks[0] - target) ** 2).sum()

    found = descend_lbfgs(dummies, objective, 150)
    torch.testing.assert_close(found.blocks[0], target, atol=1e-2, rtol=0)
    assert float(torch.cat(visited).diff(dim=0).abs().max()) <= REACH + 1e-5


def test_an_attack_that_diverges_returns_the_best_dummies_it_met():
    attacked, _ = federation(activation=nn.ReLU)
    blocks, labels = records(1)
    recovered = dlg(attacked, upload(attacked, blocks, labels), SHAPES, 1, steps=50, lr=1e30)
    assert all(block.isfinite().all() for block in recovered.blocks)
    assert recovered.loss < float("inf")


def test_learning_rates_decay_as_the_papers_say():
    assert [step_decay(part) for part in (0, 0.374, 0.375, 0.625, 0.875)] == pytest.approx([1, 1, 0.1, 0.01, 0.001])
    assert [cosine_decay(part) for part in (0, 0.5, 1)] == pytest.approx([1, 0.5, 0])


def test_labels_of_another_batch_are_refused():
    attacked, _ = federation()
    blocks, labels = records(2)
    observed = upload(attacked, blocks, labels)
    with pytest.raises(ValueError, match=r"known labels are of \(1, 4\)"):
        dlg(attacked, observed, SHAPES, 2, labels=torch.tensor([1]))
