"""The Triton kernels behind `fused.py`; imported only where a CUDA device, or Triton's interpreter, runs them.

Parameters bear no types: Triton's compiler would look them up as globals of the kernel.
"""

# ruff: noqa: ANN001, ANN201, ANN202, N803
# mypy: disable-error-code="no-untyped-def"

import triton
import triton.language as tl


@triton.jit
def _words(key, draw, block):
    """Return the four words of a block of a draw: counter (block, draw, 0, 0)."""
    zero = block * 0
    return tl.philox(key, block, zero + draw.to(tl.uint32, bitcast=False), zero, zero)


@triton.jit
def _pair(low, high):
    """Box-Muller as in `noise.box_muller`: return r cos and r sin of a radius word and an angle word."""
    uniform = ((high & 0xFF).to(tl.float32) + 0.5) * 0.00390625 + (low & 0x7FFFFFFF).to(tl.float32)
    radius = tl.sqrt(tl.maximum(-2.0 * tl.log(uniform * 4.656612873077393e-10), 0.0))
    angle = ((high.to(tl.int32, bitcast=True) >> 8).to(tl.float32) + 0.5) * 3.7450702829239286e-07
    return radius * tl.cos(angle), radius * tl.sin(angle)


@triton.jit
def _write(image, shift, scale, result, noise, element, sigma, size, plane, channel_stride, pixel_stride):
    inside = element < size
    channel = element // plane
    clean = tl.load(image + element, mask=inside, other=0.0)
    value = (clean + sigma * noise - tl.load(shift + channel, mask=inside, other=0.0)) / tl.load(scale + channel, mask=inside, other=1.0)
    place = channel * channel_stride + (element % plane) * pixel_stride
    tl.store(result + place, value.to(result.dtype.element_ty), mask=inside)


@triton.jit
def perturb_dense(
    images,
    slots,
    keys,
    draws,
    shift,
    scale,
    result,
    sigma,
    elements,
    half,
    size,
    plane,
    channel_stride,
    pixel_stride,
    BLOCK: tl.constexpr,
):
    """Each lane makes eight normals: the radii of block b, the angles of block b + half / 4."""
    row = tl.program_id(0).to(tl.int64)
    key, draw = tl.load(keys + row), tl.load(draws + row)
    image = images + tl.load(slots + row) * elements
    target = result + row * size
    block = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    low0, low1, low2, low3 = _words(key, draw, block.to(tl.uint32))
    high0, high1, high2, high3 = _words(key, draw, (block + half // 4).to(tl.uint32))
    first = tl.where(block < half // 4, block * 4, size)  # lanes beyond the last block write nothing
    for word in tl.static_range(4):
        low = low0 if word == 0 else (low1 if word == 1 else (low2 if word == 2 else low3))
        high = high0 if word == 0 else (high1 if word == 1 else (high2 if word == 2 else high3))
        cosine, sine = _pair(low, high)
        _write(image, shift, scale, target, cosine, first + word, sigma, size, plane, channel_stride, pixel_stride)
        _write(image, shift, scale, target, sine, first + word + half, sigma, size, plane, channel_stride, pixel_stride)


@triton.jit
def perturb_placed(
    images,
    slots,
    keys,
    draws,
    shift,
    scale,
    result,
    sigma,
    elements,
    half,
    size,
    plane,
    channel_stride,
    pixel_stride,
    source,
    BLOCK: tl.constexpr,
):
    """Each lane makes the normal of the element that its output takes; 0 where it takes none."""
    row = tl.program_id(0).to(tl.int64)
    key, draw = tl.load(keys + row), tl.load(draws + row)
    element = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = element < size
    taken = tl.load(source + element, mask=inside, other=-1)
    position = tl.maximum(taken, 0)
    index = position % half
    low0, low1, low2, low3 = _words(key, draw, (index // 4).to(tl.uint32))
    high0, high1, high2, high3 = _words(key, draw, (index // 4 + half // 4).to(tl.uint32))
    word = index % 4
    low = tl.where(word == 0, low0, tl.where(word == 1, low1, tl.where(word == 2, low2, low3)))
    high = tl.where(word == 0, high0, tl.where(word == 1, high1, tl.where(word == 2, high2, high3)))
    cosine, sine = _pair(low, high)
    noise = tl.where(position < half, cosine, sine)
    clean = tl.load(images + tl.load(slots + row) * elements + position, mask=inside, other=0.0)
    value = tl.where(taken >= 0, clean + sigma * noise, 0.0)
    channel = element // plane
    value = (value - tl.load(shift + channel, mask=inside, other=0.0)) / tl.load(scale + channel, mask=inside, other=1.0)
    place = channel * channel_stride + (element % plane) * pixel_stride
    tl.store(result + row * size + place, value.to(result.dtype.element_ty), mask=inside)
