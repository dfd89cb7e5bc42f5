import copy

import pytest
import torch
from torch.nn import functional as F

from projects.moe_ffd.convolutions import KINDS, difference_conv2d
from projects.moe_ffd.experts import AdapterMixture, LoraMixture

ROUTERS = [("reference", 1), ("reference", 2), ("weighted", 1), ("weighted", 2), ("soft", 1), ("uniform", 1), ("fixed:1", 1)]


def lora(router="reference", k=1, ranks=(1, 2, 5), **options):
    torch.manual_seed(0)
    return randomised(LoraMixture(8, 24, ranks, router, k, **options))


def adapter(router="reference", k=1, **options):
    torch.manual_seed(0)
    return randomised(AdapterMixture(8, router=router, k=k, **({"bottleneck": 3, "grid": (3, 4)} | options)))


def randomised(mixture):
    for parameter in mixture.parameters():
        torch.nn.init.normal_(parameter)
    return mixture.double()


def lora_by_loop(mixture, tokens):
    """Every expert on every token, times its gate: the definition."""
    rows = tokens.flatten(0, 1)
    gates, result, start = mixture.routing.dense(len(mixture.ranks)), 0, 0
    for number, rank in enumerate(mixture.ranks):
        a, b = mixture.down[start : start + rank], mixture.up[start : start + rank].T
        result = result + gates[:, number, None] * (rows @ a.T @ b.T)
        start += rank
    return result.view(*tokens.shape[:2], -1)


def adapter_by_loop(mixture, tokens, self_index=0):
    """Every expert on every image, its prefix tokens one by one as images of a single pixel."""
    gates, result = mixture.routing.dense(len(mixture.kinds)), 0
    for number, kind in enumerate(mixture.kinds):
        conv = mixture.conv_weight[number], mixture.conv_bias[number], kind, self_index
        down = F.linear(tokens, mixture.down_weight[number], mixture.down_bias[number])
        patches = down[:, mixture.prefix :].transpose(1, 2).unflatten(2, mixture.grid)
        parts = [difference_conv2d(down[:, i, :, None, None], *conv).flatten(2) for i in range(mixture.prefix)]
        hidden = torch.cat([*parts, difference_conv2d(patches, *conv).flatten(2)], dim=2).transpose(1, 2)
        result = result + gates[:, number, None, None] * F.linear(hidden, mixture.up_weight[number], mixture.up_bias[number])
    return result


@pytest.mark.parametrize("is_training", [False, True])
@pytest.mark.parametrize(("router", "k"), ROUTERS)
def test_lora_mixture_is_its_definition(router, k, is_training):
    mixture, tokens = lora(router, k).train(is_training), torch.randn(3, 13, 8, dtype=torch.float64, requires_grad=True)
    base = torch.randn(3, 13, 24, dtype=torch.float64)
    found = mixture(tokens, base.clone())
    check(mixture, tokens, found, base + lora_by_loop(mixture, tokens))


@pytest.mark.parametrize("is_training", [False, True])
@pytest.mark.parametrize(("router", "k"), ROUTERS)
def test_adapter_mixture_is_its_definition(router, k, is_training):
    mixture, tokens = adapter(router, k).train(is_training), torch.randn(7, 13, 8, dtype=torch.float64, requires_grad=True)
    base = torch.randn(7, 13, 8, dtype=torch.float64)
    found = mixture(tokens, base.clone())
    check(mixture, tokens, found, base + adapter_by_loop(mixture, tokens))


def check(mixture, tokens, found, expected):
    """Equal values and gradients."""
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    inputs = [tokens, *mixture.parameters()]
    weights = torch.randn_like(found)
    ours = torch.autograd.grad((found * weights).sum(), inputs, allow_unused=True, retain_graph=True)
    theirs = torch.autograd.grad((expected * weights).sum(), inputs, allow_unused=True)
    for one, other in zip(ours, theirs, strict=True):
        if one is None or other is None:
            assert all(gradient is None or gradient.abs().max() == 0 for gradient in (one, other))
        else:
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("router", "k"), ROUTERS[:4])
def test_the_way_of_the_gpu_gives_the_same(router, k):
    mixture, tokens = lora(router, k).eval(), torch.randn(3, 13, 8, dtype=torch.float64)
    base = torch.randn(3, 13, 24, dtype=torch.float64)
    expected = mixture(tokens, base.clone())
    masked = mixture._masked(tokens.flatten(0, 1), base.clone().flatten(0, 1), mixture.routing)
    torch.testing.assert_close(masked.view_as(base), expected)


def test_combination_equals_the_reference_for_moderate_values():
    mixture, tokens = lora().eval(), torch.randn(2, 9, 8, dtype=torch.float64) / 4
    output = mixture(tokens, torch.zeros(2, 9, 24, dtype=torch.float64))
    stitched = torch.zeros_like(output).flatten(0, 1).index_add(0, torch.arange(18), output.flatten(0, 1).exp())
    torch.testing.assert_close(stitched.log().view_as(output), output, rtol=1e-9, atol=1e-12)
    large = lora().float().eval()(1e3 * tokens.float(), torch.zeros(2, 9, 24))
    assert large.isfinite().all()  # where log(exp(y)) would overflow
    assert large.abs().max() > 88.7


