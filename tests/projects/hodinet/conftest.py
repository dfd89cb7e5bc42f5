import numpy as np
import pytest
from helpers.runs import copied, made_once
from PIL import Image

QUIET = ["--trainer.enable_model_summary", "false", "--trainer.log_every_n_steps", "1"]


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A run folder of a short training; tests copy it, see `run`."""
    from projects.hodinet.cli import main

    return made_once(tmp_path_factory, main, ["fit", "--trainer.max_epochs", "1", "--data.length", "48", "--data.test_length", "8", *QUIET])


@pytest.fixture
def run(trained, run_folder):
    """The short training as this test's latest run; its folder."""
    return copied(trained, run_folder)


def _write(folder, stems, names=("RGB", "depth", "GT"), size=(40, 50), first=0, endings=(".png", ".png", ".png")):
    """Write pictures that are functions of their numbers, whose salient middle has the depth 200 of 255, and the rest 100."""
    marked = np.zeros(size, bool)
    marked[size[0] // 4 : -(size[0] // 4), size[1] // 4 : -(size[1] // 4)] = True
    for number, stem in enumerate(stems, first):
        coarse = np.random.default_rng(number).integers(0, 256, (5, 6, 3), np.uint8)
        layers = (np.asarray(Image.fromarray(coarse).resize(size[::-1])), np.where(marked, 200, 100), np.where(marked, 255, 0))
        for name, layer, ending in zip(names, layers, endings, strict=True):
            (folder / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(layer.astype(np.uint8)).save(folder / name / f"{stem}{ending}")


@pytest.fixture(scope="session")
def write():
    """Writes miniatures of sets: `write(folder, stems, names, size, first, endings)`."""
    return _write


@pytest.fixture(scope="session")
def spnet(tmp_path_factory):
    """A miniature of the layout of SPNet, with pictures of several sizes and a set that has an underscore in its name."""
    root = tmp_path_factory.mktemp("spnet")
    _write(root / "TrainDataset", [f"{number:06}_left" for number in range(6)])
    _write(root / "TrainDataset", [f"9_03-44-{number:02}" for number in range(6)], size=(48, 36), first=10)
    _write(root / "TestDataset" / "NJU2K", ("b", "a"), first=20)
    _write(root / "TestDataset" / "NJU2K", ("c",), size=(30, 70), first=30)
    _write(root / "TestDataset" / "my_set", ("10", "9"), size=(70, 33), first=40)
    return root
