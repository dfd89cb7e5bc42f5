import argparse

import lightning as L
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from projects.rco.collecting import collect
from shared.data.files import BadFileError
from shared.quiet import quiet_trainer, silence

ABOUT = {"network": "linear", "shape": [3], "outputs": 2}


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("code in a file was run",))


def weights(value):
    return {"weight": torch.full((2, 3), float(value)), "bias": torch.zeros(2)}


def wrapped(tensors, prefix="module."):
    return {prefix + name: tensor for name, tensor in tensors.items()}


def repdistiller(epoch):
    return {"epoch": epoch, "model": weights(epoch), "accuracy": torch.tensor(70.0), "optimizer": {"state": {}}, "opt": argparse.Namespace(lr=0.05)}


def timm(epoch):
    args = argparse.Namespace(model="resnet18", opt_eps=None, mean=[0.1, 0.2])
    ema = weights(-epoch)
    return {
        "epoch": epoch,
        "arch": "r",
        "state_dict": weights(epoch),
        "state_dict_ema": ema,
        "version": 2,
        "args": args,
        "optimizer": {},
        "metric": 7.5,
    }


def torchvision(epoch):
    return {"model": weights(epoch), "optimizer": {}, "lr_scheduler": {}, "epoch": epoch, "args": argparse.Namespace(lr=0.1)}


def values(route):
    return {epoch: route.tensors(epoch)["weight"][0, 0].item() for epoch in route.epochs}


@pytest.mark.parametrize(
    ("name", "content", "options", "found"),
    [
        ("ckpt_epoch_{}.pth", repdistiller, {}, {20: 20.0, 40: 40.0}),
        ("checkpoint-{}.pth.tar", timm, {}, {21: 20.0, 41: 40.0}),
        ("checkpoint-{}.pth.tar", timm, {"key": "state_dict_ema"}, {21: -20.0, 41: -40.0}),
        ("model_{}.pth", torchvision, {}, {21: 20.0, 41: 40.0}),
        ("epoch_0{}.pt", weights, {}, {20: 20.0, 40: 40.0}),
        ("epoch_0{}.pt", weights, {"counts_from": 0}, {21: 20.0, 41: 40.0}),
        ("resnet56_{}.pt", lambda epoch: {"net": wrapped(weights(epoch))}, {}, {20: 20.0, 40: 40.0}),
        (
            "e-{}.pt",
            lambda epoch: wrapped(wrapped(weights(epoch), "net.")) | {"module.head.bias": torch.ones(1)},
            {"prefix": "net."},
            {20: 20.0, 40: 40.0},
        ),
        ("epoch={}-step=999.ckpt", lambda epoch: {"state_dict": wrapped(weights(epoch), "_orig_mod.")}, {}, {21: 20.0, 41: 40.0}),
        ("a{}.pth.tar", lambda epoch: {"epoch": epoch, "arch": "resnet18", "state_dict": weights(epoch), "best_acc1": 7.0}, {}, {20: 20.0, 40: 40.0}),
    ],
    ids=["repdistiller", "timm", "timm-ema", "torchvision", "bare", "bare-from-0", "parallel", "prefix", "lightning-name", "imagenet-example"],
)
def test_checkpoints_of_known_programs_become_a_route(tmp_path, name, content, options, found):
    files = [tmp_path / name.format(epoch) for epoch in (40, 20)]
    for file, epoch in zip(files, (40, 20), strict=True):
        torch.save(content(epoch), file)
    route = collect(files, tmp_path / "route", ABOUT, net=nn.Linear(3, 2), **options)
    assert values(route) == found
    assert route.is_complete
    assert route.about == ABOUT
    assert all(not state.metrics for state in route.history)  # those accuracies are of test sets


def test_safetensors_are_read_and_half_precision_can_be_kept(tmp_path):
    save_file(weights(0.1), tmp_path / "epoch_0003.safetensors")
    route = collect([tmp_path / "epoch_0003.safetensors"], tmp_path / "route", ABOUT, half=True)
    assert torch.equal(route.tensors(3)["weight"], weights(0.1)["weight"].half().float())
    assert route.half


