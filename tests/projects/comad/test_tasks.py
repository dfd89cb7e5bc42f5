"""What `test` writes and says."""

import json
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.processes import run_together
from helpers.workers import command_line
from PIL import Image
from sklearn.metrics import f1_score, roc_auc_score

from projects.comad import tasks
from projects.comad.charts import draw_curves, draw_histograms, spread
from projects.comad.cli import main
from projects.comad.data import InspectionData
from projects.comad.features import build_features
from projects.comad.inspector import Inspector
from projects.comad.module import Judged
from projects.comad.spro import LIMITS, OverlapCurve, SaturatedOverlap
from projects.comad.tasks import Outcome, alarm_rows, gathered, headline, kind_rows, overlap_rows, picture_rows, score_rows, sentences
from projects.comad.traysim import LOGICAL, STRUCTURAL, write_loco

TABLES = ("scores", "kinds", "overlap", "alarms", "pictures")
FUSED = ("logical", "position", "patches")
LOCO_KINDS = ["good"] * 4 + ["logical_anomalies"] * 4 * len(LOGICAL) + ["structural_anomalies"] * 4 * len(STRUCTURAL)


def tables(folder):
    return {name: json.loads((folder / f"{name}.json").read_text()) for name in TABLES if (folder / f"{name}.json").is_file()}


def agree(rows, others):
    assert len(rows) == len(others)
    for row, other in zip(rows, others, strict=True):
        assert other == {key: pytest.approx(value, abs=1e-6) if isinstance(value, float) else value for key, value in row.items()}


@pytest.fixture(scope="module")
def apart(fitted):
    """Scores by part, names, alarms and maps of the few trays, and these themselves, without Lightning and in one batch."""
    inspector = Inspector.load(fitted / "model.safetensors", build_features("offline"))
    data = InspectionData(test_length=4)
    data.setup()
    trays = [data.test_set.tray(place) for place in range(len(data.test_set))]
    examined = inspector.examine(torch.stack([tray.image for tray in trays]))
    verdicts = inspector.judge(examined)
    return SimpleNamespace(
        found=tables(fitted / "artefacts" / "fit"),
        trays=trays,
        scores={part: values.numpy() for part, values in examined.scores.items()} | {"fused": verdicts.scores.numpy()},
        verdicts=verdicts,
        inspector=inspector,
        maps=inspector.maps(examined),
    )


# ---- the tables, against computations apart


def test_areas_are_those_of_scikit_learn_for_each_group_and_kind(apart):
    kinds = np.array([tray.kind for tray in apart.trays])
    groups = np.array(["good" if kind == "good" else "logical" if kind in LOGICAL else "structural" for kind in kinds])
    rows = {row["score"]: row for row in apart.found["scores"]}
    assert list(rows) == [*FUSED, "global", "number", "grid", "shape", "pair", "fused"]
    assert [name for name, row in rows.items() if row["counts"]] == [*FUSED, "fused"]

    def area(part, names, wanted):
        chosen = (names == "good") | (names == wanted)
        return roc_auc_score(names[chosen] == wanted, apart.scores[part][chosen])

    for part, row in rows.items():
        logical, structural = (area(part, groups, group) for group in ("logical", "structural"))
        assert row["auroc_logical"] == pytest.approx(logical, abs=1e-9)
        assert row["auroc_structural"] == pytest.approx(structural, abs=1e-9)
        assert row["auroc_mean"] == pytest.approx((logical + structural) / 2, abs=1e-9)
        assert row["auroc_all"] == pytest.approx(roc_auc_score(kinds != "good", apart.scores[part]), abs=1e-9)
        for line in apart.found["kinds"]:
            assert line[part] == pytest.approx(area(part, kinds, line["kind"]), abs=1e-9)
    assert [(line["kind"], line["pictures"]) for line in apart.found["kinds"]] == [(kind, 4) for kind in (*LOGICAL, *STRUCTURAL)]


