"""The drawn voices have the distributions that they should, and recordings the conditions that were asked for."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.linalg
import scipy.signal
import scipy.stats
import soundfile
import torch

from projects.rsknet.layouts import voxceleb
from projects.rsknet.lists import read_training_list, read_trials
from projects.rsknet.rooms import convolve
from projects.rsknet.synthesis import (
    Conditions,
    coloured_noise,
    draw_speaker,
    record,
    room_response,
    say,
    synthvox,
    utterance,
    write_tree,
    write_world,
)
from projects.rsknet.voices import VOWELS

DRY = Conditions(reverberation=0, snr=(np.inf, np.inf), channel=False)


def steady(**changes):
    """A speaker whose only vowel is that of "had", without stress or melody: one syllable of five seconds."""
    person = draw_speaker(0, "test", 0)
    plain = {"pitch_range": 1e-6, "jitter": 1e-6, "longer": 1.0, "louder": 1.0, "higher": 1.0, "syllable": 5.0}
    return replace(person, formants=((660.0, 1720.0, 2410.0),) * 10, f4=3300.0, bandwidths=(70.0, 100.0, 140.0), **(plain | changes))


def test_an_utterance_depends_on_its_numbers_alone():
    world = synthvox(3, "train", speakers=2, utterances=2, seconds=0.5)
    assert world.shape == (2, 2, 4000)
    assert world.dtype == torch.float32
    torch.testing.assert_close(world[1, 1], utterance(3, "train", 1, 1, seconds=0.5), rtol=0, atol=0)
    others = [utterance(4, "train", 1, 1, 0.5), utterance(3, "test", 1, 1, 0.5), utterance(3, "train", 0, 1, 0.5), utterance(3, "train", 1, 0, 0.5)]
    assert all((world[1, 1] - other).abs().max() > 0.05 for other in others)


def test_splits_and_seeds_have_no_speaker_in_common():
    speakers = {draw_speaker(seed, split, index) for seed in (0, 1) for split in ("train", "val", "test") for index in range(50)}
    assert len(speakers) == 300


def test_speakers_follow_the_distributions_of_the_paper():
    people = [draw_speaker(0, "train", index) for index in range(1500)]
    female = np.array([person.female for person in people])
    norm, uniform = scipy.stats.norm.cdf, scipy.stats.uniform.cdf
    tract = np.array([person.tract for person in people])
    own = np.array([person.formants for person in people]) / VOWELS / tract[:, None, None] - 1
    logs = {name: np.log([getattr(person, name) for person in people]) for name in ("f0", "syllable", "breath", "jitter", "pitch_range")}
    plain = {name: np.array([getattr(person, name) for person in people]) for name in ("f4", "tilt")}
    shares = {
        "sex": (female.mean() - 0.5) * np.sqrt(4 * len(people)),  # standard normal
        "f0": norm((logs["f0"] - np.log(np.where(female, 205, 120))) / 0.12),
        "tract": norm(np.log(tract / np.where(female, 1.16, 1)) / 0.05),
        "formants": norm(own[:, 3, 1] / 0.035),
        "f4": uniform(plain["f4"], 3100, 600),
        "bandwidth": norm(np.log(np.array([person.bandwidths[1] for person in people]) / 100) / 0.25),
        "tilt": uniform(plain["tilt"], 0.75, 0.22),
        "breath": norm((logs["breath"] - np.log(0.03)) / 0.5),
        "syllable": norm((logs["syllable"] - np.log(0.13)) / 0.15),
        "jitter": norm((logs["jitter"] - np.log(0.012)) / 0.4),
        "range": norm((logs["pitch_range"] - np.log(0.12)) / 0.3),
        "longer": uniform(np.log([person.longer for person in people]), 0.3, 0.8),
        "louder": uniform(np.log([person.louder for person in people]), 0.2, 0.7),
        "higher": uniform(np.log([person.higher for person in people]), -0.25, 0.5),
    }
    assert abs(shares.pop("sex")) < 3
    assert {name: p for name, share in shares.items() if (p := scipy.stats.kstest(share, "uniform").pvalue) < 1e-3} == {}
    assert scipy.stats.chisquare(np.bincount([person.rhythm for person in people])[2:]).pvalue > 1e-3
    assert abs(np.corrcoef(own[:, 3, 1], own[:, 4, 1])[0, 1]) < 0.1  # every vowel has its own factor


@pytest.mark.parametrize("rate", [8000, 16000])
def test_linear_prediction_finds_the_formants_of_a_sustained_vowel(rate):
    person = steady(breath=100.0)  # whispered, for white noise is what linear prediction expects
    sound = say(person, 2.0, rate, np.random.default_rng(1)).astype(float)
    order = 8 if rate == 8000 else 16
    products = np.array([sound[: len(sound) - lag] @ sound[lag:] for lag in range(order + 1)])
    poles = np.roots([1, *-scipy.linalg.solve_toeplitz(products[:-1], products[1:])])
    poles = sorted(poles[poles.imag > 0], key=np.angle)[:4]
    found = np.angle(poles) * rate / 2 / np.pi
    np.testing.assert_allclose(found, [660, 1720, 2410, 3300], rtol=0.04)  # 1.5 % of it is drawn for every syllable
    np.testing.assert_allclose(-np.log(np.abs(poles[:3])) * rate / np.pi, [70, 100, 140], rtol=0.4)


@pytest.mark.parametrize("f0", [95.0, 140.0, 230.0])
def test_autocorrelation_finds_the_pitch(f0):
    sound = say(steady(f0=f0, breath=0.01), 1.0, 16000, np.random.default_rng(0)).astype(float)
    products = scipy.signal.correlate(sound, sound, method="fft")[len(sound) - 1 :]
    peaks = scipy.signal.find_peaks(products[: 16000 // 60], height=0.7 * products[0])[0]
    best = peaks[peaks > 16000 // 400][0]  # multiples of the period are peaks too
    assert 16000 / best == pytest.approx(f0, rel=0.02)


def test_every_third_syllable_is_louder_where_the_rhythm_says_so():
    person = steady(syllable=0.2, rhythm=3, louder=3.0, breath=0.01)
    loudness = scipy.signal.resample_poly(say(person, 6.0, 8000, np.random.default_rng(0)) ** 2, 1, 160)  # 50 values a second
    spectrum = np.abs(np.fft.rfft(loudness - loudness.mean(), 3000))
    frequencies = np.arange(len(spectrum)) / 60
    strongest = frequencies[np.argmax(np.where((frequencies > 0.5) & (frequencies < 4), spectrum, 0))]
    assert strongest == pytest.approx(1 / 0.6, rel=0.08)


@pytest.mark.parametrize("rate", [8000, 16000, 22050])
def test_a_recording_fills_its_band_and_range(rate):
    sounds = torch.stack([utterance(0, "train", speaker, 0, 1.0, rate) for speaker in range(8)])
    assert sounds.shape == (8, rate)
    assert sounds.abs().max() <= 1
    assert ((sounds.square().mean(1).sqrt() > 0.05) & (sounds.square().mean(1).sqrt() < 0.11)).all()
    dry = np.stack([say(draw_speaker(0, "train", speaker), 1.0, rate, np.random.default_rng(speaker)) for speaker in range(8)])
    frequencies, power = scipy.signal.welch(dry, rate, nperseg=256)
    levels = 10 * np.log10(power.mean(0))
    assert levels[(frequencies > 150) & (frequencies < 0.45 * rate)].min() > levels.max() - 60


def test_conditions_change_the_recording_and_not_what_is_said():
    spoken = utterance(0, "train", 5, 2, 1.0, conditions=DRY)
    noisy = utterance(0, "train", 5, 2, 1.0, conditions=replace(DRY, snr=(0.0, 0.0)))
    assert np.corrcoef(spoken, noisy)[0, 1] == pytest.approx(np.sqrt(0.5), abs=0.03)
    voice = say(draw_speaker(0, "train", 5), 1.0, 8000, np.random.default_rng(0))
    np.testing.assert_allclose(record(voice, 8000, DRY, np.random.default_rng(7)), voice, atol=1e-6)


@pytest.mark.parametrize("snr", [0.0, 10.0, 20.0])
def test_the_noise_is_as_loud_as_asked(snr):
    voice = say(draw_speaker(0, "train", 1), 2.0, 8000, np.random.default_rng(0)).astype(float)
    heard = record(voice, 8000, replace(DRY, snr=(snr, snr)), np.random.default_rng(3)).astype(float)
    gain = heard @ voice / (voice @ voice)
    assert 10 * np.log10(np.sum((gain * voice) ** 2) / np.sum((heard - gain * voice) ** 2)) == pytest.approx(snr, abs=0.3)


def test_channels_belong_to_utterances_and_not_to_speakers():
    def channel(speaker, index):
        heard, spoken = (utterance(0, "train", speaker, index, 0.5, conditions=replace(DRY, channel=on)).double() for on in (True, False))
        before = torch.cat([torch.zeros(1), spoken[:-1]])
        now, earlier = torch.linalg.lstsq(torch.stack([spoken, before], 1), heard).solution
        return float(earlier / now)

    channels = np.array([[channel(speaker, index) for index in range(6)] for speaker in range(12)])
    assert np.abs(channels).max() <= 0.801
    assert channels.std(axis=1).mean() > 0.3
    assert scipy.stats.f_oneway(*channels).pvalue > 0.05


@pytest.mark.parametrize("t60", [0.1, 0.3, 0.5])
def test_the_energy_of_a_room_decays_as_asked(t60):
    found = []
    for seed in range(8):
        response = room_response(16000, t60, np.random.default_rng(seed))
        assert np.sum(response**2) == pytest.approx(1)
        assert np.argmax(np.abs(response)) == 0
        left = 10 * np.log10(np.cumsum(response[:0:-1] ** 2)[::-1])  # Schroeder's integral of the tail
        fitted = (left < left[0] - 5) & (left > left[0] - 25)
        found.append(-60 / np.polyfit(np.flatnonzero(fitted) / 16000, left[fitted], 1)[0])
    assert np.mean(found) == pytest.approx(t60, rel=0.08)


def test_noise_has_unit_level_and_slopes_between_white_and_brown():
    slopes = []
    for seed in range(30):
        noise = coloured_noise(16000, np.random.default_rng(seed))
        assert np.mean(noise**2) == pytest.approx(1)
        frequencies, power = scipy.signal.welch(noise, nperseg=1024)
        used = (frequencies > 0.02) & (frequencies < 0.48)
        slopes.append(-np.polyfit(np.log(frequencies[used]), np.log(power[used]), 1)[0])
    assert -0.1 < min(slopes) < 0.5 < 1.5 < max(slopes) < 2.1


def test_convolution_equals_the_direct_sum():
    rng = np.random.default_rng(0)
    signal, response = rng.normal(size=100), rng.normal(size=37)
    np.testing.assert_allclose(convolve(signal, response), np.convolve(signal, response)[:100], atol=1e-12)


def test_speakers_are_told_apart_by_their_spectra_better_than_by_chance_and_far_from_well():
    sounds = synthvox(0, "test", speakers=16, utterances=6).numpy().reshape(96, -1)
    _, _, power = scipy.signal.spectrogram(sounds, 8000, nperseg=256, noverlap=156)
    bands = np.log(power[:, 1:121].reshape(96, 24, 5, -1).mean(2) + 1e-12)
    deviations = (bands - bands.mean(-1, keepdims=True)).std(-1)
    unit = deviations / np.linalg.norm(deviations, axis=1, keepdims=True)
    first, second = np.triu_indices(96, 1)
    same = first // 6 == second // 6
    scores = (unit @ unit.T)[first, second]
    auc = scipy.stats.mannwhitneyu(scores[same], scores[~same]).statistic / same.sum() / (~same).sum()
    assert 0.53 < auc < 0.75


def test_a_written_world_is_read_as_voxceleb(tmp_path):
    tree = write_world(tmp_path / "world", seed=1, speakers=(3, 2), utterances=5, seconds=0.25, rate=8000, trials=8)
    training = read_training_list(tree / "train_list.txt", tree / "dev/wav")
    assert [row.speaker for row in training] == [f"id{10001 + index // 5}" for index in range(15)]
    corpus = voxceleb(tmp_path / "world", "voxceleb1")
    assert {row.name for row in corpus.train} == {row.name for row in training}
    assert all(len(row.session) == 11 for row in training)
    sound, rate = soundfile.read(training[7].file, dtype="float32")
    assert rate == 8000
    torch.testing.assert_close(torch.from_numpy(sound), utterance(1, "train", 1, 2, 0.25), rtol=0, atol=1 / 32768)
    trials = read_trials(tree / "veri_test2.txt")
    assert (trials.targets, len(trials)) == (4, 8)
    assert all((tree / "test/wav" / name).is_file() for name in trials.files)
    for enrol, test, target in zip(trials.enrol, trials.test, trials.is_target, strict=True):
        (one, video, _), (other, another, _) = trials.models[enrol][0].split("/"), trials.tests[test].split("/")
        assert bool(target) == (one == other)
        assert video != another


def test_a_full_folder_is_refused_and_a_failure_leaves_nothing(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/thesis.tex").touch()
    with pytest.raises(FileExistsError, match="full is not an empty folder"):
        write_world(tmp_path / "full")
    with pytest.raises(ValueError, match="no target"):
        write_tree(tmp_path / "half", [[torch.zeros(100)]], [[torch.zeros(100)]], 8000)
    with pytest.raises(ValueError, match="40 numbers for test speakers"):
        write_tree(tmp_path / "many", [], [[torch.zeros(10)]] * 41, 8000)
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"reverberation": 1.5}, "between 0 and 1"),
        ({"t60": (0.0, 0.5)}, "above 0"),
        ({"t60": (0.5, 0.1)}, "smaller first"),
        ({"snr": (20.0, 5.0)}, "smaller first"),
        ({"snr": (5.0, np.inf)}, "no noise"),
    ],
    ids=["share", "t60", "t60-order", "snr-order", "snr-half"],
)
def test_conditions_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Conditions(**settings)


@pytest.mark.parametrize(("seconds", "rate"), [(1.0, 7999), (0.0, 8000)], ids=["rate", "time"])
def test_a_voice_needs_time_and_band(seconds, rate):
    with pytest.raises(ValueError, match="8000 samples per second or more"):
        say(draw_speaker(0, "train", 0), seconds, rate, np.random.default_rng(0))


def test_a_room_needs_a_reverberation_time():
    with pytest.raises(ValueError, match="above 0 seconds"):
        room_response(8000, 0.0, np.random.default_rng(0))
