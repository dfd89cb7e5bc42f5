"""Training, validation and testing of a network that marks salient objects."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast, get_args

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from timm.layers import freeze_batch_norm_2d
from torch import Tensor
from torch.nn import functional as F

from projects.hodinet.blocks import STAGES, resize
from projects.hodinet.decoders import DecoderName
from projects.hodinet.encoders import Encoder
from projects.hodinet.fusion import PLACEMENT, WIDTHS, FusionName
from projects.hodinet.losses import Kind, saliency_loss
from projects.hodinet.metrics import PROTOCOLS, SaliencyMetrics
from projects.hodinet.model import STREAMS, STRIDE, HODINet, Stream
from shared.seeding import derive_seed
from shared.training import Schedule, check_finite, evaluating, scheduled

if TYPE_CHECKING:
    from projects.hodinet.data import SaliencyData

VALIDATED = ("s_measure", "f_max", "e_max", "f_weighted", "mae")
"""Measures of validation; the first one chooses the epoch."""


Optimiser = Literal["adam", "adamw"]


class Measured(NamedTuple):
    """Measures of a test picture: its place in the set, and its numbers under the protocol `pysod`."""

    place: int
    numbers: dict[str, float]


class SaliencyDetection(L.LightningModule):
    """Learns to mark what catches the eye in colour pictures with depth.

    Args:
        rgb: encoder of colour: pvt_v2_b0 to pvt_v2_b3, resnet50, resnet101, tiny_transformer or tiny_cnn.
        depth: encoder of depth, one of the same.
        fusion: high_order (the paper's), add, concat or add_matched (addition with as many weights as high_order).
        placement: a letter a stage, the finest first: S fuses in space, C over channels.
        decoder: cascaded (the paper's) or fpn.
        aspp: puts DenseASPP behind the finest stage.
        widths: channels of the four fused stages, even; null is 64, 128, 256 and 512.
        streams: rgb, depth or both; null is both.
        rgb_weights: local file of the colour encoder's ImageNet weights; null starts from random ones.
        depth_weights: local file of the depth encoder's ImageNet weights.
        frozen_norms: keeps the batch norms of loaded encoders as they are, for batches below 4.
        checkpointing: computes the encoders' activations again in the backward pass, which saves memory.
        order: factors of a product in the relation of space, 2 or more.
        pool: side of the squares that colour is averaged over in the relation of space; 1 is exact.
        chunk: places of depth whose relations are held at once; null chooses, 0 stores all N x N.
        signed: takes the means of the fusion over channels before the ReLU.
        literal: builds the outer product of the fusion over channels; the result is the same.
        loss: of a map: hybrid (BCE, IoU and SSIM), bce_iou, bce or structure (that of F3Net).
        head_weights: weights of the four heads, the finest first; null is 1 each.
        size: side of the square that pictures are scaled to before they are judged, in pixels; null judges them as they are.
        optimiser: adam, or adamw with decoupled weight decay.
        lr: learning rate.
        weight_decay: weight decay.
        schedule: step (times gamma after every epoch) or onecycle.
        gamma: factor by which the learning rate falls.
        seed: seed of the weights.

    Attributes:
        tested: measures of each test set after testing, by set and by protocol.
        measured: pictures of each test set that this process measured.
        absent: files of encoders' weights that are not there.
    """

    monitor = ("val/s_measure", "max")

    if TYPE_CHECKING:
        hparams: Any  # the arguments below, by name

    def __init__(
        self,
        rgb: Encoder = "tiny_transformer",
        depth: Encoder = "tiny_cnn",
        fusion: FusionName = "high_order",
        placement: str = PLACEMENT,
        decoder: DecoderName = "cascaded",
        aspp: bool = False,
        widths: list[int] | None = None,
        streams: list[Stream] | None = None,
        rgb_weights: str | None = None,
        depth_weights: str | None = None,
        frozen_norms: bool = False,
        checkpointing: bool = False,
        order: int = 2,
        pool: int = 1,
        chunk: int | None = None,
        signed: bool = False,
        literal: bool = False,
        loss: Kind = "hybrid",
        head_weights: list[float] | None = None,
        size: int | None = 256,
        optimiser: Optimiser = "adam",
        lr: float = 5e-5,
        weight_decay: float = 1e-4,
        schedule: Schedule = "step",
        gamma: float = 0.95,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        _check(self.hparams)
        files = [
            path for name, path in ((rgb, rgb_weights), (depth, depth_weights)) if path not in (None, "pretrained") and not name.startswith("tiny")
        ]
        self.absent = [path for path in files if not Path(path).is_file()]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(seed, "hodinet weights"))
            self.net = HODINet(
                rgb,
                depth,
                fusion,
                placement,
                decoder,
                aspp,
                WIDTHS if widths is None else widths,
                STREAMS if streams is None else streams,
                None if rgb_weights in self.absent else rgb_weights,
                None if depth_weights in self.absent else depth_weights,
                frozen_norms and not self.absent,
                checkpointing,
                order,
                pool,
                chunk,
                signed,
                literal,
            )
        if frozen_norms and self.absent:
            self.net.encoders = freeze_batch_norm_2d(self.net.encoders)
        self.tested: dict[str, dict[str, SaliencyMetrics]] = {}
        self.measured: dict[str, list[Measured]] = {}
        self.validated = SaliencyMetrics()

    # ---- what it does for its user

    @torch.no_grad()
    def forward(self, images: Tensor, depth: Tensor) -> Tensor:
        """Mark what is salient, in evaluation mode whatever mode the network is in.

        Args:
            images: (B, 3, H, W) uint8, or floats from 0 to 255, on any device.
            depth: (B, 1, H, W) in [0, 1], near = 1.

        Returns:
            (B, 1, H, W) float32 probabilities of being salient, on the module's device.
        """
        return resize(self.logits(images, depth), images.shape[2:]).sigmoid()

    @torch.no_grad()
    def logits(self, images: Tensor, depth: Tensor) -> Tensor:
        """Return the logits of `forward` at the size that is judged, (B, 1, h, w) float32."""
        with evaluating(self.net):
            return self.net(self.fitted(images), self.fitted(depth), sides=False)[0].float()

    def fitted(self, layers: Tensor) -> Tensor:
        """Scale (B, C, H, W) to the square that is judged, with antialiasing, or to the least side of the network; returns floats on the device."""
        side, (height, width) = self.hparams.size, layers.shape[2:]
        size = (side, side) if side is not None else (max(height, STRIDE), max(width, STRIDE))
        layers = layers.to(self.device, torch.float32)
        if size == (height, width):
            return layers
        return F.interpolate(layers, size=size, mode="bilinear", align_corners=False, antialias=True)

    # ---- training

    def check_weights(self) -> None:
        """Refuse to train without the encoders' files; a trained network is judged without them, for its checkpoint holds all weights.

        Raises:
            FileNotFoundError: naming the file.
        """
        if self.absent:
            raise FileNotFoundError(
                f"no weights file {self.absent[0]}: correct model.rgb_weights or model.depth_weights, or leave it out for random weights"
            )

    def on_fit_start(self) -> None:
        if self.trainer.ckpt_path is None:
            self.check_weights()

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        given, masks = self.hparams, batch["mask"]
        terms = saliency_loss(self.net(batch["image"], batch["depth"]), masks, given.loss, given.head_weights)
        self.log_dict({f"train/{name}": value.detach() for name, value in terms.items()}, batch_size=len(masks), sync_dist=True)
        return terms["loss"]

    def configure_optimizers(self) -> OptimizerLRScheduler:
        given = self.hparams
        kind = torch.optim.AdamW if given.optimiser == "adamw" else torch.optim.Adam
        fused = True if self._may_fuse() else None  # a quarter of the time there; elsewhere torch chooses
        optimizer = kind(self.parameters(), given.lr, weight_decay=given.weight_decay, fused=fused)
        return scheduled(self, optimizer, given.schedule, given.gamma)

    def _may_fuse(self) -> bool:
        """Whether a fused optimiser suits: on a CPU, unless gradients are cut down under autocast, for Lightning refuses that."""
        trainer = self._trainer
        return self.device.type == "cpu" and not (trainer and trainer.gradient_clip_val and "mixed" in trainer.precision)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        check_finite(self)

    # ---- validation and testing

    def on_validation_epoch_start(self) -> None:
        check_finite(self)
        self.validated = SaliencyMetrics()

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.validated.update_batch(zip(self(batch["image"], batch["depth"]), batch["mask"], strict=True))

    def on_validation_epoch_end(self) -> None:
        measures = self.validated.compute()
        for name in VALIDATED:  # equal in all processes
            self.log(f"val/{name}", measures[name], prog_bar=name == VALIDATED[0], sync_dist=True)

    def on_test_start(self) -> None:
        data: SaliencyData = self.trainer.datamodule  # type: ignore[attr-defined]
        self.tested = {name: {protocol: SaliencyMetrics(cast(Any, protocol)) for protocol in PROTOCOLS} for name in data.test_names}
        self.measured = {name: [] for name in data.test_names}

    def test_step(self, batch: dict[str, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        name = list(self.tested)[dataloader_idx]
        logits, masks = self.logits(batch["image"], batch["depth"]), batch["mask"].cpu()
        found = {}
        for protocol, metrics in self.tested[name].items():
            side = metrics.protocol.side
            maps = resize(logits, masks.shape[2:] if side is None else (side, side)).sigmoid().cpu()  # resized once, whatever is measured
            found[protocol] = metrics.update_batch(zip(maps, masks, strict=True))
        self.measured[name] += map(Measured, batch["index"].tolist(), found["pysod"])

    def on_test_epoch_end(self) -> None:
        for name, by_protocol in self.tested.items():
            measures = by_protocol["pysod"].compute()
            self.log_dict({f"test/{measure}_{name}": measures[measure] for measure in VALIDATED}, sync_dist=True)


def _check(given: Mapping[str, Any]) -> None:
    """Refuse options that would fail in the middle of the work.

    Raises:
        ValueError: naming them.
    """
    if given["lr"] <= 0 or given["weight_decay"] < 0 or not 0 < given["gamma"] <= 1:
        raise ValueError("model: lr is positive, gamma in (0, 1], and weight_decay 0 or more")
    for name, values in {"loss": Kind, "optimiser": Optimiser, "schedule": Schedule}.items():
        if given[name] not in get_args(values):
            raise ValueError(f"no {name} {given[name]!r}: choose among {', '.join(get_args(values))}")
    if given["chunk"] is not None and given["chunk"] < 0:
        raise ValueError(f"model.chunk has 1 place at least, and 0 stores all, but not {given['chunk']}")
    weights, size = given["head_weights"], given["size"]
    if weights is not None and (len(weights) != STAGES or min(weights) < 0 or not any(weights)):
        raise ValueError(f"model.head_weights holds {STAGES} numbers that are 0 or more, not all 0, the finest head's first, not {list(weights)}")
    if size is not None and size < STRIDE:
        raise ValueError(f"model.size must be at least {STRIDE} pixels, got {size}")
