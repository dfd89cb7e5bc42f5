"""A GPU that is only pretended: tensors that claim to live on `cuda:0`, are computed on the CPU, and refuse what CUDA refuses.

Python code sees tensors of the device `cuda:0`; autograd and other C++ code see tensors of the device `meta`, which needs no driver. An operation
checks devices as CUDA does, and is carried out on the CPU tensors that the pretended ones hold. Numbers in half precision, times and memory are not
pretended: autocast does nothing.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch._dynamo  # before its tables of functions could find stand-ins
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

DEVICE = torch.device("cuda", 0)
ARGUMENTS = ["--trainer.accelerator=gpu", "--trainer.devices=1"]
"""Options of a command that is to run on the pretended device."""
ATEN = torch.ops.aten
MOVES = {ATEN.copy_, ATEN._to_copy}
INDEXING = {ATEN.index, ATEN.index_put, ATEN.index_put_, ATEN._index_put_impl_, ATEN._unsafe_index, ATEN._unsafe_index_put}
WITH_NUMBERS = {ATEN.fill_, ATEN.fill, ATEN.index_fill, ATEN.index_fill_, ATEN.masked_fill, ATEN.masked_fill_}
"""Besides pointwise operations, these take a CPU tensor of no dimensions for a number."""
MIXED = "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu!"


class Pretended(Tensor):
    """A tensor that claims to live on `cuda:0`; `held` is the CPU tensor in which its values are."""

    device, is_cuda, is_cpu, is_meta = DEVICE, True, False, False
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls: type[Pretended], held: Tensor) -> Pretended:
        layout = {"strides": held.stride(), "storage_offset": held.storage_offset(), "dtype": held.dtype}
        made = Tensor._make_wrapper_subclass(cls, held.shape, device="meta", **layout)
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(func, args, kwargs or {})

    def __tensor_flatten__(self) -> tuple[list[str], None]:  # a module that is moved then keeps its parameters, and swaps what they hold
        return ["held"], None

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, Tensor], *_: Any) -> Pretended:
        return Pretended(inner["held"])

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        made = self.detach().clone().requires_grad_(self.requires_grad)
        made.__dict__ |= {name: copy.deepcopy(value, memo) for name, value in self.__dict__.items() if name != "held"}
        made.grad = copy.deepcopy(self.grad, memo)
        return memo.setdefault(id(self), made)

    def __reduce_ex__(self, protocol: Any) -> Any:  # stored as a CPU tensor: so `map_location="cpu"` would load it
        return self.held.__reduce_ex__(protocol)

    def __format__(self, spec: str) -> str:
        return format(self.held, spec)

    def __repr__(self, **_: Any) -> str:
        return f"{self.held!r} on {DEVICE}"

    @property
    def data(self) -> Tensor:
        return self.detach()

    @data.setter
    def data(self, other: Tensor) -> None:
        if not isinstance(other, Pretended) or other.shape != self.shape:
            raise RuntimeError("Attempted to call `variable.set_data(tensor)`, but `variable` and `tensor` have incompatible tensor type.")
        self.held = other.held

    def to(self, *args: Any, **kwargs: Any) -> Tensor:
        args = [part for value in args for part in ((value.device, value.dtype) if isinstance(value, Tensor) else (value,))]
        device, dtype, _, layout = torch._C._nn._parse_to(*args, **{name: value for name, value in kwargs.items() if name != "copy"})
        if device is not None and device.type == "meta":
            return self.held.to("meta")
        is_here = (device is None or device.type == "cuda") and dtype in (None, self.dtype) and layout is None
        return self if is_here and not kwargs.get("copy") else super().to(*args, **kwargs)

    def cuda(self, *_: Any, **__: Any) -> Tensor:
        return self

    def get_device(self) -> int:
        return 0

    def numpy(self, **_: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host memory first.")

    def __array__(self, *_: Any, **__: Any) -> Any:
        return self.numpy()

    def tolist(self) -> Any:
        return self.held.tolist()

    def new_tensor(self, data: Any, **options: Any) -> Tensor:
        return torch.tensor(data, **{"dtype": self.dtype, "device": DEVICE} | options)

    def __getitem__(self, index: Any) -> Tensor:
        return super().__getitem__(_as_tensors(index))

    def __setitem__(self, index: Any, value: Any) -> None:
        super().__setitem__(_as_tensors(index), value if isinstance(value, Tensor) else torch.tensor(value, dtype=self.dtype))

    def data_ptr(self) -> int:
        return self.held.data_ptr()

    def untyped_storage(self) -> Any:
        return self.held.untyped_storage()


def _as_tensors(index: Any) -> Any:
    """Make tensors of the lists and arrays of an index, as C++ code does, but on the CPU."""
    if isinstance(index, tuple):
        return tuple(map(_as_tensors, index))
    if not isinstance(index, list | np.ndarray):
        return index
    return torch.as_tensor(index) if len(index) else torch.empty(0, dtype=torch.int64)


def _tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def check_devices(func: Any, args: Any, kwargs: dict[str, Any]) -> None:
    """Raise the RuntimeError that CUDA raises where tensors of several devices meet."""
    packet, tensors = func.overloadpacket, _tensors((args, kwargs))
    others = [tensor for tensor in tensors if not isinstance(tensor, Pretended)]
    if not others or len(others) == len(tensors) or packet in MOVES:
        return
    if packet in INDEXING:
        is_here, values = isinstance(args[0], Pretended), args[2] if len(args) > 2 else args[0]
        if not is_here and any(isinstance(index, Pretended) for index in args[1]):
            raise RuntimeError("indices should be either on cpu or on the same device as the indexed tensor (cpu)")
        if isinstance(values, Pretended) != is_here and values.ndim:
            raise RuntimeError(MIXED)
        return
    takes_numbers = torch.Tag.pointwise in func.tags or packet in WITH_NUMBERS or packet.__name__.startswith("_foreach")
    is_result_elsewhere = func._schema.is_mutable and not isinstance(tensors[0], Pretended)
    if not takes_numbers or is_result_elsewhere or any(tensor.ndim for tensor in others):
        raise RuntimeError(f"{MIXED} ({func})")


def compute(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Carry an operation out on the tensors that are held; of what it was given, it returns the same tensor."""
    check_devices(func, args, kwargs)
    target = kwargs.get("device")
    is_here = target.type != "cpu" if target else func.overloadpacket is not ATEN.copy_ or isinstance(args[0], Pretended)
    given = {id(tensor.held): tensor for tensor in _tensors((args, kwargs)) if isinstance(tensor, Pretended)}
    if torch.Tag.inplace_view in func.tags:
        with no_dispatch():
            func(*args, **kwargs)  # the shape that C++ code sees
    args, kwargs = tree_map_only(Pretended, lambda tensor: tensor.held, (args, kwargs))
    with torch.inference_mode(False):  # a view of what was made outside of it must not be an inference tensor
        result = func(*args, **(kwargs | {"device": torch.device("cpu")} if target else kwargs))
        if is_here:
            result = tree_map_only(Tensor, lambda tensor: given[id(tensor)] if id(tensor) in given else Pretended(tensor), result)
    if any(tensor.shape != tensor.held.shape for tensor in given.values()):
        raise NotImplementedError(f"{func} changes a shape in place: the pretended device cannot do that")
    return result


