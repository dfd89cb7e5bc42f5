import json

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping
from lightning.pytorch.strategies import FSDPStrategy
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from projects.rco.anchors import AnchorRecorder, Route, State, store_state, write_route
from shared.callbacks import ResumePoint
from shared.data.base import training_loader
from shared.data.files import BadFileError
from shared.quiet import quiet_trainer, silence

ABOUT = {"network": "linear", "shape": [3], "outputs": 2}


class Module(L.LightningModule):
    """A linear network beside which other weights lie; the learning rate falls after epochs 2 and 4."""

    def __init__(self, drops=(2, 4), factor=0.1, interval="epoch"):
        super().__init__()
        self.drops, self.factor, self.interval = list(drops), factor, interval
        self.net = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
        self.other = nn.Linear(1, 1)

    def training_step(self, batch, batch_idx):
        loss = (self.net(batch[0]) - batch[0][:, :2]).square().mean()
        self.log("train/loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val/weight", self.net[0].weight.sum())

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.net.parameters(), 0.1)
        scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, self.drops, self.factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": self.interval}}


class Watch(Callback):
    """Keeps the weights as they are when an epoch's last step is done, by epochs trained, and the learning rate of every step."""

    def __init__(self):
        self.weights, self.rates = {}, {}

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.rates.setdefault(trainer.current_epoch + 1, trainer.optimizers[0].param_groups[0]["lr"])

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.weights[trainer.current_epoch + 1] = {name: tensor.clone() for name, tensor in pl_module.net.state_dict().items()}


class Stop(Callback):
    """Ends the training as a fault, or a signal, does."""

    def __init__(self, hook, step, error=RuntimeError):
        self.step, self.error = step, error
        setattr(self, hook, self.stop)

    def stop(self, trainer, *_):
        if trainer.global_step == self.step:
            raise self.error("stopped here")


def train(folder, *callbacks, length=5, module=None, resume=None, options=None, **recorder):
    torch.manual_seed(3)
    data, watch = TensorDataset(torch.randn(8, 3)), Watch()
    module = module or Module()
    callbacks = [watch, AnchorRecorder(folder, **({"about": ABOUT} | recorder)), *callbacks]
    with silence():
        trainer = quiet_trainer(length, callbacks=callbacks, accelerator="cpu", **(options or {}))
        trainer.fit(module, training_loader(data, 4, seed=0), DataLoader(data, batch_size=8), ckpt_path=resume)
    return watch


def same(found, expected):
    assert found.keys() == expected.keys()
    return all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_state_is_that_after_its_epoch_and_epochs_count_from_one(tmp_path):
    watch = train(tmp_path)
    route = Route.load(tmp_path)
    assert route.epochs == [1, 2, 3, 4, 5]
    assert route.final == 5
    assert route.is_complete
    assert all(same(route.tensors(epoch), watch.weights[epoch]) for epoch in route.epochs)
    assert not same(route.tensors(4), route.tensors(5))
    assert route.states[0].file == "epoch_0001.safetensors"
    assert route.about == ABOUT
    assert route.bytes == sum(file.stat().st_size for file in tmp_path.glob("*.safetensors"))
    assert sorted(file.name for file in tmp_path.iterdir()) == [*(f"epoch_000{e}.safetensors" for e in range(1, 6)), "route.json"]


def test_history_has_the_epochs_own_rate_and_the_metrics_after_its_validation(tmp_path):
    watch = train(tmp_path, every=None)
    route = Route.load(tmp_path / "route.json")
    assert [state.epoch for state in route.history] == [1, 2, 3, 4, 5]
    assert [state.lr for state in route.history] == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001])
    assert [state.lr for state in route.history] == list(watch.rates.values())
    for state in route.history:
        assert state.metrics["val/weight"] == pytest.approx(watch.weights[state.epoch]["0.weight"].sum().item(), abs=1e-6)
        assert state.metrics["train/loss"] > 0
    assert [state.file for state in route.history] == ["", "", "", "", "epoch_0005.safetensors"]


def test_metrics_of_an_earlier_validation_are_not_taken_for_an_epochs_own(tmp_path):
    train(tmp_path, length=4, options={"check_val_every_n_epoch": 2})
    assert [("val/weight" in state.metrics) for state in Route.load(tmp_path).history] == [False, True, False, True]


@pytest.mark.parametrize(
    ("options", "epochs"),
    [
        ({"every": 2}, [2, 4, 5]),
        ({"every": None, "epochs": [1, 4, 9]}, [1, 4, 5]),
        ({"every": 3, "epochs": [1]}, [1, 3, 5]),
        ({"every": None}, [5]),
        ({"every": None, "at_drops": True}, [2, 4, 5]),
    ],
    ids=["interval", "list", "both", "last", "drops"],
)
def test_epochs_are_stored_as_asked_and_always_the_last(tmp_path, options, epochs):
    watch = train(tmp_path, **options)
    route = Route.load(tmp_path)
    assert route.epochs == epochs
    assert all(same(route.tensors(epoch), watch.weights[epoch]) for epoch in epochs)


