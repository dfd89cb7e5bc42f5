"""What is written down of a training."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.vafl_reference import drawn, played, simulator
from sklearn.metrics import accuracy_score, log_loss, roc_auc_score

from projects.vafl.recording import SHOWN_EVENTS, Recorder, Trace, client_rows, judge
from projects.vafl.simulator import Event


def test_a_judgement_is_that_of_scikit_learn():
    blocks, labels = drawn(records=200)
    ours = simulator(blocks=blocks, labels=labels % 2, lr=1.0)
    played(ours, 200)
    with torch.no_grad():
        embeddings = ours.model.embed(blocks)
        chances = ours.model(blocks).double().softmax(1).numpy()
    found, truth = judge(ours.model.head, embeddings, labels % 2, 2), (labels % 2).numpy()
    assert found["accuracy"] == pytest.approx(accuracy_score(truth, chances.argmax(1)), abs=1e-6)
    assert found["auroc"] == pytest.approx(roc_auc_score(truth, chances[:, 1]), abs=1e-6)
    assert found["loss"] == pytest.approx(log_loss(truth, chances), abs=1e-6)
    three = simulator()
    with torch.no_grad():
        assert set(judge(three.model.head, three.model.embed(drawn()[0]), drawn()[1], 3)) == {"accuracy", "loss"}


def test_records_of_one_class_have_no_area_under_a_curve():
    blocks, labels = drawn(records=20)
    ours = simulator(blocks=blocks, labels=labels % 2)
    with torch.no_grad():
        found = judge(ours.model.head, ours.model.embed(blocks), torch.ones(20, dtype=torch.long), 2)
    assert math.isnan(found["auroc"])
    assert 0 <= found["accuracy"] <= 1


def evaluated(recorder, ours, moment):
    with torch.no_grad():
        return recorder.evaluate(moment, ours.server, ours.model.embed(drawn()[0]), drawn()[1], ours.costs.up, ours.costs.down)


def test_a_row_of_the_curve_tells_what_was_so_far():
    ours, recorder = simulator(), Recorder(None, 3)
    first = evaluated(recorder, ours, 0.0)
    assert first["train_loss"] is None
    assert math.isclose(first["loss"], math.log(3), abs_tol=1e-6)
    events = []
    for moment in (5.0, 10.0):
        before = len(events)
        ours.run(moment, watch=lambda event: (events.append(event), recorder.watch(event)))
        row = evaluated(recorder, ours, moment)
        assert row["train_loss"] == pytest.approx(np.mean([event.loss for event in events[before:]]))
        assert (row["seconds"], row["updates"], row["bytes_up"]) == (moment, len(events), ours.costs.up)
        assert row["releases"] == ours.server.releases.max()
    assert [row["seconds"] for row in recorder.curve] == [0.0, 5.0, 10.0]


def test_a_bar_shows_how_far_it_is_where_the_trainer_has_one(capsys, monkeypatch):
    monkeypatch.setattr("rich._console", None)  # that of earlier tests, which may be for no terminal
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "140")
    ours = simulator()
    recorder = Recorder(SimpleNamespace(loggers=[], progress_bar_callback=object()), 3, seconds=8.0)
    with recorder.shown():
        evaluated(recorder, ours, 2.0)
    assert "second 2 of 8, update 0: accuracy" in " ".join(capsys.readouterr().out.split())
    with Recorder(None, 3).shown():
        pass


def test_the_first_time_at_a_level_is_that_of_the_first_row_there():
    recorder = Recorder(None, 3)
    recorder.curve = [{"seconds": float(second), "accuracy": accuracy} for second, accuracy in enumerate([0.1, 0.6, 0.5, 0.8])]
    assert [recorder.first_time("accuracy", level) for level in (0.05, 0.55, 0.7, 0.9)] == [0.0, 1.0, 3.0, None]


def test_a_timeline_keeps_the_first_events_only():
    recorder = Recorder(None, 3)
    for number in range(SHOWN_EVENTS + 5):
        recorder.watch(Event(float(number), (0,), (0.0,), (0.0,), 1.0, 0.0))
    assert [event.time for event in recorder.events] == list(range(SHOWN_EVENTS))
    other = Recorder(None, 3)
    other.restore([{"seconds": 1.0}], [vars(event) for event in recorder.events])
    assert other.events == recorder.events


def test_a_trace_has_a_line_for_each_answered_message_and_goes_on():
    ours, trace = simulator(algorithm="t_sync", delays={"server": 0.25}), Trace(None)
    events = []
    ours.run(updates=10, watch=lambda event: (events.append(event), trace.watch(event, ours.server.updates)))
    assert len(trace.rows) == 20
    lines = iter(trace.rows)
    for number, event in enumerate(events, 1):
        for client, start, arrival in zip(event.clients, event.starts, event.arrivals, strict=True):
            line = next(lines)
            assert line[0] == client
            assert line[1:5] == pytest.approx((arrival - start, start, arrival, event.time), abs=1e-6)
            assert line[5:] == pytest.approx((number, event.loss, event.age), abs=1e-3)
            assert isinstance(line[0], int)
    other = Trace(None)
    other.load_state(trace.state())
    assert other.rows == trace.rows


def test_clients_are_told_by_their_share_of_time_and_updates():
    ours = simulator(delays={"compute": "constant", "floor": 0.0})
    played(ours, math.inf, 30.0)
    cycles = [client.cycle for client in ours.clients]
    rows = client_rows(ours.server, cycles, ours.costs.busy, ours.time, [ours.delays.mean(client) for client in range(3)])
    assert [row["mean_gap"] for row in rows] == pytest.approx([1 / 3, 2 / 3, 1.0], abs=1e-4)
    assert [row["q"] for row in rows] == pytest.approx([6 / 11, 3 / 11, 2 / 11], abs=1e-4)  # 1/lambda over their sum
    assert [row["cycles"] for row in rows] == pytest.approx([90, 45, 30], abs=1)
    assert [row["utilisation"] for row in rows] == pytest.approx([1.0] * 3, abs=0.04)
    assert rows[0]["age_at_end"] == pytest.approx((ours.server.updates - ours.server.stamps[0]).mean(), abs=0.05)
    assert rows[2]["releases_max"] == ours.server.releases[2].max()
    idle = simulator(algorithm="sync", uploads="batch", delays={"compute": "constant", "floor": 0.0})
    played(idle, math.inf, 30.0)
    rows = client_rows(idle.server, [30] * 3, idle.costs.busy, idle.time, [1.0] * 3)
    assert [row["utilisation"] for row in rows] == pytest.approx([1 / 3, 2 / 3, 1.0], abs=1e-3)
