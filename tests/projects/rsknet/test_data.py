"""Who is trained on, held out and tested on, from drawn speakers and from files."""

from collections import Counter

import pytest
import torch
from helpers.voices import pair_lines, write_kaldi, write_sitw, write_speakers, write_voxceleb

from projects.rsknet.augmentation import Augmentation
from projects.rsknet.data import BACKGROUND, SpeakerData
from projects.rsknet.synthesis import utterance

FEW = {"held_speakers": 2, "held_trials": 8, "batch_size": 2}
SAMPLES = 800  # at 16 kHz: 50 ms


def write_folder(root):
    write_speakers(root / "train", ["anna", "berta", "carl", "dora"], samples=SAMPLES)
    write_speakers(root / "test", ["emil", "frida"], samples=SAMPLES)


def write_kaldi_root(root):
    write_kaldi(root / "train", ["s1", "s2", "s3", "s4"])
    write_kaldi(root / "test", ["t1", "t2"])


LAYOUTS = {
    "voxceleb": lambda root: write_voxceleb(root, SAMPLES),
    "kaldi": write_kaldi_root,
    "folder": write_folder,
}


@pytest.fixture(scope="module")
def vox(tmp_path_factory):
    """A miniature of both VoxCelebs, with SITW beside them."""
    root = tmp_path_factory.mktemp("vox")
    write_voxceleb(root / "vox", SAMPLES)
    write_sitw(root / "sitw", samples=SAMPLES)
    return root


def drawn(**options):
    sizes = {"speakers": 3, "utterances": 2, "test_speakers": 2, "test_utterances": 2, "length": 0.3, "seconds": 0.2}
    return SpeakerData(**(FEW | sizes | options))


# ---- who is where


