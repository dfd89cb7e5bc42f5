"""The configurations of the paper's sets: nets of full size, on miniatures of their files."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
import yaml
from helpers.layouts import write_cifar10
from helpers.party_sets import write_mimic3, write_mnist, write_speech, write_views

from projects.vafl import cli, mimic3
from projects.vafl.cli import main
from projects.vafl.data import VerticalRecords
from projects.vafl.module import VerticalFederation
from projects.vafl.settings import Delays, Protection, Protocol
from projects.vafl.simulator import Simulator

CONFIGS = sorted((Path(cli.__file__).parent / "configs").glob("*.yaml"))
WRITERS = {
    "paper": lambda root: write_mnist(root / "MNIST" / "raw"),
    "mnist_private": lambda root: write_mnist(root / "MNIST" / "raw"),
    "fashion_mnist": lambda root: write_mnist(root / "FashionMNIST" / "raw"),
    "cifar10": write_cifar10,
    "parkinson": write_speech,
    "modelnet40": write_views,
    "mimic3": write_mimic3,
}


def convolutions():
    """Seven layers, as the paper has them: six convolutions of 3 x 3, three pools, a vector of 512."""
    channels = [1, 32, 32, 64, 64, 128, 128]
    return sum(9 * inner * outer + outer for inner, outer in pairwise(channels)) + 4 * 4 * 128 * 512 + 512


def lstms(features):
    """An LSTM of 8 units each way, then one of 16; torch has two biases."""
    return 2 * (4 * 8 * (features + 8) + 2 * 4 * 8) + 4 * 16 * (16 + 16) + 2 * 4 * 16


CLIENTS = {
    "paper": [112 * 10] * 7,
    "mnist_private": [112 * 10] * 7,
    "fashion_mnist": [112 * 10] * 7,
    "cifar10": [384 * 10] * 8,
    "parkinson": [251 * 2] * 3,
    "modelnet40": [convolutions()] * 4,
    "mimic3": [lstms(len(columns)) for columns in mimic3.party_columns()],
}
SHAPES = {"modelnet40": [[3, 1, 32, 32]] * 4}


def server(name, classes):
    """Parameters of theta_0: a bias, or twelve weights and layers on their sum, or a layer on all embeddings."""
    if name == "modelnet40":
        return 12 + sum(inner * outer + outer for inner, outer in pairwise([512, 256, 100, classes]))
    return 4 * 16 * classes + classes if name == "mimic3" else classes


def parameters(net):
    return sum(parameter.numel() for parameter in net.parameters())


def test_every_configuration_is_tried():
    assert {path.stem for path in CONFIGS} == {"tiny", *WRITERS}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_configuration_begins_with_its_command(path):
    first, *_ = path.read_text().splitlines()
    expected = "# lightning run projects/vafl/cli.py fit" + ("" if path.stem == "tiny" else f" --config {path.stem} --data.root ")
    assert first.startswith(expected)


def built(name, **data):
    """Return the federation and the data that a configuration describes."""
    config = yaml.safe_load(next(path for path in CONFIGS if path.stem == name).read_text().replace("${seed_everything}", "0"))
    records = VerticalRecords(**(config["data"] | data))
    own, parts = config["model"], {"protocol": Protocol, "delays": Delays, "protection": Protection}
    own |= {part: kind(**own[part]) for part, kind in parts.items() if part in own}
    return VerticalFederation([list(shape) for shape in records.shapes], records.classes, **own), records


@pytest.mark.parametrize("name", list(WRITERS))
def test_a_setting_of_the_paper_runs_on_a_miniature_of_its_files(name, tmp_path, run_folder, capsys):
    WRITERS[name](tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--config", name, "--print_config"])
    assert (stop.value.code, "uploads: extra:fraction=0.1" in capsys.readouterr().out) == (0, True)
    module, data = built(name, root=str(tmp_path), batch_size=2)
    assert [parameters(bottom) for bottom in module.model.bottoms] == CLIENTS[name]
    assert parameters(module.model.head) == server(name, module.classes)
    before = {key: value.clone() for key, value in module.model.head.state_dict().items()}
    simulator = Simulator(module.model, data.train.blocks, data.train.labels, module.setting(data.batch_size))
    simulator.run(updates=2)
    assert simulator.server.updates == 2
    assert any(not torch.equal(before[key], value) for key, value in module.model.head.state_dict().items())


def test_the_net_for_forty_classes_has_the_papers_layers():
    config = next(path for path in CONFIGS if path.stem == "modelnet40")
    own = yaml.safe_load(config.read_text())["model"]
    nets = VerticalFederation(SHAPES["modelnet40"], 40, **{name: own[name] for name in ("bottom", "embedding", "head", "head_hidden")}).model
    assert parameters(nets.head) == 12 + (512 * 256 + 256) + (256 * 100 + 100) + (100 * 40 + 40)
    assert parameters(nets) == 4 * convolutions() + parameters(nets.head) == 5_503_160
