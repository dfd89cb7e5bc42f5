"""The published folder: lossless, on the original grid, measured, resumable, and checked when it is read."""

import json

import numpy as np
import pytest
import torch
from helpers.segmentation import disc, save, textured, write_acdc, write_kvasir, write_masked_folder
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio

from projects.umed.data import ProtectionData
from projects.umed.protected import protected_files, read_manifest, read_protected, stored_names, verify_files, write_protected
from projects.umed.quality import touched_region
from projects.umed.worlds import ellipses
from shared.data.files import BadFileError

ABOUT = {"method": "umed", "epsilon": 4.0, "texture": "count", "seed": 0, "generator": "abc"}


def perturb(images, masks):
    """Four levels up or down in the region of interest, by the place and the level alone."""
    region = touched_region(masks, 2)[:, None]
    places = torch.arange(images.shape[2])[:, None] + torch.arange(images.shape[3])
    return region * (4 / 255) * (1 - 2 * ((places + images) % 2)).float()


def counted(calls):
    def counting(images, masks):
        calls.append(len(images))
        return perturb(images, masks)

    return counting


def test_what_is_stored_is_what_was_meant(tmp_path):
    found = ellipses("train", 10)
    manifest = write_protected(tmp_path / "out", found, perturb, ABOUT, radius=2, batch_size=4)
    protected = read_protected(tmp_path / "out")
    expected = (found.images.float() + 255 * perturb(found.images, found.masks)).round().clamp(0, 255).byte()
    assert torch.equal(protected.images, expected)
    assert torch.equal(protected.masks, found.masks)
    assert protected.names == found.names
    assert manifest == read_manifest(tmp_path / "out")
    assert (manifest["method"], manifest["radius"], manifest["complete"], manifest["count"]) == ("umed", 2, True, 10)
    assert "not for diagnosis" in manifest["notice"]
    record = manifest["images"][3]
    assert record["psnr"] == pytest.approx(peak_signal_noise_ratio(found.images[3].numpy(), expected[3].numpy(), data_range=255))
    assert record["psnr_roi"] == pytest.approx(20 * np.log10(255 / 4), abs=1e-6), "four levels everywhere in it"
    assert record["max_change"] == record["max_change_levels"] == 4
    assert manifest["mean"]["psnr"] == pytest.approx(np.mean([one["psnr"] for one in manifest["images"]]))
    assert manifest["mean"]["max_change"] == 4
    assert not list((tmp_path / "out").rglob("progress*"))


def test_several_classes_and_colour(tmp_path):
    found = ellipses("train", 3, channels=3, classes=2)
    write_protected(tmp_path, found, perturb, ABOUT, radius=2)
    protected = read_protected(tmp_path)
    assert protected.classes == 2
    assert torch.equal(protected.masks, found.masks)
    assert sorted(np.unique(np.asarray(Image.open(tmp_path / "masks" / "train-00000.png")))) == [0, 1, 2]


def test_images_of_many_sizes_keep_theirs_and_their_names(tmp_path):
    root = write_kvasir(tmp_path / "in", 5)
    data = ProtectionData("kvasir", str(root), channels=3, size=32)
    write_protected(tmp_path / "out", data.all_files(), perturb, ABOUT, radius=2, batch_size=3, source=root)
    written = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.png"))
    assert written == [f"{kind}/cju{number}.png" for kind in ("images", "masks") for number in range(5)]
    first = np.asarray(Image.open(tmp_path / "out" / "images" / "cju1.png")).astype(int)
    clean = np.asarray(Image.open(root / "Kvasir-SEG" / "images" / "cju1.jpg")).astype(int)
    assert first.shape == clean.shape
    assert np.abs(first - clean).max() == 4
    assert read_manifest(tmp_path / "out")["images"][1]["original"] == "cju1.jpg"
    assert read_protected(tmp_path / "out", size=32).image_shape == (3, 32, 32)
    with pytest.raises(ValueError, match="5 different sizes"):
        read_protected(tmp_path / "out")
    with pytest.raises(ValueError, match="is, holds or lies in the folder"):
        write_protected(root / "out", data.all_files(), perturb, ABOUT, 2, source=root)


def test_a_published_folder_is_read_as_any_other(tmp_path):
    found = ellipses("train", 10)
    write_protected(tmp_path, found, perturb, ABOUT, radius=2)
    data = ProtectionData("folder", str(tmp_path), size=32)
    data.setup()
    assert (len(data.train_set), len(data.val_set), len(data.test_set)) == (7, 1, 2)
    same = ProtectionData("protected", str(tmp_path), size=32)
    same.setup()
    assert torch.equal(same.all_files().load().images, read_protected(tmp_path).images)


