import pytest
import torch
from torch import nn

from projects.rsknet.costs import costs, multiply_adds, real_time_factor, settle
from projects.rsknet.model import build_net, parameters
from projects.rsknet.module import SpeakerVerification

COUNTS = {  # counted by hand, in millions, at 40, 64 and 80 mel bins
    "ResNet34": ("resnet34", {}, (5.979, 6.372, 6.634)),
    "RSKNet-MTSP": ("rsknet_mtsp", {}, (10.964, 12.537, 13.586)),
    "RSKNet-MTSP, k = 128": ("rsknet_mtsp", {"rank": 128}, (9.686, 10.473, 10.997)),
    "RSKNet-MTSP-L, k = 128": ("rsknet_mtsp_l", {}, (2.545, 3.332, 3.856)),
    "RSKNet-MTSP-L, k = 64": ("rsknet_mtsp_l", {"rank": 64}, (None, None, 2.529)),
}


@pytest.mark.parametrize("case", COUNTS)
def test_parameters_are_those_of_the_paper(case):
    name, options, expected = COUNTS[case]
    with torch.device("meta"):
        for bins, millions in zip((40, 64, 80), expected, strict=True):
            if millions is not None:
                assert parameters(build_net(name, bins, options)) / 1e6 == pytest.approx(millions, abs=5e-4)


def test_multiply_adds_of_layers_are_counted_by_hand():
    class Layers(nn.Module):
        def __init__(self):
            super().__init__()
            self.wide, self.deep, self.line = nn.Conv2d(1, 6, 3, 2, padding=1), nn.Conv2d(6, 6, 3, padding=1, groups=6), nn.Linear(30, 7)

        def forward(self, features):
            return self.line(self.deep(self.wide(features[:, None])).mean(3).flatten(1))

    places = 5 * 10  # half of 10 x 20
    assert multiply_adds(Layers(), 10, 20) == 9 * 6 * places + 9 * 6 * places + 30 * 7


def test_multiply_adds_of_a_small_residual_network_are_counted_by_hand():
    net = build_net("tiny_resnet", 24)
    sizes = [(12, 24 * 40), (24, 12 * 20), (48, 6 * 10)]  # channels and places of each stage
    expected, before = 9 * 12 * sizes[0][1], 12
    for stage, (channels, places) in enumerate(sizes):
        expected += 9 * before * channels * places + 9 * channels**2 * places + (before * channels * places if stage else 0)
        before = channels
    assert multiply_adds(net, 24, 40) == expected + 2 * 48 * 6 * 64


def test_a_light_network_needs_fewer_multiplications():
    with torch.device("meta"):
        full, light = (multiply_adds(build_net(name, 80)) for name in ("rsknet_mtsp", "rsknet_mtsp_l"))
    assert full > 6 * light > 0


def test_settled_norms_keep_the_values_of_a_separable_network_in_range():
    net = build_net("tiny_rsknet_mtsp_l", 24)
    net.train()
    settle(net, 24)
    assert net.training
    norms = [module for module in net.eval().modules() if isinstance(module, nn.BatchNorm2d)]
    seen = []
    for norm in norms:
        norm.register_forward_hook(lambda module, given, result: seen.append(float(result.std())))
    with torch.no_grad():
        net(torch.randn(2, 24, 100))
    assert len(seen) == len(norms)
    assert all(0.3 < deviation < 3 for deviation in seen)


def test_the_real_time_factor_is_time_for_a_second_and_threads_are_given_back(monkeypatch):
    module = SpeakerVerification("tiny_resnet", rate=8000)
    before, calls = torch.get_num_threads(), []
    clock = iter(range(100))
    monkeypatch.setattr("projects.rsknet.costs.time.perf_counter", lambda: float(next(clock)))
    module.net.register_forward_hook(lambda net, given, result: calls.append((given[0].shape, torch.get_num_threads())))
    assert real_time_factor(module, 0.5, threads=2, rounds=3) == 2.0
    assert calls == [((1, 24, module.fbank.frames(4000)), 2)] * 4
    assert torch.get_num_threads() == before


def test_a_row_of_costs_is_of_the_network_named():
    row = costs("tiny_rsknet_mtsp_l", bins=24, seconds=0.5, rounds=1)
    net = build_net("tiny_rsknet_mtsp_l", 24)
    assert (row.net, row.parameters, row.multiply_adds) == ("tiny_rsknet_mtsp_l", parameters(net), multiply_adds(net, 24))
    assert 0 < row.real_time_factor < 5
