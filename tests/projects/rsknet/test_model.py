from itertools import pairwise

import pytest
import torch

from projects.rsknet.blocks import convolution
from projects.rsknet.model import NETS, RSKNet, build_net, parameters
from shared.seeding import generator

BINS = 24
TINY = [name for name in NETS if name.startswith("tiny")]
VARIANTS = {
    "attentive": {"attentive": True, "normalised": True},
    "averaged": {"averaged": True, "scales": (2, 3)},
    "excited": {"block": "excited"},
    "fixed": {"block": "fixed"},
    "three branches": {"dilations": ((1, 1), (1, 2), (2, 3))},
}


def drawn(net, seed=0):
    """Give a network statistics and norms that no initialisation has, in evaluation mode."""
    rng = generator(seed, "weights")
    with torch.no_grad():
        for part in net.modules():
            if isinstance(part, torch.nn.modules.batchnorm._BatchNorm):
                noise = 0.3 * torch.randn(4, part.num_features, generator=rng)
                part.running_mean.copy_(noise[0])
                part.running_var.copy_(noise[1].exp())
                if part.affine:
                    part.weight.copy_(noise[2].exp())
                    part.bias.copy_(noise[3])
    return net.eval()


def features(count, frames, bins=BINS):
    return torch.randn(count, bins, frames, generator=generator(0, "features"))


def built(name, bins=BINS, **options):
    torch.manual_seed(0)
    return build_net(name, bins, options)


def counted(name, bins, **options):
    """Count the parameters of a network of full size without making them."""
    with torch.device("meta"):
        return parameters(build_net(name, bins, options))


SHEET = {
    "resnet34": {40: 5.98, 64: 6.37, 80: 6.63},
    "rsknet_mtsp": {40: 10.96, 64: 12.54, 80: 13.59},
    "rsknet_mtsp, rank 128": {40: 9.69, 64: 10.47, 80: 11.00},
    "rsknet_mtsp_l": {40: 2.55, 64: 3.33, 80: 3.86},
    "rsknet_mtsp_l, rank 64": {80: 2.53},
}


@pytest.mark.parametrize("line", SHEET)
def test_parameters_are_those_of_the_published_table(line):
    name, _, rank = line.partition(", rank ")
    options = {"rank": int(rank)} if rank else {}
    for bins, millions in SHEET[line].items():
        assert round(counted(name, bins, **options) / 1e6, 2) == millions


def by_hand(bins, block, layers=(3, 4, 6, 3), widths=(32, 64, 128, 256), embedding=256):
    """Add up weights and norms, block by block."""
    total, bands, size = 9 * widths[0] + 2 * widths[0], bins, 0
    for number, (count, (before, width)) in enumerate(zip(layers, pairwise((widths[0], *widths)), strict=True)):
        bands = bands if number == 0 else (bands + 1) // 2
        for inputs in [before] + [width] * (count - 1):
            total += 9 * inputs * width + 2 * width  # the first convolution
            total += 9 * width * width + 2 * width  # the second, or the near branch
            if block == "rsk":
                total += 9 * width * width + 2 * width + 2 * width  # the far branch, and the norm behind both
                total += 3 * 32 * width + 2 * 32  # the gate: none of these widths is squeezed below 32
            total += inputs * width + 2 * width if inputs != width else 0
        size = size * (block == "rsk") + 2 * width * bands  # all stages, or the last
    return total + size * embedding + embedding


@pytest.mark.parametrize("bins", [40, 80, 81])
def test_parameters_are_exactly_those_of_the_layers(bins):
    assert counted("resnet34", bins) == by_hand(bins, "basic")
    assert counted("rsknet_mtsp", bins) == by_hand(bins, "rsk")
    assert counted("rsknet18_mtsp", bins) == by_hand(bins, "rsk", (2, 2, 2, 2))


def test_multiple_time_scales_have_the_published_sizes():
    with torch.device("meta"):
        net = build_net("rsknet_mtsp", 80)
        sizes, seen = [], torch.empty(1, 80, 201, device="meta")
        for stage in net.stages:
            stage[-1].register_forward_hook(lambda block, given, found: sizes.append(tuple(found.shape[1:])))
        assert net.eval().statistics(seen).shape == (1, 20_480)
        assert build_net("rsknet_mtsp", 80, {"averaged": True}).pooling.size == 960
        assert build_net("resnet34", 80).pooling.size == 5120
    assert sizes == [(32, 80, 201), (64, 40, 101), (128, 20, 51), (256, 10, 26)]


