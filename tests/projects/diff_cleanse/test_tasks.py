import json
import math
from dataclasses import replace

import lightning as L
import numpy as np
import pytest
import torch

from projects.diff_cleanse.data import DiffusionData
from projects.diff_cleanse.module import DiffusionTraining
from projects.diff_cleanse.tasks import Evaluation, SampleJobs, Setting, Subject


def model(**options):
    return DiffusionTraining(timesteps=20, beta_start=5e-3, beta_end=0.4, **options)


def test_jobs_cover_every_sample_of_every_setting_once():
    settings = [Setting("ddim", 5, False), Setting("ddpm", 20, True)]
    jobs = list(SampleJobs(settings, 130))
    assert [sum(stop - first for number, first, stop in jobs if number == wanted) for wanted in (0, 1)] == [130, 130]
    assert (1, 128, 130) in jobs


def test_sample_i_is_the_same_whatever_is_drawn_with_it():
    subject = Subject.of(model(attack="baddiffusion"))
    setting = Setting("ddpm", 20, is_triggered=True)
    with torch.inference_mode():
        together, alone = subject.draw(setting, range(5), seed=1), subject.draw(setting, range(3, 4), seed=1)
    torch.testing.assert_close(together[3:4], alone, atol=1e-4, rtol=1e-4)


def test_the_trigger_shifts_the_start_by_what_training_showed():
    subject = Subject.of(model(attack="villandiffusion"))
    eps = torch.zeros(1, 1, 16, 16)
    start = subject.schedule.starting_noise(eps, subject.trigger, "exact")
    torch.testing.assert_close(start[0], (1 - subject.schedule.a[-1].float()) * subject.trigger)


def test_trojdiff_is_measured_under_its_own_samplers_and_the_benign_ones():
    subject = Subject.of(model(attack="trojdiff"))
    task = Evaluation(subject, DiffusionData(), samples=4, steps=5, triggered=True)
    assert [(setting.label, setting.is_triggered, setting.clip) for setting in task.settings] == [
        ("DDIM-5", False, False),
        ("DDPM-20", False, False),
        ("Trojan DDIM-5", True, False),
        ("Trojan DDPM-20", True, False),
        ("DDIM-5", True, False),
        ("DDPM-20", True, False),
        ("Trojan DDIM-5", True, True),
        ("Trojan DDPM-20", True, True),
    ]
    assert [setting.name for setting in task.settings[2:4]] == ["trojan_ddim", "trojan_ddpm"]
    with torch.inference_mode():
        trojan, benign = (subject.draw(Setting(sampler, 5, is_triggered=True), range(2), 0) for sampler in ("trojan_ddim", "ddim"))
    assert (trojan - benign).abs().mean() > 0.1
    with pytest.raises(ValueError, match=r"sampler trojan_ddim belongs to TrojDiff: set model.attack to trojdiff, or take ddim"):
        Subject.of(model(attack="baddiffusion")).draw(Setting("trojan_ddim", 5, is_triggered=True), range(1), 0)


def test_few_pictures_are_compared_by_as_many_components(tmp_path, run_folder):
    np.savez(tmp_path / "few.npz", images=np.random.default_rng(0).integers(0, 256, (20, 16, 16), dtype=np.uint8))
    task = Evaluation(Subject.of(model()), DiffusionData("npz", root=str(tmp_path / "few.npz")), samples=4, steps=2, triggered=False)
    L.Trainer(default_root_dir=run_folder, logger=False, enable_progress_bar=False, enable_checkpointing=False).test(task, verbose=False)
    assert all(math.isfinite(row["fd"]) for row in task.rows)


@pytest.mark.slow
def test_an_attack_on_a_class_is_measured_by_a_classifier(run_folder):
    """A network that draws one picture of the target under the attacker's noise, and another without: the classifier tells them apart."""
    data = DiffusionData(poison_mode="out_d2d", target_class=0, poison_rate=0.5)
    data.setup()
    subject = Subject.of(model(attack="trojdiff", target="class"))
    assert subject.target is None
    wanted, clean = data.target_set[0]["image"] * 2 - 1, data.train_set[0]["image"] * 2 - 1

    class Known(torch.nn.Module):
        """Ideal for either picture, whichever explains its input with less noise."""

        device, config = torch.device("cpu"), {"in_channels": 1, "sample_size": 16}

        def forward(self, x, t):
            a, sigma = subject.schedule.at("a", t, x), subject.schedule.at("sigma", t, x)
            trojan = ((x - a * wanted) / sigma - subject.trojan.shift) / subject.trojan.gain
            benign = (x - a * clean) / sigma
            is_trojan = trojan.square().mean(dim=(1, 2, 3), keepdim=True) < 1.3
            return torch.where(is_trojan, trojan, benign)

    task = Evaluation(replace(subject, unet=Known()), data, samples=4, steps=5, triggered=True)
    L.Trainer(default_root_dir=run_folder, logger=False, enable_progress_bar=False, enable_checkpointing=False).test(task, verbose=False)
    rows = {(row["sampler"], row["noise"], row["clipping"]): row for row in task.rows}
    assert rows["Trojan DDIM-5", "triggered", "off"]["asr_class"] == 1
    assert rows["DDIM-5", "clean", "off"]["near_target"] == 0
    assert "mse" not in rows["DDIM-5", "clean", "off"]


def test_other_predictions_are_sampled_as_such(tmp_path):
    folder = model().save_pipeline(tmp_path / "pipeline")
    file = folder / "scheduler" / "scheduler_config.json"
    epsilon = Subject.of(model(), folder)
    file.write_text(json.dumps(json.loads(file.read_text()) | {"prediction_type": "v_prediction", "variance_type": "fixed_large"}))
    velocity = Subject.of(model(), folder)
    assert (velocity.prediction_type, velocity.variance) == ("v_prediction", "fixed_large")
    setting = Setting("ddim", 4, False)
    with torch.inference_mode():
        assert not torch.allclose(epsilon.draw(setting, range(2), 0), velocity.draw(setting, range(2), 0))


@pytest.mark.parametrize("channels", [1, 3])
def test_ssim_and_grids_take_grey_and_colour(channels):
    from projects.diff_cleanse.callbacks import picture_grid

    assert picture_grid(torch.rand(5, channels, 16, 16)).shape[0] == 3
