import json

import pytest
import torch

from projects.diff_cleanse.cli import main
from projects.diff_cleanse.module import DiffusionTraining
from projects.diff_cleanse.reproduction import expectations
from projects.diff_cleanse.tasks import SampleJobs, Setting, Subject


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


def test_reproduce_runs_and_says_what_does_not_hold(run_folder, capsys):
    main(["reproduce", "--quick", "--run", "q", "--model.eval_samples=16", "--model.timesteps=10", "--trainer.max_steps=40"])
    results = json.loads((run_folder / "diff_cleanse" / "q" / "results.json").read_text())
    assert {row["model"] for row in results["rows"]} == {"clean", "VillanDiffusion ODE", "BadDiffusion (SDE)"}
    assert results["expectations"]["the ODE backdoor answers to DDIM (ASR at least 0.8), not to DDPM (at most 0.2)"] is False
    assert (run_folder / "diff_cleanse" / "q" / "artefacts" / "reproduce" / "asr.png").is_file()
    assert "| VillanDiffusion ODE |" in capsys.readouterr().out


MODELS = ("clean", "VillanDiffusion ODE", "BadDiffusion (SDE)")


def test_expectations_are_read_off_the_table():
    def row(model, noise, sampler, clipping, **values):
        cells = {name: {"mean": value, "std": 0.0, "n": 3} for name, value in values.items()}
        return {"model": model, "noise": noise, "sampler": sampler, "clipping": clipping} | cells

    rows = [row(name, "clean", sampler, "off", fd=1.0) for name in MODELS for sampler in ("DDIM-20", "DDPM-100")]
    for name, ddim, ddpm in (("clean", 0.0, 0.0), ("VillanDiffusion ODE", 0.9, 0.1), ("BadDiffusion (SDE)", 0.0, 0.95)):
        rows += [row(name, "triggered", "DDIM-20", "off", **{"asr_1e-2": ddim}), row(name, "triggered", "DDPM-100", "off", **{"asr_1e-2": ddpm})]
        rows += [
            row(name, "triggered", "DDIM-20", "on", **{"asr_1e-2": ddim / 2}),
            row(name, "triggered", "DDPM-100", "on", **{"asr_1e-2": ddpm / 2}),
        ]
    assert all(expectations(rows).values())
    rows[-3]["asr_1e-2"]["mean"] = 0.5
    assert [name for name, held in expectations(rows).items() if not held] == [
        "the SDE backdoor answers to DDPM (ASR at least 0.8), not to DDIM (at most 0.2)"
    ]


@pytest.mark.parametrize("channels", [1, 3])
def test_ssim_and_grids_take_grey_and_colour(channels):
    from projects.diff_cleanse.callbacks import picture_grid

    assert picture_grid(torch.rand(5, channels, 16, 16)).shape[0] == 3
