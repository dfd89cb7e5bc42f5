import numpy as np
import pytest
import scipy.ndimage
import torch
from torch.nn import functional as F

from projects.hodinet.losses import saliency_loss, structure_weights

KINDS = ("hybrid", "bce_iou", "structure")


def batch(height=40, width=37):
    generator = torch.Generator().manual_seed(0)
    logits = [3 * torch.randn(2, 1, height, width, generator=generator, dtype=torch.float64) for _ in range(4)]
    masks = torch.zeros(2, 1, height, width, dtype=torch.bool)
    masks[0, :, 5:25, 8:30], masks[1, :, 20:, :9] = True, True
    return logits, masks


def pictures(logits, masks):
    """p, y and the entropy of each picture, in numpy."""
    for logit, mask in zip(logits[:, 0].numpy(), masks[:, 0].numpy(), strict=True):
        p, y = 1 / (1 + np.exp(-logit)), mask.astype(float)
        yield p, y, -(y * np.log(p) + (1 - y) * np.log(1 - p))


def similarity(p, y):
    """SSIM with an 11 x 11 Gaussian window of sigma 1.5 and zeros beyond the borders, pixel by pixel."""
    offsets = np.arange(11) - 5
    line = np.exp(-(offsets**2) / (2 * 1.5**2))
    window = np.outer(line, line) / line.sum() ** 2
    values = []
    padded = [np.pad(part, 5) for part in (p, y)]
    for i in range(p.shape[0]):
        for j in range(p.shape[1]):
            a, b = (part[i : i + 11, j : j + 11] for part in padded)
            mean_a, mean_b = (window * a).sum(), (window * b).sum()
            var_a, var_b, cov = (window * a * a).sum() - mean_a**2, (window * b * b).sum() - mean_b**2, (window * a * b).sum() - mean_a * mean_b
            values.append((2 * mean_a * mean_b + 0.01**2) * (2 * cov + 0.03**2) / ((mean_a**2 + mean_b**2 + 0.01**2) * (var_a + var_b + 0.03**2)))
    return np.mean(values)


def test_the_hybrid_loss_is_bce_iou_and_ssim():
    (logits, *_), masks = batch()
    rows = list(pictures(logits, masks))
    expected = {
        "bce": np.mean([entropy.mean() for _, _, entropy in rows]),
        "iou": np.mean([1 - ((p * y).sum() + 1) / (p.sum() + y.sum() - (p * y).sum() + 1) for p, y, _ in rows]),
        "ssim": np.mean([1 - similarity(p, y) for p, y, _ in rows]),
    }
    for kind, names in (("hybrid", expected), ("bce_iou", ("bce", "iou"))):
        terms = {name: value.item() for name, value in saliency_loss([logits], masks, kind).items()}
        assert terms == pytest.approx({name: expected[name] for name in names} | {"loss": sum(expected[name] for name in names)}, rel=1e-9)


def test_the_structure_loss_weighs_each_pixel():
    (logits, *_), masks = batch()
    bce, iou = [], []
    for p, y, entropy in pictures(logits, masks):
        mean = scipy.ndimage.uniform_filter(y, 31, mode="constant")
        w = 1 + 5 * np.abs(mean - y)
        bce.append((w * entropy).sum() / w.sum())
        both, total = (w * p * y).sum(), (w * (p + y)).sum()
        iou.append(1 - (both + 1) / (total - both + 1))
    expected = {"bce": np.mean(bce), "iou": np.mean(iou), "loss": np.mean(bce) + np.mean(iou)}
    found = {name: value.item() for name, value in saliency_loss([logits], masks, "structure").items()}
    assert found == pytest.approx(expected, rel=1e-9)


def test_the_weights_of_the_structure_loss_do_not_cancel():
    _, masks = batch()
    weights = structure_weights(masks.double())
    edge, far = torch.zeros_like(weights), torch.zeros_like(weights)
    edge[0, 0, 5, 8:30], far[1, 0, 0, 14:36] = 8, 8  # as many wrong pixels, on a mask's border and far from any
    wrong = [torch.where(masks, 4.0, -4.0).double() * (1 - spot / 4) for spot in (edge, far)]
    on_edge, far_away = (saliency_loss([logits], masks, "structure")["bce"] for logits in wrong)
    plain = [saliency_loss([logits], masks, "bce_iou")["bce"] for logits in wrong]
    torch.testing.assert_close(*plain)
    averaged_first = [(weights * loss).sum((1, 2, 3)).div(weights.sum((1, 2, 3))).mean() for loss in plain]
    torch.testing.assert_close(averaged_first, plain)  # what the group's code computes
    assert on_edge > 1.5 * far_away


def test_heads_are_summed_with_their_weights():
    logits, masks = batch()
    for kind in KINDS:
        each = [saliency_loss([head], masks, kind) for head in logits]
        for name, value in saliency_loss(logits, masks, kind).items():
            torch.testing.assert_close(value, sum(terms[name] for terms in each))
        for name, value in saliency_loss(logits, masks, kind, [1, 0.5, 0.25, 0]).items():
            torch.testing.assert_close(value, each[0][name] + each[1][name] / 2 + each[2][name] / 4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("level", [-100.0, 0.0, 100.0])
@pytest.mark.parametrize("full", [False, True])
def test_empty_and_full_masks_and_extreme_logits_leave_the_gradient_finite(kind, level, full):
    logits = torch.full((2, 1, 16, 16), level, requires_grad=True)
    loss = saliency_loss([logits], torch.full((2, 1, 16, 16), full), kind)["loss"]
    loss.backward()
    assert loss.isfinite()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_right_map_costs_nothing_and_half_precision_is_computed_in_float32(kind):
    logits, masks = batch()
    assert saliency_loss([torch.where(masks, 30.0, -30.0)], masks, kind)["loss"] < 1e-5
    halves = [head.bfloat16() for head in logits]
    expected = saliency_loss([head.float() for head in halves], masks, kind)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = saliency_loss(halves, masks, kind)
    assert all(value.dtype == torch.float32 for value in found.values())
    torch.testing.assert_close(found, expected)


def test_a_descent_on_the_loss_finds_the_mask():
    _, masks = batch()
    for kind in KINDS:
        logits = torch.zeros(2, 1, 40, 37, requires_grad=True)
        optimiser = torch.optim.Adam([logits], lr=0.5)
        for _ in range(20):
            optimiser.zero_grad()
            saliency_loss([logits], masks, kind)["loss"].backward()
            optimiser.step()
        assert F.l1_loss(logits.sigmoid(), masks.float()) < 0.02


def test_what_does_not_fit_is_named():
    logits, masks = batch()
    with pytest.raises(ValueError, match="no loss 'mse': choose among hybrid"):
        saliency_loss(logits, masks, "mse")
    with pytest.raises(ValueError, match="4 heads, but 2 weights"):
        saliency_loss(logits, masks, weights=[1, 1])
    with pytest.raises(ValueError, match="0 heads"):
        saliency_loss([], masks)
    with pytest.raises(ValueError, match=r"of one shape, not \(2, 1, 40, 37\) and \(2, 40, 37\)"):
        saliency_loss(logits, masks[:, 0])
