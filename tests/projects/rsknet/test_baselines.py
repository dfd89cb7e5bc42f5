import math

import pytest
import torch
from torch.nn import functional as F

from projects.rsknet.baselines import ECAPATDNN, AttentiveStatistics, Res2Layer, SERes2Block, XVector
from shared.seeding import generator

NETS = {
    "x-vector": lambda: XVector(bins=12, widths=(16, 16, 16, 16, 24), embedding=10),
    "x-vector of one layer": lambda: XVector(bins=12, widths=(16, 16, 16, 16, 24), embedding=10, layers=1),
    "ecapa": lambda: ECAPATDNN(bins=12, channels=16, embedding=10, scale=4, bottleneck=8, gathered=24),
}
"""Small nets of each kind: 12 bins, embeddings of 10."""


def features(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed, "features"))


def trained(net):
    """Give every normalisation statistics, scales and shifts other than 0 and 1, as training would."""
    for number, module in enumerate(net.modules()):
        if isinstance(module, torch.nn.BatchNorm1d):
            values = torch.rand(4, module.num_features, generator=generator(number, "norm")) + 0.5
            module.running_mean.copy_(values[0] - 1)
            module.running_var.copy_(values[1])
            if module.affine:
                module.weight.data, module.bias.data = values[2], values[3] - 1
    return net.eval()


def count(net):
    return sum(parameter.numel() for parameter in net.parameters())


def test_nets_have_as_many_weights_as_the_peers():
    assert count(XVector()) == 4_610_524  # 4.61 M
    assert count(XVector(layers=1)) == 4_610_524 - (512 * 512 + 512)
    assert count(ECAPATDNN()) == 6_190_720  # 6.19 M
    assert count(ECAPATDNN(channels=1024)) == 14_657_088  # 14.65 M, cut after two digits


@pytest.mark.parametrize("kind", NETS)
def test_any_number_of_frames_makes_one_embedding(kind):
    net = trained(NETS[kind]())
    for frames in (1, 7, 40):
        embedding = net(features(1, 12, frames))
        assert embedding.shape == (1, 10)
        assert embedding.isfinite().all()


