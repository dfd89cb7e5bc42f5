import pytest
import torch
from torch import nn

from projects.comad.segmentation import colour_coded, hard_maps, palette, segment, similarity_maps, soft_maps


def random_maps(seed=0):
    chance = torch.Generator().manual_seed(seed)
    return torch.randn(2, 7, 6, 5, generator=chance), torch.randn(4, 7, generator=chance)


class Colours(nn.Module):
    """Colours about their middle, at every second pixel."""

    def forward(self, images):
        return images[:, :, ::2, ::2].float() / 127.5 - 1


CORNERS = torch.tensor([[1.0, -1, -1], [-1, 1, -1], [-1, -1, 1]])


@pytest.fixture
def stripes():
    """A picture of a red, a green and a blue stripe, each 10 pixels wide."""
    images = torch.zeros(1, 3, 20, 30, dtype=torch.uint8)
    for channel in range(3):
        images[:, channel, :, 10 * channel : 10 * channel + 10] = 255
    return images


def test_similarities_are_cosines_less_their_mean_and_not_negative():
    features, centres = random_maps()
    maps = similarity_maps(features, centres)
    for picture in range(2):
        for k in range(4):
            cosines = torch.stack(
                [nn.functional.cosine_similarity(features[picture, :, i, j], centres[k], dim=0) for i in range(6) for j in range(5)]
            ).view(6, 5)
            torch.testing.assert_close(maps[picture, k], (cosines - cosines.mean()).clamp(min=0))


def bilinear(layer, size):
    """Bilinear enlargement of which corners fall on corners, pixel by pixel."""
    (h, w), (height, width) = layer.shape, size
    enlarged = torch.zeros(size)
    for i in range(height):
        for j in range(width):
            y, x = i * (h - 1) / (height - 1), j * (w - 1) / (width - 1)
            top, left = min(int(y), h - 2), min(int(x), w - 2)
            dy, dx = y - top, x - left
            upper = (1 - dx) * layer[top, left] + dx * layer[top, left + 1]
            lower = (1 - dx) * layer[top + 1, left] + dx * layer[top + 1, left + 1]
            enlarged[i, j] = (1 - dy) * upper + dy * lower
    return enlarged


def test_soft_maps_are_the_softmax_of_the_enlarged_similarities():
    features, centres = random_maps(1)
    maps = soft_maps(features, centres, (13, 11))
    enlarged = torch.stack([bilinear(layer, (13, 11)) for layer in similarity_maps(features, centres)[0]])
    torch.testing.assert_close(maps[0], enlarged.exp() / enlarged.exp().sum(0))
    torch.testing.assert_close(maps.sum(1), torch.ones(2, 13, 11))
    assert soft_maps(features, centres, 12).shape == (2, 4, 12, 12)


def test_pictures_of_a_batch_do_not_influence_each_other():
    features, centres = random_maps(2)
    torch.testing.assert_close(soft_maps(features, centres, 10)[1:], soft_maps(features[1:], centres, 10))


def test_features_of_another_kind_are_refused():
    with pytest.raises(ValueError, match="7 channels and the vocabulary 5"):
        similarity_maps(torch.rand(1, 7, 3, 3), torch.rand(4, 5))


def test_without_a_crf_each_pixel_belongs_to_one_component(stripes):
    heat = segment(Colours()(stripes), stripes, CORNERS, None)
    assert heat.shape == (1, 3, 20, 30)
    assert heat.dtype == torch.float32
    assert torch.equal(heat.sum(1), torch.ones(1, 20, 30))
    assert heat.unique().tolist() == [0, 1]
    stripe = torch.arange(30) // 10
    inside = torch.ones(30, dtype=torch.bool)
    inside[[9, 10, 19, 20]] = False  # the grid is coarser than the pixels
    assert (hard_maps(heat)[0][:, inside] == stripe[inside]).all()


def test_a_place_below_all_means_still_belongs_to_the_most_similar_component():
    features = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.2, 1.0]]).T.reshape(1, 2, 1, 3)
    centres = torch.tensor([[1.0, 0.0], [0.95, -0.3]])
    assert (similarity_maps(features, centres)[..., 2] == 0).all()
    heat = segment(features, torch.zeros(1, 3, 1, 3, dtype=torch.uint8), centres, None)
    assert heat[0, :, 0, 2].tolist() == [1, 0]


def test_a_crf_is_given_the_soft_maps_and_the_pictures(stripes):
    given = []

    def crf(probabilities, images):
        given.extend([probabilities, images])
        return probabilities.flip(1)

    heat = segment(Colours()(stripes), stripes, CORNERS, crf)
    torch.testing.assert_close(given[0], soft_maps(Colours()(stripes), CORNERS, (20, 30)))
    assert given[1] is stripes
    torch.testing.assert_close(heat, given[0].flip(1))


@pytest.mark.parametrize("k", [2, 5, 8, 12])
def test_colours_of_the_palette_differ(k):
    colours = palette(k).float()
    assert colours.shape == (k, 3)
    assert torch.cdist(colours, colours).add(torch.eye(k) * 1e3).min() > 60


def test_components_are_painted_in_the_colours_of_the_palette():
    labels = torch.tensor([[[0, 1], [2, 1]]])
    assert torch.equal(colour_coded(labels, 3)[0, :, 1, 0], palette(3)[2])
    images = torch.full((1, 3, 2, 2), 100, dtype=torch.uint8)
    mixed = colour_coded(labels, 3, images, strength=0.5)
    assert mixed.dtype == torch.uint8
    torch.testing.assert_close(mixed[0, :, 0, 1].float(), palette(3)[1] / 2 + 50, atol=0.5, rtol=0)
    assert torch.equal(colour_coded(labels, 3, images, strength=0), images)


def test_euclidean_maps_are_the_posteriors_of_gaussians_around_the_centres():
    features, centres = random_maps(1)
    features = features[:1]
    tokens = features[0].flatten(1).T
    densities = torch.stack([torch.exp(-0.5 * ((tokens - centre) ** 2).sum(1)) for centre in centres])
    maps = soft_maps(features, centres, tuple(features.shape[2:]), "euclidean")
    torch.testing.assert_close(maps[0].flatten(1), densities / densities.sum(0))
    labels = segment(features, torch.zeros(1, 3, *features.shape[2:], dtype=torch.uint8), centres, None, "euclidean").argmax(1)
    assert torch.equal(labels.flatten(), torch.cdist(tokens, centres).argmin(1))
