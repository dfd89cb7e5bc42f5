"""What `reproduce` says of its tables, and how its networks are trained and judged."""

import json
from functools import partial

import pytest
import torch

from projects.hodinet.cli import main
from projects.hodinet.metrics import SaliencyMetrics
from projects.hodinet.reproduction import TABLES, decoders, encoders, fusion, modality, noise, placement, worlds
from projects.hodinet.scenes import draw_scene

TINY = {"widths": [4, 4, 4, 4]}


def spread(value):
    return {"mean": value, "std": 0.0, "n": 1}


def line(column, name, s=0.5, f=0.5, mae=0.1, **others):
    """Return a row of a summary."""
    return {column: name, "S": spread(s), "max F": spread(f), "MAE": spread(mae)} | {key: spread(value) for key, value in others.items()}


def test_depth_must_add_what_is_expected():
    def judged(both, f=0.9):
        rows = [line("modality", "rgb", 0.66, 0.46), line("modality", "depth", 0.75, 0.6), line("modality", modality.BOTH, both, f)]
        return list(modality.expectations(rows).values())

    assert judged(0.84) == [True, True]
    assert judged(0.82) == [False, True]
    assert judged(0.84, 0.79) == [True, False]


def test_products_must_beat_both_sums_in_each_measure():
    rows = [line("fusion", name, 0.8, 0.8, 0.05) for name in fusion.FUSIONS]
    others = {"add": line("fusion", "add", 0.7, 0.9, 0.06), "add_matched": line("fusion", "add_matched", 0.85, 0.7, 0.04)}
    found = fusion.expectations([others.get(row["fusion"], row) for row in rows])
    assert [name for name, holds in found.items() if not holds] == [
        "high_order has a larger max F than add",
        "high_order has a larger S than add_matched",
        "high_order has a smaller MAE than add_matched",
    ]
    assert len(found) == 6
    assert not any(fusion.expectations(rows).values()), "equal is not better"


@pytest.mark.parametrize(("table", "column", "names"), [(encoders, "encoders", encoders.PAIRS), (placement, "placement", placement.PLACEMENTS)])
def test_the_papers_choice_must_be_the_best(table, column, names):
    best, *others = names
    assert list(table.expectations([line(column, best, 0.8), *(line(column, name, 0.7) for name in others)]).values()) == [True]
    assert list(table.expectations([line(column, best, 0.8), *(line(column, name, 0.81) for name in others)]).values()) == [False]


def test_the_papers_decoder_must_beat_an_fpn():
    def judged(fpn):
        return list(decoders.expectations([line("decoder, loss", name, fpn if "fpn" in name else 0.8) for name in decoders.SETTINGS]).values())

    assert judged(0.7) == [True]
    assert judged(0.8) == [False]


def test_noise_must_cost_no_more_than_depth_is_worth():
    def judged(taught):
        rows = [line("trained", "rgb", 0.66, **{"S, noise": 0.66}), line("trained", noise.TAUGHT, 0.9, **{"S, noise": taught})]
        return list(noise.expectations(rows).values())

    assert judged(0.62) == [True]
    assert judged(0.6) == [False]


# ---- the jobs


@pytest.mark.parametrize("name", list(TABLES))
def test_jobs_of_a_table_have_names_and_settings_of_their_own(name, tmp_path):
    jobs = TABLES[name].jobs(tmp_path, [0, 1, 2], False)
    assert len({str(job) for job in jobs}) == len(jobs)
    assert len({repr((job.arguments, job.seed)) for job in jobs}) == len(jobs)
    per_seed = [[job.name for job in jobs if job.seed == seed] for seed in range(3)]
    assert per_seed[0] == per_seed[1] == per_seed[2]
    settings = [json.dumps([*map(repr, job.arguments[-4:])]) for job in jobs if job.seed == 0]
    assert len(set(settings)) == len(settings), "no setting under two names"
    [quick] = TABLES[name].jobs(tmp_path, [0], True)
    assert quick.arguments[-3:] == worlds.QUICK
    assert quick.name in per_seed[0]
    for job in jobs[: len(per_seed[0])]:
        options = noise.TRAINED[job.arguments[1]][0] if name == "noise" else job.arguments[3]
        worlds.SaliencyDetection(**(worlds.COMMON | TINY | options))


@pytest.mark.parametrize("name", list(TABLES))
def test_what_is_expected_is_among_the_jobs(name, tmp_path):
    table = TABLES[name]
    summary = [line(*table.by, job.name, **{"S, noise": 0.5}) for job in table.jobs(tmp_path, [0], False)]
    assert table.expectations(summary)


