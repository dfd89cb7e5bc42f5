"""Training, validation and testing of a network that finds manipulated pixels."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from projects.tripinet.blocks import Norm
from projects.tripinet.calibration import Decision, LogitHistogram
from projects.tripinet.decoders import STAGES, DecoderName
from projects.tripinet.encoders import Encoder
from projects.tripinet.forensics import Scaling
from projects.tripinet.fusion import FusionName, Sign
from projects.tripinet.losses import Kind, training_loss
from projects.tripinet.metrics import LocalisationMetrics
from projects.tripinet.model import LEAST, TriPINet
from projects.tripinet.pairs import KINDS
from projects.tripinet.tiles import ALIGNMENT, predict_tiles
from shared.distributed import gather_objects
from shared.seeding import derive_seed
from shared.training import Schedule, check_finite, evaluating, scheduled

if TYPE_CHECKING:
    from projects.tripinet.data import ManipulationData

STREAMS = ("rgb", "srm", "dct_corner")
"""What the encoders see where nothing else is said."""
Tiles = Literal["auto", "never", "always"]
"""When pictures are judged tile by tile: where they are larger than `whole`, or not, or always."""


class Judged(NamedTuple):
    """What is said of B pictures: logits of their pixels, (B, 1, H, W) float32, and scores, (B,) logits before any scaling."""

    logits: Tensor
    raw: Tensor


class ManipulationLocalisation(L.LightningModule):
    """Learns where pictures were manipulated, and decides on validation pictures how its maps are to be read.

    Args:
        streams: what the encoders see, any of rgb, srm, srm3, bayar, dct_corner, dct_radial, fft, haar and block_dct; the first one is guided by the
            others. Null is rgb, srm and dct_corner.
        encoder: tiny, small (ResNet-18), resnet18 or resnet50, one for each stream.
        channels: width of the fused features.
        width: width of the decoder.
        fusion: gcmda (the paper's), add, concat, gated or cbam.
        decoder: pise (the paper's), fpn, concat, se_only or cascaded.
        edge: adds a head for the borders of manipulated regions.
        image_head: adds a head for the picture as a whole; without one, its score is the largest of its map.
        norm: batch, group for small batches, or frozen with loaded weights.
        weights: file of ImageNet weights of the encoders; null starts from random ones.
        alpha: part of the frequencies that the frequency streams remove, in [0, 1].
        scaling: of frequency streams: fixed, or minmax within each picture.
        pooled: largest side of the grid of keys of gcmda.
        symmetric: lets the picture guide the traces too, in gcmda.
        sign: of the channel attention of gcmda: danet or plain.
        loss: of a map: bce_dice, hybrid (BCE, IoU and SSIM), focal or ce_dice.
        side_weights: weights of the four side outputs, the finest first; null is 1 each.
        edge_weight: weight of the borders' BCE.
        image_weight: weight of the BCE of pictures as a whole.
        lr: learning rate of Adam.
        weight_decay: L2 regularisation of Adam.
        schedule: step (times gamma after every epoch) or onecycle.
        gamma: factor by which the learning rate falls.
        whole: largest picture, in pixels, that is judged as a whole; larger ones are judged in tiles.
        tile: side of tiles in pixels, a multiple of 32.
        overlap: pixels that two tiles share, a multiple of 32 and at most half of tile.
        seed: seed of the weights.

    Attributes:
        streams: what the encoders see.
        decision: what validation decided.
        measured: measures of each test set after testing, by its name.
        histograms: logits of each test set after testing, by its name.
        with_trufor: whether tests measure TruFor's variant of the F1 too.
        absent: file of the encoders' weights if it is not there.
    """

    monitor = ("val/pixel_f1", "max")

    if TYPE_CHECKING:
        hparams: Any  # the arguments below, by name

    def __init__(
        self,
        streams: list[str] | None = None,
        encoder: Encoder = "tiny",
        channels: int = 64,
        width: int = 64,
        fusion: FusionName = "gcmda",
        decoder: DecoderName = "pise",
        edge: bool = False,
        image_head: bool = False,
        norm: Norm = "batch",
        weights: str | None = None,
        alpha: float = 0.1,
        scaling: Scaling = "fixed",
        pooled: int = 16,
        symmetric: bool = False,
        sign: Sign = "danet",
        loss: Kind = "bce_dice",
        side_weights: list[float] | None = None,
        edge_weight: float = 20.0,
        image_weight: float = 1.0,
        lr: float = 1e-4,
        weight_decay: float = 1e-4,
        schedule: Schedule = "step",
        gamma: float = 0.95,
        whole: int = 2_000_000,
        tile: int = 512,
        overlap: int = 128,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        _check(self.hparams)
        self.streams = list(STREAMS) if streams is None else streams
        self.absent = _absent(encoder, norm, weights)
        file = None if self.absent else weights
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(seed, "tripinet weights"))
            self.net = TriPINet(
                cast(Any, self.streams),
                *(encoder, channels, width, fusion, decoder, edge, image_head, norm, file, alpha, scaling, pooled, symmetric, sign),
            ).to(memory_format=torch.channels_last)
        self.decision = Decision()
        self.measured: dict[str, LocalisationMetrics] = {}
        self.histograms: dict[str, LogitHistogram] = {}
        self.with_trufor = False
        self._start_validation()

    # ---- what it does for its user

    def forward(self, images: Tensor) -> Tensor:
        """Map (B, 3, H, W) images, uint8 or floats from 0 to 255, to (B, 1, H, W) calibrated probabilities of being manipulated, float32."""
        return self.decision.probabilities(self.judge(images).logits)

    def is_tiled(self, height: int, width: int, tiles: Tiles) -> bool:
        """Whether a picture of some size is judged tile by tile."""
        return tiles == "always" or (tiles == "auto" and height * width > self.hparams.whole)

    @torch.no_grad()
    def judge(self, images: Tensor, tiles: Tiles = "auto", flips: bool = False) -> Judged:
        """Judge pictures, in evaluation mode whatever mode the network is in.

        Args:
            images: (B, 3, H, W) uint8 or floats from 0 to 255, on any device. Sides below 32 pixels are mirrored to the right and downwards
                until they are long enough, and the map is cut back.
            tiles: whether they are judged tile by tile; auto does so above `whole` pixels.
            flips: judges them mirrored to either side and upside down as well, and takes the mean of the logits.

        Returns:
            What is said of them, on the module's device.
        """
        given, net = self.hparams, self.net
        height, width = images.shape[2:]
        is_tiled = self.is_tiled(height, width, tiles)
        images = _enlarged(images, LEAST)
        total = torch.zeros(len(images), 1, *images.shape[2:], device=self.device)
        mirrors: list[list[int]] = [[], [3], [2], [2, 3]] if flips else [[]]
        with evaluating(net):
            for axes in mirrors:
                mirrored = images.flip(axes)
                if is_tiled:
                    logits = torch.stack([predict_tiles(net, image, given.tile, given.overlap)[None] for image in mirrored])
                else:
                    logits = net(mirrored.to(self.device), sides=False).sides[0].float()
                total += logits.flip(axes).to(total)
            mean = total[:, :, :height, :width] / len(mirrors)
            raw = mean.flatten(1).amax(1) if net.image_head is None else net.image_head(mean).float()
        return Judged(mean, raw)

    # ---- training

    def check_weights(self) -> None:
        """Refuse to train without the encoders' file; a trained network is judged without it, for its checkpoint holds all weights.

        Raises:
            FileNotFoundError: naming the file.
        """
        if self.absent:
            raise FileNotFoundError(f"no backbone weights {self.absent}: correct model.weights, or leave it out for random weights")

    def on_fit_start(self) -> None:
        if self.trainer.ckpt_path is None:
            self.check_weights()

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        given = self.hparams
        outputs = self.net(batch["image"])
        terms = training_loss(outputs, batch["mask"], batch["label"], given.loss, given.side_weights, given.edge_weight, given.image_weight)
        self.log_dict({f"train/{name}": value.detach() for name, value in terms.items()}, batch_size=len(batch["image"]), sync_dist=True)
        return terms["loss"]

    def configure_optimizers(self) -> OptimizerLRScheduler:
        given = self.hparams
        optimizer = torch.optim.Adam(self.parameters(), given.lr, weight_decay=given.weight_decay)
        return scheduled(self, optimizer, given.schedule, given.gamma)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        check_finite(self)

    # ---- validation, which decides how maps are read

    def on_validation_epoch_start(self) -> None:
        check_finite(self)
        self._start_validation()

    def _start_validation(self) -> None:
        self.validated, self._histogram = LocalisationMetrics(), LogitHistogram()
        self._raw: list[tuple[float, int]] = []

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        judged = self.judge(batch["image"])
        self._histogram.update(judged.logits, batch["mask"])
        self._raw += list(zip(judged.raw.tolist(), batch["label"].tolist(), strict=True))
        measure(self.validated, batch, judged.logits.sigmoid(), judged.raw)

    def on_validation_epoch_end(self) -> None:
        if self.trainer.sanity_checking:
            return  # a few pictures decide nothing, and would stay decided until the first epoch's end
        measures, raw = self.validated.compute(), gather_objects(self._raw)
        self.decision.decide(self._histogram.gathered(), measures["pixel_threshold_dataset"], *zip(*raw, strict=True))
        chosen = ("pixel_f1", "pixel_f1_dataset", "pixel_auc", "image_auc")
        for name in chosen:
            self.log(f"val/{name}", measures.get(name, math.nan), prog_bar=name == "pixel_f1", sync_dist=True)  # equal in all processes

    # ---- testing

    def on_test_start(self) -> None:
        data: ManipulationData = self.trainer.datamodule  # type: ignore[attr-defined]
        self.measured = {name: LocalisationMetrics(self.with_trufor) for name in data.test_names}
        self.histograms = {name: LogitHistogram() for name in data.test_names}

    def test_step(self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0) -> None:
        name = list(self.measured)[dataloader_idx]
        judged = self.judge(batch["image"])
        self.histograms[name].update(judged.logits, batch["mask"])
        measure(self.measured[name], batch, self.decision.probabilities(judged.logits), judged.raw / self.decision.temperature)

    def on_test_epoch_end(self) -> None:
        for name, measured in self.measured.items():
            measures = measured.compute()
            known = [key for key in ("pixel_f1", "pixel_auc", "image_auc") if key in measures]
            self.log_dict({f"test/{key}_{name}": measures[key] for key in known}, sync_dist=True)


def _check(given: Mapping[str, Any]) -> None:
    """Refuse options that would fail in the middle of the work.

    Raises:
        ValueError: naming them.
    """
    if given["lr"] <= 0 or min(given["weight_decay"], given["edge_weight"], given["image_weight"]) < 0 or not 0 < given["gamma"] <= 1:
        raise ValueError("model: lr is positive, gamma in (0, 1], and weight_decay, edge_weight and image_weight are 0 or more")
    sides, tile, overlap = given["side_weights"], given["tile"], given["overlap"]
    if sides is not None and (len(sides) != STAGES or min(sides) < 0):
        raise ValueError(f"model.side_weights holds {STAGES} numbers that are 0 or more, the finest map's first, not {list(sides)}")
    if tile % ALIGNMENT or overlap % ALIGNMENT or not 0 < overlap <= tile // 2:
        raise ValueError(f"model.tile and model.overlap are multiples of {ALIGNMENT}, overlap being at most half of tile, not {tile} and {overlap}")


def _absent(encoder: Encoder, norm: Norm, weights: str | None) -> str | None:
    """Return the encoders' file if it is not there and can be done without; frozen norms are built of it only."""
    if weights is None or weights == "pretrained" or encoder == "tiny" or norm == "frozen":
        return None
    return None if Path(weights).expanduser().is_file() else weights


def _enlarged(images: Tensor, least: int) -> Tensor:
    """Mirror (B, C, H, W) to the right and downwards, over and over, until both sides have so many pixels."""
    for axis in (2, 3):
        side = images.shape[axis]
        if side < least:
            places = torch.arange(least, device=images.device) % (2 * side)
            images = images.index_select(axis, torch.where(places < side, places, 2 * side - 1 - places))
    return images


def measure(metrics: LocalisationMetrics, batch: dict[str, Any], probabilities: Tensor, raw: Tensor) -> None:
    """Measure a batch of `WholePictures`: maps, and scores that are logits."""
    scores = raw.double().sigmoid().tolist()
    for number, kind in enumerate(batch["kind"].tolist()):
        metrics.update(probabilities[number], batch["mask"][number], KINDS[kind], batch["format"][number], scores[number])
