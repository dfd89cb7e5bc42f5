"""Sets in memory and in files, masks however they are written, originals on their own grid, splits, and near-duplicates."""

import io

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.segmentation import disc, save, textured, write_masked_folder
from PIL import Image
from scipy.fft import dctn

from projects.umed.sets import (
    FileSet,
    MaskCode,
    Original,
    PictureItem,
    SegmentationSet,
    choose_groups,
    identity,
    join_duplicates,
    mask_code,
    perceptual_hash,
    read_mask,
    split_groups,
)
from projects.umed.sets.layouts import folder
from projects.umed.worlds import ellipses
from shared.data.files import BadFileError, read_image

# ---- sets


def test_batches_are_whole_tensors():
    found = ellipses("train", 6)
    loader = torch.utils.data.DataLoader(found, batch_size=4, collate_fn=identity)
    first, second = loader
    assert first["image"].dtype == torch.uint8
    assert first["mask"].dtype == first["index"].dtype == torch.int64
    assert (first["image"].shape, first["mask"].shape) == ((4, 1, 32, 32), (4, 32, 32))
    assert torch.equal(torch.cat([first["mask"], second["mask"]]), found.masks)
    assert torch.cat([first["index"], second["index"]]).tolist() == list(range(6))
    assert torch.equal(found[-1]["image"], found.images[5])
    with pytest.raises(IndexError, match="index 6 of 6"):
        found[6]


def test_a_subset_keeps_names_and_groups():
    found = ellipses("train", 6, classes=2).subset([4, 1])
    assert found.names == ["train-00004.png", "train-00001.png"] == found.groups
    assert found.classes == 2
    assert torch.equal(found.images[1], ellipses("train", 6, classes=2).images[1])


def test_other_images_take_the_masks_of_a_set():
    found = ellipses("train", 3)
    other = found.with_images(255 - found.images)
    assert torch.equal(other.masks, found.masks)
    assert other.names == found.names
    assert other.fingerprint() != found.fingerprint() == ellipses("train", 3).fingerprint()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": torch.zeros(2, 2, 8, 8, dtype=torch.uint8)}, "1 or 3"),
        ({"images": torch.zeros(2, 1, 8, 8)}, "uint8"),
        ({"masks": torch.zeros(2, 8, 9, dtype=torch.uint8)}, "like their images"),
        ({"masks": torch.full((2, 8, 8), 3)}, "at most 2 classes"),
        ({"names": ["a.png"]}, "1 names with 2 images"),
        ({"groups": ["a"]}, "1 groups with 2 images"),
        ({"images": torch.zeros(0, 1, 8, 8, dtype=torch.uint8), "masks": torch.zeros(0, 8, 8, dtype=torch.uint8)}, "no images"),
    ],
)
def test_what_does_not_fit_is_named(change, message):
    options = {"images": torch.zeros(2, 1, 8, 8, dtype=torch.uint8), "masks": torch.zeros(2, 8, 8, dtype=torch.uint8), "classes": 2}
    with pytest.raises(ValueError, match=message):
        SegmentationSet(**(options | change))


def test_files_are_read_at_the_working_size(tmp_path):
    write_masked_folder(tmp_path, 4, channels=3, height=40, width=64)
    found = FileSet(tmp_path, folder(tmp_path, MaskCode())["all"], size=32, channels=3)
    assert found.image_shape == (3, 32, 32)
    assert found.names == ["000.png", "002.png", "a/001.png", "a/003.png"]
    image, mask = np.asarray(Image.open(tmp_path / "images" / "002.png")), np.asarray(Image.open(tmp_path / "masks" / "002.png")) > 0
    pixels = F.interpolate(torch.tensor(image).permute(2, 0, 1)[None].float(), size=(32, 32), mode="bilinear", antialias=True)[0]
    images, masks = found.read([1, 2])
    assert (images[0].float() - pixels).abs().max() <= 0.51
    rows, columns = (np.arange(32) + 0.5) * 40 / 32, (np.arange(32) + 0.5) * 64 / 32
    assert (masks[0].numpy() == mask[rows.astype(int)][:, columns.astype(int)]).all(), "the nearest pixel, so that no new values arise"
    original = found.original(1)
    assert np.array_equal(original.levels.permute(1, 2, 0).numpy(), image), "exactly what the file holds"
    assert np.array_equal(original.mask.numpy(), mask)
    assert torch.equal(found.load().images, found.read(range(4))[0])


