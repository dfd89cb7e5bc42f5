"""Every map of images is the known operation; training defences act on images and masks alike; clean images are mixed in as many as asked."""

import io
import math

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from projects.umed.defences import DEFENCES, mix_sets, parse_defence
from projects.umed.losses import segmentation_loss
from projects.umed.model import UNet
from projects.umed.sets import SegmentationSet
from projects.umed.worlds import ellipses
from shared.data import memory
from shared.seeding import generator

MAPS = ["jpeg:30", "blur:1.2", "median:5", "bits:3", "gamma:0.7", "resize:0.5"]


@pytest.fixture(scope="module", params=[1, 3], ids=["grey", "colour"])
def images(request):
    return ellipses("train", 12, channels=request.param)


def mapped(name, images):
    return parse_defence(name).transform_set(images, 0).images


@pytest.mark.parametrize("quality", [10, 80])
def test_jpeg_is_pillows(images, quality):
    found = mapped(f"jpeg:{quality}", images)
    for before, after in zip(images.images, found, strict=True):
        file = io.BytesIO()
        picture = before.permute(1, 2, 0).numpy()
        Image.fromarray(picture if len(before) == 3 else picture[..., 0]).save(file, "JPEG", quality=quality)
        expected = torch.from_numpy(np.array(Image.open(file))).reshape(32, 32, -1).permute(2, 0, 1)
        assert torch.equal(after, expected)


@pytest.mark.parametrize("sigma", [0.6, 2])
def test_blur_is_scipys(images, sigma):
    reach = math.ceil(3 * sigma)
    expected = ndimage.gaussian_filter(images.images.double().numpy(), sigma, axes=(2, 3), mode="nearest", radius=reach)
    assert np.abs(mapped(f"blur:{sigma}", images).numpy() - expected).max() <= 0.5 + 1e-3


@pytest.mark.parametrize("side", [3, 5])
def test_median_is_scipys(images, side):
    expected = ndimage.median_filter(images.images.numpy(), (1, 1, side, side), mode="nearest")
    assert np.array_equal(mapped(f"median:{side}", images), expected)


@pytest.mark.parametrize("bits", [1, 4, 7])
def test_levels_are_evenly_spaced_and_the_nearest(images, bits):
    levels = np.linspace(0, 255, 2**bits)
    found = mapped(f"bits:{bits}", images).double().numpy()
    before = images.images.double().numpy()
    nearest = np.abs(before[..., None] - levels).min(-1)
    assert np.abs(found[..., None] - levels).min(-1).max() <= 0.5 + 1e-9, "rounded to bytes"
    assert (np.abs(found - before) <= nearest + 0.5 + 1e-4).all()


def test_gamma_is_the_power(images):
    for gamma in (0.7, 1.5):
        expected = (255 * (images.images.double() / 255) ** gamma).round()
        assert (mapped(f"gamma:{gamma}", images).double() - expected).abs().max() <= 1, "a half may be rounded either way"


def test_resize_keeps_ramps_and_removes_a_checkerboard():
    ramp = torch.arange(32).mul(6).byte().expand(1, 1, 32, 32).clone()
    board = (128 + 40 * (1 - 2 * ((torch.arange(32)[:, None] + torch.arange(32)) % 2))).byte().expand(1, 1, 32, 32)
    found = mapped("resize:0.5", SegmentationSet(torch.cat([ramp, board]), torch.ones(2, 32, 32, dtype=torch.uint8)))
    inner = slice(4, -4)
    assert (found[0, 0, inner, inner].int() - ramp[0, 0, inner, inner].int()).abs().max() <= 2
    assert (found[1, 0, inner, inner].int() - 128).abs().max() <= 1


@pytest.mark.parametrize("name", MAPS)
def test_maps_do_not_depend_on_chunks_and_leave_the_set(images, name, monkeypatch):
    before, defence = images.images.clone(), parse_defence(name)
    expected = defence.transform_set(images, 0)
    assert torch.equal(images.images, before)
    assert torch.equal(expected.mask_bytes, images.mask_bytes)
    assert expected.images.dtype == torch.uint8
    monkeypatch.setattr(memory, "CHUNK", 5 * images.images[0].numel())
    assert torch.equal(defence.transform_set(images, 1).images, expected.images)
    assert torch.equal(defence.transform_test(images).images, expected.images)


def test_maps_take_tiny_images():
    tiny = SegmentationSet(torch.randint(0, 256, (2, 1, 3, 2)).byte(), torch.ones(2, 3, 2, dtype=torch.uint8))
    for name in MAPS:
        assert mapped(name, tiny).shape == (2, 1, 3, 2)


