import math
from typing import get_args

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from projects.hodinet.fusion import HOCF, HOSF, ConcatFusion, FusionName, MatchedAddFusion, build_fusions, outer_maxima, outer_maxima_literal
from projects.hodinet.readout import chunk_columns, relation_readout, relation_readout_literal

NAMES = get_args(FusionName)
RGB, DEPTH = (64, 128, 320, 512), (256, 512, 1024, 2048)
CHUNKS = (0, 1, 4, 5, 20, 1000, None)


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def maps(channels=3, height=4, width=5, batch=2, seed=1, signed=False):
    torch.manual_seed(seed)
    values = torch.randn(batch, channels, height, width, dtype=torch.float64)
    return values if signed else values.relu()


def readout(r, d, values):
    """The module's four steps for one picture, place by place; (C, N), (C, M), (D, N) -> (D, M)."""
    rooted = np.zeros((r.shape[1], d.shape[1]))
    for n in range(r.shape[1]):
        for m in range(d.shape[1]):
            product = sum(r[c, n] * d[c, m] for c in range(r.shape[0])) / r.shape[0]
            rooted[n, m] = math.copysign(math.sqrt(abs(product) + 1e-12), product) if product else 0.0
    norm = math.sqrt((rooted**2).sum())
    return values @ (rooted / norm if norm else rooted)


