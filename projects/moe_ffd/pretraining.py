"""Pretraining of the tiny backbone: every patch of a scene is told its degradation.

weights = pretrain("runs/moe_ffd/mine/artefacts/pretrain", seed=0)      # about a minute on a CPU; a second call finds the file
backbone = build_vit("tiny", weights=weights)

The weights in assets/ come from `python -m projects.moe_ffd.pretraining`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn import functional as F

from projects.moe_ffd.backbones import TINY_NETWORKS, TINY_WEIGHTS, TinyViT
from projects.moe_ffd.scenes import DEGRADATIONS, scenes
from shared.data.memory import MemoryData, to_unit
from shared.quiet import quiet_trainer, silence
from shared.runs import atomic
from shared.seeding import derive_seed, generator


class PatchPretraining(L.LightningModule):
    """Teaches `TinyViT` which of five degradations every patch of a scene has.

    Args:
        lr: highest learning rate of AdamW, in one cycle.
        weight_decay: decoupled weight decay of AdamW.
        seed: seed of the weights and the flips.
        size: side of the scenes in pixels.
        backbone: name in `TINY_NETWORKS`.
    """

    def __init__(self, lr: float = 1e-3, weight_decay: float = 0.01, seed: int = 0, size: int = 48, backbone: str = "tiny") -> None:
        super().__init__()
        self.save_hyperparameters()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(seed, "tiny vit"))
            self.backbone = TinyViT(size, **TINY_NETWORKS[backbone])
            self.head = nn.Linear(self.backbone.embed_dim, len(DEGRADATIONS))

    def forward(self, images: Tensor) -> Tensor:
        """Map (B, 3, S, S) images in [0, 1] to (B, 5, S / P, S / P) logits of the degradations."""
        tokens = self.backbone.forward_features(2 * images - 1)[:, self.backbone.num_prefix_tokens :]  # (B, N, D)
        return self.head(tokens).mT.unflatten(2, self.backbone.patch_embed.grid_size)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        key = (self.hparams["seed"], "flip", self.current_epoch)
        coins = torch.cat([torch.rand(1, generator=generator(*key, index)) for index in batch["index"].tolist()])
        flipped = (coins < 0.5).to(self.device)[:, None, None]
        images = torch.where(flipped[..., None], batch["image"].flip(-1), batch["image"])
        loss = F.cross_entropy(self(to_unit(images)), torch.where(flipped, batch["label"].flip(-1), batch["label"]))
        self.log("train/loss", loss, batch_size=len(images))
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        correct = (self(to_unit(batch["image"])).argmax(1) == batch["label"]).float().mean()  # every scene has as many patches
        self.log("val/token_accuracy", correct, batch_size=len(batch["image"]), sync_dist=True)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.hparams["lr"], weight_decay=self.hparams["weight_decay"])
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.hparams["lr"], total_steps=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def pretrain(folder: str | Path, seed: int = 0, epochs: int = 10, count: int = 1400, backbone: str = "tiny", **options: Any) -> Path:
    """Pretrain a tiny backbone, or find in `folder` what the same arguments made before.

    Args:
        folder: where the weights are kept.
        seed: seed of scenes, weights and order.
        epochs: epochs.
        count: scenes to train on; a seventh as many others are drawn to validate on.
        backbone: name in `TINY_NETWORKS`.
        **options: arguments of `L.Trainer`, such as `enable_progress_bar` or `accelerator`; without them nothing is printed.

    Returns:
        The weights of the backbone, without the head for patches, as float16 in a .safetensors file, 0.4 MB for the tiny one.

    Raises:
        ValueError: if there is no such backbone.
    """
    if backbone not in TINY_NETWORKS:
        raise ValueError(f"no backbone {backbone!r} to pretrain: choose {' or '.join(TINY_NETWORKS)}")
    path = Path(folder) / f"{backbone}-{derive_seed('pretraining 2', seed, epochs, count):016x}.safetensors"
    if not path.is_file():
        module, data = PatchPretraining(seed=seed, backbone=backbone), pretraining_data(seed, count)
        with silence():
            quiet_trainer(epochs, **options).fit(module, datamodule=data)
        save_half(module.backbone, path)
    return path


def pretraining_data(seed: int = 0, count: int = 1400, batch_size: int = 32) -> MemoryData:
    """Return `count` scenes to train on and a seventh as many others to validate on."""
    train, val = (scenes(number, seed, split=split) for split, number in (("train", count), ("val", max(1, count // 7))))
    return MemoryData(train, val, min(batch_size, count), seed)


def save_half(net: nn.Module, path: Path) -> None:
    """Write a network's weights as float16 in one piece or not at all."""
    from safetensors.torch import save_file

    with atomic(path) as temporary:
        save_file({name: tensor.detach().half().cpu().contiguous() for name, tensor in net.state_dict().items()}, temporary)


if __name__ == "__main__":
    pretrain(TINY_WEIGHTS.parent).replace(TINY_WEIGHTS)
