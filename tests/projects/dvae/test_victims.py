import pytest
import torch
from torch import nn

from projects.dvae.victims import VICTIMS, build_victim

CIFAR = {"resnet18": 11_173_962, "resnet50": 23_520_842, "densenet121": 6_956_298, "vgg19": 20_040_522, "mobilenetv2": 2_236_682}
IMAGENET = {
    "resnet18": 11_689_512,
    "resnet50": 25_557_032,
    "densenet121": 7_978_856,
    "mobilenetv2": 3_504_872,
    "vgg19": 143_678_248,
    "vit": 86_567_656,
}


def count(network):
    return sum(p.numel() for p in network.parameters())


def vit_parameters(classes, tokens, patch, width=192, depth=12, channels=3):
    block = 2 * 2 * width + (width + 1) * 3 * width + (width + 1) * width + (width + 1) * 4 * width + (4 * width + 1) * width
    return channels * patch**2 * width + width + width + (tokens + 1) * width + depth * block + 2 * width + (width + 1) * classes


@pytest.mark.parametrize("name", list(CIFAR))
def test_cifar_networks_have_the_customary_parameters(name):
    with torch.device("meta"):
        assert count(build_victim(name, 10)) == CIFAR[name]


@pytest.mark.parametrize("name", list(IMAGENET))
def test_imagenet_networks_have_the_published_parameters(name):
    with torch.device("meta"):
        assert count(build_victim(name, 1000, size=224)) == IMAGENET[name]


def test_small_networks_by_closed_form():
    assert count(build_victim("vit", 10)) == vit_parameters(10, tokens=64, patch=4)
    assert count(build_victim("vit", 7, channels=1, size=16)) == vit_parameters(7, tokens=64, patch=2, channels=1)
    assert count(build_victim("cnn", 10)) == 27 * 32 + 2 * 32 + 9 * 32 * 64 + 2 * 64 + 9 * 64 * 64 + 2 * 64 + 257 * 10


def test_the_stem_keeps_the_resolution():
    for name, size, side in (("resnet18", 32, 4), ("mobilenetv2", 32, 4), ("vgg19", 32, 2), ("vgg19", 16, 1), ("densenet121", 16, 2)):
        network, sides = build_victim(name, 3, size=size).eval(), []
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                module.register_forward_hook(lambda module, inputs, output, sides=sides: sides.append(output.shape[-1]))
        with torch.no_grad():
            network(torch.rand(1, 3, size, size))
        assert sides[0] == size, name
        assert sides[-1] == side, name


@pytest.mark.parametrize("name", list(VICTIMS))
@pytest.mark.parametrize(("size", "channels"), [(8, 1), (16, 3)])
def test_small_images_pass(name, size, channels):
    with torch.no_grad():
        assert build_victim(name, 4, channels, size).eval()(torch.rand(2, channels, size, size)).shape == (2, 4)


def test_weights_are_the_seeds_and_the_global_generator_stays():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, same, other = (build_victim("cnn", 10, seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["head.weight"], other["head.weight"])
    assert not any(isinstance(module, nn.Dropout) and module.p for module in build_victim("mobilenetv2", 10).modules())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "lenet"}, "no victim 'lenet'; choose one of cnn, resnet18"),
        ({"classes": 1}, "at least 2 classes"),
        ({"name": "vit", "size": 20}, "must divide by 8, got 20"),
    ],
)
def test_wrong_settings_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        build_victim(**({"name": "resnet18", "classes": 10} | options))
