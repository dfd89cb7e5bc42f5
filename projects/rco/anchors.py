"""The teacher's route on disk: its states after chosen epochs, stored while any LightningModule trains, and read back.

A route is a folder of `epoch_0060.safetensors` (the state after epoch 60, counted from 1) and `route.json`, which says what was trained and how far.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from torch import Tensor, nn

from shared.checkpoints import load_tensors
from shared.data.files import BadFileError, first_few, read_json
from shared.runs import atomic, write_json

ROUTE = "route.json"
FORMAT = 1
DROP = 0.75
"""A fall of the learning rate to this part of it, or less, from one epoch's beginning to the next one's is a drop."""
_SHARDED = (FSDPStrategy, ModelParallelStrategy, DeepSpeedStrategy)


@dataclass(frozen=True)
class State:
    """The teacher after an epoch.

    Args:
        epoch: epochs trained, from 1.
        file: its weights, a name within the route's folder; empty where they were not stored.
        lr: learning rate that the epoch began with; None where unknown.
        metrics: of the epoch and its validation, by log name.
    """

    epoch: int
    file: str
    lr: float | None
    metrics: dict[str, float]


@dataclass(frozen=True)
class Route:
    """The states that a teacher passed through.

    Args:
        folder: where they lie.
        about: what was trained: the network's name, shape, outputs and whatever else must agree.
        states: stored states, epochs rising.
        history: every epoch, whether stored or not, epochs rising.
        is_complete: whether the training came to its end, so that the last state is the converged teacher.
        half: whether floating tensors are stored in half precision.
    """

    folder: Path
    about: dict[str, Any]
    states: tuple[State, ...]
    history: tuple[State, ...]
    is_complete: bool
    half: bool = False

    @classmethod
    def load(cls, folder: str | Path) -> Route:
        """Read the route in a folder (or its `route.json`); it may be incomplete.

        Raises:
            FileNotFoundError: if there is no route, or weights that it lists are missing.
            BadFileError: if `route.json` is damaged, of another format, names files elsewhere, or has no states.
        """
        file = _route_file(folder)
        if not file.is_file():
            raise FileNotFoundError(f"no route in {file.parent}: expected {ROUTE} beside epoch_0001.safetensors, as training a teacher leaves them")
        route = _read(file)
        if not route.states:
            raise BadFileError(f"{file} has no states yet: let the teacher train for an epoch that is stored, or to its end")
        if missing := [state.file for state in route.states if not (route.folder / state.file).is_file()]:
            lines = "\n  ".join(first_few(missing))
            raise FileNotFoundError(f"weights of the route in {route.folder} are missing: put them back, or train the teacher again\n  {lines}")
        return route

    @property
    def epochs(self) -> list[int]:
        """Epochs whose states are stored."""
        return [state.epoch for state in self.states]

    @property
    def final(self) -> int:
        """Epoch of the last stored state."""
        return self.states[-1].epoch

    @property
    def digest(self) -> str:
        """16 hexadecimal digits that stand for `about`."""
        return hashlib.sha256(json.dumps(self.about, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def bytes(self) -> int:
        """Room that the weights take on the disk, in bytes."""
        return sum((self.folder / state.file).stat().st_size for state in self.states)

    def tensors(self, epoch: int) -> dict[str, Tensor]:
        """Read the state after `epoch`, on the CPU; what was stored in half precision comes back as float32.

        Raises:
            ValueError: if that state is not stored, or its file is damaged.
            FileNotFoundError: if its file has gone.
        """
        found = {state.epoch: state.file for state in self.states}
        if epoch not in found:
            raise ValueError(f"no state after epoch {epoch} in {self.folder}: stored are {', '.join(map(str, found)) or 'none'}")
        tensors = load_tensors(self.folder / found[epoch])
        return {name: tensor.float() if tensor.dtype == torch.float16 else tensor for name, tensor in tensors.items()}

    def shapes(self, epoch: int) -> dict[str, Tensor]:
        """Return the state after a stored epoch without its values, on the device `meta`; its file is seen to be whole, and is not read.

        Raises:
            ValueError: if the file is damaged or cut off.
        """
        from safetensors import SafetensorError, safe_open

        path = self.folder / next(state.file for state in self.states if state.epoch == epoch)
        try:
            with safe_open(path, framework="pt") as file:
                return {name: torch.empty(file.get_slice(name).get_shape(), device="meta") for name in file.keys()}  # noqa: SIM118 - no dictionary
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged or no safetensors file ({error}): put it back, or train the teacher again") from error

    def accuracy(self) -> dict[int, float]:
        """Return the accuracy by epoch, of validation or, where no epoch has one, of training; empty if there is neither. Never of a test."""
        for name in ("val/accuracy", "train/accuracy"):
            if found := {state.epoch: state.metrics[name] for state in self.history if name in state.metrics}:
                return found
        return {}


def write_route(route: Route) -> None:
    """Write `route.json` in one piece or not at all."""
    content = {
        "format": FORMAT,
        "about": route.about,
        "digest": route.digest,
        "half": route.half,
        "complete": route.is_complete,
        "states": [asdict(state) for state in route.states],
        "history": [asdict(state) for state in route.history],
    }
    write_json(route.folder / ROUTE, content)


def store_state(folder: Path, epoch: int, tensors: Mapping[str, Tensor], half: bool = False) -> str:
    """Write the state after an epoch in one piece or not at all.

    Args:
        folder: of the route.
        epoch: from 1.
        tensors: the network's `state_dict`; tied weights are written twice.
        half: whether floating tensors are rounded to float16 (relative error 2^-11), but for those with a value beyond its range.

    Returns:
        The file's name.
    """
    from safetensors.torch import save_file

    name = f"epoch_{epoch:04d}.safetensors"
    with atomic(folder / name) as temporary:
        save_file({key: _stored(tensor, half) for key, tensor in tensors.items()}, temporary)
    return name


def _stored(tensor: Tensor, half: bool) -> Tensor:
    tensor = tensor.detach().cpu()
    if half and tensor.is_floating_point():
        halved = tensor.half()
        if torch.equal(halved.isfinite(), tensor.isfinite()):
            tensor = halved
    return tensor.clone(memory_format=torch.contiguous_format)


@dataclass(frozen=True)
class Recording:
    """Which states of a teacher are stored.

    Args:
        every: epochs between two stored states; null stores none by interval. The last epoch is always stored.
        epochs: further epochs to store, from 1.
        at_drops: stores the state before each drop of the learning rate, to 3/4 or less.
        half: stores in half precision, half the room.
    """

    every: int | None = 1
    epochs: list[int] | None = None
    at_drops: bool = False
    half: bool = False


class AnchorRecorder(Callback):
    """Stores states of a network while it trains, for `Route.load`. Works with any LightningModule.

    A run that goes on from a checkpoint keeps the states up to it and writes the later ones anew; a run from the start replaces an earlier route.

    Args:
        folder: the route's folder.
        every: epochs between two stored states; null stores none by interval.
        epochs: further epochs to store, from 1.
        at_drops: whether to store the state before each drop of the learning rate (of the first parameter group, to 3/4 or less).
        half: whether to store in half precision.
        network: name of the network within the module; empty is the whole module.
        about: plain values that say what is trained; a route is only continued under the same ones.
    """

    def __init__(
        self,
        folder: str | Path,
        every: int | None = 1,
        epochs: list[int] | None = None,
        at_drops: bool = False,
        half: bool = False,
        network: str = "net",
        about: dict[str, Any] | None = None,
    ) -> None:
        if every is not None and every < 1:
            raise ValueError(f"every must be at least 1 epoch, or null for no interval, got {every}")
        if epochs and min(epochs) < 1:
            raise ValueError(f"epochs of stored states count from 1, got {min(epochs)}")
        self.every, self.epochs, self.at_drops, self.network = every, frozenset(epochs or ()), at_drops, network
        self._empty = Route(Path(folder), json.loads(json.dumps(about or {})), (), (), False, half)
        self._route: Route | None = None  # of the first process, once training has begun
        self._lr: float | None = None
        self._is_validated = False

    @property
    def state_key(self) -> str:
        return self._generate_state_key(network=self.network)

    def state_dict(self) -> dict[str, Any]:
        return {"lr": self._lr}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._lr = state_dict["lr"]

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._route = None
        if isinstance(trainer.strategy, _SHARDED):
            kind = type(trainer.strategy).__name__
            raise ValueError(f"states cannot be stored under {kind}, where each process has only a part of the weights: set trainer.strategy to ddp")
        for name, value in self._weights(pl_module).items():
            if not isinstance(value, Tensor):
                raise ValueError(f"the network {self.network!r} keeps {name!r}, which is no tensor: its states cannot be stored; name a part of it")

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        self._route = self._continued(trainer.current_epoch)
        last = self._route.history[-1].epoch if self._route.history else 0
        if last < trainer.current_epoch and trainer.is_last_batch:
            # The checkpoint is of an epoch's last step, and the process ended before its validation: Lightning goes on with the next epoch at once.
            self._note(State(trainer.current_epoch, "", self._lr, {}), pl_module)

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx and self._lr is not None:
            return
        self._lr = _learning_rate(trainer)  # here, as schedulers step before an epoch's end is announced
        self._is_validated = False
        history = self._route.history if self._route is not None else ()
        if batch_idx == 0 and self.at_drops and history and _is_drop(history[-1].lr, self._lr):
            self._store_last(pl_module)  # nothing was trained since the last epoch's end

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._is_validated = not trainer.sanity_checking

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        metrics = _scalars(trainer.callback_metrics)  # by every process: metrics are gathered over them
        if not self._is_validated:
            metrics = {name: value for name, value in metrics.items() if not name.startswith("val")}  # they are of an earlier epoch
        if trainer.is_global_zero:
            self._note(State(trainer.current_epoch + 1, "", self._lr, metrics), pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero:
            self._complete(pl_module)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        is_idle = self._route is None and trainer.current_epoch > 0 and trainer.is_last_batch  # the checkpoint was of the end
        if trainer.is_global_zero and is_idle:
            self._route = self._continued(trainer.current_epoch)
            self._complete(pl_module)

    def _continued(self, epoch: int) -> Route:
        """Return the route in the folder up to `epoch`; later states are removed, and with 0 all of an earlier route.

        Only the first process does so, and no other one waits for it: none of them reads a route while it is written.
        """
        file, former = self._empty.folder / ROUTE, self._empty
        if file.is_file():
            try:
                former = _read(file)
            except BadFileError:
                if epoch:
                    raise
        if epoch and former.digest != self._empty.digest:
            raise ValueError(f"the route in {file.parent} is of another training ({former.about}, not {self._empty.about}): choose another folder")
        states, history = (tuple(state for state in some if state.epoch <= epoch) for some in (former.states, former.history))
        kept = replace(self._empty, states=states, history=history)
        write_route(kept)
        for state in former.states[len(states) :]:
            (kept.folder / state.file).unlink(missing_ok=True)
        return kept

    def _note(self, state: State, module: L.LightningModule) -> None:
        """Add an epoch that has just ended, with its weights if they are wanted."""
        assert self._route is not None
        self._route = replace(self._route, history=(*self._route.history, state))
        if state.epoch in self.epochs or (self.every is not None and state.epoch % self.every == 0):
            self._store_last(module)
        else:
            write_route(self._route)

    def _store_last(self, module: L.LightningModule) -> None:
        """Store the weights, which are those after the last epoch, unless they are stored already."""
        assert self._route is not None
        *earlier, last = self._route.history
        if not last.file:
            name = store_state(self._route.folder, last.epoch, self._weights(module), self._route.half)
            last = replace(last, file=name)
            self._route = replace(self._route, states=(*self._route.states, last), history=(*earlier, last))
            write_route(self._route)

    def _complete(self, module: L.LightningModule) -> None:
        assert self._route is not None
        if self._route.history:
            self._store_last(module)
            self._route = replace(self._route, is_complete=True)
            write_route(self._route)

    def _weights(self, module: nn.Module) -> dict[str, Tensor]:
        try:
            state = module.get_submodule(self.network).state_dict()
        except AttributeError as error:
            children = ", ".join(name for name, _ in module.named_children()) or "none"
            raise ValueError(f"{type(module).__name__} has no network {self.network!r} to store states of; its parts: {children}") from error
        return {name.replace("_orig_mod.", ""): tensor for name, tensor in state.items()}  # torch.compile's name for what it wraps


def _learning_rate(trainer: L.Trainer) -> float | None:
    return float(trainer.optimizers[0].param_groups[0]["lr"]) if trainer.optimizers else None


def _is_drop(former: float | None, now: float | None) -> bool:
    return former is not None and now is not None and now <= DROP * former


def _scalars(metrics: Mapping[str, Tensor]) -> dict[str, float]:
    """Return metrics as numbers; NaN and infinity, which JSON has not, are left out."""
    values = {name: float(value) for name, value in metrics.items() if value.numel() == 1}
    return {name: value for name, value in values.items() if math.isfinite(value)}


def _route_file(folder: str | Path) -> Path:
    path = Path(folder).expanduser()
    return path if path.name == ROUTE else path / ROUTE


def _read(file: Path) -> Route:
    """Read a route.json; whether the weights are there is not looked at."""
    content = read_json(file, "it is damaged: restore it, or train the teacher again")
    found = content.get("format") if isinstance(content, dict) else None
    if found != FORMAT:
        raise BadFileError(f"{file} has format {found!r}, this code reads format {FORMAT}: train the teacher again, or use the code that wrote it")
    try:
        states, history = (tuple(_state(entry) for entry in content[name]) for name in ("states", "history"))
        route = Route(file.parent, dict(content["about"]), states, history, content["complete"] is True, content["half"] is True)
        for some in (states, history):
            if any(later.epoch <= sooner.epoch for sooner, later in pairwise(some)):
                raise ValueError("its epochs do not rise")
        if not all(state.file for state in states):
            raise ValueError("a stored state has no file")
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        reason = f"no entry {error}" if isinstance(error, KeyError) else str(error)
        raise BadFileError(f"{file} is damaged ({reason}): restore it, or train the teacher again") from error
    return route


def _state(entry: Mapping[str, Any]) -> State:
    epoch, file, lr = entry["epoch"], entry["file"], entry["lr"]
    if type(epoch) is not int or epoch < 1:
        raise ValueError(f"epoch {epoch!r} is no whole number from 1")
    if not isinstance(file, str) or (file and (any(c in file for c in "/\\\0") or Path(file).suffix != ".safetensors")):
        raise ValueError(f"{file!r} is no .safetensors file within the folder")
    return State(epoch, file, None if lr is None else float(lr), {str(name): float(value) for name, value in entry["metrics"].items()})
