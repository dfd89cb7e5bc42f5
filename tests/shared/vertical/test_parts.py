"""That features are split over the parties and put together again."""

import pytest
import torch

from shared.vertical.parts import even_columns, join_image, join_table, split_image, split_table


@pytest.mark.parametrize("shape", [(5, 1, 28, 28), (2, 3, 9, 11), (1, 3, 4, 4)])
@pytest.mark.parametrize(("how", "parties"), [("quarters", 4), ("rows", 4), ("columns", 4), ("rows", 3), ("columns", 1)])
def test_joining_undoes_splitting(shape, how, parties):
    images = torch.rand(shape)
    blocks = split_image(images, how, parties)
    assert len(blocks) == parties
    assert torch.equal(join_image(blocks, how), images)


def test_party_2i_plus_j_gets_the_rows_i_and_the_columns_j():
    images = torch.rand(2, 1, 28, 28)
    blocks = split_image(images)
    for i in range(2):
        for j in range(2):
            assert torch.equal(blocks[2 * i + j], images[:, :, 14 * i : 14 * i + 14, 14 * j : 14 * j + 14])


def test_strips_are_in_order():
    images = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert torch.equal(split_image(images, "rows")[1], images[:, :, 1:2])
    assert torch.equal(split_image(images, "columns", 2)[1], images[..., 2:])


def test_columns_of_a_table_go_where_they_are_said_to_and_come_back():
    table = torch.randn(6, 7)
    columns = [[4, 0], [1, 6, 2], [3, 5]]
    blocks = split_table(table, columns)
    assert torch.equal(blocks[1], table[:, [1, 6, 2]])
    assert torch.equal(join_table(blocks, columns), table)
    assert even_columns(7, 3) == [[0, 1, 2], [3, 4], [5, 6]]


def test_splits_that_cannot_be_are_refused():
    images = torch.rand(1, 1, 3, 8)
    for message, options in {
        "'diagonals': choose one of quarters, rows, columns": {"how": "diagonals"},
        "quarters are for 4 parties, not 3": {"parties": 3},
        "3 x 8 pixels cannot be split into 4 x 1 blocks": {"how": "rows"},
        "at least one party": {"how": "rows", "parties": 0},
    }.items():
        with pytest.raises(ValueError, match=message):
            split_image(images, **options)
    with pytest.raises(ValueError, match=r"each of the 4 columns once, but of them are twice \[1\], missing \[3\], beyond the table \[9\]"):
        split_table(torch.rand(2, 4), [[0, 1], [1, 2, 9]])
    with pytest.raises(ValueError, match="2 columns cannot be split over 3 parties"):
        even_columns(2, 3)
