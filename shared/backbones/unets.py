"""Unconditional diffusion U-Nets, and the pipeline folders in which diffusers keeps them."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from shared.checkpoints import load_weights, weights_file
from shared.data.files import BadFileError, blamed, read_json
from shared.runs import atomic

if TYPE_CHECKING:
    from diffusers import UNet2DModel

_DOWN, _UP, _ATTENTION_DOWN, _ATTENTION_UP = "DownBlock2D", "UpBlock2D", "AttnDownBlock2D", "AttnUpBlock2D"
DDPM: dict[str, Any] = {
    "layers_per_block": 2,
    "attention_head_dim": None,
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "norm_eps": 1e-6,
}
"""`UNet2DModel` settings that all nets of Ho et al. 2020 share, as their code and DDIM's build them."""
PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {
        "layers_per_block": 1,
        "block_out_channels": (16, 32),
        "down_block_types": (_DOWN, _DOWN),
        "up_block_types": (_UP, _UP),
        "add_attention": False,
        "norm_num_groups": 4,
    },
    "cifar10": DDPM
    | {
        "block_out_channels": (128, 256, 256, 256),
        "down_block_types": (_DOWN, _ATTENTION_DOWN, _DOWN, _DOWN),
        "up_block_types": (_UP, _UP, _ATTENTION_UP, _UP),
    },
    "celebahq256": DDPM
    | {
        "block_out_channels": (128, 128, 256, 256, 512, 512),
        "down_block_types": (_DOWN, _DOWN, _DOWN, _DOWN, _ATTENTION_DOWN, _DOWN),
        "up_block_types": (_UP, _ATTENTION_UP, _UP, _UP, _UP, _UP),
    },
}
"""`UNet2DModel` settings: a net for 16x16 pictures that trains in a minute, and the DDPM nets of CIFAR-10 and CelebA-HQ (Ho et al. 2020)."""


def build_unet(preset: str, size: int, channels: int) -> UNet2DModel:
    """Build a randomly initialised `UNet2DModel`, (B, C, H, W) and (B,) timesteps to an object whose `.sample` is (B, C, H, W).

    Args:
        preset: a name in `PRESETS`.
        size: side of the pictures in pixels; a multiple of 2 to the number of blocks less one.
        channels: channels of the pictures, 1 or 3.

    Raises:
        ValueError: if the preset is unknown or `size` does not fit it.
    """
    if preset not in PRESETS:
        raise ValueError(f"no U-Net preset {preset!r}; there are: {', '.join(PRESETS)}")
    settings = PRESETS[preset]
    multiple = 2 ** (len(settings["block_out_channels"]) - 1)
    if size < multiple or size % multiple:
        raise ValueError(f"the U-Net {preset!r} halves pictures to 1/{multiple}: their side must be a multiple of {multiple}, got {size}")
    from diffusers import UNet2DModel

    return UNet2DModel(sample_size=size, in_channels=channels, out_channels=channels, **settings)


def load_pipeline(folder: str | Path) -> tuple[UNet2DModel, dict[str, Any]]:
    """Read the U-Net and the scheduler's settings from a folder that `save_pretrained` of an unconditional pipeline wrote. No code in it is run.

    The U-Net may also be one that was pruned physically and written by `shared.pruning.save`. The files of `unet/` and `scheduler/` may also lie
    beside `model_index.json`, where diffusers too looks for them.

    Returns:
        The U-Net in evaluation mode on the CPU in float32, and the content of `scheduler_config.json`.

    Raises:
        FileNotFoundError: if the folder or a file in it is missing; the message lists the expected files.
        ValueError: if the U-Net is of another class, its weights are pickled, damaged or do not fit its settings.
    """
    folder = Path(folder).expanduser()
    unet_config, scheduler_config = _part(folder, "unet", "config.json"), _part(folder, "scheduler", "scheduler_config.json")
    if (folder / "model_index.json").is_file() and (others := _other_parts(_read_object(folder / "model_index.json"))):
        raise ValueError(
            f"{folder} holds a pipeline with {', '.join(others)} beside its U-Net: only pipelines of a U-Net and a scheduler are read, "
            "whose U-Net draws the pictures themselves"
        )
    is_pruned = (folder / "unet" / "structure.json").is_file()
    missing = [path for path in (unet_config, scheduler_config) if not path.is_file() and not (is_pruned and path == unet_config)]
    if missing:
        raise FileNotFoundError(
            f"{folder} is no pipeline folder: {', '.join(path.relative_to(folder).as_posix() for path in missing)} missing; expected what diffusers' "
            "save_pretrained writes: unet/config.json, unet/diffusion_pytorch_model.safetensors, scheduler/scheduler_config.json"
        )
    unet = _load_pruned(folder / "unet") if is_pruned else _load_unet(unet_config)
    return unet.float().eval(), _read_object(scheduler_config)


