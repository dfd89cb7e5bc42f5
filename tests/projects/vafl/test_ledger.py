from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from projects.vafl.bottoms import LinearBottom, MlpBottom, SeriesBottom, ViewBottom
from projects.vafl.federation import Setting
from projects.vafl.ledger import Ledger, mu_of, noise_for, releases_within, sensitivity, statement, subject_mu, theorem6_mu, weights_mu
from projects.vafl.settings import Protection
from shared.privacy import gaussian_delta, gaussian_epsilon


def test_the_ledger_counts_what_a_loop_counts():
    chance, ledger, counted = np.random.default_rng(0), Ledger(40), [0] * 40
    for _ in range(30):
        rows = torch.from_numpy(chance.permutation(40)[: chance.integers(1, 40)])
        ledger.add(rows)
        for row in rows.tolist():
            counted[row] += 1
    assert ledger.releases.tolist() == counted
    assert ledger.most == max(counted)
    assert ledger.mean == pytest.approx(sum(counted) / 40)


def test_a_repeated_record_is_counted_each_time():
    ledger = Ledger(3)
    ledger.add(torch.tensor([1, 1, 2]))
    assert ledger.releases.tolist() == [0, 2, 1]


def test_uploads_under_a_budget_stop_at_it():
    ledger, chance = Ledger(20), np.random.default_rng(1)
    for _ in range(100):
        rows = torch.from_numpy(chance.permutation(20)[:7])
        ledger.add(rows[ledger.allowed(rows, most=3)])
    assert ledger.releases.tolist() == [3] * 20
    assert not ledger.allowed(torch.arange(20), 3).any()
    assert ledger.allowed(torch.arange(20), 4).all()


def test_a_ledger_goes_on_from_its_counts():
    first, second = Ledger(5), Ledger(5)
    first.add(torch.tensor([0, 3]))
    second.load(first.releases.clone())
    second.add(torch.tensor([3]))
    assert second.releases.tolist() == [1, 0, 0, 2, 0]
    assert first.releases.tolist() == [1, 0, 0, 1, 0]


@pytest.mark.parametrize(
    "counts",
    [torch.zeros(4, dtype=torch.int64), torch.zeros(5), torch.tensor([0, 0, -1, 0, 0])],
    ids=["length", "type", "sign"],
)
def test_counts_of_other_data_are_refused(counts):
    with pytest.raises(ValueError, match="needs 5 int64 counts of 0 or more"):
        Ledger(5).load(counts)


def test_releases_compose_as_one_likelihood_ratio():
    """The log likelihood ratio of E noisy releases has standard deviation mu, by its definition."""
    chance, bound, std, releases = np.random.default_rng(2), 5.0, 12.0, 135
    noise = std * chance.standard_normal((20000, releases))
    ratio = ((noise - bound) ** 2 - noise**2).sum(1) / (2 * std**2)
    assert ratio.std() == pytest.approx(mu_of(releases, bound, std), rel=0.02)


def test_figures_of_the_paper():
    found = [mu_of(135, sensitivity(5.0, "zero_out", True), std) for std in (0.1, 1.0, 3.0, 10.0)]
    assert found == pytest.approx([581, 58, 19, 5.8], rel=0.02)
    assert [mu_of(80, sensitivity(1.0, "zero_out", True), 0.1)] == pytest.approx([90], rel=0.01)


def test_replacing_a_record_moves_it_twice_as_far_as_zeroing_it_where_zero_stays_zero():
    assert sensitivity(3.0, "zero_out", maps_zero_to_zero=True) == 3
    assert sensitivity(3.0, "zero_out", maps_zero_to_zero=False) == sensitivity(3.0) == 6
    assert sensitivity(3.0, "replace", True) == sensitivity(3.0, "replace") == 6
    points = torch.randn(500, 4, generator=torch.Generator().manual_seed(0))
    clipped = points * (3 / points.norm(dim=1, keepdim=True)).clamp(max=1)
    assert clipped.norm(dim=1).max() <= 3 + 1e-5
    assert 5 < torch.cdist(clipped, clipped).max() <= 6 + 1e-5


NETS = {
    "linear": (lambda: LinearBottom(6, 4, seed=0, clip=2.0), (6,)),
    "mlp": (lambda: MlpBottom(6, [5], 4, seed=0, clip=2.0), (6,)),
    "views": (lambda: ViewBottom(2, 1, 4, [3, 3], 4, seed=0, clip=2.0), (2, 1, 4, 4)),
    "series": (lambda: SeriesBottom(3, 4, seed=0, clip=0.1), (5, 3)),
}


