"""The table and the lines that a test ends with."""

from __future__ import annotations

import pytest

from projects.vafl.predicting import draw_missing, missing_rows, quality_line

WITHOUT = {"without_0_accuracy": 0.7, "without_0_auroc": 0.8, "without_1_accuracy": 0.91, "without_1_auroc": 0.95}
FOUND = {"accuracy": 0.9, "auroc": 0.95, "loss": 0.3} | WITHOUT


def test_a_row_says_what_is_lost_without_a_client():
    first, second = missing_rows(FOUND)
    assert first == {"client": 0, "accuracy": 0.7, "accuracy_lost": pytest.approx(0.2), "auroc": 0.8, "auroc_lost": pytest.approx(0.15)}
    assert (second["client"], second["accuracy_lost"]) == (1, pytest.approx(-0.01))
    axes = draw_missing([first, second], FOUND).axes
    assert [[bar.get_height() for bar in axis.patches] for axis in axes] == [pytest.approx([0.2, -0.01]), pytest.approx([0.15, 0.0])]


def test_more_than_two_classes_have_no_auroc():
    found = {name: value for name, value in FOUND.items() if "auroc" not in name}
    assert list(missing_rows(found)[0]) == ["client", "accuracy", "accuracy_lost"]
    assert quality_line("all clients", found, "") == "all clients: accuracy 0.9000, loss 0.3000"
    assert quality_line("noisy", {"noisy_accuracy": 0.5, "noisy_auroc": 0.6}, "noisy_") == "noisy: accuracy 0.5000, AUROC 0.6000"
