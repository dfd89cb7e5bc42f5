import itertools

import numpy as np
import pytest
import torch
from scipy.ndimage import correlate
from torch import nn
from torch.utils.data import Dataset

from projects.dvae.poisons import ATTACKS, choose, make_pattern, poison_dataset, tell
from projects.dvae.poisons.closed_form import search_pixels
from projects.dvae.poisons.learned import Minimising, Robust, Search, Targeted, minimise, minimise_robustly, mislead, shifted_targets
from projects.dvae.poisons.registry import EFFORTS
from projects.dvae.poisons.surrogate import Surrogate, cross_entropy, fixed_batches, train_clean
from projects.dvae.poisons.training_set import TrainingSet
from shared.poisons import ascend, measure, scale_to_l2
from shared.seeding import generator

CLASSES, SHAPE = 3, (3, 16, 16)
CLOSED = [name for name, attack in ATTACKS.items() if not attack.is_learned]


class Tensors(Dataset):
    """Noisy images, whose classes differ in the brightness of a quarter; as tensors and as items."""

    def __init__(self, count=60, seed=0):
        random = generator(seed, "images")
        self.labels = torch.arange(count) % CLASSES
        images = 0.3 + 0.4 * torch.rand(count, *SHAPE, generator=random)
        for label in range(CLASSES):
            images[self.labels == label, label, :8, :8] += 0.06
        self.images = (255 * images).round().byte()

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return {"image": self.images[index].float() / 255, "label": int(self.labels[index]), "index": index}


class Items(Dataset):
    """The same set without tensors."""

    def __init__(self, base):
        self.base = base

    def __len__(self):
        return len(self.base)

    def __getitem__(self, index):
        return self.base[index]


@pytest.fixture(scope="module")
def dataset():
    return Tensors()


def build(seed):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(256, CLASSES)
    )


def searching(dataset, networks=None, seen=None):
    """A search that tells its networks and its progress to the test."""

    def tracked(seed):
        net = build(seed)
        if networks is not None:
            networks.append(net)
        return net

    progress = (lambda *at: seen.append(at)) if seen is not None else (lambda *at: None)
    return Search(TrainingSet(dataset, CLASSES, SHAPE), 8.0, 0, tracked, "cpu", progress)


def poisoned_by(pattern, dataset):
    return poison_dataset(pattern, dataset)[0]


@pytest.mark.parametrize("name", CLOSED)
def test_closed_forms_keep_their_bound_as_stored(dataset, name):
    radius = {"l2": 0.7, "linf": 5, "l0": 3, "unbounded": None}[ATTACKS[name].kind]
    found = measure(dataset.images, poisoned_by(make_pattern(name, dataset, CLASSES, SHAPE, radius=radius), dataset))
    if radius is None:
        assert found["linf"] > 8
    else:
        reached = found[{"l2": "l2_max", "linf": "linf", "l0": "l0_max"}[ATTACKS[name].kind]]
        assert 0.95 * radius <= reached <= radius * (1 + 1e-6)


@pytest.mark.parametrize("name", CLOSED)
def test_what_is_put_on_an_image_depends_on_seed_and_index_only(dataset, name):
    pattern = make_pattern(name, dataset, CLASSES, SHAPE, seed=1)
    whole = poisoned_by(pattern, dataset).float() / 255
    some = torch.tensor([40, 3, 17, 58, 4])
    clean = dataset.images.float() / 255
    assert torch.equal(pattern.apply(clean[some], dataset.labels[some], some), whole[some])
    for number in some.tolist():
        assert torch.equal(pattern.apply(clean[[number]], dataset.labels[[number]], torch.tensor([number])), whole[[number]])
    assert torch.equal(poisoned_by(make_pattern(name, Items(dataset), CLASSES, SHAPE, seed=1), Items(dataset)).float() / 255, whole)
    if name != "ops":  # nothing is drawn there
        assert not torch.equal(poisoned_by(make_pattern(name, dataset, CLASSES, SHAPE, seed=2), dataset).float() / 255, whole)


def test_default_bounds_are_those_of_the_tables():
    radii = {name: (attack.kind, attack.radius) for name, attack in ATTACKS.items()}
    assert radii == dict.fromkeys(("em", "em_class", "rem", "tap", "sep", "random"), ("linf", 8.0)) | {
        "lsp": ("l2", 1.0), "ar": ("l2", 1.0), "ops": ("l0", 1.0), "cuda": ("unbounded", None)
    }  # fmt: skip


