import csv
import json
import math
import shutil
from itertools import groupby

import numpy as np
import pytest
import torch

from projects.rsknet import audio, embedding, hearing
from projects.rsknet.calibration import Calibration
from projects.rsknet.embedding import embed_files, groups
from projects.rsknet.enrolling import Voices
from projects.rsknet.hearing import Models, compare, listen
from projects.rsknet.module import SpeakerVerification
from projects.rsknet.scoring import Scorer
from projects.rsknet.synthesis import utterance
from shared.checkpoints import weights_digest
from shared.cli import ProjectTrainer
from shared.data.files import BadFileError
from shared.quiet import silence

RATE, SCALE, OFFSET = 8000, 6.0, -2.0


def trainer_in(folder, verb="embed"):
    with silence():
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu", "devices": 1}
        trainer = ProjectTrainer(default_root_dir=folder, **quiet)
    trainer.verb = verb
    return trainer


@pytest.fixture(scope="module")
def module():
    return SpeakerVerification(net="tiny_rsknet_mtsp", options={"widths": [4, 6, 8], "embedding": 12}).eval()


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    """A folder of four utterances of several lengths in two folders, and a copy of one of them."""
    root = tmp_path_factory.mktemp("recordings")
    for speaker in range(2):
        for number, seconds in enumerate((1.5, 0.9)):
            audio.write(root / f"p{speaker}/{number}.wav", utterance(0, "test", speaker, number, seconds, RATE), RATE)
    shutil.copy(root / "p0/0.wav", root / "copy.wav")
    return root


@pytest.fixture(scope="module")
def vectors(module, recordings):
    """Embeddings of the recordings, each by itself, in the order of the names."""
    names = ("copy.wav", "p0/0.wav", "p0/1.wav", "p1/0.wav", "p1/1.wav")
    return {name: module(audio.read(recordings / name, RATE)[None])[0] for name in names}


@pytest.fixture(scope="module")
def scorer(module, vectors):
    zeros = torch.zeros(2, 2, dtype=torch.float64)
    calibration = Calibration(SCALE, OFFSET, zeros[0], zeros, zeros[:1], (torch.linspace(-9, 4, 200, dtype=torch.float64),))
    mean = torch.stack(list(vectors.values())).double().mean(0)
    return Scorer(mean, torch.eye(12, dtype=torch.float64), weights_digest(module.net), calibrations={"cosine": calibration})


@pytest.fixture(scope="module")
def embedded(module, recordings, scorer, tmp_path_factory):
    """What `embed_files` found, its folder and the voices that it was given."""
    runs = tmp_path_factory.mktemp("runs")
    heard = dict(listen(trainer_in(runs), module, {"a": recordings / "p1/0.wav", "b": recordings / "p1/1.wav"}))
    voices = Voices.none(scorer).with_recordings(scorer, "ada", {"a": heard["a"]}).with_recordings(scorer, "bea", {"b": heard["b"]})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embedding, "PICTURED", 1)
        found = embed_files(trainer_in(runs), module, scorer, str(recordings), voices, "cosine")
    return found, runs / "artefacts" / "embed"


def unit_of(vectors, scorer):
    centred = np.stack([vector.double().numpy() for vector in vectors.values()]) - scorer.mean.numpy()
    return centred / np.linalg.norm(centred, axis=1, keepdims=True)


# ---- what is written


def test_embeddings_are_those_of_each_recording_by_itself(embedded, vectors, scorer):
    with np.load(embedded[1] / "embeddings.npz", allow_pickle=False) as kept:
        assert kept["names"].tolist() == list(vectors)
        assert (kept["embeddings"].dtype, kept["unit"].dtype) == (np.float32, np.float32)
        np.testing.assert_allclose(kept["embeddings"], np.stack(list(vectors.values())), atol=1e-5)
        np.testing.assert_allclose(kept["unit"], unit_of(vectors, scorer), atol=1e-4)


def test_each_recording_is_told_what_it_is_most_like(embedded, vectors, scorer):
    found, folder = embedded
    cosines = (units := unit_of(vectors, scorer)) @ units.T
    likely = 1 / (1 + np.exp(-(SCALE * cosines + OFFSET)))
    np.fill_diagonal(likely, -1)
    for row, name, chances in zip(found.rows, vectors, likely, strict=True):
        assert (row["file"], row["nearest"]) == (name, list(vectors)[int(chances.argmax())])
        assert row["probability"] == pytest.approx(chances.max(), abs=1e-4)
        assert row["magnitude"] == pytest.approx(float(vectors[name].norm()), rel=1e-4)
    assert found.rows[1]["remarks"].endswith("same content as copy.wav")
    assert [found.rows[place]["voice"] for place in (3, 4)] == ["ada", "bea"]
    assert found.rows[3]["voice_probability"] == pytest.approx(1 / (1 + math.exp(-SCALE - OFFSET)), abs=1e-6)
    assert json.loads((folder / "files.json").read_text()) == found.rows
    assert [row["file"] for row in csv.DictReader((folder / "files.csv").open())] == list(vectors)


