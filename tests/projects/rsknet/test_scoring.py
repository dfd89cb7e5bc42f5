import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy.stats import multivariate_normal

from projects.rsknet import scoring
from projects.rsknet.calibration import Calibration
from projects.rsknet.lists import Trials
from projects.rsknet.metrics import eer
from projects.rsknet.scoring import BACKENDS, Scorer, cosine, models, unit
from shared.data.files import BadFileError

SIZE = 6
PAIRS = ["cosine", "cosine_snorm", "cosine_asnorm", "plda"]


def embeddings_of(seed, speakers, each):
    """Embeddings (speakers * each, SIZE) about a mean that is not zero, and their speakers."""
    own = np.random.default_rng(seed)
    names = np.repeat(np.arange(speakers), each)
    centres = np.random.default_rng(1000 + seed).normal(size=(speakers, SIZE))
    return torch.from_numpy(2 + centres[names] + 0.6 * own.normal(size=(len(names), SIZE))).float(), torch.from_numpy(names)


@pytest.fixture(scope="module")
def scorer():
    return Scorer.fit(*embeddings_of(0, 20, 5), network="0123456789ab", top=7)


@pytest.fixture(scope="module")
def world():
    """Embeddings by name, and trials of models of one to three files."""
    values, speakers = embeddings_of(1, 5, 6)
    names = [f"id{speaker}/{row}.wav" for row, speaker in enumerate(speakers.tolist())]
    enrolled = [(0, 1, 2), (6,), (12, 13), (18,), (24, 25, 26)]
    enrol, test = torch.cartesian_prod(torch.arange(5), torch.arange(10)).T
    tests = tuple(names[row] for row in range(30) if row % 6 in (3, 4))
    is_target = torch.tensor([f"id{model}/" in tests[file] for model, file in zip(enrol.tolist(), test.tolist(), strict=True)])
    trials = Trials("core", tuple(tuple(names[row] for row in rows) for rows in enrolled), tests, enrol, test, is_target)
    return dict(zip(names, values, strict=True)), trials


def calibration_of(backend, **changed):
    """The tensors of a calibration as a scorer's file has them."""
    parts = {"map": torch.ones(2), "span": torch.zeros(2, 0), "centres": torch.zeros(1, 0), "impostors": torch.rand(2), "sizes": torch.tensor([2.0])}
    return {f"calibration.{backend}.{name}": value for name, value in (parts | changed).items()}


def reference_cosine(one, other):
    return float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))


def test_the_cosine_is_that_of_centred_embeddings_averaged_over_a_models_files(scorer, world):
    embeddings, trials = world
    mean = scorer.mean.numpy()
    found = scorer.score_trials("cosine", embeddings, trials)
    assert found.dtype == torch.float64
    for score, model, file in zip(found.tolist(), trials.enrol.tolist(), trials.test.tolist(), strict=True):
        centred = [embeddings[name].double().numpy() - mean for name in trials.models[model]]
        enrol = np.mean([vector / np.linalg.norm(vector) for vector in centred], axis=0)
        assert score == pytest.approx(reference_cosine(enrol, embeddings[trials.tests[file]].double().numpy() - mean), abs=1e-12)


@pytest.mark.parametrize(("backend", "top"), [("cosine_asnorm", 7), ("cosine_snorm", 20)])
def test_normalised_scores_are_those_of_the_written_out_formula(scorer, world, backend, top):
    embeddings, trials = world
    units = {name: unit(value, scorer.mean) for name, value in embeddings.items()}
    enrol, _ = models(units, trials)
    cohort = scorer.cohort.numpy()
    found = scorer.score_trials(backend, embeddings, trials)
    for score, model, file in zip(found.tolist(), trials.enrol.tolist(), trials.test.tolist(), strict=True):
        sides = [enrol[model].numpy(), units[trials.tests[file]].numpy()]
        raw, total = reference_cosine(*sides), 0.0
        for side in sides:
            nearest = sorted((reference_cosine(side, speaker) for speaker in cohort), reverse=True)[:top]
            total += (raw - np.mean(nearest)) / np.std(nearest)
        assert score == pytest.approx(total / 2, abs=1e-9)


