"""Recordings in files and in memory, crops to learn from, and batches of whole recordings."""

import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.voices import write_sound
from torch.utils.data import DataLoader

from projects.rsknet import audio
from projects.rsknet.augmentation import SPEEDS, Augmentation
from projects.rsknet.recordings import TOGETHER, Batches, Crops, DrawnRecordings, FileRecordings, Strings, Whole, numbered, whole_loader
from projects.rsknet.sounds import DrawnSounds
from shared.data.files import BadFileError

RATE = 8000


def ramps(count, samples):
    """Recordings whose every sample tells the recording and its place in it: i + n / samples, in steps of float32."""
    return DrawnRecordings([f"{i}.wav" for i in range(count)], torch.arange(count)[:, None] + torch.arange(samples) / samples, RATE)


class Uneven:
    """Ramps of different lengths."""

    def __init__(self, lengths):
        self.names, self.rate, self.counts = [str(i) for i in range(len(lengths))], RATE, lengths

    def __len__(self):
        return len(self.counts)

    def samples(self, index):
        return self.counts[index]

    def lengths(self, indices):
        return [self.counts[index] for index in indices]

    def read(self, index, start=0, samples=None):
        return 1 + torch.arange(self.counts[index])[start : None if samples is None else start + samples].float()


def crops(recordings, seed=0, seconds=0.05, speakers=None, augmentation=None, is_perturbed=False, **options):
    return Crops(recordings, speakers or list(recordings.names), seconds, seed, augmentation, is_perturbed, **options)


# ---- crops


def test_crops_depend_on_seed_epoch_and_recording_alone():
    recordings, sounds = ramps(3, 4000), DrawnSounds(1, RATE, pool=1, seconds=0.2)
    first, again, other = (crops(recordings, seed, augmentation=Augmentation(sounds, 1.0), is_perturbed=True) for seed in (0, 0, 1))
    keys = list(range(12))
    one = {key: first[key] for key in keys}
    for key in reversed(keys):
        found = again[key]
        assert torch.equal(found["waveform"], one[key]["waveform"])
        assert found["label"] == one[key]["label"]
    for item in range(3):
        waveforms = [one[item + 3 * epoch]["waveform"] for epoch in range(4)]
        assert not any(torch.equal(waveforms[0], later) for later in waveforms[1:]), "another epoch, another crop"
        assert not torch.equal(other[item]["waveform"], one[item]["waveform"]), "another seed, another crop"


def test_crops_are_parts_from_anywhere_in_their_recording():
    found = crops(ramps(2, 1000))
    starts = []
    for key in range(600):
        waveform = found[key]["waveform"].double() - key % 2
        assert waveform.shape == (400,)
        starts.append(round(float(waveform[0]) * 1000))
        np.testing.assert_allclose(waveform, (starts[-1] + np.arange(400)) / 1000, atol=2e-7)
        assert found[key]["label"] == key % 2
    assert min(starts) < 10
    assert max(starts) > 590
    assert max(starts) <= 600
    assert np.mean(starts) == pytest.approx(300, abs=4 * 600 / math.sqrt(12 * 600)), "each start is as likely"


def test_crops_at_other_speeds_have_one_length_and_labels_of_their_own():
    times = torch.arange(RATE) / RATE
    tones = DrawnRecordings(["a", "b"], torch.sin(2 * math.pi * torch.tensor([[500.0], [800.0]]) * times), RATE)
    found = crops(tones, seconds=0.3, speakers=["zoe", "ann"], is_perturbed=True)
    assert found.classes == 6
    seen = set()
    for key in range(40):
        item, tone, own = found[key], (500, 800)[key % 2], (1, 0)[key % 2]  # speakers are numbered in sorted order
        assert item["waveform"].shape == (2400,)
        speed, speaker = divmod(item["label"], 2)
        assert speaker == own
        peak = int(np.abs(np.fft.rfft(item["waveform"].numpy() * np.hanning(2400))).argmax())
        assert peak * RATE / 2400 == pytest.approx(tone * SPEEDS[speed], abs=RATE / 2400)
        seen.add(speed)
    assert seen == {0, 1, 2}
    assert crops(tones, speakers=["zoe", "ann"]).classes == 2


@pytest.mark.parametrize("is_perturbed", [False, True])
def test_short_recordings_are_repeated(is_perturbed):
    recordings = ramps(2, 150)
    found = crops(recordings, is_perturbed=is_perturbed)
    for key in range(8):
        item = found[key]
        assert item["waveform"].shape == (400,)
        if item["label"] < 2:
            assert torch.equal(item["waveform"], recordings.waveforms[key % 2].repeat(3)[:400])


