"""What the verbs embed, enroll and verify share: a user's recordings with their embeddings and what spoils them, and how they compare."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from projects.rsknet import audio
from projects.rsknet.calibration import Calibration, quality
from projects.rsknet.features import energy_vad
from projects.rsknet.recordings import FileRecordings, whole_loader
from projects.rsknet.scoring import Backend, Scorer, Side
from shared.messages import Interval

if TYPE_CHECKING:
    from projects.rsknet.module import SpeakerVerification
    from shared.cli import ProjectTrainer
    from shared.data.inputs import Input

SHORT, QUIET, CLIPPED = 1.0, -50.0, 0.01
"""Seconds of speech, level in dBFS and part of clipped samples beyond which a recording is remarked on."""
FULL = 0.999
"""Part of full scale from which a sample counts as clipped."""
LEAST = 0.5
"""Seconds of speech below which a recording is not judged: a network says something of any sound, even of none."""
REFUSED = 3
"""Exit code if a recording is refused, not judged, or unlike what it is added to; 1 and 2 stand for errors and wrong usage."""
_SILENCE = 1e-12  # mean square that levels end at, -120 dBFS
_PIECE = 60  # seconds that are looked at together
_PAIRS = 1 << 20  # that are compared at a time


class Heard(NamedTuple):
    """A recording as a network hears it.

    Attributes:
        vector: (E,) float32 embedding as the network gives it.
        seconds: its length.
        rate: its own samples a second.
        level: root mean square in dB below full scale, -120 at least.
        clipped: part of the samples at full scale.
        speech: part of the frames that are speech, by energy.
    """

    vector: Tensor
    seconds: float
    rate: int
    level: float
    clipped: float
    speech: float

    @property
    def lack(self) -> str:
        """Why the recording cannot be judged; empty if it can."""
        spoken = self.speech * self.seconds
        return f"only {math.floor(10 * spoken) / 10:.1f} s of speech" if spoken < LEAST else ""

    def remarks(self, rate: int) -> list[str]:
        """Say what makes the recording a poor one for a network that listens at `rate`."""
        said = [f"{self.lack}, too little to be judged"] if self.lack else []
        if LEAST <= (spoken := self.speech * self.seconds) < SHORT:
            said.append(f"only {spoken:.1f} s of speech")
        if self.level < QUIET:
            said.append(f"very quiet, {self.level:.0f} dBFS")
        if self.clipped > CLIPPED:
            said.append(f"{self.clipped:.0%} of the samples are clipped")
        if self.rate < rate:
            said.append(f"recorded at {self.rate} Hz, so that the band from {self.rate // 2} to {rate // 2} Hz is empty")
        return said


class Models(NamedTuple):
    """M sides of comparisons.

    Attributes:
        vectors: (M, E) float64 means of embeddings after `scoring.unit`.
        projected: (M, D) float64 means of their projections by PLDA; D is 0 if the scorer has none.
        counts: (M,) int64 recordings of each.
        seconds: (M,) float64 length of them together.
    """

    vectors: Tensor
    projected: Tensor
    counts: Tensor
    seconds: Tensor

    @classmethod
    def of(cls, scorer: Scorer, groups: Sequence[Sequence[Heard]]) -> Models:
        """Make a side of each group of recordings of one person."""
        files = scorer.side(torch.stack([one.vector for group in groups for one in group]))
        seconds = torch.tensor([math.fsum(one.seconds for one in group) for group in groups], dtype=torch.float64)
        return cls(*files.averaged(torch.tensor([len(group) for group in groups])), seconds)

    @property
    def side(self) -> Side:
        """What scores are of."""
        return Side(self.vectors, self.projected, self.counts)

    def rows(self, first: int, last: int) -> Models:
        """Return the sides from `first` to before `last`."""
        return Models(*(column[first:last] for column in self))


# ---- listening


def find(module: SpeakerVerification, path: str) -> list[Input]:
    """Find recordings that the network can embed; see `audio.find_audio`, which refuses silent ones and those shorter than a frame here.

    Those in formats that are not read are passed over, and their number is printed.
    """
    unread = [] if Path(path).expanduser().is_file() else audio.passed_over(path)
    names = f"{len(unread)} files ending in {', '.join(audio.UNREAD)} are passed over, such as {unread[0].name}" if unread else ""
    try:
        found = audio.find_audio(path, module.hparams.frame_length / 1000, allow_silence=False)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}; {names}: convert them into .wav" if names else str(error)) from error
    if names:
        print(f"{names}: convert them into .wav to have them too")
    return found


def listen(trainer: ProjectTrainer, module: SpeakerVerification, files: Mapping[str, Path]) -> Iterator[tuple[str, Heard]]:
    """Embed recordings in batches of like lengths, the longest first, and yield each with its key.

    Args:
        trainer: its device and precision are used.
        module: the network, which is put on the device.
        files: by key.

    Raises:
        BadFileError: if one cannot be read.
        ValueError: if one needs more memory than there is, or its embedding is not finite.
    """
    if not files:
        return
    recordings = FileRecordings(files, module.hparams.rate)
    module.to(trainer.strategy.root_device).eval()
    progress, done = Interval(), 0
    for batch in whole_loader(recordings):
        places = batch["index"].tolist()
        with trainer.precision_plugin.forward_context():
            vectors = _embedded(module, batch, recordings.files[places[0]])
        for place, vector, waveform, count in zip(places, vectors, batch["waveform"], batch["length"].tolist(), strict=True):
            if not vector.isfinite().all():
                raise ValueError(f"{recordings.files[place]}: its embedding is not finite; use --trainer.precision 32, or another checkpoint")
            yield recordings.names[place], _heard(module, recordings.files[place], vector, waveform[:count])
        done += len(places)
        if progress.is_over():
            print(f"  recording {done} of {len(recordings)}", flush=True)


def _embedded(module: SpeakerVerification, batch: Mapping[str, Tensor], longest: Path) -> Tensor:
    try:
        return module(batch["waveform"].to(module.device), batch["length"].to(module.device)).cpu()
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise  # on a CPU, PyTorch has no error of its own for that
        raise ValueError(f"{longest} needs more memory than there is: embed it in shorter windows, by a smaller --model.longest") from error


def _heard(module: SpeakerVerification, file: Path, vector: Tensor, waveform: Tensor) -> Heard:
    about = audio.info(file)
    level = 10 * math.log10(max(float(waveform.double().square().mean()), _SILENCE))
    speech = energy_vad(module.fbank.log_energy(waveform)[None]).float().mean()
    return Heard(vector, about.seconds, about.rate, level, _clipped(file, about, waveform, module.hparams.rate), float(speech))


def _clipped(file: Path, about: audio.Info, waveform: Tensor, rate: int) -> float:
    """Part of the samples at full scale in the worst channel of the file itself: resampling and the mean of channels move them off it."""
    if about.rate == rate and about.channels == 1:
        return int((waveform.abs() >= FULL).sum()) / about.samples
    step, counts = _PIECE * about.rate, [0] * about.channels
    for start in range(0, about.samples, step):
        for channel in range(about.channels):
            piece = audio.read(file, about.rate, start, min(step, about.samples - start), channel)
            counts[channel] += int((piece.abs() >= FULL).sum())
    return max(counts) / about.samples


# ---- comparing


def shown(probability: float) -> str:
    """Write a probability in words: none is certain."""
    return ">0.99" if probability > 0.995 else "<0.01" if probability < 0.005 else f"{probability:.2f}"


def calibrated(scorer: Scorer, backend: Backend) -> Calibration:
    """Return the calibration of a back-end.

    Raises:
        ValueError: if the scorer has no such back-end.
    """
    if backend not in scorer.calibrations:
        there = ", ".join(scorer.calibrations) or "none"
        raise ValueError(f"the scorer has no calibrated back-end {backend!r}, but {there}: choose one by --backend, or run the verb calibrate")
    return scorer.calibrations[backend]


def pair_quality(enrol: Models, tests: Models) -> Tensor:
    """Return the (M, K, 2) quality measures of each of M sides with each of K."""
    left, right = torch.broadcast_tensors(enrol.seconds[:, None], tests.seconds)
    return quality(left.flatten(), right.flatten()).reshape(*left.shape, 2)


def compare(scorer: Scorer, backend: Backend, enrol: Models, tests: Models) -> tuple[Tensor, Tensor]:
    """Compare each of M sides with each of K.

    Returns:
        Two (M, K) float64: scores, and calibrated natural logarithms of likelihood ratios.
    """
    parts, step = [], max(1, _PAIRS // max(1, len(tests.counts)))
    for first in range(0, len(enrol.counts), step):
        rows = enrol.rows(first, first + step)
        left, right = torch.meshgrid(torch.arange(len(rows.counts)), torch.arange(len(tests.counts)), indexing="ij")
        left, right = left.flatten(), right.flatten()
        scores = scorer.score(backend, rows.side, tests.side, left, right)
        llrs = calibrated(scorer, backend).llr(scores, pair_quality(rows, tests).flatten(0, 1))
        parts.append(torch.stack([scores, llrs]).reshape(2, len(rows.counts), -1))
    scores, llrs = torch.cat(parts, dim=1)
    return scores, llrs
