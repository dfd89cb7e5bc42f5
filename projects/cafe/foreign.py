"""A user's own bottom nets: the function that builds them, and how they come apart at the first fully connected layer."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import random
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import combinations
from pathlib import Path
from types import ModuleType

import numpy
import torch
from torch import Tensor, nn

from projects.cafe.nets import BottomNet
from projects.cafe.splitting import BY_HAND, taken_apart
from shared.seeding import derive_seed, generator, rng_state, set_rng_state

Builder = Callable[[tuple[int, ...], int], nn.Module]
AGREE = 1e-4
"""Largest distance between outputs that should be the same, relative to their norm; float32's rounding stays below it."""
BLOCKS = 3
"""Random blocks that a net is tried on."""


def load_builder(path: str) -> Builder:
    """Import the function that builds a user's net.

    This runs the user's own code, as the user asked for; nothing else in the project runs code that it is given.

    Args:
        path: `folder/file.py:function` or `package.module:function`. The function takes the shape of a record's block and a seed, or the shape, or
            nothing; arguments with a default are left alone unless they are called `shape` or `seed`.

    Returns:
        A function of a shape and a seed that returns the net. While it runs, and while the file is imported, the file's folder is on `sys.path`.

    Raises:
        FileNotFoundError: if there is no such file or module.
        ValueError: if the path names no function, or the user's code raises or returns something else than a net.
    """
    source, colon, name = path.rpartition(":")
    if not (colon and source and name):
        raise ValueError(f"'{path}' names no function: give file.py:function or package.module:function")
    module = _import_file(source) if source.endswith(".py") or "/" in source else _import_module(source)
    function = getattr(module, name, None)
    if not callable(function):
        public = {key: value for key, value in vars(module).items() if callable(value) and not key.startswith("_")}
        own = [key for key, value in public.items() if getattr(value, "__module__", None) == module.__name__]
        raise ValueError(f"{source} has no function '{name}': it has {', '.join(own) or 'no public ones'}")

    def build(shape: tuple[int, ...], seed: int) -> nn.Module:
        call = _arguments(path, function, shape, seed)
        with _running(source, f"in {name}() for blocks of shape {shape}"):
            net = function(*call.args, **call.kwargs)
        if not isinstance(net, nn.Module):
            raise ValueError(f"{path} returned {_kind(net)}: it must return a torch.nn.Module")
        return net

    return build


def as_bottom(net: nn.Module, shape: tuple[int, ...], seed: int = 0) -> BottomNet:
    """Turn a net into a bottom net, which comes apart at the first fully connected layer that its forward pass meets.

    The parameters are those of `net` itself, which is set to evaluation mode, with dropout off and batch norms fixed, so that gradients are sums over
    records, and whose modules no longer work in place. The parts are tried on random blocks and give what the net gives.

    Args:
        net: maps (B, *shape) to (B, outputs). A `BottomNet` is checked and returned as it is, in evaluation mode.
        shape: shape of a record's block.
        seed: seed of the random blocks, and of the weights of lazy layers.

    Raises:
        ValueError: if the net refuses such blocks, has other outputs, works in place, or has an output that depends on chance or on the other
            records; if no fully connected layer with a bias is given (B, d1) once, something leads around it, or torch.fx cannot follow the net.
    """
    with _seeded(derive_seed(seed, "foreign net")):
        net.eval()
        for module in net.modules():
            if getattr(module, "inplace", False):
                vars(module)["inplace"] = False
        weight = next((parameter for parameter in net.parameters() if parameter.is_floating_point()), torch.empty(0))
        blocks = torch.randn(BLOCKS, *shape, generator=generator(seed, "foreign blocks"), dtype=weight.dtype).to(weight.device)
        outputs = _outputs(net, blocks)
        if isinstance(net, BottomNet):
            _check_parts(net, blocks)
            return net
        bottom = taken_apart(net).eval()
        _check_parts(bottom, blocks)
        if not _agree(bottom(blocks), outputs) or not _same_gradients(net, bottom, blocks):
            raise ValueError(
                "the net taken apart by torch.fx does not compute, or not differentiate, what the net does, since no_grad() and operations in place "
                f"in its forward are lost: take them out, or {BY_HAND}"
            )
    return bottom


