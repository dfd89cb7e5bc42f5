"""That heat maps, outlines, overlays and sheets show what they are made of."""

import matplotlib
import numpy as np
import pytest
import scipy.ndimage
import torch
from PIL import Image

from shared.data.files import read_levels
from shared.data.offline import photograph_file
from shared.pictures import SIDE, THUMBNAIL, beside, curves, heat, levels, outline, overlay, overview, sheet, shortened, shrunk

YELLOW = torch.tensor([1.0, 0.9, 0.2])


def blob(height, width, number=0):
    smooth = scipy.ndimage.gaussian_filter(np.random.default_rng(number).normal(size=(height, width)), 4)
    return torch.from_numpy(smooth > 0.02)[None]


def example():
    return read_levels(photograph_file("chelsea.png"))[:, 100:196, 120:216]


def test_heat_is_inferno_on_the_scale_from_0_to_1():
    probability = torch.rand(2, 5, 7)
    peer = matplotlib.colormaps["inferno"](np.round(probability.numpy() * 255).astype(int))[..., :3]
    torch.testing.assert_close(heat(probability), torch.from_numpy(peer).float().movedim(-1, -3))
    assert heat(torch.full((4, 4), 0.2)).amax() < heat(torch.full((4, 4), 0.9)).amax(), "a constant map keeps its level"
    assert torch.equal(heat(torch.tensor([[-1.0, 2.0]])), heat(torch.tensor([[0.0, 1.0]])))


@pytest.mark.parametrize("width", [1, 2, 4])
def test_an_outline_is_the_inner_border_of_its_mask(width):
    mask = blob(50, 61)
    eroded = scipy.ndimage.binary_erosion(mask[0].numpy(), np.ones((3, 3)), iterations=width, border_value=1)
    assert mask.any()
    assert np.array_equal(outline(mask, width)[0].numpy(), mask[0].numpy() & ~eroded)


def test_an_outline_of_a_square_is_one_pixel_wide():
    mask = torch.zeros(1, 20, 20, dtype=torch.bool)
    mask[0, 5:15, 0:10] = True
    line = outline(mask)
    assert int(line.sum()) == 10 + 10 + 8, "three sides: the border of the picture is none"
    assert not line[0, 6:14, :9].any()
    assert not outline(torch.ones(1, 9, 9, dtype=torch.bool)).any()
    assert not outline(torch.zeros(1, 9, 9, dtype=torch.bool)).any()


def test_an_overlay_shows_the_picture_in_grey_where_nothing_is_found():
    image = example()
    shown = overlay(image, torch.zeros(1, 96, 96), 0.5)
    torch.testing.assert_close(shown, image.float().mean(0, keepdim=True).expand(3, -1, -1) / 255)


def test_an_overlay_reddens_with_the_probability_and_outlines_what_is_above_the_threshold():
    image, mask = example(), blob(96, 96)
    weak, strong = (overlay(image, level * mask.float(), 0.99) for level in (0.3, 0.9))
    red = lambda shown: (shown[0] - shown[1])[mask[0]].mean()  # noqa: E731
    assert red(weak) < red(strong)
    assert torch.equal(weak[:, ~mask[0]], strong[:, ~mask[0]])
    detail = [overlay(image, mask.float(), 1.0)[1][mask[0]].std(), image.float().mean(0)[mask[0]].std() / 255]
    assert detail[0] > 0.4 * detail[1], "what lies below stays visible"
    cut = overlay(image, mask.float(), 0.5)
    line = outline(mask)
    assert torch.equal(cut[:, line[0]], YELLOW[:, None].expand(-1, int(line.sum())))
    assert torch.equal(cut[:, ~line[0]], overlay(image, mask.float(), 1.0)[:, ~line[0]])


def test_outlines_of_large_pictures_are_wide_enough_to_be_seen():
    probability = torch.zeros(1, 1200, 1300)
    probability[0, 300:900, 300:900] = 1
    cut = overlay(torch.full((3, 1200, 1300), 128, dtype=torch.uint8), probability, 0.5)
    assert int((cut[:, 600] == YELLOW[:, None]).all(0).sum()) == 6, "three pixels on either side"


