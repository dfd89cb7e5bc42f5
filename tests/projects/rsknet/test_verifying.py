import json
import math

import pytest
import torch

from projects.rsknet import audio, verifying
from projects.rsknet.data import SpeakerData
from projects.rsknet.enrolling import VOICES, Voices, enroll
from projects.rsknet.hearing import Heard
from projects.rsknet.judging import fit_scorer
from projects.rsknet.module import SpeakerVerification
from projects.rsknet.synthesis import utterance
from projects.rsknet.verifying import REFUSED, sentence, verify
from shared.cli import ProjectTrainer
from shared.data.files import BadFileError
from shared.quiet import quiet_trainer, silence

RATE = 8000


def trainer_in(folder):
    with silence():
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu", "devices": 1}
        trainer = ProjectTrainer(default_root_dir=folder, **quiet)
    trainer.verb = "verify"
    return trainer


@pytest.fixture(scope="module")
def trained():
    """A network that was trained for a moment on drawn speakers, and its scorer."""
    data = SpeakerData(speakers=12, utterances=6, held_speakers=8, test_utterances=4, held_trials=160, batch_size=12, length=1.5, seconds=1.0)
    module = SpeakerVerification(net="tiny_resnet", options={"widths": [8, 16, 24], "embedding": 16})
    trainer = quiet_trainer(5, limit_val_batches=0, accelerator="cpu")
    with silence():
        trainer.fit(module, datamodule=data)
        return module.eval(), fit_scorer(trainer, module, data)


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    """A folder with three recordings of each of four speakers who were not trained on."""
    root = tmp_path_factory.mktemp("recordings")
    for speaker in range(4):
        for number in range(3):
            audio.write(root / f"p{speaker}/{number}.wav", utterance(5, "test", speaker, number, 1.5, RATE), RATE)
    return root


@pytest.fixture(scope="module")
def voices(trained, recordings, tmp_path_factory):
    """The first two recordings of each speaker, enrolled."""
    folder = tmp_path_factory.mktemp("voices")
    for speaker in range(4):
        enroll(trainer_in(folder), *trained, str(recordings / f"p{speaker}/[01].wav"), f"p{speaker}", folder / VOICES)
    return Voices.load(folder / VOICES, trained[1])


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    monkeypatch.setattr(verifying, "PICTURED", 0)


def test_the_same_speaker_is_likelier_than_another(trained, recordings, voices, tmp_path):
    rows = verify(trainer_in(tmp_path), *trained, str(recordings / "*/2.wav"), None, voices, far=0.1).rows
    assert [(row["file"], row["enrolment"]) for row in rows] == [(f"p{one}/2.wav", f"p{other}") for one in range(4) for other in range(4)]
    same, other = ([row["probability"] for row in rows if row["file"].startswith(row["enrolment"]) is is_same] for is_same in (True, False))
    assert sum(same) / len(same) > sum(other) / len(other)


@pytest.mark.parametrize("backend", ["cosine", "cosine_asnorm"])
def test_a_pair_has_its_score_its_probability_and_its_decision(trained, recordings, tmp_path, backend):
    module, scorer = trained
    files = [recordings / name for name in ("p0/0.wav", "p0/1.wav", "p1/2.wav")]
    vectors = [module(audio.read(file, RATE)[None])[0].double() - scorer.mean for file in files]
    units = [vector / vector.norm() for vector in vectors]
    model = (units[0] + units[1]) / 2
    (tmp_path / "ada").mkdir()
    for file in files[:2]:
        (tmp_path / "ada" / file.name).symlink_to(file)
    cosine = float(model @ units[2] / model.norm())
    if backend == "cosine_asnorm":
        cohort = scorer.cohort / scorer.cohort.norm(dim=1, keepdim=True)
        sides = [(cohort @ (side / side.norm())).sort(descending=True).values[: scorer.top] for side in (model, units[2])]
        cosine = sum((cosine - float(side.mean())) / float(side.std(unbiased=False)) for side in sides) / 2
    found = verify(trainer_in(tmp_path), module, scorer, str(tmp_path / "ada"), str(files[2]), far=0.05, prior=0.1, backend=backend)
    calibration = scorer.calibrations[backend]
    llr = calibration.scale * cosine + calibration.offset + float(calibration.weights @ torch.tensor([1.5, 3.0]).double().log())
    [row] = found.rows
    assert row["score"] == pytest.approx(cosine, abs=1e-4)
    assert row["llr"] == pytest.approx(llr, abs=1e-3)
    assert row["probability"] == pytest.approx(1 / (1 + 9 * math.exp(-llr)), abs=1e-4)
    assert (row["enrolment_seconds"], row["seconds"]) == (3, 1.5)
    below = calibration.impostors[calibration.impostors < row["threshold"]].max()
    reached = [float((calibration.impostors >= level).double().mean()) for level in (row["threshold"], below)]
    assert reached[0] <= 0.05 < reached[1]
    assert row["accepted"] is (row["llr"] >= row["threshold"])
    assert found.exit_code == (0 if row["accepted"] else REFUSED)
    assert json.loads((tmp_path / "artefacts/verify/verdicts.json").read_text()) == found.rows


