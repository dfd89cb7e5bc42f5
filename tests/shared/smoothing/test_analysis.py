import math

import pytest
import torch

from shared.smoothing.analysis import average_certified_radius, certified_accuracy, envelope, high_probability, summarise
from shared.smoothing.log import Row, table
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


def test_claim_about_a_data_set_is_cohens():
    expected = 0.8 - 0.001 - math.sqrt(0.001 * 0.999 * math.log(1000) / 500) - math.log(1000) / 1500
    assert high_probability(torch.tensor([0.8], dtype=torch.float64), 500, 0.001).item() == pytest.approx(expected)


def test_tables_of_predictions_are_refused(tmp_path):
    (tmp_path / "log").write_text("idx\tlabel\tpredict\tcorrect\ttime\n0\t3\t3\t1\t0:00:01\n")
    with pytest.raises(ValueError, match="table of predictions"):
        average_certified_radius(read_table(tmp_path / "log"))
