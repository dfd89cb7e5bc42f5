import pytest
import torch
from torch import nn
from torch.nn import functional as F

from shared.poisons import View, ascend, descend, mean_gradient, mean_over_views, project, uniform_start, worst_within
from shared.seeding import generator


@pytest.fixture
def images():
    return torch.rand(5, 3, 8, 8, generator=generator(0, "images"))


def linear(seed):
    """A loss with a constant gradient, and the gradient."""
    weights = torch.randn(3, 8, 8, generator=generator(seed, "weights"))
    return (lambda at: (at * weights).sum()), weights


def test_one_step_is_that_of_the_equation(images):
    loss, weights = linear(0)
    start = 0.03 * torch.randn(5, 3, 8, 8, generator=generator(0, "start"))
    stepped = (start.clamp(-0.03, 0.03) + images).clamp(0, 1) - images - 0.01 * weights.sign()
    expected = (images + stepped.clamp(-0.03, 0.03)).clamp(0, 1) - images
    torch.testing.assert_close(descend(images, loss, 0.03, 0.01, 1, start), expected)


def test_enough_steps_on_a_linear_loss_end_at_its_minimum(images):
    loss, weights = linear(0)
    torch.testing.assert_close(descend(images, loss, 0.03, 0.01, 5), project(-weights.sign(), images, 0.03), atol=1e-6, rtol=0)


def test_perturbed_images_stay_in_the_ball_and_in_range(images):
    loss = nn.Sequential(nn.Flatten(), nn.Linear(192, 1))
    delta = descend(images.round(), lambda at: loss(at).sum(), 0.1, 0.07, 4)
    assert delta.abs().max() <= 0.1 + 1e-7
    assert (images.round() + delta).min() >= 0
    assert (images.round() + delta).max() <= 1


def test_mean_gradient_is_that_of_the_mean_loss(images):
    nets = [nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(144, 7)).double() for _ in range(3)]
    at, targets = images.double().requires_grad_(), torch.arange(5)
    losses = [lambda x, net=net: F.cross_entropy(net(x), targets, reduction="sum") for net in nets]
    (expected,) = torch.autograd.grad(sum(loss(at) for loss in losses) / 3, at)
    torch.testing.assert_close(mean_gradient(at.detach(), losses), expected, rtol=1e-10, atol=1e-12)
    assert all(parameter.grad is None for net in nets for parameter in net.parameters())


def test_descent_works_where_gradients_are_switched_off(images):
    loss, _ = linear(0)
    with torch.no_grad():
        assert descend(images, [loss, loss], 0.1, 0.01, 1).abs().max() > 0


def test_views_are_crops_of_the_padded_image(images):
    view = View.draw(5, padding=2, flip=True, random=generator(1, "view"))
    padded = F.pad(images, [2] * 4)
    for number, seen in enumerate(view(images)):
        row, column = int(view.rows[number]), int(view.columns[number])
        expected = padded[number, :, row : row + 8, column : column + 8]
        assert torch.equal(seen, expected.flip(2) if view.flips[number] else expected)
    drawn = View.draw(4000, 2, True, generator(0, "many"))
    assert set(drawn.rows.tolist()) == set(drawn.columns.tolist()) == set(range(5))
    assert 0.45 < drawn.flips.float().mean() < 0.55
    assert not View.draw(50, 2, False, generator(0, "none")).flips.any()


def test_gradients_go_back_through_views(images):
    view, (loss, weights) = View.draw(5, 2, True, generator(1, "view")), linear(0)
    inverse = torch.arange(1.0, 193).reshape(1, 3, 8, 8).expand(5, -1, -1, -1)  # where each cell of the view comes from
    places = view(inverse).long()
    expected = torch.zeros(5, 193).scatter_add_(1, places.flatten(1), weights.expand(5, -1, -1, -1).flatten(1))[:, 1:].reshape(5, 3, 8, 8)
    torch.testing.assert_close(mean_gradient(images, [lambda at: loss(view(at))]), expected)


def test_mean_over_views_draws_anew():
    loss, _ = linear(0)
    at = torch.rand(2, 3, 8, 8)
    views = [View.draw(2, 1, True, generator(number, "views")) for number in range(3)]
    averaged = mean_over_views(loss, iter(views).__next__, 3)(at)
    torch.testing.assert_close(averaged, sum(loss(view(at)) for view in views) / 3)


def test_the_inner_maximum_and_its_straight_through_gradient(images):
    """On half the squared distance from a point, the gradient handed through is that at the adversary's image, not at the image itself."""
    centre = torch.full((3, 8, 8), 0.5)
    images = 0.3 + 0.4 * images

    def loss(at):
        return 0.5 * (at - centre).square().sum()

    farthest = images + 0.05 * (images - centre).sign()
    found = ascend(images, loss, 0.05, 0.03, 8, generator(0, "ascent"))
    is_plain = (images - centre).abs() > 0.05  # nearer to the centre the start decides the side
    torch.testing.assert_close(found[is_plain], farthest[is_plain], atol=1e-6, rtol=0)
    gradient = mean_gradient(images, [worst_within(loss, 0.05, 0.03, 8, generator(0, "ascent"))])
    torch.testing.assert_close(gradient, found - centre, atol=1e-6, rtol=1e-5)


def test_random_starts_fill_the_ball(images):
    drawn = uniform_start(images.expand(-1, 3, -1, -1), 0.1, generator(0, "start"))
    assert drawn.abs().max() <= 0.1
    assert drawn.abs().max() > 0.099
    assert abs(float(drawn.mean())) < 0.01
