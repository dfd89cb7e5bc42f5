import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from projects.rsknet import audio
from projects.rsknet.calibration import Calibration
from projects.rsknet.enrolling import VOICES, Voices, clean_name, enroll, find_voices, people_of, remove_voice
from projects.rsknet.hearing import REFUSED, Heard, Models, compare
from projects.rsknet.lists import Trials
from projects.rsknet.module import SpeakerVerification
from projects.rsknet.plda import Plda
from projects.rsknet.scoring import Scorer, unit
from shared.checkpoints import weights_digest
from shared.cli import ProjectTrainer
from shared.data.files import BadFileError
from shared.data.inputs import Input
from shared.quiet import silence
from shared.runs import digest

RATE, SIZE = 8000, 12


def trainer_in(folder):
    with silence():
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu", "devices": 1}
        trainer = ProjectTrainer(default_root_dir=folder, **quiet)
    trainer.verb = "enroll"
    return trainer


def sound(kind, number):
    """A buzz, noise or chirps, which random networks tell apart as trained ones tell speakers; two seconds."""
    rng = torch.Generator().manual_seed(number)
    time = torch.arange(2 * RATE) / RATE
    noise = torch.randn(2 * RATE, generator=rng)
    sounds = {
        "buzz": sum(torch.sin(2 * math.pi * (110 + number) * partial * time) for partial in range(1, 30)) / 60,
        "noise": 0.2 * noise,
        "chirp": torch.sin(2 * math.pi * (300 + number) * (time % 0.1) * 30 * time) / 2,
    }
    return (sounds[kind] + 0.001 * noise).clamp(-1, 1)


def write(root, **people):
    """Write recordings of people, `name=["buzz", "noise"]`, each of its own number."""
    for person, kinds in people.items():
        for number, kind in enumerate(kinds):
            audio.write(root / person / f"{number}.wav", sound(kind, number), RATE)
    return root


@pytest.fixture(scope="module")
def module():
    return SpeakerVerification(net="tiny_resnet", options={"widths": [4, 6, 8], "embedding": SIZE}).eval()


@pytest.fixture(scope="module")
def scorer(module):
    kinds, numbers = ("buzz", "noise", "chirp"), (0, 1, 3)
    vectors = torch.stack([module(sound(kind, number)[None])[0] for kind in kinds for number in numbers]).double()
    cosines = (units := unit(vectors, vectors.mean(0))) @ units.T
    is_same = torch.block_diag(*[torch.ones(3, 3)] * 3).bool()
    middle = float(cosines[is_same].min() + cosines[~is_same].max()) / 2  # whatever random weights make of the sounds
    impostors = torch.linspace(-9, 4, 200, dtype=torch.float64)
    zeros = torch.zeros(2, 2, dtype=torch.float64)
    calibration = Calibration(100.0, -100.0 * middle, zeros[0], zeros, zeros[:1], (impostors,))
    return Scorer(vectors.mean(0), torch.eye(SIZE, dtype=torch.float64), weights_digest(module.net), calibrations={"cosine": calibration})


def units(module, scorer, files):
    """Embeddings of files, centred and of length 1, each by itself."""
    centred = np.stack([module(audio.read(file, RATE)[None])[0].double().numpy() for file in files]) - scorer.mean.numpy()
    return centred / np.linalg.norm(centred, axis=1, keepdims=True)


# ---- the verb


def test_people_of_a_folder_are_enrolled_by_the_means_of_their_recordings(module, scorer, tmp_path, capsys):
    root = write(tmp_path / "people", ada=["buzz", "buzz", "buzz"], bea=["noise"])
    file = tmp_path / VOICES
    found = enroll(trainer_in(tmp_path), module, scorer, str(root), None, file, backend="cosine")
    voices = find_voices(tmp_path, None, scorer)
    assert (voices.names, voices.counts.tolist(), voices.seconds.tolist()) == (("ada", "bea"), [3, 1], [6, 2])
    files = sorted((root / "ada").iterdir())
    np.testing.assert_allclose(voices.vectors[0], units(module, scorer, files).mean(0), atol=1e-4)
    assert voices.digests[0] == tuple(digest(path) for path in files)
    assert [(row["name"], row["added"], row["nearest"]) for row in found.rows] == [("ada", 3, "bea"), ("bea", 1, "ada")]
    assert (found.remarks, found.exit_code) == ([], 0)
    assert json.loads((tmp_path / "artefacts/enroll/voices.json").read_text()) == found.rows
    out = capsys.readouterr().out
    assert "2 people are enrolled" in out
    assert "biometric" in out


