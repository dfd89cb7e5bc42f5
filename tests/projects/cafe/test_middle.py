import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from projects.cafe import closed
from projects.cafe.middle import (
    MiddleDescent,
    RecordAdam,
    batch_gradients,
    descend,
    factorise,
    recover_middle,
    solve_inputs,
    solve_outputs,
)


def drawn_schedule(records, batch, rounds, seed=0):
    draw = torch.Generator().manual_seed(seed)
    schedule = torch.zeros(rounds, records, dtype=torch.bool)
    for row in schedule:
        row[torch.randperm(records, generator=draw)[:batch]] = True
    return schedule


def drawn_middle(records, d1, d2, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return (torch.rand(records, d1, generator=draw, dtype=torch.float64), torch.randn(records, d2, generator=draw, dtype=torch.float64))


def small_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def relative(found, truth):
    return float((found - truth).norm() / truth.norm())


def solve(inputs, outputs, schedule):
    bias, weight = batch_gradients(inputs, outputs, schedule)
    first = solve_outputs(bias, schedule)
    return first, solve_inputs(weight, schedule, first)


def test_a_batch_gradient_is_the_sum_over_members_of_v_and_of_h_times_v():
    net, x, y = small_net(), torch.randn(8, 6, dtype=torch.float64), torch.arange(8) % 3
    schedule = torch.tensor([[1, 1, 0, 0, 0, 0, 0, 0], [1, 0, 1, 0, 1, 1, 0, 1], [0, 0, 0, 1, 0, 1, 1, 0]], dtype=torch.bool)
    h = net[:2](x).detach()
    u = net[2](h).detach().requires_grad_()
    (v,) = torch.autograd.grad(F.cross_entropy(net[3:](u), y, reduction="sum"), u)
    bias, weight = batch_gradients(h, v, schedule)
    for t, row in enumerate(schedule):
        wanted = torch.autograd.grad(F.cross_entropy(net(x[row]), y[row], reduction="sum"), [net[2].bias, net[2].weight])
        torch.testing.assert_close((bias[t], weight[t]), wanted)


def test_closed_form_equals_the_brute_force_least_squares_of_all_unknowns():
    schedule, (h, v) = drawn_schedule(6, 3, 9), drawn_middle(6, 3, 4)
    bias, weight = batch_gradients(h, v, schedule)
    draw = torch.Generator().manual_seed(5)
    weight = weight + 1e-3 * torch.randn(weight.shape, generator=draw, dtype=weight.dtype)  # not consistent: the least squares must agree
    design = torch.stack([torch.kron((row.double()[:, None] * v).T.contiguous(), torch.eye(3, dtype=torch.float64)) for row in schedule]).flatten(
        0, 1
    )
    brute = torch.linalg.lstsq(design, weight.flatten()[:, None]).solution.view(6, 3)
    found = solve_inputs(weight, schedule, solve_outputs(bias, schedule))
    torch.testing.assert_close(found.complete(), brute, atol=1e-7, rtol=1e-7)


@pytest.mark.parametrize(("records", "batch", "rounds", "d2"), [(30, 6, 40, 40), (60, 15, 60, 8)])
def test_closed_form_is_exact_also_where_records_outnumber_the_outputs(records, batch, rounds, d2):
    schedule, (h, v) = drawn_schedule(records, batch, rounds), drawn_middle(records, 20, d2)
    first, second = solve(h, v, schedule)
    assert first.rank == second.rank == records
    assert relative(first.complete(), v) < 1e-10
    assert relative(second.complete(), h) < 1e-6
    assert not second.reasons


def test_step_one_agrees_with_numpy():
    schedule, (_, v) = drawn_schedule(12, 4, 20), drawn_middle(12, 1, 3)
    bias = schedule.double() @ v + 0.1 * torch.randn(20, 3, dtype=torch.float64)
    found = solve_outputs(bias, schedule)
    matrix = schedule.double().numpy()
    values, squares, rank, _ = np.linalg.lstsq(matrix, bias.numpy(), rcond=None)
    torch.testing.assert_close(found.values, torch.from_numpy(values))
    assert found.rank == rank
    assert found.condition == pytest.approx(np.linalg.cond(matrix))
    share = squares.sum() / bias.square().sum() * 20 / 8  # of all rounds, per degree of freedom
    assert found.residual.square().mean() == pytest.approx(float(share), rel=0.3)


def test_columns_of_unit_length_make_the_condition_of_step_two():
    schedule, (h, v) = drawn_schedule(10, 4, 20), drawn_middle(10, 2, 6)
    v = v * torch.logspace(0, -4, 10, dtype=torch.float64)[:, None]  # records of small loss
    _, second = solve(h, v, schedule)
    weights, unit = schedule.double() / schedule.double().norm(dim=0), v / v.norm(dim=1, keepdim=True)
    assert second.condition == pytest.approx(np.linalg.cond(((weights.T @ weights) * (unit @ unit.T)).numpy()), rel=1e-6)
    torch.testing.assert_close(second.complete(), h, rtol=1e-7, atol=1e-7)


def test_fewer_rounds_than_records_are_refused_with_the_rank():
    schedule, (h, v) = drawn_schedule(20, 5, 12), drawn_middle(20, 4, 4)
    bias, weight = batch_gradients(h, v, schedule)
    with pytest.raises(ValueError, match=r"20 of 20 records .* \(rank 12\).*12 rounds of rank 12 .* record at least 8 more"):
        recover_middle([bias], [weight], schedule)
    (middle,) = recover_middle([bias], [weight], schedule, partial=True)
    assert middle.inputs.isnan().all()
    assert middle.reports[0].condition == float("inf")


def test_whole_batches_tell_no_record_apart():
    first, second = solve(*drawn_middle(4, 3, 3), torch.ones(6, 4, dtype=torch.bool))
    assert first.rank == 1
    assert not second.recoverable.any()


def test_records_that_are_never_apart_or_never_drawn_leave_the_others_exact():
    schedule, (h, v) = drawn_schedule(20, 6, 60), drawn_middle(20, 7, 5)
    schedule[:, 3] = schedule[:, 8]
    schedule[:, 11] = False
    v[5] = 0
    first, second = solve(h, v, schedule)
    assert (~first.recoverable).nonzero().flatten().tolist() == [3, 8, 11]
    assert (~second.recoverable).nonzero().flatten().tolist() == [3, 5, 8, 11]
    kept = second.recoverable
    assert relative(second.values[kept], h[kept]) < 1e-6
    assert second.values[~kept].isnan().all()
    assert second.reasons[11] == "it is in no recorded round"
    assert "do not tell it from" in second.reasons[8]
    assert "v_n is zero" in second.reasons[5]
    with pytest.raises(ValueError, match="4 of 20 records are not recoverable"):
        second.complete()


def test_a_model_that_moves_is_reported_as_stale_and_solved_all_the_same():
    schedule, (h, v) = drawn_schedule(20, 5, 40), drawn_middle(20, 4, 4)
    drift = torch.linspace(1, 1.5, 40, dtype=torch.float64)[:, None]
    bias, weight = batch_gradients(h, v, schedule)
    first = solve_outputs(bias * drift, schedule)
    second = solve_inputs(weight * drift[:, :, None], schedule, first)
    assert second.recoverable.all()
    assert len(second.reasons) == 20
    assert all(reason.startswith("stale") for reason in second.reasons.values())
    assert solve_outputs(bias, schedule).residual.max() < 1e-10
    assert solve_outputs(bias[:20], schedule[:20]).residual.isnan().all() == (factorise(schedule[:20]).rank == 20)


def test_the_chunks_and_the_storage_of_the_rounds_change_nothing(monkeypatch):
    schedule, (h, v) = drawn_schedule(15, 4, 22), drawn_middle(15, 6, 5)
    bias, weight = batch_gradients(h, v, schedule)
    first = solve_outputs(bias, schedule)
    whole = solve_inputs(weight, schedule, first).values
    monkeypatch.setattr(closed, "CHUNK_BYTES", 8 * 6 * 9 * 3)
    torch.testing.assert_close(solve_inputs([round_.float() for round_ in weight], schedule, first).values, whole, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(solve_inputs(weight, schedule, first).values, whole)


def test_float32_gradients_of_a_tabular_net_give_the_table():
    torch.manual_seed(1)
    table, labels, schedule = torch.randn(60, 6), torch.arange(60) % 3, drawn_schedule(60, 12, 80)
    net = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))
    found = [torch.autograd.grad(F.cross_entropy(net(table[row]), labels[row]), [net[0].bias, net[0].weight]) for row in schedule]
    (middle,) = recover_middle([torch.stack([b for b, _ in found])], [[w for _, w in found]], schedule)
    assert (middle.inputs - table).square().mean().sqrt() < 1e-4