@pytest.mark.parametrize("name", list(NETS))
def test_no_zeroed_record_is_farther_away_than_the_nets_sensitivity(name):
    build, shape = NETS[name]
    net, chance = build(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(0, 3, generator=chance)  # far from where a training begins
        moved = (net(20 * torch.randn(200, *shape, generator=chance)) - net(torch.zeros(1, *shape))).norm(dim=1).max()
    bound = sensitivity(net.clip, "zero_out", net.maps_zero_to_zero)
    assert net.maps_zero_to_zero == (name == "linear")
    assert moved <= bound + 1e-5
    assert name != "mlp" or moved > net.clip  # the smaller bound does not hold with biases


def test_a_budget_is_a_quarter_as_long_for_a_net_with_biases():
    setting = Setting(protection=Protection(std=50.0, clip=2.0, epsilon=4.0))
    linear, biased = setting.budget(NETS["linear"][0]()), setting.budget(NETS["mlp"][0]())
    assert linear == releases_within(4.0, 1e-5, 2.0, 50.0)
    assert biased == linear // 4 > 10


def test_parts_of_a_subject_at_several_clients_compose():
    releases = torch.tensor([[9, 1, 0], [1, 4, 0]])
    assert subject_mu(releases, [2.0, 3.0], [10.0, 10.0]) == pytest.approx(math.sqrt(max(9 * 4 + 9, 4 + 4 * 9) / 100))
    assert subject_mu(releases, [2.0, math.inf], [10.0, 10.0]) == math.inf
    assert subject_mu(torch.zeros(2, 3, dtype=torch.int64), [math.inf, 1.0], [0.0, 0.0]) == 0


def test_what_weights_tell_is_bounded_by_the_likelihood_ratio_of_a_training():
    """One linear client in the worst case: after an upload of record 0 alone its weights turn other records around within the clip."""
    releases, clip, std = torch.tensor([1, 3, 2]), 2.0, 5.0
    shift = torch.tensor([clip, *[2 * clip] * 5])  # of each upload: the record's own, then five of the others
    assert weights_mu(releases, clip, clip, std) == pytest.approx(float(shift.norm()) / std)
    assert weights_mu(releases, clip, clip, std) > mu_of(3, clip, std)
    assert weights_mu(releases, math.inf, None, std) == math.inf
    assert weights_mu(torch.zeros(3, dtype=torch.int64), math.inf, None, 0.0) == 0


def test_nothing_is_promised_without_noise_or_without_clip_and_nothing_lost_without_release():
    assert mu_of(1, sensitivity(5.0), 0.0) == math.inf
    assert mu_of(1, sensitivity(None), 10.0) == math.inf
    assert mu_of(0, sensitivity(None), 0.0) == 0
    assert releases_within(1.0, 1e-5, math.inf, 10.0) == releases_within(1.0, 1e-5, 5.0, 0.0) == 0


@pytest.mark.parametrize("epsilon", [0.5, 8.0])
@pytest.mark.parametrize("releases", [1, 29, 10_000])
def test_calibrated_noise_meets_its_target_and_allows_exactly_the_planned_releases(epsilon, releases):
    std = noise_for(epsilon, 1e-5, releases, 5.0)
    assert gaussian_epsilon(mu_of(releases, 5.0, std), 1e-5) == pytest.approx(epsilon, rel=1e-6)
    assert releases_within(epsilon, 1e-5, 5.0, std) == releases


def test_the_last_release_of_a_budget_keeps_it_and_one_more_breaks_it():
    for epsilon in (0.3, 1.0, 4.0, 20.0):
        for std in (3.0, 17.0, 110.0):
            most = releases_within(epsilon, 1e-5, 5.0, std)
            assert gaussian_delta(mu_of(most, 5.0, std), epsilon) <= 1e-5 < gaussian_delta(mu_of(most + 1, 5.0, std), epsilon)


def test_theorem_6_is_short_by_the_root_of_the_share_of_a_batch():
    batch, records, queries = 14, 1400, 5000
    honest = mu_of(queries * batch // records, 5.0, 3.0)
    assert theorem6_mu(batch, records, queries, 5.0, 3.0) == pytest.approx(0.1 * honest)


def test_the_rows_of_an_upload_are_all_that_went_along():
    ledger = Ledger(10)
    assert ledger.rows_of_upload(0) == 0.0
    ledger.add(torch.arange(10))
    assert ledger.rows_of_upload(0) == ledger.rows_of_upload(1) == 10.0
    for cycle in range(5):
        ledger.add(torch.arange(cycle, cycle + 4))
    assert ledger.rows_of_upload(5) == 30 / 5
    assert statement(ledger, 5.0, 3.0, ledger.rows_of_upload(5), 5, prv=False)["mu_theorem_6"] == pytest.approx(0.6 * math.sqrt(5) * 10 / 3)
    assert theorem6_mu(0, 10, 0, 5.0, 0.0) == 0.0


def test_a_statement_says_both_figures_of_a_client():
    ledger = Ledger(1400)
    for _ in range(50):
        ledger.add(torch.arange(700))
    row = statement(ledger, clip=5.0, std=25 * math.sqrt(2), batch=14, queries=5000, maps_zero_to_zero=True)
    assert (row["releases_max"], row["releases_mean"], row["sensitivity"], row["adjacency"]) == (50, 25.0, 5.0, "zero_out")
    assert row["mu"] == pytest.approx(1.0)
    assert (row["epsilon"], row["epsilon_prv"]) == pytest.approx((4.377, 4.387), abs=1e-3)
    assert row["mu_theorem_6"] == pytest.approx(0.1)
    assert row["epsilon_theorem_6"] == pytest.approx(gaussian_epsilon(0.1, 1e-5))
    assert row["mu_with_weights"] == pytest.approx(math.sqrt(700 * 50) * 10 / (25 * math.sqrt(2)))
    quick = statement(ledger, clip=5.0, std=25 * math.sqrt(2), batch=14, queries=5000, maps_zero_to_zero=True, prv=False)
    assert quick == row | {"epsilon_prv": None}
    assert statement(ledger, None, 1.0, 14, 5000)["epsilon"] == math.inf


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Ledger(0), "at least one record"),
        (lambda: sensitivity(0.0), "clip must be positive"),
        (lambda: sensitivity(1.0, "add"), "choose one of zero_out, replace"),
        (lambda: mu_of(1, 0.0, 1.0), "sensitivity positive"),
        (lambda: noise_for(1.0, 1e-5, 10, math.inf), "set clip"),
        (lambda: noise_for(1.0, 1e-5, 0, 1.0), "at least one release"),
        (lambda: theorem6_mu(20, 10, 1, 1.0, 1.0), "0 to 10 records"),
    ],
    ids=["records", "clip", "adjacency", "sensitivity", "no clip", "no release", "batch"],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
