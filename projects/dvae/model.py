"""The rate-constrained VAE and the D-VAE: plain networks, images in, images and perturbations out."""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shared.backbones.resnets import BasicBlock

Norm = Literal["instance", "batch"]
Embedding = Literal["spatial", "broadcast", "none"]
EmbedMode = Literal["add", "concat"]
Perturbation = Literal["sample", "features", "class"]


class Latent(NamedTuple):
    """What the encoder says of images, each (B, ·, h, w): features of the stem, mean and logarithm of the variance of the latent."""

    features: Tensor
    mean: Tensor
    log_variance: Tensor


class Separation(NamedTuple):
    """A D-VAE's output: reconstruction (B, C, H, W) in [0, 1], perturbation (B, C, H, W) without bounds, and the latent."""

    reconstruction: Tensor
    perturbation: Tensor
    latent: Latent


class Encoder(nn.Module):
    """A residual network cut after the first block of its last stage, (B, C, H, W) -> (B, 2^levels · width, H / 2^levels, W / 2^levels).

    Args:
        channels: 1 for grey images, 3 for colour.
        width: channels of the first stage.
        levels: halvings of the resolution: 1 for CIFAR, 3 for ImageNet.
        latent: channels of mean and variance.
    """

    def __init__(self, channels: int, width: int, levels: int, latent: int) -> None:
        super().__init__()
        blocks: list[nn.Module] = [BasicBlock(width, width, 1), BasicBlock(width, width, 1)]
        for level in range(levels):
            inner = width * 2**level
            blocks.append(BasicBlock(inner, 2 * inner, 2))
            if level < levels - 1:
                blocks.append(BasicBlock(2 * inner, 2 * inner, 1))
        self.stem = nn.Sequential(nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(), *blocks)
        self.mean = nn.Conv2d(width * 2**levels, latent, 1)
        self.log_variance = nn.Conv2d(width * 2**levels, latent, 1)

    def forward(self, images: Tensor) -> Latent:
        features = self.stem(images)
        return Latent(features, self.mean(features), self.log_variance(features))


