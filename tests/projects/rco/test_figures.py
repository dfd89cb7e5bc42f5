"""What figures of routes, walks and comparisons show, and what the callback keeps for them."""

import math
from pathlib import Path

import numpy as np
import pytest

from projects.rco.anchors import AnchorRecorder, Route, State
from projects.rco.data import DistillationData
from projects.rco.figures import WalkFigure, draw_comparison, draw_gap, draw_hardness, draw_number, draw_route, draw_walk
from projects.rco.module import RouteDistillation
from projects.rco.objectives import Loss
from projects.rco.teaching import Teacher
from projects.rco.walking import Walk
from shared.callbacks import ResumePoint
from shared.dashboards import validate
from shared.quiet import quiet_trainer, silence

MATRIX = {1: {1: 1.0, 5: 1.5, 9: 2.5}, 5: {5: 1.0, 9: 1.2}}


def route(accuracies=(), rates=()):
    history = tuple(State(e, f"{e}", rates[e - 1] if rates else None, {"val/accuracy": accuracies[e - 1]} if accuracies else {}) for e in range(1, 5))
    return Route(Path("route"), {}, history, history, is_complete=True)


def walked(anchors, **curves):
    return [{"epoch": e, "anchor": anchor} | {name: values[e - 1] for name, values in curves.items()} for e, anchor in enumerate(anchors, start=1)]


def test_anchors_lie_on_the_teachers_accuracy():
    (axis,) = draw_route(route([0.5, 0.6, 0.9, 1.0]), [2, 4]).axes
    assert axis.lines[0].get_xydata().tolist() == [[1, 0.5], [2, 0.6], [3, 0.9], [4, 1.0]]
    stored, anchors = (points.get_offsets().tolist() for points in axis.collections[:2])
    assert (stored, anchors) == ([[1, 0.5], [3, 0.9]], [[2, 0.6], [4, 1.0]])
    assert [text.get_text() for text in axis.texts] == ["2", "4"]


def test_the_learning_rate_is_drawn_where_it_changes():
    assert len(draw_route(route([0.5] * 4, [0.1] * 4), [4]).axes) == 1
    _, below = draw_route(route([0.5] * 4, [0.1, 0.1, 0.01, 0.01]), [4]).axes
    assert below.lines[0].get_ydata().tolist() == [0.1, 0.1, 0.01, 0.01]
    draw_route(route(), [2, 4]).canvas.draw()


def test_a_walk_shows_what_is_known_with_a_shade_a_leg():
    figure = draw_walk(walked([3, 3, 6, 9, 9], congruence=[0.6, 0.5, 0.3, 0.1, 0.05], loss=[0.5, 0.4, 0.3, 0.2, 0.0]))
    congruence, loss = figure.axes
    spans = [(patch.get_x(), patch.get_x() + patch.get_width()) for patch in congruence.patches]
    assert spans == [(0, 2), (2, 3), (3, 5)]
    assert [text.get_text() for text in congruence.texts] == ["3", "6", "9"]
    assert (congruence.get_yscale(), loss.get_yscale()) == ("log", "linear"), "a loss of 0 has no logarithm"
    assert len(draw_walk(walked([4], accuracy=[0.5])).axes) == 1
    assert draw_walk(walked([4, 4], loss=[0.11, 0.06])).axes[0].get_yscale() == "linear", "of a narrow range a logarithm has hardly a number"


def test_shades_of_hardness_tell_the_side_of_the_boundary():
    figure = draw_hardness(MATRIX, 0.8, [1, 5, 9])
    axis = figure.axes[0]
    shades = axis.images[0].get_array()
    np.testing.assert_allclose(shades[0], np.log(np.array([1.0, 1.5, 2.5]) / 1.8))
    assert math.isnan(shades.filled(np.nan)[1, 0])
    assert [text.get_text() for text in axis.texts] == ["1.00", "1.50", "2.50", "1.00", "1.20"]
    assert [patch.get_xy() for patch in axis.patches] == [(0.5, -0.5), (1.5, 0.5)]
    (boundary,) = axis.collections
    assert boundary.get_segments()[0].tolist() == [[1.5, -0.5], [1.5, 0.5]]


def test_a_gap_of_embeddings_has_no_accuracy():
    rows = [{"state": state, "congruence": 0.1 * state, "final_congruence": 0.5} for state in (1, 5)]
    assert len(draw_gap(rows).axes) == 1
    (_, right) = draw_gap([row | {"accuracy": 0.6, "teacher_accuracy": 0.7} for row in rows]).axes
    assert [line.get_ydata()[0] for line in right.lines] == [0.7, 0.6]


