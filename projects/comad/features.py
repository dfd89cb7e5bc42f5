"""Features of pictures on a grid: of frozen networks, or colours and textures that need no weights."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from projects.comad.vocabulary import Metric
from shared.backbones.factory import build_backbone
from shared.checkpoints import weights_digest
from shared.seeding import derive_seed

Size = int | tuple[int, int]
"""Side, or height and width, in pixels."""
Output = Literal["tokens", "keys"]
BLURS = (1.0, 2.0)
"""Sigmas, in pixels, of the colours of `OfflineFeatures`."""
SPREADS = (1.5, 3.0)
"""Sigmas, in pixels, of the windows of its standard deviations."""
CONSTANT = 1e-3
"""Standard deviation, in units of CIELAB, below which a channel is constant."""
STEPS = (8, 16)
"""Pixels from one place to the next of the stages that PatchCore takes of a convolutional network: layer2 and layer3 of a ResNet."""
_TRUNCATE = 4.0
_XYZ = ((0.412453, 0.357580, 0.180423), (0.212671, 0.715160, 0.072169), (0.019334, 0.119193, 0.950227))  # of linear sRGB, under D65


class FeatureExtractor(nn.Module):
    """Maps pictures, (B, 3, H, W) uint8 in RGB, to features, (B, C, h, w) float32. It is frozen, and always in evaluation mode.

    Attributes:
        name: of the features.
        channels: C.
        metric: how they are best compared.
        learns: whether `fit` does anything.
    """

    name: str
    channels: int
    metric: Metric = "cosine"
    learns = False

    def fit(self, images: Tensor | Iterable[Tensor]) -> Self:
        """Fit what depends on the training pictures, (N, 3, H, W) uint8 or batches of them; nothing does unless a subclass says so."""
        return self

    def state(self) -> dict[str, Any]:
        """Return what has to be stored beside the options of `build_features`: tensors and plain values."""
        raise NotImplementedError

    def restore(self, state: dict[str, Any]) -> Self:
        """Put back what `state` returned.

        Raises:
            ValueError: if it is of other features.
        """
        raise NotImplementedError

    def _compared(self, state: dict[str, Any]) -> Self:
        """Raise unless a state says what that of these features does."""
        if differing := [f"{key} {state.get(key)!r}, here {value!r}" for key, value in self.state().items() if state.get(key) != value]:
            raise ValueError(f"the model was fitted to other features: {'; '.join(differing)}")
        return self

    def train(self, mode: bool = True) -> Self:
        return super().train(False)


class OfflineFeatures(FeatureExtractor):
    """Eight channels without weights: CIELAB blurred at sigma 1 and 2, the standard deviations of L near a pixel at sigma 1.5 and 3.

    They are taken at every `stride`-th pixel from the first on and standardised by the means and deviations of the training pictures. Blurs are
    Gaussians cut at 4 sigma, beyond the border with the pixels on it.

    Args:
        stride: pixels from one place of the grid to the next.

    Raises:
        ValueError: if the stride is not positive.
    """

    name = "offline"
    channels = 3 * len(BLURS) + len(SPREADS)
    metric = "euclidean"  # directions alone do not tell dark from bright
    learns = True
    mean: Tensor
    std: Tensor

    def __init__(self, stride: int = 2) -> None:
        super().__init__()
        if stride < 1:
            raise ValueError(f"the stride is 1 pixel or more, not {stride}")
        self.stride = stride
        self.register_buffer("mean", torch.zeros(self.channels))
        self.register_buffer("std", torch.ones(self.channels))

    def fit(self, images: Tensor | Iterable[Tensor]) -> Self:
        """Take means and deviations from training pictures, (N, 3, H, W) uint8 or batches of them; constant channels are only centred.

        Raises:
            ValueError: if there are no pictures.
        """
        count, total, squares = 0, torch.zeros(self.channels, dtype=torch.float64), torch.zeros(self.channels, dtype=torch.float64)
        for batch in [images] if isinstance(images, Tensor) else images:
            for part in batch.split(32):
                values = self.raw(part).double().movedim(1, 0).flatten(1).cpu()
                count += values.shape[1]
                total += values.sum(1)
                squares += values.square().sum(1)
        if not count:
            raise ValueError("features are standardised by training pictures, and there are none")
        mean = total / count
        std = (squares / count - mean.square()).clamp_min(0).sqrt()
        self.mean.copy_(mean)
        self.std.copy_(torch.where(std < CONSTANT, 1.0, std))
        return self

    def raw(self, images: Tensor) -> Tensor:
        """Return the channels in units of CIELAB, (B, 3, H, W) uint8 -> (B, 8, h, w)."""
        lab = cielab(images)
        lightness = lab[:, :1] - 50  # smaller squares lose less to rounding
        blurred = [_blur(lab, sigma, self.stride) for sigma in BLURS]
        for sigma in SPREADS:
            mean, square = _blur(torch.cat([lightness, lightness.square()], 1), sigma, self.stride).split(1, 1)
            blurred.append((square - mean.square()).clamp_min(0).sqrt())
        return torch.cat(blurred, 1)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, enabled=False):  # deviations are small differences of large squares
            return (self.raw(images) - self.mean[:, None, None]) / self.std[:, None, None]

    def state(self) -> dict[str, Any]:
        return {"name": self.name, "stride": self.stride, "mean": self.mean.cpu(), "std": self.std.cpu()}

    def restore(self, state: dict[str, Any]) -> Self:
        if (state["name"], state.get("stride")) != (self.name, self.stride):
            found = f"{state['name']!r} of stride {state.get('stride')}"
            raise ValueError(f"the model was fitted to features {found}, not to {self.name!r} of stride {self.stride}")
        self.mean.copy_(state["mean"])
        self.std.copy_(state["std"])
        return self


class NoFeatures(FeatureExtractor):
    """Stands where a light network gives the components of pictures, so that nothing asks for features."""

    name = "distilled"
    channels = 0

    def forward(self, images: Tensor) -> Tensor:
        raise ValueError("a light inspector gives components without features: take the one that it was distilled from, or other model.features")

    def state(self) -> dict[str, Any]:
        return {"name": self.name}

    def restore(self, state: dict[str, Any]) -> Self:
        if state != self.state():
            raise ValueError(f"the model was fitted to other features than a light inspector's: give those of {state.get('name')!r} with it")
        return self


class ViTFeatures(FeatureExtractor):
    """The patch tokens of a vision transformer of timm: those of its last block, through its final LayerNorm.

    Class and register tokens are dropped. Pictures are resized bilinearly to `size` without regard to their proportions, and normalised as the
    weights want it (DINO: ImageNet's mean and standard deviation).

    Args:
        name: timm's name, such as `vit_small_patch8_224.dino` of the paper, `vit_small_patch14_dinov2` or `vit_small_patch14_reg4_dinov2`.
        size: what pictures are resized to, a multiple of the patches' side; position embeddings are resized with it.
        weights: a local file; None for random weights; or "pretrained" for timm's own, from its cache or by download.
        output: `tokens`, or `keys` of the last attention layer.
        seed: of random weights.

    Raises:
        ValueError: if timm has no such vision transformer, the size does not fit its patches, or the weights do not fit it.
        FileNotFoundError: if the weights are not there.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, name: str, size: Size = 224, weights: str | None = None, output: Output = "tokens", seed: int = 0) -> None:
        super().__init__()
        if output not in ("tokens", "keys"):
            raise ValueError(f"a vision transformer gives tokens or keys, not {output!r}")
        self.name, self.output = name, output
        self.size = (size, size) if isinstance(size, int) else (size[0], size[1])
        self.net = _build_vit(name, self.size, weights, seed)
        net = cast(Any, self.net)
        if output == "keys" and not isinstance(getattr(net.blocks[-1].attn, "qkv", None), nn.Linear):
            raise ValueError(f"{name} has no keys beside queries and values in one layer: take its tokens")
        self.channels = net.embed_dim
        for kind in ("mean", "std"):
            self.register_buffer(kind, torch.tensor(net.pretrained_cfg[kind])[:, None, None], persistent=False)
        self.requires_grad_(False).eval()

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        pixels = _pixels(images, self.size, self.mean, self.std)
        net = cast(Any, self.net)
        if self.output == "tokens":
            return net.forward_intermediates(pixels, indices=1, norm=True, intermediates_only=True)[0].float()
        entering = net.forward_intermediates(pixels, indices=2, stop_early=True, intermediates_only=True)[0]  # what the last block takes
        last = net.blocks[-1]
        return last.attn.qkv(last.norm1(entering.movedim(1, -1))).chunk(3, -1)[1].movedim(-1, 1).float()

    def state(self) -> dict[str, Any]:
        return {"name": self.name, "output": self.output, "size": list(self.size), "digest": weights_digest(self.net)}

    def restore(self, state: dict[str, Any]) -> Self:
        if differing := [f"{key} {state.get(key)!r}, here {value!r}" for key, value in self.state().items() if state.get(key) != value]:
            raise ValueError(f"the model was fitted to other features: {'; '.join(differing)}; give --model.weights it was fitted with")
        return self


