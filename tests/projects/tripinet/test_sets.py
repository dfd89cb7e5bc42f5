"""Every published set, in miniature and as it is downloaded, with odd cases."""

import re

import numpy as np
import pytest
from PIL import Image

from projects.tripinet.pairs import read_pair
from projects.tripinet.sets import NO_MASK, SETS, read_set
from shared.data.files import BadFileError

SHAPE = (16, 20)
MARKED = np.zeros(SHAPE, bool)
MARKED[2:9, 3:15] = True
WHITE, BLACK = np.where(MARKED, 255, 0).astype(np.uint8), np.where(MARKED, 0, 255).astype(np.uint8)
GREEN = np.where(MARKED[..., None], [0, 255, 0], [255, 0, 0]).astype(np.uint8)
PIXELS = np.random.default_rng(0).integers(0, 256, (*SHAPE, 3), np.uint8)
TP = ("Tp_D_CRN_M_N_nat10130_ani00058_11865", "Tp_S_NNN_S_N_cha00010_cha00010_01137", "Tp_D_NRN_S_N_arc00013_sec00045_11700")


def save(path, array=PIXELS):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **({"quality": 95} if path.suffix == ".jpg" else {}))


def casia_v1(root, tampered="Tp", masks="CASIA 1.0 groundtruth", authentic="Au"):
    for part, stem in (("Sp", "Sp_D_NNN_A_ani0099_ani0100.0288"), ("CM", "Sp_S_CNN_A_nat0013_nat0013_0100")):
        save(root / tampered / part / f"{stem}.jpg")
        save(root / masks / part / f"{stem}_gt.png", WHITE)
    save(root / tampered / "Sp" / f"{NO_MASK[0]}.jpg")
    save(root / authentic / "Au_ani_0032.jpg")
    return {"splice": 1, "copymove": 1, "authentic": 1}


def casia_v2(root, pictures=".", masks="CASIA 2 Groundtruth"):
    for stem, ending in zip(TP, (".jpg", ".tif", ".tif"), strict=True):
        save(root / pictures / "Tp" / f"{stem}{ending}")
    (root / pictures / "Tp" / "Thumbs.db").write_bytes(b"no picture")
    (root / pictures / "Tp" / "_list.txt").write_text("no picture")
    for stem in TP[:2]:
        save(root / masks / f"{stem}_gt.png", WHITE)
    save(root / pictures / "Au" / "Au_ani_00058.jpg")
    save(root / pictures / "Au" / "Au_ani_00061.bmp")
    return {"splice": 1, "copymove": 1, "authentic": 2}


def columbia(root, spliced="4cam_splc", authentic="4cam_auth", masks="4cam_splc/edgemask"):
    save(root / spliced / "canong3_canonxt_sub_01.tif")
    save(root / masks / "canong3_canonxt_sub_01_edgemask.jpg", GREEN)
    save(root / authentic / "canong3_02_sub_01.tif")
    save(root / authentic / "edgemask" / "canong3_02_sub_01_edgemask.jpg", GREEN)
    return {"splice": 1, "authentic": 1}


def coverage(root):
    for number in (1, 12):
        save(root / "image" / f"{number}.tif")
        save(root / "image" / f"{number}t.tif")
        for part in ("forged", "copy", "paste"):
            save(root / "mask" / f"{number}{part}.tif", WHITE)
    return {"copymove": 2, "authentic": 2}


