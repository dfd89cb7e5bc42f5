import pytest
import torch
from helpers.processes import start
from helpers.pruning import compare_with_one, scores_of_rank, small_network
from torch.nn import functional as F

from shared.pruning import Activations, BatchTaylor, GroupIndex, backward_over, rank_correlation, taylor


def batches(digits, size=16, count=4):
    return list(zip(digits[0][: size * count].split(size), digits[1][: size * count].split(size), strict=True))


def inputs_of(net, images):
    """What conv1 of the residual block sees: (N, 16, 8, 8)."""
    return net.relu(net.bn(net.conv(images))).detach()


def test_squares_are_taken_batch_by_batch(net, index, digits):
    """Molchanov's score: no summed gradient gives it."""
    collector, expected = BatchTaylor(index, net, "square"), torch.zeros(16)
    for images, labels in batches(digits):
        net.zero_grad()
        F.cross_entropy(net(images), labels).backward()
        local = net.block.conv1.weight.detach() * net.block.conv1.weight.grad
        expected += local.flatten(1).sum(1).square() / 4
        collector.step()
        assert all(p.grad is None for p in net.parameters())
    scores = collector.scores("first", None)
    torch.testing.assert_close(scores["block.conv1"], expected, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("form", ["sum", "abs"])
def test_streamed_scores_equal_those_of_the_summed_gradient(form, net, index, digits):
    collector = BatchTaylor(index, net, form)
    for images, labels in batches(digits):
        (1024 * F.cross_entropy(net(images), labels)).backward()
        collector.step(weight=0.5, loss_scale=1024)
    for images, labels in batches(digits):
        (0.5 * F.cross_entropy(net(images), labels)).backward()
    expected = taylor(index, net, form, normaliser=None)
    for name, scores in collector.scores(normaliser=None).items():
        torch.testing.assert_close(scores, expected[name], rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("form", ["square", "sum", "abs"])
def test_gradient_accumulation_is_exact(form, net, index, digits):
    whole, accumulated = BatchTaylor(index, net, form), BatchTaylor(index, net, form)
    for images, labels in batches(digits):
        F.cross_entropy(net(images), labels).backward()
        whole.step()
        for i in range(0, 16, 4):
            (F.cross_entropy(net(images[i : i + 4]), labels[i : i + 4]) / 4).backward()
        accumulated.step()
    for name, scores in whole.scores().items():
        torch.testing.assert_close(accumulated.scores()[name], scores, rtol=1e-3, atol=1e-6)


def test_a_collector_says_what_is_missing(net, index):
    collector = BatchTaylor(index, net)
    with pytest.raises(ValueError, match=r"call backward\(\) before step\(\)"):
        collector.step()
    with pytest.raises(ValueError, match=r"no batch was collected"):
        collector.scores()
    with pytest.raises(ValueError, match="nothing was collected: call the network inside"), Activations(index, net) as seen:
        seen.activation()
    with Activations(index, net) as seen:
        net(torch.rand(2, 1, 8, 8))
    with pytest.raises(ValueError, match=r"no gradients were collected: use Activations\(..., gradients=True\)"):
        seen.taylor()
    with pytest.raises(ValueError, match="parts=2"):
        seen.difference()
    with pytest.raises(ValueError, match="batch of 3 does not fall into 2 equal parts"), Activations(index, net, parts=2):
        net(torch.rand(3, 1, 8, 8))


def test_hooks_disappear_when_the_network_fails(net, index):
    with pytest.raises(RuntimeError), Activations(index, net):
        net(torch.zeros(1, 5, 8, 8))
    assert not any(module._forward_pre_hooks for module in net.modules())


def test_moments_over_batches_equal_those_of_all_samples(net, index, digits):
    with torch.no_grad(), Activations(index, net) as seen:
        for images, _ in batches(digits, size=24, count=3):
            net(images)
    held, expected = seen.moments["block.conv1"], inputs_of(net, digits[0][:72]).double().movedim(1, -1).flatten(0, 2)
    torch.testing.assert_close(held["mean"][0], expected.mean(0), rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(held["variance"][0], expected.var(0, correction=0), rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(held["absolute"][0], expected.abs().mean(0), rtol=1e-5, atol=1e-8)
    assert all(value.dtype == torch.float64 for value in held.values())
    assert sum(value.numel() for values in seen.moments.values() for value in values.values()) < 4000, "memory grows with channels, not with samples"


def test_wanda_and_activation_scores_equal_their_formulas(net, index, digits):
    images = digits[0][:32]
    with torch.no_grad(), Activations(index, net) as seen:
        net(images)
    hidden = F.relu(net.block.bn1(net.block.conv1(inputs_of(net, images)))).detach()
    columns = hidden.square().sum((0, 2, 3)).sqrt() * net.block.conv2.weight.detach().abs().sum((0, 2, 3))
    torch.testing.assert_close(seen.wanda(normaliser=None)["block.conv1"], columns, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(seen.activation(normaliser=None)["block.conv1"], hidden.abs().mean((0, 2, 3)), rtol=1e-4, atol=1e-6)
    flat = F.relu(net.bn2(net.down(net.block(inputs_of(net, images))))).detach()
    torch.testing.assert_close(seen.activation(normaliser=None)["down"], flat.abs().mean((0, 2, 3)), rtol=1e-4, atol=1e-5)


def test_activation_taylor_is_the_derivative_by_a_gate(net, index, digits):
    images, labels = digits[0][:8], digits[1][:8]
    with Activations(index, net, gradients=True) as seen:
        (F.cross_entropy(net(images[:4]), labels[:4], reduction="sum") + F.cross_entropy(net(images[4:]), labels[4:], reduction="sum")).backward()
    net.double()
    gate = torch.ones(16, dtype=torch.float64, requires_grad=True)
    handle = net.block.conv2.register_forward_pre_hook(lambda module, args: (args[0] * gate.view(1, -1, 1, 1),))
    F.cross_entropy(net(images.double()), labels, reduction="sum").backward()
    handle.remove()
    torch.testing.assert_close(seen.taylor("sum", normaliser=None)["block.conv1"].double(), gate.grad.abs(), rtol=1e-3, atol=1e-5)


def test_one_pass_scores_clean_and_triggered_apart(net, index, digits):
    clean, labels = digits[0][:16], digits[1][:16]
    triggered = clean.clone()
    triggered[:, :, -3:, -3:] = 1
    with Activations(index, net, parts=2, gradients=True) as both:
        F.cross_entropy(net(torch.cat([clean, triggered])), labels.repeat(2), reduction="sum").backward()
    for part, images in enumerate((clean, triggered)):
        with Activations(index, net, gradients=True) as alone:
            F.cross_entropy(net(images), labels, reduction="sum").backward()
        for name, scores in alone.taylor("abs").items():
            torch.testing.assert_close(both.taylor("abs", part)[name], scores, rtol=1e-3, atol=1e-5)
            torch.testing.assert_close(both.activation(part)[name], alone.activation()[name], rtol=1e-4, atol=1e-6)
    one, other = (F.relu(net.block.bn1(net.block.conv1(inputs_of(net, images)))).detach() for images in (clean, triggered))
    torch.testing.assert_close(both.difference()["block.conv1"], (one - other).abs().mean((0, 2, 3)), rtol=1e-4, atol=1e-6)
    spread = ((one.var((0, 2, 3), correction=0) + other.var((0, 2, 3), correction=0)) / 2).sqrt()
    expected = (other.mean((0, 2, 3)) - one.mean((0, 2, 3))) / spread
    torch.testing.assert_close(both.difference("signed")["block.conv1"], expected, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(both.difference("standardised")["block.conv1"], expected.abs(), rtol=1e-3, atol=1e-5)


def test_autocast_ranks_as_full_precision_does(net, index, digits):
    images, labels = digits[0][:64], digits[1][:64]

    def scores(dtype):
        with Activations(index, net, gradients=True) as seen, torch.autocast("cpu", dtype, enabled=dtype is not None):
            F.cross_entropy(net(images), labels).backward()
        return seen.taylor("abs")

    exact, half = scores(None), scores(torch.bfloat16)
    assert all(values.dtype == torch.float32 for values in half.values())
    assert rank_correlation(exact, half) > 0.95


def test_timesteps_are_weighted_and_stopped():
    weight = torch.tensor(2.0, requires_grad=True)
    assert backward_over(lambda t: weight * t, [3, 2, 1], [1.0, 0.0, 0.5]) == [6, 4, 2]
    assert weight.grad == 3.5
    weight.grad = None
    assert backward_over(lambda t: weight * t, [1, 20, 5, 1, 9], threshold=0.2) == [2, 40, 10, 2]
    assert weight.grad == 26, "the first loss below the threshold is left out"


def test_two_processes_score_as_one(tmp_path):
    index = GroupIndex.build(small_network(), torch.zeros(1, 6))
    index.save(tmp_path / "index.json")
    torch.save(scores_of_rank(0, 1, index), tmp_path / "expected.pt")
    processes = [start(compare_with_one, rank, 2, str(tmp_path)) for rank in range(2)]
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0]
