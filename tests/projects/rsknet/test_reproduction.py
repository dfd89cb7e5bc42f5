"""What `reproduce` says of its tables, and how its networks are trained and judged."""

import json

import numpy as np
import pytest
import torch

from projects.rsknet.cli import main
from projects.rsknet.module import SpeakerVerification
from projects.rsknet.reproduction import TABLES, conditions, lag, sizes, speakers, untrained, worlds
from projects.rsknet.reproduction.worlds import LIGHT, RESNET, RSKNET, XVECTOR, World
from shared.results import summarise

TINY = World(speakers=4, tested=2, epochs=1)


def spread(value):
    return {"mean": value, "std": 0.0, "n": 1}


def line(**columns):
    """Return a row of a summary."""
    return {name: spread(value) if isinstance(value, float) else value for name, value in columns.items()}


def failing(found):
    return [number for number, holds in enumerate(found.values()) if not holds]


# ---- what is expected


@pytest.mark.parametrize(
    ("changed", "fails"),
    [
        ({}, []),
        ({("8 or 11", "plain"): 0.61}, [0]),
        ({("8 or 11", "near + near"): 0.71}, [1]),
        ({("8 or 11", "RSK"): 0.89}, [2]),
        ({"weight": 0.5}, [3]),
        ({("1 or 2", "RSK"): 0.89}, [4]),
        ({("1 or 2", "dilated only"): 0.61}, [5]),
    ],
    ids=str,
)
def test_each_branch_must_see_what_it_should(changed, fails):
    accuracy = {
        ("8 or 11", "plain"): 0.6,
        ("8 or 11", "near + near"): 0.7,
        ("8 or 11", "RSK"): 0.9,
        ("1 or 2", "RSK"): 0.9,
        ("1 or 2", "dilated only"): 0.6,
    }
    rows = [
        line(lag=side, net=net, accuracy=changed.get((side, net), rate), **{"dilated branch": changed.get("weight", 0.51)})
        for (side, net), rate in accuracy.items()
    ]
    assert failing(lag.expectations(rows)) == fails


@pytest.mark.parametrize(
    ("rates", "counts", "upper", "fails"),
    [
        ((14.0, 13.0, 14.9), (200.0, 190.0, 80.0), -0.1, []),
        ((13.0, 13.0, 13.9), (200.0, 190.0, 80.0), -0.1, [0]),
        ((14.0, 13.0, 14.9), (200.0, 200.0, 80.0), -0.1, [0]),
        ((14.0, 13.0, 14.9), (200.0, 190.0, 80.0), 0.0, [1]),
        ((14.0, 13.0, 15.0), (200.0, 190.0, 80.0), -0.1, [2]),
        ((14.0, 13.0, 14.9), (200.0, 190.0, 81.0), -0.1, [2]),
    ],
)
def test_networks_must_compare_as_expected(rates, counts, upper, fails):
    rows = [
        line(net=net, **{"EER %": rate, "k parameters": count, "to": upper})
        for net, rate, count in zip((XVECTOR, RSKNET, LIGHT), rates, counts, strict=True)
    ]
    assert failing(speakers.expectations(rows)) == fails


def test_both_modules_must_lower_the_error_of_the_powered_comparison():
    def judged(resnet, rsknet, upper=-0.1):
        nets = {worlds.RESNET: resnet, worlds.RSKNET: rsknet}
        return failing(speakers.expectations_powered([line(net=net, **{"EER %": rate, "to": upper}) for net, rate in nets.items()]))

    assert judged(9.0, 8.0) == []
    assert judged(8.0, 9.0) == [0]
    assert judged(9.0, 8.0, upper=0.1) == [1]


HEARD = {
    conditions.LONG: 9.0,
    conditions.MIDDLE: 12.0,
    conditions.SHORT: 20.0,
    "neither noise nor room": 8.0,
    "noise at 10 dB": 11.0,
    "noise at 0 dB": 25.0,
    "room, T60 0.3 s": 9.0,
    "room, T60 1.0 s": 14.0,
}


@pytest.mark.parametrize(
    ("changed", "fails"),
    [
        ({}, []),
        ({conditions.SHORT: 12.0}, [0]),
        ({conditions.LONG: 12.5}, [0]),
        ({"noise at 0 dB": 10.0}, [1]),
        ({"neither noise nor room": 12.0}, [1]),
        ({"room, T60 1.0 s": 9.0}, [2]),
    ],
    ids=str,
)
def test_what_tells_less_must_be_harder(changed, fails):
    rows = [line(heard=name, **{RSKNET: changed.get(name, rate), XVECTOR: 30.0}) for name, rate in HEARD.items()]
    assert failing(conditions.expectations(rows)) == fails
    rows[3][XVECTOR] = spread(8.0)
    assert 3 in failing(conditions.expectations(rows))


