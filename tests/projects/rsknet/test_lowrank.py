import numpy as np
import pytest
import torch
from torch import nn

from projects.rsknet.lowrank import LowRankLinear, energy, factorise, semi_orthogonal_step
from shared.seeding import generator


def linear(inputs=30, outputs=12, bias=True):
    layer = nn.Linear(inputs, outputs, bias=bias).double()
    with torch.no_grad():
        layer.weight.normal_(generator=generator(0, "weight"))
    return layer


def product(layer):
    return (layer.second.weight @ layer.first.weight).detach().numpy()


def test_a_low_rank_layer_is_the_linear_layer_of_its_product():
    layer = LowRankLinear(30, 12, 4)
    values = torch.randn(2, 5, 30, generator=generator(0, "values"))
    whole = nn.functional.linear(values, layer.second.weight @ layer.first.weight, layer.second.bias)
    torch.testing.assert_close(layer(values), whole, rtol=1e-5, atol=1e-6)
    assert sum(p.numel() for p in layer.parameters()) == 4 * (30 + 12) + 12


@pytest.mark.parametrize("rank", [1, 5, 11])
def test_the_error_of_a_factorised_layer_is_the_tail_of_the_singular_values(rank):
    layer = linear()
    weight, singular = layer.weight.detach().numpy(), np.linalg.svd(layer.weight.detach().numpy(), compute_uv=False)
    error = np.linalg.norm(weight - product(factorise(layer, rank)))
    assert error == pytest.approx(np.sqrt((singular[rank:] ** 2).sum()), rel=1e-12)  # Eckart and Young: no matrix of this rank is nearer
    assert 1 - energy(layer, rank) == pytest.approx((error / np.linalg.norm(weight)) ** 2, rel=1e-9)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("inputs", "outputs"), [(30, 12), (12, 30)])
def test_full_rank_keeps_the_layer_and_splits_it_evenly(inputs, outputs, bias):
    layer = linear(inputs, outputs, bias)
    factorised = factorise(layer, 12)
    values = torch.randn(4, inputs, dtype=torch.float64)
    torch.testing.assert_close(factorised(values), layer(values), rtol=1e-12, atol=1e-12)
    first, second = factorised.first.weight, factorised.second.weight
    torch.testing.assert_close(first @ first.T, second.T @ second, rtol=1e-10, atol=1e-10)  # both are the diagonal of singular values
    assert energy(layer, 12) == pytest.approx(1)
    assert (factorised.second.bias is not None) == bias


@pytest.mark.parametrize("spread", [0.0, 1.0, 2.0])
def test_steps_lead_to_orthogonal_rows_of_one_length(spread):
    weight = torch.randn(16, 40, generator=generator(0, "rows"), dtype=torch.float64)
    weight *= (spread * torch.linspace(-1, 1, 16, dtype=torch.float64)).exp()[:, None]  # rows up to e^4 times as long as others
    right = torch.linalg.svd(weight, full_matrices=False).Vh
    for _ in range(200):
        semi_orthogonal_step(weight)
    P = weight @ weight.T
    torch.testing.assert_close(P, P.trace() / 16 * torch.eye(16, dtype=torch.float64), rtol=0, atol=1e-10 * float(P.trace()))
    torch.testing.assert_close(weight @ right.T @ right, weight)  # the space that the rows span stays


def test_a_step_is_that_of_the_paper_and_at_right_angles_to_the_matrix():
    weight = torch.linalg.qr(torch.randn(20, 6, generator=generator(0, "step"), dtype=torch.float64)).Q.T * 3
    weight = weight + 0.05 * torch.randn(6, 20, generator=generator(1, "step"), dtype=torch.float64)
    M = weight.numpy().copy()
    P = M @ M.T
    scale = np.trace(P @ P.T) / np.trace(P)
    expected = M - 4 / 8 / scale * (P - scale * np.eye(6)) @ M
    semi_orthogonal_step(weight)
    np.testing.assert_allclose(weight.numpy(), expected, rtol=1e-12, atol=1e-13)
    assert abs(((expected - M) * M).sum()) < 1e-12 * (M**2).sum()  # so the floating scale neither grows nor shrinks it to first order


def test_a_step_takes_the_parameter_of_a_layer():
    layer = LowRankLinear(30, 12, 4)
    for _ in range(60):
        semi_orthogonal_step(layer.first.weight)
    P = layer.first.weight @ layer.first.weight.T
    torch.testing.assert_close(P / P[0, 0], torch.eye(4), rtol=0, atol=1e-5)
    assert layer.first.weight.requires_grad


@pytest.mark.parametrize("rank", [0, 13])
def test_ranks_out_of_range_are_named(rank):
    for build in (lambda: LowRankLinear(30, 12, rank), lambda: factorise(linear(), rank), lambda: energy(linear(), rank)):
        with pytest.raises(ValueError, match=f"lies from 1 to 12, got {rank}"):
            build()


def test_a_tall_matrix_cannot_have_orthogonal_rows():
    with pytest.raises(ValueError, match=r"no more rows than columns.*\(5, 4\)"):
        semi_orthogonal_step(torch.ones(5, 4))
