"""Draws what the READMEs of the other projects ask their readers to bring: pictures, poisoned sets, weights and saved models."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from types import ModuleType

import numpy as np
from helpers.forgery_layouts import video, write_benchmark, write_celeb_list, write_preview, write_reference
from helpers.layouts import (
    picture,
    save_picture,
    write_cifar10,
    write_cifar100,
    write_class_folder,
    write_image_folder,
    write_imagenet,
    write_poison_pictures,
)
from helpers.manipulation_sets import write_casia_v2, write_folder
from helpers.segmentation import hash_of, save, write_masked_folder


def splits(root: Path) -> None:
    """Two classes of pictures, `train/<class>/*` and `test/<class>/*`."""
    for number, split in enumerate(("train", "test")):
        for label, name in enumerate(("cat", "dog")):
            for index in range(40):
                save_picture(root / split / name / f"{index}.png", 36, 40, seed=1000 * number + 100 * label + index)


def photographs(folder: Path) -> None:
    """Six pictures of three formats."""
    write_image_folder(folder, height=48, width=64)


def cifar10(root: Path) -> None:
    """CIFAR-10 with 500 pictures to train on."""
    write_cifar10(root, per_batch=100)


def cifar100(root: Path) -> None:
    """CIFAR-100 with 400 pictures to train on."""
    write_cifar100(root, num_train=400, num_test=40)


def imagenet(root: Path) -> None:
    """ImageNet with three pictures of each of 102 classes to train on."""
    write_imagenet(root, per_class=3)


def faces(root: Path) -> None:
    """Aligned faces of 40 people to learn, and LFW with ten folds of pairs."""
    for person in range(40):
        for row in range(14):
            save_picture(root / "train" / f"person{person:02d}" / f"{row}.jpg", 112, 112, seed=20 * person + row)
    lines = ["10\t3"]
    for fold in range(10):
        one, other = f"Ann_{fold}", f"Bob_{fold}"
        for place, name in enumerate((one, other)):
            for row in range(1, 5):
                save_picture(root / "lfw" / name / f"{name}_{row:04d}.jpg", 112, 112, seed=1000 + 20 * fold + 10 * place + row)
        lines += [f"{one}\t1\t{2 + row}" for row in range(3)] + [f"{one}\t1\t{other}\t{1 + row}" for row in range(3)]
    (root / "lfw/pairs.txt").write_text("\n".join(lines) + "\n")


def checkpoints_of_a_teacher(folder: Path) -> None:
    """Three states of a ResNet-56 for CIFAR-100, as RepDistiller leaves them."""
    import torch

    from projects.rco.networks import build_network

    folder.mkdir(parents=True)
    for epoch in (20, 40, 60):
        torch.manual_seed(epoch)
        weights = build_network("resnet56", [3, 32, 32], 100).state_dict()
        torch.save({"epoch": epoch, "model": weights, "accuracy": torch.tensor(float(epoch))}, folder / f"ckpt_epoch_{epoch}.pth")


def network_of_ddim(file: Path) -> None:
    import torch
    from helpers.ddim import weights

    torch.save([weights(), {"state": {}}, 1, 5000], file)


def pipeline(folder: Path) -> None:
    """A saved diffusion model of 16 pixels, as diffusers writes it, with random weights."""
    from diffusers import DDPMScheduler

    from shared.backbones.unets import build_unet, save_pipeline

    save_pipeline(build_unet("tiny", 16, 1), DDPMScheduler(num_train_timesteps=100, beta_start=1e-3, beta_end=0.1), folder)


def last_artefact(path: Path) -> None:
    """A copy of what lies in the last run under `path`'s own place, `RUN/artefacts/<verb>/<name>`."""
    others = [file for file in path.parents[3].glob(f"*/artefacts/{path.parent.name}/{path.name}") if file != path]
    if not others:
        raise FileNotFoundError(f"no run has written {path.name} yet")
    last = max(others, key=lambda file: file.stat().st_mtime)
    path.parent.mkdir(parents=True, exist_ok=True)
    (shutil.copytree if last.is_dir() else shutil.copyfile)(last, path)


def table_of_certificates(path: Path) -> None:
    """A table of certificates in Cohen's columns."""
    rows = [f"{10 * n}\t{n % 10}\t{n % 10 if n % 4 else (n + 1) % 10}\t{0.1 * (n % 7):.3}\t{int(n % 4 > 0)}\t0:00:01.5" for n in range(40)]
    path.write_text("\n".join(["idx\tlabel\tpredict\tradius\tcorrect\ttime", *rows]) + "\n")


def branch(path: Path) -> None:
    """A ResNet-110 of a half of CIFAR-10's pictures, saved as the authors of dual smoothing do."""
    import torch

    from shared.backbones.resnets import CifarResNet

    weights = CifarResNet(110, 10).state_dict()
    torch.save({"epoch": 1, "arch": "cifar_resnet110", "state_dict": {f"module.1.{name}": tensor for name, tensor in weights.items()}}, path)


def denoiser(path: Path) -> None:
    """A denoiser of pictures in colours, saved as the authors of denoised smoothing do."""
    import torch

    from shared.backbones.denoisers import DnCNN

    weights = {name.replace("noise.", "dncnn.", 1): tensor for name, tensor in DnCNN().state_dict().items()}
    del weights["dncnn.47.bias"]
    torch.save({"epoch": 1, "arch": "cifar_dncnn", "state_dict": weights}, path)


