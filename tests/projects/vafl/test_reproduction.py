"""The tables of `reproduce`: that runs and choices are what they say, that rows compare like with like, and that what is expected can fail."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from projects.vafl.figures import draw_curves, draw_trade_off
from projects.vafl.ledger import mu_of
from projects.vafl.reproduction import TABLES, control, crash, deep, methods, privacy, processes, real, stragglers
from projects.vafl.reproduction.setting import (
    DEVELOPMENT,
    QUICK,
    Case,
    Curve,
    World,
    best_lr,
    built,
    drawn,
    figures_of,
    judged,
    play,
    points_of,
    with_speed_up,
)
from projects.vafl.settings import Delays, Protection, Protocol
from shared.jobs import kept
from shared.results import summarise
from shared.runs import write_json
from shared.seeding import generator

SHORT = Case(Protocol(uploads="batch"), world=replace(QUICK, seconds=2.0), grid=(0.01, 1.0))


def curve(quality, **other):
    """Return a curve with an evaluation a second."""
    costs = {"noisy": 0.9, "updates": 7, "mean_age": 1.5, "oldest": 9, "releases": 4, "megabytes": 2.0, "cycles": 5}
    return Curve([float(place) for place in range(len(quality))], quality, **costs | other)


# ---- a run


def test_a_run_is_judged_as_its_nets_judge_and_replays_exactly():
    first, second = play(SHORT, 1.0, 0), play(SHORT, 1.0, 0)
    assert first == second
    assert first.seconds == [0.0, 1.0, 2.0]
    module, data = built(SHORT, 1.0, 0)
    right = module.model([block.float() for block in data.test.blocks]).argmax(1) == data.test.labels
    assert first.quality[0] == pytest.approx(right.double().mean().item())
    assert first.quality[-1] > first.quality[0]
    assert first.noisy == first.quality[-1]


def test_methods_of_a_seed_meet_the_same_delays_and_begin_with_the_same_nets():
    sync = play(replace(SHORT, protocol=Protocol("sync", uploads="batch")), 1.0, 0)
    asynchronous = play(SHORT, 1.0, 0)
    assert sync.quality[0] == asynchronous.quality[0]
    assert sync.updates < asynchronous.updates
    assert sync.mean_age == 0 < asynchronous.mean_age


def test_quality_is_the_area_under_the_curve_of_ranked_records_where_asked():
    module, data = built(Case(world=World("breast_cancer", 8, {"head": "concat"})), 1.0, 0)
    blocks, labels = [block.float() for block in data.test.blocks], data.test.labels
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator(0, "weights")) / 10)
        logits = module.model(blocks)
    scores = (logits[:, 1] - logits[:, 0]).double()
    above = (scores[labels == 1][:, None] > scores[labels == 0]).double().mean()
    assert judged(module, blocks, labels, "auroc") == pytest.approx(above.item(), abs=1e-6)
    for parameter in module.parameters():
        torch.nn.init.constant_(parameter, math.nan)
    assert judged(module, blocks, labels, "auroc") == judged(module, blocks, labels, "accuracy") == 0.0


def test_noise_lowers_what_noisy_embeddings_are_worth():
    noisy = play(replace(SHORT, protection=Protection(std=30.0)), 0.01, 0)
    assert noisy.noisy < 0.3
    assert noisy.noisy != noisy.quality[-1]


# ---- the step size


def test_of_the_soonest_step_sizes_on_the_development_seeds_the_one_that_ends_best_is_taken(tmp_path):
    target = 0.3
    case = replace(SHORT, world=replace(SHORT.world, targets=(target,)))
    assert best_lr(tmp_path, case) == 1.0
    times = {lr: np.mean([play(case, lr, seed).until(target) for seed in DEVELOPMENT]) for lr in case.grid}
    files = {kept(file, lambda: None).value["lr"]: file for file in tmp_path.iterdir()}
    assert {lr: kept(file, lambda: None).value["seconds"] for lr, file in files.items()} == pytest.approx(times)
    for lr, seconds, final in ((0.01, 1.09, 0.9), (1.0, 1.0, 0.8)):  # nearly as soon, and better in the end
        write_json(files[lr], {"value": {"lr": lr, "seconds": seconds, "final": final}, "seconds": 0.0})
    assert best_lr(tmp_path, case) == 0.01
    write_json(files[0.01], {"value": {"lr": 0.01, "seconds": 1.11, "final": 0.9}, "seconds": 0.0})
    assert best_lr(tmp_path, case) == 1.0
    assert replace(case, delays=Delays(scale=2.0)).key != case.key == copy.deepcopy(case).key == replace(case, grid=(1.0,)).key


def test_without_a_target_the_best_final_quality_decides_and_a_grid_of_one_is_no_choice(tmp_path):
    case = replace(SHORT, world=replace(SHORT.world, targets=()))
    assert best_lr(tmp_path, replace(case, grid=(3.0,))) == 3.0
    assert not list(tmp_path.iterdir())
    chosen = best_lr(tmp_path, case)
    finals = {lr: np.mean([play(case, lr, seed).final for seed in DEVELOPMENT]) for lr in case.grid}
    assert chosen == max(finals, key=finals.get)


# ---- rows


def test_what_is_never_reached_counts_as_the_end_and_says_so():
    row = figures_of(curve([0.1, 0.5, 0.95, 0.9]), 2.0, (0.9, 0.99))
    assert (row["s to 0.90"], row["s to 0.99"], row["reached"]) == (2.0, 3.0, 1.0)
    assert figures_of(curve([0.1, 0.2]), 2.0, (0.9, 0.99))["reached"] == 0.0
    assert curve([0.0, *[0.5] * 10]).final == 0.5


def test_a_curve_comes_back_from_its_columns_and_a_mean_over_seeds():
    ramps = [np.linspace(0, end, 201).tolist() for end in (0.8, 1.0)]
    [row] = summarise([{"method": "a", "seed": seed} | points_of(curve(ramp)) for seed, ramp in enumerate(ramps)], by=("method",))
    seconds, mean, spread = drawn(row)
    assert seconds == np.linspace(0, 200, 41).tolist()
    assert mean == pytest.approx(np.linspace(0, 0.9, 41))
    assert spread == pytest.approx(np.linspace(0, 0.1, 41) * math.sqrt(2))


def test_methods_are_compared_with_sync_of_the_same_seed_and_the_same_clients():
    rows = [
        {"clients": clients, "method": method, "seed": seed, "s to 0.90": seconds, "final": 1.0}
        for clients, method, seed, seconds in (("a", "sync", 0, 40.0), ("a", "async", 0, 20.0), ("a", "sync", 1, 90.0), ("a", "async", 1, 30.0))
    ] + [{"clients": "b", "method": "async", "seed": 0, "s to 0.90": 10.0, "final": 1.0}]
    compared = with_speed_up(rows, "sync", "method", 0.9, ("clients",))
    assert [row["times sooner than sync"] for row in compared] == [1.0, 2.0, 1.0, 3.0, None]


def test_mu_of_a_line_is_that_of_its_most_released_record(tmp_path):
    case = replace(privacy.case_of("batch only", 5.0, 10.0), grid=(0.1,), world=replace(QUICK, seconds=2.0))
    [row] = privacy.rows("batch only", 5.0, 10.0, case, tmp_path, 0)
    assert row["mu"] == pytest.approx(0.5 * math.sqrt(row["releases"])) == mu_of(int(row["releases"]), 5.0, 10.0)
    free = replace(case, protection=Protection())
    [row] = privacy.rows("batch only", None, 0.0, free, tmp_path, 0)
    assert row["mu"] is None


def test_ways_to_upload_are_compared_at_the_same_mu():
    better = [(200.0, 0.9, 0.0), (2.0, 0.7, 0.0)]
    middle = 20.0  # halfway in the logarithm, where the line is at 0.8
    assert privacy.is_ahead(better, [(middle, 0.804, 0.0), (privacy.MEANING + 1, 1.0, 0.0), (1.0, 1.0, 0.0)])
    assert not privacy.is_ahead(better, [(middle, 0.806, 0.0)])
    assert not privacy.is_ahead(better, [])


def test_what_a_crash_costs_is_told_against_the_unbroken_run_of_the_seed():
    common = {"method": "sync", "seed": 0}
    rows = [common | {"crash": crash.BROKEN, "final": 0.9}, common | {"crash": crash.UNBROKEN, "final": 0.92}]
    assert [row["against unbroken"] for row in crash.tabulate(rows)] == pytest.approx([0.0, -0.02])


# ---- the tables


GOOD = {
    "methods": {
        methods.CENTRALISED: {"final": 0.965},
        "sync": {"s to 0.90": 50, "final": 0.93},
        "async, batch only": {"s to 0.90": 60, "final": 0.93},
        "t-sync, extra 10 %": {"s to 0.90": 30},
    },
    "stragglers": {
        ("last client 5 times slower", "async, extra 10 %"): {stragglers.GAP: 5},
    },
    "processes": {"sync": {"s to 0.90": 50, "final": 0.93}, "async, batch only": {"s to 0.90": 60, "final": 0.93}},
    "crash": {},
    "privacy": {
        ("extra 10 %", "2", "0"): {"accuracy": 0.9},
        ("extra 10 %", "none", "0.1"): {"accuracy": 0.94},
        **{("batch only", "5", f"{std:g}"): {"mu": 20 / std, "accuracy": 0.95 - 0.01 * std} for std in privacy.STDS},
        **{("extra 10 %", "5", f"{std:g}"): {"mu": 60 / std, "accuracy": 0.95 - 0.04 * std} for std in privacy.STDS},
        **{("all", "5", f"{std:g}"): {"mu": 200 / std, "accuracy": 0.95 - 0.16 * std} for std in privacy.STDS},
        **{("batch only, D = 200", "5", f"{std:g}"): {"mu": 25 / std, "accuracy": 0.95 - 0.01 * std} for std in privacy.STDS},
        **{(uploads, "5", "30"): {"mu": 0.8, "accuracy": 0.65} for uploads in ("batch only", "batch only, D = 200")},
    },
    "control": {
        "batch only": {"s to 0.90": 60, "mean age": 800},
        "extra 1 %": {"mean age": 400},
        "extra 3 %": {"mean age": 200},
        "extra 10 %": {"mean age": 70},
        "extra 30 %": {"mean age": 30},
        "all": {"s to 0.90": 15, "mean age": 7},
        "oldest, bytes of extra 10 %": {"mean age": 60},
        "batch only, D = 200": {"MB up": 4, "releases": 30},
        "slow messages, batch only, D = 200": {"s to 0.90": 60},
        "extra 10 %, 16 bits": {"MB up": 6},
        "narrow line, batch only": {"s to 0.90": 60},
        "narrow line, all": {"s to 0.90": 90},
    },
    "deep": {(world, "sync"): {"seconds to it": 50, "final": 0.94} for world in deep.WORLDS},
}
USUAL = {"s to 0.90": 20, "seconds to it": 20, "final": 0.95, "mean age": 70, "oldest": 195, "MB up": 10, "releases": 100, stragglers.GAP: 2}
USUAL |= {"against unbroken": -0.002, crash.GAP: 0.1, "updates while away": 300, "lost": 1, "mu": None, "accuracy": 0.95}
LINES = {
    "methods": list(methods.LINES),
    "stragglers": list(stragglers.lines(False)),
    "processes": list(processes.NAMES),
    "crash": [(name, what) for name in crash.NAMES for what in (crash.UNBROKEN, crash.BROKEN)],
    "privacy": [(uploads, "none" if clip is None else f"{clip:g}", f"{std:g}") for uploads, clip, std in privacy.SETTINGS],
    "control": list(control.LINES),
    "deep": list(deep.lines()),
}


def means(name):
    """Return means of all lines of a table, as they should be."""
    rows, by = [], TABLES[name].by if name != "deep" else ("world", "method")
    for line in LINES[name]:
        names = dict(zip(by, line if isinstance(line, tuple) else (line,), strict=True))
        rows.append(names | {"seed": 0} | USUAL | GOOD[name].get(line, {}))
    return summarise(rows, by=by)


@pytest.mark.parametrize("name", list(TABLES))
def test_what_is_expected_holds_where_it_should_and_fails_where_not(name):
    expectations, good = TABLES[name].expectations, means(name)
    assert all(expectations(good).values()), expectations(good)
    can_fail = set()
    for place, row in enumerate(good):
        for column in (name for name, value in row.items() if isinstance(value, dict)):
            for value in (1e-3, 0.9, 1e3):
                bad = copy.deepcopy(good)
                bad[place][column]["mean"] = value
                can_fail |= {claim for claim, holds in expectations(bad).items() if not holds}
    assert can_fail == set(expectations(good))


@pytest.mark.parametrize("name", list(TABLES))
@pytest.mark.parametrize("is_quick", [True, False], ids=["quick", "full"])
def test_jobs_have_names_of_their_own(name, is_quick, tmp_path):
    names = [str(job) for job in TABLES[name].jobs(tmp_path, [0, 1], is_quick)]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("name", [name for name in TABLES if name not in ("processes", "crash", "deep")])
def test_quick_jobs_make_rows_of_one_shape(name, tmp_path):
    table = TABLES[name]
    jobs = [replace(job, arguments=_shorter(job.arguments)) for job in table.jobs(tmp_path, [0], True)]
    rows = table.tabulate([row for job in jobs for row in job.make(*job.arguments, job.seed)])
    summary = summarise(rows, by=table.by)
    assert len(summary) == len(jobs)
    assert all(list(row) == list(rows[0]) for row in rows)


def _shorter(arguments):
    short = replace(QUICK, seconds=1.0)
    return tuple(
        replace(part, grid=part.grid[-1:], world=replace(short, targets=part.world.targets)) if isinstance(part, Case) else part for part in arguments
    )


@pytest.mark.slow
def test_a_client_that_is_killed_in_processes_comes_back_while_the_server_goes_on():
    case = Case(Protocol(), world=World("breast_cancer", 8, seconds=26.0, every=13.0))
    launched = real.launch(real.in_real_time(case), 0.3, 0, real.Crash(client=1, after=0.3, away=0.2))
    assert launched.lost == 1
    assert 0 < launched.while_away < launched.curve.updates
    assert launched.longest_gap < 0.5
    assert launched.curve.seconds == pytest.approx([0.0, 0.65, 1.3], abs=0.15)
    assert launched.curve.quality[-1] > 0.85


# ---- the figures


def test_curves_are_drawn_with_their_bands_and_the_target():
    axis = draw_curves({"a": ([0, 1], [0.5, 0.9], [0.1, 0.0]), "b": ([0, 1], [0.4, 0.8], [0, 0])}, 0.9).axes[0]
    assert [line.get_label() for line in axis.lines][:2] == ["a", "b"]
    band = axis.collections[0].get_paths()[0].vertices
    assert (band[:, 1].min(), band[:, 1].max()) == pytest.approx((0.4, 0.9))
    assert axis.lines[-1].get_ydata()[0] == 0.9


def test_the_trade_off_has_a_line_a_way_to_upload_and_one_without_noise():
    axis = draw_trade_off({"batch only": [(10.0, 0.9, 0.01), (1.0, 0.7, 0.02)], "all": [(50.0, 0.9, 0.0)]}, 0.95).axes[0]
    _, labels = axis.get_legend_handles_labels()
    assert set(labels) == {"batch only", "all", "no noise, no promise"}
    assert axis.get_xscale() == "log"
    assert {0.95} == set(axis.lines[-1].get_ydata()) or any(set(line.get_ydata()) == {0.95} for line in axis.lines)
