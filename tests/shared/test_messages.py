"""What the terminal shows of errors."""

import warnings

import pytest
from torch.utils.data import DataLoader, Dataset

from shared.data.files import BadFileError
from shared.messages import Interval, describe


class Raising(Dataset):
    def __init__(self, error):
        self.error = error

    def __len__(self):
        return 1

    def __getitem__(self, index):
        raise self.error


@pytest.mark.parametrize(
    "error",
    [
        BadFileError("cannot read a.jpg: it is cut off\nwrong: a second line"),
        ValueError("data.size: must be 8"),
        FileNotFoundError("no file a.jpg"),
        RuntimeError("no memory: none"),
    ],
)
def test_an_error_of_a_loaders_worker_reads_as_it_would_without_one(error):
    with warnings.catch_warnings(action="ignore"), pytest.raises(type(error)) as found:
        list(DataLoader(Raising(error), num_workers=1))
    assert "Original Traceback" in str(found.value)
    assert describe(found.value) == describe(error)


def test_an_interval_is_over_once_its_seconds_have_passed(monkeypatch):
    monkeypatch.setattr("shared.messages.time.monotonic", iter([0, 9, 10, 10, 19, 20.5, 20.5]).__next__)
    interval = Interval(10)
    assert [interval.is_over() for _ in range(4)] == [False, True, False, True]
