"""The light network: shapes, its loss against other computations, its seed, and how it is stored."""

import pytest
import torch
import torch.nn.functional as F

from projects.comad.light import LightSegmenter, balancing, soft_cross_entropy
from projects.comad.store import load_state, save_state


def pictures(height, width, count=2):
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8)


@pytest.mark.parametrize(("height", "width"), [(128, 128), (50, 83), (32, 33)])
def test_each_pixel_has_probabilities_at_any_size(height, width):
    found = LightSegmenter(5).eval()(pictures(height, width))
    assert found.shape == (2, 5, height, width)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.sum(1), torch.ones(2, height, width))


def test_levels_are_those_of_the_probabilities():
    light, images = LightSegmenter(4).eval(), pictures(64, 48)
    levels = light.levels(images)
    assert levels.dtype == torch.uint8
    assert not levels.requires_grad
    torch.testing.assert_close(levels.float() / 128, light(images).detach(), rtol=0, atol=0.5 / 128 + 1e-6)


def test_a_picture_is_seen_as_it_is_in_any_batch():
    light, images = LightSegmenter(4).eval(), pictures(64, 64, 3)
    torch.testing.assert_close(light(images)[1:2], light(images[1:2]))


def test_it_is_small():
    assert 1e5 < sum(weights.numel() for weights in LightSegmenter(8).parameters()) < 5e5


def test_the_seed_decides_the_weights_and_nothing_else_is_drawn():
    state = torch.get_rng_state()
    one, same, other = LightSegmenter(3, seed=1), LightSegmenter(3, seed=1), LightSegmenter(3, seed=2)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    assert not torch.equal(one.head.weight, other.head.weight)


def test_the_loss_is_the_cross_entropy_with_soft_targets():
    logits = torch.randn(2, 3, 8, 9, dtype=torch.float64)
    first = torch.randint(0, 129, (2, 8, 9))
    second = ((128 - first) * torch.rand(2, 8, 9)).long()
    levels = torch.stack([first, second, 128 - first - second], 1).byte()
    expected = F.cross_entropy(logits, levels.double() / 128)
    torch.testing.assert_close(soft_cross_entropy(logits, levels), expected, rtol=1e-9, atol=0)
    labels = torch.randint(0, 3, (2, 8, 9))
    certain = 128 * F.one_hot(labels, 3).movedim(-1, 1).byte()
    torch.testing.assert_close(soft_cross_entropy(logits, certain), F.cross_entropy(logits, labels), rtol=1e-9, atol=0)


def test_weights_of_clusters_count_as_those_of_targets():
    logits, levels = torch.randn(2, 3, 8, 9, dtype=torch.float64), torch.randint(0, 43, (2, 3, 8, 9)).byte()
    weights = torch.tensor([0.5, 1.0, 4.0], dtype=torch.float64)
    expected = F.cross_entropy(logits, weights[:, None, None] * levels.double() / 128)
    torch.testing.assert_close(soft_cross_entropy(logits, levels, weights), expected, rtol=1e-9, atol=0)


def test_small_clusters_weigh_more_and_pixels_one_on_average():
    shares = torch.tensor([0.64, 0.0, 0.32, 0.04], dtype=torch.float64)
    weights = balancing(shares)
    assert float((weights * shares).sum()) == pytest.approx(1)
    assert float(weights[3] / weights[0]) == pytest.approx(4)
    assert weights[1] == 0
    torch.testing.assert_close(balancing(100 * shares), weights)


def test_what_is_restored_from_a_file_gives_the_same(tmp_path):
    light, images = LightSegmenter(3, seed=4), pictures(64, 64)
    light(images)  # norms in training keep statistics
    save_state({"light": light.state()}, tmp_path / "light.safetensors")
    again = LightSegmenter.from_state(load_state(tmp_path / "light.safetensors")["light"])
    assert not again.training
    assert torch.equal(again.levels(images), light.eval().levels(images))


def test_weights_of_another_network_are_refused():
    state = LightSegmenter(3).state() | {"weights": dict(LightSegmenter(4).state_dict())}
    with pytest.raises(ValueError, match="do not fit it: distil the inspector anew"):
        LightSegmenter.from_state(state)
