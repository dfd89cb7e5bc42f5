"""VoxCeleb, SITW, Kaldi's folders, folders of speakers, MUSAN and RIRS are read as they lie on the disk, and what is missing is named."""

import shutil

import pytest
from helpers.voices import pair_lines, write_kaldi, write_musan, write_rirs, write_sitw, write_sound, write_speakers, write_voxceleb

from projects.rsknet.audio import EXTENSIONS
from projects.rsknet.layouts import folder, kaldi, scan, sitw, voxceleb
from projects.rsknet.lists import Utterance
from projects.rsknet.sound_layouts import musan, rirs
from shared.data.files import BadFileError


def names_of(utterances):
    return sorted(utterance.name for utterance in utterances)


def test_voxceleb_is_read_from_the_trees_of_both_parts(tmp_path):
    names = write_voxceleb(tmp_path)
    corpus = voxceleb(tmp_path)
    assert [trials.name for trials in corpus.tests] == ["Vox1-O", "Vox1-E"]
    assert names_of(corpus.train) == sorted(names["vox2 dev"])
    first = tmp_path / "voxceleb2/dev/wav/id00012/vidA/00001.wav"
    assert corpus.train[0] == Utterance("id00012/vidA/00001.wav", "id00012", "vidA", first)
    assert set(corpus.files) == {*names["vox1 dev"], *names["vox1 test"]}
    assert corpus.files["id10270/vidB/00002.wav"] == tmp_path / "voxceleb1/test/wav/id10270/vidB/00002.wav"
    assert corpus.speakers["id10001/vidA/00001.wav"] == "id10001"
    assert names_of(voxceleb(tmp_path, "voxceleb1").train) == sorted(names["vox1 dev"])
    assert names_of(voxceleb(tmp_path, "both").train) == sorted(names["vox1 dev"] + names["vox2 dev"])
    assert voxceleb(tmp_path, "none").train == []


@pytest.mark.parametrize("part", ["test", "vox2_test_aac", "Vox2_Test", "."])
def test_speakers_of_voxceleb2s_test_part_are_not_learnt_from(tmp_path, part):
    names = write_voxceleb(tmp_path)
    write_speakers(tmp_path / "voxceleb2" / part / "wav", ["id00020"])  # the archives unpack to dev/aac/ and aac/
    assert names_of(voxceleb(tmp_path).train) == sorted(names["vox2 dev"])


def test_voxceleb_in_one_merged_folder_as_flac_keeps_its_test_speakers_apart(tmp_path):
    root = tmp_path / "voxceleb1"
    names = write_speakers(root / "wav", ["id10001", "id10270", "id10309", "id10310"], ending=".flac")
    (root / "wav/.cache").mkdir()
    write_sound(root / "wav/id10001/vidA/._00001.wav")
    tested = [name.replace(".flac", ".wav") for name in names if name[:7] in ("id10270", "id10309")]
    (root / "veri_test.txt").write_text("\n".join(pair_lines(tested)))
    corpus = voxceleb(root, "voxceleb1")
    assert names_of(corpus.train) == [name for name in names if name[:7] in ("id10001", "id10310")]
    assert [trials.name for trials in corpus.tests] == ["Vox1-O uncleaned"]
    assert corpus.files["id10270/vidA/00001.wav"] == root / "wav/id10270/vidA/00001.flac"


def test_voxceleb2_in_one_merged_folder_is_learnt_from_but_for_whom_its_list_has_for_testing(tmp_path):
    names = write_voxceleb(tmp_path)
    write_speakers(tmp_path / "voxceleb2/dev/wav", ["id00017", "id00926"])
    with pytest.raises(FileNotFoundError, match=r"id00017/.*wav is of VoxCeleb2's test part.*no vox2_meta\.csv in .*put VoxCeleb2's vox2_meta\.csv"):
        voxceleb(tmp_path)
    head = "VoxCeleb2 ID ,VGGFace2 ID ,Gender ,Set "
    (tmp_path / "voxceleb2/vox2_meta.csv").write_text(f"{head}\nid00012 ,n000012 ,m ,dev \nid00017 ,n000017 ,m ,test \nid00926 ,n000926 ,m ,test \n")
    assert names_of(voxceleb(tmp_path).train) == sorted(names["vox2 dev"])
    (tmp_path / "voxceleb2/vox2_meta.csv").write_text(head)
    with pytest.raises(BadFileError, match=r"vox2_meta\.csv names no test speakers"):
        voxceleb(tmp_path)


