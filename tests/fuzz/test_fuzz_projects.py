"""Damaged files meet the readers of the projects."""

import pytest
from fuzz.picture_readers import PICTURES
from fuzz.record_readers import RECORDS
from fuzz.withstanding import FEW, MANY, withstand

PROJECTS = PICTURES + RECORDS


@pytest.mark.parametrize("reader", PROJECTS, ids=lambda reader: reader.name)
def test_a_damaged_file_is_read_or_refused_by_name(reader, tmp_path):
    withstand(reader, tmp_path, FEW)


@pytest.mark.slow
@pytest.mark.parametrize("reader", PROJECTS, ids=lambda reader: reader.name)
def test_many_damaged_files_are_read_or_refused_by_name(reader, tmp_path):
    withstand(reader, tmp_path, MANY)