class _Operations(TorchDispatchMode):
    """Makes pretended tensors where an operation is told their device."""

    is_meta_meant = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "prim":  # asks of torch.export
            return func(*args, **kwargs)
        if func._can_decompose():  # in inference mode, such operations come whole
            with self:
                return func.decompose(*args, **kwargs)
        tensors, target = _tensors((args, kwargs)), kwargs.get("device")
        is_told = target is not None and target.type in ("cuda", "meta")
        if self.is_meta_meant or any(tensor.is_meta for tensor in tensors):
            return func(*args, **kwargs)
        return compute(func, args, kwargs) if is_told or any(isinstance(tensor, Pretended) for tensor in tensors) else func(*args, **kwargs)


class _Calls(TorchFunctionMode):
    """Gives `cuda` its number, checks generators, and tells a device `meta` that was asked for from the one that C++ code names."""

    def __init__(self, operations: _Operations) -> None:
        super().__init__()
        self.operations = operations

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.device:
            return func(*args, **kwargs)
        if func is Tensor.cuda:
            return args[0].to(DEVICE)
        args = [_numbered(value) for value in args]
        kwargs = kwargs | ({"device": _numbered(kwargs["device"])} if "device" in kwargs else {})
        is_meta = any(isinstance(value, str | torch.device) and str(value) == "meta" for value in (*args, kwargs.get("device")))
        with mock.patch.object(self.operations, "is_meta_meant", True) if is_meta else nullcontext():
            result = func(*args, **kwargs)
        generator = kwargs.get("generator")
        if generator is not None and isinstance(result, Tensor) and generator.device.type != result.device.type:
            raise RuntimeError(f"Expected a '{result.device.type}' device type for generator but found '{generator.device.type}'")
        return result


