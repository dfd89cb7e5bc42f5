"""The program's voices, where it is installed."""

import numpy as np
import pytest
import torch

from projects.rsknet import espeak
from projects.rsknet.lists import read_training_list, read_trials
from projects.rsknet.rooms import Conditions

installed = pytest.mark.skipif(not espeak.available(), reason="espeak-ng is not installed")


def test_without_the_program_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert not espeak.available()
    with pytest.raises(FileNotFoundError, match="apt install espeak-ng"):
        espeak.say_with_espeak("Hello")


def test_sentences_differ_and_are_sentences():
    rng = np.random.default_rng(0)
    drawn = [espeak.sentence(rng) for _ in range(100)]
    assert len(set(drawn)) > 90
    assert all(text[0].isupper() and text.endswith(".") and 6 <= len(text.split()) <= 15 for text in drawn)


@installed
def test_the_program_speaks_at_the_rate_asked_for():
    slow, fast = (espeak.say_with_espeak("--stdout is only a word here; rm -rf $(HOME)", speed=speed, rate=16000) for speed in (120, 240))
    assert slow.dtype == torch.float32
    assert slow.abs().max() <= 1
    assert slow.square().mean().sqrt() > 0.01
    assert 1.5 < len(slow) / len(fast) < 2.6
    half = espeak.say_with_espeak("A word.", rate=8000)
    assert len(half) == pytest.approx(len(espeak.say_with_espeak("A word.", rate=16000)) / 2, abs=1)


@installed
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"voice": "klingonese"}, "espeak-ng refused .*klingonese"),
        ({"variant": "x9"}, "choose one of m1"),
        ({"pitch": 100}, "pitch must be in 0..99"),
        ({"text": ""}, "said nothing"),
    ],
    ids=["voice", "variant", "pitch", "text"],
)
def test_what_the_program_cannot_do_is_named(settings, message):
    with pytest.raises(ValueError, match=message):
        espeak.say_with_espeak(**({"text": "Hello."} | settings))


@installed
def test_speakers_are_different_voices_first():
    people = espeak.draw_espeak_speakers(30, seed=0)
    assert len({(person.voice, person.variant) for person in people}) == 30
    assert people == espeak.draw_espeak_speakers(30, seed=0) != espeak.draw_espeak_speakers(30, seed=1)
    assert not any(person.voice.startswith("mb/") for person in people)


@installed
def test_a_written_world_is_read_as_voxceleb(tmp_path):
    conditions = Conditions(reverberation=0)
    tree = espeak.espeak_world(tmp_path / "world", speakers=(2, 2), utterances=4, rate=8000, trials=6, conditions=conditions)
    training = read_training_list(tree / "train_list.txt", tree / "dev/wav")
    assert len(training) == 8
    assert read_trials(tree / "veri_test2.txt").targets == 3
