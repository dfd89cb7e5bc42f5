import math

import pytest
import torch
from scipy import stats
from torch import nn
from torch.nn import functional as F

from projects.drs.losses import consistency, cross_entropy, mean_probabilities, negative_margin, noised_logits, smooth_adversary, smoothmix
from shared.data.crops import crop_and_flip, draw_shifts


@pytest.fixture
def logits():
    return torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture
def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 4)).double()


def test_noise_meets_its_image(network):
    images, noise = torch.rand(5, 3, 4, dtype=torch.float64), torch.randn(3, 5, 3, 4, dtype=torch.float64)
    found = noised_logits(network, images, noise)
    for k in range(3):
        for i in range(5):
            torch.testing.assert_close(found[k, i], network((images[i] + noise[k, i])[None])[0])


def test_cross_entropy_is_the_mean_over_draws_and_images(logits):
    labels = torch.tensor([0, 1, 2, 3, 0])
    expected = sum(-math.log(logits[k, i].softmax(0)[labels[i]]) for k in range(3) for i in range(5)) / 15
    assert cross_entropy(logits, labels).item() == pytest.approx(expected)


def test_consistency_by_hand(logits):
    each = logits.softmax(-1).numpy()
    mean = each.mean(0)
    divergence = sum(stats.entropy(mean[i], each[k, i]) for k in range(3) for i in range(5)) / 15
    entropy = sum(stats.entropy(mean[i]) for i in range(5)) / 5
    assert consistency(logits, 15.0, 0.75).item() == pytest.approx(15 * divergence + 0.75 * entropy, rel=1e-6)
    assert consistency(logits[:1].repeat(3, 1, 1), 15.0, 0.0).item() == pytest.approx(0, abs=1e-9), "equal predictions are consistent"


def test_the_margin_is_the_soft_radius_of_right_answers(logits):
    mean = mean_probabilities(logits)
    labels = mean.argmax(1)
    labels[0] = (labels[0] + 1) % 4
    expected = -sum(stats.norm.ppf(min(0.99, mean[i].max().item())) for i in range(1, 5)) / 4
    assert negative_margin(logits, labels).item() == pytest.approx(expected, rel=1e-5)
    sure = torch.full((1, 2, 4), -50.0).scatter(2, torch.tensor([[[1], [2]]]), 50.0)
    assert negative_margin(sure, torch.tensor([1, 2])).item() == pytest.approx(-stats.norm.ppf(0.99), rel=1e-5)


def test_adversaries_climb_the_smoothed_loss_and_stay_inside(network):
    images, labels = torch.rand(6, 3, 4, dtype=torch.float64) * 0.2 + 0.4, torch.tensor([0, 1, 2, 3, 0, 1])
    noise = 0.1 * torch.randn(4, 6, 3, 4, dtype=torch.float64)

    def loss(x):
        return -mean_probabilities(noised_logits(network, x, noise)).gather(1, labels[:, None]).log()[:, 0]

    free = smooth_adversary(network, images, labels, noise, steps=5, step_size=0.1)
    assert len(free) == 5
    assert bool((loss(free[-1]) > loss(images)).all())
    torch.testing.assert_close((free[0] - images).flatten(1).norm(dim=1), torch.full((6,), 0.1, dtype=torch.float64))
    balled = smooth_adversary(network, images, labels, noise, steps=5, step_size=0.1, epsilon=0.15)[-1]
    assert bool(((balled - images).flatten(1).norm(dim=1) <= 0.15 + 1e-9).all())
    assert bool((loss(balled) > loss(images)).all())
    assert not any(point.requires_grad for point in [balled, *free])
    far = smooth_adversary(network, images, labels, noise, steps=3, step_size=5.0)[-1]
    assert bool(((far >= 0) & (far <= 1)).all())
    one = images.clone().requires_grad_(True)
    gradient = torch.autograd.grad(loss(one).sum(), one)[0]
    direction = gradient / gradient.flatten(1).norm(dim=1)[:, None, None]
    torch.testing.assert_close(free[0], images + 0.1 * direction)


def test_mixtures_by_hand(network):
    images, adversaries = torch.rand(2, 5, 3, 4, dtype=torch.float64)
    noise = 0.3 * torch.randn(2, 5, 3, 4, dtype=torch.float64)
    clean = noised_logits(network, images, noise)
    mean = mean_probabilities(clean)
    labels = mean.argmax(1)
    labels[2] = (labels[2] + 1) % 4  # is not learned from
    shares = torch.tensor([0.0, 0.1, 0.2, 0.3, 0.5], dtype=torch.float64)
    expected = 0.0
    for i in (0, 1, 3, 4):
        mixed = (1 - shares[i]) * images[i] + shares[i] * adversaries[i]
        target = (1 - shares[i]) * mean[i] + shares[i] / 4
        for k in range(2):
            expected += F.kl_div(network((mixed + noise[k, i])[None]).log_softmax(1)[0], target, reduction="sum").item() / 2 / 5
    assert smoothmix(network, clean, images, adversaries, labels, noise, shares).item() == pytest.approx(expected, rel=1e-5)


def test_crops_and_mirrors():
    images = torch.rand(40, 3, 6, 8)
    shifts = draw_shifts(40, 2, torch.Generator().manual_seed(0))
    assert shifts.min() == 0
    assert set(shifts[:, :2].flatten().tolist()) == {0, 1, 2, 3, 4}
    found = crop_and_flip(images, shifts, 2)
    padded = F.pad(images, [2] * 4)
    for i, (row, column, mirrored) in enumerate(shifts.tolist()):
        cut = padded[i, :, row : row + 6, column : column + 8]
        assert torch.equal(found[i], cut.flip(-1) if mirrored else cut)
    still = torch.tensor([[2, 2, 0]]).expand(40, 3)
    assert torch.equal(crop_and_flip(images, still, 2), images)
