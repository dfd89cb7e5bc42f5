"""What a federation agrees on, and how it says that something will not do."""

import math

import pytest

from projects.vafl.settings import Delays, Protection, Protocol


@pytest.mark.parametrize(
    ("options", "group"),
    [
        ({}, 1),
        ({"algorithm": "t_sync"}, 4),
        ({"algorithm": "t_sync", "wait_for": 7}, 7),
        ({"algorithm": "t_sync", "wait_for": 1}, 1),
        ({"algorithm": "sync"}, 7),
        ({"algorithm": "centralised"}, 7),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else None,
)
def test_the_server_waits_for_one_some_or_all(options, group):
    assert Protocol(**options).group(7) == group


@pytest.mark.parametrize(("clients", "half"), [(1, 1), (2, 1), (3, 2), (8, 4)])
def test_some_are_half_of_the_clients_rounded_up(clients, half):
    assert Protocol("t_sync").group(clients) == half


def test_batches_are_shared_where_the_algorithm_or_the_user_says_so():
    assert not Protocol().is_shared
    assert not Protocol("t_sync").is_shared
    assert Protocol(sampling="shared").is_shared
    assert Protocol("sync").is_shared
    assert Protocol("centralised").is_shared


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (Protocol, {"algorithm": "asynch"}, "protocol.algorithm must be one of async, t_sync, sync, centralised, got 'asynch'"),
        (Protocol, {"sampling": "all"}, "protocol.sampling must be one of own, shared"),
        (Protocol, {"order": "update_first"}, "protocol.order must be one of upload_first, query_first"),
        (Protocol, {"initial": "ones"}, "protocol.initial must be all or zeros"),
        (Protocol, {"wait_for": 2}, "protocol.wait_for is for t_sync, not for async: leave it out"),
        (Protocol, {"algorithm": "t_sync", "wait_for": 0}, "protocol.wait_for must be at least 1, got 0"),
        (Protocol, {"max_age": 0}, "protocol.max_age must be at least 1"),
        (Protocol, {"local_steps": 0}, "protocol.local_steps must be at least 1"),
        (Protocol, {"message_bits": 8}, "protocol.message_bits must be 16 or 32, got 8"),
        (Delays, {"floor": -1.0}, "delays.floor must be 0 or more seconds"),
        (Delays, {"scale": math.inf}, "delays.scale must be 0 or more seconds"),
        (Delays, {"up": math.nan}, "delays.up must be 0 or more seconds"),
        (Delays, {"bandwidth": 0.0}, "delays.bandwidth must be positive, got 0.0: leave it null for no limit"),
        (Protection, {"std": -0.1}, "protection.std and protection.hidden must be 0 or more"),
        (Protection, {"hidden": [0.1, -0.1]}, "protection.std and protection.hidden must be 0 or more"),
        (Protection, {"clip": 0.0}, "protection.clip must be positive"),
        (Protection, {"delta": 1.0}, "protection.delta must be in"),
        (Protection, {"epsilon": 1.0, "std": 1.0}, "protection.epsilon is a budget above 0, and needs protection.clip and protection.std"),
        (Protection, {"epsilon": 1.0, "clip": 1.0}, "needs protection.clip and protection.std"),
        (Protection, {"epsilon": 0.0, "clip": 1.0, "std": 1.0}, "protection.epsilon is a budget above 0"),
        (Protection, {"adjacency": "add"}, "protection.adjacency must be zero_out or replace"),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, dict) else None,
)
def test_what_will_not_do_is_named(kind, options, message):
    with pytest.raises(ValueError, match=message):
        kind(**options)


def test_more_clients_than_there_are_cannot_be_waited_for():
    with pytest.raises(ValueError, match=r"protocol\.wait_for is 4, but there are only 3 clients"):
        Protocol("t_sync", wait_for=4).group(3)
