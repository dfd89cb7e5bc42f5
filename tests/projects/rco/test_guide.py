import copy

import pytest
import torch
from torch import nn

from projects.rco.anchors import Route, State, store_state, write_route
from projects.rco.guide import AnchorNet


def network(width=4):
    return nn.Sequential(nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.Dropout(0.5), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 2))


@pytest.fixture
def route(tmp_path):
    states = []
    for epoch in (2, 4, 6):
        net = network()
        net(torch.randn(5, 1, 6, 6))  # moves the norm's statistics
        states.append(State(epoch, store_state(tmp_path, epoch, net.state_dict()), None, {}))
    write_route(Route(tmp_path, {}, tuple(states), tuple(states), True))
    return Route.load(tmp_path)


def holds(net, route, epoch):
    return all(torch.equal(tensor, route.tensors(epoch)[name]) for name, tensor in net.state_dict().items())


def test_the_net_takes_on_a_state_in_place(route):
    guide = AnchorNet(network(), route)
    places = [tensor.data_ptr() for tensor in guide.net.state_dict().values()]
    assert guide.epoch is None
    for epoch in (4, 2, 6, 6):
        assert guide.at(epoch) is guide.net
        assert guide.epoch == epoch
        assert holds(guide.net, route, epoch)
    assert [tensor.data_ptr() for tensor in guide.net.state_dict().values()] == places


def test_the_net_is_frozen_and_stays_in_evaluation_mode(route):
    guide = AnchorNet(network(), route)
    parent = nn.ModuleList([guide.net, nn.Dropout()])
    parent.train()
    parent.apply(lambda part: part.train())
    assert parent[1].training
    assert not any(part.training for part in guide.net.modules())
    assert not any(parameter.requires_grad for parameter in guide.net.parameters())
    images = torch.randn(3, 1, 6, 6)
    before = guide.at(2)(images)
    guide.at(6)(images)
    assert torch.equal(guide.at(2)(images), before)
    assert holds(guide.net, route, 2)


def test_the_net_is_in_no_list_of_an_owner(route):
    owner = nn.Module()
    owner.guide = AnchorNet(network(), route)
    assert not list(owner.parameters())
    assert not owner.state_dict()


def test_a_copy_of_an_owner_has_a_guide_of_its_own(route):
    guide = AnchorNet(network(), route)
    guide.prefetch(2)
    twin = copy.deepcopy(guide)
    assert twin.net.train() is twin.net
    twin.at(4)
    guide.at(2)
    assert holds(twin.net, route, 4)
    assert holds(guide.net, route, 2)
    guide.close()


def test_a_state_read_ahead_is_used_and_at_most_one_is_kept(route):
    guide = AnchorNet(network(), route)
    guide.prefetch(2)
    guide.prefetch(4)
    epoch, future = guide._ahead
    future.result()
    (route.folder / "epoch_0004.safetensors").unlink()  # what was read before is not read again
    guide.prefetch(4)
    assert guide._ahead == (epoch, future) == (4, future)
    guide.at(4)
    assert guide._ahead is None
    guide.prefetch(4)  # the present one
    assert guide._ahead is None
    guide.prefetch(6)
    guide.at(2)  # another one than foreseen
    assert guide._ahead is None
    assert holds(guide.net, route, 2)
    guide.close()
    guide.prefetch(6)
    guide.at(6)
    assert holds(guide.net, route, 6)
    guide.close()


def test_failures_of_reading_ahead_are_told_when_the_state_is_wanted(route):
    guide = AnchorNet(network(), route)
    guide.at(2)
    guide.prefetch(5)
    with pytest.raises(ValueError, match=r"no state after epoch 5 in .*: stored are 2, 4, 6"):
        guide.at(5)
    (route.folder / "epoch_0004.safetensors").write_bytes(b"nothing")
    guide.prefetch(4)
    with pytest.raises(ValueError, match="is damaged"):
        guide.at(4)
    assert guide.epoch == 2
    assert holds(guide.net, route, 2)
    guide.close()


def test_another_network_is_described_and_left_as_it_was(route):
    guide = AnchorNet(network(5), route)
    before = copy.deepcopy(guide.net.state_dict())
    with pytest.raises(ValueError, match=r"after epoch 2 in .* is of another network:\n  shape       0.weight: the network has \(5, 1, 3, 3\)"):
        guide.at(2)
    assert all(torch.equal(tensor, before[name]) for name, tensor in guide.net.state_dict().items())
    assert guide.epoch is None


def test_the_net_moves_and_keeps_its_layout(route):
    guide = AnchorNet(network(), route).to("cpu", torch.channels_last)
    assert guide.at(2)[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert holds(guide.net, route, 2)
    assert guide.to(torch.device("meta")).net[0].weight.is_meta