def test_lsp_is_flat_on_patches_and_close_to_its_class_mean(dataset):
    delta = poisoned_by(make_pattern("lsp", dataset, CLASSES, SHAPE), dataset).float() - dataset.images.float()
    blocks = delta.reshape(60, 3, 4, 4, 4, 4)
    assert (blocks == blocks[:, :, :, :1, :, :1]).all()
    means = torch.stack([delta[label == dataset.labels].mean(0) for label in range(CLASSES)])
    assert nn.functional.cosine_similarity(delta.flatten(1), means[dataset.labels].flatten(1)).mean() > 0.85


def test_rounding_leaves_the_matched_filters_of_ar_their_difference(dataset):
    pattern = make_pattern("ar", dataset, CLASSES, SHAPE)
    delta = scale_to_l2(poisoned_by(pattern, dataset).double() - dataset.images, 1.0)
    responses = pattern.processes.matched_responses(delta)
    assert (responses.argmin(1) == dataset.labels).all()


def brute_force_pixels(images, labels, pixels):
    """The search of OPS as it is stated, a candidate at a time."""
    used, chosen = set(), {label: [] for label in range(CLASSES)}
    for _, label in itertools.product(range(pixels), range(CLASSES)):
        of_class, scores = images[labels == label].astype(np.float64) / 255, {}
        for row, column in itertools.product(range(images.shape[2]), range(images.shape[3])):
            for colour in itertools.product((0.0, 1.0), repeat=images.shape[1]):
                gap = np.abs(np.array(colour) - of_class[:, :, row, column])
                is_free = (row, column, colour) not in used and (row, column) not in {place[:2] for place in chosen[label]}
                if is_free:
                    scores[row, column, colour] = gap.mean() / gap.std()
        best = max(scores, key=lambda key: scores[key])
        used.add(best)
        chosen[label].append(best)
    return chosen


@pytest.mark.parametrize(("channels", "pixels"), [(3, 1), (1, 3), (2, 4)])
def test_ops_agrees_with_brute_force(channels, pixels):
    images = torch.randint(0, 256, (14, channels, 3, 4), generator=generator(channels, "ops"), dtype=torch.uint8)
    images[:, :, 1, 2] = 90 + images[:, :, 1, 2] % 3  # nearly constant in every class: the classes compete for it
    labels = torch.arange(14) % CLASSES
    dataset = Tensors()
    dataset.images, dataset.labels = images, labels
    pattern = search_pixels(TrainingSet(dataset, CLASSES), pixels)
    found = {
        label: [
            (int(row), int(column), tuple(colour.tolist()))
            for row, column, colour in zip(pattern.rows[label], pattern.columns[label], pattern.colours[label], strict=True)
        ]
        for label in range(CLASSES)
    }
    assert found == brute_force_pixels(images.numpy(), labels.numpy(), pixels)
    everything = [place for places in found.values() for place in places]
    assert len(set(everything)) == len(everything) == CLASSES * pixels
    poisoned = pattern.apply(images.float() / 255, labels, torch.arange(14))
    for image, label in zip(poisoned, labels.tolist(), strict=True):
        assert all(image[:, row, column].tolist() == list(colour) for row, column, colour in found[label])
    assert measure(images, (255 * poisoned).round().byte())["l0_max"] <= pixels


def test_ops_prefers_a_constant_pixel_and_its_farther_colour():
    dataset = Tensors(30)
    dataset.images = dataset.images.clone()
    dataset.images[:, :, 5, 6] = torch.tensor([10, 200, 30], dtype=torch.uint8)
    pattern = search_pixels(TrainingSet(dataset, CLASSES), 1)
    assert (int(pattern.rows[0]), int(pattern.columns[0]), pattern.colours[0, 0].tolist()) == (5, 6, [1, 0, 1])


def test_too_many_pixels_are_refused():
    dataset = Tensors(6)
    dataset.images = dataset.images[:, :1, :1, :2].clone()
    with pytest.raises(ValueError, match="2 pixels for each of 3 classes are too many for 1 x 2 pixels"):
        search_pixels(TrainingSet(dataset, CLASSES), 2)


def test_cuda_is_a_correlation_divided_by_its_maximum(dataset):
    pattern = make_pattern("cuda", dataset, CLASSES, SHAPE)
    kernels = pattern.kernels.numpy()
    assert ((kernels == 1).sum((1, 2)) == 1).all()
    assert ((kernels >= 0) & ((kernels <= 0.3) | (kernels == 1))).all()
    poisoned = poisoned_by(pattern, dataset)
    for number in (0, 1, 2):
        clean = dataset.images[number].double().numpy() / 255
        filtered = np.stack([correlate(plane, kernels[number % CLASSES], mode="constant") for plane in clean])
        assert np.abs(poisoned[number].numpy() - 255 * filtered / filtered.max()).max() <= 0.501