def test_lists_of_voxceleb_are_chosen_by_name_or_by_path(tmp_path):
    names = write_voxceleb(tmp_path)
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists/list_test_hard2.txt").write_text("\n".join(pair_lines(names["vox1 dev"], "{a} {b} {label}", ("nontarget", "target"))))
    (tmp_path / "mine.txt").write_text("\n".join(pair_lines(names["vox1 test"][:5])))
    assert [trials.name for trials in voxceleb(tmp_path).tests] == ["Vox1-O", "Vox1-E", "Vox1-H"]
    assert [trials.name for trials in voxceleb(tmp_path, lists=["Vox1-H", "mine.txt"]).tests] == ["Vox1-H", "mine"]
    with pytest.raises(FileNotFoundError, match=r"no trial list Vox1-O uncleaned: expected one of veri_test\.txt in"):
        voxceleb(tmp_path, lists=["Vox1-O uncleaned"])


def test_two_files_of_one_name_are_refused(tmp_path):
    write_voxceleb(tmp_path)
    write_speakers(tmp_path / "voxceleb2/copy/wav", ["id00015"])
    name = "id00015/vidA/00001.wav"
    with pytest.raises(BadFileError, match=rf"voxceleb2/copy/wav/{name} and .*voxceleb2/dev/wav/{name} are both named {name}: remove or move one"):
        voxceleb(tmp_path)


def test_a_training_list_takes_its_files_from_all_of_voxceleb(tmp_path):
    names = write_voxceleb(tmp_path)
    first, other = names["vox2 dev"][5], names["vox1 dev"][3]
    moved = tmp_path / "voxceleb2/dev/wav" / first
    moved.rename(moved.with_suffix(".flac"))
    path = tmp_path / "train.txt"
    for form in ("{speaker} {name}\n", "{name} {speaker}\n"):
        path.write_text("".join(form.format(speaker=name[:7], name=name) for name in (first, other)))
        corpus = voxceleb(tmp_path, lists=["Vox1-O"], train_list="train.txt")
        files = (moved.with_suffix(".flac"), tmp_path / "voxceleb1/dev/wav" / other)
        assert corpus.train == [Utterance(name, name[:7], name[8:12], file) for name, file in zip((first, other), files, strict=True)]
        assert voxceleb(tmp_path, "none", ["Vox1-O"], str(path)).train == corpus.train
    path.write_text("id1 id1/vidA/00001.wav\n")
    with pytest.raises(FileNotFoundError, match=r"1 of the 1 files of the list .*train\.txt are missing"):
        voxceleb(tmp_path, train_list="train.txt")
    path.write_text(f"id00012 {first}\nid00012 {first}\n")
    with pytest.raises(BadFileError, match=r"train\.txt, line 2: .* is listed for the second time; remove the line"):
        voxceleb(tmp_path, train_list="train.txt")


def test_a_list_whose_numbers_are_no_speakers_is_refused(tmp_path):
    names = write_voxceleb(tmp_path)
    for speaker, name in (("1", names["vox1 dev"][0]), ("id10001", names["vox1 test"][0])):  # VoxCeleb1's iden_split.txt numbers parts
        (tmp_path / "iden_split.txt").write_text(f"{speaker} {name}\n")
        with pytest.raises(BadFileError, match=rf"gives 1 of 1 files to other speakers than their folders do, such as {name} to {speaker}, "):
            voxceleb(tmp_path, train_list="iden_split.txt")


