import lightning as L
import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from shared.pruning.callback import IterativePruning


class Digits(L.LightningModule):
    def __init__(self, build):
        super().__init__()
        self.net, self.average = build(), build().requires_grad_(False)
        self.seen = []

    def training_step(self, batch, batch_idx):
        loss = F.cross_entropy(self.net(batch[0]), batch[1])
        self.log("train/score", -loss, on_step=False, on_epoch=True)
        return loss

    def on_train_epoch_start(self):
        self.seen.append(sum(parameter.numel() for parameter in self.net.parameters()))

    def configure_optimizers(self):
        return torch.optim.Adam(self.net.parameters(), 2e-3)


@pytest.fixture
def fit(digits, make, tmp_path):
    def run(epochs, callback, module=None, ckpt_path=None, also=()):
        torch.manual_seed(0)
        module = module or Digits(lambda: make.convolutions(8))
        quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "accelerator": "cpu"}
        trainer = L.Trainer(max_epochs=epochs, callbacks=[callback, *also], default_root_dir=tmp_path, **quiet)
        loader = DataLoader(TensorDataset(digits[0][:256], digits[1][:256]), 64)
        trainer.fit(module, loader, ckpt_path=ckpt_path)
        return trainer, module

    return run


EXAMPLE = torch.zeros(1, 1, 8, 8)


def test_channels_go_in_steps_with_optimiser_and_average(fit, make, tmp_path):
    callback = IterativePruning(EXAMPLE, channels=0.5, epochs=[0, 1], network="net", averages=["average"])
    trainer, module = fit(3, callback)
    assert len(set(module.seen)) == 3
    assert trainer.callback_metrics["prune/channels"] == 16
    assert sum(group.channels for group in callback.index.free.values()) == 16
    assert {id(p) for p in module.net.parameters()} == {id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]}
    assert [tuple(p.shape) for p in module.average.parameters()] == [tuple(p.shape) for p in module.net.parameters()]
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    again = IterativePruning(EXAMPLE, channels=0.5, epochs=[0, 1], network="net", averages=["average"])
    _, resumed = fit(4, again, Digits(lambda: make.convolutions(8)), ckpt_path=tmp_path / "last.ckpt")
    assert resumed.seen == [module.seen[-1]]
    assert again.done == 2


def test_held_channels_stay_zero_and_their_number_grows(fit, make, tmp_path):
    callback = IterativePruning(EXAMPLE, channels=0.4, epochs=[0, 1], network="net", mode="hold", scope="local")
    trainer, module = fit(3, callback)
    assert len(set(module.seen)) == 1
    assert {name: len(channels) for name, channels in callback.zeroed.items()} == {"conv": 3, "block.conv1": 3, "down": 6}
    assert module.net.down.weight[callback.zeroed["down"]].eq(0).all()
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    again = IterativePruning(EXAMPLE, channels=0.4, epochs=[0, 1], network="net", mode="hold", scope="local")
    _, resumed = fit(4, again, Digits(lambda: make.convolutions(8)), ckpt_path=tmp_path / "last.ckpt")
    assert resumed.net.down.weight[callback.zeroed["down"]].eq(0).all()


@pytest.mark.parametrize("drop", ["lowest", "highest"])
@pytest.mark.parametrize("scope", ["global", "local"])
def test_what_is_held_stays_held_whichever_scores_go_first(fit, drop, scope):
    turns, seen = iter([1, -1]), []

    def score(index, model):
        turn = next(turns)  # the second scores contradict the first, and lie far apart in the groups
        return {name: turn * (torch.arange(group.channels) + 100.0 * place) for place, (name, group) in enumerate(index.free.items())}

    class Seen(L.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            seen.append({(name, int(channel)) for name, channels in callback.zeroed.items() for channel in channels})

    callback = IterativePruning(EXAMPLE, channels=0.4, epochs=[0, 1], network="net", mode="hold", score=score, drop=drop, scope=scope)
    fit(2, callback, also=[Seen()])
    assert seen[0] < seen[1]


def test_pruning_stops_when_the_metric_falls(fit):
    callback = IterativePruning(EXAMPLE, channels=0.6, epochs=[0, 1], network="net", monitor="train/score", tolerance=-9.0)
    fit(2, callback)
    assert callback.done == 0
    assert callback.stopped
    with pytest.raises(MisconfigurationException, match="monitors 'val/score', which is not logged; logged are"):
        fit(1, IterativePruning(EXAMPLE, channels=0.6, epochs=[0], network="net", monitor="val/score"))


def test_wrong_settings_are_refused():
    with pytest.raises(ValueError, match="epochs must be ascending"):
        IterativePruning(EXAMPLE, 0.5, [3, 1])
    with pytest.raises(ValueError, match="share to remove"):
        IterativePruning(EXAMPLE, 1.5, [1])

    class Two:
        world_size, ckpt_path = 2, None

    with pytest.raises(MisconfigurationException, match=r"IterativePruning\(mode='hold'\)"):
        IterativePruning(EXAMPLE, 0.5, [1]).setup(Two(), nn.Module(), "fit")
