"""What a defence is: a map of the training set, a loss of its own, or neither."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from projects.dvae.batches import check_set
from shared.data.memory import chunks


@dataclass(frozen=True)
class Budget:
    """How the defences that train a network on the set itself do so; published for CIFAR-10.

    Attributes:
        epochs: epochs.
        width: channels of the encoder's first stage.
        batch_size: images of a step.
        lr: learning rate of Adam, which falls to 0 along a cosine.
    """

    epochs: int = 60
    width: int = 64
    batch_size: int = 128
    lr: float = 5e-3

    def __post_init__(self) -> None:
        if min(self.epochs, self.width, self.batch_size) < 1 or self.lr <= 0:
            raise ValueError(f"epochs, width, batch_size and lr of a budget must be positive, got {self}")


class Defence:
    """No defence; others replace one of its methods.

    Attributes:
        name: the text that the defence was parsed from, such as "jpeg:10".
        defends_test: whether test images can be mapped, too: it needs a map that looks at no label and is fitted to nothing.
    """

    name = "none"
    defends_test = False

    def transform_set(self, images: Tensor, labels: Tensor, seed: int) -> Tensor:
        """Map the whole training set, once, before training.

        Args:
            images: uint8 (N, C, H, W).
            labels: (N,) int64.
            seed: seed of what is random or fitted.

        Returns:
            uint8 (N, C, H, W).

        Raises:
            ValueError: if it is not such a set.
        """
        check_set(images, labels)
        return images

    def transform_test(self, images: Tensor) -> Tensor:
        """Map test images, which the protocol leaves as they are.

        Args:
            images: uint8 (N, C, H, W).

        Raises:
            ValueError: if this defence is for training sets only.
        """
        raise ValueError(f"the defence {self.name!r} is for training sets only; defend_test goes with grey, jpeg, bdr and blur")

    def loss(self, network: nn.Module, images: Tensor, labels: Tensor, random: torch.Generator, progress: float) -> Tensor:
        """Return the loss of a training batch.

        Args:
            network: (B, C, H, W) images in [0, 1] -> (B, K) logits; in training mode.
            images: (B, C, H, W), after the usual crops.
            labels: (B,) int64.
            random: generator of this step, on the images' device.
            progress: share of the epochs that are over, in [0, 1).

        Returns:
            Scalar.
        """
        return F.cross_entropy(network(images), labels)


class ImageMap(Defence):
    """A defence that maps image by image: it replaces `map`."""

    defends_test = True

    def map(self, images: Tensor) -> Tensor:
        """Map some images, uint8 (B, C, H, W) -> the same."""
        raise NotImplementedError

    def transform_set(self, images: Tensor, labels: Tensor, seed: int) -> Tensor:
        check_set(images, labels)
        return self._map_all(images)

    def transform_test(self, images: Tensor) -> Tensor:
        check_set(images, torch.zeros(len(images), dtype=torch.int64))
        return self._map_all(images)

    def _map_all(self, images: Tensor) -> Tensor:
        mapped = torch.empty_like(images)
        for part in chunks(images):
            mapped[part] = self.map(images[part])
        return mapped