@pytest.mark.parametrize("cell", [[0.8, 0.9, 1.0], {"mean": 0.9, "std": 0.1, "n": 3}], ids=["seeds", "summary"])
def test_comparisons_show_means_of_seeds_or_of_summaries(cell):
    left, right = draw_comparison(
        [{"name": "labels", "accuracy": cell, "congruence": None}, {"name": "KD", "accuracy": cell, "congruence": cell}]
    ).axes
    assert [text.get_text() for text in left.get_yticklabels()] == ["labels", "KD"]
    bars = [[line for line in axis.lines if len(line.get_xdata()) == 2 and line.get_ydata()[0] != line.get_ydata()[1]] for axis in (left, right)]
    assert [len(each) for each in bars] == [2, 1]
    assert all(line.get_xdata() == pytest.approx([0.9, 0.9]) for each in bars for line in each)
    (axis,) = draw_number([{"anchors": 1, "accuracy": cell}, {"anchors": {"mean": 4.0, "std": 0.0, "n": 3}, "accuracy": cell}]).axes
    line, bars = axis.containers[0].lines[0], axis.containers[0].lines[2][0]
    np.testing.assert_allclose(line.get_xydata(), [[1, 0.9], [4, 0.9]])
    np.testing.assert_allclose(bars.get_segments(), [[[x, 0.8], [x, 1.0]] for x in (1, 4)])


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    folder = tmp_path_factory.mktemp("route")
    teacher, data = Teacher("mlp_32", [10], 2), world()
    with silence():
        quiet_trainer(4, callbacks=[AnchorRecorder(folder, about=teacher.about)]).fit(teacher, datamodule=data)
    return Route.load(folder)


def world():
    return DistillationData(bits=10, secret=2, length=512, test_length=64, held_out=64)


def student(route):
    module = RouteDistillation([10], 2, student="mlp_6", walk=Walk(anchors=2), loss=Loss("kd", tau=1.0, ce=0.0, weights={"kd": 1.0}))
    module.route = route
    return module


def test_curves_of_a_walk_survive_a_stop(taught, tmp_path, monkeypatch):
    whole, parts = WalkFigure(), [WalkFigure(), WalkFigure()]
    with silence():
        trainer = quiet_trainer(4, callbacks=[whole], default_root_dir=str(tmp_path))
        trainer.fit(student(taught), datamodule=world())
    assert [(row["epoch"], row["anchor"]) for row in whole.rows] == [(1, 2), (2, 2), (3, 4), (4, 4)]
    logged = {"accuracy": "val/accuracy", "congruence": "val/congruence", "loss": "train/loss"}
    assert {name: whole.rows[-1][name] for name in logged} == {name: float(trainer.callback_metrics[key]) for name, key in logged.items()}
    assert {path.name for path in (tmp_path / "artefacts" / "fit").iterdir()} == {"route.png", "walk.png"}

    step = RouteDistillation.training_step

    def failing(module, batch, batch_idx):
        if module.global_step == 21:
            raise RuntimeError("pulled the plug")
        return step(module, batch, batch_idx)

    trainers = [quiet_trainer(4, callbacks=[figure, ResumePoint(tmp_path, 6)], default_root_dir=str(tmp_path)) for figure in parts]
    monkeypatch.setattr(RouteDistillation, "training_step", failing)
    with silence(), pytest.raises(RuntimeError, match="plug"):
        trainers[0].fit(student(taught), datamodule=world())
    monkeypatch.setattr(RouteDistillation, "training_step", step)
    assert parts[0].rows == whole.rows[:2]
    with silence():
        trainers[1].fit(student(taught), datamodule=world(), ckpt_path=tmp_path / "last.ckpt")
    assert parts[1].rows[2]["loss"] == pytest.approx(whole.rows[2]["loss"], rel=0.1)  # the module's mean is over the epoch's batches since the stop
    parts[1].rows[2]["loss"] = whole.rows[2]["loss"]
    assert parts[1].rows == whole.rows
    assert all(type(value) is float for row in whole.rows for value in row.values())


def test_the_dashboard_shows_what_a_training_logs():
    shown = validate(Path(__file__).parents[3] / "projects" / "rco" / "dashboard.yaml").metrics
    assert {"train/loss", "train/kd", "train/anchor", "val/accuracy", "val/congruence", "test/accuracy", "walk", "route", "hardness", "gap"} <= shown
