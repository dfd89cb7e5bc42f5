"""Draws what the READMEs of cafe, vafl, rsknet and s3rp ask their readers to bring: records, recordings and fields."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
from helpers.party_sets import idx
from helpers.voices import pair_lines, write_musan, write_rirs, write_sitw, write_sound, write_speakers
from readme_inputs.commands import ROOT

SECONDS = 16_000  # samples


def mnist(root: Path) -> None:
    """MNIST's four files with 1200 pictures to train and 300 to test, of noise."""
    raw, draw = root / "MNIST/raw", np.random.default_rng(0)
    raw.mkdir(parents=True)
    for name, count in (("train", 1200), ("t10k", 300)):
        (raw / f"{name}-images-idx3-ubyte").write_bytes(idx(draw.integers(0, 256, (count, 28, 28), dtype=np.uint8)))
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(idx((np.arange(count) % 10).astype(np.uint8)))


def net_of_a_party(path: Path) -> None:
    """The file that cafe's README shows."""
    text = (ROOT / "projects/cafe/README.md").read_text(encoding="utf-8")
    path.write_text(next(block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "def build(" in block), encoding="utf-8")


def recording(path: Path) -> None:
    """Three seconds of quiet noise."""
    write_sound(path, 3 * SECONDS)


def voxceleb(root: Path) -> None:
    """Both VoxCelebs: 130 speakers of VoxCeleb2, 60 of whom are held out, and VoxCeleb1 with its three lists of trials."""
    parts = {
        "dev": write_speakers(root / "voxceleb1/dev/wav", ["id10001", "id10002"], samples=3 * SECONDS),
        "test": write_speakers(root / "voxceleb1/test/wav", ["id10270", "id10271"], samples=3 * SECONDS),
    }
    write_speakers(root / "voxceleb2/dev/wav", [f"id{number:05d}" for number in range(2000, 2130)], files=1, samples=3 * SECONDS)
    for file, names in (("veri_test2", ["test"]), ("list_test_all2", ["dev", "test"]), ("list_test_hard2", ["dev", "test"])):
        (root / f"{file}.txt").write_text("\n".join(pair_lines([name for part in names for name in parts[part]])) + "\n")


def sitw(root: Path) -> None:
    """Speakers in the Wild."""
    write_sitw(root, samples=10 * SECONDS)


def musan(root: Path) -> None:
    """MUSAN, as its archive unpacks below a folder of this name."""
    write_musan(root, 3 * SECONDS)


def rirs(path: Path) -> None:
    """RIRS_NOISES, the folder itself."""
    write_rirs(path.parent, 1600)


def speakers(root: Path) -> None:
    """A reader's own recordings: 60 speakers, 20 of whom are held out, and four to test on."""
    write_speakers(root / "train", [f"person{number:02d}" for number in range(60)], samples=3 * SECONDS)
    write_speakers(root / "test", [f"other{number}" for number in range(4)], samples=3 * SECONDS)


def speaker_network(path: Path) -> None:
    """A checkpoint of the paper's network with random weights."""
    import torch

    from projects.rsknet.module import SpeakerVerification

    net = SpeakerVerification("rsknet_mtsp", rate=16_000, bins=80).net
    weights = {f"net.{name}": tensor for name, tensor in net.state_dict().items()}
    torch.save({"state_dict": weights, "hyper_parameters": {"net": "rsknet_mtsp", "bins": 80, "rate": 16_000}, "speakers": []}, path)


def last_run(path: Path) -> None:
    """A copy of the last run that has a checkpoint, under a name of its own."""
    others = [file for file in path.parents[2].glob("*/checkpoints/best.ckpt") if file != path]
    if not others:
        raise FileNotFoundError("no run has a checkpoint yet")
    last = max(others, key=lambda file: file.stat().st_mtime)
    shutil.copytree(last.parents[1], path.parents[1], dirs_exist_ok=True)


def plume(path: Path, names: tuple[str, str, str] = ("methane", "u", "v"), frames: int = 8, cells: int = 8) -> None:
    """A netCDF file of a puff that a steady wind carries, on a plane in kilometres."""
    from scipy.io import netcdf_file

    path.parent.mkdir(parents=True, exist_ok=True)
    x = 10.0 * np.arange(cells)
    puff = [np.exp(-((x - 20 - 4 * time)[None] ** 2 + (x - 35)[:, None] ** 2) / 200) for time in range(frames)]
    with netcdf_file(path, "w") as out:
        for name, places, unit in (("time", np.arange(float(frames)), "hours since 2020-01-01"), ("y", x, "km"), ("x", x, "km")):
            out.createDimension(name, len(places))
            axis = out.createVariable(name, "f8", (name,))
            axis[:], axis.units = places, unit
        wind = np.ones((frames, cells, cells))
        for name, values, unit in zip(names, (1800 + 50 * np.stack(puff), 1.1 * wind, 0 * wind), ("ppb", "m s-1", "m s-1"), strict=True):
            variable = out.createVariable(name, "f4", ("time", "y", "x"))
            variable[:], variable.units = values, unit


def plumes(folder: Path) -> None:
    """A folder of two such files, whose winds have the names of a height."""
    for number in range(2):
        plume(folder / f"flight{number}.nc", ("ch4", "u100", "v100"))