def nist16(root):
    columns = "TaskID|ProbeFileName|ProbeMaskFileName|IsTarget|BaseFileName|CorrespondingControlFileName|"
    rows = [columns + "IsManipulationTypeRemoval|IsManipulationTypeSplice|IsManipulationTypeCopyClone"]
    for number, flags in enumerate(("Y|N|N", "N|Y|N", "N|N|Y", "N|N|N")):
        save(root / "probe" / f"NC2016_{number}.jpg")
        save(root / "reference" / "manipulation" / "mask" / f"m{number}.png", BLACK)
        mask, base = f"reference/manipulation/mask/m{number}.png", f"world/{number // 2}.jpg"
        rows.append(f"Manipulation|probe/NC2016_{number}.jpg|{mask}|Y|{base}|{'probe/NC2016_9.jpg' if number < 2 else ''}|{flags}")
    save(root / "probe" / "NC2016_9.jpg")
    rows.append("Manipulation|probe/NC2016_9.jpg||N|||N|N|N")
    rows.append("Manipulation|probe/NC2016_10.jpg||Y|world/9.jpg||N|Y|N")
    (root / "reference" / "manipulation" / "NC2016-manipulation-ref.csv").write_text("\n".join(rows))
    return {"inpaint": 1, "splice": 1, "copymove": 1, "manipulated": 1, "authentic": 1}


def imd2020(root):
    for case in ("1a", "2b"):
        save(root / case / f"{case}_orig.jpg")
        for name in ("c8tf5mh", "c8tfaix")[: 1 + (case == "1a")]:
            save(root / case / f"{name}_0.png")
            save(root / case / f"{name}_0_mask.png", WHITE)
            save(root / "0jpg" / f"{name}_0.jpg")
    return {"manipulated": 3, "authentic": 2}


def defacto(root, above=""):
    parts = {
        "splicing_1_img": "splicing_1_annotations",
        "copymove_img": "copymove_annotations",
        "inpainting_img": "inpainting_annotations",
        "Splicing-images-2": "Splicing-annotations-2",
        "Copy-Move-images": "Copy-Move-annotations",
    }
    for images, masks in parts.items():
        save(root / above / images / "img" / "0_000000000071.tif")
        save(root / above / masks / "probe_mask" / "0_000000000071.jpg", WHITE)
        save(root / above / masks / "donor_mask" / "0_000000000071.tif", BLACK)
    save(root / "coco" / "COCO_test2014_000000000071.jpg")
    return {"splice": 2, "copymove": 2, "inpaint": 1, "authentic": 1}


def fantastic_reality(root, folder="dataset"):
    save(root / folder / "ColorFakeImages" / "DSC_1.jpg")
    (root / folder / "SegmentationFake").mkdir()
    np.savez_compressed(root / folder / "SegmentationFake" / "DSC_1.npz", MARKED[..., None].astype(np.uint8) * 7)
    save(root / folder / "ColorRealImages" / "DSC_2.jpg")
    return {"splice": 1, "authentic": 1}


def tampcoco(root):
    names = {
        "sp_images/85_000000135275.jpg_000000565194.jpg_RT4.7_RS0.85.jpg": "sp_masks/85_000000135275.png_000000565194.png_RT4.7_RS0.85.png",
        "sp_images/63_000000060054.jpg_000000043873.jpg.jpg": "sp_masks/63_000000060054.png_000000043873.png.png",
        "cm_images/64_000000475304.jpg_000000475304.jpg_RT-42.8.jpg": "cm_masks/64_000000475304.png_000000475304.png_RT-42.8.png",
        "bcm_images/76_000000496693.jpg_000000496693.jpg_RT8.8.jpg": "bcm_masks/76_000000496693.png_000000496693.png_RT8.8.png",
        "bcmc_images/69_000000550540_aligned_Q75.jpg_000000550540_aligned_Q75.jpg_RS1.08_aligned_Q75.jpg": (
            "bcm_masks/69_000000550540.png_000000550540.png_RS1.08.png"
        ),
        "bcmc_images/60_000000046924_aligned_Q60.jpg_000000046924_aligned_Q60.jpg_aligned_Q60.jpg": (
            "bcm_masks/60_000000046924.png_000000046924.png.png"
        ),
    }
    for image, mask in names.items():
        save(root / image)
        save(root / mask, WHITE)
    return {"splice": 2, "copymove": 4}


def compraise(root):
    save(root / "deep" / "r8fc09800t_Q76.jpg")
    save(root / "ra81827a9t_Q73_aligned_Q100.jpg")
    return {"authentic": 2}


