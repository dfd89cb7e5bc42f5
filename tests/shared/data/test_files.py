"""Image files of every kind, good and bad."""

import contextlib
import logging
import struct
import zlib

import numpy as np
import pytest
import torch
from helpers.layouts import picture, save_picture, write_image_folder
from PIL import Image

from shared.data.files import BadFileError, check_images, image_size, list_images, read_image, read_levels


def test_png_is_read_exactly(tmp_path):
    path = save_picture(tmp_path / "a.png", 20, 16)
    image = read_image(path)
    assert image.shape == (3, 20, 16)
    assert image.dtype == torch.float32
    torch.testing.assert_close(image, torch.from_numpy(picture(20, 16)).permute(2, 0, 1) / 255)


@pytest.mark.parametrize("ending", [".bmp", ".gif", ".jpeg", ".JPG", ".pgm", ".png", ".ppm", ".tif", ".webp"])
def test_every_format_shows_the_same_picture(tmp_path, ending):
    path = tmp_path / f"a{ending}"
    Image.fromarray(picture(40, 30)).convert("L").save(path)
    expected = np.asarray(Image.fromarray(picture(40, 30)).convert("L")) / 255
    assert np.abs(read_image(path, "L")[0].numpy() - expected).mean() < 0.02  # JPEG, WebP and GIF lose a little
    assert read_image(path).shape == (3, 40, 30)


def test_grey_of_16_bits_keeps_its_depth(tmp_path):
    values = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    Image.fromarray(values).save(tmp_path / "depth.png")
    torch.testing.assert_close(read_image(tmp_path / "depth.png", "L")[0], torch.from_numpy(values.astype(np.float32) / 65535))
    assert read_image(tmp_path / "depth.png").shape == (3, 8, 8)


@pytest.mark.parametrize("largest", [65535, 4095])
def test_pgm_of_more_than_8_bits_keeps_its_depth(tmp_path, largest):
    values = np.linspace(0, largest, 64).astype(">u2")
    (tmp_path / "depth.pgm").write_bytes(f"P5 8 8 {largest}\n".encode() + values.tobytes())
    expected = torch.from_numpy(values.astype(np.float32) / largest).reshape(8, 8)
    torch.testing.assert_close(read_image(tmp_path / "depth.pgm", "L")[0], expected, rtol=0, atol=1 / 65535)
    assert check_images([tmp_path / "depth.pgm"])


def test_transparent_pixels_lie_over_the_ground_that_is_asked_for(tmp_path):
    Image.fromarray(np.array([[[200, 0], [200, 255]]], np.uint8)).save(tmp_path / "a.png")
    assert (read_image(tmp_path / "a.png", "L") * 255).round().tolist() == [[[255, 200]]]
    assert (read_image(tmp_path / "a.png", "L", ground="black") * 255).round().tolist() == [[[0, 200]]]
    assert read_image(tmp_path / "a.png", "1").tolist() == [[[0, 1]]]


def test_colour_of_16_bits_is_read(tmp_path):
    rows = b"".join(b"\0" + struct.pack(">6H", 0, 32768, 65535, 65535, 0, 256) for _ in range(2))
    (tmp_path / "deep.png").write_bytes(_png(width=2, height=2, depth=16, colour=2, data=zlib.compress(rows)))
    expected = torch.tensor([[0, 1], [0.5, 0], [1, 0]])[:, None].expand(3, 2, 2)
    torch.testing.assert_close(read_image(tmp_path / "deep.png"), expected, atol=1 / 128, rtol=0)


def test_palette_is_resolved(tmp_path):
    source = Image.new("P", (4, 3), 1)
    source.putpalette([255, 0, 0, 0, 255, 0])
    source.save(tmp_path / "p.png")
    assert read_image(tmp_path / "p.png")[:, 0, 0].tolist() == [0, 1, 0]


def test_transparent_pixels_lie_over_white_and_outside_a_mask(tmp_path):
    pixels = np.zeros((1, 3, 4), np.uint8)
    pixels[0, :, :] = [[255, 0, 0, 255], [255, 0, 0, 0], [0, 0, 0, 128]]
    Image.fromarray(pixels, "RGBA").save(tmp_path / "a.png")
    torch.testing.assert_close(read_image(tmp_path / "a.png")[:, 0].T, torch.tensor([[1.0, 0, 0], [1, 1, 1], [127 / 255] * 3]))
    Image.fromarray(np.array([[[255, 255], [255, 0]]], np.uint8), "LA").save(tmp_path / "mask.png")
    assert read_image(tmp_path / "mask.png", "1")[0].tolist() == [[1, 0]]


