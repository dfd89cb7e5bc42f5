"""What `reproduce` says of its tables, and how its networks are trained."""

import json

import pytest
import torch

from projects.tripinet.cli import main
from projects.tripinet.forging import FORGERIES, IN_PLACE
from projects.tripinet.reproduction import TABLES, compression, decoders, fusion, streams, worlds


def spread(value):
    return {"mean": value, "std": 0.0, "n": 1}


def line(column, name, f1=0.5, auc=0.8, control=0.5, **by_kind):
    """Return a row of a summary; without F1, as of the baseline, its cells are empty."""
    cells = {"F1": f1, "AUC": auc, "AUC control": control} | {f"F1 {kind}": by_kind.get(kind, f1) for kind in IN_PLACE}
    return {column: name} | {key: None if value is None else spread(value) for key, value in cells.items()}


def judged(table, summary, changes):
    """Return the verdicts on a summary in which some rows are others."""
    return table.expectations([changes.get(next(iter(row.values())), row) for row in summary])


def test_the_claims_on_streams_can_hold_and_fail():
    summary = [line("streams", name) for name in streams.STREAMS if name not in ("rgb", "srm", "dct_corner", worlds.ALL)]
    summary += [line("streams", "rgb", 0.1, 0.6), line("streams", "srm", noise=0.7, jpeg=0.4, resample=0.4), line("streams", "dct_corner", noise=0.4)]
    summary += [line("streams", worlds.ALL, 0.8, 0.95), *(line("streams", name, None) for name in streams.UNLEARNT)]
    held = streams.expectations(summary)
    assert all(held.values())
    assert len(held) == 7
    failing = {
        "all three streams beat rgb by at least .10 in F1": line("streams", "rgb", 0.71, 0.6),
        "and by at least .05 in AUC": line("streams", "rgb", 0.1, 0.91),
        "all three streams beat each stream alone in F1": line("streams", "haar", 0.8),
        "srm finds noise better than dct_corner": line("streams", "srm", noise=0.3, jpeg=0.4, resample=0.4),
        "dct_corner finds jpeg better than srm": line("streams", "srm", noise=0.7, jpeg=0.6, resample=0.4),
        "dct_corner finds resample better than srm": line("streams", "srm", noise=0.7, jpeg=0.4, resample=0.6),
        "no network finds the masks of untouched pictures: AUC .4 to .6": line("streams", next(iter(streams.UNLEARNT)), None, control=0.7),
    }
    for verdict, row in failing.items():
        found = judged(streams, summary, {row["streams"]: row})
        assert [name for name, holds in found.items() if not holds] == [verdict]


@pytest.mark.parametrize(("table", "column", "names"), [(decoders, "decoder", decoders.DECODERS), (fusion, "fusion", fusion.FUSIONS)])
def test_the_claims_on_modules_can_hold_and_fail(table, column, names):
    best, *others = names
    scores = {"gcmda": 0.7, "pise": 0.7, "concat": 0.6}
    summary = [line(column, name, scores.get(name, 0.5)) for name in names]
    assert list(table.expectations(summary).values()) == [True] * 3
    second = {"decoder": {"pise": 0.65, "concat": 0.69}, "fusion": {"concat": 0.55, "add": 0.58}}[column]
    for scores_now, failing in (({best: 0.4}, 0), (second, 1)):
        found = judged(table, summary, {name: line(column, name, value) for name, value in scores_now.items()}).values()
        assert list(found)[failing] is False
        assert list(found)[2] is True
    masks_found = {others[-1]: line(column, others[-1], control=0.35)}
    assert list(judged(table, summary, masks_found).values()) == [True, True, False]


def test_the_claims_on_compression_can_hold_and_fail():
    def cost(name, left):
        return {"streams": name, "untouched": spread(0.7)} | {f"quality {quality:g}": spread(left) for quality in compression.QUALITIES}

    summary = [cost("srm", 0.1), cost("dct_corner", 0.3), cost(worlds.ALL, 0.2)]
    assert list(compression.expectations(summary).values()) == [True, True]
    assert list(judged(compression, summary, {"srm": cost("srm", 0.25)}).values()) == [True, False]
    assert list(judged(compression, summary, {"dct_corner": cost("dct_corner", 0.8)}).values()) == [False, True]
    assert [text.get_text() for text in compression.figures(summary)["jpeg"].axes[0].get_legend().get_texts()] == ["srm", "dct_corner", worlds.ALL]


def test_columns_are_means_over_learnt_and_unlearnt_kinds():
    f1 = {kind: number / 10 for number, kind in enumerate((*FORGERIES, "control"))}
    row = worlds.columns(f1, {kind: value + 0.01 for kind, value in f1.items()})
    assert row["F1"] == pytest.approx((0.0 + 0.1 + 0.2) / 3)
    assert row["F1 unlearnt"] == pytest.approx((0.3 + 0.4 + 0.5) / 3)
    assert row["AUC resample"] == pytest.approx(0.21)
    assert row["AUC control"] == pytest.approx(0.61)
    empty = worlds.columns({}, f1)
    assert list(empty) == list(row)
    assert empty["F1"] is empty["F1 noise"] is empty["F1 unlearnt"] is None


def test_no_network_is_trained_twice(tmp_path, monkeypatch):
    drawn = torch.get_rng_state()
    options = {"streams": ["srm"], "channels": 4, "width": 4}
    first = worlds.train(tmp_path, options, 0, 16, 1)
    assert torch.equal(torch.get_rng_state(), drawn), "the caller's chance is left alone"
    images = worlds.ForgedPictures("test", 3, ["noise"], 0.2, 96, 0).images
    monkeypatch.setattr(worlds, "quiet_trainer", lambda *_, **__: pytest.fail("it was trained again"))
    again = worlds.train(tmp_path, options, 0, 16, 1)
    assert torch.equal(worlds.probabilities(again, images), worlds.probabilities(first, images))
    assert not again.training
    with pytest.raises(pytest.fail.Exception):
        worlds.train(tmp_path, options, 1, 16, 1)


@pytest.mark.slow
def test_a_quick_run_makes_a_table(run_folder):
    main(["reproduce", "decoder", "--quick", "--run", "quick"])
    results = json.loads((run_folder / "tripinet" / "quick" / "results-decoder.json").read_text())
    assert [row["decoder"] for row in results["rows"]] == ["fpn"]
    assert results["seeds"] == [0]
    assert set(TABLES) == {"streams", "fusion", "decoder", "jpeg"}
