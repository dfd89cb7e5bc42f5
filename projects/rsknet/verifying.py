"""The verb `verify`: whether recordings are of the same person, with a calibrated probability and a decision (section 11 of the sheet)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from projects.rsknet import audio
from projects.rsknet.calibration import probability
from projects.rsknet.enrolling import Voices
from projects.rsknet.figures import draw_pair
from projects.rsknet.hearing import Heard, Models, calibrated, compare, find, listen
from projects.rsknet.scoring import Backend, Scorer
from shared.data.files import first_few
from shared.loggers import artefact_folder, log_figure, log_table
from shared.messages import shown_path
from shared.runs import digest

if TYPE_CHECKING:
    from projects.rsknet.module import SpeakerVerification
    from shared.cli import ProjectTrainer
    from shared.data.inputs import Input

REFUSED = 3
"""Exit code if a recording is refused; 1 and 2 stand for errors and wrong usage."""
PICTURED, PICTURED_SECONDS = 20, 15.0
"""Pairs that a picture is drawn of at most, and seconds of each recording."""
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
    all enrolled people, and accepted if it is accepted as one of them.

    Args:
        trainer: the trainer, with its device, precision and run.
        module: the network.
        scorer: its scorer.
        first: a recording, a folder or pattern of recordings of one person, or the name of an enrolled voice; or what is compared with all of them.
        second: a recording, a folder or a pattern.
        voices: enrolled people.
        far: false-accept rate of the decision among the speakers held out for calibration.
        prior: probability of the same person before anything is heard.
        backend: how to compare.

    Raises:
        FileNotFoundError, BadFileError: see `audio.find_audio`; silent recordings are refused.
        ValueError: if `far` or `prior` is out of its range, there are too few impostors for `far`, nobody is enrolled where somebody is needed, the
            back-end is not calibrated, or `first` is both a file and a voice.
    """
    threshold = _threshold(scorer, backend, far)
    probability(torch.zeros(1), prior)  # refuses a prior out of its range
    question = _ask(module, first, second, voices)
    keys = {given.file: digest(given.file) for given in (*question.enrolment, *question.tests)}
    heard = dict(listen(trainer, module, {key: file for file, key in keys.items()}))
    recordings = {keys[given.file]: heard[keys[given.file]] for given in question.enrolment}
    enrolled = question.voices if question.voices is not None else Voices.none(scorer).with_recordings(scorer, first, recordings)
    found = [heard[keys[given.file]] for given in question.tests]
    tests = Models.of(scorer, [[one] for one in found])
    scores, llrs = compare(scorer, backend, enrolled.models, tests)
    rows = _rows(question.tests, enrolled, tests, scores, llrs, threshold, prior)
    remarks = _remarks(question, keys, heard, enrolled, module.hparams.rate)
    log_table(trainer, "verdicts", rows)
    best = llrs.argmax(0).tolist()
    for place, voice in list(enumerate(best))[:PICTURED]:
        row = rows[place * len(enrolled) + voice]
        sides = [(given.name, _features(module, given)) for given in (*question.enrolment[:1], question.tests[place])]
        shift, impostors = module.fbank.shift / module.hparams.rate, calibrated(scorer, backend).impostors
        log_figure(trainer, f"pictures/{question.tests[place].name}", draw_pair(sentence(row, far), sides, shift, impostors, threshold, row["llr"]))
    _say([rows[place * len(enrolled) + voice] for place, voice in enumerate(best)], remarks, far, len(rows))
    print(f"the table: {shown_path(artefact_folder(trainer) / 'verdicts.csv')}")
    accepted = int((llrs.max(0).values >= threshold).sum())
    summary = {"recordings": len(question.tests), "accepted": accepted, "pairs": len(rows)}
    return Verified(rows, remarks, 0 if accepted == len(question.tests) else REFUSED, summary)


def _threshold(scorer: Scorer, backend: Backend, far: float) -> float:
    try:
        return calibrated(scorer, backend).threshold(far)
    except ValueError as error:
        if "impostor trials" not in str(error):
            raise
        raise ValueError(f"{error}, that is, calibrate with a larger --data.held_trials, or decide at a larger --far") from error


def _ask(module: SpeakerVerification, first: str, second: str | None, voices: Voices | None) -> _Question:
    """Understand what is to be compared."""
    names = () if voices is None else voices.names
    if second is None:
        if not names:
            raise ValueError("nobody is enrolled to compare it with: use the verb enroll first, or give two recordings: verify A.wav B.wav")
        return _Question([], voices, find(module, first))
    if first in names:
        if Path(first).expanduser().exists():
            raise ValueError(f"{first!r} is an enrolled voice, and a file or folder too: write ./{first} for that, or enrol under another name")
        assert voices is not None
        return _Question([], voices.only(first), find(module, second))
    try:
        return _Question(find(module, first), None, find(module, second))
    except FileNotFoundError as error:
        there = f"; enrolled voices are: {', '.join(first_few(names))}" if names else ""
        raise FileNotFoundError(f"{error}{there}") from error


def _rows(
    tests: Sequence[Input], enrolled: Voices, models: Models, scores: Tensor, llrs: Tensor, threshold: float, prior: float
) -> list[dict[str, Any]]:
    """Return a row a pair, recording by recording."""
    likely = probability(llrs, prior)
    return [
        {
            "enrolment": name,
            "file": given.name,
            "score": float(scores[voice, place]),
            "llr": float(llrs[voice, place]),
            "probability": float(likely[voice, place]),
            "accepted": bool(llrs[voice, place] >= threshold),
            "threshold": threshold,
            "enrolment_seconds": round(float(enrolled.seconds[voice]), 3),
            "seconds": round(float(models.seconds[place]), 3),
        }
        for place, given in enumerate(tests)
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


def sentence(row: Mapping[str, Any], far: float) -> str:
    """Say the verdict on a pair in words, from its row."""
    is_likely, is_accepted = row["probability"] >= 0.5, row["accepted"]
    verdict = "in doubt" if is_likely != is_accepted else "the same speaker" if is_likely else "another speaker"
    decision = f"{'accepted' if is_accepted else 'refused'} at a false-accept rate of {100 * far:g} %"
    ratio = f"log-likelihood ratio {row['llr']:.2f}, threshold {row['threshold']:.2f}"
    return f"{row['file']} and {row['enrolment']}: {verdict}: probability {row['probability']:.2f}; {decision} ({ratio})"


@torch.no_grad()
def _features(module: SpeakerVerification, given: Input) -> Tensor:
    """Return the features of a recording's beginning, (F, T)."""
    rate = module.hparams.rate
    samples = min(round(PICTURED_SECONDS * rate), audio.info(given.file).samples_at(rate))
    return module.fbank(audio.read(given.file, rate, 0, samples).to(module.device)).cpu()


def _say(rows: Sequence[Mapping[str, Any]], remarks: Sequence[str], far: float, pairs: int) -> None:
    for row in rows[:PRINTED]:
        print(f"  {sentence(row, far)}")
    for remark in first_few(remarks, PRINTED):
        print(f"look at {remark}")
    accepted = sum(row["accepted"] for row in rows)
    print(f"{accepted} of {len(rows)} recordings accepted" + (f", each compared with {pairs // len(rows)} people" if pairs > len(rows) else ""))
