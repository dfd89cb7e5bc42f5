"""Delta checkpoints, which hold what was trained and name the backbone it belongs to; and the weights that the authors released."""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from projects.moe_ffd.model import Detector, MoEViT
from shared.checkpoints import describe_mismatch, load_checkpoint, load_tensors
from shared.data.files import blamed
from shared.runs import atomic

FORMAT = "moe_ffd delta 1"
GATE_FLOOR = 1e-3
"""Gates all of whose weights are smaller have learnt next to nothing."""


def frozen_digest(detector: Detector) -> str:
    """Return 12 hexadecimal digits for all that is frozen, which a delta checkpoint does not hold.

    The frozen part of a singular value decomposition is left out: it follows from the backbone up to the rounding of the machine.
    """
    trainable = detector.trainable_parameters()
    found = hashlib.sha256()
    for name, tensor in sorted(detector.state_dict().items()):
        if name not in trainable and not name.endswith(".main"):
            found.update(f"{name} {tensor.dtype}".encode())
            found.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()[:12]


def save_delta(detector: Detector, path: str | Path) -> None:
    """Write what trains as safetensors, with the digest of the rest and the configuration.

    Raises:
        OSError: naming `path`, if the disk is full.
    """
    from safetensors.torch import save_file

    tensors = {name: parameter.detach().cpu().contiguous() for name, parameter in detector.trainable_parameters().items()}
    metadata = {"format": FORMAT, "frozen": frozen_digest(detector), "configuration": json.dumps(detector.configuration)}
    with atomic(path) as temporary:
        save_file(tensors, temporary, metadata)


def is_delta(path: str | Path) -> bool:
    """Tell a delta checkpoint from other weights by what its header says.

    Raises:
        FileNotFoundError: if there is no such file, and it ends in `.safetensors`.
        ValueError: if it ends so, but is damaged or something else.
    """
    return Path(path).suffix == ".safetensors" and _metadata(path).get("format") == FORMAT


def _metadata(path: str | Path) -> dict[str, str]:
    """Return what the header of a safetensors file says of it."""
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise FileNotFoundError(f"no delta checkpoint {path}")
    try:
        with safe_open(path, "pt") as file:
            return file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or no safetensors file ({error})") from error


def read_header(path: str | Path) -> tuple[str, dict[str, Any]]:
    """Return the digest of the frozen part and the configuration, `build_detector`'s options, that a delta checkpoint was made with.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no delta checkpoint.
    """
    metadata = _metadata(path)
    if metadata.get("format") != FORMAT:
        raise ValueError(f"{path} is no delta checkpoint of this project: its format is {metadata.get('format')!r}, not {FORMAT!r}")
    with blamed(path, "its header has no readable digest and configuration: copy the delta file anew"):
        digest, configuration = metadata["frozen"], json.loads(metadata["configuration"])
    if not isinstance(configuration, dict):
        raise ValueError(f"{path} is a damaged delta checkpoint: its header has no readable digest and configuration")
    return digest, configuration


def load_delta(detector: Detector, path: str | Path) -> None:
    """Load a delta checkpoint into a detector of the same configuration on the same backbone, all or nothing.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no delta checkpoint, or was made with another configuration or backbone; the message names the differences.
    """
    digest, configuration = read_header(path)
    here = json.loads(json.dumps(detector.configuration))
    if differing := sorted(name for name in here.keys() | configuration.keys() if here.get(name) != configuration.get(name)):
        lines = "\n".join(f"  {name}: {configuration.get(name)!r} in the file, {here.get(name)!r} here" for name in differing)
        raise ValueError(f"{path} was made with other options; build the detector with these:\n{lines}")
    tensors, expected = load_tensors(path), detector.trainable_parameters()
    if differences := describe_mismatch(expected, tensors):
        raise ValueError(f"the weights in {path} do not fit the detector (a backbone of another size?):\n{differences}")
    if digest != frozen_digest(detector):
        raise ValueError(f"{path} belongs to another backbone: its frozen weights had the digest {digest}, these have {frozen_digest(detector)}")
    with torch.no_grad():
        for name, parameter in expected.items():
            parameter.copy_(tensors[name])


