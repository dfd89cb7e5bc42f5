"""Equal shares of unequal sets, every picture in its turn, and the same order again after an interruption."""

from collections import Counter

import pytest

from projects.tripinet.mixture import MixtureSampler
from shared.data.base import ResumableDataLoader

SIZES = (3, 20, 8)


def dealt(sampler, epoch):
    sampler.set_epoch(epoch)
    return list(sampler)


def number_of_set(index):
    place = index % sum(SIZES)
    return 0 if place < 3 else 1 if place < 23 else 2


def test_every_set_has_its_share():
    sampler = MixtureSampler(SIZES, 5, seed=0)
    for epoch in range(4):
        indices = dealt(sampler, epoch)
        assert len(indices) == len(sampler) == 15
        assert {index // sum(SIZES) for index in indices} == {epoch}
        assert Counter(map(number_of_set, indices)) == {0: 5, 1: 5, 2: 5}


def test_every_picture_has_its_turn():
    sampler = MixtureSampler(SIZES, 4, seed=1)
    places = [index % sum(SIZES) for epoch in range(5) for index in dealt(sampler, epoch)]
    times = Counter(places)
    assert set(times) == set(range(31))
    for numbers, count in ((range(3), 20 / 3), (range(3, 23), 1), (range(23, 31), 2.5)):
        assert all(abs(times[number] - count) < 1 for number in numbers)


def test_without_shares_an_epoch_is_every_picture_once():
    sampler = MixtureSampler(SIZES, None, seed=0)
    assert sorted(dealt(sampler, 0)) == list(range(31))
    assert sorted(dealt(sampler, 1)) == list(range(31, 62))
    assert [index % 31 for index in dealt(sampler, 1)] != dealt(sampler, 0)


def test_the_order_is_a_function_of_seed_and_epoch():
    assert dealt(MixtureSampler(SIZES, 4, 0), 7) == dealt(MixtureSampler(SIZES, 4, 0), 7)
    assert dealt(MixtureSampler(SIZES, 4, 0), 7) != dealt(MixtureSampler(SIZES, 4, 1), 7)


def test_training_goes_on_in_the_middle_of_an_epoch():
    def loader():
        return ResumableDataLoader(range(10**6), batch_size=3, sampler=MixtureSampler(SIZES, 4, 0), drop_last=True)

    whole = loader()
    whole.sampler.set_epoch(2)
    batches = [batch.tolist() for batch in whole]
    resumed = loader()
    resumed.load_state_dict({"epoch": 2, "batches": 2})
    assert [batch.tolist() for batch in resumed] == batches[2:]


@pytest.mark.parametrize(("sizes", "per_set", "message"), [((3, 0), 2, "leave the empty"), ((), 2, "hold pictures"), ((3,), 0, "at least 1")])
def test_what_cannot_be_mixed_is_refused(sizes, per_set, message):
    with pytest.raises(ValueError, match=message):
        MixtureSampler(sizes, per_set, 0)