def test_affine_moves_masks_with_their_images():
    disc = ((torch.arange(64)[:, None] - 24) ** 2 + (torch.arange(64) - 31.5) ** 2 < 12**2).long().expand(40, -1, -1)
    defence = parse_defence("affine:30")
    images, masks = defence.augment(disc[:, None].float(), disc, generator(0, "affine"))
    assert masks.dtype == torch.int64
    assert (images[:, 0].round().long() != masks).float().mean() < 0.02
    sizes = masks.sum((1, 2)) / disc[0].sum()
    assert 0.85**2 * 0.95 < sizes.min() < 0.85
    assert 1.2 < sizes.max() < 1.25**2 * 1.05
    again, _ = defence.augment(disc[:, None].float(), disc, generator(0, "affine"))
    assert torch.equal(images, again)


def test_adversarial_training_is_on_higher_losses_and_keeps_running_statistics():
    data = ellipses("train", 4)
    network = UNet(1, 2, (4, 8), norm="batch").train()
    clean, masks = memory.to_unit(data.images), data.masks
    for _ in range(3):
        network(clean)
    defence, seen = parse_defence("at:4"), []
    hook = network.register_forward_pre_hook(lambda module, inputs: seen.append((module.training, inputs[0].detach())))
    statistics = {name: value.clone() for name, value in network.named_buffers()}
    network.eval()
    with torch.no_grad():
        before = segmentation_loss(network(clean), masks)
    seen.clear()
    loss = defence.loss(network.train(), clean, masks, generator(0, "at"))
    hook.remove()
    loss.backward()
    assert all(weight.grad is not None for weight in network.parameters())
    assert [training for training, _ in seen] == [False] * 5 + [True]
    found = seen[-1][1]
    assert (found - clean).abs().max() <= 4 / 255 + 1e-6
    assert found.min() >= 0
    assert found.max() <= 1
    network.load_state_dict(network.state_dict() | statistics)
    network.eval()
    with torch.no_grad():
        assert segmentation_loss(network(found), masks) > before


def test_as_many_clean_images_as_asked_and_larger_shares_keep_them(images):
    protected = images.with_images(images.images.flip(0))
    few, many = (mix_sets(protected, images, share, 0).images for share in (0.25, 0.75))
    is_clean = [(mixed == images.images).flatten(1).all(1) for mixed in (few, many)]
    assert [int(rows.sum()) for rows in is_clean] == [3, 9]
    assert not (is_clean[0] & ~is_clean[1]).any()
    assert torch.equal(few[~is_clean[0]], protected.images[~is_clean[0]])
    assert torch.equal(parse_defence("mix:0.25").transform_set(protected, 0, images).images, few)
    assert not torch.equal(mix_sets(protected, images, 0.25, 1).images, few)
    assert torch.equal(mix_sets(protected, images, 1, 0).images, images.images)
    with pytest.raises(ValueError, match="needs the clean images"):
        parse_defence("mix").transform_set(protected, 0)
    with pytest.raises(ValueError, match="in the same order"):
        mix_sets(protected, images.subset(range(11, -1, -1)), 0.5, 0)
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\], got 1.5"):
        mix_sets(protected, images, 1.5, 0)


@pytest.mark.parametrize("name", DEFENCES)
def test_every_defence_builds_says_its_name_and_maps_tests_only_if_it_can(name):
    defence = parse_defence(name)
    assert DEFENCES[name].description
    assert parse_defence(defence.name).name == defence.name
    assert defence.name.partition(":")[0] == name
    assert not defence.defends_test
    if defence.maps_tests:
        both = parse_defence(f"{defence.name}+test")
        assert both.defends_test
        assert both.name == parse_defence(both.name).name
    else:
        with pytest.raises(ValueError, match="is for training only"):
            defence.transform_test(ellipses("test", 1))
        with pytest.raises(ValueError, match=r"\+test, for jpeg, blur, median, bits, gamma, resize$"):
            parse_defence(f"{defence.name}+test")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("smudge", r"no defence 'smudge'; choose one of none, jpeg \(quality"),
        ("none:1", "takes no parameter"),
        ("blur:1+train", r"\+test, for jpeg, blur"),
        ("blur:much", r"the parameter of 'blur' \(sigma in pixels; 1\) must be a number, got 'much'"),
        ("jpeg:0", "from 1 to 100, got 0"),
        ("jpeg:50.5", "from 1 to 100, got 50.5"),
        ("blur:0", "must lie in"),
        ("median:4", "an odd number from 3 to 31, got 4"),
        ("bits:8", "from 1 to 7, got 8"),
        ("gamma:0", "must lie in"),
        ("resize:1", "between 0 and 1, got 1"),
        ("affine:200", "degrees, got 200"),
        ("at:0", "must lie in"),
        ("mix:nan", "must be a number"),
        ("mix:0", "must lie in"),
    ],
)
def test_wrong_names_and_parameters_are_named(text, message):
    with pytest.raises(ValueError, match=message):
        parse_defence(text)
