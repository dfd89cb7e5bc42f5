import shutil

import lightning as L
import pytest
import torch

from projects.rsknet.averaging import EpochAverage
from projects.rsknet.data import SpeakerData
from projects.rsknet.module import SpeakerVerification
from shared.callbacks import ResumePoint
from shared.checkpoints import load_checkpoint
from shared.quiet import quiet_trainer
from shared.runs import Run

EPOCHS, LAST = 4, 3


class Recorder(L.Callback):
    """Keeps the network's weights after each epoch, and a copy of the point to resume from after each step."""

    def __init__(self, folder=None):
        self.folder, self.epochs = folder, []

    def on_train_epoch_end(self, trainer, pl_module):
        self.epochs.append({name: value.clone() for name, value in pl_module.net.state_dict().items()})

    def on_train_batch_end(self, trainer, pl_module, *rest):
        if self.folder is not None:
            shutil.copy(self.folder / "last.ckpt", self.folder / f"{trainer.global_step}.ckpt")


def fit(folder, last=LAST, resume=None, keep=False, epochs=EPOCHS, **options):
    """Train, two steps an epoch, as a run in a folder does; returns the module, the trainer and what was recorded."""
    module = SpeakerVerification(net="tiny_rsknet_mtsp", options={"layers": [1], "widths": [4], "embedding": 8}, dither=0.0, seed=3)
    data = SpeakerData(speakers=3, utterances=4, held_speakers=2, test_utterances=2, batch_size=6)
    run = Run(folder)
    recorder = Recorder(run.checkpoints if keep else None)
    callbacks = [ResumePoint(run.checkpoints, 1), recorder, EpochAverage(last)]
    trainer = quiet_trainer(epochs, limit_val_batches=0, callbacks=callbacks, **options)
    trainer.run = run
    trainer.fit(module, datamodule=data, ckpt_path=resume)
    return module, trainer, recorder


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return folder, *fit(folder, keep=True)


def close(found, wanted, **tolerance):
    assert found.keys() == wanted.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, wanted[name], **tolerance)


def test_training_ends_with_the_mean_of_the_last_epochs(whole):
    _, module, _, recorder = whole
    assert len(recorder.epochs) == EPOCHS
    found, epochs = module.net.state_dict(), recorder.epochs[-LAST:]
    assert any(name.endswith("running_var") for name in found)
    for name, value in found.items():
        if value.is_floating_point():
            mean = torch.stack([epoch[name].double() for epoch in epochs]).mean(0)
            torch.testing.assert_close(value.double(), mean, rtol=1e-6, atol=1e-7)
        else:
            assert value == epochs[-1][name] == 2 * EPOCHS


def test_best_ckpt_holds_the_mean_and_last_ckpt_the_last_weights(whole):
    folder, module, _, recorder = whole
    best, last = (load_checkpoint(folder / "checkpoints" / name) for name in ("best.ckpt", "last.ckpt"))
    close({name: best["state_dict"][f"net.{name}"] for name in module.net.state_dict()}, module.net.state_dict(), rtol=0, atol=0)
    close({name: last["state_dict"][f"net.{name}"] for name in module.net.state_dict()}, recorder.epochs[-1], rtol=0, atol=0)
    assert best["head"]["weight"].shape == (3, 8)


@pytest.mark.parametrize("step", [3, 4, 6, 8, "last"], ids=["amid an epoch", "at its end", "at the next end", "at the last step", "after all"])
def test_a_training_that_was_killed_ends_with_the_same_mean(whole, tmp_path, step):
    folder, module, _, _ = whole
    resumed, _, _ = fit(tmp_path, resume=folder / "checkpoints" / f"{step}.ckpt")
    close(resumed.net.state_dict(), module.net.state_dict(), rtol=0, atol=0)
    assert (tmp_path / "checkpoints/best.ckpt").is_file()


@pytest.mark.parametrize(("last", "options"), [(9, {}), (2, {"max_steps": 5})], ids=["more than there are", "a training by steps"])
def test_the_mean_is_over_the_epochs_that_there_are(tmp_path, last, options):
    module, _, recorder = fit(tmp_path, last, **options)
    wanted = torch.stack([epoch["embed.weight"] for epoch in recorder.epochs[-last:]]).mean(0)
    torch.testing.assert_close(module.net.embed.weight.detach(), wanted, rtol=1e-5, atol=1e-7)


def test_a_mean_over_nothing_is_refused():
    with pytest.raises(ValueError, match="one epoch or more"):
        EpochAverage(0)