def test_sizes_that_differ_need_a_size(tmp_path):
    write_masked_folder(tmp_path, 2)
    save(tmp_path / "images" / "z.png", textured(20, 30, 1))
    save(tmp_path / "masks" / "z.png", disc(20, 30))
    items = folder(tmp_path, MaskCode())["all"]
    with pytest.raises(ValueError, match=r"2 different sizes[\s\S]*30 x 20: z.png[\s\S]*data.size"):
        FileSet(tmp_path, items)
    assert FileSet(tmp_path, items[:2]).image_shape == (1, 32, 40)


def test_masks_of_another_size_are_named(tmp_path):
    write_masked_folder(tmp_path, 3)
    save(tmp_path / "masks" / "000.png", disc(16, 20))
    with pytest.raises(ValueError, match=r"1 of 3 images[\s\S]*000.png has 40 x 32 pixels, its mask 000.png 20 x 16[\s\S]*same size"):
        FileSet(tmp_path, folder(tmp_path, MaskCode())["all"], 32)


def test_unreadable_files_are_refused_or_skipped(tmp_path):
    write_masked_folder(tmp_path, 4)
    path = tmp_path / "images" / "002.png"
    path.write_bytes(path.read_bytes()[:150])
    items = folder(tmp_path, MaskCode())["all"]
    with pytest.raises(BadFileError, match=r"cannot be read[\s\S]*002.png"):
        FileSet(tmp_path, items, 32, on_bad_file="refuse")
    with pytest.raises(BadFileError, match=r"002\.png"):
        FileSet(tmp_path, items, 32).load()
    assert FileSet(tmp_path, items, 32, on_bad_file="skip").names == ["000.png", "a/001.png", "a/003.png"]


def test_images_without_foreground_are_left_out(tmp_path):
    write_masked_folder(tmp_path, 4)
    save(tmp_path / "masks" / "000.png", np.zeros((32, 40), bool))
    found = FileSet(tmp_path, folder(tmp_path, MaskCode())["all"], 32)
    assert found.without_empty().names == ["002.png", "a/001.png", "a/003.png"]
    with pytest.raises(ValueError, match="all 1 images"):
        found.subset([0]).without_empty()


def test_several_masks_are_joined(tmp_path):
    first, second = disc(20, 20, 0, 0.2), np.zeros((20, 20), bool)
    second[:4] = True
    paths = tuple(save(tmp_path / f"{number}.png", mask) for number, mask in enumerate((first, second)))
    image = save(tmp_path / "image.png", textured(20, 20, 1))
    item = PictureItem("image.png", image, paths, MaskCode(), "image")
    assert np.array_equal(item.load_mask().numpy(), first | second)
    assert not PictureItem("image.png", image, (), MaskCode(), "image").load().mask.any()


# ---- masks


def test_jpeg_masks_are_cut_at_127(tmp_path):
    grey = np.array([[0, 1, 126, 127, 128, 255]], np.uint8).repeat(4, 0)
    assert read_mask(save(tmp_path / "mask.png", grey), MaskCode("threshold"))[0].tolist() == [0, 0, 0, 0, 1, 1]
    faint = save(tmp_path / "faint.png", np.eye(4, dtype=np.uint8))
    assert not read_mask(faint, MaskCode("threshold")).any(), "noise of an empty JPEG mask is no foreground"
    assert torch.equal(read_mask(faint, MaskCode()), torch.eye(4).long()), "but a file of zeros and ones is a mask"


@pytest.mark.parametrize(
    ("mode", "ink", "named"), [("RGB", (255, 0, 0), "#ff0000"), ("RGB", (0, 0, 255), "#0000ff"), ("L", 100, "#646464"), ("L", 2, "#020202")]
)
def test_binary_masks_that_are_not_black_and_white_are_refused(tmp_path, mode, ink, named):
    picture = Image.new(mode, (8, 6))
    picture.save(tmp_path / "black.png")
    assert not read_mask(tmp_path / "black.png", MaskCode()).any()
    picture.paste(ink, (0, 0, 3, 2))
    picture.save(tmp_path / "mask.png")
    with pytest.raises(BadFileError, match=rf"mask.png holds {named} and nothing above half.*data\.mask_values"):
        read_mask(tmp_path / "mask.png", MaskCode())
    assert int(read_mask(tmp_path / "mask.png", mask_code(1, [named])).sum()) == 6
    picture.quantize(4).save(tmp_path / "palette.png")
    with pytest.raises(BadFileError, match=r"palette\.png holds #"):
        read_mask(tmp_path / "palette.png", MaskCode())
    write_masked_folder(tmp_path / "set", 3)
    image = textured(6, 8, 1)
    save(tmp_path / "set" / "images" / "z.png", image)
    picture.save(tmp_path / "set" / "masks" / "z.png")
    with pytest.raises(BadFileError, match=named):
        FileSet(tmp_path, folder(tmp_path / "set", MaskCode())["all"], 32).without_empty()


