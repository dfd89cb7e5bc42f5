"""Reads branch weights in the layout of the authors' training code, writes them as this project's checkpoint, and reads published denoisers."""

from __future__ import annotations

from pathlib import Path

import lightning as L
import torch
from torch import Tensor, nn

from projects.drs.model import DualClassifier
from shared.backbones.denoisers import DnCNN
from shared.checkpoints import describe_mismatch, load_checkpoint, load_tensors, unwrapped
from shared.runs import Run, atomic


def read_released(path: str | Path) -> dict[str, Tensor]:
    """Read one branch's network.

    The published training code (a fork of Cohen et al. 2019) saves `{"epoch", "arch", "state_dict", "optimizer"}`; the network lies behind a
    normalisation layer without weights (keys begin with `1.`) and often behind a `DataParallel` (`module.`), around both or, as for Cohen's ImageNet
    networks, inside (`1.module.`). Plain tables of tensors will do, too.

    Returns:
        The weights under the names of torchvision's ResNets: conv1.weight, bn1.weight, layer1.0.conv1.weight, ...

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file cannot be read without executing code, or holds no network.
    """
    if Path(path).suffix == ".safetensors":
        tensors = load_tensors(path)
    else:
        content = load_checkpoint(path)
        tensors = content.get("state_dict", content) if isinstance(content, dict) else content
        if not isinstance(tensors, dict) or not tensors or not all(isinstance(value, Tensor) for value in tensors.values()):
            raise ValueError(f"{path} holds no network: expected a table of tensors, or one under 'state_dict'")
    names = [name.removeprefix("module.") for name in tensors]
    if all(name.startswith(("0.", "1.")) for name in names):
        names = [name.removeprefix("1.").removeprefix("module.") for name in names if not name.startswith("0.")]
        tensors = {name: tensor for name, tensor in tensors.items() if not name.removeprefix("module.").startswith("0.")}
    return dict(zip(names, tensors.values(), strict=True))


def load_released(net: DualClassifier, files: list[str]) -> None:
    """Load one file for each branch's network (left, right) into the model, all or none.

    Raises:
        FileNotFoundError, ValueError: see `read_released`; or if there are not as many files as networks, or one does not fit.
    """
    if len(files) != len(net.networks):
        raise ValueError(f"the model has {len(net.networks)} networks, one for each branch: give as many files, not {len(files)}")
    found = [read_released(file) for file in files]
    for file, network, tensors in zip(files, net.networks, found, strict=True):
        if differences := describe_mismatch(network.state_dict(), tensors):
            raise ValueError(f"the weights in {file} do not fit the network that model.backbone describes:\n{differences}")
    for network, tensors in zip(net.networks, found, strict=True):
        network.load_state_dict(tensors)


def convert(run: Run, module: L.LightningModule, net: DualClassifier, files: list[str]) -> None:
    """Load the branches' files and leave them as the checkpoint of a run, which the verbs then work on."""
    load_released(net, files)
    write_checkpoint(module.state_dict(), run.checkpoints / "last.ckpt")
    print(f"certify it with: lightning run projects/drs/cli.py certify --run {run.name} --data.root DATA")


def read_denoiser(path: str | Path, channels: int) -> DnCNN:
    """Read a denoiser of denoised smoothing's code (Salman et al. 2020): `cifar_dncnn`, `cifar_dncnn_wide`, `imagenet_dncnn`.

    It saves `{"epoch", "arch", "state_dict", "optimizer"}` with weights `dncnn.0.weight`, ... (`module.dncnn.0.weight` for ImageNet) for images in
    [0, 1]. The layers are those of `DnCNN`, but the last convolution has no bias, and normalisations add 1e-4 to the variance.

    Args:
        path: the file, such as `checkpoint.pth.tar`; plain tables of tensors will do, too.
        channels: channels of the images.

    Returns:
        The denoiser in evaluation mode.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file cannot be read without executing code, holds no such network, or one for other images.
    """
    tensors = unwrapped(load_tensors(path))
    first = tensors.get("dncnn.0.weight")
    if first is None or first.ndim != 4:
        few = ", ".join(list(tensors)[:2])
        raise ValueError(f"{path} holds no DnCNN (its weights are {few}, ...): take a cifar_dncnn, cifar_dncnn_wide or imagenet_dncnn")
    if first.shape[1] != channels:
        raise ValueError(f"the denoiser in {path} takes {first.shape[1]} channels, the images have {channels}: take a denoiser of such images")
    denoiser = DnCNN(channels, width=len(first), depth=sum(tensor.ndim == 4 for tensor in tensors.values()))
    denoiser.noise[-1].register_parameter("bias", None)
    for layer in denoiser.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.eps = 1e-4
    found = {name.replace("dncnn.", "noise.", 1): tensor for name, tensor in tensors.items()}
    if differences := describe_mismatch(denoiser.state_dict(), found):
        raise ValueError(f"the weights in {path} do not fit a DnCNN of that depth and width:\n{differences}")
    denoiser.load_state_dict(found)
    return denoiser.eval()


def write_checkpoint(state: dict[str, Tensor], path: Path) -> None:
    """Write a module's weights where verbs look for those of a run."""
    with atomic(path) as temporary:
        torch.save({"state_dict": state, "global_step": 0}, temporary)
