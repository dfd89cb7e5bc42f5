"""What follows training: back-ends learnt from training speakers, calibration on speakers held out, and scores of trial lists.

A network and its scorer belong together: `fit` and `calibrate` leave `scorer.safetensors` beside the checkpoints of a run.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import lightning as L
import torch
from torch import Tensor

from projects.rsknet.calibration import Calibration, quality
from projects.rsknet.lists import Trials
from projects.rsknet.metrics import actual_dcf, cllr, min_cllr, summarise
from projects.rsknet.scoring import TOP, Backend, Scorer, Side
from shared.checkpoints import weights_digest

if TYPE_CHECKING:
    from torch.utils.data import DataLoader

    from projects.rsknet.data import SpeakerData
    from projects.rsknet.module import SpeakerVerification
    from projects.rsknet.recordings import Batches, Recordings

SCORER = "scorer.safetensors"
SHORTENED = (1.0, 2.0)
"""Seconds that held-out recordings are cut to as well, so that calibration knows what a short recording is worth."""
LEAST = 20
"""Speakers that as-norm takes at least of a small cohort; otherwise it takes a quarter, and at most 300."""
FAR = 0.01
"""False-accept rate that decisions are reported at."""


@dataclass(frozen=True)
class Embedded:
    """Embeddings (E,) as the network gives them, and seconds of the recordings, both by name."""

    vectors: dict[str, Tensor]
    seconds: dict[str, float]

    def quality(self, trials: Trials) -> Tensor:
        """Return the (N, 2) quality measures of trials; the files of a model count together."""
        enrol = torch.tensor([sum(self.seconds[name] for name in model) for model in trials.models])
        test = torch.tensor([self.seconds[name] for name in trials.tests])
        return quality(enrol[trials.enrol], test[trials.test])


def embed(trainer: L.Trainer, module: SpeakerVerification, loader: DataLoader, recordings: Recordings) -> Embedded:
    """Embed the recordings of a loader of `recordings.whole_loader`; all processes take part, and get all."""
    module.check_rate(recordings.rate)
    whole = cast("Batches", loader.dataset).whole
    module.check_lengths(recordings, whole.indices)
    L.Trainer.test(trainer, module, dataloaders=loader, verbose=False)
    vectors = dict(zip(whole.indices, module.gathered(whole.indices), strict=True))
    lengths = dict(zip(whole.indices, whole.lengths, strict=True))
    names = recordings.names
    return Embedded({names[i]: vectors[i] for i in lengths}, {names[i]: count / recordings.rate for i, count in lengths.items()})


def fit_scorer(trainer: L.Trainer, module: SpeakerVerification, data: SpeakerData) -> Scorer:
    """Learn the back-ends from training speakers, and calibrate each of them on the speakers held out.

    Held-out recordings are compared whole, and cut to `SHORTENED` where they are longer, on one side and on both; trials of each such kind are a
    group with thresholds of its own.

    Raises:
        ValueError: if there are too few speakers or recordings.
    """
    indices, speakers = data.background()
    found = embed(trainer, module, data.whole(data.train, indices=indices), data.train)
    numbers = {speaker: number for number, speaker in enumerate(sorted(set(speakers)))}
    vectors = torch.stack([found.vectors[data.train.names[index]] for index in indices])
    scorer = _learnt(vectors, torch.tensor([numbers[speaker] for speaker in speakers]), weights_digest(module.net))
    trials = data.held_trials
    sides = [embed(trainer, module, data.whole(data.held), data.held)]
    longest = max(sides[0].seconds.values())
    sides += [embed(trainer, module, data.whole(data.held, seconds), data.held) for seconds in SHORTENED if seconds < longest]
    pairs = [(one, other) for number, one in enumerate(sides) for other in sides[number:]]
    compared = [_compared(scorer, one, other, trials) for one, other in pairs]
    measures = torch.cat([measured for _, _, measured in compared])
    truth, groups = trials.is_target.repeat(len(pairs)), torch.arange(len(pairs)).repeat_interleave(len(trials))
    for backend in scorer.backends:
        scores = torch.cat([scorer.score(backend, enrol, tests, trials.enrol, trials.test) for enrol, tests, _ in compared])
        try:
            scorer = scorer.with_calibration(backend, Calibration.fit(scores, truth, measures, groups=groups))
        except ValueError as error:  # of a network that has learnt nothing yet
            if trainer.is_global_zero:
                print(f"{backend} is not calibrated: {error}")
    return scorer


def _learnt(vectors: Tensor, speakers: Tensor, network: str) -> Scorer:
    """Learn from training speakers; PLDA only if there are recordings enough for its covariances."""
    cohort = int(speakers.max()) + 1
    has_enough = len(speakers) - cohort >= vectors.shape[1]
    return Scorer.fit(vectors, speakers, network, has_enough, min(TOP, max(LEAST, cohort // 4)))


def _compared(scorer: Scorer, enrol: Embedded, test: Embedded, trials: Trials) -> tuple[Side, Side, Tensor]:
    """Return the models of one set of embeddings, of a file each, the tests of another, and the quality measures of the trials between them."""
    models = [name for (name,) in trials.models]
    sides = [scorer.side(torch.stack([one.vectors[name] for name in names])) for one, names in ((enrol, models), (test, trials.tests))]
    lengths = [torch.tensor([one.seconds[name] for name in names]) for one, names in ((enrol, models), (test, trials.tests))]
    return sides[0], sides[1], quality(lengths[0][trials.enrol], lengths[1][trials.test])


@dataclass(frozen=True)
class Judged:
    """A trial list judged by one back-end: its scores, their calibrated log-likelihood ratios, and measures of both."""

    trials: Trials
    backend: Backend
    scores: Tensor
    llrs: Tensor
    measures: dict[str, float]


def judge(scorer: Scorer, backend: Backend, found: Embedded, trials: Trials) -> Judged:
    """Score a trial list and measure it.

    Returns:
        With measures `eer` (a fraction), `min_dcf_01`, `min_dcf_001`; of the scores taken for ratios `cllr_before`; of the calibrated ratios
        `dcf_01` (at the threshold of Bayes' rule), `cllr` and `min_cllr` (bits), and `far` and `miss` at the thresholds that a part `FAR` of the
        impostors among held-out speakers reached in recordings of like length. A back-end without calibration has the first three, and its scores
        for ratios.
    """
    scores = scorer.score_trials(backend, found.vectors, trials)
    truth, calibration = trials.is_target, scorer.calibrations.get(backend)
    measures = summarise(scores, truth)
    if calibration is None:
        return Judged(trials, backend, scores, scores, measures)
    measured = found.quality(trials)
    llrs = calibration.llr(scores, measured)
    measures |= {
        "dcf_01": actual_dcf(llrs, truth),
        "cllr_before": cllr(scores, truth),
        "cllr": cllr(llrs, truth),
        "min_cllr": min_cllr(llrs, truth),
    }
    if calibration.fewest >= 1 / FAR:
        accepted = llrs >= calibration.threshold(FAR, measured)
        measures |= {"far": float(accepted[~truth].double().mean()), "miss": float((~accepted[truth]).double().mean())}
    return Judged(trials, backend, scores, llrs, measures)


def load_scorer(run: Path, module: SpeakerVerification) -> Scorer:
    """Read the scorer of a run, which must be of the module's weights.

    Raises:
        FileNotFoundError: if there is none.
        BadFileError: if it is damaged, or belongs to other weights.
    """
    file = run / SCORER
    if not file.is_file():
        raise FileNotFoundError(f"no scorer {file}: the verb calibrate makes one, as fit does when it ends")
    return Scorer.load(file, weights_digest(module.net))
