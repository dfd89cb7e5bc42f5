"""The Triton kernels behind `kernels.py`; imported only where a CUDA device, or Triton's interpreter, runs them.

Parameters bear no types: Triton's compiler would look them up as globals of the kernel.
"""

# ruff: noqa: ANN001, ANN201, N803
# mypy: disable-error-code="no-untyped-def"

import triton
import triton.language as tl


@triton.jit
def slice_sums(
    weight,
    other,
    result,
    inner,
    outer_stride,
    inner_stride,
    pieces,
    piece,
    piece_stride,
    code,
    BLOCK: tl.constexpr,
):
    """Sum |w|, w², |w g|, w g or w² g (code 0 to 4) over slice i: `pieces` runs of `piece` elements, `piece_stride` apart."""
    i = tl.program_id(0)
    start = (i // inner).to(tl.int64) * outer_stride + (i % inner) * inner_stride
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for first in range(0, pieces * piece, BLOCK):
        element = first + tl.arange(0, BLOCK)
        inside = element < pieces * piece
        offset = start + (element // piece).to(tl.int64) * piece_stride + element % piece
        w = tl.load(weight + offset, mask=inside, other=0.0).to(tl.float32)
        g = tl.load(other + offset, mask=inside, other=0.0).to(tl.float32)
        value = tl.where(code == 0, tl.abs(w), w * w)
        value = tl.where(code == 2, tl.abs(w * g), value)
        value = tl.where(code == 3, w * g, value)
        total += tl.where(code == 4, w * w * g, value)
    tl.store(result + i, tl.sum(total, axis=0))


@triton.jit
def gather_two(
    tensor,
    rows,
    columns,
    result,
    width,
    rest,
    per_row,
    BLOCK: tl.constexpr,
):
    """Copy row rows[i], columns `columns`, of a (rows, width, rest) tensor to row i of the result."""
    i = tl.program_id(0)
    element = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = element < per_row
    row = tl.load(rows + i)
    column = tl.load(columns + element // rest, mask=inside, other=0)
    value = tl.load(tensor + (row * width + column) * rest + element % rest, mask=inside, other=0)
    tl.store(result + i.to(tl.int64) * per_row + element, value, mask=inside)
