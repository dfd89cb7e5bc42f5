import json
import math

import numpy as np
import pytest
import torch

from projects.rsknet import audio, verifying
from projects.rsknet.data import SpeakerData
from projects.rsknet.enrolling import VOICES, Voices, enroll
from projects.rsknet.figures import picture_name
from projects.rsknet.hearing import REFUSED, Heard
from projects.rsknet.judging import fit_scorer
from projects.rsknet.module import SpeakerVerification
from projects.rsknet.synthesis import utterance
from projects.rsknet.verifying import sentence, verify
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
    llr = calibration.scale * cosine + calibration.offset + float(calibration.weights @ torch.tensor([1.5, 1.5]).double().log())  # clamped
    [row] = found.rows
    assert row["score"] == pytest.approx(cosine, abs=1e-4)
    assert row["llr"] == pytest.approx(llr, abs=1e-3)
    assert row["probability"] == pytest.approx(1 / (1 + 9 * math.exp(-llr)), abs=1e-4)
    assert (row["enrolment_seconds"], row["seconds"]) == (3, 1.5)
    impostors = calibration.impostors[0]  # of whole recordings
    below = impostors[impostors < row["threshold"]].max()
    reached = [float((impostors >= level).double().mean()) for level in (row["threshold"], below)]
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
    [
        (0.98, True, "the same speaker"),
        (0.02, False, "another speaker"),
        (0.8, False, "in doubt"),
        (0.3, True, "in doubt"),
    ],
)
def test_the_verdict_is_said_in_words(probability, accepted, verdict):
    row = {"file": "a.wav", "enrolment": "ada", "probability": probability, "accepted": accepted, "llr": 1.234, "threshold": -0.5}
    row |= {"pair_far": 0.00125, "recording_far": 0.005, "reason": ""}
    decision = "accepted" if accepted else "refused"
    ratio = "(log-likelihood ratio 1.23, threshold -0.50)"
    said = f"a.wav and ada: {verdict}: probability {probability:.2f}; {decision} at a false-accept rate of 0.5 %"
    assert sentence(row) == f"{said} {ratio}"
    assert sentence(row, 4) == f"{said} among 4 people, 0.125 % for each {ratio}"
    assert "probability >0.99;" in sentence(row | {"probability": 0.9999})
    assert "probability <0.01;" in sentence(row | {"probability": 1e-9})
    assert sentence(row | {"reason": "only 0.0 s of speech"}) == "a.wav and ada: not judged: only 0.0 s of speech"