def build_bottoms(path: str, shapes: Sequence[tuple[int, ...]], seed: int) -> list[BottomNet]:
    """Build each party's bottom net with a user's function, which runs the user's own code; see `load_builder`.

    Args:
        path: `file.py:function` or `package.module:function`.
        shapes: shape of a record's block at each party.
        seed: seed of all nets. Each party gets one of its own from it, in [0, 2^32), to which the global generators are set as well, so that nets
            differ and can be had again even if the function takes no seed.

    Returns:
        One net a party, in evaluation mode; see `as_bottom`.

    Raises:
        FileNotFoundError: if there is no such file or module.
        ValueError: if a net is not fit, two parties share parameters, or the nets differ in the number of their outputs.
    """
    with _seeded(derive_seed(seed, "foreign")):
        builder = load_builder(path)
    bottoms, widths = [], []
    for party, shape in enumerate(shapes):
        own = derive_seed(seed, "foreign", party) % 2**32
        with _seeded(own):
            net = builder(tuple(shape), own)
        try:
            bottoms.append(as_bottom(net, tuple(shape), own))
        except ValueError as error:
            raise ValueError(f"{path} for party {party}: {error}") from error
        weight = bottoms[-1].first.weight
        widths.append(bottoms[-1](torch.zeros(1, *shape, dtype=weight.dtype, device=weight.device)).shape[1])
    if len(set(widths)) > 1:
        raise ValueError(f"{path} built nets with {', '.join(map(str, widths))} outputs: the server needs the same number from all parties")
    odd = next((parameter.dtype for bottom in bottoms for parameter in bottom.parameters() if parameter.dtype != torch.float32), None)
    if odd is not None:
        raise ValueError(f"{path} gives a net of {odd}, but records are float32: call .float() on it")
    for (first, one), (second, other) in combinations(enumerate(bottoms), 2):
        if set(one.parameters()) & set(other.parameters()):
            raise ValueError(f"{path} gave parties {first} and {second} the same parameters: build a new net at each call")
    return bottoms


def _outputs(net: nn.Module, blocks: Tensor) -> Tensor:
    """Return a net's outputs, (B, outputs), after checks that they are such and depend on their own record alone."""
    outputs, again = _run(net, blocks), _run(net, blocks)
    if not _agree(again, outputs):
        raise ValueError("the net gives other outputs when asked again: give functional dropout training=self.training, and draw no noise")
    if not _agree(torch.cat([_run(net, block) for block in blocks.split(1)]), outputs):
        raise ValueError("a record's outputs depend on the rest of its batch: let batch norms track running statistics, and do not mix records")
    return outputs


@torch.no_grad()
def _run(net: nn.Module, blocks: Tensor) -> Tensor:
    """Return a net's outputs for blocks, which must be (B, outputs) and finite."""
    given = blocks.clone()
    try:
        outputs = net(given)
    except Exception as error:  # a user's code: there is no end to what it may raise
        raise ValueError(
            f"the net cannot take blocks of shape {tuple(blocks.shape)}, records first: {type(error).__name__}: {error}; build it for this shape"
        ) from error
    if not isinstance(outputs, Tensor) or outputs.dim() != 2 or len(outputs) != len(blocks):
        raise ValueError(f"the net gives {_kind(outputs)} for {len(blocks)} records: it must give one tensor of shape (records, outputs)")
    if not outputs.isfinite().all():
        raise ValueError("the net gives outputs that are not finite for random blocks: look for NaN in its weights and running statistics")
    if not torch.equal(given, blocks):
        raise ValueError("the net changes its blocks in place: write x = f(x) instead of f_(x)")
    return outputs