# ---- the networks


def test_no_network_is_trained_twice(tmp_path, monkeypatch):
    drawn = torch.get_rng_state()
    first, apart = (worlds.train(tmp_path / folder, TINY, 0, 16, 1) for folder in "ab")
    assert torch.equal(torch.get_rng_state(), drawn), "the caller's chance is left alone"
    assert all(torch.equal(value, apart.state_dict()[name]) for name, value in first.state_dict().items()), "one seed, one network"
    fresh = worlds.SaliencyDetection(seed=0, **(worlds.COMMON | TINY))
    assert not torch.equal(next(fresh.parameters()), next(first.parameters())), "it has learnt"
    monkeypatch.setattr(worlds, "quiet_trainer", lambda *_, **__: pytest.fail("it was trained again"))
    again = worlds.train(tmp_path / "a", TINY, 0, 16, 1)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in first.state_dict().items())
    assert not again.training
    others = [({**TINY, "fusion": "add"}, 0, 16, 1), (TINY, 1, 16, 1), (TINY, 0, 32, 1), (TINY, 0, 16, 2), (TINY, 0, 16, 1, "bad_depth")]
    for other in others:
        with pytest.raises(pytest.fail.Exception):
            worlds.train(tmp_path / "a", *other)


def test_networks_are_judged_on_test_scenes():
    module, metrics = worlds.SaliencyDetection(**(worlds.COMMON | TINY)), SaliencyMetrics()
    found = worlds.judge(module, 5, 18)
    for number in range(18):
        scene = draw_scene("test", number, 5, worlds.SIDE)
        depth = (scene.depth - scene.depth.min()) / (scene.depth.max() - scene.depth.min())
        metrics.update(module(scene.image[None], depth[None])[0], scene.mask)
    expected = metrics.compute()
    names = {"S": "s_measure", "max F": "f_max", "max E": "e_max", "weighted F": "f_weighted", "MAE": "mae"}
    assert found == pytest.approx({name: expected[measure] for name, measure in names.items()}, abs=1e-4)
    inverted = worlds.judge(module, 5, 18, lambda depths: 1 - depths)
    assert inverted["MAE"] != found["MAE"]
    assert worlds.judge(module, 5, 18) == found, "the scenes are left as they are"


def test_depth_that_says_nothing():
    depths = torch.rand(6, 1, 8, 8, generator=torch.manual_seed(0))
    drawn = noise.corrupted(depths, "noise", 3)
    assert drawn.shape == depths.shape
    assert 0 <= float(drawn.min()) < 0.05
    assert 0.95 < float(drawn.max()) <= 1
    assert abs(float(torch.corrcoef(torch.stack([drawn.flatten(), depths.flatten()]))[0, 1])) < 0.2
    assert torch.equal(drawn, noise.corrupted(depths, "noise", 3))
    assert not torch.equal(drawn, noise.corrupted(depths, "noise", 4))
    others = noise.corrupted(depths, "another's", 3)
    assert sorted(one.sum().item() for one in others) == sorted(one.sum().item() for one in depths)
    assert not any(torch.equal(one, own) for one, own in zip(others, depths, strict=True))
    assert not noise.corrupted(depths, "none", 3).any()


def test_rows_of_noise_have_the_measures_of_each_depth(tmp_path):
    [row] = noise.rows(tmp_path, noise.TAUGHT, 16, 1, 10, 0)
    module = worlds.train(tmp_path, {}, 0, 16, 1, "bad_depth")
    assert row["S"] == worlds.judge(module, 0, 10)["S"]
    for kind in ("noise", "another's", "none"):
        found = worlds.judge(module, 0, 10, partial(noise.corrupted, kind=kind, seed=0))
        assert (row[f"S, {kind}"], row[f"max F, {kind}"]) == (found["S"], found["max F"])


def test_a_quick_run_makes_a_table(run_folder, capsys):
    main(["reproduce", "placement", "--quick", "--run", "quick"])
    results = json.loads((run_folder / "hodinet" / "quick" / "results-placement.json").read_text())
    [row] = results["rows"]
    assert row["placement"] == "CCCC"
    assert {"S", "max F", "max E", "weighted F", "MAE", "k parameters"} < set(row)
    assert results["seeds"] == [0]
    assert results["expectations"] == {}
    assert "| CCCC |" in capsys.readouterr().out
