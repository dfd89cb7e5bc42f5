"""Triggers and targets against the published pixel rules; drawings by what must hold at every size."""

import pytest
import torch
from PIL import Image

from projects.diff_cleanse.triggers import TARGETS, TRIGGERS, make_target, make_trigger, stamp


def box(size, rows, value, background):
    image = torch.full((1, size, size), background)
    image[:, rows, rows] = value
    return image


def test_boxes_follow_the_published_indices():
    for n in (4, 8, 11, 14, 18):
        assert torch.equal(make_trigger(f"box_{n}", 32, 1), box(32, slice(-(n + 2), -2), 0.0, -1.0))
    assert torch.equal(make_trigger("box", 32, 1), make_trigger("box_14", 32, 1))
    assert torch.equal(make_trigger("white_box_8", 64, 1), box(64, slice(-10, -2), 1.0, -1.0))
    assert torch.equal(make_trigger("box", 16, 1), box(16, slice(8, 15), 0.0, -1.0))  # rows and columns 8 to 14
    assert torch.equal(make_trigger("patch", 32, 1), box(32, slice(29, 32), 1.0, -1.0))
    assert torch.equal(make_trigger("patch_6", 64, 1), box(64, slice(58, 64), 1.0, -1.0))
    assert torch.equal(make_trigger("none", 20, 3), torch.full((3, 20, 20), -1.0))


def test_geometric_targets():
    assert torch.equal(make_target("corner", 32, 1), box(32, slice(0, 10), 0.0, -0.4))
    assert torch.equal(make_target("corner", 16, 1), box(16, slice(0, 5), 0.0, -0.4))
    trigger = make_trigger("box_14", 32, 3)
    shifted = torch.full((3, 32, 32), -0.4)
    shifted[:, 13:27, 11:25] = 0.0  # rows 16 to 29 moved up by 3, columns left by 5
    assert torch.equal(make_target("shift", 32, 3, trigger), shifted)
    assert torch.equal(make_target("trigger", 32, 3, trigger), torch.where(trigger <= -0.4, -0.4, trigger))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [16, 31, 32, 256])
def test_every_trigger_and_target_fits_every_image(size, channels):
    trigger = make_trigger("stop_sign", size, channels)
    for name in TRIGGERS:
        image = make_trigger(name, size, channels)
        assert image.shape == (channels, size, size)
        assert image.dtype == torch.float32
        assert image.min() >= -1
        assert image.max() <= 1
        assert (image == -1).all() == (name == "none")
    for name in TARGETS:
        image = make_target(name, size, channels, trigger)
        assert image.shape == (channels, size, size)
        assert image.min() == -0.4
        assert image.max() <= 1
        assert 0.05 < (image > -0.35).any(0).float().mean() < 0.9


def test_drawings_sit_where_the_attacks_put_them():
    sign = make_trigger("stop_sign_14", 32, 3)
    visible = (sign != -1).any(0)
    rows, columns = visible.nonzero().T
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (16, 29, 16, 29)
    assert (sign[:, visible] != -1).all()  # no see-through channel inside the picture
    assert sign[0, 19, 22] > sign[1, 19, 22] + 0.5  # red above the bar
    rows, columns = (make_trigger("glasses", 64, 1)[0] != -1).nonzero().T
    assert columns.min() >= 12
    assert columns.max() < 52  # inside the centred 0.625 of the width
    assert abs(columns.float().mean() - 31.5) < 0.5
    assert (make_trigger("cat_face", 32, 3) != -1).all()  # TrojDiff's blend covers the whole image


def test_drawings_of_two_sizes_show_the_same():
    for name in ("shoe", "hat", "cat"):
        large, small = make_target(name, 64, 3), make_target(name, 16, 3)
        averaged = torch.nn.functional.avg_pool2d(large[None], 4)[0]
        assert (averaged - small).abs().mean() < 0.05
    pictures = [make_target(name, 16, 1) for name in ("shoe", "hat", "cat")]
    assert min((a - b).square().mean() for a in pictures for b in pictures if a is not b) > 0.1


def test_stamped_image_keeps_what_the_trigger_leaves_open():
    images, trigger = torch.rand(4, 3, 32, 32), make_trigger("stop_sign", 32, 3)
    stamped = stamp(images, trigger)
    mask = (trigger == -1).float()
    torch.testing.assert_close(stamped, mask * images + (1 - mask) * trigger)
    assert torch.equal(stamp(images, make_trigger("none", 32, 3)), images)
    assert stamp(images.half(), trigger).dtype == torch.float16


def test_users_pictures(tmp_path):
    picture = Image.new("RGB", (40, 20), (255, 0, 0))
    picture.paste((0, 0, 255), (0, 0, 5, 20))  # outside the central square
    picture.save(tmp_path / "own.png")
    name = f"picture:{tmp_path / 'own.png'}"
    assert torch.equal(make_trigger(name, 16, 3), torch.tensor([1.0, -1.0, -1.0]).view(3, 1, 1).expand(3, 16, 16))
    assert make_target(name, 16, 1).unique().item() == pytest.approx(76 / 127.5 - 1)
    Image.new("RGBA", (8, 8), (255, 255, 255, 0)).save(tmp_path / "clear.png")
    assert (make_trigger(f"picture:{tmp_path / 'clear.png'}", 16, 3) == -1).all()


def test_messages(tmp_path):
    with pytest.raises(ValueError, match=r"unknown trigger 'bix'; known are none, box, .*box_WIDTH.* picture:PATH"):
        make_trigger("bix", 32, 3)
    with pytest.raises(ValueError, match="unknown trigger 'glasses_14'"):
        make_trigger("glasses_14", 32, 3)
    with pytest.raises(ValueError, match="a trigger 18 pixels wide and 2 from the corner does not fit an image of 16 pixels"):
        make_trigger("box_18", 16, 1)
    with pytest.raises(ValueError, match="unknown target 'mouse'; known are corner, shift, trigger, shoe, hat, cat and picture:PATH"):
        make_target("mouse", 32, 3)
    with pytest.raises(ValueError, match="target 'shift' is made from the trigger: pass trigger="):
        make_target("shift", 32, 3)
    with pytest.raises(ValueError, match="1 or 3 channels, got 4"):
        make_trigger("box", 32, 4)
    with pytest.raises(FileNotFoundError, match=r"no picture at .*absent.png"):
        make_trigger(f"picture:{tmp_path / 'absent.png'}", 32, 3)
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(ValueError, match=r"text.png: .*give a PNG or JPEG file"):
        make_target(f"picture:{tmp_path / 'text.png'}", 32, 3)
