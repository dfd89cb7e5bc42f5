"""Speakers that are trained and tested on are refused, and trials that are too easy are counted."""

from pathlib import Path

import pytest
import torch
from helpers.voices import write_sitw, write_voxceleb

from projects.rsknet.layouts import sitw, voxceleb
from projects.rsknet.leaks import check_leaks, hold_out, read_overlap, without_speakers
from projects.rsknet.lists import Trials, Utterance, all_pairs, session_of
from shared.data.files import BadFileError


def utterances(speakers, sessions=("a", "b"), files=2):
    names = [f"{speaker}/{session}/{file}.wav" for speaker in speakers for session in sessions for file in range(files)]
    return [Utterance(name, name.split("/")[0], session_of(name, name.split("/")[0]), Path(name)) for name in names]


def test_lists_of_all_voxceleb1_go_with_training_on_voxceleb2_alone(tmp_path):
    write_voxceleb(tmp_path)
    clean = voxceleb(tmp_path)
    remarks = check_leaks(clean.train, clean.tests, clean.speakers)
    assert [remark.split(": ")[0] for remark in remarks] == ["Vox1-O", "Vox1-E"]  # pairs of one video, counted below
    for train in ("voxceleb1", "both"):
        leaking = voxceleb(tmp_path, train)
        with pytest.raises(ValueError, match=r"2 training speakers occur in the list Vox1-E, such as id10001, id10002.*voxceleb2 alone"):
            check_leaks(leaking.train, leaking.tests, leaking.speakers)
        check_leaks(leaking.train, leaking.tests[:1], leaking.speakers)


def test_trials_within_a_session_and_of_a_file_with_itself_are_counted():
    spoken = utterances(["s1", "s2"])
    trials = all_pairs(spoken, "mine")
    speakers = {utterance.name: utterance.speaker for utterance in spoken}
    within = sum(a.speaker == b.speaker and a.session == b.session for place, a in enumerate(spoken) for b in spoken[place + 1 :])
    assert check_leaks([], [trials], speakers) == [
        f"mine: {within} of {trials.targets} target trials are within one session, and the microphone gives them away"
    ]
    itself = Trials(
        "itself",
        (("s1/a/0.wav",), ("s1/a/0.wav", "s1/a/1.wav")),
        ("s1/a/0.wav",),
        torch.tensor([0, 1]),
        torch.tensor([0, 0]),
        torch.tensor([True, True]),
    )
    assert check_leaks([], [itself], speakers) == ["itself: 1 trials compare a file with itself; take them out"]


def test_sessions_of_one_name_of_two_speakers_are_not_the_same():
    spoken = utterances(["s1", "s2"], ("a",), 1) + utterances(["s1"], ("b",), 1)
    assert check_leaks([], [all_pairs(spoken, "mine")], {utterance.name: utterance.speaker for utterance in spoken}) == []


def test_speakers_of_voxceleb1_in_sitw_are_dropped_or_warned_of(tmp_path):
    write_sitw(tmp_path, ("dev",))
    corpus, train = sitw(tmp_path, ("dev",)), utterances(["id10001", "id10002", "id00012"])
    assert read_overlap(tmp_path) == frozenset()
    (remark,) = check_leaks(train, corpus.tests, corpus.speakers)
    assert remark.startswith("SITW-dev: 60 speakers of VoxCeleb1 occur in SITW")
    assert check_leaks(utterances(["id00012"]), corpus.tests, corpus.speakers) == []
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists/voxceleb1_sitw_overlap.txt").write_text("id10002\nid10999\n")
    overlap = read_overlap(tmp_path)
    assert overlap == {"id10002", "id10999"}
    with pytest.raises(ValueError, match=r"1 training speakers occur in the list SITW-dev, such as id10002.*drop those of voxceleb1_sitw_overlap"):
        check_leaks(train, corpus.tests, corpus.speakers, overlap)
    assert check_leaks(without_speakers(train, overlap), corpus.tests, corpus.speakers, overlap) == []


def test_names_of_the_overlap_are_turned_into_numbers(tmp_path):
    (tmp_path / "voxceleb1_sitw_overlap.txt").write_text("Ann_Lee\r\nBob_May\n")
    with pytest.raises(BadFileError, match=r"2 names without a number, such as Ann_Lee, Bob_May: put VoxCeleb's vox1_meta\.csv beside it"):
        read_overlap(tmp_path)
    (tmp_path / "vox1_meta.csv").write_text("VoxCeleb1 ID\tVGGFace1 ID\tGender\nid10003\tBob_May\tm\nid10007\tAnn_Lee\tf\n")
    assert read_overlap(tmp_path) == {"id10003", "id10007"}


def test_held_out_speakers_depend_on_the_seed_and_not_on_the_order():
    train = utterances([f"s{number}" for number in range(20)])
    kept, held = hold_out(train, 5, 1)
    assert len({utterance.speaker for utterance in held}) == 5
    assert {utterance.speaker for utterance in kept}.isdisjoint(utterance.speaker for utterance in held)
    assert sorted(kept + held) == sorted(train)
    assert sorted(hold_out(train[::-1], 5, 1)[1]) == sorted(held)
    assert hold_out(train, 5, 2)[1] != held
    for number in (0, 20):
        with pytest.raises(ValueError, match=f"cannot hold out {number} of 20 speakers"):
            hold_out(train, number, 1)
