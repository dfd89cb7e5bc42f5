import pytest
import torch
from torch import nn

from projects.tripinet.model import TriPINet
from projects.tripinet.tiles import _fade, predict_tiles, predict_whole, spans


def picture(height, width):
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def build(**options):
    torch.manual_seed(0)
    net = TriPINet(channels=8, width=8, **options)
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = None  # the statistics of the picture alone, so that deep stages have a signal
    net(picture(128, 128)[None])
    return net.eval()


@pytest.fixture(scope="module")
def local():
    """A network of convolutions only, which sees at most some 120 pixels far."""
    return build(streams=("rgb", "srm"), fusion="concat", decoder="concat")


@pytest.mark.parametrize("length", [32, 100, 128, 129, 191, 192, 193, 224, 500])
@pytest.mark.parametrize(("size", "overlap"), [(128, 64), (128, 32), (64, 32)])
def test_the_weights_of_the_tiles_sum_to_one(length, size, overlap):
    places = spans(length, size, overlap)
    assert (places[0][0], places[-1][1]) == (0, length)
    assert all(start % 32 == 0 and stop - start >= min(32, length) for start, stop in places)
    total = torch.zeros(length)
    for start, stop in places:
        total[start:stop] += _fade(start, stop - start, length, overlap)
    torch.testing.assert_close(total, torch.ones(length))


def test_a_picture_of_one_tile_is_the_whole():
    net = build()
    for size in ((128, 128), (100, 77)):
        torch.testing.assert_close(predict_tiles(net, picture(*size), 128, 32), predict_whole(net, picture(*size)))


def test_tiles_are_the_whole_picture_away_from_their_borders(local):
    height, width, size, overlap = 544, 610, 384, 192
    image = picture(height, width)
    whole, tiled = predict_whole(local, image), predict_tiles(local, image, size, overlap)
    assert whole.shape == tiled.shape == (height, width)
    assert whole.std() > 0.05

    def of_one_tile(length):
        alone = torch.ones(length, dtype=torch.bool)
        for start, _ in spans(length, size, overlap)[1:]:
            alone[start + 48 : start + 144] = False  # where two tiles are blended; beyond it the tile's border is 144 pixels away
        return alone

    alone = of_one_tile(height)[:, None] & of_one_tile(width)
    assert alone.float().mean() > 0.5
    assert (whole - tiled)[alone].abs().max() < 1e-3
    assert (whole.sigmoid() - tiled.sigmoid()).abs().mean() < 1e-2


def test_the_batch_changes_nothing_and_bounds_what_is_computed_at_once(local):
    shapes = []
    handle = local.register_forward_pre_hook(lambda module, inputs: shapes.append(tuple(inputs[0].shape)))
    few, many = (predict_tiles(local, picture(300, 400), 128, 64, batch) for batch in (1, 6))
    handle.remove()
    torch.testing.assert_close(few, many, rtol=1e-4, atol=1e-5)
    assert max(shape[0] for shape in shapes) == 6
    assert max(max(shape[2:]) for shape in shapes) == 128


def test_wrong_sizes_are_named(local):
    for size, overlap in ((100, 32), (128, 0), (128, 96), (128, 40)):
        with pytest.raises(ValueError, match=f"multiples of 32 and overlap by at most half of that, not {size} and {overlap}"):
            predict_tiles(local, picture(64, 64), size, overlap)
    for wrong in (picture(64, 64)[None], picture(64, 64)[:1], picture(64, 31)):
        with pytest.raises(ValueError, match=r"one picture has the shape \(3, H, W\) with sides of 32 pixels at least"):
            predict_tiles(local, wrong, 64, 32)
    with pytest.raises(ValueError, match="at least one tile"):
        predict_tiles(local, picture(64, 64), 64, 32, batch=0)
