import copy

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from projects.forgery_nas.genotype import RELEASED, Genotype, random_genotype
from projects.forgery_nas.inference import count, fold
from projects.forgery_nas.network import Cell, FactorizedReduce, ForgeryNet, PyramidHead, default_reductions, drop_path
from projects.forgery_nas.operations import SPACE, KernelConv2d, build_operation

MIXED = Genotype(
    normal=((("skip_connect", 0), ("sep_cdc_3x3_0.7", 1)), (("dil_cdc_3x3_0.5", 0), ("max_pool_3x3", 2))),
    reduce=((("skip_connect", 0), ("dil_cdc_3x3_0.8", 1)), (("sep_cdc_5x5_0.5", 1), ("skip_connect", 2))),
)


def make(genotype=MIXED, channels=4, layers=3, **options):
    torch.manual_seed(0)
    return ForgeryNet(genotype, channels, layers, **options)


def trained(net, size=16, seed=0):
    """Give the norms some statistics and weights of their own."""
    generator = torch.Generator().manual_seed(seed)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)
            nn.init.normal_(module.bias, std=0.3, generator=generator)
    with torch.no_grad():
        for _ in range(3):
            net.train()(torch.rand(8, 3, size, size, generator=generator))
    return net.eval()


def parameters_of(genotype, channels, layers, reductions, classes=2):
    """Count by hand: a separable convolution has 2 (9 C + C^2 + 2 C) parameters, and so on."""

    def operation(name, width):
        taps = int(name.split("_")[2][0]) ** 2 if "cdc" in name else 0
        return {"sep": 2, "dil": 1}.get(name[:3], 0) * (taps * width + width**2 + 2 * width)

    total, widths = 27 * 3 * channels + 6 * channels, [3 * channels] * 2
    for layer in range(layers):
        channels *= 1 + (layer in reductions)
        genes = genotype.reduce if layer in reductions else genotype.normal
        total += (widths[-2] + widths[-1]) * channels + 4 * channels
        total += sum(operation(name, channels) for node in genes for name, _ in node)
        widths.append(len(genes) * channels)
    return total + widths[-1] * classes + classes


def test_released_network_is_the_papers():
    net = ForgeryNet(RELEASED)
    cost = count(net, 64)
    assert cost.parameters == parameters_of(RELEASED, 36, 12, (2, 5, 8, 11)) == 9_285_806  # "about 9.3 M"
    assert net.head.linear.in_features == 2304
    with torch.no_grad():
        assert net.eval().stages(torch.zeros(1, 3, 64, 64))[-1].shape == (1, 2304, 4, 4)


def test_defaults_of_reductions():
    assert default_reductions(12) == (2, 5, 8, 11)
    assert default_reductions(8) == (1, 3, 5, 7)
    assert [default_reductions(layers) for layers in (1, 2, 3, 4)] == [(0,), (0, 1), (0, 2), (1, 3)]


@pytest.mark.parametrize("head", ["last", "pyramid"])
@pytest.mark.parametrize(("genotype", "channels", "layers"), [(MIXED, 4, 4), (RELEASED, 6, 5)])
def test_costs_against_torchs_counter(genotype, channels, layers, head):
    net = make(genotype, channels, layers, head=head, auxiliary=True).train()
    cost = count(net, 32)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net.eval()(torch.zeros(1, 3, 32, 32))
    assert 2 * cost.macs == counter.get_total_flops()
    plain = make(genotype, channels, layers, head=head)
    assert cost.parameters == sum(parameter.numel() for parameter in plain.parameters())
    if head == "last":
        assert cost.parameters == parameters_of(genotype, channels, layers, default_reductions(layers))
    assert net.train().training
    assert not any(module._forward_hooks for module in net.modules())


def test_costs_by_hand():
    net = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.Conv2d(8, 8, 5, groups=8, padding=2), nn.Flatten(), nn.Linear(8 * 25, 2))
    cost = count(net.eval(), 10)
    assert cost.macs == 25 * 8 * 27 + 25 * 8 * 25 + 400
    assert cost.parameters == 8 * 27 + 8 + 8 * 25 + 8 + 402
    assert not net.training


def by_hand(net, genotype, images):
    """Interpret a genotype with the network's own layers, states by number."""
    reductions = default_reductions(len(net.cells))
    outputs = [net.stem(images)] * 2
    for number, cell in enumerate(net.cells):
        states = {0: cell.preprocess0(outputs[-2]), 1: cell.preprocess1(outputs[-1])}
        operations = iter(cell.operations)
        genes = genotype.reduce if number in reductions else genotype.normal
        for node, pair in enumerate(genes):
            states[2 + node] = sum(next(operations)(states[source]) for _, source in pair)
        outputs.append(torch.cat([states[2 + node] for node in range(len(genes))], dim=1))
    return F.linear(outputs[-1].mean((2, 3)), net.head.linear.weight, net.head.linear.bias)


