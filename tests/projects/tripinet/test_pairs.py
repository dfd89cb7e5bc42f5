"""Which pixels a mask marks under each rule, and that masks which do not belong to their picture are refused."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from projects.tripinet.pairs import Picture, by_stem, check_pairs, paired, read_mask, read_pair
from shared.data.files import BadFileError

HEIGHT, WIDTH = 20, 31
MARKED = np.zeros((HEIGHT, WIDTH), bool)
MARKED[4:11, 5:23] = True


def save(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return path


def picture(tmp_path, mask, rule="half", name="mask.png", **options):
    pixels = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    return Picture(save(tmp_path / "image.png", pixels), save(tmp_path / name, mask, **options), "splice", rule=rule)


def columbia_mask():
    """Red ground, green splice, and a blue edge, as Columbia's masks are."""
    mask = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    mask[..., 0] = 200
    mask[MARKED] = (0, 200, 0)
    return mask


@pytest.mark.parametrize(
    ("rule", "mask", "name", "options"),
    [
        ("half", MARKED.astype(np.uint8) * 255, "mask.png", {}),
        ("half", MARKED.astype(np.uint8), "mask.png", {}),
        ("half", np.where(MARKED, 140, 115).astype(np.uint8), "mask.png", {}),
        ("half", MARKED, "mask.png", {}),
        ("half", np.where(MARKED, 255, 0).astype(np.uint8), "mask.jpg", {"quality": 95}),
        ("inverted", np.where(MARKED, 0, 255).astype(np.uint8), "mask.png", {}),
        ("inverted", (~MARKED).astype(np.uint8), "mask.png", {}),
        ("green", columbia_mask(), "mask.jpg", {"quality": 95, "subsampling": 0}),
    ],
    ids=["255", "1", "grey", "bits", "jpeg", "black", "black-1", "three-colours"],
)
def test_rules(tmp_path, rule, mask, name, options):
    read = read_mask(picture(tmp_path, mask, rule, name, **options), (HEIGHT, WIDTH))
    assert read.dtype == torch.uint8
    assert torch.equal(read[0].bool(), torch.from_numpy(MARKED))


def test_a_threshold_at_zero_would_take_jpeg_noise_for_a_splice(tmp_path):
    path = picture(tmp_path, columbia_mask(), "green", "mask.jpg", quality=75).mask
    green = np.asarray(Image.open(path))[..., 1]
    assert ((green > 0) != MARKED).mean() > 0.02
    assert ((green > 120) != MARKED).mean() < 0.02


@pytest.mark.parametrize("values", [MARKED.astype(np.int64) * 3, MARKED, MARKED.astype(np.float32)])
def test_arrays(tmp_path, values):
    np.savez_compressed(tmp_path / "mask.npz", values)
    pixels = save(tmp_path / "image.png", np.zeros((HEIGHT, WIDTH, 3), np.uint8))
    read = read_mask(Picture(pixels, tmp_path / "mask.npz", "splice", rule="array"), (HEIGHT, WIDTH))
    assert torch.equal(read[0].bool(), torch.from_numpy(MARKED))


@pytest.mark.parametrize("what", ["objects", "another key", "no archive", "three axes", "cut off"])
def test_damaged_arrays_are_named(tmp_path, what):
    path = tmp_path / "mask.npz"
    arrays = {
        "objects": {"arr_0": np.array([{}], dtype=object)},
        "another key": {"mask": MARKED},
        "three axes": {"arr_0": np.zeros((2, 2, 2))},
        "cut off": {"arr_0": MARKED},
    }
    if what == "no archive":
        path.write_bytes(b"nothing")
    else:
        np.savez_compressed(path, **arrays[what])
    if what == "cut off":
        path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(BadFileError, match=r"mask\.npz"):
        read_mask(Picture(tmp_path / "image.png", path, "splice", rule="array"), (HEIGHT, WIDTH))


