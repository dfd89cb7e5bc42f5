import pytest
import torch

from shared.smoothing.analysis import certified_accuracy, envelope
from shared.smoothing.log import Row, table
from shared.smoothing.plots import figure, histogram
from shared.smoothing.tables import read_table


@pytest.fixture
def tables(tmp_path):
    generator, made = torch.Generator().manual_seed(0), {}
    for name, sigma in (("sigma 0.25", 0.25), ("sigma 0.5", 0.5)):
        radii = (sigma * (torch.randn(40, generator=generator) + 0.5 / sigma)).clamp_min(0).tolist()
        (tmp_path / "log").write_text(table([Row(i, i % 3, i % 3 if r > 0 and i % 7 else -1, r if i % 7 else 0.0, 1.0) for i, r in enumerate(radii)]))
        made[name] = read_table(tmp_path / "log")
    return made


def value(line, radius):
    """What a step line with where="pre" shows at a radius."""
    return next(y for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True) if x >= radius)


def test_curves_are_the_certified_accuracies(tables):
    axes = figure(tables, [0.0, 0.25, 0.5, 0.75]).axes[0]
    *curves, best = axes.get_lines()
    for radius in (1e-9, 0.1, 0.25, 0.4999, 0.77, *tables["sigma 0.25"].radius[1:4].tolist()):
        expected = [100 * certified_accuracy(each, [radius]).item() for each in tables.values()]
        assert [value(curve, radius) for curve in curves] == pytest.approx(expected)
        assert value(best, radius) == pytest.approx(100 * envelope(list(tables.values()), [radius]).item())
    assert [curve.get_ydata()[-1] for curve in axes.get_lines()] == [0, 0, 0]
    assert (axes.get_xlim()[0], axes.get_ylim()) == (0, (0, 100))
    assert "ACR 0." in axes.get_legend().get_texts()[0].get_text()
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["0", "0.25", "0.5", "0.75"]


def test_tables_without_certificates_are_drawn(tmp_path):
    (tmp_path / "log").write_text(table([Row(0, 1, -1, 0.0, 1.0)]))
    axes = figure({"nothing": read_table(tmp_path / "log")}).axes[0]
    assert len(axes.get_lines()) == 1
    assert set(axes.get_lines()[0].get_ydata()) == {0}
    with pytest.raises(ValueError, match="no table"):
        figure({})


def test_a_panel_a_table_of_bounds():
    drawn = histogram({"rs": torch.rand(50, 1), "drs": torch.rand(50, 2)})
    assert [axes.get_title(loc="left") for axes in drawn.axes] == ["rs", "drs"]
    assert [sum(bar.get_height() for bar in axes.patches) for axes in drawn.axes] == [50, 100]
    with pytest.raises(ValueError, match=r"certify\.jsonl"):
        histogram({})
