"""Every project trains, and tests what it trained, on a GPU that is only pretended: what lies on the wrong device is found without one."""

import importlib
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.commands import slow
from helpers.pretended_gpu import ARGUMENTS, pretended_gpu
from test_matrix import SMALL
from torch import nn
from torch.nn import functional as F

QUIET = ["--trainer.enable_model_summary=false", "--trainer.log_every_n_steps=1"]
OPTIONS = SMALL | {
    "comad": [
        *("--data.length=12", "--data.val_length=6", "--data.test_length=2", "--data.batch_size=4"),
        "--model.patches=100",
        "--model.restarts=1",
    ],
    "dvae": ["--model.width=4", "--model.epochs=[1,1]", "--data.batch_size=128"],
    "umed": [
        *("--data.length=16", "--data.test_length=8", "--data.size=32"),
        *("--model.generator_widths=[4,8]", "--model.surrogate_widths=[4,8]"),
    ],
    "vafl": ["--data.source=breast_cancer", "--model.protocol.algorithm=centralised"],
}
EPOCHS = {"comad": None, "dvae": 2}
"""Epochs of a training that are not one: comad has none, dvae one a stage."""
FURTHER = {
    "cafe": [["attack", "--data.count=20", "--data.batch_size=10", "--steps=3"], ["predict"]],
    "drs": [["certify", "--draws=200", "--batch_size=32", "--data.limit=3"]],
    "dvae": [["purify", "--products=[x1]"]],
    "rsknet": [["calibrate"]],
    "umed": [["protect"], ["attack", "--epochs=1", "--defence=affine"]],
    "vafl": [["predict"]],
}
"""What else is done in the run, besides test."""
LONG = {"diff_cleanse"}
"""Projects whose case takes more than 15 seconds."""


@pytest.fixture
def device():
    with pretended_gpu() as device:
        yield device


def numbers(device="cpu"):
    return torch.arange(12.0).view(3, 4).to(device)


ROWS = torch.tensor([0, 2])
REFUSED = {
    "a sum": lambda x, c: x + c,
    "a sum in place": lambda x, c: c.add_(x),
    "a number of the device added to a CPU tensor": lambda x, c: c + x.sum(),
    "a product of matrices": lambda x, c: x @ c.T,
    "cat": lambda x, c: torch.cat([x, c]),
    "numbers stacked": lambda x, c: torch.stack([x[0, 0], c[0, 0]]),
    "a mask for masked_fill": lambda x, c: x.masked_fill(c > 1, 0.0),
    "gather": lambda x, c: x.gather(0, torch.zeros(1, 4, dtype=torch.int64)),
    "index_select": lambda x, c: x.index_select(0, ROWS),
    "embedding": lambda x, c: F.embedding(ROWS, x),
    "labels of the CPU": lambda x, c: F.cross_entropy(x, torch.zeros(3, dtype=torch.int64)),
    "values of the CPU put at places": lambda x, c: x.__setitem__(ROWS, c[ROWS]),
    "places of the device in a CPU tensor": lambda x, c: c[ROWS.cuda()],
    "a layer of the CPU": lambda x, c: nn.Linear(4, 2)(x),
    "a CPU generator": lambda x, c: torch.randn(3, generator=torch.Generator(), device=x.device),
    "a CPU generator in place": lambda x, c: x.uniform_(generator=torch.Generator()),
    "the device's generator for the CPU": lambda x, c: torch.randperm(3, generator=torch.Generator(x.device)),
}
TAKEN = {
    "a CPU number": lambda x: x * torch.tensor(2.0) + torch.tensor(1.0),
    "a CPU number to fill with": lambda x: x.masked_fill(x > 1, torch.tensor(0.5)),
    "places": lambda x: x[ROWS],
    "lists and arrays": lambda x: torch.cat([x[[0, 1]], x[np.array([0, 1])], x[[]]]),
    "a mask of the CPU": lambda x: x[numbers() > 3],
    "a CPU tensor copied in": lambda x: x.index_fill_(0, ROWS.to(x.device), 0.5)[:1].copy_(torch.ones(1, 4)),
    "a gradient that crosses": lambda x: torch.func.grad(lambda y: y.to(x.device).square().sum())(numbers()),
    "a whole lattice": lambda x: torch.fft.rfft2(x).abs() + torch.arange(3, device=x.device),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cuda_refuses_is_refused(device, name):
    with pytest.raises(RuntimeError, match=r"same device|device type for generator"):
        REFUSED[name](numbers(device), numbers())


@pytest.mark.parametrize("name", TAKEN)
def test_what_cuda_takes_gives_the_numbers_of_the_cpu(device, name):
    torch.testing.assert_close(TAKEN[name](numbers(device)).cpu(), TAKEN[name](numbers()))


def test_values_reach_numpy_from_the_cpu_alone(device):
    x = numbers(device)
    for convert in (x.numpy, lambda: np.asarray(x)):
        with pytest.raises(TypeError, match="to host memory first"):
            convert()
    assert x.cpu().numpy().tolist() == x.tolist() == numbers().tolist()
    assert (x.device, x.to("cuda") is x, x[0, 1].item()) == (device, True, 1.0)


def test_a_training_gives_the_weights_of_the_cpu(device):
    def train(place):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)).to(place)
        optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
        for _ in range(4):
            images, labels = torch.rand(8, 1, 4, 4).to(place), torch.randint(3, (8,)).to(place)
            F.cross_entropy(net(images), labels).backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        return net.state_dict()

    found, expected = train(device), train("cpu")
    assert {value.device for value in found.values()} == {device}
    for name, value in expected.items():
        torch.testing.assert_close(found[name].cpu(), value, rtol=0, atol=0)


@pytest.mark.parametrize("project", [slow(name) if name in LONG else name for name in OPTIONS])
def test_every_project_runs_on_the_device(device, monkeypatch, project):
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, path, **options: Path(path).touch())
    main, epochs = importlib.import_module(f"projects.{project}.cli").main, EPOCHS.get(project, 1)
    limit = [] if epochs is None else [f"--trainer.max_epochs={epochs}"]
    for verb in (["fit", *QUIET, *OPTIONS[project], *limit], ["test"], *FURTHER.get(project, [])):
        cli = main([*verb, *ARGUMENTS, "--debug"])
        assert cli.trainer.strategy.root_device == device