@pytest.mark.parametrize("size", [16, 17])
def test_network_computes_its_genotype(size):
    for genotype in (MIXED, random_genotype(SPACE, torch.Generator().manual_seed(1))):
        net = trained(make(genotype, layers=4))
        images = torch.rand(2, 3, size, size)
        torch.testing.assert_close(net(images), by_hand(net, genotype, images))


def test_cells_preprocess_and_stride():
    net = make(RELEASED, channels=4, layers=6, reductions=(2, 4))
    halves = [isinstance(cell.preprocess0[1], FactorizedReduce) for cell in net.cells]
    assert halves == [False, False, False, True, False, True]
    for number, cell in enumerate(net.cells):
        for (name, source), operation in zip(_edges(RELEASED, number in (2, 4)), cell.operations, strict=True):
            stride = next((module.stride for module in operation.modules() if isinstance(module, (KernelConv2d, nn.MaxPool2d))), 1)
            assert stride == (2 if number in (2, 4) and source < 2 else 1), name
    sizes = [stage.shape for stage in make(RELEASED, 4, 6, reductions=(2, 4), head="pyramid").stages(torch.rand(2, 3, 16, 16))]
    assert sizes == [(2, 32, 8, 8), (2, 64, 4, 4), (2, 64, 4, 4)]


def _edges(genotype, is_reduction):
    return [edge for node in (genotype.reduce if is_reduction else genotype.normal) for edge in node]