@pytest.mark.parametrize(
    ("changed", "fails"),
    [({}, []), ({"Cllr before": 0.4}, [0]), ({"min Cllr": 0.34}, [1]), ({"false accepts %": 0.2}, [2]), ({"false accepts %": 3.1}, [2])],
    ids=str,
)
def test_scores_must_become_ratios_that_hold(changed, fails):
    given = {"Cllr before": 0.9, "Cllr": 0.4, "min Cllr": 0.36, "false accepts %": 1.5} | changed
    noisy = {"Cllr before": 0.9, "Cllr": 0.6, "min Cllr": 0.4, "false accepts %": 6.0}
    rows = [line(heard=conditions.TRAINED, **given), line(heard=conditions.SHORT, **given), line(heard="noise at 5 dB", **noisy)]
    assert failing(conditions.calibration_expectations(rows)) == fails


def test_counts_must_be_those_of_the_paper():
    rows = []
    for name, (_, _, wanted) in sizes.COUNTED.items():
        counts = wanted or (1.0, 1.0, sizes.EIGHTY[name])
        rows.append(line(net=name, **{f"M at F = {bins}": count for bins, count in zip(sizes.BINS, counts, strict=True)}))
    assert failing(sizes.expectations(rows)) == []
    rows[1]["M at F = 64"] = spread(12.6)
    rows[4]["M at F = 80"] = spread(4.7)
    assert failing(sizes.expectations(rows)) == [0, 1]
    rows[3]["M at F = 80"] = spread(5.6)
    assert failing(sizes.expectations(rows)) == [0, 1, 2]


def test_statistics_of_all_stages_must_hold_more():
    def judged(every, last):
        return list(
            untrained.expectations(
                [line(**{"statistics of": name, "EER %": rate}) for name, rate in (("all stages", every), ("stage 3", last))]
            ).values()
        )

    assert judged(30.0, 31.0) == [True]
    assert judged(31.0, 31.0) == [False]


# ---- intervals


def replicates(values):
    """Draws of lists: `speakers.REPLICATES` numbers that spread evenly over values +- 1."""
    rng = np.random.default_rng(len(values))
    return {key: (value + rng.uniform(-1, 1, speakers.REPLICATES)).tolist() for key, value in values.items()}


def test_intervals_are_over_draws_of_speakers_and_of_seeds():
    rates = {(XVECTOR, 0): 14.0, (XVECTOR, 1): 14.0, (RSKNET, 0): 12.0, (RSKNET, 1): 13.0}
    drawn = replicates(rates)
    rows = [{"net": net, "seed": seed, "EER %": rate, "drawn": drawn[net, seed]} for (net, seed), rate in rates.items()]
    found = {(row["net"], row["seed"]): row for row in speakers.tabulate(rows)}
    first, ours = found[XVECTOR, 0], found[RSKNET, 0]
    assert not any("drawn" in row for row in found.values())
    for seed in (0, 1):  # rows of other seeds hold no interval: it is one for all seeds
        assert found[XVECTOR, seed][f"minus {XVECTOR}"] is None
    assert found[RSKNET, 1]["EER from"] is None
    assert found[RSKNET, 1]["to"] is None
    assert ours[f"minus {XVECTOR}"] == pytest.approx(-1.5)
    assert 13 <= first["EER from"] < 13.4 < 14.6 < first["EER to"] <= 15
    rng = np.random.default_rng(0)  # the same by plain resampling, ten thousand times
    seeds, places = rng.integers(2, size=(10_000, 2)), rng.integers(speakers.REPLICATES, size=10_000)
    arrays = {net: np.array([drawn[net, 0], drawn[net, 1]]) for net in (XVECTOR, RSKNET)}
    means = {net: values[seeds, places[:, None]].mean(1) for net, values in arrays.items()}
    for low, high, values in (("EER from", "EER to", means[RSKNET]), ("from", "to", means[RSKNET] - means[XVECTOR])):
        assert [ours[low], ours[high]] == pytest.approx(np.quantile(values, [0.025, 0.975]), abs=0.25)


def test_equal_networks_differ_by_nothing_draw_by_draw():
    drawn = replicates({0: 10.0, 1: 20.0})
    rows = [{"net": net, "seed": seed, "EER %": 10.0 + 10 * seed, "drawn": drawn[seed]} for net in (RESNET, "twin") for seed in (0, 1)]
    twin = speakers.tabulate(rows, RESNET)[2]
    assert (twin[f"minus {RESNET}"], twin["from"], twin["to"]) == (0, 0, 0)
    assert twin["EER to"] - twin["EER from"] > 9, "seeds are drawn too"


