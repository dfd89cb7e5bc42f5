"""Back-ends and calibration that follow training, and measures of trial lists."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from projects.rsknet.calibration import quality
from projects.rsknet.data import BACKGROUND, SpeakerData
from projects.rsknet.judging import FAR, LEAST, SCORER, SHORTENED, Embedded, embed, fit_scorer, judge, load_scorer
from projects.rsknet.lists import Trials
from projects.rsknet.metrics import eer, min_cllr, min_dcf
from projects.rsknet.module import SpeakerVerification
from projects.rsknet.recordings import DrawnRecordings, whole_loader
from projects.rsknet.scoring import BACKENDS
from shared.checkpoints import weights_digest
from shared.data.files import BadFileError
from shared.quiet import quiet_trainer, silence

SMALL = {"embedding": 12}
SEED = 4


def world(**options):
    sizes = {"speakers": 6, "utterances": 4, "held_speakers": 6, "held_trials": 200, "test_speakers": 5, "test_utterances": 3, "batch_size": 8}
    return SpeakerData(**(sizes | {"length": 1.3} | options))


def quiet():
    return quiet_trainer(1, accelerator="cpu")


@pytest.fixture(scope="module")
def data():
    return world()


@pytest.fixture(scope="module")
def module():
    """A random network, whose embeddings tell a little of voices."""
    return SpeakerVerification("tiny_rsknet_mtsp", SMALL, seed=SEED).eval()


@pytest.fixture(scope="module")
def scorer(module, data):
    with silence():
        return fit_scorer(quiet(), module, data)


@pytest.fixture(scope="module")
def found(module, data):
    with silence():
        return embed(quiet(), module, data.whole(data.test), data.test)


def alone(module, waveform):
    return module(waveform[None])[0]


# ---- embeddings


def test_recordings_are_embedded_as_each_alone(module, data, found):
    assert list(found.vectors) != []
    assert set(found.vectors) == set(found.seconds) == set(data.test.names)
    for place, name in enumerate(data.test.names):
        torch.testing.assert_close(found.vectors[name], alone(module, data.test.read(place)), atol=1e-5, rtol=1e-4)
        assert found.seconds[name] == 1.3


def test_parts_from_the_middle_and_a_choice_of_recordings_are_embedded(module, data):
    with silence():
        found = embed(quiet(), module, data.whole(data.test, 0.5, [4, 1]), data.test)
    assert set(found.vectors) == {data.test.names[4], data.test.names[1]}
    middle = data.test.read(4, (10_400 - 4000) // 2, 4000)
    torch.testing.assert_close(found.vectors[data.test.names[4]], alone(module, middle), atol=1e-5, rtol=1e-4)
    assert set(found.seconds.values()) == {0.5}


def test_recordings_shorter_than_a_frame_are_named(module):
    rate = int(module.hparams.rate)
    short = DrawnRecordings(["a.wav", "b.wav"], torch.zeros(2, module.fbank.length - 1), rate)
    with pytest.raises(BadFileError, match=r"2 recordings are shorter than a frame \(\d+ samples, 0\.025 s\):\s+a\.wav\s+b\.wav\s+remove them"):
        embed(quiet(), module, whole_loader(short), short)


def test_the_files_of_a_model_count_together():
    found = Embedded({}, {"a": 1.0, "b": 2.5, "c": 4.0})
    trials = Trials("x", (("a", "b"), ("c",)), ("c", "a"), torch.tensor([0, 1]), torch.tensor([0, 1]), torch.tensor([True, False]))
    assert torch.equal(found.quality(trials), quality(torch.tensor([3.5, 4.0]), torch.tensor([4.0, 1.0])))


# ---- the scorer


def test_the_scorer_is_of_training_speakers_and_of_the_network(module, data, scorer):
    recordings = torch.stack([alone(module, data.train.read(place)) for place in range(len(data.train))]).double()
    torch.testing.assert_close(scorer.mean, recordings.mean(0), atol=1e-5, rtol=1e-4)
    units = F.normalize(recordings - recordings.mean(0), dim=1)
    torch.testing.assert_close(scorer.cohort, torch.stack([units[4 * place : 4 * place + 4].mean(0) for place in range(6)]), atol=1e-4, rtol=1e-3)
    assert scorer.network == weights_digest(module.net)
    assert scorer.top == LEAST
    assert BACKGROUND > 4


def test_every_back_end_is_calibrated_on_held_out_speakers_whole_and_cut(data, scorer, found):
    assert scorer.backends == BACKENDS
    impostors = int((~data.held_trials.is_target).sum())
    sides = 1 + sum(seconds < 1.3 for seconds in SHORTENED)
    for backend in scorer.calibrations:
        calibration = scorer.calibrations[backend]
        assert math.isfinite(calibration.offset)
        assert 0 < calibration.scale < math.inf
        assert calibration.weights.isfinite().all()
        assert [len(part) for part in calibration.impostors] == [impostors] * (sides * (sides + 1) // 2)
        kinds = [[one, other] for number, one in enumerate((1.3, 1.0)) for other in (1.3, 1.0)[number:]]
        torch.testing.assert_close(calibration.centres.exp(), torch.tensor(kinds, dtype=torch.float64).sort(1).values)
        assert calibration.span.exp().tolist() == [pytest.approx([1, 1]), pytest.approx([1.3, 1.3])]
        assert calibration.llr(scorer.score_trials(backend, found.vectors, data.trials[0]), found.quality(data.trials[0])).isfinite().all()
    assert "cosine" in scorer.calibrations, "voices are told apart a little by any network"


def test_plda_needs_more_recordings_than_speakers_by_the_size_of_embeddings(module):
    few = world(utterances=2, held_speakers=3, test_speakers=2)  # 12 of 6 speakers; embeddings have 12 numbers
    with silence():
        assert fit_scorer(quiet(), module, few).backends == BACKENDS[:3]


def test_a_network_that_has_learnt_nothing_is_remarked_and_judged_all_the_same(capsys):
    module = SpeakerVerification("tiny_rsknet_mtsp", SMALL).eval()
    module.net.embed.weight.data.zero_()
    few = world(utterances=2, held_speakers=3, test_speakers=2)
    with silence():
        scorer = fit_scorer(quiet(), module, few)
        found = embed(quiet(), module, few.whole(few.test), few.test)
    assert "cosine is not calibrated: scores do not rise towards targets" in capsys.readouterr().out
    judged = judge(scorer, "cosine", found, few.trials[0])
    assert set(judged.measures) == {"eer", "min_dcf_01", "min_dcf_001"}
    assert judged.measures["eer"] == pytest.approx(0.5)
    assert torch.equal(judged.llrs, judged.scores)


# ---- measures


def test_measures_are_those_of_scores_computed_apart(module, data, scorer, found):
    trials = data.trials[0]
    vectors = {name: (found.vectors[name].double() - scorer.mean).numpy() for name in trials.files}
    sides = [(trials.models[a][0], trials.tests[b]) for a, b in zip(trials.enrol.tolist(), trials.test.tolist(), strict=True)]
    scores = np.array([vectors[one] @ vectors[two] / np.linalg.norm(vectors[one]) / np.linalg.norm(vectors[two]) for one, two in sides])
    truth = np.array([one[:8] == two[:8] for one, two in sides])
    judged = judge(scorer, "cosine", found, trials)
    np.testing.assert_allclose(judged.scores, scores, atol=1e-9)
    assert judged.trials is trials
    calibration = scorer.calibrations["cosine"]
    llrs = calibration.scale * scores + calibration.offset + (found.quality(trials) @ calibration.weights).numpy()
    np.testing.assert_allclose(judged.llrs, llrs, atol=1e-9)

    def cost(values):
        return (np.logaddexp(0, -values[truth]).mean() + np.logaddexp(0, values[~truth]).mean()) / 2 / np.log(2)

    scored, is_target = torch.from_numpy(scores), torch.from_numpy(truth)
    accepted = llrs >= math.log(0.99 / 0.01)
    whole = calibration.impostors[0]
    reached = llrs >= np.nextafter(np.sort(whole)[::-1][math.floor(FAR * len(whole))], np.inf)
    expected = {
        "eer": eer(scored, is_target),
        "min_dcf_01": min_dcf(scored, is_target, 0.01),
        "min_dcf_001": min_dcf(scored, is_target, 0.001),
        "dcf_01": (0.01 * (~accepted[truth]).mean() + 0.99 * accepted[~truth].mean()) / 0.01,
        "cllr_before": cost(scores),
        "cllr": cost(llrs),
        "min_cllr": min_cllr(torch.from_numpy(llrs), is_target),
        "far": reached[~truth].mean(),
        "miss": (~reached[truth]).mean(),
    }
    assert judged.measures == pytest.approx(expected, abs=1e-9)


def test_scorers_of_other_weights_and_absent_ones_are_refused(tmp_path, module, scorer):
    with pytest.raises(FileNotFoundError, match=r"no scorer .*: the verb calibrate makes one, as fit does when it ends"):
        load_scorer(tmp_path, module)
    scorer.save(tmp_path / SCORER)
    assert load_scorer(tmp_path, module).calibrations.keys() == scorer.calibrations.keys()
    with pytest.raises(BadFileError, match=r"belongs to the network .*: use that checkpoint, or calibrate again"):
        load_scorer(tmp_path, SpeakerVerification("tiny_rsknet_mtsp", SMALL, seed=SEED + 1))
    (tmp_path / SCORER).write_bytes(b"damaged")
    with pytest.raises(BadFileError, match="is damaged or no safetensors file"):
        load_scorer(tmp_path, module)