def test_files_give_the_crops_that_memory_gives(tmp_path):
    files = {name: write_sound(tmp_path / name, samples, RATE) for name, samples in (("a.wav", 900), ("b.flac", 900), ("c.wav", 900))}
    on_disk = FileRecordings(files, RATE)
    in_memory = DrawnRecordings(list(files), torch.stack([audio.read(file, RATE) for file in files.values()]), RATE)
    assert list(on_disk.names) == in_memory.names
    one, other = (crops(recordings, is_perturbed=True) for recordings in (on_disk, in_memory))
    for key in range(9):
        assert torch.equal(one[key]["waveform"], other[key]["waveform"])


def test_another_recording_of_the_speaker_stands_for_one_that_cannot_be_read(tmp_path, caplog):
    files, speakers = {}, ["a", "b", "a", "a", "b"]
    for number, speaker in enumerate(speakers):
        files[f"{speaker}{number}"] = tmp_path / f"{number}.wav"
        write_sound(files[f"{speaker}{number}"], samples=800)
    (tmp_path / "2.wav").write_bytes(b"no sound")
    made = crops(FileRecordings(files, 8000), speakers=speakers, on_bad_file="skip")
    plain = crops(FileRecordings(files, 8000), speakers=speakers)
    assert [made[place]["label"] for place in range(5)] == [0, 1, 0, 0, 1]
    torch.testing.assert_close(made[2]["waveform"], made[3]["waveform"])
    torch.testing.assert_close(made[1]["waveform"], plain[1]["waveform"])
    assert caplog.text.count("another recording of its speaker is taken") == 1
    with pytest.raises(BadFileError, match=r"2\.wav"):
        plain[2]
    for number in (0, 3):
        (tmp_path / f"{number}.wav").write_bytes(b"no sound")
    with pytest.raises(BadFileError, match="no recording of the speaker of a2 can be read: remove the speaker"):
        made[2]


def test_crops_need_one_speaker_for_each_recording(tmp_path):
    twins = [(name, write_sound(tmp_path / folder / name, 500, RATE)) for folder in "xy" for name in ("a.wav", "b.wav")]
    both = FileRecordings(twins, RATE)
    assert list(both.names) == ["a.wav", "b.wav"] * 2
    found = crops(both, speakers=["p", "q", "r", "s"])
    assert found.labels.tolist() == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="2 recordings have 4 speakers: each needs one, and a name of its own"):
        crops(FileRecordings(dict(twins), RATE), speakers=["p", "q", "r", "s"])


# ---- files


def test_strings_are_kept_as_they_are():
    names = ["", "id1/a.wav", "Ünï/ü.flac", "bad\udcff.wav", "x" * 300]
    kept = Strings(names, str)
    assert (len(kept), list(kept), kept[-1], kept[1:4]) == (5, names, names[-1], names[1:4])
    assert kept.index("Ünï/ü.flac") == 2
    assert list(Strings(iter([Path("a/b"), Path("/c")]), Path)) == [Path("a/b"), Path("/c")]
    assert list(Strings([], str)) == []
    with pytest.raises(IndexError):
        kept[5]


def test_speakers_are_numbered_in_the_order_of_their_names():
    names, numbers = numbered(["zoe", "ann", "zoe", "bob"])
    assert (names, numbers.tolist(), numbers.dtype) == (["ann", "bob", "zoe"], [2, 0, 2, 1], np.int32)


def test_a_header_is_read_once_by_any_process(tmp_path, monkeypatch):
    files = {f"{i}.wav": write_sound(tmp_path / f"{i}.wav", 100 + i, RATE) for i in range(150)}
    recordings = FileRecordings(files, RATE)
    batches = DataLoader(crops(recordings), batch_size=None, sampler=range(10), num_workers=1, multiprocessing_context="fork")
    assert len(list(batches)) == 10
    read, info = [], audio.info
    monkeypatch.setattr(audio, "info", lambda path: read.append(path) or info(path))
    assert recordings.lengths([149, 3, *range(100)]) == [249, 103, *range(100, 200)]
    assert sorted(read) == sorted(files[f"{i}.wav"] for i in (149, *range(10, 100)))
    assert [recordings.samples(index) for index in (149, 3)] == [249, 103]
    assert len(read) == 91


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 44100])
def test_files_of_any_rate_are_as_long_as_they_say(tmp_path, rate):
    files = {"x": write_sound(tmp_path / "x.wav", 2345, rate)}
    recordings = FileRecordings(files, RATE)
    assert recordings.samples(0) == len(recordings.read(0)) == math.ceil(2345 * RATE / rate)
    whole = recordings.read(0)
    torch.testing.assert_close(recordings.read(0, 100, 50), whole[100:150], atol=1e-6, rtol=0)
    torch.testing.assert_close(recordings.read(0, 100), whole[100:], atol=1e-6, rtol=0)