def test_factorized_reduce_reads_even_and_odd_pixels():
    layer, features = FactorizedReduce(3, 5), torch.randn(2, 3, 6, 6)
    even = torch.einsum("bihw,oi->bohw", features[:, :, ::2, ::2], layer.even.weight[:, :, 0, 0])
    odd = torch.einsum("bihw,oi->bohw", features[:, :, 1::2, 1::2], layer.odd.weight[:, :, 0, 0])
    torch.testing.assert_close(layer(features), torch.cat([even, odd], dim=1), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(layer(features[:, :, :5, :5]), layer(F.pad(features[:, :, :5, :5], [0, 1, 0, 1])))


def test_images_are_bytes_or_parts_of_one():
    net, images = trained(make()), torch.randint(256, (3, 3, 16, 16), dtype=torch.uint8)
    torch.testing.assert_close(net(images), net(images.float() / 255))
    torch.testing.assert_close(net.double()(images), net(images.double() / 255))


def test_drop_path_drops_examples_and_keeps_the_mean():
    torch.manual_seed(0)
    dropped = drop_path(torch.ones(4000, 2, 3), 0.3)
    torch.testing.assert_close(dropped.unique(), torch.tensor([0, 1 / 0.7]))
    assert torch.equal(dropped.amin((1, 2)), dropped.amax((1, 2)))
    assert abs(dropped.mean() - 1) < 0.05  # 5 standard deviations


def test_drop_path_spares_identities():
    genes = ((("skip_connect", 0), ("max_pool_3x3", 1)),)
    cell, inputs = Cell(genes, (2, 2), 2, is_reduction=False, was_reduction=False), (torch.randn(400, 2, 3, 3), torch.randn(400, 2, 3, 3))
    cell.preprocess0, cell.preprocess1 = nn.Identity(), nn.Identity()
    torch.manual_seed(0)
    pooled = cell(*inputs, 0.5) - inputs[0]
    expected = F.max_pool2d(inputs[1], 3, 1, 1)
    is_kept = pooled.abs().amax((1, 2, 3)) > 1e-6
    torch.testing.assert_close(pooled[is_kept], 2 * expected[is_kept], rtol=1e-5, atol=1e-5)
    assert 150 < is_kept.sum() < 250
    torch.testing.assert_close(cell.eval()(*inputs, 0.5), inputs[0] + expected)


def test_drop_path_can_be_raised():
    net, images = make(drop_path=0.0).train(), torch.rand(4, 3, 16, 16)
    assert torch.equal(net(images), net(images))
    net.drop_path = 0.5
    assert not torch.equal(net(images), net(images))
    net.eval()
    assert torch.equal(net(images), net(images))


@pytest.mark.parametrize(("head", "heads"), [("last", 1), ("pyramid", 2)])
def test_auxiliary_heads_train(head, heads):
    net, images = make(layers=4, head=head, auxiliary=True), torch.rand(4, 3, 32, 32)
    assert net.auxiliary_logits is None
    logits = net.train()(images)
    assert logits.shape == (4, 2)
    assert net.auxiliary_logits.shape == (heads, 4, 2)
    net.auxiliary_logits.sum().backward()
    assert all(parameter.grad is not None for parameter in net.head.auxiliary.parameters())
    assert net.stem[0].weight.grad.abs().sum() > 0
    copied = copy.deepcopy(net)
    assert copied.auxiliary_logits is None
    net.eval()(images)
    assert net.auxiliary_logits is None
    without = make(layers=4, head=head).train()
    without(images)
    assert without.auxiliary_logits is None


def test_pyramid_head_by_hand():
    torch.manual_seed(0)
    head, stages = PyramidHead([8, 12, 16], 2, auxiliary=True).eval(), [torch.randn(2, 8, 9, 8), torch.randn(2, 12, 5, 4), torch.randn(2, 16, 3, 2)]
    level, pooled = head.lateral[2](stages[2]), []
    for number in (1, 0):
        pooled.insert(0, level.mean((2, 3)))
        raised = F.interpolate(level, size=stages[number].shape[2:], mode="bilinear")
        level = torch.cat([head.lateral[number](stages[number]), raised], dim=1)
        for block in range(2):
            norm, convolution = head.merge[number][3 * block + 1 : 3 * block + 3]
            level = convolution(norm(level.relu()))
    pooled.insert(0, level.mean((2, 3)))
    expected = F.linear(torch.cat(pooled, dim=1), head.linear.weight, head.linear.bias)
    torch.testing.assert_close(head(stages), expected)
    logits, auxiliary = head.forward_auxiliary(stages)
    torch.testing.assert_close(logits, expected)
    torch.testing.assert_close(auxiliary, torch.stack([one(features) for one, features in zip(head.auxiliary, pooled, strict=True)]))


@pytest.mark.parametrize("head", ["last", "pyramid"])
def test_folded_network_gives_the_same_logits(head):
    genotype = random_genotype((*SPACE, "bayar_5x5", "srm_5x5"), torch.Generator().manual_seed(4))
    for net in (trained(make(RELEASED, layers=4, head=head)), trained(make(genotype, 6, 4, head=head)), trained(make(head=head, auxiliary=True), 32)):
        images, before = torch.rand(4, 3, 18, 17), copy.deepcopy(net.state_dict())
        net.train()
        folded = fold(net)
        torch.testing.assert_close(folded(images), net.eval()(images), rtol=1e-4, atol=1e-4)
        assert not any(isinstance(module, KernelConv2d) for module in folded.modules())
        assert not any(isinstance(module, nn.BatchNorm2d) for module in (*folded.cells.modules(), *folded.stem))
        assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
        assert not any(parameter.requires_grad for parameter in folded.parameters())


def test_folding_leaves_norms_that_also_activate():
    layers = nn.Sequential(nn.Conv2d(3, 4, 3), BatchNormAct2d(4)).eval()
    images = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(fold(layers)(images), layers(images))


def test_registry_reaches_the_cells():
    registry = {"planted": lambda channels, stride, affine: build_operation("skip_connect", channels, stride, affine)}
    genotype = MIXED.replaced({"skip_connect": "planted"})
    net, images = make(genotype, registry=registry).eval(), torch.rand(1, 3, 16, 16)
    torch.testing.assert_close(net(images), make().eval()(images))
    with pytest.raises(ValueError, match="no operation 'planted'"):
        make(genotype)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": 0}, "at least one cell"),
        ({"drop_path": 1.0}, "drop_path is a probability"),
        ({"head": "middle"}, "no head 'middle': choose last or pyramid"),
        ({"reductions": (1, 3)}, "numbers of cells, 0 to 2"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_images_are_checked():
    with pytest.raises(ValueError, match=r"\(B, 3, H, W\), not \(2, 1, 8, 8\)"):
        make()(torch.rand(2, 1, 8, 8))
    with pytest.raises(ValueError, match="at least 8 x 8 features, and the last cell has 4 x 4: take larger images"):
        make(auxiliary=True).train()(torch.rand(2, 3, 16, 16))


def test_network_learns_to_see_noise():
    net = make(layers=2, drop_path=0.0, reductions=(1,))
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(64) % 2
    images = (0.5 + torch.randn(64, 3, 12, 12, generator=generator) * (0.05 + 0.05 * labels[:, None, None, None])).clamp(0, 1)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    for norm in net.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = 0.5  # the variances come down from 1 within the few steps
    for _ in range(15):
        optimizer.zero_grad()
        F.cross_entropy(net.train()(images), labels).backward()
        optimizer.step()
    with torch.no_grad():
        for _ in range(10):
            net(images)
    assert (net.eval()(images).argmax(1) == labels).float().mean() > 0.95
