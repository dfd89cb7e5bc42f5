import math

import pytest
import torch

from shared.smoothing.analysis import (
    analyze,
    average_certified_radius,
    certified_accuracy,
    envelope,
    high_probability,
    probability_bounds,
    short_names,
    summarise,
)
from shared.smoothing.bounds import clopper_pearson_lower
from shared.smoothing.log import CertificationLog, Row, table
from shared.smoothing.tables import read_table


def make(path, rows):
    path.write_text(table(rows))
    return read_table(path)


@pytest.fixture
def rows():
    return [Row(0, 1, 1, 0.5, 1), Row(1, 1, 2, 0.9, 1), Row(2, 0, 0, 0.25, 1), Row(3, 0, -1, 0.0, 1)]


def test_figures_count_all_images(tmp_path, rows):
    found = summarise(make(tmp_path / "a", rows), [0.0, 0.25, 0.3, 0.6], alpha=0.001)
    assert found.certified_accuracy == [0.5, 0.5, 0.25, 0.0]
    assert found.average_certified_radius == pytest.approx(0.75 / 4)
    assert (found.abstention, found.images) == (0.25, 4)


def test_rows_without_a_radius_are_not_correct_at_zero(tmp_path):
    assert certified_accuracy(make(tmp_path / "a", [Row(0, 1, 1, 0.0, 1)]), [0.0]).item() == 0


def test_envelope_takes_the_best_noise_at_each_radius(tmp_path, rows):
    other = [Row(row.index, row.label, row.label, 0.1, 1) for row in rows]
    tables = [make(tmp_path / "a", rows), make(tmp_path / "b", other)]
    assert envelope(tables, [0.1, 0.2]).tolist() == [1.0, 0.5]
    with pytest.raises(ValueError, match="same images"):
        envelope([tables[0], make(tmp_path / "c", other[:3])], [0.0])


@pytest.mark.parametrize("count", [500, 10_000, 50_000])
def test_claims_about_a_data_set_hold_as_often_as_they_say(count):
    """The share of false certificates exceeds what is taken off with a probability of at most rho, and one image less would be too few."""
    taken = round((0.8 - high_probability(torch.tensor([0.8], dtype=torch.float64), count, 0.001, rho=0.001).item()) * count)
    assert 1 - sum(math.comb(count, k) * 0.001**k * 0.999 ** (count - k) for k in range(taken + 1)) <= 0.001
    assert 1 - sum(math.comb(count, k) * 0.001**k * 0.999 ** (count - k) for k in range(taken)) > 0.001


def test_tables_of_predictions_are_refused(tmp_path):
    (tmp_path / "log").write_text("idx\tlabel\tpredict\tcorrect\ttime\n0\t3\t3\t1\t0:00:01\n")
    with pytest.raises(ValueError, match="table of predictions"):
        average_certified_radius(read_table(tmp_path / "log"))


LOGGED = {"sigmas": [0.25, 0.25], "classes": 3, "alpha": 0.01, "anytime": False, "draws": 100}


def logged(folder, rows, **settings):
    votes = {"selection": [{"0": 9}, {"2": 1, "invalid": 7}], "estimation": [{"0": 90, "1": 10}, {"0": 60, "invalid": 40}], "draws": 100}
    with CertificationLog(folder, LOGGED | settings) as log:
        for row in rows:
            log.append(Row(row.index, row.label, row.predicted, row.radius, row.seconds, votes))
        return log.merge()


def test_files_are_analyzed_with_what_their_logs_say(tmp_path, rows):
    (tmp_path / "theirs.tsv").write_text(table(rows))
    ours = logged(tmp_path / "drs", rows, anytime=True)
    found = analyze([tmp_path / "theirs.tsv", ours], radii=[0.3, 0.0, 0.3])
    assert (found.radii, found.envelope) == ([0.0, 0.3], [0.5, 0.25])
    theirs, own = found.summaries.values()
    assert theirs.high_probability == high_probability(torch.tensor([0.5, 0.25]).double(), 4, 0.001).tolist()
    assert own.high_probability == high_probability(torch.tensor([0.5, 0.25]).double(), 4, 0.01).tolist()
    assert ["drs" in found.bounds, len(found.bounds)] == [True, 1]
    assert any("ended early" in note for note in found.notes)
    assert analyze([ours]).radii == [0.0, 0.25, 0.5]
    assert analyze([ours]).envelope is None


def test_tables_of_different_images_have_no_envelope(tmp_path, rows):
    for name, part in (("a", rows), ("b", rows[:3])):
        (tmp_path / name).write_text(table(part))
    found = analyze([tmp_path / "a", tmp_path / "b"])
    assert found.envelope is None
    assert "same images" in found.notes[0]


def test_bounds_are_those_of_the_selected_class(tmp_path, rows):
    votes = {"selection": [{"0": 9}, {"2": 1, "invalid": 7}], "estimation": [{"0": 90, "1": 10}, {"0": 60, "invalid": 40}], "draws": 100}
    found = probability_bounds(LOGGED, [Row(0, 1, -1, 0.0, 1, votes)])
    assert torch.equal(found[0], clopper_pearson_lower(torch.tensor([90, 60]), 100, 0.005))


@pytest.mark.parametrize(
    ("files", "names"),
    [
        (["a/certify.tsv"], ["a"]),
        (["x/s0.25/certify.tsv", "x/s0.5/certify.tsv"], ["s0.25", "s0.5"]),
        (["x/s/certify.tsv", "y/s/certify.tsv"], ["x/s", "y/s"]),
        (["x/sigma_0.25.tsv", "x/sigma_0.5.tsv"], ["sigma_0.25", "sigma_0.5"]),
        (["x/sigma_0.25", "x/sigma_0.50"], ["sigma_0.25", "sigma_0.50"]),
    ],
)
def test_names_tell_tables_apart(files, names):
    assert short_names(files) == names


@pytest.mark.parametrize(("files", "message"), [([], "no table"), (["a", "a"], "given twice")])
def test_files_that_cannot_be_analyzed_are_named(files, message):
    with pytest.raises(ValueError, match=message):
        analyze(files)
