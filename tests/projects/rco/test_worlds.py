"""Small worlds: parity by brute force, readable tiles, noisy digits."""

import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from projects.rco.worlds import COLUMNS, glyphs, noisy_digits, parity, parity_names, parity_tiles, secret_coordinates
from shared.data.offline import digits


@pytest.mark.parametrize("easy", [0, 2])
def test_the_class_is_the_product_of_the_hidden_coordinates_and_the_easy_signs(easy):
    world = parity("train", 500, seed=3, bits=12, secret=4, easy=easy)
    hidden = secret_coordinates(3, 12, 4, easy).tolist()
    assert len(set(hidden)) == 4 + easy
    for row, label in zip(world.inputs.tolist(), world.labels.tolist(), strict=True):
        bit = 0 if math.prod(row[place] for place in hidden[:4]) == 1 else 1
        assert label == bit + sum(2 ** (1 + j) for j in range(easy) if row[hidden[4 + j]] == 1)


def test_vectors_are_uniform_signs_and_classes_balanced():
    world = parity("train", 20000, easy=1)
    assert world.inputs.dtype == torch.float32
    assert set(world.inputs.unique().tolist()) == {-1.0, 1.0}
    error = 1 / math.sqrt(20000)
    assert world.inputs.mean(0).abs().max() < 5 * error
    shares = torch.bincount(world.labels) / 20000
    torch.testing.assert_close(shares, torch.full((4,), 0.25), atol=5 * error * math.sqrt(3 / 16), rtol=0)
    correlation = (world.inputs * (1 - 2 * (world.labels % 2))[:, None]).mean(0)
    assert correlation.abs().max() < 5 * error, "no coordinate tells the parity by itself"


def test_names_of_classes_tell_parity_and_signs():
    assert parity_names(0) == ["even", "odd"]
    assert parity_names(2) == ["even --", "odd --", "even +-", "odd +-", "even -+", "odd -+", "even ++", "odd ++"]


@pytest.mark.parametrize("world", [parity, parity_tiles], ids=["parity", "tiles"])
def test_splits_differ_in_samples_and_share_the_secret(world):
    sets = {split: world(split, 300, seed=1) for split in ("train", "val", "test")}
    rows = [{tuple(row) for row in one.inputs.flatten(1).tolist()} for one in sets.values()]
    assert all(len(one) == 300 for one in rows)
    assert not (rows[0] & rows[1])
    assert not (rows[0] & rows[2])
    assert not (rows[1] & rows[2])
    again, other = world("train", 300, seed=1), world("train", 300, seed=2)
    assert torch.equal(again.inputs, sets["train"].inputs)
    assert torch.equal(again.labels, sets["train"].labels)
    assert not torch.equal(other.inputs, again.inputs)
    assert not torch.equal(secret_coordinates(1, 40, 5), secret_coordinates(2, 40, 5))


@pytest.mark.parametrize(("side", "bits"), [(4, 40), (8, 16)])
def test_a_linear_readout_of_a_tile_gives_its_bit(side, bits):
    painted, vectors = parity_tiles("train", 400, bits=bits, side=side), parity("train", 400, bits=bits)
    rows = bits // COLUMNS
    assert painted.inputs.shape == (400, 1, rows * side, COLUMNS * side)
    assert painted.inputs.dtype == torch.uint8
    assert torch.equal(painted.labels, vectors.labels)
    images, tiles, signs = painted.inputs.numpy() / 255, [], []
    for bit in range(bits):
        row, column = divmod(bit, COLUMNS)
        tiles.append(images[:, 0, row * side : (row + 1) * side, column * side : (column + 1) * side].reshape(400, -1))
        signs.append(vectors.inputs[:, bit].numpy())
    pixels, signs = np.concatenate(tiles), np.concatenate(signs)
    half = len(pixels) // 2
    readout = LogisticRegression(C=100).fit(pixels[:half], signs[:half])
    assert readout.score(pixels[half:], signs[half:]) >= 0.999
    assert pixels[signs > 0].std(0).max() > 0.05, "tiles of one class are not all alike"


def test_painting_in_parts_bounds_memory_and_keeps_the_order():
    painted, vectors = parity_tiles("test", 2100, bits=8), parity("test", 2100, bits=8)
    ring, cross = glyphs(4)
    tiles = painted.inputs[-1, 0].float().div(255).unfold(1, 4, 4).permute(1, 0, 2)  # (8, 4, 4)
    seen = (tiles * (cross - ring)).sum((1, 2)) > 0
    assert torch.equal(seen, vectors.inputs[-1] > 0)


def test_digits_have_the_noise_that_was_asked_for():
    plain, noisy = digits("train", 8), noisy_digits("train", 8, noise=0.5, seed=4)
    difference = noisy.inputs - plain.images
    assert difference.mean().abs() < 0.01
    assert abs(float(difference.std()) - 0.5) < 0.01
    assert torch.equal(noisy.labels, plain.labels)
    assert torch.equal(noisy_digits("test", 16).inputs, digits("test", 16).images)
    assert not torch.equal(noisy_digits("train", 8, 0.5, seed=5).inputs, noisy.inputs)
