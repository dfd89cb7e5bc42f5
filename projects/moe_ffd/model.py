"""Detectors on a vision transformer: the mixtures of experts in a frozen one, and the usual ways to adapt one beside them (2.1, 2.6)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal, cast, get_args

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from projects.moe_ffd.convolutions import KINDS
from projects.moe_ffd.experts import RANKS, AdapterMixture, Beside, LoraMixture, Mixture
from projects.moe_ffd.residual import ResidualLinear

Adaptation = Literal["moe", "lora", "adapter", "probe", "full", "layernorm", "bitfit", "effort"]
"""How a backbone becomes a detector, see `build_detector`."""
HALF = (0.5, 0.5, 0.5)


class Detector(nn.Module):
    """A vision transformer with a head for real (0) and fake (1); nothing but the head trains.

    The backbone's own classifier is dropped. What is frozen stays in evaluation mode when the detector trains.

    Args:
        backbone: timm's ViT or DeiT of any width, depth, patch and size, with fixed or dynamic sizes of images.
        mean: mean of each channel of images in [0, 1], for the normalisation.
        std: standard deviation of each channel.

    Attributes:
        configuration: the options of `build_detector` that it was built with, in plain values.
    """

    def __init__(self, backbone: VisionTransformer, mean: Sequence[float] = HALF, std: Sequence[float] = HALF) -> None:
        super().__init__()
        backbone.reset_classifier(0)
        self.backbone = backbone.requires_grad_(False)
        self.head = nn.Linear(backbone.num_features, 2)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(-1, 1, 1), persistent=False)
        self.configuration: dict[str, Any] = {"adaptation": "probe", "mean": list(mean), "std": list(std)}
        self._like_backbone(self)

    def _like_backbone(self, module: nn.Module) -> None:
        like = next(self.backbone.parameters())
        module.to(like.device, like.dtype)

    def blocks(self) -> list[Any]:
        """Return the transformer blocks, the first one first."""
        return list(self.backbone.blocks)

    def forward(self, images: Tensor) -> Tensor:
        """Map (B, 3, H, W) images, uint8 or floats in [0, 1], to (B, 2) logits of real and fake.

        Raises:
            ValueError: if the images are of another shape than the backbone takes.
        """
        self._check(images)
        mean, std = cast(Tensor, self.mean), cast(Tensor, self.std)
        pixels = images.to(mean.dtype) / 255 if images.dtype == torch.uint8 else images.to(mean.dtype)
        features = self.backbone.forward_features((pixels - mean) / std)
        return self.head(self.backbone.forward_head(features, pre_logits=True))

    def _check(self, images: Tensor) -> None:
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"images must have the shape (B, 3, H, W), not {tuple(images.shape)}")
        size = self.backbone.patch_embed.img_size
        if not self.backbone.dynamic_img_size and size is not None and images.shape[2:] != tuple(size):
            raise ValueError(
                f"the backbone takes images of {size[0]} x {size[1]} pixels, not {images.shape[2]} x {images.shape[3]}: resize them, "
                "or build the backbone for this size or with dynamic_img_size"
            )

    def train(self, mode: bool = True) -> Detector:
        super().train(mode)
        if self.configuration["adaptation"] != "full":
            self.backbone.eval()
            for module in self.backbone.modules():
                if isinstance(module, Mixture):
                    module.train(mode)
        return self

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        """Return what trains, by name."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    def gate_parameters(self) -> dict[str, nn.Parameter]:
        """Return the gates of all mixtures, which have a learning rate of their own."""
        return {name: parameter for name, parameter in self.trainable_parameters().items() if ".router." in name}


