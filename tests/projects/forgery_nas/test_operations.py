import pytest
import torch
from torch import nn
from torch.nn import functional as F

from projects.forgery_nas.operations import (
    PLAIN_SPACE,
    SMALL_SPACE,
    SPACE,
    BayarConv2d,
    CDConv2d,
    KernelConv2d,
    SRMConv2d,
    build_operation,
    check_operation,
    fold_,
)

NAMES = (*SPACE, "avg_pool_3x3", "bayar_5x5", "srm_5x5", "sep_cdc_5x5_0.25", "dil_cdc_7x7_1.0")


def two_terms(features, weight, theta, stride, dilation, groups):
    """The vanilla convolution, less theta times the centre pixel under the summed weights."""
    vanilla = F.conv2d(features, weight, None, stride, dilation * (weight.shape[-1] // 2), dilation, groups)
    return vanilla - theta * F.conv2d(features, weight.sum((2, 3), keepdim=True), None, stride, 0, 1, groups)


@pytest.mark.parametrize("kernel_size", [1, 3, 5])
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("theta", "groups"), [(0.7, 4), (1.0, 1), (0.3, 2), (0.0, 4)])
def test_folded_kernel_is_the_two_term_form(theta, groups, stride, dilation, kernel_size):
    torch.manual_seed(0)
    layer = CDConv2d(4, 8, kernel_size, theta, stride, dilation, groups)
    features = torch.randn(2, 4, 9, 10)
    upstream = torch.randn_like(found := layer(features))
    weight = layer.weight.detach().clone().requires_grad_()
    expected = two_terms(features, weight, theta, stride, dilation, groups)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    gradients = torch.autograd.grad(found, layer.weight, upstream), torch.autograd.grad(expected, weight, upstream)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)


def test_central_difference_pixel_by_pixel():
    torch.manual_seed(0)
    layer, features = CDConv2d(2, 3, 3, theta=0.6).double(), torch.randn(2, 2, 4, 5, dtype=torch.float64)
    padded, found = F.pad(features, [1] * 4), layer(features)
    for row in range(4):
        for column in range(5):
            patch, centre = padded[:, :, row : row + 3, column : column + 3], features[:, :, row, column, None, None]
            vanilla = torch.einsum("bihw,oihw->bo", patch, layer.weight)
            difference = torch.einsum("bihw,oihw->bo", patch - centre, layer.weight)
            torch.testing.assert_close(found[:, :, row, column], 0.4 * vanilla + 0.6 * difference)


@pytest.mark.parametrize("theta", [0.0, 0.5, 1.0])
def test_response_to_a_constant(theta):
    layer = CDConv2d(1, 3, 3, theta, dilation=2).double()
    response = layer(torch.full((1, 1, 9, 9), 4.0, dtype=torch.float64))[0, :, 4, 4]
    torch.testing.assert_close(response, (1 - theta) * 4 * layer.weight.sum((1, 2, 3)))


def test_theta_zero_is_an_ordinary_convolution():
    torch.manual_seed(0)
    layer = CDConv2d(4, 6, 3, theta=0.0, stride=2, groups=2)
    torch.manual_seed(0)
    ordinary, features = nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2, bias=False), torch.randn(2, 4, 7, 7)
    torch.testing.assert_close(layer.weight, ordinary.weight, rtol=0, atol=0)  # also initialised alike
    torch.testing.assert_close(layer(features), ordinary(features), rtol=0, atol=0)


def test_spaces_are_the_published_ones():
    assert len(SPACE) == 11
    assert SPACE[0] == "max_pool_3x3"
    assert SPACE[1:9] == tuple(f"{kind}_cdc_3x3_{theta}" for kind in ("sep", "dil") for theta in (0.0, 0.5, 0.7, 0.8))
    assert SPACE[9:] == ("skip_connect", "none")
    assert set(SMALL_SPACE) < set(SPACE)
    assert [name for name in PLAIN_SPACE if "cdc" in name] == ["sep_cdc_3x3_0.0", "dil_cdc_3x3_0.0"]


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_stride_halves_and_rounds_up(name, affine):
    features = torch.randn(2, 6, 9, 8)
    assert build_operation(name, 6, 1, affine)(features).shape == (2, 6, 9, 8)
    operation = build_operation(name, 6, 2, affine)
    assert operation(features).shape == (2, 6, 5, 4)
    norms = [module for module in operation.modules() if isinstance(module, nn.BatchNorm2d)]
    assert all(norm.affine == affine for norm in norms)
    assert not any(name.endswith("bias") for name, _ in operation.named_parameters()) or affine