def test_overlaps_are_those_of_all_maps_together(apart):
    rows = {(row["map"], row["group"]): row for row in apart.found["overlap"]}
    assert list(rows) == [(part, group) for part in (*FUSED, "fused") for group in ("logical", "structural", "mean")]
    scores = {row["score"]: row for row in apart.found["scores"]}
    for part, maps in apart.maps.items():
        areas = []
        for group, kinds in (("logical", LOGICAL), ("structural", STRUCTURAL)):
            overlap = SaturatedOverlap()
            for tray, values in zip(apart.trays, maps, strict=True):
                if tray.kind in ("good", *kinds):
                    overlap.update(values, tray.defects)
            areas.append(overlap.curve().areas())
            assert {name: rows[part, group][name] for name in areas[-1]} == pytest.approx(areas[-1], abs=1e-6)
            assert rows[part, group]["defects"] == overlap.defects
        for name in (f"au_spro_{limit:g}" for limit in LIMITS):
            assert rows[part, "mean"][name] == pytest.approx((areas[0][name] + areas[1][name]) / 2, abs=1e-6)
        assert scores[part]["au_spro_logical"] == pytest.approx(areas[0]["au_spro_0.05"], abs=1e-6)
        assert scores[part]["au_spro_mean"] == rows[part, "mean"]["au_spro_0.05"]
    assert scores["global"]["au_spro_mean"] is None, "it has no map"


def test_alarms_are_those_of_the_inspectors_threshold(apart):
    [row] = apart.found["alarms"]
    is_bad = np.array([tray.kind != "good" for tray in apart.trays])
    called = apart.scores["fused"] > apart.inspector.threshold
    assert row["threshold"] == apart.inspector.threshold
    assert (row["quantile"], row["validation"]) == (0.95, 16)
    assert (row["good"], row["false_alarms"], row["bad"], row["found"]) == (4, called[~is_bad].sum(), 28, called[is_bad].sum())
    assert row["false_alarm_rate"] == called[~is_bad].mean()
    assert row["recall"] == called[is_bad].mean()
    assert row["f1"] == pytest.approx(f1_score(is_bad, called))
    assert {line["kind"]: line["recall"] for line in apart.found["kinds"]} == {
        kind: np.mean([alarm for tray, alarm in zip(apart.trays, called, strict=True) if tray.kind == kind]) for kind in (*LOGICAL, *STRUCTURAL)
    }


def test_each_picture_has_its_row_in_order(apart):
    rows = apart.found["pictures"]
    assert [row["picture"] for row in rows] == [f"{kind}/{number:03}" for kind in ("good", *LOGICAL, *STRUCTURAL) for number in range(4)]
    assert [row["text"] for row in rows] == apart.verdicts.texts
    for part, scores in apart.scores.items():
        assert [row[part] for row in rows] == pytest.approx(scores.tolist(), rel=1e-6)


def test_the_means_head_the_runs_page(run):
    stage = json.loads((run / "manifest.json").read_text())["stages"][0]
    fused = tables(run / "artefacts" / "fit")["scores"][-1]
    logged = (run / "fit" / "metrics.csv").read_text()
    names = {"auroc": "auroc_mean", "auroc_logical": "auroc_logical", "auroc_all": "auroc_all", "au_spro": "au_spro_mean"}
    for name, column in names.items():
        assert stage["summary"][f"test/{name}"] == pytest.approx(fused[column], abs=1e-4)
        assert f"test/{name}" in logged
    assert {"histograms.png", "curves.png", "examples.png"} <= {file.name for file in (run / "artefacts" / "fit").iterdir()}


# ---- files, maps and rules through the command line


@pytest.mark.slow
def test_the_same_trays_in_files_give_the_same_numbers_and_maps_of_their_size(run, apart, tmp_path, capsys):
    write_loco(tmp_path / "loco", length=1, val_length=1, test_length=4)
    files = ["--data.source=loco", f"--data.root={tmp_path / 'loco'}", f"--inspector={run / 'model.safetensors'}"]
    folder = main(["test", *files, "--tiff=true", "--run=files"]).run.artefacts("test")
    found = tables(folder)
    agree(apart.found["scores"], found["scores"])
    agree(apart.found["overlap"], found["overlap"])
    assert [line["kind"] for line in found["kinds"]] == ["logical_anomalies", "structural_anomalies"]
    paths = sorted((folder / "maps" / "traysim" / "test").rglob("*.tiff"))
    assert [path.parent.name for path in paths] == LOCO_KINDS
    for path, values in zip(paths, apart.maps["fused"], strict=True):
        with Image.open(path) as picture:
            assert picture.mode == "F"
            np.testing.assert_allclose(np.asarray(picture), values[0].numpy(), rtol=1e-5, atol=1e-5)
    assert paths[5].name == "001.tiff"
    said = capsys.readouterr().out
    assert "| fused |" in said
    assert "at quantile 0.95 of the scores of 16 validation pictures" in said
    assert "for MVTec's evaluation, lie in" in said