def dso1(root, above=""):
    save(root / above / "DSO-1" / "splicing-01.png")
    save(root / above / "DSO-1" / "normal-01.png")
    save(root / above / "DSO-1-Fake-Images-Masks" / "splicing-01.png", BLACK)
    return {"splice": 1, "authentic": 1}


def cocoglide(root):
    for number, name in ((114871, "dining table"), (49269, "dog")):
        save(root / "fake" / f"glide_inpainting_val2017_{number}_up.png")
        save(root / "mask" / f"{name}_{number}_mask.png", WHITE)
        save(root / "real" / f"{name}_{number}.png")
    (root / "table.csv").write_text("real,fake,mask,prompt\n")
    return {"inpaint": 2, "authentic": 2}


WRITERS = (casia_v1, casia_v2, columbia, coverage, nist16, imd2020, defacto, fantastic_reality, tampcoco, compraise, dso1, cocoglide)


def written(writer, tmp_path):
    root = tmp_path / writer.__name__
    root.mkdir()
    return writer(root)


def test_every_set_has_its_miniature():
    assert {writer.__name__ for writer in WRITERS} == set(SETS)


@pytest.mark.parametrize("writer", WRITERS, ids=lambda writer: writer.__name__)
def test_sets(tmp_path, writer):
    expected = written(writer, tmp_path)
    pictures = read_set(writer.__name__, tmp_path)
    kinds = [picture.kind for picture in pictures]
    assert {kind: kinds.count(kind) for kind in kinds} == expected
    assert {picture.dataset for picture in pictures} == {writer.__name__}
    for picture in pictures:
        _, mask = read_pair(picture)
        assert np.array_equal(mask[0].numpy().astype(bool), MARKED & bool(picture.label))


@pytest.mark.parametrize("writer", WRITERS, ids=lambda writer: writer.__name__)
def test_a_set_that_is_not_there_says_what_is_expected(tmp_path, writer):
    with pytest.raises(FileNotFoundError, match=f"no folder {writer.__name__}"):
        read_set(writer.__name__, tmp_path)
    (tmp_path / writer.__name__).mkdir()
    with pytest.raises(FileNotFoundError, match="expected"):
        read_set(writer.__name__, tmp_path)


@pytest.mark.parametrize(
    ("writer", "folders"),
    [
        (casia_v1, ("Modified Tp/Tp", "CASIA 1.0 groundtruth")),
        (casia_v1, ("Modified Tp", "CASIA 1.0 groundtruth")),
        (casia_v1, ("Tp", "groundtruth")),
        (casia_v1, ("CASIA 1.0 dataset/Modified Tp/Tp", "CASIA 1.0 groundtruth", "CASIA 1.0 dataset/Au")),
        (casia_v1, ("CASIA 1.0 dataset/Tp", "CASIA 1.0 dataset/CASIA 1.0 groundtruth", "CASIA 1.0 dataset/Au")),
        (casia_v2, (".", "Gt")),
        (casia_v2, (".", "groundtruth")),
        (casia_v2, ("CASIA2.0_revised", "CASIA2.0_Groundtruth")),
        (casia_v2, ("CASIA 2.0", "CASIA 2 Groundtruth")),
        (columbia, ("4cam_splc/4cam_splc", "4cam_auth/4cam_auth", "4cam_splc/4cam_splc/edgemask")),
        (columbia, ("4cam_splc/4cam_splc", "4cam_auth/4cam_auth")),
        (defacto, ("defacto-all",)),
        (dso1, ("tifs-database",)),
        (fantastic_reality, (".",)),
    ],
)
def test_folders_may_lie_as_the_archive_has_them_or_as_peers_do(tmp_path, writer, folders):
    root = tmp_path / writer.__name__
    root.mkdir()
    expected = writer(root, *folders)
    pictures = read_set(writer.__name__, tmp_path)
    kinds = [picture.kind for picture in pictures]
    assert {kind: kinds.count(kind) for kind in kinds} == expected
    assert all(read_pair(picture)[1].any() == bool(picture.label) for picture in pictures)