def _part(folder: Path, part: str, file: str) -> Path:
    """Return where a file of a pipeline's part lies: in the part's folder, or in the pipeline's own where there is none, as in the earliest ones."""
    return folder / file if (folder / file).is_file() and not (folder / part).is_dir() else folder / part / file


def _load_unet(config: Path) -> UNet2DModel:
    settings = _read_object(config)
    if settings.get("_class_name") != "UNet2DModel":
        raise ValueError(f"{config} describes a {settings.get('_class_name')}: only unconditional pipelines with a UNet2DModel are read")
    from diffusers import UNet2DModel

    with blamed(config, "write the pipeline again with save_pretrained"):  # diffusers checks little of what it is given
        unet = UNet2DModel.from_config({name: value for name, value in settings.items() if not name.startswith("_")})
    load_weights(unet, weights_file(config.parent))
    return unet


def _load_pruned(folder: Path) -> UNet2DModel:
    from diffusers import UNet2DModel

    from shared.pruning import load

    unet = load(folder)
    if not isinstance(unet, UNet2DModel):
        raise ValueError(f"{folder / 'structure.json'} describes a {type(unet).__name__}: only unconditional pipelines with a UNet2DModel are read")
    return unet


def _other_parts(index: dict[str, Any]) -> list[str]:
    """Return the parts of a pipeline that are neither its U-Net nor its scheduler."""
    return [name for name, part in index.items() if isinstance(part, list) and part[:1] != [None] and name not in ("unet", "scheduler")]


def _read_object(path: Path) -> dict[str, Any]:
    content = read_json(path, "write the pipeline again with save_pretrained")
    if not isinstance(content, dict):
        raise BadFileError(f"{path} holds no settings by name: write the pipeline again with save_pretrained")
    return content


def save_pipeline(unet: UNet2DModel, scheduler: Any, folder: str | Path) -> Path:
    """Write a `DDPMPipeline` folder with safetensors, which stock diffusers loads, in one piece or not at all.

    Args:
        unet: the network.
        scheduler: a diffusers scheduler.
        folder: where to write; an earlier folder is replaced.
    """
    from diffusers import DDPMPipeline

    with atomic(folder) as temporary:
        DDPMPipeline(unet=unet, scheduler=scheduler).save_pretrained(temporary, safe_serialization=True)
    return Path(folder)


def replace_unet(source: str | Path, unet: UNet2DModel, folder: str | Path) -> Path:
    """Write a pipeline folder with another network and everything else as in `source`, in one piece or not at all.

    The network goes to `unet/` and the scheduler's settings to `scheduler/`, wherever `source` has them. Weights are stored in the precision and
    under the name that they have in `source`. Other files of `source` are left behind.

    Args:
        source: a pipeline folder that `load_pipeline` reads.
        unet: the network; one that was pruned physically is stored by `shared.pruning.save`, which stock diffusers does not read.
        folder: where to write; an earlier folder is replaced.
    """
    import shutil

    from safetensors import safe_open

    source = Path(source).expanduser()
    with atomic(folder) as temporary:
        (temporary / "scheduler").mkdir(parents=True)
        shutil.copyfile(_part(source, "scheduler", "scheduler_config.json"), temporary / "scheduler" / "scheduler_config.json")
        if (source / "model_index.json").is_file():
            shutil.copyfile(source / "model_index.json", temporary / "model_index.json")
        if hasattr(unet, "pruned_structure"):
            from shared.pruning import save

            save(unet, temporary / "unet")
        else:
            weights = weights_file(_part(source, "unet", "config.json").parent)
            with safe_open(weights, "pt") as file:
                dtype = file.get_tensor(next(iter(file.keys()))).dtype
            stored = deepcopy(unet)
            nn.Module.to(stored, dtype)  # diffusers' own `to` warns of modules to keep in float32, of which it then names none
            variant = weights.name.removeprefix("diffusion_pytorch_model.").removesuffix("safetensors").strip(".") or None
            stored.save_pretrained(temporary / "unet", safe_serialization=True, variant=variant, max_shard_size="1TB")
    return Path(folder)
