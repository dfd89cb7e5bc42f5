"""Training of a network that maps recordings to speaker embeddings, and embedding with it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from projects.rsknet.augmentation import spec_augment
from projects.rsknet.features import Fbank, Window, energy_vad, subtract_mean
from projects.rsknet.lowrank import LowRankLinear, semi_orthogonal_step
from projects.rsknet.metrics import summarise
from projects.rsknet.model import RSKNet, build_net
from projects.rsknet.remembered import digests
from projects.rsknet.scoring import cosine, models, unit
from shared.checkpoints import load_checkpoint
from shared.data.files import BadFileError, first_few
from shared.distributed import gather_rows, rank
from shared.losses import MarginSoftmax, margin_ramp
from shared.seeding import derive_seed, generator
from shared.training import check_finite, evaluating

if TYPE_CHECKING:
    from projects.rsknet.data import SpeakerData
    from projects.rsknet.recordings import Recordings

Loss = Literal["aam", "am", "softmax"]
Optimiser = Literal["sgd", "adamw"]
Schedule = Literal["exponential", "onecycle"]
ORTHOGONAL_EVERY = 4
"""Steps between two that bring the first factor of a low-rank matrix near to orthogonal rows, as in factorised TDNNs."""


class SpeakerVerification(L.LightningModule):
    """Learns to tell speakers apart, whoever they are, from recordings of other speakers.

    Args:
        net: name of the network: rsknet_mtsp, rsknet_mtsp_l, rsknet18_mtsp, rsknet18_mtsp_l, resnet34, xvector, ecapa512, ecapa1024; or a small
            one: tiny_rsknet_mtsp, tiny_rsknet_mtsp_l, tiny_resnet, tiny_xvector, tiny_ecapa.
        options: options of the network besides those of its name, such as {block: basic}, {scales: [4]}, {rank: 64} or {dilations: [[1, 1], [1, 3]]}.
        weights: checkpoint that training begins with, of the same network or of the full one to a light one; its classes are taken too where they are
            those of the data.
        rate: samples a second.
        bins: mel bins.
        frame_length: of a frame, in milliseconds.
        frame_shift: from frame to frame, in milliseconds.
        window: of a frame: hamming, povey or hanning.
        coefficients: takes so many MFCC instead of log-mel features.
        dither: deviation of the noise that is added in training, in steps of 16-bit samples.
        mean_window: subtracts the mean of so many frames around each one; null that of the whole utterance.
        vad: leaves out frames without speech, by Kaldi's rule of energy.
        spec_augment: blanks a band of frames and of mel bins of each training crop.
        longest: recordings of more seconds are embedded in windows of this length, half a window apart, whose embeddings are averaged.
        loss: aam (margin on the angle), am (on the cosine) or softmax.
        margin: of the loss.
        scale: of the cosines.
        subcentres: centres of each training speaker, the nearest of which counts.
        ramp: parts of the training between which the margin rises from 0.
        semi_orthogonal: keeps the first factor of a low-rank embedding near to orthogonal rows.
        optimiser: sgd with Nesterov momentum 0.9, or adamw.
        lr: highest learning rate.
        final_lr: learning rate at the end of an exponential schedule.
        warm_up: part of the training in which the learning rate rises from 0, for an exponential schedule.
        weight_decay: weight decay.
        schedule: exponential, or onecycle.
        average: averages the weights after so many of the last epochs; 0 takes the epoch of the least error on held-out speakers.
        seed: seed of the weights.

    Attributes:
        validated: embeddings of held-out recordings at the last validation, scaled to length 1.
        learnt: digests of the speakers trained on, in the order of their classes.
        earlier: digests of others, on whom the weights that training begins with were trained.
    """

    monitor = ("val/eer", "min")

    if TYPE_CHECKING:
        hparams: Any  # the arguments below, by name

    def __init__(
        self,
        net: str = "tiny_rsknet_mtsp",
        options: dict[str, Any] | None = None,
        weights: str | None = None,
        rate: int = 8000,
        bins: int = 24,
        frame_length: float = 25.0,
        frame_shift: float = 12.5,
        window: Window = "hamming",
        coefficients: int | None = None,
        dither: float = 1.0,
        mean_window: int | None = None,
        vad: bool = False,
        spec_augment: bool = False,
        longest: float = 60.0,
        loss: Loss = "aam",
        margin: float = 0.2,
        scale: float = 20.0,
        subcentres: int = 1,
        ramp: list[float] | None = None,
        semi_orthogonal: bool = False,
        optimiser: Optimiser = "adamw",
        lr: float = 4e-3,
        final_lr: float = 5e-5,
        warm_up: float = 0.04,
        weight_decay: float = 1e-4,
        schedule: Schedule = "onecycle",
        average: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        _check(self.hparams)
        self.fbank = Fbank(rate, bins, frame_length, frame_shift, window, coefficients=coefficients)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(seed, "rsknet weights"))
            self.net = build_net(net, self.fbank.features, options).to(memory_format=torch.channels_last)  # half of the time on a CPU
        self.head: MarginSoftmax | None = None  # of training only: what is kept of a network knows no speakers
        self.embedded: list[tuple[Tensor, Tensor]] = []
        self.validated = torch.empty(0, self.embedding_size)
        self.learnt: list[str] = []
        self.earlier: list[str] = []

    @property
    def embedding_size(self) -> int:
        """E, the length of an embedding."""
        return cast(int, self.net.embedding_size)

    # ---- what it does for its user

    @torch.no_grad()
    def forward(self, waveforms: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Embed recordings, in evaluation mode whatever mode the network is in.

        Args:
            waveforms: (B, N) in [-1, 1] at `rate`.
            lengths: (B,) samples of each that are no padding; None for all.

        Returns:
            (B, E) float32 embeddings; their angles tell speakers apart.

        Raises:
            ValueError: if one is shorter than a frame.
        """
        longest = int(self.hparams.longest * self.hparams.rate)
        with evaluating(self):
            if waveforms.shape[1] <= longest:
                return self.net(*self.features(waveforms, lengths)).float()
            given = [len(row) for row in waveforms] if lengths is None else lengths.tolist()
            return torch.stack([self._embed_long(row[:count], longest) for row, count in zip(waveforms, given, strict=True)])

    def _embed_long(self, waveform: Tensor, longest: int) -> Tensor:
        """Average the embeddings of windows of one length that overlap by half and cover (N,) from its beginning to its end."""
        if len(waveform) <= longest:
            return self.net(*self.features(waveform[None])).float()[0]
        count = math.ceil(2 * (len(waveform) - longest) / longest) + 1
        starts = torch.linspace(0, len(waveform) - longest, count, dtype=torch.float64).long().tolist()
        return torch.stack([self.net(*self.features(waveform[None, start : start + longest])).float()[0] for start in starts]).mean(0)

    def features(self, waveforms: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Map (B, N) waveforms to (B, F, T) features without their mean, and the (B,) valid frames, None where all are valid.

        Raises:
            ValueError: if a recording is shorter than a frame, or the network's weights are of half precision.
        """
        if (dtype := next(self.net.parameters()).dtype).itemsize < 4:
            raise ValueError(f"the network's weights are {dtype}, too coarse for statistics over time: use --trainer.precision bf16-mixed, or 32")
        features = self.fbank(waveforms)
        frames = None if lengths is None else self.fbank.frames(lengths)
        if lengths is not None and frames is not None:
            if int(frames.min()) < 1:
                raise ValueError(f"a recording of {int(lengths.min())} samples is shorter than a frame of {self.fbank.length}")
            frames = None if int(frames.min()) == features.shape[2] else frames
        features = subtract_mean(features, frames, self.hparams.mean_window).to(dtype)
        return _spoken(features, energy_vad(self.fbank.log_energy(waveforms), frames), frames) if self.hparams.vad else (features, frames)

    # ---- training

    def setup(self, stage: str) -> None:
        if stage != "fit" or self.head is not None:
            return
        data: SpeakerData = self.trainer.datamodule  # type: ignore[attr-defined]
        given = self.hparams
        self.check_rate(data.rate)
        self.check_lengths(data.held)
        self.learnt = digests(sorted(set(data.train_speakers)))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(given.seed, "rsknet classes"))
            self.head = MarginSoftmax(self.embedding_size, data.classes, given.loss, 0.0, given.scale, given.subcentres)
        if given.weights is not None and self.trainer.ckpt_path is None:
            self._begin_with(given.weights)

    def check_rate(self, rate: int) -> None:
        """Refuse recordings of another rate.

        Raises:
            ValueError: naming both.
        """
        if rate != self.hparams.rate:
            raise ValueError(f"the network listens at {self.hparams.rate} samples a second, the data have {rate}: set data.rate to model.rate")

    def check_lengths(self, recordings: Recordings, indices: Sequence[int] | None = None) -> None:
        """Refuse recordings, all or those of some numbers, that are shorter than a frame.

        Raises:
            BadFileError: naming the first of them.
        """
        places = range(len(recordings)) if indices is None else indices
        short = [recordings.names[place] for place, count in zip(places, recordings.lengths(places), strict=True) if count < self.fbank.length]
        if short:
            length = f"{self.fbank.length} samples, {self.fbank.length / self.hparams.rate:g} s"
            raise BadFileError(
                "\n  ".join([f"{len(short)} recordings are shorter than a frame ({length}):", *first_few(short), "remove them, and from lists too"])
            )

    def teardown(self, stage: str) -> None:
        if stage == "fit":
            self.head = None

    def _begin_with(self, path: str) -> None:
        from projects.rsknet.lightening import begin_with

        begin_with(self, load_checkpoint(path), path)

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> Tensor:
        given, labels, head = self.hparams, batch["label"], self.head
        assert head is not None
        features, frames = self.features(self._dithered(batch["waveform"]))
        if given.spec_augment:
            features = self._blanked(features)
        head.margin = self.margin_at(self.global_step)
        embeddings = self.net(features, frames)
        loss = F.cross_entropy(head(embeddings, labels), labels)
        self.log("train/loss", loss.detach(), batch_size=len(labels), sync_dist=True)
        self.log("train/margin", head.margin, batch_size=len(labels))
        return loss

    def margin_at(self, step: int) -> float:
        """Return the margin of a step: 0 before the ramp, `margin` behind it."""
        given, steps = self.hparams, self.trainer.estimated_stepping_batches
        if given.ramp is None or given.loss == "softmax" or math.isinf(steps):
            return 0.0 if given.loss == "softmax" else given.margin
        return margin_ramp(step, int(given.ramp[0] * steps), int(given.ramp[1] * steps), given.margin)

    def _blanked(self, features: Tensor) -> Tensor:
        """Blank bands that are a function of the step and the process."""
        return spec_augment(features, generator(self.hparams.seed, "spec augment", self.global_step, rank()))

    def _dithered(self, waveforms: Tensor) -> Tensor:
        """Add noise that is a function of the step and the process, so that training goes on from a checkpoint as if unbroken."""
        if not self.hparams.dither:
            return waveforms
        rng = generator(self.hparams.seed, "dither", self.global_step, rank(), device=waveforms.device)
        noise = torch.randn(waveforms.shape, generator=rng, device=waveforms.device)
        return waveforms.add(noise, alpha=self.hparams.dither / 2**15)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        embed = self.net.embed if isinstance(self.net, RSKNet) else None
        is_due = self.global_step > 0 and self.global_step % ORTHOGONAL_EVERY == 0
        if self.hparams.semi_orthogonal and isinstance(embed, LowRankLinear) and is_due:
            semi_orthogonal_step(embed.first.weight)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        given, steps = self.hparams, self.trainer.estimated_stepping_batches
        if math.isinf(steps):
            raise ValueError("the learning rate falls to the end of the training: set trainer.max_epochs or trainer.max_steps")
        optimizer: torch.optim.Optimizer
        if given.optimiser == "sgd":
            optimizer = torch.optim.SGD(self.parameters(), given.lr, momentum=0.9, nesterov=True, weight_decay=given.weight_decay)
        else:
            optimizer = torch.optim.AdamW(self.parameters(), given.lr, weight_decay=given.weight_decay)
        schedule: torch.optim.lr_scheduler.LRScheduler
        if given.schedule == "onecycle":
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, given.lr, int(steps))
        else:
            schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: self.decay(step / steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def decay(self, part: float) -> float:
        """Return the factor of the learning rate after a part of the training: a line from 0 times an exponential from `lr` to `final_lr`."""
        given = self.hparams
        rising = min(1.0, part / given.warm_up) if given.warm_up > 0 else 1.0
        return rising * (given.final_lr / given.lr) ** min(part, 1.0)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        check_finite(self)
        weights = checkpoint["state_dict"]
        checkpoint["speakers"], checkpoint["earlier"] = self.learnt, self.earlier
        checkpoint["head"] = {name: weights.pop(f"head.{name}") for name in ([] if self.head is None else self.head.state_dict())}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.learnt, self.earlier = list(checkpoint.get("speakers", [])), list(checkpoint.get("earlier", []))
        if self.head is not None:
            checkpoint["state_dict"] |= {f"head.{name}": value for name, value in checkpoint.get("head", {}).items()}

    # ---- validation, testing, embedding

    def on_validation_epoch_start(self) -> None:
        check_finite(self)
        self.embedded = []

    on_test_epoch_start = on_validation_epoch_start

    def validation_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        self.embedded.append((batch["index"], self(batch["waveform"], batch["length"])))

    test_step = validation_step

    def on_test_epoch_end(self) -> None:
        self._gather()

    def _gather(self) -> None:
        """Exchange what the processes have embedded, while the module is on its device still."""
        index = torch.cat([index for index, _ in self.embedded] or [torch.empty(0, dtype=torch.long)])
        vectors = torch.cat([found for _, found in self.embedded] or [torch.empty(0, self.embedding_size)])
        place = self.trainer.strategy.root_device
        self.embedded = [(gather_rows(index.to(place)).cpu(), gather_rows(vectors.to(place)).cpu())]

    def gathered(self, indices: Sequence[int]) -> Tensor:
        """Return the embeddings of the last pass, of the recordings of these numbers, (N, E) float32 on the CPU, in all processes.

        Raises:
            ValueError: if some of them were left out.
        """
        rows = {number: row for index, found in self.embedded for number, row in zip(index.tolist(), found, strict=True)}
        if lost := sum(number not in rows for number in indices):
            limits = "trainer.limit_val_batches, trainer.limit_test_batches and trainer.fast_dev_run"
            raise ValueError(f"{lost} of {len(indices)} recordings were not embedded, and error rates are of all: leave out {limits}")
        return torch.stack([rows[number] for number in indices])

    def on_validation_epoch_end(self) -> None:
        data: SpeakerData = self.trainer.datamodule  # type: ignore[attr-defined]
        self._gather()
        if self.trainer.sanity_checking:
            return
        trials, self.validated = data.held_trials, unit(self.gathered(range(len(data.held))), torch.zeros(()))
        embeddings = dict(zip(data.held.names, self.validated, strict=True))
        enrol, _ = models(embeddings, trials)
        tests = torch.stack([embeddings[name] for name in trials.tests])
        measures = summarise(cosine(enrol, tests, trials.enrol, trials.test), trials.is_target)
        self.log("val/eer", measures["eer"], prog_bar=True, sync_dist=True)  # equal in all processes
        self.log("val/min_dcf", measures["min_dcf_01"], sync_dist=True)


def _spoken(features: Tensor, is_speech: Tensor, frames: Tensor | None) -> tuple[Tensor, Tensor]:
    """Keep the frames (B, T) that are speech, and all valid ones of a recording without speech; returns features, padded, and their lengths."""
    valid = [features.shape[2]] * len(features) if frames is None else frames.tolist()
    kept = [row[:, mask] if bool(mask.any()) else row[:, :count] for row, mask, count in zip(features, is_speech, valid, strict=True)]
    lengths = torch.tensor([row.shape[1] for row in kept], device=features.device)
    return pad_sequence([row.T for row in kept], batch_first=True).mT.contiguous(), lengths


def _check(given: Mapping[str, Any]) -> None:
    """Refuse options that would fail in the middle of the work.

    Raises:
        ValueError: naming them.
    """
    for name, values in {"loss": Loss, "optimiser": Optimiser, "schedule": Schedule}.items():
        if given[name] not in get_args(values):
            raise ValueError(f"no {name} {given[name]!r}: choose among {', '.join(get_args(values))}")
    if given["lr"] <= 0 or given["final_lr"] <= 0 or given["weight_decay"] < 0 or not 0 <= given["warm_up"] < 1:
        raise ValueError("model: lr and final_lr are positive, weight_decay is 0 or more, and warm_up lies in [0, 1)")
    if not 0 <= given["margin"] < math.pi:
        raise ValueError(f"model.margin lies in [0, pi), got {given['margin']}")
    if given["ramp"] is not None and not (len(given["ramp"]) == 2 and 0 <= given["ramp"][0] < given["ramp"][1] <= 1):
        raise ValueError(
            f"model.ramp holds the parts of the training where the margin begins and ends to rise, such as [0.13, 0.27], not {given['ramp']}"
        )
    if given["longest"] < 1 or given["average"] < 0:
        raise ValueError(f"model.longest is at least 1 second and model.average 0 or more, got {given['longest']} and {given['average']}")
