import numpy as np
import pytest
import scipy.ndimage
import torch
from torch.nn import functional as F

from projects.tripinet.losses import map_loss, mask_edges, side_loss, training_loss
from projects.tripinet.model import Outputs
from shared.losses import dice_loss, iou_loss, ssim_loss

KINDS = ("bce_dice", "hybrid", "focal", "ce_dice")


def batch():
    generator = torch.Generator().manual_seed(0)
    logits = [3 * torch.randn(2, 1, 20, 17, generator=generator, dtype=torch.float64) for _ in range(4)]
    masks = (torch.rand(2, 1, 20, 17, generator=generator) > 0.6).to(torch.uint8)
    return logits, masks


def entropies(logits, masks):
    p = 1 / (1 + np.exp(-logits.numpy()))
    return -np.where(masks.numpy() == 1, np.log(p), np.log(1 - p)), p


def test_losses_of_a_map():
    (logits, *_), masks = batch()
    entropy, p = entropies(logits, masks)
    y, p_true = masks.numpy(), np.where(masks.numpy() == 1, p, 1 - p)
    dice = np.mean([1 - (2 * (a * b).sum() + 1) / (a.sum() + b.sum() + 1) for a, b in zip(p, y, strict=True)])
    probabilities = torch.from_numpy(p)
    expected = {
        "bce_dice": entropy.mean() + dice,
        "hybrid": entropy.mean() + (iou_loss(probabilities, masks) + ssim_loss(probabilities, masks)).mean().item(),
        "focal": (np.where(y == 1, 0.25, 0.75) * (1 - p_true) ** 2 * entropy).mean(),
    }
    two_classes = torch.cat([torch.zeros_like(logits), logits], dim=1)
    weighted = F.cross_entropy(two_classes, masks[:, 0].long(), torch.tensor([0.5, 2.5], dtype=torch.float64))
    expected["ce_dice"] = 0.3 * weighted.item() + 0.7 * dice
    assert {kind: map_loss(logits, masks, kind).item() for kind in KINDS} == pytest.approx(expected, rel=1e-6)


def test_side_outputs_are_summed_with_their_weights():
    sides, masks = batch()
    each = [map_loss(side, masks) for side in sides]
    torch.testing.assert_close(side_loss(sides, masks), sum(each))
    torch.testing.assert_close(side_loss(sides, masks, weights=[1, 0.5, 0.25, 0]), each[0] + each[1] / 2 + each[2] / 4)
    torch.testing.assert_close(side_loss(sides[:1], masks, "focal"), map_loss(sides[0], masks, "focal"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("level", [-100.0, 0.0, 100.0])
def test_authentic_pictures_and_extreme_logits_leave_the_gradient_finite(kind, level):
    logits = torch.full((2, 1, 16, 16), level, requires_grad=True)
    loss = map_loss(logits, torch.zeros(2, 1, 16, 16, dtype=torch.bool), kind)
    loss.backward()
    assert loss.isfinite()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("width", [3, 7])
def test_edges_are_dilated_less_eroded(width):
    masks = torch.zeros(2, 1, 24, 30, dtype=torch.uint8)
    masks[0, 0, 6:20, 9:24], masks[1, 0, :12, :13] = 1, 1
    square = np.ones((width, width))
    for mask, edges in zip(masks[:, 0].numpy(), mask_edges(masks, width)[:, 0].numpy(), strict=True):
        expected = scipy.ndimage.binary_dilation(mask, square) & ~scipy.ndimage.binary_erosion(mask, square, border_value=1)
        np.testing.assert_array_equal(edges, expected)
    assert not mask_edges(torch.ones(1, 1, 9, 9, dtype=torch.bool)).any()  # a picture's border is none


def test_the_training_loss_adds_what_heads_there_are():
    sides, masks = batch()
    labels, edge, image = torch.tensor([1, 0]), torch.randn(2, 1, 20, 17), torch.randn(2)
    plain = training_loss(Outputs(sides), masks, labels)
    assert plain.keys() == {"loss", "sides"}
    torch.testing.assert_close(plain["loss"], side_loss(sides, masks))
    terms = training_loss(Outputs(sides, edge, image), masks, labels, "hybrid", edge_weight=5, image_weight=2)
    expected_edge = F.binary_cross_entropy(edge.sigmoid(), mask_edges(masks).float())
    expected_image = F.binary_cross_entropy(image.sigmoid(), labels.float())
    torch.testing.assert_close((terms["edge"], terms["image"]), (expected_edge, expected_image))
    torch.testing.assert_close(terms["loss"], side_loss(sides, masks, "hybrid") + 5 * expected_edge + 2 * expected_image)


def test_half_precision_is_computed_in_float32():
    (logits, *_), masks = batch()
    for kind in KINDS:
        found = map_loss(logits.bfloat16(), masks, kind)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, map_loss(logits.bfloat16().float(), masks, kind))
    assert dice_loss(logits.bfloat16().sigmoid(), masks).dtype == torch.float32


def test_what_does_not_fit_is_named():
    sides, masks = batch()
    with pytest.raises(ValueError, match="no loss 'mse': choose among bce_dice"):
        map_loss(sides[0], masks, "mse")
    with pytest.raises(ValueError, match=r"of one shape, not \(2, 1, 20, 17\) and \(2, 20, 17\)"):
        map_loss(sides[0], masks[:, 0])
    with pytest.raises(ValueError, match="4 side outputs, but 2 weights"):
        side_loss(sides, masks, weights=[1, 1])