@torch.no_grad()
@pytest.mark.parametrize("case", [*TINY, *VARIANTS])
def test_a_padded_batch_is_embedded_as_each_file_alone(case):
    net = drawn(built(case) if case in TINY else built("tiny_rsknet_mtsp", **VARIANTS[case]))
    lengths = (61, 60, 59, 33, 18, 17)
    batch = features(len(lengths), 61)
    found = net(batch, torch.tensor(lengths))
    alone = torch.cat([net(batch[row : row + 1, :, :length]) for row, length in enumerate(lengths)])
    assert bool(alone.isfinite().all())
    assert float(alone.std(0).mean()) > 1e-3
    torch.testing.assert_close(found, alone, rtol=1e-5, atol=1e-5 * float(alone.abs().max()))
    torch.testing.assert_close(net(batch, torch.full((6,), 61)), net(batch), rtol=1e-5, atol=1e-5 * float(alone.abs().max()))


@torch.no_grad()
@pytest.mark.parametrize("separable", [False, True])
def test_a_network_is_stem_stages_pooling_and_a_linear_map(separable):
    net, x = drawn(built("tiny_rsknet_mtsp", separable=separable)), features(2, 21)
    assert len(net.stem) == 2  # never separable
    frames, pooled = net.stem(x[:, None]).relu(), []
    for stage in net.stages:
        for block in stage:
            frames = block(frames)
        flat = frames.flatten(1, 2)
        pooled += [flat.mean(2), (flat.var(2, correction=0) + 1e-7).sqrt()]
    wanted = torch.cat(pooled, 1) @ net.embed.weight.T + net.embed.bias
    torch.testing.assert_close(net(x), wanted, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("frames", [1, 2, 3, 5])
@pytest.mark.parametrize("name", ["tiny_rsknet_mtsp", "tiny_rsknet_mtsp_l", "tiny_resnet"])
def test_the_shortest_files_are_embedded(name, frames):
    net, x = drawn(built(name)), features(2, frames)
    assert net(x[:1]).shape == (1, 64)
    padded = torch.cat([x, torch.zeros(2, BINS, 7)], 2)
    torch.testing.assert_close(net(padded, torch.full((2,), frames)), net(x), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("name", TINY)
def test_gradients_are_finite_in_silence(name):
    net = built(name).train()
    net(torch.zeros(2, BINS, 30)).square().sum().backward()
    assert all(bool(parameter.grad.isfinite().all()) for parameter in net.parameters() if parameter.grad is not None)
    assert any(parameter.grad is not None for parameter in net.parameters())


@pytest.mark.parametrize("lengths", [None, torch.tensor([40, 21])])
def test_under_bfloat16_statistics_stay_float32(lengths):
    net = drawn(built("tiny_rsknet_mtsp_l"))
    plain = net.statistics(features(2, 40), lengths)
    with torch.autocast("cpu", torch.bfloat16):
        found = net.statistics(features(2, 40), lengths)
    assert found.dtype == torch.float32
    assert float((found - plain).norm() / plain.norm()) < 0.03


def test_kernels_begin_as_he_et_al_with_fan_out():
    torch.manual_seed(0)
    net = RSKNet(BINS, layers=(1,), widths=(64,))
    weight = net.stages[0][0].first[0].weight
    assert float(weight.detach().std()) == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.02)
    norms = [part for part in net.modules() if isinstance(part, torch.nn.BatchNorm2d)]
    assert all(bool((norm.weight == 1).all() and (norm.bias == 0).all()) for norm in norms)
    assert convolution(1, 2)[0].bias is None


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet", {}, "no network 'resnet': choose among rsknet_mtsp"),
        ("rsknet_mtsp", {"blocks": "rsk"}, "does not take these options"),
        ("xvector", {"rank": 4}, "does not take these options"),
        ("tiny_resnet", {"block": "plain"}, "no block 'plain': choose among rsk, fixed"),
        ("tiny_resnet", {"scales": [4]}, "stages from 1 to 3"),
        ("tiny_rsknet_mtsp", {"scales": []}, "stages from 1 to 3"),
        ("tiny_rsknet_mtsp", {"scales": [1, 1]}, "each once"),
        ("tiny_rsknet_mtsp", {"layers": [1, 1]}, "one positive number a stage"),
        ("tiny_rsknet_mtsp", {"widths": [4, 0, 4]}, "one positive number a stage"),
        ("tiny_rsknet_mtsp", {"dilations": [[1, 1], [1]]}, "pair of positive steps"),
        ("tiny_rsknet_mtsp", {"rank": 65}, "rank"),
    ],
)
def test_wrong_options_are_named(name, options, message):
    with pytest.raises(ValueError, match=message):
        build_net(name, BINS, options)
