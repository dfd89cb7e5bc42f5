"""Reading and writing weights: tensors and plain values only, in one piece or not at all."""

from __future__ import annotations

import errno
import hashlib
import json
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard, TypeVar

import lightning as L
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from torch import Tensor, nn

from shared.runs import atomic

_Module = TypeVar("_Module", bound=nn.Module)

UNSAFE = {".bin", ".pkl", ".pickle"}
_WRAPPERS = ("module.", "_orig_mod.")  # DataParallel's and torch.compile's
_TODAYS_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


class SafeCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoint files, written atomically beside their target and read with `weights_only=True`."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write `checkpoint`; raises OSError naming `path` when the disk is full, and leaves an earlier file as it was."""
        with atomic(path) as temporary, temporary.open("wb") as file:
            try:
                torch.save(checkpoint, file)
            except RuntimeError as error:  # of torch's writer, which ends badly where the disk fills up under it
                if not isinstance(error.__context__, OSError) and "unexpected pos" not in str(error):
                    raise
                cause = error.__context__.errno if isinstance(error.__context__, OSError) else None
                raise OSError(cause or errno.ENOSPC, str(error).split("\n")[0]) from error

    def load_checkpoint(self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = True) -> dict[str, Any]:
        """Read `path` without executing code from it, whatever `weights_only` says."""
        return load_checkpoint(path, map_location)


def load_checkpoint(path: str | Path, map_location: Any = "cpu") -> dict[str, Any]:
    """Read a checkpoint that holds tensors and plain values.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is damaged, or would execute code.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint {path}")
    try:
        return torch.load(path, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        if not zipfile.is_zipfile(path) and "GLOBAL" not in str(error):  # torch before 1.6 wrote no archives
            raise ValueError(f"{path} is damaged or no checkpoint; use an earlier one or train again") from error
        refused = str(error).partition("WeightsUnpickler error:")[2].strip().split(" by using")[0].split("\n")[0]
        raise ValueError(f"{path} holds more than tensors and plain values and is not read, for it could execute code: {refused}") from error
    except Exception as error:  # a damaged checkpoint makes the reader raise almost anything
        raise ValueError(f"{path} is damaged or no checkpoint ({type(error).__name__}: {error}); use an earlier one or train again") from error


def weights_file(folder: Path) -> Path:
    """Find the weights that a network of diffusers was saved with in a folder, whatever their variant (`fp16`).

    Raises:
        FileNotFoundError: if there are none.
        ValueError: if there are several, or none that can be read without executing code.
    """
    plain = folder / "diffusion_pytorch_model.safetensors"
    if shards := sorted(folder.glob("*.safetensors.index.*json")):
        raise ValueError(f"the weights in {folder} are sharded ({shards[0].name}): write them again with save_pretrained(..., max_shard_size='1TB')")
    files = [plain] if plain.is_file() else sorted(folder.glob("diffusion_pytorch_model.*.safetensors"))
    if len(files) == 1:
        return files[0]
    if files:
        raise ValueError(f"{folder} holds several weights ({', '.join(file.name for file in files)}) and no {plain.name}: keep one")
    if pickled := sorted([*folder.glob("*.bin"), *folder.glob("*.pt*")]):
        raise ValueError(
            f"{pickled[0]} is a pickle and is not read, for it could execute code: load the pipeline where you trust it, "
            "and write it again with save_pretrained(..., safe_serialization=True)"
        )
    raise FileNotFoundError(f"no weights in {folder}: expected {plain.name}")


def load_tensors(path: str | Path) -> dict[str, Tensor]:
    """Read the weights in a .safetensors file, or in a .ckpt/.pt/.pth file with plain tensors (its `state_dict` entry if it has one).

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is of a kind that can execute code, is damaged, or holds no tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no weights {path}")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged or no safetensors file ({error})") from error
    if path.suffix in UNSAFE:
        raise ValueError(f"{path} is a pickle and is not read, for it could execute code: convert it to .safetensors where it was made")
    content = load_checkpoint(path)
    tensors = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise ValueError(f"{path} is no table of tensors: it holds a {type(content).__name__}" + (f" of {list(content)[:8]}" if content else ""))
    return tensors