def test_tables_of_conditions_and_of_calibration_have_a_column_each():
    rows = [
        {"heard": heard, "net": net, "seed": seed, "eer": 0.1 + seed / 10, "cllr": 0.5, "far": 0.01}
        for seed in (0, 1)
        for net in (XVECTOR, RSKNET)
        for heard in (conditions.SHORT, conditions.TRAINED)
    ]
    table = conditions.tabulate(rows)
    assert [(row["heard"], row["seed"]) for row in table] == [(heard, seed) for heard in (conditions.TRAINED, conditions.SHORT) for seed in (0, 1)]
    assert table[1][RSKNET] == pytest.approx(20)
    assert summarise(table, by=("heard",))[0][XVECTOR]["mean"] == pytest.approx(15)
    shown = conditions.calibration(rows)[0]
    assert (shown["Cllr"], shown["false accepts %"], shown["misses %"]) == (0.5, 1.0, None)


# ---- the jobs


@pytest.mark.parametrize("name", list(TABLES))
def test_jobs_of_a_table_have_names_and_settings_of_their_own(name, tmp_path):
    jobs = TABLES[name].jobs(tmp_path, [0, 1, 2], False)
    assert len({str(job) for job in jobs}) == len(jobs)
    assert len({repr((job.arguments, job.seed)) for job in jobs}) == len(jobs)
    per_seed = [[job.name for job in jobs if job.seed == seed] for seed in range(3)]
    assert per_seed[0] == per_seed[1] == per_seed[2]
    [quick] = TABLES[name].jobs(tmp_path, [0], True)
    assert quick.seed == 0
    assert all(job.make.__module__.startswith("projects.rsknet.reproduction") for job in jobs), "processes find it"


@pytest.mark.parametrize("world", [worlds.FULL, worlds.POWERED, worlds.QUICK])
def test_networks_of_the_tables_can_be_built(world):
    counts = {}
    for name, (net, options) in worlds.NETS.items():
        module = SpeakerVerification(net, options or None, ramp=[0.13, 0.27], **world.options)
        counts[name] = sum(parameter.numel() for parameter in module.net.parameters())
    assert counts[LIGHT] <= speakers.FEWER * counts[XVECTOR]
    assert counts[RSKNET] < counts[XVECTOR]


# ---- the networks


def test_no_network_is_trained_twice(tmp_path, monkeypatch):
    first, apart = (worlds.trained(tmp_path / folder, RESNET, TINY, 0) for folder in "ab")
    weights = first.module.state_dict()
    assert all(torch.equal(value, apart.module.state_dict()[name]) for name, value in weights.items()), "one seed, one network"
    assert not torch.equal(SpeakerVerification("tiny_resnet", seed=0).net.stem[0].weight, first.module.net.stem[0].weight), "it has learnt"
    monkeypatch.setattr(worlds, "quiet_trainer", lambda *_, **__: pytest.fail("it was trained again"))
    again = worlds.trained(tmp_path / "a", RESNET, TINY, 0)
    assert all(torch.equal(value, again.module.state_dict()[name]) for name, value in weights.items())
    assert torch.equal(again.scorer.mean, first.scorer.mean)
    assert not again.module.training
    for name, world, seed in ((LIGHT, TINY, 0), (RESNET, TINY, 1), (RESNET, World(4, 2, 2), 0)):
        with pytest.raises(pytest.fail.Exception):
            worlds.trained(tmp_path / "a", name, world, seed)


def test_a_table_is_made_quickly(run_folder):
    cli = main(["reproduce", "--table=lag", "--quick", "--run", "quick"])
    [row] = json.loads(next((cli.run.artefacts("reproduce") / "quick" / "lag").glob("*.json")).read_text())["value"]
    assert (row["lag"], row["net"]) == ("8 or 11", "RSK")
    assert 0 <= row["accuracy"] <= 1
    assert 0 < row["dilated branch"] < 1


@pytest.mark.slow
def test_all_tables_run_in_less_than_a_minute(run_folder, monkeypatch):
    cli = main(["reproduce", "--quick", "--run", "quick"])
    kept = cli.run.artefacts("reproduce") / "quick"
    assert {path.name for path in kept.iterdir()} == set(TABLES)
    [row] = json.loads(next((kept / "speakers").glob("*.json")).read_text())["value"]
    assert len(row["drawn"]) == speakers.REPLICATES
