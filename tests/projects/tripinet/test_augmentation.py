"""That pictures and masks go together through every change, and forging on the fly marks what it does."""

import pytest
import torch

from projects.tripinet.augmentation import augment, copy_move, inpaint
from projects.tripinet.data import ForgedPictures, TrainingPictures
from projects.tripinet.forging import forge
from projects.tripinet.pairs import KINDS
from shared.seeding import generator


def picture(height=40, width=56, seed=0):
    """A picture whose red is 200 exactly where it is manipulated."""
    chance = generator("augmented", seed)
    image = torch.randint(0, 100, (3, height, width), generator=chance, dtype=torch.uint8)
    mask = torch.zeros(1, height, width, dtype=torch.uint8)
    mask[:, 5:17, 8:30] = 1
    image[0, mask[0] == 1] = 200
    return image, mask


def test_nothing_is_nothing():
    image, mask = picture()
    done = augment(image, mask, "none", generator(0))
    assert done.image is image
    assert done.mask is mask
    assert done.forged is None


def test_all_eight_positions_occur_and_the_mask_follows():
    image, mask = picture()
    seen = set()
    for number in range(60):
        done = augment(image, mask, "flips", generator(number))
        assert torch.equal(done.image[0] == 200, done.mask[0] == 1)
        assert sorted(done.image.flatten().tolist()) == sorted(image.flatten().tolist())
        seen.add(tuple(done.image[1].flatten().tolist()))
    assert len(seen) == 8


def test_the_mask_follows_scale_and_colours():
    image, mask = picture()
    for number in range(40):
        done = augment(image, mask, "benco", generator("b", number))
        if done.forged:
            continue
        height, width = sorted(done.image.shape[1:])
        assert 32 <= height <= 48
        assert 45 <= width <= 67
        assert set(done.mask.unique().tolist()) == {0, 1}
        red = done.image[0].float()
        inside = red[done.mask[0] == 1].mean(), red[done.mask[0] == 0].mean()
        assert inside[0] - inside[1] > 80


def test_how_often_pictures_are_forged_on_the_fly():
    image, mask = picture(16, 16)
    forged = [augment(image, mask * 0, "benco", generator("f", number)) for number in range(300)]
    parts = {kind: sum(one.forged == kind for one in forged) / 300 for kind in ("copymove", "inpaint", None)}
    assert 0.05 < parts["copymove"] < 0.14
    assert 0.05 < parts["inpaint"] < 0.16
    assert all(bool(one.mask.any()) == (one.forged is not None) for one in forged)


def test_what_is_forged_on_the_fly_depends_on_the_chance_alone():
    image, mask = picture(16, 16)
    for number in range(60):
        first, again = (augment(image, mask, "benco", generator("r", number)) for _ in range(2))
        assert first.forged == again.forged
        assert torch.equal(first.image, again.image)
        assert torch.equal(first.mask, again.mask)
    assert not torch.equal(augment(image, mask, "benco", generator("r", 0)).image, augment(image, mask, "benco", generator("r", 1)).image)


def test_forging_on_the_fly_changes_the_label_and_kind_of_authentic_pictures():
    pictures = ForgedPictures("train", 2, ["noise"], 0.5, 48, seed=0)
    assert pictures.kinds == ["noise", "authentic"]
    training = TrainingPictures(pictures, 32, "benco", seed=0)
    seen = set()
    for epoch in range(60):
        item, again = training[2 * epoch + 1], training[2 * epoch + 1]
        assert item["label"] == int(item["mask"].any())
        assert (KINDS[item["kind"]] == "authentic") == (item["label"] == 0)
        assert item["kind"] == again["kind"]
        assert torch.equal(item["image"], again["image"])
        seen.add(KINDS[item["kind"]])
    assert seen == {"authentic", "copymove", "inpaint"}


def test_a_copy_is_marked_where_it_lies():
    image, mask = picture()
    image = torch.arange(40 * 56).reshape(1, 40, 56).expand(3, -1, -1) % 251
    for number in range(20):
        copied, marked = copy_move(image, mask, generator("c", number))
        new = marked.bool() & ~mask.bool()
        changed = (copied != image).any(0, keepdim=True)
        assert not (changed & ~marked.bool()).any()
        assert torch.equal(marked.bool() & mask.bool(), mask.bool())
        assert marked.any()
        assert new.any() or not changed[~mask.bool()].any()


def test_inpainting_is_smooth_and_marked():
    image, _, _ = forge("train", 0, 0, 64, "authentic")
    empty = torch.zeros(1, 64, 64, dtype=torch.uint8)
    filled, marked = inpaint(image, empty, generator("i", 1))
    hole = marked[0].bool()
    assert torch.equal(filled[:, ~hole], image[:, ~hole])

    def roughness(picture):
        steps = picture.float().diff(dim=2).abs().mean(0)
        return steps[hole[:, 1:] & hole[:, :-1]].mean()

    assert roughness(filled) < 0.7 * roughness(image)


def test_what_is_not_known_is_refused():
    with pytest.raises(ValueError, match="none, flips, benco"):
        augment(*picture(), "all", generator(0))
