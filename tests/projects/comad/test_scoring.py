import json

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors

from projects.comad.measures import Column, Group, Measures, pack
from projects.comad.naming import Finding, Rule, as_rows, check_rules, deviations, name_anomalies, sentence, z_scores
from projects.comad.scoring import LogicalScorer, cluster_weights, nearest_distances, nearest_kinds, weighing


def drawn(count, seed=0, components=(1, 3), size=(8, 12)):
    """Measures of two components of four clusters, the second with two size classes."""
    rng = torch.Generator().manual_seed(seed)
    m = len(components)
    names = {"global": ["area", "colour"], "position": ["x", "y"]}
    columns = {group: tuple(Column(name, (k,)) for name in both for k in components) for group, both in names.items()}
    near = 1 + 0.05 * torch.randn(count, 2 * m, generator=rng, dtype=torch.float64)
    place = torch.randn(count, 2 * m, generator=rng, dtype=torch.float64)
    raw = near * torch.tensor([200.0, 100.0, 1.5, 2.5])
    histograms = (torch.full((count, 1), 3), torch.tensor([[1, 2]]).repeat(count, 1))
    masks = torch.zeros(count, m, *size, dtype=torch.bool)
    masks[:, 0, :4, :4] = masks[:, 1, 4:, 6:] = True
    groups = {"global": Group(columns["global"], raw, near), "position": Group(columns["position"], 0.5 + 0.02 * place, place)}
    return Measures(components, groups, histograms, pack(masks), size)


def changed(measures, area=None, number=None, position=None):
    """The measures with the first component's area, the second's histogram, or the first's x changed."""
    groups = {name: Group(group.columns, group.raw.clone(), group.normalised.clone()) for name, group in measures.groups.items()}
    histograms = [histogram.clone() for histogram in measures.histograms]
    if area is not None:
        groups["global"].normalised[:, 0], groups["global"].raw[:, 0] = area, 200 * area
    if number is not None:
        histograms[1][:] = torch.tensor(number)
    if position is not None:
        groups["position"].normalised[:, 0] = position
    return Measures(measures.components, groups, tuple(histograms), measures.masks, measures.size)


TRAINING = drawn(30)
SCORER = LogicalScorer(TRAINING)


def test_nearest_distances_are_those_of_scikit_learn():
    rng = torch.Generator().manual_seed(0)
    points, known = torch.randn(20, 4, generator=rng), torch.randn(50, 4, generator=rng)
    oracle = NearestNeighbors(n_neighbors=6).fit(known.double().numpy())
    distances, indices = oracle.kneighbors(points.double().numpy(), 5)
    mean, nearest = nearest_distances(points, known)
    np.testing.assert_allclose(mean.numpy(), distances.mean(1), rtol=1e-12)
    assert nearest.tolist() == indices[:, 0].tolist()
    own, _ = oracle.kneighbors(known.double().numpy(), 6)
    left_out, _ = nearest_distances(known, known, leave_out=True)
    np.testing.assert_allclose(left_out.numpy(), own[:, 1:].mean(1), rtol=1e-12)
    assert (left_out > 0).all()
    assert (nearest_distances(known, known)[0] < left_out).all()


def test_few_training_pictures_are_all_compared_with():
    known = torch.tensor([[0.0], [1.0], [3.0]])
    assert nearest_distances(torch.tensor([[0.0]]), known)[0].item() == pytest.approx(4 / 3)
    assert nearest_distances(known, known, leave_out=True)[0].tolist() == [2, 1.5, 2.5]
    with pytest.raises(ValueError, match="give at least 2"):
        nearest_distances(known[:1], known[:1], leave_out=True)


def test_the_score_is_the_equation_of_the_paper():
    test = changed(drawn(4, 1), number=(2, 4))
    scores = SCORER.score(test)
    for row in range(4):
        g, known = test.groups["global"].normalised[row], TRAINING.groups["global"].normalised
        s_global = sorted((known - g).norm(dim=1).tolist())[:5]
        s_number = 0.5 * 0 / 1**2 + 0.5 * (1 + 4) ** 0.5 / 2**2  # all nearest are (1, 2)
        assert float(scores.parts["global"][row]) == pytest.approx(sum(s_global) / 5)
        assert float(scores.parts["number"][row]) == pytest.approx(s_number)
        assert float(scores.logical[row]) == pytest.approx(sum(s_global) / 5 + s_number)
        nearest = int((known - g).norm(dim=1).argmin())
        apart = (g - known[nearest]).abs()
        expected = [float(apart[0] + apart[2]), float(apart[1] + apart[3]) + s_number]
        assert scores.contributions["logical"][row].tolist() == pytest.approx(expected)
        assert int(scores.nearest["logical"][row]) == nearest
    assert list(scores.parts) == ["global", "number", "logical", "position"]