def test_no_drawn_speaker_is_in_two_parts():
    data = drawn()
    tested = {name.split("/")[0] for name in data.test.names}
    parts = [set(data.train_speakers), set(data.held_names), tested]
    assert [len(part) for part in parts] == [3, 2, 2]
    assert len(set.union(*parts)) == 7
    assert data.trials[0].files == tuple(sorted(data.test.names))
    assert len(data.trials[0]) == 4 * 3 // 2
    for split, recordings in (("train", data.train), ("held", data.held), ("test", data.test)):
        for index in (0, 3):
            assert torch.equal(recordings.read(index), utterance(0, split, index // 2, index % 2, 0.3, 8000)), "the voice of the split's speaker"


@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_no_speaker_of_files_is_in_two_parts(tmp_path, layout):
    LAYOUTS[layout](tmp_path)
    data = SpeakerData(layout, str(tmp_path), **FEW)
    parts = [set(data.train_speakers), set(data.held_names), set(data.corpus.speakers.values())]
    assert all(parts)
    assert sum(map(len, parts)) == len(set.union(*parts))
    assert len(parts[1]) == 2
    assert len(data.train) == len(data.train_speakers)
    assert set(data.held_trials.files) <= set(data.held.names)
    assert set(data.test.names) == {name for trials in data.trials for name in trials.files}
    for recordings in (data.train, data.held, data.test):
        assert len(recordings.read(0)) == recordings.samples(0) > 0


def test_every_recording_of_files_has_the_label_of_its_speaker(vox):
    data = SpeakerData("voxceleb", str(vox / "vox"), **FEW, corpora="both", lists=["Vox1-O"])
    speakers = sorted(set(data.train_speakers))
    assert [name.split("/")[0] for name in data.train.names] == list(data.train_speakers)
    assert [speakers[label] for label in data.crops.labels] == list(data.train_speakers)
    assert [one.speaker for one in data._held_utterances] == [name.split("/")[0] for name in data.held.names] == data.held_names


def test_a_training_list_says_what_to_learn_from(vox, tmp_path):
    lines = [f"{speaker} {speaker}/vidA/00001.wav\n" for speaker in ("id00012", "id00015", "id00016", "id10001")]
    (tmp_path / "train.txt").write_text("".join(lines))
    options = {"root": str(vox / "vox"), "lists": ["Vox1-O"], "train_list": str(tmp_path / "train.txt")}
    data = SpeakerData("voxceleb", **options, **FEW)
    assert sorted([*data.train.names, *data.held.names]) == [line.split()[1] for line in lines]
    with pytest.raises(ValueError, match=r"data\.train_list is for data\.source voxceleb, not kaldi"):
        SpeakerData("kaldi", **options, **FEW)


def test_who_is_held_out_depends_on_the_seed(vox):
    held = [tuple(SpeakerData("voxceleb", str(vox / "vox"), **FEW, seed=seed).held_names) for seed in (0, 0, *range(1, 8))]
    assert held[0] == held[1]
    assert len(set(held)) == 3, "of three speakers"


def test_training_speakers_in_a_trial_list_are_refused(vox, tmp_path):
    with pytest.raises(ValueError, match=r"2 training speakers occur in the list Vox1-E.*train on voxceleb2 alone"):
        _ = SpeakerData("voxceleb", str(vox / "vox"), corpora="voxceleb1", **FEW).train
    assert SpeakerData("voxceleb", str(vox / "vox"), corpora="voxceleb1", lists=["Vox1-O"], **FEW).corpus.train
    write_speakers(tmp_path / "train", ["anna", "berta", "carl"])
    write_speakers(tmp_path / "test", ["carl", "emil"])
    with pytest.raises(ValueError, match="1 training speakers occur in the list test, such as carl"):
        _ = SpeakerData("folder", str(tmp_path), **FEW).crops


def test_speakers_of_voxceleb1_who_occur_in_sitw_are_not_trained_on(vox, tmp_path):
    options = {"root": str(vox / "vox"), "sitw": str(vox / "sitw"), "corpora": "both", "lists": ["Vox1-O"], **FEW}
    unknown = SpeakerData("voxceleb", **options)
    speakers = {one.speaker for one in unknown.corpus.train}
    assert speakers == {"id10001", "id10002", "id00012", "id00015", "id00016"}
    assert [trials.name for trials in unknown.trials] == ["Vox1-O", "SITW-dev", "SITW-eval"]
    assert sum("60 speakers of VoxCeleb1 occur in SITW" in remark for remark in unknown.remarks) == 2
    overlap = vox / "sitw" / "voxceleb1_sitw_overlap.txt"
    overlap.write_text("id10002\n")
    try:
        known = SpeakerData("voxceleb", **options)
        assert {one.speaker for one in known.corpus.train} == speakers - {"id10002"}
        assert not any("SITW" in remark for remark in known.remarks)
        assert len(known.test) == 8 + 2 * 6
    finally:
        overlap.unlink()


def test_sitw_alone_is_tested_on_only(vox):
    data = SpeakerData("sitw", str(vox / "sitw"), **FEW)
    assert [trials.name for trials in data.trials] == ["SITW-dev", "SITW-eval"]
    assert len(data.test.read(0)) == SAMPLES // 2
    with pytest.raises(ValueError, match=r"nothing to train on: expected .*enroll-core.lst"):
        _ = data.train


def test_speakers_without_trial_lists_are_trained_on_only(tmp_path):
    write_speakers(tmp_path, ["anna", "berta", "carl", "dora"])
    data = SpeakerData("folder", str(tmp_path), **FEW)
    assert len(set(data.train_speakers)) == 2
    assert data.trials == []


def test_what_makes_trials_easy_is_remarked(tmp_path):
    names = write_speakers(tmp_path / "test", ["emil", "frida"])
    write_speakers(tmp_path / "train", ["anna", "berta", "carl"])
    (tmp_path / "trials.txt").write_text("\n".join([*pair_lines(names), f"1 {names[0]} {names[0]}"]) + "\n")
    data = SpeakerData("folder", str(tmp_path), **FEW)
    assert data.corpus.tests
    assert sorted(data.remarks) == [
        "trials: 1 trials compare a file with itself; take them out",
        "trials: 4 of 13 target trials are within one session, and the microphone gives them away",
    ]


# ---- training


def test_crops_have_three_classes_a_speaker_where_speeds_are_speakers():
    data = drawn(speed=True, added="drawn", probability=0.5)
    assert (data.classes, drawn().classes) == (9, 3)
    assert isinstance(data.crops.augmentation, Augmentation)
    assert data.crops.augmentation.probability == 0.5
    assert data.crops[0]["waveform"].shape == (1600,)


def test_every_epoch_gives_each_recording_once_in_an_order_of_its_own():
    data = drawn(utterances=4)
    loader = data.train_dataloader()
    orders = []
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        keys = list(loader.sampler)
        assert sorted(keys) == list(range(12 * epoch, 12 * epoch + 12))
        orders.append([key - 12 * epoch for key in keys])
    assert orders[0] != orders[1]
    assert next(iter(loader))["waveform"].shape == (2, 1600)


def test_background_has_a_few_recordings_of_each_training_speaker():
    data = drawn(speakers=5, utterances=BACKGROUND + 7)
    indices, speakers = data.background()
    assert set(Counter(speakers).values()) == {BACKGROUND}
    assert len(set(indices)) == len(indices)
    assert [data.train_speakers[index] for index in indices] == speakers
    assert (indices, speakers) == drawn(speakers=5, utterances=BACKGROUND + 7).background()
    assert indices != drawn(speakers=5, utterances=BACKGROUND + 7, seed=1).background()[0]
    assert drawn(speakers=5, utterances=3).background()[0] == list(range(15)), "all, where there are few"


# ---- what is wrong


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": "nowhere"}, "data.source 'nowhere' is not known; choose one of: synthvox: drawn voices; voxceleb"),
        ({"seconds": 0.0}, "lengths in seconds are positive"),
        ({"length": -1.0}, "lengths in seconds are positive"),
        ({"held_speakers": 1}, "two speakers or more of each kind"),
        ({"speakers": 1}, "two speakers or more of each kind"),
        ({"test_utterances": 1}, "with two recordings or more"),
        ({"held_trials": 1}, "data.held_trials is at least 2"),
        ({"probability": 1.5}, "data.probability lies in"),
        ({"batch_size": 0}, "data.batch_size must be at least 1"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        drawn(**options)


def test_one_crop_makes_no_batch():
    with pytest.raises(ValueError, match=r"data.batch_size must be at least 2, two a process: batch norms average over its crops"):
        drawn(batch_size=1).setup("fit")


def test_more_held_out_speakers_than_there_are_are_refused(vox):
    with pytest.raises(ValueError, match="cannot hold out 3 of 3 speakers"):
        _ = SpeakerData("voxceleb", str(vox / "vox"), held_speakers=3).train


def test_sounds_from_files_need_their_folders(tmp_path):
    with pytest.raises(ValueError, match="sounds from files need the folder of MUSAN, of RIRS_NOISES, or of both"):
        _ = drawn(added="files").crops
    with pytest.raises(FileNotFoundError, match="no noise and no music and no speech in"):
        _ = drawn(added="files", musan=str(tmp_path)).crops
