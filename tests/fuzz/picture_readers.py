"""The readers of projects on pictures, each with a writer of what it reads."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from fuzz.withstanding import Reader
from helpers import layouts, manipulation_sets, segmentation
from PIL import Image
from torch import Tensor

COUNT, CLASSES, SHAPE = 4, 2, (3, 6, 6)
LABELS = torch.tensor([1, 0, 1, 0])
NOISE = np.random.default_rng(0).integers(-8, 9, (COUNT, *SHAPE)).astype(np.int8)


# ---- comad


def _loco(home: Path) -> None:
    from projects.comad.defects import DefectType, write_config

    folder = home / "screws"
    for number, name in enumerate(
        ("train/good/000", "validation/good/000", "test/good/000", "test/logical_anomalies/000", "test/structural_anomalies/000")
    ):
        layouts.save_picture(folder / f"{name}.png", 20, 16, seed=number)
    levels = np.zeros((20, 16), np.uint8)
    levels[3:9, 3:9] = 249
    for kind in ("logical", "structural"):
        segmentation.save(folder / f"ground_truth/{kind}_anomalies/000/000.png", levels)
    write_config(folder / "defects_config.json", [DefectType("missing", 249, 0.5, True), DefectType("extra", 240, 30, False)])


def _read_loco(home: Path) -> None:
    from projects.comad.defects import read_defect
    from projects.comad.layouts import read_loco

    found = read_loco(home)
    for picture in found.pictures:
        for mask in picture.masks:
            read_defect(mask, (20, 16), found.types)


def _visa(home: Path) -> None:
    layouts.save_picture(home / "candle/Data/Images/Normal/0000.JPG", 20, 16)
    layouts.save_picture(home / "candle/Data/Images/Anomaly/000.JPG", 20, 16, seed=1)
    segmentation.save(home / "candle/Data/Masks/Anomaly/000.png", segmentation.disc(20, 16))
    rows = ("train,normal,candle/Data/Images/Normal/0000.JPG,", "test,anomaly,candle/Data/Images/Anomaly/000.JPG,candle/Data/Masks/Anomaly/000.png")
    (home / "split_csv").mkdir()
    (home / "split_csv/1cls.csv").write_text("object,split,label,image,mask\n" + "".join(f"candle,{row}\n" for row in rows))


def _read_visa(home: Path) -> None:
    from projects.comad.layouts import read_visa

    read_visa(home, "candle")


def _inspector(home: Path) -> None:
    from projects.comad.store import save_state

    save_state({"a": torch.ones(2, 3), "b": [torch.zeros(1), {"c": 3}], "names": ["x", "y"]}, home / "model.safetensors")


def _read_inspector(home: Path) -> None:
    from projects.comad.store import load_state

    load_state(home / "model.safetensors")


# ---- diff_cleanse, drs


def _trigger(home: Path) -> None:
    from safetensors.torch import save_file

    save_file({"trigger": torch.ones(1, 4, 4), "gain": torch.ones(1, 4, 4)}, home / "trigger.safetensors", {"sampler": "trojan_ddpm"})


def _read_trigger(home: Path) -> None:
    from projects.diff_cleanse.inspection import Trigger

    Trigger.load(home / "trigger.safetensors")


def _statistics(home: Path) -> None:
    np.savez(home / "fid.npz", mu=np.zeros(3), sigma=np.eye(3))


def _read_statistics(home: Path) -> None:
    from projects.diff_cleanse.metrics import FeatureStatistics

    FeatureStatistics.load(home / "fid.npz")


def _target(home: Path) -> None:
    Image.fromarray(layouts.picture(9, 12)).convert("RGBA").save(home / "target.png")


def _read_target(home: Path) -> None:
    from projects.diff_cleanse.triggers import make_target

    make_target(f"picture:{home / 'target.png'}", 8, 3)


def _celeba(home: Path) -> None:
    layouts.write_celeba(home, count=4)
    rows = "".join(f"{number:06d}.jpg  1 -1  1\n" for number in range(1, 5))
    (home / "list_attr_celeba.txt").write_text(f"4\nHeavy_Makeup Mouth_Slightly_Open Smiling\n{rows}")


def _read_celeba(home: Path) -> None:
    from projects.diff_cleanse.celeba import celeba

    faces, _ = celeba(home, 16, "RGB", "refuse")
    faces[0]


def _released(home: Path) -> None:
    weights = {f"module.1.{name}": torch.ones(2, 2) for name in ("conv1.weight", "fc.weight")}
    torch.save({"epoch": 3, "arch": "resnet", "state_dict": weights, "optimizer": {"state": {}}}, home / "left.pth.tar")


def _read_released(home: Path) -> None:
    from projects.drs.released import read_released

    read_released(home / "left.pth.tar")


# ---- dvae


def _poison(form: str):
    def make(home: Path) -> None:
        images = np.clip(NOISE.astype(int) + 128, 0, 255).astype(np.uint8).transpose(0, 2, 3, 1)
        if form == "pictures":
            layouts.write_poison_pictures(home / "poison", images)
        elif form in ("torch", "old-torch"):
            torch.save(torch.from_numpy(NOISE) / 255, home / "poison", _use_new_zipfile_serialization=form == "torch")
        elif form == "pickle":
            layouts.write_poison_pickle(home / "poison", NOISE)
        elif form == "ntga":
            layouts.write_ntga(home / "poison", images, LABELS.numpy(), CLASSES)
        elif form == "arrays":
            layouts.write_poison_arrays(home / "poison", images, LABELS.numpy())
        else:
            _stored(home / "poison", perturbation=True)

    return make


def _read_poison(home: Path) -> None:
    from projects.dvae.poison_files import read_poison

    poison = read_poison(home / "poison", COUNT, CLASSES, SHAPE, LABELS, keying="sample")
    poison.apply(torch.full((2, *SHAPE), 0.5), LABELS[:2], torch.tensor([0, 1]))


def _stored(folder: Path, form: str = "npy", perturbation: bool = False) -> None:
    from projects.dvae.sets.stored import PerturbationWriter, SetWriter

    kind = PerturbationWriter if perturbation else SetWriter
    writer = kind(folder, None, LABELS, ["a", "b"], SHAPE, form)  # type: ignore[arg-type]
    values: Tensor = torch.from_numpy(NOISE) / 255
    writer.write(range(COUNT), values if perturbation else (values + 0.5).clamp(0, 1))
    writer.finish({})


def _read_stored(home: Path) -> None:
    from projects.dvae.sets.stored import read_set

    read_set(home / "set").read([0, 1])


# ---- forgery_nas, moe_ffd


def _genotype(home: Path) -> None:
    from projects.forgery_nas.genotype import RELEASED

    (home / "genotype.json").write_text(RELEASED.to_json())


def _read_genotype(home: Path) -> None:
    from projects.forgery_nas.genotype import load_genotype

    load_genotype(home / "genotype.json")


def _delta(home: Path) -> None:
    from safetensors.torch import save_file

    about = {"format": "moe_ffd delta 1", "frozen": "0123", "configuration": json.dumps({"ranks": [1, 2], "name": "tiny"})}
    save_file({"a": torch.ones(2, 2)}, home / "delta.safetensors", about)


def _read_delta(home: Path) -> None:
    from projects.moe_ffd.weights import read_header
    from shared.checkpoints import load_tensors

    assert isinstance(read_header(home / "delta.safetensors")[1], dict)
    load_tensors(home / "delta.safetensors")


# ---- hodinet, tripinet


def _rgbd(home: Path) -> None:
    folder = home / "NJUD_FULL"
    for number, stem in enumerate(("1", "2")):
        layouts.save_picture(folder / "Image" / f"{stem}.jpg", 12, 16, seed=number)
        layouts.save_picture(folder / "Depth" / f"{stem}.png", 12, 16, channels=1, seed=number + 5)
        segmentation.save(folder / "Mask" / f"{stem}.png", segmentation.disc(12, 16, number))
    (home / "njud_train_jw_name_list.lst").write_text("1\n")
    (home / "njud_test_jw_name_list.lst").write_text("2.jpg\n")


def _side_by_side(home: Path) -> None:
    for number, stem in enumerate(("1", "2")):
        layouts.save_picture(home / "STERE" / f"{stem}.jpg", 12, 16, seed=number)
        layouts.save_picture(home / "STERE" / f"{stem}_depth.png", 12, 16, channels=1, seed=number + 5)
        segmentation.save(home / "STERE" / f"{stem}_gt.png", segmentation.disc(12, 16, number))
    (home / "STERE.txt").write_text("STERE/1.jpg STERE/1_gt.png\nSTERE/2.jpg STERE/2_gt.png\n")


def _read_rgbd(home: Path) -> None:
    from projects.hodinet.layouts import read_layout
    from projects.hodinet.samples import Reading, SampleFiles

    found = SampleFiles(read_layout(home), Reading())
    for index in range(len(found)):
        found.read(index)


def _depth(home: Path) -> None:
    np.save(home / "depth.npy", np.random.default_rng(0).uniform(0.5, 4, (12, 16)).astype(np.float32))


def _read_depth(home: Path) -> None:
    from projects.hodinet.depth import read_array

    read_array(home / "depth.npy")


def _manipulated(form: str):
    def make(home: Path) -> None:
        manipulation_sets.write_folder(home, 0, 2, 1, (12, 16))
        pairs = [[f"Tp/{number}.png", f"Gt/{number}_gt.png"] for number in range(2)] + [["Au/2.png", "Negative"]]
        text = {
            "json": json.dumps(pairs),
            "txt": "".join(f"{image} {mask} 1\n" for image, mask in pairs[:2]) + "Au/2.png None 0\n",
            "mixture": json.dumps([["JsonDataset", "list.json"], ["ManiDataset", "."]]),
        }
        (home / f"list.{form}").write_text(text[form]) if form != "mixture" else (home / "mixture.json").write_text(text[form])
        if form == "mixture":
            (home / "list.json").write_text(text["json"])

    return make


def _read_manipulated(name: str):
    def read(home: Path) -> None:
        from projects.tripinet.lists import read_lists
        from projects.tripinet.pairs import read_pair

        for pictures in read_lists(home / name).values():
            for picture in pictures:
                read_pair(picture)

    return read


def _nist(home: Path) -> None:
    columns = "ProbeFileName|ProbeMaskFileName|IsTarget|BaseFileName|IsManipulationTypeSplice"
    rows = [columns]
    for number in range(2):
        layouts.save_picture(home / "probe" / f"{number}.jpg", 12, 16, seed=number)
        segmentation.save(home / "reference" / "manipulation" / "mask" / f"{number}.png", segmentation.disc(12, 16, number))
        rows.append(f"probe/{number}.jpg|reference/manipulation/mask/{number}.png|Y|world/{number}.jpg|Y")
    (home / "reference" / "manipulation" / "NC2016-manipulation-ref.csv").write_text("\n".join(rows) + "\n")


def _read_nist(home: Path) -> None:
    from projects.tripinet.sets import nist16

    nist16(home)


def _array_mask(home: Path) -> None:
    np.savez(home / "mask.npz", segmentation.disc(12, 16))
    layouts.save_picture(home / "picture.png", 12, 16)


def _read_array_mask(home: Path) -> None:
    from projects.tripinet.pairs import Picture, read_pair

    read_pair(Picture(home / "picture.png", home / "mask.npz", "splice", "set", frozenset(), "array"))


# ---- umed


def _masked(home: Path) -> None:
    segmentation.write_masked_folder(home, 2, height=12, width=16)


def _read_masked(home: Path) -> None:
    from projects.umed.sets.files import FileSet
    from projects.umed.sets.layouts import folder
    from projects.umed.sets.masks import mask_code

    for items in folder(home, mask_code(1)).values():
        FileSet(home, items, None, 1, 1, ["lesion"]).read([0])


def _read_levels(home: Path) -> None:
    from projects.umed.sets.masks import mask_code, read_mask

    read_mask(home / "mask.png", mask_code(2))


def _levels(home: Path) -> None:
    Image.fromarray(segmentation.disc(12, 16).astype(np.uint8) * 2).save(home / "mask.png")


def _read_glas(home: Path) -> None:
    from projects.umed.sets.layouts import glas

    glas(home)


def _acdc(home: Path) -> None:
    segmentation.write_acdc(home, 1, depth=2)


def _read_acdc(home: Path) -> None:
    from projects.umed.sets.volumes import acdc, read_labels, read_volume

    acdc(home)
    for path in sorted(home.rglob("*_frame*.nii.gz")):
        read_labels.__wrapped__(path, 3) if "_gt" in path.name else read_volume.__wrapped__(path)


def _protected(home: Path) -> None:
    from projects.umed.protected import write_protected
    from projects.umed.sets.base import SegmentationSet

    draw = np.random.default_rng(0)
    images = torch.from_numpy(draw.integers(0, 256, (2, 1, 12, 16), dtype=np.uint8))
    masks = torch.from_numpy(np.stack([segmentation.disc(12, 16, number) for number in range(2)]))
    about = {"method": "umed", "epsilon": 4, "texture": "none", "seed": 0, "generator": "0"}
    write_protected(home / "out", SegmentationSet(images, masks), lambda images, masks: torch.zeros_like(images.float()), about, radius=2)


def _read_protected(home: Path) -> None:
    from projects.umed.protected import read_protected

    read_protected(home / "out")


PICTURES = [
    Reader("comad-loco", _loco, _read_loco),
    Reader("comad-visa", _visa, _read_visa, "**/*.csv"),
    Reader("comad-inspector", _inspector, _read_inspector),
    Reader("diff_cleanse-trigger", _trigger, _read_trigger),
    Reader("diff_cleanse-statistics", _statistics, _read_statistics),
    Reader("diff_cleanse-target", _target, _read_target),
    Reader("diff_cleanse-celeba", _celeba, _read_celeba, "*.txt"),
    Reader("drs-released", _released, _read_released),
    *(
        Reader(f"dvae-poison-{form}", _poison(form), _read_poison)
        for form in ("pictures", "torch", "old-torch", "pickle", "ntga", "arrays", "stored")
    ),
    Reader("dvae-set-npy", lambda home: _stored(home / "set"), _read_stored),
    Reader("dvae-set-png", lambda home: _stored(home / "set", "png"), _read_stored),
    Reader("forgery_nas-genotype", _genotype, _read_genotype),
    Reader("hodinet-layout", _rgbd, _read_rgbd),
    Reader("hodinet-lists", _side_by_side, _read_rgbd, "*.txt"),
    Reader("hodinet-depth", _depth, _read_depth),
    Reader("moe_ffd-delta", _delta, _read_delta),
    Reader("tripinet-json", _manipulated("json"), _read_manipulated("list.json"), "*.json"),
    Reader("tripinet-text", _manipulated("txt"), _read_manipulated("list.txt"), "*.txt"),
    Reader("tripinet-mixture", _manipulated("mixture"), _read_manipulated("mixture.json"), "mixture.json"),
    Reader("tripinet-pairs", _manipulated("json"), _read_manipulated("list.json"), "*/*.png"),
    Reader("tripinet-nist16", _nist, _read_nist, "**/*.csv"),
    Reader("tripinet-array-mask", _array_mask, _read_array_mask, "*.npz"),
    Reader("umed-folder", _masked, _read_masked),
    Reader("umed-levels", _levels, _read_levels),
    Reader("umed-glas", lambda home: segmentation.write_glas(home, (1, 1, 1)), _read_glas, "**/*.csv"),
    Reader("umed-acdc", _acdc, _read_acdc, "**/*_frame*.nii.gz"),
    Reader("umed-protected", _protected, _read_protected),
]
