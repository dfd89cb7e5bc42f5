"""Recurrent cells against their equations written out, and what the domain's border does to a convolution."""

import pytest
import torch
from torch.nn import functional as F

from projects.s3rp.layers import ConvGRU, ConvLSTM, build_cell, conv, zeroed

MODES = {"periodic": "circular", "open": "replicate"}


def convolved(maps, layer, boundary):
    """A 3 x 3 convolution of a domain that is continued by hand."""
    return F.conv2d(F.pad(maps, [1] * 4, mode=MODES[boundary]), layer.weight, layer.bias)


@pytest.mark.parametrize("boundary", ["periodic", "open"])
def test_a_gru_is_its_equations(boundary):
    cell = ConvGRU(3, 5, boundary).double()
    inputs, state = torch.randn(2, 3, 6, 4).double(), torch.randn(2, 5, 6, 4).double()
    both = convolved(torch.cat([inputs, state], 1), cell.gates, boundary)
    update, reset = 1 / (1 + torch.exp(-both[:, :5])), 1 / (1 + torch.exp(-both[:, 5:]))
    candidate = torch.tanh(convolved(torch.cat([inputs, reset * state], 1), cell.candidate, boundary))
    expected = (1 - update) * state + update * candidate
    torch.testing.assert_close(cell(inputs, state), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(cell.hidden(cell(inputs, state)), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("boundary", ["periodic", "open"])
def test_an_lstm_is_its_equations(boundary):
    cell = ConvLSTM(3, 5, boundary).double()
    inputs, state = torch.randn(2, 3, 6, 4).double(), torch.randn(2, 10, 6, 4).double()
    enter, forget, show, new = convolved(torch.cat([inputs, state[:, :5]], 1), cell.gates, boundary).split(5, 1)
    memory = torch.sigmoid(forget + 1) * state[:, 5:] + torch.sigmoid(enter) * torch.tanh(new)
    found = cell(inputs, state)
    torch.testing.assert_close(found, torch.cat([torch.sigmoid(show) * torch.tanh(memory), memory], 1), rtol=1e-12, atol=1e-12)
    assert torch.equal(cell.hidden(found), found[:, :5])


@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_a_cell_starts_from_zero_and_forgets_nothing_of_its_shape(kind):
    cell = build_cell(kind, 2, 3, "periodic")
    state = cell.start(torch.ones(4, 9, 5, 7))
    assert not state.any()
    after = cell(torch.randn(4, 2, 5, 7), state)
    assert after.shape == state.shape
    assert cell.hidden(after).shape == (4, 3, 5, 7)


@pytest.mark.parametrize("kernel", [3, 5, 9])
def test_a_periodic_convolution_moves_with_its_input_and_an_open_one_does_not(kernel):
    maps = torch.randn(1, 2, 12, 12)
    for boundary, moves in (("periodic", True), ("open", False)):
        layer = conv(2, 3, boundary, kernel)
        moved = layer(maps.roll((3, -2), (-2, -1)))
        assert torch.allclose(moved, layer(maps).roll((3, -2), (-2, -1)), atol=1e-6) is moves


def test_a_zeroed_layer_says_nothing_and_learns():
    layer = zeroed(conv(2, 1, "periodic"))
    made = layer(torch.randn(1, 2, 4, 4))
    assert not made.any()
    (made - 1).square().sum().backward()
    assert layer.weight.grad.abs().sum() > 0