@pytest.mark.parametrize(("size", "times"), [(96, 2), (64, 2), (128, 1), (200, 1)])
def test_a_sheet_has_a_column_a_picture_and_a_row_a_layer(size, times):
    count, pad = 3, 3
    images = torch.randint(256, (count, 3, size, size + 8), dtype=torch.uint8)
    masks = torch.stack([blob(size, size + 8, number) for number in range(count)])
    heats = heat(torch.rand(count, size, size + 8))
    made = sheet([images, masks.float(), heats])
    height, width = size * times, (size + 8) * times
    assert height >= SIDE
    assert made.shape == (3, 3 * (height + pad) + pad, count * (width + pad) + pad)
    assert 0 <= float(made.min()) <= float(made.max()) <= 1
    for column in range(count):
        left = pad + column * (width + pad)
        tops = [pad + row * (height + pad) for row in range(3)]
        cells = [made[:, top : top + height : times, left : left + width : times] for top in tops]
        for cell, one in zip(cells, [images[column] / 255, masks[column].float().expand(3, -1, -1), heats[column]], strict=True):
            torch.testing.assert_close(cell, one)


def test_curves_have_a_panel_a_degradation_and_the_level_of_untouched_pictures(tmp_path):
    measured = {"jpeg, quality": [(100.0, 0.7), (90.0, 0.6), (80.0, 0.4)], "resize, factor": [(0.78, 0.5), (0.25, float("nan"))]}
    figure = curves(measured, 0.72, "pixel F1")
    assert [axis.get_xlabel() for axis in figure.axes] == list(measured)
    assert figure.axes[0].get_ylabel() == "pixel F1"
    for axis, pairs in zip(figure.axes, measured.values(), strict=True):
        dashed, line = axis.get_lines()
        assert set(dashed.get_ydata()) == {0.72}
        np.testing.assert_array_equal(line.get_ydata(), [value for _, value in pairs])
        assert axis.get_ylim() == (0, 1)
    figure.savefig(tmp_path / "curves.png")
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["100", "90", "80"], "as measured, not by size"
    assert Image.open(tmp_path / "curves.png").size[0] > 600


@pytest.mark.parametrize(("bits", "highest"), [(8, 255), (16, 65535)])
def test_levels_are_the_nearest_of_their_bits(bits, highest):
    probability = np.random.default_rng(0).random(1000).astype(np.float32)
    probability[:2] = 0, 1
    found = levels(probability, bits)
    assert found.dtype == f"uint{bits}"
    assert found[:2].tolist() == [0, highest]
    assert np.abs(found / float(highest) - probability).max() <= 0.51 / highest


def test_large_pictures_are_averaged_and_small_ones_stay():
    picture = torch.rand(3, 40, 80)
    assert shrunk(picture, 80) is picture
    torch.testing.assert_close(shrunk(torch.full((1, 300, 200), 0.25), 30), torch.full((1, 30, 20), 0.25))


def test_thumbnails_have_the_size_of_the_first_whatever_the_others_have():
    image, depth = example(), torch.zeros(1, 511, 510, dtype=torch.uint8)
    pixels = beside([image, depth, image])
    assert pixels.shape == (96, 3 * 96 + 2 * 2, 3)
    np.testing.assert_array_equal(pixels[:, -96:], image.permute(1, 2, 0).numpy())
    assert beside([torch.zeros(3, 1000, 333, dtype=torch.uint8), torch.zeros(1, 512, 170, dtype=torch.uint8)]).shape[0] == THUMBNAIL
    figure = overview([("a_$1", pixels)] * 5, 2, "5 of 9")
    assert [bool(axis.images) for axis in figure.axes] == [True] * 5 + [False]
    assert shortened("x" * 60) == "..." + "x" * 37