@pytest.mark.parametrize("kind", NETS)
def test_padded_files_have_the_embeddings_that_they_have_alone(kind):
    net = trained(NETS[kind]())
    lengths = torch.tensor([50, 31, 3, 17])
    batch = features(4, 12, 50)  # what lies beyond the lengths is noise, not zeros
    together = net(batch, lengths)
    for row, length in enumerate(lengths.tolist()):
        torch.testing.assert_close(together[row], net(batch[row : row + 1, :, :length])[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", NETS)
def test_full_lengths_change_nothing(kind):
    net = trained(NETS[kind]())
    batch = features(3, 12, 20)
    torch.testing.assert_close(net(batch, torch.tensor([20, 20, 20])), net(batch), rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", NETS)
def test_gradients_reach_every_weight_also_from_silence(kind):
    net = NETS[kind]().train()
    batch = features(4, 12, 30)
    batch[0] = 0
    net(batch).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in net.parameters())


@pytest.mark.parametrize("kind", NETS)
def test_embeddings_under_autocast_are_near_those_of_full_precision(kind):
    net = trained(NETS[kind]())
    batch, lengths = features(3, 12, 40), torch.tensor([40, 25, 33])
    with torch.autocast("cpu", torch.bfloat16):
        short = net(batch, lengths)
    assert F.cosine_similarity(short.float(), net(batch, lengths)).min() > 0.995


def test_the_last_frame_layer_of_the_x_vector_sees_fifteen_frames():
    net = trained(NETS["x-vector"]())
    batch = features(1, 12, 41).requires_grad_()
    frames = batch
    for layer in net.frames:
        frames = layer(frames)
    frames[0, :, 20].sum().backward()
    assert batch.grad[0].abs().sum(0).nonzero().flatten().tolist() == [*range(13, 28)]


def test_the_x_vector_is_its_layers_written_out():
    net = trained(NETS["x-vector"]())
    batch = features(2, 12, 20)
    frames = batch
    for layer, dilation in zip(net.frames, (1, 2, 3, 1, 1), strict=True):
        weight, reach = layer.conv.weight, dilation * (layer.conv.weight.shape[2] // 2)
        padded = F.pad(frames, (reach, reach))
        taps = [padded[:, :, tap * dilation : tap * dilation + 20] for tap in range(weight.shape[2])]
        frames = sum(torch.einsum("oi,bit->bot", weight[:, :, tap], taps[tap]) for tap in range(len(taps))) + layer.conv.bias[:, None]
        frames = (frames.relu() - layer.norm.running_mean[:, None]) / (layer.norm.running_var[:, None] + 1e-5).sqrt()
    statistics = torch.cat([frames.mean(2), (frames.var(2, correction=0) + 1e-7).sqrt()], 1)  # some channels are silent
    a, _, norm, b = net.segment
    hidden = ((a(statistics).relu() - norm.running_mean) / (norm.running_var + 1e-5).sqrt()) @ b.weight.T + b.bias
    torch.testing.assert_close(net(batch), hidden, rtol=1e-4, atol=1e-5)


def test_attentive_statistics_are_those_of_the_paper_frame_by_frame():
    pool = AttentiveStatistics(6, bottleneck=4).requires_grad_(False)
    frames = features(2, 6, 9)
    W = torch.cat([pool.frame.weight[:, :, 0], pool.context.weight], dim=1)  # (4, 18), on [x_t; mean; deviation]
    for row, x in enumerate(frames):
        context = torch.cat([x.mean(1), x.std(1, correction=0)])
        scores = [pool.score.weight[:, :, 0] @ torch.tanh(W @ torch.cat([x[:, t], context]) + pool.frame.bias) + pool.score.bias for t in range(9)]
        for channel in range(6):
            weights = [math.exp(score[channel]) for score in scores]
            weights = [weight / sum(weights) for weight in weights]
            mean = sum(weight * float(value) for weight, value in zip(weights, x[channel], strict=True))
            square = sum(weight * float(value) ** 2 for weight, value in zip(weights, x[channel], strict=True))
            assert pool(frames)[row, channel].item() == pytest.approx(mean, abs=1e-5)
            assert pool(frames)[row, 6 + channel].item() == pytest.approx(math.sqrt(square - mean**2), abs=1e-5)


def test_res2_passes_each_group_on_to_the_next():
    layer = trained(Res2Layer(12, dilation=2, scale=4)).double()
    x = features(2, 12, 10).double()
    y = [x[:, :3], layer.layers[0](x[:, 3:6])]
    y.append(layer.layers[1](x[:, 6:9] + y[1]))
    y.append(layer.layers[2](x[:, 9:] + y[2]))
    torch.testing.assert_close(layer(x), torch.cat(y, 1))


def test_a_block_adds_its_excited_channels_to_its_input():
    block = trained(SERes2Block(16, dilation=3, bottleneck=5, scale=4)).double()
    x = features(2, 16, 12).double()
    inner = block.leave(block.res2(block.enter(x)))
    first, _, second, _ = block.excite
    gates = 1 / (1 + (-((inner.mean(2) @ first.weight.T + first.bias).clamp(min=0) @ second.weight.T + second.bias)).exp())
    torch.testing.assert_close(block(x), x + inner * gates[:, :, None])


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: XVector(widths=(8, 8)), r"five frame layers, got widths \(8, 8\)"),
        (lambda: XVector(layers=3), "1 or 2 layers after the statistics, got 3"),
        (lambda: ECAPATDNN(channels=20), "multiple of the scale 8, got 20"),
    ],
    ids=["widths", "layers", "scale"],
)
def test_impossible_nets_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