class Decoder(nn.Module):
    """Transposed convolutions back to an image, (B, inputs, h, w) -> (B, C, 2^levels · h, 2^levels · w).

    InstanceNorm is part of the method: with BatchNorm the perturbation separates far worse.

    Args:
        inputs: channels of the latent.
        width: `width` of the encoder.
        channels: channels of the images.
        levels: doublings of the resolution, 1 or 3.
        norm: instance or batch normalisation.
    """

    def __init__(self, inputs: int, width: int, channels: int, levels: int, norm: Norm) -> None:
        super().__init__()
        normalise = {"instance": nn.InstanceNorm2d, "batch": nn.BatchNorm2d}[norm]
        if levels == 1:
            half = max(1, width // 2)
            layers = [_double(inputs, width), _refine(width, width), normalise(width), nn.ReLU()]
            layers += [_refine(width, half), normalise(half), nn.ReLU(), _refine(half, channels)]
        else:
            layers = [_double(inputs, 4 * width), _refine(4 * width, 2 * width), normalise(2 * width), nn.ReLU()]
            half = max(1, width // 2)
            layers += [_double(2 * width, width), _refine(width, half), normalise(half), nn.ReLU(), _double(half, channels)]
        self.layers = nn.Sequential(*layers)

    def forward(self, latent: Tensor) -> Tensor:
        return self.layers(latent)


def _double(inputs: int, outputs: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(inputs, outputs, 4, stride=2, padding=1)


def _refine(inputs: int, outputs: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(inputs, outputs, 3, padding=1)


class RateVAE(nn.Module):
    """A VAE whose latent is a grid, (B, C, H, W) in [0, 1] -> the same. It samples at inference, too.

    Args:
        channels: 1 for grey images, 3 for colour.
        width: channels of the encoder's first stage; 64 is published.
        levels: halvings of the resolution: 1 (published for CIFAR) or 3 (for ImageNet).
        latent: channels of the latent; None takes 4 · width; published are 256 for a width of 64.
        norm: normalisation in the decoder.

    Raises:
        ValueError: for a number of levels that is not published.
    """

    def __init__(self, channels: int = 3, width: int = 64, levels: int = 1, latent: int | None = None, norm: Norm = "instance") -> None:
        super().__init__()
        if levels not in (1, 3):
            raise ValueError(f"levels must be 1 (a latent of half the size) or 3 (an eighth), got {levels}")
        if norm not in get_args(Norm):
            raise ValueError(f"norm must be one of {', '.join(get_args(Norm))}, got {norm!r}")
        self.channels, self.width, self.levels, self.norm = channels, width, levels, norm
        self.latent = latent or 4 * width
        self.inner = width * 2**levels
        self.encoder = Encoder(channels, width, levels, self.latent)
        self.post = nn.Conv2d(self.latent, self.inner, 1)
        self.decoder = Decoder(self.inner, width, channels, levels, norm)

    def noise_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """Return the (D, h, w) shape of the noise of one image.

        Raises:
            ValueError: if the image's sides do not divide.
        """
        scale = 2**self.levels
        if height % scale or width % scale:
            raise ValueError(f"images of {height} x {width} pixels do not divide by {scale}: choose a size that does")
        return self.latent, height // scale, width // scale

    def encode(self, images: Tensor) -> Latent:
        """Map images to their latents' distributions."""
        return self.encoder(images)

    def sample(self, latent: Latent, noise: Tensor) -> Tensor:
        """Draw z = post(μ + ε · exp(½ log σ²)), (B, inner, h, w), from (B, D, h, w) standard normal `noise`."""
        return self.post(latent.mean + noise * (0.5 * latent.log_variance).exp())

    def decode(self, z: Tensor) -> Tensor:
        """Map z to images in (0, 1)."""
        return torch.sigmoid(self.decoder(z))

    def forward(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Latent]:
        latent = self.encode(images)
        return self.decode(self.sample(latent, noise)), latent


class DVAE(RateVAE):
    """A rate-constrained VAE with a second decoder, which writes the perturbation from an embedding u_y of the label.

    Args:
        classes: K.
        size: height and width of the images in pixels; needed for spatial embeddings.
        channels: 1 for grey images, 3 for colour.
        width: channels of the encoder's first stage.
        levels: halvings of the resolution, 1 or 3.
        latent: channels of the latent.
        norm: normalisation in the decoders.
        embedding: spatial (an embedding of its own for each position), broadcast (one vector for all) or none.
        embed_mode: u_y is added to the decoder's input, or concatenated with it.
        perturbation: input of the second decoder: sample (z with u_y), features (the stem's with u_y) or class (u_y alone: one perturbation a class).
        embedding_grid: side of a coarser grid of spatial embeddings, which is enlarged; None takes the latent's.

    Raises:
        ValueError: for settings that do not go together.
    """

    def __init__(
        self,
        classes: int,
        size: tuple[int, int],
        channels: int = 3,
        width: int = 64,
        levels: int = 1,
        latent: int | None = None,
        norm: Norm = "instance",
        embedding: Embedding = "spatial",
        embed_mode: EmbedMode = "add",
        perturbation: Perturbation = "sample",
        embedding_grid: int | None = None,
    ) -> None:
        super().__init__(channels, width, levels, latent, norm)
        for name, value, known in (
            ("embedding", embedding, Embedding),
            ("embed_mode", embed_mode, EmbedMode),
            ("perturbation", perturbation, Perturbation),
        ):
            if value not in get_args(known):
                raise ValueError(f"{name} must be one of {', '.join(get_args(known))}, got {value!r}")
        if perturbation == "class" and embedding == "none":
            raise ValueError("perturbation 'class' is written from the embedding alone: embedding must not be 'none'")
        self.grid = self.noise_shape(*size)[1:]
        self.embedding, self.embed_mode, self.perturbation = embedding, embed_mode, perturbation
        self.embedding_grid = self.grid if embedding_grid is None else (embedding_grid, embedding_grid)
        positions = self.embedding_grid[0] * self.embedding_grid[1] if embedding == "spatial" else 1
        self.embed = None if embedding == "none" else nn.Embedding(classes, self.inner * positions)
        is_wide = embed_mode == "concat" and embedding != "none" and perturbation != "class"
        self.perturbation_decoder = Decoder((1 + is_wide) * self.inner, width, channels, levels, norm)

    def embed_labels(self, labels: Tensor) -> Tensor:
        """Return u_y, (B, inner, h, w), of (B,) labels."""
        assert self.embed is not None
        vectors = self.embed(labels)
        if self.embedding == "broadcast":
            return vectors[:, :, None, None].expand(-1, -1, *self.grid)
        return F.interpolate(vectors.unflatten(1, (self.inner, *self.embedding_grid)), size=self.grid, mode="nearest")

    def decode_perturbation(self, latent: Latent, z: Tensor, labels: Tensor) -> Tensor:
        """Return p̂, (B, C, H, W), from latents, their samples and (B,) labels."""
        source = z if self.perturbation == "sample" else latent.features
        if self.embed is None:
            return self.perturbation_decoder(source)
        u = self.embed_labels(labels)
        if self.perturbation == "class":
            return self.perturbation_decoder(u)
        return self.perturbation_decoder(source + u if self.embed_mode == "add" else torch.cat([source, u], dim=1))

    def forward(self, images: Tensor, labels: Tensor, noise: Tensor) -> Separation:  # type: ignore[override]
        latent = self.encode(images)
        z = self.sample(latent, noise)
        return Separation(self.decode(z), self.decode_perturbation(latent, z, labels), latent)


class BottleneckAutoencoder(nn.Module):
    """The control of the paper's figure: the same encoder and decoder around a deterministic bottleneck of `bottleneck` channels and no rate.

    Args:
        bottleneck: channels of the grid between encoder and decoder; the published controls go from 1 to 512.
        channels: channels of the images.
        width: channels of the first stage.
        levels: halvings of the resolution, 1 or 3.
        norm: normalisation in the decoder.
    """

    def __init__(self, bottleneck: int, channels: int = 3, width: int = 64, levels: int = 1, norm: Norm = "instance") -> None:
        super().__init__()
        self.encoder = Encoder(channels, width, levels, bottleneck)
        del self.encoder.log_variance
        self.post = nn.Conv2d(bottleneck, width * 2**levels, 1)
        self.decoder = Decoder(width * 2**levels, width, channels, levels, norm)

    def forward(self, images: Tensor) -> Tensor:
        return torch.sigmoid(self.decoder(self.post(self.encoder.mean(self.encoder.stem(images)))))