def test_pictures_are_drawn(embedded):
    pictures = sorted(path.relative_to(embedded[1]).as_posix() for path in embedded[1].rglob("*.png"))
    assert pictures == ["pictures/copy.wav.png", "similarity.png"]


def test_groups_are_clusters_of_average_linkage():
    rng = np.random.default_rng(0)
    likely = rng.uniform(0, 0.6, (9, 9)) + 0.5 * (np.arange(9)[:, None] % 3 == np.arange(9) % 3)
    likely = np.minimum((likely + likely.T) / 2, 1)
    np.fill_diagonal(likely, 1)
    clusters = [{place} for place in range(9)]
    while len(clusters) > 1:  # by its definition: the pair of clusters of the largest mean probability is joined
        pairs = [(np.mean([likely[a, b] for a in one for b in other]), one, other) for one in clusters for other in clusters if min(one) < min(other)]
        best, one, other = max(pairs, key=lambda pair: pair[0])
        if best < 0.5:
            break
        clusters = [cluster for cluster in clusters if cluster not in (one, other)] + [one | other]
    numbers, order = groups(likely)
    assert {frozenset(np.flatnonzero(np.array(numbers) == number).tolist()) for number in numbers} == {frozenset(cluster) for cluster in clusters}
    assert list(dict.fromkeys(numbers)) == list(range(1, len(clusters) + 1))
    assert sorted(order) == list(range(9))
    assert len(list(groupby(numbers[place] for place in order))) == len(clusters)  # each stands together


def test_many_recordings_are_compared_in_parts_with_the_same_result(scorer, monkeypatch):
    rng = torch.Generator().manual_seed(0)
    vectors = [torch.randn(count, 12, generator=rng).double() for count in (7, 5)]
    sides = [Models(own, own[:, :0], torch.ones(len(own)).long(), torch.ones(len(own)).double()) for own in vectors]
    whole = compare(scorer, "cosine", *sides)
    monkeypatch.setattr(hearing, "_PAIRS", 11)
    parts = compare(scorer, "cosine", *sides)
    assert whole[0].shape == (7, 5)
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-12)
    one = torch.nn.functional.cosine_similarity(sides[0].vectors[3], sides[1].vectors[2], dim=0)
    assert float(whole[0][3, 2]) == pytest.approx(float(one), abs=1e-12)


# ---- what an earlier run did


def test_what_an_interrupted_run_embedded_is_not_embedded_again(module, recordings, scorer, tmp_path, monkeypatch, capsys):
    done = []
    monkeypatch.setattr(embedding, "PICTURED", 1)
    monkeypatch.setattr(embedding, "log_figure", lambda *given: None)

    def broken(*given):
        for number, pair in enumerate(listen(*given)):
            if number == 2:
                raise KeyboardInterrupt
            yield pair

    def counted(*given):
        for pair in listen(*given):
            done.append(pair[0])
            yield pair

    def again(**changes):
        done.clear()
        trainer = trainer_in(tmp_path)
        trainer.is_forced = changes.get("force", False)
        rows = embed_files(trainer, module, scorer, str(recordings), None, "cosine").rows
        return [(row["file"], row["nearest"], row["group"], pytest.approx(row["probability"], abs=1e-4)) for row in rows]

    monkeypatch.setattr(embedding, "listen", broken)
    with pytest.raises(KeyboardInterrupt):
        again()
    monkeypatch.setattr(embedding, "listen", counted)
    rows = again()
    assert len(done) == 2  # of four contents
    assert "2 of 4 recordings were embedded already" in capsys.readouterr().out
    assert again() == rows
    assert done == []
    assert again(force=True) == rows
    assert len(done) == 4
    (tmp_path / "artefacts/embed/embeddings.npz").write_bytes(b"PK\x03\x04 damaged")
    assert again() == rows
    assert len(done) == 4


def test_a_single_recording_is_embedded(module, recordings, scorer, tmp_path, capsys):
    found = embed_files(trainer_in(tmp_path), module, scorer, str(recordings / "p0/1.wav"), None, "cosine")
    assert [(row["file"], row["nearest"], row["group"]) for row in found.rows] == [("1.wav", None, 1)]
    assert not (tmp_path / "artefacts/embed/similarity.png").exists()
    assert (tmp_path / "artefacts/embed/pictures/1.wav.png").is_file()
    assert "1 recordings; the table" in capsys.readouterr().out


# ---- what spoils a recording


