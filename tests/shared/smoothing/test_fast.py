import pytest
import torch
import torchvision
from torch import nn

from shared.smoothing import Branch, Budget, Placed, Placement, SmoothedClassifier, Smoothing, find_batch_size, folded
from shared.smoothing.fast import CPU_BATCH, largest


def test_batch_normalisation_is_folded():
    torch.manual_seed(0)
    network = torchvision.models.resnet18(num_classes=10)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    found, images = folded(network), torch.rand(2, 3, 32, 32)
    assert network.training
    assert not found.training
    assert not [module for module in found.modules() if isinstance(module, nn.BatchNorm2d)]
    torch.testing.assert_close(found(images), network.eval()(images), rtol=1e-5, atol=1e-5)


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x):
        return self.norm(self.conv(x)) if x.sum() > 0 else x


def test_what_cannot_be_traced_is_copied():
    network = Branching()
    found = folded(network)
    assert isinstance(found, Branching)
    assert found is not network
    assert not found.training


def test_the_largest_batch_is_the_last_before_memory_ends():
    tried = []

    def run(size):
        tried.append(size)
        if size > 700:
            raise torch.OutOfMemoryError

    assert largest(run, 1 << 14) == 512
    assert tried[-1] == 1024
    assert largest(run, 300) == 256
    with pytest.raises(torch.OutOfMemoryError):
        largest(lambda size: run(size + 700), 4)
    classifier = SmoothedClassifier(nn.Flatten(), 2, Smoothing((0.5,)), Budget(5, 5))
    assert find_batch_size(classifier, torch.rand(2)) == CPU_BATCH


def test_compiled_classifiers_get_one_shape_and_vote_as_others(monkeypatch):
    shapes, modes = [], []

    def compile_(module, mode, dynamic):
        modes.append((mode, dynamic))
        return Watched(module, shapes)

    monkeypatch.setattr(torch, "compile", compile_)
    torch.manual_seed(0)
    nets = [nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(8, 2)) for _ in range(2)]
    placement = Placement(torch.arange(8).view(1, 2, 4), [0.5], [0.2])
    branches = [Branch(Placed(placement, nets[0]), lambda x: x[:, :1]), Branch(nets[1], lambda x: x[:, 1:])]
    images = torch.rand(3, 2, 2, 4)
    plain, found = (
        SmoothedClassifier(branches, 2, Smoothing((0.5, 0.5)), Budget(20, 100), batch_size=64, compile=is_compiled).certify(images)
        for is_compiled in (False, True)
    )
    assert all(torch.equal(a.estimation, b.estimation) for a, b in zip(plain, found, strict=True))
    assert set(shapes) == {(64, 1, 2, 4)}
    assert modes == [(None, False)] * 2
    assert nets[0].training


class Watched(nn.Module):
    def __init__(self, module, shapes):
        super().__init__()
        self.module, self.shapes = module, shapes

    def forward(self, x):
        self.shapes.append(tuple(x.shape))
        return self.module(x)
