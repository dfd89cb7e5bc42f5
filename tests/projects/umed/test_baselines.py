"""Baselines keep their bound on stored integers, stay where they belong, do not depend on chunks, and are what they are called."""

import pytest
import torch

from projects.umed import baselines
from projects.umed.baselines import BASELINES, Budget, learned, make_baseline
from projects.umed.baselines.learned import Search, masked_loss, minimise, mislead, rolled_masks
from projects.umed.baselines.patterns import join_by_region
from projects.umed.losses import segmentation_losses
from projects.umed.model import UNet
from projects.umed.perturb import default_radius, regions
from projects.umed.sets import SegmentationSet
from projects.umed.worlds import ellipses
from shared.data.memory import to_unit
from shared.poisons import find_processes, minimise_errors
from shared.poisons.autoregressive import matched_responses
from shared.seeding import derive_seed

TINY = Budget((4, 8), 5, 2e-3, 2, 2, 5, 0.01, 2, 3, 2, 2, 4)
PATTERNS = [name for name, baseline in BASELINES.items() if not baseline.is_trained]
INSIDE = {"random", "checkerboard"}
WHOLE = {"random_whole", "lsp_roi", "ar_roi", "em_whole", "tap_whole", "sep_whole"}


@pytest.fixture(scope="module")
def data():
    return ellipses("train", 10, size=16)


@pytest.fixture(scope="module")
def grey():
    """A set that clips nothing."""
    masks = ellipses("train", 10).mask_bytes
    return SegmentationSet(torch.full((10, 3, 32, 32), 128, dtype=torch.uint8), masks)


def change(name, images, levels=4, seed=0):
    return make_baseline(name, images, levels, seed, TINY).int() - images.images.int()


@pytest.mark.parametrize("name", BASELINES)
def test_bound_region_and_seed(name, data):
    before = data.images.clone()
    found = change(name, data)
    assert torch.equal(data.images, before)
    assert 1 <= found.abs().max() <= 4
    moved, inside = found.any(1), data.masks > 0
    if name in INSIDE:
        assert not moved[~inside].any()
    elif name in WHOLE:
        assert moved[~inside].any()
    else:
        band, interior = regions(data.masks, default_radius(16))
        assert not moved[~(band | interior)[:, 0]].any()
    assert moved[inside].float().mean() > 0.2
    assert torch.equal(change(name, data), found)
    assert torch.equal(change(name, data, seed=1), found) == (name == "checkerboard")


@pytest.mark.parametrize("name", BASELINES)
def test_colour_and_two_classes(name):
    images = ellipses("train", 5, size=16, channels=3, classes=2)
    assert 1 <= change(name, images, 2).abs().max() <= 2


@pytest.mark.parametrize("name", PATTERNS)
def test_patterns_do_not_depend_on_chunks(name, data, monkeypatch):
    expected = change(name, data)
    monkeypatch.setattr(baselines, "_CHUNK", 3)
    assert torch.equal(change(name, data), expected)


def test_the_checkerboard_by_hand(grey):
    found = change("checkerboard", grey, 8)
    for row in range(32):
        for column in range(32):
            sign = 8 if (row + column) % 2 == 0 else -8
            assert torch.equal(found[:, :, row, column], sign * grey.masks[:, None, row, column].expand(-1, 3).int())


def test_noise_takes_every_level_alike(grey):
    found = change("random_whole", grey)
    assert torch.bincount(found.flatten() + 4).float().div(found.numel()).sub(1 / 9).abs().max() < 0.01
    assert torch.equal(change("random", grey), found * (grey.masks > 0)[:, None])


def test_fields_are_joined_by_the_mask():
    masks = torch.randint(0, 3, (4, 6, 5))
    fields = torch.rand(3, 4, 2, 6, 5) - 0.5
    found = join_by_region(lambda indices, label: fields[label, indices], torch.arange(4), masks, 2, 0.1)
    for image in range(4):
        for row in range(6):
            for column in range(5):
                field = fields[masks[image, row, column], image]
                torch.testing.assert_close(found[image, :, row, column], 0.1 * field[:, row, column] / field.abs().max())


def test_patches_are_patches_and_tell_inside_from_outside(grey):
    found, inside = change("lsp_roi", grey, 100), grey.masks > 0
    patches = found.unfold(2, 4, 4).unfold(3, 4, 4).flatten(4)  # (N, C, 8, 8, 16)
    alike = inside.unfold(1, 4, 4).unfold(2, 4, 4).flatten(3).float().mean(3)
    pure = (alike == 0) | (alike == 1)
    assert (patches.amax(4) == patches.amin(4)).all(1)[pure].all()
    outside = patches[..., 0].float().movedim(1, 3)
    means = [torch.stack([(outside * pick[..., None]).sum(0) / pick.sum(0)[..., None] for pick in (alike == 0, alike == 1)])]
    difference = (means[0][0] - means[0][1]).nan_to_num().abs().mean()
    assert difference > 10, "two clusters, not one"


