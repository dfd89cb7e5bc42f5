"""That files, folders and patterns name the pictures that a user means."""

import os

import numpy as np
import pytest
from PIL import Image

from shared.data.inputs import Input, find_pictures


def save(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((8, 8), dtype=np.uint8)).save(path)
    return path


def test_a_file_a_folder_and_patterns_name_what_they_hold(tmp_path, monkeypatch):
    for name in ("1.png", "a/2.JPG", "a/b/3.tif", "[x]/4.png", ".hidden/5.png", "a/.6.png"):
        save(tmp_path / name)
    (tmp_path / "a" / "notes.txt").write_text("no picture")
    (tmp_path / "bare").write_bytes((tmp_path / "1.png").read_bytes())
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)

    def names(path):
        found, left_out = find_pictures(path)
        assert left_out == []
        assert all(given.file.is_file() for given in found)
        return [given.name for given in found]

    assert names("1.png") == ["1.png"]
    assert names("bare") == ["bare"]
    assert names(tmp_path) == names("~") == ["1.png", "[x]/4.png", "a/2.JPG", "a/b/3.tif"]
    assert names("a/*") == names("~/a/*") == ["2.JPG"]
    assert names("*/*.[JjPp]*") == ["[x]/4.png", "a/2.JPG"]
    assert names("**/*.png") == ["1.png", "[x]/4.png"]
    assert names("a/**/?.tif") == ["b/3.tif"]
    assert names("[x]") == names("[x]/4.png") == ["4.png"]  # what lies there under that name is no pattern


def test_names_that_are_no_text_are_spelt_out(tmp_path):
    file = save(tmp_path / os.fsdecode(b"caf\xe9.png"))
    assert find_pictures(file) == find_pictures(tmp_path) == ([Input(file, r"caf\udce9.png")], [])


def test_what_is_not_there_is_named(tmp_path):
    save(tmp_path / "a/1.png")
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("no picture")
    expected = {
        "none": "none does not exist: expected a picture, a folder of pictures, or a pattern",
        "empty": "no images in .*empty",
        "*.jpg": r"no picture matches .*\*\.jpg, but nothing: expected files ending in \.bmp",
        "n*": r"no picture matches .*n\*, but only .*notes\.txt and the like, which have other endings",
    }
    for path, message in expected.items():
        with pytest.raises(FileNotFoundError, match=message):
            find_pictures(tmp_path / path)
    with pytest.raises(ValueError, match=r"'\.\.' after a wildcard"):
        find_pictures(tmp_path / "*/../a/*.png")
