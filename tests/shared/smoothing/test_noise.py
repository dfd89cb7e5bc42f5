import math

import numpy as np
import pytest
import torch
from scipy import stats

from shared.smoothing import noise
from shared.smoothing.noise import (
    Sampler,
    check_grid,
    float32_above,
    has_stateless,
    philox_words,
    random_words,
    rounded_gaussian_thresholds,
    stream_key,
)

D = 3 * 17 * 19  # no multiple of four


def keys_of(index=0, stage=0, branch=0, count=1, run=12345):
    return torch.full((count,), stream_key(run, index, stage, branch))


def drawn(count, elements=D, first=0, law="gaussian", sigma=1.0, **key):
    sampler = Sampler(law, sigma, elements)
    rows = [sampler.noise(keys_of(**key), torch.tensor([draw])).clone() for draw in range(first, first + count)]
    return torch.cat(rows)


def philox(counter, key):
    """Philox-4x32-10 of Salmon et al. 2011, word by word."""
    (a, b, c, d), (k, m) = counter, key
    for _ in range(10):
        first, second = 0xD2511F53 * a, 0xCD9E8D57 * c
        a, b, c, d = (second >> 32) ^ b ^ k, second % 2**32, (first >> 32) ^ d ^ m, first % 2**32
        k, m = (k + 0x9E3779B9) % 2**32, (m + 0xBB67AE85) % 2**32
    return [a, b, c, d]


def test_words_are_philox():
    assert [f"{word:08x}" for word in philox((0, 0, 0, 0), (0, 0))] == ["6627e8d5", "e169c58d", "bc57ac4c", "9b00dbd8"], "published known answer"
    for key, draw in ((0, 0), (2**63 - 5, 99_999), (-(2**62) - 3, 2**31 - 1)):
        words = [word % 2**32 for word in philox_words(torch.tensor([key]), torch.tensor([draw]), 12)[0].tolist()]
        assert words == [word for block in range(3) for word in philox((block, draw, 0, 0), (key % 2**32, (key >> 32) % 2**32))]


def test_stateless_generator_and_own_words_are_the_same(monkeypatch):
    keys, draws = torch.tensor([stream_key(2**64 - 1, i, 1, 2) for i in range(5)]), torch.tensor([0, 1, 99_999, 2**31 - 1, 7])
    found = random_words(keys, draws, torch.empty(5, 11, dtype=torch.int32)).clone()
    monkeypatch.setattr(noise, "has_stateless", lambda device: False)
    assert torch.equal(random_words(keys, draws, torch.empty(5, 11, dtype=torch.int32)), found)
    assert has_stateless("cpu") == hasattr(torch.func, "_random")


def test_keys_are_all_different():
    keys = {stream_key(run, index, stage, branch) for run in (0, 1, 2**63) for index in range(500) for stage in range(3) for branch in range(4)}
    assert len(keys) == 3 * 500 * 3 * 4
    for wrong in ((2**64, 0, 0, 0), (0, 2**32, 0, 0), (0, 0, 16, 0), (0, 0, 0, -1)):
        with pytest.raises(ValueError, match="64, 32, 4 and 4 bits"):
            stream_key(*wrong)


def test_a_draw_does_not_depend_on_the_batch_it_is_in():
    images = torch.rand(3, 3, 17, 19)
    keys, slots, draws = torch.cat([keys_of(i, count=30) for i in range(3)]), torch.arange(3).repeat_interleave(30), torch.arange(30).repeat(3)
    sampler = Sampler("gaussian", 0.5, D)
    whole = sampler.perturb(images, slots, keys, draws, torch.empty(90, 3, 17, 19))
    order = torch.randperm(90)
    shuffled = sampler.perturb(images, slots[order], keys[order], draws[order], torch.empty(90, 3, 17, 19))
    assert torch.equal(shuffled, whole[order])
    last = torch.empty(1, 3, 17, 19).to(memory_format=torch.channels_last)
    assert torch.equal(sampler.perturb(images, slots[71:72], keys[71:72], draws[71:72], last), whole[71:72])
    torch.testing.assert_close(whole[7], images[0] + 0.5 * drawn(1, first=7).view(3, 17, 19))


