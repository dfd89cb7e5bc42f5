import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss

from projects.umed.losses import segmentation_loss, segmentation_losses, soft_dice


def drawn(classes, seed=0):
    random = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, classes + 1, 5, 6, generator=random, dtype=torch.float64)
    return logits, torch.randint(classes + 1, (3, 5, 6), generator=random)


@pytest.mark.parametrize("classes", [1, 3])
def test_dice_and_cross_entropy_are_the_sums_of_section_2_7(classes):
    logits, masks = drawn(classes)
    found, losses = soft_dice(logits, masks), segmentation_losses(logits, masks)
    exponents = np.exp(logits.numpy())
    probabilities = exponents / exponents.sum(1, keepdims=True)
    for image in range(3):
        parts = []
        for number in range(1, classes + 1):
            p, g = probabilities[image, number], (masks[image] == number).numpy()
            parts.append(1 - (2 * (p * g).sum() + 1) / (p.sum() + g.sum() + 1))
        assert found[image].item() == pytest.approx(np.mean(parts), abs=1e-12)
        rows = probabilities[image].reshape(classes + 1, -1).T
        entropy = log_loss(masks[image].flatten(), rows, labels=list(range(classes + 1)))
        assert losses[image].item() == pytest.approx(entropy + np.mean(parts), abs=1e-9)


def test_right_and_wrong_masks():
    masks = torch.zeros(2, 8, 8, dtype=torch.int64)
    masks[0, 2:6, 2:6] = 1
    right = 40.0 * torch.stack([1 - 2 * masks.float(), 2 * masks.float() - 1], 1)
    assert soft_dice(right, masks).tolist() == pytest.approx([0, 0], abs=1e-6)
    assert soft_dice(-right, masks)[0].item() == pytest.approx(1 - 1 / (48 + 16 + 1))
    assert segmentation_loss(right, masks).item() == pytest.approx(0, abs=1e-6)


def test_weights_leave_images_out():
    logits, masks = drawn(2)
    losses = segmentation_losses(logits, masks)
    weights = torch.tensor([True, False, True])
    torch.testing.assert_close(segmentation_loss(logits, masks, weights), (losses[0] + losses[2]) / 2)
    torch.testing.assert_close(segmentation_loss(logits, masks), losses.mean())
    logits.requires_grad_()
    nothing = segmentation_loss(logits, masks, torch.zeros(3))
    nothing.backward()
    assert nothing.item() == 0
    assert logits.grad.abs().max() == 0


def test_wrong_shapes_are_named():
    with pytest.raises(ValueError, match=r"\(B, K \+ 1, H, W\)"):
        soft_dice(torch.zeros(1, 1, 4, 4), torch.zeros(1, 4, 4, dtype=torch.int64))
