"""The one network that is told the truth: its target, and what it says where there is none."""

import lightning as L
import pytest
import torch

from projects.s3rp.data import PlumeData
from projects.s3rp.module import scale
from projects.s3rp.supervised import SupervisedSuperResolution
from projects.s3rp.worlds import World, draw_plumes

WORLD = World(size=16, frames=4, diffusivity=0.01)


def trainer(steps):
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    return L.Trainer(accelerator="cpu", max_steps=steps, log_every_n_steps=1, limit_val_batches=0, **quiet)


def test_its_first_loss_is_the_mean_square_error_of_bicubic_and_projection():
    data, module = PlumeData(world=WORLD, train=4, batch_size=4), SupervisedSuperResolution(channels=4)
    run = trainer(1)
    run.fit(module, data)
    plumes = draw_plumes(WORLD, 4, "train")
    fresh = SupervisedSuperResolution(channels=4)
    batch = plumes.observations.batch()
    made, unit = fresh(batch, data.observations("train").physics), scale(batch, data.observations("train").physics).scale
    expected = ((made - plumes.truth) / unit).square().mean()
    torch.testing.assert_close(run.callback_metrics["train/loss"], expected, rtol=1e-4, atol=1e-8)


def test_it_learns_the_truth():
    data, module = PlumeData(world=WORLD, train=8, test=4, batch_size=8), SupervisedSuperResolution(channels=8, lr=1e-2)
    plumes = draw_plumes(WORLD, 8, "train")

    def error():
        return float((module(plumes.observations.batch(), data.observations("train").physics) - plumes.truth).square().mean())

    before = error()
    trainer(25).fit(module, data)
    assert error() < 0.7 * before


def test_without_a_truth_it_says_so(tmp_path):
    from projects.s3rp.layouts import write_observations

    for split in ("train", "val", "test"):
        write_observations(tmp_path / f"{split}.npz", draw_plumes(WORLD, 4, split).observations)
    data = PlumeData("files", str(tmp_path), batch_size=4)
    with pytest.raises(ValueError, match=r"needs the truth of the training split: expected truth/train.npz"):
        trainer(1).fit(SupervisedSuperResolution(channels=4), data)
