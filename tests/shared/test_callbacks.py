"""A training that stops anywhere goes on as if it had not stopped: weights, validations, the best epoch and the hooks of its epochs."""

import lightning as L
import pytest
import torch
from torch import nn

from shared.callbacks import ResumePoint, best_checkpoint
from shared.checkpoints import SafeCheckpointIO, load_checkpoint
from shared.data.base import DataModule
from shared.quiet import quiet_trainer


class Points(DataModule):
    """Four points, two steps an epoch."""

    sources = {"points": "drawn"}  # noqa: RUF012

    def setup(self, stage=None):
        self.points = list(torch.randn(4, 3, generator=torch.Generator().manual_seed(0)))

    def train_dataloader(self):
        return self.training_loader(self.points)

    def val_dataloader(self):
        return self.evaluation_loader(self.points)


class Noisy(L.LightningModule):
    """Draws from the global generator in training and in validation, and notes what happens when."""

    def __init__(self, notes):
        super().__init__()
        self.net, self.notes, self.ended = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.3), nn.Linear(4, 1)), notes, 0

    def loss(self, points):
        return (self.net(points + 0.1 * torch.randn_like(points)) - points.sum(1, keepdim=True)).square().mean()

    def training_step(self, batch, batch_idx):
        return self.loss(batch)

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", self.loss(batch), batch_size=len(batch))

    def on_validation_epoch_end(self):
        self.notes["validated", self.global_step] = self.current_epoch, float(self.trainer.callback_metrics["val/loss"])

    def on_train_epoch_start(self):
        self.notes["started", self.global_step] = self.current_epoch

    def on_train_epoch_end(self):
        self.ended += 1
        self.notes["ended", self.global_step] = self.current_epoch, self.ended

    def on_save_checkpoint(self, checkpoint):
        checkpoint["ended"] = self.ended

    def on_load_checkpoint(self, checkpoint):
        self.ended = checkpoint["ended"]

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=0.05)
        return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.7)}


class Stopped(Exception):  # noqa: N818
    pass


def stop_in(hook, step):
    """Return a callback that ends the training in a hook after some steps."""

    def stop(self, trainer, *_):
        if trainer.global_step == step:
            raise Stopped

    return type("StopIn", (L.Callback,), {hook: stop})()


def train(folder, notes, *stops, resume=None, length=None, every=1, check=1):
    torch.manual_seed(0)
    callbacks = [ResumePoint(folder, every), *stops, best_checkpoint(folder, "val/loss", "min")]
    options = {"accelerator": "cpu", "enable_checkpointing": True, "check_val_every_n_epoch": check, "plugins": [SafeCheckpointIO()]}
    trainer = quiet_trainer(
        3, callbacks=callbacks, default_root_dir=folder, **(options | ({"max_epochs": -1, "max_steps": length} if length else {}))
    )
    trainer.fit(Noisy(notes), datamodule=Points("points", batch_size=2), ckpt_path=resume)


def left(folder):
    """Return what the checkpoints of a training hold, as plain values."""
    contents = {name: load_checkpoint(folder / f"{name}.ckpt") for name in ("last", "best")}
    parts = ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "epoch", "ended")
    kept = {name: {part: content[part] for part in parts} for name, content in contents.items()}
    scores = [state["best_model_score"] for name, state in contents["last"]["callbacks"].items() if name.startswith("ModelCheckpoint")]
    return plain(kept | {"scores": scores})


def plain(value):
    if isinstance(value, dict):
        return {key: plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    return value.tolist() if isinstance(value, torch.Tensor) else value


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """Returns what a training leaves that is not stopped, and its notes; each is carried out once."""
    made = {}

    def find(**options):
        key = tuple(options.items())
        if key not in made:
            folder, notes = tmp_path_factory.mktemp("whole"), {}
            train(folder, notes, **options)
            made[key] = left(folder), notes
        return made[key]

    return find


PLACES = [
    ("on_train_batch_end", 1),
    ("on_train_batch_end", 2),
    ("on_validation_start", 2),
    ("on_validation_end", 2),
    ("on_train_epoch_end", 2),
    ("on_train_epoch_start", 2),
    ("on_train_batch_end", 6),
    ("on_train_end", 6),
]
CASES = [pytest.param(hook, step, {}, id=f"{hook} {step}") for hook, step in PLACES]
CASES += [pytest.param(hook, step, {"length": 6}, id=f"{hook} {step} of 6") for hook, step in (PLACES[1], PLACES[3], PLACES[6])]
CASES += [pytest.param(hook, 2, {"check": 2}, id=f"{hook} 2, no validation") for hook in ("on_train_batch_end", "on_train_epoch_end")]
CASES += [pytest.param("on_validation_end", 6, {"every": 3}, id="on_validation_end 6, every 3")]


@pytest.mark.parametrize(("hook", "step", "options"), CASES)
def test_a_training_stopped_anywhere_goes_on_as_one_that_was_not(unbroken, tmp_path, hook, step, options):
    expected, said = unbroken(**options)
    notes = {}
    with pytest.raises(Stopped):
        train(tmp_path, notes, stop_in(hook, step), **options)
    assert load_checkpoint(tmp_path / "last.ckpt")["global_step"] <= step
    train(tmp_path, notes, resume=tmp_path / "last.ckpt", **options)
    assert notes == said
    assert left(tmp_path) == expected


def test_what_lay_ahead_at_a_stop_is_not_remembered_at_the_next(unbroken, tmp_path):
    expected, said = unbroken()
    notes, resume = {}, None
    for place in (("on_validation_start", 2), ("on_train_batch_end", 3), ("on_train_batch_end", 4)):
        with pytest.raises(Stopped):
            train(tmp_path, notes, stop_in(*place), resume=resume)
        resume = tmp_path / "last.ckpt"
    train(tmp_path, notes, resume=resume)
    assert notes == said
    assert left(tmp_path) == expected