def test_what_cannot_be_solved_is_named():
    schedule, (h, v) = drawn_schedule(6, 3, 8), drawn_middle(6, 2, 2)
    bias, weight = batch_gradients(h, v, schedule)
    first = solve_outputs(bias, schedule)
    with pytest.raises(ValueError, match="7 bias gradients for a schedule of 8 rounds"):
        solve_outputs(bias[:7], schedule)
    with pytest.raises(ValueError, match="7 weight gradients for a schedule of 8 rounds"):
        solve_inputs(weight[:7], schedule, first)
    with pytest.raises(ValueError, match="bias gradient of round 2 is not finite"):
        solve_outputs(bias.index_fill(0, torch.tensor(2), torch.nan), schedule)
    with pytest.raises(ValueError, match="weight gradient of rounds 0 to 7 is not finite"):
        solve_inputs(weight.index_fill(0, torch.tensor(2), torch.inf), schedule, first)
    with pytest.raises(ValueError, match="a round without members"):
        factorise(schedule & False)
    with pytest.raises(ValueError, match="unknown solver 'newton': choose one of closed_form"):
        recover_middle([bias], [weight], schedule, solver="newton")
    with pytest.raises(ValueError, match="8 bias and 8 weight gradients for 7 rounds"):
        descend(bias, weight, schedule[:7])


