"""Damaged files meet the readers of `shared`."""

import pytest
from fuzz.shared_readers import SHARED
from fuzz.withstanding import FEW, MANY, withstand


@pytest.mark.parametrize("reader", SHARED, ids=lambda reader: reader.name)
def test_a_damaged_file_is_read_or_refused_by_name(reader, tmp_path):
    withstand(reader, tmp_path, FEW)


@pytest.mark.slow
@pytest.mark.parametrize("reader", SHARED, ids=lambda reader: reader.name)
def test_many_damaged_files_are_read_or_refused_by_name(reader, tmp_path):
    withstand(reader, tmp_path, MANY)
