"""Routes of other programs' checkpoints in a run: the right files, judged where samples are held out, and followed by a student's settings."""

import argparse
from types import SimpleNamespace

import pytest
import torch

from projects.rco.anchors import Route
from projects.rco.data import DistillationData
from projects.rco.importing import find_checkpoints, import_route
from projects.rco.module import RouteDistillation
from projects.rco.networks import build_network
from projects.rco.objectives import Loss
from projects.rco.tasks import anchors_of, own_route
from shared.data.files import BadFileError
from shared.runs import Run


@pytest.fixture
def trainer(tmp_path):
    run = Run(tmp_path / "runs" / "rco" / "mine")
    device = SimpleNamespace(root_device=torch.device("cpu"))
    return SimpleNamespace(run=run, verb="collect", default_root_dir=run.path, loggers=(), strategy=device)


def module(**options):
    return RouteDistillation([8], 2, teacher="mlp_6", student="mlp_3", **options)


def data(held_out):
    return DistillationData("parity", bits=8, secret=2, length=60, test_length=4, held_out=held_out)


def net(seed):
    torch.manual_seed(seed)
    return build_network("mlp_6", [8], 2)


def write_repdistiller(folder, epochs=(2, 4, 6)):
    folder.mkdir()
    for epoch in epochs:
        content = {"epoch": epoch, "model": net(epoch).state_dict(), "accuracy": torch.tensor(70.0), "opt": argparse.Namespace(lr=0.05)}
        torch.save(content, folder / f"ckpt_epoch_{epoch}.pth")
    torch.save({"opt": argparse.Namespace(lr=0.05), "model": net(epochs[-1]).state_dict()}, folder / "mlp_last.pth")
    return folder


def write_timm(folder):
    folder.mkdir()
    for number, name in ((0, "checkpoint-0"), (1, "checkpoint-1"), (1, "last"), (0, "model_best")):
        weights = {f"module.{key}": value for key, value in net(number + 1).state_dict().items()}
        torch.save({"epoch": number, "arch": "mlp", "state_dict": weights, "version": 2, "metric": 7.5}, folder / f"{name}.pth.tar")
    return folder


def write_mdistiller(folder):
    folder.mkdir()
    for epoch, name in ((2, "2"), (10, "10"), (12, "latest"), (10, "best")):
        weights = net(epoch).state_dict()
        torch.save({"model": weights}, folder / f"student_{name}")
        whole = {f"module.student.{key}": value for key, value in weights.items()}
        torch.save({"epoch": epoch, "model": whole, "best_acc": torch.tensor(70.0)}, folder / (f"epoch_{name}" if name.isdigit() else name))
    (folder / "worklog.txt").write_text("lr: 0.1\n")
    return folder


def write_lightning(folder):
    folder.mkdir()
    for number, name in ((0, "epoch=0-step=9"), (2, "epoch=2-step=27"), (2, "last")):
        weights = {f"net.{key}": value for key, value in net(number + 1).state_dict().items()} | {"head.weight": torch.ones(2)}
        torch.save({"epoch": number, "state_dict": weights, "pytorch-lightning_version": "2.5.0"}, folder / f"{name}.ckpt")
    return folder


@pytest.mark.parametrize(
    ("write", "options", "epochs"),
    [
        (write_repdistiller, {}, [2, 4, 6]),
        (write_timm, {}, [1, 2]),
        (write_mdistiller, {}, [2, 10]),
        (write_lightning, {"prefix": "net."}, [1, 3]),
    ],
    ids=["repdistiller", "timm", "mdistiller", "lightning"],
)
def test_a_folder_of_another_program_becomes_a_run_that_students_follow(write, options, epochs, trainer, tmp_path, capsys):
    told = data(50)
    found = import_route(trainer, module(), told, str(write(tmp_path / "theirs")), **options)
    route = Route.load(anchors_of(trainer.run, "collect"))
    assert own_route(trainer.run) == route.folder
    assert (route.is_complete, route.epochs, [row["epoch"] for row in found.rows]) == (True, epochs, epochs)
    module().guide_of(route).close()  # the teacher is what a student expects
    samples = told.held_set
    for epoch, row in zip(epochs, found.rows, strict=True):
        expected = net(epoch)
        assert all(torch.equal(tensor, expected.state_dict()[name]) for name, tensor in route.tensors(epoch).items())
        right = sum(int(expected(samples[place]["input"][None]).argmax()) == samples[place]["label"] for place in range(50))
        assert row["accuracy"] == pytest.approx(right / 50, abs=1e-6)
        assert route.accuracy()[epoch] == row["accuracy"]
    printed = capsys.readouterr().out
    assert "left out as copies of others: " in printed
    assert f"{len(epochs)} states in" in printed


def test_without_samples_held_out_no_accuracy_is_known_and_that_is_said(trainer, tmp_path, capsys):
    found = import_route(trainer, module(), data(0), str(write_repdistiller(tmp_path / "theirs") / "ckpt_*.pth"), half=True)
    route = Route.load(anchors_of(trainer.run, "collect"))
    assert (route.half, route.accuracy(), list(found.rows[0])) == (True, {}, ["epoch", "file", "MB"])
    assert "data.held_out" in capsys.readouterr().out


def test_embeddings_are_collected_with_their_length(trainer, tmp_path):
    student = module(embedding=2, loss=Loss(kind="mimic", ce=0.0))
    import_route(trainer, student, data(50), str(write_repdistiller(tmp_path / "theirs")))
    route = Route.load(anchors_of(trainer.run, "collect"))
    assert (route.about["outputs"], route.about["embeds"], route.accuracy()) == (2, True, {})
    student.guide_of(route).close()


def test_what_cannot_be_collected_is_refused_and_leaves_no_route(trainer, tmp_path):
    theirs = write_repdistiller(tmp_path / "theirs")
    wide = RouteDistillation([8], 2, teacher="mlp_7", student="mlp_3")
    for student, path, options, error, said in (
        (module(), tmp_path / "none", {}, FileNotFoundError, "a checkpoint, a folder of checkpoints"),
        (module(), theirs, {"key": "weights"}, BadFileError, "no entry 'weights'"),
        (module(), theirs / "*.pth", {}, BadFileError, "mlp_last.pth does not say of which epoch"),
        (wide, theirs, {}, ValueError, "do not fit those of the network"),
    ):
        with pytest.raises(error, match=said):
            import_route(trainer, student, data(0), str(path), **options)
        assert own_route(trainer.run) is None
    torch.save({"epoch": 1, "model": net(1).state_dict()}, tmp_path / "best_of_two.pth")
    assert find_checkpoints(str(tmp_path / "best_of_two.pth")) == [tmp_path / "best_of_two.pth"]
