import torch

from shared.poisons import Alternation, NoiseTable, minimise_errors
from shared.seeding import generator

SHAPE = (1, 4, 4)


def test_table_of_images_rounds_and_never_exceeds_the_radius():
    table = NoiseTable.of_images(4, SHAPE, radius=2.5)
    delta = torch.stack([torch.full(SHAPE, value) for value in (0.4, -1.6, 2.5, -2.5)]) / 255
    table.write(torch.tensor([3, 0, 1, 2]), delta)
    assert table.levels.dtype == torch.int8
    assert table.levels[:, 0, 0, 0].tolist() == [-2, 2, -2, 0]
    torch.testing.assert_close(table.read(torch.tensor([3, 1]))[:, 0, 0, 0], torch.tensor([0.0, 2 / 255]))


def test_table_of_groups_holds_means_over_the_images_at_hand():
    table = NoiseTable.of_groups(torch.tensor([0, 1, 0, 1, 2]), 3, SHAPE, radius=8)
    random = generator(0, "delta")
    delta = 0.02 * torch.rand(3, *SHAPE, generator=random)
    table.write(torch.tensor([2, 1, 0]), delta)
    torch.testing.assert_close(table.read(torch.tensor([0]))[0], (delta[0] + delta[2]) / 2)
    torch.testing.assert_close(table.read(torch.tensor([3]))[0], delta[1])
    assert not table.read(torch.tensor([4])).any()
    table.write(torch.tensor([4]), torch.full((1, *SHAPE), -1.0))
    assert table.apply(torch.full((1, *SHAPE), 100, dtype=torch.uint8), torch.tensor([4])).unique().tolist() == [92]


def run(stop_error, rounds=20):
    """Minimise the sum of pixels: a loss that has nothing of a classifier's."""
    images = torch.full((6, *SHAPE), 128, dtype=torch.uint8)
    table, calls, seen = NoiseTable.of_images(6, SHAPE, 8), [], []
    how = Alternation(epsilon=8 / 255, step=1 / 255, steps=2, rounds=rounds, stop_error=stop_error)
    batches = [torch.tensor([0, 1, 2]), torch.tensor([3, 4, 5])]

    def error():
        return float(table.apply(images, torch.arange(6)).float().mean()) / 128

    errors = minimise_errors(
        images, table, batches, lambda: calls.append("train"), lambda indices: lambda at: at.sum(), error, how, progress=lambda *at: seen.append(at)
    )
    return table, errors, calls, seen


def test_alternation_stops_by_its_rule():
    table, errors, calls, seen = run(stop_error=0.96)
    assert errors == [126 / 128, 124 / 128, 122 / 128]
    assert (table.levels == -6).all()
    assert calls == ["train"] * 3
    assert seen == [(1, 20), (2, 20), (3, 20)]


def test_alternation_ends_at_the_bound_and_after_its_rounds():
    table, errors, _, _ = run(stop_error=0.0, rounds=6)
    assert len(errors) == 6
    assert (table.levels == -8).all()
