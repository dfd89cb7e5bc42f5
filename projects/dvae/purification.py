"""Purification: subtract stage by stage what each D-VAE ascribes to the label, then keep what the last one reconstructs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from projects.dvae.losses import on_grid, rate_of_each, subtract
from projects.dvae.model import DVAE, Latent
from shared.seeding import generator


@dataclass(frozen=True)
class Purified:
    """What purification makes of a batch.

    Attributes:
        products: x1, x2, ..., each (B, C, H, W) on the 8-bit grid: the images less the perturbation of each stage, and at last the reconstruction.
        perturbations: p̂ of each stage, (B, C, H, W), in units of [0, 1] images.
        rates: (B,) rate of each stage's latent, in nats a latent position.
    """

    products: list[Tensor]
    perturbations: list[Tensor]
    rates: list[Tensor]

    def named(self) -> dict[str, Tensor]:
        """Return the products and perturbations by name: x1, x2, x3, p1, p2 for two stages."""
        named = {f"x{number}": images for number, images in enumerate(self.products, 1)}
        return named | {f"p{number}": images for number, images in enumerate(self.perturbations, 1)}


def sample_noise(net: DVAE, images: Tensor, indices: Tensor, *key: int | str) -> Tensor:
    """Return standard normal noise for a batch, (B, D, h, w), each image's a function of `key` and its index alone.

    The method samples at inference, too: so purified sets are the same whatever the batches, their order and the number of processes.
    """
    shape = net.noise_shape(*images.shape[2:])
    return torch.stack([torch.randn(shape, generator=generator(*key, index)) for index in indices.tolist()]).to(images)


@torch.no_grad()
def purify(nets: Sequence[DVAE], images: Tensor, labels: Tensor, indices: Tensor, seed: int) -> Purified:
    """Purify a batch with the D-VAE of each stage.

    Args:
        nets: the D-VAEs in evaluation mode, in the order of the stages; the published method has two.
        images: (B, C, H, W) in [0, 1].
        labels: (B,) labels of the training set. Of a test set they must not be known: they would be written into the pixels.
        indices: (B,) indices in the whole training set.
        seed: seed of the noise.

    Raises:
        ValueError: if a net is in training mode.
    """
    products, perturbations, rates = [], [], []
    for stage, net in enumerate(nets):
        latent, perturbation = _separate(net, images, labels, indices, seed, stage)
        images = subtract(images, perturbation)
        products.append(images)
        perturbations.append(perturbation)
        rates.append(rate_of_each(latent.mean, latent.log_variance))
    last = nets[-1]
    noise = sample_noise(last, images, indices, seed, "purify", len(nets))
    products.append(on_grid(last.decode(last.sample(last.encode(images), noise))))
    return Purified(products, perturbations, rates)


@torch.no_grad()
def subtract_stages(nets: Sequence[DVAE], images: Tensor, labels: Tensor, indices: Tensor, seed: int) -> Tensor:
    """Return the images less the perturbations of the given stages: what the next stage is trained on, equal to `purify`'s product."""
    for stage, net in enumerate(nets):
        images = subtract(images, _separate(net, images, labels, indices, seed, stage)[1])
    return images


def _separate(net: DVAE, images: Tensor, labels: Tensor, indices: Tensor, seed: int, stage: int) -> tuple[Latent, Tensor]:
    """Return a stage's latent of the images and its p̂."""
    if net.training:  # its norms would take the batch's statistics, and keep them
        raise ValueError(f"the D-VAE of stage {stage + 1} is in training mode: call eval() first")
    latent = net.encode(images)
    noise = sample_noise(net, images, indices, seed, "purify", stage)
    return latent, net.decode_perturbation(latent, net.sample(latent, noise), labels)


def cosine(perturbation: Tensor, other: Tensor) -> Tensor:
    """Return the cosine similarity of (B, C, H, W) perturbations image by image, (B,); 0 where one of them is 0."""
    return torch.nn.functional.cosine_similarity(perturbation.flatten(1), other.flatten(1))


def psnr(images: Tensor, clean: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio of (B, C, H, W) images in [0, 1], image by image, (B,) in dB; equal images have 100."""
    return -10 * (images - clean).square().flatten(1).mean(1).clamp_min(1e-10).log10()
