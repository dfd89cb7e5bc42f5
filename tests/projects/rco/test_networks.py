import pytest
import timm
import torch
from torch import nn
from torchvision import models

from projects.rco.networks import ZOO, build_network, classifier, stages
from shared.backbones.small_images import build_small_image_network

DEEP = (
    "resnet32",
    "resnet44",
    "resnet56",
    "resnet110",
    "resnet34",
    "resnet101",
    "resnet152",
    "wrn_40_1",
    "vgg16",
    "vgg19",
    "mobilenetv2_1",
)  # alike to smaller ones of their kind
OTHERS = ("timm:resnet10t", "timm:test_vit", "timm:test_convnext", "torchvision:mobilenet_v2", "torchvision:shufflenet_v2_x0_5")


def shape_of(name):
    return {"mlp": (40,), "til": (1, 20, 32), "cnn": (1, 16, 16)}.get(name[:3], (3, 32, 32))


def count(net):
    return sum(weight.numel() for weight in net.parameters())


@pytest.mark.parametrize("name", [name for name in (*ZOO, *OTHERS) if name not in DEEP])
def test_every_network_answers_and_its_stages_are_run_once(name):
    net = build_network(name, shape_of(name), 7)
    assert net.training
    layers, kept = dict(net.named_modules()), {}
    for layer in (*stages(net), classifier(net)):
        layers[layer].register_forward_hook(
            lambda _, inputs, output, layer=layer: kept.setdefault(layer, []).append((output, output.clone(), inputs[0]))
        )
    with torch.no_grad():
        outputs = net.eval()(torch.randn(2, *shape_of(name)))
    assert outputs.shape == (2, 7)
    assert list(kept) == [*stages(net), classifier(net)]  # in the order of the pass
    for output, at_once, _ in (calls[0] for calls in kept.values()):
        assert torch.equal(output, at_once)  # nothing later overwrites it
    assert all(len(calls) == 1 for calls in kept.values())
    assert kept[classifier(net)][0][2].shape == (2, layers[classifier(net)].in_features)


@pytest.mark.parametrize("name", DEEP)
def test_deep_networks_have_stages_too(name):
    with torch.device("meta"):
        net = build_network(name, (3, 32, 32), 7)
    layers = dict(net.named_modules())
    assert len(stages(net)) in (4, 5)
    assert all(layer in layers for layer in stages(net))


@pytest.mark.parametrize(("name", "sizes"), [("resnet20", [32, 32, 16, 8]), ("resnet18", [32, 32, 16, 8, 4]), ("mobilenetv2_0.5", [16, 16, 8, 4, 2])])
def test_stages_halve_as_the_benchmarks_have_it(name, sizes):
    net, found = build_network(name, (3, 32, 32), 7).eval(), []
    for layer in stages(net):
        net.get_submodule(layer).register_forward_hook(lambda _, inputs, output: found.append(output.shape[-1]))
    with torch.no_grad():
        net(torch.randn(1, 3, 32, 32))
    assert found == sizes


@pytest.mark.parametrize(("name", "parameters"), [("resnet50", 23_705_252), ("resnet18", 11_220_132), ("mobilenetv2_0.5", 812_836)])
def test_networks_for_small_images_have_the_benchmarks_parameters(name, parameters):
    with torch.device("meta"):
        assert count(build_network(name, (3, 32, 32), 100)) == parameters


def test_small_resnets_are_those_of_the_house():
    ours, theirs = build_network("resnet18", (3, 32, 32), 5).eval(), build_small_image_network("resnet18", 5).eval()
    theirs.load_state_dict(ours.state_dict())
    images = torch.randn(1, 3, 32, 32)
    assert torch.equal(ours(images), theirs(images))


@pytest.mark.parametrize(
    ("name", "theirs", "options"), [("resnet18", models.resnet18, {}), ("mobilenetv2_0.5", models.mobilenet_v2, {"width_mult": 0.5})]
)
def test_networks_for_large_images_are_torchvisions(name, theirs, options):
    torch.manual_seed(0)
    ours = build_network(name, (3, 96, 96), 11).eval()
    torch.manual_seed(0)
    theirs = theirs(num_classes=11, **options).eval()
    images = torch.randn(1, 3, 96, 96)
    with torch.no_grad():
        assert torch.equal(ours(images), theirs(images))