@pytest.mark.parametrize(("prefix", "grid"), [(0, (2, 2)), (1, (1, 5)), (2, (4, 3)), (5, (7, 7))])
def test_any_grid_and_prefix(prefix, grid):
    for options in ({}, {"kinds": ("cv", "ad")}, {"kinds": ("scd",), "self_index": 4}):
        mixture = adapter(prefix=prefix, grid=grid, **options)
        tokens = torch.randn(4, prefix + grid[0] * grid[1], 8, dtype=torch.float64)
        found = mixture(tokens, torch.zeros_like(tokens))
        torch.testing.assert_close(found, adapter_by_loop(mixture, tokens, options.get("self_index", 0)), rtol=1e-10, atol=1e-10)
    with pytest.raises(ValueError, match="set `grid`"):
        mixture(tokens[:, 1:], tokens[:, 1:].clone())


def test_start_is_the_base_alone():
    tokens = torch.randn(2, 197, 16)
    assert torch.equal(LoraMixture(16, 48)(tokens, torch.ones(2, 197, 48)), torch.ones(2, 197, 48))
    assert torch.equal(AdapterMixture(16)(tokens, torch.ones(2, 197, 16)), torch.ones(2, 197, 16))


def test_initial_distributions():
    torch.manual_seed(0)
    mixture, adapters = LoraMixture(768, 2304), AdapterMixture(768)
    bound = 768**-0.5
    assert mixture.down.abs().max().item() == pytest.approx(bound, rel=1e-3)
    assert adapters.down_weight.abs().max().item() == pytest.approx((6 / (768 + 8)) ** 0.5, rel=1e-2)
    assert adapters.conv_bias.abs().max().item() <= 72**-0.5
    assert torch.equal(adapters.conv_weight[3, :, :, 1, 1], torch.eye(8))
    assert adapters.conv_weight.abs().sum() == 5 * 8


def test_images_do_not_depend_on_their_batch():
    mixture, tokens = adapter().eval(), torch.randn(6, 13, 8, dtype=torch.float64)
    together = mixture(tokens, torch.zeros_like(tokens))
    alone = torch.cat([mixture(tokens[i : i + 1], torch.zeros(1, 13, 8, dtype=torch.float64)) for i in range(6)])
    torch.testing.assert_close(together, alone)


def test_kernels_are_kept_until_the_weights_change():
    mixture = adapter().eval()
    with torch.no_grad():
        kept = mixture.kernels()
        assert mixture.kernels() is kept
        mixture.conv_weight.mul_(2)
        torch.testing.assert_close(mixture.kernels(), 2 * kept)
        mixture.load_state_dict(adapter().state_dict())
        torch.testing.assert_close(mixture.kernels(), kept)
        mixture.conv_weight.data.mul_(3)
        mixture.train().eval()
        torch.testing.assert_close(mixture.kernels(), 3 * kept)
        mixture.float()
        assert mixture.kernels().dtype == torch.float32
    assert mixture.kernels().requires_grad
    with torch.inference_mode():
        mixture.eval().kernels()
    tokens = torch.randn(2, 13, 8, requires_grad=True)
    mixture(tokens, torch.zeros(2, 13, 8)).sum().backward()


def test_copies_start_without_a_batch():
    mixture = adapter()
    mixture(torch.randn(2, 13, 8, dtype=torch.float64), torch.zeros(2, 13, 8, dtype=torch.float64))
    assert mixture.routing is not None
    assert copy.deepcopy(mixture).routing is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_dtypes_and_autocast(dtype):
    for mixture, outputs in ((lora().to(dtype), 24), (adapter().to(dtype), 8)):
        assert mixture(torch.randn(2, 13, 8, dtype=dtype), torch.zeros(2, 13, outputs, dtype=dtype)).dtype == dtype
    with torch.autocast("cpu", torch.bfloat16):
        for mixture, outputs in ((lora("weighted").float(), 24), (adapter("weighted").float(), 8)):
            found = mixture(torch.randn(2, 13, 8), torch.zeros(2, 13, outputs, dtype=torch.bfloat16))
            assert found.dtype == torch.bfloat16
            found.float().sum().backward()


def test_experts_without_rows_get_a_gradient_of_zero():
    mixture = lora("fixed:1")
    mixture(torch.randn(2, 5, 8, dtype=torch.float64), torch.zeros(2, 5, 24, dtype=torch.float64)).sum().backward()
    assert mixture.down.grad[0].abs().max() == 0 < mixture.down.grad[1].abs().max()


def test_options_are_checked():
    with pytest.raises(ValueError, match="must be positive"):
        LoraMixture(8, 24, (4, 0))
    with pytest.raises(ValueError, match="no convolution"):
        AdapterMixture(8, kinds=("cv", "xx"))
    assert AdapterMixture(8).kinds == list(KINDS)
