"""That recordings are read as they are, whole or in part, at any rate, and that bad files are named before any work."""

import math
import struct
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.signal
import soundfile
import torch

from projects.rsknet import audio, hearing
from projects.rsknet.audio import Info, check, find_audio, info, read, write
from shared.data.files import BadFileError

TONE = 1000.0


def save(path, samples, rate=16000, subtype=None, kind=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate, subtype=subtype, format=kind)
    return path


def tone(rate, seconds=1.0, frequency=TONE, amplitude=0.5):
    return amplitude * np.sin(2 * np.pi * frequency * np.arange(int(rate * seconds)) / rate)


def noise(length, channels=1, seed=0):
    values = np.random.default_rng(seed).uniform(-0.5, 0.5, (length, channels))
    return values[:, 0] if channels == 1 else values


@pytest.mark.parametrize(
    ("name", "subtype", "tolerance"),
    [("a.wav", "PCM_16", 2**-15), ("a.wav", "PCM_24", 2**-23), ("a.wav", "FLOAT", 1e-7), ("a.flac", "PCM_16", 2**-15), ("a.aiff", "PCM_16", 2**-15)],
    ids=["wav16", "wav24", "wavfloat", "flac", "aiff"],
)
def test_formats_are_read_whole_and_in_part(tmp_path, name, subtype, tolerance):
    samples = noise(5000)
    path = save(tmp_path / name, samples, 8000, subtype)
    assert info(path) == Info(rate=8000, samples=5000, channels=1)
    assert info(path).seconds == 0.625
    whole = read(path, 8000)
    assert whole.dtype == torch.float32
    np.testing.assert_allclose(whole, samples, atol=tolerance)
    assert torch.equal(read(path, 8000, 1234, 100), whole[1234:1334])
    assert torch.equal(read(path, 8000, 4990), whole[4990:])


@pytest.mark.parametrize(("name", "kind", "subtype"), [("a.ogg", "OGG", "VORBIS"), ("a.opus", "OGG", "OPUS")])
def test_lossy_formats_are_read_in_part(tmp_path, name, kind, subtype):
    path = save(tmp_path / name, tone(16000, 2.0), 16000, subtype, kind)
    whole = read(path, 16000)
    torch.testing.assert_close(read(path, 16000, 9000, 7000), whole[9000:16000], atol=1e-6, rtol=0)
    assert whole.square().mean().sqrt().item() == pytest.approx(0.5 / math.sqrt(2), rel=0.05)


def test_channels_are_averaged_or_chosen(tmp_path):
    samples = noise(400, channels=3)
    path = save(tmp_path / "a.wav", samples, subtype="FLOAT")
    np.testing.assert_allclose(read(path, 16000), samples.mean(axis=1), atol=1e-6)
    np.testing.assert_allclose(read(path, 16000, channel=2), samples[:, 2], atol=1e-6)
    with pytest.raises(ValueError, match="has 3 channels, numbered from 0: there is no channel 3"):
        read(path, 16000, channel=3)