def test_the_corrected_names_of_casia_v1_are_taken_where_both_are_there(tmp_path):
    written(casia_v1, tmp_path)
    root = tmp_path / "casia_v1"
    (root / "Modified Tp").mkdir()
    (root / "Tp").rename(root / "Modified Tp" / "Tp")
    for part in ("Sp", "CM"):
        save(root / "Tp" / part / f"Sp_D_NNN_A_wrong_{part}.jpg")
    assert sum(picture.label for picture in read_set("casia_v1", tmp_path)) == 2


def test_names_of_sets(tmp_path):
    with pytest.raises(ValueError, match="choose one of casia_v1"):
        read_set("casia", tmp_path)


def test_what_has_no_mask_is_left_out_of_casia_only(tmp_path, caplog):
    written(casia_v2, tmp_path)
    assert TP[2] not in {picture.image.stem for picture in read_set("casia_v2", tmp_path)}
    assert TP[2] in caplog.text
    written(columbia, tmp_path)
    save(tmp_path / "columbia" / "4cam_splc" / "other.tif")
    with pytest.raises(ValueError, match=r"no mask of the same stem .*\n.*other\.tif"):
        read_set("columbia", tmp_path)


def test_scenes(tmp_path):
    for writer in (coverage, nist16, imd2020, defacto, casia_v1, casia_v2, tampcoco, cocoglide):
        written(writer, tmp_path)

    def scenes(name):
        return {source for picture in read_set(name, tmp_path) for source in picture.sources}

    assert scenes("coverage") == {"coverage/1", "coverage/12"}
    assert scenes("nist16") == {"nist16/world/0.jpg", "nist16/world/1.jpg", "nist16/probe/NC2016_9.jpg"}
    controlled = [picture for picture in read_set("nist16", tmp_path) if "nist16/probe/NC2016_9.jpg" in picture.sources]
    assert sorted(picture.kind for picture in controlled) == ["authentic", "inpaint", "splice"], "a control goes with what was made of it"
    assert scenes("imd2020") == {"imd2020/1a", "imd2020/2b"}
    assert scenes("defacto") == {"coco/71"}
    assert scenes("casia_v1") == {"casia/ani0099", "casia/ani0100", "casia/nat0013", "casia/ani0032"}
    assert {"coco/135275", "coco/565194", "coco/550540"} <= scenes("tampcoco")
    assert scenes("cocoglide") == {"coco/114871", "coco/49269"}
    assert scenes("casia_v2") == {"casia/nat10130", "casia/ani00058", "casia/cha00010", "casia/ani00061"}


def test_a_manipulated_picture_of_nist16_without_a_mask_is_left_out(tmp_path, caplog):
    written(nist16, tmp_path)
    assert "NC2016_10" not in {picture.image.stem for picture in read_set("nist16", tmp_path)}
    assert "1 of 5 manipulated pictures have no mask" in caplog.text
    assert "NC2016_10.jpg" in caplog.text


def test_masks_of_cocoglide_and_tampcoco_go_to_their_own_pictures(tmp_path):
    for writer in (cocoglide, tampcoco):
        written(writer, tmp_path)
        for picture in read_set(writer.__name__, tmp_path):
            if picture.mask:
                assert picture.sources == {f"coco/{int(number)}" for number in re.findall(r"\d{5,12}", picture.mask.name)}


def test_damaged_lists_of_nist16_are_named(tmp_path):
    written(nist16, tmp_path)
    folder = tmp_path / "nist16" / "reference" / "manipulation"
    file = folder / "NC2016-manipulation-ref.csv"
    (tmp_path / "nist16" / "probe" / "NC2016_0.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"NC2016_0\.jpg"):
        read_set("nist16", tmp_path)
    file.write_text(file.read_text().replace("|", ","))
    with pytest.raises(BadFileError, match="no column ProbeFileName"):
        read_set("nist16", tmp_path)
    (folder / "second.csv").write_text("")
    with pytest.raises(FileNotFoundError, match="2 lists"):
        read_set("nist16", tmp_path)