def test_a_slow_decline_is_no_drop(tmp_path):
    train(tmp_path, module=Module(drops=range(1, 9), factor=0.8), every=None, at_drops=True)
    assert Route.load(tmp_path).epochs == [5]


@pytest.mark.parametrize("network", ["", "net", "net.0"])
def test_any_part_of_a_module_can_be_stored(tmp_path, network):
    module = Module()
    train(tmp_path, module=module, network=network, length=1)
    assert same(Route.load(tmp_path).tensors(1), module.get_submodule(network).state_dict())


def test_training_that_ends_by_steps_or_early_is_complete(tmp_path):
    watch = train(tmp_path / "steps", options={"max_steps": 5}, every=None)
    route = Route.load(tmp_path / "steps")
    assert (route.epochs, route.is_complete) == ([3], True)
    assert same(route.tensors(3), watch.weights[3])
    train(tmp_path / "early", EarlyStopping("train/loss", patience=0, min_delta=1e9), every=None)
    assert (Route.load(tmp_path / "early").epochs, Route.load(tmp_path / "early").is_complete) == ([2], True)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt], ids=["fault", "interrupt"])
def test_training_that_was_stopped_is_not_complete(tmp_path, error):
    with pytest.raises((RuntimeError, SystemExit)):
        train(tmp_path, Stop("on_train_batch_end", 5, error))
    route = Route.load(tmp_path)
    assert (route.epochs, route.is_complete) == ([1, 2], False)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")
    train(folder, every=3, at_drops=True)
    return folder


@pytest.mark.parametrize(
    ("hook", "step"),
    [("on_train_batch_start", 4), ("on_train_batch_end", 5), ("on_validation_end", 6), ("on_validation_end", 10), ("on_fit_end", 10)],
    ids=["epoch-start", "amid-epoch", "epoch-end", "last-step", "end"],
)
def test_a_resumed_run_records_what_an_unbroken_one_does(unbroken, tmp_path, hook, step):
    options = {"every": 3, "at_drops": True}
    with pytest.raises(RuntimeError):
        train(tmp_path / "broken", ResumePoint(tmp_path / "b", 1), Stop(hook, step), **options)
    train(tmp_path / "broken", ResumePoint(tmp_path / "b", 1), resume=tmp_path / "b" / "last.ckpt", **options)
    whole, broken = Route.load(unbroken), Route.load(tmp_path / "broken")
    assert broken.is_complete
    assert broken.epochs == whole.epochs == [2, 3, 4, 5]
    assert all(same(broken.tensors(epoch), whole.tensors(epoch)) for epoch in whole.epochs)
    assert [(state.epoch, state.lr, state.file) for state in broken.history] == [(state.epoch, state.lr, state.file) for state in whole.history]


def test_going_back_to_an_earlier_checkpoint_drops_later_states(tmp_path):
    train(tmp_path / "route", ResumePoint(tmp_path, 6), length=3)
    early = (tmp_path / "last.ckpt").rename(tmp_path / "early.ckpt")
    train(tmp_path / "route", length=6, resume=early)
    assert Route.load(tmp_path / "route").epochs == [1, 2, 3, 4, 5, 6]
    with pytest.raises(RuntimeError):
        train(tmp_path / "route", Stop("on_train_batch_start", 6), length=6, resume=early)
    route = Route.load(tmp_path / "route")
    assert (route.epochs, route.is_complete) == ([1, 2, 3], False)
    assert len(list((tmp_path / "route").glob("*.safetensors"))) == 3
    with pytest.raises(ValueError, match=r"is of another training .*choose another folder"):
        train(tmp_path / "route", length=6, resume=early, about={"network": "other"})


def test_a_fresh_run_replaces_a_route_and_nothing_else(tmp_path):
    train(tmp_path, length=3)
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "epoch_0099.safetensors").write_text("mine")
    train(tmp_path, length=2, about={"network": "other"})
    assert Route.load(tmp_path).epochs == [1, 2]
    names = ["epoch_0001.safetensors", "epoch_0002.safetensors", "epoch_0099.safetensors", "notes.txt", "route.json"]
    assert sorted(file.name for file in tmp_path.iterdir()) == names
    (tmp_path / "route.json").write_text("{")
    train(tmp_path, length=1)
    assert Route.load(tmp_path).epochs == [1]


def test_half_precision_keeps_whole_numbers_and_what_would_overflow(tmp_path):
    tensors = {"weight": torch.randn(64, 3), "large": torch.tensor([1.0, 1e5]), "count": torch.tensor(70_000), "wide": torch.randn(5).double()}
    for half in (False, True):
        folder = tmp_path / str(half)
        states = (State(1, store_state(folder, 1, tensors, half), None, {}),)
        write_route(Route(folder, {}, states, states, True, half))
    full, half = (Route.load(tmp_path / name).tensors(1) for name in ("False", "True"))
    assert same(full, tensors)
    assert same({name: half[name] for name in ("large", "count")}, {name: tensors[name] for name in ("large", "count")})
    assert half["weight"].dtype == torch.float32
    torch.testing.assert_close(half["weight"], tensors["weight"], rtol=2**-11, atol=2**-25)
    assert torch.equal(half["weight"], tensors["weight"].half().float())
    assert Route.load(tmp_path / "True").bytes < Route.load(tmp_path / "False").bytes