class MoEViT(Detector):
    """A frozen vision transformer with a mixture of LoRA experts on queries, keys and values, and a mixture of adapters beside the MLP.

    It starts as the backbone itself, for both mixtures begin with zero output.

    Args:
        backbone: see `Detector`; its attention must have a joint linear layer `qkv`, as timm's ViT has.
        ranks: ranks of the LoRA experts; none leaves that mixture out.
        kinds: convolutions of the adapter experts, see `projects.moe_ffd.convolutions`; none leaves that mixture out.
        bottleneck: features between an adapter's down and up.
        self_index: weight of the pixel itself in the convolutions `rd` and `scd`: 0 as in the reference, 4 the centre.
        lora_router: router of tokens to LoRA experts, see `projects.moe_ffd.routing.Router`.
        adapter_router: router of images to adapters.
        lora_k: LoRA experts of a token.
        adapter_k: adapters of an image.
        blocks: numbers of the blocks that get the mixtures, from 0; None for all.
        trains_norm1: whether the first norm of every block trains, as the reference's does.
        mean, std: see `Detector`.

    Raises:
        ValueError: if an option does not fit; see also `LoraMixture` and `AdapterMixture`.
    """

    def __init__(
        self,
        backbone: VisionTransformer,
        ranks: Sequence[int] = RANKS,
        kinds: Sequence[str] = KINDS,
        bottleneck: int = 8,
        self_index: int = 0,
        lora_router: str = "reference",
        adapter_router: str = "reference",
        lora_k: int = 1,
        adapter_k: int = 1,
        blocks: Sequence[int] | None = None,
        trains_norm1: bool = True,
        mean: Sequence[float] = HALF,
        std: Sequence[float] = HALF,
    ) -> None:
        given = {name: list(value) if isinstance(value, (list, tuple)) else value for name, value in locals().items()}
        super().__init__(backbone, mean, std)
        self.configuration = {name: value for name, value in given.items() if name not in ("self", "backbone", "__class__")} | {"adaptation": "moe"}
        chosen = range(len(self.blocks())) if blocks is None else blocks
        if not set(chosen) <= set(range(len(self.blocks()))):
            raise ValueError(f"the backbone has blocks 0 to {len(self.blocks()) - 1}, not {sorted(set(chosen) - set(range(len(self.blocks()))))}")
        if not ranks and not kinds:
            raise ValueError("neither ranks nor kinds: there is no expert; take a probe")
        width, prefix = self.backbone.embed_dim, self.backbone.num_prefix_tokens
        for number in chosen:
            block = self.blocks()[number]
            if ranks:
                qkv = getattr(block.attn, "qkv", None)
                if not isinstance(qkv, nn.Linear):
                    raise ValueError("the backbone's attention has no joint linear layer `qkv` that LoRA experts could stand beside")
                block.attn.qkv = Beside(qkv, LoraMixture(width, qkv.out_features, ranks, lora_router, lora_k))
            if kinds:
                adapter = AdapterMixture(width, prefix, kinds, bottleneck, self_index, adapter_router, adapter_k, self.backbone.patch_embed.grid_size)
                block.mlp = Beside(block.mlp, adapter)
        if trains_norm1:
            for block in self.blocks():
                block.norm1.requires_grad_()
        self._like_backbone(self.backbone)
        self._images = 0

    def forward(self, images: Tensor) -> Tensor:
        self._images = len(images)
        if self.backbone.dynamic_img_size:
            grid = self.backbone.patch_embed.dynamic_feat_size(tuple(images.shape[2:]))
            for mixture in self.mixtures("adapter"):
                cast(AdapterMixture, mixture).grid = grid
        return super().forward(images)

    def mixtures(self, name: str) -> list[Mixture]:
        """Return the mixtures named `lora` or `adapter`, the first block's first."""
        places = (block.attn.qkv if name == "lora" else block.mlp for block in self.blocks())
        return [cast(Mixture, place.mixture) for place in places if isinstance(place, Beside)]

    def _routed(self) -> Iterator[tuple[str, list[Mixture]]]:
        for name in ("lora", "adapter"):
            mixtures = self.mixtures(name)
            if mixtures and mixtures[0].routing is None:
                raise ValueError("no batch has been routed yet: call the detector on images first")
            if mixtures:
                yield name, mixtures

    def balance_losses(self) -> dict[str, Tensor]:
        """Return the mean over blocks of the last batch's balance losses, scalars under `lora` and `adapter`; {} in evaluation.

        Raises:
            ValueError: if no batch has been routed.
        """
        if not self.training:
            return {}
        return {name: torch.stack([m.routing.balance for m in mixtures if m.routing]).mean() for name, mixtures in self._routed()}

    def usage(self) -> dict[str, Tensor]:
        """Return which experts the last batch used, (L, B, E) under `lora` and `adapter`.

        An entry is an expert's share of the tokens of an image, or of the image, weighted by the gate, in one of L mixtures. Its mean over a class's
        images is the usage histogram of the class.

        Raises:
            ValueError: if no batch has been routed.
        """
        found = {}
        for name, mixtures in self._routed():
            shares = [m.routing.dense(m.router.experts).detach().unflatten(0, (self._images, -1)).mean(1) for m in mixtures if m.routing]
            found[name] = torch.stack(shares)
        return found

    def expert_maps(self) -> Tensor:
        """Return the first LoRA expert of each patch of the last batch, (L, B, rows, columns) int64.

        Raises:
            ValueError: if no batch has been routed, or there are no LoRA experts, or the images vary in size and there are no adapters.
        """
        routed = dict(self._routed())
        if "lora" not in routed:
            raise ValueError("the detector has no LoRA experts, which tokens could go to")
        grid = cast(AdapterMixture, routed["adapter"][0]).grid if "adapter" in routed else self.backbone.patch_embed.grid_size
        chosen = torch.stack([m.routing.experts[:, 0] for m in routed["lora"] if m.routing]).unflatten(1, (self._images, -1))
        return chosen[:, :, self.backbone.num_prefix_tokens :].unflatten(2, grid)


