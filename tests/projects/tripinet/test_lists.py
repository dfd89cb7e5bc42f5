"""The four forms of lists, as they are met, and what is said of damaged ones."""

import json

import numpy as np
import pytest
from PIL import Image

from projects.tripinet.lists import read_folder, read_json_list, read_lists, read_mixture, read_named, read_text_list
from projects.tripinet.sources import sources_of
from shared.data.files import BadFileError


def draw(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 5), 255, np.uint8)).save(path)


def folder(root, names=("a", "b"), masks=("a_gt", "b_mask")):
    draw(*[root / "Tp" / f"{name}.jpg" for name in names], *[root / "Gt" / f"{name}.png" for name in masks])
    return root


def told(pictures):
    return [(picture.image.name, picture.mask and picture.mask.name, picture.label) for picture in pictures]


def test_folder(tmp_path):
    root = folder(tmp_path / "mine", ("b", "a", "c"), ("a_gt", "b", "c_edgemask"))
    assert told(read_folder(root)) == [("a.jpg", "a_gt.png", 1), ("b.jpg", "b.png", 1), ("c.jpg", "c_edgemask.png", 1)]
    draw(root / "Au" / "d.png")
    pictures = read_folder(root)
    assert told(pictures)[3:] == [("d.png", None, 0)]
    assert {picture.dataset for picture in pictures} == {"mine"}
    assert {picture.kind for picture in pictures} == {"manipulated", "authentic"}


def test_folders_that_do_not_go_together_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"expected .*Tp/<name>"):
        read_folder(tmp_path / "nothing")
    with pytest.raises(ValueError, match=r"2 images .* but 1 masks"):
        read_folder(folder(tmp_path / "fewer", masks=("a",)))
    with pytest.raises(ValueError, match=r"no mask of the same stem .*\n.*b\.jpg"):
        read_folder(folder(tmp_path / "other", masks=("a", "x")))
    draw(tmp_path / "twice" / "Tp" / "a.png")
    with pytest.raises(ValueError, match="same name"):
        read_folder(folder(tmp_path / "twice", masks=("a", "b", "c")))


def test_json_list(tmp_path):
    draw(tmp_path / "x" / "a.jpg", tmp_path / "x" / "a.png", tmp_path / "b.png")
    file = tmp_path / "list.json"
    file.write_text(json.dumps([["x/a.jpg", "x/a.png"], ["b.png", "Negative"]]), encoding="utf-8-sig")
    assert told(read_json_list(file)) == [("a.jpg", "a.png", 1), ("b.png", None, 0)]
    assert read_lists(file) == {"list": read_json_list(file)}


@pytest.mark.parametrize("content", ["{}", "[1]", '[["a"]]', '[["a", 0]]', "[", "[]"])
def test_damaged_json_lists_are_named(tmp_path, content):
    (tmp_path / "list.json").write_text(content)
    with pytest.raises(BadFileError, match=r"list\.json"):
        read_json_list(tmp_path / "list.json")


TEXT = {
    "three fields": "a.jpg a.png 1\nb.jpg None 0\n",
    "four fields": "a.jpg a.png edge.png 2\n\nb.jpg None None 0",
    "black masks": "a.jpg a.png 1\nb.jpg black.png 0\n",
    "commas": "a.jpg,a.png,a.jpg\nb.jpg,None,None\r\n",
    "two with commas": "a.jpg, a.png\nb.jpg, None",
    "labels with commas": "a.jpg,a.png,1\nb.jpg,black.png,None,0",
    "tabs": "a.jpg\ta.png\t1\nb.jpg\tNone\t0",
}


@pytest.mark.parametrize("content", TEXT.values(), ids=TEXT)
def test_text_lists(tmp_path, content):
    draw(tmp_path / "a.jpg", tmp_path / "a.png", tmp_path / "b.jpg")
    (tmp_path / "list.txt").write_text(content)
    assert told(read_text_list(tmp_path / "list.txt")) == [("a.jpg", "a.png", 1), ("b.jpg", None, 0)]


def test_what_cat_net_s_lists_of_imd2020_share(tmp_path):
    names = [tmp_path / "1bl55t" / name for name in ("a.png", "a_mask.png", "b.jpg", "b_mask.png")]
    draw(*names)
    lines = ("1bl55t/a.png,1bl55t/a_mask.png,1bl55t/1bl55t_orig.jpg,0jpg/a.jpg", "1bl55t/b.jpg,1bl55t/b_mask.png,1bl55t/1bl55t_orig.jpg,1bl55t/b.jpg")
    (tmp_path / "list.txt").write_text("\n".join(lines))
    pictures = read_text_list(tmp_path / "list.txt")
    assert told(pictures) == [("a.png", "a_mask.png", 1), ("b.jpg", "b_mask.png", 1)]
    assert pictures[0].sources == pictures[1].sources != frozenset(), "they belong in one split"