@pytest.mark.parametrize("channels", [1, 3])
def test_16_bits_stay_on_their_grid(tmp_path, channels):
    levels = np.random.default_rng(0).integers(0, 4096, (24, 24)).astype(np.uint16)
    save(tmp_path / "in" / "images" / "deep.tif", levels)
    save(tmp_path / "in" / "masks" / "deep.png", disc(24, 24))
    data = ProtectionData("folder", str(tmp_path / "in"), channels=channels, window=(0, 4095))
    manifest = write_protected(tmp_path / "out", data.all_files(), perturb, ABOUT, radius=2)
    stored = np.asarray(Image.open(tmp_path / "out" / "images" / "deep.png"))
    assert stored.dtype == np.uint16
    change = stored.astype(int) - levels
    region = touched_region(torch.from_numpy(disc(24, 24)).long()[None], 2)[0].numpy()
    assert not change[~region].any()
    assert np.abs(change).max() == round(4 / 255 * 4095)
    record = manifest["images"][0]
    assert (record["bits"], record["window"]) == (16, [0, 4095])
    assert record["max_change_levels"] == 64
    assert record["max_change"] == pytest.approx(64 * 255 / 4095)
    assert protected_files(tmp_path / "out").original(0).window == (0, 4095)


@pytest.mark.parametrize(("generators", "file"), [(1, 3), (3, 1)])
def test_colour_stays_colour_and_grey_grey_whatever_the_generators_take(tmp_path, generators, file):
    root = write_masked_folder(tmp_path / "in", 1, channels=file)
    write_protected(tmp_path / "out", ProtectionData("folder", str(root), channels=generators).all_files(), perturb, ABOUT, 2)
    before, after = (np.asarray(Image.open(folder / "images" / "000.png")).astype(int) for folder in (root, tmp_path / "out"))
    assert before.shape == after.shape
    assert np.abs(after - before).max() == 4
    region = touched_region(torch.from_numpy(disc(32, 40)).long()[None], 2)[0].numpy()
    assert np.array_equal(after[~region], before[~region])


def test_images_without_foreground_do_not_raise_the_means(tmp_path):
    found = ellipses("train", 3)
    found.mask_bytes[1] = 0
    manifest = write_protected(tmp_path, found, perturb, ABOUT, 2)
    assert manifest["images"][1]["psnr"] == 100
    assert manifest["mean"]["psnr"] == pytest.approx(np.mean([manifest["images"][index]["psnr"] for index in (0, 2)]))


def test_a_mask_that_is_corrected_in_place_is_published_anew(tmp_path):
    for name in ("images", "masks"):
        save(tmp_path / "in" / name / "a.bmp", textured(24, 24, 1) if name == "images" else disc(24, 24))
    data = ProtectionData("folder", str(tmp_path / "in"))
    write_protected(tmp_path / "out", data.all_files(), perturb, ABOUT, 2)
    size = (tmp_path / "in" / "masks" / "a.bmp").stat().st_size
    other = disc(24, 24, seed=3)
    assert save(tmp_path / "in" / "masks" / "a.bmp", other).stat().st_size == size, "which alone would not tell"
    write_protected(tmp_path / "out", data.all_files(), perturb, ABOUT, 2)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out" / "masks" / "a.png")) > 0, other)
    read_otherwise = ProtectionData("folder", str(tmp_path / "in"), window=(0, 100))
    assert read_otherwise.all_files().fingerprint() != data.all_files().fingerprint() == data.all_files().fingerprint()


def test_slices_of_volumes_are_published(tmp_path):
    pytest.importorskip("nibabel")
    data = ProtectionData("acdc", str(write_acdc(tmp_path / "in", 3)))
    manifest = write_protected(tmp_path / "out", data.all_files(), perturb, ABOUT, radius=2)
    assert manifest["images"][5]["file"] == "train/patient001/patient001_frame12_z01.png"
    assert manifest["images"][0]["psnr_roi"] is None, "a slice without labels is published as it is"
    assert manifest["images"][0]["max_change_levels"] == 0
    assert 3.9 < manifest["mean"]["max_change"] < 4.2, "in grey levels of the window, up to its rounding"
    assert read_protected(tmp_path / "out").classes == 3
    assert {record["group"] for record in manifest["images"]} == {"patient001", "patient002", "patient003"}


