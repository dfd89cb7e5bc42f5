"""Pictures of a search: what is drawn is what was given, and labels can be read."""

from collections import Counter

import matplotlib
import pytest
import torch

from projects.forgery_nas.drawings import importance_map, operation_histogram, scores_over_parameters
from projects.forgery_nas.genotype import RELEASED, edges, histogram
from projects.forgery_nas.operations import SMALL_SPACE, SPACE

matplotlib.use("agg")


def boxes(figure, texts):
    """Return the boxes of texts in pixels, once the figure is laid out."""
    figure.draw_without_rendering()
    return [text.get_window_extent() for text in texts if text.get_text()]


@pytest.mark.parametrize("nodes", [1, 2, 4])
def test_an_importance_map_shows_the_living_candidates_of_each_edge(nodes):
    random = torch.Generator().manual_seed(nodes)
    shape = (2, len(edges(nodes)), len(SPACE))
    values, alive = torch.rand(shape, generator=random), torch.rand(shape, generator=random) < 0.5
    figure = importance_map(values, alive, SPACE, "softmax(alpha)")
    for number, (axes, title) in enumerate(zip(figure.axes, ("normal cell", "reduction cell"), strict=False)):
        [picture] = axes.images
        drawn = picture.get_array()
        assert axes.get_title() == title
        assert torch.equal(torch.from_numpy(~drawn.mask), alive[number])
        assert torch.equal(torch.from_numpy(drawn.filled(0)), values[number] * alive[number])
        assert picture.get_clim() == (float(values[alive].min()), float(values[alive].max())), "both cells have one scale"
        assert [label.get_text() for label in axes.get_xticklabels()] == [*SPACE]
    assert len(figure.axes[0].get_yticklabels()) == len(edges(nodes))
    assert figure.axes[-1].get_ylabel() == "softmax(alpha)"


def test_edges_are_named_by_their_ends():
    figure = importance_map(torch.rand(2, 5, 3), torch.ones(2, 5, 3, dtype=torch.bool), ("skip_connect", "max_pool_3x3", "none"), "importance")
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert names == ["c$_{k-2}$ → 0", "c$_{k-1}$ → 0", "c$_{k-2}$ → 1", "c$_{k-1}$ → 1", "0 → 1"]


def test_labels_of_edges_do_not_touch():
    shape = (2, len(edges(4)), len(SPACE))
    figure = importance_map(torch.rand(shape), torch.ones(shape, dtype=torch.bool), SPACE, "softmax(alpha)")
    found = boxes(figure, figure.axes[0].get_yticklabels())
    assert not any(one.overlaps(other) for number, one in enumerate(found) for other in found[:number])
    assert all(figure.bbox.contains(*corner) for box in found for corner in (box.min, box.max))


def test_a_histogram_has_a_bar_for_each_operation_and_cell():
    counts = histogram(RELEASED)
    axes = operation_histogram(counts, [*SMALL_SPACE]).axes[0]
    names = [name for name in SMALL_SPACE if name != "none"]
    assert [label.get_text() for label in axes.get_yticklabels()] == names
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["normal cell", "reduction cell"]
    for bars, cell in zip(axes.containers, ("normal", "reduce"), strict=True):
        assert [bar.get_width() for bar in bars] == [counts[cell][name] for name in names]


def test_an_empty_cell_can_be_drawn():
    axes = operation_histogram({"normal": Counter(), "reduce": Counter(skip_connect=2)}, ["skip_connect"]).axes[0]
    assert [bar.get_width() for bars in axes.containers for bar in bars] == [0, 2]


def test_networks_are_drawn_by_kind_and_random_ones_are_not_named():
    rows = [
        {"network": name, "kind": kind, "parameters": 10**place, "mean": place / 10}
        for place, (name, kind) in enumerate([("released", "given"), ("random 0", "random"), ("random 1", "random"), ("meso4", "hand-made")], 3)
    ]
    figure = scores_over_parameters(rows, "mean", "AUC")
    [axes] = figure.axes
    assert [text.get_text() for text in axes.texts] == ["released", "meso4"]
    drawn = {points.get_label(): points.get_offsets().tolist() for points in axes.collections}
    assert drawn == {"given": [[1e3, 0.3]], "random": [[1e4, 0.4], [1e5, 0.5]], "hand-made": [[1e6, 0.6]]}
    assert axes.get_ylabel() == "AUC"


def test_names_of_networks_can_be_read():
    """The cells with theta 0 have as many parameters as those given, and often a score that is nearly the same."""
    given = [("searched", "given", 7000, 0.91), ("searched, theta 0", "plain convolutions", 7000, 0.911), ("released", "released", 7800, 0.8)]
    given += [("meso4", "hand-made", 28_000, 0.7), ("mobilenetv3_small_100", "hand-made", 1_500_000, 0.85)]
    rows = [dict(zip(("network", "kind", "parameters", "mean"), row, strict=True)) for row in given]
    figure = scores_over_parameters(rows, "mean", "AUC")
    found = boxes(figure, [*figure.axes[0].texts, *figure.legends[0].get_texts(), *figure.axes[0].get_xticklabels()])
    assert not any(one.overlaps(other) for number, one in enumerate(found[:-1]) for other in found[number + 1 :])
    assert all(figure.bbox.contains(*corner) for box in found[:5] for corner in (box.min, box.max))