@torch.no_grad()
def _check_parts(net: BottomNet, blocks: Tensor) -> None:
    """Refuse parts between which h and u are not what the attack takes them for, or whose gradients cannot be uploaded."""
    h = net.body(blocks)
    if h.dim() != 2:
        raise ValueError(
            f"the first fully connected layer is given {tuple(h.shape)} for {len(blocks)} records, but step II needs (records, d1): flatten before "
            f"it, or {BY_HAND} with a later layer as `first`"
        )
    if sorted(name for name, _ in net.first.named_parameters()) != ["bias", "weight"]:
        raise ValueError("the weight or bias of the first fully connected layer is computed from other parameters: remove its parametrisation")
    frozen = [name for name, parameter in net.named_parameters() if not parameter.requires_grad]
    if frozen:
        raise ValueError(f"{frozen[0]} and {len(frozen) - 1} more parameters are frozen and have no gradient: call requires_grad_(True) on the net")
    rest = {*net.body.parameters(), *net.tail.parameters()}
    if not rest.isdisjoint(net.first.parameters()):
        raise ValueError("the first fully connected layer shares its weight or bias with the rest, and the gradients add up: untie them")
    u = net.first(h)
    kept = h.clone(), u.clone()
    net.tail(u)
    if not (torch.equal(h, kept[0]) and torch.equal(u, kept[1])):
        raise ValueError("the net changes the output of the first fully connected layer in place: write x = f(x) instead of f_(x)")


def _same_gradients(net: nn.Module, bottom: BottomNet, blocks: Tensor) -> bool:
    """Tell whether the parameters of `bottom` have the same gradients in both nets."""
    parameters = list(bottom.parameters())
    losses = [each(blocks.clone()).square().sum() for each in (net, bottom)]
    if not all(loss.requires_grad for loss in losses):
        return False
    try:
        found = [torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True) for loss in losses]
    except RuntimeError as error:
        raise ValueError(f"the net cannot be trained, since its loss cannot be differentiated: {error}") from error
    return all(_agree(mine, theirs) for theirs, mine in zip(*found, strict=True))


def _agree(first: Tensor, second: Tensor) -> bool:
    return bool((first - second).norm() <= AGREE * second.norm())


def _kind(value: object) -> str:
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"


def _import_file(source: str) -> ModuleType:
    """Run a Python file as a module under a private name, which stays known so that classes of the file can be pickled."""
    file = Path(source).resolve()
    if not file.is_file():
        raise FileNotFoundError(f"there is no file {source}: give the path of the Python file that builds the net, as file.py:function")
    name = f"_cafe_foreign_{derive_seed(str(file)):x}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before it runs, as dataclasses expect
    try:
        with _running(source, "while it is imported"):
            spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    return module


def _import_module(source: str) -> ModuleType:
    with _running(source, "while it is imported"):
        try:
            return importlib.import_module(source)
        except ModuleNotFoundError as error:
            if not error.name or not f"{source}.".startswith(f"{error.name}."):  # one that it imports
                raise
    raise FileNotFoundError(f"there is no module {source}: install it, or give the path of a file, as file.py:function")


def _arguments(path: str, function: Callable, shape: tuple[int, ...], seed: int) -> inspect.BoundArguments:
    """Bind shape and seed to a function's arguments of these names, or else to the first ones without a default."""
    values: dict[str, object] = {"shape": shape, "seed": seed}
    signature = inspect.signature(function)
    plain = [p for p in signature.parameters.values() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    wanted = [p.name for p in plain if p.name in values or p.default is p.empty]
    left = [key for key in values if key not in wanted]
    bound = signature.bind_partial()
    for name in wanted:
        if name not in values and not left:
            raise ValueError(f"{path} is given a shape and a seed, but it takes {signature}: give the rest defaults")
        bound.arguments[name] = values[name if name in values else left.pop(0)]
    return bound


@contextmanager
def _running(source: str, when: str) -> Iterator[None]:
    """Run a user's code with its folder on `sys.path`, and say that it was this code that raised, and in which line."""
    file = Path(source).resolve() if source.endswith(".py") else Path.cwd() / source
    sys.path.insert(0, str(file.parent))
    try:
        yield
    except (Exception, SystemExit) as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).name == file.name]
        line = f", line {lines[-1]}" if lines else ""
        raise ValueError(f"{source} raises {type(error).__name__}: {error}; {when}{line}") from error
    finally:
        with suppress(ValueError):  # the user's code may have changed it
            sys.path.remove(str(file.parent))


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed the global generators, which a user's code may draw from, and put them back afterwards."""
    state = rng_state()
    random.seed(seed)
    numpy.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    try:
        yield
    finally:
        set_rng_state(state)