def numpy(maps):
    return maps.detach().flatten(1).numpy()


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("chunk", CHUNKS)
def test_the_readout_is_that_of_the_steps_place_by_place(chunk, signed):
    r, d, values = maps(signed=signed), maps(seed=2, signed=signed), maps(2, seed=3, signed=True)
    found = relation_readout(r, d, values, chunk)
    for number in range(2):
        np.testing.assert_allclose(found[number], readout(numpy(r[number]), numpy(d[number]), numpy(values[number])), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(relation_readout(r, d, chunk=chunk), relation_readout(r, d, r, chunk))


def test_the_relation_of_a_picture_has_norm_one():
    r, d = maps().flatten(2), maps(seed=2).flatten(2)
    identity = torch.eye(20, dtype=torch.float64).expand(2, 20, 20)
    for relation in (relation_readout_literal(r, d, identity), relation_readout(r[..., None], d[..., None], identity[..., None], 3)):
        torch.testing.assert_close(relation.square().sum((1, 2)), torch.ones(2, dtype=torch.float64))


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_gradients_are_those_of_finite_differences(chunk, signed):
    # away from the zeros, where the root has a kink
    r, d, values = (maps(height=2, width=3, seed=seed, signed=signed) + (0.0 if signed else 0.3) for seed in (1, 2, 3))
    inputs = [part.requires_grad_() for part in (r, d, values)]
    assert torch.autograd.gradcheck(lambda *parts: relation_readout(*parts, chunk=chunk), inputs)
    assert torch.autograd.gradcheck(lambda r, d: relation_readout(r, d, chunk=chunk), inputs[:2])


def gradients(r, d, chunk, weights):
    leaves = [part.clone().requires_grad_() for part in (r, d)]
    found = relation_readout(*leaves, chunk=chunk)
    return found.detach(), *torch.autograd.grad((found * weights).sum(), leaves)


@pytest.mark.parametrize("chunk", CHUNKS[1:])
@pytest.mark.parametrize("case", ["dense", "sparse", "signed", "one zero picture", "zeros", "tiny"])
def test_gradients_are_those_of_autograd_through_the_literal_form(case, chunk):
    r, d = maps(signed=case == "signed"), maps(seed=2, signed=case == "signed")
    if case == "sparse":
        r, d = r * (torch.rand_like(r) > 0.8), d * (torch.rand_like(d) > 0.8)
    elif case == "one zero picture":
        r[0] = 0
    elif case == "zeros":
        r, d = torch.zeros_like(r), torch.zeros_like(d)
    elif case == "tiny":
        r, d = 1e-6 * r, 1e-6 * d
    weights = torch.randn(2, 3, 20, dtype=torch.float64)
    found, expected = gradients(r, d, chunk, weights), gradients(r, d, 0, weights)
    for ours, literal in zip(found, expected, strict=True):
        assert ours.isfinite().all()
        torch.testing.assert_close(ours, literal, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("sparse", [False, True])
def test_chunks_agree_with_the_plain_form_in_float32(sparse):
    r, d = (part.float() for part in (maps(16, 24, 24), maps(16, 24, 24, seed=2)))
    if sparse:
        r, d = r * (torch.rand_like(r) > 0.95), d * (torch.rand_like(d) > 0.95)
    weights = torch.randn(2, 16, 576)
    exact = gradients(r.double(), d.double(), 0, weights.double())
    for chunk in (1 << 5, 100, None):
        (found, *slopes), (expected, *literal_slopes) = gradients(r, d, chunk, weights), gradients(r, d, 0, weights)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
        for ours, literal, true in zip(slopes, literal_slopes, exact[1:], strict=True):
            ours_error, literal_error = ((part - true).abs().max() for part in (ours, literal))
            assert ours_error <= 2 * literal_error + 1e-5


def test_pooling_averages_colour_over_squares():
    r, d, values = maps(height=5, width=7), maps(height=3, width=3, seed=2), maps(2, height=5, width=7, seed=3)
    pooled = [torch.stack([part[..., i : i + 2, j : j + 2].mean((2, 3)) for i in (0, 2, 4) for j in (0, 2, 4, 6)], dim=2) for part in (r, values)]
    found = relation_readout(r, d, values, chunk=2, pool=2)
    torch.testing.assert_close(found, relation_readout_literal(pooled[0], d.flatten(2), pooled[1]))
    same = F.interpolate(maps(height=2, width=3), scale_factor=2)  # constant in each square, so that each stands for four equal ones
    torch.testing.assert_close(2 * relation_readout(same, d, pool=2), relation_readout(same, d))


def test_half_precision_is_computed_in_float32():
    r, d = (part.bfloat16() for part in (maps(8, 16, 16), maps(8, 16, 16, seed=2)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        leaves = [part.clone().requires_grad_() for part in (r, d)]
        found = relation_readout(*leaves)
        found.sum().backward()  # inside too
    expected = [part.float().requires_grad_() for part in (r, d)]
    reference = relation_readout(*expected, chunk=0)
    reference.sum().backward()
    assert (found.dtype, leaves[0].grad.dtype) == (torch.float32, torch.bfloat16)
    torch.testing.assert_close(found, reference, rtol=1e-5, atol=1e-5)
    for ours, literal in zip(leaves, expected, strict=True):
        torch.testing.assert_close(ours.grad, literal.grad.bfloat16())


def test_only_a_chunk_of_the_relation_is_held(monkeypatch):
    sizes, matmul = [], torch.bmm
    monkeypatch.setattr(torch, "bmm", lambda *parts: sizes.append((out := matmul(*parts)).numel()) or out)
    r, d = (part.float().requires_grad_() for part in (maps(4, 16, 16), maps(4, 16, 16, seed=2)))
    relation_readout(r, d, chunk=8).sum().backward()
    assert max(sizes) == 2 * 256 * 8  # of 2 * 256 * 256
    assert chunk_columns(1, 4096, "cpu") == 128
    assert chunk_columns(4, 4096, "cuda") == 256
    assert chunk_columns(10**4, 10**4, "cpu") == 1


def build(name="high_order", placement="SSCC", **options):
    torch.manual_seed(0)
    return build_fusions((3, 4, 5, 6), (7, 6, 5, 4), name, placement, widths=(4, 4, 6, 8), **options).double()


@pytest.mark.parametrize("order", [2, 3, 4])
def test_space_is_fused_step_by_step(order):
    torch.manual_seed(0)
    module, rgb, depth = HOSF(3, 7, 4, order).double().eval(), maps(3, 3, 3, signed=True), maps(7, 3, 3, seed=2, signed=True)
    colours, depths = [project(rgb) for project in module.rgb], [project(depth) for project in module.depth]
    assert (len(colours), len(depths)) == {2: (1, 1), 3: (2, 1), 4: (2, 2)}[order]
    r, d = torch.stack(colours).prod(0), torch.stack(depths).prod(0)
    first, second = (layer.weight for layer in module.gate)
    strongest = depths[0].max(1, keepdim=True).values
    gate = 1 / (1 + (-F.conv2d(F.conv2d(strongest, first, padding=1), second, padding=1)).exp())
    interaction = module.interact(rgb, depth)
    torch.testing.assert_close(interaction.gate, gate)
    for number in range(2):
        gathered = readout(numpy(r[number]), numpy(d[number]), numpy(colours[0][number]))
        np.testing.assert_allclose(numpy(interaction.gated[number]), gathered, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(module(rgb, depth), interaction.gated * gate + colours[0])


@pytest.mark.parametrize("literal", [False, True])
@pytest.mark.parametrize("signed", [False, True])
def test_channels_are_fused_step_by_step(signed, literal):
    torch.manual_seed(0)
    module = HOCF(3, 7, 4, signed, literal).double().eval()
    rgb, depth = maps(3, signed=True), maps(7, seed=2, signed=True)
    before = module.rgb(rgb), module.depth(depth)
    r, d = (part.relu() for part in before)
    x, y = (part.mean((2, 3)) for part in (before if signed else (r, d)))
    for number, found in enumerate(module(rgb, depth)):
        outer = np.outer(x[number].detach(), y[number].detach())
        descriptor = torch.from_numpy(np.concatenate([outer.max(0), outer.max(1)]))
        weights = 1 / (1 + (-(module.weigh.weight @ descriptor)).exp())
        torch.testing.assert_close(found, d[number] * weights[:, None, None] + r[number])


def test_the_maxima_of_an_outer_product_need_not_build_it():
    torch.manual_seed(0)
    x, y = torch.randn(50, 6, dtype=torch.float64), torch.randn(50, 9, dtype=torch.float64)
    for first, second in ((x, y), (x.relu(), y.relu()), (x.relu(), -y.relu()), (-x.exp(), y), (-x.exp(), -y.exp())):
        for found, expected in zip(outer_maxima(first, second), outer_maxima_literal(first, second), strict=True):
            torch.testing.assert_close(found, expected, rtol=0, atol=0)
    a1, a2 = outer_maxima(x.relu(), y.relu())
    torch.testing.assert_close((a1, a2), (x.relu().amax(1, keepdim=True) * y.relu(), y.relu().amax(1, keepdim=True) * x.relu()), rtol=0, atol=0)


def test_the_maxima_have_the_gradients_of_the_outer_product():
    torch.manual_seed(0)
    inputs = [torch.randn(3, size, dtype=torch.float64, requires_grad=True) for size in (5, 4)]
    slopes = [torch.autograd.grad(sum(part.sin().sum() for part in maxima(*inputs)), inputs) for maxima in (outer_maxima, outer_maxima_literal)]
    torch.testing.assert_close(*slopes)


@pytest.mark.parametrize("placement", ["SSCC", "CCSS", "SSSS", "CCCC"])
def test_gates_lie_between_zero_and_one_and_the_placement_says_where(placement):
    for letter, module, *channels in zip(placement, build(placement=placement), (3, 4, 5, 6), (7, 6, 5, 4), strict=True):
        assert isinstance(module, HOSF if letter == "S" else HOCF)
        rgb, depth = (maps(size, 6, 5, signed=True) for size in channels)
        fused, gate, gated = module.interact(rgb, depth)
        assert gate.shape == ((2, 1, 6, 5) if letter == "S" else (2, fused.shape[1], 1, 1))
        assert fused.shape == gated.shape
        assert ((gate > 0) & (gate < 1)).all()


@pytest.mark.parametrize("name", NAMES)
def test_every_fusion_passes_gradients_to_both_modalities(name):
    for module, rgb_channels, depth_channels, width in zip(build(name), (3, 4, 5, 6), (7, 6, 5, 4), (4, 4, 6, 8), strict=True):
        rgb, depth = (maps(size, 6, 5, signed=True).requires_grad_() for size in (rgb_channels, depth_channels))
        fused = module(rgb, depth)
        assert fused.shape == (2, width, 6, 5)
        (fused * torch.randn_like(fused)).sum().backward()
        assert all(part.grad.isfinite().all() and part.grad.abs().sum() > 0 for part in (rgb, depth))
        assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in module.parameters())


def test_plain_fusions_are_their_formulas():
    torch.manual_seed(0)
    rgb, depth = maps(3, signed=True), maps(7, seed=2, signed=True)
    concat, matched = ConcatFusion(3, 7, 4).double().eval(), MatchedAddFusion(3, 7, 4, layers=2).double().eval()
    torch.testing.assert_close(concat(rgb, depth), concat.merge(torch.cat([concat.rgb(rgb), concat.depth(depth)], dim=1)))
    torch.testing.assert_close(matched(rgb, depth), matched.extra[1](matched.extra[0](matched.rgb(rgb) + matched.depth(depth))))


def test_counts_of_the_full_size():
    with torch.device("meta"):
        counts = {name: [count(module) for module in build_fusions(RGB, DEPTH, name)] for name in NAMES}
    projections = [(r + d) * c + 6 * c for r, d, c in zip(RGB, DEPTH, (64, 128, 256, 512), strict=True)]
    assert counts["add"] == projections
    assert counts["high_order"] == [a + b for a, b in zip(projections, (18, 18, 2 * 256**2, 2 * 512**2), strict=True)]
    surplus = [matched / ours - 1 for matched, ours in zip(counts["add_matched"], counts["high_order"], strict=True)]
    assert all(0 < part < 0.21 for part in surplus)
    assert 0 < sum(counts["add_matched"]) / sum(counts["high_order"]) - 1 < 0.011


def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match="no fusion 'mean': choose among high_order"):
        build("mean")
    for placement in ("SSC", "SSCX", "sscc", ""):
        with pytest.raises(ValueError, match="a letter S"):
            build(placement=placement)
    for options in ({"order": 1}, {"pool": 0}):
        with pytest.raises(ValueError, match="an order of 2 at least"):
            build(**options)
    with pytest.raises(ValueError, match="a chunk has 1 column at least"):
        relation_readout(maps(), maps(), chunk=-1)