def test_an_interrupted_call_goes_on(tmp_path):
    found, calls = ellipses("train", 12), []

    def failing(images, masks):
        if len(calls) == 2:
            raise KeyboardInterrupt
        return counted(calls)(images, masks)

    unbroken = write_protected(tmp_path / "whole", found, perturb, ABOUT, 2)
    with pytest.raises(KeyboardInterrupt):
        write_protected(tmp_path / "out", found, failing, ABOUT, 2, batch_size=4)
    with pytest.raises(ValueError, match="not complete"):
        read_protected(tmp_path / "out")
    with (tmp_path / "out" / "progress.jsonl").open("a") as log:
        log.write('{"file": "train-0')  # a line that a kill cut
    (tmp_path / "out" / "images" / "train-00001.png").write_bytes(b"half a fi")
    calls, seen = [], []
    resumed = write_protected(tmp_path / "out", found, counted(calls), ABOUT, 2, batch_size=4, progress=seen.append)
    assert calls == [4, 1]
    assert seen == [7, 11, 12]
    assert resumed == unbroken
    verify_files(tmp_path / "out")
    calls.clear()
    assert write_protected(tmp_path / "out", found, counted(calls), ABOUT, 2) == unbroken
    assert not calls, "nothing is done twice"
    (tmp_path / "out" / "masks" / "train-00002.png").unlink()
    assert write_protected(tmp_path / "out", found, counted(calls), ABOUT, 2) == unbroken
    assert calls == [1]


def test_other_settings_or_images_replace_a_protected_folder_and_nothing_else(tmp_path):
    found = ellipses("train", 3)
    first = write_protected(tmp_path / "out", found, perturb, ABOUT, 2)
    second = write_protected(tmp_path / "out", found, perturb, ABOUT | {"seed": 1}, 2)
    assert first["key"] != second["key"]
    third = write_protected(tmp_path / "out", ellipses("train", 2, seed=1), perturb, ABOUT, 2)
    assert third["count"] == len(list((tmp_path / "out" / "images").iterdir())) == 2
    save(tmp_path / "mine" / "holiday.png", textured(8, 8))
    with pytest.raises(ValueError, match="not empty and no earlier result"):
        write_protected(tmp_path / "mine", found, perturb, ABOUT, 2)
    assert (tmp_path / "mine" / "holiday.png").is_file()


def test_lost_and_changed_files_are_named(tmp_path):
    write_protected(tmp_path, ellipses("train", 4), perturb, ABOUT, 2)
    path = tmp_path / "images" / "train-00002.png"
    image = Image.open(path).copy()
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 8 files are missing[\s\S]*images/train-00002.png"):
        read_protected(tmp_path)
    Image.fromarray(np.asarray(image) // 2 * 2).save(path)
    with pytest.raises(BadFileError, match=r"1 of 8 files[\s\S]*changed since[\s\S]*train-00002.png"):
        read_protected(tmp_path)
    assert len(read_protected(tmp_path, check=False)) == 4


@pytest.mark.parametrize("file", ["../outside.png", "/etc/passwd", "a\\b.png"])
def test_a_manifest_cannot_name_files_outside(tmp_path, file):
    write_protected(tmp_path, ellipses("train", 2), perturb, ABOUT, 2)
    manifest = read_manifest(tmp_path)
    manifest["images"][0]["file"] = file
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BadFileError, match="outside of the folder"):
        read_protected(tmp_path)


def test_what_is_no_protected_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no protected set in .*manifest.json"):
        read_protected(tmp_path)
    for text in ("{", "[]", '{"version": 1}'):
        (tmp_path / "manifest.json").write_text(text)
        with pytest.raises(BadFileError, match="protect the set anew"):
            read_protected(tmp_path)


def test_wrong_perturbations_write_nothing(tmp_path):
    found = ellipses("train", 2)
    for wrong in (lambda images, masks: images[:, :, :8].float(), lambda images, masks: images.float() * float("nan")):
        with pytest.raises(ValueError, match="perturbations of shape"):
            write_protected(tmp_path / "out", found, wrong, ABOUT, 2)
    assert not list((tmp_path / "out").rglob("*.png"))


def test_names_that_differ_by_their_ending_alone_stay_apart():
    assert stored_names(["a/1.jpg", "a/1.png", "2.nii.gz", "3.x.bmp"]) == ["a/1.jpg.png", "a/1.png.png", "2.png", "3.x.png"]
    with pytest.raises(ValueError, match=r"two images would both be stored as a.png.png"):
        stored_names(["a.png", "a.jpg", "a.png.tif"])


def test_folders_keep_their_tree(tmp_path):
    write_masked_folder(tmp_path / "in", 4)
    data = ProtectionData("folder", str(tmp_path / "in"))
    write_protected(tmp_path / "out", data.all_files(), perturb, ABOUT, 2)
    trees = [sorted(path.relative_to(root).as_posix() for path in root.rglob("*.png")) for root in (tmp_path / "in", tmp_path / "out")]
    assert trees[0] == trees[1]
