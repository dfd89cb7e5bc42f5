import io
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import fft, ndimage
from torch import nn
from torch.nn import functional as F
from torchvision.transforms import TrivialAugmentWide

from projects.dvae.batches import to_bytes
from projects.dvae.defences import DEFENCES, Budget, parse_defence
from projects.dvae.defences.adversarial import find_adversaries
from projects.dvae.defences.mixing import Mixing, cut_mix, inside_boxes, mix_up, mixing_boxes
from projects.dvae.defences.projection import basis_of, fit_directions, project_out
from projects.dvae.defences.ueraser import augment, plasma, plasma_brightness, plasma_contrast, shuffle_channels, trivially_augment
from shared.data import memory
from shared.seeding import generator

BUDGET = Budget(epochs=2, width=4, batch_size=16)


def random(*key):
    return generator(0, *key)


@pytest.fixture
def images():
    smooth = F.interpolate(torch.rand(40, 3, 4, 4, generator=random("images")), size=16, mode="bicubic").clamp(0, 1)
    return to_bytes(smooth)


@pytest.fixture
def labels():
    return torch.arange(40) % 5


@pytest.fixture
def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 14 * 14, 5))


class Spy(nn.Module):
    """Keeps what it is given; its logits are sums of thirds of the pixels."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, images):
        self.seen.append(images)
        return images.flatten(1).unflatten(1, (4, -1)).mean(2)


def in_pillow(image, mode="RGB"):
    return Image.fromarray(image.permute(1, 2, 0).numpy()).convert(mode)


@pytest.mark.parametrize("quality", [10, 50, 95])
def test_jpeg_is_pillows(images, labels, quality):
    found = parse_defence(f"jpeg:{quality}").transform_set(images, labels, 0)
    for image, mapped in zip(images, found, strict=True):
        file = io.BytesIO()
        in_pillow(image).save(file, "JPEG", quality=quality)
        assert np.array_equal(np.array(Image.open(file)), mapped.permute(1, 2, 0).numpy())
    assert parse_defence("jpeg").quality == 10


def test_jpeg_rounds_cosine_coefficients(images, labels):
    found = parse_defence("jpeg:10").transform_set(images[:, :1], labels, 0)
    first = [16, 11, 10, 16, 24, 40, 51, 61]  # first row of Annex K's table of luminance; a quality of 10 makes it five times as coarse
    for image, mapped in zip(images[:5, 0], found[:5, 0], strict=True):
        file = io.BytesIO()
        Image.fromarray(image.numpy()).save(file, "JPEG", quality=10)
        table = np.array(Image.open(file).quantization[0]).reshape(8, 8)
        assert table[0].tolist() == [min(255, 5 * step) for step in first]
        for row, column in ((0, 0), (0, 8), (8, 0), (8, 8)):
            block = image[row : row + 8, column : column + 8].double().numpy() - 128
            rounded = np.rint(fft.dctn(block, norm="ortho") / table) * table
            expected = np.clip(fft.idctn(rounded, norm="ortho") + 128, 0, 255)
            assert np.abs(mapped[row : row + 8, column : column + 8].numpy() - expected).max() <= 1.5


def test_grey_is_pillows_luma(images, labels):
    found = parse_defence("grey").transform_set(images, labels, 0)
    for image, mapped in zip(images, found, strict=True):
        assert np.array_equal(np.array(in_pillow(image, "L"))[None].repeat(3, 0), mapped.numpy())
    assert torch.equal(parse_defence("grey").transform_set(images[:, :1], labels, 0), images[:, :1])


@pytest.mark.parametrize("bits", range(1, 8))
def test_bit_depth_is_the_formula(bits):
    levels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    found = parse_defence(f"bdr:{bits}").transform_set(levels, torch.tensor([0]), 0).flatten().tolist()
    assert found == [round(255 * Fraction(math.floor(Fraction(2**bits * value, 255)), 2**bits)) for value in range(256)]
    assert parse_defence("bdr").bits == 2


def test_blur_is_a_gaussian_and_the_published_one_does_nothing(images, labels):
    assert torch.equal(parse_defence("blur").transform_set(images, labels, 0), images)
    line = np.exp(-0.5 * (np.array([-1, 0, 1]) / 0.8) ** 2)
    kernel = np.outer(line, line) / line.sum() ** 2
    expected = ndimage.correlate(images.numpy().astype(float), kernel[None, None], mode="mirror")
    found = parse_defence("blur:0.8").transform_set(images, labels, 0)
    assert np.abs(found.numpy() - expected).max() <= 0.5 + 1e-3


@pytest.mark.parametrize("name", ["jpeg", "grey", "bdr", "blur:1", "op"])
def test_maps_do_not_depend_on_chunks_and_leave_the_set(images, labels, name, monkeypatch):
    before, whole = images.clone(), parse_defence(name)
    expected = whole.transform_set(images, labels, 0)
    assert expected.dtype == torch.uint8
    assert torch.equal(images, before)
    if name == "op":  # batches of the fit are cut, too: only the projection must agree
        basis = basis_of(fit_directions(images, labels, 0))
        expected = to_bytes(project_out(images / 255, basis))
        assert (whole.transform_set(images, labels, 0).int() - expected.int()).abs().max() <= 1, "rounding of the sums"
        return
    monkeypatch.setattr(memory, "CHUNK", 7 * images[0].numel())
    assert torch.equal(whole.transform_set(images, labels, 0), expected)
    assert torch.equal(whole.transform_test(images), expected)


def test_the_projection_fits_a_softmax_regression(images, labels, monkeypatch):
    monkeypatch.setattr("projects.dvae.defences.projection.EPOCHS", 3)
    monkeypatch.setattr("projects.dvae.defences.projection.STEPS", 6)
    monkeypatch.setattr("projects.dvae.defences.projection.BATCH", 16)
    linear = nn.Linear(768, 5, bias=False)
    nn.init.zeros_(linear.weight)
    optimizer = torch.optim.SGD(linear.parameters(), 0.1)
    for epoch in range(3):
        order = torch.randperm(40, generator=generator(7, "projection", epoch))
        for rows in (order[:16], order[16:32]):
            optimizer.zero_grad()
            F.cross_entropy(linear(images[rows].flatten(1) / 255), labels[rows]).backward()
            optimizer.step()
    torch.testing.assert_close(fit_directions(images, labels, 7), linear.weight.detach(), rtol=1e-4, atol=1e-6)


def test_the_projection_removes_exactly_the_span(images, labels):
    weights = fit_directions(images, labels, 0)
    basis = basis_of(weights).double()
    assert basis.shape == (768, 4), "the five vectors add up to 0"
    projected = project_out(images.double() / 255, basis)
    response = projected.flatten(1) @ weights.double().T
    assert response.abs().max() < 1e-4 * (images.flatten(1).double() / 255 @ weights.double().T).abs().max()
    removed = (images.double() / 255 - projected).flatten(1)
    expected, *_ = np.linalg.lstsq(weights.double().T.numpy(), (images.flatten(1).double() / 255).T.numpy(), rcond=1e-5)
    torch.testing.assert_close(removed, torch.from_numpy(weights.double().T.numpy() @ expected).T, rtol=1e-4, atol=1e-5)


def test_the_projection_takes_a_class_wise_perturbation_away(images, labels):
    signs = torch.randint(2, (5, 3, 16, 16), generator=random("signs")) * 24 - 12
    clean = (images.int() // 2 + 64).byte()
    poisoned = (clean.int() + signs[labels]).byte()
    found = parse_defence("op").transform_set(poisoned, labels, 0)

    def between_classes(some):  # how far apart the classes' patterns are, measured along the perturbations
        centred = (signs - signs.float().mean(0)).flatten(1).double()
        means = torch.stack([some[labels == k].double().mean(0) for k in range(5)])
        return float(((means - means.mean(0)).flatten(1) * centred).sum())

    assert abs(between_classes(found) - between_classes(clean)) < 0.2 * abs(between_classes(poisoned) - between_classes(clean))


def test_boxes_by_brute_force():
    boxes = torch.tensor([[-3, 4, 2, 5], [6, 11, -1, 9], [3, 3, 2, 6]])
    found = inside_boxes(boxes, 8, 6)
    for box, mask in zip(boxes.tolist(), found[:, 0], strict=True):
        expected = [[box[0] <= row < box[1] and box[2] <= column < box[3] for column in range(6)] for row in range(8)]
        assert mask.tolist() == expected


def test_cutout_blackens_a_square_of_half_the_side():
    spy, images, labels = Spy(), torch.ones(200, 1, 16, 16), torch.zeros(200, dtype=torch.int64)
    loss = parse_defence("cutout").loss(spy, images, labels, random("cutout"), 0.0)
    torch.testing.assert_close(loss, F.cross_entropy(Spy()(spy.seen[0]), labels))
    black = spy.seen[0][:, 0] == 0
    tops, lefts = set(), set()
    for mask in black:
        rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
        assert mask.sum() == len(rows) * len(columns), "a rectangle"
        assert len(rows) == 8 or rows[0] == 0 or rows[-1] == 15
        assert 4 <= len(rows) <= 8, "the centre lies in the image"
        tops.add(rows[0].item())
        lefts.add(columns[0].item())
    assert tops == lefts == set(range(12))


def test_mixup_by_hand():
    images, others, shares = torch.rand(3, 2, 2, 2), torch.rand(3, 2, 2, 2), torch.tensor([0.0, 0.3, 1.0])
    found = mix_up(images, others, shares)
    assert torch.equal(found[0], others[0])
    assert torch.equal(found[2], images[2])
    torch.testing.assert_close(found[1], 0.3 * images[1] + 0.7 * others[1])


def test_cutmix_counts_the_pixels():
    shares = torch.rand(300, generator=random("shares"))
    shares[0] = 1.0
    boxes = mixing_boxes(shares, 12, 20, random("boxes"))
    mixed, kept = cut_mix(torch.zeros(300, 1, 12, 20), torch.ones(300, 1, 12, 20), boxes)
    torch.testing.assert_close(kept, torch.tensor([(image == 0).sum().item() / 240 for image in mixed]))
    assert kept[0] == 1
    sides = boxes[:, 1::2] - boxes[:, ::2]
    assert bool((sides == torch.stack([(12 * (1 - shares).sqrt()).long(), (20 * (1 - shares).sqrt()).long()], 1)).all())
    assert bool((kept >= shares - 1e-6).all()), "what lies beyond the border is not covered"


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_mixtures_keep_the_mass_of_their_labels(name):
    count = 64
    images = torch.arange(count)[:, None, None, None].expand(-1, 1, 10, 10) / count
    labels = torch.arange(count)
    mixture = Mixing(name).mix(images, labels, random(name))
    torch.testing.assert_close(mixture.weights.sum(0), torch.ones(count))
    assert torch.equal(mixture.labels[0], labels)
    untouched = mixture.weights[0] == 1
    assert 0.1 < untouched.float().mean() < 0.45, "a quarter is mixed in neither round"
    assert torch.equal(mixture.images[untouched], images[untouched])
    means = (mixture.weights * mixture.labels / count).sum(0)
    if name == "mixup":
        torch.testing.assert_close(mixture.images.mean((1, 2, 3)), means)
    once = ((mixture.weights > 0).sum(0) == 2) & (mixture.weights[0] < 1)
    assert once.sum() > 10
    torch.testing.assert_close(mixture.images.mean((1, 2, 3))[once], means[once])


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_the_loss_of_a_mixture_is_that_of_soft_labels(name, network):
    images, labels = torch.rand(8, 3, 16, 16), torch.arange(8) % 5
    found = parse_defence(name).loss(network, images, labels, random(name), 0.0)
    mixture = Mixing(name).mix(images, labels, random(name))
    soft = sum(weight[:, None] * F.one_hot(label, 5) for weight, label in zip(mixture.weights, mixture.labels, strict=True))
    torch.testing.assert_close(found, F.cross_entropy(network(mixture.images), soft))


def test_adversaries_stay_in_their_ball_and_climb(network):
    images, labels = torch.rand(8, 3, 16, 16), torch.arange(8) % 5
    images[0], images[1] = 0.0, 1.0
    network.train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    found = find_adversaries(network, images, labels, 8 / 255, 2 / 255, 10, random("at"))
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items()), "running statistics are the training's"
    assert not found.requires_grad
    assert all(parameter.grad is None for parameter in network.parameters())
    assert (found - images).abs().max() <= 8 / 255 + 1e-6
    assert 0 <= found.min() <= found.max() <= 1
    network.eval()
    each = F.cross_entropy(network(found), labels, reduction="none") - F.cross_entropy(network(images), labels, reduction="none")
    assert bool((each > 0).all())


def test_a_step_of_the_attack_by_hand(network):
    images, labels = torch.rand(4, 3, 16, 16), torch.arange(4)
    network.eval()
    start = (images + 2 / 255 * torch.randn(images.shape, generator=random("at"))).requires_grad_(True)
    F.cross_entropy(network(start), labels).backward()
    expected = (start.detach() + 2 / 255 * start.grad.sign()).clamp(images - 8 / 255, images + 8 / 255).clamp(0, 1)
    torch.testing.assert_close(find_adversaries(network, images, labels, 8 / 255, 2 / 255, 1, random("at")), expected)


def test_adversarial_training_is_on_the_adversaries(network):
    images, labels = torch.rand(4, 3, 16, 16), torch.arange(4)
    network.train()
    expected = find_adversaries(network, images, labels, 8 / 255, 2 / 255, 10, random("at"))
    torch.testing.assert_close(parse_defence("at").loss(network, images, labels, random("at"), 0.0), F.cross_entropy(network(expected), labels))


def test_plasma_fills_its_range_and_roughness_makes_it_rough():
    for size in ((8, 8), (16, 20), (5, 32)):
        clouds = plasma((6, 3, *size), torch.full((6,), 0.5), random("plasma"))
        assert clouds.amin((2, 3)).unique().tolist() == [0.0]
        assert clouds.amax((2, 3)).unique().tolist() == [1.0]
    rough, smooth = (plasma((20, 1, 32, 32), torch.full((20,), value), random("plasma")).diff(dim=3).abs().mean() for value in (0.7, 0.3))
    assert rough > 1.5 * smooth


def test_ueraser_changes_by_hand():
    images = torch.rand(5, 3, 16, 16, generator=random("images"))
    drawn = random("changes")
    roughness = 0.3 + 0.4 * torch.rand(5, generator=drawn)
    clouds = plasma((5, 3, 16, 16), roughness, drawn)
    intensity = 0.5 + 0.5 * torch.rand(5, generator=drawn)
    expected = torch.stack([(image + i * (2 * cloud - 1)).clamp(0, 1) for image, i, cloud in zip(images, intensity, clouds, strict=True)])
    torch.testing.assert_close(plasma_brightness(images, random("changes")), expected)
    torch.testing.assert_close(plasma_contrast(images, random("changes")), (0.5 + 4 * clouds * (images - 0.5)).clamp(0, 1))
    shuffled = shuffle_channels(images, random("changes"))
    for image, other in zip(images, shuffled, strict=True):
        assert sorted(image.sum((1, 2)).tolist()) == pytest.approx(sorted(other.sum((1, 2)).tolist()))


def test_trivial_augment_is_torchvisions_and_leaves_the_global_generator():
    images = torch.randint(256, (6, 3, 16, 16), generator=random("images")) / 255
    torch.manual_seed(3)
    state = torch.get_rng_state()
    found = trivially_augment(images, random("trivial"))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(int(torch.randint(2**62, (), generator=random("trivial"))))
    change = TrivialAugmentWide()
    expected = [change(image) for image in (images * 255).round().byte()]
    torch.testing.assert_close(found, torch.stack(expected) / 255)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(trivially_augment(images, random("trivial")), found)


def test_ueraser_takes_the_largest_loss_of_each_image_and_later_one_draw(network):
    images, labels = torch.rand(6, 3, 16, 16), torch.arange(6) % 5
    drawn, each = random("ueraser"), []
    for _ in range(5):
        logits = network(augment(images, drawn))
        each.append([-logits[i].log_softmax(0)[labels[i]].item() for i in range(6)])
    largest = sum(max(losses[i] for losses in each) for i in range(6)) / 6
    assert parse_defence("ueraser").loss(network, images, labels, random("ueraser"), 0.2).item() == pytest.approx(largest, rel=1e-5)
    assert parse_defence("ueraser").loss(network, images, labels, random("ueraser"), 0.25).item() == pytest.approx(sum(each[0]) / 6, rel=1e-5)
    assert parse_defence("ueraser:1").loss(network, images, labels, random("ueraser"), 0.99).item() == pytest.approx(largest, rel=1e-5)


@pytest.mark.parametrize("name", ["ae:8", "vae:20"])
def test_reconstructions_are_functions_of_the_seed_and_of_the_set(name, images, labels):
    one, same, other = (parse_defence(name, BUDGET).transform_set(images[:32], labels[:32], seed) for seed in (1, 1, 2))
    assert one.shape == (32, 3, 16, 16)
    assert one.dtype == torch.uint8
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_a_reconstruction_comes_close(images, labels):
    budget = Budget(epochs=60, width=8, batch_size=20)
    found = parse_defence("ae:16", budget).transform_set(images, labels, 0)
    error = (found.float() - images.float()).square().mean()
    assert error < 0.25 * (images.float() - images.float().mean()).square().mean()


@pytest.mark.parametrize("name", ["none", "op", "ae", "vae", "mixup", "at"])
def test_test_images_are_mapped_by_maps_of_images_only(name, images):
    with pytest.raises(ValueError, match="for training sets only"):
        parse_defence(name).transform_test(images)


def test_every_defence_builds_and_has_a_description():
    for name, kind in DEFENCES.items():
        assert parse_defence(name).name.partition(":")[0] == name
        assert kind.description
    assert parse_defence(" vae:2.5 ").name == "vae:2.5"
    assert parse_defence("vae", BUDGET).budget is BUDGET


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gray", r"no defence 'gray'; choose one of none, grey, jpeg \(quality, 1 to 100; 10\)"),
        ("grey:3", "'grey' takes no parameter, got 'grey:3'"),
        ("jpeg:high", "must be a number, got 'high'"),
        ("vae:nan", "must be a number, got 'nan'"),
        ("jpeg:", "must be a number, got ''"),
        ("jpeg:0", "whole number from 1 to 100, got 0"),
        ("bdr:2.5", "whole number from 1 to 7, got 2.5"),
        ("blur:0", "must be positive"),
        ("at:-1", r"must lie in \(0, 255\]"),
        ("ae:0", "from 1 to 512, got 0"),
        ("vae:0", "must be positive, got 0"),
        ("ueraser:2", r"must lie in \[0, 1\], got 2"),
    ],
)
def test_wrong_names_and_parameters_are_named(text, message):
    with pytest.raises(ValueError, match=message):
        parse_defence(text)


@pytest.mark.parametrize("name", ["none", "jpeg", "op", "vae"])
def test_wrong_sets_are_named(name, images, labels):
    defence = parse_defence(name, BUDGET)
    for some, their, message in (
        (images.float(), labels, "must be bytes"),
        (images[0], labels, r"shape \(N, C, H, W\)"),
        (images, labels[:3], "40 integers, one an image"),
        (images[:0], labels[:0], "no images"),
        (images, labels - 1, "count from 0"),
    ):
        with pytest.raises(ValueError, match=message):
            defence.transform_set(some, their, 0)


def test_sides_that_do_not_divide_and_short_sets_are_named(images, labels):
    with pytest.raises(ValueError, match="'ae:8' needs sides that divide by 2, got images of 15 x 16"):
        parse_defence("ae", BUDGET).transform_set(images[:, :, 1:], labels, 0)
    with pytest.raises(ValueError, match="40 images, fewer than a batch of 128"):
        parse_defence("vae").transform_set(images, labels, 0)
    with pytest.raises(ValueError, match="must be positive"):
        Budget(epochs=0)
