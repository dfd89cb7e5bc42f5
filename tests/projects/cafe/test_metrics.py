"""Every number agrees with scikit-image, torchmetrics, SciPy or its formula."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from skimage.metrics import mean_squared_error, peak_signal_noise_ratio, structural_similarity
from sklearn.metrics import r2_score, root_mean_squared_error
from torchmetrics.functional.image import peak_signal_noise_ratio as torch_psnr

from projects.cafe.metrics import (
    CAP,
    attack_performance,
    baselines,
    defence_score,
    label_accuracy,
    match,
    mse,
    party_psnr,
    picture_report,
    psnr,
    psnr_summary,
    relative_error,
    rmse,
    ssim,
    table_report,
)
from shared.vertical.parts import split_image


@pytest.fixture
def pictures():
    draw = torch.Generator().manual_seed(0)
    truth = torch.rand(7, 3, 16, 18, generator=draw)
    noise = torch.randn(truth.shape, generator=draw) * torch.logspace(-3, 0, 7)[:, None, None, None]
    return (truth + noise).clamp(0, 1), truth


def test_psnr_and_mse_are_those_of_scikit_image(pictures):
    recovered, truth = pictures
    pairs = [(true.double().numpy(), found.double().numpy()) for found, true in zip(recovered, truth, strict=True)]
    np.testing.assert_allclose(psnr(recovered, truth), [peak_signal_noise_ratio(*pair, data_range=1) for pair in pairs])
    np.testing.assert_allclose(mse(recovered, truth), [mean_squared_error(*pair) for pair in pairs])


def test_psnr_is_averaged_over_images_not_over_errors(pictures):
    recovered, truth = pictures
    each = torch_psnr(recovered, truth, data_range=1.0, reduction="elementwise_mean", dim=(1, 2, 3))
    assert float(psnr(recovered, truth).mean()) == pytest.approx(float(each), abs=1e-4)
    pooled = torch_psnr(recovered, truth, data_range=1.0)
    assert float(psnr(recovered, truth).mean()) > float(pooled) + 3


def test_psnr_clamps_what_is_recovered_and_is_capped():
    truth = torch.tensor([0.0, 1.0]).repeat(2, 1, 4, 2)
    assert psnr(truth * 9 - 4, truth).tolist() == [CAP, CAP]
    assert psnr(truth + 1e-7, truth).tolist() == [CAP, CAP]
    assert psnr(1 - truth, truth).tolist() == [0, 0]


def test_summary_is_that_of_numpy():
    values = torch.tensor([10.0, 29.9, 30.0, 30.1, 50.0, 70.0], dtype=torch.float64)
    summary = psnr_summary(values)
    assert summary == pytest.approx(
        {"psnr": values.numpy().mean(), "psnr_median": np.median(values), "psnr_min": 10.0, "above_30_db": 0.5},
    )


def test_quarter_mean_is_that_of_every_quarter_and_flatters_blank_ones(pictures):
    recovered, truth = pictures
    quarters = [
        peak_signal_noise_ratio(true[:, i : i + 8, j : j + 9], found[:, i : i + 8, j : j + 9], data_range=1)
        for found, true in zip(recovered.double().numpy(), truth.double().numpy(), strict=True)
        for i, j in itertools.product((0, 8), (0, 9))
    ]
    assert party_psnr(split_image(recovered), split_image(truth)) == pytest.approx(np.mean(quarters))
    blank = truth.clone()
    blank[..., :8, :9] = 0
    found = (blank + 0.1 * (blank > 0)).clamp(0, 1)
    assert party_psnr(split_image(found), split_image(blank)) > float(psnr(found, blank).mean()) + 10


def test_ssim_is_that_of_scikit_image_on_reflected_borders(pictures):
    padded = [np.pad(images.double().numpy(), ((0, 0), (0, 0), (5, 5), (5, 5)), mode="reflect") for images in pictures]
    options = {"data_range": 1, "channel_axis": 0, "gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    expected = [structural_similarity(true, found, **options) for found, true in zip(*padded, strict=True)]
    np.testing.assert_allclose(ssim(*pictures), expected, atol=1e-6)
    assert ssim(pictures[0][:1], pictures[1][:1]).shape == (1,)


def test_matching_undoes_any_order_and_is_the_best_of_all():
    draw = torch.Generator().manual_seed(1)
    truth, recovered = torch.rand(2, 6, 1, 4, 4, generator=draw).unbind()
    order = match(recovered, truth)
    costs = {orders: float(mse(recovered[list(orders)], truth).sum()) for orders in itertools.permutations(range(6))}
    assert min(costs, key=costs.__getitem__) == tuple(order.tolist())
    errors = ((truth[:, None] - recovered[None]) ** 2).flatten(2).mean(2)
    assert order.tolist() == linear_sum_assignment(errors.numpy())[1].tolist()
    shuffled = torch.randperm(6, generator=draw)
    assert torch.equal(truth[shuffled][match(truth[shuffled], truth)], truth)


def test_matching_looks_at_clamped_pictures():
    truth = torch.stack([torch.zeros(1, 2, 2), torch.full((1, 2, 2), 0.4)])
    recovered = torch.stack([torch.full((1, 2, 2), -9.0), torch.full((1, 2, 2), 0.3)])
    assert match(recovered, truth).tolist() == [0, 1]


def test_baselines_are_mean_zeros_and_seeded_noise(pictures):
    _, truth = pictures
    guesses = baselines(truth, seed=3)
    torch.testing.assert_close(guesses["mean"][4], truth.mean(0))
    assert guesses["zeros"].count_nonzero() == 0
    assert torch.equal(guesses["noise"], baselines(truth, seed=3)["noise"])
    assert not torch.equal(guesses["noise"], baselines(truth, seed=4)["noise"])
    uniform = psnr(torch.rand(200, 1, 32, 32), torch.zeros(200, 1, 32, 32)).mean()
    assert float(uniform) == pytest.approx(10 * math.log10(3), abs=0.02)  # the second moment of U(0, 1) is a third


def test_picture_report_holds_all_numbers_and_the_baselines(pictures):
    recovered, truth = pictures
    report = picture_report(recovered * 3 - 1, truth, split_image)
    assert report == pytest.approx(picture_report((recovered * 3 - 1).clamp(0, 1), truth, split_image))
    report = picture_report(recovered, truth, split_image)
    assert report["psnr"] == pytest.approx(float(psnr(recovered, truth).mean()))
    assert report["ssim"] == pytest.approx(float(ssim(recovered, truth).mean()))
    assert report["party_psnr"] == pytest.approx(party_psnr(split_image(recovered), split_image(truth)))
    assert report["baseline_mean"] == pytest.approx(float(psnr(baselines(truth, 0)["mean"], truth).mean()))
    assert {"psnr_median", "psnr_min", "above_30_db", "mse", "baseline_zeros", "baseline_noise"} < set(report)
    assert "ssim" not in picture_report(recovered[..., :8, :8], truth[..., :8, :8], split_image)


def test_rmse_of_tables_is_in_standard_deviations():
    draw = np.random.default_rng(0)
    truth, found, deviation = draw.normal(size=(9, 4)), draw.normal(size=(9, 4)), draw.uniform(1, 5, size=4)
    rows = rmse(*map(torch.from_numpy, (found, truth, deviation)))
    np.testing.assert_allclose(rows, [root_mean_squared_error(t / deviation, f / deviation) for t, f in zip(truth, found, strict=True)])
    report = table_report(torch.from_numpy(found), torch.from_numpy(truth))
    assert report["rmse"] == pytest.approx(math.sqrt(((found - truth) ** 2).mean()))
    assert report["baseline_mean"] == pytest.approx(math.sqrt(truth.var(0).mean()))
    assert report["rmse_median"] <= report["rmse_max"]


def test_relative_error_is_a_ratio_of_frobenius_norms():
    truth, found = torch.randn(2, 5, 3, dtype=torch.float64).unbind()
    assert relative_error(found, truth) == pytest.approx(np.linalg.norm(found - truth) / np.linalg.norm(truth))
    assert relative_error(torch.zeros_like(truth), truth) == 1
    assert relative_error(truth, truth) == 0
    assert relative_error(truth, torch.zeros_like(truth)) == math.inf


def test_label_accuracy_takes_the_largest_score():
    assert label_accuracy(torch.tensor([[0.1, 0.9], [2.0, -1.0], [0.0, 1.0], [3.0, 4.0]]), torch.tensor([1, 0, 0, 1])) == 0.75


def test_attack_performance_is_the_explained_part_of_the_variance(pictures):
    recovered, truth = pictures
    clear = recovered[:4], truth[:4]
    flat = [images.flatten(1).double().numpy() for images in clear]
    expected = r2_score(flat[1], flat[0], multioutput="variance_weighted")
    assert attack_performance(*clear) == pytest.approx(expected)
    assert attack_performance(truth, truth) == 1
    assert attack_performance(1 - truth, truth) == 0
    assert attack_performance(baselines(truth, 0)["mean"], truth) == pytest.approx(0, abs=1e-6)
    with pytest.raises(ValueError, match="all records are equal"):
        attack_performance(truth[:1], truth[:1])


def test_another_mean_record_can_be_given(pictures):
    recovered, truth = pictures
    mean = torch.rand(truth.shape[1:], generator=torch.Generator().manual_seed(1))
    guess = torch.stack([mean] * len(truth))
    assert torch.equal(baselines(truth, 0, mean)["mean"], guess)
    assert picture_report(recovered, truth, split_image, mean=mean)["baseline_mean"] == pytest.approx(float(psnr(guess, truth).mean()))
    left = float(mse(recovered[:1], truth[:1]) / mse(guess[:1], truth[:1]))
    assert attack_performance(recovered[:1], truth[:1], mean) == pytest.approx(1 - left)
    rows, row = truth.flatten(1), mean.flatten()
    assert table_report(recovered.flatten(1), rows, row)["baseline_mean"] == pytest.approx(float((rows - row).double().square().mean().sqrt()))
    with pytest.raises(ValueError, match="equal to their mean"):
        attack_performance(truth[:1], truth[:1], truth[0])


def test_defence_score_is_vflairs_formula():
    assert defence_score(0, 0.95, 0.95) == 1
    assert defence_score(1, 0, 1) == pytest.approx(0.5)
    assert defence_score(0.6, 0.9, 0.95, ideal_attack=0.1, beta=0.3) == pytest.approx(1 / (1 + math.sqrt(0.7 * 0.25 + 0.3 * 0.0025)))
    assert defence_score(0.2, 0.9, 0.95) > defence_score(0.8, 0.9, 0.95)
    assert defence_score(0.2, 0.9, 0.95) > defence_score(0.2, 0.5, 0.95)


def test_errors_say_what_is_wrong(pictures):
    recovered, truth = pictures
    with pytest.raises(ValueError, match=r"one shape, got \(7, 3, 16, 18\) and \(6, 3, 16, 18\)"):
        psnr(recovered, truth[:6])
    broken = recovered.clone()
    broken[1:3, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="2 of 7 recovered records hold values that are not finite: the attack diverged"):
        psnr(broken, truth)
    with pytest.raises(ValueError, match=r"SSIM needs images \(B, C, H, W\) of at least 11 pixels"):
        ssim(recovered[..., :10], truth[..., :10])
    with pytest.raises(ValueError, match=r"attack must be in \[0, 1\], got 38.9: bring it there by a stated map"):
        defence_score(38.9, 0.9, 0.95)
    with pytest.raises(ValueError, match="expected scores"):
        label_accuracy(torch.zeros(3, 2), torch.zeros(4))