def test_training_scores_leave_each_picture_out():
    scores = SCORER.training_scores()
    for row in (0, 7, 29):
        others = LogicalScorer(TRAINING.take([n for n in range(30) if n != row]))
        alone = others.score(TRAINING.take([row]))
        for name, part in scores.parts.items():
            assert float(part[row]) == pytest.approx(float(alone.parts[name]))
    assert (scores.logical > SCORER.score(TRAINING).logical).all()


def test_anomalies_score_higher_than_good_pictures():
    good, test = drawn(40, 1), changed(drawn(40, 2), area=1.4, number=(1, 3))
    scores = torch.cat([SCORER.score(good).logical, SCORER.score(test).logical])
    assert roc_auc_score([0] * 40 + [1] * 40, scores) == 1


def test_a_component_without_weight_is_silent():
    good, test = drawn(5, 1), changed(drawn(5, 1), area=9.0, position=50.0)
    weights = cluster_weights(4, torch.tensor([False, True, False, True]), {1: 0.0})
    assert (SCORER.score(test).logical > 5 + SCORER.score(good).logical).all()
    for name, part in SCORER.score(test, weights).parts.items():
        torch.testing.assert_close(part, SCORER.score(good, weights).parts[name])
    assert (SCORER.score(test, weights).contributions["logical"][:, 0] == 0).all()
    numbers = changed(good, number=(7, 7))
    muted = torch.tensor([1.0, 1, 1, 0])
    assert (SCORER.score(numbers).parts["number"] > 0.5).all()
    assert (SCORER.score(numbers, muted).parts["number"] == 0).all()


def test_weights_multiply_measures_and_number_terms():
    test, weights = changed(drawn(3, 4), number=(1, 5)), torch.tensor([1.0, 2.0, 1.0, 0.5])
    by = torch.tensor([2.0, 0.5, 2.0, 0.5], dtype=torch.float64)
    expected, _ = nearest_distances(test.groups["global"].normalised * by, TRAINING.groups["global"].normalised * by)
    scores = SCORER.score(test, weights)
    torch.testing.assert_close(scores.parts["global"], expected)
    torch.testing.assert_close(scores.parts["number"], 0.5 * SCORER.score(test).parts["number"])
    torch.testing.assert_close(SCORER.score(test, torch.ones(4)).logical, SCORER.score(test).logical)


def test_weights_of_clusters_are_checked():
    keep = torch.tensor([False, True, True])
    assert cluster_weights(3, keep, {2: 0.5}, background=0).tolist() == [0, 1, 0.5]
    assert cluster_weights(3, keep, {0: 2.0}, background=0).tolist() == [2, 1, 1]
    with pytest.raises(ValueError, match="no component 3: clusters are numbered from 0 to 2"):
        cluster_weights(3, keep, {3: 1.0})
    with pytest.raises(ValueError, match="must not be negative"):
        cluster_weights(3, keep, {1: -1.0})


def test_a_structural_map_is_weighted_by_components():
    rng = torch.Generator().manual_seed(0)
    anomaly, heat = torch.rand(2, 1, 5, 6, generator=rng), torch.rand(2, 3, 5, 6, generator=rng).softmax(1)
    weights = torch.tensor([0.0, 1.0, 2.0])
    expected = anomaly * (heat[:, 1:2] + 2 * heat[:, 2:3])
    torch.testing.assert_close(anomaly * weighing(heat, weights), expected)
    torch.testing.assert_close(anomaly * weighing(heat, torch.ones(3)), anomaly)
    assert (anomaly * weighing(heat, torch.zeros(3)) == 0).all()
    levels = (heat * 128).round().to(torch.uint8)
    torch.testing.assert_close(anomaly * weighing(levels, weights), expected, atol=0.02, rtol=0)


def test_missing_parts_show_where_good_pictures_have_them():
    test = changed(drawn(1, 1), area=0.0)
    missing = test.unpacked()
    missing[:, 0] = False
    test = Measures(test.components, test.groups, test.histograms, pack(missing), test.size)
    scores = SCORER.score(test)
    shown = SCORER.localise(test, scores)
    assert shown.shape == (1, 1, 8, 12)
    e = scores.contributions["logical"][0]
    assert float(shown[0, 0, 1, 1]) == pytest.approx(float(e[0]))
    assert float(e[0]) > 0.8
    assert float(shown[0, 0, 6, 9]) == pytest.approx(float(e[1]))
    assert float(shown[0, 0, 1, 9]) == 0
    with pytest.raises(ValueError, match="use one size"):
        SCORER.localise(drawn(1, size=(8, 8)), scores)


def test_a_scorer_is_restored_from_plain_values(tmp_path):
    torch.save(LogicalScorer(TRAINING, 3).state(), tmp_path / "s.pt")
    again = LogicalScorer.from_state(torch.load(tmp_path / "s.pt", weights_only=True))
    assert again.neighbours == 3
    for name, part in again.score(drawn(4, 9)).parts.items():
        assert torch.equal(part, LogicalScorer(TRAINING, 3).score(drawn(4, 9)).parts[name])