@pytest.mark.parametrize("rate", [8000, 16000])
def test_parts_of_files_are_cut_out(tmp_path, rate):
    file = write_sound(tmp_path / "x.flac", rate, rate)
    recordings = FileRecordings({"x": file, "x#0.10-0.35": file, "x#0.90-2.00": file}, RATE, {"x#0.10-0.35": (0.1, 0.35), "x#0.90-2.00": (0.9, 2.0)})
    whole = recordings.read(0)
    assert [recordings.samples(index) for index in range(3)] == [8000, 2000, 800]
    for given, span in (((0, None), slice(800, 2800)), ((500, 100), slice(1300, 1400)), ((500, None), slice(1300, 2800))):
        torch.testing.assert_close(recordings.read(1, *given), whole[span], atol=1e-6, rtol=0)
    torch.testing.assert_close(recordings.read(2, 0, 800), whole[7200:], atol=1e-6, rtol=0)


def test_missing_files_are_named_when_they_are_read(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere.wav"):
        FileRecordings({"x": tmp_path / "nowhere.wav"}, RATE).samples(0)


# ---- whole recordings


def test_whole_recordings_keep_their_middle():
    recordings = ramps(3, 1001)
    assert torch.equal(Whole(recordings)[2]["waveform"], recordings.waveforms[2])
    cut = Whole(recordings, 100, [2, 0])
    assert (len(cut), cut.lengths) == (2, [100, 100])
    assert cut[1]["index"] == 0
    assert torch.equal(cut[0]["waveform"], recordings.waveforms[2, 450:550])
    assert torch.equal(Whole(recordings, 5000)[0]["waveform"], recordings.waveforms[0])


@pytest.mark.parametrize(("samples", "most"), [(1000, 50), (1000, 3), (100, 50), (10**6, 50)])
def test_batches_have_each_recording_once_and_keep_to_their_size(samples, most):
    lengths = np.random.default_rng(0).integers(20, 400, 40).tolist()
    recordings = Uneven(lengths)
    batches = Batches(Whole(recordings), samples, most)
    found = [batches[number] for number in range(len(batches))]
    assert sorted(index for batch in found for index in batch["index"].tolist()) == list(range(40))
    order = [length for batch in found for length in batch["length"].tolist()]
    assert order == sorted(lengths, reverse=True), "the longest first"
    for batch in found:
        count, longest = batch["waveform"].shape
        assert count <= most
        assert count == 1 or count * longest <= samples
        for row, length, index in zip(batch["waveform"], batch["length"].tolist(), batch["index"].tolist(), strict=True):
            assert length == lengths[index]
            assert torch.equal(row[:length], recordings.read(index))
            assert not row[length:].any()
    for batch, after in pairwise(found):  # nothing smaller would do: the next one had no place
        assert len(batch["index"]) == most or (len(batch["index"]) + 1) * batch["waveform"].shape[1] > samples
        assert after["waveform"].shape[1] <= batch["waveform"].shape[1]


def test_loaders_of_whole_recordings_keep_to_a_minute():
    recordings = Uneven([RATE * 25, RATE * 70, RATE * 24, RATE * 2, RATE * 3])
    shapes = [tuple(batch["waveform"].shape) for batch in whole_loader(recordings)]
    assert shapes == [(1, 70 * RATE), (2, 25 * RATE), (2, 3 * RATE)]
    assert TOGETHER == 60
    short = list(whole_loader(recordings, 1.5, [1, 3], most=1))
    assert [(tuple(batch["waveform"].shape), batch["index"].tolist()) for batch in short] == [((1, 12000), [1]), ((1, 12000), [3])]
    assert float(short[0]["waveform"][0, 0]) == 1 + (70 * RATE - 12000) // 2


@pytest.mark.parametrize(("count", "processes"), [(5, 4), (15, 2), (3, 3), (40, 7)])
def test_each_process_has_a_batch(monkeypatch, count, processes):
    monkeypatch.setattr("projects.rsknet.recordings.world_size", lambda: processes)
    monkeypatch.setattr("shared.distributed.world_size", lambda: processes)
    found = []
    for rank in range(processes):
        monkeypatch.setattr("shared.distributed.rank", lambda rank=rank: rank)
        own = [batch["index"].tolist() for batch in whole_loader(Uneven([100] * count))]
        assert own
        found += [index for batch in own for index in batch]
    assert sorted(found) == list(range(count))


def test_fewer_recordings_than_processes_are_refused(monkeypatch):
    monkeypatch.setattr("projects.rsknet.recordings.world_size", lambda: 2)
    with pytest.raises(ValueError, match="1 recordings do not go round 2 processes: add recordings, or use fewer devices"):
        whole_loader(Uneven([100]))