def test_fields_answer_their_own_filter_with_nothing(grey):
    whole = SegmentationSet(grey.images, torch.cat([torch.zeros(5, 32, 32), torch.ones(5, 32, 32)]).byte())
    found = change("ar_roi", whole, 127).double() / 127
    processes = find_processes(2, 3, derive_seed(0, "processes"), (32, 32))
    answers = matched_responses(processes.coefficients, found)
    scale = found.abs().sum((1, 2, 3))
    own = torch.cat([torch.zeros(5), torch.ones(5)]).long()
    share = answers / scale[:, None]
    assert share[torch.arange(10), own].max() < 0.1 * share[torch.arange(10), 1 - own].min(), "only rounding is left"


def test_gradients_end_at_the_support():
    images, masks = torch.rand(3, 1, 16, 16, requires_grad=True), torch.randint(0, 2, (3, 16, 16))
    support = torch.rand(3, 1, 16, 16) < 0.4
    network = UNet(1, 2, (4, 8))
    whole = torch.autograd.grad(masked_loss(network, masks, None)(images), images)[0]
    loss = masked_loss(network, masks, support)(images)
    torch.testing.assert_close(loss, segmentation_losses(network(images), masks).sum())
    torch.testing.assert_close(torch.autograd.grad(loss, images)[0], whole * support)


def test_targets_are_rolled_by_half():
    masks = torch.randint(0, 3, (2, 6, 8))
    found = rolled_masks(masks)
    for row in range(6):
        for column in range(8):
            assert torch.equal(found[:, (row + 3) % 6, (column + 4) % 8], masks[:, row, column])


@pytest.fixture(scope="module")
def trained(data):
    """A search with enough effort to see where losses go, and a network trained on the clean images."""
    budget = Budget((4, 8), 5, 5e-3, 3, 4, 5, 0.0, 25, 10, 2, 8, 4)
    return Search(data, 8, 0, budget, True, "cpu", lambda done, total: None)


def fit(images, masks, steps=60):
    torch.manual_seed(5)
    network = UNet(1, 2, (4, 8))
    optimizer = torch.optim.Adam(network.parameters(), 5e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        segmentation_losses(network(images), masks).mean().backward()
        optimizer.step()
    return network.eval()


def test_minimised_errors_are_lower_and_with_them_the_loss(trained, data, monkeypatch):
    kept = {}

    def spy(images, table, batches, train, loss_of, error, how, *rest):
        kept["before"] = error()
        errors = minimise_errors(images, table, batches, train, loss_of, error, how, *rest)
        kept.update(after=errors[-1], loss_of=loss_of)
        return errors

    monkeypatch.setattr(learned, "minimise_errors", spy)
    found = minimise(trained)
    assert kept["after"] < kept["before"]
    indices = torch.arange(len(data))
    with torch.no_grad():
        clean, noisy = (float(kept["loss_of"](indices)(to_unit(images))) for images in (data.images, found))
        network_sum = kept["loss_of"](indices[:1])(to_unit(found[:1])) + kept["loss_of"](indices[1:])(to_unit(found[1:]))
    assert noisy < clean
    assert float(network_sum) == pytest.approx(noisy, rel=1e-5)


def test_misleading_noise_moves_the_answer_towards_the_rolled_mask(trained, data):
    network, other = fit(to_unit(data.images), data.masks), rolled_masks(data.masks)
    for is_averaged in (False, True):
        found = mislead(trained, is_averaged)
        with torch.no_grad():
            before, after = (segmentation_losses(network(to_unit(images)), other).mean() for images in (data.images, found))
        assert after < before


def test_progress_reaches_its_end(data):
    for name in ("em", "sep"):
        steps = []
        make_baseline(name, data, 4, 0, TINY, progress=lambda done, total, into=steps: into.append((done, total)))
        assert steps[-1][0] <= steps[-1][1]
        assert [done for done, _ in steps] == list(range(1, len(steps) + 1))


def test_wrong_names_bounds_and_budgets_are_named(data):
    with pytest.raises(ValueError, match="no baseline 'gauss'; choose one of random: uniform noise"):
        make_baseline("gauss", data)
    with pytest.raises(ValueError, match="between 1 and 127, got 0"):
        make_baseline("random", data, 0)
    with pytest.raises(ValueError, match="patch must be between 1 and the shorter side"):
        make_baseline("lsp_roi", data, 4, 0, Budget(patch=64))
    with pytest.raises(ValueError, match="15 checkpoints need as many epochs, got 5"):
        Budget(epochs=5)
    with pytest.raises(ValueError, match="must be positive"):
        Budget(lr=0)
