import numpy as np
import pytest
import scipy.stats
import torch
from torch.nn import functional as F

from projects.moe_ffd.routing import Router, load_probabilities, squared_variation


def router(kind="reference", experts=4, k=1, width=6, scale=1.0):
    torch.manual_seed(0)
    made = Router(width, experts, kind, k).double()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=scale)
    return made


@pytest.mark.parametrize("k", [1, 2, 3])
def test_load_against_the_definition(k):
    torch.manual_seed(0)
    clean, noise = torch.randn(2, 20, 5, dtype=torch.float64)
    sigma = torch.rand(20, 5, dtype=torch.float64) + 0.1
    noisy = clean + sigma * noise
    expected = np.zeros((20, 5))
    for row in range(20):
        for expert in range(5):
            others = np.delete(noisy[row].numpy(), expert)
            psi = np.sort(others)[::-1][k - 1]
            expected[row, expert] = scipy.stats.norm.cdf((clean[row, expert].item() - psi) / sigma[row, expert].item())
    np.testing.assert_allclose(load_probabilities(clean, noisy, sigma, k).numpy(), expected, rtol=1e-10, atol=1e-15)


def test_squared_variation():
    values = torch.rand(7, dtype=torch.float64)
    expected = np.var(values.numpy(), ddof=1) / (np.mean(values.numpy()) ** 2 + 1e-10)
    assert squared_variation(values).item() == pytest.approx(expected, rel=1e-12)
    assert squared_variation(values[:1]).item() == 0


@pytest.mark.parametrize("k", [1, 2])
def test_training_against_the_formulas(k):
    gate, rows, noise = router(k=k), torch.randn(30, 6, dtype=torch.float64), torch.randn(30, 4, dtype=torch.float64)
    routing = gate(rows, noise)
    clean = rows @ gate.w_gate
    sigma = F.softplus(rows @ gate.w_noise) + 1e-2
    logits = clean + noise * sigma
    values, chosen = logits.topk(k, dim=1)
    assert torch.equal(routing.experts, chosen)
    gates = torch.zeros_like(logits).scatter(1, chosen, values.softmax(1))
    torch.testing.assert_close(routing.dense(4), gates)
    balance = squared_variation(gates.sum(0)) + squared_variation(load_probabilities(clean, logits, sigma, k).sum(0))
    torch.testing.assert_close(routing.balance, balance)


def test_evaluation_is_without_noise_and_without_balance():
    gate, rows = router().eval(), torch.randn(50, 6, dtype=torch.float64)
    routing = gate(rows)
    assert torch.equal(routing.experts[:, 0], (rows @ gate.w_gate).argmax(1))
    assert routing.balance == 0
    assert torch.equal(gate(rows[7:9]).experts, routing.experts[7:9])


def test_ties_go_to_the_lowest_number():
    gate = Router(6, 7).eval()  # gates of zero, as at the start
    assert gate(torch.randn(100, 6)).experts.unique().tolist() == [0]
    assert Router(6, 7, k=3).eval()(torch.randn(5, 6)).experts.tolist() == [[0, 1, 2]] * 5


def test_weights_of_each_router():
    rows = torch.randn(9, 6, dtype=torch.float64)
    reference, weighted, soft = (router(kind).eval() for kind in ("reference", "weighted", "soft"))
    probabilities = (rows @ reference.w_gate).softmax(1)
    assert reference(rows).weights is None
    torch.testing.assert_close(weighted(rows).weights[:, 0], probabilities.max(1).values)
    torch.testing.assert_close(soft(rows).dense(4), probabilities)
    torch.testing.assert_close(Router(6, 4, "uniform")(rows).dense(4), torch.full((9, 4), 0.25, dtype=torch.float64))
    assert torch.equal(Router(6, 4, "fixed:2")(rows).dense(4).argmax(1), torch.full((9,), 2))
    assert list(Router(6, 4, "fixed:2").parameters()) == list(Router(6, 4, "uniform").parameters()) == list(Router(6, 1).parameters()) == []


def test_what_reaches_the_gate():
    for kind, k, reaches in (("reference", 1, False), ("reference", 2, True), ("weighted", 1, True), ("soft", 1, True)):
        gate = router(kind, k=k)
        routing = gate(torch.randn(40, 6, dtype=torch.float64))
        output = (routing.dense(4) * torch.arange(4)).square().sum()  # any task whose loss sees the experts' weights
        assert output.requires_grad == reaches
        by_balance = torch.autograd.grad(routing.balance, list(gate.parameters()), retain_graph=True)
        assert all(gradient.abs().max() > 0 for gradient in by_balance)


def test_balanced_routing_costs_less():
    rows, noise = torch.randn(4000, 6, dtype=torch.float64), torch.randn(4000, 4, dtype=torch.float64)
    even, uneven = router(scale=0.0), router(scale=0.0)
    rows[:, 0] = 1
    with torch.no_grad():
        uneven.w_gate[0, 0] = 3
    assert even(rows, noise).balance < 0.05 < 1 < uneven(rows, noise).balance


def test_gate_computes_in_float32_under_autocast():
    gate = router().float().eval()
    rows = torch.randn(64, 6)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(gate(rows).experts, gate(rows).experts)
        assert gate.train()(rows.bfloat16()).balance.dtype == torch.float32
    torch.testing.assert_close(gate.eval()(rows).experts[:, 0], (rows @ gate.w_gate).argmax(1))


def test_unknown_routers_are_named():
    with pytest.raises(ValueError, match="choose reference, weighted, soft, uniform, or fixed:E"):
        Router(4, 3, "random")
    with pytest.raises(ValueError, match="experts 0 to 2"):
        Router(4, 3, "fixed:3")
    with pytest.raises(ValueError, match="number of experts, 3, not 4"):
        Router(4, 3, k=4)
