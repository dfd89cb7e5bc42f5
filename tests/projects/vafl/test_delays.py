"""How long cycles take."""

import re

import numpy as np
import pytest

from projects.vafl.delays import CHUNK, DelaySource
from projects.vafl.settings import Delays
from shared.data.files import BadFileError


def source(clients=4, seed=0, **delays):
    return DelaySource(Delays(**({"floor": 0.0} | delays)), clients, seed)


def drawn(of, client, count=4000):
    return np.array([of.cycle(client, number) for number in range(count)])


@pytest.mark.parametrize("client", [0, 3])
def test_poisson_delays_have_the_papers_law(client):
    seconds, place = drawn(source(), client), client + 1
    counts = seconds * 8  # Poisson(2m) / (2M)
    assert counts == pytest.approx(np.round(counts))
    assert counts.mean() == pytest.approx(2 * place, abs=5 * (2 * place / 4000) ** 0.5)
    assert counts.var() == pytest.approx(2 * place, rel=0.12)
    assert (counts == 0).mean() == pytest.approx(np.exp(-2 * place), abs=0.03)


def test_exponential_delays_have_the_mean_m():
    for client in (0, 2):
        seconds = drawn(source(compute="exponential"), client)
        assert seconds.mean() == pytest.approx(client + 1, rel=0.08)
        assert seconds.std() == pytest.approx(client + 1, rel=0.12)
        assert np.median(seconds) == pytest.approx((client + 1) * np.log(2), rel=0.08)


def test_constant_delays_grow_with_the_client_and_none_are_none():
    assert [source(compute="constant").cycle(client, 5) for client in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert source(compute="none", floor=1.0).cycle(2, 0) == 0


def test_floor_scale_and_slowness_act_on_each_draw():
    plain = source(clients=3)
    other = source(clients=3, scale=0.5, floor=0.1, slow=["2:5", "0:0.5"])
    for client, factor in enumerate((0.5, 1.0, 5.0)):
        assert drawn(other, client, 50) == pytest.approx(np.maximum(0.1, drawn(plain, client, 50) * 0.5 * factor))


def test_draws_depend_on_seed_client_and_cycle_alone():
    one, other = source(compute="exponential"), source(compute="exponential")
    asked = [(client, number) for client in range(4) for number in (0, 5, CHUNK, 3 * CHUNK + 7, CHUNK - 1)]
    forwards = {key: one.cycle(*key) for key in asked}
    assert {key: other.cycle(*key) for key in reversed(asked)} == forwards
    assert len(set(forwards.values())) == len(asked)
    assert source(compute="exponential", seed=1).cycle(0, 0) != one.cycle(0, 0)


def test_the_mean_is_that_of_a_chunk_of_cycles():
    of = source(slow=["1:3"])
    assert of.mean(1) == pytest.approx(drawn(of, 1, CHUNK).mean())
    assert of.mean(1) == pytest.approx(3 * 2 / 4, rel=0.1)


def test_a_message_comes_after_work_travel_and_transfer():
    of = source(compute="constant", up=0.5, down=0.25, bandwidth=100.0)
    assert of.arrival(1, 0, 10.0, 40) == pytest.approx(10 + 0.5 + 0.5 + 0.4)
    assert of.transfer(40) == pytest.approx(0.4)
    assert of.round_trip(10, 20) == pytest.approx(0.5 + 0.25 + 0.1 + 0.2)
    assert source().transfer(10**9) == 0


@pytest.mark.parametrize(
    ("windows", "start", "arrival"),
    [
        (["3:20-40"], 18.0, 19.0),
        (["3:20-40"], 19.0, 20.0),
        (["3:20-40"], 19.5, 41.0),
        (["3:20-40"], 25.0, 41.0),
        (["3:20-40"], 40.0, 41.0),
        (["3:20-40", "3:40.5-50"], 19.5, 51.0),
        (["3:40.5-50", "3:20-40"], 19.5, 51.0),
        (["2:20-40"], 19.5, 20.5),
    ],
)
def test_a_cycle_that_meets_an_absence_begins_again_at_its_end(windows, start, arrival):
    assert source(compute="constant", absent=windows).arrival(3, 0, start, 0) == arrival  # of one second


def test_a_trace_is_played_in_turn(tmp_path):
    file = tmp_path / "delays.csv"
    file.write_text("client,seconds,note\n1,0.5,a\n0,2,b\n1,0.25,c\n")
    of = source(clients=2, compute=f"trace:{file}", scale=2.0, floor=0.75)
    assert [of.cycle(0, number) for number in range(3)] == [4.0, 4.0, 4.0]
    assert [of.cycle(1, number) for number in range(3)] == [1.0, 0.75, 1.0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("client\n0\n", "must have the columns client and seconds"),
        ("client,seconds\n0,soon\n", "with numbers in every line; found .*soon"),
        ("client,seconds\n0,1\n2,1\n", "clients are 0 to 1"),
        ("client,seconds\n0,1\n1,-1\n", "seconds 0 or more"),
        ("client,seconds\n0,1\n1,nan\n", "seconds 0 or more"),
        ("client,seconds\n0,1\n", "has no line for client 1: add one"),
        ("", "has no line for client 0, 1"),
    ],
    ids=["column", "word", "client", "negative", "nan", "lacking", "empty"],
)
def test_a_bad_trace_is_named(tmp_path, content, message):
    file = tmp_path / "delays.csv"
    file.write_text(content)
    with pytest.raises(BadFileError, match=f"{re.escape(str(file))} .*{message}"):
        source(clients=2, compute=f"trace:{file}")


def test_a_missing_trace_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.csv: expected a CSV file of delays with the columns client and seconds"):
        source(compute=f"trace:{tmp_path / 'nowhere.csv'}")


@pytest.mark.parametrize(
    ("delays", "message"),
    [
        ({"compute": "uniform"}, "delays.compute 'uniform' is not known: choose one of poisson, exponential, constant, none, or trace:FILE"),
        ({"slow": ["7:5"]}, "delays.slow '7:5' must be CLIENT:FACTOR, such as 7:5, with a client from 0 to 3"),
        ({"slow": ["1"]}, "delays.slow '1' must be CLIENT:FACTOR"),
        ({"slow": ["1:fast"]}, "delays.slow '1:fast' must end in a positive number"),
        ({"slow": ["1:0"]}, "delays.slow '1:0' must end in a positive number"),
        ({"absent": ["-1:2-3"]}, "delays.absent '-1:2-3' must be CLIENT:FROM-TO, such as 3:20-40, with a client from 0 to 3"),
        ({"absent": ["1:5"]}, "delays.absent '1:5' must be CLIENT:FROM-TO in seconds"),
        ({"absent": ["1:5-5"]}, "with TO above FROM"),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else None,
)
def test_settings_that_cannot_be_read_are_named(delays, message):
    with pytest.raises(ValueError, match=message):
        source(**delays)