def test_random_noise_takes_every_level_of_its_bound(dataset):
    delta = poisoned_by(make_pattern("random", dataset, CLASSES, SHAPE, radius=2), dataset).short() - dataset.images.short()
    assert delta.unique().tolist() == [-2, -1, 0, 1, 2]


@pytest.mark.parametrize("class_wise", [False, True])
def test_em_stops_when_the_error_is_low(dataset, class_wise):
    networks, seen = [], []
    effort = Minimising(batch_size=20, lr=0.05, train_steps=6, steps=1 if class_wise else 4, step=0.3, rounds=40, stop_error=0.1)
    pattern = minimise(searching(dataset, networks, seen), effort, class_wise)
    poisoned = poisoned_by(pattern, dataset)
    assert seen[-1][0] < 40
    surrogate = networks[0].eval()

    def mistakes(images):
        return float((surrogate(images.float() / 255).argmax(1) != dataset.labels).float().mean())

    assert mistakes(poisoned) < 0.1
    assert mistakes(poisoned) < mistakes(dataset.images)
    assert measure(dataset.images, poisoned)["linf"] <= 8
    if class_wise:
        assert pattern.table.levels.shape == (CLASSES, *SHAPE)
        assert torch.equal(pattern.table.read(torch.tensor([0])), pattern.table.read(torch.tensor([3])))


def test_targets_are_shifted_cyclically():
    assert shifted_targets(torch.tensor([0, 1, 9]), 10, 1).tolist() == [1, 2, 0]
    assert shifted_targets(torch.tensor([0, 4, 7]), 10, 5).tolist() == [5, 9, 2]


@pytest.mark.parametrize(("shift", "checkpoints"), [(1, 1), (2, 3)])
def test_targeted_noise_is_taken_for_its_target(dataset, shift, checkpoints):
    networks = []
    effort = Targeted(batch_size=20, lr=0.05, epochs=15, steps=15, step=0.2, is_augmented=checkpoints == 1, checkpoints=checkpoints, flip=False)
    poisoned = poisoned_by(mislead(searching(dataset, networks), effort, shift), dataset)
    assert measure(dataset.images, poisoned)["linf"] == 8
    net, targets = networks[0].eval(), (dataset.labels + shift) % CLASSES
    with torch.no_grad():
        losses = [float(cross_entropy(net, targets)(images.float() / 255)) for images in (dataset.images, poisoned)]
        assert losses[1] < 0.5 * losses[0]
        assert (net(poisoned.float() / 255).argmax(1) == targets).float().mean() > 0.8


def test_rem_lowers_the_loss_under_an_adversary(dataset):
    networks, seen = [], []
    effort = Robust(batch_size=20, lr=0.05, train_steps=40, steps=4, step=0.4, views=1, inner_steps=2, inner_step=0.6, flip=False)
    poisoned = poisoned_by(minimise_robustly(searching(dataset, networks, seen), effort), dataset)
    assert measure(dataset.images, poisoned)["linf"] <= 8
    assert seen == [(number, 43) for number in range(1, 44)]
    loss = cross_entropy(networks[0], dataset.labels)
    attacked = [ascend(images.float() / 255, loss, 4 / 255, 1 / 255, 8, generator(0, "test")) for images in (dataset.images, poisoned)]
    with torch.no_grad():
        assert loss(attacked[1]) < 0.95 * loss(attacked[0])


def test_snapshots_are_evenly_spaced_and_end_with_the_trained_network(dataset):
    surrogate, states = Surrogate(build(0), lr=0.02), []
    read = lambda indices: (dataset.images[indices].float() / 255, dataset.labels[indices])  # noqa: E731
    weight = surrogate.net[0].weight
    snapshots = train_clean(surrogate, read, 60, 20, 6, 0, lambda done: states.append(weight.detach().clone()), keep=3)
    assert all(torch.equal(net[0].weight, states[epoch]) for net, epoch in zip(snapshots, (1, 3, 5), strict=True))


def test_batches_hold_every_image_once_and_none_is_tiny():
    batches = fixed_batches(129, 64, 0)
    assert sorted(torch.cat(batches).tolist()) == list(range(129))
    assert [len(batch) for batch in batches] == [43, 43, 43]