class CNNFeatures(FeatureExtractor):
    """Stages of a convolutional network of timm, as PatchCore takes them: coarser ones are enlarged to the grid of the first.

    Pictures are resized and normalised as for `ViTFeatures`. PatchCore averages each stage over 3 x 3 of its own places. So it is
    with coarser ones here; `PatchMemory` averages over places of the finest grid.

    Args:
        name: timm's name, such as `resnet18` or `wide_resnet50_2`.
        size: what pictures are resized to.
        weights: a local file; None for random weights; or "pretrained" for timm's own, from its cache or by download.
        steps: the stages, by the pixels from one place to the next, the finest first; 8 and 16 are layer2 and layer3 of a ResNet.
        seed: of random weights.

    Raises:
        ValueError: if timm has no such network, it has no such stages, or the weights do not fit it.
        FileNotFoundError: if the weights are not there.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, name: str, size: Size = 224, weights: str | None = None, steps: tuple[int, ...] = STEPS, seed: int = 0) -> None:
        super().__init__()
        self.name, self.steps = name, steps
        self.size = (size, size) if isinstance(size, int) else (size[0], size[1])
        self.net = _build_cnn(name, self.size, weights, steps, seed)
        net = cast(Any, self.net)
        self.channels = sum(net.feature_info.channels())
        for kind in ("mean", "std"):
            self.register_buffer(kind, torch.tensor(net.pretrained_cfg[kind])[:, None, None], persistent=False)
        self.requires_grad_(False).eval()

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        first, *others = (stage.float() for stage in self.net(_pixels(images, self.size, self.mean, self.std)))
        means = [F.avg_pool2d(other, 3, stride=1, padding=1, count_include_pad=False) for other in others]
        return torch.cat([first, *(F.interpolate(mean, size=first.shape[2:], mode="bilinear") for mean in means)], 1)

    def state(self) -> dict[str, Any]:
        return {"name": self.name, "steps": list(self.steps), "size": list(self.size), "digest": weights_digest(self.net)}

    def restore(self, state: dict[str, Any]) -> Self:
        return self._compared(state)


def build_features(
    name: str, size: Size = 224, weights: str | None = None, output: Output = "tokens", stride: int = 2, seed: int = 0
) -> OfflineFeatures | NoFeatures | ViTFeatures | CNNFeatures:
    """Build a feature extractor, (B, 3, H, W) uint8 -> (B, C, h, w).

    Args:
        name: `offline`, or timm's name of a vision transformer or of a convolutional network.
        size: what a network resizes pictures to; offline features take them as they are.
        weights: see `ViTFeatures`.
        output: see `ViTFeatures`.
        stride: see `OfflineFeatures`.
        seed: of random weights.

    Raises:
        ValueError: if there are no such features, or the options do not fit them.
        FileNotFoundError: if the weights are not there.
    """
    if name == NoFeatures.name:
        return NoFeatures()
    if name != OfflineFeatures.name:
        if _is_transformer(name):
            return ViTFeatures(name, size, weights, output, seed)
        if output != "tokens":
            raise ValueError(f"{name} is no plain vision transformer and has no {output}: leave output at tokens")
        return CNNFeatures(name, size, weights, seed=seed)
    if weights is not None or output != "tokens":
        raise ValueError("offline features have neither weights nor keys: name a vision transformer, such as vit_small_patch8_224.dino")
    return OfflineFeatures(stride)


def cielab(images: Tensor) -> Tensor:
    """Convert sRGB to CIELAB under D65, unrounded, (B, 3, H, W) uint8 -> (B, 3, H, W) float32: L in [0, 100], a and b in about [-108, 99].

    Raises:
        ValueError: if the pictures are no (B, 3, H, W) uint8.
    """
    check_pictures(images)
    levels = torch.arange(256, device=images.device) / 255
    linear = torch.where(levels > 0.04045, ((levels + 0.055) / 1.055) ** 2.4, levels / 12.92).take(images.long())
    matrix = torch.tensor(_XYZ, device=images.device)
    matrix = matrix / matrix.sum(1, keepdim=True)  # by white, so that grey is neutral
    xyz = torch.einsum("bchw,dc->bdhw", linear, matrix)
    roots = torch.where(xyz > 0.008856, xyz.clamp_min(1e-6).pow(1 / 3), 7.787 * xyz + 16 / 116)
    x, y, z = roots.unbind(1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], 1)


def check_pictures(images: Tensor) -> None:
    """Raise a `ValueError` unless pictures are (B, 3, H, W) uint8."""
    if images.ndim != 4 or images.shape[1] != 3 or images.dtype != torch.uint8:
        raise ValueError(f"pictures have shape (B, 3, H, W) and type uint8, not {tuple(images.shape)} and {str(images.dtype).removeprefix('torch.')}")


def _pixels(images: Tensor, size: tuple[int, int], mean: Tensor, std: Tensor) -> Tensor:
    """Resize pictures, (B, 3, H, W) uint8, without regard to their proportions, and normalise them."""
    check_pictures(images)
    pixels = images.float()
    if tuple(images.shape[2:]) != size:
        pixels = F.interpolate(pixels, size=size, mode="bilinear", align_corners=False, antialias=True)
    return (pixels / 255 - mean) / std


def _blur(layers: Tensor, sigma: float, stride: int) -> Tensor:
    """Blur (B, C, H, W) at every `stride`-th row and column."""
    height, width = layers.shape[2:]
    return _smoothing(height, sigma, stride).to(layers) @ (layers @ _smoothing(width, sigma, stride).to(layers).T)


def _smoothing(length: int, sigma: float, stride: int) -> Tensor:
    """Return the matrix, (ceil(length / stride), length), that blurs a line of pixels and keeps every `stride`-th."""
    reach = int(_TRUNCATE * sigma + 0.5)
    taps = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma).square())
    centres = torch.arange(0, length, stride)
    sources = (centres[:, None] + torch.arange(-reach, reach + 1)).clamp(0, length - 1)
    return torch.zeros(len(centres), length).scatter_add_(1, sources, (taps / taps.sum()).expand(len(centres), -1))


def _is_transformer(name: str) -> bool:
    """Tell whether timm builds a network as a plain vision transformer; unknown names count as such."""
    import timm

    return not timm.is_model(name) or timm.models.is_model_in_modules(name, ("vision_transformer", "deit", "eva"))


def _build_cnn(name: str, size: tuple[int, int], weights: str | None, steps: tuple[int, ...], seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(seed, "features", name))
        return build_backbone(name, weights, features_only=True, out_indices=_stages(name, size, steps))


def _stages(name: str, size: tuple[int, int], steps: tuple[int, ...]) -> list[int]:
    """Return the numbers of the stages of a convolutional network with so many pixels from one place to the next."""
    advice = "take a network such as resnet18, or a vision transformer such as vit_small_patch8_224.dino"
    try:
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            net: Any = build_backbone(name, features_only=True).eval()
            shapes = [stage.shape for stage in net(torch.zeros(1, 3, *size))]
    except (RuntimeError, AssertionError, AttributeError) as error:  # what timm raises where a network has no stages
        raise ValueError(f"{name} is no network in stages for pictures of {size[0]} x {size[1]} pixels ({error}): {advice}") from error
    found, channels = net.feature_info.reduction(), net.feature_info.channels()
    if not set(steps) <= set(found) or [shape[1] for shape in shapes] != channels:
        raise ValueError(f"{name} gives no maps of every {' and '.join(map(str, steps))} pixels: {advice}")
    return [found.index(step) for step in steps]


def _build_vit(name: str, size: tuple[int, int], weights: str | None, seed: int) -> nn.Module:
    if not _is_transformer(name):
        raise ValueError(f"{name} is no plain vision transformer: take one such as vit_small_patch8_224.dino")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(seed, "features", name))  # random weights are those of the seed
        net: Any = build_backbone(name, weights, img_size=size)  # with its classifier, if any, for then every key of the file has to fit
    net.reset_classifier(0)
    patch = net.patch_embed.patch_size
    if size[0] % patch[0] or size[1] % patch[1]:
        raise ValueError(f"{name} has patches of {patch[0]} pixels: take a size that is a multiple of it, not {' x '.join(map(str, size))}")
    return net
