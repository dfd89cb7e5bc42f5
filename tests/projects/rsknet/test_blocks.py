import pytest
import torch

from projects.rsknet.blocks import BasicBlock, BranchGate, RSKBlock, SKConv2d, SqueezeExcitation, convolution, frame_mask, spatial_mean
from shared.seeding import generator

TOLERANCE = {"rtol": 1e-8, "atol": 1e-8}


def drawn(module, seed=0):
    """Give a module weights and statistics that no initialisation has, in float64 and evaluation mode."""
    rng = generator(seed, "weights")
    with torch.no_grad():
        for name, value in module.double().state_dict().items():
            if value.is_floating_point():
                noise = torch.randn(value.shape, generator=rng, dtype=value.dtype)
                value.copy_(noise.exp() if name.endswith("running_var") else noise)
    return module.eval()


def maps(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed, "maps"), dtype=torch.float64)


def conv3x3(x, weight, stride=1, dilation=(1, 1)):
    """Sum over taps of a convolution with as many zeros around the maps as its taps reach."""
    (B, C, F, T), (f, t) = x.shape, dilation
    around = x.new_zeros(B, C, F + 2 * f, T + 2 * t)
    around[:, :, f : f + F, t : t + T] = x
    taps = [(a, b, around[:, :, a * f : a * f + F, b * t : b * t + T]) for a in range(3) for b in range(3)]
    return sum(torch.einsum("oi,bift->boft", weight[:, :, a, b], part) for a, b, part in taps)[:, :, ::stride, ::stride]


def normalised(x, norm):
    shape = (1, -1, *[1] * (x.ndim - 2))
    scale = norm.weight / (norm.running_var + 1e-5).sqrt()
    return (x - norm.running_mean.view(shape)) * scale.view(shape) + norm.bias.view(shape)


def convolved(x, part, stride=1, dilation=(1, 1)):
    """Apply a plain or separable convolution and its norms."""
    if len(part) == 2:
        return normalised(conv3x3(x, part[0].weight, stride, dilation), part[1])
    depthwise = torch.diag_embed(part[0].weight[:, 0].permute(1, 2, 0)).permute(2, 3, 0, 1)  # (I, I, 3, 3), zero between channels
    inner = normalised(conv3x3(x, depthwise, stride, dilation), part[1])
    return normalised(torch.einsum("oi,bift->boft", part[2].weight[:, :, 0, 0], inner), part[3])


def selected(x, sk, dilations):
    """The selective kernel's steps, number by number; returns V and the weights."""
    U = [convolved(x, branch, dilation=dilation).clamp_min(0) for branch, dilation in zip(sk.branches, dilations, strict=True)]
    s = sum(U).mean((2, 3))
    z = normalised(torch.einsum("dc,bc->bd", sk.gate.squeeze.weight, s), sk.gate.bn).clamp_min(0)
    A = sk.gate.select.weight.view(len(U), -1, z.shape[1])
    logits = torch.einsum("mcd,bd->bmc", A, z)
    w = logits.exp() / logits.exp().sum(1, keepdim=True)
    V = torch.zeros_like(U[0])
    for b in range(len(U)):
        for c in range(x.shape[1]):
            V[:, c] += w[:, b, c, None, None] * U[b][:, c]
    return V, w


@torch.no_grad()
@pytest.mark.parametrize("separable", [False, True])
@pytest.mark.parametrize(("stride", "dilation"), [(1, (1, 1)), (2, (1, 1)), (1, (1, 3)), (1, (2, 2))])
def test_a_convolution_is_the_sum_over_its_taps(stride, dilation, separable):
    part, x = drawn(convolution(3, 4, stride, dilation, separable)), maps(2, 3, 5, 7)
    torch.testing.assert_close(part(x), convolved(x, part, stride, dilation), **TOLERANCE)


@torch.no_grad()
@pytest.mark.parametrize("separable", [False, True])
@pytest.mark.parametrize("dilations", [[(1, 1), (1, 2)], [(1, 1), (1, 2), (1, 3)], [(1, 1), (2, 2)]], ids=["two", "three", "both axes"])
def test_selective_kernels_follow_section_2_2(dilations, separable):
    sk, x = drawn(SKConv2d(4, dilations, separable=separable)), maps(3, 4, 5, 9)
    wanted, weights = selected(x, sk, dilations)
    torch.testing.assert_close(sk(x), wanted, **TOLERANCE)
    outputs = sum(branch(x).relu() for branch in sk.branches)
    torch.testing.assert_close(sk.gate(outputs.mean((2, 3))), weights, **TOLERANCE)


@torch.no_grad()
def test_in_training_a_gate_normalises_over_the_batch():
    gate, s = drawn(BranchGate(4, 2)).train(), maps(6, 4)
    inner = s @ gate.squeeze.weight.T
    inner = (inner - inner.mean(0)) / (inner.var(0, unbiased=False) + 1e-5).sqrt() * gate.bn.weight + gate.bn.bias
    logits = (inner.clamp_min(0) @ gate.select.weight.T).view(6, 2, 4)
    torch.testing.assert_close(gate(s), logits.softmax(1), **TOLERANCE)