def read_released(path: str | Path) -> dict[str, Tensor]:
    """Read the authors' checkpoint under the names of `MoEViT`.

    Their training code leaves a bare state dict, or one under `model_state_dict`. Its names are those of timm's ViT, and in block b:
    `blocks.b.attn.LoRA_MoE.{w_gate, w_noise, Lora_a_experts.e.weight, Lora_b_experts.e.weight}` and
    `blocks.b.adapter_MoE.{w_gate, w_noise, adapter_experts.e.adapter_{down, conv, up}.{weight, bias}}`, beside buffers `mean` and `std` of the gates.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it cannot be read without executing code, or is no table of tensors.
    """
    content: Any = load_tensors(path) if Path(path).suffix == ".safetensors" else load_checkpoint(path)
    for key in ("model_state_dict", "state_dict"):
        content = content.get(key, content) if isinstance(content, dict) else content
    if not isinstance(content, dict) or not content or not all(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(f"{path} holds no network: expected a table of tensors, or one under 'model_state_dict'")
    plain: dict[str, Tensor] = {}
    experts: dict[str, dict[int, Tensor]] = {}
    for full, tensor in content.items():
        name = full.removeprefix("module.")
        if re.search(r"_MoE\.(mean|std)$", name):
            continue
        target, expert = _translate(name)
        if expert is None:
            plain[target] = tensor
        else:
            experts.setdefault(target, {})[expert] = tensor.T if target.endswith(".up") else tensor
    for target, parts in experts.items():
        ordered = [parts[number] for number in sorted(parts)]
        plain[target] = torch.cat(ordered) if target.endswith((".down", ".up")) else torch.stack(ordered)
    return plain


def _translate(name: str) -> tuple[str, int | None]:
    """Return the name here of one of the authors' tensors, and the expert it belongs to."""
    if name.startswith("head."):
        return name, None
    name = "backbone." + name
    name = name.replace(".attn.LoRA_MoE.w_", ".attn.qkv.mixture.router.w_").replace(".adapter_MoE.w_", ".mlp.mixture.router.w_")
    if found := re.fullmatch(r"(.*\.attn)\.LoRA_MoE\.Lora_([ab])_experts\.(\d+)\.weight", name):
        return f"{found[1]}.qkv.mixture.{'down' if found[2] == 'a' else 'up'}", int(found[3])
    if found := re.fullmatch(r"(.*)\.adapter_MoE\.adapter_experts\.(\d+)\.adapter_(down|conv|up)\.(weight|bias)", name):
        return f"{found[1]}.mlp.mixture.{found[3]}_{found[4]}", int(found[2])
    if ".mixture." not in name:
        name = name.replace(".attn.qkv.", ".attn.qkv.module.").replace(".mlp.", ".mlp.module.")
    return name, None


def load_released(detector: MoEViT, path: str | Path) -> None:
    """Load the authors' weights into a detector of their configuration (`MoEViT`'s defaults on `vit_base_patch16_224`), all or none.

    Warns if the gates are next to zero: in evaluation all rows of a layer then go to the few experts that win by rounding.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it cannot be read safely, or does not fit.
    """
    tensors = read_released(path)
    if differences := describe_mismatch(detector.state_dict(), tensors):
        raise ValueError(f"the weights in {path} do not fit the detector (another configuration or backbone?):\n{differences}")
    detector.load_state_dict(tensors)
    largest = max((tensor.abs().max().item() for name, tensor in tensors.items() if name.endswith("w_gate")), default=1.0)
    if largest < GATE_FLOOR:
        warnings.warn(
            f"the gates in {path} are next to zero (largest weight {largest:.1e}): which expert a row goes to says little, "
            "and evaluation may send all rows of a layer to one expert",
            stacklevel=2,
        )
