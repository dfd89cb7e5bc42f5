import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models.mobilenetv2 import InvertedResidual as TorchvisionInvertedResidual
from torchvision.models.mobilenetv2 import MobileNetV2
from torchvision.models.resnet import BasicBlock as TorchvisionBasicBlock
from torchvision.models.vgg import cfgs, make_layers

from shared.backbones.mobilenets import CifarMobileNetV2, InvertedResidual, mobilenet_v2_blocks
from shared.backbones.resnets import BasicBlock, CifarResNet, initialise
from shared.backbones.shufflenets import CifarShuffleNetV1, ShuffleBlock, cifar_shufflenet_v2
from shared.backbones.vggs import CifarVGG
from shared.backbones.wide_resnets import PreActivationBlock, WideResNet

WIDE = (32, 64, 128, 256)
# at 100 classes; the benchmarks (RepDistiller, mdistiller) have the same networks, and print some of these counts in millions
SIZES = {
    "resnet8": (lambda: CifarResNet(8, 100), 83_892),
    "resnet20": (lambda: CifarResNet(20, 100), 278_324),
    "resnet32": (lambda: CifarResNet(32, 100), 472_756),
    "resnet56": (lambda: CifarResNet(56, 100), 861_620),
    "resnet110": (lambda: CifarResNet(110, 100), 1_736_564),
    "resnet8x4": (lambda: CifarResNet(8, 100, widths=WIDE), 1_233_540),
    "resnet32x4": (lambda: CifarResNet(32, 100, widths=WIDE), 7_433_860),
    "wrn_16_2": (lambda: WideResNet(16, 2, 100), 703_284),
    "wrn_40_1": (lambda: WideResNet(40, 1, 100), 569_780),
    "wrn_40_2": (lambda: WideResNet(40, 2, 100), 2_255_156),
    "vgg8": (lambda: CifarVGG(8, 100), 3_965_028),
    "vgg13": (lambda: CifarVGG(13, 100), 9_462_180),
    "mobilenetv2": (lambda: CifarMobileNetV2(0.5, 6, 100), 812_836),
    "shufflenetv1": (lambda: CifarShuffleNetV1(100), 949_258),
    "shufflenetv2": (lambda: cifar_shufflenet_v2(100), 1_355_528),
}


def shaken(module):
    """Give normalisations statistics and weights that are not those of the beginning."""
    generator = torch.Generator().manual_seed(3)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for values, low, high in (
                (layer.weight, 0.5, 1.5),
                (layer.bias, -0.5, 0.5),
                (layer.running_mean, -0.5, 0.5),
                (layer.running_var, 0.5, 1.5),
            ):
                values.data.uniform_(low, high, generator=generator)
    return module.eval()


def copied(source, target):
    """Carry the tensors over in their order, whatever their names."""
    target.load_state_dict(dict(zip(target.state_dict(), source.state_dict().values(), strict=True)))
    return target.eval()


def normalised(features, layer):
    return F.batch_norm(features, layer.running_mean, layer.running_var, layer.weight, layer.bias)


@pytest.mark.parametrize("name", SIZES)
def test_parameters_are_as_many_as_the_benchmarks_have(name):
    build, expected = SIZES[name]
    with torch.device("meta"):
        assert sum(weight.numel() for weight in build().parameters()) == expected


@pytest.mark.parametrize("depth", [11, 13, 16, 19])
def test_convolutions_of_a_vgg_are_torchvisions(depth):
    with torch.device("meta"):
        theirs = make_layers(cfgs[{11: "A", 13: "B", 16: "D", 19: "E"}[depth]], batch_norm=True)
        assert [w.shape for w in CifarVGG(depth).blocks.parameters()] == [w.shape for w in theirs.parameters()]


@pytest.mark.parametrize(("size", "halvings"), [(32, 3), (64, 4)])
def test_a_vgg_is_torchvisions_without_the_last_halvings(size, halvings):
    ours = shaken(CifarVGG(11, 7, size=size))
    theirs = copied(ours.blocks, make_layers(cfgs["A"], batch_norm=True))
    pools = [place for place, layer in enumerate(theirs) if isinstance(layer, nn.MaxPool2d)]
    for place in pools[halvings:]:
        theirs[place] = nn.Identity()
    images = torch.randn(1, 3, size, size)
    torch.testing.assert_close(ours(images), ours.fc(theirs(images).mean((2, 3))))


def test_basic_blocks_are_torchvisions():
    ours = shaken(BasicBlock(4, 8, 2))
    theirs = TorchvisionBasicBlock(4, 8, 2, downsample=nn.Sequential(nn.Conv2d(4, 8, 1, 2, bias=False), nn.BatchNorm2d(8)))
    features = torch.randn(2, 4, 9, 9)
    torch.testing.assert_close(ours(features), copied(ours, theirs)(features))


