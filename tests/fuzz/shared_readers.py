"""The readers of `shared`, each with a writer of what it reads."""

from __future__ import annotations

import csv
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from fuzz.withstanding import Reader
from helpers import forgery_layouts, layouts, party_sets
from PIL import Image

from shared.backbones import unets
from shared.checkpoints import load_checkpoint, load_tensors
from shared.data.cifar import CifarDataset
from shared.data.files import image_size, read_image, read_levels
from shared.data.folders import NpzDataset, PairFolderDataset
from shared.data.inputs import find_pictures
from shared.forgery import benchmark_json, npy_lists, videos
from shared.forgery import layouts as forgery
from shared.pruning import load as load_pruned
from shared.pruning import save as save_pruned
from shared.pruning.__main__ import load_model
from shared.report.reading import read_run
from shared.smoothing.log import Row
from shared.smoothing.tables import read_sidecar, read_table
from shared.vertical import layouts as vertical
from shared.vertical import tables


def _picture(name: str, **options):
    def make(home: Path) -> None:
        picture = Image.fromarray(layouts.picture(20, 16))
        (picture.convert(options.pop("mode")) if "mode" in options else picture).save(home / name, **options)

    return make


def _read_pictures(home: Path) -> None:
    for path in sorted(home.iterdir()):
        for mode in ("RGB", "L", "1"):
            pixels = read_image(path, mode)
            assert pixels.isfinite().all()
            assert pixels.shape[1:] == image_size(path)
        read_levels(path)
        find_pictures(path)


def _items(dataset) -> None:
    for index in range(len(dataset)):
        dataset[index]


def _network() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2))


def _checkpoint(home: Path) -> None:
    torch.save({"state_dict": _network().state_dict(), "epoch": 3, "hyper_parameters": {"lr": 0.1}}, home / "last.ckpt")


def _weights(home: Path) -> None:
    from safetensors.torch import save_file

    save_file(_network().state_dict(), home / "net.safetensors", {"made by": "a test"})


def _unet():
    from diffusers import UNet2DModel

    blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",), "block_out_channels": (4,), "layers_per_block": 1}
    return UNet2DModel(sample_size=8, in_channels=1, out_channels=1, norm_num_groups=2, add_attention=False, **blocks)


def _pipeline(home: Path) -> None:
    from diffusers import DDPMScheduler

    unets.save_pipeline(_unet(), DDPMScheduler(num_train_timesteps=10), home / "pipeline")


def _lists(home: Path) -> None:
    frames = [forgery_layouts.frame(home / "set" / "train" / kind / "video" / f"{number}.png", number) for kind in "rf" for number in range(3)]
    rows = [[str(path.relative_to(home / "set")), str(int(path.parts[-3] == "f"))] for path in frames]
    np.save(home / "set" / "train.npy", np.array(rows))