@pytest.mark.parametrize("stride", [1, 2])
def test_separable_in_functions(stride):
    torch.manual_seed(0)
    operation, features = build_operation("sep_cdc_3x3_0.7", 4, stride, False), torch.randn(3, 4, 8, 8)
    first, point, second, point2 = (parameter.detach() for parameter in operation.parameters())
    kept = features.clone()
    hidden = F.conv2d(two_terms(features.relu(), first, 0.7, stride, 1, 4), point)
    hidden = F.batch_norm(hidden, None, None, training=True).relu()
    expected = F.batch_norm(F.conv2d(two_terms(hidden, second, 0.7, 1, 1, 4), point2), None, None, training=True)
    torch.testing.assert_close(operation(features), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(features, kept, rtol=0, atol=0)  # other edges read it too


@pytest.mark.parametrize("stride", [1, 2])
def test_dilated_in_functions(stride):
    torch.manual_seed(0)
    operation, features = build_operation("dil_cdc_3x3_0.7", 4, stride, False), torch.randn(3, 4, 8, 8)
    depthwise, point = (parameter.detach() for parameter in operation.parameters())
    expected = F.conv2d(two_terms(features.relu(), depthwise, 0.7, stride, 2, 4), point)
    torch.testing.assert_close(operation(features), F.batch_norm(expected, None, None, training=True), rtol=1e-4, atol=1e-5)
    assert depthwise.shape == (4, 1, 3, 3)


def test_connections_without_weights():
    features = torch.randn(2, 3, 6, 6)
    assert torch.equal(build_operation("skip_connect", 3, 1, True)(features), features)
    none = build_operation("none", 3, 2, True)(features * float("nan"))
    assert torch.equal(none, torch.zeros(2, 3, 3, 3))
    ones = torch.ones(1, 1, 6, 6)  # the padding does not count
    for name in ("skip_connect", "avg_pool_3x3"):
        assert torch.equal(build_operation(name, 1, 2, True)(ones), torch.ones(1, 1, 3, 3))
    assert torch.equal(build_operation("max_pool_3x3", 3, 1, True)(features)[:, :, 0, 0], features[:, :, :2, :2].amax((2, 3)))


def test_bayar_subtracts_a_pixel_from_its_neighbours():
    kernel = BayarConv2d(5).kernel()
    assert kernel.shape == (5, 1, 5, 5)
    torch.testing.assert_close(kernel[:, 0, 2, 2], torch.full((5,), -1.0))
    torch.testing.assert_close(kernel.sum((1, 2, 3)), torch.zeros(5), rtol=0, atol=1e-6)


def test_srm_is_blind_to_planes_and_sees_a_pixel():
    layer = SRMConv2d(2).double()
    rows, columns = torch.meshgrid(torch.arange(9.0), torch.arange(9.0), indexing="ij")
    plane = (3 + 2 * rows - columns).double().expand(1, 2, 9, 9)
    torch.testing.assert_close(layer(plane)[:, :, 2:-2, 2:-2], torch.zeros(1, 6, 5, 5, dtype=torch.float64), rtol=0, atol=1e-5)
    pixel = F.pad(torch.ones(1, 2, 1, 1, dtype=torch.float64), [4] * 4)
    torch.testing.assert_close(layer(pixel)[0, :, 4, 4], -torch.ones(6, dtype=torch.float64))
    assert not list(layer.parameters())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("sep_cdc_3x3", "no operation 'sep_cdc_3x3': .*sep_cdc_KxK_THETA"),
        ("sep_cdc_3x5_0.7", "no operation"),
        ("SepCDC_3x3_0.7", "no operation"),
        ("dil_cdc_4x4_0.7", "must be odd"),
        ("dil_cdc_3x3_1.5", "in \\[0, 1\\]"),
    ],
)
def test_unknown_operations_are_named(name, message):
    with pytest.raises(ValueError, match=message):
        check_operation(name)


def test_options_of_convolutions_are_checked():
    with pytest.raises(ValueError, match="theta"):
        CDConv2d(1, 1, 3, theta=-0.1)
    with pytest.raises(ValueError, match="no centre"):
        CDConv2d(1, 1, 4)


def test_registry_comes_first():
    registry = {"noise": lambda channels, stride, affine: nn.Dropout(stride / 4), "none": lambda channels, stride, affine: nn.Identity()}
    check_operation("noise", registry)
    assert build_operation("noise", 3, 2, True, registry).p == 0.5
    assert isinstance(build_operation("none", 3, 2, True, registry), nn.Identity)
    assert isinstance(build_operation("max_pool_3x3", 3, 2, True, registry), nn.MaxPool2d)
    with pytest.raises(ValueError, match="noise, sep"):
        check_operation("noises", registry)


@pytest.mark.parametrize("name", ["sep_cdc_3x3_0.7", "dil_cdc_5x5_0.5", "bayar_5x5", "srm_5x5"])
def test_folding_keeps_the_output(name):
    torch.manual_seed(0)
    operation, features = build_operation(name, 4, 2, True).eval(), torch.randn(2, 4, 9, 9)
    expected = operation(features)
    folded = fold_(operation)
    assert folded is operation
    assert not any(isinstance(module, KernelConv2d) for module in folded.modules())
    torch.testing.assert_close(folded(features), expected, rtol=1e-5, atol=1e-6)
