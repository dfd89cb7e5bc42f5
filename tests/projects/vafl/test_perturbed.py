"""That the noise has the laws that it should, comes in the order of the layers and can be replayed, and that the clip bounds a record's norm."""

import math

import pytest
import torch

from projects.vafl.perturbed import Draws, Noise, clip_rows
from shared.seeding import generator

ZEROS = torch.zeros(200, 100)


def test_the_last_noise_is_normal_with_the_standard_deviation_c():
    drawn = Noise(3, std=0.7).draws().last(ZEROS)
    assert float(drawn.mean()) == pytest.approx(0, abs=4 * 0.7 / math.sqrt(20_000))
    assert float(drawn.std()) == pytest.approx(0.7, rel=0.02)
    assert float((drawn / 0.7).pow(4).mean()) == pytest.approx(3, rel=0.1)


def test_hidden_noise_is_uniform_with_the_standard_deviation_c_l():
    drawn = Noise(3, hidden=(0.2,)).draws().hidden(ZEROS)
    assert float(drawn.mean()) == pytest.approx(0, abs=4 * 0.2 / math.sqrt(20_000))
    assert float(drawn.std()) == pytest.approx(0.2, rel=0.02)
    assert 0.999 < float(drawn.abs().max()) / (math.sqrt(3) * 0.2) <= 1
    assert float((drawn / 0.2).pow(4).mean()) == pytest.approx(9 / 5, rel=0.02)


def test_the_same_noise_gives_the_same_draws_and_another_seed_others():
    first, again, other = (Noise(seed, std=1.0).draws().last(ZEROS) for seed in (5, 5, 6))
    assert torch.equal(first, again)
    assert float((first * other).mean()) == pytest.approx(0, abs=4 / math.sqrt(20_000))


def test_one_generator_serves_the_layers_in_order():
    chance = generator(9, "noise")
    expected = [(torch.rand(4, 3, generator=chance) * 2 - 1) * math.sqrt(3) * std for std in (0.1, 0.01, 0.01)]
    expected.append(torch.randn(4, 2, generator=chance) * 0.5)
    draws = Noise(9, std=0.5, hidden=(0.1, 0.01)).draws()
    found = [draws.hidden(torch.zeros(4, 3)) for _ in range(3)] + [draws.last(torch.zeros(4, 2))]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_layers_are_independent():
    draws = Noise(1, hidden=(1.0,)).draws()
    assert float((draws.hidden(ZEROS) * draws.hidden(ZEROS)).mean()) == pytest.approx(0, abs=4 / math.sqrt(20_000))


def test_without_noise_the_very_tensor_comes_back():
    draws = Noise(2).draws()
    assert draws.hidden(ZEROS) is ZEROS
    assert draws.last(ZEROS) is ZEROS


def test_draws_do_not_depend_on_the_type_of_the_net():
    single, double = (Noise(4, std=1.0).draws().last(ZEROS.to(dtype)) for dtype in (torch.float32, torch.float64))
    assert double.dtype == torch.float64
    assert torch.equal(single.double(), double)


@pytest.mark.parametrize("wrong", [{"std": -1.0}, {"std": math.nan}, {"hidden": (0.1, math.inf)}], ids=["negative", "nan", "infinite"])
def test_impossible_standard_deviations_are_refused(wrong):
    with pytest.raises(ValueError, match="finite numbers that are at least 0"):
        Noise(0, **wrong)


def test_clipped_rows_keep_their_direction_and_get_the_bound_as_their_norm():
    rows = torch.randn(50, 6, generator=generator(0, "rows"), dtype=torch.float64) * torch.logspace(-2, 2, 50, dtype=torch.float64)[:, None]
    clipped = clip_rows(rows, 1.5)
    norms = rows.norm(dim=1)
    torch.testing.assert_close(clipped.norm(dim=1), norms.clamp(max=1.5))
    torch.testing.assert_close(torch.cosine_similarity(rows, clipped), torch.ones(50, dtype=torch.float64))
    assert torch.equal(clipped[norms <= 1.5], rows[norms <= 1.5])


def test_the_norm_of_a_record_is_over_all_of_its_dimensions():
    clipped = clip_rows(torch.full((2, 3, 4), 5.0), 2.0)
    assert clipped.shape == (2, 3, 4)
    torch.testing.assert_close(clipped.flatten(1).norm(dim=1), torch.tensor([2.0, 2.0]))


def test_what_is_not_finite_is_within_the_bound_all_the_same():
    rows = torch.tensor([[math.inf, 1.0], [-math.inf, math.inf], [math.nan, 0.5], [3e38, -3e38], [3.0, 4.0]])
    clipped = clip_rows(rows, 2.0)
    assert bool((clipped.norm(dim=1) <= 2 + 1e-6).all())
    torch.testing.assert_close(clipped[2:], torch.tensor([[0.0, 0.5], [0.0, 0.0], [1.2, 1.6]]))


def test_the_gradient_of_the_clip_at_the_origin_is_that_of_the_identity():
    rows = torch.zeros(1, 3, requires_grad=True)
    clip_rows(rows, 1.0).sum().backward()
    assert torch.equal(rows.grad, torch.ones(1, 3))


def test_two_neighbours_differ_by_at_most_the_bound_and_by_twice_it_where_one_replaces_the_other():
    rows = torch.randn(2000, 4, generator=generator(1, "rows")) * 10
    clipped = clip_rows(rows, 1.0)
    assert float(clipped.norm(dim=1).max()) <= 1 + 1e-6
    assert 1.9 < float(torch.cdist(clipped, clipped).max()) <= 2 + 1e-6


def test_a_drawer_is_good_for_one_forward():
    draws = Draws(Noise(7, std=1.0))
    assert not torch.equal(draws.last(ZEROS), draws.last(ZEROS))