@pytest.mark.parametrize(("rate", "wanted"), [(44100, 16000), (48000, 16000), (8000, 16000), (16000, 8000), (22050, 8000)])
def test_a_resampled_tone_keeps_frequency_and_amplitude(tmp_path, rate, wanted):
    path = save(tmp_path / "a.wav", tone(rate), rate, "FLOAT")
    result = read(path, wanted)
    assert len(result) == info(path).samples_at(wanted) == wanted
    inner = slice(wanted // 50, -wanted // 50)  # the filter's reach away from the ends
    np.testing.assert_allclose(result[inner], tone(wanted)[inner], atol=1e-4)


def test_resampling_takes_away_what_the_new_rate_cannot_hold(tmp_path):
    path = save(tmp_path / "a.wav", tone(44100, frequency=8100.0), 44100, "FLOAT")
    assert read(path, 16000)[400:-400].abs().max() < 0.5 * 1e-4  # 80 dB down
    path = save(tmp_path / "b.wav", tone(44100, frequency=7000.0), 44100, "FLOAT")
    np.testing.assert_allclose(read(path, 16000)[400:-400], tone(16000, frequency=7000.0)[400:-400], atol=1e-4)


@pytest.mark.parametrize(("rate", "wanted"), [(44100, 16000), (8000, 16000), (16001, 16000)])
def test_a_resampled_part_is_that_of_the_whole(tmp_path, rate, wanted):
    seconds = 21 if rate == 44100 else 3  # more than two of the pieces in which files are decoded
    samples = noise(rate * seconds + 7)
    path = save(tmp_path / "a.wav", samples, rate, "FLOAT")
    whole = read(path, wanted)
    divisor = math.gcd(rate, wanted)
    up, down = wanted // divisor, rate // divisor
    expected = scipy.signal.resample_poly(samples.astype(np.float32), up, down, window=audio._filter(up, down))
    np.testing.assert_allclose(whole, expected, atol=1e-6)
    for start, length in ((0, 50), (1, 3000), (len(whole) // 2, 1000), (len(whole) - 400, 400), (len(whole), 0)):
        torch.testing.assert_close(read(path, wanted, start, length), whole[start : start + length], atol=1e-6, rtol=0)


def test_only_the_part_is_decoded(tmp_path):
    path = save(tmp_path / "a.wav", noise(16000 * 5), subtype="FLOAT")
    content = bytearray(path.read_bytes())
    content[-4 * 16000 :] = struct.pack("<f", math.nan) * 16000  # the last second is spoilt
    path.write_bytes(content)
    assert torch.isfinite(read(path, 8000, 0, 30000)).all()
    with pytest.raises(BadFileError, match="not finite"):
        read(path, 8000, 0, 32100)


def test_parts_outside_are_refused(tmp_path):
    path = save(tmp_path / "a.wav", noise(100))
    for start, samples in ((-1, 10), (90, 11), (101, None), (10, -5)):
        with pytest.raises(ValueError, match="has 50 samples at 8000 Hz" if start >= 0 else "which do not hold those from -1"):
            read(path, 8000, start, samples)


@pytest.mark.parametrize("name", ["new/a.wav", "a.flac"])
def test_what_is_written_is_read_again(tmp_path, name):
    waveform = torch.tensor([0.0, 0.25, -0.5, 32767 / 32768, -1.0, 1.5, -2.0, 1 / 32768])
    write(tmp_path / name, waveform, 8000)
    assert torch.equal(read(tmp_path / name, 8000), waveform.clamp(-1, 32767 / 32768))
    assert soundfile.info(tmp_path / name).subtype == "PCM_16"
    assert [path.name for path in (tmp_path / name).parent.iterdir()] == [Path(name).name]


def test_what_cannot_be_written_is_refused(tmp_path):
    for name, waveform, message in (
        ("a.mp3", torch.zeros(8), "written as .wav or .flac"),
        ("a.wav", torch.zeros(1, 8), r"got shape \(1, 8\)"),
        ("a.wav", torch.zeros(0), "expected a waveform"),
        ("a.wav", torch.tensor([0.0, math.nan]), "finite values"),
    ):
        with pytest.raises(ValueError, match=message):
            write(tmp_path / name, waveform, 8000)
    assert not list(tmp_path.iterdir())


def bad_files(folder):
    """One file of each kind that cannot be used, with what must be said of it."""
    good = save(folder / "good.wav", noise(16000)).read_bytes()
    (folder / "text.wav").write_text("this is no recording")
    (folder / "head.wav").write_bytes(b"\0" * 20 + good[20:])
    (folder / "nothing.wav").touch()
    (folder / "video.m4a").write_bytes(b"\0\0\0\x18ftypM4A \0\0\0\0" + b"\0" * 64)
    save(folder / "empty.wav", np.zeros(0))
    save(folder / "short.wav", noise(300))
    save(folder / "fast.wav", noise(16000), 384000)
    save(folder / "slow.wav", noise(16000), 1000)
    save(folder / "wide.wav", noise(400, channels=65))
    save(folder / "nan.wav", np.array([0.1] * 16000 + [math.nan]), subtype="FLOAT")
    save(folder / "inf.wav", np.array([0.1] * 16000 + [math.inf]), subtype="FLOAT")
    save(folder / "loud.wav", 32768 * noise(16000), subtype="FLOAT")
    save(folder / "music.mp3", noise(8000), kind="MP3")
    save(folder / "phone.wav", noise(8000), 8000, "GSM610")
    flac = save(folder / "cut.flac", noise(50000))
    flac.write_bytes(flac.read_bytes()[:40000])
    return {
        "text.wav": "not a recording, damaged",
        "head.wav": "not a recording, damaged",
        "nothing.wav": "not a recording, damaged",
        "video.m4a": "convert it: ffmpeg -i video.m4a -ac 1 -ar 16000 video.wav",
        "music.mp3": "cannot be read exactly .convert it: ffmpeg -i music.mp3",
        "phone.wav": "a GSM 6.10 file cannot be read exactly .convert it: ffmpeg -i phone.wav -ac 1 -ar 16000 phone.flac",
        "empty.wav": "holds no samples",
        "short.wav": "is 0.019 s long, but at least 0.025 s are needed",
        "fast.wav": "sample rate of 384000 Hz is not from 4000 to 192000 Hz",
        "slow.wav": "sample rate of 1000 Hz",
        "wide.wav": "has 65 channels, more than the limit of 64",
        "nan.wav": "not finite",
        "inf.wav": "not finite",
        "loud.wav": r"far beyond \[-1, 1\]",
        "cut.flac": "cannot read",
        "missing.wav": "there is no recording .*missing.wav",
    }


def test_all_bad_files_are_named_at_once(tmp_path):
    expected = bad_files(tmp_path)
    for name, message in expected.items():
        with pytest.raises(BadFileError, match=rf"(?s)^1 of 2 recordings cannot be used:.*{name}.*{message}|^1 of 2.*{message}"):
            check([tmp_path / "good.wav", tmp_path / name])
        if name != "short.wav":
            with pytest.raises((BadFileError, FileNotFoundError), match=message):
                read(tmp_path / name, 16000)
    with pytest.raises(BadFileError, match=r"16 of 17 recordings cannot be used:(\n  .*){10}\n  \.\.\. and 6 more"):
        check([tmp_path / "good.wav", *(tmp_path / name for name in expected)])
    check([tmp_path / "good.wav"])
    check([tmp_path / "nan.wav"], decode=False)


def test_long_recordings_are_refused_from_their_header(tmp_path):
    path = tmp_path / "long.flac"
    content = bytearray(save(path, np.zeros(8000), 8000).read_bytes())
    content[21:26] = bytes([content[21] & 0xF0]) + (8000 * (audio.MAX_SECONDS + 3600)).to_bytes(4, "big")  # total samples in STREAMINFO
    path.write_bytes(content)
    with pytest.raises(BadFileError, match=r"is 5\.0 hours long, more than the limit of 4"):
        info(path)


def test_silence_is_refused_on_request(tmp_path):
    paths = [save(tmp_path / "silent.wav", np.zeros(16000)), save(tmp_path / "good.wav", noise(16000))]
    check(paths)
    with pytest.raises(BadFileError, match=r"(?s)1 of 2 recordings.*silent\.wav is silent: all its samples are zero"):
        check(paths, allow_silence=False)
    cancelling = save(tmp_path / "turned.wav", noise(16000)[:, None] * [1, -1], subtype="FLOAT")
    with pytest.raises(BadFileError, match=r"turned\.wav is silent: the mean of its channels is zero"):
        check([cancelling], allow_silence=False)


def test_recordings_to_convert_first_are_named_beside_those_that_are_found(tmp_path, capsys):
    save(tmp_path / "a.wav", tone(16000))
    (tmp_path / "sub").mkdir()
    for name in ("sub/b.M4A", "c.mp3", "notes.txt"):
        (tmp_path / name).write_bytes(b"x")
    listener = SimpleNamespace(hparams=SimpleNamespace(frame_length=25.0))
    assert [found.name for found in hearing.find(listener, str(tmp_path))] == ["a.wav"]
    assert "2 files ending in .aac, .m4a, .mp3, .mp4 are passed over, such as c.mp3" in capsys.readouterr().out
    for path in ("a.wav", "*.wav"):
        hearing.find(listener, str(tmp_path / path))
        assert "passed over" not in capsys.readouterr().out
    with pytest.raises(FileNotFoundError, match=r"no recordings in .*sub.*; 1 files ending in .*, such as b.M4A: convert them into .wav"):
        hearing.find(listener, str(tmp_path / "sub"))


def test_recordings_are_found_by_file_folder_and_pattern(tmp_path):
    for name in ("a.wav", "b/c.FLAC", "b/.hidden.wav", "[x]/d.wav"):
        save(tmp_path / name, noise(8000))
    (tmp_path / "b" / "notes.txt").write_text("no recording")
    assert [given.name for given in find_audio(tmp_path)] == ["[x]/d.wav", "a.wav", "b/c.FLAC"]
    assert [given.name for given in find_audio(tmp_path / "a.wav")] == ["a.wav"]
    assert [given.name for given in find_audio(tmp_path / "*/*")] == ["[x]/d.wav", "b/c.FLAC"]
    with pytest.raises(FileNotFoundError, match=r"no recording matches .*\*\.txt, but only .*notes.txt.*expected files ending in \.aif"):
        find_audio(tmp_path / "b" / "*.txt")
    with pytest.raises(FileNotFoundError, match="none does not exist: expected a recording, a folder of recordings, or a pattern"):
        find_audio(tmp_path / "none")
    with pytest.raises(BadFileError, match="at least 2 s are needed"):
        find_audio(tmp_path, minimum_seconds=2)
