"""The classifiers of the sub-images, and the baselines: one module for DRS, randomized smoothing (RS) and ensembles of either."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from projects.drs.splits import BlockMax, Embedding, Split, source_of
from shared.backbones.factory import build_backbone
from shared.backbones.resnets import CifarResNet
from shared.smoothing import Branch, LogitMean
from shared.smoothing.placement import Placed, Placement

STATISTICS = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "digits": ((0.305,), (0.376,)),
    "half": ((0.5,), (0.25,)),
}
"""Mean and standard deviation of the channels of [0, 1] images, by name; a single number stands for all channels."""


class SmallNet(nn.Module):
    """Three convolutions of widths 16, 32 and 32, each normalised, the last two with stride 2, (B, C, H, W) -> (B, K): for a minute on a CPU."""

    def __init__(self, classes: int, channels: int) -> None:
        super().__init__()
        widths, strides = (channels, 16, 32, 32), (1, 2, 2)
        layers: list[nn.Module] = []
        for inputs, outputs, stride in zip(widths, widths[1:], strides, strict=False):
            layers += [nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(2 * 2 * widths[-1], classes)
        self.pool = nn.AdaptiveAvgPool2d(2)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.pool(self.features(images)).flatten(1))


def build_network(name: str, classes: int, channels: int) -> nn.Module:
    """Build a classifier of images, (B, C, H, W) of any size -> (B, K) logits.

    Args:
        name: `small`; `resnet20`, `resnet32`, `resnet44`, `resnet56` or `resnet110` of CIFAR; or a timm model, `resnet50` for ImageNet.
        classes: K.
        channels: channels of the images.
    """
    if name == "small":
        return SmallNet(classes, channels)
    if name in ("resnet20", "resnet32", "resnet44", "resnet56", "resnet110"):
        return CifarResNet(int(name.removeprefix("resnet")), classes, channels)
    return build_backbone(name, num_classes=classes, in_chans=channels)


def _check_size(name: str, network: nn.Module, given: tuple[int, ...]) -> None:
    config = getattr(network, "pretrained_cfg", {})
    wanted = tuple(config["input_size"][1:]) if config.get("fixed_input_size") else given
    if given != wanted:
        sizes = [" x ".join(map(str, size)) for size in (wanted, given)]
        raise ValueError(f"{name} takes images of {sizes[0]} pixels alone, not of {sizes[1]}: set data.size, or take another model.backbone")


class DualClassifier(nn.Module):
    """A classifier of each sub-image: noise is added outside, to the sub-image; then it is embedded, normalised and classified.

    Args:
        split: the sub-images; `whole` makes this a classifier of images for randomized smoothing.
        embedding: how a sub-image becomes a network's input.
        backbone: see `build_network`.
        classes: K.
        channels: channels of the images.
        statistics: name in `STATISTICS`; images are normalised inside, after the noise, so that sigma and radii are in units of [0, 1] images.
        ensemble: networks of each branch, whose logits are averaged.
        is_shared: one network for all branches.
    """

    def __init__(
        self,
        split: Split,
        embedding: Embedding,
        backbone: str,
        classes: int,
        channels: int,
        statistics: str = "half",
        ensemble: int = 1,
        is_shared: bool = False,
    ) -> None:
        super().__init__()
        if statistics not in STATISTICS:
            raise ValueError(f"no statistics {statistics!r}: choose {', '.join(STATISTICS)}")
        if embedding == "checkerboard_maxpool" and not split.name.startswith("checkerboard"):
            raise ValueError(f"the embedding checkerboard_maxpool needs a checkerboard split, not {split.name!r}")
        if ensemble < 1:
            raise ValueError(f"a branch needs at least one network, got {ensemble}")
        self.split, self.classes, self.ensemble, self.is_shared = split, classes, ensemble, is_shared
        mean, std = (torch.tensor(values).expand(channels).clone() for values in STATISTICS[statistics])
        identity = torch.zeros(channels), torch.ones(channels)
        self.placements, self.blends = nn.ModuleList(), nn.ModuleList()
        for branch in range(len(split)):
            source = source_of(split, branch, embedding, channels)
            is_blended = embedding == "checkerboard_maxpool"
            self.placements.append(Placement(source, *(identity if is_blended else (mean, std))))
            if is_blended:
                everything = torch.arange(channels * split.height * split.width).view(channels, split.height, split.width)
                self.blends.append(nn.Sequential(BlockMax(source[0] >= 0), Placement(everything, mean, std)))
        self.networks = nn.ModuleList(build_network(backbone, classes, channels) for _ in range((1 if is_shared else len(split)) * ensemble))
        _check_size(backbone, self.networks[0], tuple(source.shape[1:]))

    def classifier(self, branch: int) -> nn.Module:
        """Return the classifier of noised sub-images of a branch, (B, C, h, w) -> (B, K) logits; an ensemble's are averaged."""
        return self._over(branch, self.parts_of(branch)[1])

    def parts_of(self, branch: int) -> tuple[Placement, nn.Module]:
        """Return a branch's placement, and its network behind it; an ensemble's logits are averaged."""
        networks = self._of_branch(branch)
        return cast(Placement, self.placements[branch]), networks[0] if len(networks) == 1 else LogitMean(networks)

    def members(self) -> list[tuple[int, nn.Module]]:
        """Return every network that is trained by itself: its branch, and it as a classifier of that branch's noised sub-images."""
        return [(branch, self._over(branch, network)) for branch in range(len(self.split)) for network in self._of_branch(branch)]

    def seen(self, branch: int, noised: Tensor) -> Tensor:
        """Return what a branch's network sees of (B, C, h, w) noised sub-images, in the range of the images: without the normalisation."""
        images = self._over(branch, nn.Identity())(noised)
        last = next(module for module in reversed(list(self._over(branch, nn.Identity()).modules())) if isinstance(module, Placement))
        return images * last.std.view(-1, 1, 1) + last.mean.view(-1, 1, 1)

    def _of_branch(self, branch: int) -> list[nn.Module]:
        start = 0 if self.is_shared else branch * self.ensemble
        return list(self.networks[start : start + self.ensemble])

    def _over(self, branch: int, network: nn.Module) -> nn.Module:
        placement = cast(Placement, self.placements[branch])
        return Placed(placement, nn.Sequential(self.blends[branch], network) if len(self.blends) else network)

    def branches(self) -> list[Branch]:
        """Return the branches for `shared.smoothing`."""
        return [Branch(self.classifier(branch), self.split.take(branch)) for branch in range(len(self.split))]