def test_width_and_expansion_reach_large_images():
    with torch.device("meta"):
        assert count(build_network("mobilenetv2_0.5", (3, 224, 224), 1000)) == count(timm.create_model("mobilenetv2_050")) == 1_968_680
        narrow = build_network("mobilenetv2_0.5_t3", (3, 224, 224), 1000)
    assert narrow.features[2].conv[0][0].out_channels == 3 * 8


@pytest.mark.parametrize("name", ["resnet18", "timm:resnet10t"])
def test_large_images_may_have_one_channel(name):
    net = build_network(name, (1, 96, 96), 3)
    assert next(layer for layer in net.modules() if isinstance(layer, nn.Conv2d)).in_channels == 1


@pytest.mark.parametrize("name", ["resnet8x4", "wrn_16_2", "vgg8", "shufflenetv1"])
def test_memory_order_does_not_change_answers(name):
    net, images = build_network(name, (3, 32, 32), 5).eval(), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = net(images)
        torch.testing.assert_close(
            net.to(memory_format=torch.channels_last)(images.to(memory_format=torch.channels_last)), expected, atol=1e-5, rtol=1e-4
        )


@pytest.mark.parametrize("name", ["mlp_16", "tiles_16", "cnn_8", "resnet8", "mobilenetv2_0.5_t3"])
def test_every_weight_gets_a_gradient(name):
    net = build_network(name, shape_of(name), 4)
    nn.functional.cross_entropy(net(torch.randn(4, *shape_of(name))), torch.arange(4)).backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in net.parameters())


def test_mlps_have_the_layers_of_the_paper():
    net = build_network("mlp_12_5", (2, 3, 4), 2)
    assert [name for name, _ in net.named_children()] == ["flatten", "hidden1", "relu1", "hidden2", "relu2", "output"]
    inputs = torch.randn(3, 2, 3, 4)
    hidden = (inputs.reshape(3, 24) @ net.hidden1.weight.T + net.hidden1.bias).clamp_min(0)
    hidden = (hidden @ net.hidden2.weight.T + net.hidden2.bias).clamp_min(0)
    torch.testing.assert_close(net(inputs), hidden @ net.output.weight.T + net.output.bias)


def test_tiles_are_read_one_by_one():
    net = build_network("tiles_16", (1, 20, 32), 2).eval()
    images = torch.randn(1, 1, 20, 32)
    codes = net[:2](images)  # (1, 1, 5, 8)
    alone = net[:2](images[:, :, 8:12, 20:24])  # the tile of row 2 and column 5
    torch.testing.assert_close(codes[:, :, 2:3, 5:6], alone)
    assert net.hidden.in_features == 40


def test_the_same_seed_gives_the_same_weights():
    def build():
        torch.manual_seed(4)
        return build_network("wrn_16_1", (3, 32, 32), 5).state_dict()

    first, second = build(), build()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("resnet21", (3, 32, 32), "no network 'resnet21'; did you mean .*resnet20.*; choose one of mlp_16, .* timm:NAME or torchvision:NAME"),
        ("mlp_0", (40,), "no network 'mlp_0'; did you mean mlp_16"),
        ("timm:resnet10x", (3, 32, 32), "timm has no model 'resnet10x'; did you mean resnet10t"),
        ("torchvision:resnet19", (3, 32, 32), "torchvision has no classifier 'resnet19' .*; did you mean resnet18"),
        ("torchvision:inception_v3", (3, 299, 299), "torchvision has no classifier 'inception_v3'"),
        ("resnet20", (40,), "resnet20 takes images \\(C, H, W\\), the data have vectors of 40 numbers: take an mlp"),
        ("tiles_16", (1, 20, 30), "rows of 8 square tiles, \\(C, R s, 8 s\\), not \\(1, 20, 30\\)"),
        ("tiles_16", (1, 22, 32), "rows of 8 square tiles"),
        ("vgg8", (3, 4, 4), "vgg8 cannot take inputs of shape \\(3, 4, 4\\) \\(.*\\): give it larger images"),
        ("torchvision:vit_b_16", (3, 200, 200), "torchvision:vit_b_16 cannot take inputs of shape \\(3, 200, 200\\)"),
        ("mlp_16", (3, 4), "not inputs of shape \\(3, 4\\) to 2"),
    ],
)
def test_what_cannot_be_built_is_said_clearly(name, shape, message):
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        build_network(name, shape, 2)


def test_unknown_kinds_ask_for_layers():
    with pytest.raises(ValueError, match="stages of a Linear end is not known: name its layer"):
        stages(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="a Sequential has no linear layer"):
        classifier(nn.Sequential(nn.ReLU()))
