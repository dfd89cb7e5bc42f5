import pytest
import torch
from helpers.processes import run_together
from helpers.workers import Numbers, together

from shared.distributed import EpochSampler, UnpaddedSampler, gather_objects, gather_rows, own_rows


def test_one_process_needs_no_group():
    rows = torch.arange(6)
    assert own_rows(rows) is not None
    assert torch.equal(own_rows(rows), rows)
    assert torch.equal(gather_rows(rows), rows)
    assert gather_objects(["row"]) == ["row"]
    assert sorted(EpochSampler(range(10), seed=0)) == list(range(10))
    assert list(UnpaddedSampler(range(5))) == [0, 1, 2, 3, 4]


def test_the_order_is_a_function_of_seed_and_epoch():
    orders = []
    for seed, epoch in ((0, 0), (0, 0), (0, 1), (1, 0)):
        sampler = EpochSampler(range(50), seed=seed)
        sampler.set_epoch(epoch)
        orders.append(list(sampler))
    assert orders[0] == orders[1]
    assert orders[0] != orders[2]
    assert orders[0] != orders[3]


def test_a_loader_goes_on_with_the_next_batch():
    def loader():
        return Numbers("numbers", batch_size=4, seed=1).training_loader(range(33))

    whole = loader()
    whole.sampler.set_epoch(5)
    expected = [batch.tolist() for batch in whole]
    stopped = loader()
    stopped.sampler.set_epoch(5)
    iterator = iter(stopped)
    first = [next(iterator).tolist() for _ in range(3)]
    resumed = loader()
    resumed.load_state_dict(stopped.state_dict())
    assert first + [batch.tolist() for batch in resumed] == expected
    assert len([*resumed]) == 8  # the epoch after that one is whole again


def test_a_finished_epoch_is_followed_by_the_next():
    loader = Numbers("numbers", batch_size=4).training_loader(range(33))
    list(loader)
    resumed = Numbers("numbers", batch_size=4).training_loader(range(33))
    resumed.load_state_dict(loader.state_dict())
    assert resumed.sampler.epoch == 1
    assert len(list(resumed)) == 8


def test_two_processes_share_the_batches_of_one(tmp_path):
    run_together(together, str(tmp_path))
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    interleaved = torch.stack([parts[0]["batches"], parts[1]["batches"]], dim=2).flatten(1)
    assert torch.equal(interleaved, torch.stack(Numbers("numbers", batch_size=4, seed=3).batches()))
    assert torch.cat([part["evaluated"] for part in parts]).sort().values.tolist() == list(range(33))
    assert [part["rows"].tolist() for part in parts] == [[0, 2, 4, 6], [1, 3, 5, 7]]
    assert parts[0]["gathered"][:, 0].tolist() == parts[1]["gathered"][:, 0].tolist() == [0] * 3 + [1] * 5
    assert parts[0]["empty"].shape == (1, 1)
    assert parts[0]["objects"] == parts[1]["objects"] == ["0.0", "1.0", "1.1"]


@pytest.mark.parametrize(("options", "message"), [({"num_workers": -1}, "num_workers must be 0 or more"), ({"source": "x"}, "numbers: 0 to 32")])
def test_data_options_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        Numbers(**({"source": "numbers"} | options))
    with pytest.raises(ValueError, match=r"--data.root FOLDER"):
        _ = Numbers("numbers").root