@pytest.mark.parametrize("kinds", ["[]", pytest.param("[scratch]", marks=pytest.mark.slow)])
def test_groups_may_lack_pictures(run, kinds):
    result = main(["test", f"--data.kinds={kinds}", "--data.test_length=2"]).result
    found = tables(run / "artefacts" / "test")
    fused = found["scores"][-1]
    assert fused["auroc_logical"] is None
    assert (fused["auroc_structural"] is None) == (kinds == "[]")
    assert fused["auroc_mean"] == fused["auroc_structural"]
    assert ("kinds" in found) == ("overlap" in found) == (kinds != "[]")
    assert ("test/auroc" in result.summary) == (kinds != "[]")
    assert "test/false_alarm_rate" in result.summary
    assert "nan" not in (run / "artefacts" / "test" / "scores.csv").read_text()


@pytest.mark.slow
def test_two_processes_find_what_one_finds(run):
    before = tables(run / "artefacts" / "fit")
    run_together(command_line, ["test"], "comad")
    after = tables(run / "artefacts" / "test")
    for name in TABLES:
        agree(before[name], after[name])


@pytest.mark.slow
def test_a_miniature_of_loco_is_learnt_and_tested_as_the_drawn_trays(run, tmp_path):
    write_loco(tmp_path / "loco", length=40, val_length=16, test_length=4)
    options = ["--data.source=loco", f"--data.root={tmp_path / 'loco'}", "--data.size=128", "--model.patches=300", "--model.restarts=2"]
    learnt = main(["fit", *options, "--run=files"])
    before, after = tables(run / "artefacts" / "fit"), tables(learnt.run.artefacts("fit"))
    for name in ("scores", "overlap", "alarms"):
        agree(before[name], after[name])
    write_loco(tmp_path / "large", size=192, length=1, val_length=1, test_length=4)
    main(["test", "--run=files", "--tiff=true", f"--data.root={tmp_path / 'large'}"])
    paths = list((learnt.run.artefacts("test") / "maps" / "traysim" / "test").rglob("*.tiff"))
    assert sorted(path.parent.name for path in paths) == LOCO_KINDS
    assert {Image.open(path).size for path in paths} == {(192, 192)}, "maps have the size of the files, not of what was learnt"


# ---- joined, counted and said


def outcome(groups, scores, alarms=None, rules=None):
    pictures = zip(scores, alarms or scores, rules or [0] * len(groups), strict=True)
    judged = [Judged(place, {"logical": score, "fused": score}, bool(alarm), broken, "") for place, (score, alarm, broken) in enumerate(pictures)]
    return Outcome(judged, [f"{group}s/{place}" for place, group in enumerate(groups)], groups, {}, {})


