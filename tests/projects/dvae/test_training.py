import json
import math

import pytest
import torch
from torch.nn import functional as F
from torchvision.transforms import functional as transforms

from projects.dvae.augmentation import augment, draw_parts, move_and_flip, resize_and_flip
from projects.dvae.batches import Pixels, ordered_loader, training_loader
from projects.dvae.defences import parse_defence
from projects.dvae.defences.base import Defence
from projects.dvae.training import Outcome, Recipe, Victim, train_victim
from projects.dvae.victims import build_victim
from shared.data.offline import digits
from shared.quiet import quiet_trainer, silence
from shared.seeding import generator

TINY = Recipe("cnn", epochs=2, batch_size=16, lr=0.02, augment="shift1")


@pytest.fixture(scope="module")
def sets():
    train, test = (digits(split, size=8) for split in ("train", "test"))
    return (train.images * 255).round().byte(), train.labels, (test.images * 255).round().byte(), test.labels


@pytest.fixture
def few(sets):
    return sets[0][:64], sets[1][:64], sets[2][:40], sets[3][:40]


def test_a_victim_learns_digits(sets):
    found = train_victim(*sets, 10, Recipe.quick(epochs=6), parse_defence("none"), seed=0)
    assert found.last > 0.9
    assert found.seconds < 60
    total = sum(map(sum, found.confusion))
    assert total == len(sets[3])
    assert [sum(row) for row in found.confusion] == sets[3].bincount(minlength=10).tolist(), "a row for every true class"
    assert sum(found.confusion[k][k] for k in range(10)) / total == pytest.approx(found.last)
    assert len(found.curve) == 6


def test_the_curve_is_the_accuracy_of_the_weights(few, tmp_path):
    found = train_victim(*few, 10, TINY, parse_defence("none"), 3, folder=tmp_path / "cell")
    net = build_victim("cnn", 10, 1, 8)
    net.load_state_dict(torch.load(tmp_path / "cell" / "victim.pt", weights_only=True))
    predicted = net.eval()(few[2] / 255).argmax(1)
    assert found.last == pytest.approx((predicted == few[3]).float().mean().item())
    written = json.loads((tmp_path / "cell" / "outcome.json").read_text())
    assert (written["curve"], written["confusion"]) == (found.curve, found.confusion)


def test_last_and_peak_differ_when_the_curve_says_so():
    confusion = torch.tensor([[1, 2], [3, 4]])
    found = Outcome.of([0.25, 0.75, 0.75, 0.5], confusion, 1.0, 2.0)
    assert (found.last, found.peak, found.peak_epoch) == (0.5, 0.75, 2)
    assert found.confusion == [[1, 2], [3, 4]]
    rising = Outcome.of([0.25, 0.5], confusion, 1.0, 2.0)
    assert (rising.last, rising.peak, rising.peak_epoch) == (0.5, 0.5, 2)


@pytest.mark.parametrize("name", ["none", "cutmix", "at", "ueraser"])
def test_a_run_is_a_function_of_its_seed(name, few):
    def weights(seed):
        net = {}

        class Keep(Defence):
            def loss(self, network, *given):
                net["of"] = network
                return parse_defence(name).loss(network, *given)

        found = train_victim(*few, 10, TINY, Keep(), seed)
        return found.curve, net["of"].state_dict()

    torch.manual_seed(1)
    state = torch.get_rng_state()
    (curve, one), (again, same), (_, other) = weights(1), weights(1), weights(2)
    assert torch.equal(torch.get_rng_state(), state)
    assert curve == again
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert not torch.equal(one["head.weight"], other["head.weight"])


def test_defences_are_given_the_augmented_batch_and_the_progress(few):
    seen = []

    class Spy(Defence):
        def loss(self, network, images, labels, random, progress):
            seen.append((images, labels, progress, network.training))
            return super().loss(network, images, labels, random, progress)

    train_victim(*few, 10, TINY, Spy(), 0)
    assert [each[2] for each in seen] == [0.0] * 4 + [0.5] * 4
    assert all(training for *_, training in seen)
    first = seen[0][0]
    assert first.shape == (16, 1, 8, 8)
    assert 0 <= first.min() <= first.max() <= 1
    assert sorted(torch.cat([labels for _, labels, *_ in seen[:4]]).tolist()) == sorted(few[1].tolist()), "every image once an epoch"
    assert not all(torch.equal(a[0], b[0]) for a, b in zip(seen[:4], seen[4:], strict=True))


