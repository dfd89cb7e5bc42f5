import pytest
import torch
from torch import nn
from torch.nn import functional as F

from projects.diff_cleanse.importance import Probe, group_channels, late_timesteps, score_channels, two_pass_importance, vulnerability
from projects.diff_cleanse.schedule import NoiseSchedule
from shared.backbones.unets import build_unet
from shared.pruning import Budget, select

SCHEDULE = NoiseSchedule.linear(20, 1e-3, 0.2)


class Detector(nn.Module):
    """Predicts its input, plus what two of its channels say: one sees a dark picture, as a trigger with background -1 makes it, one sees nothing."""

    def __init__(self):
        super().__init__()
        self.conv_in = nn.Conv2d(1, 8, 3, padding=1)
        self.hidden = nn.Conv2d(8, 6, 1)
        self.conv_out = nn.Conv2d(6, 1, 3, padding=1)
        with torch.no_grad():
            self.hidden.weight[4], self.hidden.bias[4] = -self._mean() * 8, -6.0  # positive only where the picture is far below its usual values
            self.conv_out.weight[:, 4] = 3.0
            self.hidden.weight[5], self.hidden.bias[5] = 0.0, -1.0

    def _mean(self):
        with torch.no_grad():
            self.conv_in.weight[0], self.conv_in.bias[0] = 1 / 9, 0.0  # the local mean of the picture
        return F.one_hot(torch.tensor(0), 8).float()[:, None, None]

    def forward(self, sample, timestep):
        return sample + 0.1 * self.conv_out(F.relu(self.hidden(self.conv_in(sample))))


def probe_of(network, timesteps=(17, 18, 19), batch=4, size=8):
    numbers = torch.Generator().manual_seed(3)
    images = torch.rand(batch, 1, size, size, generator=numbers) * 2 - 1
    return Probe(network, SCHEDULE, images, torch.randn(images.shape, generator=numbers), timesteps)


def wear(eps):
    return eps - 1.0


def test_late_timesteps_are_the_last_tenth():
    assert list(late_timesteps(1000)) == list(range(900, 1000))
    assert list(late_timesteps(100, every=4)) == [91, 95, 99]
    assert list(late_timesteps(3)) == [2]


def test_importance_is_the_normalised_taylor_term_of_both_passes():
    torch.manual_seed(0)
    network = Detector()
    index, probe = group_channels(network, (1, 8, 8)), probe_of(network)
    [name] = index.free
    for scores, noise in zip(two_pass_importance(index, probe, wear), (probe.eps, wear(probe.eps)), strict=True):
        network.zero_grad()
        for t in probe.timesteps:  # the definition, written out
            noisy = SCHEDULE.a[t].float() * probe.images + SCHEDULE.sigma[t].float() * noise
            (network(noisy, None) - probe.eps).square().mean().backward()
        producer = (network.hidden.weight * network.hidden.weight.grad).abs().sum((1, 2, 3))
        consumer = (network.conv_out.weight * network.conv_out.weight.grad).abs().sum((0, 2, 3))
        expected = (producer + consumer) / 2
        torch.testing.assert_close(scores[name], expected / expected.mean(), rtol=1e-4, atol=1e-6)


def test_difference_finds_the_channel_that_only_a_trigger_wakes():
    torch.manual_seed(0)
    network = Detector()
    index, probe = group_channels(network, (1, 8, 8)), probe_of(network)
    scores = score_channels("difference", index, probe, wear)
    plan = select(index, scores, Budget(channels=0.1), scope="local", at_least=1, drop="highest", mode="mask")
    assert [channels.tolist() for channels in plan.dropped.values()] == [[4]]


def test_criteria_combine_the_two_passes():
    torch.manual_seed(0)
    network = Detector()
    index, probe = group_channels(network, (1, 8, 8)), probe_of(network)
    [name] = index.free
    clean, triggered = (scores[name] for scores in two_pass_importance(index, probe, wear))
    expected = {"difference": triggered - clean, "sum": triggered + clean, "backdoor": triggered, "ratio": triggered / clean.clamp_min(1e-12)}
    expected |= {"clean": -clean, "magnitude": None, "random": None}
    for criterion, wanted in expected.items():
        scores = score_channels(criterion, index, probe, wear, seed=1)[name]
        if wanted is not None:
            torch.testing.assert_close(scores, wanted)
    assert torch.equal(scores, score_channels("random", index, probe, wear, seed=1)[name])
    weights = torch.stack([network.hidden.weight[i].square().sum() + network.conv_out.weight[:, i].square().sum() for i in range(6)])
    scores = score_channels("magnitude", index, probe, wear)[name]
    assert int(scores.argmax()) == int(weights.argmin())


def test_passes_leave_the_network_as_it_was():
    network = build_unet("tiny", 8, 1).train()
    network.conv_out.requires_grad_(False)
    network.conv_in.weight.grad = torch.ones_like(network.conv_in.weight)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    index = group_channels(network, (1, 8, 8))
    clean, triggered = two_pass_importance(index, probe_of(network), lambda eps: eps)
    assert all(torch.equal(clean[name], triggered[name]) for name in clean)  # no trigger, no difference
    vulnerability(index, probe_of(network), iterations=2)
    assert network.training
    assert not network.conv_out.weight.requires_grad
    assert network.conv_in.weight.requires_grad
    assert torch.equal(network.conv_in.weight.grad, torch.ones_like(network.conv_in.weight))
    assert network.conv_norm_out.weight.grad is None
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_vulnerability_is_highest_where_a_perturbed_norm_hurts():
    torch.manual_seed(0)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv_in, self.norm, self.conv_out = nn.Conv2d(1, 4, 1), nn.GroupNorm(1, 4), nn.Conv2d(4, 1, 1)
            self.mid = nn.Conv2d(4, 4, 1, bias=False)
            with torch.no_grad():
                self.mid.weight.copy_(torch.eye(4)[:, :, None, None])
                self.conv_out.weight.fill_(0.02)
                self.conv_out.weight[:, 2] = 3.0

        def forward(self, sample, timestep):
            return sample + self.conv_out(self.norm(self.mid(self.conv_in(sample))))

    network = Net()
    index = group_channels(network, (1, 8, 8))
    scores = vulnerability(index, probe_of(network), iterations=20)["mid"]
    assert int(scores.argmax()) == 2


def test_unknown_criterion_is_named():
    network = Detector()
    with pytest.raises(ValueError, match="unknown criterion 'best'; known are difference"):
        score_channels("best", group_channels(network, (1, 8, 8)), probe_of(network), wear)
