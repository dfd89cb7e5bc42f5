"""The verb `verify`: whether recordings are of the same person, with a calibrated probability and a decision."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from projects.rsknet import audio
from projects.rsknet.calibration import Calibration, probability
from projects.rsknet.enrolling import Voices, clean_name
from projects.rsknet.figures import draw_pair, picture_name
from projects.rsknet.hearing import REFUSED, Heard, Models, calibrated, compare, find, listen, pair_quality, shown
from projects.rsknet.scoring import Backend, Scorer
from shared.data.files import first_few
from shared.loggers import artefact_folder, log_figure, log_table
from shared.messages import shown_path
from shared.runs import digest, remove

if TYPE_CHECKING:
    from projects.rsknet.module import SpeakerVerification
    from shared.cli import ProjectTrainer
    from shared.data.inputs import Input

PICTURED, PICTURED_SECONDS = 20, 15.0
"""Pairs that a picture is drawn of at most, and seconds of each recording."""
BEYOND = 2.0
"""Factor by which durations may leave the range of the calibration before that is remarked on."""
PRINTED = 20
"""Recordings whose verdict is printed at most."""


@dataclass(frozen=True)
class Verified:
    """What `verify` returns: a row a pair, what should be looked at, 0 or `REFUSED` as exit code, and the figures that head the run's page."""

    rows: list[dict[str, Any]]
    remarks: list[str]
    exit_code: int
    summary: dict[str, Any]


@dataclass(frozen=True)
class _Question:
    """Who is claimed to speak, by recordings or enrolled, and in which recordings."""

    enrolment: list[Input]
    voices: Voices | None
    tests: list[Input]


@dataclass(frozen=True)
class _Rates:
    """False-accept rates of a decision: in one comparison, and of a recording that is compared with so many people and accepted if it is once."""

    pair: float
    recording: float
    people: int


def verify(
    trainer: ProjectTrainer,
    module: SpeakerVerification,
    scorer: Scorer,
    first: str,
    second: str | None = None,
    voices: Voices | None = None,
    far: float = 0.01,
    prior: float = 0.5,
    backend: Backend = "cosine_asnorm",
) -> Verified:
    """Tell whether recordings are of one person, and print, write and draw what is found.

    Each recording of `second` is compared with `first`, a person by recordings or enrolled; without `second`, each one of `first` is compared with
    all enrolled people, and accepted if it is accepted as one of them. Then each of V comparisons is decided at `far` / V, so that a stranger is
    accepted as anybody at a rate of `far` at most (Bonferroni), if there are impostors enough for that.

    A recording with too little speech is not judged, and so is not accepted.

    Args:
        trainer: the trainer, with its device, precision and run.
        module: the network.
        scorer: its scorer.
        first: a recording, a folder or pattern of recordings of one person, or the name of an enrolled voice; or what is compared with all of them.
        second: a recording, a folder or a pattern.
        voices: enrolled people.
        far: false-accept rate of the decision on a recording, as measured on pairs of like durations of the speakers held out for calibration.
        prior: probability of the same person before anything is heard.
        backend: how to compare.

    Raises:
        FileNotFoundError, BadFileError: see `audio.find_audio`; silent recordings are refused.
        ValueError: if `far` or `prior` is out of its range, there are too few impostors for `far`, nobody is enrolled where somebody is needed, the
            back-end is not calibrated, or `first` is both a file and a voice.
    """
    calibration = calibrated(scorer, backend)
    _check(calibration, far, prior)
    question = _ask(module, first, second, voices)
    rates = _rates(calibration, far, len(question.voices) if question.voices is not None else 1)
    remove(artefact_folder(trainer) / "pictures")
    keys = {given.file: digest(given.file) for given in (*question.enrolment, *question.tests)}
    heard = dict(listen(trainer, module, {key: file for file, key in keys.items()}))
    recordings = {keys[given.file]: heard[keys[given.file]] for given in question.enrolment}
    recordings = {key: one for key, one in recordings.items() if not one.lack} or recordings
    enrolled = question.voices if question.voices is not None else Voices.none(scorer).with_recordings(scorer, first, recordings)
    found = [heard[keys[given.file]] for given in question.tests]
    tests = Models.of(scorer, [[one] for one in found])
    scores, llrs = compare(scorer, backend, enrolled.models, tests)
    qualities = pair_quality(enrolled.models, tests).flatten(0, 1)
    thresholds = calibration.threshold(rates.pair, qualities).reshape(llrs.shape)
    claim = next((f"{one.lack} in {first}" for one in recordings.values() if one.lack), "")
    reasons = [one.lack or claim for one in found]
    rows = _rows(question.tests, enrolled, tests, scores, llrs, thresholds, rates, prior, reasons)
    remarks = _remarks(question, keys, heard, enrolled, module.hparams.rate)
    remarks += _beyond(calibration, question.tests, enrolled, tests, reasons) + _more(rates, far)
    log_table(trainer, "verdicts", rows)
    best = (llrs - thresholds).argmax(0).tolist()
    _say([rows[place * len(enrolled) + voice] for place, voice in enumerate(best)], remarks, rates.people)
    print(f"the table: {shown_path(artefact_folder(trainer) / 'verdicts.csv')}")
    groups = calibration.nearest(qualities).reshape(llrs.shape)
    for place, voice in [pair for pair in enumerate(best) if not reasons[pair[0]]][:PICTURED]:
        row = rows[place * len(enrolled) + voice]
        sides = [(given.name, _features(module, given)) for given in (*question.enrolment[:1], question.tests[place])]
        shift, impostors = module.fbank.shift / module.hparams.rate, calibration.impostors[int(groups[voice, place])]
        figure = draw_pair(sentence(row, rates.people), sides, shift, impostors, row["threshold"], row["llr"])
        log_figure(trainer, picture_name(question.tests[place].name), figure)
    accepted = len({row["file"] for row in rows if row["accepted"]})
    summary = {"recordings": len(question.tests), "accepted": accepted, "pairs": len(rows)}
    return Verified(rows, remarks, 0 if accepted == len(question.tests) else REFUSED, summary)