def test_processes_are_joined_in_the_order_of_the_pictures(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    data = InspectionData(size=64, test_length=2, kinds=["missing", "scratch"])
    data.setup()
    maps = torch.randn(6, 64, 64, generator=generator)
    modules = [SimpleNamespace(judged=[], overlaps={}) for _ in range(3)]
    for place in range(6):
        for module in (modules[place % 2], modules[2]):
            module.judged.append(Judged(place, {"fused": float(place)}, False, 0, ""))
            key = ("fused", data.test_set.group(place))
            module.overlaps.setdefault(key, SaturatedOverlap()).update(maps[place], data.test_set.defects(place))
    modules[1].overlaps.pop(("fused", "good"))
    modules[2].overlaps["fused", "good"] = pickle.loads(pickle.dumps(modules[0].overlaps["fused", "good"]))
    one = gathered(modules[2], data)
    calls = iter([modules[1].judged + modules[0].judged, [*modules[1].overlaps, *modules[0].overlaps]])
    keys = iter(sorted(modules[0].overlaps))

    def together(rows):
        if (found := next(calls, None)) is not None:
            return found
        key = next(keys)
        return pickle.loads(pickle.dumps([module.overlaps[key] for module in modules[:2] if key in module.overlaps]))

    monkeypatch.setattr(tasks, "gather_objects", together)
    two = gathered(modules[0], data)
    assert two.judged == one.judged
    assert two.names == one.names == ["good/000", "good/001", "missing/000", "missing/001", "scratch/000", "scratch/001"]
    assert two.defects == one.defects
    for key, curve in one.curves.items():
        torch.testing.assert_close(two.curves[key].fpr, curve.fpr)
        torch.testing.assert_close(two.curves[key].spro, curve.spro)


def test_nothing_to_test_is_said():
    with pytest.raises(ValueError, match="there are no test pictures of screws: give data with some"):
        gathered(SimpleNamespace(judged=[], overlaps={}), SimpleNamespace(name="screws"))


def inspector(rules=()):
    judgement = SimpleNamespace(rules=rules, quantile=0.95)
    return SimpleNamespace(judgement=judgement, threshold=2.0, fusion=SimpleNamespace(references={"logical": torch.zeros(20)}))


def test_rules_are_counted_beside_the_learned_score():
    found = outcome(["good"] * 4 + ["logical"] * 2, [0.0] * 6, alarms=[1, 0, 0, 0, 1, 1], rules=[0, 2, 1, 0, 0, 3])
    score, rules = alarm_rows(found, inspector(rules=("any",)))
    assert score["false_alarm_rate"] == 0.25
    assert score["recall"] == score["recall_logical"] == 1
    assert (rules["by"], rules["false_alarms"], rules["found"], rules["threshold"]) == ("rules", 2, 1, None)
    assert rules["recall_structural"] is None
    assert sentences([score, rules]) == [
        "1 of 4 good (25 %) and 2 of 2 anomalous (100 %) pictures alarm, at quantile 0.95 of the scores of 20 validation pictures",
        "2 of 4 good (50 %) and 1 of 2 anomalous (50 %) pictures break a rule",
    ]


def test_anomalies_that_nobody_assigned_have_columns_of_their_own():
    found = outcome(["good", "good", "other"], [1.0, 3.0, 2.0])
    [row, _] = score_rows(found, ["logical", "fused"], [], ["logical"])
    assert row["auroc_other"] == row["auroc_mean"] == row["auroc_all"] == 0.5
    assert row["auroc_logical"] is row["au_spro_mean"] is None
    [kind] = kind_rows(found, ["fused"])
    assert kind == {"kind": "others", "group": "other", "pictures": 1, "recall": 1.0, "fused": 0.5}
    assert overlap_rows(found, ["fused"]) == [], "nobody marked defects"
    assert [line["logical"] for line in picture_rows(found, ["logical", "fused"])] == [1.0, 3.0, 2.0]
    [alarms] = alarm_rows(found, inspector())
    assert headline(row, alarms) == {
        "test/auroc": 0.5, "test/auroc_other": 0.5, "test/auroc_all": 0.5, "test/false_alarm_rate": 1.0, "test/recall": 1.0, "test/f1": 0.5
    }  # fmt: skip


# ---- figures


def test_examples_are_spread_over_kinds():
    kinds = ["good"] * 10 + ["cut"] * 2 + ["hole"] * 6
    assert spread(kinds, 10) == [0, 3, 6, 10, 11, 12, 14, 16]
    assert spread([str(place) for place in range(20)], 10) == list(range(0, 20, 2))
    assert spread(["good"] * 3, 10) == [0, 1, 2]


def test_histograms_hold_every_picture_also_scores_without_spread():
    figure = draw_histograms({"good": torch.zeros(5, dtype=torch.float64), "logical": torch.tensor([1e6, -3.0], dtype=torch.float64)}, 0.5)
    heights = [patch.get_path().vertices[:, 1].max() for patch in figure.axes[0].patches]
    assert heights[0] == 5
    assert figure.axes[0].lines[0].get_xdata()[0] == 0.5


def test_curves_are_drawn_as_far_as_papers_look():
    steps = torch.linspace(0, 1, 5001, dtype=torch.float64)
    curve = OverlapCurve(steps, steps.sqrt(), True)
    figure = draw_curves(
        {("fused", "logical"): curve, ("patches", "logical"): curve, ("fused", "structural"): OverlapCurve(steps[:2], steps[:2], True)}
    )
    assert [axis.get_title() for axis in figure.axes] == ["logical", "structural"]
    line = figure.axes[0].lines[0]
    assert 0.3 < line.get_xdata()[-1] < 0.3003
    assert len(line.get_xdata()) == 501
    np.testing.assert_allclose(line.get_ydata(), np.sqrt(line.get_xdata()))
    assert line.get_label() == f"fused {2 / 3 * 0.05**0.5:.2f}"
