"""Training and testing of a detector of forged faces."""

from __future__ import annotations

from typing import Any, Literal

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from projects.moe_ffd.backbones import build_vit
from projects.moe_ffd.losses import detection_loss
from projects.moe_ffd.maps import map_sheet
from projects.moe_ffd.model import Adaptation, MoEViT, build_detector
from shared.forgery.detection import Batch, ForgeryDetection
from shared.seeding import derive_seed


class FaceForgeryDetection(ForgeryDetection):
    """Adapts a vision transformer to tell forged faces from real ones.

    Args:
        adaptation: moe (the paper's mixtures in a frozen backbone), or one to compare with: lora, adapter, probe, full, layernorm, bitfit, effort.
        backbone: tiny or tiny_wide, or timm's name of a ViT or DeiT, such as vit_base_patch16_224.
        weights: the backbone's weights: pretrained (those of tiny lie in the project, others in timm's cache), a local file, or null for random ones.
        size: side of the images in pixels.
        ranks: ranks of the LoRA experts; published: 8, 16, 32, 48, 64, 96, 128. An empty list leaves them out.
        kinds: convolutions of the adapter experts: any of cv, cd, ad, rd, scd. An empty list leaves them out.
        bottleneck: features between an adapter's down and up; published: 8.
        self_index: weight of the pixel itself in rd and scd: 0 as published, 4 the centre.
        lora_router: reference (no gradient of the task reaches it), weighted (it does), soft, uniform or fixed:E.
        adapter_router: the same for adapters.
        lora_k: LoRA experts of a token.
        adapter_k: adapters of an image.
        blocks: numbers of the blocks with mixtures, from 0; null for all.
        trains_norm1: whether the first norm of every block trains, as published.
        rank: rank of the adaptation lora.
        kind: convolution of the adaptation adapter.
        balance_lora: weight of the LoRA routers' balance loss; published: 200, for 32 images of 197 tokens.
        balance_adapter: weight of the adapter routers' balance loss.
        lr: learning rate of Adam.
        lr_gate: learning rate of the routers; the reference says 1e-4, but its own runs have the other one, which null takes.
        weight_decay: L2 regularisation of Adam.
        schedule: step (times gamma after every step_epochs) or onecycle.
        step_epochs: epochs between falls of the learning rate.
        gamma: factor by which it falls.
        seed: seed of the weights.
    """

    def __init__(
        self,
        adaptation: Adaptation = "moe",
        backbone: str = "tiny",
        weights: str | None = "pretrained",
        size: int = 48,
        ranks: list[int] | None = None,
        kinds: list[str] | None = None,
        bottleneck: int = 8,
        self_index: int = 0,
        lora_router: str = "reference",
        adapter_router: str = "reference",
        lora_k: int = 1,
        adapter_k: int = 1,
        blocks: list[int] | None = None,
        trains_norm1: bool = True,
        rank: int = 8,
        kind: str = "cv",
        balance_lora: float = 200.0,
        balance_adapter: float = 1.0,
        lr: float = 3e-5,
        lr_gate: float | None = 1e-4,
        weight_decay: float = 1e-5,
        schedule: Literal["step", "onecycle"] = "step",
        step_epochs: int = 5,
        gamma: float = 0.5,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        if min(balance_lora, balance_adapter) < 0 or lr <= 0 or (lr_gate is not None and lr_gate <= 0) or step_epochs < 1:
            raise ValueError("model: balance_lora and balance_adapter are 0 or more, lr and lr_gate positive, step_epochs at least 1")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(seed, "moe_ffd weights"))
            vit = build_vit(backbone, size, weights)
            self.net = build_detector(adaptation, vit, **self._network_options(vit))

    def _network_options(self, vit: Any) -> dict[str, Any]:
        """Return what `build_detector` takes for the adaptation."""
        given = self.hparams
        options: dict[str, Any] = {name: list(vit.pretrained_cfg[name]) for name in ("mean", "std")}
        placed = {"blocks": given.blocks}
        match given.adaptation:
            case "moe":
                names = ("bottleneck", "self_index", "lora_router", "adapter_router", "lora_k", "adapter_k", "trains_norm1")
                chosen = {name: given[name] for name in ("ranks", "kinds") if given[name] is not None}
                return options | placed | chosen | {name: given[name] for name in names}
            case "lora":
                return options | placed | {"rank": given.rank}
            case "adapter":
                return options | placed | {"kind": given.kind, "bottleneck": given.bottleneck, "self_index": given.self_index}
        return options

    def forward(self, images: Tensor) -> Tensor:
        """Map (B, 3, H, W) images, uint8 or floats in [0, 1], to (B,) probabilities of being fake, float32."""
        return self.net(images).float().softmax(1)[:, 1]

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        if self.global_rank:  # all processes began with one seed: each draws noise of its own for its gates
            torch.manual_seed(derive_seed(self.hparams.seed, "gate noise", self.current_epoch, batch_idx, self.global_rank))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        logits, count = self.net(batch["image"]), len(batch["image"])
        balances = self.net.balance_losses() if isinstance(self.net, MoEViT) else {}
        terms = detection_loss(logits.float(), batch["label"], balances, self.hparams.balance_lora, self.hparams.balance_adapter)
        self.log_dict({f"train/{name}": value.detach() for name, value in terms.items()}, batch_size=count, sync_dist=True)
        self.log("train/accuracy", (logits.argmax(1) == batch["label"]).float().mean(), prog_bar=True, batch_size=count, sync_dist=True)
        return terms["loss"]

    def explanation(self, images: Tensor) -> Tensor:
        """Return each image's attention and the patches' experts, see `map_sheet`."""
        return map_sheet(self.net, images)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        given = self.hparams
        gates = self.net.gate_parameters()
        others = [parameter for name, parameter in self.net.trainable_parameters().items() if name not in gates]
        rates = [given.lr, given.lr if given.lr_gate is None else given.lr_gate]
        groups = [{"params": part, "lr": rate} for part, rate in zip([others, list(gates.values())], rates, strict=True) if part]
        optimizer = torch.optim.Adam(groups, weight_decay=given.weight_decay)
        if given.schedule == "onecycle":
            steps = int(self.trainer.estimated_stepping_batches)
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, [group["lr"] for group in groups], steps)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
        return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.StepLR(optimizer, given.step_epochs, given.gamma)}
