import pytest
import torch

from projects.dvae.detection import Detector, draw_halves, score_set
from projects.dvae.sets import ImageSet
from shared.seeding import generator


def test_few_classes_are_drawn_at_random():
    labels = torch.arange(1400) % 10
    order = torch.randperm(1400, generator=generator(3, "small set"))[:500]
    expected = order[torch.randperm(500, generator=generator(3, "halves"))].chunk(2)
    assert all(torch.equal(found, rows) for found, rows in zip(draw_halves(labels, 500, 3), expected, strict=True))


@pytest.mark.parametrize(("count", "classes", "total"), [(500, 100, 50000), (500, 50, 50000), (301, 100, 301)])
def test_many_classes_are_drawn_by_class(count, classes, total):
    labels = torch.arange(total) * 7 % classes
    for seed in range(5):
        halves = draw_halves(labels, count, seed)
        assert [len(half) for half in halves] == [(count + 1) // 2, count // 2]
        assert len(set(torch.cat(halves).tolist())) == count
        numbers = [labels[half].bincount(minlength=classes) for half in halves]
        assert min(int(number.min()) for number in numbers) >= 1


def test_a_rare_class_is_in_both_halves():
    labels = torch.cat([torch.zeros(5000, dtype=torch.int64), torch.ones(2, dtype=torch.int64)])
    assert all(labels[half].tolist().count(1) == 1 for half in draw_halves(labels, 100, 0))


def test_a_class_of_one_image_is_named():
    images = ImageSet(torch.zeros(9, 3, 8, 8, dtype=torch.uint8), torch.tensor([0] * 8 + [1]), ["many", "one"])
    with pytest.raises(ValueError, match="one: too few images to be in both halves"):
        score_set(images, Detector(), 0)
