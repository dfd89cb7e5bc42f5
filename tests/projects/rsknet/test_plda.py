import itertools

import numpy as np
import pytest
import torch
from scipy.linalg import subspace_angles
from scipy.stats import multivariate_normal
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from projects.rsknet.metrics import cllr, eer
from projects.rsknet.plda import Plda, lda, two_covariance


def covariances(seed, size):
    own = np.random.default_rng(seed)
    between, within = (own.normal(size=(size, size)) for _ in range(2))
    return between @ between.T, within @ within.T / 2 + 0.3 * np.eye(size)


def world(seed, counts, size):
    """Embeddings of the two-covariance model and their speakers."""
    own = np.random.default_rng(seed)
    between, within = covariances(seed, size)
    speakers = np.repeat(np.arange(len(counts)), counts)
    means = own.multivariate_normal(np.zeros(size), between, len(counts))
    embeddings = means[speakers] + own.multivariate_normal(np.zeros(size), within, len(speakers))
    return torch.from_numpy(embeddings), torch.from_numpy(speakers)


def log_likelihood(embeddings, speakers, between, within):
    """Log-likelihood of each speaker's stacked embeddings, a joint normal distribution."""
    total = 0.0
    for speaker in speakers.unique():
        own = embeddings[speakers == speaker].numpy()
        joint = np.kron(np.ones((len(own), len(own))), between) + np.kron(np.eye(len(own)), within)
        total += multivariate_normal(cov=joint).logpdf(own.ravel())
    return total


def test_every_iteration_raises_the_likelihood():
    embeddings, speakers = world(0, [1, 2, 3, 5, 5, 2, 1, 4, 3, 3], 3)
    embeddings = embeddings - embeddings.mean(0)
    fitted = [two_covariance(embeddings, speakers, iterations) for iterations in range(6)]
    values = [log_likelihood(embeddings, speakers, between.numpy(), within.numpy()) for between, within in fitted]
    assert all(after > before for before, after in itertools.pairwise(values))
    between, within = (matrix.numpy() for matrix in two_covariance(embeddings, speakers, 300))
    best = log_likelihood(embeddings, speakers, between, within)
    assert best > values[-1]
    for factor in (0.9, 1.1):
        assert log_likelihood(embeddings, speakers, factor * between, within) < best
        assert log_likelihood(embeddings, speakers, between, factor * within) < best


def test_the_covariances_of_drawn_speakers_are_found():
    embeddings, speakers = world(1, [2, 5, 8] * 1000, 4)
    found = two_covariance(embeddings, speakers, 20)
    for matrix, truth in zip(found, covariances(1, 4), strict=True):
        assert np.linalg.norm(matrix.numpy() - truth) < 0.08 * np.linalg.norm(truth)


@pytest.mark.parametrize(("count", "tested"), [(1, 1), (2, 1), (5, 1), (3, 2)])
def test_scores_are_ratios_of_the_likelihoods_of_joint_normal_distributions(count, tested):
    embeddings, speakers = world(2, [4] * 30, 4)
    model = Plda.fit(embeddings, speakers, dimensions=4, length_norm=False)
    inverse = np.linalg.inv((model.projection @ model.whitening).numpy())  # from the model's space back to that of the embeddings
    between, within = inverse.T @ np.diag(model.psi.numpy()) @ inverse, inverse.T @ inverse
    own = np.random.default_rng(count)
    files, test = (own.normal(size=(number, 4)) + model.centre.numpy() for number in (count, tested))
    joint = [np.kron(np.ones((n, n)), between) + np.kron(np.eye(n), within) for n in (count + tested, count, tested)]
    together, enrol, alone = (rows - model.centre.numpy() for rows in (np.vstack([files, test]), files, test))
    expected = sum(
        sign * multivariate_normal(cov=cov).logpdf(rows.ravel()) for sign, cov, rows in zip((1, -1, -1), joint, (together, enrol, alone), strict=True)
    )
    mean = model.project(torch.from_numpy(files)).mean(0, keepdim=True)
    torch.testing.assert_close(mean, model.project(torch.from_numpy(files.mean(0, keepdims=True))))
    test_mean = model.project(torch.from_numpy(test)).mean(0, keepdim=True)
    found = model.score(mean, torch.tensor([count]), test_mean, torch.tensor([tested]) if tested > 1 else None)
    assert float(found) == pytest.approx(expected, abs=1e-8)


