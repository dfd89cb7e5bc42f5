import os
import subprocess
import sys

import pytest
import torch

from shared.pruning.kernels import channel_sums, gather, torch_channel_sums

SHAPES = [((5, 7, 3, 3), 1), ((64, 33), 1), ((12, 2, 3, 3), 4), ((9,), 1), ((300, 130, 5), 1), ((8, 1, 3, 3), 8)]
CRITERIA = ["absolute", "square", "product_absolute", "product", "fisher"]
INTERPRETED = """
import os, sys, torch, shared.pruning
from shared.pruning.kernels import channel_sums, torch_channel_sums, triton_channel_sums, triton_gather
channel_sums(torch.ones(2, 2), torch.ones(2, 2), "square", (0, 1))
print(*(name in sys.modules for name in ("triton", "lightning", "torch_pruning", "diffusers", "timm")))
os.environ["TRITON_INTERPRET"] = "1"  # before Triton is first imported
for shape, groups in (((5, 7, 3, 3), 1), ((8, 2, 3), 4), ((9,), 1), ((3, 2, 600), 1)):
    dtype = torch.bfloat16 if groups > 1 else torch.float32
    w, g = torch.randn(shape).to(dtype), torch.randn(shape).to(dtype)
    for criterion in ("absolute", "square", "product_absolute", "product", "fisher"):
        dims = (0, 1) if len(shape) > 1 else (0,)
        expected, found = torch_channel_sums(w, g, criterion, dims, groups), triton_channel_sums(w, g, criterion, dims, groups)
        for dim in dims:
            torch.testing.assert_close(found[dim], expected[dim], rtol=1e-5, atol=1e-4)
for shape, rows, columns in (((13, 11, 3, 3), [0, 4, 12], [1, 2, 9, 10]), ((3, 700, 3), [2, 0], range(0, 700, 2))):
    tensor, rows, columns = torch.randn(shape), torch.tensor(rows), torch.tensor(columns)
    assert torch.equal(triton_gather(tensor, rows, columns), tensor[rows][:, columns])
print("same")
"""


@pytest.mark.parametrize(("shape", "groups"), SHAPES)
def test_sums_equal_the_formula(shape, groups):
    w, g = torch.randn(shape, dtype=torch.float64), torch.randn(shape, dtype=torch.float64)
    values = (w * g).abs()
    rows = values.flatten(1).sum(1) if len(shape) > 1 else values
    found = channel_sums(w, g, "product_absolute", (0, 1), groups)
    torch.testing.assert_close(found[0].double(), rows, rtol=1e-5, atol=1e-5)
    if len(shape) > 1:
        columns = values.view(groups, shape[0] // groups, shape[1], -1).sum((1, 3)).flatten()
        torch.testing.assert_close(found[1].double(), columns, rtol=1e-5, atol=1e-5)


def test_layouts_of_memory_do_not_matter():
    w = torch.randn(16, 8, 3, 3)
    expected = torch_channel_sums(w, w, "square", (0, 1))
    found = torch_channel_sums(w.to(memory_format=torch.channels_last), w, "square", (0, 1))
    torch.testing.assert_close(found[0], expected[0])
    torch.testing.assert_close(found[1], expected[1])


def test_gather_takes_slices_of_several_dimensions():
    tensor = torch.randn(6, 5, 3)
    assert torch.equal(gather(tensor, {0: torch.tensor([1, 5]), 1: torch.tensor([0, 2])}), tensor[[1, 5]][:, [0, 2]])
    assert gather(tensor, {}) is tensor
    pictures = torch.randn(6, 5, 3, 3).to(memory_format=torch.channels_last)
    taken = gather(pictures, {0: torch.tensor([1, 5]), 1: torch.tensor([0, 2])})
    assert taken.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(taken, pictures[[1, 5]][:, [0, 2]])


def test_triton_is_imported_on_demand_and_equals_torch_under_the_interpreter():
    pytest.importorskip("triton")
    done = subprocess.run(
        [sys.executable, "-c", INTERPRETED], env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.stdout.split() == ["False"] * 5 + ["same"], done.stderr[-2000:]


def test_triton_kernels_compile_without_a_device():
    pytest.importorskip("triton")
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from shared.pruning.triton_kernels import gather_two, slice_sums

    tensors = {"weight": "*bf16", "other": "*fp32", "result": "*fp32", "tensor": "*fp32", "rows": "*i64", "columns": "*i64", "BLOCK": "constexpr"}
    for kernel in (slice_sums, gather_two):
        signature = {name: tensors.get(name, "i32") for name in kernel.arg_names}
        made = triton.compile(ASTSource(fn=kernel, signature=signature, constexprs={"BLOCK": 1024}), target=GPUTarget("cuda", 90, 32))
        assert "ptx" in made.asm


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_triton_kernels_equal_torch_on_cuda():
    for shape, groups in SHAPES:
        w, g = torch.randn(shape), torch.randn(shape)
        for criterion in CRITERIA:
            dims = (0, 1) if len(shape) > 1 else (0,)
            expected, found = torch_channel_sums(w, g, criterion, dims, groups), channel_sums(w.cuda(), g.cuda(), criterion, dims, groups)
            for dim in dims:
                torch.testing.assert_close(found[dim].cpu(), expected[dim], rtol=1e-4, atol=1e-4)
