"""Lists of trials and of utterances are read in every form that people hold, and what is wrong with one is named by file and line."""

from itertools import combinations
from pathlib import Path

import pytest
import torch
from helpers.voices import pair_lines, write_kaldi, write_speakers

from projects.rsknet.lists import (
    Utterance,
    all_pairs,
    drawn_pairs,
    read_kaldi,
    read_training_list,
    read_trials,
    session_of,
    write_trials,
)
from shared.data.files import BadFileError

NAMES = [f"id{speaker}/v{session}/{file}.wav" for speaker in (1, 2, 3) for session in (1, 2) for file in (1, 2)]
UTTERANCES = [Utterance(name, name.split("/")[0], name.split("/")[1], Path(name)) for name in NAMES]


def triples(trials):
    rows = zip(trials.enrol.tolist(), trials.test.tolist(), trials.is_target.tolist(), strict=True)
    return [(*trials.models[model], trials.tests[test], truth) for model, test, truth in rows]


EXPECTED = [(a, b, a.split("/")[0] == b.split("/")[0]) for a, b in combinations(NAMES, 2)]
FORMS = {
    "voxceleb": ("{label} {a} {b}", ("0", "1")),
    "kaldi": ("{a} {b} {label}", ("nontarget", "target")),
    "sitw": ("{a}\t{b}\t{label}", ("imp", "tgt")),
    "numbers at the end": ("{a}  {b} {label}", ("0", "1")),
    "commas": ("{label},{a}, {b}", ("0", "1")),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_trials(tmp_path, form):
    path = tmp_path / "my_list.txt"
    path.write_text("\n".join(pair_lines(NAMES, *FORMS[form])))
    trials = read_trials(path)
    assert triples(trials) == EXPECTED
    assert trials.name == "my_list"
    assert trials.files == tuple(sorted(NAMES))
    assert (len(trials), trials.targets) == (66, 18)
    assert (trials.enrol.dtype, trials.test.dtype, trials.is_target.dtype) == (torch.int64, torch.int64, torch.bool)


def test_marks_line_ends_backslashes_empty_and_repeated_lines_do_no_harm(tmp_path):
    lines = pair_lines(NAMES)
    text = "\ufeff\r\n" + "\r\n\r\n".join([*lines, lines[0]]).replace("/", "\\") + "\r\n  \r\n"
    (tmp_path / "list.txt").write_bytes(text.encode())
    assert triples(read_trials(tmp_path / "list.txt")) == [*EXPECTED, EXPECTED[0]]


def test_a_table_may_have_a_header_and_names_with_spaces(tmp_path):
    path = tmp_path / "trials.csv"
    path.write_text('enrol,test,label\n"my voice/1.wav",other/2.wav,nontarget\nmy voice/1.wav,my voice/3.wav,target\n')
    trials = read_trials(path, "mine")
    assert triples(trials) == [("my voice/1.wav", "other/2.wav", False), ("my voice/1.wav", "my voice/3.wav", True)]
    write_trials(tmp_path / "again.csv", trials)
    assert triples(read_trials(tmp_path / "again.csv")) == triples(trials)
    with pytest.raises(ValueError, match="names with spaces"):
        write_trials(tmp_path / "again.txt", trials)


def test_names_between_tabs_may_have_spaces(tmp_path):
    path = tmp_path / "trials.txt"
    path.write_bytes(b"0\tmy voice/1.wav\tother/2.wav\r\n1 other/1.wav other/2.wav\r\n1\tmy voice/1.wav\tmy voice/3.wav\r\n")
    expected = [("my voice/1.wav", "other/2.wav", False), ("other/1.wav", "other/2.wav", True), ("my voice/1.wav", "my voice/3.wav", True)]
    assert triples(read_trials(path)) == expected


def test_models_of_several_files_stand_for_names_of_the_list(tmp_path):
    path = tmp_path / "key.lst"
    path.write_text("m1 t1.flac tgt\nm2 t1.flac imp\n")
    trials = read_trials(path, models={"m1": ("a.flac", "b.flac"), "m2": ("c.flac",), "m3": ("d.flac",)})
    assert trials.models == (("a.flac", "b.flac"), ("c.flac",))
    assert trials.files == ("a.flac", "b.flac", "c.flac", "t1.flac")
    with pytest.raises(BadFileError, match=r"key\.lst names 1 models that were never enrolled, such as m2"):
        read_trials(path, models={"m1": ("a.flac",)})
    with pytest.raises(ValueError, match="models of several files"):
        write_trials(tmp_path / "pairs.txt", trials)


def test_a_list_that_was_written_is_read_again(tmp_path):
    trials = all_pairs(UTTERANCES, "all")
    write_trials(tmp_path / "new" / "all.txt", trials)
    assert triples(read_trials(tmp_path / "new" / "all.txt")) == triples(trials) == EXPECTED


WRONG = {
    "a field is missing": ("1 a b\n0 a\n", r"list\.txt, line 2: '0 a' is not like '1 file file'"),
    "a word is no label": ("1 a b\n\n2 a c\n", r"list\.txt, line 3: '2 a c' is not like"),
    "a label is misspelt": ("a b target\na c nontraget\n", r"list\.txt, line 2: 'a c nontraget'"),
    "there are no labels": ("a b c\n", r"list\.txt, line 1: 'a b c' is not like"),
    "both ends are labels": ("1 a 0\n0 b 1\n", "could both be labels"),
    "there are no targets": ("0 a b\n0 a c\n", "has no targets among its 2 trials"),
    "there are no nontargets": ("1 a b\n", "has no nontargets"),
    "it is empty": ("\n \n", "is empty"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_list_is_refused_by_file_and_line(tmp_path, case):
    text, message = WRONG[case]
    (tmp_path / "list.txt").write_text(text)
    with pytest.raises(BadFileError, match=message):
        read_trials(tmp_path / "list.txt")


def test_a_list_that_is_missing_or_in_another_encoding_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no list .*none\.txt"):
        read_trials(tmp_path / "none.txt")
    (tmp_path / "latin.txt").write_bytes(b"1 caf\xe9 b\n")
    with pytest.raises(BadFileError, match="save it as UTF-8"):
        read_trials(tmp_path / "latin.txt")


def test_a_subset_keeps_the_trials_and_drops_what_they_do_not_use():
    trials = all_pairs(UTTERANCES, "all")
    mask = torch.tensor(["id1" in a and "v2" in b for a, b, _ in EXPECTED])
    part = trials.subset(mask)
    assert triples(part) == [row for row, is_in in zip(EXPECTED, mask.tolist(), strict=True) if is_in]
    assert part.files == tuple(sorted({name for row in triples(part) for name in row[:2]}))


def test_pairs_are_drawn_without_repetition_half_targets_and_of_two_sessions():
    trials = drawn_pairs(UTTERANCES, 20, 3, "drawn")
    rows = triples(trials)
    assert len({frozenset(row[:2]) for row in rows}) == len(rows) == 20
    assert trials.targets == 10
    for a, b, is_target in rows:
        assert is_target == (a.split("/")[0] == b.split("/")[0])
        assert not is_target or a.split("/")[1] != b.split("/")[1]
    assert triples(drawn_pairs(UTTERANCES[::-1], 20, 3, "drawn")) == rows
    assert triples(drawn_pairs(UTTERANCES, 20, 4, "drawn")) != rows


def test_more_pairs_than_there_are_give_each_of_them_once():
    rows = triples(drawn_pairs(UTTERANCES, 1000, 0, "drawn"))
    wanted = {(frozenset((a, b)), same) for a, b, same in EXPECTED if not same or a.split("/")[1] != b.split("/")[1]}
    assert {(frozenset((a, b)), same) for a, b, same in rows} == wanted
    assert len(rows) == len(wanted)


def test_every_pair_is_drawn_equally_often():
    counts = {}
    for seed in range(400):
        for a, b, _ in triples(drawn_pairs(UTTERANCES, 12, seed, "drawn")):
            counts[frozenset((a, b))] = counts.get(frozenset((a, b)), 0) + 1
    targets = [count for pair, count in counts.items() if len({name.split("/")[0] for name in pair}) == 1]
    others = [count for pair, count in counts.items() if len({name.split("/")[0] for name in pair}) == 2]
    for group, number in ((targets, 12), (others, 48)):  # each count is binomial with mean 2400 / number; five deviations allowed
        share = 6 / number
        assert len(group) == number
        assert max(abs(count - 400 * share) for count in group) < 5 * (400 * share * (1 - share)) ** 0.5


def test_speakers_of_one_session_are_paired_within_it():
    single = [utterance._replace(session="v1") for utterance in UTTERANCES]
    assert drawn_pairs(single, 1000, 0, "drawn").targets == 18


def test_pairs_that_cannot_be_made_are_refused():
    with pytest.raises(ValueError, match="has no targets"):
        all_pairs([UTTERANCES[0], UTTERANCES[4]], "two")
    with pytest.raises(ValueError, match="has no nontargets"):
        drawn_pairs(UTTERANCES[:4], 4, 0, "one")
    with pytest.raises(ValueError, match=r"names that occur twice, such as 'id1/v1/1\.wav'"):
        all_pairs([*UTTERANCES, UTTERANCES[0]], "twice")
    with pytest.raises(ValueError, match="more than 50000000 pairs"):
        all_pairs(UTTERANCES * 1000, "many")
    with pytest.raises(ValueError, match="count must be at least 2"):
        drawn_pairs(UTTERANCES, 1, 0, "none")


@pytest.mark.parametrize("form", ["{speaker} {name}", "{name} {speaker}", "{speaker},{name}"])
def test_the_column_with_slashes_names_the_files_of_a_training_list(tmp_path, form):
    names = write_speakers(tmp_path / "wav", ["id00012", "id00015"])
    (tmp_path / "train.txt").write_text("\n".join(form.format(speaker=name.split("/")[0], name=name) for name in names))
    utterances = read_training_list(tmp_path / "train.txt", tmp_path / "wav")
    assert utterances == [Utterance(name, name.split("/")[0], name.split("/")[1], tmp_path / "wav" / name) for name in names]


def test_wrong_training_lists_are_refused(tmp_path):
    path = tmp_path / "train.txt"
    for text, message in (("a a/1.wav\nb/1.wav b\n", "line 2"), ("a b\n", "line 1"), ("a/b a/1.wav\n", "line 1"), ("a a/1.wav more\n", "line 1")):
        path.write_text(text)
        with pytest.raises(BadFileError, match=rf"train\.txt, {message}: .*'speaker folder/file\.wav'"):
            read_training_list(path, tmp_path)
    path.write_text("".join(f"a a/v/{number}.wav\n" for number in range(8)))
    with pytest.raises(FileNotFoundError, match=r"(?s)8 of the 8 files of .*train\.txt are missing.*and 3 more"):
        read_training_list(path, tmp_path)


def test_kaldi_folders_are_read_and_their_commands_refused(tmp_path):
    write_kaldi(tmp_path / "data", ["s1", "s2"])
    utterances = read_kaldi(tmp_path / "data", tmp_path)
    assert utterances[0] == Utterance("s1-vid0-00000", "s1", "vid0", tmp_path / "sounds/s1-vid0-00000.wav")
    assert [utterance.speaker for utterance in utterances] == ["s1", "s1", "s2", "s2"]
    scp = tmp_path / "data/wav.scp"
    for entry, message in ((f"touch {tmp_path}/ran |", "is a command, and commands are not run"), ("raw.ark:17", "lies in an archive")):
        scp.write_text(f"s1-vid0-00000 {entry}\n")
        with pytest.raises(BadFileError, match=rf"wav\.scp, entry 1 \(s1-vid0-00000\): .*{message}"):
            read_kaldi(tmp_path / "data", tmp_path)
    assert not (tmp_path / "ran").exists()
    scp.write_text("lost sounds/x.wav\n")
    with pytest.raises(BadFileError, match=r"utt2spk has no speaker for 1 utterances of wav\.scp, such as lost"):
        read_kaldi(tmp_path / "data", tmp_path)
    scp.write_text("s1-vid0-00000\n")
    with pytest.raises(BadFileError, match="line 1: 's1-vid0-00000' has no second column"):
        read_kaldi(tmp_path / "data", tmp_path)
    (tmp_path / "data/segments").write_text("a b 0 1\n")
    with pytest.raises(BadFileError, match="cuts recordings into parts"):
        read_kaldi(tmp_path / "data", tmp_path)


def test_sessions_are_told_by_names():
    for name, speaker, session in (
        ("id1/abc/00001.wav", "id1", "abc"),
        ("id1-a-b_c-00001", "id1", "a-b_c"),
        ("id1_abc_00001", "id1", "abc"),
        ("id1/00001.wav", "id1", "id1/00001.wav"),
        ("id1-00001", "id1", "id1-00001"),
        ("utt7", "id1", "utt7"),
    ):
        assert session_of(name, speaker) == session