def test_a_recording_compared_with_itself_is_accepted_and_remarked_on(trained, recordings, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(verifying, "PICTURED", 1)
    file = str(recordings / "p2/0.wav")
    found = verify(trainer_in(tmp_path), *trained, file, file, far=0.1, backend="cosine")
    assert (found.exit_code, found.rows[0]["accepted"]) == (0, True)
    assert found.rows[0]["score"] == pytest.approx(1, abs=1e-5)
    assert any("is itself a recording that" in remark for remark in found.remarks)
    out = capsys.readouterr().out
    assert "0.wav: the same speaker: probability" in out
    assert "accepted at a false-accept rate of 10 %" in out
    assert (tmp_path / "artefacts/verify/pictures/0.wav.png").is_file()


def test_the_exit_code_tells_whether_every_recording_is_accepted_as_somebody(trained, voices, recordings, tmp_path):
    found = verify(trainer_in(tmp_path), *trained, str(recordings), None, voices, far=0.1)
    accepted = {row["file"] for row in found.rows if row["accepted"]}
    assert found.summary == {"recordings": 12, "accepted": len(accepted), "pairs": 48}
    assert found.exit_code == (0 if len(accepted) == 12 else REFUSED)
    noise = torch.randn(2 * RATE, generator=torch.Generator().manual_seed(0)) / 8
    audio.write(tmp_path / "noise.wav", noise, RATE)
    found = verify(trainer_in(tmp_path), *trained, "p0", str(tmp_path / "noise.wav"), voices, far=0.02)
    assert ([row["enrolment"] for row in found.rows], found.exit_code) == (["p0"], REFUSED)


@pytest.mark.parametrize(
    ("probability", "accepted", "verdict"),
    [(0.98, True, "the same speaker"), (0.02, False, "another speaker"), (0.8, False, "in doubt"), (0.3, True, "in doubt")],
)
def test_the_verdict_is_said_in_words(probability, accepted, verdict):
    row = {"file": "a.wav", "enrolment": "ada", "probability": probability, "accepted": accepted, "llr": 1.234, "threshold": -0.5}
    decision = "accepted" if accepted else "refused"
    ratio = "(log-likelihood ratio 1.23, threshold -0.50)"
    assert sentence(row, 0.005) == f"a.wav and ada: {verdict}: probability {probability:.2f}; {decision} at a false-accept rate of 0.5 % {ratio}"


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"first": "absent.wav"}, FileNotFoundError, "absent.wav does not exist.*enrolled voices are: p0"),
        ({"first": "silent.wav"}, BadFileError, "silent.wav is silent"),
        ({"first": "p0"}, ValueError, r"an enrolled voice, and a file or folder too: write ./p0"),
        ({"second": None, "voices": None}, ValueError, "nobody is enrolled .* verify A.wav B.wav"),
        ({"far": 1e-6}, ValueError, "needs at least 1000000 impostor trials.*--data.held_trials, or decide at a larger --far"),
        ({"far": 0.0}, ValueError, "far must lie between 0 and 1"),
        ({"prior": 1.0}, ValueError, "p_target must lie between 0 and 1"),
        ({"backend": "angle"}, ValueError, "no calibrated back-end 'angle'"),
    ],
    ids=["absent", "silent", "ambiguous", "nobody", "few-impostors", "far", "prior", "backend"],
)
def test_questions_without_an_answer_are_refused(trained, voices, tmp_path, monkeypatch, options, error, said):
    monkeypatch.chdir(tmp_path)
    audio.write(tmp_path / "good.wav", utterance(5, "test", 0, 0, 1.0, RATE), RATE)
    audio.write(tmp_path / "silent.wav", torch.zeros(RATE), RATE)
    (tmp_path / "p0").mkdir()
    given = {"first": "good.wav", "second": "good.wav", "voices": voices, "far": 0.1} | options
    with pytest.raises(error, match=said):
        verify(trainer_in(tmp_path), *trained, **given)


def test_poor_recordings_are_remarked_on(trained, recordings, tmp_path):
    audio.write(tmp_path / "poor.wav", 0.001 * utterance(5, "test", 0, 0, 0.6, RATE), RATE)
    found = verify(trainer_in(tmp_path), *trained, str(recordings / "p0/0.wav"), str(tmp_path / "poor.wav"), far=0.1)
    [remark] = [remark for remark in found.remarks if remark.startswith("poor.wav")]
    assert "s of speech, very quiet" in remark
    assert Heard(torch.zeros(1), 9.0, RATE, -20.0, 0.0, 1.0).remarks(RATE) == []