@pytest.mark.parametrize(("channels", "reduction", "squeezed"), [(32, 8, 32), (256, 8, 32), (512, 8, 64), (1024, 16, 64), (12, 8, 32)])
def test_a_gate_squeezes_channels_by_rho_but_not_below_32(channels, reduction, squeezed):
    gate = BranchGate(channels, 2, reduction)
    assert sum(p.numel() for p in gate.parameters()) == squeezed * channels + 2 * squeezed + 2 * channels * squeezed
    assert gate.select.bias is None


@torch.no_grad()
def test_fixed_fusion_averages_and_one_branch_is_alone():
    dilations = [(1, 1), (1, 3)]
    sk, x = drawn(SKConv2d(4, dilations, gated=False)), maps(2, 4, 5, 9)
    near, far = (convolved(x, branch, dilation=dilation).clamp_min(0) for branch, dilation in zip(sk.branches, dilations, strict=True))
    torch.testing.assert_close(sk(x), 0.5 * near + 0.5 * far, **TOLERANCE)
    alone = drawn(SKConv2d(4, [(1, 4)]))
    assert alone.gate is None
    torch.testing.assert_close(alone(x), convolved(x, alone.branches[0], dilation=(1, 4)).clamp_min(0), **TOLERANCE)


def around(x, block, stride):
    if block.shortcut is None:
        return x
    return normalised(torch.einsum("oi,bift->boft", block.shortcut[0].weight[:, :, 0, 0], x[:, :, ::stride, ::stride]), block.shortcut[1])


@torch.no_grad()
@pytest.mark.parametrize("separable", [False, True])
@pytest.mark.parametrize(("inputs", "stride"), [(4, 1), (3, 1), (4, 2), (3, 2)])
def test_an_rsk_block_follows_section_2_2(inputs, stride, separable):
    dilations = [(1, 1), (1, 2)]
    block, x = drawn(RSKBlock(inputs, 4, stride, dilations, separable=separable)), maps(2, inputs, 5, 9)
    y1 = convolved(x, block.first, stride).clamp_min(0)
    y2 = normalised(selected(y1, block.selective, dilations)[0], block.bn)
    assert (block.shortcut is None) == (inputs == 4 and stride == 1)
    torch.testing.assert_close(block(x), (y2 + around(x, block, stride)).clamp_min(0), **TOLERANCE)


@torch.no_grad()
@pytest.mark.parametrize("excited", [False, True])
@pytest.mark.parametrize(("inputs", "stride"), [(4, 1), (3, 2)])
def test_a_basic_block_is_that_of_residual_networks(inputs, stride, excited):
    block, x = drawn(BasicBlock(inputs, 4, stride, excited)), maps(2, inputs, 5, 9)
    y = convolved(convolved(x, block.first, stride).clamp_min(0), block.second)
    if excited:
        squeeze, excite = block.excitation.squeeze, block.excitation.excite
        hidden = (y.mean((2, 3)) @ squeeze.weight.T + squeeze.bias).clamp_min(0)
        y = y * (1 / (1 + (-(hidden @ excite.weight.T + excite.bias)).exp()))[:, :, None, None]
    torch.testing.assert_close(block(x), (y + around(x, block, stride)).clamp_min(0), **TOLERANCE)


def test_masks_end_with_the_files():
    mask = frame_mask(torch.tensor([4, 1, 3]), 4)
    assert mask.tolist() == [[[1, 1, 1, 1]], [[1, 0, 0, 0]], [[1, 1, 1, 0]]]
    x = maps(3, 2, 5, 4)
    wanted = torch.stack([row[..., :length].mean((1, 2)) for row, length in zip(x, (4, 1, 3), strict=True)])
    torch.testing.assert_close(spatial_mean(x, mask[:, None].double()), wanted, **TOLERANCE)
    torch.testing.assert_close(spatial_mean(x, None), x.mean((2, 3)), **TOLERANCE)


@torch.no_grad()
@pytest.mark.parametrize("make", [lambda: RSKBlock(3, 4, 2, [(1, 1), (2, 3)]), lambda: BasicBlock(3, 4, 2, True, True)], ids=["rsk", "excited"])
def test_a_block_of_a_padded_batch_is_that_of_each_file(make):
    block, lengths = drawn(make()), (9, 8, 5, 2, 1)
    x = maps(5, 3, 6, 9) * frame_mask(torch.tensor(lengths), 9)[:, None]
    mask = frame_mask(torch.tensor(lengths), 9)[:, None, :, ::2].double()
    found = block(x, mask)
    for row, length in enumerate(lengths):
        wanted = block(x[row : row + 1, :, :, :length])[0]
        torch.testing.assert_close(found[row, :, :, : wanted.shape[2]], wanted, **TOLERANCE)
        assert not found[row, :, :, wanted.shape[2] :].any()


@pytest.mark.parametrize(
    "make",
    [lambda: SKConv2d(2, [(1, 1), (1, 2)]), lambda: RSKBlock(2, 3, 2, [(1, 1), (1, 2)]), lambda: SqueezeExcitation(2)],
    ids=["sk", "rsk", "se"],
)
def test_gradients_are_those_of_finite_differences(make):
    part, x = drawn(make()).train(), maps(3, 2, 3, 4).requires_grad_()
    assert torch.autograd.gradcheck(part, (x,), fast_mode=True)


@pytest.mark.parametrize("dilations", [[], [(1, 0)], [(1,)], [(1, 1), (1, 2, 3)]])
def test_dilations_that_are_none_are_refused(dilations):
    with pytest.raises(ValueError, match="pair of positive steps"):
        SKConv2d(4, dilations)
