"""The parts put together."""

import pytest
from helpers.vafl_reference import drawn, simulator

from projects.vafl.federation import Setting
from projects.vafl.ledger import noise_for, releases_within
from projects.vafl.settings import Protection, Protocol


@pytest.mark.parametrize(
    ("protocol", "expected"),
    [(Protocol(), 0.3 / 3), (Protocol("t_sync"), 0.3 * 2 / 3), (Protocol("t_sync", wait_for=1), 0.3 / 3), (Protocol("sync"), 0.3)],
    ids=["async", "t_sync", "one", "sync"],
)
def test_the_server_takes_smaller_steps_the_more_often_it_does(protocol, expected):
    head, labels = simulator().model.head, drawn()[1]
    assert Setting(protocol, lr=0.3).server(head, labels).steps.at(0) == pytest.approx(expected)
    assert Setting(protocol, lr=0.3, server_lr=0.05).server(head, labels).steps.at(0) == 0.05


def test_budgets_are_the_ledgers():
    bottom = simulator().model.bottoms[0]
    assert Setting().budget(bottom) is None
    for adjacency, sensitivity in (("zero_out", 2.0), ("replace", 4.0)):
        own = Protection(std=8.0, clip=2.0, epsilon=3.0, adjacency=adjacency)
        assert Setting(protection=own).budget(bottom) == releases_within(3.0, 1e-5, sensitivity, 8.0)


@pytest.mark.parametrize(("initial", "least"), [("all", 2), ("zeros", 1)])
def test_a_budget_that_allows_no_cycle_is_refused_with_noise_that_allows_some(initial, least):
    bottom, protocol = simulator().model.bottoms[0], Protocol(initial=initial)
    enough = noise_for(3.0, 1e-5, least, 2.0)
    assert Setting(protocol, protection=Protection(std=enough, clip=2.0, epsilon=3.0)).budget(bottom) == least
    small = Setting(protocol, protection=Protection(std=0.99 * enough, clip=2.0, epsilon=3.0))
    with pytest.raises(ValueError, match=rf"allows {least - 1} releases of a record, but the first pass takes {least}: raise") as found:
        small.budget(bottom)
    told = float(str(found.value).partition("protection.std, to ")[2].split()[0])
    assert releases_within(3.0, 1e-5, 2.0, 1.001 * told) == least + 5


def test_clients_train_the_models_own_nets():
    ours = simulator()
    assert [client.bottom for client in ours.clients] == list(ours.model.bottoms)
    assert ours.server.head is ours.model.head
    assert [client.number for client in ours.clients] == [0, 1, 2]


def test_settings_that_do_not_fit_the_records_are_named():
    with pytest.raises(ValueError, match=r"data\.batch_size is 50, but there are 40 training records"):
        simulator(batch=50)
    with pytest.raises(ValueError, match=r"protocol\.wait_for is 5, but there are only 3 clients"):
        simulator(algorithm="t_sync", wait_for=5)
    with pytest.raises(ValueError, match=r"delays\.slow '3:2' must be CLIENT:FACTOR, such as 7:5, with a client from 0 to 2"):
        simulator(delays={"slow": ["3:2"]})
