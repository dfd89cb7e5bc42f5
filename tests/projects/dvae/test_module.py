import csv
import math
from pathlib import Path

import pytest
import torch
import yaml
from helpers.layouts import write_cifar10
from helpers.processes import run_together, run_until_killed
from helpers.workers import command_line, fit_until_killed

from projects.dvae.cli import main
from projects.dvae.losses import energy_hinge, kl_divergence, rate_hinge, reconstruction_loss, separation_loss
from projects.dvae.module import Purifier
from projects.dvae.purification import subtract_stages
from projects.dvae.tasks import product_names
from shared.dashboards import validate

PROJECT = Path(__file__).parents[3] / "projects" / "dvae"
SMALL = ["--model.width=4", "--model.epochs=[2,1]", "--trainer.max_epochs=3", "--trainer.enable_model_summary=false", "--data.batch_size=128"]


def small(**options):
    return Purifier(**({"classes": 4, "size": 8, "width": 4, "rates": [1.0, 3.0], "epochs": [12, 6]} | options))


def test_epochs_belong_to_stages_with_a_cosine_each():
    module = small()
    assert [module.stage_of(epoch) for epoch in (0, 11, 12, 17)] == [(0, 0), (0, 11), (1, 0), (1, 5)]
    schedule = module.configure_optimizers()["lr_scheduler"]["scheduler"]
    factors = [schedule.lr_lambdas[0](epoch) for epoch in range(18)]
    expected = [0.5 * (1 + math.cos(math.pi * epoch / 12)) for epoch in range(12)] + [0.5 * (1 + math.cos(math.pi * epoch / 6)) for epoch in range(6)]
    assert factors == pytest.approx(expected)


class Recorder:
    world_size = 1


@pytest.mark.parametrize(("epoch", "has_hinge"), [(0, False), (2, False), (3, True), (11, True)])
def test_the_loss_is_the_papers(monkeypatch, epoch, has_hinge):
    module = small()
    monkeypatch.setattr(Purifier, "current_epoch", epoch)
    monkeypatch.setattr(Purifier, "global_step", 7)
    monkeypatch.setattr(Purifier, "trainer", Recorder(), raising=False)
    logged = {}
    monkeypatch.setattr(Purifier, "log_dict", lambda self, values, **_: logged.update(values))
    images, labels = torch.rand(5, 3, 8, 8), torch.tensor([0, 1, 2, 3, 0])
    loss = module.training_step({"image": images, "label": labels}, 0)
    noise = module._training_noise(module.stages[0], images)
    found = module.stages[0](images, labels, noise)
    expected = reconstruction_loss(found.reconstruction, images) + separation_loss(found.reconstruction, found.perturbation, images)
    expected = expected + rate_hinge(kl_divergence(found.latent.mean, found.latent.log_variance), 1.0)
    if has_hinge:
        expected = expected + energy_hinge(found.perturbation, 0.002)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert all(p.grad is None for p in module.stages[1].parameters()), "the other stage is left alone"
    assert logged["train/stage"] == 1.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rates": [1.0]}, "one value a stage"),
        ({"rates": [0.0, 1.0]}, "rates must be positive"),
        ({"epochs": [0, 3]}, "epochs at least 1"),
    ],
)
def test_wrong_stages_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        small(**options)


def test_names_of_products():
    assert product_names(2) == ["x1", "x2", "x3", "p1", "p2"]
    assert product_names(1) == ["x1", "x2", "p1"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data.source=textures", "--data.size=8", "--data.length=200"], None),
        (["--trainer.max_epochs=5"], "max_epochs is 5, but model.epochs"),
        (["--model.classes=4"], "the data has 10 classes"),
        (["--model.size=16"], "the data's images are"),
    ],
)
def test_settings_that_do_not_fit_the_data(options, message, capsys):
    if message is None:
        assert main(["fit", *SMALL, *options]).exit_code == 0
        return
    with pytest.raises(SystemExit):
        main(["fit", *SMALL, *options])
    assert message in capsys.readouterr().err


def test_a_later_stage_is_trained_on_what_the_first_left(run_folder, monkeypatch):
    seen = {}
    original = Purifier._stage_images

    def spy(self, batch, stage):
        images = original(self, batch, stage)
        if stage == 1 and "images" not in seen:
            seen.update(images=images.clone(), batch=batch, stages=[s.state_dict() for s in self.stages])
        return images

    monkeypatch.setattr(Purifier, "_stage_images", spy)
    cli = main(["fit", *SMALL, "--run", "whole"])
    batch, module = seen["batch"], cli.model.eval()
    expected = subtract_stages(module.stages[:1], batch["image"], batch["label"], batch["index"], 0)
    torch.testing.assert_close(seen["images"], expected, rtol=0, atol=1 / 255 + 1e-6)
    assert not list((run_folder / "dvae" / "whole" / "artefacts" / "fit").glob("*.npy")), "what a stage left is removed"
    rows = list(csv.DictReader((run_folder / "dvae" / "whole" / "fit" / "metrics.csv").open()))
    logged = {name for row in rows for name, value in row.items() if value}
    pictures = {path.stem for path in (run_folder / "dvae" / "whole" / "artefacts" / "fit").iterdir()}
    of_verbs = {"purified", "confusion", "curve", "detection"}  # tested with their verbs
    assert validate(PROJECT / "dashboard.yaml").metrics <= logged | pictures | of_verbs


def test_a_killed_training_resumes_in_the_second_stage_to_the_same_weights(run_folder):
    common = ["fit", *SMALL, "--save_every=3"]
    run_until_killed(run_folder, fit_until_killed, [*common, "--run", "broken"], "dvae", 26)
    resumed = main(["fit", "--resume", "--run", "broken"])
    whole = main([*common, "--run", "whole"])
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(weight, resumed.model.state_dict()[name]), name


def test_two_processes_follow_one(run_folder):
    options = ["fit", *SMALL, "--model.norm=instance"]
    run_together(command_line, [*options, "--run", "two"], "dvae")
    main([*options, "--run", "one"])
    losses = []
    for name in ("one", "two"):
        rows = list(csv.DictReader((run_folder / "dvae" / name / "fit" / "metrics.csv").open()))
        losses.append([float(row["train/reconstruction"]) for row in rows if row["train/reconstruction"]])
    assert len(losses[0]) == len(losses[1]) > 1
    assert losses[1] == pytest.approx(losses[0], rel=0.15), "batch normalisation sees half of the batch in each process"


@pytest.mark.parametrize(("config", "count"), [("paper", 1_181_382), ("cifar100", 4_130_502), ("imagenet100", 11_980_806)])
def test_the_papers_networks(config, count):
    base = yaml.safe_load((PROJECT / "configs" / "paper.yaml").read_text())
    other = yaml.safe_load((PROJECT / "configs" / f"{config}.yaml").read_text())
    module = Purifier(**(base["model"] | other["model"] | {"seed": 0}))
    assert sum(p.numel() for p in module.stages[0].parameters()) == count
    assert sum(module.hparams.epochs) == (base["trainer"] | other["trainer"])["max_epochs"]


def test_the_papers_setting_takes_a_step(tmp_path):
    root = write_cifar10(tmp_path)
    options = ["--trainer.max_steps=1", "--trainer.limit_test_batches=1", "--trainer.accelerator=cpu", "--trainer.devices=1", "--data.batch_size=4"]
    cli = main(["fit", "--config", "paper", *options, "--data.poison=lsp", f"--data.root={root.parent}"])
    assert cli.trainer.global_step == 1