def _numbered(device: Any) -> Any:
    return DEVICE if isinstance(device, str | torch.device) and str(device) == "cuda" else device


class _Generator(torch.Generator):
    """A generator of the CPU's numbers that may claim to be a GPU's."""

    def __new__(cls, device: str | torch.device = "cpu") -> _Generator:
        made = super().__new__(cls)
        made.claimed = DEVICE if torch.device(device).type == "cuda" else torch.device("cpu")
        return made

    @property
    def device(self) -> torch.device:
        return self.claimed


def _returning(value: Any) -> Callable[..., Any]:
    return lambda *_, **__: value


STATE = torch.zeros(16, dtype=torch.uint8)
CUDA = {
    **dict.fromkeys(("_lazy_init", "set_device", "synchronize", "empty_cache", "reset_peak_memory_stats", "manual_seed_all"), _returning(None)),
    **dict.fromkeys(("set_rng_state", "set_rng_state_all"), _returning(None)),
    **dict.fromkeys(("current_device", "memory_allocated", "max_memory_allocated", "memory_reserved", "max_memory_reserved"), _returning(0)),
    **dict.fromkeys(("is_available", "is_bf16_supported"), _returning(True)),
    "device_count": _returning(1),
    "get_device_name": _returning("pretended"),
    "get_device_capability": _returning((7, 5)),
    "get_device_properties": _returning(SimpleNamespace(name="pretended", total_memory=2**34, major=7, minor=5, multi_processor_count=1)),
    "mem_get_info": _returning((2**33, 2**34)),
    "memory_stats": _returning({}),
    "get_rng_state": _returning(STATE),
    "get_rng_state_all": _returning([STATE]),
    "device": nullcontext,
}
"""What stands in for functions of torch.cuda."""


def _stand_ins() -> Iterator[Any]:
    """Yield what is put in the place of code that needs a driver, or Triton."""
    from shared.pruning import kernels
    from shared.smoothing import noise

    yield from (mock.patch.object(torch.cuda, name, stand_in) for name, stand_in in CUDA.items())
    yield mock.patch.object(torch, "Generator", _Generator)
    yield mock.patch.object(Tensor, "pin_memory", lambda tensor, *_: tensor)
    yield mock.patch.object(torch.backends.cudnn, "is_acceptable", _returning(False))
    yield mock.patch.object(torch.optim.Optimizer, "_accelerator_graph_capture_health_check", _returning(None))
    clipping, grouped = torch.nn.utils.clip_grad, torch.nn.utils.clip_grad._group_tensors_by_device_and_dtype
    here = lambda device: DEVICE if device.type == "meta" else device  # noqa: E731
    by_device = lambda lists: {(here(device), dtype): group for (device, dtype), group in grouped(lists).items()}  # noqa: E731
    yield mock.patch.object(clipping, "_group_tensors_by_device_and_dtype", by_device)
    yield mock.patch.object(kernels, "triton_channel_sums", kernels.torch_channel_sums)
    yield mock.patch.object(kernels, "triton_gather", lambda tensor, rows, columns: tensor.index_select(0, rows).index_select(1, columns))
    perturb = noise.Sampler.perturb

    def perturb_plainly(*args: Any) -> Tensor:
        with mock.patch.object(Pretended, "is_cuda", False):
            return perturb(*args)

    yield mock.patch.object(noise.Sampler, "perturb", perturb_plainly)


@contextmanager
def pretended_gpu() -> Iterator[torch.device]:
    """Let torch and Lightning find one GPU, the pretended one, and yield its device."""
    with ExitStack() as stack:
        for stand_in in _stand_ins():
            stack.enter_context(stand_in)
        torch._C._set_only_lift_cpu_tensors(True)  # what torch.tensor makes is then moved to a device where the mode sees it
        stack.callback(torch._C._set_only_lift_cpu_tensors, False)
        stack.enter_context(operations := _Operations())
        stack.enter_context(_Calls(operations))
        yield DEVICE
