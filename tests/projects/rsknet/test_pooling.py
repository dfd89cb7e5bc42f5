import numpy as np
import pytest
import torch

from projects.rsknet.blocks import frame_mask
from projects.rsknet.pooling import MTSP, AttentivePooling, StatisticsPooling, statistics, weighted_statistics
from shared.seeding import generator


def maps(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed, "maps"), dtype=torch.float64)


def reference(frames):
    """Mean and sqrt(var + 1e-7) over time of (D, T), the variance divided by T."""
    return np.concatenate([frames.mean(1), np.sqrt(np.var(frames, axis=1) + 1e-7)])


def assert_rows(found, wanted):
    np.testing.assert_allclose(found.detach().numpy(), np.stack(wanted), rtol=1e-8, atol=1e-8)


def test_statistics_are_mean_and_deviation_over_time():
    frames = 3 + 2 * maps(4, 6, 11)
    assert_rows(statistics(frames), [reference(row) for row in frames.numpy()])
    assert_rows(StatisticsPooling()(frames), [reference(row) for row in frames.numpy()])


def test_masked_statistics_are_those_of_the_frames_alone():
    frames, lengths = 3 + 2 * maps(4, 6, 11), (11, 7, 2, 1)
    found = statistics(frames, frame_mask(torch.tensor(lengths), 11))
    assert_rows(found, [reference(row[:, :length].numpy()) for row, length in zip(frames, lengths, strict=True)])


def test_weighted_statistics_weight_frames():
    frames, weights = maps(2, 3, 7), torch.rand(2, 1, 7, generator=generator(0, "weights"), dtype=torch.float64)
    weights = weights / weights.sum(2, keepdim=True)
    wanted = []
    for row, weight in zip(frames.numpy(), weights[:, 0].numpy(), strict=True):
        mean = np.average(row, axis=1, weights=weight)
        variance = np.average((row - mean[:, None]) ** 2, axis=1, weights=weight)
        wanted.append(np.concatenate([mean, np.sqrt(variance + 1e-7)]))
    assert_rows(weighted_statistics(frames, weights), wanted)


def test_attention_is_a_softmax_over_valid_frames():
    pool, frames, lengths = AttentivePooling(3, 5).double(), maps(3, 3, 7), (7, 4, 1)
    H, b, v = pool.hidden.weight[:, :, 0], pool.hidden.bias, pool.attention.weight[0, :, 0]
    wanted = []
    for row, length in zip(frames, lengths, strict=True):
        scores = [float((torch.tanh(H @ row[:, t] + b) * v).sum().exp().detach()) for t in range(length)]
        weight = torch.tensor(scores, dtype=torch.float64)[None, None] / sum(scores)
        wanted.append(weighted_statistics(row[None, :, :length], weight)[0].detach().numpy())
    assert_rows(pool(frames, frame_mask(torch.tensor(lengths), 7)), wanted)
    assert_rows(pool(frames[:1]), wanted[:1])


@pytest.mark.parametrize("averaged", [False, True])
def test_scales_lie_side_by_side_means_before_deviations(averaged):
    stages, lengths = [maps(2, 2, 5, 9), maps(2, 3, 3, 5, seed=1)], [(9, 4), (5, 2)]
    pooling = MTSP([2, 3], [5, 3], averaged)
    masks = [frame_mask(torch.tensor(each), stage.shape[3]) for each, stage in zip(lengths, stages, strict=True)]
    wanted = []
    for row in range(2):
        parts = [stage[row, ..., : each[row]].numpy() for stage, each in zip(stages, lengths, strict=True)]
        flat = [part.mean(1) if averaged else part.reshape(-1, part.shape[2]) for part in parts]
        wanted.append(np.concatenate([reference(part) for part in flat]))
    found = pooling(stages, masks)
    assert_rows(found, wanted)
    assert found.shape[1] == pooling.size == (10 if averaged else 38)


def test_each_scale_may_have_a_norm_of_its_own():
    pooling, stages = MTSP([2, 3], [5, 3], normalised=True).double(), [maps(4, 2, 5, 9), maps(4, 3, 3, 5, seed=1)]
    plain = MTSP([2, 3], [5, 3])(stages, [None, None])
    wanted = (plain - plain.mean(0)) / (plain.var(0, unbiased=False) + 1e-5).sqrt()
    torch.testing.assert_close(pooling.train()(stages, [None, None]), wanted, rtol=1e-8, atol=1e-8)
    assert [norm.num_features for norm in pooling.norms] == [20, 18]


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_gradients_of_what_does_not_change_are_finite(value):
    frames = torch.full((2, 3, 9), value, requires_grad=True)
    found = statistics(frames)
    assert float(found[:, 3:].detach().max()) == pytest.approx(1e-7**0.5, rel=1e-4)
    found.sum().backward()
    assert bool(frames.grad.isfinite().all())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_float32(dtype):
    frames = torch.full((1, 2, 3000), 50.0, dtype=dtype)  # a sum of 150,000, and squares of 2500, are beyond float16
    frames[..., ::2] += 2
    found = statistics(frames)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, torch.tensor([[51.0, 51.0, 1.0, 1.0]]), rtol=1e-5, atol=1e-5)