def test_cmyk_is_converted(tmp_path):
    Image.new("CMYK", (8, 8), (255, 0, 0, 0)).save(tmp_path / "c.jpg", quality=100)
    torch.testing.assert_close(read_image(tmp_path / "c.jpg")[:, 4, 4], torch.tensor([0.0, 1, 1]), atol=0.02, rtol=0)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone(tmp_path, orientation):
    upright = Image.fromarray(picture(20, 16))
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # what a camera did to the picture that it marked so, in Pillow's numbers
    stored = upright if orientation == 1 else upright.transpose(Image.Transpose(undo[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "a.png", exif=exif)
    torch.testing.assert_close(read_image(tmp_path / "a.png"), torch.from_numpy(picture(20, 16)).permute(2, 0, 1) / 255)
    assert image_size(tmp_path / "a.png") == (20, 16)


def _stored(mode):
    """A picture of 20 x 16 in a mode of Pillow."""
    colours, random = picture(20, 16), np.random.default_rng(0)
    if mode == "I;16":
        return Image.fromarray(random.integers(0, 65536, (20, 16), np.uint16))
    if mode in ("RGBA", "LA"):
        depth = random.integers(0, 256, (20, 16, 1), np.uint8)
        return Image.fromarray(np.concatenate([colours[..., : len(mode) - 1], depth], -1), mode)
    return Image.fromarray(colours).convert(mode)


@pytest.mark.parametrize(
    ("mode", "ending"),
    [
        ("RGB", ".png"), ("L", ".png"), ("1", ".png"), ("P", ".png"), ("RGBA", ".png"), ("LA", ".png"), ("I;16", ".png"), ("I;16", ".tif"),
        ("RGB", ".jpg"), ("L", ".jpg"), ("CMYK", ".jpg"), ("CMYK", ".tif"), ("RGBA", ".webp"), ("P", ".gif"), ("RGB", ".bmp"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("orientation", [1, 6])
def test_levels_are_those_of_the_image(tmp_path, mode, ending, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    _stored(mode).save(tmp_path / f"a{ending}", exif=exif)
    levels, image = read_levels(tmp_path / f"a{ending}"), read_image(tmp_path / f"a{ending}")
    assert levels.dtype == torch.uint8
    assert levels.is_contiguous()
    assert torch.equal(levels, (image * 255).round().byte())


def test_transparent_colours_of_a_palette_lie_over_white_in_levels_too(tmp_path):
    source = Image.new("P", (4, 3), 1)
    source.putpalette([255, 0, 0, 0, 255, 0])
    source.save(tmp_path / "p.png", transparency=1)
    assert (read_levels(tmp_path / "p.png") == 255).all()


def test_levels_refuse_what_images_refuse(tmp_path):
    Image.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / "f.tif")
    (tmp_path / "text.png").write_text("not an image")
    with pytest.raises(BadFileError, match="32-bit pixels"):
        read_levels(tmp_path / "f.tif")
    with pytest.raises(BadFileError, match=r"text\.png"):
        read_levels(tmp_path / "text.png")
    with pytest.raises(BadFileError, match="limit of 100"):
        read_levels(save_picture(tmp_path / "a.png", 20, 16), max_pixels=100)
    with pytest.raises(FileNotFoundError, match=r"none\.png"):
        read_levels(tmp_path / "none.png")


def test_masks_hold_zeros_and_ones_without_dithering(tmp_path):
    Image.fromarray(np.array([[0, 100, 127, 128, 255]], np.uint8)).save(tmp_path / "grey.png")
    assert read_image(tmp_path / "grey.png", "1")[0].tolist() == [[0, 0, 0, 1, 1]]
    Image.fromarray(np.array([[0, 1, 0, 1]], np.uint8)).save(tmp_path / "labels.png")
    assert read_image(tmp_path / "labels.png", "1")[0].tolist() == [[0, 1, 0, 1]]
    Image.fromarray(np.array([[True, False]])).save(tmp_path / "bits.png")
    assert read_image(tmp_path / "bits.png", "1")[0].tolist() == [[1, 0]]


def test_truncated_and_foreign_files_are_named(tmp_path):
    good = save_picture(tmp_path / "good.png", 40, 30).read_bytes()
    (tmp_path / "half.png").write_bytes(good[: len(good) // 2])
    (tmp_path / "text.png").write_text("not an image")
    (tmp_path / "empty.jpg").touch()
    for name in ("half.png", "text.png", "empty.jpg"):
        with pytest.raises(BadFileError, match=rf"cannot read .*{name}: .*replace or remove the file"):
            read_image(tmp_path / name)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # Pillow says what is odd in a damaged TIFF
def test_damaged_files_never_raise_anything_else(tmp_path):
    random = np.random.default_rng(0)
    for ending in (".png", ".jpg", ".gif", ".bmp", ".tif", ".webp"):
        good = save_picture(tmp_path / f"good{ending}", 12, 9).read_bytes()
        for number in range(40):
            broken = bytearray(good)
            for place in random.integers(0, len(good), 4):
                broken[place] = random.integers(256)
            path = tmp_path / f"{number}{ending}"
            path.write_bytes(broken)
            with contextlib.suppress(BadFileError):
                image = read_image(path)
                assert 0 <= image.min() <= image.max() <= 1


def test_large_images_are_refused_before_decoding(tmp_path):
    (tmp_path / "bomb.png").write_bytes(_png(width=60_000, height=60_000, depth=8, colour=2, data=b"never decoded"))
    (tmp_path / "big.png").write_bytes(_png(width=9_000, height=9_000, depth=8, colour=2, data=b"never decoded"))
    with pytest.raises(BadFileError, match=r"bomb\.png"):
        read_image(tmp_path / "bomb.png")
    with pytest.raises(
        BadFileError, match=r"big\.png: its 9000 x 9000 pixels are more than the limit of 64000000; make it smaller, or raise max_pixels"
    ):
        read_image(tmp_path / "big.png")
    with pytest.raises(BadFileError, match="limit of 100"):
        read_image(save_picture(tmp_path / "a.png", 20, 16), max_pixels=100)


def test_32_bit_pixels_are_refused(tmp_path):
    Image.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / "f.tif")
    with pytest.raises(BadFileError, match="32-bit pixels"):
        read_image(tmp_path / "f.tif")
    with pytest.raises(BadFileError, match="32-bit pixels"):
        check_images([tmp_path / "f.tif"])


def test_a_missing_image_is_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.png"):
        read_image(tmp_path / "none.png")


def test_images_are_found_in_order(tmp_path):
    write_image_folder(tmp_path / "root")
    for name in (".hidden.png", ".cache/a.png", "notes.txt"):
        (tmp_path / "root" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "root" / name).touch()
    (tmp_path / "root" / "again").symlink_to(tmp_path / "root", target_is_directory=True)  # a circle
    save_picture(tmp_path / "elsewhere" / "z.png", 4, 4)
    (tmp_path / "root" / "link").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    found = [path.relative_to(tmp_path / "root").as_posix() for path in list_images(tmp_path / "root")]
    assert found == [
        "0000.png",
        "0003.png",
        "link/z.png",
        "part/0001.JPG",
        "part/0004.JPG",
        "part/deep/0002.bmp",
        "part/deep/0005.bmp",
    ]


def test_missing_and_empty_folders_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"faces does not exist: expected faces/<name>\.jpg; correct the path"):
        list_images(tmp_path / "faces", "faces/<name>.jpg")
    with pytest.raises(FileNotFoundError, match=rf"no images in {tmp_path}: expected .*\.png"):
        list_images(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(FileNotFoundError, match="file is not a folder"):
        list_images(tmp_path / "file")


def test_bad_images_are_listed_or_left_out(tmp_path, caplog):
    good = [save_picture(tmp_path / f"good{number}.jpg", 20, 16) for number in range(3)]
    bad = [tmp_path / f"bad{number:02d}.jpg" for number in range(12)]
    for path in bad:
        path.write_bytes(good[0].read_bytes()[:300])
    paths = [good[0], *bad, *good[1:]]
    with pytest.raises(BadFileError, match=r"(?s)12 of 15 images cannot be read:.*bad00.*bad09.*and 2 more.*on_bad_file: skip") as caught:
        check_images(paths)
    assert "bad10" not in str(caught.value)
    with caplog.at_level(logging.WARNING):
        assert check_images(paths, "skip") == good
    assert [record.getMessage()[:45] for record in caplog.records] == ["12 of 15 images cannot be read and are left o"]
    with pytest.raises(BadFileError, match="12 of 12"):
        check_images(bad, "skip")
    with pytest.raises(ValueError, match="'refuse' or 'skip', got 'drop'"):
        check_images(paths, "drop")


@pytest.mark.parametrize("ending", [".jpg", ".png", ".gif", ".bmp", ".tif", ".webp"])
def test_the_check_finds_what_reading_would_refuse(tmp_path, ending):
    good = save_picture(tmp_path / f"good{ending}", 64, 48)
    half = tmp_path / f"half{ending}"
    half.write_bytes(good.read_bytes()[: good.stat().st_size // 2])
    with pytest.raises(BadFileError):
        read_image(half)
    assert check_images([good, half], "skip") == [good]


def _png(width, height, depth, colour, data):
    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
