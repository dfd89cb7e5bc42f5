"""Measures against brute force, scikit-image, torchmetrics and scipy; and sums over batches that are exact."""

import numpy as np
import pytest
import torch
from scipy import stats
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torchmetrics.functional import mean_squared_error, pearson_corrcoef

from projects.s3rp import metrics
from projects.s3rp.metrics import EnsembleErrors, FieldErrors
from projects.s3rp.physics import Physics, Wind
from projects.s3rp.worlds import World, draw_plumes

EXACT = {"rtol": 1e-9, "atol": 1e-12}


def drawn(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


@pytest.fixture(scope="module")
def plumes():
    return draw_plumes(World(size=16, frames=3, missing=0.3, missing_frames=0.3, sources=1, sigma=0.02, seed=4), 4, "test")


@pytest.fixture(scope="module")
def fields(plumes):
    return plumes.truth.double() + 0.1 * drawn(*plumes.truth.shape)


def measured(plumes, fields, rows=slice(None)):
    errors = FieldErrors(3, (16, 16), ("bicubic", "half"))
    others = {"bicubic": fields[rows] + 0.1, "half": fields[rows] / 2}
    errors.update(fields[rows], plumes.truth[rows], plumes.observations.batch(rows), plumes.observations.physics, others)
    return errors


# ---- fields


def test_relative_errors_are_ratios_of_norms_and_nan_without_a_truth():
    truth, fields = drawn(2, 3, 4, 5), drawn(2, 3, 4, 5, seed=1)
    truth[0, 0] = 0
    expected = [
        [np.linalg.norm(c - t) / np.linalg.norm(t) if t.any() else np.nan for c, t in zip(*pair, strict=True)]
        for pair in zip(fields.numpy(), truth.numpy(), strict=True)
    ]
    torch.testing.assert_close(metrics.relative_l2(fields, truth), torch.tensor(expected, dtype=torch.float64), equal_nan=True, **EXACT)


def test_noise_ratios_and_similarities_are_those_of_the_libraries():
    truth = drawn(2, 3, 12, 10).abs()
    fields = truth + 0.2 * drawn(2, 3, 12, 10, seed=1)
    ratios, similarities = metrics.psnr(fields, truth), metrics.ssim(fields, truth)
    for row in range(2):
        peak = float(truth[row].max())
        for frame in range(3):
            one, other = fields[row, frame], truth[row, frame]
            assert float(ratios[row, frame]) == pytest.approx(peak_signal_noise_ratio(other.numpy(), one.numpy(), data_range=peak), abs=1e-9)
            similarity = structural_similarity(one.numpy(), other.numpy(), win_size=7, data_range=peak)
            assert float(similarities[row, frame]) == pytest.approx(similarity, abs=1e-9)
    assert (metrics.psnr(truth, truth) == metrics.MOST).all()
    assert metrics.psnr(fields, torch.zeros_like(truth)).isnan().all()
    assert metrics.ssim(fields[..., :6], truth[..., :6]).isnan().all()


def test_inconsistency_counts_observed_values_alone():
    fields, coarse, mask = drawn(2, 3, 4, 8), drawn(2, 3, 2, 4, seed=1), torch.rand(2, 3, 2, 4, generator=torch.Generator().manual_seed(0)) < 0.6
    mask[0, 1] = False
    means = fields.numpy().reshape(2, 3, 2, 2, 4, 2).mean((3, 5))
    found = metrics.inconsistency(fields, coarse.where(mask, 7.0), mask)
    for row, frame in np.ndindex(2, 3):
        seen = mask[row, frame].numpy()
        expected = np.sqrt(((means[row, frame] - coarse[row, frame].numpy())[seen] ** 2).mean()) if seen.any() else np.nan
        assert float(found[row, frame]) == pytest.approx(expected, abs=1e-12, nan_ok=True)


def test_fields_that_the_solver_made_have_no_residual_and_others_have_their_distance():
    physics, wind = Physics(1e-3, 0.1, (1 / 8, 1 / 8)), Wind(drawn(2, 3, 8, 8), drawn(2, 3, 8, 8, seed=1))
    source = drawn(2, 1, 8, 8, seed=2)
    physics = physics.with_options(substeps=4)
    frames = [drawn(2, 8, 8, seed=3)]
    for frame in range(2):
        frames.append(physics.advance(frames[-1], wind.at(frame), source[:, 0]))
    fields = torch.stack(frames, 1)
    assert metrics.residual(fields, wind, physics, source).abs().max() < 1e-14
    fields[:, 2] += 0.5
    torch.testing.assert_close(metrics.residual(fields, wind, physics, source)[:, 1], torch.full((2,), 0.5, dtype=torch.float64))
    assert (metrics.residual(fields, wind, physics)[:, 0] > 1e-3).all()
    assert metrics.residual(fields[:, :1], wind, physics).shape == (2, 0)


def test_mass_errors_are_relative():
    truth = torch.tensor([[1.0, 3.0], [0.0, 0.0]])
    assert metrics.mass_error(truth[None] * 1.25, truth[None]).tolist() == [0.25]
    assert metrics.mass_error(truth, torch.zeros(2, 2)).isnan()


def test_spectra_find_waves_and_sum_to_the_mean_square():
    y, x = torch.meshgrid(torch.arange(12) / 12, torch.arange(16) / 16, indexing="ij")
    spectrum = metrics.radial_spectrum(3 + 2 * torch.cos(2 * torch.pi * (3 * x + 4 * y)))
    assert spectrum.shape == (7,)
    waves = [round(float(np.hypot(j, i))) for j in np.fft.fftfreq(12, 1 / 12) for i in np.fft.fftfreq(16, 1 / 16)]
    assert spectrum[0] == pytest.approx(9)
    assert spectrum[5] * waves.count(5) == pytest.approx(2, rel=1e-5)
    assert spectrum[[1, 2, 3, 4, 6]].max() < 1e-12
    noise = drawn(2, 9, 9)
    rings = [round(float(np.hypot(j, i))) for j in np.fft.fftfreq(9, 1 / 9) for i in np.fft.fftfreq(9, 1 / 9)]
    power = np.abs(np.fft.fft2(noise.numpy()) / 81) ** 2
    expected = [[power[k].ravel()[np.array(rings) == ring].mean() for ring in range(5)] for k in range(2)]
    torch.testing.assert_close(metrics.radial_spectrum(noise), torch.tensor(np.array(expected)), **EXACT)


def test_field_errors_are_means_and_gains_over_references(plumes, fields):
    found, truth = measured(plumes, fields).compute(), plumes.truth.double()
    relative = metrics.relative_l2(fields, truth)
    torch.testing.assert_close(found["relative_l2"], relative.mean(), **EXACT)
    torch.testing.assert_close(found["relative_l2_by_frame"], relative.mean(0), **EXACT)
    torch.testing.assert_close(found["rmse"], mean_squared_error(fields, truth, squared=False), **EXACT)
    torch.testing.assert_close(found["mae"], (fields - truth).abs().mean(), **EXACT)
    torch.testing.assert_close(found["gain_over_half"], metrics.relative_l2(fields / 2, truth).mean() / relative.mean(), **EXACT)
    torch.testing.assert_close(found["gain_over_bicubic_by_frame"], metrics.relative_l2(fields + 0.1, truth).mean(0) / relative.mean(0), **EXACT)
    power, true_power = (metrics.radial_spectrum(part).mean((0, 1)) for part in (fields, truth))
    torch.testing.assert_close(found["spectrum_ratio"], power / true_power, **EXACT)
    assert torch.isnan(found["residual_by_frame"]).tolist() == [True, False, False]
    seen = plumes.observations
    difference = (fields.unflatten(-1, (-1, 4)).unflatten(-3, (-1, 4)).mean((-3, -1)) - seen.coarse)[seen.mask]
    torch.testing.assert_close(found["inconsistency"], difference.square().mean().sqrt(), **EXACT)
    assert set(metrics.scalars(found, "test/")) == {f"test/{name}" for name, value in found.items() if value.ndim == 0}


def test_halves_make_the_whole(plumes, fields):
    whole, first = measured(plumes, fields).compute(), measured(plumes, fields, slice(0, 1))
    first.merge_state(measured(plumes, fields, slice(1, 4)))
    batches = measured(plumes, fields, slice(0, 2))
    later = slice(2, 4)
    others = {"bicubic": fields[later] + 0.1, "half": fields[later] / 2}
    batches.update(fields[later], plumes.truth[later], plumes.observations.batch(later), plumes.observations.physics, others)
    torch.testing.assert_close(dict(first.compute()), dict(whole), equal_nan=True, **EXACT)
    torch.testing.assert_close(dict(batches.compute()), dict(whole), equal_nan=True, **EXACT)


def test_what_cannot_be_measured_is_refused(plumes, fields):
    batch, physics = plumes.observations.batch(), plumes.observations.physics
    with pytest.raises(ValueError, match="hold NaN"):
        FieldErrors(3, (16, 16), ()).update(fields / 0, plumes.truth, batch, physics)
    with pytest.raises(ValueError, match="references bicubic are needed, got none"):
        FieldErrors(3, (16, 16)).update(fields, plumes.truth, batch, physics)
    with pytest.raises(ValueError, match="sequences of 5 frames, got 3"):
        FieldErrors(5, (16, 16), ()).update(fields, plumes.truth, batch, physics)
    with pytest.raises(ValueError, match="must both be"):
        FieldErrors(3, (16, 16), ()).update(fields[:2], plumes.truth, batch, physics)
    with pytest.raises(ValueError, match="8 members, got 4"):
        EnsembleErrors(3, 8).update(fields.expand(4, -1, -1, -1, -1), plumes.truth, torch.arange(4))
    with pytest.raises(ValueError, match="2 members or more"):
        EnsembleErrors(3, 1)


# ---- ensembles


@pytest.mark.parametrize("members", [1, 2, 7])
def test_the_energy_score_is_that_of_all_pairs(members):
    ensemble, truth = drawn(members, 2, 3, 4, 5), drawn(2, 3, 4, 5, seed=1)

    def distance(one, other):
        return (one - other).square().mean((-2, -1)).sqrt()

    pairs = torch.stack([distance(one, other) for one in ensemble for other in ensemble]).mean(0)
    expected = torch.stack([distance(one, truth) for one in ensemble]).mean(0) - pairs / 2
    torch.testing.assert_close(metrics.energy_score(ensemble, truth), expected, **EXACT)


def test_ranks_count_members_below_and_draw_among_equals():
    ensemble, truth = drawn(6, 4, 5), drawn(4, 5, seed=1)
    rng = torch.Generator().manual_seed(0)
    expected = [[int(np.searchsorted(np.sort(ensemble[:, y, x].numpy()), float(truth[y, x]))) for x in range(5)] for y in range(4)]
    assert metrics.ranks(ensemble, truth, rng).tolist() == expected
    counts = torch.bincount(metrics.ranks(torch.zeros(3, 4000), torch.zeros(4000), rng), minlength=4)
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3


def test_chi_square_and_reliability_are_read_off_the_histogram():
    counts = torch.tensor([5, 1, 2, 4, 3, 6])
    assert float(metrics.chi_square(counts)) == pytest.approx(stats.chisquare(counts.numpy()).statistic)
    levels, covered = metrics.reliability(counts)
    assert levels.tolist() == pytest.approx([2 / 6, 4 / 6])
    assert covered.tolist() == pytest.approx([6 / 21, 10 / 21])
    assert metrics.reliability(torch.tensor([1, 2]))[0].tolist() == []


def ensemble_of(members=9, seed=0, sequences=3):
    """Members and a truth that are draws of one distribution, of different spreads."""
    deviation = 0.2 + np.random.default_rng(1).random((sequences, 2, 8, 8))
    centre = drawn(sequences, 2, 8, 8, seed=seed + 50)
    draws = drawn(members + 1, sequences, 2, 8, 8, seed=seed) * torch.from_numpy(deviation) + centre
    return draws[1:], draws[0]


def test_ensemble_errors_are_those_of_brute_force():
    members, truth = ensemble_of()
    errors = EnsembleErrors(2, 9)
    errors.update(members, truth, torch.arange(3))
    found = errors.compute()
    flat, true = members.flatten(1).numpy(), truth.flatten().numpy()
    pairs = np.abs(flat[:, None] - flat[None]).sum((0, 1))
    distance = np.abs(flat - true).mean(0)
    error, deviation = flat.mean(0) - true, flat.std(0, ddof=1)
    ordered = np.sort(flat, 0)
    half = (ordered[1] + ordered[2]) / 2 <= true, true <= (ordered[-2] + ordered[-3]) / 2  # places 2.5 and 7.5 of 9
    plume = (truth > 0.01 * truth.amax((1, 2, 3), keepdim=True)).flatten().numpy()
    expected = {
        "crps": (distance - pairs / 2 / 81).mean(),
        "crps_fair": (distance - pairs / 2 / 72).mean(),
        "mae": np.abs(error).mean(),
        "skill": np.sqrt((error**2).mean()),
        "spread_skill": np.sqrt(10 / 9 * (deviation**2).mean() / (error**2).mean()),
        "correlation": float(pearson_corrcoef(torch.from_numpy(deviation), torch.from_numpy(np.abs(error)))),
        "coverage_50": (half[0] & half[1]).mean(),
        "coverage_90": ((ordered[0] <= true) & (true <= ordered[-1])).mean(),
        "plume_coverage_50": (half[0] & half[1])[plume].mean(),
    }
    assert {name: float(found[name]) for name in expected} == pytest.approx(expected, abs=1e-9)
    assert found["ranks"].tolist() == np.bincount((flat < true).sum(0), minlength=10).tolist()
    by_frame = metrics.energy_score(members, truth).mean(0)
    torch.testing.assert_close(found["energy_score_by_frame"], by_frame, **EXACT)


def test_draws_of_the_truths_distribution_are_calibrated():
    members, truth = ensemble_of(19, sequences=40)
    errors = EnsembleErrors(2, 19)
    errors.update(members.float(), truth.float(), torch.arange(40))
    found = {name: float(value) for name, value in metrics.scalars(errors.compute()).items()}
    deviation = (0.09 / 40 / 128) ** 0.5
    assert found["coverage_90"] == pytest.approx(0.9, abs=4 * deviation)
    assert found["coverage_50"] == pytest.approx(0.5, abs=8 * deviation)
    assert found["spread_skill"] == pytest.approx(1, abs=0.03)
    assert found["crps"] < found["mae"]
    assert stats.chi2(19).sf(found["chi_square"]) > 1e-3


def test_ensembles_in_two_halves_make_the_whole_even_with_equals():
    members, truth = ensemble_of()
    members, truth, order = members.round(), truth.round(), [2, 0, 1]
    whole, parts, other = (EnsembleErrors(2, 9) for _ in range(3))
    whole.update(members, truth, torch.arange(3))
    parts.update(members[:, order[:1]], truth[order[:1]], torch.tensor(order[:1]))
    other.update(members[:, order[1:]], truth[order[1:]], torch.tensor(order[1:]))
    parts.merge_state(other)
    torch.testing.assert_close(dict(parts.compute()), dict(whole.compute()), **EXACT)