def _video(home: Path) -> None:
    import av

    with av.open(str(home / "clip.avi"), "w") as container:
        stream = container.add_stream("mjpeg", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 24, "yuvj420p"
        for number in range(6):
            frame = av.VideoFrame.from_ndarray(np.full((24, 32, 3), 30 * number, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def _store(home: Path) -> None:
    import lmdb

    layouts.save_picture(home / "0.png", 20, 16)
    with lmdb.open(str(home / "store"), map_size=2**20) as store, store.begin(write=True) as writing:
        writing.put(b"set/0.png", (home / "0.png").read_bytes())
    (home / "store" / "lock.mdb").unlink(missing_ok=True)
    (home / "0.png").unlink()


def _certificates(home: Path) -> None:
    rows = [Row(index, 3, 3, 0.5 + index / 10, 1.5) for index in range(4)]
    header = json.dumps({"version": 1, "hash": "0", "settings": {"sigma": 0.25}})
    (home / "certify.jsonl").write_text("\n".join([header, *(json.dumps(asdict(row)) for row in rows)]) + "\n")
    (home / "certify.tsv").write_text(
        "idx\tlabel\tpredict\tradius\tcorrect\ttime\n" + "".join(f"{i}\t3\t3\t0.5{i}\t1\t0:00:01.5\n" for i in range(4))
    )


def _read_certificates(home: Path) -> None:
    read_table(home / "certify.tsv")
    read_sidecar(home / "certify.tsv")


def _run(home: Path) -> None:
    run = home / "toy" / "mine"
    (run / "fit").mkdir(parents=True)
    (run / "config.yaml").write_text("seed_everything: 0\nmodel: {lr: 0.1}\n")
    stage = {"verb": "fit", "command": "lightning run", "started": "2026-01-01T00:00:00", "seconds": 3.0, "headline": {"val/loss": 0.5}}
    (run / "manifest.json").write_text(json.dumps({"project": "toy", "run": "mine", "stages": [stage]}))
    with (run / "fit" / "metrics.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["step", "train/loss"], [1, 0.5], [2, 0.25]])


def _write_table(home: Path) -> None:
    (home / "table.csv").write_text("a;b;label\n" + "".join(f"{row};{row / 3};{'yes' if row % 2 else 'no'}\n" for row in range(8)))


SHARED = [
    Reader("pictures-png", _picture("a.png"), _read_pictures),
    Reader("pictures-png-palette", _picture("a.png", mode="P"), _read_pictures),
    Reader("pictures-jpeg", _picture("a.jpg", quality=95), _read_pictures),
    Reader("pictures-gif", _picture("a.gif"), _read_pictures),
    Reader("pictures-bmp", _picture("a.bmp"), _read_pictures),
    Reader("pictures-tiff", _picture("a.tif", compression="tiff_lzw"), _read_pictures),
    Reader("pictures-webp", _picture("a.webp"), _read_pictures),
    Reader("pictures-ppm", _picture("a.ppm"), _read_pictures),
    Reader("pairs", lambda home: layouts.write_pair_folder(home, count=1), lambda home: _items(PairFolderDataset(home))),
    Reader("npz", lambda home: layouts.write_npz(home / "a.npz", 2, 4), lambda home: _items(NpzDataset(home / "a.npz"))),
    Reader(
        "npz-compressed", lambda home: layouts.write_npz(home / "a.npz", 2, 4, is_compressed=True), lambda home: _items(NpzDataset(home / "a.npz"))
    ),
    Reader("cifar10", lambda home: layouts.write_cifar10(home, 1), lambda home: _items(CifarDataset(home, 10, ("train", "test")))),
    Reader("cifar100", lambda home: layouts.write_cifar100(home, 2, 1), lambda home: _items(CifarDataset(home, 100, ("train", "test")))),
    Reader("checkpoint", _checkpoint, lambda home: (load_checkpoint(home / "last.ckpt"), load_tensors(home / "last.ckpt"))),
    Reader("weights", _weights, lambda home: load_tensors(home / "net.safetensors")),
    Reader("pipeline", _pipeline, lambda home: unets.load_pipeline(home / "pipeline")),
    Reader("pruned", lambda home: save_pruned(_unet(), home / "net"), lambda home: load_pruned(home / "net")),
    Reader("network", lambda home: _unet().save_pretrained(home / "net"), lambda home: load_model(home / "net")),
    Reader("certificates", _certificates, _read_certificates),
    Reader("run", _run, lambda home: read_run(home / "toy" / "mine")),
    Reader("table", _write_table, lambda home: tables.read_table(home / "table.csv")),
    Reader("mnist", lambda home: party_sets.write_mnist(home / "raw"), lambda home: [vertical.read_mnist(home, part) for part in ("train", "test")]),
    Reader("video", _video, lambda home: videos.read_video(home / "clip.avi", 3)),
    Reader("npy-lists", _lists, lambda home: npy_lists.npy_lists(home, "set"), "set/*.npy"),
    Reader("frame-store", _store, lambda home: benchmark_json.StoredFrames(["set/0.png"], 8, home / "store")[torch.tensor([0])]),
    Reader(
        "celeb-df",
        lambda home: forgery_layouts.write_celeb_list(forgery_layouts.write_reference(home, 1)),
        lambda home: forgery.reference(home / "my sets", "CDF"),
        "**/*.txt",
    ),
    Reader(
        "dfdc", lambda home: forgery_layouts.write_reference(home, 1), lambda home: forgery.reference(home / "my sets", "DFDC"), "**/*.csv"
    ),
    Reader("dfdc-preview", forgery_layouts.write_preview, lambda home: forgery.reference(home, "DFDCP"), "**/*.json"),
    Reader("faceforensics", forgery_layouts.write_faceforensics, forgery.faceforensics, "**/*.json"),
    Reader("forgery-table", forgery_layouts.write_table, lambda home: forgery.table(home / "faces.csv"), "*.csv"),
    Reader(
        "deepfakebench",
        forgery_layouts.write_benchmark,
        lambda home: [benchmark_json.benchmark(benchmark_json.find_places(home), name) for name in ("Celeb-DF-v2", "DFDC")],
        "**/*.json",
    ),
]  # fmt: skip