def test_record_adam_is_an_adam_of_its_own_for_every_record():
    values = torch.randn(5, 3, dtype=torch.float64)
    own = [nn.Parameter(row.clone()) for row in values]
    peers = [torch.optim.Adam([row], lr=0.1, eps=1e-7) for row in own]
    adam = RecordAdam(values.shape, 0.1, dtype=torch.float64)
    for members in drawn_schedule(5, 2, 12):
        gradient = torch.randn(2, 3, dtype=torch.float64)
        chosen = members.nonzero().flatten()
        adam.step(values, chosen, gradient)
        for n, part in zip(chosen.tolist(), gradient, strict=True):
            own[n].grad = part
            peers[n].step()
    torch.testing.assert_close(values, torch.stack([row.detach() for row in own]))


def test_reference_adam_corrects_twice_by_the_number_of_the_round():
    values, gradient = torch.zeros(2, 1, dtype=torch.float64), torch.tensor([[3.0]], dtype=torch.float64)
    adam = RecordAdam(values.shape, 0.1, reference=True, dtype=torch.float64)
    expected, first, second = [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]
    for t, n in enumerate([0, 0, 1, 0], start=1):
        adam.step(values, torch.tensor([n]), gradient)
        first[n], second[n] = 0.9 * first[n] + 0.1 * 3, 0.999 * second[n] + 0.001 * 9
        rate = 0.1 * (1 - 0.999**t) ** 0.5 / (1 - 0.9**t)
        expected[n] -= rate * (first[n] / (1 - 0.9**t)) / ((second[n] / (1 - 0.999**t)) ** 0.5 + 1e-7)
    assert values.flatten().tolist() == pytest.approx(expected)


def test_the_steps_follow_the_gradients_of_f1_and_f2():
    h, v = drawn_middle(7, 4, 3)
    members = torch.tensor([1, 4, 6])
    descent = MiddleDescent(7, (4, 3), lr_outputs=0.1, lr_inputs=0.2, dtype=torch.float64)
    V, H = descent.outputs.clone().requires_grad_(), descent.inputs.clone().requires_grad_()
    loss = (V[members].sum(dim=0) - v[members].sum(dim=0)).square().sum()
    (gradient,) = torch.autograd.grad(loss, V)
    torch.testing.assert_close(descent.step_outputs(members, v[members].sum(dim=0)), loss.detach())
    torch.testing.assert_close(descent.outputs, V.detach() - 0.1 * gradient)
    target = v[members].T @ h[members]
    loss = (descent.outputs[members].T @ H[members] - target).square().sum()
    optimiser = torch.optim.Adam([H], lr=0.2, eps=1e-7)
    loss.backward()
    optimiser.step()  # rows outside of the batch have no gradient and stay
    torch.testing.assert_close(descent.step_inputs(members, target), loss.detach())
    torch.testing.assert_close(descent.inputs, H.detach())


@pytest.mark.parametrize("solver", ["sgd_adam_nested", "sgd_adam_single"])
def test_descent_comes_to_the_closed_form(solver):
    schedule, (h, v) = drawn_schedule(8, 2, 24), drawn_middle(8, 5, 6)
    bias, weight = batch_gradients(h, v, schedule)
    (exact,) = recover_middle([bias], [weight], schedule)
    (found,) = recover_middle([bias], [weight], schedule, solver=solver, rounds=1500, lr_outputs=0.25, reference=False)
    assert found.reports is None
    assert relative(found.outputs, exact.outputs) < 1e-6
    assert relative(found.inputs, exact.inputs) < 1e-2


def test_descent_repeats_itself_and_refuses_a_step_that_diverges():
    schedule, (h, v) = drawn_schedule(8, 2, 10), drawn_middle(8, 3, 3)
    bias, weight = batch_gradients(h, v, schedule)
    one, two, other = (descend(bias, weight, schedule, rounds=20, seed=seed).inputs for seed in (0, 0, 1))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    with pytest.raises(ValueError, match=r"lr_outputs 0\.5 diverges for 2 members"):
        descend(bias, weight, schedule, rounds=1, lr_outputs=0.5)


def test_step_one_contracts_as_derived():
    records, batch, lr, draws = 10, 3, 0.1, 1500
    target = torch.randn(records, 50, dtype=torch.float64)
    before, after = 0.0, torch.zeros_like(target)
    for row in drawn_schedule(records, batch, draws):
        descent = MiddleDescent(records, (1, 50), lr_outputs=lr, dtype=torch.float64)
        before = descent.outputs - target
        members = row.nonzero().flatten()
        descent.step_outputs(members, target[members].sum(dim=0))
        after += (descent.outputs - target) / draws
    deviation, expected = after - after.mean(dim=0), before - before.mean(dim=0)  # of the mean over draws of the next error
    factor = float((deviation * expected).sum() / expected.square().sum())
    assert factor == pytest.approx(1 - 2 * lr * batch * (records - batch) / (records * (records - 1)), abs=5e-3)