@pytest.mark.parametrize("elements", [1, 2, 3, 4, 5, 7, 8, 9, 12, 13])
def test_small_images_get_all_their_noise(elements):
    found = drawn(400, elements)
    assert (found.std(0) - 1).abs().max() < 0.2
    assert np.abs(np.corrcoef(found.T.numpy()) - np.eye(elements)).max() < 0.25


def test_noise_is_normal_to_its_tails():
    sampler, count = Sampler("gaussian", 1.0, 1 << 15), 128
    values = torch.cat([sampler.noise(keys_of(3), torch.tensor([i])).clone() for i in range(count)]).double().flatten()
    assert stats.kstest(values[::16].numpy(), "norm").pvalue > 0.001
    for sigmas in (3, 4, 5):
        expected = 2 * stats.norm.sf(sigmas) * len(values)
        assert abs((values.abs() > sigmas).sum().item() - expected) < 4 * math.sqrt(expected) + 1


def test_the_tail_reaches_beyond_seven():
    words = torch.tensor([[0, 0]], dtype=torch.int32)
    assert noise.box_muller(words, torch.empty(1, 2))[0, 0].item() == pytest.approx(math.sqrt(2 * 40 * math.log(2)), rel=1e-6)
    full = noise.box_muller(torch.tensor([[0x7FFFFFFF, 0xFF]], dtype=torch.int32), torch.empty(1, 2))
    assert full.abs().max() < 1e-3


def test_streams_are_uncorrelated():
    count = 200_000
    sampler = Sampler("gaussian", 1.0, count)

    def one(draw=0, **key):
        return sampler.noise(keys_of(**key), torch.tensor([draw]))[0].double().clone()

    first = one()
    for other in (one(stage=1), one(branch=1), one(index=1), one(draw=1), one(run=12346), first.roll(1), first.roll(count // 2)):
        assert abs((first * other).mean().item()) < 4 / math.sqrt(count)
        assert abs(((first**2 - 1) * (other**2 - 1)).mean().item()) < 8 / math.sqrt(count)


def test_uniform_noise():
    values = drawn(60, law="uniform").flatten()
    assert values.abs().max() <= 1
    assert stats.kstest(values.numpy(), "uniform", args=(-1, 2)).pvalue > 0.001
    found = Sampler("uniform", 0.3, 4).perturb(torch.zeros(1, 4), torch.zeros(50).long(), keys_of(count=50), torch.arange(50), torch.empty(50, 4))
    assert 0.27 < found.abs().max() <= 0.3


def test_grid_noise_is_the_rounded_gaussian():
    sigma = 2 / 255
    values = drawn(40, law="grid", sigma=sigma).flatten().numpy()
    assert (values == np.round(values)).all()
    steps = np.arange(-6, 7)
    expected = np.diff(stats.norm.cdf(np.append(steps - 0.5, 6.5), scale=2)) * len(values)
    found = np.array([(values == step).sum() for step in steps])
    assert stats.chisquare(found, expected * found.sum() / expected.sum()).pvalue > 0.001
    thresholds = rounded_gaussian_thresholds(sigma)
    assert (thresholds.diff() >= 0).all()
    images = torch.randint(0, 256, (2, 3, 8, 8)) / 255
    noised = Sampler("grid", sigma, 192).perturb(images, torch.tensor([0, 1]), keys_of(count=2), torch.arange(2), torch.empty(2, 3, 8, 8))
    assert torch.equal((noised * 255).round() / 255, noised), "the network sees grid values only"
    check_grid(images)
    with pytest.raises(ValueError, match="8 bits"):
        check_grid(images + 0.001)


def test_noise_is_never_weaker_than_radii_are_computed_with():
    for sigma in (0.1, 0.25, 0.35355339, 0.7, 1 / 3):
        used = float32_above(sigma)
        assert sigma <= used <= sigma * (1 + 2**-22)
        assert used == torch.tensor(used, dtype=torch.float32).item()
