"""What `reproduce` says of its tables, and the numbers in them."""

import json
from dataclasses import replace

import pytest
import torch
from sklearn.metrics import roc_auc_score

from projects.comad.cli import main
from projects.comad.drawing import COMPONENTS
from projects.comad.naming import Finding
from projects.comad.reproduction import TABLES, adjusting, anomalies, fusion, naming, vocabulary, worlds
from projects.comad.reproduction.worlds import Size
from projects.comad.traysim import COUNTS, draw_tray

FEW = Size(24, 8, 2)


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A folder with an inspector of few trays."""
    folder = tmp_path_factory.mktemp("kept")
    worlds.fitted(folder, FEW, 0)
    return folder


@pytest.fixture
def inspector(kept):
    return worlds.fitted(kept, FEW, 0)


def spread(value):
    return {"mean": value, "std": 0.0, "n": 1}


def line(names, **columns):
    """Return a row of a summary."""
    return names | {column.replace("_", " "): spread(value) for column, value in columns.items()}


# ---- what is expected


def judged_anomalies(**changed):
    """Return the claims that do not hold of AUROCs as a prototype had them, some of which are changed: detector, column, value."""
    columns = (*worlds.KINDS, "logical mean")
    found = {name: dict.fromkeys(columns, 0.99) for name in anomalies.DETECTORS}
    found[anomalies.COMAD]["swap"] = 0.5
    found[anomalies.PATCHES]["logical mean"] = 0.55
    for detector, column, value in changed.values():
        found[detector][column] = value
    summary = [{"detector": name} | {column: spread(value) for column, value in row.items()} for name, row in found.items()]
    return [claim for claim, holds in anomalies.expectations(summary).items() if not holds]


@pytest.mark.parametrize(
    ("changed", "claim"),
    [
        ((anomalies.COMAD, "logical mean", 0.91), "ComAD has at least .92"),
        ((anomalies.PATCHES, "logical mean", 0.66), "the patch memory has at most .65"),
        ((anomalies.PATCHES, "scratch", 0.97), "(2)"),
        ((anomalies.FUSED, "logical mean", 0.89), "logical mean of at least .90"),
        ((anomalies.FUSED, "scratch", 0.96), "at least .97 for scratch"),
        ((anomalies.COMAD, "swap", 0.56), "it is blind"),
        ((anomalies.COMAD, "swap", 0.39), "it is blind"),
        ((anomalies.PLACE, "swap", 0.89), "position alone"),
        ((anomalies.PLACED, "swap", 0.89), "ComAD + position + patches"),
    ],
)
def test_each_claim_has_its_bound(changed, claim):
    [broken] = judged_anomalies(one=changed)
    assert claim in broken


def test_comad_must_be_far_above_the_patch_memory():
    assert not judged_anomalies()
    near = {"comad": (anomalies.COMAD, "logical mean", 0.93), "patches": (anomalies.PATCHES, "logical mean", 0.64)}
    assert judged_anomalies(**near) == ["(1) logical mean: ComAD is at least .30 above the patch memory"]


def test_silencing_must_end_alarms_of_scratches_and_no_others():
    def judged(before=0.9, after=0.1, missing=0.95, score="fused"):
        rates = {"scratched_before": before, "scratched_after": after, "good_before": 0.1, "good_after": 0.08}
        row = line({"silenced": "grain", "score": score}, **rates, missing_before=0.98, missing_after=missing)
        return list(adjusting.expectations([row]).values())

    assert judged() == [True, True, True]
    assert judged(before=0.49) == [False, True, True], "there is nothing to silence"
    assert judged(after=0.14) == [True, False, True]
    assert judged(missing=0.92) == [True, True, False]
    assert judged(missing=0.0, score="patch memory") == [True, True], "which does not find them anyway"


def test_the_altered_component_must_be_named_in_four_of_five():
    def judged(missing, extra):
        rows = [line({"named": way}, missing=missing if way == naming.NAMED else 0.1, extra=extra) for way in naming.WAYS]
        return list(naming.expectations(rows).values())

    assert judged(0.8, 0.79) == [True, False]
    assert judged(0.79, 0.8) == [False, True]


def test_trimming_must_bear_an_incomplete_tray():
    def judged(**changed):
        rows = {(how, name): [0.95, 0.99] for how in ("sum", "zscore", "trimmed-z", "max", "rank") for name in (fusion.GOOD, fusion.DAMAGED)}
        rows["sum", fusion.GOOD], rows["zscore", fusion.DAMAGED] = [0.99, 0.9], [0.93, 0.99]
        rows |= {(how.replace("_", "-"), fusion.DAMAGED): value for how, value in changed.items()}
        summary = [line({"fusion": how, "validation": name}, logical_mean=a, scratch=b) for (how, name), (a, b) in rows.items()]
        return list(fusion.expectations(summary).values())

    assert judged() == [True] * 4
    assert judged(trimmed_z=[0.92, 0.99]) == [True, True, False, False]
    assert judged(zscore=[0.95, 0.9]) == [True, True, True, False]


def test_the_choices_of_the_configuration_must_pay():
    def judged(**changed):
        found = {name: [0.6, 0.97] for name in vocabulary.VARIANTS} | {vocabulary.TINY: [0.7, 0.97]} | changed
        return list(vocabulary.expectations([line({"vocabulary": name}, mIoU=a, logical_mean=b) for name, (a, b) in found.items()]).values())

    assert judged() == [True] * 3
    assert judged(**{vocabulary.RANDOM: [0.71, 0.9]}) == [False, True, True]
    assert judged(cosine=[0.71, 0.9], CRF=[0.5, 1.0]) == [True, False, False]


# ---- the jobs


@pytest.mark.parametrize("name", list(TABLES))
def test_jobs_of_a_table_have_names_and_settings_of_their_own(name, tmp_path):
    table = TABLES[name]
    jobs = table.jobs(tmp_path, [0, 1, 2], False)
    assert len({str(job) for job in jobs}) == len(jobs)
    assert len({repr((job.arguments, job.seed)) for job in jobs}) == len(jobs)
    per_seed = [[job.name for job in jobs if job.seed == seed] for seed in range(3)]
    assert per_seed[0] == per_seed[1] == per_seed[2]
    quick = table.jobs(tmp_path, [0], True)
    assert {job.name for job in quick} <= set(per_seed[0])
    assert {job.arguments[-1] for job in quick} == {worlds.QUICK}
    assert all(job.make.__module__.startswith("projects.comad.reproduction") for job in jobs), "processes find it"


@pytest.mark.parametrize("name", list(vocabulary.VARIANTS))
def test_variants_are_what_they_are_called(name):
    recipe, tiny = (vocabulary.unfitted(variant, 0).recipe for variant in (name, vocabulary.TINY))
    expected = {
        "k 5": {"k": 5},
        "k 12": {"k": 12},
        "cosine": {"metric": "cosine"},
        "CRF": {"crf": True},
        "cosine, CRF": {"metric": "cosine", "crf": True},
    }
    expected["vote"] = {"metrology": replace(tiny.metrology, filter="vote")}
    expected["k by silhouette"] = {"choose": "silhouette"}
    assert recipe == replace(tiny, **expected.get(name, {}))
    assert recipe.seed == worlds.FIRST_SEED


# ---- the worlds


def test_worlds_are_those_that_nothing_was_tuned_on():
    [tray] = worlds.draw("test", "scratch", 1, 2, "grain")
    assert torch.equal(tray.image, draw_tray("test", 0, "scratch", 13, on="grain").image)


def test_no_inspector_is_fitted_twice(kept, monkeypatch):
    monkeypatch.setattr(worlds, "learn", lambda *_: pytest.fail("it was fitted again"))
    inspector = worlds.fitted(kept, FEW._replace(tested=9), 0)
    assert inspector.judgement.parts == ("logical", "position", "patches")
    for other in ((FEW._replace(training=25), 0), (FEW._replace(validation=9), 0), (FEW, 1)):
        with pytest.raises(pytest.fail.Exception):
            worlds.fitted(kept, *other)


def test_scores_are_kept_by_trays_and_part(kept, inspector, monkeypatch):
    found = worlds.scored(kept, FEW, 0)
    assert set(found) == {"good", *worlds.KINDS, "validation", "outlier"}
    assert [len(found[name]["logical"]) for name in ("validation", "outlier", "swap")] == [8, 1, 2]
    [incomplete] = worlds.draw("validation", "missing", 1, 0)
    assert torch.equal(found["outlier"]["patches"], inspector.examine(incomplete.image[None]).scores["patches"])
    monkeypatch.setattr(worlds, "scores", lambda *_: pytest.fail("they were scored again"))
    again = worlds.scored(kept, FEW, 0)
    assert all(torch.equal(values, again[name][part]) for name, parts in found.items() for part, values in parts.items())


def test_aurocs_are_those_of_scikit_learn():
    chance = torch.Generator().manual_seed(0)
    scores = {kind: 5 * torch.randn(9, generator=chance).double() for kind in ("good", *worlds.LOGICAL, "scratch")}
    found = worlds.aurocs(scores)
    expected = {kind: roc_auc_score([0] * 9 + [1] * 9, torch.cat([scores["good"], scores[kind]])) for kind in scores if kind != "good"}
    expected["logical mean"] = sum(expected[kind] for kind in worlds.LOGICAL) / 4
    assert found == pytest.approx(expected, abs=1e-12)


# ---- the rows


def test_detectors_are_scores_of_one_inspector(kept):
    rows = {row["detector"]: row for row in anomalies.rows(kept, FEW, 0)}
    found = worlds.scored(kept, FEW, 0)
    assert list(rows) == list(anomalies.DETECTORS)

    def z(name, part):
        known = found["validation"][part].sort().values
        low, high = torch.quantile(known, torch.tensor([0.2, 0.8]).double())
        middle = known[(known >= low) & (known <= high)]
        return (found[name][part] - middle.mean()) / middle.std(correction=0)

    good, swapped = (z(name, "logical") + z(name, "patches") for name in ("good", "swap"))
    assert rows[anomalies.FUSED]["swap"] == pytest.approx(roc_auc_score([0, 0, 1, 1], torch.cat([good, swapped])))
    plain = torch.cat([found[name]["position"] for name in ("good", "swap")])
    assert rows[anomalies.PLACE]["swap"] == pytest.approx(roc_auc_score([0, 0, 1, 1], plain))


def test_what_is_mostly_drawn_as_a_surface_is_silenced(kept, inspector, monkeypatch):
    given = []
    weighed = adjusting.weighed
    monkeypatch.setattr(adjusting, "weighed", lambda inspector, weights, pictures: given.append(weights) or weighed(inspector, weights, pictures))
    rows = adjusting.rows(kept, FEW, 0)
    trays = worlds.draw("train", "good", 2, 0)
    labels = torch.cat([inspector.segment(tray.image[None]).argmax(1) for tray in trays])
    truth = torch.stack([tray.components for tray in trays])
    mostly = {cluster: COMPONENTS[int(truth[labels == cluster].mode().values)] for cluster in labels.unique().tolist()}
    assert given == [{}, *({cluster: 0.0 for cluster, name in mostly.items() if name == on} for on in ("floor", "grain"))]
    assert [(row["silenced"], row["score"]) for row in rows] == [(on, score) for on in ("floor", "grain") for score in adjusting.SCORES]
    scratched = [row for row in rows if row["score"] == "patch memory"]
    assert all(row["scratched before"] == 1 and row["scratched after"] < 1 for row in scratched)


def test_alarms_exceed_what_validation_does(inspector):
    found = {
        name: {"patches": torch.tensor(values).double()} for name, values in {"validation": range(21), "good": [18, 20, 5, 19], "grain": [30]}.items()
    }
    inspector.judged_by(replace(inspector.judgement, parts=("patches",)))
    assert adjusting.alarm_rates(inspector, found) == {"validation": 1 / 21, "good": 0.25, "grain": 1.0}


def test_a_name_is_right_if_all_that_is_named_is_altered():
    meanings = ["floor", "pin", "pin", "ring"]
    finding = Finding("number", (2,), -4.0, 2.0, 3.0)
    assert naming.judged([finding], "missing", meanings, ("pin",)) == (True, True)
    assert naming.judged([finding], "missing", meanings, ("ring",)) == (False, False)
    assert naming.judged([finding._replace(measure="elongation")], "missing", meanings, ("pin",)) == (True, False)
    assert naming.judged([finding._replace(measure="number of size 1")], "extra", meanings, ("pin",)) == (True, True)
    assert naming.judged([finding._replace(components=(1, 3))], "swap", meanings, ("pin", "ring"))[0]
    assert not naming.judged([finding._replace(components=(1, 0))], "swap", meanings, ("pin", "ring"))[0]
    assert naming.judged([], "fill", meanings, ("grain",)) == (False, False), "nothing stands out"


def test_a_random_component_is_right_as_often_as_it_is_altered(kept, inspector):
    rows = {row["named"]: row for row in naming.rows(kept, FEW, 0)}
    meanings = worlds.meanings(inspector, worlds.draw("train", "good", 2, 0))
    grain = [meanings[k] for k in inspector.metrology.components].count("grain")
    assert rows[naming.RANDOM]["fill"] == pytest.approx(grain / len(inspector.metrology.components))
    assert all(rows[naming.MEASURED][kind] <= rows[naming.NAMED][kind] for kind in naming.KINDS)


def test_an_incomplete_tray_stands_in_the_place_of_a_good_one(kept):
    found = worlds.scored(kept, FEW, 0)
    sets = fusion.validations(found)
    for part in fusion.PARTS:
        assert torch.equal(sets[fusion.DAMAGED][part], torch.cat([sets[fusion.GOOD][part][:7], found["outlier"][part]]))
    rows = fusion.rows(kept, FEW, 0)
    assert len({(row["fusion"], row["validation"]) for row in rows}) == 10
    assert all(0 <= row[column] <= 1 for row in rows for column in ("logical mean", "scratch", "false alarms", "found"))


def test_pieces_are_counted_as_they_were_drawn():
    trays = [draw_tray("test", 3, kind, 10) for kind in ("good", "missing", "extra", "wrongmix")]
    good, missing, extra, mix = vocabulary.drawn_numbers(trays).tolist()
    assert good == list(COUNTS.values())
    for found, tray, change in ((missing, trays[1], -1), (extra, trays[2], 1)):
        assert found == [count + change * (sort in tray.altered) for sort, count in COUNTS.items()]
    assert sum(mix[:2]) == 3
    assert mix != good


def test_pieces_of_what_is_no_component_are_not_counted(inspector):
    trays, first = worlds.draw("test", "good", 2, 0), inspector.metrology.components[-1]
    matched = {COMPONENTS.index("pin"): first, COMPONENTS.index("ring"): 99}
    counted = vocabulary.counted_numbers(inspector, trays, matched)
    numbers = [int(inspector.examine(tray.image[None]).measures.number[0, -1]) for tray in trays]
    assert counted.tolist() == [[0, 0, number, 0] for number in numbers]


def test_random_tokens_are_as_many_and_the_pictures_own():
    features = torch.randn(3, 8, 20, 20, generator=torch.Generator().manual_seed(0))
    chosen, greedy = (vocabulary.unfitted(name, 0) for name in (vocabulary.RANDOM, vocabulary.TINY))
    tokens = chosen.sample(features, 5)
    assert tokens.shape == greedy.sample(features, 5).shape == (12, 8)
    for own, picture in zip(tokens.split(4), features.flatten(2).mT, strict=True):
        assert (torch.cdist(own, picture, compute_mode="donot_use_mm_for_euclid_dist").min(1).values == 0).all()
    assert torch.equal(tokens[4:], chosen.sample(features[1:], 6)), "batches of any size give the same"


def test_figures_show_every_detector():
    summary = [{"detector": name} | {column: spread(0.9) for column in (*worlds.KINDS, "logical mean")} for name in anomalies.DETECTORS]
    [figure] = anomalies.figures(summary).values()
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == list(anomalies.DETECTORS)


def test_a_quick_run_makes_a_table(kept, run_folder, capsys, monkeypatch):
    scored = worlds.scored
    monkeypatch.setattr(worlds, "QUICK", FEW)
    monkeypatch.setattr(worlds, "scored", lambda folder, size, seed: scored(kept, size, seed))
    main(["reproduce", "--table", "anomalies", "--quick", "--run", "quick"])
    results = json.loads((run_folder / "comad" / "quick" / "results-anomalies.json").read_text())
    assert [row["detector"] for row in results["rows"]] == list(anomalies.DETECTORS)
    assert results["seeds"] == [0]
    assert results["expectations"] == {}
    assert "| patch memory |" in capsys.readouterr().out