def test_recordings_are_added_once_and_replaced_on_request(module, scorer, tmp_path):
    root, file = write(tmp_path / "people", ada=["buzz", "buzz", "buzz"]), tmp_path / VOICES
    files = sorted((root / "ada").iterdir())

    def again(path, **options):
        found = enroll(trainer_in(tmp_path), module, scorer, str(path), "ada", file, backend="cosine", **options)
        return found.rows[0]["added"], found.remarks, Voices.load(file, scorer)

    assert again(files[0])[0] == 1
    added, remarks, voices = again(root / "ada")
    assert (added, voices.counts.tolist(), voices.seconds.tolist()) == (2, [3], [6])
    assert "1 of 3 recordings have the content of others" in remarks[0]
    np.testing.assert_allclose(voices.vectors[0], units(module, scorer, files).mean(0), atol=1e-4)
    assert again(root / "ada")[0] == 0
    added, _, voices = again(files[2], replace=True)
    assert (added, voices.counts.tolist(), voices.digests) == (1, [1], ((digest(files[2]),),))
    np.testing.assert_allclose(voices.vectors[0], units(module, scorer, files[2:])[0], atol=1e-4)


def test_a_recording_of_someone_else_and_one_person_under_two_names_are_named(module, scorer, tmp_path, capsys):
    root, file = write(tmp_path / "people", ada=["buzz", "buzz", "noise", "buzz"]), tmp_path / VOICES
    found = enroll(trainer_in(tmp_path), module, scorer, str(root / "ada"), None, file, backend="cosine")
    assert len(found.remarks) == 1
    assert found.remarks[0].startswith("ada: 2.wav does not resemble the others (with ")
    (root / "ada/2.wav").unlink()
    enroll(trainer_in(tmp_path), module, scorer, str(root / "ada"), "ada", file, replace=True, backend="cosine")
    write(tmp_path / "other", eva=["chirp", "buzz"])
    (tmp_path / "other/eva/0.wav").unlink()
    found = enroll(trainer_in(tmp_path), module, scorer, str(tmp_path / "other"), None, file, backend="cosine")
    assert [remark.partition(":")[0] for remark in found.remarks] == ["ada and eva"]
    found = enroll(trainer_in(tmp_path), module, scorer, str(write(tmp_path / "chirps", ada=["chirp"])), None, file, backend="cosine")
    assert any(remark.startswith("ada: does not resemble what was enrolled under that name: ada/0.wav") for remark in found.remarks)
    assert found.exit_code == REFUSED
    assert "look at ada" in capsys.readouterr().out


def test_people_are_removed_and_the_file_with_the_last_of_them(module, scorer, tmp_path, capsys):
    file = tmp_path / VOICES
    enroll(trainer_in(tmp_path), module, scorer, str(write(tmp_path / "people", ada=["buzz"], bea=["noise"])), None, file, backend="cosine")
    with pytest.raises(ValueError, match="nobody is enrolled as 'eva'; enrolled are: ada, bea"):
        remove_voice(trainer_in(tmp_path), "eva", file)
    vectors = Voices.load(file, scorer).vectors
    assert [row["name"] for row in remove_voice(trainer_in(tmp_path), "ada", file).rows] == ["bea"]
    torch.testing.assert_close(Voices.load(file, scorer).vectors, vectors[1:], rtol=0, atol=0)
    tables = [tmp_path / "artefacts/enroll" / name for name in ("voices.csv", "voices.json")]
    assert all(table.is_file() for table in tables)
    remove_voice(trainer_in(tmp_path), " bea ", file)
    assert "the file is deleted" in (out := capsys.readouterr().out)
    assert "still hold the name: delete " in out
    assert not any(table.exists() for table in tables)
    assert not file.exists()
    assert find_voices(tmp_path, None, scorer) is None
    with pytest.raises(FileNotFoundError, match="enrol people with the verb enroll"):
        find_voices(tmp_path, str(file), scorer)