@pytest.mark.parametrize("name", [name for name in ATTACKS if ATTACKS[name].is_learned])
def test_learned_attacks_are_reproducible(dataset, name, monkeypatch):
    efforts = {
        "em": Minimising(20, 0.05, 2, 2, 0.2, 2),
        "em_class": Minimising(20, 0.05, 2, 1, 0.2, 2),
        "rem": Robust(20, 0.05, 2, 2, 0.4, 1, inner_steps=1),
        "tap": Targeted(20, 0.05, 2, 2, 0.5),
        "sep": Targeted(20, 0.05, 2, 2, 0.5, checkpoints=2),
    }
    monkeypatch.setitem(EFFORTS, name, {"quick": efforts[name]})
    first, again, other = (
        poisoned_by(make_pattern(name, Items(dataset), CLASSES, SHAPE, seed=seed, build=build, recipe="quick"), dataset) for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_part_is_poisoned(dataset):
    pattern = make_pattern("lsp", dataset, CLASSES, SHAPE)
    whole = poisoned_by(pattern, dataset)
    poisoned, is_poisoned = poison_dataset(pattern, dataset, rate=0.4)
    assert int(is_poisoned.sum()) == 24
    assert torch.equal(poisoned[is_poisoned], whole[is_poisoned])
    assert torch.equal(poisoned[~is_poisoned], dataset.images[~is_poisoned])
    by_class = choose(dataset.labels, 0.4, "classes", 0)
    assert len(set(dataset.labels[by_class].tolist())) == 1
    assert int(by_class.sum()) == 20
    assert not torch.equal(choose(dataset.labels, 0.4, "random", 1), is_poisoned)


def test_chunks_do_not_matter(dataset, monkeypatch):
    whole = poisoned_by(make_pattern("ops", dataset, CLASSES, SHAPE), dataset)
    monkeypatch.setattr(TrainingSet.chunks, "__defaults__", (7,))
    assert torch.equal(poisoned_by(make_pattern("ops", dataset, CLASSES, SHAPE), dataset), whole)


def test_wrong_arguments_are_named(dataset):
    with pytest.raises(ValueError, match="unknown attack 'lps': known are em, em_class, rem, tap, sep, lsp, ar, ops, cuda, random"):
        make_pattern("lps", dataset, CLASSES, SHAPE)
    with pytest.raises(ValueError, match="between 1 and 127, got 200"):
        make_pattern("random", dataset, CLASSES, SHAPE, radius=200)
    with pytest.raises(ValueError, match="an unbounded perturbation has no radius"):
        make_pattern("cuda", dataset, CLASSES, SHAPE, radius=8)
    with pytest.raises(ValueError, match="the attack tap learns through a surrogate network: give build"):
        make_pattern("tap", dataset, CLASSES, SHAPE)
    with pytest.raises(ValueError, match="unknown recipe 'fast': known are paper, quick"):
        make_pattern("em", dataset, CLASSES, SHAPE, build=build, recipe="fast")
    with pytest.raises(ValueError, match=r"labels must lie in \[0, 2\), got 0 to 2: set classes to at least 3"):
        make_pattern("ops", dataset, 2, SHAPE)
    with pytest.raises(ValueError, match=r"shape \(3, 16, 16\), where \(3, 32, 32\) was stated"):
        make_pattern("ops", dataset, CLASSES, (3, 32, 32))
    with pytest.raises(ValueError, match=r"between 0 and 1, got 1\.5"):
        choose(dataset.labels, 1.5, "random", 0)
    with pytest.raises(ValueError, match="unknown choice 'class': known are random and classes"):
        choose(dataset.labels, 0.5, "class", 0)


def test_sets_that_cannot_be_poisoned_are_refused(dataset):
    with pytest.raises(ValueError, match="item 0 says that its index is 5: poison a whole training set"):
        make_pattern("ops", torch.utils.data.Subset(Items(dataset), range(5, 20)), CLASSES, SHAPE)
    with pytest.raises(ValueError, match="the data set is empty"):
        make_pattern("ops", Items([]), CLASSES, SHAPE)


def test_a_long_attack_tells_how_far_it_is(capsys):
    for total in (3, 5000):
        progress = tell("rem")
        for done in range(1, total + 1):
            progress(done, total)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:4] == ["rem: 1 of 3", "rem: 2 of 3", "rem: 3 of 3", "rem: 250 of 5000"]
    assert len(lines) == 23