def build_detector(adaptation: Adaptation, backbone: VisionTransformer, rank: int = 8, kind: str = "cv", **options: Any) -> Detector:
    """Build a detector on a backbone, which becomes part of it.

    Args:
        adaptation: `moe`: `MoEViT`; `lora`: one LoRA expert in each block; `adapter`: one adapter in each block; `probe`: the head alone; `full`: all
            weights; `layernorm`: the weights and biases of all layer norms (GenD); `bitfit`: all biases; `effort`: the smallest singular components
            of the attention's weights.
        backbone: see `Detector`.
        rank: rank of `lora` (the components of `effort` are 1, as published).
        kind: convolution of `adapter`.
        **options: of `MoEViT` for `moe`, `lora` and `adapter`, else of `Detector`; `lora` and `adapter` leave norms frozen unless told otherwise.

    Raises:
        ValueError: if there is no such adaptation, or an option does not fit.
    """
    if adaptation not in get_args(Adaptation):
        raise ValueError(f"no adaptation {adaptation!r}: choose {', '.join(get_args(Adaptation))}")
    if adaptation == "moe":
        return MoEViT(backbone, **options)
    if adaptation in ("lora", "adapter"):
        alone: dict[str, Any] = {"ranks": [rank], "kinds": []} if adaptation == "lora" else {"ranks": [], "kinds": [kind]}
        detector: Detector = MoEViT(backbone, **({"trains_norm1": False} | options | alone))
        configuration = {name: value for name, value in detector.configuration.items() if name not in alone}
        detector.configuration = configuration | ({"rank": rank} if adaptation == "lora" else {"kind": kind})
    else:
        detector = Detector(backbone, **options)
        _unfreeze(backbone, adaptation)
    detector.configuration["adaptation"] = adaptation
    return detector


def _unfreeze(backbone: VisionTransformer, adaptation: str) -> None:
    if adaptation == "full":
        backbone.requires_grad_()
    elif adaptation == "layernorm":
        for module in backbone.modules():
            if isinstance(module, nn.LayerNorm):
                module.requires_grad_()
    elif adaptation == "bitfit":
        for name, parameter in backbone.named_parameters():
            if name.endswith("bias"):
                parameter.requires_grad_()
    elif adaptation == "effort":
        for block in backbone.blocks:
            block.attn.qkv = ResidualLinear(block.attn.qkv, parts=3)
            block.attn.proj = ResidualLinear(block.attn.proj)


def count_parameters(detector: Detector) -> dict[str, int]:
    """Count parameters as the authors' code groups them: `lora`, `adapter`, `norm1`, `head`, `other`, and `trainable`, `frozen`, `total`."""
    counts = dict.fromkeys(("lora", "adapter", "norm1", "head", "other"), 0)
    for name, parameter in detector.trainable_parameters().items():
        part = next((part for part, sign in _PARTS.items() if sign in name), "other")
        counts[part] += parameter.numel()
    trainable = sum(counts.values())
    total = sum(parameter.numel() for parameter in detector.parameters())
    return counts | {"trainable": trainable, "frozen": total - trainable, "total": total}


_PARTS = {"lora": ".qkv.mixture.", "adapter": ".mlp.mixture.", "norm1": ".norm1.", "head": "head."}