def test_recordings_without_speech_are_neither_compared_nor_grouped(module, recordings, scorer, tmp_path, monkeypatch):
    monkeypatch.setattr(embedding, "PICTURED", 1)
    for name in ("constant", "copy"):
        audio.write(tmp_path / "in" / f"{name}.wav", torch.full((2 * RATE,), 0.5), RATE)
    stale = tmp_path / "artefacts/embed/pictures/stale.png"
    stale.parent.mkdir(parents=True)
    stale.touch()
    found = embed_files(trainer_in(tmp_path), module, scorer, str(tmp_path / "in"), None, "cosine")
    assert {(row["nearest"], row["probability"], row["group"]) for row in found.rows} == {(None, None, None)}
    for name in ("p0/0.wav", "p1/0.wav"):
        (tmp_path / "in" / name.replace("/", "-")).symlink_to(recordings / name)
    found = embed_files(trainer_in(tmp_path), module, scorer, str(tmp_path / "in"), None, "cosine")
    assert [row["nearest"] for row in found.rows] == [None, None, "p1-0.wav", "p0-0.wav"]
    assert [row["group"] is None for row in found.rows] == [True, True, False, False]
    assert found.rows[0]["remarks"] == "only 0.0 s of speech, too little to be judged"
    assert not stale.exists()
    assert (tmp_path / "artefacts/embed/embeddings.npz").stat().st_mode & 0o777 == 0o600


def test_clipping_is_that_of_the_worst_channel(module, tmp_path):
    import soundfile

    noise = torch.randn(RATE, 2, generator=torch.Generator().manual_seed(0)).clamp(-1, 1) * torch.tensor([0.1, 1.0])
    soundfile.write(tmp_path / "stereo.wav", noise.numpy(), RATE)
    [(_, heard)] = listen(trainer_in(tmp_path), module, {"stereo": tmp_path / "stereo.wav"})
    assert heard.clipped == pytest.approx(float((noise[:, 1].abs() >= 0.999).float().mean()), abs=1e-6)


def test_level_clipping_speech_and_rate_are_measured(module, tmp_path):
    time = torch.arange(RATE * 2) / RATE
    sine = torch.sin(2 * math.pi * 440 * time)
    audio.write(tmp_path / "sine.wav", 0.5 * sine, RATE)
    audio.write(tmp_path / "clipped.wav", (2 * sine).clamp(-1, 1), RATE)
    audio.write(tmp_path / "quiet.wav", 0.001 * sine, RATE)
    audio.write(tmp_path / "narrow.wav", (2 * sine).clamp(-1, 1)[: RATE // 2], RATE // 2)
    audio.write(tmp_path / "pause.wav", torch.where(time < 0.5, 0.5 * sine, 1e-4 * sine), RATE)
    heard = dict(listen(trainer_in(tmp_path), module, {path.stem: path for path in tmp_path.glob("*.wav")}))
    assert heard["sine"].level == pytest.approx(10 * math.log10(0.125), abs=0.01)
    assert heard["quiet"].level == pytest.approx(10 * math.log10(0.5e-6), abs=0.2)  # of 16 bits
    at_the_limit = 1 - 2 / math.pi * math.asin(0.999 / 2)  # of a sine of twice full scale
    assert heard["clipped"].clipped == pytest.approx(at_the_limit, abs=0.01)
    assert heard["narrow"].clipped == pytest.approx(at_the_limit, abs=0.01)  # of the file, not of what is resampled
    assert (heard["sine"].clipped, heard["sine"].seconds, heard["narrow"].rate) == (0, 2, RATE // 2)
    assert heard["pause"].speech == pytest.approx(0.25, abs=0.04)
    said = {name: "; ".join(one.remarks(RATE)) for name, one in heard.items()}
    assert said["sine"] == ""
    assert said["quiet"].startswith("very quiet, -63 dBFS")
    assert said["clipped"] == f"{at_the_limit:.0%} of the samples are clipped"
    assert "recorded at 4000 Hz, so that the band from 2000 to 4000 Hz is empty" in said["narrow"]
    assert said["pause"] == "only 0.5 s of speech"


@pytest.mark.parametrize(
    ("path", "backend", "error", "said"),
    [
        ("absent", "cosine", FileNotFoundError, "absent does not exist"),
        ("silent.wav", "cosine", BadFileError, "silent.wav is silent"),
        ("short.wav", "cosine", BadFileError, "at least 0.025 s"),
        ("text.wav", "cosine", BadFileError, "not a recording"),
        ("silent.wav", "plda", ValueError, "no calibrated back-end 'plda', but cosine: .* --backend"),
    ],
    ids=["absent", "silent", "short", "text", "backend"],
)
def test_what_cannot_be_embedded_is_refused_before_any_work(module, scorer, tmp_path, path, backend, error, said):
    audio.write(tmp_path / "silent.wav", torch.zeros(RATE), RATE)
    audio.write(tmp_path / "short.wav", torch.ones(100) / 2, RATE)
    (tmp_path / "text.wav").write_text("no sound")
    with pytest.raises(error, match=said):
        embed_files(trainer_in(tmp_path / "runs"), module, scorer, str(tmp_path / path), None, backend)
    assert not (tmp_path / "runs" / "artefacts").exists()