def _check(calibration: Calibration, far: float, prior: float) -> None:
    """Refuse numbers out of their range, and a rate for which a group has too few impostors."""
    for name, value in (("far", far), ("prior", prior)):
        if not 0 < value < 1:
            raise ValueError(f"{name} must lie between 0 and 1, without these, got {value:g}: correct --{name}")
    try:
        calibration.threshold(far, calibration.centres)
    except ValueError as error:
        if "impostor trials" not in str(error):
            raise
        raise ValueError(f"{error}, that is, calibrate with a larger --data.held_trials, or decide at a larger --far") from error


def _rates(calibration: Calibration, far: float, people: int) -> _Rates:
    """Share a rate among comparisons with several people, if each group has impostors enough for that; otherwise comparisons keep it."""
    if people == 1 or calibration.fewest * far / people >= 1 - 1e-9:
        return _Rates(far / people, far, people)
    return _Rates(far, 1 - (1 - far) ** people, people)


def _more(rates: _Rates, far: float) -> list[str]:
    if rates.recording <= far:
        return []
    needed = math.ceil(rates.people / far - 1e-9)
    said = f"a stranger is accepted as one of {rates.people} people at a rate of about {100 * rates.recording:.3g} %, not {100 * far:g} %"
    return [f"all decisions: {said}, for which {needed} impostor trials of each kind are needed: calibrate with a larger --data.held_trials"]


def _beyond(calibration: Calibration, tests: Sequence[Input], enrolled: Voices, models: Models, reasons: Sequence[str]) -> list[str]:
    """Say which pairs are much shorter or longer than what was calibrated on, a remark a recording."""
    excess = calibration.excess(pair_quality(enrolled.models, models).flatten(0, 1)).reshape(len(enrolled), -1)
    low, high = (float(value) for value in (calibration.span[0].min().exp(), calibration.span[1].max().exp()))
    said = []
    for place in (excess.amax(0) > math.log(BEYOND)).nonzero().flatten().tolist():
        if reasons[place]:
            continue
        voice = int(excess[:, place].argmax())
        pair = f"{models.seconds[place]:.1f} s against {enrolled.seconds[voice]:.1f} s of {enrolled.names[voice]}"
        said.append(f"{tests[place].name}: {pair}: the calibration knows {low:.1f} to {high:.1f} s, so that probability and decision are less sure")
    return said


def _ask(module: SpeakerVerification, first: str, second: str | None, voices: Voices | None) -> _Question:
    """Understand what is to be compared."""
    names = () if voices is None else voices.names
    if second is None and not names:
        raise ValueError("nobody is enrolled to compare it with: use enroll A.wav --name NAME first, or give two recordings: verify A.wav B.wav")
    for given in (first, second):
        if given is not None and clean_name(given) in names and given != first and not Path(given).expanduser().exists():
            other = "RECORDING" if clean_name(first) in names else first
            raise ValueError(f"{given!r} is an enrolled voice and no recording; the voice comes first, recordings second: verify {given!r} {other}")
    try:
        if second is None:
            return _Question([], voices, find(module, first))
        if voices is None or (name := clean_name(first)) not in names:
            return _Question(_of_one(find(module, first), first), None, find(module, second))
        if Path(first).expanduser().exists():
            raise ValueError(f"{first!r} is an enrolled voice, and a file or folder too: write ./{first} for that, or enrol under another name")
        return _Question([], voices.only(name), find(module, second))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}; {_advice(first, second, names)}") from error


