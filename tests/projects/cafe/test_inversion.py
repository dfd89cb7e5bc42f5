import pytest
import torch
import torch.nn.functional as F
from torch import nn

from projects.cafe.inversion import DataDescent, Weights, gradient_distance, invert, representation_distance, total_variation, truncated_variation
from projects.cafe.middle import recover_middle
from shared.data.offline import digits


class Net(nn.Module):
    def __init__(self, body, first, tail):
        super().__init__()
        self.body, self.first, self.tail = body, first, tail

    def forward(self, x):
        return self.tail(self.first(self.body(x)))


class Server(nn.Module):
    def __init__(self, inner, classes):
        super().__init__()
        self.top = nn.Linear(inner, classes)

    def forward(self, outputs):
        return self.top(torch.cat(outputs, dim=1))


class Gradients:
    def __init__(self, parties, server):
        self.parties, self.server = parties, server


def drawn_schedule(records, batch, rounds):
    draw = torch.Generator().manual_seed(0)
    schedule = torch.zeros(rounds, records, dtype=torch.bool)
    for row in schedule:
        row[torch.randperm(records, generator=draw)[:batch]] = True
    return schedule


def glorot(net):
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    return net


def conv_net(seed):
    torch.manual_seed(seed)
    pools = (nn.Conv2d(1, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(32, 64, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten())
    tail = nn.Sequential(nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10), nn.ReLU())
    return glorot(Net(nn.Sequential(*pools), nn.Linear(256, 64), tail))


def smooth_net(seed):
    torch.manual_seed(seed)
    return Net(nn.Sequential(nn.Flatten(), nn.Linear(9, 24), nn.Tanh()), nn.Linear(24, 8), nn.Sequential(nn.Tanh(), nn.Linear(8, 4)))


def named(net, gradients):
    return dict(zip([name for name, _ in net.named_parameters()], gradients, strict=True))


def uploads(bottoms, server, blocks, labels, schedule):
    found = []
    for row in schedule:
        loss = F.cross_entropy(server([bottom(block[row]) for bottom, block in zip(bottoms, blocks, strict=True)]), labels[row])
        gradients = [named(net, torch.autograd.grad(loss, list(net.parameters()), retain_graph=True)) for net in [*bottoms, server]]
        found.append(Gradients(gradients[:-1], gradients[-1]))
    return found


def psnr(found, truth):
    return -10 * (found - truth).square().flatten(1).mean(dim=1).clamp_min(1e-10).log10()


def small_world(records=8, batch=3, rounds=24):
    bottoms, server = [smooth_net(1), smooth_net(2)], Server(8, 3)
    blocks = [torch.rand(records, 1, 3, 3, generator=torch.Generator().manual_seed(m)) for m in range(2)]
    labels, schedule = torch.arange(records) % 3, drawn_schedule(records, batch, rounds)
    inputs = [bottom.body(block).detach() for bottom, block in zip(bottoms, blocks, strict=True)]
    return bottoms, server, blocks, labels, schedule, uploads(bottoms, server, blocks, labels, schedule), inputs


def run(world, descent, rounds):
    bottoms, server, _, _, schedule, found, inputs = world
    for t in range(rounds):
        terms = descent.step(bottoms, server, schedule[t % len(schedule)].nonzero().flatten(), found[t % len(schedule)], inputs)
    return terms


def test_total_variation_sums_the_absolute_differences():
    images = torch.rand(2, 3, 4, 5)
    brute = [0.0, 0.0]
    for b in range(2):
        for c in range(3):
            for i in range(4):
                for j in range(5):
                    brute[b] += abs(float(images[b, c, i, j] - images[b, c, i - 1, j])) if i else 0
                    brute[b] += abs(float(images[b, c, i, j] - images[b, c, i, j - 1])) if j else 0
    assert total_variation(images).tolist() == pytest.approx(brute, rel=1e-5)


def test_variation_counts_only_while_its_mean_over_parties_is_above_the_level():
    smooth, rough = torch.zeros(2, 1, 3, 3), torch.eye(3).expand(2, 1, 3, 3)
    level = float(total_variation(rough)[0])  # of the rough party; the mean over both is half of it
    assert truncated_variation([smooth, rough], level / 2 - 0.01) == pytest.approx(level)
    assert truncated_variation([smooth, rough], level / 2 + 0.01) == 0


def test_lost_records_do_not_count_in_the_representation():
    middle = torch.randn(3, 4, requires_grad=True)
    inputs = torch.randn(3, 4)
    inputs[1] = torch.nan
    distance = representation_distance(middle, inputs)
    assert float(distance.detach()) == pytest.approx(float((middle - inputs)[[0, 2]].detach().square().sum()))
    (gradient,) = torch.autograd.grad(distance, middle)
    assert gradient[1].tolist() == [0] * 4
    assert gradient.isfinite().all()


def test_gradient_distance_is_zero_at_the_data_and_sums_squares_elsewhere():
    bottoms, server, blocks, labels, schedule, found, _ = small_world()
    row, nets = schedule[0], [*bottoms, server]
    loss = F.cross_entropy(server([bottom(block[row]) for bottom, block in zip(bottoms, blocks, strict=True)]), labels[row])
    theirs = [*found[0].parties, found[0].server]
    assert gradient_distance(loss, nets, theirs) < 1e-12
    shifted = [{name: value + 1 for name, value in party.items()} for party in theirs]
    count = sum(value.numel() for net in nets for value in net.parameters())
    assert float(gradient_distance(loss, nets, shifted).detach()) == pytest.approx(count, rel=1e-4)


def test_inversion_of_the_representation_is_the_same_in_chunks_and_record_by_record():
    net = conv_net(0)
    inputs = net.body(torch.rand(5, 1, 8, 8)).detach().double()
    inputs[3] = torch.nan
    whole, single = (invert(net.body, inputs, (1, 8, 8), steps=10, chunk=chunk) for chunk in (5, 1))
    torch.testing.assert_close(whole, single, equal_nan=True, atol=1e-3, rtol=1e-3)
    assert whole.isnan().flatten(1).all(dim=1).tolist() == [False, False, False, True, False]
    kept = whole[inputs.isfinite().all(dim=1)]
    assert kept.min() >= 0
    assert kept.max() <= 1


def test_variation_smooths_what_the_representation_leaves_open():
    def blind(images):
        return images.mean(dim=(1, 2, 3))[:, None]

    plain, smooth = (invert(blind, torch.full((2, 1), 0.5), (1, 6, 6), steps=60, beta=beta, xi=0.5) for beta in (0.0, 1e-2))
    assert total_variation(smooth).mean() < total_variation(plain).mean() / 3


def test_a_step_of_the_reference_is_adam_on_f3():
    world = small_world()
    bottoms, server, _, _, schedule, found, inputs = world
    weights = Weights(alpha=0.3, beta=0.2, gamma=0.1, xi=0.0)
    descent = DataDescent(8, [(1, 3, 3)] * 2, 3, weights=weights, lr=0.01)
    start, logits = [block.clone() for block in descent.blocks], descent.logits.clone()
    members = schedule[0].nonzero().flatten()
    blocks, labels = [block[members].requires_grad_() for block in start], logits[members].requires_grad_()
    targets = labels.softmax(dim=1)
    loss = -(targets * server([b(x) for b, x in zip(bottoms, blocks, strict=True)]).log_softmax(dim=1)).sum(dim=1).mean()
    distance = 0.0
    for net, theirs in zip([*bottoms, server], [*found[0].parties, found[0].server], strict=True):
        mine = torch.autograd.grad(loss, list(net.parameters()), create_graph=True)
        distance = distance + sum((a - b).square().sum() for a, b in zip(mine, theirs.values(), strict=True))
    rough = sum((x.diff(dim=2).abs().sum() + x.diff(dim=3).abs().sum()) / len(members) for x in blocks)
    near = sum((b.body(x) - h[members]).square().sum() for b, x, h in zip(bottoms, blocks, inputs, strict=True))
    wanted = torch.autograd.grad(0.3 * distance + 0.2 * rough + 0.1 * near, blocks, retain_graph=True)
    (wanted_label,) = torch.autograd.grad(100 * distance, labels)
    terms = descent.step(bottoms, server, members, found[0], inputs)
    assert terms == pytest.approx((float(distance), float(rough), float(near)), rel=1e-4)
    for block, first, gradient in zip(descent.blocks, start, wanted, strict=True):  # Adam's first step is lr g / (|g| + eps)
        expected = first.index_add(0, members, gradient / (gradient.abs() + 1e-7), alpha=-0.01)
        torch.testing.assert_close(block, expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(
        descent.logits, logits.index_add(0, members, wanted_label / (wanted_label.abs() + 1e-7), alpha=-0.01), atol=1e-5, rtol=1e-4
    )


def test_alpha_buys_the_labels_and_gamma_the_pixels():
    world = small_world(rounds=16)
    _, _, blocks, labels, *_ = world
    shapes = [(1, 3, 3)] * 2
    both = DataDescent(8, shapes, 3, weights=Weights(alpha=1e-2, beta=0, gamma=1e-3), lr=0.03)
    start = torch.cat([psnr(found, truth) for found, truth in zip(both.blocks, blocks, strict=True)]).mean()
    first, labels_before = run(world, both, 1), both.label_probabilities()
    last = run(world, both, 120)
    end = torch.cat([psnr(found, truth) for found, truth in zip(both.blocks, blocks, strict=True)]).mean()
    assert end > start + 6
    assert last.representation < first.representation / 10
    assert (both.label_probabilities().argmax(dim=1) == labels).float().mean() > 0.8
    without = DataDescent(8, shapes, 3, weights=Weights(alpha=0, beta=0))
    run(world, without, 1)
    assert torch.equal(without.label_probabilities(), DataDescent(8, shapes, 3).label_probabilities())
    assert not torch.equal(labels_before, both.label_probabilities())


def test_known_labels_stay_and_the_reference_loss_is_another_loss():
    world = small_world(rounds=4)
    labels = world[3]
    known = DataDescent(8, [(1, 3, 3)] * 2, 3, labels=labels, weights=Weights(beta=0))
    plain = run(world, known, 1)
    assert torch.equal(known.label_probabilities().argmax(dim=1), labels)
    double = run(world, DataDescent(8, [(1, 3, 3)] * 2, 3, labels=labels, weights=Weights(beta=0), reference_loss=True), 1)
    assert plain.gradient != double.gradient
    assert plain.representation == double.representation


def test_weights_out_of_range_are_refused():
    with pytest.raises(ValueError, match="alpha or gamma above 0"):
        Weights(alpha=0, gamma=0)
    with pytest.raises(ValueError, match="must be 0 or more"):
        Weights(beta=-1)


def attack(records, batch, rounds):
    source = digits("train", 16)
    images, labels, schedule = source.images[:records], source.labels[:records], drawn_schedule(records, batch, rounds)
    blocks = [images[:, :, i : i + 8, j : j + 8] for i in (0, 8) for j in (0, 8)]
    bottoms, server = [conv_net(m) for m in range(4)], glorot(Server(40, 10))
    found = uploads(bottoms, server, blocks, labels, schedule)
    biases = [torch.stack([upload.parties[m]["first.bias"] for upload in found]) for m in range(4)]
    middle = recover_middle(biases, [[upload.parties[m]["first.weight"] for upload in found] for m in range(4)], schedule)
    for bottom, block, part in zip(bottoms, blocks, middle, strict=True):
        truth = bottom.body(block).detach()
        assert (part.inputs - truth).norm() / truth.norm() < 1e-5
    upper_left, upper_right, lower_left, lower_right = (
        invert(b.body, p.inputs, (1, 8, 8), seed=m) for m, (b, p) in enumerate(zip(bottoms, middle, strict=True))
    )
    recovered = torch.cat([torch.cat([upper_left, upper_right], dim=3), torch.cat([lower_left, lower_right], dim=3)], dim=2)
    return psnr(recovered, images), psnr(images.mean(dim=0).expand_as(images), images)


def test_digits_are_recovered_from_batch_gradients_and_the_mean_image_is_far_behind():
    found, baseline = attack(records=6, batch=2, rounds=10)
    assert found.mean() > 30
    assert baseline.mean() < 18


@pytest.mark.slow
def test_two_hundred_digits_are_recovered_from_batches_of_forty():
    found, baseline = attack(records=200, batch=40, rounds=240)
    assert found.mean() > 30
    assert baseline.mean() < 15
