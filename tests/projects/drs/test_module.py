import csv
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from helpers.layouts import write_cifar10
from helpers.processes import run_until_killed
from helpers.workers import fit_until_killed
from torch import nn

from projects.drs.callbacks import sub_images
from projects.drs.cli import main
from projects.drs.losses import consistency, cross_entropy, noised_logits
from projects.drs.module import DualSmoothing
from shared.dashboards import validate

PROJECT = Path(__file__).parents[3] / "projects" / "drs"
SHORT = ["--trainer.max_steps=4", "--data.batch_size=16", "--trainer.enable_model_summary=false", "--trainer.check_val_every_n_epoch=1"]


def module(**options):
    return DualSmoothing(**({"size": 8, "channels": 1, "classes": 4, "sigma": 0.3} | options))


class Recorder:
    world_size = 1


@pytest.fixture
def outside(monkeypatch):
    """Training steps without a Trainer."""
    monkeypatch.setattr(DualSmoothing, "log", lambda *_, **__: None)
    monkeypatch.setattr(DualSmoothing, "global_step", 0)
    monkeypatch.setattr(DualSmoothing, "current_epoch", 10)
    monkeypatch.setattr(DualSmoothing, "trainer", Recorder(), raising=False)
    return lambda model, step=0: DualSmoothing.training_step(
        model, {"image": torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0)), "label": torch.arange(6) % 4}, step
    )


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"recipe": "consistency", "draws": 2},
        {"recipe": "smoothmix", "draws": 2, "attack_steps": 2},
        {"recipe": "smoothmix", "draws": 2, "attack_steps": 2, "one_step": True, "warmup_epochs": 1},
        {"recipe": "smoothadv", "draws": 2, "attack_steps": 2},
        {"recipe": "macer", "regularisation": 0.5},
        {"split": "phases", "embedding": "packed_native"},
        {"split": "whole", "embedding": "packed_native", "ensemble": 2},
        {"shared_network": True, "augment": "crop"},
    ],
)
def test_every_recipe_teaches_every_network(outside, options):
    model = module(**options)
    outside(model).backward()
    for network in model.net.networks:
        assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in network.parameters())
        assert any(bool((p.grad != 0).any()) for p in network.parameters())
    assert torch.equal(outside(module(**options)), outside(module(**options))), "noise belongs to the seed and the step"
    assert not torch.equal(outside(module(**options), 1), outside(module(**options), 0))


def test_the_loss_is_the_sum_of_the_branches_own(outside, monkeypatch):
    drawn = {}
    plain = torch.randn

    def remembered(*shape, **options):
        drawn[len(drawn)] = plain(*shape, **options)
        return drawn[len(drawn) - 1]

    model = module(recipe="consistency", draws=3, regularisation=2.0, entropy=0.1)
    monkeypatch.setattr(torch, "randn", remembered)
    found = outside(model)
    images, labels, expected = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 4, 0.0
    for branch, classify in model.net.members():
        logits = noised_logits(classify, model.net.split.take(branch)(images), 0.3 * drawn[branch].transpose(0, 1))
        expected = expected + cross_entropy(logits, labels) + consistency(logits, 2.0, 0.1)
    torch.testing.assert_close(found, expected)


def test_shown_sub_images_have_a_row_for_every_branch():
    model = module(split="phases", statistics="digits")
    images = torch.rand(3, 1, 8, 8)
    picture = sub_images(model, images)
    assert picture.shape == (1, 5 * 8, 3 * 8)
    torch.testing.assert_close(picture[0, :8, :8], images[0, 0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sigma": 0.0}, "model.sigma must be positive"),
        ({"recipe": "trades"}, "must be gaussian, consistency"),
        ({"recipe": "consistency"}, "at least 1, and 2 for consistency"),
        ({"recipe": "smoothadv", "attack_steps": 0}, "attack_steps must be at least 1"),
        ({"size": 7}, "even height and width"),
    ],
)
def test_wrong_settings_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        module(**options)