def test_test_images_are_touched_only_when_asked_for(few, monkeypatch):
    seen = []
    step = Victim.validation_step
    monkeypatch.setattr(Victim, "validation_step", lambda self, batch, index: (seen.append(batch["image"]), step(self, batch, index))[1])
    defence = parse_defence("bdr:1")
    for is_asked, expected in ((False, few[2]), (True, defence.transform_test(few[2]))):
        seen.clear()
        train_victim(*few, 10, Recipe("cnn", 1, 32, 0.02), defence, 0, defend_test=is_asked)
        assert torch.equal(torch.cat(seen), expected)
    with pytest.raises(ValueError, match="'op' is for training sets only"):
        train_victim(*few, 10, TINY, parse_defence("op"), 0, defend_test=True)


@pytest.mark.parametrize("schedule", ["cosine", "steps"])
def test_the_learning_rate_follows_its_schedule(schedule):
    recipe = Recipe("cnn", epochs=20, schedule=schedule)
    found = Victim(recipe, parse_defence("none"), 10).configure_optimizers()
    optimizer, rates = found["optimizer"], []
    for _ in range(20):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        found["lr_scheduler"].step()
    if schedule == "cosine":
        assert rates == pytest.approx([0.05 * (1 + math.cos(math.pi * epoch / 20)) for epoch in range(20)])
    else:
        assert rates == pytest.approx([0.1] * 15 + [0.01] * 3 + [0.001] * 2)
    assert optimizer.param_groups[0]["momentum"] == 0.9
    assert optimizer.param_groups[0]["weight_decay"] == 5e-4


def test_gradients_are_cut_by_the_trainer(few):
    norms = []

    class Steep(Defence):
        def loss(self, network, *given):
            return 1e4 * super().loss(network, *given)

    class Watch(Victim):
        def on_before_optimizer_step(self, optimizer):
            norms.append(math.sqrt(sum(float(p.grad.square().sum()) for p in self.parameters())))

        def on_train_batch_end(self, *given):
            norms.append(math.sqrt(sum(float(p.grad.square().sum()) for p in self.parameters())))

    with silence():
        trainer = quiet_trainer(1, 5.0, max_steps=1)
        trainer.fit(Watch(TINY, Steep(), 10, 1, 8), training_loader(few[0], few[1], 16, 0), ordered_loader(few[2], few[3]))
    assert norms[0] > 100
    assert norms[1] == pytest.approx(5.0, rel=1e-4)


def test_published_recipes():
    assert Recipe.paper() == Recipe("resnet18", 60, 128, 0.1, 0.9, 5e-4, 5.0, "cosine", "crop_flip")
    assert Recipe.paper("densenet121").batch_size == 96
    assert Recipe.paper(classes=100).epochs == 100
    assert Recipe.paper(classes=100, size=224).augment == "resize_flip"
    assert (Recipe.paper(defence="at:4").epochs, Recipe.paper(defence="at").schedule) == (100, "steps")
    assert (Recipe.paper(defence="ueraser").epochs, Recipe.paper(defence="ueraser").lr) == (200, 0.01)


def test_batches_are_the_items(few):
    pixels = Pixels(few[0], few[1])
    batch = pixels.__getitems__([5, 0, 9])
    for row, index in enumerate((5, 0, 9)):
        assert all(torch.equal(value[row], pixels[index][key]) for key, value in batch.items())
    assert torch.cat([part["index"] for part in ordered_loader(few[0], few[1], 10)]).tolist() == list(range(64))


def test_the_order_is_a_function_of_seed_and_epoch(few):
    def order(seed, epoch):
        loader = training_loader(few[0], few[1], 30, seed)
        loader.sampler.set_epoch(epoch)
        return [batch["index"].tolist() for batch in loader]

    assert order(0, 1) == order(0, 1) != order(0, 2)
    assert order(0, 1) != order(1, 1)
    assert [len(rows) for rows in order(0, 0)] == [30, 30]


def test_windows_by_brute_force():
    images = torch.randint(1, 256, (30, 3, 6, 8), generator=generator(0, "images")).byte()
    moves = torch.randint(-3, 4, (30, 2), generator=generator(0, "moves"))
    flips = torch.arange(30) % 2 == 0
    black, repeated = (move_and_flip(images, moves, flips, repeat=repeat) for repeat in (False, True))
    assert black.dtype == torch.uint8
    for i, (down, across) in enumerate(moves.tolist()):
        for found, mode in ((black, "constant"), (repeated, "edge")):
            padded = transforms.pad(images[i], [3, 3, 3, 3], padding_mode=mode)
            window = transforms.crop(padded, 3 + down, 3 + across, 6, 8)
            assert torch.equal(found[i], transforms.hflip(window) if flips[i] else window)