def test_recordings_without_speech_are_not_judged(trained, recordings, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(verifying, "PICTURED", 5)
    folder, good = tmp_path / "given", str(recordings / "p0/0.wav")
    audio.write(folder / "constant.wav", torch.full((2 * RATE,), 0.5), RATE)
    audio.write(folder / "short.wav", utterance(5, "test", 0, 0, 0.1, RATE), RATE)
    stale = tmp_path / "artefacts/verify/pictures/stale.png"
    stale.parent.mkdir(parents=True)
    stale.touch()
    for first, second in ((good, folder), (folder / "constant.wav", good), (folder, folder)):
        found = verify(trainer_in(tmp_path), *trained, str(first), str(second), far=0.1)
        assert (found.exit_code, found.summary["accepted"]) == (REFUSED, 0)
        for row in found.rows:
            assert (row["score"], row["llr"], row["probability"], row["accepted"]) == (None, None, None, False)
            assert row["reason"].startswith("only 0.")
    assert "constant.wav and " in (out := capsys.readouterr().out)
    assert ": not judged: only 0.0 s of speech" in out
    assert not stale.exists()
    (folder / "good.wav").symlink_to(good)
    [row] = verify(trainer_in(tmp_path), *trained, str(folder), str(recordings / "p0/1.wav"), far=0.1).rows
    assert (row["reason"], row["enrolment_seconds"]) == ("", 1.5)  # of the good one alone


def test_a_long_name_gets_a_picture_of_a_shorter_name(trained, recordings, tmp_path, monkeypatch):
    monkeypatch.setattr(verifying, "PICTURED", 1)
    long = tmp_path / ("a" + "é" * 122 + ".wav")
    long.symlink_to(recordings / "p0/1.wav")
    verify(trainer_in(tmp_path), *trained, str(recordings / "p0/0.wav"), str(long), far=0.1)
    [picture] = (tmp_path / "artefacts/verify/pictures").iterdir()
    assert picture.name.startswith("a" + "é" * 74 + "-")
    assert len(picture.name.encode()) <= 150 + 9 + 4
    assert picture_name("p0/short.wav") == "pictures/p0/short.wav"
    assert picture_name("a" * 240 + "1.wav") != picture_name("a" * 240 + "2.wav")


def test_a_rate_is_shared_among_enrolled_people_where_there_are_impostors_enough(trained, voices, recordings, tmp_path, capsys):
    calibration = trained[1].calibrations["cosine_asnorm"]
    whole = calibration.impostors[0].numpy()
    assert 20 <= calibration.fewest < 400
    shared = verify(trainer_in(tmp_path), *trained, str(recordings / "p0/2.wav"), None, voices, far=0.2)
    assert {(row["pair_far"], row["recording_far"]) for row in shared.rows} == {(0.05, 0.2)}
    for row in shared.rows:
        assert (whole >= row["threshold"]).mean() <= 0.05 < (whole >= np.nextafter(row["threshold"], -np.inf)).mean()
    assert "at a false-accept rate of 20 % among 4 people, 5 % for each" in capsys.readouterr().out
    far = 1.5 / calibration.fewest
    alone = verify(trainer_in(tmp_path), *trained, str(recordings / "p0/2.wav"), None, voices, far=far)
    assert {row["pair_far"] for row in alone.rows} == {far}
    assert alone.rows[0]["recording_far"] == pytest.approx(1 - (1 - far) ** 4)
    assert any("a stranger is accepted as one of 4 people at a rate of about" in remark for remark in alone.remarks)
    assert f"{math.ceil(4 / far)} impostor trials of each kind" in capsys.readouterr().out
    [row] = verify(trainer_in(tmp_path), *trained, "p0", str(recordings / "p0/2.wav"), voices, far=far).rows
    assert row["pair_far"] == row["recording_far"] == far


def test_durations_beyond_the_calibration_are_remarked_on(trained, voices, recordings, tmp_path):
    span = trained[1].calibrations["cosine_asnorm"].span.exp()
    torch.testing.assert_close(span, torch.tensor([[1.0, 1], [1.5, 1.5]]).double())
    for seconds, is_beyond in ((0.6, False), (2.9, False), (3.2, True)):
        audio.write(tmp_path / "long.wav", utterance(5, "test", 0, 0, seconds, RATE), RATE)
        found = verify(trainer_in(tmp_path), *trained, str(recordings / "p0/0.wav"), str(tmp_path / "long.wav"), far=0.1)
        said = [remark for remark in found.remarks if f"{seconds} s against 1.5 s" in remark and "knows 1.0 to 1.5 s" in remark]
        assert len(said) == is_beyond


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"first": "absent.wav"}, FileNotFoundError, "absent.wav does not exist.*enrolled voices are: p0"),
        ({"first": "silent.wav"}, BadFileError, "silent.wav is silent"),
        ({"first": "p0"}, ValueError, r"an enrolled voice, and a file or folder too: write ./p0"),
        ({"second": None, "voices": None}, ValueError, "nobody is enrolled .* verify A.wav B.wav"),
        ({"first": "eva", "voices": None}, FileNotFoundError, "eva does not exist.*; nobody is enrolled either: enrol people by enroll A.wav --name"),
        ({"first": " p1", "second": None}, FileNotFoundError, "p1 does not exist.*; it is an enrolled voice: .* verify ' p1' RECORDING"),
        ({"first": "p1", "second": "p2"}, ValueError, "'p2' is an enrolled voice and no recording; .*: verify 'p2' RECORDING"),
        ({"second": "p2"}, ValueError, "the voice comes first, recordings second: verify 'p2' good.wav"),
        ({"first": "people"}, ValueError, r"people has recordings in several folders \(a, b\).*'people/\*/\*.wav'"),
        ({"far": 1e-6}, ValueError, "needs at least 1000000 impostor trials.*--data.held_trials, or decide at a larger --far"),
        ({"far": 0.0}, ValueError, "far must lie between 0 and 1"),
        ({"prior": 1.0}, ValueError, "prior must lie between 0 and 1.*--prior"),
        ({"prior": 0.0, "first": "absent.wav"}, ValueError, "prior must lie between 0 and 1"),
        ({"backend": "angle"}, ValueError, "no calibrated back-end 'angle'"),
    ],
    ids=[
        "absent",
        "silent",
        "ambiguous",
        "nobody",
        "unknown-name",
        "name-alone",
        "two-names",
        "name-second",
        "several",
        "few-impostors",
        "far",
        "prior-one",
        "prior-zero",
        "backend",
    ],
)
def test_questions_without_an_answer_are_refused(trained, voices, tmp_path, monkeypatch, options, error, said):
    monkeypatch.chdir(tmp_path)
    audio.write(tmp_path / "good.wav", utterance(5, "test", 0, 0, 1.0, RATE), RATE)
    audio.write(tmp_path / "silent.wav", torch.zeros(RATE), RATE)
    (tmp_path / "p0").mkdir()
    for person in "ab":
        audio.write(tmp_path / "people" / person / "0.wav", torch.ones(RATE) / 2, RATE)
    given = {"first": "good.wav", "second": "good.wav", "voices": voices, "far": 0.1} | options
    with pytest.raises(error, match=said):
        verify(trainer_in(tmp_path), *trained, **given)


def test_poor_recordings_are_remarked_on(trained, recordings, tmp_path):
    audio.write(tmp_path / "poor.wav", 0.01 * utterance(5, "test", 0, 0, 0.8, RATE), RATE)
    found = verify(trainer_in(tmp_path), *trained, str(recordings / "p0/0.wav"), str(tmp_path / "poor.wav"), far=0.1)
    [remark] = [remark for remark in found.remarks if remark.startswith("poor.wav")]
    assert "s of speech, very quiet" in remark
    assert Heard(torch.zeros(1), 9.0, RATE, -20.0, 0.0, 1.0).remarks(RATE) == []