def test_a_fit_logs_what_the_dashboard_shows(run, run_folder):
    header = set((run / "fit" / "metrics.csv").read_text().splitlines()[0].split(","))
    pictures = {path.stem for path in (run / "artefacts" / "fit").iterdir()}
    certified = {"certified_accuracy", "certify/acr", "certify/abstention", "predictions"}  # tested with their verbs
    assert validate(PROJECT / "dashboard.yaml").metrics <= header | pictures | certified


def test_training_learns(run):
    rows = list(csv.DictReader((run / "fit" / "metrics.csv").open()))
    accuracy = next(float(row["test/accuracy"]) for row in rows if row["test/accuracy"])
    assert accuracy > 0.8
    assert accuracy > max(float(row[f"test/accuracy_{side}"]) for row in rows for side in ("left", "right") if row["test/accuracy"]) - 0.02


def test_other_classes_are_named(capsys):
    with pytest.raises(SystemExit):
        main(["fit", "--data.source=shapes", *SHORT])
    assert "the data has 4 classes: set model.classes to that, not 10" in capsys.readouterr().err


def test_training_starts_from_weights_that_other_verbs_do_not_need(run, tmp_path, capsys):
    start = shutil.copy(run / "checkpoints" / "last.ckpt", tmp_path / "start.ckpt")
    fit = ["fit", f"--model.weights={start}", "--model.lr=0", "--data.limit=4", "--run", "next", "--trainer.max_steps=1", *SHORT[1:]]
    cli = main([*fit, "--trainer.limit_val_batches=1", "--trainer.limit_test_batches=1"])
    begun = torch.load(start, weights_only=True)["state_dict"]
    assert all(torch.equal(weight, begun[f"net.{name}"]) for name, weight in cli.model.net.named_parameters())
    start.unlink()
    main(["test", "--trainer.limit_test_batches=1"])
    with pytest.raises(SystemExit):
        main([*fit, "--force"])
    assert "no weights" in capsys.readouterr().err


def test_labels_mean_what_was_learned():
    model = module()
    model.check_classes("abcd")
    model.class_names = list("abcd")
    with pytest.raises(ValueError, match=r"learned other classes \(e for d\)"):
        model.check_classes("abce")


def test_a_killed_training_resumes_to_the_same_weights(run_folder):
    common = ["fit", "--trainer.max_epochs=2", "--save_every=4", "--trainer.enable_model_summary=false", "--trainer.check_val_every_n_epoch=5"]
    run_until_killed(run_folder, fit_until_killed, [*common, "--run", "broken"], "drs", 10)
    resumed = main(["fit", "--resume", "--run", "broken"])
    whole = main([*common, "--run", "whole"])
    assert resumed.trainer.global_step == whole.trainer.global_step == 42
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(weight, resumed.model.state_dict()[name]), name


@pytest.mark.parametrize("recipe", ["", "consistency", "smoothmix", "smoothadv", "macer"])
def test_the_papers_setting_takes_a_step(tmp_path, recipe):
    root = write_cifar10(tmp_path)
    configs = ["--config", "paper", *(["--config", recipe] if recipe else [])]
    options = [
        "--trainer.max_steps=1",
        "--trainer.limit_val_batches=0",
        "--trainer.limit_test_batches=1",
        "--trainer.precision=32",
        "--trainer.accelerator=cpu",
    ]
    small = ["--data.batch_size=2", "--data.num_workers=0", "--trainer.devices=1"] + (["--model.backbone=resnet20"] if recipe else [])
    cli = main(["fit", *configs, *options, *small, f"--data.root={root.parent}"])
    counts = [sum(p.numel() for p in network.parameters()) for network in cli.model.net.networks]
    assert counts == [272_474 if recipe else 1_730_714] * 2
    assert yaml.safe_load(cli.run.config_file.read_text())["model"]["recipe"] == (recipe or "gaussian")


def test_the_imagenet_setting_builds_a_resnet50_for_each_half():
    settings = yaml.safe_load((PROJECT / "configs" / "imagenet.yaml").read_text())
    model = settings["model"] | {"size": 224, "channels": 3, "seed": 0}
    network = DualSmoothing(**model).net.networks
    assert [sum(p.numel() for p in each.parameters()) for each in network] == [25_557_032] * 2  # torchvision's ResNet-50
    assert isinstance(network[0].fc, nn.Linear)