def test_the_cohort_has_one_mean_a_speaker(scorer):
    values, speakers = embeddings_of(0, 20, 5)
    units = unit(values, values.double().mean(0))
    torch.testing.assert_close(scorer.cohort, torch.stack([units[speakers == speaker].mean(0) for speaker in range(20)]))


def test_models_are_means_with_numbers_of_files(world):
    embeddings, trials = world
    enrol, counts = models(embeddings, trials)
    assert counts.tolist() == [3, 1, 2, 1, 3]
    for row, model in zip(enrol, trials.models, strict=True):
        torch.testing.assert_close(row, torch.stack([embeddings[name] for name in model]).mean(0))


@pytest.mark.parametrize("backend", PAIRS)
def test_sides_of_one_file_may_change_places_and_targets_score_higher(scorer, backend):
    values, speakers = embeddings_of(2, 8, 4)
    side = scorer.side(values)
    first, second = torch.triu_indices(32, 32, 1)
    scores = scorer.score(backend, side, side, first, second)
    torch.testing.assert_close(scores, scorer.score(backend, side, side, second, first), rtol=1e-9, atol=1e-9)
    assert eer(scores, speakers[first] == speakers[second]) < 0.25


def test_plda_of_several_files_is_the_ratio_of_the_likelihoods_of_all_their_projections(scorer, world):
    embeddings, trials = world
    psi = scorer.plda.psi.numpy()
    projected = {name: scorer.plda.project(unit(value[None], scorer.mean))[0].numpy() for name, value in embeddings.items()}

    def log_likelihood(files):
        return sum(
            multivariate_normal(cov=variance + np.eye(len(files))).logpdf(column)
            for variance, column in zip(psi, np.stack([projected[name] for name in files]).T, strict=True)
        )

    found = scorer.score_trials("plda", embeddings, trials).tolist()
    for score, model, file in zip(found, trials.enrol.tolist(), trials.test.tolist(), strict=True):
        enrol, test = trials.models[model], (trials.tests[file],)
        assert score == pytest.approx(log_likelihood(enrol + test) - log_likelihood(enrol) - log_likelihood(test), abs=1e-8)


@pytest.mark.parametrize("backend", PAIRS)
def test_parts_and_order_of_trials_do_not_matter(scorer, world, backend, monkeypatch):
    embeddings, trials = world
    whole = scorer.score_trials(backend, embeddings, trials)
    mask = torch.arange(len(trials)) % 3 == 0
    torch.testing.assert_close(scorer.score_trials(backend, embeddings, trials.subset(mask)), whole[mask], rtol=1e-9, atol=1e-9)
    monkeypatch.setattr(scoring, "_CHUNK", 3)
    torch.testing.assert_close(scorer.score_trials(backend, embeddings, trials), whole, rtol=1e-9, atol=1e-9)


def test_scale_of_embeddings_does_not_matter_to_the_cosine():
    one, other = torch.rand(3, SIZE), torch.rand(4, SIZE)
    index = torch.arange(3), torch.arange(3)
    torch.testing.assert_close(cosine(one, other, *index), cosine(5 * one, 0.1 * other, *index))
    assert cosine(one, one, *index).max() <= 1


def test_a_stored_scorer_scores_the_same(scorer, world, tmp_path):
    embeddings, trials = world
    scores = scorer.score_trials("cosine", embeddings, trials)
    calibrated = scorer.with_calibration("cosine", Calibration.fit(scores, trials.is_target, torch.rand(len(trials), 2)))
    calibrated.save(tmp_path / "scorer.safetensors")
    again = Scorer.load(tmp_path / "scorer.safetensors", network="0123456789ab")
    assert again.top == 7
    assert again.backends == BACKENDS
    for backend in PAIRS:
        found, expected = (each.score_trials(backend, embeddings, trials) for each in (again, scorer))
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    measures = torch.rand(len(trials), 2)
    assert again.calibrations["cosine"].llr(scores, measures).tolist() == calibrated.calibrations["cosine"].llr(scores, measures).tolist()
    assert not scorer.calibrations


