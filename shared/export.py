"""Networks for other runtimes: an ONNX file that is kept once it is seen to compute what torch does, and how fast it is on a CPU."""

from __future__ import annotations

import copy
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from shared.runs import atomic

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

OPSET = 18
"""Version of the operators: the one that torch's exporter writes without a conversion; onnxruntime reads it from 1.14 on."""
LARGEST = 2**31 - 1
"""Bytes that fit into one .onnx file."""
_WARM_UP = 3


def export_onnx(
    module: nn.Module,
    path: str | Path,
    examples: Mapping[str, Tensor],
    outputs: Sequence[str],
    metadata: Mapping[str, Any] | None = None,
    batches: Sequence[int] = (1, 3, 8),
    tolerance: float = 1e-4,
    dynamic: Mapping[str, Mapping[int, tuple[str, int]]] | None = None,
    further: Sequence[Mapping[str, Tensor]] = (),
) -> float:
    """Write a network, in evaluation mode and float32, as an .onnx file for batches of any size, if onnxruntime computes with it what torch does.

    Args:
        module: takes the examples in their order and returns a tensor, or as many as there are `outputs`, each with the batch first. It is left as it
            is. What it does must not depend on values; `torch.compiler.is_exporting()` tells it to take a way that does not.
        path: the file; its weights lie in it.
        examples: tensors by the name of the input, with the batch first, at least two rows and as many as the largest of `batches`. The other
            dimensions become fixed, but for those of `dynamic`.
        outputs: names of the outputs.
        metadata: what a user of the file must know, such as the names of the classes; values that are no text are written as JSON.
        batches: sizes of the batches, the first rows of the examples, that both are compared on.
        tolerance: largest absolute difference between their outputs.
        dynamic: further dimensions of any size, by the name of the input and their number: a name for each, and its least size.
        further: examples of other sizes that both are compared on as well.

    Returns:
        The largest absolute difference.

    Raises:
        ValueError: if the extra `onnx` is not installed, the weights do not fit into one file, there are too few examples, or the outputs differ by
            more than `tolerance` or are not finite; there is no file then, and an earlier one is left as it was.
    """
    _check_installed()
    if (size := sum(4 * tensor.numel() for tensor in (*module.parameters(), *module.buffers()))) > LARGEST:
        raise ValueError(f"the network has {size / 2**30:.1f} GB of weights, but one .onnx file holds at most 2 GB: export a smaller network")
    network = copy.deepcopy(module).cpu().float().eval()
    with atomic(path) as temporary, torch.no_grad():
        _write(network, temporary, examples, outputs, metadata or {}, dynamic or {})
        difference = _difference(network, temporary, [*(_first(examples, batch) for batch in batches), *further])
        if not difference <= tolerance:
            raise ValueError(
                f"{Path(path).name} was not kept: onnxruntime's outputs differ from torch's by up to {difference:.1e}, more than {tolerance:.0e}"
            )
    return difference


def latency(
    path: str | Path, examples: Mapping[str, Tensor], batches: Sequence[int] = (1, 8), runs: int = 15, threads: int | None = None
) -> list[dict[str, Any]]:
    """Measure how long onnxruntime takes on the CPU, after a few calls to warm up.

    Args:
        path: the .onnx file.
        examples: tensors by the name of the input, with at least as many rows as the largest of `batches`.
        batches: sizes of the batches.
        runs: calls of each size, of which the median is taken.
        threads: threads of a call; None for as many as torch has.

    Returns:
        A row a size, with `batch`, `threads`, `milliseconds` of a call and `inputs_per_second`.

    Raises:
        ValueError: if the extra `onnx` is not installed, or there are too few examples.
    """
    _check_installed()
    threads = threads or torch.get_num_threads()
    session, rows = _session(path, threads), []
    for batch in batches:
        arrays = {name: tensor.numpy() for name, tensor in _first(examples, batch).items()}
        seconds = []
        for _ in range(_WARM_UP + runs):
            start = time.perf_counter()
            session.run(None, arrays)
            seconds.append(time.perf_counter() - start)
        median = statistics.median(seconds[_WARM_UP:])
        rows.append({"batch": batch, "threads": threads, "milliseconds": 1000 * median, "inputs_per_second": batch / median})
    return rows


def beside_torch(module: nn.Module, path: str | Path, pictures: Mapping[str, Tensor], runs: int = 7) -> list[dict[str, Any]]:
    """Time one picture on the CPU in the runtime of its file and in torch, with as many threads.

    Args:
        module: what the file computes.
        path: the .onnx file.
        pictures: (B, C, H, W) by the name of the input, all of one size; the first of each is taken.
        runs: calls of which the median is taken.

    Returns:
        A row for ONNX Runtime and one for torch, with `height`, `width`, `batch`, `threads`, `milliseconds` and `megapixels_per_second`.

    Raises:
        ValueError: see `latency`.
    """
    height, width = next(iter(pictures.values())).shape[2:]
    speed = height * width / 1000  # pixels a millisecond are a thousandth of megapixels a second
    return [
        {"runtime": row.pop("runtime"), "height": height, "width": width} | row | {"megapixels_per_second": speed / row["milliseconds"]}
        for row in both_runtimes(module, path, pictures, runs)
    ]