def is_table(value: Any) -> TypeGuard[Mapping[str, Tensor]]:
    """Tell whether something is a table of weights: tensors by their names, and at least one."""
    return isinstance(value, Mapping) and len(value) > 0 and all(isinstance(k, str) and isinstance(entry, Tensor) for k, entry in value.items())


def unwrapped(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return weights without what DataParallel and torch.compile put before the names of all of them."""
    found = dict(tensors)
    while wrapper := next((one for one in _WRAPPERS if found and all(name.startswith(one) for name in found)), None):
        found = {name.removeprefix(wrapper): tensor for name, tensor in found.items()}
    return found


def with_todays_names(tensors: Mapping[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """Rename the weights of attention that an early diffusers saved (`query`, `key`, `value`, `proj_attn`) where `module` has today's names."""
    expected = module.state_dict()

    def todays(name: str) -> str:
        renamed = ".".join(_TODAYS_NAMES.get(part, part) for part in name.split("."))
        return renamed if renamed in expected and renamed not in tensors else name

    return {todays(name): tensor for name, tensor in tensors.items()}


def describe_mismatch(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], limit: int = 6) -> str:
    """Say in a few lines which weights are missing, unexpected or of another shape; empty if all fit."""
    missing = [f"  missing     {name} {tuple(expected[name].shape)}" for name in expected if name not in found]
    surplus = [f"  unexpected  {name} {tuple(found[name].shape)}" for name in found if name not in expected]
    differing = [
        f"  shape       {name}: the network has {tuple(expected[name].shape)}, the file {tuple(found[name].shape)}"
        for name in expected
        if name in found and expected[name].shape != found[name].shape
    ]
    lines: list[str] = []
    for group in (differing, missing, surplus):
        lines += group[:limit] + ([f"              ... and {len(group) - limit} more"] if len(group) > limit else [])
    return "\n".join(lines)


def load_weights(module: nn.Module, path: str | Path) -> None:
    """Load the weights in `path` into `module`, all or none; see `with_todays_names` for those of an early diffusers.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file cannot be read safely, or its weights do not fit; the message lists how they differ.
    """
    tensors = with_todays_names(load_tensors(path), module)
    if differences := describe_mismatch(module.state_dict(), tensors):
        raise ValueError(f"the weights in {path} do not fit the network (another configuration?):\n{differences}")
    module.load_state_dict(tensors)


def other_settings(here: Mapping[str, Any], trained: Mapping[str, Any]) -> str:
    """Say which of a model's settings are not those that its weights were trained with, `sigma 0.5, here 0.25`; empty if all agree."""
    return "; ".join(f"{name} {_shown(was)}, here {_shown(now)}" for name, (was, now) in differing_settings(here, trained).items())


def differing_settings(here: Mapping[str, Any], trained: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the settings that a model and its weights' training both have, but not alike: then and now, by name."""
    return {name: (was, here[name]) for name, was in trained.items() if name in here and _shown(was) != _shown(here[name])}


def is_at_its_end(checkpoint: Mapping[str, Any], trainer: L.Trainer) -> bool:
    """Say whether a trainer that goes on from a checkpoint of Lightning's would not train a step."""
    epochs = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["completed"] if "loops" in checkpoint else 0
    return 0 <= (trainer.max_epochs or -1) <= epochs or 0 <= trainer.max_steps <= int(checkpoint["global_step"])


def _shown(value: Any) -> str:
    return json.dumps(value, default=str, sort_keys=True)  # tuples as lists, which is how files hold them


def with_weights(module: _Module, path: str | Path | None) -> _Module:
    """Load the weights in a checkpoint, which the command line has checked against the module, into it; None loads nothing. Evaluation mode."""
    if path is not None:
        module.load_state_dict(load_checkpoint(path)["state_dict"])
    return module.eval()


def weights_digest(module: nn.Module) -> str:
    """Return 12 hexadecimal digits for a module's weights and buffers."""
    found = hashlib.sha256()
    for tensor in module.state_dict().values():
        found.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:12]
