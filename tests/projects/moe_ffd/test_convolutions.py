import pytest
import torch
from torch.nn import functional as F

from projects.moe_ffd.convolutions import CYCLE, KINDS, RING, SUPPORT, begin_as_identity, difference_conv2d, fold, folding_matrix


def pixel(features, row, column):
    """(B, I) at a place, zero outside."""
    inside = 0 <= row < features.shape[2] and 0 <= column < features.shape[3]
    return features[:, :, row, column] if inside else torch.zeros_like(features[:, :, 0, 0])


def brute_force(features, weight, bias, kind, self_index):
    """The convolutions, pixel by pixel."""
    taps = [weight[:, :, i // 3, i % 3] for i in range(9)]
    offsets = [(i // 3 - 1, i % 3 - 1) for i in range(9)]
    result = features.new_zeros(len(features), len(weight), *features.shape[2:])
    for row in range(features.shape[2]):
        for column in range(features.shape[3]):

            def x(i, reach=1, row=row, column=column):
                return pixel(features, row + reach * offsets[i][0], column + reach * offsets[i][1])

            if kind == "cv":
                total = sum(x(i) @ taps[i].T for i in range(9))
            elif kind == "cd":
                total = x(4) @ taps[4].T + sum((x(i) - x(4)) @ taps[i].T for i in RING)
            elif kind == "ad":
                total = x(4) @ taps[4].T + sum((x(i) - x(CYCLE[(CYCLE.index(i) + 1) % 8])) @ taps[i].T for i in RING)
            else:
                rest = [i for i in range(9) if i != self_index]
                total = x(4) @ taps[self_index].T
                for w, r in zip(rest, RING, strict=True):
                    total = total + (x(r, 2) - x(r) if kind == "rd" else x(r, 2) - 2 * x(r) + x(4)) @ taps[w].T
            result[:, :, row, column] = total + bias
    return result


@pytest.mark.parametrize("self_index", [0, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_folded_kernels_are_the_difference_convolutions(kind, self_index):
    torch.manual_seed(0)
    features, weight, bias = (torch.randn(*shape, dtype=torch.float64) for shape in [(2, 3, 5, 6), (4, 3, 3, 3), (4,)])
    expected = brute_force(features, weight, bias, kind, self_index)
    torch.testing.assert_close(difference_conv2d(features, weight, bias, kind, self_index), expected, rtol=1e-12, atol=1e-12)


def test_central_difference_in_its_kernel_form():
    weight = torch.randn(2, 2, 3, 3, dtype=torch.float64)
    expected = weight.clone()
    expected[..., 1, 1] = 2 * weight[..., 1, 1] - weight.sum((-1, -2))
    torch.testing.assert_close(fold(weight, "cd"), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_response_to_a_constant(kind):
    weight, bias = torch.randn(1, 1, 3, 3, dtype=torch.float64), torch.randn(1, dtype=torch.float64)
    for self_index in (0, 4):
        response = difference_conv2d(torch.full((1, 1, 9, 9), 3.0, dtype=torch.float64), weight, bias, kind, self_index)[0, 0, 4, 4]
        own = {"cv": weight.sum(), "cd": weight[0, 0, 1, 1], "ad": weight[0, 0, 1, 1]}.get(kind, weight.flatten()[self_index])
        torch.testing.assert_close(response, own * 3 + bias[0])


@pytest.mark.parametrize("kind", KINDS)
def test_identity_at_first(kind):
    weight, features = torch.randn(4, 4, 3, 3), torch.randn(1, 4, 7, 7)
    begin_as_identity(weight)
    torch.testing.assert_close(difference_conv2d(features, weight, None, kind, 4), features)
    if kind in ("rd", "scd"):  # the centre's weight belongs to the left neighbour
        left, left2 = F.pad(features, (2, 0, 0, 0))[..., 1:-1], F.pad(features, (2, 0, 0, 0))[..., :-2]
        expected = left2 - left if kind == "rd" else left2 - 2 * left + features
        torch.testing.assert_close(difference_conv2d(features, weight, None, kind, 0), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_kernels_keep_dtype_and_leading_axes(dtype):
    for kind in KINDS:
        kernel = fold(torch.randn(5, 2, 2, 3, 3).to(dtype), kind)
        assert kernel.shape == (5, 2, 2, SUPPORT[kind], SUPPORT[kind])
        assert kernel.dtype == dtype


def test_errors_name_the_choices():
    with pytest.raises(ValueError, match="choose among cv, cd, ad, rd, scd"):
        folding_matrix("ld")
    with pytest.raises(ValueError, match="self_index is 0"):
        folding_matrix("rd", 1)
    with pytest.raises(ValueError, match="3 x 3"):
        fold(torch.zeros(1, 1, 5, 5), "cv")