def test_masks_of_published_sets_are_read_by_their_own_rules(tmp_path):
    """Columbia's are coloured, in lists and in folders too, and DSO-1's and NIST16's are black where manipulated."""
    places = ("4cam_splc/edgemask/a_edgemask.jpg", "DSO-1-Fake-Images-Masks/a.png", "reference/manipulation/mask/a.png", "mask/a.png")
    draw(tmp_path / "a.png", *[tmp_path / place for place in places])
    (tmp_path / "list.json").write_text(json.dumps([["a.png", place] for place in places]))
    (tmp_path / "list.txt").write_text("\n".join(f"a.png,{place},a.jpg" for place in places))
    for pictures in (read_json_list(tmp_path / "list.json"), read_text_list(tmp_path / "list.txt")):
        assert [picture.rule for picture in pictures] == ["green", "inverted", "inverted", "half"]
    assert [picture.rule for picture in read_folder(folder(tmp_path / "mine", masks=("a_gt", "b_edgemask")))] == ["half", "green"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a.jpg a.png 1\na.jpg 1", r"list\.txt, line 2: 'a\.jpg 1' is not like"),
        ("my a.jpg my a.png 1", "use commas if names have spaces"),
        ("a.jpg a.png yes", "a number as label"),
        ("a.jpg None 1", "no mask; name one, or write label 0"),
        ("a.jpg,b,c,d,e", "is not like"),
        ("\n", "names no pictures"),
    ],
)
def test_damaged_text_lists_are_named(tmp_path, content, message):
    (tmp_path / "list.txt").write_text(content)
    with pytest.raises(BadFileError, match=message):
        read_text_list(tmp_path / "list.txt")


def test_lists_in_another_encoding_are_named(tmp_path):
    (tmp_path / "list.txt").write_bytes("ä.jpg None 0".encode("latin-1"))
    with pytest.raises(BadFileError, match="UTF-8"):
        read_lists(tmp_path / "list.txt")


def test_missing_files_are_named(tmp_path):
    draw(tmp_path / "a.jpg")
    (tmp_path / "list.txt").write_text("a.jpg a.png 1\nb.jpg None 0\n")
    with pytest.raises(FileNotFoundError, match=r"2 files .*\n.*a\.png\n.*b\.jpg"):
        read_text_list(tmp_path / "list.txt")


def test_mixture(tmp_path):
    folder(tmp_path / "mine")
    draw(tmp_path / "c.png")
    (tmp_path / "list.json").write_text('[["c.png", "Negative"]]')
    file = tmp_path / "mixture.json"
    file.write_text('[["ManiDataset", "mine"], ["JsonDataset", "list.json"]]')
    sets = read_mixture(file)
    assert {name: len(pictures) for name, pictures in sets.items()} == {"mine": 2, "list.json": 1}
    assert read_lists(file) == sets
    for content, message in (('[["ManiDataset", "mine"], ["Other", "x"]]', "no kind of set"), (2 * '["ManiDataset", "mine"],', "twice")):
        file.write_text(content if content.startswith("[[") else f"[{content[:-1]}]")
        with pytest.raises(BadFileError, match=message):
            read_lists(file)


def test_named_sets(tmp_path):
    """What IMDL-BenCo tests on: folders and JSON lists by the names that results go by."""
    root = folder(tmp_path / "IML" / "CASIA1.0")
    draw(tmp_path / "c.png")
    (tmp_path / "coverage.json").write_text('[["c.png", "Negative"]]')
    file = tmp_path / "test_datasets.json"
    file.write_text(json.dumps({"CASIAv1": str(root), "coverage": "coverage.json"}))
    sets = read_named(file)
    assert {name: told(pictures) for name, pictures in sets.items()} == {"CASIAv1": told(read_folder(root)), "coverage": [("c.png", None, 0)]}
    assert read_lists(file) == sets
    for content in ("{}", '{"a": ["b.json"]}'):
        file.write_text(content)
        with pytest.raises(BadFileError, match=r"test_datasets\.json is not like .*list\.json"):
            read_lists(file)
    file.write_text('{"Columbia": "/mnt/IML/Columbia.json"}')
    with pytest.raises(FileNotFoundError, match=r"/mnt/IML/Columbia\.json does not exist: expected a folder with Tp and Gt.*; correct the path"):
        read_lists(file)


def test_forms_that_are_not_known_are_named(tmp_path):
    (tmp_path / "list.csv").write_text("a")
    with pytest.raises(BadFileError, match="no list that is known"):
        read_lists(tmp_path / "list.csv")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_lists(tmp_path / "list.json")


@pytest.mark.parametrize(
    ("name", "sources"),
    [
        ("Tp_D_CRN_M_N_nat10130_ani00058_11865.jpg", {"casia/nat10130", "casia/ani00058"}),
        ("Tp_S_NNN_S_N_cha00010_cha00010_01137.tif", {"casia/cha00010"}),
        ("Au_ani_00058.jpg", {"casia/ani00058"}),
        ("Sp_D_CNN_A_art0024_ani0032_0268.jpg", {"casia/art0024", "casia/ani0032"}),
        ("0_000000000071.tif", {"coco/71"}),
        ("glide_inpainting_val2017_100582_up.png", {"coco/100582"}),
        ("holiday_2019.jpg", set()),
    ],
)
def test_sources(tmp_path, name, sources):
    assert sources_of(tmp_path / name) == sources