def test_crops_of_cifar_reach_four_pixels_and_mirror_half():
    images = torch.zeros(4000, 1, 32, 32, dtype=torch.uint8)
    images[:, :, 16, 10] = 255
    places = augment(images, "crop_flip", generator(0, "crops"))[:, 0].flatten(1).argmax(1)
    rows, columns = places // 32, places % 32
    assert sorted(set(rows.tolist())) == list(range(12, 21))
    mirrored = columns > 16
    assert sorted(set(columns[~mirrored].tolist())) == list(range(6, 15))
    assert sorted(set(columns[mirrored].tolist())) == list(range(17, 26))
    assert mirrored.float().mean().item() == pytest.approx(0.5, abs=0.05)


def test_stretched_parts_are_torchvisions():
    images = torch.rand(12, 3, 20, 30)
    tops, lefts = torch.arange(12) % 5, torch.arange(12) % 7
    heights, widths = 5 + torch.arange(12), 8 + torch.arange(12)
    parts = torch.stack([heights / 20, widths / 30, (2 * tops + heights) / 20 - 1, (2 * lefts + widths) / 30 - 1, torch.ones(12)], 1)
    found, mirrored = resize_and_flip(images, parts), resize_and_flip(images, parts * torch.tensor([1, 1, 1, 1, -1]))
    for i in range(12):
        part = transforms.crop(images[i], tops[i], lefts[i], heights[i], widths[i])
        expected = F.interpolate(part[None], (20, 30), mode="bilinear", align_corners=False)[0]
        inner = slice(3, -3)  # at the cut, ours sees the pixels beyond it
        torch.testing.assert_close(found[i][:, inner, inner], expected[:, inner, inner], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(mirrored[i], found[i].flip(2), rtol=1e-3, atol=1e-4)


def test_stretched_parts_are_the_same_under_autocast():
    images, parts = torch.rand(12, 3, 20, 30), draw_parts(12, 20 / 30, generator(0, "parts"))
    with torch.autocast("cpu", torch.bfloat16):
        found = resize_and_flip(images, parts)
    assert torch.equal(found, resize_and_flip(images, parts))


def test_parts_have_the_drawn_areas_and_lie_inside():
    parts = draw_parts(5000, 2.0, generator(0, "parts"))
    height, width, down, across, mirror = parts.unbind(1)
    assert bool((down.abs() + height <= 1 + 1e-6).all())
    assert bool((across.abs() + width <= 1 + 1e-6).all())
    free = (height < 1) & (width < 1)
    area, aspect = (height * width)[free], (width / (2 * height))[free]  # in pixels, of images twice as high as wide
    assert 0.08 <= area.min() < 0.1
    assert 3 / 4 - 1e-5 <= aspect.min() < 0.77
    assert 1.3 < aspect.max() <= 4 / 3 + 1e-5
    assert mirror.mean().abs() < 0.05


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"victim": "lenet"}, "victim must be one of cnn, resnet18"),
        ({"schedule": "linear"}, "schedule must be one of cosine, steps"),
        ({"augment": "flip"}, "augment must be one of crop_flip"),
        ({"epochs": 0}, "epochs, lr and clip must be positive"),
    ],
)
def test_wrong_recipes_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        Recipe(**options)


def test_wrong_sets_are_named(few):
    images, labels, test_images, test_labels = few

    def train(*sets, classes=10, recipe=TINY):
        return train_victim(*sets, classes, recipe, parse_defence("none"), 0)

    with pytest.raises(ValueError, match="training set: images must be bytes"):
        train(images / 255, labels, test_images, test_labels)
    with pytest.raises(ValueError, match="test set: labels must be 40 integers"):
        train(images, labels, test_images, test_labels[:-1])
    with pytest.raises(ValueError, match="training set has a label 9, but there are 9 classes"):
        train(images, labels, test_images, test_labels, classes=9)
    with pytest.raises(ValueError, match=r"\(1, 8, 8\) and test images \(1, 8, 7\): bring them to one shape"):
        train(images, labels, test_images[..., 1:], test_labels)
    assert len(train(images, labels, test_images, test_labels, recipe=Recipe("cnn", epochs=1)).curve) == 1, "64 images make one batch of 128 at most"