def test_pixels_are_those_of_the_file(tmp_path):
    one = picture(tmp_path, MARKED)
    image, mask = read_pair(one)
    assert np.array_equal(image.permute(1, 2, 0).numpy(), np.asarray(Image.open(one.image)))
    assert mask.shape == (1, HEIGHT, WIDTH)
    _, empty = read_pair(Picture(one.image))
    assert not empty.any()
    assert empty.shape == mask.shape


def test_a_mask_of_another_size_is_refused_unless_it_is_mended(tmp_path):
    one = picture(tmp_path, MARKED[::2, ::2].astype(np.uint8) * 255)
    with pytest.raises(BadFileError, match=r"mask\.png has 10 x 16 pixels .* 20 x 31: .*mask_fix: true"):
        read_pair(one)
    _, mask = read_pair(one, mask_fix=True)
    assert set(mask.unique().tolist()) == {0, 1}
    assert float((mask[0].numpy() != MARKED).mean()) < 0.1


def test_a_turned_mask_is_never_mended(tmp_path):
    one = picture(tmp_path, np.ascontiguousarray(MARKED.T))
    with pytest.raises(BadFileError, match="turn the mask by hand"):
        read_pair(one, mask_fix=True)


def test_an_empty_mask_of_a_manipulated_picture_is_refused(tmp_path):
    with pytest.raises(BadFileError, match="marks no pixel"):
        read_pair(picture(tmp_path, np.zeros((HEIGHT, WIDTH), np.uint8)))


def test_bad_pairs_are_listed_or_left_out(tmp_path, caplog):
    good = picture(tmp_path / "good", MARKED)
    bad = [picture(tmp_path / name, MARKED[: 4 + number]) for number, name in enumerate(("one", "two"))]
    (tmp_path / "three.png").write_bytes(b"no image")
    everything = [bad[0], good, bad[1], Picture(tmp_path / "three.png"), Picture(tmp_path / "four.png")]
    with pytest.raises(BadFileError, match="4 of 5 pictures") as error:
        check_pairs(everything)
    assert all(name in str(error.value) for name in ("one", "two", "three.png", "four.png"))
    assert check_pairs(everything, "skip") == [good]
    assert "4 of 5 pictures" in caplog.text
    with pytest.raises(BadFileError, match="2 of 2"):
        check_pairs(bad, "skip")
    with pytest.raises(ValueError, match="'refuse' or 'skip'"):
        check_pairs(everything, "ignore")


def test_pictures_say_what_they_are():
    assert Picture(Path("a")).label == 0
    assert Picture(Path("a"), Path("b"), "copymove").label == 1
    with pytest.raises(ValueError, match="need a mask"):
        Picture(Path("a"), None, "splice")
    with pytest.raises(ValueError, match="need a mask"):
        Picture(Path("a"), Path("b"))
    with pytest.raises(ValueError, match="choose one of authentic, splice"):
        Picture(Path("a"), Path("b"), "painted")


def test_names_go_together_by_stem():
    masks = by_stem(map(Path, ["x_gt.png", "y_mask.png", "z.png", "v-edgemask.jpg", "7forged.tif", "midnight.png"]))
    assert list(masks) == ["x", "y", "z", "v", "7", "midnight"]
    images = [Path(f"{name}.jpg") for name in ("x", "z")]
    assert paired(images, masks) == [(images[0], Path("x_gt.png")), (images[1], Path("z.png"))]
    with pytest.raises(ValueError, match="same name"):
        by_stem([Path("x_gt.png"), Path("x.png")])
    with pytest.raises(ValueError, match=r"1 of 2 images have no mask .*\n.*w\.jpg"):
        paired([images[0], Path("w.jpg")], masks)
    assert len(paired([images[0], Path("w.jpg")], masks, "skip")) == 1
    with pytest.raises(ValueError, match="1 of 1"):
        paired([Path("w.jpg")], masks, "skip")
