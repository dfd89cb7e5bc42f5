"""Checkpoints of DDIM's code, on which TrojDiff's is built, as pipelines of diffusers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from shared.backbones.unets import DDPM, save_pipeline
from shared.checkpoints import describe_mismatch, is_table, load_checkpoint, unwrapped

if TYPE_CHECKING:
    from diffusers import UNet2DModel

    from projects.diff_cleanse.module import DiffusionTraining
    from shared.runs import Run

ATTENDED = 16
"""Side in pixels of the maps that all configurations of DDIM's code have attention for, by which the side of pictures is told."""
_NAMES = {
    "temb.dense.0": "time_embedding.linear_1",
    "temb.dense.1": "time_embedding.linear_2",
    "mid.block_1": "mid_block.resnets.0",
    "mid.block_2": "mid_block.resnets.1",
    "mid.attn_1": "mid_block.attentions.0",
    "norm_out": "conv_norm_out",
    "temb_proj": "time_emb_proj",
    "nin_shortcut": "conv_shortcut",
}
_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
_LEVEL = re.compile(r"(down|up)\.(\d+)\.(block|attn|downsample|upsample)(?:\.(\d+))?\.(.+)")
_MEND = "take a ckpt.pth that DDIM's or TrojDiff's code wrote"


def convert(file: Path, folder: Path, size: int | None = None) -> UNet2DModel:
    """Write a checkpoint of DDIM's code (Song, Meng and Ermon 2021), or of TrojDiff's, as a pipeline folder, and return its U-Net.

    The file holds a list of the network, its optimiser, epoch, step and, if there is one, the running average of the weights, which is then taken; or
    one network alone. The schedule is that of all their configurations: 1000 steps, betas from 0.0001 to 0.02, linear.

    Args:
        file: the checkpoint; nothing in it is executed.
        folder: where to write; an earlier folder is replaced.
        size: side of the pictures in pixels; None takes the one whose maps of 16 pixels have attention.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it holds no such network, or no attention to tell the size by.
    """
    from diffusers import DDPMScheduler, UNet2DModel

    weights = _weights_in(load_checkpoint(file), file)
    settings = _settings(weights, file, size)
    unet = UNet2DModel(**settings)
    expected, levels = unet.state_dict(), len(settings["block_out_channels"])
    found = {}
    for name, tensor in weights.items():
        today = _todays_name(name, levels)
        is_pointwise = ".attentions." in today and tensor.ndim == 4  # a convolution of one pixel, which is a linear layer today
        found[today] = (tensor.flatten(1) if is_pointwise else tensor).float()
    if mismatch := describe_mismatch(expected, found):
        raise ValueError(f"{file} holds no network of DDIM's code with convolutions between its levels; {_MEND}:\n{mismatch}")
    unet.load_state_dict(found)
    save_pipeline(unet, DDPMScheduler(beta_start=1e-4, beta_end=0.02, variance_type="fixed_large"), folder)
    return unet.eval()


def convert_into(run: Run, module: DiffusionTraining, path: str, size: int | None) -> None:
    """Make a run of a checkpoint, see `convert`, and say what to do with it."""
    unet = convert(Path(path).expanduser(), run.path / "pipeline", size)
    print(f"scan it: lightning run projects/diff_cleanse/cli.py scan --run {run.name}")
    channels, side = unet.config["in_channels"], unet.config["sample_size"]
    if (channels, side) != (module.hparams["channels"], module.hparams["size"]):
        settings = f"--config paper --data.channels {channels} --data.size {side}"
        print(f"its pictures have {channels} channels and {side} pixels: to predict or test, convert with the like of {settings}")


def _weights_in(content: Any, file: Path) -> dict[str, Tensor]:
    """Return the averaged weights of a checkpoint, or those of the network, without the word of data parallelism before their names."""
    tables = [state for state in (content if isinstance(content, list) else [content]) if is_table(state)]
    if not tables:
        raise ValueError(f"{file} holds no table of tensors; {_MEND}")
    weights = unwrapped(tables[-1])
    weights.pop("logvar", None)  # of the variances that DDIM's code can learn, and does not use
    return weights


def _settings(weights: Mapping[str, Tensor], file: Path, size: int | None) -> dict[str, Any]:
    """Read the settings of `UNet2DModel` off the weights."""
    levels, blocks = (_count(weights, name) for name in ("down.{}.block.0.conv1.weight", "down.0.block.{}.conv1.weight"))
    first, last = weights.get("conv_in.weight"), weights.get("conv_out.weight")
    if not levels or first is None or last is None or first.ndim != 4:
        raise ValueError(f"{file} holds no network of DDIM's code, but {', '.join(list(weights)[:4])} ...; {_MEND}")
    attends = [f"down.{level}.attn.0.q.weight" in weights for level in range(levels)]
    if size is None and not any(attends):
        raise ValueError(f"{file} has no attention to tell the size of its pictures by: pass --size PIXELS")
    kinds = ["Attn" * is_attended for is_attended in attends]
    return DDPM | {
        "sample_size": size or ATTENDED * 2 ** attends.index(True),
        "in_channels": first.shape[1],
        "out_channels": len(last),
        "layers_per_block": blocks,
        "block_out_channels": tuple(len(weights[f"down.{level}.block.0.conv1.weight"]) for level in range(levels)),
        "down_block_types": tuple(f"{kind}DownBlock2D" for kind in kinds),
        "up_block_types": tuple(f"{kind}UpBlock2D" for kind in reversed(kinds)),
    }


def _count(weights: Mapping[str, Tensor], name: str) -> int:
    """Return how many weights there are whose name has 0, 1, 2, ... in a place."""
    return next(number for number in count() if name.format(number) not in weights)


def _todays_name(name: str, levels: int) -> str:
    """Return the name that diffusers has for a weight of DDIM's code, whose upward levels are numbered from the finest one."""
    if match := _LEVEL.fullmatch(name):
        way, level, part, number, rest = match.groups()
        place = int(level) if way == "down" else levels - 1 - int(level)
        kind = {"block": "resnets", "attn": "attentions", "downsample": "downsamplers", "upsample": "upsamplers"}[part]
        name = f"{way}_blocks.{place}.{kind}.{number or 0}.{rest}"
    for old, new in _NAMES.items():
        name = name.replace(old, new)
    if ".attentions." in name:
        head, layer, kind = name.rsplit(".", 2)
        name = f"{head}.{_ATTENTION.get(layer, layer)}.{kind}"
    return name
