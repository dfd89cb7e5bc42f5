"""What single rounds give away: rows.py."""

import pytest
import torch

from projects.cafe.data import FederatedRecords
from projects.cafe.module import FederatedClassifier
from projects.cafe.protection import Protection
from projects.cafe.rows import alone_after
from projects.cafe.schedules import uniform


def deployment(source="digits", **model):
    data = FederatedRecords(source, count=12, batch_size=3, parties=None if source == "digits" else 2)
    data.setup()
    return FederatedClassifier([list(shape) for shape in data.shapes], data.classes, widths=[4, 8], first=16, **model).federation, data


@pytest.mark.parametrize("source", ["digits", "breast_cancer"])
def test_a_record_stands_alone_where_it_alone_moves_a_unit(source):
    federation, data = deployment(source)
    schedule = uniform(12, 3, 6, 0)
    found = alone_after(federation, data, schedule, Protection())
    blocks, labels = data.blocks(data.attacked.values()), data.attacked.labels
    gradients = federation.middle_gradients(blocks, labels)
    expected = torch.zeros(12, dtype=torch.long)
    for number, row in enumerate(schedule):
        members = row.nonzero().flatten()
        for bottom, block, v in zip(federation.bottoms, blocks, gradients, strict=True):
            h = bottom.middle(block)[0]
            for member in members.tolist():
                others = [other for other in members.tolist() if other != member]
                units = (v[member] != 0) & (v[others] == 0).all(0)
                if units.any() and h[member].norm() > 0 and not expected[member]:
                    expected[member] = number + 1
    assert found.after.tolist() == expected.tolist()
    assert expected.any()
    assert found.is_record.tolist() == [source == "breast_cancer" and after > 0 for after in expected.tolist()]


def test_noise_hides_it_and_motion_does_not():
    federation, data = deployment()
    before = [parameter.clone() for parameter in federation.parameters()]
    schedule = uniform(12, 3, 6, 0)
    assert not alone_after(federation, data, schedule, Protection.parse("noise:std=1e-2")).after.any()
    assert not alone_after(federation, data, schedule, Protection.parse("fake")).after.any()
    assert alone_after(federation, data, schedule, Protection(), lr=1e-2).after.any()
    assert all(torch.equal(one, other) for one, other in zip(before, federation.parameters(), strict=True))