def test_faint_noise_of_an_empty_mask_is_black_and_transparency_is_background(tmp_path):
    noise = np.array([[0, 3, 8]], np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.jpg", quality=100)
    assert not read_mask(tmp_path / "noise.jpg", MaskCode()).any()
    with pytest.raises(BadFileError, match=r"label\.png holds #030303, #080808"):
        read_mask(save(tmp_path / "label.png", noise), MaskCode())
    with pytest.raises(BadFileError, match=r"deep\.png"):
        read_mask(save(tmp_path / "deep.png", np.array([[0, 300]], np.uint16)), MaskCode())
    clear = Image.new("RGBA", (4, 4), (255, 255, 255, 0))
    clear.save(tmp_path / "clear.png")
    assert not read_mask(tmp_path / "clear.png", MaskCode()).any()


def test_instances_are_foreground(tmp_path):
    ids = np.array([[0, 1, 2, 7]], np.uint8)
    assert read_mask(save(tmp_path / "ids.bmp", ids), MaskCode("nonzero")).tolist() == [[0, 1, 1, 1]]
    palette = Image.fromarray(ids).convert("P")
    palette.putpalette([255, 0, 0] * 256)
    palette.save(tmp_path / "palette.png")
    assert read_mask(tmp_path / "palette.png", MaskCode("nonzero")).tolist() == [[0, 1, 1, 1]], "indices, not the colours they stand for"


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_classes_by_level(tmp_path, dtype):
    path = save(tmp_path / "mask.png", np.array([[0, 170, 85], [85, 0, 0]], dtype))
    assert read_mask(path, mask_code(2, ["85", "170"])).tolist() == [[0, 2, 1], [1, 0, 0]]
    with pytest.raises(BadFileError, match=r"mask.png holds 170, which is no class.*data.mask_values"):
        read_mask(path, mask_code(1, ["85"]))
    assert mask_code(1) == MaskCode()
    assert mask_code(3).values == (1, 2, 3)


def test_classes_by_colour(tmp_path):
    colours = np.array([[[0, 0, 0], [255, 0, 0], [0, 128, 255]]], np.uint8)
    path = save(tmp_path / "mask.png", colours)
    assert read_mask(path, mask_code(2, ["#0080FF", "#ff0000"])).tolist() == [[0, 2, 1]]
    with pytest.raises(BadFileError, match="#0080ff"):
        read_mask(path, mask_code(1, ["#ff0000"]))
    with pytest.raises(BadFileError, match=r"coloured.*mask_values"):
        read_mask(path, mask_code(2))


@pytest.mark.parametrize("values", [["1"], ["1", "1"], ["red", "2"], ["0", "1"], ["#000000", "#ffffff"], ["#12", "#34"], ["70000", "1"]])
def test_wrong_values_of_masks(values):
    with pytest.raises(ValueError, match=r"data\.mask_values"):
        mask_code(2, values)


# ---- originals


def test_perturbations_are_added_on_the_grid_of_8_bits():
    from shared.poisons import add_on_grid

    random = torch.Generator().manual_seed(0)
    levels = torch.randint(0, 256, (3, 9, 7), generator=random)
    delta = (torch.rand(3, 9, 7, generator=random) - 0.5) * 0.1
    original = Original("a.png", levels.int(), torch.zeros(9, 7, dtype=torch.int64))
    assert torch.equal(original.as_bytes(), levels.byte())
    assert torch.equal(original.add(delta).byte(), add_on_grid(levels.byte()[None], delta[None])[0])
    with pytest.raises(ValueError, match=r"a\.png has the shape"):
        original.add(delta[:, 1:])


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "P", "CMYK"])
def test_an_image_keeps_the_channels_of_its_file_and_shows_those_that_are_asked_for(tmp_path, mode):
    Image.fromarray(textured(12, 9, 4 if mode == "RGBA" else 3)[..., :3]).convert(mode).save(tmp_path / "a.tif")
    found = PictureItem("a.tif", tmp_path / "a.tif", (), MaskCode(), "a").load()
    assert len(found.levels) == (1 if mode in ("L", "LA") else 3)
    for channels, name in ((1, "L"), (3, "RGB")):
        expected = (read_image(tmp_path / "a.tif", name) * 255).round().byte()
        assert torch.equal(found.as_bytes(channels), expected)