def test_a_scorer_without_plda_says_so(world, tmp_path):
    embeddings, trials = world
    plain = Scorer.fit(*embeddings_of(0, 20, 1), network="", plda=False)
    plain.save(tmp_path / "plain.safetensors")
    again = Scorer.load(tmp_path / "plain.safetensors")
    assert again.backends == ("cosine", "cosine_snorm", "cosine_asnorm")
    with pytest.raises(ValueError, match="no PLDA: fit it with more speakers"):
        again.score_trials("plda", embeddings, trials)


def test_files_of_something_else_are_refused(scorer, tmp_path):
    path = tmp_path / "scorer.safetensors"
    with pytest.raises(FileNotFoundError, match="no scorer"):
        Scorer.load(path)
    path.write_bytes(pickle.dumps({"mean": [1.0]}))
    with pytest.raises(BadFileError, match="pickles are not read"):
        Scorer.load(path)
    save_file({"stem.weight": torch.rand(2)}, path)
    with pytest.raises(BadFileError, match=r"is no scorer: it holds stem\.weight"):
        Scorer.load(path)
    with pytest.raises(ValueError, match=r"a scorer is a \.safetensors file"):
        scorer.save(tmp_path / "scorer.pt")
    scorer.save(path)
    with pytest.raises(BadFileError, match="belongs to the network 0123456789ab, not to ffff"):
        Scorer.load(path, network="ffff")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cohort": torch.rand(3, 5)}, r"mean \(6,\) and cohort \(3, 5\) do not fit"),
        ({"plda.projection": torch.rand(6, 4)}, r"PLDA's projection is \(6, 4\), expected \(6, 6\)"),
        ({"plda.centre": None}, "it lacks 'centre'"),
        (calibration_of("cosine", impostors=torch.rand(2, 2)), "a calibration has a rising map"),
        (calibration_of("cosine", sizes=torch.tensor([3.0])), r"the span \(2, 0\), centres \(1, 0\) and sizes \[3\] of a calibration do not fit"),
        (calibration_of("cosine", span=torch.zeros(2, 1)), r"the span \(2, 1\)"),
        (calibration_of("euclid"), "there is no backend 'euclid'"),
        (
            calibration_of("cosine", span=torch.full((2, 0), 1.0), impostors=torch.full((2,), torch.nan)),
            r"not finite, in calibration.cosine.impostors",
        ),
        ({"mean": torch.full((6,), torch.inf)}, "not finite, in mean: calibrate again"),
    ],
    ids=["cohort", "shape", "missing", "calibration", "sizes", "span", "backend", "nan", "infinite"],
)
def test_parts_that_do_not_fit_are_named(scorer, tmp_path, change, message):
    path = tmp_path / "scorer.safetensors"
    scorer.save(path)
    tensors = {name: value for name, value in {**load_file(path), **change}.items() if value is not None}
    save_file(tensors, path, {"kind": "rsknet scorer", "version": "2", "network": "", "top": "7"})
    with pytest.raises(BadFileError, match=message):
        Scorer.load(path)
    save_file(tensors, path, {"kind": "rsknet scorer", "version": "1", "network": "", "top": "7"})
    with pytest.raises(BadFileError, match="has version 1; this code reads version 2: calibrate again"):
        Scorer.load(path)


def test_trials_that_cannot_be_scored_are_named(scorer, world):
    embeddings, trials = world
    with pytest.raises(ValueError, match=r"1 of the 20 files of core have no embedding, such as id4/24\.wav: all trials must be scored"):
        scorer.score_trials("cosine", {name: value for name, value in embeddings.items() if name != "id4/24.wav"}, trials)
    with pytest.raises(ValueError, match=r"embeddings are \(20, 5\), the scorer is of size 6: it belongs to another network"):
        scorer.score_trials("cosine", {name: value[:5] for name, value in embeddings.items()}, trials)
    with pytest.raises(ValueError, match="there is no backend 'euclid': use one of cosine"):
        scorer.score_trials("euclid", embeddings, trials)
    with pytest.raises(ValueError, match="cohort of at least 2 speakers, got 1"):
        Scorer(scorer.mean, scorer.cohort[:1], "").score_trials("cosine_asnorm", embeddings, trials)
