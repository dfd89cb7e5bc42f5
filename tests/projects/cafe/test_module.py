"""The federated classifier under Lightning, and its command line."""

import json

import lightning as L
import pytest
import torch
import yaml

from projects.cafe.cli import main
from projects.cafe.data import FederatedRecords
from projects.cafe.federation import update, uploads
from projects.cafe.module import FederatedClassifier

QUIET = ["--trainer.enable_model_summary", "false"]
SMALL = {"widths": [4, 8], "first": 16}
FEW = ["--model.widths", "[4, 8]", "--model.first", "16", *QUIET]


def build(model=None, **data):
    records = FederatedRecords(**data)
    records.setup()
    return FederatedClassifier([list(shape) for shape in records.shapes], records.classes, **(SMALL | (model or {}))), records


def fitted(module, data, steps, tmp_path):
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    L.Trainer(accelerator="cpu", max_steps=steps, default_root_dir=tmp_path, num_sanity_val_steps=0, limit_val_batches=0, **options).fit(module, data)


def test_the_paper_has_three_million_parameters():
    module = FederatedClassifier([[1, 14, 14]] * 4, 10, widths=[64, 128], first=256, hidden=64)
    bottom = (25 * 64 + 64) + (25 * 64 * 128 + 128) + (2048 * 256 + 256) + (256 * 64 + 64) + (64 * 10 + 10)
    assert sum(parameter.numel() for parameter in module.federation.parameters()) == 4 * bottom + 40 * 10 + 10 == 2_993_346


@pytest.mark.parametrize("defence", ["none", "noise:std=1e-3", "fake", "private:clip=1,noise_multiplier=0.5"])
def test_training_takes_the_steps_of_the_uploads(defence, tmp_path):
    module, data = build({"defence": defence}, batch_size=20)
    twin = build({"defence": defence}, batch_size=20)[0]
    fitted(module, data, 3, tmp_path)
    optimiser = twin.configure_optimizers()
    for number, batch in zip(range(3), data.train_dataloader(), strict=False):
        uploaded = uploads(twin.federation, batch["blocks"], batch["label"], number, twin.protection.defence, twin.protection.local)
        update(twin.federation, optimiser, uploaded)
    for mine, expected in zip(module.federation.parameters(), twin.federation.parameters(), strict=True):
        torch.testing.assert_close(mine, expected)


def test_the_classifier_learns_digits(tmp_path):
    module, data = build({"widths": [8, 16], "lr": 3e-3}, batch_size=40)
    fitted(module, data, 100, tmp_path)
    records = data.test_records
    with torch.no_grad():
        accuracy = (module(data.blocks(records.values())).argmax(1) == records.labels).float().mean()
    assert accuracy > 0.8


def test_batch_norms_have_the_statistics_of_training_records_and_keep_them(tmp_path):
    module, data = build({"batch_norm": True}, batch_size=20)
    module.settle(data)
    norm = module.federation.bottoms[0].body[0][1]
    settled = norm.running_mean.clone()
    assert settled.abs().sum() > 0
    fitted(module, data, 2, tmp_path)
    torch.testing.assert_close(norm.running_mean, settled)


def test_tables_have_no_relu_after_the_outputs_and_pictures_have():
    table, _ = build(source="breast_cancer")
    pictures, _ = build()
    assert isinstance(pictures.federation.bottoms[0].tail[-1], torch.nn.ReLU)
    assert isinstance(table.federation.bottoms[0].tail[-1], torch.nn.Linear)
    assert build({"rectified": False})[0].federation.bottoms[0].tail[-1].out_features == 10


def test_nets_of_ones_own_take_the_place_of_the_built_ones(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from torch import nn\n"
        "def build(shape, seed):\n"
        "    return nn.Sequential(nn.Conv2d(shape[0], 3, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(3 * shape[1] * shape[2], 7))\n"
    )
    module, _ = build({"bottom": f"{file}:build"})
    assert module.federation.server.top.in_features == 4 * 7
    assert module.federation.bottoms[0].first.in_features == 3 * 8 * 8


def test_a_learning_rate_of_zero_is_refused():
    with pytest.raises(ValueError, match="lr must be positive, got 0"):
        FederatedClassifier([[1, 8, 8]], 2, lr=0)


# ---- the command line


def test_fit_test_and_predict_work_one_after_the_other(run_folder, capsys):
    cli = main(["fit", "--trainer.max_epochs", "1", *FEW])
    assert cli.run.checkpoint("last").is_file()
    settings = yaml.safe_load(cli.run.config_file.read_text())
    assert "shapes" not in settings["model"]  # the data tell it again
    accuracy = main(["test", *QUIET]).trainer.callback_metrics["test/accuracy"]
    assert accuracy > 0.15
    main(["predict", *QUIET])
    rows = json.loads((cli.run.artefacts("predict") / "predictions.json").read_text())
    assert len(rows) == 397
    found = sum(row["label"] == row["predicted"] for row in rows) / len(rows)
    assert found == pytest.approx(float(accuracy), abs=1e-6)


def test_a_killed_fit_goes_on_where_it_was(run_folder):
    whole = main(["fit", "--trainer.max_steps", "40", "--run", "whole", *FEW])
    main(["fit", "--trainer.max_steps", "20", "--run", "part", "--save_every", "10", *FEW])
    part = main(["fit", "--resume", "--run", "part", "--trainer.max_steps", "40", *FEW])
    for one, other in zip(whole.model.federation.parameters(), part.model.federation.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_fit_that_goes_on_counts_every_validation_once(run_folder):
    main(["fit", "--trainer.max_epochs", "1", "--run", "part", *FEW])
    model = main(["fit", "--resume", "--run", "part", "--trainer.max_epochs", "3", *FEW]).model
    assert model.validations == [0, 1, 2, 3]
    assert len(model.norms) == 4


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--data.source", "mnist", "--data.root", "nowhere"], "nowhere lacks train-images-idx3-ubyte.gz"),
        (["--data.count", "5000"], "data.count is 5000, but digits has only 1400 training records"),
        (["--data.split", "rows", "--data.parties", "99"], "16 x 16 pixels cannot be split into 99 x 1 blocks"),
        (["--model.defence", "magic"], "unknown defence 'magic': choose none"),
        (["--model.bottom", "mine.py:build"], "there is no file mine.py"),
        (["--data.source", "breast_cancer", "--model.batch_norm", "true"], "model.batch_norm is for pictures"),
        (["--data.batch_size", "2000"], "1400 images, fewer than a batch of 2000"),
    ],
    ids=["folder", "count", "split", "defence", "bottom", "norm", "batch"],
)
def test_bad_input_is_told_before_any_work(args, message, run_folder, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["fit", *args, *QUIET])
    assert stop.value.code in (1, 2)
    said = capsys.readouterr().err
    assert message in " ".join(said.split())
    assert "Traceback" not in said
    assert not list((run_folder / "cafe").glob("*/checkpoints/*")) if (run_folder / "cafe").exists() else True