def test_checkpoints_of_lightning_are_of_one_epoch_more_than_they_say(tmp_path):
    class Module(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.net, self.other = nn.Linear(3, 2), nn.Linear(1, 1)
            self.states = []

        def training_step(self, batch, batch_idx):
            return self.net(batch[0]).square().mean()

        def on_train_epoch_end(self):
            self.states.append(self.net.weight.detach().clone())

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    keep = L.pytorch.callbacks.ModelCheckpoint(dirpath=tmp_path, save_top_k=-1, every_n_epochs=1)
    amid = L.pytorch.callbacks.ModelCheckpoint(dirpath=tmp_path / "amid", save_top_k=-1, every_n_train_steps=3)
    module = Module()
    with silence():
        trainer = quiet_trainer(3, callbacks=[keep, amid], accelerator="cpu", enable_checkpointing=True)
        trainer.fit(module, DataLoader(TensorDataset(torch.randn(8, 3)), batch_size=4))
    files = sorted(tmp_path.glob("epoch=*.ckpt"))
    route = collect(files, tmp_path / "route", ABOUT, prefix="net.", net=nn.Linear(3, 2))
    assert route.epochs == [1, 2, 3]
    assert all(torch.equal(route.tensors(epoch)["weight"], module.states[epoch - 1]) for epoch in route.epochs)
    between = next((tmp_path / "amid").glob("epoch=1-step=3.ckpt"))
    with pytest.raises(BadFileError, match="was saved in the middle of an epoch"):
        collect([between], tmp_path / "other", ABOUT, prefix="net.")


@pytest.mark.parametrize(
    ("files", "options", "error", "message"),
    [
        (
            {"resnet56.pth": {"model": weights(1)}},
            {},
            BadFileError,
            r"resnet56\.pth does not say of which epoch .* rename it, such as epoch_0060\.pth",
        ),
        ({"epoch_1.pt": weights(1), "ckpt_epoch_01.pt": weights(2)}, {}, ValueError, r"epoch_1\.pt and .*both of the state after epoch 1: leave one"),
        ({"epoch_0.pt": weights(1)}, {}, BadFileError, "is of epoch 0, before any training.*set counts_from to 0"),
        ({"epoch_1.pt": {"model": Bomb()}}, {}, BadFileError, r"could execute code.*where you trust it, keep its weights alone"),
        ({"epoch_1.bin": weights(1)}, {}, ValueError, "is a pickle and is not read"),
        ({"epoch_1.pt": {"weights": weights(1), "a": 1}}, {}, BadFileError, "holds no table of weights.*name the right one of weights, a as key"),
        ({"epoch_1.pt": {"model": weights(1)}}, {"key": "net"}, BadFileError, "has no entry 'net': choose key among model"),
        ({"epoch_1.pt": {"model": weights(1), "n": 1}}, {"key": "n"}, BadFileError, "no table of weights in entry 'n'"),
        ({"epoch_1.pt": [1]}, {}, BadFileError, "holds a list"),
        ({"epoch_1.pt": weights(1)}, {"prefix": "net."}, BadFileError, "begins with 'net.': correct prefix; the names are weight, bias"),
        ({"epoch_1.pt": weights(1), "epoch_2.pt": {"weight": torch.ones(2, 4)}}, {}, ValueError, r"epoch_2.pt do not fit.*\n  shape       weight"),
        ({"epoch_1.pt": weights(1)}, {"net": nn.Linear(3, 5)}, ValueError, r"do not fit those of the network:\n  shape       weight: .*\(5, 3\)"),
        ({"epoch_1.pt": wrapped(weights(1), "a.net.")}, {"net": nn.Linear(3, 2)}, ValueError, r"begin with 'a\.net\.': set prefix to a\.net\."),
        ({}, {}, ValueError, "no checkpoints were given"),
        ({"epoch_1.pt": weights(1)}, {"counts_from": 2}, ValueError, "counts_from must be 0 or 1, got 2"),
    ],
    ids=["number", "twice", "zero", "code", "bin", "nested", "key", "scalar", "list", "prefix", "shapes", "net", "inner", "none", "counts"],
)
def test_what_makes_no_route_says_why_and_leaves_nothing(tmp_path, files, options, error, message):
    for name, content in files.items():
        torch.save(content, tmp_path / name)
    with pytest.raises(error, match=f"(?s){message}"):
        collect([tmp_path / name for name in files], tmp_path / "route", ABOUT, **options)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(files)


def test_only_an_earlier_route_is_replaced(tmp_path):
    torch.save(weights(1), tmp_path / "epoch_1.pt")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not replaced: name another folder"):
        collect([tmp_path / "epoch_1.pt"], tmp_path / "mine", ABOUT)
    collect([tmp_path / "epoch_1.pt"], tmp_path / "route", ABOUT)
    torch.save(weights(2), tmp_path / "epoch_2.pt")
    assert collect([tmp_path / "epoch_2.pt"], tmp_path / "route", ABOUT).epochs == [2]
    with pytest.raises(ValueError, match=r"lies in .*, which the route replaces"):
        collect([tmp_path / "route" / "epoch_0002.safetensors"], tmp_path / "route", ABOUT)
    with pytest.raises(FileNotFoundError, match=r"no checkpoint .*epoch_3\.pt"):
        collect([tmp_path / "epoch_3.pt"], tmp_path / "other", ABOUT)