def test_what_is_missing_in_voxceleb_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"does not exist: expected voxceleb1/\{dev,test\}"):
        voxceleb(tmp_path / "none")
    write_voxceleb(tmp_path)
    with pytest.raises(ValueError, match="train must be voxceleb1, voxceleb2, both or none, got 'all'"):
        voxceleb(tmp_path, "all")
    shutil.rmtree(tmp_path / "voxceleb1/dev")
    assert len(voxceleb(tmp_path, lists=["Vox1-O"]).files) == 8
    with pytest.raises(FileNotFoundError, match=r"(?s)8 of the 16 files of the list Vox1-E are missing.*id10001/vidA/00001\.wav.*and 3 more"):
        voxceleb(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no voxceleb1 in .* to train on"):
        voxceleb(tmp_path, "voxceleb1", ["Vox1-O"])
    (tmp_path / "veri_test2.txt").unlink()
    (tmp_path / "list_test_all2.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"expected one of veri_test2\.txt, list_test_all2\.txt"):
        voxceleb(tmp_path)


def test_files_that_were_not_converted_are_told_how(tmp_path, caplog):
    write_voxceleb(tmp_path)
    aac = tmp_path / "voxceleb2/dev/aac/id00012/vidA/00001.m4a"
    aac.parent.mkdir(parents=True)
    aac.write_bytes(b"m4a")
    assert len(voxceleb(tmp_path).train) == 12
    assert not caplog.messages  # it was converted into another tree
    aac.with_name("00003.m4a").write_bytes(b"m4a")
    assert len(voxceleb(tmp_path).train) == 12
    assert "1 .m4a files without a converted one, which are left out, such as id00012/vidA/00003.m4a; convert them" in caplog.text
    shutil.rmtree(tmp_path / "voxceleb2/dev/wav")
    with pytest.raises(BadFileError, match=r"voxceleb2 in .* has only \.m4a files.*ffmpeg -i"):
        voxceleb(tmp_path)


def test_sitw_is_read_from_its_keys_and_enrolment_lists(tmp_path):
    write_sitw(tmp_path / "sitw")
    corpus = sitw(tmp_path)
    assert [trials.name for trials in corpus.tests] == ["SITW-dev", "SITW-eval"]
    trials = corpus.tests[1]
    assert (len(trials), trials.targets) == (9, 3)
    assert trials.models[2] == ("eval/audio/enrol2.flac",)
    assert trials.tests[0] == "eval/audio/test0.flac"
    assert corpus.files["dev/audio/test1.flac"] == tmp_path / "sitw/dev/audio/test1.flac"
    assert all(path.is_file() for path in corpus.files.values())
    assert (len(corpus.files), corpus.cuts, corpus.speakers, corpus.train) == (12, {}, {}, [])


def test_parts_of_files_that_sitw_enrols_become_cuts(tmp_path):
    write_sitw(tmp_path, ("dev",))
    corpus = sitw(tmp_path, ("dev",), "assist-core")
    assert corpus.tests[0].name == "SITW-dev assist-core"
    parts = ("dev/audio/enrol0.flac#0.10-1.25", "dev/audio/enrol0.flac#2.00-5.60", "dev/audio/enrol1.flac#0.00-1.50")
    assert corpus.tests[0].models[0] == parts
    assert [corpus.cuts[name] for name in parts] == [(0.1, 1.25), (2.0, 5.6), (0.0, 1.5)]
    assert corpus.files[parts[1]] == tmp_path / "dev/audio/enrol0.flac"
    (tmp_path / "dev/lists/enroll-assist.lst").write_text("12000 audio/enrol0.flac 5.0 2.0\n")
    with pytest.raises(BadFileError, match=r"enroll-assist\.lst, line 1: '12000 audio/enrol0\.flac 5\.0 2\.0' is not like"):
        sitw(tmp_path, ("dev",), "assist-core")


def test_what_is_missing_in_sitw_is_named(tmp_path):
    write_sitw(tmp_path, ("dev",))
    with pytest.raises(FileNotFoundError, match=r"no list .*core-multi\.lst: expected \{dev,eval\}"):
        sitw(tmp_path, ("dev",), "core-multi")
    (tmp_path / "dev/audio/test1.flac").unlink()
    with pytest.raises(FileNotFoundError, match=r"(?s)1 of the 6 files of .*core-core\.lst are missing.*test1\.flac"):
        sitw(tmp_path, ("dev",))


def test_kaldi_folders_enrol_models_of_several_utterances(tmp_path):
    write_kaldi(tmp_path / "train", ["s1", "s2"])
    tested = write_kaldi(tmp_path / "test", ["s3", "s4"])
    enrolled = write_kaldi(tmp_path / "enroll", ["s5", "s6"], files=3)
    lines = [
        f"{model} {name} {'target' if model[1:] == str(int(speaker[1:]) + 2) else 'nontarget'}"
        for model in enrolled
        for speaker, names in tested.items()
        for name in names
    ]
    (tmp_path / "test/trials").write_text("\n".join(lines))
    for _ in range(2):
        corpus = kaldi(tmp_path)
        assert {utterance.speaker for utterance in corpus.train} == {"s1", "s2"}
        assert corpus.tests[0].models == (tuple(enrolled["s5"]), tuple(enrolled["s6"]))
        assert corpus.tests[0].targets == 4
        assert corpus.files["s5-vid2-00002"] == tmp_path / "sounds/s5-vid2-00002.wav"
        assert corpus.speakers["s4-vid0-00000"] == "s4"
        (tmp_path / "enroll/spk2utt").unlink(missing_ok=True)  # utt2spk says the same
    (tmp_path / "test/trials").write_text("s5 s3-vid0-00000 target\ns5 elsewhere nontarget\n")
    with pytest.raises(BadFileError, match=r"names 1 utterances that no wav.scp has, such as elsewhere"):
        kaldi(tmp_path)


def test_a_root_that_is_a_kaldi_folder_is_trained_or_tested_on(tmp_path):
    names = write_kaldi(tmp_path / "set", ["s1", "s2"])
    shutil.move(tmp_path / "sounds", tmp_path / "set/sounds")
    assert len(kaldi(tmp_path / "set").train) == 4
    (tmp_path / "set/trials").write_text(f"1 {' '.join(names['s1'])}\n0 {names['s1'][0]} {names['s2'][0]}\n")
    corpus = kaldi(tmp_path / "set")
    assert (len(corpus.train), len(corpus.tests[0]), len(corpus.files)) == (0, 2, 3)
    with pytest.raises(FileNotFoundError, match="no data folder in"):
        kaldi(tmp_path)


def test_a_folder_of_trials_in_a_kaldi_folder_holds_lists(tmp_path):
    names = [name for each in write_kaldi(tmp_path / "test", ["s1", "s2"]).values() for name in each]
    trials = tmp_path / "test/trials"
    trials.mkdir()
    with pytest.raises(BadFileError, match=r"trials is neither a list nor a folder of lists: put lists there, or remove it to try all pairs"):
        kaldi(tmp_path)
    (trials / "vox1_O_cleaned.kaldi").write_text(f"{names[0]} {names[1]} target\n{names[0]} {names[2]} nontarget\n")
    (trials / "hard.kaldi").write_text(f"{names[2]} {names[3]} target\n{names[1]} {names[2]} nontarget\n")
    (trials / ".hidden").touch()
    corpus = kaldi(tmp_path)
    assert [(each.name, len(each)) for each in corpus.tests] == [("hard", 2), ("vox1_O_cleaned", 2)]
    assert set(corpus.files) == set(corpus.speakers) == set(names)
    (trials / "hard.kaldi").write_text(f"{names[2]} {names[3]} target\n{names[1]} elsewhere nontarget\n")
    with pytest.raises(BadFileError, match=r"the list hard names 1 utterances that no wav\.scp has, such as elsewhere"):
        kaldi(tmp_path)


def test_test_speakers_in_folders_are_all_paired(tmp_path):
    train, test = write_speakers(tmp_path / "train", ["ann", "bob"]), write_speakers(tmp_path / "test", ["cid", "dee"])
    write_sound(tmp_path / "test/cid/loose.wav")
    corpus = folder(tmp_path)
    assert names_of(corpus.train) == sorted(train)
    assert (corpus.tests[0].name, len(corpus.tests[0]), corpus.tests[0].targets) == ("test", 36, 10 + 6)
    assert set(corpus.files) == {*test, "cid/loose.wav"}
    assert corpus.speakers["cid/loose.wav"] == "cid"
    (tmp_path / "trials_short.txt").write_text(f"1 {test[0]} test/cid/loose.wav\n0 {test[0]} {test[-1]}\n")
    corpus = folder(tmp_path)
    assert [trials.name for trials in corpus.tests] == ["trials_short"]
    assert corpus.files["test/cid/loose.wav"] == tmp_path / "test/cid/loose.wav"
    assert corpus.speakers["test/cid/loose.wav"] == "cid"


@pytest.mark.parametrize("ending", EXTENSIONS)
def test_every_format_that_is_read_is_trained_on(tmp_path, ending):
    for speaker in ("ann", "bob"):
        (tmp_path / speaker).mkdir()
        (tmp_path / speaker / f"1{ending}").touch()
    assert names_of(folder(tmp_path).train) == [f"ann/1{ending}", f"bob/1{ending}"]


def test_speakers_in_lists_are_left_out_of_training_where_nothing_is_split(tmp_path):
    names = write_speakers(tmp_path, ["ann", "bob", "cid"], ending=".WAV")
    corpus = folder(tmp_path)
    assert (names_of(corpus.train), corpus.tests) == (sorted(names), [])
    (tmp_path / "trials.txt").write_text("1 ann/vidA/00001.WAV ann/vidB/00001.WAV\n0 ann/vidA/00001.WAV bob/vidA/00001.WAV\n")
    corpus = folder(tmp_path)
    assert {utterance.speaker for utterance in corpus.train} == {"cid"}
    with pytest.raises(FileNotFoundError, match=r"no utterances in .*: expected \{train,test\}/<speaker>"):
        folder(tmp_path / "ann/vidA")


def test_links_to_folders_are_followed_but_not_in_circles(tmp_path):
    write_speakers(tmp_path / "disk", ["ann"], ("vidA",))
    (tmp_path / "home").mkdir()
    (tmp_path / "home/ann").symlink_to(tmp_path / "disk/ann")
    (tmp_path / "disk/ann/vidA/back").symlink_to(tmp_path / "disk/ann")
    assert [utterance.name for utterance in scan(tmp_path / "home")] == ["ann/vidA/00001.wav", "ann/vidA/00002.wav"]


def test_corpora_are_joined_unless_a_name_means_two_files(tmp_path):
    names = write_voxceleb(tmp_path / "vox")
    write_sitw(tmp_path / "sitw", ("dev",))
    both = voxceleb(tmp_path / "vox") + sitw(tmp_path, ("dev",))
    assert [trials.name for trials in both.tests] == ["Vox1-O", "Vox1-E", "SITW-dev"]
    assert (len(both.train), len(both.files)) == (len(names["vox2 dev"]), 16 + 6)
    shutil.copytree(tmp_path / "vox", tmp_path / "copy")
    with pytest.raises(ValueError, match=r"names both .* rename one of them"):
        both + voxceleb(tmp_path / "copy")


def test_noises_and_rooms_are_listed(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no noise and no music and no speech in .*: expected musan"):
        musan(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no impulse responses in .*: expected RIRS_NOISES/simulated_rirs/\{smallroom\}"):
        rirs(tmp_path, ("smallroom",))
    write_musan(tmp_path)
    write_rirs(tmp_path)
    found = musan(tmp_path)
    assert {kind: [path.name for path in files] for kind, files in found.items()} == {
        kind: [f"{kind}-{source}-{file:04d}.wav" for file in range(2)]
        for kind, source in (("noise", "free-sound"), ("music", "fma"), ("speech", "librivox"))
    }
    assert found == musan(tmp_path / "musan")
    rooms = [path.relative_to(tmp_path / "RIRS_NOISES/simulated_rirs").as_posix() for path in rirs(tmp_path)]
    assert rooms == ["smallroom/Room001/Room001-00001.wav", *(f"mediumroom/Room001/Room001-0000{file}.wav" for file in (1, 2))]
    assert rirs(tmp_path / "RIRS_NOISES") == rirs(tmp_path)
    rirs(tmp_path)[0].unlink()
    with pytest.raises(FileNotFoundError, match=r"(?s)1 of the 1 files of .*rir_list are missing"):
        rirs(tmp_path)