def test_tied_and_strided_weights_are_stored(tmp_path):
    weight = torch.randn(4, 6)
    tensors = {"a": weight, "b": weight, "c": weight.T, "d": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last), "e": weight[1:3]}
    store_state(tmp_path, 7, tensors)
    states = (State(7, "epoch_0007.safetensors", 0.1, {}),)
    write_route(Route(tmp_path, {}, states, states, True))
    assert same(Route.load(tmp_path).tensors(7), tensors)


def test_accuracy_is_of_validation_else_of_training_and_never_of_a_test(tmp_path):
    def route(*metrics):
        return Route(tmp_path, {}, (), tuple(State(e, "", None, m) for e, m in enumerate(metrics, 1)), True)

    assert route({"val/accuracy": 0.5, "train/accuracy": 0.9}, {"train/accuracy": 0.8}).accuracy() == {1: 0.5}
    assert route({"test/accuracy": 0.5, "train/accuracy": 0.9}, {"train/accuracy": 0.8}).accuracy() == {1: 0.9, 2: 0.8}
    assert route({"test/accuracy": 0.5}).accuracy() == {}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"format": 2}, BadFileError, r"has format 2, this code reads format 1"),
        ({"states": [{"epoch": 1, "file": "../x.safetensors", "lr": 1, "metrics": {}}]}, BadFileError, r"x\.safetensors' is no .* within the folder"),
        ({"states": [{"epoch": 1, "file": "/x.safetensors", "lr": 1, "metrics": {}}]}, BadFileError, "within the folder"),
        ({"states": [{"epoch": 1, "file": "x.pt", "lr": 1, "metrics": {}}]}, BadFileError, "within the folder"),
        ({"states": [{"epoch": 0, "file": "x.safetensors", "lr": 1, "metrics": {}}]}, BadFileError, "epoch 0 is no whole number from 1"),
        ({"states": [{"epoch": 1, "file": "x.safetensors", "lr": 1}]}, BadFileError, "no entry 'metrics'"),
        ({"states": 5}, BadFileError, "is damaged"),
        ({"states": []}, BadFileError, "has no states yet"),
        ({"history": [{"epoch": e, "file": "", "lr": 1, "metrics": {}} for e in (2, 1)]}, BadFileError, "epochs do not rise"),
        ({"states": [{"epoch": e, "file": f"{e}.safetensors", "lr": 1, "metrics": {}} for e in (1, 2)]}, FileNotFoundError, r"missing.*\n  1\.s"),
    ],
    ids=["format", "outside", "absolute", "pickle", "zero", "entry", "type", "empty", "falling", "missing"],
)
def test_a_route_that_cannot_be_used_says_why(tmp_path, change, error, message):
    sound = {"format": 1, "about": {}, "digest": "", "half": False, "complete": True, "states": [], "history": []}
    (tmp_path / "route.json").write_text(json.dumps(sound | change))
    with pytest.raises(error, match=message):
        Route.load(tmp_path)


def test_absent_and_damaged_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no route in .*: expected route\.json"):
        Route.load(tmp_path)
    (tmp_path / "route.json").write_text('{"format": ')
    with pytest.raises(BadFileError, match=r"route\.json is not JSON: .*damaged"):
        Route.load(tmp_path)
    train(tmp_path, length=2)
    route = Route.load(tmp_path)
    with pytest.raises(ValueError, match=r"no state after epoch 3 in .*: stored are 1, 2"):
        route.tensors(3)
    (tmp_path / route.states[0].file).write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"epoch_0001\.safetensors is damaged"):
        route.tensors(1)


def test_impossible_recordings_are_refused(tmp_path):
    with pytest.raises(ValueError, match="every must be at least 1 epoch"):
        AnchorRecorder(tmp_path, every=0)
    with pytest.raises(ValueError, match="count from 1, got 0"):
        AnchorRecorder(tmp_path, epochs=[3, 0])
    with pytest.raises(ValueError, match="Module has no network 'teacher' to store states of; its parts: net, other"):
        train(tmp_path, network="teacher")
    trainer = quiet_trainer(1, accelerator="cpu")
    trainer._accelerator_connector.strategy = FSDPStrategy()
    with pytest.raises(ValueError, match=r"under FSDPStrategy.*set trainer.strategy to ddp"):
        AnchorRecorder(tmp_path).on_fit_start(trainer, Module())


def test_two_recorders_may_watch_one_training(tmp_path):
    train(tmp_path / "a", AnchorRecorder(tmp_path / "b", network="other"), ResumePoint(tmp_path, 1), length=1)
    assert Route.load(tmp_path / "b").tensors(1).keys() == {"weight", "bias"}