def both_runtimes(module: nn.Module, path: str | Path, examples: Mapping[str, Tensor], runs: int = 7) -> list[dict[str, Any]]:
    """Time the first example on the CPU in the runtime of its file and in torch, with as many threads.

    Args:
        module: what the file computes.
        path: the .onnx file.
        examples: tensors by the name of the input; the first row of each is taken.
        runs: calls of which the median is taken.

    Returns:
        A row for ONNX Runtime and one for torch, with `runtime`, `batch`, `threads` and `milliseconds`.

    Raises:
        ValueError: see `latency`.
    """
    first, seconds = _first(examples, 1), []
    measured = latency(path, first, (1,), runs)[0]
    with torch.inference_mode():
        for _ in range(1 + runs):
            start = time.perf_counter()
            module(*first.values())
            seconds.append(time.perf_counter() - start)
    times = {"ONNX Runtime": measured["milliseconds"], "torch": 1000 * statistics.median(seconds[1:])}
    return [{"runtime": name, "batch": 1, "threads": measured["threads"], "milliseconds": took} for name, took in times.items()]


def _check_installed() -> None:
    for name in ("onnx", "onnxruntime", "onnxscript"):
        if find_spec(name) is None:
            raise ValueError(f"ONNX files need {name}: install the extra with `uv sync --extra onnx`")


def _write(
    network: nn.Module,
    path: Path,
    examples: Mapping[str, Tensor],
    outputs: Sequence[str],
    metadata: Mapping[str, Any],
    dynamic: Mapping[str, Mapping[int, tuple[str, int]]],
) -> None:
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    sizes = {label: torch.export.Dim(label, min=least) for named in dynamic.values() for label, least in named.values()}
    others = [{place: label for place, (label, _) in dynamic.get(name, {}).items()} for name in examples]
    names = [
        {place: label for place, label in own.items() if not any(label in one.values() for one in others[:number])}
        for number, own in enumerate(others)
    ]
    batch = torch.export.Dim("batch")
    shapes = tuple({0: batch} | {place: sizes[label] for place, label in named.items()} for named in others)
    program = torch.export.export(network, tuple(examples.values()), dynamic_shapes=shapes, strict=False)
    exported = torch.onnx.export(
        program,
        input_names=list(examples),
        output_names=list(outputs),
        opset_version=OPSET,
        dynamic_shapes=(
            {0: "batch"} | names[0],
            *(named or None for named in names[1:]),
        ),  # only the names, which all get from the first that has them
        custom_translation_table={torch.ops.aten.sort.stable: _stable_sort},
        verbose=False,
    )
    assert exported is not None
    ClearMetadataAndDocStringPass()(exported.model)  # stack traces with the paths of this machine
    exported.model.metadata_props.update({name: value if isinstance(value, str) else json.dumps(value) for name, value in metadata.items()})
    exported.save(path, external_data=False)


def _stable_sort(values: Any, stable: bool = True, dim: int = -1, descending: bool = False) -> Any:
    """Translate torch's stable sort, which its exporter does not know: TopK also puts the lower index first among equals."""
    import onnxscript

    op: Any = onnxscript.opset18
    length = op.Gather(op.Shape(values), op.Constant(value_ints=[dim]))
    return op.TopK(values, length, axis=dim, largest=int(descending), sorted=1)


def _difference(network: nn.Module, path: Path, batches: Sequence[Mapping[str, Tensor]]) -> float:
    """Return the largest absolute difference between the outputs of onnxruntime and torch; NaN if one is NaN."""
    session, found = _session(path, torch.get_num_threads()), []
    for rows in batches:
        expected = network(*rows.values())
        theirs = session.run(None, {name: tensor.numpy() for name, tensor in rows.items()})
        for one, other in zip([expected] if isinstance(expected, Tensor) else expected, theirs, strict=True):
            found.append((one.double() - torch.from_numpy(other).double()).abs().max())
    return float(torch.stack(found).max())


def _session(path: str | Path, threads: int) -> InferenceSession:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _first(examples: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
    if any(len(tensor) < count for tensor in examples.values()):
        raise ValueError(f"a batch of {count} needs as many examples, not {min(len(tensor) for tensor in examples.values())}")
    return {name: tensor[:count] for name, tensor in examples.items()}