def _advice(first: str, second: str | None, names: Sequence[str]) -> str:
    if not names:
        return "nobody is enrolled either: enrol people by enroll A.wav --name NAME, or give recordings"
    if second is None and clean_name(first) in names:
        return f"it is an enrolled voice: say which recordings are compared with it: verify {first!r} RECORDING"
    return f"enrolled voices are: {', '.join(first_few(names))}"


def _of_one(inputs: list[Input], path: str) -> list[Input]:
    """Refuse a folder with the recordings of several people, each in a sub-folder."""
    folders = list(dict.fromkeys(given.name.rpartition("/")[0].partition("/")[0] for given in inputs))
    if len(folders) > 1 and Path(path).expanduser().is_dir():
        few = ", ".join(first_few([folder or "." for folder in folders], 3))
        mend = f"name the folder of one, or a pattern such as '{path}/*/*.wav' if all are of one; the verb enroll takes several people"
        raise ValueError(f"{path} has recordings in several folders ({few}), as of several people: {mend}")
    return inputs


def _rows(
    tests: Sequence[Input],
    enrolled: Voices,
    models: Models,
    scores: Tensor,
    llrs: Tensor,
    thresholds: Tensor,
    rates: _Rates,
    prior: float,
    reasons: Sequence[str],
) -> list[dict[str, Any]]:
    """Return a row a pair, recording by recording; those that are not judged, for a reason, have no score."""
    likely = probability(llrs, prior)
    return [
        {
            "enrolment": name,
            "file": given.name,
            "score": None if reason else float(scores[voice, place]),
            "llr": None if reason else float(llrs[voice, place]),
            "probability": None if reason else float(likely[voice, place]),
            "accepted": not reason and bool(llrs[voice, place] >= thresholds[voice, place]),
            "reason": reason,
            "threshold": float(thresholds[voice, place]),
            "pair_far": rates.pair,
            "recording_far": rates.recording,
            "enrolment_seconds": round(float(enrolled.seconds[voice]), 3),
            "seconds": round(float(models.seconds[place]), 3),
        }
        for place, (given, reason) in enumerate(zip(tests, reasons, strict=True))
        for voice, name in enumerate(enrolled.names)
    ]


def _remarks(question: _Question, keys: Mapping[Path, str], heard: Mapping[str, Heard], enrolled: Voices, rate: int) -> list[str]:
    """Say which recordings are poor, and which are compared with themselves."""
    inputs = {given.file: given.name for given in (*question.enrolment, *question.tests)}
    said = [f"{name}: {', '.join(remarks)}" for file, name in inputs.items() if (remarks := heard[keys[file]].remarks(rate))]
    for given in question.tests:
        if owners := [name for name, own in zip(enrolled.names, enrolled.digests, strict=True) if keys[given.file] in own]:
            said.append(f"{given.name}: is itself a recording that {owners[0]} was made of, which tells nothing")
    return said


def sentence(row: Mapping[str, Any], people: int = 1) -> str:
    """Say the verdict on a pair in words, from its row, and among how many people it was decided."""
    if row["reason"]:
        return f"{row['file']}" + (f" and {row['enrolment']}" if people == 1 else "") + f": not judged: {row['reason']}"
    is_likely, is_accepted = row["probability"] >= 0.5, row["accepted"]
    verdict = "in doubt" if is_likely != is_accepted else "the same speaker" if is_likely else "another speaker"
    rate = f"{100 * row['recording_far']:.3g} %" + (f" among {people} people, {100 * row['pair_far']:.3g} % for each" if people > 1 else "")
    decision = f"{'accepted' if is_accepted else 'refused'} at a false-accept rate of {rate}"
    ratio = f"log-likelihood ratio {row['llr']:.2f}, threshold {row['threshold']:.2f}"
    return f"{row['file']} and {row['enrolment']}: {verdict}: probability {shown(row['probability'])}; {decision} ({ratio})"


@torch.no_grad()
def _features(module: SpeakerVerification, given: Input) -> Tensor:
    """Return the features of a recording's beginning, (F, T)."""
    rate = module.hparams.rate
    samples = min(round(PICTURED_SECONDS * rate), audio.info(given.file).samples_at(rate))
    return module.fbank(audio.read(given.file, rate, 0, samples).to(module.device)).cpu()


def _say(rows: Sequence[Mapping[str, Any]], remarks: Sequence[str], people: int) -> None:
    for row in rows[:PRINTED]:
        print(f"  {sentence(row, people)}")
    for remark in first_few(remarks, PRINTED):
        print(f"look at {remark}")
    accepted = sum(row["accepted"] for row in rows)
    print(f"{accepted} of {len(rows)} recordings accepted" + (f", each compared with {people} people" if people > 1 else ""))
