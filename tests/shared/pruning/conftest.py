from collections import OrderedDict

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from shared.pruning import GroupIndex


class Residual(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x):
        return F.relu(x + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))


def convolutions(width=16, classes=10):
    layers = OrderedDict(
        conv=nn.Conv2d(1, width, 3, padding=1, bias=False),
        bn=nn.BatchNorm2d(width),
        relu=nn.ReLU(),
        block=Residual(width),
        down=nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False),
        bn2=nn.BatchNorm2d(2 * width),
        relu2=nn.ReLU(),
        flatten=nn.Flatten(),
        fc=nn.Linear(2 * width * 16, classes),
    )
    return nn.Sequential(layers)


def train(model, images, labels, epochs, seed=0, lr=3e-3):
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr)
    model.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(images), generator=generator).split(128):
            optimizer.zero_grad()
            F.cross_entropy(model(images[rows]), labels[rows]).backward()
            optimizer.step()
    optimizer.zero_grad()
    return model.eval()


@pytest.fixture(scope="session")
def digits():
    """Images (N, 1, 8, 8) in [0, 1] and labels, to train and to test on."""
    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    images = torch.tensor(data.images[order] / 16, dtype=torch.float32).unsqueeze(1)
    labels = torch.tensor(data.target[order])
    return images[:1400], labels[:1400], images[1400:], labels[1400:]


@pytest.fixture(scope="session")
def trained(digits):
    """A convolutional network with batch normalisation and a residual block that reads digits."""
    torch.manual_seed(0)
    return train(convolutions(), digits[0], digits[1], epochs=4)


@pytest.fixture
def net(trained):
    from copy import deepcopy

    return deepcopy(trained)


@pytest.fixture
def index(net):
    return GroupIndex.build(net, torch.zeros(1, 1, 8, 8))


UNET_INPUTS = {"sample": torch.zeros(1, 1, 16, 16), "timestep": torch.tensor([1])}


@pytest.fixture
def unet():
    """The small U-Net, with random weights everywhere."""
    from shared.backbones.unets import build_unet

    torch.manual_seed(0)
    return stir(build_unet("tiny", 16, 1))


@pytest.fixture
def attention_unet():
    """A small U-Net with attention, scale-and-shift time embedding, and residual blocks that resample."""
    from diffusers import UNet2DModel

    torch.manual_seed(0)
    blocks = {"down_block_types": ("AttnDownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "AttnUpBlock2D")}
    resampling = {"downsample_type": "resnet", "upsample_type": "resnet", "resnet_time_scale_shift": "scale_shift"}
    sizes = {"sample_size": 16, "in_channels": 1, "out_channels": 1, "layers_per_block": 1, "block_out_channels": (16, 32)}
    return stir(UNet2DModel(**sizes, **blocks, **resampling, norm_num_groups=4, attention_head_dim=8))


def stir(model):
    """Give all normalisations weights, biases and statistics that differ from channel to channel."""
    for module in model.modules():
        if isinstance(module, (nn.GroupNorm, nn.LayerNorm, nn.BatchNorm2d)):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.1)
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return model.eval()


@pytest.fixture
def make():
    """The builders above, for tests that need several."""

    class Builders:
        convolutions = staticmethod(convolutions)
        train = staticmethod(train)
        stir = staticmethod(stir)
        unet_inputs = UNET_INPUTS

    return Builders
