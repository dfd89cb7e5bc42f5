"""timm networks by name, with weights from a local file or none; never a silent download."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn


def build_backbone(name: str, weights: str | None = None, **options: Any) -> nn.Module:
    """Build a timm network.

    Args:
        name: timm model name, such as `resnet18`.
        weights: None for random weights; a local .safetensors, .pth or .ckpt file; or "pretrained" for timm's own, from its cache or by download.
            Weights from a file are adapted to `num_classes`, `in_chans` and `features_only`, as timm adapts its own.
        options: what `timm.create_model` takes: `num_classes`, `in_chans`, `features_only`, `drop_path_rate`, ...

    Returns:
        The network, (B, C, H, W) images in the normalisation of its `pretrained_cfg` to logits (B, K) or a list of feature maps.

    Raises:
        ValueError: if timm has no such model, or the weights do not fit it.
        FileNotFoundError: if the weights file is not there, or "pretrained" weights can neither be found nor fetched.
    """
    import timm

    if not timm.is_model(name):
        import difflib

        close = difflib.get_close_matches(name, timm.list_models(), n=4, cutoff=0.5)
        raise ValueError(f"timm has no model {name!r}" + (f"; did you mean {', '.join(close)}?" if close else ""))
    if weights is None:
        return timm.create_model(name, pretrained=False, **options)
    if weights == "pretrained":
        return _from_hub(name, options)
    path = Path(weights).expanduser()
    if not path.is_file():
        raise FileNotFoundError(
            f"no backbone weights {path}: give a local .safetensors or .pth file of {name}, or no weights to start from random ones"
        )
    if path.suffix != ".safetensors":
        from shared.checkpoints import load_tensors

        load_tensors(path)  # refuses what could execute code
    try:
        return timm.create_model(name, pretrained=True, pretrained_cfg_overlay={"file": str(path)}, **options)
    except RuntimeError as error:
        raise ValueError(f"the weights in {path} do not fit {name}:\n{error}") from error


def _from_hub(name: str, options: dict[str, Any]) -> nn.Module:
    import timm
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        return timm.create_model(name, pretrained=True, **options)
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError, OSError, RuntimeError) as error:
        config = timm.get_pretrained_cfg(name)
        source = f"https://huggingface.co/{config.hf_hub_id}" if config is not None and config.hf_hub_id else "timm's model page"
        raise FileNotFoundError(
            f"timm's weights of {name} are neither cached nor can they be fetched: download model.safetensors from {source} "
            "on a machine with a network and give its path as the weights"
        ) from error
