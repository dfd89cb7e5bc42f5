import os
import subprocess
import sys

import pytest
import torch

INTERPRETED = """
import os, sys, torch
import shared.smoothing.fused
print("triton" in sys.modules)
os.environ["TRITON_INTERPRET"] = "1"  # before Triton is first imported
from shared.smoothing.fused import perturb
from shared.smoothing.noise import Sampler, stream_key
from shared.smoothing.placement import Placement
torch.manual_seed(0)
slots, draws = torch.tensor([1, 0, 1]), torch.tensor([0, 99_999, 2**31 - 1])
keys = torch.tensor([stream_key(2**64 - 5, 7 + int(slot), 1, 0) for slot in slots])
def plain(images, shape):
    return Sampler("gaussian", 0.5, images[0].numel()).perturb(images, slots, keys, draws, torch.empty(3, *shape))
mean, std = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.3, 0.25])
def normalised(x):
    return (x - mean.view(-1, 1, 1)) / std.view(-1, 1, 1)
for shape in ((3, 5, 7), (3, 16, 32)):
    images = torch.rand(2, *shape)
    expected = plain(images, shape)
    torch.testing.assert_close(perturb(images, slots, keys, draws, 0.5, torch.empty(3, *shape)), expected, rtol=1e-5, atol=1e-5)
    last = torch.empty(3, *shape, dtype=torch.bfloat16).to(memory_format=torch.channels_last)
    found = perturb(images, slots, keys, draws, 0.5, last, mean=mean, std=std)
    torch.testing.assert_close(found.float(), normalised(expected), rtol=1e-2, atol=1e-2)
flat = torch.rand(2, 9)
torch.testing.assert_close(perturb(flat, slots, keys, draws, 0.5, torch.empty(3, 9)), plain(flat, (9,)), rtol=1e-5, atol=1e-5)
board = (torch.arange(6)[:, None] + torch.arange(8)) % 2 == 0
whole = torch.arange(3 * 6 * 8).view(3, 6, 8)
packed = torch.rand(2, 3, 6, 4)
noised = plain(packed, (3, 6, 4))
upsampled = torch.arange(3 * 6 * 4).view(3, 6, 4).repeat_interleave(2, dim=2)
masked = torch.full((3, 6, 8), -1)
masked[:, board] = torch.arange(3 * 6 * 4).view(3, -1)
for source in (upsampled, masked):
    expected = torch.where(source >= 0, noised.flatten(1)[:, source.flatten().clamp_min(0)].view(3, 3, 6, 8), 0.0)
    found = perturb(packed, slots, keys, draws, 0.5, torch.empty(3, 3, 6, 8), source.flatten().int(), mean, std)
    torch.testing.assert_close(found, normalised(expected), rtol=1e-5, atol=1e-5)
    placement = Placement(source, mean, std)
    at_once = Sampler("gaussian", 0.5, 72).perturb(packed, slots, keys, draws, torch.empty(3, 3, 6, 8), placement)
    assert torch.equal(at_once, placement(noised))
    torch.testing.assert_close(at_once, found, rtol=1e-5, atol=1e-5)
    last = torch.empty(3, 3, 6, 8, dtype=torch.bfloat16).to(memory_format=torch.channels_last)
    found = perturb(packed, slots, keys, draws, 0.5, last, placement.source, mean, std)
    torch.testing.assert_close(found.float(), at_once, rtol=1e-2, atol=1e-2)
print("same")
"""


def test_kernels_equal_torch_under_the_interpreter():
    pytest.importorskip("triton")
    done = subprocess.run(
        [sys.executable, "-c", INTERPRETED], env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.stdout.split() == ["False", "same"], done.stderr[-3000:]


def test_kernels_compile_without_a_device():
    pytest.importorskip("triton")
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from shared.smoothing.triton_kernels import perturb_dense, perturb_placed

    pointers = {"images": "*fp32", "slots": "*i64", "keys": "*i64", "draws": "*i64", "shift": "*fp32", "scale": "*fp32", "result": "*bf16"}
    types = pointers | {"source": "*i32", "sigma": "fp32", "BLOCK": "constexpr"}
    for kernel in (perturb_dense, perturb_placed):
        signature = {name: types.get(name, "i32") for name in kernel.arg_names}
        made = triton.compile(ASTSource(fn=kernel, signature=signature, constexprs={"BLOCK": 256}), target=GPUTarget("cuda", 90, 32))
        assert "ptx" in made.asm


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_kernels_equal_torch_on_cuda():
    from shared.smoothing.noise import Sampler, stream_key

    images, slots, draws = torch.rand(2, 3, 32, 32), torch.arange(64) % 2, torch.arange(64)
    keys = torch.tensor([stream_key(1, int(slot), 0, 0) for slot in slots])
    expected = Sampler("gaussian", 0.5, 3072).perturb(images, slots, keys, draws, torch.empty(64, 3, 32, 32))
    on_device = [part.cuda() for part in (images, slots, keys, draws)]
    found = Sampler("gaussian", 0.5, 3072, "cuda").perturb(*on_device, torch.empty(64, 3, 32, 32, device="cuda"))
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-4, atol=1e-4)