def test_a_recording_without_speech_is_refused_before_anything_is_saved(module, scorer, tmp_path):
    root, file = write(tmp_path / "people", ada=["buzz"], bea=["noise"]), tmp_path / VOICES
    audio.write(root / "bea/1.wav", torch.full((RATE,), 0.5), RATE)
    with pytest.raises(ValueError, match=r"bea/1.wav \(only 0.0 s of speech\): too little speech; give longer recordings"):
        enroll(trainer_in(tmp_path), module, scorer, str(root), None, file, backend="cosine")
    assert not file.exists()


def test_names_that_differ_in_capitals_only_are_refused(module, scorer, tmp_path):
    root, file = write(tmp_path / "people", ada=["buzz"]), tmp_path / VOICES
    enroll(trainer_in(tmp_path), module, scorer, str(root), None, file, backend="cosine")
    before = file.read_bytes()
    with pytest.raises(ValueError, match=r"'ADA' differs from 'ada' in capitals only: .*--name 'ada'"):
        enroll(trainer_in(tmp_path), module, scorer, str(root / "ada"), "ADA", file, backend="cosine")
    assert file.read_bytes() == before
    assert clean_name(" Zoe\u0308  Ann") == "Zo\u00eb Ann"


@pytest.mark.parametrize(
    ("names", "path", "name", "expected"),
    [
        (["a/1.wav", "a/x/2.wav", "b/3.wav"], "", None, {"a": 2, "b": 1}),
        (["a/1.wav", "b/3.wav"], "", "eva", {"eva": 2}),
        (["1.wav", "2.wav"], "", None, {"people": 2}),
        (["eva.wav"], "eva.wav", None, {"eva": 1}),
        (["1.wav"], "1.wav", "eva", {"eva": 1}),
        (["1.wav"], "1.wav", None, "named by a number: .* --name"),
        (["1.wav"], "", " Zoe\u0308  \t Ann ", {"Zo\u00eb Ann": 1}),
        (["a/1.wav", "2.wav"], "", None, "recordings beside folders"),
        (["1.wav"], "*.wav", None, "is a pattern: .* --name"),
        (["1.wav"], "", "a/b", "cannot be a person's name"),
        (["1.wav"], "", " ", "cannot be a person's name"),
    ],
    ids=["folders", "named", "folder", "file", "numbered-named", "numbered", "composed", "mixed", "pattern", "slash", "blank"],
)
def test_who_speaks_is_told_by_folders_or_the_name(tmp_path, names, path, name, expected):
    root = tmp_path / "people"
    for own in names:
        (root / own).parent.mkdir(parents=True, exist_ok=True)
        (root / own).touch()
    inputs = [Input(root / own, own) for own in names]
    if isinstance(expected, dict):
        assert {person: len(own) for person, own in people_of(inputs, str(root / path), name).items()} == expected
    else:
        with pytest.raises(ValueError, match=expected):
            people_of(inputs, str(root / path), name)


# ---- the file


@pytest.fixture
def voices(scorer):
    rng = torch.Generator().manual_seed(0)
    heard = {str(number): Heard(torch.randn(SIZE, generator=rng), 1.0 + number, RATE, -20.0, 0.0, 1.0) for number in range(3)}
    one = Voices.none(scorer).with_recordings(scorer, "ada", {name: heard[name] for name in "01"})
    return one.with_recordings(scorer, "Zoë", {"2": heard["2"]})


def test_voices_come_back_from_their_file_as_they_were(voices, scorer, tmp_path):
    voices.save(tmp_path / VOICES)
    back = Voices.load(tmp_path / VOICES, scorer)
    assert (back.names, back.digests, back.network, back.centre) == (voices.names, voices.digests, voices.network, voices.centre)
    torch.testing.assert_close(tuple(back.models), tuple(voices.models), rtol=0, atol=0)
    torch.testing.assert_close(compare(scorer, "cosine", back.models, back.models), compare(scorer, "cosine", voices.models, voices.models))
    assert back.only("Zoë").seconds.tolist() == [3]
    assert (voices.counts.tolist(), voices.seconds.tolist()) == ([2, 1], [3, 3])


