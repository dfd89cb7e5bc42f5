"""Every published set, in miniature and as it is downloaded, with the odd cases that the sheet warns of."""

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


def casia_v1(root):
    for part, stem in (("Sp", "Sp_D_CNN_A_art0024_ani0032_0268"), ("CM", "Sp_S_CNN_A_nat0013_nat0013_0100")):
        save(root / "Tp" / part / f"{stem}.jpg")
        save(root / "groundtruth" / part / f"{stem}_gt.png", WHITE)
    save(root / "Tp" / "Sp" / f"{NO_MASK[0]}.jpg")
    save(root / "Au" / "Au_ani_0032.jpg")
    return {"splice": 1, "copymove": 1, "authentic": 1}


def casia_v2(root):
    for stem, ending in zip(TP, (".jpg", ".tif", ".tif"), strict=True):
        save(root / "Tp" / f"{stem}{ending}")
    for stem in TP[:2]:
        save(root / "CASIA 2 Groundtruth" / f"{stem}_gt.png", WHITE)
    save(root / "Au" / "Au_ani_00058.jpg")
    return {"splice": 1, "copymove": 1, "authentic": 1}


def columbia(root):
    save(root / "4cam_splc" / "canong3_canonxt_sub_01.tif")
    save(root / "4cam_splc" / "edgemask" / "canong3_canonxt_sub_01_edgemask.jpg", GREEN)
    save(root / "4cam_auth" / "canong3_02_sub_01.tif")
    return {"splice": 1, "authentic": 1}


def coverage(root):
    for number in (1, 12):
        save(root / "image" / f"{number}.tif")
        save(root / "image" / f"{number}t.tif")
        for part in ("forged", "copy", "paste"):
            save(root / "mask" / f"{number}{part}.tif", WHITE)
    return {"copymove": 2, "authentic": 2}


def nist16(root):
    columns = "TaskID|ProbeFileName|ProbeMaskFileName|BaseFileName|IsManipulationTypeRemoval|IsManipulationTypeSplice|IsManipulationTypeCopyClone"
    rows = [columns]
    for number, flags in enumerate(("Y|N|N", "N|Y|N", "N|N|Y", "N|N|N")):
        save(root / "probe" / f"NC2016_{number}.jpg")
        save(root / "reference" / "manipulation" / "mask" / f"m{number}.png", BLACK)
        rows.append(f"manipulation|probe/NC2016_{number}.jpg|reference/manipulation/mask/m{number}.png|world/{number // 2}.jpg|{flags}")
    save(root / "probe" / "NC2016_9.jpg")
    rows.append("manipulation|probe/NC2016_9.jpg||world/9.jpg|N|N|N")
    (root / "reference" / "manipulation" / "NC2016-manipulation-ref.csv").write_text("\n".join(rows))
    return {"inpaint": 1, "splice": 1, "copymove": 1, "manipulated": 1, "authentic": 1}


def imd2020(root):
    for case in ("1a", "2b"):
        save(root / case / f"{case}_orig.jpg")
        for name in ("c8tf5mh", "c8tfaix")[: 1 + (case == "1a")]:
            save(root / case / f"{name}_0.png")
            save(root / case / f"{name}_0_mask.png", WHITE)
    return {"manipulated": 3, "authentic": 2}


def defacto(root):
    for part in ("splicing_1_", "copymove-", "inpainting_"):
        save(root / f"{part}images" / "img" / "0_000000000071.tif")
        save(root / f"{part}annotations" / "probe_mask" / "0_000000000071.jpg", WHITE)
    save(root / "coco" / "000000000071.jpg")
    return {"splice": 1, "copymove": 1, "inpaint": 1, "authentic": 1}


def fantastic_reality(root):
    save(root / "ColorFakeImages" / "DSC_1.jpg")
    (root / "SegmentationFake").mkdir()
    np.savez_compressed(root / "SegmentationFake" / "DSC_1.npz", MARKED.astype(np.uint8) * 7)
    save(root / "ColorRealImages" / "DSC_2.jpg")
    return {"splice": 1, "authentic": 1}


def tampcoco(root):
    for part in ("sp", "cm", "bcm", "bcmc"):
        save(root / f"{part}_images" / f"{part}_1.jpg")
        save(root / f"{part}_masks" / f"{part}_1.png", WHITE)
    return {"splice": 1, "copymove": 3}


def compraise(root):
    save(root / "deep" / "r1.jpg")
    save(root / "r2.jpg")
    return {"authentic": 2}


def dso1(root):
    save(root / "DSO-1" / "splicing-01.png")
    save(root / "DSO-1" / "normal-01.png")
    save(root / "DSO-1-Fake-Images-Masks" / "splicing-01.png", WHITE)
    return {"splice": 1, "authentic": 1}


def cocoglide(root):
    save(root / "fake" / "glide_inpainting_val2017_100582_up.png")
    save(root / "mask" / "glide_inpainting_val2017_100582_up.png", WHITE)
    save(root / "real" / "val2017_100582.png")
    return {"inpaint": 1, "authentic": 1}


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
    for writer in (coverage, nist16, imd2020, defacto, casia_v2):
        written(writer, tmp_path)

    def scenes(name):
        return {source for picture in read_set(name, tmp_path) for source in picture.sources}

    assert scenes("coverage") == {"coverage/1", "coverage/12"}
    assert scenes("nist16") == {"nist16/world/0.jpg", "nist16/world/1.jpg", "nist16/world/9.jpg"}
    assert scenes("imd2020") == {"imd2020/1a", "imd2020/2b"}
    assert scenes("defacto") == {"coco/71"}
    assert scenes("casia_v2") == {"casia/nat10130", "casia/ani00058", "casia/cha00010"}


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