def test_scores_of_single_files_are_symmetric():
    embeddings, speakers = world(3, [4] * 30, 6)
    model = Plda.fit(embeddings, speakers, dimensions=5)
    one, other = model.project(embeddings[:50]), model.project(embeddings[50:100])
    ones = torch.ones(50, dtype=torch.long)
    torch.testing.assert_close(model.score(one, ones, other), model.score(other, ones, one), rtol=1e-10, atol=1e-10)


def test_the_model_beats_the_cosine_where_directions_differ_in_noise():
    own = np.random.default_rng(4)
    noise = np.array([5.0, 5, 5, 0.5, 0.5, 0.5])
    speakers = np.repeat(np.arange(120), 5)
    embeddings = torch.from_numpy(own.normal(size=(120, 6))[speakers] + own.normal(size=(600, 6)) * noise)
    model = Plda.fit(embeddings[:300], torch.from_numpy(speakers[:300]), dimensions=6, length_norm=False)
    held, names = embeddings[300:], speakers[300:]
    first, second = (torch.from_numpy(side) for side in np.triu_indices(300, 1))
    projected = model.project(held)
    llrs = model.score(projected[first], torch.ones(len(first), dtype=torch.long), projected[second])
    cosines = torch.cosine_similarity(held[first], held[second])
    is_target = torch.from_numpy(names[first] == names[second])
    assert eer(llrs, is_target) < 0.7 * eer(cosines, is_target)
    assert cllr(llrs, is_target) < 0.9  # ratios without calibration


def test_lda_spans_the_subspace_of_scikit_learn_and_whitens():
    embeddings, speakers = world(5, [3, 6, 9, 4, 5, 8, 7], 6)
    found = lda(embeddings, speakers, 3)
    peer = LinearDiscriminantAnalysis(solver="eigen").fit(embeddings, speakers).scalings_[:, :3]
    assert subspace_angles(found, peer).max() < 1e-6
    projected = embeddings @ found
    residuals = torch.cat([rows - rows.mean(0) for rows in (projected[speakers == speaker] for speaker in range(7))])
    torch.testing.assert_close(residuals.T @ residuals / len(embeddings), torch.eye(3, dtype=torch.float64), atol=1e-6, rtol=0)


def test_projections_have_the_length_and_the_covariance_they_should():
    embeddings, speakers = world(6, [5] * 40, 8)
    model = Plda.fit(embeddings, speakers, dimensions=200)
    assert len(model.psi) == 8
    assert bool((model.psi.diff() <= 0).all())
    torch.testing.assert_close(model.project(embeddings).mean(0), torch.zeros(8, dtype=torch.float64), atol=1e-9, rtol=0)
    scaled = 3 * (embeddings - model.centre) + model.centre
    torch.testing.assert_close(model.project(scaled), model.project(embeddings))
    assert len(Plda.fit(embeddings[:30], speakers[:30]).psi) == 5


def test_more_files_make_surer():
    embeddings, speakers = world(7, [6] * 40, 3)
    model = Plda.fit(embeddings, speakers, length_norm=False)
    x = model.project(embeddings)
    test, rest = x[0::6], torch.stack([x[start::6] for start in range(1, 6)])
    margins = []
    for count in (1, 5):
        enrol, counts = rest[:count].mean(0), torch.full((40,), count)
        margins.append(float((model.score(enrol, counts, test) - model.score(enrol.roll(1, 0), counts, test)).mean()))
    assert margins[1] > margins[0]


def test_embeddings_that_say_nothing_are_refused():
    embeddings = torch.rand(12, 4, dtype=torch.float64)
    with pytest.raises(ValueError, match="all 12 speakers have a single utterance"):
        Plda.fit(embeddings, torch.arange(12))
    with pytest.raises(ValueError, match="12 utterances of 9 speakers tell of 3 directions in which speakers vary, fewer than the 4"):
        Plda.fit(embeddings, torch.arange(12) % 9)
    with pytest.raises(ValueError, match="needs at least 3 speakers, got 2"):
        Plda.fit(embeddings, torch.arange(12) % 2)
    with pytest.raises(ValueError, match="one an embedding"):
        Plda.fit(embeddings, torch.arange(11))
    with pytest.raises(ValueError, match="dimensions must be from 1 to 2"):
        lda(embeddings, torch.arange(12) % 3, 3)
