"""Schedules, weights that must be finite, and evaluation for a while."""

import lightning as L
import pytest
import torch
from torch import nn

from shared.quiet import quiet_trainer, silence
from shared.training import check_finite, evaluating, scheduled


class Line(L.LightningModule):
    """Fits a line; notes the learning rate of each step."""

    def __init__(self, schedule, lr=0.1, gamma=0.5):
        super().__init__()
        self.net, self.given, self.rates = nn.Linear(1, 1), (schedule, lr, gamma), []

    def training_step(self, batch, batch_idx):
        self.rates.append(self.optimizers().param_groups[0]["lr"])
        return self.net(batch[0]).square().mean()

    def configure_optimizers(self):
        schedule, lr, gamma = self.given
        return scheduled(self, torch.optim.SGD(self.parameters(), lr), schedule, gamma)


def fit(module, epochs, **options):
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.ones(4, 1)), batch_size=2)
    with silence():
        quiet_trainer(epochs, accelerator="cpu", **options).fit(module, loader)
    return module.rates


def test_step_falls_after_every_epoch():
    assert fit(Line("step"), 3) == pytest.approx([0.1, 0.1, 0.05, 0.05, 0.025, 0.025])


@pytest.mark.parametrize("length", [{"epochs": 5}, {"epochs": -1, "max_steps": 10}])
def test_onecycle_rises_and_falls_once_over_all_steps(length):
    rates = fit(Line("onecycle"), **length)
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], 0.1)
    cycle, expected = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, 10), []
    for _ in range(10):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        cycle.step() if len(expected) < 10 else None
    assert rates == pytest.approx(expected)
    assert max(rates) == pytest.approx(0.1, rel=0.05)
    assert rates[-1] < 0.1 / 1000


def test_onecycle_needs_an_end():
    with pytest.raises(ValueError, match=r"set trainer\.max_epochs or trainer\.max_steps, or choose the schedule step"):
        fit(Line("onecycle"), -1)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_weights_that_are_no_numbers_are_refused(value):
    module = Line("step")
    check_finite(module)
    with torch.no_grad():
        module.net.bias.fill_(value)
    with pytest.raises(ValueError, match=r"the training diverged before step 0: lower model\.lr, or set trainer\.gradient_clip_val"):
        check_finite(module)


def test_a_network_is_in_evaluation_for_a_while_and_its_norms_keep_nothing():
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    before = net[1].running_mean.clone()
    with evaluating(net):
        assert not net.training
        assert not net[1].training
        net(torch.randn(4, 2))
    assert net.training
    assert net[1].training
    assert torch.equal(net[1].running_mean, before)
    net.eval()
    with evaluating(net):
        pass
    assert not net.training


def test_the_mode_is_restored_when_something_fails():
    net = nn.Linear(1, 1)
    with pytest.raises(KeyError), evaluating(net):
        raise KeyError
    assert net.training


def test_parts_that_are_in_evaluation_stay_so():
    net = nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2))
    net[0].eval()
    with evaluating(net):
        assert not any(layer.training for layer in net)
    assert [layer.training for layer in net] == [False, True]
