"""What the verb `privacy` works with: releases of simulated trainings, and the rows and plans made of them."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from projects.vafl.accounting import LIMITS, Released, batch_only, draw_privacy, ledger_rows, planned, trained_with, verdict
from projects.vafl.module import VerticalFederation
from projects.vafl.settings import Protection, Protocol
from projects.vafl.simulator import Simulator
from shared.privacy import gaussian_epsilon

CLIPPED = Protection(std=10.0, clip=5.0)


def federation(protection=CLIPPED, uploads="extra:fraction=0.1", **options):
    return VerticalFederation([[5], [4], [6]], 2, protocol=Protocol(uploads=uploads), protection=protection, lr=0.1, **options)


def simulated(uploads, updates, records=60, batch=7):
    module = federation(uploads=uploads)
    chance = torch.Generator().manual_seed(0)
    blocks = [torch.randn(records, shape[0], generator=chance) for shape in ([5], [4], [6])]
    simulator = Simulator(module.model, blocks, torch.arange(records) % 2, module.setting(batch))
    simulator.run(updates=updates)
    counts = torch.stack([client.ledger.releases for client in simulator.clients])
    return module, Released(counts, [client.cycle for client in simulator.clients], batch, [True] * 3, module.protection)


@pytest.mark.parametrize("updates", [1, 40, 173])
def test_batches_alone_are_counted_as_a_training_releases_them(updates):
    _, alone = simulated("batch", updates)
    _, more = simulated("extra:fraction=0.3", updates)
    assert more.queries == alone.queries
    assert batch_only(more, is_filled=True) == int(alone.counts.max())
    assert int(more.counts.max()) >= int(alone.counts.max())


def test_a_row_a_client_and_one_for_whole_subjects():
    _, released = simulated("extra:fraction=0.3", 60)
    rows = ledger_rows(CLIPPED, released)
    assert [row["client"] for row in rows] == [0, 1, 2, "all"]
    each = [math.sqrt(int(own.max())) * 5 / 10 for own in released.counts]
    assert [row["mu"] for row in rows[:-1]] == pytest.approx(each)
    together = math.sqrt(int(released.counts.sum(0).max())) * 5 / 10
    assert rows[-1]["mu"] == pytest.approx(together)
    assert max(each) < together <= math.hypot(*each) + 1e-12
    assert rows[-1]["epsilon"] == pytest.approx(gaussian_epsilon(together, 1e-5))
    pairs = zip(released.counts.double().mean(1).tolist(), released.queries, strict=True)
    assert rows[-1]["mu_theorem_6"] == pytest.approx(math.hypot(*(releases / math.sqrt(queries) * 5 / 10 for releases, queries in pairs)))
    assert all(row["mu_theorem_6"] < row["mu"] < row["mu_with_weights"] for row in rows)
    assert rows[0]["epsilon"] <= rows[0]["epsilon_prv"] <= rows[0]["epsilon"] + 0.05
    assert len({tuple(row) for row in rows}) == 1


@pytest.mark.parametrize(
    ("protection", "said"),
    [
        (Protection(std=1.0), "no promise: protection.clip is null"),
        (Protection(clip=5.0), "no promise: protection.std is 0"),
        (CLIPPED, "theorem 6 (needs secret sampling) would claim mu"),
        (Protection(std=10.0, clip=5.0, epsilon=4.0), "the budget of epsilon 4 allows 3 releases"),
    ],
    ids=["clip", "noise", "promise", "budget"],
)
def test_the_verdict_is_in_plain_words(protection, said):
    _, released = simulated("batch", 20)
    rows = ledger_rows(protection, released)
    assert said in verdict(protection, rows)
    assert draw_privacy(rows, released.counts, 1e-5).axes[1].get_legend() is None or protection.clip


def test_the_nets_that_were_trained_decide_the_sensitivity_and_their_noise_the_figures():
    _, released = simulated("batch", 20)
    biased = replace(released, maps_zero_to_zero=[True, False, True])
    assert [row["sensitivity"] for row in ledger_rows(CLIPPED, biased)] == [5.0, 10.0, 5.0, 10.0]
    own = trained_with(released, Protection(std=99.0, clip=1.0, delta=1e-6, adjacency="replace"))
    assert own == Protection(std=10.0, clip=5.0, delta=1e-6, adjacency="replace")


def test_a_plan_meets_its_target_and_batches_alone_take_less_noise():
    module, released = simulated("extra:fraction=0.3", 60)
    plan = planned(module, released, 4.0, None)
    most = int(released.counts.max())
    assert plan["releases"] == most
    assert gaussian_epsilon(math.sqrt(most) * 5 / plan["std_needed"], 1e-5) == pytest.approx(4.0, rel=1e-6)
    fewer = plan["releases_batch_only"]
    assert fewer == batch_only(released, True) < most
    assert plan["std_needed_batch_only"] == pytest.approx(plan["std_needed"] * math.sqrt(fewer / most))
    longer = planned(module, released, 4.0, 10 * most)
    assert (longer["releases"], longer["releases_batch_only"]) == (10 * most, 10 * fewer)


def test_a_plan_without_a_training_has_no_comparison():
    plan = planned(federation(), None, None, 25)
    assert (plan["mu"], plan["sensitivity"]) == (2.5, 5.0)
    assert not {"epsilon", "std_needed", "releases_batch_only"} & plan.keys()
    biased = planned(federation(hidden=[4], head="concat"), None, None, 25)
    assert (biased["mu"], biased["sensitivity"]) == (5.0, 10.0)


def test_what_is_left_out_is_said():
    for part in ("labels leak", "Test records", "at several clients compose", "mu_with_weights"):
        assert part in LIMITS
