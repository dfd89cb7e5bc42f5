"""That depth is found for a user's pictures, and what cannot be paired is named."""

import numpy as np
import pytest
import torch
from PIL import Image

from projects.hodinet.depth import read_array
from projects.hodinet.pairs import find_pairs, read_pair
from projects.hodinet.samples import Reading
from shared.data.files import BadFileError

READER = Reading()


def save(path, height=40, width=60, kind="colour", seed=0):
    """Write a picture, or depth of 16 bits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    chance = np.random.default_rng(seed)
    if kind == "depth":
        Image.fromarray(chance.integers(1, 65536, (height, width)).astype(np.uint16)).save(path)
    else:
        Image.fromarray(chance.integers(0, 256, (height, width, 3)).astype(np.uint8)).save(path)
    return path


def pairs_of(path, depth=None, reader=READER, **options):
    return find_pairs(str(path), depth and str(depth), reader, **options)[0]


def paired(root, path, depth=None, **options):
    """Return the depth of each picture below a folder, by name."""
    pairs = pairs_of(path, depth, **options)
    return {pair.given.name: None if pair.depth is None else pair.depth.relative_to(root).as_posix() for pair in pairs}


def test_depth_is_found_by_path_or_by_stem(tmp_path):
    for name in ("in/1.jpg", "in/a/1.png", "in/a/2.png"):
        save(tmp_path / name)
    for name in ("maps/1.png", "maps/a/1.png", "maps/2.png"):
        save(tmp_path / name, kind="depth")
    found = {"1.jpg": "maps/1.png", "a/1.png": "maps/a/1.png", "a/2.png": "maps/2.png"}
    assert paired(tmp_path, tmp_path / "in", tmp_path / "maps") == found
    assert paired(tmp_path, tmp_path / "in/a/*.png", tmp_path / "maps/a", missing="zeros") == {"1.png": "maps/a/1.png", "2.png": None}
    assert paired(tmp_path, tmp_path / "in/1.jpg", tmp_path / "maps/2.png") == {"1.jpg": "maps/2.png"}
    assert paired(tmp_path, tmp_path / "in/1.jpg", tmp_path / "maps") == {"1.jpg": "maps/1.png"}
    assert paired(tmp_path, tmp_path / "in", missing="zeros") == paired(tmp_path, tmp_path / "in", needed=False) == dict.fromkeys(found)


def test_depth_may_be_told_behind_the_stem(tmp_path):
    for name in ("in/1.jpg", "in/a/2.png", "in/3.png"):
        save(tmp_path / name)
    for name in ("maps/1_depth.png", "maps/2_Depth.PNG", "maps/3_depth.png", "maps/3.png"):
        save(tmp_path / name, kind="depth")
    found = {"1.jpg": "maps/1_depth.png", "3.png": "maps/3.png", "a/2.png": "maps/2_Depth.PNG"}
    assert paired(tmp_path, tmp_path / "in", tmp_path / "maps") == found


def test_depth_that_lies_among_the_pictures_is_not_judged(tmp_path):
    save(tmp_path / "in/1.jpg")
    save(tmp_path / "in/near/1.png", kind="depth")
    assert paired(tmp_path, tmp_path / "in", tmp_path / "in/near") == {"1.jpg": "in/near/1.png"}


def test_a_layout_brings_its_depth_and_its_polarity(tmp_path):
    for name in ("data/X/RGB/1.jpg", "data/test_images/2.jpg"):
        save(tmp_path / name)
    for name in ("data/X/depth/1.png", "data/test_depth/2.png"):
        save(tmp_path / name, kind="depth")
    found = {"X/RGB/1.jpg": "data/X/depth/1.png", "test_images/2.jpg": "data/test_depth/2.png"}
    assert paired(tmp_path, tmp_path / "data") == found
    assert paired(tmp_path, tmp_path / "data", needed=False) == dict.fromkeys(found)
    inverted = {invert: [pair.invert for pair in pairs_of(tmp_path / "data", invert=invert)] for invert in (None, True, False)}
    assert sorted(inverted[None]) == [False, True]
    assert (inverted[True], inverted[False]) == ([True] * 2, [False] * 2)


@pytest.mark.parametrize(("inverted", "turned"), [("all", {"X", "group", "loose"}), (["X"], {"X"}), ([], set()), (None, {"group"})])
def test_depth_is_turned_as_it_was_for_training(tmp_path, inverted, turned):
    for name, depth in (("sets/X/test/RGB/1.jpg", "sets/X/test/depth"), ("sets/test_images/2.jpg", "sets/test_depth"), ("in/3.jpg", "maps")):
        save(tmp_path / name)
        save(tmp_path / depth / f"{name[-5]}.png", kind="depth")
    reader = Reading(inverted=inverted)
    pairs = [*pairs_of(tmp_path / "sets", reader=reader), *pairs_of(tmp_path / "in", tmp_path / "maps", reader)]
    names = {"1": "X", "2": "group", "3": "loose"}
    assert {names[pair.given.file.stem] for pair in pairs if pair.invert} == turned
    (alone,) = pairs_of(tmp_path / "sets/X/test", reader=reader)
    assert alone.invert == ("X" in turned), "a folder of a split is of the set above it"


def test_depth_of_another_resolution_is_brought_to_the_picture(tmp_path):
    save(tmp_path / "1.jpg")
    save(tmp_path / "1.png", 20, 30, kind="depth")
    (pair,) = pairs_of(tmp_path / "1.jpg", tmp_path / "1.png")
    image, depth = read_pair(pair, READER)
    assert (image.shape, depth.shape) == ((3, 40, 60), (1, 40, 60))
    (bare,) = pairs_of(tmp_path / "1.jpg", missing="zeros")
    assert read_pair(bare, READER)[1].count_nonzero() == 0


def test_numbers_are_distances_or_disparity(tmp_path):
    save(tmp_path / "1.jpg", 2, 3)
    metres = np.array([[1.0, 2.0, 5.0], [np.inf, np.nan, 0.0]])
    np.save(tmp_path / "1.npy", metres)
    near = [read_pair(pairs_of(tmp_path / "1.jpg", tmp_path / "1.npy", invert=invert)[0], READER)[1] for invert in (True, False)]
    torch.testing.assert_close(near[0], torch.tensor([[[1.0, 0.75, 0.0], [0.0, 0.0, 0.0]]]))
    torch.testing.assert_close(near[1], torch.tensor([[[0.2, 0.4, 1.0], [0.0, 0.0, 0.0]]]))
    bad = {"negative depth": -metres, r"float64 of shape \(2, 3, 1\)": metres[..., None], r"<U1 of shape": np.array([["a"]])}
    for message, array in bad.items():
        np.save(tmp_path / "bad.npy", array)
        with pytest.raises(BadFileError, match=rf"bad\.npy holds {message}"):
            read_array(tmp_path / "bad.npy")
    (tmp_path / "bad.npy").write_bytes(b"none")
    with pytest.raises(BadFileError, match=r"bad\.npy.*it is damaged or no array"):
        read_array(tmp_path / "bad.npy")


CASES = {
    "no depth": (
        "in",
        None,
        BadFileError,
        r"2 of 2 pictures have no depth map:\n.*a\.jpg\n.*b\.jpg\n.*--depth, or .*--missing_depth zeros",
    ),
    "some without": ("in", "some", BadFileError, r"1 of 2 pictures have no depth map:\n.*b\.jpg\n.*put maps of the same names into .*some"),
    "other proportions": ("in", "wide", BadFileError, r"1 of 2 depth maps cannot be used:\n.*b\.png has 40 x 90 pixels"),
    "colours": ("in", "coloured", BadFileError, r"1 of 2 depth maps cannot be used:\n.*b\.png shows depth in colours"),
    "damaged": ("in", "damaged", BadFileError, r"1 of 2 depth maps cannot be used:\n.*cannot read .*b\.png"),
    "no maps": ("in", "notes", FileNotFoundError, r"no depth maps in .*notes: expected files ending in"),
    "no such folder": ("in", "none", FileNotFoundError, r"no depth .*none: give the depth map of one picture, or the folder"),
    "file for many": ("in", "some/a.png", ValueError, r"a\.png is the depth of one picture, but .*in holds 2"),
    "same stems of maps": ("in", "twice", ValueError, r"the depth maps a\.bmp and a\.png have the same name but for the ending"),
    "same stems of pictures": ("same", "some", ValueError, r"the pictures a\.jpg and a\.png have the same name but for the ending"),
    "no pictures": ("notes", "some", FileNotFoundError, r"no images in .*notes"),
    "text": ("notes/a.txt", "some/a.png", BadFileError, r"a\.txt: it is not an image"),
    "nothing matches": ("in/*.tif", "some", FileNotFoundError, r"no picture matches .*\*\.tif, but nothing"),
    "damaged picture": ("broken", "some", BadFileError, r"1 of 1 images cannot be read:\n.*a\.jpg"),
}


@pytest.fixture(scope="module")
def bad(tmp_path_factory):
    root = tmp_path_factory.mktemp("bad")
    for name in ("in/a.jpg", "in/b.jpg", "same/a.jpg", "same/a.png", "coloured/b.png"):
        save(root / name)
    for name in ("some/a.png", "wide/a.png", "coloured/a.png", "damaged/a.png", "damaged/b.png", "twice/a.png", "twice/b.png"):
        save(root / name, kind="depth")
    save(root / "twice/a.bmp")
    save(root / "wide/b.png", 40, 90, kind="depth")
    for name, part in (("damaged/b.png", 0.5), ("broken/a.jpg", 0.01)):
        whole = (root / name if (root / name).is_file() else save(root / name)).read_bytes()
        (root / name).write_bytes(whole[: int(part * len(whole))])
    (root / "notes").mkdir()
    (root / "notes/a.txt").write_text("no picture")
    return root


@pytest.mark.parametrize("case", CASES)
def test_what_cannot_be_used_is_named(case, bad):
    path, depth, error, message = CASES[case]
    with pytest.raises(error, match=message):
        pairs_of(bad / path, depth and bad / depth)


def test_what_cannot_be_used_is_left_out_if_asked_for(bad, tmp_path):
    for name in ("a", "b"):
        save(tmp_path / f"{name}.jpg")
    (tmp_path / "torn.jpg").write_bytes(b"none")
    pairs, left_out = find_pairs(str(tmp_path), str(bad / "damaged"), READER, missing="zeros", on_bad_file="skip")
    assert [pair.given.name for pair in pairs] == ["a.jpg"]
    assert [one["file"] for one in left_out] == ["torn.jpg", "b.jpg"]
    assert "not an image" in left_out[0]["reason"]
    assert "b.png" in left_out[1]["reason"]
    save(tmp_path / "set/RGB/1.jpg")
    save(tmp_path / "set/RGB/2.jpg").write_bytes(b"none")
    for name in "12":
        save(tmp_path / f"set/depth/{name}.png", kind="depth")
    pairs, left_out = find_pairs(str(tmp_path / "set"), None, READER, on_bad_file="skip")
    assert ([pair.given.name for pair in pairs], [one["file"] for one in left_out]) == (["RGB/1.jpg"], ["RGB/2.jpg"])
    with pytest.raises(BadFileError, match="1 of 1 depth maps cannot be used"):
        find_pairs(str(tmp_path / "b.jpg"), str(bad / "damaged/b.png"), READER, on_bad_file="skip")