def changed(path, change, **metadata):
    """Write the file anew with other tensors or metadata."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        about = file.metadata()
    save_file(change(load_file(path)), path, about | metadata)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda path: path.write_bytes(b"\x80\x04pickle"), "damaged or no safetensors file"),
        (lambda path: save_file({"x": torch.zeros(1)}, path), "holds no voices"),
        (lambda path: changed(path, dict, version="1"), "version 1; this code reads version 2: enrol again"),
        (lambda path: changed(path, dict, people="["), "missing or unreadable"),
        (lambda path: changed(path, lambda own: {name: own[name] for name in ("vectors", "projected", "counts")}), "'seconds'.* is missing"),
        (lambda path: changed(path, lambda own: own | {"counts": torch.tensor([1, 1])}), "do not fit"),
        (lambda path: changed(path, lambda own: own | {"vectors": own["vectors"] * math.nan}), "do not fit"),
        (lambda path: changed(path, lambda own: own | {"projected": torch.zeros(3, 0)}), "do not fit"),
        (lambda path: changed(path, dict, network="0123456789ab"), "voices of another network"),
        (lambda path: changed(path, dict, centre="0123456789ab"), "voices of another calibration"),
    ],
    ids=["pickle", "tensors", "version", "json", "lacking", "counts", "nan", "projected", "network", "centre"],
)
def test_other_files_are_refused(voices, scorer, tmp_path, spoil, said):
    path = tmp_path / VOICES
    voices.save(path)
    spoil(path)
    with pytest.raises(BadFileError, match=said):
        Voices.load(path, scorer)


def test_voices_score_as_their_files_do_by_every_back_end_and_belong_to_their_plda(tmp_path):
    rng = torch.Generator().manual_seed(3)
    speakers = torch.arange(40) // 4
    vectors = torch.randn(10, SIZE, generator=rng)[speakers] + 0.5 * torch.randn(40, SIZE, generator=rng)
    scorer = Scorer.fit(vectors, speakers, "net", top=5)
    for backend in scorer.backends:
        scores, truth = torch.randn(50, generator=rng) + torch.arange(50) % 2, torch.arange(50) % 2
        scorer = scorer.with_calibration(backend, Calibration.fit(scores, truth, torch.rand(50, 2, generator=rng)))
    heard = {str(number): Heard(vector, 1.0, RATE, -20.0, 0.0, 1.0) for number, vector in enumerate(vectors)}
    voices = Voices.none(scorer)
    for name, files in (("ada", "012"), ("bea", "45"), ("ada", "3")):
        voices = voices.with_recordings(scorer, name, {file: heard[file] for file in files})
    voices.save(tmp_path / VOICES)
    back, tests = Voices.load(tmp_path / VOICES, scorer), Models.of(scorer, [[heard[str(number)]] for number in range(6, 12)])
    embeddings = {name: one.vector for name, one in heard.items()}
    left, right = torch.cartesian_prod(torch.arange(2), torch.arange(6)).T
    trials = Trials("x", (("0", "1", "2", "3"), ("4", "5")), tuple(map(str, range(6, 12))), left, right, left == right)
    for backend in scorer.backends:
        expected = scorer.score_trials(backend, embeddings, trials).reshape(2, 6)
        torch.testing.assert_close(compare(scorer, backend, back.models, tests)[0], expected, rtol=1e-9, atol=1e-9)
    other = replace(scorer, plda=Plda.fit(scorer.side(vectors).units, speakers, dimensions=5))
    with pytest.raises(BadFileError, match="voices of another calibration"):
        Voices.load(tmp_path / VOICES, other)


def test_voices_are_kept_in_safetensors_only(voices, tmp_path):
    with pytest.raises(ValueError, match=r"kept in a .safetensors file, not in .*voices.pt"):
        voices.save(tmp_path / "voices.pt")
