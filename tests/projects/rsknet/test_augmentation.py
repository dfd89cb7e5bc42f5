"""Augmentation against scipy, against what was asked for, and on miniatures of MUSAN and RIRS_NOISES."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import scipy.signal
import scipy.stats
import soundfile
import torch
from torch import Tensor

from projects.rsknet.augmentation import (
    SPEEDS,
    Augmentation,
    babble,
    change_speed,
    mix,
    reverberate,
    source_samples,
    spec_augment,
    speed_label,
)
from projects.rsknet.sounds import DrawnSounds, SoundFiles, melody, repeated
from shared.data.files import BadFileError
from shared.seeding import generator

RATE = 8000
KINDS = ("reverberation", "noise", "music", "babble")


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def white(samples: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(rng(seed).normal(0, 0.1, samples)).float()


def snr(speech: Tensor, added: Tensor) -> float:
    return float(10 * torch.log10(speech.double().square().mean() / added.double().square().mean()))


def tone(frequency: float, samples: int, rate: int = RATE) -> Tensor:
    return torch.sin(2 * torch.pi * frequency * torch.arange(samples, dtype=torch.float64) / rate).float()


def pitch(waveform: Tensor, rate: int = RATE) -> float:
    """Frequency of the strongest bin of a long spectrum, in Hz."""
    spectrum = np.abs(np.fft.rfft(waveform.numpy() * np.hanning(len(waveform)), 1 << 17))
    return float(spectrum.argmax() * rate / (1 << 17))


class CountedSounds:
    """Says what it was asked for; the drawn number of samples is constant, so that each kind leaves its own trace."""

    kinds = KINDS

    def __init__(self) -> None:
        self.asked: list[str] = []

    def noise(self, rng: np.random.Generator, samples: int) -> Tensor:
        return self._sound("noise", samples)

    def music(self, rng: np.random.Generator, samples: int) -> Tensor:
        return self._sound("music", samples)

    def speech(self, rng: np.random.Generator, samples: int) -> Tensor:
        return self._sound("speech", samples)

    def response(self, rng: np.random.Generator) -> Tensor:
        self.asked.append("response")
        return torch.tensor([1.0, 0.5])

    def _sound(self, what: str, samples: int) -> Tensor:
        self.asked.append(what)
        return torch.ones(samples)


# --- adding ---


@pytest.mark.parametrize("snr_db", [-5.0, 0.0, 13.7, 40.0])
def test_noise_is_added_at_the_ratio_that_was_asked_for(snr_db):
    speech, noise = white(4000), 30 * white(4000, 1) + 1
    added = mix(speech, noise, snr_db) - speech
    assert snr(speech, added) == pytest.approx(snr_db, abs=0.01)  # float32
    cosine = float(torch.nn.functional.cosine_similarity(added, noise, dim=0))
    assert cosine == pytest.approx(1, abs=1e-4)


def test_voices_are_each_added_at_their_own_ratio():
    speech, voices, snrs = white(20000), [white(20000, seed) for seed in (1, 2, 3)], [13.0, 16.0, 20.0]
    added = (babble(speech, voices, snrs) - speech).double()
    gains = torch.linalg.lstsq(torch.stack(voices, 1).double(), added[:, None]).solution[:, 0]
    for voice, gain, wanted in zip(voices, gains, snrs, strict=True):
        assert snr(speech, gain * voice) == pytest.approx(wanted, abs=0.01)


@pytest.mark.parametrize(("speech", "noise"), [(torch.zeros(100), white(100)), (white(100), torch.zeros(100))], ids=["silent speech", "silent noise"])
def test_silence_changes_nothing(speech, noise):
    assert torch.equal(mix(speech, noise, 5.0), speech)


# --- rooms ---


@pytest.mark.parametrize(("samples", "length", "direct"), [(4000, 800, 0), (4000, 801, 37), (500, 3000, 5), (64, 1, 0)])
def test_reverberation_is_the_convolution_from_the_direct_sound_on(samples, length, direct):
    speech, response = white(samples), 0.1 * white(length, 1)
    response[direct] = -2.0
    whole = scipy.signal.fftconvolve(speech.double().numpy(), response.double().numpy())[direct : direct + samples]
    whole = whole * np.sqrt(speech.double().square().sum().item() / (whole**2).sum())
    heard = reverberate(speech, response)
    assert heard.dtype == torch.float32
    np.testing.assert_allclose(heard.numpy(), whole, atol=2e-6)


def test_reverberation_keeps_length_energy_and_place():
    speech = torch.zeros(2000)
    speech[300] = 0.5
    response = torch.cat([torch.zeros(40), torch.tensor([1.0]), 0.2 * white(400)])
    heard = reverberate(speech, response)
    assert heard.shape == speech.shape
    assert int(heard.abs().argmax()) == 300
    assert float(heard.square().sum()) == pytest.approx(0.25, rel=1e-5)


def test_silence_in_a_room_stays_silence():
    assert torch.equal(reverberate(torch.zeros(50), white(20)), torch.zeros(50))
    assert torch.equal(reverberate(white(50), torch.zeros(20)), white(50))


# --- which, and how often ---


def test_probability_and_kinds_are_as_frequent_as_said():
    sounds, chance, speech, draws = CountedSounds(), rng(), white(16), 4000
    augment = Augmentation(sounds, probability=0.6)
    voices, counts = [], dict.fromkeys(["nothing", *KINDS], 0)
    for _ in range(draws):
        sounds.asked.clear()
        changed = augment(speech, chance)
        first = sounds.asked[0] if sounds.asked else "nothing"
        counts[{"response": "reverberation", "speech": "babble"}.get(first, first)] += 1
        assert torch.equal(changed, speech) == (first == "nothing")
        if first == "speech":
            voices.append(len(sounds.asked))
    for kind, share in {"nothing": 0.4, **dict.fromkeys(KINDS, 0.15)}.items():
        sd = np.sqrt(draws * share * (1 - share))
        assert abs(counts[kind] - draws * share) < 4 * sd, (kind, counts)
    numbers, frequencies = np.unique(voices, return_counts=True)
    assert numbers.tolist() == [3, 4, 5, 6, 7]
    assert frequencies.min() > 0.6 * len(voices) / 5


@pytest.mark.parametrize(("kind", "low", "high"), [("noise", 0, 15), ("music", 5, 15), ("babble", 13, 20)])
def test_ratios_fill_the_published_ranges(kind, low, high, monkeypatch):
    monkeypatch.setattr("projects.rsknet.augmentation.VOICES", (1, 1))
    speech, augment, chance = white(256), Augmentation(DrawnSounds(rate=RATE, pool=2, seconds=0.5), 1.0, [kind]), rng(1)
    ratios = np.array([snr(speech, augment(speech, chance) - speech) for _ in range(300)])
    assert low - 0.01 < ratios.min() < low + 0.5
    assert high - 0.5 < ratios.max() < high + 0.01
    assert scipy.stats.kstest(ratios, scipy.stats.uniform(low, high - low).cdf).pvalue > 0.01


def test_ratios_and_kinds_can_be_chosen():
    augment, speech, chance = Augmentation(DrawnSounds(rate=RATE), 1.0, ["noise"], {"noise": (30.0, 31.0)}), white(400), rng()
    assert all(30 < snr(speech, augment(speech, chance) - speech) < 31 for _ in range(20))
    assert Augmentation(DrawnSounds(rate=RATE), 0.0)(speech, chance) is speech


def test_the_generator_decides_everything_and_nothing_that_came_before_does():
    speech = white(2000)
    first, second = (Augmentation(DrawnSounds(3, RATE, pool=3, seconds=0.5), 1.0) for _ in range(2))
    ours = [first(speech, rng(seed)) for seed in range(12)]
    theirs = [second(speech, rng(seed)) for seed in reversed(range(12))][::-1]
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert not any(torch.equal(a, b) for a, b in pairwise(ours))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"probability": 1.5}, "probability must lie in"),
        ({"kinds": ["echo"]}, "kinds must be among .*got echo"),
        ({"kinds": []}, "no kind of augmentation is left"),
        ({"snrs": {"noise": (9.0, 3.0)}}, "lowest and a highest ratio in dB"),
        ({"snrs": {"speech": (3.0, 9.0)}}, "got speech"),
    ],
    ids=["probability", "unknown kind", "no kind", "empty range", "unknown range"],
)
def test_wrong_options_are_explained(options, message):
    with pytest.raises(ValueError, match=message):
        Augmentation(CountedSounds(), **options)


# --- speed ---


@pytest.mark.parametrize("factor", [0.9, 1.1])
def test_speed_moves_a_tone_and_the_length(factor):
    slow = change_speed(tone(1000, 8000), factor)
    assert len(slow) == -(-8000 * 10 // round(10 * factor))
    assert slow.dtype == torch.float32
    assert pitch(slow) == pytest.approx(1000 * factor, abs=0.2)
    inner = slow[200:-200]  # the filter's ends ring
    wanted = torch.sin(2 * torch.pi * 1000 * factor * torch.arange(len(slow), dtype=torch.float64) / RATE)[200:-200]
    torch.testing.assert_close(inner.double(), wanted, atol=5e-3, rtol=0)


def test_speed_keeps_what_would_fold_back_out():
    high = tone(3900, 8000)  # 4290 Hz at 1.1, above half of 8 kHz
    assert float(change_speed(high, 1.1)[200:-200].square().mean()) < 0.25 * float(high.square().mean())


@pytest.mark.parametrize("factor", [0.5, 0.9, 1.0, 1.1, 1.37])
def test_source_samples_are_enough_and_not_too_many(factor):
    for samples in [1, 2, 5, 7, 100, 333, 1234, 32240]:
        source = source_samples(samples, factor)
        assert samples <= len(change_speed(torch.zeros(source), factor)) <= samples + max(1, round(1 / factor))
        assert abs(source - samples * factor) < 1
    assert source_samples(32240, 1.1) == 35464  # exact, whatever 1.1 is in floating point
    assert source_samples(32240, 0.9) == 29016


def test_speed_one_is_the_waveform_itself():
    speech = white(100)
    assert change_speed(speech, 1.0) is speech


@pytest.mark.parametrize("factor", [0.0, -1.0, 11.0, float("nan")])
def test_impossible_speeds_are_refused(factor):
    with pytest.raises(ValueError, match="factor of speed lies in"):
        change_speed(white(10), factor)


def test_every_speaker_at_every_speed_has_its_own_class():
    labels = [speed_label(label, speed, 7) for speed in range(len(SPEEDS)) for label in range(7)]
    assert sorted(labels) == list(range(21))
    assert SPEEDS[0] == 1.0
    assert labels[:7] == list(range(7))
    for label, speed in [(7, 0), (-1, 0), (0, -1)]:
        with pytest.raises(ValueError, match="a label lies in"):
            speed_label(label, speed, 7)


# --- SpecAugment ---


def test_one_band_of_frames_and_one_of_channels_is_blanked_in_each_item():
    features = torch.randn(400, 24, 50, generator=generator(0, "features")).abs() + 0.1
    masked = spec_augment(features, generator(0, "masks"))
    assert torch.equal(masked[masked != 0], features[masked != 0])
    columns, rows = (masked == 0).all(1), (masked == 0).all(2)  # (B, T), (B, F)
    assert torch.equal(masked == 0, rows[:, :, None] | columns[:, None, :])
    for lines, widest in ((columns, 10), (rows, 8)):
        widths = lines.sum(1)
        assert sorted(set(widths.tolist())) == list(range(widest + 1))
        edges = torch.nn.functional.pad(lines.int(), (1, 1)).diff(dim=1)
        assert torch.equal((edges == 1).sum(1), (widths > 0).long())  # one band, in one piece
        assert lines.any(0).all()  # anywhere


def test_more_masks_blank_more_but_no_more_than_their_widths():
    features = torch.ones(64, 40, 100)
    masked = spec_augment(features, generator(1, "masks"), time_masks=3, time_width=6, frequency_masks=0)
    assert ((masked == 0).all(1) == (masked == 0).any(1)).all()
    widths = (masked == 0).all(1).sum(1)
    assert 10 < widths.max() <= 18


def test_masks_wider_than_the_features_fit():
    masked = spec_augment(torch.ones(200, 3, 4), generator(2, "masks"), time_width=50, frequency_width=50)
    assert masked.shape == (200, 3, 4)
    assert set(masked.unique().tolist()) == {0.0, 1.0}


def test_masks_depend_on_the_generator_alone():
    features = torch.ones(8, 24, 50)
    assert torch.equal(spec_augment(features, generator(3)), spec_augment(features, generator(3)))
    assert not torch.equal(spec_augment(features, generator(3)), spec_augment(features, generator(4)))
    assert torch.equal(spec_augment(features, generator(3), 0, 10, 0, 8), features)


# --- drawn sounds ---


def test_drawn_sounds_have_the_length_that_is_asked_for_and_are_not_silent():
    sounds = DrawnSounds(0, RATE, pool=2, seconds=0.4)
    for source in (sounds.noise, sounds.music, sounds.speech):
        for samples in (800, 3200, 9000):
            sound = source(rng(), samples)
            assert sound.shape == (samples,)
            assert sound.dtype == torch.float32
            assert float(sound.square().mean()) > 0
    response = sounds.response(rng())
    assert 0.1 * RATE <= len(response) <= 0.5 * RATE + 1
    assert int(response.abs().argmax()) == 0


def test_melodies_are_made_of_notes_of_their_scale():
    sound = melody(3.0, RATE, rng(5))
    assert sound.shape == (24000,)
    assert np.sqrt(np.mean(sound.astype(np.float64) ** 2)) == pytest.approx(0.1, rel=1e-4)
    spectrum = np.abs(np.fft.rfft(sound * np.hanning(len(sound)))) ** 2
    assert np.sort(spectrum)[-len(spectrum) // 10 :].sum() > 0.95 * spectrum.sum()  # lines, unlike noise


def test_short_sounds_are_repeated():
    assert repeated(torch.arange(3), 8).tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
    assert repeated(torch.arange(3), 2).tolist() == [0, 1]


# --- files ---


def write(path: Path, samples: np.ndarray, rate: int = RATE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate, subtype="FLOAT")
    return path


@pytest.fixture
def musan(tmp_path) -> Path:
    """A miniature whose sounds tell where they are from: noise counts up, music is negative, speech is a short file."""
    root = tmp_path / "musan"
    write(root / "noise/free-sound/noise-free-sound-0000.wav", np.arange(1, 4001) / 8000)
    write(root / "music/fma/music-fma-0000.wav", -np.arange(1, 4001) / 8000)
    write(root / "speech/librivox/speech-librivox-0000.wav", np.array([0.1, 0.2, 0.3]))
    (root / "noise/free-sound/LICENSE").write_text("public domain")
    return root


@pytest.fixture
def rirs(tmp_path) -> Path:
    root = tmp_path / "RIRS_NOISES"
    for room in ("smallroom", "mediumroom"):
        response = np.zeros(600)
        response[20], response[300] = 0.8, 0.3
        write(root / "simulated_rirs" / room / "Room001/Room001-00001.wav", response)
    write(root / "simulated_rirs/largeroom/Room001/Room001-00001.wav", np.ones(600))
    return root


def test_parts_of_musan_files_start_anywhere(musan):
    sounds, chance = SoundFiles(musan, None, RATE), rng()
    assert sounds.kinds == ("noise", "music", "babble")
    starts = []
    for _ in range(40):
        part = sounds.noise(chance, 500) * 8000
        torch.testing.assert_close(part.diff(), torch.ones(499), atol=1e-2, rtol=0)
        starts.append(round(float(part[0])))
    assert min(starts) < 500
    assert 3000 < max(starts) <= 3501
    assert float(sounds.music(chance, 500).max()) < 0


def test_short_musan_files_are_repeated(musan):
    part = SoundFiles(musan, None, RATE).speech(rng(), 7)
    torch.testing.assert_close(part, torch.tensor([0.1, 0.2, 0.3, 0.1, 0.2, 0.3, 0.1]))


def test_musan_files_of_another_rate_are_resampled(tmp_path, musan):
    for what in ("noise", "music", "speech"):
        write(next((musan / what).rglob("*.wav")), tone(1000, 32000, 16000).numpy(), 16000)
    part = SoundFiles(musan, None, RATE).noise(rng(), 8000)
    assert len(part) == 8000
    assert pitch(part) == pytest.approx(1000, abs=1)


def test_responses_come_from_the_rirs_folder(rirs):
    sounds, speech = SoundFiles(None, rirs, RATE), white(1000)
    assert sounds.kinds == ("reverberation",)
    heard = Augmentation(sounds, 1.0)(speech, rng())
    response = np.zeros(281)
    response[0], response[280] = 0.8, 0.3
    wanted = np.convolve(speech.double().numpy(), response)[:1000]
    np.testing.assert_allclose(heard.numpy(), wanted * np.sqrt(speech.double().square().sum().item() / (wanted**2).sum()), atol=2e-6)


def test_responses_are_of_small_and_medium_rooms_and_at_most_two_seconds_long(rirs):
    chance, long = rng(), np.zeros(3 * RATE)
    long[0] = 1
    write(rirs / "simulated_rirs/mediumroom/Room001/Room001-00001.wav", long)
    lengths = {len(SoundFiles(None, rirs, RATE).response(chance)) for _ in range(30)}
    assert lengths == {600, 2 * RATE}
    assert not any("largeroom" in str(path) for path in SoundFiles(None, rirs, RATE).responses)


def test_a_damaged_file_is_named(musan):
    path = next((musan / "noise").rglob("*.wav"))
    path.write_bytes(b"RIFF")
    with pytest.raises(BadFileError, match=path.name):
        Augmentation(SoundFiles(musan, None, RATE), 1.0, ["noise"])(white(100), rng())


def test_everything_runs_on_files_and_repeats_itself(musan, rirs):
    speech, augment = white(1000), Augmentation(SoundFiles(musan, rirs, RATE), 1.0)
    assert set(augment.kinds) == set(KINDS)
    assert all(torch.equal(augment(speech, rng(seed)), augment(speech, rng(seed))) for seed in range(10))


def test_kinds_without_a_folder_are_named(musan):
    with pytest.raises(ValueError, match="no sounds for reverberation: reverberation needs the RIRS folder"):
        Augmentation(SoundFiles(musan, None, RATE), kinds=["noise", "reverberation"])
    with pytest.raises(ValueError, match="MUSAN, of RIRS_NOISES, or of both"):
        SoundFiles(None, None, RATE)


@pytest.mark.parametrize("which", ["musan", "rirs"])
def test_a_missing_folder_is_named(tmp_path, which):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        SoundFiles(**{"musan": None, "rirs": None, which: tmp_path / "nowhere"}, rate=RATE)
