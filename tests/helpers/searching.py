"""Small searches: a planted space where one operation alone carries the signal, striped images, and searches in processes of their own."""

import torch
from torch import nn
from torch.utils.data import Dataset

from projects.forgery_nas.options import SearchOptions
from projects.forgery_nas.search import ArchitectureSearch
from shared.checkpoints import SafeCheckpointIO
from shared.data.base import training_loader
from shared.quiet import quiet_trainer, silence

PLANTED = ("noise", "conv", "none", "constant")
SMALL = {"channels": 4, "layers": 3, "nodes": 2, "k": 1, "warmup": 1, "prune_every": 2, "lr": 0.05, "lr_architecture": 0.05, "temperature": 1.0}


class Noise(nn.Module):
    """Fresh noise of the strided size."""

    def __init__(self, stride):
        super().__init__()
        self.stride = stride

    def forward(self, features):
        return 0.5 * torch.randn_like(features[:, :, :: self.stride, :: self.stride])


class Constant(Noise):
    """A constant of the strided size: negative, so that the ReLU that follows would cut the signal off."""

    def forward(self, features):
        return torch.full_like(features[:, :, :: self.stride, :: self.stride], -1.0)


def conv(channels, stride, affine):
    convolution = nn.Conv2d(channels, channels, 3, stride, padding=1, bias=False)
    return nn.Sequential(nn.ReLU(), convolution, nn.BatchNorm2d(channels, affine=affine))


REGISTRY = {"conv": conv, "noise": lambda channels, stride, affine: Noise(stride), "constant": lambda channels, stride, affine: Constant(stride)}


class Stripes(Dataset):
    """Images of vertical (0) or horizontal stripes (1) of any phase and colour."""

    def __init__(self, length, seed, size=12, noise=20):
        random = torch.Generator().manual_seed(seed)
        self.labels = torch.arange(length) % 2
        wave = (torch.arange(size) * torch.pi / 2 + 6.3 * torch.rand(length, 1, generator=random)).sin()
        stripes = torch.where(self.labels.bool()[:, None, None], wave[:, :, None], wave[:, None, :])
        colours = 0.3 + torch.rand(length, 3, 1, 1, generator=random)
        noisy = 128 + 60 * colours * stripes[:, None] + noise * torch.randn(length, 3, size, size, generator=random)
        self.images = noisy.clamp(0, 255).byte()

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return {"image": self.images[index], "label": self.labels[index]}


def loaders(batch_size=16, train=96, val=96, seed=0, noise=20):
    """Return what a search trains on: loaders "train" and "val"."""
    sets = {"train": Stripes(train, 2 * seed, noise=noise), "val": Stripes(val, 2 * seed + 1, noise=noise)}
    return {name: training_loader(images, batch_size, number) for number, (name, images) in enumerate(sets.items())}


def search(epochs, data=None, callbacks=(), ckpt_path=None, devices=1, strategy="auto", registry=None, **options):
    """Search on one or more CPU processes and return the module."""
    module = ArchitectureSearch(SearchOptions(**(SMALL | {"epochs": epochs} | options)), registry)
    settings = {"accelerator": "cpu", "devices": devices, "strategy": strategy, "plugins": [SafeCheckpointIO()], "callbacks": list(callbacks)}
    trainer = quiet_trainer(epochs, **settings)
    with silence():
        trainer.fit(module, loaders() if data is None else data, ckpt_path=ckpt_path)
    return module


def search_planted(epochs, data=None, **options):
    """Search the planted space."""
    return search(epochs, data, space=list(PLANTED), registry=REGISTRY, **options)