def classes(folder: Path) -> None:
    """Two classes of 50 pictures."""
    write_class_folder(folder, per_class=50, height=32, width=32)


def poison(folder: Path, count: int = 500) -> None:
    """A published poison: a picture for each training picture."""
    write_poison_pictures(folder, np.stack([picture(32, 32, seed=number) for number in range(count)]))


def poison100(folder: Path) -> None:
    """The same for CIFAR-100."""
    poison(folder, 400)


def masked(folder: Path) -> None:
    """Medical pictures of one channel with their masks."""
    write_masked_folder(folder, count=40, height=64, width=64)


def forged_videos(root: Path) -> None:
    """FaceForensics++, Celeb-DF, WildDeepfake, DFDC and its preview, under the names of both forgery projects."""
    write_reference(root.with_name("unpacked")).rename(root)
    root.with_name("unpacked").rmdir()
    write_preview(root)
    write_celeb_list(root)
    for number in range(4, 8):
        video(root / "CDF" / "Celeb-real" / f"id{number}_0001", 12, number)
    for number, part in enumerate(("real_test", "fake_test")):
        video(root / "WildDeepfake" / part / f"{number}", 4, 100 * number)


def benchmark(root: Path) -> None:
    """DeepfakeBench's lists and frames."""
    write_benchmark(root)


def genotype(path: Path) -> None:
    """The cells of the authors."""
    from projects.forgery_nas.genotype import load_genotype

    path.write_text(load_genotype("released").to_json())


def manipulated(root: Path) -> None:
    """CASIA v2 to learn, and all other sets of manipulated pictures."""
    for write in of_test("tripinet/test_sets.py").WRITERS:
        if write.__name__ != "casia_v2":
            (root / write.__name__).mkdir(parents=True)
            write(root / write.__name__)
    write_casia_v2(root / "casia_v2", 24)


def manipulated_folder(folder: Path) -> None:
    """A folder of manipulated pictures `Tp`, their masks `Gt`, and authentic ones `Au`."""
    write_folder(folder, {"MINE": 0, "CHECK": 100}[folder.name], 20, 20)


def network(path: Path) -> None:
    """Random weights of the network of timm that the file is named after."""
    import timm
    import torch
    from safetensors.torch import save_file

    weights = timm.create_model({"dino_vits8": "vit_small_patch8_224.dino"}.get(path.stem, path.stem)).state_dict()
    save_file(weights, path) if path.suffix == ".safetensors" else torch.save(weights, path)


def depth_pairs(folder: Path, count: int = 8) -> None:
    """`RGB`, `depth` and `GT` of pictures of which the middle stands out and is near."""
    marked = np.zeros((48, 64), bool)
    marked[12:36, 16:48] = True
    for number in range(count):
        save_picture(folder / "RGB" / f"{number}.jpg", 48, 64, seed=hash_of(str(folder), number))
        save(folder / "depth" / f"{number}.png", np.where(marked, 200, 100).astype(np.uint8))
        save(folder / "GT" / f"{number}.png", np.where(marked, 255, 0).astype(np.uint8))


def colours(folder: Path) -> None:
    """A folder of one picture."""
    save_picture(folder / "0.png", 48, 64)


def depths(folder: Path) -> None:
    """A folder of its depth."""
    save(folder / "0.png", picture(48, 64, channels=1))


def depth_sets(root: Path) -> None:
    """SPNet's layout: stems of NJU2K, NLPR and DUT-RGBD to learn, three sets to test on."""
    of_test("hodinet/test_data.py").write_spnet(root)


def own_depth_sets(root: Path) -> None:
    """A reader's own pictures with depth, to learn and to test on."""
    depth_pairs(root / "train", 16)
    depth_pairs(root / "test", 4)


def trays(root: Path, category: str = "screw_bag") -> None:
    """MVTec LOCO AD with one category, of drawn trays."""
    from projects.comad.traysim import write_loco

    write_loco(root, length=12, val_length=6, test_length=2).rename(root / category)


def good_trays(root: Path) -> None:
    """Good pictures to learn, and some to test on."""
    trays(root.with_name("unpacked"))
    (root.with_name("unpacked") / "screw_bag").rename(root)
    shutil.rmtree(root.with_name("unpacked"))


def tray_pictures(folder: Path) -> None:
    """Pictures of trays."""
    _of_trays(folder, "train/good")


def kinds_of_trays(folder: Path) -> None:
    """Labelled anomalies, a sub-folder a kind."""
    for kind in ("logical", "structural"):
        _of_trays(folder / kind, f"test/{kind}_anomalies")


def _of_trays(folder: Path, part: str) -> None:
    trays(folder.with_name("unpacked"))
    folder.parent.mkdir(exist_ok=True)
    (folder.with_name("unpacked") / "screw_bag" / part).rename(folder)
    shutil.rmtree(folder.with_name("unpacked"))


def of_test(name: str) -> ModuleType:
    """Load a project's tests, for the writers in them."""
    spec = importlib.util.spec_from_file_location(f"writers_of_{Path(name).parent.name}", Path(__file__).parents[1] / "projects" / name)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