@pytest.mark.parametrize(("outputs", "stride"), [(4, 1), (8, 2), (8, 1)])
def test_pre_activation_blocks_follow_the_paper(outputs, stride):
    block = shaken(PreActivationBlock(4, outputs, stride))
    features = torch.randn(2, 4, 8, 8)
    first = normalised(features, block.bn1).relu()
    second = normalised(F.conv2d(first, block.conv1.weight, stride=stride, padding=1), block.bn2).relu()
    shortcut = features if outputs == 4 else F.conv2d(first, block.shortcut.weight, stride=stride)
    torch.testing.assert_close(block(features), shortcut + F.conv2d(second, block.conv2.weight, padding=1))


@pytest.mark.parametrize(("outputs", "stride"), [(8, 1), (8, 2), (12, 1)])
def test_inverted_residuals_are_torchvisions(outputs, stride):
    ours = shaken(InvertedResidual(8, outputs, stride, 6))
    theirs = copied(ours, with_plain_relus(TorchvisionInvertedResidual(8, outputs, stride, 6)))
    features = 5 * torch.randn(2, 8, 9, 9)
    torch.testing.assert_close(ours(features), theirs(features))


def with_plain_relus(module):
    for name, layer in list(module.named_modules()):
        if isinstance(layer, nn.ReLU6):
            module.set_submodule(name, nn.ReLU())
    return module


def test_mobilenet_is_torchvisions_after_its_first_block():
    ours = shaken(CifarMobileNetV2(0.5, 6, 10))
    blocks = [list(group) for group in mobilenet_v2_blocks(6, halving=1)]
    theirs = with_plain_relus(MobileNetV2(10, 0.5, blocks, round_nearest=1, dropout=0.0)).eval()
    copied(ours.blocks[1:], theirs.features[2:18])
    copied(ours.head, theirs.features[18])
    features = torch.randn(2, 8, 16, 16)
    torch.testing.assert_close(ours.head(ours.blocks[1:](features)), theirs.features[2:](features))
    assert ours.blocks(ours.stem(torch.randn(1, 3, 32, 32))).shape == (1, 160, 2, 2)


@pytest.mark.parametrize(("inputs", "outputs", "stride", "groups"), [(24, 24, 1, 3), (24, 48, 2, 3), (24, 60, 2, 1)])
def test_shuffle_blocks_follow_the_paper(inputs, outputs, stride, groups):
    block = shaken(ShuffleBlock(inputs, outputs, stride, groups))
    features = torch.randn(2, inputs, 8, 8)
    inner = normalised(F.conv2d(features, block.conv1.weight, groups=groups), block.bn1).relu()
    width = inner.shape[1] // groups
    order = [group * width + place for place in range(width) for group in range(groups)]  # one channel of each group in turn
    inner = F.conv2d(inner[:, order], block.conv2.weight, stride=stride, padding=1, groups=inner.shape[1])
    made = normalised(F.conv2d(normalised(inner, block.bn2).relu(), block.conv3.weight, groups=3), block.bn3)
    expected = made + features if stride == 1 else torch.cat([made, F.avg_pool2d(features, 3, 2, 1)], dim=1)
    torch.testing.assert_close(block(features), expected.relu())
    assert expected.shape == (2, outputs, 8 // stride, 8 // stride)


@pytest.mark.parametrize(
    ("build", "options"), [(CifarMobileNetV2, {"classes": 100}), (CifarVGG, {"depth": 8}), (WideResNet, {"depth": 16, "factor": 4})]
)
def test_weights_begin_as_published(build, options):
    torch.manual_seed(0)
    net = build(**options)
    large = [layer for layer in net.modules() if isinstance(layer, nn.Conv2d) and layer.weight.numel() > 20_000]
    assert large
    for layer in large:
        expected = (2 / (layer.kernel_size[0] ** 2 * layer.out_channels)) ** 0.5
        assert layer.weight.std().item() == pytest.approx(expected, rel=0.03)
    assert not net.fc.bias.any()
    if not isinstance(net, WideResNet):
        assert net.fc.weight.std().item() == pytest.approx(0.01, rel=0.03)


def test_initialise_leaves_linear_layers_unless_told():
    layers = nn.Sequential(nn.Conv2d(2, 2, 3), nn.Linear(2, 2))
    before = layers[1].weight.clone()
    initialise(layers)
    assert torch.equal(layers[1].weight, before)
    assert not layers[0].bias.any()
    initialise(layers, linear_std=0.1)
    assert not torch.equal(layers[1].weight, before)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: WideResNet(18, 2), "6 n \\+ 4 layers"),
        (lambda: WideResNet(16, 0), "factor of 0"),
        (lambda: CifarVGG(12), "VGGs of 8, 11, 13, 16, 19 layers, not of 12"),
        (lambda: CifarMobileNetV2(0.05), "width of 1/16 or more"),
        (lambda: CifarMobileNetV2(0.5, 0), "expansion of 1 or more"),
    ],
)
def test_forms_that_do_not_exist_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