def test_a_perturbation_of_other_channels_keeps_those_of_the_file():
    colour, grey = (Original("a", levels, torch.zeros(2, 2)) for levels in (torch.full((3, 2, 2), 100).int(), torch.full((1, 2, 2), 100).int()))
    assert torch.equal(colour.add(torch.full((1, 2, 2), 4 / 255)), torch.full((3, 2, 2), 104).int())
    three = torch.tensor([6.0, 0.0, 3.0])[:, None, None].expand(3, 2, 2) / 255
    assert torch.equal(grey.add(three), torch.full((1, 2, 2), 103).int())


def test_images_of_16_bits_keep_their_grid(tmp_path):
    levels = np.random.default_rng(0).integers(100, 4096, (20, 24)).astype(np.uint16)
    path = save(tmp_path / "deep.png", levels)
    item = PictureItem("deep.png", path, (), MaskCode(), "deep")
    found = item.load()
    assert (found.bits, found.levels.dtype) == (16, torch.int32)
    assert np.array_equal(found.levels[0].numpy(), levels)
    assert found.window == tuple(np.percentile(levels, [1, 99]))
    low, high = found.window
    expected = np.clip((levels.astype(float) - low) / (high - low), 0, 1)
    torch.testing.assert_close(found.in_window()[0].double(), torch.from_numpy(expected), atol=1e-6, rtol=0)
    changed = found.add(torch.full((1, 20, 24), 4 / 255))
    assert np.array_equal(changed[0].numpy(), np.round(levels + 4 / 255 * (high - low)).astype(int)), "outside of the window too"
    assert found.levels_of(4 / 255) == pytest.approx(4 / 255 * (high - low))
    fixed = PictureItem("deep.png", path, (), MaskCode(), "deep", (0.0, 4095.0)).load()
    assert (fixed.window, fixed.as_bytes(3).shape) == ((0.0, 4095.0), (3, 20, 24))


# ---- splits


def test_splits_divide_no_group():
    groups = [f"patient {number // 7}" for number in range(280)]
    parts = split_groups(groups, seed=0)
    held = [{groups[index] for index in part} for part in parts]
    assert [len(part) for part in held] == [28, 4, 8]
    assert not held[0] & held[1] | held[1] & held[2] | held[0] & held[2]
    assert sorted(index for part in parts for index in part) == list(range(280))
    assert split_groups(groups, 0) == parts != split_groups(groups, 1)
    backwards = split_groups(groups[::-1], 0)
    assert {groups[::-1][index] for index in backwards[2]} == held[2], "the order of the files does not matter"
    assert [len(part) for part in split_groups(["a", "b", "c"], 0)] == [1, 1, 1]


def test_too_few_groups_are_refused():
    with pytest.raises(ValueError, match="9 images of 2 patients or lesions cannot be split into 3 parts"):
        split_groups(["a", "b", "b"] * 3, 0)


def test_fractions_are_nested_and_whole_groups():
    groups = [f"{number // 3}" for number in range(60)]
    few, more = choose_groups(groups, 0.2, 0), choose_groups(groups, 0.6, 0)
    assert (len(few), len(more)) == (12, 36)
    assert set(few) < set(more)
    with pytest.raises(ValueError, match=r"data\.fraction"):
        choose_groups(groups, 0, 0)


def test_the_hash_is_the_signs_of_the_cosine_transform():
    image = torch.rand(1, 32, 32, generator=torch.Generator().manual_seed(0))
    frequencies = dctn(image[0].double().numpy(), type=2)[:8, :8].flatten()[1:]
    assert np.array_equal(perceptual_hash(image).numpy(), frequencies > np.median(frequencies))


def test_near_duplicates_are_joined():
    def hashed(array):
        return perceptual_hash(torch.from_numpy(np.array(array)).permute(2, 0, 1).float() / 255)

    pictures = [Image.fromarray(textured(60, 70, 3, seed)) for seed in range(30)]
    jpeg = io.BytesIO()
    pictures[3].save(jpeg, "JPEG", quality=30)
    again = [Image.open(jpeg), pictures[5].resize((40, 52)), Image.fromarray((np.asarray(pictures[7]) * 0.8 + 20).astype(np.uint8))]
    names = [f"image {number}" for number in range(30)] + ["z jpeg", "z small", "z bright"]
    groups = join_duplicates([hashed(picture) for picture in [*pictures, *again]], names)
    assert groups[:30] == names[:30]
    assert groups[30:] == ["image 3", "image 5", "image 7"]
    chained = join_duplicates([torch.zeros(10, dtype=torch.bool)] * 2 + [torch.ones(10, dtype=torch.bool)] * 2, ["a", "b", "b", "c"])
    assert chained == ["a"] * 4, "groups that share an image are one"