def test_z_scores_of_training_pictures_leave_them_out():
    values = torch.randn(12, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = z_scores(values, values, 0.01, leave_out=True)
    for row in range(12):
        others = values[[n for n in range(12) if n != row]]
        torch.testing.assert_close(found[row], (values[row] - others.mean(0)) / others.std(0, correction=0))
    torch.testing.assert_close(z_scores(values, values, 0.01), (values - values.mean(0)) / values.std(0, correction=0))
    same = torch.full((5, 1), 2.0)
    assert z_scores(torch.tensor([[3.0]]), same, 0.25).item() == 4  # the floor
    with pytest.raises(ValueError, match="give at least 2"):
        z_scores(same[:1], same[:1], 0.25, leave_out=True)


def test_anomalies_are_named_by_component_and_measure():
    test = changed(drawn(1, 1), area=1.6)
    (found,) = name_anomalies(test, TRAINING)
    assert (found[0].measure, found[0].components, found[0].value) == ("area", (1,), 320)
    assert found[0].deviations > 8
    assert found[0].usual == pytest.approx(200, abs=10)
    assert sentence(found) == f"component 1: area {found[0].deviations:+.1f} sd"
    assert sentence(found, {1: "nuts"}).startswith("nuts: area +")
    assert json.loads(json.dumps(as_rows(found)))[0]["components"] == [1]


def test_numbers_are_named_beside_the_usual_ones():
    test = changed(drawn(1, 1), number=(1, 5), area=0.4)
    columns, _, raw, usual = deviations(test, TRAINING)
    names = [(column.measure, column.components) for column in columns]
    assert ("number", (1,)) in names
    assert ("number of size 1", (3,)) in names
    assert ("number of size 0", (1,)) not in names
    assert (float(raw[0, names.index(("number", (3,)))]), float(usual[names.index(("number", (3,)))])) == (6, 3)
    (found,) = name_anomalies(test, TRAINING, weights=torch.tensor([1.0, 0.0, 1.0, 1.0]))
    assert sentence(found) == "component 3: number 6 instead of 3"
    (found,) = name_anomalies(changed(drawn(1, 1), area=0.4), TRAINING)
    assert found[0].deviations < -8
    assert "area -" in sentence(found)


def test_of_a_good_picture_nothing_is_said():
    assert [sentence(found) for found in name_anomalies(TRAINING, TRAINING, bound=6, leave_out=True)] == ["nothing stands out"] * 30


def test_undefined_values_are_none_in_json():
    test = changed(drawn(1, 1), area=0.0)
    test.groups["global"].raw[0, 2] = torch.nan
    test.groups["global"].normalised[0, 2] = 40.0
    (found,) = name_anomalies(test, TRAINING)
    assert found[0].measure == "colour"
    assert as_rows(found)[0]["value"] is None


def test_rules_are_checked_beside_the_score():
    test = changed(drawn(2, 1), area=1.6, number=(1, 3))
    rules = [Rule(3, "number", 3, 3), Rule(1, "area", 0.8, 1.2), Rule(1, "pixels", high=1000), Rule.parse("1:number:3:3"), Rule.parse("3:x::0.9")]
    for broken in check_rules(test, rules):
        assert [violation.text for violation in broken] == ["component 3: number 4 is above 3", "component 1: area 1.6 is above 1.2"]
        assert [violation.value for violation in broken] == pytest.approx([4, 1.6])
    low = check_rules(test, [Rule(1, "area", low=2)])
    assert low[0][0].text == "component 1: area 1.6 is below 2"
    test.groups["global"].raw[:, 2] = torch.nan
    assert check_rules(test, [Rule(1, "colour", 5, 6)]) == [[], []]  # the colour of nothing


def test_rules_that_will_not_do_are_named():
    with pytest.raises(ValueError, match="components are 1, 3"):
        check_rules(TRAINING, [Rule(2, "area", 1)])
    with pytest.raises(ValueError, match="measures are number, area, colour, x, y, pixels"):
        check_rules(TRAINING, [Rule(1, "size", 1)])
    for wrong in ("1:area", "a:area:1:2", "1:area:2:1", "1:area::", "1:area:nan:2"):
        with pytest.raises(ValueError, match="write component:measure:low:high"):
            Rule.parse(wrong)


def test_a_few_labelled_anomalies_name_kinds():
    labelled = torch.tensor([[0.0, 0], [0.1, 0], [5, 5], [5.1, 5], [9, 0]])
    kinds = ["missing", "missing", "extra", "extra", "swap"]
    assert nearest_kinds(torch.tensor([[0.0, 0.1], [5, 5.2], [8.8, 0]]), labelled, kinds) == ["missing", "extra", "extra"]
    assert nearest_kinds(torch.tensor([[8.8, 0.0]]), labelled, kinds, neighbours=1) == ["swap"]


def test_sizes_are_named_where_the_number_in_all_is_usual():
    found = [Finding(f"number of size {size}", (3,), 9.0 - size, 0.0, 3.0) for size in range(6)]
    said = sentence(found)
    assert said.startswith("component 3: number of size 0: 0 instead of 3; number of size 1: 0 instead of 3; ")
    assert said.count("instead") == 4
